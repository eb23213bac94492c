//! `ringway shim`: stands on the host for one process in a VM; its stdin, stdout, stderr, signals and exit status are
//! this process's own. A runtime starts one for each process, with the command line of cc-shim.
//!
//! Owns the claim on its token, and claims it again when the daemon was gone; `link` is what its threads share. The
//! asymmetry to know: outputs that nobody reads are lost and the process runs on, because the runtime still wants its
//! exit status.

pub(super) mod link;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::libc;
use nix::sys::signalfd::SignalFd;

use super::pump::{self, End, Outputs, StdinEnd};
use crate::client::{self, Error, ShimClient, ShimEvent, ShimReader, Unfinished};
use crate::os::console::RawMode;
use crate::os::signals;
use crate::wire::cc2::LogEntry;
use link::{Link, outputs};

/// Pause between two attempts to connect again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Flags of `ringway shim`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: the process's own; 1 when ringway or the daemon fails, or the connection to the daemon \
                        is lost for too long."
)]
pub struct Args {
    /// The container the process runs in, for the log
    #[arg(long, short, value_name = "ID")]
    container_id: String,
    /// The token of the process's session
    // One in 64 begins with a hyphen.
    #[arg(long, short, value_name = "TOKEN", allow_hyphen_values = true)]
    token: String,
    /// The daemon's proxy socket
    #[arg(long, short, value_name = "unix:///PATH", value_parser = parse_uri)]
    uri: PathBuf,
    /// Say what happens, on standard error and in the daemon's log
    #[arg(long, short)]
    debug: bool,
    /// How long to try to reach a daemon that is gone, in seconds
    #[arg(long, short, value_name = "SECONDS", default_value_t = 10)]
    reconnect_timeout: u32,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    // Before any thread exists, so that all of them leave the signals to the one that reads them.
    let signals = signals::watch(forwarded()).context("cannot watch signals")?;
    let (reader, writer) = connect(&args, None)?.split();
    let log = Log { container_id: args.container_id.clone(), debug: args.debug };
    let shim = Shim { link: Arc::new(Link::new(writer)), args, log };
    shim.log.debug(&shim.link, "connected");
    let raw = if io::stdin().is_terminal() {
        let _ = shim.link.resize();
        Some(RawMode::enter().context("cannot put the terminal into raw mode")?)
    } else {
        None
    };
    let (link, log) = (Arc::clone(&shim.link), shim.log.clone());
    std::thread::spawn(move || pass_on(&signals, &link, &log));
    pump::spawn_stdin(Arc::clone(&shim.link), StdinEnd::Frame);
    let status = shim.attend(reader);
    drop(raw);
    let status = status?;
    shim.log.debug(&shim.link, &format!("the process ended with status {status}"));
    shim.link.leave(false);
    Ok(ExitCode::from(status))
}

/// What is passed on: everything that can be, but what this process's own faults and children raise, SIGPIPE, and
/// what stops a background process that uses its terminal.
fn forwarded() -> impl Iterator<Item = i32> {
    const KEPT: [i32; 13] = [
        libc::SIGKILL,
        libc::SIGSTOP,
        libc::SIGCHLD,
        libc::SIGPIPE,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGSEGV,
        libc::SIGSYS,
    ];
    let ordinary = (1..=31).filter(|number| !KEPT.contains(number));
    ordinary.chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

/// The thread that reads signals.
fn pass_on(signals: &SignalFd, link: &Link, log: &Log) {
    while let Ok(number) = signals::next(signals) {
        let outcome = match number {
            libc::SIGWINCH => link.resize(),
            number => link.signal(number),
        };
        match outcome {
            Ok(()) => log.debug(link, &format!("signal {number}")),
            Err(error) => log.debug(link, &format!("signal {number} was not passed on: {error}")),
        }
    }
}

/// Connects and claims the token. With `patience`, the answer may take that long.
fn connect(args: &Args, patience: Option<Duration>) -> client::Result<ShimClient> {
    let mut client = ShimClient::connect(&args.uri)?;
    client.set_timeout(patience)?;
    client.connect_shim(&args.token)?;
    client.set_timeout(None)?;
    Ok(client)
}

struct Shim {
    args: Args,
    link: Arc<Link>,
    log: Log,
}

impl Shim {
    /// Stays with the process until it has ended, over as many connections as that takes. Returns its status.
    fn attend(&self, mut reader: ShimReader) -> anyhow::Result<u8> {
        let mut own = Outputs::own()?.forgive();
        loop {
            match outputs(&mut reader, &mut own, |answer| self.answered(answer))? {
                End::Status(status) => return Ok(status),
                End::Closed | End::NobodyReads => {
                    self.link.lost();
                    reader = self.reconnect(reader.unfinished())?;
                }
            }
        }
    }

    fn answered(&self, answer: &ShimEvent<'_>) {
        self.link.answered(answer, |number, refused| match refused {
            Some(error) => self.log.warn(&self.link, &format!("signal {number} was refused: {error}")),
            None => self.log.debug(&self.link, &format!("signal {number} was taken")),
        });
    }

    /// Claims the token again. A daemon that was killed starts anew, and one that has not yet noticed the end of the
    /// old connection soon does: both are waited for. One that does not know the token never will.
    fn reconnect(&self, unfinished: Option<Unfinished>) -> anyhow::Result<ShimReader> {
        let patience = Duration::from_secs(u64::from(self.args.reconnect_timeout));
        self.log.debug(&self.link, "the connection was lost");
        let begun = Instant::now();
        loop {
            let left = patience.saturating_sub(begun.elapsed());
            match connect(&self.args, Some(left.max(RETRY_PAUSE))) {
                Ok(client) => {
                    let (mut reader, writer) = client.split();
                    reader.skip(unfinished);
                    self.link.renew(writer);
                    self.log.debug(&self.link, "connected again");
                    return Ok(reader);
                }
                Err(Error::Refused(reason)) if reason.starts_with("unknown token") => {
                    bail!("the session ended without an exit status")
                }
                Err(error) if left.is_zero() => {
                    return Err(error).with_context(|| format!("the connection was lost for {patience:?}"));
                }
                Err(_) => std::thread::sleep(RETRY_PAUSE.min(left)),
            }
        }
    }
}

/// Says what happens. Warnings always reach the daemon's log, everything else is for `--debug`.
#[derive(Debug, Clone)]
struct Log {
    container_id: String,
    debug: bool,
}

impl Log {
    fn debug(&self, link: &Link, text: &str) {
        if self.debug {
            self.say(link, "debug", text);
        }
    }

    fn warn(&self, link: &Link, text: &str) {
        self.say(link, "warn", text);
    }

    fn say(&self, link: &Link, level: &str, text: &str) {
        if self.debug {
            // The terminal may be in raw mode.
            eprintln!("ringway: {text}\r");
        }
        let (source, container_id) = ("shim".to_owned(), self.container_id.clone());
        link.log(&LogEntry { source, container_id, level: level.to_owned(), msg: text.to_owned() });
    }
}

fn parse_uri(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
        _ => Err("write unix:// and the absolute path of a socket".to_owned()),
    }
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

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        Cli::try_parse_from([&["shim"], line].concat()).map(|cli| cli.args)
    }

    #[test]
    fn the_command_line_is_cc_shim_s() {
        let short = parse(&["-c", "c1", "-t", "T", "-u", "unix:///run/p.sock", "-d", "-r", "3"]).unwrap();
        assert_eq!((short.container_id.as_str(), short.token.as_str()), ("c1", "T"));
        assert_eq!((short.uri, short.debug, short.reconnect_timeout), (PathBuf::from("/run/p.sock"), true, 3));
        for spelling in [&["-t", "-d-u"][..], &["-t-d-u"], &["--token", "-d-u"], &["--token=-d-u"]] {
            let hyphen = parse(&[&["-c", "c1", "-u", "unix:///p"], spelling].concat()).unwrap();
            assert_eq!((hyphen.token.as_str(), hyphen.debug), ("-d-u", false), "{spelling:?}");
        }
        let long = parse(&["--container-id", "c1", "--token=T", "--uri", "unix:///p"]).unwrap();
        assert_eq!((long.uri, long.debug, long.reconnect_timeout), (PathBuf::from("/p"), false, 10));
        for missing in [["-c", "c", "-t", "t"], ["-c", "c", "-u", "unix:///p"], ["-t", "t", "-u", "unix:///p"]] {
            assert!(parse(&missing).is_err(), "{missing:?}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(parse_uri("unix:///a/b").unwrap(), PathBuf::from("/a/b"));
        for bad in ["/a/b", "unix://a", "unix:/a", "tcp://host:1", ""] {
            assert!(parse_uri(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_passed_on() {
        let all: Vec<i32> = forwarded().collect();
        for number in [1, 2, 3, 10, 12, 15, 18, 20, 28, libc::SIGRTMIN() + 3, 64] {
            assert!(all.contains(&number), "{number}");
        }
        for number in [9, 17, 19, 13, 21, 22, 11, 32, 33] {
            assert!(!all.contains(&number), "{number}");
        }
    }
}
