//! Stream frames out of bytes that arrive in any pieces, and long frames into short ones.
//!
//! [`FrameReader`] finds where frames begin and end and keeps at most a split header (12 bytes); it never copies
//! payload. [`Cut`] says where the frames sent on begin when a received one is longer than the receiver accepts.
//! Both directions use both; they differ in their bounds only.

use crate::limits::{CC1_FRAME_MAX, CC2_FRAME_MAX, SEND_MAX};
use crate::wire::DecodeError;
use crate::wire::cc2;
use crate::wire::hyper::{FRAME_HEADER, FRAME_HEADER_LEN, FrameHeader, StreamSeq};

/// A header whose first 12 bytes say how long its frame is.
pub trait Head: Copy {
    /// Decodes and checks it; `max` bounds the frame where the protocol itself does not.
    ///
    /// # Errors
    /// The peer cannot go on.
    fn decode(bytes: [u8; FRAME_HEADER_LEN], max: u32) -> Result<Self, DecodeError>;
    /// Bytes of header behind the first 12, which mean nothing.
    fn extra(self) -> u32;
    /// Bytes of payload.
    fn payload(self) -> u32;
    /// Bytes of the whole frame.
    fn frame(self) -> u32 {
        FRAME_HEADER + self.extra() + self.payload()
    }
}

impl Head for FrameHeader {
    fn decode(bytes: [u8; FRAME_HEADER_LEN], max: u32) -> Result<FrameHeader, DecodeError> {
        FrameHeader::decode(bytes, max)
    }

    fn extra(self) -> u32 {
        0
    }

    fn payload(self) -> u32 {
        self.payload_len()
    }
}

impl Head for cc2::Header {
    fn decode(bytes: [u8; FRAME_HEADER_LEN], _: u32) -> Result<cc2::Header, DecodeError> {
        cc2::Header::decode(bytes)
    }

    fn extra(self) -> u32 {
        self.extra
    }

    fn payload(self) -> u32 {
        self.payload
    }
}

/// What the front of the given bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<H> {
    /// A whole frame: take [`Head::frame`] bytes.
    Whole(H),
    /// A frame that does not end here: take `taken` bytes, the rest of its header's first 12.
    Begin {
        /// The header.
        header: H,
        /// Bytes of it that came now.
        taken: u32,
    },
    /// `len` bytes of a longer header, which mean nothing.
    Skip {
        /// How many bytes.
        len: u32,
    },
    /// `len` more bytes of the frame that began.
    Body {
        /// How many bytes.
        len: u32,
    },
    /// Everything given was the beginning of a header, and was kept.
    Kept,
}

/// Finds the frames in one peer's bytes.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// The header's bytes so far.
    scratch: [u8; FRAME_HEADER_LEN],
    /// How many of them.
    have: u8,
    /// Bytes of a longer header that are still to come.
    skip: u32,
    /// Payload bytes of the frame in progress that are still to come.
    left: u32,
}

impl FrameReader {
    /// Looks at the front of `bytes`, which must not be empty. Call again with what is behind the part taken.
    ///
    /// # Errors
    /// A header that [`Head::decode`] refuses. The peer cannot go on.
    pub fn step<H: Head>(&mut self, bytes: &[u8], max: u32) -> Result<Step<H>, DecodeError> {
        let available = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if self.skip > 0 {
            let len = self.skip.min(available);
            self.skip -= len;
            return Ok(Step::Skip { len });
        }
        if self.left > 0 {
            let len = self.left.min(available);
            self.left -= len;
            return Ok(Step::Body { len });
        }
        if self.have == 0
            && let Some((head, _)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>()
        {
            let header = H::decode(*head, max)?;
            if header.frame() <= available {
                return Ok(Step::Whole(header));
            }
            (self.skip, self.left) = (header.extra(), header.payload());
            return Ok(Step::Begin { header, taken: FRAME_HEADER });
        }
        let kept = usize::from(self.have);
        let taken = (FRAME_HEADER_LEN - kept).min(bytes.len());
        let have = kept + taken;
        self.scratch[kept..have].copy_from_slice(&bytes[..taken]);
        if have < FRAME_HEADER_LEN {
            self.have = u8::try_from(have).expect("less than a header");
            return Ok(Step::Kept);
        }
        let taken = FRAME_HEADER - u32::from(self.have);
        self.have = 0;
        let header = H::decode(self.scratch, max)?;
        (self.skip, self.left) = (header.extra(), header.payload());
        Ok(Step::Begin { header, taken })
    }

    /// Whether a header or a frame has begun and not ended.
    pub fn is_mid_frame(&self) -> bool {
        self.have > 0 || self.skip > 0 || self.left > 0
    }
}

/// Whole frames of one stream, one behind the other: they can be sent on as one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRun {
    /// How many.
    pub frames: u64,
    /// Their bytes, headers included; at most [`SEND_MAX`] unless the first alone has more.
    pub bytes: u32,
}

impl FrameRun {
    /// One frame alone.
    pub fn of(frame: FrameHeader) -> FrameRun {
        FrameRun { frames: 1, bytes: frame.len }
    }

    /// The run at the front of `bytes`, which begin with the whole frame that `first` heads. It ends before a frame of
    /// another stream, one longer than `max`, and one that is not whole.
    pub fn at_front(bytes: &[u8], first: FrameHeader, max: u32) -> FrameRun {
        let mut run = FrameRun::of(first);
        if first.len > max {
            return run;
        }
        while let Some((head, _)) = bytes.get(run.bytes as usize..).and_then(<[u8]>::split_first_chunk)
            && let Ok(next) = FrameHeader::decode(*head, max)
            && next.seq == first.seq
        {
            let end = run.bytes + next.len;
            if end as usize > bytes.len().min(SEND_MAX) {
                break;
            }
            run = FrameRun { frames: run.frames + 1, bytes: end };
        }
        run
    }

    /// Makes the shim's frames at the front of `bytes` an agent's, where they are: both headers have 12 bytes. The run
    /// ends before a frame that is not plain stdin, one longer than `max` as the agent's, and one that is not whole.
    /// `None` where the first is one.
    pub fn restamp(bytes: &mut [u8], seq: StreamSeq, max: u32) -> Option<FrameRun> {
        let most = bytes.len().min(SEND_MAX);
        let mut run = FrameRun { frames: 0, bytes: 0 };
        while let Some((head, _)) = bytes[run.bytes as usize..most].split_first_chunk_mut()
            && let Some(payload) = cc2::Header::plain_stdin(*head)
            && payload <= max - FRAME_HEADER
        {
            let end = run.bytes + FRAME_HEADER + payload;
            if end as usize > most {
                break;
            }
            *head = FrameHeader::for_payload(seq, payload).encode();
            run = FrameRun { frames: run.frames + 1, bytes: end };
        }
        (run.frames > 0).then_some(run)
    }
}

/// How a frame sent on looks to its receiver. Both headers have 12 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// hyperstart's frame: agents and protocol 1 clients.
    Hyper(StreamSeq),
    /// Protocol 2's: shims.
    Shim(cc2::Stream),
}

impl Face {
    /// Longest frame of this kind sent to a client, header included.
    pub fn client_max(self) -> u32 {
        match self {
            Face::Hyper(_) => CC1_FRAME_MAX,
            Face::Shim(_) => CC2_FRAME_MAX,
        }
    }

    /// The header of a frame that carries `payload` bytes.
    pub fn header(self, payload: u32) -> [u8; FRAME_HEADER_LEN] {
        match self {
            Face::Hyper(seq) => FrameHeader::for_payload(seq, payload).encode(),
            Face::Shim(stream) => cc2::Header::new(cc2::Kind::Stream(stream), payload).encode(),
        }
    }
}

/// A piece of a frame sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// A header to write.
    Header {
        /// The header.
        header: [u8; FRAME_HEADER_LEN],
        /// It has no payload: the frame ends here.
        last: bool,
    },
    /// Take this many payload bytes; `last` ends the frame.
    Payload {
        /// How many bytes.
        len: u32,
        /// The frame sent on is complete with them.
        last: bool,
    },
}

/// Cuts one received frame, whose payload may come in pieces, into frames of at most a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    face: Face,
    /// Payload bytes of the received frame not yet given out.
    left: u32,
    /// Payload bytes of the frame sent on not yet given out.
    unit_left: u32,
}

impl Cut {
    /// A received frame of `payload` bytes. Its first piece is always a header.
    pub fn new(face: Face, payload: u32) -> Cut {
        Cut { face, left: payload, unit_left: 0 }
    }

    /// What the frames sent on look like.
    pub fn face(self) -> Face {
        self.face
    }

    /// The first header to send on, for frames of at most `max` bytes, header included.
    pub fn begin(&mut self, max: u32) -> Piece {
        self.unit_left = self.left.min(max - FRAME_HEADER);
        let header = self.face.header(self.unit_left);
        Piece::Header { header, last: self.unit_left == 0 }
    }

    /// The next piece when `available` payload bytes are there; `None` when they are used up.
    pub fn next(&mut self, available: u32, max: u32) -> Option<Piece> {
        if available == 0 {
            return None;
        }
        if self.unit_left == 0 {
            return Some(self.begin(max));
        }
        let len = self.unit_left.min(available);
        self.unit_left -= len;
        self.left -= len;
        Some(Piece::Payload { len, last: self.unit_left == 0 })
    }

    /// Whether the received frame has been given out whole.
    pub fn is_done(self) -> bool {
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(seq: u64, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        let mut out = FrameHeader::for_payload(StreamSeq(seq), len).encode().to_vec();
        out.extend_from_slice(payload);
        out
    }

    /// Frames found when `bytes` arrive in pieces of `piece`.
    fn read_in_pieces(bytes: &[u8], piece: usize) -> Vec<(u64, Vec<u8>)> {
        let mut reader = FrameReader::default();
        let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
        for chunk in bytes.chunks(piece) {
            let mut rest = chunk;
            while !rest.is_empty() {
                let taken = match reader.step::<FrameHeader>(rest, 1 << 20).unwrap() {
                    Step::Whole(header) => {
                        found.push((header.seq.0, rest[FRAME_HEADER_LEN..header.len as usize].to_vec()));
                        header.len
                    }
                    Step::Begin { header, taken } => {
                        found.push((header.seq.0, Vec::new()));
                        taken
                    }
                    Step::Body { len } => {
                        found.last_mut().unwrap().1.extend_from_slice(&rest[..len as usize]);
                        len
                    }
                    Step::Skip { .. } => unreachable!("no header here is longer"),
                    Step::Kept => break,
                };
                rest = &rest[taken as usize..];
            }
        }
        assert!(!reader.is_mid_frame());
        found
    }

    #[test]
    fn frames_are_found_in_pieces_of_every_size() {
        let want = vec![(1, b"hello".to_vec()), (2, vec![]), (1 << 52, vec![7; 100]), (3, vec![9])];
        let bytes: Vec<u8> = want.iter().flat_map(|(seq, payload)| frame(*seq, payload)).collect();
        for piece in 1..=bytes.len() {
            assert_eq!(read_in_pieces(&bytes, piece), want, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_run_ends_where_frames_stop_being_alike() {
        let run = |rest: &[&[u8]]| {
            let first = frame(7, b"ab");
            let bytes = [&first[..], &rest.concat()].concat();
            let run = FrameRun::at_front(&bytes, FrameHeader::for_payload(StreamSeq(7), 2), 100);
            (run.frames, run.bytes)
        };
        let (same, other, long) = (frame(7, b"c"), frame(8, b"c"), frame(7, &[0; 100]));
        assert_eq!(run(&[]), (1, 14));
        assert_eq!(run(&[&same, &frame(7, b"")]), (3, 39));
        assert_eq!(run(&[&same, &other, &same]), (2, 27));
        assert_eq!(run(&[&same, &long]), (2, 27), "a frame that is too long goes its own way");
        for cut in 0..same.len() {
            assert_eq!(run(&[&same[..cut]]), (1, 14), "{cut} bytes of a frame are none");
        }
        let longest = FrameRun::at_front(&long, FrameHeader::for_payload(StreamSeq(7), 100), 50);
        assert_eq!(longest, FrameRun { frames: 1, bytes: 112 });
        let many = same.repeat(SEND_MAX);
        let most = FrameRun::at_front(&many, FrameHeader::for_payload(StreamSeq(7), 1), 100);
        assert_eq!(most.bytes as usize, SEND_MAX / same.len() * same.len(), "one send takes it");
    }

    #[test]
    fn a_shims_frames_become_an_agents_up_to_the_first_that_is_not_plain_stdin() {
        let stdin = |payload: &[u8]| cc2::encode(cc2::Kind::Stream(cc2::Stream::Stdin), payload);
        let restamped = |rest: &[u8]| {
            let mut bytes = [&stdin(b"ab")[..], &stdin(b""), rest].concat();
            let run = FrameRun::restamp(&mut bytes, StreamSeq(7), 100).unwrap();
            let own = [frame(7, b"ab"), frame(7, b"")].concat();
            assert!(bytes.starts_with(&own) && bytes[run.bytes as usize..] == rest[run.bytes as usize - own.len()..]);
            (run.frames, run.bytes)
        };
        let log = cc2::encode(cc2::Kind::Stream(cc2::Stream::Log), b"{}");
        let mut longer = stdin(b"c");
        longer[2] = 4;
        for other in [&log, &longer, &stdin(&[0; 89])] {
            assert_eq!(restamped(other), (2, 26));
            assert_eq!(FrameRun::restamp(&mut other.clone(), StreamSeq(7), 100), None);
        }
        for cut in 0..13 {
            assert_eq!(restamped(&stdin(b"c")[..cut]), (2, 26), "{cut} bytes of a frame are none");
        }
        let longest = stdin(&[0; 88]).repeat(SEND_MAX);
        let run = FrameRun::restamp(&mut longest.clone(), StreamSeq(7), 100).unwrap();
        assert_eq!(run.bytes as usize, SEND_MAX / 100 * 100, "one send takes it");
    }

    #[test]
    fn lengths_out_of_bounds_are_errors_wherever_the_header_is_split() {
        for len in [0_u32, 11, 1 << 20, u32::MAX] {
            let mut bytes = frame(1, b"");
            bytes[8..].copy_from_slice(&len.to_be_bytes());
            assert!(FrameReader::default().step::<FrameHeader>(&bytes, 4096).is_err());
            let mut reader = FrameReader::default();
            assert_eq!(reader.step::<FrameHeader>(&bytes[..9], 4096), Ok(Step::Kept));
            assert!(reader.step::<FrameHeader>(&bytes[9..], 4096).is_err());
        }
    }

    #[test]
    fn a_long_frame_is_cut_at_the_same_places_however_it_arrives() {
        let cuts = |piece: u32| {
            let mut cut = Cut::new(Face::Hyper(StreamSeq(5)), 100);
            let mut sent = vec![];
            let mut push = |p: Piece| match p {
                Piece::Header { header, .. } => {
                    sent.push((FrameHeader::decode(header, 100).unwrap().payload_len(), 0));
                }
                Piece::Payload { len, .. } => sent.last_mut().unwrap().1 += len,
            };
            push(cut.begin(52));
            let mut to_come = 100;
            while to_come > 0 {
                let mut available = piece.min(to_come);
                to_come -= available;
                while let Some(p) = cut.next(available, 52) {
                    push(p);
                    if let Piece::Payload { len, .. } = p {
                        available -= len;
                    }
                }
            }
            assert!(cut.is_done());
            sent
        };
        for piece in 1..=100 {
            assert_eq!(cuts(piece), [(40, 40), (40, 40), (20, 20)], "in pieces of {piece}");
        }
    }

    #[test]
    fn an_empty_frame_is_a_header_that_ends_itself() {
        for face in [Face::Hyper(StreamSeq(5)), Face::Shim(cc2::Stream::Stdout)] {
            let mut cut = Cut::new(face, 0);
            assert_eq!(cut.begin(4096), Piece::Header { header: face.header(0), last: true });
            assert!(cut.is_done());
        }
    }
}
