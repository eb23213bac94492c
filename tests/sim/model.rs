//! What must come out, said as simply as possible: frames read byte by byte, and the bytes one peer is owed.
//!
//! Nothing of the plane's code is used here. The asymmetry to know: a frame longer than its receiver accepts is owed
//! as several, and each of them is owed once it is whole, though the frame it is cut from is not.

/// Bytes of a frame's header.
pub(crate) const HEADER: usize = 12;

/// A frame's bytes.
pub(crate) fn frame(seq: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = header(seq, HEADER + payload.len()).to_vec();
    out.extend_from_slice(payload);
    out
}

/// A frame's header.
pub(crate) fn header(seq: u64, len: usize) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(&seq.to_be_bytes());
    out[8..].copy_from_slice(&u32::try_from(len).expect("short").to_be_bytes());
    out
}

/// The length a header says.
pub(crate) fn length_at(bytes: &[u8]) -> usize {
    let len: [u8; 4] = bytes[8..HEADER].try_into().expect("a whole header");
    u32::from_be_bytes(len) as usize
}

/// The sequence a header says.
pub(crate) fn seq_at(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("a whole header"))
}

/// How a frame looks to its receiver.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Look {
    /// hyperstart's, of this sequence.
    Hyper(u64),
    /// Protocol 2's, of this stream.
    Shim(u8),
}

impl Look {
    fn header(self, payload: usize) -> [u8; HEADER] {
        match self {
            Look::Hyper(seq) => header(seq, HEADER + payload),
            Look::Shim(stream) => crate::shim::header(crate::shim::STREAM, stream, payload),
        }
    }
}

/// What the front of a peer's bytes means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// A frame begins, with this many payload bytes.
    Begin { seq: u64, payload: usize },
    /// More of its payload.
    Payload(&'a [u8]),
    /// The length is out of bounds.
    Fault,
}

/// Reads a peer's frames.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    head: Vec<u8>,
    left: usize,
}

impl Reader {
    /// The next token of `bytes`, which it shortens; `None` when they are used up.
    pub(crate) fn next<'a>(&mut self, bytes: &mut &'a [u8], bound: usize) -> Option<Token<'a>> {
        if bytes.is_empty() {
            return None;
        }
        let part = if self.left > 0 { self.left } else { HEADER - self.head.len() };
        let (now, rest) = bytes.split_at(part.min(bytes.len()));
        *bytes = rest;
        if self.left > 0 {
            self.left -= now.len();
            return Some(Token::Payload(now));
        }
        self.head.extend_from_slice(now);
        if self.head.len() < HEADER {
            return None;
        }
        let (seq, len) = (seq_at(&self.head), length_at(&self.head));
        self.head.clear();
        if len < HEADER || len > bound {
            return Some(Token::Fault);
        }
        self.left = len - HEADER;
        Some(Token::Begin { seq, payload: self.left })
    }
}

/// What one session owes one of its peers.
#[derive(Debug)]
pub(crate) struct Owed {
    /// Longest frame the peer accepts.
    max: usize,
    /// Bytes of a frame that its length does not count.
    uncounted: usize,
    /// Whole frames, from the session's beginning.
    bytes: Vec<u8>,
    /// The frame that is not whole yet.
    partial: Vec<u8>,
    /// Payload bytes it still lacks.
    lacks: usize,
    /// The look of the received frame, and payload bytes of it not yet begun to be sent on.
    look: Look,
    left: usize,
    /// Bytes the kernel took.
    pub(crate) taken: usize,
    /// Bytes the plane was told that the kernel took.
    pub(crate) reported: usize,
    /// Bytes the kernel took or was handed.
    pub(crate) planned: usize,
    /// Where the frame begins that `taken` is in.
    border: usize,
    /// Bytes the agent took of others while it had a whole frame of this to take.
    pub(crate) passed_over: usize,
    /// Frames received for it, as they were.
    pub(crate) frames: u64,
}

impl Owed {
    pub(crate) fn new(max: usize) -> Owed {
        Owed {
            max,
            uncounted: 0,
            bytes: Vec::new(),
            partial: Vec::new(),
            lacks: 0,
            look: Look::Hyper(0),
            left: 0,
            taken: 0,
            reported: 0,
            planned: 0,
            border: 0,
            passed_over: 0,
            frames: 0,
        }
    }

    /// What a shim is owed: its frames' lengths do not count their headers.
    pub(crate) fn to_shim(max: usize) -> Owed {
        Owed { uncounted: HEADER, ..Owed::new(max) }
    }

    /// A whole frame of ours.
    pub(crate) fn push(&mut self, frame: &[u8]) {
        assert!(!self.is_open(), "a frame inside another");
        self.bytes.extend_from_slice(frame);
    }

    /// Whether a frame has begun and is not whole.
    pub(crate) fn is_open(&self) -> bool {
        !self.partial.is_empty() || self.left > 0
    }

    /// What the kernel took and the plane was not told of was not taken: its receiver is gone.
    pub(crate) fn rewind(&mut self) {
        (self.planned, self.taken, self.border) = (self.reported, self.reported, self.border.min(self.reported));
    }

    /// The length of the frame at `at`.
    fn length(&self, at: usize) -> usize {
        length_at(&self.bytes[at..]) + self.uncounted
    }

    /// A frame was received as far as its header.
    pub(crate) fn begin(&mut self, look: Look, payload: usize) {
        assert!(self.partial.is_empty() && self.left == 0, "the model's frames overlap");
        self.frames += 1;
        (self.look, self.left) = (look, payload);
        self.begin_part();
    }

    fn begin_part(&mut self) {
        self.lacks = self.left.min(self.max - HEADER);
        self.left -= self.lacks;
        self.partial = self.look.header(self.lacks).to_vec();
        self.finish_part();
    }

    fn finish_part(&mut self) {
        if self.lacks == 0 {
            self.bytes.append(&mut self.partial);
        }
    }

    /// More of its payload was received.
    pub(crate) fn payload(&mut self, mut payload: &[u8]) {
        while !payload.is_empty() {
            if self.lacks == 0 {
                self.begin_part();
            }
            let (now, rest) = payload.split_at(self.lacks.min(payload.len()));
            self.partial.extend_from_slice(now);
            self.lacks -= now.len();
            self.finish_part();
            payload = rest;
        }
    }

    /// The sender is gone: what is not whole is not owed.
    pub(crate) fn cut_off(&mut self) {
        self.partial.clear();
        (self.lacks, self.left) = (0, 0);
    }

    /// Nobody wants it any more.
    pub(crate) fn forgive(&mut self) {
        self.cut_off();
        self.bytes.truncate(self.taken);
        self.report();
    }

    /// The plane is told what the kernel took.
    pub(crate) fn report(&mut self) {
        (self.planned, self.reported) = (self.taken, self.taken);
    }

    /// Bytes owed as far as the plane knows, those of a frame that is not whole included.
    pub(crate) fn owed(&self) -> usize {
        self.whole() + self.partial.len()
    }

    /// Bytes of whole frames owed as far as the plane knows.
    pub(crate) fn whole(&self) -> usize {
        self.bytes.len() - self.reported
    }

    /// Bytes owed that no send in flight has.
    pub(crate) fn behind(&self) -> usize {
        self.bytes.len() - self.planned + self.partial.len()
    }

    /// Payload bytes that the frame in progress lacks.
    pub(crate) fn lacks(&self) -> usize {
        self.lacks
    }

    /// Whether a received frame goes on, and the frames sent on so far are whole.
    pub(crate) fn is_between(&self) -> bool {
        self.partial.is_empty() && self.left > 0
    }

    /// Whether there are whole frames that no send has.
    pub(crate) fn has_unplanned(&self) -> bool {
        self.bytes.len() > self.planned
    }

    /// Bytes left of a frame that was taken in part.
    pub(crate) fn torn(&self) -> usize {
        if self.border == self.taken { 0 } else { self.border + self.length(self.border) - self.taken }
    }

    /// Checks that `bytes` are the next to hand to the kernel, and counts them as handed.
    pub(crate) fn plan(&mut self, bytes: &[u8]) {
        let at = self.planned;
        assert!(at + bytes.len() <= self.bytes.len(), "a send of more than is owed");
        assert!(self.bytes[at..at + bytes.len()] == *bytes, "a send of other bytes than are owed, at {at}");
        self.planned += bytes.len();
    }

    /// Checks that the next bytes the kernel takes are these.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        let at = self.taken;
        assert!(at + bytes.len() <= self.planned, "the kernel took more than it was handed");
        assert!(self.bytes[at..at + bytes.len()] == *bytes, "bytes changed while a send was in flight, at {at}");
        self.taken += bytes.len();
        while self.border < self.taken {
            let len = self.length(self.border);
            if self.border + len > self.taken {
                break;
            }
            self.border += len;
        }
    }
}
