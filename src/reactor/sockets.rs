//! The table of sockets: which slot is whose, and what is in flight on it.
//!
//! The asymmetry to know: [`Sockets::get`] answers for sockets that are open, [`Sockets::current`] also for those
//! that close and whose operations still end.

use std::os::fd::OwnedFd;

use super::op_tag::{OpKind, OpTag};
use super::send_op::SendOp;
use crate::buf::Direction;

/// A socket of one reactor. Never reused: the generation counts the uses of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl SocketId {
    /// The slot: a small number, for tables beside this one. Reused after [`super::Reactor::close`].
    pub fn slot(self) -> usize {
        self.slot as usize
    }

    pub(super) fn tag(self, kind: OpKind) -> OpTag {
        OpTag { kind, slot: self.slot, generation: self.generation }
    }
}

/// The receive of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receive {
    /// None, on purpose.
    Off,
    /// Wanted, and armed when the turn begins.
    Due,
    /// In flight.
    Armed,
    /// It found no buffer and waits for one.
    Starved,
    /// Being cancelled; `again` when it is wanted again already.
    Stopping {
        /// Arm it anew when the cancelled one has ended.
        again: bool,
    },
}

/// One socket.
#[derive(Debug)]
pub(super) struct Socket {
    /// Kept open beside its direct descriptor: what is handed over later needs it, and what io_uring has no operation
    /// for on every kernel.
    pub(super) fd: OwnedFd,
    pub(super) direction: Direction,
    pub(super) receive: Receive,
    /// Its receives end after one piece each, because it was stopped while it had more than its peer takes.
    pub(super) piecewise: bool,
    pub(super) send: Option<Box<SendOp>>,
    pub(super) watched: bool,
    pub(super) watches_room: bool,
    pub(super) closing: bool,
    in_flight: u32,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    socket: Option<Socket>,
}

/// All sockets of a reactor.
#[derive(Debug)]
pub(super) struct Sockets {
    slots: Vec<Slot>,
    free: Vec<u32>,
    capacity: u32,
}

impl Sockets {
    pub(super) fn new(capacity: u32) -> Sockets {
        Sockets { slots: Vec::new(), free: Vec::new(), capacity }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A slot nobody uses, if there is one.
    pub(super) fn vacant(&mut self) -> Option<u32> {
        if let Some(&slot) = self.free.last() {
            return Some(slot);
        }
        let slot = u32::try_from(self.slots.len()).ok().filter(|&slot| slot < self.capacity)?;
        self.slots.push(Slot::default());
        self.free.push(slot);
        Some(slot)
    }

    /// Puts a socket into the slot that [`Sockets::vacant`] just named.
    pub(super) fn occupy(&mut self, slot: u32, fd: OwnedFd, direction: Direction) -> SocketId {
        assert_eq!(self.free.pop(), Some(slot), "the slot named last");
        let entry = &mut self.slots[slot as usize];
        let receive = Receive::Off;
        let socket = Socket {
            fd,
            direction,
            receive,
            piecewise: false,
            send: None,
            watched: false,
            watches_room: false,
            closing: false,
            in_flight: 0,
        };
        entry.socket = Some(socket);
        SocketId { slot, generation: entry.generation }
    }

    /// Empties a slot and closes its descriptor.
    pub(super) fn vacate(&mut self, id: SocketId) {
        let entry = &mut self.slots[id.slot as usize];
        entry.socket = None;
        entry.generation = (entry.generation + 1) % OpTag::GENERATIONS;
        self.free.push(id.slot);
    }

    /// Whether the slot still serves this socket.
    pub(super) fn is_current(&self, id: SocketId) -> bool {
        let slot = self.slots.get(id.slot as usize);
        slot.is_some_and(|slot| slot.generation == id.generation && slot.socket.is_some())
    }

    /// The socket, unless it closes or is gone.
    pub(super) fn get(&mut self, id: SocketId) -> Option<&mut Socket> {
        if !self.is_current(id) {
            return None;
        }
        self.slots[id.slot as usize].socket.as_mut().filter(|socket| !socket.closing)
    }

    /// The socket, which is known to be there.
    pub(super) fn current(&mut self, id: SocketId) -> &mut Socket {
        self.slots[id.slot as usize].socket.as_mut().expect("the caller checked")
    }

    /// One more operation is in flight.
    pub(super) fn begin(&mut self, id: SocketId) -> &mut Socket {
        let socket = self.current(id);
        socket.in_flight += 1;
        socket
    }

    /// One has ended.
    pub(super) fn end(&mut self, id: SocketId) {
        let socket = self.current(id);
        assert!(socket.in_flight > 0, "an operation ended that was not begun");
        socket.in_flight -= 1;
    }

    pub(super) fn is_idle_and_closing(&self, id: SocketId) -> bool {
        let socket = self.slots[id.slot as usize].socket.as_ref();
        self.is_current(id) && socket.is_some_and(|socket| socket.closing && socket.in_flight == 0)
    }
}
