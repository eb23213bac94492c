//! A plane between one agent and its clients: receive buffers of plain memory, and sends that end as the caller says.
//!
//! It drives the plane in the order a shard does, and allocates nothing once its lists have grown. The allocation test
//! (`tests/allocations/`) drives the same rig. The asymmetry to know: [`Rig::load`] plays the kernel and is not part
//! of what is measured, [`Rig::turn`] is.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use ringway::buf::{BufView, ChunkPool, Direction, Leases, Memory, Source};
use ringway::limits::{AGENT_FRAME_DEFAULT, SESSION_BUFFER, STREAM_FRAME_MAX, TOTAL_BUFFER};
use ringway::relay::{Effect, LinkId, Peer, Plane, Sent, SessionId, Tuning};
use ringway::wire::cc2;
use ringway::wire::hyper::{FrameHeader, StreamSeq};

/// Bytes of one receive buffer, and the most that are loaded at once.
pub(crate) const BATCH: usize = 64 * 1024;
/// The bounds a daemon has without flags.
pub(crate) const TUNING: Tuning = Tuning {
    agent_frame_max: AGENT_FRAME_DEFAULT,
    stream_frame_max: STREAM_FRAME_MAX,
    session_buffer: SESSION_BUFFER,
    total_buffer: TOTAL_BUFFER,
};

/// Which protocol the clients speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    One,
    Two,
}

impl Protocol {
    /// A frame as a client sends it.
    pub(crate) fn input(self, seq: StreamSeq, payload: usize) -> Vec<u8> {
        match self {
            Protocol::One => output(seq, payload),
            Protocol::Two => cc2::encode(cc2::Kind::Stream(cc2::Stream::Stdin), &vec![0x2e; payload]),
        }
    }
}

/// A frame as an agent sends it.
pub(crate) fn output(seq: StreamSeq, payload: usize) -> Vec<u8> {
    let len = u32::try_from(payload).expect("a short frame");
    let mut frame = FrameHeader::for_payload(seq, len).encode().to_vec();
    frame.resize(frame.len() + payload, 0x2e);
    frame
}

/// The sequence of the session with this index, and of nobody else.
pub(crate) fn seq(session: usize) -> StreamSeq {
    StreamSeq(1 + 2 * session as u64)
}

/// Frames of an agent for its sessions in turn, up to `bytes` in all and at least one. Returns their number too.
pub(crate) fn outputs(sessions: usize, payload: usize, bytes: usize) -> (Vec<u8>, usize) {
    let frames = (bytes / (payload + 12)).max(1);
    ((0..frames).flat_map(|frame| output(seq(frame % sessions), payload)).collect(), frames)
}

#[derive(Debug)]
struct Buffer {
    data: Box<[u8]>,
    refs: u32,
}

/// Receive buffers of both directions.
#[derive(Debug)]
pub(crate) struct Buffers([Vec<Buffer>; 2]);

impl Buffers {
    /// So many buffers for each direction.
    pub(crate) fn new(count: usize) -> Buffers {
        let buffer = || Buffer { data: vec![0; BATCH].into_boxed_slice(), refs: 0 };
        Buffers([(); 2].map(|()| (0..count).map(|_| buffer()).collect()))
    }

    fn of(&mut self, direction: Direction) -> &mut Vec<Buffer> {
        &mut self.0[direction as usize]
    }

    /// Puts bytes into a free buffer. The reference is the caller's.
    pub(crate) fn fill(&mut self, direction: Direction, bytes: &[u8]) -> BufView {
        let buffers = self.of(direction);
        let free = buffers.iter().position(|buffer| buffer.refs == 0).expect("a buffer that nobody holds");
        buffers[free].data[..bytes.len()].copy_from_slice(bytes);
        buffers[free].refs = 1;
        let (free, len) = (u16::try_from(free).expect("few"), u32::try_from(bytes.len()).expect("one buffer"));
        BufView { source: Source::Lease(direction, free), off: 0, len }
    }
}

impl Leases for Buffers {
    fn bytes(&self, direction: Direction, buf: u16, range: Range<usize>) -> &[u8] {
        &self.0[direction as usize][usize::from(buf)].data[range]
    }

    fn bytes_mut(&mut self, direction: Direction, buf: u16, range: Range<usize>) -> &mut [u8] {
        &mut self.of(direction)[usize::from(buf)].data[range]
    }

    /// As where many peers are slow: what waits is copied.
    fn is_scarce(&self, _: Direction) -> bool {
        true
    }

    fn retain(&mut self, direction: Direction, buf: u16) {
        self.of(direction)[usize::from(buf)].refs += 1;
    }

    fn release(&mut self, direction: Direction, buf: u16) {
        let buffer = &mut self.of(direction)[usize::from(buf)];
        buffer.refs = buffer.refs.checked_sub(1).expect("released by somebody who holds it");
    }
}

/// A send in flight. It holds a reference to each source.
#[derive(Debug)]
struct Sending {
    peer: Peer,
    bytes: usize,
    sources: Vec<Source>,
}

/// A plane with one link and its sessions.
#[derive(Debug)]
pub(crate) struct Rig {
    plane: Plane,
    pub(crate) mem: Memory<Buffers>,
    link: LinkId,
    sessions: Vec<SessionId>,
    arrived: Vec<(Peer, BufView)>,
    sends: VecDeque<Sending>,
    paused: HashSet<Peer>,
    /// Peers whose last send came short.
    blocked: Vec<Peer>,
    effects: Vec<Effect>,
    spare_sources: Vec<Vec<Source>>,
}

impl Rig {
    pub(crate) fn new(sessions: usize, protocol: Protocol) -> Rig {
        let mut plane = Plane::new(TUNING);
        let mut mem = Memory { leases: Buffers::new(4 * sessions.max(8)), chunks: ChunkPool::default() };
        let link = plane.open_link(1);
        let sessions = (0..sessions).map(|index| match protocol {
            Protocol::One => plane.open_session(link, seq(index), 1),
            Protocol::Two => {
                let id = plane.open_token(link, seq(index));
                assert!(plane.connect_shim(&mut mem, id, index as u64, &[]), "nobody has the token");
                plane.started(&mut mem, id, false);
                id
            }
        });
        let sessions = sessions.collect();
        let mut rig = Rig {
            plane,
            mem,
            link,
            sessions,
            arrived: Vec::new(),
            sends: VecDeque::new(),
            paused: HashSet::new(),
            blocked: Vec::new(),
            effects: Vec::new(),
            spare_sources: Vec::new(),
        };
        rig.turn(|_| unreachable!("nothing was sent"));
        rig
    }

    pub(crate) fn agent(&self) -> Peer {
        Peer::Agent(self.link)
    }

    pub(crate) fn client(&self, index: usize) -> Peer {
        Peer::Client(self.sessions[index])
    }

    /// Bytes of a peer arrive; `false` when the plane does not read it.
    pub(crate) fn load(&mut self, peer: Peer, bytes: &[u8]) -> bool {
        let direction = if matches!(peer, Peer::Agent(_)) { Direction::ToClient } else { Direction::ToAgent };
        let reads = !self.paused.contains(&peer);
        if reads {
            let view = self.mem.leases.fill(direction, bytes);
            self.arrived.push((peer, view));
        }
        reads
    }

    /// One turn. `takes` is told how many bytes a send has, and says how many of them its peer takes.
    pub(crate) fn turn(&mut self, takes: impl Fn(usize) -> usize) {
        for _ in 0..self.sends.len() {
            let Some(send) = self.sends.pop_front() else { break };
            let taken = takes(send.bytes);
            self.sent(send, taken);
        }
        for index in 0..self.arrived.len() {
            let (peer, view) = self.arrived[index];
            self.plane.received(&mut self.mem, peer, view);
            self.mem.release(view.source);
            self.carry_out();
        }
        self.arrived.clear();
        self.plane.flush(&mut self.mem);
        self.carry_out();
        self.plane.clear_views();
        self.plane.relieve(&mut self.mem);
        assert!(!self.plane.carry_out_verdicts(&mut self.mem), "no shim is gone");
    }

    /// Turns until nothing is in flight, with peers that take everything.
    pub(crate) fn turns(&mut self) {
        self.blocked.drain(..).for_each(|peer| self.plane.room(peer));
        self.carry_out();
        self.turn(|bytes| bytes);
        while !self.sends.is_empty() {
            self.turn(|bytes| bytes);
        }
    }

    fn sent(&mut self, mut send: Sending, taken: usize) {
        send.sources.drain(..).for_each(|source| self.mem.release(source));
        self.spare_sources.push(send.sources);
        self.plane.sent(&mut self.mem, send.peer, Sent::Taken(taken));
        self.carry_out();
    }

    fn carry_out(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        self.plane.take_effects(&mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Send { peer, views, .. } => self.send(peer, views),
                Effect::WatchRoom(peer) => self.blocked.push(peer),
                Effect::Pause(peer) => assert!(self.paused.insert(peer)),
                Effect::Resume(peer) => assert!(self.paused.remove(&peer)),
                Effect::Report(_) | Effect::ReceiveLess(_) => {}
                other => unreachable!("{other:?} of peers that do no wrong"),
            }
        }
        self.effects = effects;
    }

    fn send(&mut self, peer: Peer, views: Range<usize>) {
        let mut sources = self.spare_sources.pop().unwrap_or_default();
        let mut bytes = 0;
        for view in self.plane.views(views) {
            bytes += view.len as usize;
            if sources.last() != Some(&view.source) {
                self.mem.retain(view.source);
                sources.push(view.source);
            }
        }
        self.sends.push_back(Sending { peer, bytes, sources });
    }
}
