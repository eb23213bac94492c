//! stub
use std::process::ExitCode;
pub(super) const FAILED: u8 = 125;
/// Flags of `ringway exec`.
#[derive(Debug, clap::Args)]
pub struct Args {}
pub(super) fn run(_: Args) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
