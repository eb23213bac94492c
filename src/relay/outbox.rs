//! What one peer is owed, in order: whole frames as pieces of receive buffers and of chunks.
//!
//! A frame is a run of pieces whose last one is marked; frames leave whole, up to [`SEND_MAX`] bytes a send. The one
//! asymmetry to know: pieces of receive buffers may stay only while their send is tried without waiting; before the
//! turn ends without that, [`Outbox::settle`] copies them into chunks. The list's nodes live in an [`Arena`] that all
//! outboxes of a shard share, so that an idle session holds a few words and a busy one allocates nothing per frame.

use super::frames::{Cut, Face, Piece};
use crate::buf::{BufView, ChunkId, ChunkPool, Leases, Memory, Source};
use crate::limits::{CHUNK_LEN, COPY_MAX, SEND_MAX, SEND_PIECES_MAX};

/// No node.
const NONE: u32 = u32::MAX;
/// [`SEND_MAX`] in the type of a view's length.
#[expect(clippy::cast_possible_truncation, reason = "32 KiB")]
const SEND_MAX_U32: u32 = SEND_MAX as u32;
/// [`CHUNK_LEN`] likewise.
#[expect(clippy::cast_possible_truncation, reason = "32 KiB")]
const CHUNK_LEN_U32: u32 = CHUNK_LEN as u32;

#[derive(Debug, Clone, Copy)]
struct Node {
    view: BufView,
    /// A frame ends with this piece.
    ends: bool,
    next: u32,
}

/// The nodes of all outboxes of one shard.
#[derive(Debug, Default)]
pub struct Arena {
    nodes: Vec<Node>,
    free: Vec<u32>,
}

impl Arena {
    fn add(&mut self, view: BufView, ends: bool) -> u32 {
        let node = Node { view, ends, next: NONE };
        match self.free.pop() {
            Some(index) => {
                self.nodes[index as usize] = node;
                index
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("fewer nodes than bytes of memory")
            }
        }
    }

    fn node(&mut self, index: u32) -> &mut Node {
        &mut self.nodes[index as usize]
    }

    /// Gives its memory back when no node is in use.
    pub fn rest(&mut self) {
        if self.in_use() == 0 {
            *self = Arena::default();
        }
    }

    /// Nodes in use.
    pub fn in_use(&self) -> usize {
        self.nodes.len() - self.free.len()
    }
}

/// Owned memory that small pieces are copied into, one behind the other.
#[derive(Debug, Clone, Copy)]
struct Run {
    chunk: ChunkId,
    fill: u32,
}

/// Frames owed to one peer. Dropping one with bytes in it leaks them: [`Outbox::clear`] first.
#[derive(Debug)]
pub struct Outbox {
    head: u32,
    tail: u32,
    /// First piece of the frame that has begun and not ended.
    open: u32,
    /// No piece before this one is of a receive buffer.
    unsettled: u32,
    run: Option<Run>,
    bytes: usize,
    open_bytes: usize,
    /// At least the bytes from the last piece that begins a frame to the end: what [`Outbox::plan`] does not divide.
    last_unit: u32,
}

impl Default for Outbox {
    fn default() -> Outbox {
        Outbox { head: NONE, tail: NONE, open: NONE, unsettled: NONE, run: None, bytes: 0, open_bytes: 0, last_unit: 0 }
    }
}

impl Outbox {
    /// Bytes owed, those of a frame that has not ended included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of whole frames owed.
    pub fn ready(&self) -> usize {
        self.bytes - self.open_bytes
    }

    /// Whether some of it is in receive buffers.
    pub fn has_leases(&self) -> bool {
        self.unsettled != NONE
    }

    /// Whether a frame has begun and not ended: nothing else may be added before its end.
    pub fn is_open(&self) -> bool {
        self.open != NONE
    }

    /// Adds a piece of received bytes; `ends` says that a frame ends with it. Small ones are copied.
    pub fn push<L: Leases>(&mut self, arena: &mut Arena, mem: &mut Memory<L>, view: BufView, ends: bool) {
        if view.len == 0 && !ends {
            return;
        }
        if self.extend_tail(arena, view, ends) {
            return;
        }
        if view.len as usize <= COPY_MAX {
            match self.claim_behind_tail(arena, view.len, ends) {
                Some((chunk, at)) => mem.copy_to_chunk(chunk, at, view),
                None => {
                    let copy = self.copy_to_run(mem, view);
                    self.append(arena, copy, ends);
                }
            }
            return;
        }
        mem.retain(view.source);
        self.append(arena, view, ends);
    }

    /// Adds bytes that are in nobody's memory yet: a header of ours.
    pub fn push_bytes<L: Leases>(&mut self, arena: &mut Arena, mem: &mut Memory<L>, bytes: &[u8], ends: bool) {
        let len = u32::try_from(bytes.len()).expect("headers are short");
        if let Some((chunk, at)) = self.claim_behind_tail(arena, len, ends) {
            return mem.chunks.write(chunk, at, bytes);
        }
        let run = self.room(mem, len);
        mem.chunks.write(run.chunk, run.fill, bytes);
        let view = self.fill_run(mem, len);
        self.append(arena, view, ends);
    }

    /// Begins to send a received frame of `payload` bytes on, in frames of at most `max` bytes with their headers.
    pub fn begin_frame<L: Leases>(
        &mut self,
        arena: &mut Arena,
        mem: &mut Memory<L>,
        face: Face,
        payload: u32,
        max: u32,
    ) -> Cut {
        let mut cut = Cut::new(face, payload);
        self.push_piece(arena, mem, cut.begin(max), None);
        cut
    }

    /// Sends on more of its payload.
    pub fn continue_frame<L: Leases>(
        &mut self,
        arena: &mut Arena,
        mem: &mut Memory<L>,
        cut: &mut Cut,
        payload: BufView,
        max: u32,
    ) {
        let mut rest = payload;
        while let Some(piece) = cut.next(rest.len, max) {
            self.push_piece(arena, mem, piece, Some(rest));
            if let Piece::Payload { len, .. } = piece {
                rest = rest.skip(len);
            }
        }
    }

    fn push_piece<L: Leases>(
        &mut self,
        arena: &mut Arena,
        mem: &mut Memory<L>,
        piece: Piece,
        payload: Option<BufView>,
    ) {
        match (piece, payload) {
            (Piece::Header { header, last }, _) => self.push_bytes(arena, mem, &header, last),
            (Piece::Payload { len, last }, Some(payload)) => self.push(arena, mem, payload.first(len), last),
            (Piece::Payload { .. }, None) => unreachable!("a cut begins with a header"),
        }
    }

    /// Joins a view to the last piece where it is its continuation; the frames that a send cannot divide fit one.
    fn extend_tail(&mut self, arena: &mut Arena, view: BufView, ends: bool) -> bool {
        if self.tail == NONE {
            return false;
        }
        let tail = arena.node(self.tail);
        let adjacent = tail.view.source == view.source && tail.view.end() == view.off;
        let joinable = if tail.ends { ends && self.last_unit + view.len <= SEND_MAX_U32 } else { true };
        if !(adjacent && joinable) {
            return false;
        }
        tail.view.len += view.len;
        tail.ends = ends;
        self.last_unit += view.len;
        self.account(view.len, ends);
        true
    }

    /// Copies a whole frame, in two parts, behind the last piece where that is the end of the run and of a frame.
    /// `false`, and nothing done, where it is not.
    pub fn push_short(&mut self, arena: &mut Arena, chunks: &mut ChunkPool, head: &[u8], rest: &[u8]) -> bool {
        let Ok(len) = u32::try_from(head.len() + rest.len()) else { return false };
        if self.open != NONE {
            return false;
        }
        let Some((chunk, at)) = self.claim_behind_tail(arena, len, true) else { return false };
        let at = at as usize;
        let data = &mut chunks.bytes_mut(chunk)[at..at + head.len() + rest.len()];
        data[..head.len()].copy_from_slice(head);
        data[head.len()..].copy_from_slice(rest);
        true
    }

    /// Makes the last piece `len` bytes longer where it is the end of the run, which has room: what short pieces mostly
    /// find. Returns where in which chunk the caller has to write them.
    fn claim_behind_tail(&mut self, arena: &mut Arena, len: u32, ends: bool) -> Option<(ChunkId, u32)> {
        let Run { chunk, fill } = self.run?;
        let place = BufView { source: Source::Chunk(chunk), off: fill, len };
        if place.end() > CHUNK_LEN_U32 || !self.extend_tail(arena, place, ends) {
            return None;
        }
        self.run = Some(Run { chunk, fill: place.end() });
        Some((chunk, fill))
    }

    fn append(&mut self, arena: &mut Arena, view: BufView, ends: bool) {
        let index = arena.add(view, ends);
        if self.tail == NONE {
            self.head = index;
        } else {
            arena.node(self.tail).next = index;
        }
        self.tail = index;
        self.last_unit = view.len + if self.open == NONE { 0 } else { self.last_unit };
        if matches!(view.source, Source::Lease(..)) && self.unsettled == NONE {
            self.unsettled = index;
        }
        if !ends && self.open == NONE {
            self.open = index;
        }
        self.account(view.len, ends);
    }

    fn account(&mut self, len: u32, ends: bool) {
        self.bytes += len as usize;
        if ends {
            self.open = NONE;
            self.open_bytes = 0;
        } else {
            self.open_bytes += len as usize;
        }
    }

    /// The run, with room for `len` more bytes.
    fn room<L: Leases>(&mut self, mem: &mut Memory<L>, len: u32) -> Run {
        if let Some(run) = self.run {
            if run.fill + len <= CHUNK_LEN_U32 {
                return run;
            }
            mem.chunks.release(run.chunk);
        }
        let run = Run { chunk: mem.chunks.take(), fill: 0 };
        self.run = Some(run);
        run
    }

    /// Makes the next `len` bytes of the run, just written, a view with a reference of its own.
    fn fill_run<L: Leases>(&mut self, mem: &mut Memory<L>, len: u32) -> BufView {
        let run = self.run.as_mut().expect("room made one");
        let view = BufView { source: Source::Chunk(run.chunk), off: run.fill, len };
        run.fill += len;
        mem.retain(view.source);
        view
    }

    fn copy_to_run<L: Leases>(&mut self, mem: &mut Memory<L>, view: BufView) -> BufView {
        let run = self.room(mem, view.len);
        mem.copy_to_chunk(run.chunk, run.fill, view);
        self.fill_run(mem, view.len)
    }

    /// Lists the pieces of the next send: whole frames from the front, at most `max` bytes (one frame at least)
    /// and [`SEND_PIECES_MAX`] pieces. Returns the number of bytes; 0 when no frame is whole.
    pub fn plan(&self, arena: &Arena, max: usize, out: &mut Vec<BufView>) -> usize {
        let begin = out.len();
        let (mut bytes, mut frame_bytes, mut frame_begin) = (0, 0, begin);
        let mut index = self.head;
        while index != NONE && index != self.open && out.len() - begin < SEND_PIECES_MAX {
            let node = &arena.nodes[index as usize];
            out.push(node.view);
            frame_bytes += node.view.len as usize;
            if node.ends {
                if bytes > 0 && bytes + frame_bytes > max {
                    break;
                }
                bytes += frame_bytes;
                (frame_bytes, frame_begin) = (0, out.len());
            }
            index = node.next;
        }
        out.truncate(frame_begin);
        bytes
    }

    /// Forgets the first `n` bytes: the kernel took them.
    ///
    /// # Panics
    /// When fewer are owed; that is a fault of ours.
    pub fn consume<L: Leases>(&mut self, arena: &mut Arena, mem: &mut Memory<L>, n: usize) {
        assert!(n <= self.ready(), "consumed {n} of {} bytes", self.ready());
        self.bytes -= n;
        let mut left = n;
        while left > 0 {
            let node = arena.node(self.head);
            let len = node.view.len as usize;
            if left < len {
                node.view = node.view.skip(u32::try_from(left).expect("less than a view's length"));
                break;
            }
            left -= len;
            self.drop_head(arena, mem);
        }
        self.drop_idle_run(mem);
    }

    fn drop_head<L: Leases>(&mut self, arena: &mut Arena, mem: &mut Memory<L>) {
        let index = self.head;
        let Node { view, next, .. } = *arena.node(index);
        mem.release(view.source);
        arena.free.push(index);
        self.head = next;
        if self.unsettled == index {
            self.unsettled = next;
        }
        if next == NONE {
            self.tail = NONE;
        }
    }

    fn drop_idle_run<L: Leases>(&mut self, mem: &mut Memory<L>) {
        if self.head == NONE
            && let Some(run) = self.run.take()
        {
            mem.chunks.release(run.chunk);
        }
    }

    /// Copies every piece of a receive buffer into chunks. Afterwards the outbox may wait as long as it has to.
    pub fn settle<L: Leases>(&mut self, arena: &mut Arena, mem: &mut Memory<L>) {
        self.settle_from(arena, mem, self.unsettled);
        self.unsettled = NONE;
    }

    /// Copies the frame that has not ended, so that what is whole can leave from where it is.
    pub fn settle_open<L: Leases>(&mut self, arena: &mut Arena, mem: &mut Memory<L>) {
        self.settle_from(arena, mem, self.open);
        if self.unsettled == self.open {
            self.unsettled = NONE;
        }
    }

    fn settle_from<L: Leases>(&mut self, arena: &mut Arena, mem: &mut Memory<L>, from: u32) {
        let mut index = from;
        while index != NONE {
            let Node { view, ends, next } = *arena.node(index);
            if matches!(view.source, Source::Lease(..)) {
                self.settle_one(arena, mem, index, view, ends, next);
            }
            index = next;
        }
    }

    /// Moves one piece to the run: what fits behind the run's fill, the rest to a new chunk and a node of its own.
    fn settle_one<L: Leases>(
        &mut self,
        arena: &mut Arena,
        mem: &mut Memory<L>,
        index: u32,
        view: BufView,
        ends: bool,
        next: u32,
    ) {
        let room = self.run.map_or(0, |run| CHUNK_LEN_U32 - run.fill);
        if room == 0 || room >= view.len {
            let copy = self.copy_to_run(mem, view);
            arena.node(index).view = copy;
        } else {
            let first = self.copy_to_run(mem, view.first(room));
            let rest = self.copy_to_run(mem, view.skip(room));
            let added = arena.add(rest, ends);
            arena.node(added).next = next;
            *arena.node(index) = Node { view: first, ends: false, next: added };
            if self.tail == index {
                self.tail = added;
            }
        }
        mem.release(view.source);
    }

    /// Takes whole frames away from the front: at most `max` bytes (what a send cannot divide at least) and
    /// [`SEND_PIECES_MAX`] pieces. None of this may be in receive buffers.
    ///
    /// # Panics
    /// When some is; that is a fault of ours.
    pub fn split<L: Leases>(&mut self, arena: &mut Arena, mem: &mut Memory<L>, max: usize) -> Outbox {
        assert!(!self.has_leases(), "only what is settled is taken apart");
        let (mut bytes, mut unit, mut pieces) = (0, 0, 0);
        let (mut last, mut index) = (NONE, self.head);
        while index != NONE && index != self.open && pieces < SEND_PIECES_MAX {
            let Node { view, ends, next } = *arena.node(index);
            unit += view.len as usize;
            pieces += 1;
            if ends {
                if bytes > 0 && bytes + unit > max {
                    break;
                }
                bytes += unit;
                (unit, last) = (0, index);
            }
            index = next;
        }
        if last == NONE {
            return Outbox::default();
        }
        let rest = std::mem::replace(&mut arena.node(last).next, NONE);
        let front = Outbox { head: self.head, tail: last, bytes, last_unit: SEND_MAX_U32, ..Outbox::default() };
        self.head = rest;
        self.bytes -= bytes;
        if rest == NONE {
            self.tail = NONE;
        }
        self.drop_idle_run(mem);
        front
    }

    /// Puts all of `other` behind what is owed.
    ///
    /// # Panics
    /// When a frame has begun here and not ended, or is in receive buffers; that is a fault of ours.
    pub fn join<L: Leases>(&mut self, arena: &mut Arena, mem: &mut Memory<L>, other: Outbox) {
        assert!(!self.is_open() && !self.has_leases(), "only what is whole and settled is joined");
        if other.head == NONE {
            return;
        }
        if let Some(run) = self.run.take() {
            mem.chunks.release(run.chunk);
        }
        if self.head == NONE {
            *self = other;
            return;
        }
        arena.node(self.tail).next = other.head;
        *self = Outbox { head: self.head, bytes: self.bytes + other.bytes, ..other };
    }

    /// Adds a piece that is in a chunk; the caller's reference to it becomes the outbox's.
    pub fn push_owned(&mut self, arena: &mut Arena, view: BufView, ends: bool) {
        self.append(arena, view, ends);
    }

    /// Forgets a frame that has begun and not ended: its sender is gone.
    pub fn drop_open<L: Leases>(&mut self, arena: &mut Arena, mem: &mut Memory<L>) {
        if self.open == NONE {
            return;
        }
        let mut last = NONE;
        let mut index = self.head;
        while index != self.open {
            last = index;
            index = arena.node(index).next;
        }
        while index != NONE {
            let Node { view, next, .. } = *arena.node(index);
            mem.release(view.source);
            arena.free.push(index);
            if self.unsettled == index {
                self.unsettled = NONE;
            }
            index = next;
        }
        self.tail = last;
        if last == NONE {
            self.head = NONE;
        } else {
            arena.node(last).next = NONE;
        }
        self.bytes -= self.open_bytes;
        self.last_unit = SEND_MAX_U32;
        (self.open, self.open_bytes) = (NONE, 0);
        self.drop_idle_run(mem);
    }

    /// Forgets everything.
    pub fn clear<L: Leases>(&mut self, arena: &mut Arena, mem: &mut Memory<L>) {
        while self.head != NONE {
            self.drop_head(arena, mem);
        }
        self.drop_idle_run(mem);
        *self = Outbox::default();
    }

    /// Checks that the counts are those of the list, that settled means settled and that every frame fits a send.
    /// Returns the number of nodes.
    ///
    /// # Panics
    /// When it is not so; that is a fault of ours.
    pub fn check(&self, arena: &Arena) -> usize {
        let (mut bytes, mut open_bytes, mut index, mut last) = (0, 0, self.head, NONE);
        let (mut open, mut unsettled, mut nodes, mut unit) = (false, false, 0, 0);
        while index != NONE {
            let node = &arena.nodes[index as usize];
            open |= index == self.open;
            unsettled |= index == self.unsettled;
            bytes += node.view.len as usize;
            open_bytes += if open { node.view.len as usize } else { 0 };
            unit += node.view.len as usize;
            assert!(unit <= SEND_MAX, "{unit} bytes that no send divides");
            unit = if node.ends { 0 } else { unit };
            assert!(unsettled || matches!(node.view.source, Source::Chunk(_)), "a lease among the settled");
            (last, index) = (index, node.next);
            nodes += 1;
        }
        assert_eq!((bytes, open_bytes, last), (self.bytes, self.open_bytes, self.tail));
        assert_eq!(open, self.open != NONE);
        nodes
    }
}
