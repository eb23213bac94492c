//! The `ringway` command: its flags, and which function serves which subcommand.
//!
//! Owns the table of flags that help, man pages and completions come from, and the exit codes; never does the work
//! itself. The asymmetry to know: `exec` ends with its process's status, everything else with 0, 1 or 2 (usage).

pub mod agent;
mod demo;
mod doctor;
mod exec;
mod logging;
mod pages;
mod pump;
mod serve;
mod shim;
mod show;
mod status;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{client, config};

/// I/O multiplexer between the guests of a container host and the programs that want their I/O
#[derive(Debug, Parser)]
#[command(name = "ringway", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon
    Serve(Box<serve::Args>),
    /// Run the agent, the guest's side
    Agent(agent::Args),
    /// Run a command in a VM, with this terminal or these pipes as its own
    Exec(exec::Args),
    /// Stand for one process of a VM on the host, for a runtime: the command line is cc-shim's
    Shim(shim::Args),
    /// Add, remove and list VMs
    Vm(vm::Args),
    /// Show what the daemon does: VMs, sessions, queues, who is slow
    Status(status::Args),
    /// Check that this host can run the daemon, and that it runs
    Doctor(doctor::Args),
    /// Run a daemon, two VMs' agents and some commands, and show what went where; needs no root
    Demo(demo::Args),
    /// Print completions for a shell
    Completions(pages::CompletionsArgs),
    /// Print the manual page, or write one for each subcommand
    Man(pages::ManArgs),
}

/// Which daemon to talk to, for what needs only the proxy socket.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ProxySocket {
    /// The daemon's proxy socket [default: as for `ringway serve`]
    #[arg(long, value_name = "PATH", env = "RINGWAY_SOCKET", hide_env_values = true)]
    pub socket: Option<PathBuf>,
}

impl ProxySocket {
    fn path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(config::default_socket)
    }

    fn client(&self) -> client::Result<client::Client> {
        client::Client::connect(self.path())
    }
}

/// Which daemon to ask how it is.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Sockets {
    #[command(flatten)]
    proxy: ProxySocket,
    /// The daemon's admin socket [default: admin.sock next to the proxy socket]
    #[arg(long, value_name = "PATH", env = "RINGWAY_ADMIN_SOCKET", hide_env_values = true)]
    pub admin_socket: Option<PathBuf>,
}

impl Sockets {
    fn admin(&self) -> PathBuf {
        self.admin_socket.clone().unwrap_or_else(|| config::admin_socket_beside(&self.proxy.path()))
    }

    fn admin_client(&self) -> client::Result<client::admin::AdminClient> {
        client::admin::AdminClient::new(self.admin())
    }
}

/// Parses the command line and does what it says.
pub fn run() -> ExitCode {
    let (failed, outcome) = match Cli::parse().command {
        Command::Serve(args) => (1, serve::run(*args)),
        Command::Agent(args) => (1, agent::run(args)),
        Command::Exec(args) => (exec::FAILED, exec::run(args)),
        Command::Shim(args) => (1, shim::run(args)),
        Command::Vm(args) => (1, vm::run(args)),
        Command::Status(args) => (1, status::run(&args)),
        Command::Doctor(args) => (1, doctor::run(&args)),
        Command::Demo(args) => (1, demo::run(&args)),
        Command::Completions(args) => (1, pages::completions(&args)),
        Command::Man(args) => (1, pages::man(&args)),
    };
    outcome.unwrap_or_else(|error| {
        if !show::is_closed_pipe(&error) {
            eprintln!("ringway: {error:#}");
        }
        ExitCode::from(failed)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_table_of_flags_is_sound() {
        super::Cli::command().debug_assert();
    }
}
