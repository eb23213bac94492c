//! Output on its way to the host: pipe contents laid out as whole frames in place, and when a process's output is over.
//!
//! No descriptor is touched here. The asymmetry to know: bytes are read directly between the places of the headers,
//! so a run is filled first and its headers are written last; and what a broken connection cut in two is sent again
//! from the start of the frame that was cut, never from its middle.

use std::io::IoSliceMut;

use crate::limits::{GUEST_READ, SEND_MAX, SEND_PIECES_MAX};
use crate::wire::hyper::{FRAME_HEADER_LEN, FrameHeader, StreamSeq};

/// Whole frames, one after the other, on their way out.
#[derive(Debug)]
pub(super) struct FrameRun {
    /// Longest frame, header included.
    frame_max: usize,
    bytes: Vec<u8>,
    /// Bytes of `bytes` that are frames.
    filled: usize,
    /// Bytes of them that have left.
    sent: usize,
    /// End of the frames that have been offered for sending as one piece.
    piece_end: usize,
}

impl FrameRun {
    /// Frames of up to `frame_max` bytes, header included.
    pub(super) fn new(frame_max: u32) -> FrameRun {
        let frame_max = usize::try_from(frame_max).unwrap_or(usize::MAX).max(FRAME_HEADER_LEN + 1);
        let frames = GUEST_READ.div_ceil(frame_max - FRAME_HEADER_LEN);
        let bytes = vec![0; GUEST_READ + frames * FRAME_HEADER_LEN];
        FrameRun { frame_max, bytes, filled: 0, sent: 0, piece_end: 0 }
    }

    /// Whether everything has left.
    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.filled
    }

    /// The payload places of an empty run, to be read into in order; then [`FrameRun::seal`].
    pub(super) fn places(&mut self) -> Vec<IoSliceMut<'_>> {
        let frames = self.bytes.chunks_mut(self.frame_max);
        let places = frames.filter_map(|frame| frame.get_mut(FRAME_HEADER_LEN..));
        places.map(IoSliceMut::new).take(SEND_PIECES_MAX).collect()
    }

    /// `count` bytes were read into the places: gives them headers for `seq`.
    pub(super) fn seal(&mut self, seq: StreamSeq, count: usize) {
        let mut left = count;
        let mut at = 0;
        while left > 0 {
            let payload = left.min(self.frame_max - FRAME_HEADER_LEN);
            self.write_header(at, seq, payload);
            at += FRAME_HEADER_LEN + payload;
            left -= payload;
        }
        (self.filled, self.sent, self.piece_end) = (at, 0, 0);
    }

    /// Adds one short frame: a message, an EOF, a status.
    pub(super) fn push(&mut self, seq: StreamSeq, payload: &[u8]) {
        if self.is_empty() {
            (self.filled, self.sent, self.piece_end) = (0, 0, 0);
        }
        let payload = &payload[..payload.len().min(self.frame_max - FRAME_HEADER_LEN)];
        let at = self.filled;
        let end = at + FRAME_HEADER_LEN + payload.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.write_header(at, seq, payload.len());
        self.bytes[at + FRAME_HEADER_LEN..end].copy_from_slice(payload);
        self.filled = end;
    }

    fn write_header(&mut self, at: usize, seq: StreamSeq, payload: usize) {
        // A payload is below `frame_max`, which came from a u32.
        let payload = u32::try_from(payload).unwrap_or(u32::MAX - 12);
        let header = FrameHeader::for_payload(seq, payload).encode();
        self.bytes[at..at + FRAME_HEADER_LEN].copy_from_slice(&header);
    }

    /// What to write next: whole frames of up to [`SEND_MAX`] bytes together, at least one; or the rest of such a
    /// piece that was taken in part.
    pub(super) fn piece(&mut self) -> &[u8] {
        if self.sent == self.piece_end {
            let mut end = self.sent;
            while end < self.filled {
                let next = end + self.frame_len(end);
                if end > self.sent && next - self.sent > SEND_MAX {
                    break;
                }
                end = next;
            }
            self.piece_end = end;
        }
        &self.bytes[self.sent..self.piece_end]
    }

    fn frame_len(&self, at: usize) -> usize {
        let length = &self.bytes[at + FRAME_HEADER_LEN - 4..at + FRAME_HEADER_LEN];
        length.iter().fold(0, |len, &byte| len << 8 | usize::from(byte))
    }

    /// So many bytes of [`FrameRun::piece`] have left.
    pub(super) fn advance(&mut self, count: usize) {
        self.sent = self.piece_end.min(self.sent + count);
    }

    /// The connection broke: the next one starts with the frame that was cut.
    pub(super) fn rewind(&mut self) {
        let mut start = 0;
        while start < self.filled {
            let end = start + self.frame_len(start);
            if end > self.sent {
                break;
            }
            start = end;
        }
        self.sent = start;
        self.piece_end = start;
    }
}

/// When the output of a process that has ended is over although something still holds it open.
///
/// What the process itself wrote is in the pipe when it ends, so that much is always delivered; what a descendant
/// writes within the grace is too.
#[derive(Debug)]
pub(super) struct Tail {
    owed: usize,
    grace_is_over: bool,
}

impl Tail {
    /// The process has ended with `owed` bytes in the pipe.
    pub(super) fn new(owed: usize) -> Tail {
        Tail { owed, grace_is_over: false }
    }

    /// This many bytes were read.
    pub(super) fn read(&mut self, count: usize) {
        self.owed = self.owed.saturating_sub(count);
    }

    /// There was nothing to read.
    pub(super) fn found_empty(&mut self) {
        self.owed = 0;
    }

    /// Descendants had their time.
    pub(super) fn end_grace(&mut self) {
        self.grace_is_over = true;
    }

    /// Whether to wait for more.
    pub(super) fn is_over(&self) -> bool {
        self.grace_is_over && self.owed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hyper::FRAME_HEADER_LEN as HEAD;
    use proptest::prelude::*;

    fn fill(run: &mut FrameRun, seq: u64, data: &[u8]) {
        let mut left = data;
        for mut place in run.places() {
            let count = place.len().min(left.len());
            place[..count].copy_from_slice(&left[..count]);
            left = &left[count..];
        }
        assert!(left.is_empty());
        run.seal(StreamSeq(seq), data.len());
    }

    fn decode(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() {
            let header = FrameHeader::decode(*head, u32::MAX).unwrap();
            let (payload, rest) = rest.split_at(header.payload_len() as usize);
            frames.push((header.seq.0, payload.to_vec()));
            bytes = rest;
        }
        assert!(bytes.is_empty());
        frames
    }

    fn drain(run: &mut FrameRun) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        while !run.is_empty() {
            let piece = run.piece().to_vec();
            run.advance(piece.len());
            pieces.push(piece);
        }
        pieces
    }

    #[test]
    fn a_full_read_becomes_whole_frames_in_short_writes() {
        let data: Vec<u8> = (0..GUEST_READ).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut run = FrameRun::new(10_240);
        fill(&mut run, 5, &data);
        let pieces = drain(&mut run);
        assert!(pieces.iter().all(|piece| piece.len() <= SEND_MAX), "writes are bounded");
        let frames: Vec<_> = pieces.iter().flat_map(|piece| decode(piece)).collect();
        assert!(frames.iter().all(|(seq, payload)| *seq == 5 && payload.len() <= 10_228 && !payload.is_empty()));
        assert_eq!(frames.into_iter().flat_map(|(_, payload)| payload).collect::<Vec<_>>(), data);
    }

    #[test]
    fn endings_travel_together() {
        let mut run = FrameRun::new(10_240);
        fill(&mut run, 1, b"out");
        run.push(StreamSeq(2), b"");
        run.push(StreamSeq(1), b"");
        run.push(StreamSeq(1), &[7]);
        let pieces = drain(&mut run);
        assert_eq!(pieces.len(), 1);
        let expected = vec![(1, b"out".to_vec()), (2, vec![]), (1, vec![]), (1, vec![7])];
        assert_eq!(decode(&pieces[0]), expected);
        run.push(StreamSeq(9), b"again");
        assert_eq!(decode(&drain(&mut run).concat()), vec![(9, b"again".to_vec())]);
    }

    #[test]
    fn a_frame_longer_than_a_write_is_still_one_piece() {
        let mut run = FrameRun::new(1024 * 1024);
        fill(&mut run, 1, &vec![1; GUEST_READ]);
        assert_eq!(drain(&mut run).len(), 1);
    }

    #[test]
    fn a_cut_frame_is_sent_again_whole() {
        let mut run = FrameRun::new(16);
        fill(&mut run, 1, b"abcdefghij");
        run.piece();
        run.advance(16 + 5);
        run.rewind();
        let rest: Vec<_> = drain(&mut run).concat();
        assert_eq!(decode(&rest), vec![(1, b"efgh".to_vec()), (1, b"ij".to_vec())]);
    }

    #[test]
    fn output_is_over_when_the_own_bytes_are_out_and_the_grace_has_passed() {
        let mut tail = Tail::new(10);
        tail.end_grace();
        tail.read(9);
        assert!(!tail.is_over());
        tail.read(100);
        assert!(tail.is_over());
        let mut early = Tail::new(5);
        early.found_empty();
        assert!(!early.is_over());
        early.end_grace();
        assert!(early.is_over());
    }

    proptest! {
        #[test]
        fn any_length_and_frame_bound_round_trips(
            len in 1_usize..=GUEST_READ,
            max in 100_u32..70_000,
            cut in 0_usize..80_000,
        ) {
            let data: Vec<u8> = (0..len).map(|n| u8::try_from(n % 256).unwrap()).collect();
            let mut run = FrameRun::new(max);
            fill(&mut run, 3, &data);
            let mut out = Vec::new();
            while out.len() < cut && !run.is_empty() {
                let piece = run.piece();
                let count = piece.len().min(cut - out.len());
                out.extend_from_slice(&piece[..count]);
                run.advance(count);
            }
            run.rewind();
            let after: Vec<u8> = drain(&mut run).concat();
            let resumed = decode(&after).into_iter().map(|(_, payload)| payload.len()).sum::<usize>();
            let all = data.len() - resumed;
            let mut before = 0;
            let mut at = 0;
            while at + HEAD <= out.len() {
                let frame = u32::from_be_bytes([out[at + 8], out[at + 9], out[at + 10], out[at + 11]]) as usize;
                if at + frame > out.len() { break; }
                before += frame - HEAD;
                at += frame;
            }
            prop_assert_eq!(before, all);
        }
    }
}
