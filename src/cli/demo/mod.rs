//! `ringway demo`: the whole of Ringway on one screen, without root and without a VM.
//!
//! Owns what is shown and in which order; `stage` has the processes, `work` the sessions. Never touches a daemon that
//! was running before. The asymmetry to know: the story shows each command and its output, the scaled run only sums.

mod scale;
mod stage;
mod story;
mod work;

use std::process::ExitCode;

use crate::config::Size;

/// Flags of `ringway demo`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without flags it tells a short story; with --vms, --sessions or --bytes it moves data and sums."
)]
pub struct Args {
    /// VMs, each an agent process of its own [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    vms: Option<u16>,
    /// Sessions in all, spread over the VMs [default: two for each VM]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    sessions: Option<u16>,
    /// Bytes each session sends through `cat` and back [default: 16MiB]
    #[arg(long, value_name = "BYTES")]
    bytes: Option<Size>,
    /// Shards of the daemon [default: 2]
    #[arg(long, value_name = "N", default_value_t = 2, hide_default_value = true,
        value_parser = clap::value_parser!(u16).range(1..=256))]
    shards: u16,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let scaled = args.vms.is_some() || args.sessions.is_some() || args.bytes.is_some();
    let vms = args.vms.unwrap_or(2);
    let stage = stage::Stage::open(vms, args.shards)?;
    let told = if scaled {
        let sessions = args.sessions.unwrap_or(vms.saturating_mul(2));
        scale::run(&stage, sessions, args.bytes.map_or(16 << 20, |size| size.0))
    } else {
        story::run(&stage)
    };
    match told.and_then(|()| stage.close()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            stage.yield_to_interrupt();
            eprint!("{}", stage.logs());
            Err(error)
        }
    }
}
