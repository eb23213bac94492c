//! `ringway agent`: the guest side.

use std::path::PathBuf;
use std::process::ExitCode;

/// Run the agent that starts processes on behalf of a daemon.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Control channel socket to listen on
    #[arg(long, value_name = "PATH")]
    pub ctl: PathBuf,
    /// Stream channel socket to listen on
    #[arg(long, value_name = "PATH")]
    pub io: PathBuf,
}

/// Runs the agent.
///
/// # Errors
/// Always, in this build: the agent is not part of it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    drop(args);
    anyhow::bail!("the agent is not linked yet")
}
