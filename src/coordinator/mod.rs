//! The control plane: which VMs there are, who serves them, and what clients may ask. Runs on one thread and never
//! touches payload.
//!
//! Doors call [`Coordinator`]'s methods; each returns what the client is told. The asymmetry to know: a VM has two
//! channels and dies with either; whichever end is seen first, `Coordinator::lost` ends the other.

mod backlog;
#[cfg(test)]
mod books;
mod channel;
mod console;
pub mod control;
pub mod fuzzing;
mod openers;
mod placement;
mod registry;
mod shims;
mod tokens;
mod users;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

pub use self::backlog::Backlog;
pub use self::registry::{RequestError, VmRef};
pub use self::shims::{Attendant, Mover, ShimLink};
pub use self::users::{Excess, Presence, User, UserLimits};

use self::channel::Channel;
use self::openers::{Opened, Openers};
use self::registry::{Registry, VmState};
use self::tokens::Tokens;
use self::users::Users;
use crate::limits::{AGENT_EVENTS_MAX, OPENINGS_MAX};
use crate::os::fds::{self, PeerCredentials};
use crate::os::guest_socket::PathError;
use crate::os::usage::{self, Usage};
use crate::relay;
use crate::shard::{Order, Report, ShardHandle};
use crate::wire::SlowReader;
use crate::wire::admin::{Counters, ShardStatus, Status, VmStatus};
use crate::wire::cc1;
use crate::wire::hyper::{Code, MESSAGE_HEADER_LEN, Message, StreamSeq};

/// How often the log says that the same VM is held back.
const WARN_PAUSE: Duration = Duration::from_secs(60);

/// How long a shard that sleeps may not know of what was opened there.
const ORDERS_WAIT: Duration = Duration::from_millis(1);

/// What is wrong with a socket that does not open in time.
const OPENING_LATE: &str = "opening it takes too long";

/// What an operator may set of the control plane.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The proxy socket, for `status`.
    pub socket: String,
    /// Directories whose sockets every client may name in hello.
    pub vm_dirs: Vec<PathBuf>,
    /// Time hello, hyper and bye may take.
    pub deadline: Duration,
    /// Time a start waits for its shim, and a shim's input and signals for the start.
    pub shim_patience: Duration,
    /// Longest message to an agent, header included, bytes.
    pub control_message_max: usize,
    /// Sockets one shard can serve.
    pub sockets_max: u32,
    /// Sessions one VM may have.
    pub sessions_per_vm: usize,
    /// Commands that may wait for one VM.
    pub commands_per_vm: usize,
    /// What one user may have.
    pub user: UserLimits,
    /// What is done about a session whose client does not read, unless it says otherwise.
    pub slow_reader: SlowReader,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    shards: Vec<ShardHandle>,
    reports: Arc<Notify>,
    /// Which shards have orders they were not woken for, that there are any, and that one of them is awaited.
    unwoken: Vec<Cell<bool>>,
    posted: Notify,
    awaited: Notify,
    registry: RefCell<Registry>,
    tokens: RefCell<Tokens>,
    users: Users,
    /// Whose sessions are, by their first sequences.
    owners: RefCell<HashMap<u64, Rc<User>>>,
    /// Who waits for the end of a VM's stream channel, by the VM's number.
    closing: RefCell<HashMap<u64, oneshot::Sender<()>>>,
    counters: Cell<Counters>,
    clients: Cell<u64>,
    stopping: Cell<bool>,
    /// Shards that have not yet reported that nothing is owed any more.
    draining: Cell<usize>,
    drained: Notify,
    failed: Notify,
    openers: Openers,
    usage: Usage,
    began: Instant,
}

/// The control plane. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Coordinator(Rc<Inner>);

impl Coordinator {
    /// A control plane over running shards, which share `reports`. Call within its runtime.
    pub fn new(settings: Settings, shards: Vec<ShardHandle>, reports: Arc<Notify>, usage: Usage) -> Coordinator {
        let coordinator = Coordinator(Rc::new(Inner {
            registry: RefCell::new(Registry::new(shards.len(), settings.sockets_max)),
            tokens: RefCell::default(),
            users: Users::new(settings.user),
            owners: RefCell::default(),
            unwoken: vec![Cell::default(); shards.len()],
            posted: Notify::new(),
            awaited: Notify::new(),
            shards,
            reports,
            closing: RefCell::default(),
            counters: Cell::default(),
            clients: Cell::default(),
            stopping: Cell::default(),
            draining: Cell::default(),
            drained: Notify::new(),
            failed: Notify::new(),
            openers: Openers::new(settings.vm_dirs.clone(), OPENINGS_MAX),
            usage,
            began: Instant::now(),
            settings,
        }));
        tokio::task::spawn_local(coordinator.clone().take_reports());
        tokio::task::spawn_local(coordinator.clone().wake_shards());
        coordinator
    }

    /// Changes the counters.
    pub fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.0.counters.get();
        change(&mut counters);
        self.0.counters.set(counters);
    }

    /// A client connected (`1`), or left or became a shim (`-1`).
    pub fn client_count(&self, change: i64) {
        self.0.clients.set(self.0.clients.get().saturating_add_signed(change));
    }

    /// A connection of a user came.
    ///
    /// # Errors
    /// He has as many as he may have.
    pub fn arrive(&self, uid: u32) -> Result<Presence, Excess> {
        self.0.users.of(uid).connect()
    }

    /// Registers a VM: connects to both its sockets and waits until its agent is up.
    ///
    /// # Errors
    /// What the client is told.
    pub async fn hello(&self, hello: &cc1::Hello, client: PeerCredentials) -> Result<VmRef, RequestError> {
        let cc1::Hello { container_id, ctl_serial, io_serial } = hello;
        if container_id.is_empty() || ctl_serial.is_empty() || io_serial.is_empty() {
            return Err(RequestError::MalformedHello);
        }
        if self.0.stopping.get() {
            return Err(RequestError::Stopping);
        }
        self.measure();
        let vm = self.0.registry.borrow_mut().reserve(container_id, ctl_serial, io_serial)?;
        let connected = self.connect_vm(&vm, ctl_serial, io_serial, client).await;
        match connected {
            Ok(()) => {
                self.count(|counters| counters.vms_added += 1);
                info!(
                    vm = vm.id(),
                    pid = client.pid,
                    uid = client.uid,
                    ctl = ctl_serial,
                    io = io_serial,
                    "VM registered"
                );
                Ok(vm)
            }
            Err(error) => {
                self.0.registry.borrow_mut().remove(vm.key);
                warn!(vm = vm.id(), pid = client.pid, uid = client.uid, %error, "hello failed");
                Err(error)
            }
        }
    }

    async fn connect_vm(&self, vm: &VmRef, ctl: &str, io: &str, client: PeerCredentials) -> Result<(), RequestError> {
        let deadline = Instant::now() + self.0.settings.deadline;
        let [ctl_opened, io_opened] = self.open(vm, [ctl, io], client, deadline).await?;
        let ctl = self.connect(vm, ctl, ctl_opened, deadline).await?;
        let io = self.connect(vm, io, io_opened, deadline).await?;
        let ctl = UnixStream::from_std(ctl).map_err(out_of)?;
        let io = into_blocking(io).map_err(out_of)?;
        let (ready, is_ready) = oneshot::channel();
        let (mut channel, handle) = Channel::new(Rc::clone(&vm.id), ctl, ready);
        let events = AgentEvents { coordinator: self.clone(), vm: vm.key, waiting: Backlog::default() };
        let events = Rc::new(events);
        tokio::task::spawn_local(async move {
            if let Some(why) = channel.run(|event| events.take(event)).await {
                // Boxed: it happens once, and every VM has this task.
                Box::pin(events.coordinator.lost(events.vm, &why)).await;
            }
        });
        match timeout_at(deadline, is_ready).await {
            // It may have processes that an earlier daemon started.
            Ok(Ok(true)) => self.0.registry.borrow_mut().skip_sequences_in_use(SystemTime::now()),
            Ok(Ok(false)) => {}
            Ok(Err(_)) => {
                // Its task left the reason with the VM before it let go of the question.
                return Err(self
                    .0
                    .registry
                    .borrow_mut()
                    .usable(vm)
                    .err()
                    .unwrap_or(RequestError::Unknown(vm.id.to_string())));
            }
            Err(_) => {
                let seconds = self.0.settings.deadline.as_secs();
                return Err(RequestError::NotReady { id: vm.id.to_string(), seconds });
            }
        }
        if fds::has_hung_up(io.as_fd()).map_err(out_of)? {
            let why = "the agent closed its stream channel before it was ready".to_owned();
            return Err(RequestError::Gone { id: vm.id.to_string(), why });
        }
        let shard = {
            let mut registry = self.0.registry.borrow_mut();
            let shard = registry.usable(vm)?.shard;
            registry.take_socket(shard)?;
            registry.usable(vm)?.control = Some(handle);
            shard
        };
        self.post(shard, Order::OpenLink { vm: vm.key, fd: io }).await;
        let died = match self.0.registry.borrow_mut().usable(vm) {
            Ok(entry) => {
                entry.state = VmState::Ready;
                return Ok(());
            }
            Err(error) => error,
        };
        self.post(shard, Order::CloseLink { vm: vm.key }).await;
        Err(died)
    }

    /// Connects to one of a VM's sockets once it is open, waiting while its backlog is full.
    async fn connect(
        &self,
        vm: &VmRef,
        path: &str,
        opened: oneshot::Receiver<Opened>,
        deadline: Instant,
    ) -> Result<StdStream, RequestError> {
        let refused = |why: String| RequestError::Connect { id: vm.id.to_string(), path: path.to_owned(), why };
        let opened = timeout_at(deadline, opened).await;
        let opened = opened.map_err(|_| refused(OPENING_LATE.to_owned()))?;
        let socket = opened.map_err(|error| out_of(io::Error::other(error)))?.map_err(|why| match why {
            PathError::Open { errno: errno @ (Errno::EMFILE | Errno::ENFILE), .. } => out_of(errno.into()),
            why => RequestError::Path { id: vm.id.to_string(), why: why.to_string() },
        })?;
        loop {
            match socket.connect() {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(refused(hint(&error))),
            }
        }
    }

    /// Opens some of a VM's sockets; each answer comes when it is open.
    async fn open<const N: usize>(
        &self,
        vm: &VmRef,
        paths: [&str; N],
        client: PeerCredentials,
        deadline: Instant,
    ) -> Result<[oneshot::Receiver<Opened>; N], RequestError> {
        let path = paths.first().map_or_else(String::new, |&path| path.to_owned());
        let late = |_| RequestError::Connect { id: vm.id.to_string(), path, why: OPENING_LATE.to_owned() };
        timeout_at(deadline, self.0.openers.open(paths, client.uid)).await.map_err(late)?.map_err(no_thread)
    }

    /// Finds a VM by name.
    ///
    /// # Errors
    /// There is none.
    pub fn attach(&self, id: &str) -> Result<VmRef, RequestError> {
        self.0.registry.borrow().find(id)
    }

    /// Makes a session with `streams` sequences and returns the first, and the client's end of its socket.
    ///
    /// # Errors
    /// What the client is told.
    pub async fn allocate_io(
        &self,
        vm: &VmRef,
        streams: i64,
        user: &Rc<User>,
        slow_reader: Option<SlowReader>,
    ) -> Result<(StreamSeq, OwnedFd), RequestError> {
        let slow_reader = slow_reader.unwrap_or(self.0.settings.slow_reader);
        let streams = match streams {
            1 => 1,
            2 => 2,
            other => return Err(RequestError::Streams(other)),
        };
        if self.0.stopping.get() {
            return Err(RequestError::Stopping);
        }
        let (shard, base) = {
            let mut registry = self.0.registry.borrow_mut();
            let shard = registry.usable(vm)?.room_for(1, vm, self.0.settings.sessions_per_vm)?.shard;
            let base = registry.sequences(streams)?;
            registry.take_socket(shard)?;
            if let Err(excess) = user.take_sessions(1) {
                registry.give_socket(shard);
                return Err(excess.into());
            }
            registry.usable(vm)?.sessions += 1;
            (shard, base)
        };
        let (ours, theirs) = fds::session_pair().map_err(|error| {
            let mut registry = self.0.registry.borrow_mut();
            registry.give_socket(shard);
            registry.end_session(vm.key, false);
            user.give_sessions(1);
            out_of(error)
        })?;
        self.0.owners.borrow_mut().insert(base.0, Rc::clone(user));
        self.count(|counters| counters.sessions_opened += 1);
        self.post(shard, Order::OpenSession { vm: vm.key, base, streams, slow_reader, fd: ours }).await;
        debug!(vm = vm.id(), session = base.0, streams, "session allocated");
        Ok((base, theirs))
    }

    /// Forwards a hyperstart command and waits for the agent's answer. `payload` goes out as it is.
    ///
    /// # Errors
    /// What the client is told.
    pub async fn hyper(&self, vm: &VmRef, name: &str, payload: Vec<u8>) -> Result<Vec<u8>, RequestError> {
        let code = Code::from_name(name).ok_or_else(|| RequestError::UnknownCommand(name.to_owned()))?;
        let len = payload.len() + MESSAGE_HEADER_LEN;
        if len > self.0.settings.control_message_max {
            return Err(RequestError::MessageTooLong(len));
        }
        let control = self.0.registry.borrow_mut().usable(vm)?.control.clone();
        let control = control.ok_or_else(|| RequestError::Unknown(vm.id.to_string()))?;
        let deadline = Instant::now() + self.0.settings.deadline;
        let answer = control.command(code, payload, deadline, self.0.settings.commands_per_vm).await;
        if let Err(error @ (control::CommandError::Overdue { .. } | control::CommandError::NoTurn { .. })) = &answer {
            self.count(|counters| counters.commands_overdue += 1);
            warn!(vm = vm.id(), %error, "the agent does not answer");
        }
        if let Err(control::CommandError::Gone(_)) = &answer
            && let Err(gone @ RequestError::Gone { .. }) = self.0.registry.borrow_mut().usable(vm)
        {
            // Its stream channel may have ended first: the VM knows why.
            return Err(gone);
        }
        Ok(answer?)
    }

    /// Unregisters a VM: both channels close, its sessions see what they are owed, then EOF.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn bye(&self, id: &str) -> Result<(), RequestError> {
        let vm = self.0.registry.borrow().find(id)?;
        let Some(entry) = self.0.registry.borrow_mut().remove(vm.key) else {
            return Err(RequestError::Unknown(id.to_owned()));
        };
        // The stream channel ends before the control channel, and both before the answer: an agent that is connected
        // to anew takes the new control channel when the old one ends, and must not write to the old stream channel
        // then.
        if entry.state != VmState::Connecting {
            let (ended, has_ended) = oneshot::channel();
            self.0.closing.borrow_mut().insert(vm.key, ended);
            self.post(entry.shard, Order::CloseLink { vm: vm.key }).await;
            // A shard that does not answer is stuck; the VM is unregistered all the same.
            let _ = timeout_at(Instant::now() + self.0.settings.deadline, has_ended).await;
            self.0.closing.borrow_mut().remove(&vm.key);
        }
        // Dropping the handle ends the control channel's task, which answers what was in flight.
        drop(entry.control);
        info!(vm = id, "VM unregistered");
        Ok(())
    }

    /// A VM died: ends what is left of it, keeps its name until bye.
    async fn lost(&self, key: u64, why: &str) {
        let shard = {
            let mut registry = self.0.registry.borrow_mut();
            let Some((id, vm)) = registry.by_key(key) else { return };
            if matches!(vm.state, VmState::Gone(_)) {
                return;
            }
            let before = std::mem::replace(&mut vm.state, VmState::Gone(why.to_owned()));
            vm.control = None;
            if before == VmState::Connecting {
                // Its hello fails and says why.
                return;
            }
            warn!(vm = id, why, "VM lost");
            vm.shard
        };
        self.count(|counters| counters.vms_lost += 1);
        self.forget_if_hidden(key);
        // Its last output may still be in the kernel when its control channel is seen to end.
        self.post(shard, Order::FinishLink { vm: key }).await;
    }

    /// The proxy socket's address for shims.
    pub fn url(&self) -> String {
        format!("unix://{}", self.0.settings.socket)
    }

    /// Puts an order into a shard's queue, waiting for room in it. The shard is woken when whoever posts it waits for
    /// something: one wake-up for all that was posted meanwhile, behind the answer to the client. Orders that can wait
    /// wake it together, [`ORDERS_WAIT`] after the first of them.
    async fn post(&self, shard: usize, order: Order) {
        let can_wait = order.can_wait();
        let mut order = order;
        while let Err(back) = self.0.shards[shard].mailbox.queue(order) {
            order = back;
            self.0.shards[shard].mailbox.wake();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.0.unwoken[shard].set(true);
        if can_wait { self.0.posted.notify_one() } else { self.0.awaited.notify_one() }
    }

    async fn wake_shards(self) {
        loop {
            let waited = async {
                self.0.posted.notified().await;
                tokio::time::sleep(ORDERS_WAIT).await;
            };
            tokio::select! {
                () = self.0.awaited.notified() => {}
                () = waited => {}
            }
            for (shard, is_unwoken) in self.0.shards.iter().zip(&self.0.unwoken) {
                if is_unwoken.take() {
                    shard.mailbox.wake();
                }
            }
        }
    }

    async fn take_reports(self) {
        loop {
            self.0.reports.notified().await;
            for number in 0..self.0.shards.len() {
                while let Some(report) = self.0.shards[number].mailbox.next_report() {
                    self.take_report(number, report).await;
                }
            }
        }
    }

    async fn take_report(&self, shard: usize, report: Report) {
        match report {
            Report::Relay(relay::Report::SessionEnded { base, why, vm: key }) => {
                let vm = self.name(key);
                if why.is_fault() {
                    warn!(session = base.0, vm, %why, "session ended by its client's fault");
                } else if why.is_loss() {
                    warn!(session = base.0, vm, %why, "session ended before its client had read its output");
                } else {
                    debug!(session = base.0, vm, %why, "session ended");
                }
                if self.forget_session(key, base).await {
                    self.0.registry.borrow_mut().give_socket(shard);
                }
            }
            Report::Relay(relay::Report::LinkEnded { vm, why }) => {
                self.0.registry.borrow_mut().give_socket(shard);
                if let Some(ended) = self.0.closing.borrow_mut().remove(&vm) {
                    let _ = ended.send(());
                }
                if why != relay::Gone::Ordered {
                    self.lost(vm, &format!("stream channel: {why}")).await;
                }
            }
            Report::Relay(relay::Report::LinkBlocked { vm, by }) => {
                if self.may_warn(vm) {
                    let vm = self.name(vm);
                    warn!(vm, session = by.0, "a client does not keep up: its VM's stream channel is held back");
                }
            }
            Report::Relay(relay::Report::LinkUnblocked { vm }) => {
                let vm = self.name(vm);
                debug!(vm, "the VM's stream channel is read again");
            }
            Report::Relay(
                report @ (relay::Report::SpillBegan { .. }
                | relay::Report::SpillStopped { .. }
                | relay::Report::SpillEnded { .. }),
            ) => self.log_spill(report),
            Report::Relay(report) => self.take_token_report(report).await,
            Report::Drained => {
                self.0.draining.set(self.0.draining.get().saturating_sub(1));
                if self.0.draining.get() == 0 {
                    self.0.drained.notify_one();
                }
            }
            Report::Failed(error) => {
                self.0.registry.borrow_mut().placement.fail(shard);
                tracing::error!(shard, %error, "the shard's ring failed; the daemon cannot go on");
                self.0.failed.notify_one();
            }
        }
    }

    /// Says in the log what a session's spill file is at.
    fn log_spill(&self, report: relay::Report) {
        match report {
            relay::Report::SpillBegan { vm, base } => {
                info!(vm = self.name(vm), session = base.0, "a client does not keep up: its output spills to a file");
            }
            relay::Report::SpillStopped { vm, base, why } => {
                let vm = self.name(vm);
                warn!(
                    vm,
                    session = base.0,
                    why,
                    "a client's output cannot spill: its VM waits when memory is full too"
                );
            }
            relay::Report::SpillEnded { vm, base } => {
                info!(vm = self.name(vm), session = base.0, "a client has caught up: its spill file is gone");
            }
            _ => {}
        }
    }

    /// Whether the log may say again that a client holds this VM back: a client that reads at its own pace does so
    /// many times a second.
    fn may_warn(&self, key: u64) -> bool {
        let mut registry = self.0.registry.borrow_mut();
        let Some((_, vm)) = registry.by_key(key) else { return false };
        let may = vm.warned.is_none_or(|at| at.elapsed() >= WARN_PAUSE);
        if may {
            vm.warned = Some(Instant::now());
        }
        may
    }

    /// A VM's name for people; its number once the name is free.
    fn name(&self, key: u64) -> String {
        self.0.registry.borrow_mut().by_key(key).map_or_else(|| format!("#{key}"), |(id, _)| id.to_owned())
    }

    /// What `status` shows.
    pub async fn status(&self) -> Status {
        let mut links = Vec::new();
        for shard in 0..self.0.shards.len() {
            let (reply, answer) = oneshot::channel();
            self.post(shard, Order::Status(reply)).await;
            links.extend(answer.await.unwrap_or_default().into_iter().map(|link| (shard, link)));
        }
        let (mut vms, mut positions) = (Vec::new(), HashMap::new());
        {
            let registry = self.0.registry.borrow();
            let named = registry.vms.iter().map(|(id, vm)| (vm.key, vm_status(id, vm)));
            let hidden = registry.hidden.values().map(|(id, vm)| {
                let state = "unregistered".to_owned();
                (vm.key, VmStatus { state, ..vm_status(id, vm) })
            });
            for (position, (key, vm)) in named.chain(hidden).enumerate() {
                vms.push(vm);
                positions.insert(key, position);
            }
        }
        for (shard, link) in links {
            let position = *positions.entry(link.vm).or_insert_with(|| {
                let (id, shard) = (self.name(link.vm), u32::try_from(shard).unwrap_or(u32::MAX));
                vms.push(VmStatus { id, state: "gone".to_owned(), shard, ..VmStatus::default() });
                vms.len() - 1
            });
            let vm = &mut vms[position];
            (vm.to_client, vm.to_agent, vm.blocked_by) = (link.to_client, link.to_agent, link.blocked_by);
            vm.queued_to_agent = link.sessions.iter().map(|session| session.queued_to_agent).sum();
            vm.sessions = link.sessions;
        }
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            socket: self.0.settings.socket.clone(),
            clients: self.0.clients.get() + self.0.tokens.borrow().claimed(),
            cpu_us: usage::cpu_us(),
            memory_bytes: self.0.usage.memory_bytes(),
            open_fds: self.0.usage.open_fds(),
            counters: self.0.counters.get(),
            shards: self.shard_statuses(),
            vms,
        }
    }

    /// The shards' counters and loads.
    fn shard_statuses(&self) -> Vec<ShardStatus> {
        self.measure();
        let registry = self.0.registry.borrow();
        let of = |(number, shard): (usize, &ShardHandle)| {
            let (load_permille, expected_permille) = registry.placement.permille(number);
            let used = shard.clock.used().unwrap_or_default();
            let cpu_us = u64::try_from(used.as_micros()).unwrap_or(u64::MAX);
            let counted = shard.stats.status(u32::try_from(number).unwrap_or(u32::MAX), shard.cpu);
            ShardStatus { cpu_us, load_permille, expected_permille, ..counted }
        };
        self.0.shards.iter().enumerate().map(of).collect()
    }

    /// Takes in what the shards have used of their CPUs.
    fn measure(&self) {
        let mut registry = self.0.registry.borrow_mut();
        registry.placement.measure(Instant::now(), |shard| self.0.shards[shard].clock.used());
    }

    /// Refuses new work and lets every client that reads have what it is owed, until `deadline`.
    pub async fn drain(&self, deadline: Instant) {
        self.0.stopping.set(true);
        self.0.draining.set(self.0.shards.len());
        let drained = async {
            // A shard that is stuck, with a full queue, holds up this for as long.
            for shard in 0..self.0.shards.len() {
                self.post(shard, Order::Drain).await;
            }
            self.0.drained.notified().await;
        };
        if timeout_at(deadline, drained).await.is_err() {
            warn!("stopping although some clients have not read what they are owed");
        }
    }

    /// Waits until a shard cannot go on.
    pub async fn failed(&self) {
        self.0.failed.notified().await;
    }
}

/// What a VM's agent reports of its own accord, one event behind the other.
#[derive(Debug)]
struct AgentEvents {
    coordinator: Coordinator,
    vm: u64,
    waiting: Backlog<Message>,
}

impl AgentEvents {
    /// Takes an event in; `false` when too many wait.
    fn take(self: &Rc<AgentEvents>, event: Message) -> bool {
        if self.waiting.len() >= AGENT_EVENTS_MAX {
            return false;
        }
        if self.waiting.add(event) {
            let events = Rc::clone(self);
            tokio::task::spawn_local(async move {
                while let Some(event) = events.waiting.next() {
                    events.coordinator.agent_event(events.vm, event).await;
                }
            });
        }
        true
    }
}

fn vm_status(id: &str, vm: &registry::Vm) -> VmStatus {
    let channel = vm.control.as_ref().map(channel::ControlHandle::status).unwrap_or_default();
    let state = match &vm.state {
        VmState::Connecting => "connecting",
        VmState::Ready if channel.command.is_some_and(|(_, overdue)| overdue) => "unresponsive",
        VmState::Ready => "ready",
        VmState::Gone(_) => "gone",
    };
    VmStatus {
        id: id.to_owned(),
        state: state.to_owned(),
        shard: u32::try_from(vm.shard).unwrap_or(u32::MAX),
        ctl: vm.ctl.to_string(),
        io: vm.io.to_string(),
        command: channel.command.map(|(name, _)| name.to_owned()),
        commands_queued: channel.queued as u64,
        ..VmStatus::default()
    }
}

/// Makes a socket one that a shard can serve.
fn into_blocking(stream: StdStream) -> io::Result<OwnedFd> {
    stream.set_nonblocking(false)?;
    fds::grow_send_buffer(stream.as_fd())?;
    Ok(stream.into())
}

fn out_of(error: io::Error) -> RequestError {
    RequestError::Resources(hint(&error))
}

/// A thread could not be started, for which the kernel has one error whatever the limit.
fn no_thread(error: io::Error) -> RequestError {
    if error.kind() == io::ErrorKind::WouldBlock {
        let limits = "RLIMIT_NPROC, the service's TasksMax=, or memory";
        return RequestError::Resources(format!("no thread left to open a VM's sockets ({limits})"));
    }
    out_of(error)
}

/// Names the limit behind a failed system call, where there is one.
fn hint(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE) => "no descriptor left in the daemon (RLIMIT_NOFILE)".to_owned(),
        Some(Errno::ENFILE) => "no descriptor left on the host (fs.file-max)".to_owned(),
        Some(Errno::ENOMEM | Errno::ENOBUFS) => "no memory left (the service's MemoryMax=, or the host's)".to_owned(),
        _ => error.to_string(),
    }
}
