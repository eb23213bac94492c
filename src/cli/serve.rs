//! `ringway serve`: settings in, daemon out.

use std::path::PathBuf;
use std::process::ExitCode;

use super::logging;
use crate::config::{Config, ConfigFile, Settings};
use crate::daemon;

/// Flags of `ringway serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// TOML file with settings; its keys are the flags below without the dashes, and flags weigh more
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let file = args.config.as_deref().map(ConfigFile::read).transpose()?;
    let config = Config::resolve(args.settings, file)?;
    logging::init(&config.log, config.log_format)?;
    daemon::run(config)?;
    Ok(ExitCode::SUCCESS)
}
