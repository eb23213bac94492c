//! stub
use std::process::ExitCode;
/// Flags of `ringway demo`.
#[derive(Debug, clap::Args)]
pub struct Args {}
pub(super) fn run(_: &Args) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
