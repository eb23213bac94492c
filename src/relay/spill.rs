//! A slow client's output as a queue in three parts: the oldest in memory, then a file, then the newest in memory.
//!
//! `Spill` is the file's part and the oldest; the newest stays in the session's own outbox, so that what arrives is
//! owed as always. It says what to do with the file ([`SpillOp`]) and is told how that ended ([`Spilled`]); one write
//! and one read are in flight at most. The asymmetry to know: what is written stays in memory until all of it is in the
//! file, so a write that fails loses nothing; what is read is parsed into frames again, since these leave whole.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::frames::Head;
use super::outbox::{Arena, Outbox};
use crate::buf::{BufView, ChunkId, Leases, Memory, Source};
use crate::limits::{CHUNK_LEN, SEND_MAX, SPILL_HEAD, SPILL_PUNCH, SPILL_SEGMENT};
use crate::wire::cc2;
use crate::wire::hyper::{FRAME_HEADER_LEN, FrameHeader};

/// What to do with a session's spill file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpillOp {
    /// Make it.
    Open,
    /// Write these pieces of [`Plane::views`](super::Plane::views) at an offset.
    Write {
        /// Which views.
        views: Range<usize>,
        /// Where to.
        offset: u64,
    },
    /// Fill these pieces with what is at an offset.
    Read {
        /// Which views.
        views: Range<usize>,
        /// Where from.
        offset: u64,
    },
    /// Give this part of its space back.
    Punch {
        /// Where it begins.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Close it, whatever is in flight; nothing may be reported of it any more.
    Close,
}

/// How that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spilled {
    /// It is there, or cannot be.
    Opened(Result<(), SpillFault>),
    /// Bytes written; may be fewer than asked.
    Wrote(Result<usize, SpillFault>),
    /// Bytes read; may be fewer than asked.
    Read(Result<usize, SpillFault>),
    /// The space is free, or is not.
    Punched(Result<(), SpillFault>),
}

/// What the kernel said of a spill file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpillFault {
    /// There is no space left, or no more allowed.
    pub full: bool,
    /// Its words.
    pub text: String,
}

/// The space all spill files of the daemon may take together.
#[derive(Debug, Clone)]
pub struct SpillSpace {
    used: Arc<AtomicU64>,
    max: u64,
}

impl SpillSpace {
    /// `max` bytes, all free.
    pub fn new(max: u64) -> SpillSpace {
        SpillSpace { used: Arc::default(), max }
    }

    fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// How much may spill.
#[derive(Debug, Clone)]
pub struct SpillBounds {
    /// Bytes of one session's file.
    pub session: u64,
    /// Bytes of all of them.
    pub space: SpillSpace,
}

/// Sizes that follow from a session's bound in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Bytes kept in memory in front of the file: below it more is read.
    pub(super) head: usize,
    /// Bytes of one write.
    pub(super) segment: usize,
}

impl Sizes {
    pub(super) fn of(session_buffer: usize) -> Sizes {
        Sizes { head: (session_buffer / 2).min(SPILL_HEAD), segment: (session_buffer / 4).clamp(1, SPILL_SEGMENT) }
    }
}

/// Output on its way into the file. It stays here until all of it is there.
#[derive(Debug)]
struct Writing {
    frames: Outbox,
    done: usize,
    in_flight: bool,
}

/// Bytes on their way out of the file.
#[derive(Debug)]
struct Reading {
    chunks: Vec<ChunkId>,
    len: usize,
    done: usize,
    retried: bool,
}

/// A session's output that is not in its own outbox.
#[derive(Debug)]
pub(super) struct Spill {
    /// The oldest: what its client is sent.
    pub(super) head: Outbox,
    is_open: bool,
    writing: Option<Writing>,
    reading: Option<Reading>,
    /// Up to where a hole is being punched.
    punching: Option<u64>,
    can_punch: bool,
    /// Offsets in the file: its space is free before `punched`, it has been read before `read`, it holds output before
    /// `end`, and it has space before `allocated`.
    punched: u64,
    read: u64,
    end: u64,
    allocated: u64,
    /// Why nothing is written just now.
    stopped: Option<String>,
    /// Somebody has been told of that.
    pub(super) told_stopped: bool,
}

/// Why one does not go on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing more is written for now.
    Stopped {
        /// For want of space.
        full: bool,
    },
    /// There is no file.
    NoFile(String),
    /// What the file holds cannot be had.
    Lost(String),
}

impl Spill {
    pub(super) fn new(head: Outbox) -> Spill {
        Spill {
            head,
            is_open: false,
            writing: None,
            reading: None,
            punching: None,
            can_punch: true,
            punched: 0,
            read: 0,
            end: 0,
            allocated: 0,
            stopped: None,
            told_stopped: false,
        }
    }

    /// Bytes that are in the file and nowhere else.
    pub(super) fn in_file(&self) -> u64 {
        self.end - self.read
    }

    /// Bytes of space the file has.
    pub(super) fn space(&self) -> u64 {
        self.allocated - self.punched
    }

    /// Bytes owed that are not in the session's outbox.
    pub(super) fn bytes(&self) -> usize {
        let writing = self.writing.as_ref().map_or(0, |writing| writing.frames.bytes());
        self.head.bytes() + writing + usize::try_from(self.in_file()).unwrap_or(usize::MAX)
    }

    /// Why nothing is written just now.
    pub(super) fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    /// What it waited for may be there.
    pub(super) fn try_again(&mut self) {
        self.stopped = None;
    }

    /// Whether what follows the oldest comes by itself.
    pub(super) fn is_under_way(&self) -> bool {
        self.reading.is_some() || self.writing.as_ref().is_some_and(|writing| writing.in_flight)
    }

    /// Moves what is in memory on where the file is not in between: to the front.
    pub(super) fn refill<L: Leases>(
        &mut self,
        arena: &mut Arena,
        mem: &mut Memory<L>,
        newest: &mut Outbox,
        sizes: Sizes,
    ) {
        if self.in_file() > 0 || self.head.bytes() >= sizes.head {
            return;
        }
        match self.writing.take_if(|writing| !writing.in_flight) {
            Some(writing) => {
                self.head.join(arena, mem, writing.frames);
                self.stopped = None;
            }
            None if self.writing.is_some() => return,
            None => {}
        }
        while self.head.bytes() < sizes.head && newest.ready() > 0 {
            let frames = newest.split(arena, mem, sizes.head - self.head.bytes());
            self.head.join(arena, mem, frames);
            self.stopped = None;
        }
    }

    /// The next read, if one is due.
    pub(super) fn next_read<L: Leases>(
        &mut self,
        mem: &mut Memory<L>,
        views: &mut Vec<BufView>,
        sizes: Sizes,
    ) -> Option<SpillOp> {
        if self.reading.is_some() || self.in_file() == 0 || self.head.bytes() >= sizes.head {
            return None;
        }
        let most = sizes.segment.max(SEND_MAX);
        let len = usize::try_from(self.in_file()).unwrap_or(usize::MAX).min(most);
        let chunks = (0..len.div_ceil(CHUNK_LEN)).map(|_| mem.chunks.take()).collect();
        self.reading = Some(Reading { chunks, len, done: 0, retried: false });
        self.go_on_reading(views)
    }

    fn go_on_reading(&self, views: &mut Vec<BufView>) -> Option<SpillOp> {
        let reading = self.reading.as_ref()?;
        let begin = views.len();
        views.extend(pieces(&reading.chunks, reading.done..reading.len));
        Some(SpillOp::Read { views: begin..views.len(), offset: self.read + reading.done as u64 })
    }

    /// The next write, if there is enough for one; `Err` when there may be no more.
    pub(super) fn next_write<L: Leases>(
        &mut self,
        arena: &mut Arena,
        mem: &mut Memory<L>,
        newest: &mut Outbox,
        views: &mut Vec<BufView>,
        (sizes, bounds): (Sizes, &SpillBounds),
    ) -> Result<Option<SpillOp>, ()> {
        if !self.is_open || self.stopped.is_some() {
            return Ok(None);
        }
        if self.writing.is_none() && newest.ready() >= sizes.segment {
            let frames = newest.split(arena, mem, sizes.segment);
            self.writing = Some(Writing { frames, done: 0, in_flight: false });
        }
        let Some(writing) = self.writing.as_mut().filter(|writing| !writing.in_flight) else { return Ok(None) };
        let end = self.end + writing.frames.bytes() as u64;
        if end - self.punched > bounds.session {
            self.stopped = Some(format!("its file has reached the bound of {} bytes", bounds.session));
            return Err(());
        }
        if !bounds.space.take(end.saturating_sub(self.allocated)) {
            self.stopped = Some(format!("all spill files have reached the bound of {} bytes", bounds.space.max));
            return Err(());
        }
        self.allocated = self.allocated.max(end);
        (writing.done, writing.in_flight) = (0, true);
        Ok(self.go_on_writing(arena, views))
    }

    fn go_on_writing(&self, arena: &Arena, views: &mut Vec<BufView>) -> Option<SpillOp> {
        let writing = self.writing.as_ref()?;
        let begin = views.len();
        writing.frames.plan(arena, usize::MAX, views);
        let mut skip = writing.done;
        while skip > 0 {
            let first = views[begin];
            if first.len as usize > skip {
                views[begin] = first.skip(u32::try_from(skip).expect("less than a view's length"));
                break;
            }
            skip -= first.len as usize;
            views.remove(begin);
        }
        Some(SpillOp::Write { views: begin..views.len(), offset: self.end + writing.done as u64 })
    }

    /// The next hole to punch, when enough has been read for one.
    pub(super) fn next_punch(&mut self, bounds: &SpillBounds) -> Option<SpillOp> {
        let len = self.read - self.punched;
        if !self.can_punch || self.punching.is_some() || len < SPILL_PUNCH.min(bounds.session / 4).max(1) {
            return None;
        }
        self.punching = Some(self.read);
        Some(SpillOp::Punch { offset: self.punched, len })
    }

    /// Whether all is in memory, and little enough to stay there.
    pub(super) fn is_over(&self, newest: &Outbox, most: usize) -> bool {
        let is_idle = self.reading.is_none() && self.writing.is_none() && self.punching.is_none();
        let is_little = self.head.bytes() == 0 || self.head.bytes() + newest.bytes() < most;
        self.is_open && is_idle && self.in_file() == 0 && is_little
    }

    /// An operation ended. `Ok` with the one that goes on with it, if it came short.
    pub(super) fn ended<L: Leases>(
        &mut self,
        arena: &mut Arena,
        mem: &mut Memory<L>,
        views: &mut Vec<BufView>,
        how: Spilled,
        (sizes, bounds, is_shim): (Sizes, &SpillBounds, bool),
    ) -> Result<Option<SpillOp>, Outcome> {
        match how {
            Spilled::Opened(Ok(())) => self.is_open = true,
            Spilled::Opened(Err(fault)) => return Err(Outcome::NoFile(fault.text)),
            Spilled::Wrote(Ok(n)) if n > 0 => return Ok(self.wrote(arena, mem, views, n, sizes)),
            Spilled::Wrote(Ok(_)) => return Err(self.not_written("nothing was written".to_owned(), false)),
            Spilled::Wrote(Err(fault)) => return Err(self.not_written(fault.text, fault.full)),
            Spilled::Read(Ok(n)) if n > 0 => return self.has_read(arena, mem, views, n, is_shim),
            Spilled::Read(Ok(_)) => return Err(Outcome::Lost("it ends before what was written to it".to_owned())),
            Spilled::Read(Err(fault)) => {
                let Some(reading) = self.reading.as_mut().filter(|reading| !reading.retried) else {
                    return Err(Outcome::Lost(fault.text));
                };
                reading.retried = true;
                return Ok(self.go_on_reading(views));
            }
            Spilled::Punched(outcome) => {
                let to = self.punching.take().unwrap_or(self.punched);
                self.can_punch = outcome.is_ok();
                if self.can_punch {
                    bounds.space.give(to - self.punched);
                    self.punched = to;
                    self.stopped = None;
                }
            }
        }
        Ok(None)
    }

    fn wrote<L: Leases>(
        &mut self,
        arena: &mut Arena,
        mem: &mut Memory<L>,
        views: &mut Vec<BufView>,
        n: usize,
        sizes: Sizes,
    ) -> Option<SpillOp> {
        let writing = self.writing.as_mut()?;
        writing.done += n;
        if writing.done < writing.frames.bytes() {
            return self.go_on_writing(arena, views);
        }
        let mut frames = self.writing.take()?.frames;
        if self.in_file() == 0 && self.head.bytes() < sizes.head {
            // It is wanted now and still here.
            self.head.join(arena, mem, frames);
        } else {
            self.end += frames.bytes() as u64;
            frames.clear(arena, mem);
        }
        None
    }

    fn not_written(&mut self, why: String, full: bool) -> Outcome {
        if let Some(writing) = &mut self.writing {
            writing.in_flight = false;
        }
        self.stopped = Some(why);
        Outcome::Stopped { full }
    }

    fn has_read<L: Leases>(
        &mut self,
        arena: &mut Arena,
        mem: &mut Memory<L>,
        views: &mut Vec<BufView>,
        n: usize,
        is_shim: bool,
    ) -> Result<Option<SpillOp>, Outcome> {
        let Some(reading) = &mut self.reading else { return Ok(None) };
        reading.done += n;
        if reading.done < reading.len {
            return Ok(self.go_on_reading(views));
        }
        let Some(reading) = self.reading.take() else { return Ok(None) };
        let taken = take_frames(&mut self.head, arena, mem, &reading, is_shim);
        reading.chunks.into_iter().for_each(|chunk| mem.chunks.release(chunk));
        match taken {
            Some(0) | None => Err(Outcome::Lost("it does not hold what was written to it".to_owned())),
            Some(taken) => {
                self.read += taken as u64;
                self.stopped = None;
                Ok(None)
            }
        }
    }

    /// Gives back its memory and its space.
    pub(super) fn clear<L: Leases>(mut self, arena: &mut Arena, mem: &mut Memory<L>, bounds: &SpillBounds) {
        self.head.clear(arena, mem);
        if let Some(mut writing) = self.writing.take() {
            writing.frames.clear(arena, mem);
        }
        if let Some(reading) = self.reading.take() {
            reading.chunks.into_iter().for_each(|chunk| mem.chunks.release(chunk));
        }
        bounds.space.give(self.space());
    }

    /// Puts what is in memory in front of the newest again: there is no file, or nothing in it.
    pub(super) fn dissolve<L: Leases>(
        mut self,
        arena: &mut Arena,
        mem: &mut Memory<L>,
        newest: Outbox,
        bounds: &SpillBounds,
    ) -> Outbox {
        let mut all = std::mem::take(&mut self.head);
        if let Some(writing) = self.writing.take() {
            all.join(arena, mem, writing.frames);
        }
        all.join(arena, mem, newest);
        bounds.space.give(self.space());
        all
    }

    /// Checks its offsets and outboxes. Returns the number of nodes.
    ///
    /// # Panics
    /// When they are not right; that is a fault of ours.
    pub(super) fn check(&self, arena: &Arena) -> usize {
        let order = [self.punched, self.read, self.end, self.allocated];
        assert!(order.is_sorted(), "offsets of a spill file: {order:?}");
        assert!(!self.head.is_open() && !self.head.has_leases(), "what is in front of a file is whole and settled");
        self.head.check(arena) + self.writing.as_ref().map_or(0, |writing| writing.frames.check(arena))
    }
}

/// The pieces of chunks, one behind the other, that `range` of their bytes is in.
fn pieces(chunks: &[ChunkId], range: Range<usize>) -> impl Iterator<Item = BufView> {
    let first = range.start / CHUNK_LEN;
    chunks.iter().enumerate().skip(first).map_while(move |(index, &chunk)| {
        let begin = range.start.max(index * CHUNK_LEN);
        let end = range.end.min((index + 1) * CHUNK_LEN);
        let of = |at: usize| u32::try_from(at - index * CHUNK_LEN).expect("inside a chunk");
        (begin < end).then(|| BufView { source: Source::Chunk(chunk), off: of(begin), len: of(end) - of(begin) })
    })
}

/// Puts the whole frames at the front of what was read behind `out`, as many together as one send takes. Returns
/// their bytes; `None` when there is something that is no frame.
fn take_frames<L: Leases>(
    out: &mut Outbox,
    arena: &mut Arena,
    mem: &mut Memory<L>,
    reading: &Reading,
    is_shim: bool,
) -> Option<usize> {
    let (mut begin, mut end) = (0, 0);
    loop {
        let next = frame_at(mem, reading, end, is_shim)?;
        let to = end + next;
        if next == 0 || to > reading.len || to - begin > SEND_MAX {
            let mut parts = pieces(&reading.chunks, begin..end).peekable();
            while let Some(view) = parts.next() {
                mem.retain(view.source);
                out.push_owned(arena, view, parts.peek().is_none());
            }
            begin = end;
        }
        if next == 0 || to > reading.len {
            return Some(end);
        }
        end = to;
    }
}

/// The length of the frame at `at` in what was read: 0 when its header has not been read whole, `None` when it is
/// none of ours.
fn frame_at<L: Leases>(mem: &Memory<L>, reading: &Reading, at: usize, is_shim: bool) -> Option<usize> {
    let mut header = [0; FRAME_HEADER_LEN];
    if at + header.len() > reading.len {
        return Some(0);
    }
    let mut have = 0;
    for view in pieces(&reading.chunks, at..at + header.len()) {
        let bytes = mem.bytes(view);
        header[have..have + bytes.len()].copy_from_slice(bytes);
        have += bytes.len();
    }
    let max = u32::try_from(SEND_MAX).ok()?;
    let len = match is_shim {
        true => cc2::Header::decode(header).ok()?.frame(),
        false => FrameHeader::decode(header, max).ok()?.len,
    };
    usize::try_from(len).ok().filter(|&len| len <= SEND_MAX)
}
