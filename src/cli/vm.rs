//! `ringway vm`: tell a running daemon about VMs.
//!
//! Adding and removing are protocol 1's hello and bye; only the list needs the admin socket.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;

use super::show::{self, Align, Table};
use super::{ProxySocket, Sockets};
use crate::wire::admin::VmStatus;

/// Flags of `ringway vm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register a VM: connect to its agent and wait until it is ready
    Add {
        /// The VM's name from now on
        id: String,
        /// The agent's control channel socket
        #[arg(long, value_name = "PATH")]
        ctl: PathBuf,
        /// The agent's stream channel socket
        #[arg(long, value_name = "PATH")]
        io: PathBuf,
        #[command(flatten)]
        socket: ProxySocket,
    },
    /// Unregister a VM: close its sockets and end all its sessions
    Rm {
        /// The VM's name
        id: String,
        #[command(flatten)]
        socket: ProxySocket,
    },
    /// List the VMs
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        sockets: Sockets,
    },
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Add { id, ctl, io, socket } => {
            // The daemon runs elsewhere: a path relative to here means nothing to it.
            let (ctl, io) = (absolute(&ctl)?, absolute(&io)?);
            socket.client()?.hello(&id, &ctl, &io).with_context(|| format!("cannot add VM {}", show::plain(&id)))?;
        }
        Command::Rm { id, socket } => {
            socket.client()?.bye(&id).with_context(|| format!("cannot remove VM {}", show::plain(&id)))?;
        }
        Command::Ls { json, sockets } => {
            let vms = sockets.admin_client()?.status()?.vms;
            let text = if json { serde_json::to_string_pretty(&vms)? + "\n" } else { render(&vms) };
            show::print(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} names no socket", path.display()))
}

fn render(vms: &[VmStatus]) -> String {
    let left = |name| (name, Align::Left);
    let right = |name| (name, Align::Right);
    let mut table =
        Table::new(&[left("VM"), left("STATE"), right("SHARD"), right("SESSIONS"), left("CTL"), left("IO")]);
    for vm in vms {
        let sessions = vm.sessions.len().to_string();
        let (ctl, io) = (show::plain(&vm.ctl), show::plain(&vm.io));
        table.row([show::plain(&vm.id), show::plain(&vm.state), vm.shard.to_string(), sessions, ctl, io]);
    }
    if table.is_empty() { "no VMs\n".to_owned() } else { table.render("") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::admin::SessionStatus;

    #[test]
    fn the_list() {
        assert_eq!(render(&[]), "no VMs\n");
        let sessions = vec![SessionStatus::default()];
        let vm = VmStatus {
            id: "a".into(),
            state: "ready".into(),
            ctl: "/c".into(),
            io: "/i".into(),
            ..VmStatus::default()
        };
        let text = render(&[VmStatus { sessions, ..vm }]);
        assert_eq!(text, "VM  STATE  SHARD  SESSIONS  CTL  IO\na   ready      0         1  /c   /i\n");
    }
}
