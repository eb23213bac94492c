//! `ringway agent`: arguments of the guest end.
//!
//! It decides nothing itself. The asymmetry to know: on the command line an agent has its process to itself; in a
//! thread of something else (see [`crate::agent::Config`]) it has not.

use std::path::PathBuf;
use std::process::ExitCode;

use super::logging;
use crate::agent::{Config, ExitReport};
use crate::config::LogFormat;
use crate::limits::{
    CONTROL_MESSAGE_MAX, GUEST_API_VERSION, GUEST_CONTROL_RANGE, GUEST_FRAME_DEFAULT, GUEST_FRAME_RANGE,
};

/// Run the guest end: a hyperstart agent that starts real processes.
///
/// It listens on two Unix sockets, as a hypervisor would for a guest's serial ports, or opens two character devices.
/// It ends with destroypod or SIGTERM, and no process of its is left then.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Control channel: path of the socket to listen on, or of a character device
    #[arg(long, value_name = "PATH")]
    pub ctl: PathBuf,
    /// Stream channel: path of the socket to listen on, or of a character device
    #[arg(long, value_name = "PATH")]
    pub io: PathBuf,
    /// API version to answer
    #[arg(long, value_name = "N", default_value_t = GUEST_API_VERSION)]
    pub api_version: u32,
    /// Send READY on every control connection, as agents on vsock do, not only on the first
    #[arg(long)]
    pub ready_per_connection: bool,
    /// How to report the end of a process: a one-byte frame after EOF, or an event on the control channel
    #[arg(long, value_enum, default_value_t = ExitReport::Frame)]
    pub exit_report: ExitReport,
    /// Send NEXT for every header and payload read from the control channel, as the C agents do
    #[arg(long)]
    pub send_next: bool,
    /// Longest control message to take, in bytes with its header
    #[arg(long, value_name = "BYTES", default_value_t = CONTROL_MESSAGE_MAX)]
    pub control_max: usize,
    /// Longest frame to write, in bytes with its header
    #[arg(long, value_name = "BYTES", default_value_t = GUEST_FRAME_DEFAULT,
        value_parser = clap::value_parser!(u32).range(i64::from(GUEST_FRAME_RANGE.0)..=i64::from(GUEST_FRAME_RANGE.1)))]
    pub frame_max: u32,
    /// Run every container in this root directory, whatever its rootfs says
    #[arg(long)]
    pub ignore_rootfs: bool,
    /// What to log to standard error: error, warn, info, debug, trace, or a filter such as ringway=debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: String,
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// A port that cannot be opened, or an argument out of range.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (least, most) = GUEST_CONTROL_RANGE;
    anyhow::ensure!(
        (least..=most).contains(&args.control_max),
        "--control-max must be from {least} to {most} bytes, not {}",
        args.control_max
    );
    anyhow::ensure!(args.ctl != args.io, "--ctl and --io must be different paths");
    logging::init(&args.log, LogFormat::Text)?;
    crate::agent::run(Config {
        ctl: args.ctl,
        io: args.io,
        api_version: args.api_version,
        ready_per_connection: args.ready_per_connection,
        exit_report: args.exit_report,
        send_next: args.send_next,
        control_max: args.control_max,
        frame_max: args.frame_max,
        ignore_rootfs: args.ignore_rootfs,
        whole_process: true,
    })?;
    Ok(ExitCode::SUCCESS)
}
