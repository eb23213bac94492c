//! What the generator's bytes look like, and the check that every one of them arrived where it belongs.
//!
//! A session's payload is one endless stream: the byte at a position depends on the position and on the session. A
//! byte that is lost, added, swapped or given to another session makes a comparison fail. How the stream is cut into
//! frames has no meaning, since daemons may cut frames anew.
//!
//! The asymmetry to know: positions wrap at [`PERIOD`], a prime, so a loss of a multiple of exactly that many bytes
//! would pass the comparison; the totals sent and received are compared too, and those it would not pass.

use anyhow::{Result, bail, ensure};
use ringway::wire::cc2;
use ringway::wire::hyper::{FRAME_HEADER_LEN, FrameHeader, StreamSeq};

/// Positions after which the pattern repeats.
pub(crate) const PERIOD: usize = 65_521;
/// Bytes one read takes at most.
pub(crate) const READ_MAX: usize = 256 * 1024;
/// The longest frame that can be right: generator's payloads are far shorter.
const FRAME_MAX: u32 = 1024 * 1024;

/// The bytes themselves, long enough that any piece is one slice.
#[derive(Debug)]
pub(crate) struct Pattern(Vec<u8>);

impl Pattern {
    pub(crate) fn new() -> Pattern {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0]
        };
        let mut bytes: Vec<u8> = (0..PERIOD).map(|_| next()).collect();
        while bytes.len() < PERIOD + READ_MAX {
            let more = (PERIOD + READ_MAX - bytes.len()).min(PERIOD);
            bytes.extend_from_within(..more);
        }
        Pattern(bytes)
    }

    /// The `len` bytes at a position.
    pub(crate) fn at(&self, position: Position, len: usize) -> &[u8] {
        &self.0[position.0..position.0 + len]
    }
}

/// A place in one session's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position(usize);

impl Position {
    /// Where session number `session` begins.
    pub(crate) fn start(session: usize) -> Position {
        Position(session * 7_919 % PERIOD)
    }

    pub(crate) fn advance(&mut self, len: usize) {
        self.0 = (self.0 + len) % PERIOD;
    }
}

/// Which headers a socket carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// hyperstart's: agents, and clients of protocol 1.
    Sequences,
    /// Protocol 2's: a shim.
    Shim,
}

impl Dialect {
    /// The header of a frame that carries `payload` bytes of the session `seq`.
    pub(crate) fn header(self, seq: u64, payload: u32) -> [u8; FRAME_HEADER_LEN] {
        match self {
            Dialect::Sequences => FrameHeader::for_payload(StreamSeq(seq), payload).encode(),
            Dialect::Shim => cc2::Header::new(cc2::Kind::Stream(cc2::Stream::Stdin), payload).encode(),
        }
    }
}

/// Sequence to session, for one socket: daemons may give the same sequence to sessions of different VMs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Directory {
    first: u64,
    sessions: Vec<Option<usize>>,
}

impl Directory {
    /// `seqs[n]` is the sequence of session `begin + n`.
    pub(crate) fn new(seqs: &[u64], begin: usize) -> Directory {
        let first = seqs.iter().copied().min().unwrap_or(0);
        let last = seqs.iter().copied().max().unwrap_or(0);
        let len = usize::try_from(last - first).map_or(0, |len| len + 1);
        let mut sessions = vec![None; len];
        for (session, seq) in seqs.iter().enumerate() {
            if let Some(place) = usize::try_from(seq - first).ok().and_then(|at| sessions.get_mut(at)) {
                *place = Some(begin + session);
            }
        }
        Directory { first, sessions }
    }

    pub(crate) fn session(&self, seq: u64) -> Option<usize> {
        let at = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.sessions.get(at).copied().flatten()
    }
}

/// Finds the frames in what one socket brings, and compares their payload.
#[derive(Debug, Clone)]
pub(crate) struct Scanner {
    dialect: Dialect,
    directory: Directory,
    header: [u8; FRAME_HEADER_LEN],
    have: usize,
    left: usize,
    session: usize,
}

impl Scanner {
    /// For a socket that carries the session `session` and, where the headers tell them apart, those behind it.
    pub(crate) fn new(dialect: Dialect, directory: Directory, session: usize) -> Scanner {
        Scanner { dialect, directory, session, header: [0; FRAME_HEADER_LEN], have: 0, left: 0 }
    }

    /// Takes one read's bytes; calls `payload` for each piece: its session and length. Pieces come compared.
    pub(crate) fn scan(
        &mut self,
        mut bytes: &[u8],
        compare: &mut Comparison<'_>,
        mut payload: impl FnMut(usize, usize),
    ) -> Result<()> {
        while !bytes.is_empty() {
            if self.left == 0 {
                let want = (FRAME_HEADER_LEN - self.have).min(bytes.len());
                self.header[self.have..self.have + want].copy_from_slice(&bytes[..want]);
                (self.have, bytes) = (self.have + want, &bytes[want..]);
                if self.have == FRAME_HEADER_LEN {
                    self.begin()?;
                }
                continue;
            }
            let (piece, rest) = bytes.split_at(self.left.min(bytes.len()));
            compare.piece(self.session, piece)?;
            payload(self.session, piece.len());
            (self.left, bytes) = (self.left - piece.len(), rest);
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        self.have = 0;
        match self.dialect {
            Dialect::Sequences => {
                let header = FrameHeader::decode(self.header, FRAME_MAX)?;
                let Some(session) = self.directory.session(header.seq.0) else {
                    bail!("a frame of sequence {} where none may be", header.seq)
                };
                (self.session, self.left) = (session, usize::try_from(header.payload_len())?);
            }
            Dialect::Shim => {
                let header = cc2::Header::decode(self.header)?;
                let is_output = header.kind == cc2::Kind::Stream(cc2::Stream::Stdout) && header.extra == 0;
                ensure!(is_output, "{:?} where output was expected", header.kind);
                self.left = usize::try_from(header.payload)?;
            }
        }
        ensure!(self.left > 0, "an empty frame: the end of a stream that has not ended");
        Ok(())
    }
}

/// Where each session's receiver is.
#[derive(Debug)]
pub(crate) struct Comparison<'a> {
    pub(crate) pattern: &'a Pattern,
    pub(crate) positions: &'a mut [Position],
}

impl Comparison<'_> {
    fn piece(&mut self, session: usize, piece: &[u8]) -> Result<()> {
        let position = &mut self.positions[session];
        let expected = self.pattern.at(*position, piece.len());
        if piece != expected {
            let at = piece.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(0);
            bail!("session {session}: byte {at} of a piece of {} is not what was sent", piece.len());
        }
        position.advance(piece.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scans frames of (sequence, session whose payload it is, where that begins, length), cut into pieces of `cut`.
    fn scan(frames: &[(u64, usize, usize, usize)], cut: usize) -> Result<usize> {
        let pattern = Pattern::new();
        let mut bytes = Vec::new();
        for &(seq, session, from, len) in frames {
            let mut at = Position::start(session);
            at.advance(from);
            bytes.extend_from_slice(&Dialect::Sequences.header(seq, u32::try_from(len)?));
            bytes.extend_from_slice(pattern.at(at, len));
        }
        let mut positions: Vec<_> = (0..7).map(Position::start).collect();
        let mut compare = Comparison { pattern: &pattern, positions: &mut positions };
        let mut scanner = Scanner::new(Dialect::Sequences, Directory::new(&[11, 13], 5), 5);
        let mut total = 0;
        for piece in bytes.chunks(cut) {
            scanner.scan(piece, &mut compare, |_, len| total += len)?;
        }
        Ok(total)
    }

    #[test]
    fn what_is_right_passes_in_any_pieces() {
        for cut in [1, 5, 12, 13, 100, 4096] {
            assert_eq!(scan(&[(11, 5, 0, 100), (13, 6, 0, 70_000), (11, 5, 100, 1)], cut).unwrap(), 70_101);
        }
    }

    #[test]
    fn what_is_wrong_does_not() {
        for wrong in [
            // Lost, again, out of turn, another session's, a sequence of nobody, an end.
            &[(11, 5, 0, 100), (11, 5, 101, 99)][..],
            &[(11, 5, 0, 100), (11, 5, 0, 100)],
            &[(11, 5, 100, 100), (11, 5, 0, 100)],
            &[(11, 6, 0, 100)],
            &[(12, 5, 0, 100)],
            &[(11, 5, 0, 0)],
        ] {
            assert!(scan(wrong, 4096).is_err(), "{wrong:?}");
        }
    }
}
