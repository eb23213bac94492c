//! The daemons under test: what `--daemon` says, and one as a child process at a socket of its own.
//!
//! Owns the child; kills it when dropped. The process started is the daemon, so that its ID is the one measured. A
//! command that does not say where the socket's path goes is started by socket activation: a shell, which the daemon
//! then replaces, moves the listener to descriptor 3.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Time a daemon has to listen.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Time a daemon has to end after TERM.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// What the shell of an activated daemon does.
const ACTIVATE: &str = r#"export LISTEN_FDS=1 LISTEN_PID=$$; exec 3<&0 0</dev/null "$@""#;

/// What a client speaks to a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// cc-proxy 2's messages.
    One,
    /// cc-proxy 3's frames.
    Two,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Protocol::One { "1" } else { "2" })
    }
}

/// One `--daemon`: `[NAME=](ringway [FLAG…]|cmd:COMMAND)[,protocol=1|2]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    /// Program and arguments; `None` for this build's own binary with these flags.
    program: Option<String>,
    args: Vec<String>,
}

impl FromStr for Spec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Spec> {
        let (text, protocol) = match text.rsplit_once(",protocol=") {
            Some((text, "1")) => (text, Protocol::One),
            Some((text, "2")) => (text, Protocol::Two),
            Some((_, other)) => bail!("protocol {other}: it is 1 or 2"),
            None => (text, Protocol::One),
        };
        let is_name = |name: &&str| !name.is_empty() && !name.contains([' ', ':', '/']);
        let named = text.split_once('=').filter(|(name, _)| is_name(name));
        let (name, what) = named.map_or((None, text), |(name, what)| (Some(name.to_owned()), what));
        let (is_own, what) = match what.strip_prefix("cmd:") {
            Some(command) => (false, command),
            None => (true, what),
        };
        let mut words = what.split_whitespace().map(str::to_owned);
        let program = words.next().context("a daemon is `ringway`, or `cmd:` and a command")?;
        let args: Vec<_> = words.collect();
        ensure!(!is_own || program == "ringway", "'{program}': a daemon is `ringway`, or `cmd:` and a command");
        let stem = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let default = if protocol == Protocol::Two { format!("{stem}-p2") } else { stem };
        let program = (!is_own).then_some(program);
        Ok(Spec { name: name.unwrap_or(default), protocol, program, args })
    }
}

impl Spec {
    /// The command as a report shows it: no folders of this machine.
    pub(crate) fn shown(&self) -> String {
        let program =
            self.program.as_deref().map_or("ringway", |program| program.rsplit('/').next().unwrap_or(program));
        [program].into_iter().chain(self.args.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn is_own(&self) -> bool {
        self.program.is_none()
    }

    /// The same with one shard, where it is this build's own and does not say how many it has.
    pub(crate) fn on_one_shard(&self) -> Spec {
        let mut spec = self.clone();
        if self.is_own() && !self.args.iter().any(|arg| arg.starts_with("--shards")) {
            spec.args.extend(["--shards".to_owned(), "1".to_owned()]);
        }
        spec
    }

    /// The command, with the listener as its standard input where it is activated.
    fn command(&self, socket: &Path) -> Result<Command> {
        let path = socket;
        let socket = socket.to_str().context("the temporary directory's path is not UTF-8")?;
        let mut command = match &self.program {
            Some(program) if self.args.iter().any(|arg| arg.contains("{socket}")) => {
                let mut command = Command::new(program);
                command.stdin(Stdio::null());
                command
            }
            Some(program) => {
                let mut command = Command::new("sh");
                command.args(["-c", ACTIVATE, "sh", program]).stdin(OwnedFd::from(UnixListener::bind(path)?));
                command
            }
            None => {
                let mut command = Command::new(own_binary()?);
                command.args(["serve", "--socket", socket]).stdin(Stdio::null());
                command
            }
        };
        command.args(self.args.iter().map(|arg| arg.replace("{socket}", socket)));
        for name in ["RINGWAY_SOCKET", "RINGWAY_ADMIN_SOCKET", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID"] {
            command.env_remove(name);
        }
        Ok(command)
    }
}

/// This build's `ringway`: examples are built into a folder next to it.
fn own_binary() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let folder = this.parent().and_then(Path::parent).context("this program is not in a build's folder")?;
    Ok(folder.join("ringway"))
}

/// Makes sure that this build's `ringway` is there and, under `cargo run`, that it is not an old one.
pub(crate) fn build_own() -> Result<()> {
    let binary = own_binary()?;
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--bin", "ringway", "--manifest-path"]);
        build.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        ensure!(build.status()?.success(), "cargo could not build ringway");
    }
    ensure!(binary.exists(), "{} is not there: `cargo build` makes it", binary.display());
    Ok(())
}

/// A daemon that runs.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    pub(crate) socket: PathBuf,
    pub(crate) protocol: Protocol,
}

impl Daemon {
    /// Starts one at a socket in `dir`, and waits until it listens. What it logs goes to `log`, or nowhere.
    pub(crate) fn start(spec: &Spec, dir: &Path, log: Option<&Path>) -> Result<Daemon> {
        let socket = dir.join("proxy.sock");
        let sink = || -> Result<Stdio> {
            Ok(match log {
                Some(path) => File::options().create(true).append(true).open(path)?.into(),
                None => Stdio::null(),
            })
        };
        let mut command = spec.command(&socket)?;
        command.stdout(sink()?).stderr(sink()?);
        let child = command.spawn().with_context(|| format!("{} cannot be started", spec.shown()))?;
        let mut daemon = Daemon { child, socket, protocol: spec.protocol };
        let begin = Instant::now();
        while UnixStream::connect(&daemon.socket).is_err() {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("{} ended with {status} before it listened; --logs DIR keeps what it says", spec.shown());
            }
            ensure!(begin.elapsed() < START_PATIENCE, "{} does not listen at its socket", spec.shown());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
            let begin = Instant::now();
            while begin.elapsed() < STOP_PATIENCE && matches!(self.child.try_wait(), Ok(None)) {
                thread::sleep(Duration::from_millis(2));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_are_read() {
        let own: Spec = "ringway --shards 1".parse().unwrap();
        assert_eq!((own.name.as_str(), own.protocol, own.is_own()), ("ringway", Protocol::One, true));
        assert_eq!(own.on_one_shard(), own);
        assert_eq!("ringway".parse::<Spec>().unwrap().on_one_shard(), own);
        let peer: Spec = "old=cmd:/opt/cc-proxy -uri=a -socket-path {socket},protocol=2".parse().unwrap();
        assert_eq!((peer.name.as_str(), peer.protocol), ("old", Protocol::Two));
        assert_eq!(peer.on_one_shard(), peer);
        assert_eq!(peer.shown(), "cc-proxy -uri=a -socket-path {socket}");
        let unnamed: Spec = "cmd:/opt/cc-proxy --socket={socket}".parse().unwrap();
        assert_eq!(unnamed.name, "cc-proxy");
        for bad in ["", "cmd:", "another", "ringway,protocol=3"] {
            assert!(bad.parse::<Spec>().is_err(), "{bad}");
        }
    }
}
