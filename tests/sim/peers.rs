//! The peers of the simulated shard and the kernel's side of their sockets.
//!
//! Data and small questions; what happens is in `kernel` and `chaos`. The asymmetry to know: an entry is never
//! reused, unlike the plane's identifiers, so a mix-up of two peers with one identifier shows.

use std::collections::VecDeque;

use ringway::buf::BufView;
use ringway::relay::{LinkId, SessionId};
use ringway::wire::SlowReader;

use crate::kernel::UNIX_PIECE;
use crate::model::{Owed, Reader};
use crate::shim::Shim;

/// A peer of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Agent(usize),
    Client(usize),
}

/// A completion that waits to be reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Received bytes, with a reference to them.
    Bytes(BufView),
    /// The peer sends no more.
    End,
    /// The socket failed.
    Reset,
    /// A watched peer closed.
    HangUp,
    /// There is room for a send, or the peer is gone.
    Room,
}

/// A send in flight. It holds a reference to each view.
#[derive(Debug)]
pub(crate) struct SendOp {
    pub(crate) views: Vec<BufView>,
    /// Whose bytes, in order.
    pub(crate) shares: Vec<(usize, usize)>,
    /// They are answers to a shim, not output.
    pub(crate) replies: bool,
    pub(crate) total: usize,
    /// The plane says that nothing waits for its end.
    pub(crate) is_last: bool,
    /// Bytes the socket holds or the peer has read.
    pub(crate) moved: usize,
    /// Its completion is there; `false`: the peer was gone.
    pub(crate) done: Option<bool>,
}

/// One socket of the shard, and the peer's end of it.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) unix: bool,
    /// Written by the peer, not received yet.
    pub(crate) inbox: Vec<u8>,
    /// Written by the peer, all of it.
    pub(crate) half: Vec<u8>,
    /// Bytes sent that the peer has not read.
    pub(crate) unread: usize,
    pub(crate) room: usize,
    pub(crate) reads: bool,
    /// The peer sends no more.
    pub(crate) shut: bool,
    /// The peer is gone.
    pub(crate) closed: bool,
    /// It left something unread behind: the socket fails after the last byte.
    pub(crate) reset: bool,
    /// Our end.
    pub(crate) open: bool,
    pub(crate) paused: bool,
    /// Receives that a pause is too late for.
    pub(crate) late: usize,
    /// Waits for a receive buffer.
    pub(crate) starved: bool,
    /// Bytes of it have been received: one that says nothing need not be stopped.
    pub(crate) heard: bool,
    /// Its end has been received.
    pub(crate) ended: bool,
    pub(crate) watched: bool,
    /// A send failed: it takes nothing any more.
    pub(crate) refuses: bool,
    /// To be told when there is room.
    pub(crate) watches_room: bool,
    pub(crate) arrived: VecDeque<Arrival>,
    pub(crate) send: Option<SendOp>,
}

impl Socket {
    pub(crate) fn new(unix: bool, room: usize) -> Socket {
        Socket {
            unix,
            inbox: Vec::new(),
            half: Vec::new(),
            unread: 0,
            room,
            reads: true,
            shut: false,
            closed: false,
            reset: false,
            open: true,
            paused: false,
            late: 0,
            starved: false,
            heard: false,
            ended: false,
            watched: false,
            refuses: false,
            watches_room: false,
            arrived: VecDeque::new(),
            send: None,
        }
    }

    /// Whether a receive is armed.
    pub(crate) fn receives(&self) -> bool {
        self.open && !self.ended && !self.starved && (!self.paused || self.late > 0)
    }

    /// Whether a completion can be reaped.
    pub(crate) fn has_completion(&self) -> bool {
        self.open && (!self.arrived.is_empty() || self.send.as_ref().is_some_and(|send| send.done.is_some()))
    }

    pub(crate) fn is_trying(&self) -> bool {
        self.open && self.send.is_some()
    }

    /// Whether its last send came short and it has not been told of room since, or failed.
    pub(crate) fn is_blocked(&self) -> bool {
        self.open && (self.refuses || self.watches_room || self.arrived.contains(&Arrival::Room))
    }

    /// Whether a send would be taken, at least in part.
    pub(crate) fn has_room(&self) -> bool {
        self.closed || self.room - self.unread >= if self.unix { UNIX_PIECE } else { 1 }
    }
}

/// One VM's stream channel.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) socket: Socket,
    pub(crate) vm: u64,
    pub(crate) link: LinkId,
    /// The model's reading of its bytes, and whose frame is in progress.
    pub(crate) reader: Reader,
    pub(crate) current: Option<usize>,
    pub(crate) clients: Vec<usize>,
    /// Client of whose frame it has taken a part.
    pub(crate) torn: Option<usize>,
    /// It has reason to be closed.
    pub(crate) doomed: bool,
    pub(crate) reported_blocked: bool,
    pub(crate) reported_ended: bool,
}

/// One session with its client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: Socket,
    pub(crate) base: u64,
    pub(crate) streams: u64,
    pub(crate) agent: usize,
    pub(crate) session: SessionId,
    /// What only sessions with a token have.
    pub(crate) shim: Option<Box<Shim>>,
    pub(crate) reader: Reader,
    pub(crate) to_client: Owed,
    pub(crate) to_agent: Owed,
    /// It is sent output.
    pub(crate) hears: bool,
    /// What it sends goes to the agent.
    pub(crate) speaks: bool,
    /// Its output goes to a file.
    pub(crate) spilling: bool,
    pub(crate) slow_reader: SlowReader,
    /// It has reason to be closed.
    pub(crate) doomed: bool,
    pub(crate) reported_ended: bool,
}
