//! `ringway exec`: one process in a VM whose stdin, stdout, stderr, signals and exit status are this process's own.
//!
//! Owns the flags and what they make of a process; `by_session` runs it over protocol 1, `by_token` over protocol 2,
//! and `signals` is what comes from outside. The asymmetry to know: this process's end never waits for its own stdin
//! (a terminal may never say anything), but waits for everything the other process said.

mod by_session;
mod by_token;
mod signals;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

use super::{ProxySocket, show};
use crate::client::Error;
use crate::wire::SlowReader;
use crate::wire::hyper::{EnvVar, Process};

/// Exit code for failures of ringway itself, apart from those of most commands.
pub(super) const FAILED: u8 = 125;

/// Exit code of a program that SIGPIPE ended.
const CLOSED_PIPE: u8 = 128 + 13;

/// Where programs are looked for unless `--env` says otherwise.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Which of the daemon's protocols carries the process's I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Protocol {
    /// A session's descriptor.
    #[value(name = "1")]
    One,
    /// A token, claimed by a shim.
    #[value(name = "2")]
    Two,
}

/// Flags of `ringway exec`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: the command's own; 128+N when signal N ended ringway and the agent cannot pass it \
                        on; 125 when ringway, the daemon or the agent fails."
)]
pub struct Args {
    #[command(flatten)]
    socket: ProxySocket,
    /// The VM to run in
    #[arg(long, value_name = "ID")]
    vm: String,
    /// The container to run in [default: none, the agent's own root]
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    container: String,
    /// Give the command a terminal, and put this one into raw mode
    #[arg(long, short)]
    tty: bool,
    /// Set an environment variable; K alone passes this process's own value; may be given several times
    #[arg(long, value_name = "K=V", value_parser = parse_env)]
    env: Vec<EnvVar>,
    /// Working directory
    #[arg(long, value_name = "DIR", default_value = "/")]
    cwd: String,
    /// User to run as, by name or number [default: the agent's choice]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Protocol to speak with the daemon: with 2, signals and exit statuses of newer agents arrive too [default: 2, or
    /// 1 if the daemon serves only that]
    #[arg(long, value_name = "1|2", hide_possible_values = true)]
    protocol: Option<Protocol>,
    /// What the daemon does when output is not read: spill it to a file, block the VM, or disconnect [default: what
    /// the daemon was told]
    #[arg(long, value_name = "spill|block|disconnect")]
    slow_reader: Option<SlowReader>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    // Before any thread exists, so that all of them leave the signals to the one that reads them.
    let signals = signals::block()?;
    if args.protocol == Some(Protocol::One) {
        return by_session::run(args, signals);
    }
    match by_token::attach(&args) {
        // A daemon that serves only protocol 1 hangs up on protocol 2.
        Err(Error::Lost) if args.protocol.is_none() => by_session::run(args, signals),
        attached => {
            let attached = attached.with_context(|| args.cannot_attach())?;
            by_token::run(args, attached, signals)
        }
    }
}

impl Args {
    fn cannot_attach(&self) -> String {
        format!("cannot attach to VM {}", show::plain(&self.vm))
    }

    fn cannot_run(&self) -> String {
        format!("cannot run '{}'", show::plain(&self.command.join(" ")))
    }

    /// The process, without sequences.
    fn into_process(self, id: String) -> Process {
        let mut envs = self.env;
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value.filter(|_| !envs.iter().any(|var| var.env == name)) {
                envs.push(EnvVar { env: name.to_owned(), value });
            }
        };
        add("PATH", Some(DEFAULT_PATH.to_owned()));
        if self.tty {
            add("TERM", std::env::var("TERM").ok());
        }
        Process {
            id: Some(id),
            terminal: self.tty,
            args: self.command,
            envs,
            workdir: self.cwd,
            user: self.user,
            ..Process::default()
        }
    }
}

/// A name no other process of the VM has: this process and this moment.
fn process_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("exec-{}-{:x}", std::process::id(), now.as_nanos())
}

fn parse_env(text: &str) -> Result<EnvVar, String> {
    let (env, value) = match text.split_once('=') {
        Some((env, value)) => (env, value.to_owned()),
        None => {
            let value = std::env::var(text);
            (text, value.map_err(|_| format!("'{text}' has no value here; write {text}=VALUE"))?)
        }
    };
    if env.is_empty() {
        return Err("a variable needs a name; write NAME=VALUE".to_owned());
    }
    Ok(EnvVar { env: env.to_owned(), value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn process(line: &[&str]) -> Process {
        let line = [&["exec", "--vm", "v"], line].concat();
        Cli::try_parse_from(line).unwrap().args.into_process("p".into())
    }

    #[test]
    fn flags_become_a_process() {
        let pipes = process(&["--env", "A=b=c", "--user", "u", "--cwd", "/w", "--", "ls", "-l", "--", "x"]);
        assert_eq!((pipes.stdio, pipes.stderr, pipes.terminal), (0, 0, false));
        assert_eq!(pipes.args, ["ls", "-l", "--", "x"]);
        assert_eq!((pipes.workdir.as_str(), pipes.user.as_deref()), ("/w", Some("u")));
        let var = |env: &str, value: &str| EnvVar { env: env.into(), value: value.into() };
        assert_eq!(pipes.envs, [var("A", "b=c"), var("PATH", DEFAULT_PATH)]);
        let tty = process(&["-t", "--env", "PATH=/p", "--env", "TERM=dumb", "sh"]);
        assert_eq!((tty.stdio, tty.stderr, tty.terminal), (0, 0, true));
        assert_eq!(tty.envs, [var("PATH", "/p"), var("TERM", "dumb")]);
    }

    #[test]
    fn protocols() {
        let parse = |line: &[&str]| {
            let line = [&["exec", "--vm", "v"], line, &["--", "ls"]].concat();
            Cli::try_parse_from(line).map(|cli| cli.args.protocol)
        };
        assert_eq!(parse(&[]).unwrap(), None);
        assert_eq!(parse(&["--protocol", "1"]).unwrap(), Some(Protocol::One));
        assert_eq!(parse(&["--protocol=2"]).unwrap(), Some(Protocol::Two));
        assert!(parse(&["--protocol", "3"]).is_err());
    }

    #[test]
    fn variables() {
        assert_eq!(parse_env("A=").unwrap(), EnvVar { env: "A".into(), value: String::new() });
        assert!(parse_env("=x").unwrap_err().contains("needs a name"));
        assert!(parse_env("RINGWAY_NO_SUCH_VARIABLE").unwrap_err().contains("has no value here"));
    }

    #[test]
    fn process_ids_differ() {
        let one = process_id();
        assert!(one.starts_with("exec-") && one != process_id(), "{one}");
    }
}
