//! Standard input on its way from the stream channel to processes: whole frames in, bytes per process out, bounded.
//!
//! No descriptor is touched here. The asymmetry to know: nothing is ever dropped while its process could still read
//! it, so when one process's bound is passed the whole stream channel has to wait; the table only says so
//! ([`StdinTable::is_full`]), and takes what it is given all the same.

use std::collections::{HashMap, VecDeque};

use crate::wire::DecodeError;
use crate::wire::hyper::{FRAME_HEADER_LEN, FrameHeader, StreamSeq};

/// Bytes read from the stream channel at a time.
const READ_LEN: usize = 64 * 1024;

/// Cuts the stream channel into whole frames: a frame whose connection broke in the middle was never there.
#[derive(Debug)]
pub(super) struct FrameReader {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    max: u32,
}

impl FrameReader {
    /// Takes frames of up to `max` bytes, header included.
    pub(super) fn new(max: u32) -> FrameReader {
        let longest = usize::try_from(max).unwrap_or(usize::MAX);
        FrameReader { buf: vec![0; READ_LEN.saturating_add(longest)], start: 0, end: 0, max }
    }

    /// Where received bytes go; never empty once [`FrameReader::next_frame`] has returned `None`.
    pub(super) fn space(&mut self) -> &mut [u8] {
        self.buf.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        &mut self.buf[self.end..]
    }

    /// So many bytes were put into [`FrameReader::space`].
    pub(super) fn received(&mut self, count: usize) {
        self.end = self.buf.len().min(self.end + count);
    }

    /// Whether a frame has begun and not ended.
    pub(super) fn is_mid_frame(&self) -> bool {
        self.start < self.end
    }

    /// Takes the next whole frame: its sequence and payload, which is empty for EOF.
    pub(super) fn next_frame(&mut self) -> Result<Option<(StreamSeq, &[u8])>, DecodeError> {
        let bytes = &self.buf[self.start..self.end];
        let Some((head, _)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>() else { return Ok(None) };
        let header = FrameHeader::decode(*head, self.max)?;
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if bytes.len() < len {
            return Ok(None);
        }
        let payload = self.start + FRAME_HEADER_LEN..self.start + len;
        self.start += len;
        Ok(Some((header.seq, &self.buf[payload])))
    }
}

/// What one process is owed on its standard input.
#[derive(Debug, Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// EOF frames mean nothing here: a terminal's end of input is the byte 0x04.
    terminal: bool,
    /// No more follows `bytes`.
    ended: bool,
    /// The process will not read any more: what comes is discarded.
    refused: bool,
}

/// What a sequence stands for.
#[derive(Debug)]
enum Place {
    Stdin(Queue),
    /// Somebody's stderr, or a terminal-less place that takes nothing.
    OutputOnly,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// The process has something new to read.
    Queued,
    /// There is nobody to read it, and nobody has to know.
    Ignored,
    /// No process has this sequence.
    Unknown,
}

/// All standard inputs, by sequence.
#[derive(Debug)]
pub(super) struct StdinTable {
    places: HashMap<StreamSeq, Place>,
    /// Most bytes for one process and for all, before the channel stops.
    each: usize,
    all: usize,
    total: usize,
    /// Processes over their own bound.
    over: usize,
}

impl StdinTable {
    /// A table that is full above `each` bytes for one process or `all` bytes together.
    pub(super) fn new(each: usize, all: usize) -> StdinTable {
        StdinTable { places: HashMap::new(), each, all, total: 0, over: 0 }
    }

    /// Whether a process uses this sequence.
    pub(super) fn is_known(&self, seq: StreamSeq) -> bool {
        self.places.contains_key(&seq)
    }

    /// A process with this standard input exists from now on.
    pub(super) fn open(&mut self, seq: StreamSeq, terminal: bool) {
        self.places.insert(seq, Place::Stdin(Queue { terminal, ..Queue::default() }));
    }

    /// A sequence that only carries output.
    pub(super) fn open_output(&mut self, seq: StreamSeq) {
        self.places.insert(seq, Place::OutputOnly);
    }

    /// The sequence is free again; what was queued for it is gone with its process.
    pub(super) fn remove(&mut self, seq: StreamSeq) {
        self.discard(seq);
        self.places.remove(&seq);
    }

    /// The process reads no more: forget what is queued, and discard what comes.
    pub(super) fn discard(&mut self, seq: StreamSeq) {
        let Some(Place::Stdin(queue)) = self.places.get_mut(&seq) else { return };
        let had = queue.bytes.len();
        *queue = Queue { refused: true, ..Queue::default() };
        self.total -= had;
        self.over -= usize::from(had > self.each);
    }

    /// Takes one frame's payload; an empty one is EOF.
    pub(super) fn push(&mut self, seq: StreamSeq, payload: &[u8]) -> Taken {
        let queue = match self.places.get_mut(&seq) {
            Some(Place::Stdin(queue)) => queue,
            Some(Place::OutputOnly) => return Taken::Ignored,
            None => return Taken::Unknown,
        };
        if queue.refused || queue.ended {
            return Taken::Ignored;
        }
        if payload.is_empty() {
            queue.ended = !queue.terminal;
            return Taken::Queued;
        }
        let was_over = queue.bytes.len() > self.each;
        queue.bytes.extend(payload);
        self.total += payload.len();
        self.over += usize::from(!was_over && queue.bytes.len() > self.each);
        Taken::Queued
    }

    /// The next bytes for this process; empty when there are none now.
    pub(super) fn front(&self, seq: StreamSeq) -> &[u8] {
        match self.places.get(&seq) {
            Some(Place::Stdin(queue)) => queue.bytes.as_slices().0,
            _ => &[],
        }
    }

    /// The process has taken this many bytes of [`StdinTable::front`].
    pub(super) fn consume(&mut self, seq: StreamSeq, count: usize) {
        let Some(Place::Stdin(queue)) = self.places.get_mut(&seq) else { return };
        let was_over = queue.bytes.len() > self.each;
        let count = count.min(queue.bytes.len());
        queue.bytes.drain(..count);
        if queue.bytes.is_empty() && queue.bytes.capacity() > READ_LEN {
            queue.bytes = VecDeque::new();
        }
        self.total -= count;
        self.over -= usize::from(was_over && queue.bytes.len() <= self.each);
    }

    /// Whether this process's input is at its end: EOF came and everything before it was taken, or it is gone.
    pub(super) fn is_finished(&self, seq: StreamSeq) -> bool {
        match self.places.get(&seq) {
            Some(Place::Stdin(queue)) => queue.refused || (queue.ended && queue.bytes.is_empty()),
            _ => true,
        }
    }

    /// Whether the stream channel has to wait.
    pub(super) fn is_full(&self) -> bool {
        self.over > 0 || self.total > self.all
    }

    /// Bytes held.
    pub(super) fn held(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(seq: u64, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        let mut out = FrameHeader::for_payload(StreamSeq(seq), len).encode().to_vec();
        out.extend_from_slice(payload);
        out
    }

    fn give(reader: &mut FrameReader, bytes: &[u8]) {
        reader.space()[..bytes.len()].copy_from_slice(bytes);
        reader.received(bytes.len());
    }

    #[test]
    fn only_whole_frames_come_out() {
        let mut reader = FrameReader::new(100);
        let bytes = [frame(1, b"ab"), frame(2, b"")].concat();
        give(&mut reader, &bytes[..13]);
        assert_eq!(reader.next_frame(), Ok(None));
        assert!(reader.is_mid_frame());
        give(&mut reader, &bytes[13..]);
        assert_eq!(reader.next_frame(), Ok(Some((StreamSeq(1), &b"ab"[..]))));
        assert_eq!(reader.next_frame(), Ok(Some((StreamSeq(2), &b""[..]))));
        assert_eq!(reader.next_frame(), Ok(None));
        assert!(!reader.is_mid_frame());
    }

    #[test]
    fn a_frame_outside_the_bounds_is_an_error() {
        let mut reader = FrameReader::new(20);
        give(&mut reader, &frame(1, &[0; 9]));
        assert!(reader.next_frame().is_err());
        let mut reader = FrameReader::new(20);
        give(&mut reader, &[0; 12]);
        assert!(reader.next_frame().is_err());
    }

    #[test]
    fn input_waits_until_it_is_taken_and_then_ends() {
        let mut table = StdinTable::new(10, 100);
        let seq = StreamSeq(1);
        assert_eq!(table.push(seq, b"x"), Taken::Unknown);
        table.open(seq, false);
        assert_eq!(table.push(seq, b"hello"), Taken::Queued);
        assert_eq!(table.push(seq, b""), Taken::Queued);
        assert_eq!(table.push(seq, b"late"), Taken::Ignored);
        assert_eq!(table.front(seq), b"hello");
        table.consume(seq, 2);
        assert!(!table.is_finished(seq));
        assert_eq!(table.front(seq), b"llo");
        table.consume(seq, 3);
        assert!(table.is_finished(seq));
    }

    #[test]
    fn one_full_process_stops_the_channel_until_it_reads() {
        let mut table = StdinTable::new(10, 100);
        table.open(StreamSeq(1), false);
        table.open(StreamSeq(2), false);
        table.push(StreamSeq(1), &[0; 10]);
        assert!(!table.is_full());
        table.push(StreamSeq(1), &[0; 1]);
        assert!(table.is_full());
        table.consume(StreamSeq(1), 1);
        assert!(!table.is_full());
        table.push(StreamSeq(1), &[0; 90]);
        table.push(StreamSeq(2), &[0; 9]);
        assert!(table.is_full());
        table.remove(StreamSeq(1));
        assert!(!table.is_full());
        assert_eq!(table.held(), 9);
    }

    #[test]
    fn a_terminal_goes_on_after_eof_and_output_only_places_ignore() {
        let mut table = StdinTable::new(10, 100);
        table.open(StreamSeq(1), true);
        table.push(StreamSeq(1), b"");
        assert!(!table.is_finished(StreamSeq(1)));
        table.open_output(StreamSeq(2));
        assert_eq!(table.push(StreamSeq(2), b"x"), Taken::Ignored);
        table.discard(StreamSeq(1));
        assert_eq!(table.push(StreamSeq(1), b"x"), Taken::Ignored);
        assert!(table.is_finished(StreamSeq(1)));
    }

    proptest! {
        #[test]
        fn the_totals_are_the_sums(ops in proptest::collection::vec((0_u64..3, 0_usize..5, 0_usize..30), 0..200)) {
            let mut table = StdinTable::new(20, 40);
            for (seq, op, len) in ops {
                let seq = StreamSeq(seq);
                match op {
                    0 => if !table.is_known(seq) { table.open(seq, false) },
                    1 => table.remove(seq),
                    2 => table.discard(seq),
                    3 => table.consume(seq, len),
                    _ => { table.push(seq, &vec![0; len]); }
                }
                let held = |place: &Place| match place {
                    Place::Stdin(queue) => queue.bytes.len(),
                    Place::OutputOnly => 0,
                };
                prop_assert_eq!(table.total, table.places.values().map(held).sum::<usize>());
                prop_assert_eq!(table.over, table.places.values().filter(|place| held(place) > 20).count());
            }
        }

        #[test]
        fn frames_survive_any_cut(payloads in proptest::collection::vec(0_usize..50, 0..20), cut in 1_usize..40) {
            let frames: Vec<_> = payloads.iter().zip(1_u64..).map(|(&len, seq)| frame(seq, &vec![7; len])).collect();
            let mut reader = FrameReader::new(62);
            let mut seen = Vec::new();
            for piece in frames.concat().chunks(cut) {
                give(&mut reader, piece);
                while let Some((_, payload)) = reader.next_frame().unwrap() {
                    seen.push(payload.len());
                }
            }
            prop_assert_eq!(seen, payloads);
        }
    }
}
