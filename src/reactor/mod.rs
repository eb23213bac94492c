//! One shard's ring: sockets as direct descriptors, multishot receives into provided buffers, sends that are tried
//! or that wait, wake-ups. Names no protocol.
//!
//! [`Reactor::turn`] submits what was asked for, waits if told to, and turns completions into [`Event`]s; it never
//! acts on them. The asymmetry to know: a socket closes in stages, and its slot is free only when its last operation
//! has ended; from [`Reactor::close`] on nothing is reported of it.

mod buf_pool;
mod op_tag;
mod probe;
mod send_op;
mod sockets;
mod spill_file;
#[cfg(test)]
mod tests;
mod timer;
mod wake;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;

use io_uring::{IoUring, cqueue, opcode, register::Restriction, squeue, types};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{Shutdown, shutdown};

pub use self::buf_pool::{BufGroup, BufPool};
pub use self::op_tag::{OpKind, OpTag};
pub use self::probe::{Features, MINIMUM_KERNEL, ProbeError, check_release, disabled_setting, probe, release};
pub use self::sockets::SocketId;
pub use self::spill_file::{FileEvent, FileId};
pub use self::wake::Waker;

use self::send_op::SendOp;
use self::sockets::{Receive, Sockets};
use self::spill_file::Files;
use self::timer::Timer;
use crate::buf::{BufView, ChunkPool, Direction, Memory};
use crate::limits::{
    REST_MS, SPARE_CHUNKS, SPARE_SENDS, SPILL_RETRY_MS, TO_AGENT_BUFFERS, TO_AGENT_BUFFERS_INCREMENTAL,
    TO_CLIENT_BUFFERS,
};
use crate::os::calls::RING_FILES_UPDATE;
use crate::os::fds::discard_unread;

/// Submission and completion entries of a shard's ring.
const SUBMISSIONS: u32 = 1_024;
const COMPLETIONS: u32 = 8_192;

/// What a watch for room is for. Errors and hang-ups are always reported.
const POLL_ROOM: u32 = libc::POLLOUT.unsigned_abs() as u32;

/// A peer read piece by piece: the bytes of a piece, and how few of them say that it does not send much any more.
const PIECE_MOST: u32 = 32 * 1024;
const PIECE_LEAST: usize = 4 * 1024;

const _: () = assert!(SPARE_SENDS == SUBMISSIONS as usize);

/// What a completion said.
#[derive(Debug)]
pub enum Event {
    /// Bytes were received. The view's reference is the receiver's to release.
    Received(SocketId, BufView),
    /// Nothing more will be received: the peer ended its side (`None`), or the socket failed.
    Ended(SocketId, Option<Errno>),
    /// A send ended: bytes taken, or why the socket failed.
    Sent(SocketId, Result<usize, Errno>),
    /// The socket takes bytes again, or never will: a send tells.
    Room(SocketId),
    /// The peer closed altogether.
    HungUp(SocketId),
    /// An operation on a spill file ended.
    File(FileId, FileEvent),
}

/// Counters of one reactor.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    /// Calls of io_uring_enter(2).
    pub enters: u64,
    /// Receives that found no free buffer.
    pub buffers_exhausted: u64,
    /// Completions that matched no operation.
    pub stale: u64,
}

/// One shard's ring and everything in flight on it.
#[derive(Debug)]
pub struct Reactor {
    /// Dropped first: when it is gone the kernel touches none of the memory below any more.
    ring: Ring,
    /// Receive buffers and chunks.
    pub mem: Memory<BufPool>,
    sockets: Sockets,
    files: Files,
    starved: Starved,
    /// Sockets whose receive is armed when the turn begins.
    due: Vec<SocketId>,
    /// Sockets with a send that completes only when it is not taken whole.
    tacit: Vec<SocketId>,
    /// Whether the kernel may not have seen all of these, so that nothing is known of them.
    tacit_unsure: bool,
    /// Operations the kernel did not let into its full queue, oldest first.
    postponed: VecDeque<squeue::Entry>,
    #[expect(clippy::vec_box, reason = "the box moves into a slot and back; its address is the kernel's")]
    spare_sends: Vec<Box<SendOp>>,
    waker: Waker,
    wake_count: Box<u64>,
    rest_timer: Timer,
    retry_timer: Timer,
    counters: Counters,
}

/// Sockets whose receive found no buffer, oldest first.
#[derive(Debug, Default)]
struct Starved {
    to_client: VecDeque<SocketId>,
    to_agent: VecDeque<SocketId>,
}

impl Starved {
    fn of(&mut self, direction: Direction) -> &mut VecDeque<SocketId> {
        match direction {
            Direction::ToClient => &mut self.to_client,
            Direction::ToAgent => &mut self.to_agent,
        }
    }

    fn forget(&mut self, id: SocketId) {
        self.to_client.retain(|&other| other != id);
        self.to_agent.retain(|&other| other != id);
    }
}

/// The ring, with a `Debug`.
struct Ring(IoUring);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

/// All that a shard's ring is ever asked for: operations, flags of theirs, and registrations.
const OPERATIONS: [(u8, &str); 12] = [
    (opcode::RecvMulti::CODE, "receive"),
    (opcode::Send::CODE, "send"),
    (opcode::SendMsg::CODE, "sendmsg"),
    (opcode::PollAdd::CODE, "poll"),
    (opcode::AsyncCancel::CODE, "cancel"),
    (opcode::Read::CODE, "read"),
    (opcode::Timeout::CODE, "timeout"),
    (opcode::OpenAt::CODE, "openat"),
    (opcode::Writev::CODE, "writev"),
    (opcode::Readv::CODE, "readv"),
    (opcode::Fallocate::CODE, "fallocate"),
    (opcode::Close::CODE, "close"),
];
const OPERATION_FLAGS: [squeue::Flags; 4] =
    [squeue::Flags::FIXED_FILE, squeue::Flags::BUFFER_SELECT, squeue::Flags::SKIP_SUCCESS, squeue::Flags::ASYNC];

/// Makes the ring refuse for good what is not listed above, and enables it for the calling thread.
fn restrict_and_enable(ring: &IoUring) -> io::Result<()> {
    let mut allowed: Vec<_> = OPERATIONS.iter().map(|&(code, _)| Restriction::sqe_op(code)).collect();
    let flags: squeue::Flags = OPERATION_FLAGS.into_iter().collect();
    allowed.push(Restriction::sqe_flags_allowed(flags.bits()));
    allowed.push(Restriction::register_op(RING_FILES_UPDATE));
    ring.submitter().register_restrictions(&mut allowed)?;
    ring.submitter().register_enable_rings()
}

/// A ring as every shard has it, disabled until it has been restricted.
fn build_ring() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        // With it an enter that does not wait runs the work that waits for it too.
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_r_disabled()
        .setup_cqsize(COMPLETIONS)
        .dontfork()
        .build(SUBMISSIONS)
}

impl Reactor {
    /// Makes the ring of the calling thread, which alone may use it, with room for `sockets` sockets.
    ///
    /// # Errors
    /// What is missing and what to do: the first ring may be made where the tenth is one too many.
    pub fn new(features: Features, sockets: u32, waker: Waker) -> io::Result<Reactor> {
        let explained = |error| io::Error::other(probe::explain(error, disabled_setting()));
        let ring = build_ring().map_err(explained)?;
        ring.submitter().register_files_sparse(sockets).map_err(explained)?;
        let incremental = features.incremental_buffers;
        let to_agent = if incremental { TO_AGENT_BUFFERS_INCREMENTAL } else { TO_AGENT_BUFFERS };
        let submitter = ring.submitter();
        let leases = BufPool {
            to_client: BufGroup::register(&submitter, Direction::ToClient, TO_CLIENT_BUFFERS, false)
                .map_err(explained)?,
            to_agent: BufGroup::register(&submitter, Direction::ToAgent, to_agent, incremental).map_err(explained)?,
        };
        restrict_and_enable(&ring).map_err(explained)?;
        let mut reactor = Reactor {
            ring: Ring(ring),
            mem: Memory { leases, chunks: ChunkPool::default() },
            sockets: Sockets::new(sockets),
            files: Files::default(),
            starved: Starved::default(),
            due: Vec::new(),
            tacit: Vec::new(),
            tacit_unsure: false,
            postponed: VecDeque::new(),
            spare_sends: Vec::new(),
            waker,
            wake_count: Box::new(0),
            rest_timer: Timer::of(REST_MS),
            retry_timer: Timer::of(SPILL_RETRY_MS),
            counters: Counters::default(),
        };
        reactor.arm_wake();
        Ok(reactor)
    }

    /// Takes a connected stream socket in. Nothing is received from it before [`Reactor::resume`].
    ///
    /// # Errors
    /// The table is full, or the kernel's.
    pub fn add(&mut self, fd: OwnedFd, direction: Direction) -> io::Result<SocketId> {
        let slot = self.sockets.vacant().ok_or(io::Error::from(Errno::ENFILE))?;
        self.ring.0.submitter().register_files_update(slot, &[fd.as_raw_fd()])?;
        Ok(self.sockets.occupy(slot, fd, direction))
    }

    /// Receives from a socket from now on.
    pub fn resume(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(id) else { return };
        match socket.receive {
            Receive::Off => self.receive_is_due(id),
            Receive::Stopping { .. } => socket.receive = Receive::Stopping { again: true },
            Receive::Due | Receive::Armed | Receive::Starved => {}
        }
    }

    /// Receives piece by piece, one in each turn, for as long as the socket's peer sends much.
    pub fn receive_less(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(id) else { return };
        let is_new = !std::mem::replace(&mut socket.piecewise, true);
        if is_new && socket.receive == Receive::Armed {
            socket.receive = Receive::Stopping { again: true };
            self.cancel(id, OpKind::Receive);
        }
    }

    /// Stops receiving. What the kernel had already taken is still reported.
    pub fn pause(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(id) else { return };
        match socket.receive {
            Receive::Armed => {
                // Stopping costs a cancellation. A client that needs it once is read piece by piece for as long as it
                // sends much: it can be stopped between two pieces for nothing.
                socket.piecewise = socket.direction == Direction::ToAgent;
                socket.receive = Receive::Stopping { again: false };
                self.cancel(id, OpKind::Receive);
            }
            Receive::Due => socket.receive = Receive::Off,
            Receive::Stopping { .. } => socket.receive = Receive::Stopping { again: false },
            Receive::Starved => {
                socket.receive = Receive::Off;
                self.starved.forget(id);
            }
            Receive::Off => {}
        }
    }

    /// Reports when the peer has closed altogether, which a receive cannot tell from a half-close.
    pub fn watch_hang_up(&mut self, id: SocketId) {
        if self.sockets.get(id).is_some_and(|socket| !socket.watched) {
            self.sockets.begin(id).watched = true;
            // No event is asked for: hang-ups and errors are always reported, half-closes too (io_uring adds RDHUP).
            // Edge-triggered, so that the half-close that is there already is told once and the hang-up later.
            let entry = opcode::PollAdd::new(types::Fixed(id.slot), 0).multi(true).build();
            // SAFETY: a poll reads no memory of ours.
            unsafe { self.submit(entry, id.tag(OpKind::HangUp)) };
        }
    }

    /// Reports once when the socket takes bytes again, or never will.
    pub fn watch_room(&mut self, id: SocketId) {
        if self.sockets.get(id).is_some_and(|socket| !socket.watches_room) {
            self.sockets.begin(id).watches_room = true;
            let entry = opcode::PollAdd::new(types::Fixed(id.slot), POLL_ROOM).build();
            // SAFETY: a poll reads no memory of ours.
            unsafe { self.submit(entry, id.tag(OpKind::Room)) };
        }
    }

    /// Sends `views` in one call, what fits now. One send at a time per socket; the views' memory is held until its
    /// [`Event::Sent`], which the next turn has. When `is_last`, a turn that waits goes on waiting when all is taken.
    ///
    /// # Panics
    /// When a send is in flight; that is a fault of ours.
    pub fn send(&mut self, id: SocketId, views: &[BufView], is_last: bool) {
        if self.sockets.get(id).is_none() {
            return;
        }
        let mut op = self.spare_sends.pop().unwrap_or_default();
        op.load(&mut self.mem, views);
        // With MSG_WAITALL a send that comes short has failed, and completes.
        let (all, tacit) = match is_last {
            true => (libc::MSG_WAITALL, squeue::Flags::SKIP_SUCCESS),
            false => (0, squeue::Flags::empty()),
        };
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | all;
        let target = types::Fixed(id.slot);
        let entry = match op.single().and_then(|piece| Some((piece.iov_base, u32::try_from(piece.iov_len).ok()?))) {
            Some((base, len)) => opcode::Send::new(target, base.cast(), len).flags(flags).build(),
            None => opcode::SendMsg::new(target, op.message()).flags(flags.unsigned_abs()).build(),
        };
        let socket = self.sockets.begin(id);
        assert!(socket.send.is_none(), "one send at a time");
        socket.send = Some(op);
        if is_last {
            self.tacit.push(id);
        }
        // SAFETY: the op, boxed in the socket's slot, keeps the message at its address and holds a reference to every
        // piece's memory until this operation has ended (`send_ended`).
        unsafe { self.submit(entry.flags(tacit), id.tag(OpKind::Send)) };
    }

    /// Lets nothing more be sent either way. What the kernel has received is still reported, then the end.
    pub fn shut_down(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(id) else { return };
        // A socket whose peer is gone altogether is shut down already.
        let _ = shutdown(socket.fd.as_raw_fd(), Shutdown::Both);
        if socket.receive == Receive::Armed {
            // The kernel wakes the peer of a shutdown, not the one who asks for it: a new receive sees the end.
            self.pause(id);
            self.resume(id);
        }
    }

    /// Closes a socket once nothing is in flight on it. Nothing is reported of it from now on, and its peer sees the
    /// end at once.
    pub fn close(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get(id) else { return };
        // Fails where the peer is gone altogether.
        let _ = shutdown(socket.fd.as_raw_fd(), Shutdown::Both);
        socket.closing = true;
        let (receive, watched, sending) = (socket.receive, socket.watched, socket.send.is_some());
        let watches_room = socket.watches_room;
        if receive == Receive::Armed {
            self.cancel(id, OpKind::Receive);
        }
        if receive == Receive::Starved {
            self.starved.forget(id);
        }
        if watched {
            self.cancel(id, OpKind::HangUp);
        }
        if watches_room {
            self.cancel(id, OpKind::Room);
        }
        if sending {
            self.cancel(id, OpKind::Send);
        }
        self.retire(id);
    }

    /// Submits everything asked for, with `wait` sleeps until something completes, and appends what completed.
    ///
    /// # Errors
    /// The kernel refused the ring itself, which a running daemon does not survive.
    pub fn turn(&mut self, wait: bool, events: &mut Vec<Event>) -> io::Result<()> {
        self.feed_starved();
        self.arm_due();
        self.mem.leases.to_client.publish();
        self.mem.leases.to_agent.publish();
        let all_queued = self.queue_postponed();
        let wait = wait && all_queued && !self.tacit_unsure;
        self.counters.enters += 1;
        match self.ring.0.submit_and_wait(usize::from(wait)) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(error) => return Err(error),
        }
        // Looked at now: what is queued while completions are reaped is for the next turn.
        let submissions = self.ring.0.submission();
        let all_made = all_queued && submissions.is_empty() && !submissions.cq_overflow();
        drop(submissions);
        let before = events.len();
        self.reap(events);
        self.tacit_unsure = !all_made && !self.tacit.is_empty();
        if all_made {
            let reaped = events.len();
            self.end_tacit(events);
            // They ended first: what a client has is not to be sent to its successor.
            events[before..].rotate_left(reaped - before);
        }
        Ok(())
    }

    /// Sends that were made and said nothing have been taken whole: a send that does not wait ends within the call that
    /// submits it, and then its completion was reaped if it has one.
    fn end_tacit(&mut self, events: &mut Vec<Event>) {
        let mut tacit = std::mem::take(&mut self.tacit);
        for id in tacit.drain(..) {
            if self.sockets.is_current(id)
                && let Some(len) = self.sockets.current(id).send.as_ref().map(|op| op.len())
            {
                self.sockets.end(id);
                self.send_ended(id, Ok(len), events);
                self.retire(id);
            }
        }
        self.tacit = tacit;
    }

    /// Whether it holds memory that only traffic needs.
    pub fn has_surplus(&self) -> bool {
        let BufPool { to_client, to_agent } = &self.mem.leases;
        self.mem.chunks.spare() > SPARE_CHUNKS || to_client.has_surplus() || to_agent.has_surplus()
    }

    /// Nothing happens: gives that memory back.
    pub fn rest(&mut self) {
        self.mem.chunks.rest();
        self.mem.leases.to_client.rest();
        self.mem.leases.to_agent.rest();
        self.spare_sends = Vec::new();
        self.tacit.shrink_to_fit();
        self.postponed.shrink_to_fit();
    }

    /// Whether a socket is not received from for lack of a buffer.
    pub fn is_starving(&self) -> bool {
        !(self.starved.to_client.is_empty() && self.starved.to_agent.is_empty())
    }

    /// Counters since the reactor was made.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Sockets in the table, those that still close included.
    pub fn sockets(&self) -> usize {
        self.sockets.len()
    }

    fn reap(&mut self, events: &mut Vec<Event>) {
        let mut batch: [(u64, i32, u32); 64] = [(0, 0, 0); 64];
        loop {
            let mut count = 0;
            let mut completions = self.ring.0.completion();
            for (entry, completion) in batch.iter_mut().zip(&mut completions) {
                *entry = (completion.user_data(), completion.result(), completion.flags());
                count += 1;
            }
            drop(completions);
            for &(data, result, flags) in &batch[..count] {
                self.completed(data, result, flags, events);
            }
            if count < batch.len() {
                return;
            }
        }
    }

    fn completed(&mut self, data: u64, result: i32, flags: u32, events: &mut Vec<Event>) {
        let Some(tag) = OpTag::decode(data) else {
            self.counters.stale += 1;
            return;
        };
        match tag.kind {
            OpKind::Wake => return self.arm_wake(),
            OpKind::Rest | OpKind::Retry => return self.timer_ended(tag.kind),
            OpKind::OpenFile | OpKind::WriteFile | OpKind::ReadFile | OpKind::PunchFile => {
                return self.file_completed(tag, result, events);
            }
            OpKind::CloseFile => return,
            OpKind::Receive | OpKind::Send | OpKind::HangUp | OpKind::Cancel | OpKind::Room => {}
        }
        let view = cqueue::buffer_select(flags).map(|buf| (buf, cqueue::buffer_more(flags)));
        let id = SocketId { slot: tag.slot, generation: tag.generation };
        if !self.sockets.is_current(id) {
            self.counters.stale += 1;
            return;
        }
        let ended = !cqueue::more(flags);
        if ended {
            self.sockets.end(id);
        }
        match tag.kind {
            OpKind::Receive => self.receive_completed(id, result, view, ended, events),
            OpKind::Send => self.send_ended(id, send_outcome(result), events),
            OpKind::Room => {
                let socket = self.sockets.current(id);
                socket.watches_room = false;
                if !socket.closing {
                    events.push(Event::Room(id));
                }
            }
            OpKind::HangUp => self.hang_up_completed(id, result, ended, events),
            _ => {}
        }
        self.retire(id);
    }

    fn receive_completed(
        &mut self,
        id: SocketId,
        result: i32,
        buffer: Option<(u16, bool)>,
        ended: bool,
        events: &mut Vec<Event>,
    ) {
        let socket = self.sockets.current(id);
        let (closing, direction) = (socket.closing, socket.direction);
        if let Some((buf, more)) = buffer {
            let view = self.mem.leases.group(direction).received(buf, u32::try_from(result).unwrap_or(0), more);
            if view.len == 0 || closing {
                self.mem.release(view.source);
            } else {
                events.push(Event::Received(id, view));
            }
        }
        if !ended {
            return;
        }
        let socket = self.sockets.current(id);
        let stopping = std::mem::replace(&mut socket.receive, Receive::Off);
        if closing {
            return;
        }
        let again = matches!(stopping, Receive::Armed | Receive::Stopping { again: true });
        match result {
            1.. => {
                let socket = self.sockets.current(id);
                socket.piecewise &= usize::try_from(result).is_ok_and(|len| len >= PIECE_LEAST);
                if again {
                    self.receive_is_due(id);
                }
            }
            0 => events.push(Event::Ended(id, None)),
            error => match Errno::from_raw(-error) {
                Errno::ENOBUFS if again => {
                    self.counters.buffers_exhausted += 1;
                    self.sockets.current(id).receive = Receive::Starved;
                    self.starved.of(direction).push_back(id);
                }
                Errno::ECANCELED if again => self.receive_is_due(id),
                Errno::ENOBUFS | Errno::ECANCELED => {}
                errno => events.push(Event::Ended(id, Some(errno))),
            },
        }
    }

    fn send_ended(&mut self, id: SocketId, outcome: Result<usize, Errno>, events: &mut Vec<Event>) {
        let socket = self.sockets.current(id);
        let closing = socket.closing;
        if let Some(op) = socket.send.take() {
            self.spare(op);
        }
        if !closing {
            events.push(Event::Sent(id, outcome));
        }
    }

    /// An operation has ended: gives its references back, and keeps it for the next one.
    fn spare(&mut self, mut op: Box<SendOp>) {
        op.unload(&mut self.mem);
        if self.spare_sends.len() < SPARE_SENDS {
            self.spare_sends.push(op);
        }
    }

    fn hang_up_completed(&mut self, id: SocketId, result: i32, ended: bool, events: &mut Vec<Event>) {
        let socket = self.sockets.current(id);
        socket.watched = !ended;
        if socket.closing || result < 0 {
            return;
        }
        let gone = i32::from(libc::POLLHUP | libc::POLLERR);
        if result & gone != 0 {
            events.push(Event::HungUp(id));
        } else if ended {
            self.watch_hang_up(id);
        }
    }

    /// Receives again for sockets that found no buffer, oldest first, as many as there is something for.
    fn feed_starved(&mut self) {
        for direction in [Direction::ToClient, Direction::ToAgent] {
            let mut credit = self.mem.leases.group(direction).credit();
            while credit > 0
                && let Some(id) = self.starved.of(direction).pop_front()
            {
                credit -= 1;
                self.arm_receive(id);
            }
        }
    }

    fn receive_is_due(&mut self, id: SocketId) {
        self.sockets.current(id).receive = Receive::Due;
        self.due.push(id);
    }

    fn arm_due(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        for id in due.drain(..) {
            if self.sockets.get(id).is_some_and(|socket| socket.receive == Receive::Due) {
                self.arm_receive(id);
            }
        }
        self.due = due;
    }

    fn arm_receive(&mut self, id: SocketId) {
        let socket = self.sockets.begin(id);
        socket.receive = Receive::Armed;
        let (group, target) = (buf_pool::group_id(socket.direction), types::Fixed(id.slot));
        let entry = if socket.piecewise {
            let receive = opcode::Recv::new(target, ptr::null_mut(), PIECE_MOST).buf_group(group);
            receive.build().flags(squeue::Flags::BUFFER_SELECT)
        } else {
            opcode::RecvMulti::new(target, group).build()
        };
        // SAFETY: the operation writes to buffers of its group only, which `mem` keeps for as long as the ring lives.
        unsafe { self.submit(entry, id.tag(OpKind::Receive)) };
    }

    fn arm_wake(&mut self) {
        let fd = types::Fd(self.waker.event().as_raw_fd());
        let entry = opcode::Read::new(fd, (&raw mut *self.wake_count).cast(), 8).build();
        let tag = OpTag { kind: OpKind::Wake, slot: 0, generation: 0 };
        // SAFETY: the boxed counter has 8 bytes, stays where it is until the ring is gone, and is read by nobody.
        unsafe { self.submit(entry, tag) };
    }

    fn cancel(&mut self, id: SocketId, kind: OpKind) {
        self.sockets.begin(id);
        let entry = opcode::AsyncCancel::new(id.tag(kind).encode()).build();
        // SAFETY: a cancellation reads no memory of ours.
        unsafe { self.submit(entry, id.tag(OpKind::Cancel)) };
    }

    /// Queues an operation, making room first when the queue is full. A kernel that takes nothing just now (it is out
    /// of memory, or its completions must be reaped first) gets it in a later turn.
    ///
    /// # Safety
    /// What the entry points to must stay valid until the operation's completion has been reaped.
    unsafe fn submit(&mut self, entry: squeue::Entry, tag: OpTag) {
        let entry = entry.user_data(tag.encode());
        self.postponed.push_back(entry);
        self.queue_postponed();
    }

    /// Queues what was postponed, in its order; `false` when the kernel does not let all of it in.
    fn queue_postponed(&mut self) -> bool {
        while let Some(entry) = self.postponed.front() {
            // SAFETY: what the entry points to stays valid until its completion, as the caller of `submit` promised.
            let mut queued = unsafe { self.ring.0.submission().push(entry) };
            if queued.is_err() {
                // A full queue empties by one call, unless the kernel refuses: `turn` sees why.
                self.counters.enters += 1;
                let _ = self.ring.0.submit();
                // SAFETY: the same promise of the caller of `submit` holds until the completion.
                queued = unsafe { self.ring.0.submission().push(entry) };
            }
            if queued.is_err() {
                return false;
            }
            self.postponed.pop_front();
        }
        true
    }

    /// Frees a closing socket's slot when nothing is in flight on it.
    fn retire(&mut self, id: SocketId) {
        if !self.sockets.is_idle_and_closing(id) {
            return;
        }
        discard_unread(self.sockets.current(id).fd.as_fd());
        // The slot is emptied before the descriptor is closed. A refusal leaves the old file in the slot until the
        // next socket replaces it, which costs a descriptor for that long and nothing else.
        let _ = self.ring.0.submitter().register_files_update(id.slot, &[-1]);
        self.sockets.vacate(id);
    }
}

/// What a send's completion says: bytes taken, or why the socket failed.
fn send_outcome(result: i32) -> Result<usize, Errno> {
    usize::try_from(result).or_else(|_| match Errno::from_raw(-result) {
        Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS | Errno::ENOMEM => Ok(0),
        errno => Err(errno),
    })
}
