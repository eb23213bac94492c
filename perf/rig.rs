//! One contestant, set up: a daemon or a floor, its VMs with their agents, and its clients' sessions.
//!
//! Owns all of them; when it is dropped nothing is left. Loads run on it one after the other.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::clients::{Runtime, Session};
use crate::daemons::{Daemon, Protocol, Spec};
use crate::floor::{Floor, Kind, Wiring};
use crate::load::{Flow, Lane, Plan, transfer};
use crate::measure::{Observed, Subject, Window};
use crate::pattern::{Dialect, Directory, Pattern, Position};
use crate::vms::Vms;

/// Who is measured.
#[derive(Debug, Clone)]
pub(crate) enum Contestant {
    Daemon(Spec),
    Floor(Kind),
}

impl Contestant {
    pub(crate) fn name(&self) -> &str {
        match self {
            Contestant::Daemon(spec) => &spec.name,
            Contestant::Floor(kind) => kind.name(),
        }
    }
}

/// VMs, and sessions of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) vms: usize,
    pub(crate) sessions: usize,
}

impl Shape {
    pub(crate) fn total(self) -> usize {
        self.vms * self.sessions
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", self.vms, self.sessions)
    }
}

impl std::str::FromStr for Shape {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Shape> {
        let (vms, sessions) = text.split_once('x').context("a shape is VMs x sessions of each, such as 16x4")?;
        let shape = Shape { vms: vms.trim().parse()?, sessions: sessions.trim().parse()? };
        anyhow::ensure!(shape.total() > 0, "a shape has at least one VM and one session");
        Ok(shape)
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    ToClient,
    ToAgent,
}

/// A daemon, and the folder that its sockets are in.
#[derive(Debug)]
pub(crate) struct Host {
    // In the order in which they end.
    pub(crate) daemon: Daemon,
    pub(crate) vms: Vms,
    _dir: TempDir,
}

impl Host {
    /// Starts a daemon with `vms` VMs; `once` says that each is registered once.
    pub(crate) fn start(spec: &Spec, vms: usize, once: bool, logs: Option<&PathBuf>) -> Result<Host> {
        let dir = tempfile::Builder::new().prefix("ringway-perf-").tempdir()?;
        let log = logs.map(|logs| logs.join(format!("{}.log", spec.name)));
        let vms = Vms::start(dir.path(), vms, once)?;
        let daemon = Daemon::start(spec, dir.path(), log.as_deref())?;
        Ok(Host { daemon, vms, _dir: dir })
    }

    pub(crate) fn subject(&self) -> Subject {
        Subject::Process(self.daemon.pid())
    }

    pub(crate) fn runtime(&self) -> Result<Runtime> {
        Runtime::connect(self.daemon.protocol, &self.daemon.socket)
    }

    /// Registers VM `vm` and opens its sessions. Returns its stream channel and them.
    pub(crate) fn boot(&self, vm: usize, sessions: usize) -> Result<(UnixStream, Vec<Session>)> {
        let id = vm_id(vm);
        let mut runtime = self.runtime()?;
        let tokens = runtime.register(&id, &self.vms, vm, sessions).with_context(|| format!("registering {id}"))?;
        let stream = self.vms.stream(vm)?;
        let mut opened = Vec::with_capacity(sessions);
        for at in 0..sessions {
            let name = format!("{id}-{at}");
            let session = runtime.open(&id, &name, tokens.get(at), &self.daemon.socket, false);
            let (seq, socket) = session.with_context(|| format!("opening session {name}"))?;
            let seq = seq.map_or_else(|| self.vms.started(&name), Ok)?;
            opened.push(Session { seq, socket });
        }
        Ok((stream, opened))
    }
}

/// A VM's name.
pub(crate) fn vm_id(vm: usize) -> String {
    format!("perf-vm-{vm}")
}

/// Everything a load runs on.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) subject: Subject,
    pub(crate) vms: Vec<Lane>,
    pub(crate) clients: Vec<Lane>,
    pub(crate) seqs: Vec<u64>,
    pub(crate) pattern: Pattern,
    pub(crate) to_client: Ends,
    pub(crate) to_agent: Ends,
    /// Bytes of payload, and the round trips of them per second that saturate, once they have been measured.
    pub(crate) saturation: Option<(usize, f64)>,
    host: Option<Host>,
    _floor: Option<Floor>,
}

/// How far each session is in one direction.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    pub(crate) sent: Vec<Position>,
    pub(crate) received: Vec<Position>,
}

impl Ends {
    fn new(sessions: usize) -> Ends {
        let start: Vec<_> = (0..sessions).map(Position::start).collect();
        Ends { sent: start.clone(), received: start }
    }
}

impl Rig {
    pub(crate) fn set_up(contestant: &Contestant, shape: Shape, logs: Option<&PathBuf>) -> Result<Rig> {
        match contestant {
            Contestant::Daemon(spec) => Rig::of_daemon(spec, shape, logs),
            Contestant::Floor(kind) => Rig::of_floor(*kind, shape),
        }
    }

    fn of_daemon(spec: &Spec, shape: Shape, logs: Option<&PathBuf>) -> Result<Rig> {
        let host = Host::start(spec, shape.vms, true, logs)?;
        let booted = (0..shape.vms).map(|vm| host.boot(vm, shape.sessions)).collect::<Result<_>>()?;
        Rig::over(host, booted)
    }

    /// On VMs that are booted already.
    pub(crate) fn over(host: Host, booted: Vec<(UnixStream, Vec<Session>)>) -> Result<Rig> {
        let dialect = if host.daemon.protocol == Protocol::Two { Dialect::Shim } else { Dialect::Sequences };
        let (mut vms, mut clients, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
        for (stream, sessions) in booted {
            let first = seqs.len();
            seqs.extend(sessions.iter().map(|session| session.seq));
            vms.push(Lane::new(stream, first..seqs.len(), &seqs[first..], Dialect::Sequences)?);
            for (session, at) in sessions.into_iter().zip(first..) {
                clients.push(Lane::new(session.socket, at..at + 1, &[session.seq], dialect)?);
            }
        }
        Ok(Rig::new(host.subject(), vms, clients, seqs, Some(host), None))
    }

    fn of_floor(kind: Kind, shape: Shape) -> Result<Rig> {
        let seqs: Vec<u64> = (0..shape.total() as u64).map(|n| 1 + 2 * n).collect();
        let (mut vms, mut clients, mut wirings) = (Vec::new(), Vec::new(), Vec::new());
        for vm in 0..shape.vms {
            let sessions = vm * shape.sessions..(vm + 1) * shape.sessions;
            let (agent, theirs) = UnixStream::pair()?;
            let mut wiring = Wiring { vm: theirs, clients: Vec::new(), first: sessions.start };
            let each: Vec<_> = match kind {
                Kind::Epoll => sessions.clone().map(|session| session..session + 1).collect(),
                Kind::Copy => vec![sessions.clone()],
            };
            for range in each {
                let (client, theirs) = UnixStream::pair()?;
                wiring.clients.push(theirs);
                let own = &seqs[range.clone()];
                clients.push(Lane::new(client, range, own, Dialect::Sequences)?);
            }
            let own = &seqs[sessions.clone()];
            vms.push(Lane::new(agent, sessions, own, Dialect::Sequences)?);
            wirings.push(wiring);
        }
        let floor = Floor::start(kind, wirings, Directory::new(&seqs, 0))?;
        Ok(Rig::new(floor.subject.clone(), vms, clients, seqs, None, Some(floor)))
    }

    fn new(
        subject: Subject,
        vms: Vec<Lane>,
        clients: Vec<Lane>,
        seqs: Vec<u64>,
        host: Option<Host>,
        floor: Option<Floor>,
    ) -> Rig {
        let pattern = Pattern::new();
        let (to_client, to_agent) = (Ends::new(seqs.len()), Ends::new(seqs.len()));
        Rig { subject, vms, clients, seqs, pattern, to_client, to_agent, saturation: None, host, _floor: floor }
    }

    /// The daemon's socket, where there is one.
    pub(crate) fn socket(&self) -> Option<PathBuf> {
        self.host.as_ref().map(|host| host.daemon.socket.clone())
    }

    /// Sessions that have had no bytes yet in this direction.
    pub(crate) fn untouched(&self, direction: Direction) -> usize {
        let ends = match direction {
            Direction::ToClient => &self.to_client,
            Direction::ToAgent => &self.to_agent,
        };
        ends.received.iter().enumerate().filter(|&(at, &position)| position == Position::start(at)).count()
    }

    /// Runs a load in one direction.
    pub(crate) fn transfer(&mut self, direction: Direction, plan: Plan, window: &Window) -> Result<Observed> {
        let (senders, receivers, ends) = match direction {
            Direction::ToClient => (&mut self.vms, &mut self.clients, &mut self.to_client),
            Direction::ToAgent => (&mut self.clients, &mut self.vms, &mut self.to_agent),
        };
        let flow = Flow {
            pattern: &self.pattern,
            seqs: &self.seqs,
            senders,
            receivers,
            sent: &mut ends.sent,
            received: &mut ends.received,
        };
        transfer(&self.subject, flow, plan, window)
    }
}

/// A folder for logs is made where one is wanted.
pub(crate) fn prepare_logs(logs: Option<&Path>) -> Result<()> {
    if let Some(logs) = logs {
        std::fs::create_dir_all(logs).with_context(|| format!("{} cannot be made", logs.display()))?;
    }
    Ok(())
}
