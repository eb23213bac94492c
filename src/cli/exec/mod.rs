//! `ringway exec`: one process in a VM whose stdin, stdout, stderr, signals and exit status are this process's own.
//!
//! Owns the conversation that starts the process; `pump` moves the bytes, `signals` what comes from outside. The
//! asymmetry to know: this process's end never waits for its own stdin (a terminal may never say anything), but waits
//! for everything the other process said.

mod pump;
mod signals;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::value::to_raw_value;

use super::{ProxySocket, show};
use crate::client::{Client, Session, SessionWriter};
use crate::os::console::RawMode;
use crate::wire::hyper::{EnvVar, ExecCmd, Process, StreamSeq};
use pump::{End, StdinEnd};
use signals::{Control, Watch};

/// Exit code for failures of ringway itself, apart from those of most commands.
pub(super) const FAILED: u8 = 125;

/// Exit code of a program that SIGPIPE ended.
const CLOSED_PIPE: u8 = 128 + 13;

/// Where programs are looked for unless `--env` says otherwise.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    // Before any thread exists, so that all of them leave the signals to the one that reads them.
    let signals = signals::block()?;
    let mut client = args.socket.client()?;
    let vm = show::plain(&args.vm);
    client.attach(&args.vm).with_context(|| format!("cannot attach to VM {vm}"))?;
    let streams = if args.tty { 1 } else { 2 };
    let (io_base, fd) = client.allocate_io(streams).with_context(|| format!("no session at VM {vm}"))?;
    let (mut reader, writer) = Session::new(io_base, streams, fd).split();
    let writer = Arc::new(Mutex::new(writer));

    let id = process_id();
    let control = Control::new(args.socket.path(), &args.vm, &args.container, &id, io_base);
    let control = Arc::new(Mutex::new(control));
    let leaving = Arc::new(AtomicBool::new(false));
    let watch = Watch {
        control: Arc::clone(&control),
        writer: Arc::clone(&writer),
        tty: args.tty,
        leaving: Arc::clone(&leaving),
    };
    std::thread::spawn(move || watch.run(&signals));

    let stdin_is_terminal = io::stdin().is_terminal();
    let tty = args.tty;
    let sized = start(&mut client, args, id, io_base)?;
    if tty && !sized {
        signals::lock(&control).resize();
    }
    let raw = if tty && stdin_is_terminal {
        Some(RawMode::enter().context("cannot put the terminal into raw mode")?)
    } else {
        None
    };
    let at_end = match (tty, stdin_is_terminal) {
        (false, _) => StdinEnd::Frame,
        (true, true) => StdinEnd::Nothing,
        (true, false) => StdinEnd::ControlD,
    };
    spawn_stdin(writer, at_end);
    let end = pump::outputs(&mut reader, streams > 1);
    drop(raw);
    while leaving.load(Ordering::SeqCst) {
        std::thread::park();
    }
    match end? {
        End::Status(status) => Ok(ExitCode::from(status)),
        End::Closed => {
            anyhow::bail!("the session ended without an exit status: VM {vm} is gone, or was removed")
        }
        End::NobodyReads => {
            // The command would run on with nobody listening: it gets what a local one would have got.
            signals::lock(&control).signal(nix::libc::SIGPIPE);
            Ok(ExitCode::from(CLOSED_PIPE))
        }
    }
}

/// Starts the process. A program may ask for its terminal's size first thing, and the protocol tells it only after the
/// start: so the size follows at once. Returns whether the agent took it.
fn start(client: &mut Client, args: Args, id: String, io_base: StreamSeq) -> anyhow::Result<bool> {
    let name = show::plain(&args.command.join(" "));
    let size = signals::terminal_size().filter(|_| args.tty);
    let command = ExecCmd { container: args.container.clone(), process: args.into_process(id, io_base) };
    let mut commands = vec![("execcmd", to_raw_value(&command)?)];
    if let Some(size) = size {
        commands.push(("winsize", to_raw_value(&signals::by_sequence(io_base, size))?));
    }
    let outcomes = client.hyper_each(commands).with_context(|| format!("cannot run '{name}'"))?;
    let mut outcomes = outcomes.into_iter();
    outcomes.next().transpose().with_context(|| format!("cannot run '{name}'"))?;
    Ok(outcomes.next().is_some_and(|sized| sized.is_ok()))
}

fn spawn_stdin(writer: Arc<Mutex<SessionWriter>>, at_end: StdinEnd) {
    std::thread::spawn(move || {
        if let Err(error) = pump::stdin(&writer, at_end) {
            eprintln!("ringway: cannot read standard input: {error}\r");
        }
    });
}

impl Args {
    fn into_process(self, id: String, io_base: StreamSeq) -> Process {
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
            stdio: io_base.0,
            stderr: if self.tty { 0 } else { io_base.0.saturating_add(1) },
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
        Cli::try_parse_from(line).unwrap().args.into_process("p".into(), StreamSeq(5))
    }

    #[test]
    fn flags_become_a_process() {
        let pipes = process(&["--env", "A=b=c", "--user", "u", "--cwd", "/w", "--", "ls", "-l", "--", "x"]);
        assert_eq!((pipes.stdio, pipes.stderr, pipes.terminal), (5, 6, false));
        assert_eq!(pipes.args, ["ls", "-l", "--", "x"]);
        assert_eq!((pipes.workdir.as_str(), pipes.user.as_deref()), ("/w", Some("u")));
        let var = |env: &str, value: &str| EnvVar { env: env.into(), value: value.into() };
        assert_eq!(pipes.envs, [var("A", "b=c"), var("PATH", DEFAULT_PATH)]);
        let tty = process(&["-t", "--env", "PATH=/p", "--env", "TERM=dumb", "sh"]);
        assert_eq!((tty.stdio, tty.stderr, tty.terminal), (5, 0, true));
        assert_eq!(tty.envs, [var("PATH", "/p"), var("TERM", "dumb")]);
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
