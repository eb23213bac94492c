//! The data plane: one thread, one ring, the plane's rules carried out on sockets.
//!
//! `Shard::turn` is all it does: reap, take orders, act, flush. It never blocks but in its ring, and never waits
//! for the coordinator. The asymmetry to know: orders are taken after the completions were reaped and before they are
//! acted upon, so a session ordered before its process was started is there when that process's first output is.

mod mailbox;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use tokio::sync::Notify;

pub use self::mailbox::{Mailbox, Order, Report, ShardMailbox, TokenOrder, mailbox};
pub use self::stats::ShardStats;

use crate::buf::{BufView, Direction, Source};
use crate::limits::{CHUNK_LEN, TRIM_TURNS};
use crate::os::cpu::{self, ThreadClock};
use crate::os::sandbox;
use crate::reactor::{Event, Features, FileEvent, FileId, Reactor, SocketId, Waker};
use crate::relay::{self, Effect, Gone, LinkId, Peer, Plane, Sent, SessionId, Tuning};
use crate::relay::{SpillBounds, SpillFault, SpillOp, Spilled};
use crate::wire::SlowReader;
use crate::wire::admin::ShardStatus;
use crate::wire::hyper::StreamSeq;

/// What a shard is made of.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// Its number.
    pub number: u32,
    /// The CPU to run on; `None`: wherever the kernel likes.
    pub cpu: Option<u32>,
    /// Bounds of its plane.
    pub tuning: Tuning,
    /// Sockets it has room for.
    pub sockets: u32,
    /// What the kernel offers.
    pub features: Features,
    /// Whether its thread gives up its capabilities once it has its ring.
    pub drop_capabilities: bool,
    /// Where slow clients' output may spill, and how much; `None`: nowhere.
    pub spill: Option<SpillPlace>,
}

/// Where slow clients' output may spill, and how much of it.
#[derive(Debug, Clone)]
pub struct SpillPlace {
    /// The directory.
    pub dir: Arc<OwnedFd>,
    /// How much.
    pub bounds: SpillBounds,
}

/// A running shard, as the coordinator holds it.
#[derive(Debug)]
pub struct ShardHandle {
    /// Its queues.
    pub mailbox: Mailbox,
    /// Its counters.
    pub stats: Arc<ShardStats>,
    /// The CPU it is pinned to.
    pub cpu: Option<u32>,
    /// What its thread has used of it.
    pub clock: ThreadClock,
    /// Its thread, until the daemon takes it to wait for its end.
    pub thread: Option<thread::JoinHandle<()>>,
}

/// One shard's state.
#[derive(Debug)]
struct Shard {
    reactor: Reactor,
    plane: Plane,
    mailbox: ShardMailbox,
    stats: Arc<ShardStats>,
    links: HashMap<u64, LinkId>,
    /// Sessions with a token, by first sequence.
    tokens: HashMap<u64, SessionId>,
    /// By socket slot: whose socket it is.
    peers: Vec<Option<(SocketId, Peer)>>,
    link_sockets: Vec<Option<SocketId>>,
    session_sockets: Vec<Option<SocketId>>,
    /// The files of sessions that spill, and whose each is.
    spill_files: HashMap<SessionId, FileId>,
    spill_sessions: HashMap<FileId, SessionId>,
    effects: Vec<Effect>,
    draining: bool,
    /// Nothing has happened since the rest timer was set.
    is_quiet: bool,
    turns: u64,
}

/// Starts a shard's thread and waits until its ring is there.
///
/// # Errors
/// The kernel's: no thread, no ring, no such CPU.
pub fn spawn(config: ShardConfig, notify: Arc<Notify>) -> io::Result<ShardHandle> {
    let waker = Waker::new()?;
    let (ours, theirs) = mailbox(waker.clone(), notify);
    let stats = Arc::new(ShardStats::default());
    let (made, is_made) = std::sync::mpsc::sync_channel(1);
    let (shared, cpu) = (Arc::clone(&stats), config.cpu);
    let thread = thread::Builder::new().name(format!("shard-{}", config.number)).spawn(move || {
        match Shard::new(&config, waker, theirs, shared) {
            Ok(shard) => {
                let _ = made.send(Ok(ThreadClock::of_this_thread()));
                shard.run();
            }
            Err(error) => {
                let _ = made.send(Err(error));
            }
        }
    })?;
    let clock = is_made.recv().unwrap_or_else(|_| Err(io::Error::other("the shard's thread ended at once")))?;
    Ok(ShardHandle { mailbox: ours, stats, cpu, clock, thread: Some(thread) })
}

impl Shard {
    fn new(config: &ShardConfig, waker: Waker, mailbox: ShardMailbox, stats: Arc<ShardStats>) -> io::Result<Shard> {
        if let Some(cpu) = config.cpu {
            cpu::pin(cpu).map_err(|error| io::Error::other(format!("pinning it to CPU {cpu}: {error}")))?;
        }
        let mut reactor = Reactor::new(config.features, config.sockets, waker)?;
        let mut plane = Plane::new(config.tuning);
        if let Some(SpillPlace { dir, bounds }) = &config.spill {
            reactor.set_spill_dir(Arc::clone(dir));
            plane = plane.with_spill(bounds.clone());
        }
        if config.drop_capabilities {
            sandbox::drop_capabilities()?;
        }
        Ok(Shard {
            reactor,
            plane,
            mailbox,
            stats,
            links: HashMap::new(),
            tokens: HashMap::new(),
            peers: Vec::new(),
            link_sockets: Vec::new(),
            session_sockets: Vec::new(),
            spill_files: HashMap::new(),
            spill_sessions: HashMap::new(),
            effects: Vec::new(),
            draining: false,
            is_quiet: true,
            turns: 0,
        })
    }

    fn run(mut self) {
        let mut events = Vec::new();
        loop {
            match self.turn(&mut events) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.mailbox.report(Report::Failed(error));
                    self.mailbox.deliver();
                    return;
                }
            }
        }
    }

    /// One turn; `false` when the shard was told to stop.
    fn turn(&mut self, events: &mut Vec<Event>) -> io::Result<bool> {
        self.sleep(events)?;
        self.turns += 1;
        if self.turns.is_multiple_of(TRIM_TURNS) {
            self.reactor.mem.chunks.trim();
        }
        while let Some(order) = self.mailbox.next_order() {
            if !self.obey(order) {
                return Ok(false);
            }
        }
        for event in events.drain(..) {
            self.act(event);
        }
        self.retry_spills();
        self.flush();
        while self.plane.carry_out_verdicts(&mut self.reactor.mem) {
            self.carry_out();
            self.flush();
        }
        if self.draining && self.plane.owed_to_clients() == 0 {
            self.draining = false;
            self.mailbox.report(Report::Drained);
        }
        self.mailbox.deliver();
        self.stats.store(&self.numbers());
        Ok(true)
    }

    /// Submits, waits for something to happen if there is nothing to do, and reaps.
    fn sleep(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        // Bytes for peers that do not read stay in the receive buffers until somebody else needs these in vain.
        let is_short = self.reactor.is_starving() && self.plane.pins();
        let wait = self.mailbox.may_sleep() && !is_short;
        if self.plane.has_held() {
            self.reactor.set_rest_timer();
        }
        self.reactor.turn(wait, events)?;
        self.mailbox.awake();
        if is_short && events.is_empty() {
            self.plane.relieve(&mut self.reactor.mem);
        }
        self.rest_when_quiet(events);
        Ok(())
    }

    /// Gives back what only traffic needs when nothing has happened for a while. A timer runs only behind traffic that
    /// left something to give back.
    fn rest_when_quiet(&mut self, events: &mut Vec<Event>) {
        self.is_quiet &= events.is_empty();
        if self.reactor.take_rest_timer() {
            self.plane.beat(&mut self.reactor.mem);
            self.carry_out();
            if self.is_quiet {
                self.plane.rest(&mut self.reactor.mem);
                self.reactor.rest();
                self.effects.shrink_to_fit();
                events.shrink_to_fit();
                return;
            }
            self.is_quiet = true;
            self.reactor.set_rest_timer();
        } else if !self.is_quiet && self.reactor.has_surplus() {
            self.reactor.set_rest_timer();
        }
    }

    /// Lets sessions that could not spill try again after a while.
    fn retry_spills(&mut self) {
        if self.reactor.take_retry_timer() {
            self.plane.retry_spills();
        } else if self.plane.wants_to_retry() {
            self.reactor.set_retry_timer();
        }
    }

    fn flush(&mut self) {
        self.plane.flush(&mut self.reactor.mem);
        self.carry_out();
        self.plane.clear_views();
    }

    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::OpenLink { vm, fd } => self.open_link(vm, fd),
            Order::CloseLink { vm } => match self.links.get(&vm) {
                Some(&link) => self.plane.gone(&mut self.reactor.mem, Peer::Agent(link), Gone::Ordered),
                None => self.report(relay::Report::LinkEnded { vm, why: Gone::Ordered }),
            },
            Order::FinishLink { vm } => {
                let link = self.links.get(&vm).and_then(|&link| self.socket(Peer::Agent(link)));
                link.into_iter().for_each(|socket| self.reactor.shut_down(socket));
            }
            Order::OpenSession { vm, base, streams, slow_reader, fd } => {
                self.open_session(vm, base, streams, slow_reader, fd);
            }
            Order::OpenToken { vm, base, slow_reader } => self.open_token(vm, base, slow_reader),
            Order::Token(base, order) => self.obey_token(base, order),
            Order::Status(reply) => {
                // Nobody waits for the answer any more: that is theirs to decide.
                let _ = reply.send(self.plane.status());
            }
            Order::Drain => {
                self.plane.drain(&mut self.reactor.mem);
                self.draining = true;
            }
            Order::Stop => return false,
        }
        self.carry_out();
        true
    }

    fn open_link(&mut self, vm: u64, fd: OwnedFd) {
        match self.reactor.add(fd, Direction::ToClient) {
            Ok(socket) => {
                let link = self.plane.open_link(vm);
                self.links.insert(vm, link);
                remember(&mut self.link_sockets, link.0 as usize, socket);
                self.take_in(socket, Peer::Agent(link));
            }
            Err(error) => {
                let why = Gone::Error(format!("no room for the stream channel on its shard: {error}"));
                self.mailbox.report(Report::Relay(relay::Report::LinkEnded { vm, why }));
            }
        }
    }

    fn open_session(&mut self, vm: u64, base: StreamSeq, streams: u8, slow_reader: SlowReader, fd: OwnedFd) {
        let refused = |why| Report::Relay(relay::Report::SessionEnded { base, vm, why });
        // A VM that ended while the order was under way: the descriptor closes, its client sees EOF.
        let Some(&link) = self.links.get(&vm) else { return self.mailbox.report(refused(Gone::Ordered)) };
        match self.reactor.add(fd, Direction::ToAgent) {
            Ok(socket) => {
                let session = self.plane.open_session(link, base, streams);
                self.plane.set_slow_reader(session, slow_reader);
                remember(&mut self.session_sockets, session.0 as usize, socket);
                self.take_in(socket, Peer::Client(session));
            }
            Err(error) => self.mailbox.report(refused(Gone::Error(format!("no room on its shard: {error}")))),
        }
    }

    fn open_token(&mut self, vm: u64, base: StreamSeq, slow_reader: SlowReader) {
        match self.links.get(&vm) {
            Some(&link) => {
                let session = self.plane.open_token(link, base);
                self.plane.set_slow_reader(session, slow_reader);
                self.tokens.insert(base.0, session);
            }
            None => {
                let ended = relay::Report::SessionEnded { base, vm, why: Gone::Ordered };
                self.mailbox.report(Report::Relay(ended));
            }
        }
    }

    fn obey_token(&mut self, base: StreamSeq, order: TokenOrder) {
        // A session that ended while the order was under way has been reported; a descriptor in it closes.
        let Some(&id) = self.tokens.get(&base.0) else { return };
        let mem = &mut self.reactor.mem;
        match order {
            TokenOrder::Connect { connection, fd, unparsed, reply } => {
                self.connect_shim(base, id, connection, fd, &reply);
                self.feed(id, &unparsed);
            }
            TokenOrder::Answer { connection, reply } => self.plane.answer_shim(mem, id, connection, &reply),
            TokenOrder::Started { terminal } => self.plane.started(mem, id, terminal),
            TokenOrder::Exited { status } => self.plane.exited(mem, id, status),
            TokenOrder::Drop { connection, why } => self.plane.drop_shim(mem, id, connection, why),
            TokenOrder::Release { reply } => self.plane.release_token(mem, id, &reply),
        }
    }

    fn connect_shim(&mut self, base: StreamSeq, id: SessionId, connection: u64, fd: OwnedFd, reply: &[u8]) {
        match self.reactor.add(fd, Direction::ToAgent) {
            Ok(socket) => {
                if self.plane.connect_shim(&mut self.reactor.mem, id, connection, reply) {
                    remember(&mut self.session_sockets, id.0 as usize, socket);
                    self.take_in(socket, Peer::Client(id));
                } else {
                    self.reactor.close(socket);
                }
            }
            Err(error) => {
                let why = Gone::Error(format!("no room on its shard: {error}"));
                let gone = relay::Report::ShimGone { base, connection, why, at_risk: 0 };
                self.mailbox.report(Report::Relay(gone));
            }
        }
    }

    /// Gives a session bytes that its client had sent before it came here.
    fn feed(&mut self, id: SessionId, bytes: &[u8]) {
        for piece in bytes.chunks(CHUNK_LEN) {
            let (Some(_), Ok(len)) = (self.socket(Peer::Client(id)), u32::try_from(piece.len())) else { return };
            let mem = &mut self.reactor.mem;
            let chunk = mem.chunks.take();
            mem.chunks.write(chunk, 0, piece);
            let source = Source::Chunk(chunk);
            self.plane.received(mem, Peer::Client(id), BufView { source, off: 0, len });
            self.reactor.mem.release(source);
            self.carry_out();
        }
    }

    fn take_in(&mut self, socket: SocketId, peer: Peer) {
        let slot = socket.slot();
        if self.peers.len() <= slot {
            self.peers.resize(slot + 1, None);
        }
        self.peers[slot] = Some((socket, peer));
        self.reactor.resume(socket);
    }

    /// Whose socket it is; `None` once it has been closed, whatever was still under way.
    fn peer(&self, socket: SocketId) -> Option<Peer> {
        let (current, peer) = (*self.peers.get(socket.slot())?)?;
        (current == socket).then_some(peer)
    }

    fn socket(&self, peer: Peer) -> Option<SocketId> {
        match peer {
            Peer::Agent(LinkId(index)) => *self.link_sockets.get(index as usize)?,
            Peer::Client(SessionId(index)) => *self.session_sockets.get(index as usize)?,
        }
    }

    fn act(&mut self, event: Event) {
        match event {
            Event::Received(socket, view) => {
                if let Some(peer) = self.peer(socket) {
                    self.plane.received(&mut self.reactor.mem, peer, view);
                }
                self.reactor.mem.release(view.source);
            }
            Event::Ended(socket, errno) => match (self.peer(socket), errno) {
                (Some(Peer::Client(session)), None) => self.plane.input_ended(&mut self.reactor.mem, session),
                (Some(peer), errno) => self.plane.gone(&mut self.reactor.mem, peer, gone(errno)),
                (None, _) => {}
            },
            Event::Sent(socket, outcome) => {
                if let Some(peer) = self.peer(socket) {
                    // An agent that takes nothing any more: its link ends when what it wrote before is received.
                    if outcome.is_err() && matches!(peer, Peer::Agent(_)) {
                        self.reactor.shut_down(socket);
                    }
                    let sent = outcome.map_or_else(|errno| Sent::Failed(gone(Some(errno))), Sent::Taken);
                    self.plane.sent(&mut self.reactor.mem, peer, sent);
                }
            }
            Event::Room(socket) => self.peer(socket).into_iter().for_each(|peer| self.plane.room(peer)),
            Event::File(file, event) => {
                if let Some(session) = self.spill_sessions.get(&file) {
                    self.plane.spilled(&mut self.reactor.mem, *session, spilled(event));
                }
            }
            Event::HungUp(socket) => {
                if let Some(peer) = self.peer(socket) {
                    self.plane.gone(&mut self.reactor.mem, peer, Gone::Closed);
                }
            }
        }
        self.carry_out();
    }

    fn carry_out(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        self.plane.take_effects(&mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Send { peer, views, is_last } => {
                    if let Some(socket) = self.socket(peer) {
                        self.reactor.send(socket, self.plane.views(views), is_last);
                    }
                }
                Effect::Pause(peer) => self.socket(peer).into_iter().for_each(|socket| self.reactor.pause(socket)),
                Effect::ReceiveLess(peer) => {
                    self.socket(peer).into_iter().for_each(|socket| self.reactor.receive_less(socket));
                }
                Effect::Resume(peer) => self.socket(peer).into_iter().for_each(|socket| self.reactor.resume(socket)),
                Effect::WatchRoom(peer) => {
                    self.socket(peer).into_iter().for_each(|socket| self.reactor.watch_room(socket));
                }
                Effect::WatchClose(session) => {
                    let socket = self.socket(Peer::Client(session));
                    socket.into_iter().for_each(|socket| self.reactor.watch_hang_up(socket));
                }
                Effect::Close(peer) => self.forget(peer),
                Effect::Spill(session, op) => self.spill(session, op),
                Effect::Report(report) => self.report(report),
            }
        }
        self.effects = effects;
    }

    /// Does something with a session's spill file.
    fn spill(&mut self, session: SessionId, op: SpillOp) {
        if op == SpillOp::Open {
            if let Some(file) = self.reactor.open_file() {
                self.spill_files.insert(session, file);
                self.spill_sessions.insert(file, session);
            }
            return;
        }
        let Some(&file) = self.spill_files.get(&session) else { return };
        match op {
            SpillOp::Write { views, offset } => self.reactor.write_file(file, self.plane.views(views), offset),
            SpillOp::Read { views, offset } => self.reactor.read_file(file, self.plane.views(views), offset),
            SpillOp::Punch { offset, len } => self.reactor.punch_file(file, offset, len),
            SpillOp::Close => {
                self.spill_files.remove(&session);
                self.spill_sessions.remove(&file);
                self.reactor.close_file(file);
            }
            SpillOp::Open => {}
        }
    }

    fn forget(&mut self, peer: Peer) {
        let socket = match peer {
            Peer::Agent(LinkId(index)) => self.link_sockets[index as usize].take(),
            Peer::Client(SessionId(index)) => self.session_sockets[index as usize].take(),
        };
        if let Some(socket) = socket {
            self.peers[socket.slot()] = None;
            self.reactor.close(socket);
        }
    }

    fn report(&mut self, report: relay::Report) {
        match &report {
            relay::Report::LinkEnded { vm, .. } => drop(self.links.remove(vm)),
            relay::Report::SessionEnded { base, .. } => drop(self.tokens.remove(&base.0)),
            _ => {}
        }
        self.mailbox.report(Report::Relay(report));
    }

    /// The numbers of this turn; the shard's own number and CPU are its handle's to add.
    fn numbers(&self) -> ShardStatus {
        let totals = self.plane.totals();
        let counters = self.reactor.counters();
        let (links, sessions) = self.plane.counts();
        ShardStatus {
            links: links as u64,
            sessions: sessions as u64,
            turns: self.turns,
            to_client: totals.to_client,
            to_agent: totals.to_agent,
            skipped_frames: totals.skipped,
            buffers_exhausted: counters.buffers_exhausted,
            stale_completions: counters.stale,
            chunks_in_use: self.reactor.mem.chunks.in_use() as u64,
            links_blocked: totals.blocked,
            faulty_peers: totals.faults,
            sessions_too_slow: totals.too_slow,
            spilling: totals.spilling,
            spill_bytes: totals.spill_space,
            spill_written: totals.spill_written,
            spill_read: totals.spill_read,
            spill_full: totals.spill_full,
            spill_errors: totals.spill_errors,
            ..ShardStatus::default()
        }
    }
}

fn remember(table: &mut Vec<Option<SocketId>>, index: usize, socket: SocketId) {
    if table.len() <= index {
        table.resize(index + 1, None);
    }
    table[index] = Some(socket);
}

/// How an operation on a spill file ended, as the plane is told.
fn spilled(event: FileEvent) -> Spilled {
    let fault = |errno: Errno| SpillFault {
        full: matches!(errno, Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG),
        text: errno.to_string(),
    };
    match event {
        FileEvent::Opened(outcome) => Spilled::Opened(outcome.map_err(fault)),
        FileEvent::Wrote(outcome) => Spilled::Wrote(outcome.map_err(fault)),
        FileEvent::Read(outcome) => Spilled::Read(outcome.map_err(fault)),
        FileEvent::Punched(outcome) => Spilled::Punched(outcome.map_err(fault)),
    }
}

/// What an ended receive or a failed send says about the peer.
fn gone(errno: Option<Errno>) -> Gone {
    match errno {
        None | Some(Errno::EPIPE | Errno::ECONNRESET) => Gone::Closed,
        Some(errno) => Gone::Error(errno.to_string()),
    }
}
