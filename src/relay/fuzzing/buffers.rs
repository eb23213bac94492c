//! The receive buffers of the fuzzed plane: few, small, counted strictly, and overwritten when they are given back.
//!
//! The asymmetry to know: a buffer nobody holds is garbage, so that a view kept without a reference shows as wrong
//! bytes.

use std::ops::Range;

use crate::buf::{BufView, Direction, Leases, Source};

/// Buffers of each direction.
const COUNT: u16 = 3;
/// What the bytes of a buffer that was given back become.
const GARBAGE: u8 = 0xDB;

#[derive(Debug)]
struct Buffer {
    data: Vec<u8>,
    refs: u32,
}

/// Receive buffers of both directions.
#[derive(Debug)]
pub(super) struct Buffers([Vec<Buffer>; 2]);

impl Buffers {
    /// Buffers of `len` bytes.
    pub(super) fn new(len: usize) -> Buffers {
        let buffer = |_| Buffer { data: vec![GARBAGE; len], refs: 0 };
        Buffers([(); 2].map(|()| (0..COUNT).map(buffer).collect()))
    }

    /// Receives the front of `bytes`; `None` when every buffer is held. The reference is the caller's.
    pub(super) fn fill(&mut self, direction: Direction, bytes: &[u8]) -> Option<BufView> {
        let (index, buffer) = (0_u16..).zip(&mut self.0[direction as usize]).find(|(_, buffer)| buffer.refs == 0)?;
        let len = bytes.len().min(buffer.data.len());
        buffer.data[..len].copy_from_slice(&bytes[..len]);
        buffer.refs = 1;
        let len = u32::try_from(len).expect("a short buffer");
        Some(BufView { source: Source::Lease(direction, index), off: 0, len })
    }

    /// Bytes of one direction.
    pub(super) fn bytes(&self) -> usize {
        self.0[0].iter().map(|buffer| buffer.data.len()).sum()
    }

    /// Whether nobody holds any.
    pub(super) fn are_free(&self) -> bool {
        self.0.iter().flatten().all(|buffer| buffer.refs == 0)
    }

    fn held(&mut self, direction: Direction, buf: u16) -> &mut Buffer {
        let buffer = &mut self.0[direction as usize][usize::from(buf)];
        assert!(buffer.refs > 0, "a buffer nobody holds");
        buffer
    }
}

impl Leases for Buffers {
    fn bytes(&self, direction: Direction, buf: u16, range: Range<usize>) -> &[u8] {
        let buffer = &self.0[direction as usize][usize::from(buf)];
        assert!(buffer.refs > 0, "a buffer nobody holds");
        &buffer.data[range]
    }

    fn bytes_mut(&mut self, direction: Direction, buf: u16, range: Range<usize>) -> &mut [u8] {
        &mut self.held(direction, buf).data[range]
    }

    fn is_scarce(&self, direction: Direction) -> bool {
        let free = self.0[direction as usize].iter().filter(|buffer| buffer.refs == 0).count();
        free * 2 < usize::from(COUNT)
    }

    fn retain(&mut self, direction: Direction, buf: u16) {
        self.held(direction, buf).refs += 1;
    }

    fn release(&mut self, direction: Direction, buf: u16) {
        let buffer = self.held(direction, buf);
        buffer.refs -= 1;
        if buffer.refs == 0 {
            buffer.data.fill(GARBAGE);
        }
    }
}
