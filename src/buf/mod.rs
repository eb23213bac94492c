//! Memory that payload lives in while it passes: views of receive buffers, and chunks of owned memory.
//!
//! A piece of payload is a [`BufView`], never a pointer. Whoever keeps a view keeps a reference to its [`Source`]
//! (`retain`, `release`); memory with no reference left goes back where it came from. The asymmetry to know:
//! receive buffers ([`Leases`]) belong to the ring and are few, so views of them stay only while there are enough;
//! then they are copied into chunks, which belong to the shard. No descriptor, no `unsafe`, no protocol here.

mod chunks;

pub use chunks::{ChunkId, ChunkPool};

/// Which of a shard's two directions a receive buffer serves. One can never starve the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Received from agents, owed to clients.
    ToClient,
    /// Received from clients, owed to agents.
    ToAgent,
}

/// Where a view's bytes live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Receive buffer with this number in the group of that direction.
    Lease(Direction, u16),
    /// A chunk of owned memory.
    Chunk(ChunkId),
}

/// A piece of received bytes: `len` bytes at `off` in `source`. Holding one means holding a reference to `source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufView {
    /// Whose memory.
    pub source: Source,
    /// First byte.
    pub off: u32,
    /// Number of bytes.
    pub len: u32,
}

impl BufView {
    /// The view without its first `n` bytes.
    ///
    /// # Panics
    /// When it has fewer; that is a fault of ours.
    #[must_use]
    pub fn skip(self, n: u32) -> BufView {
        assert!(n <= self.len, "skip past the end of a view");
        BufView { off: self.off + n, len: self.len - n, ..self }
    }

    /// The view's first `n` bytes.
    ///
    /// # Panics
    /// When it has fewer; that is a fault of ours.
    #[must_use]
    pub fn first(self, n: u32) -> BufView {
        assert!(n <= self.len, "more than a view has");
        BufView { len: n, ..self }
    }

    /// The byte after its last, as an offset in its source.
    pub fn end(self) -> u32 {
        self.off + self.len
    }

    /// Its place as indices.
    pub fn range(self) -> std::ops::Range<usize> {
        self.off as usize..self.end() as usize
    }
}

/// The receive buffers: the ring's own in a daemon, plain vectors under the simulator.
pub trait Leases {
    /// The bytes of `range` in a buffer.
    fn bytes(&self, direction: Direction, buf: u16, range: std::ops::Range<usize>) -> &[u8];
    /// The same bytes, to be changed where they are.
    fn bytes_mut(&mut self, direction: Direction, buf: u16, range: std::ops::Range<usize>) -> &mut [u8];
    /// Whether so few buffers of a direction are left to receive into that what waits must leave its own.
    fn is_scarce(&self, direction: Direction) -> bool;
    /// One more reference to a buffer.
    fn retain(&mut self, direction: Direction, buf: u16);
    /// One reference less; the last one gives the buffer back.
    fn release(&mut self, direction: Direction, buf: u16);
}

/// All memory of one shard: its receive buffers and its chunks.
#[derive(Debug)]
pub struct Memory<L> {
    /// The receive buffers.
    pub leases: L,
    /// The owned memory.
    pub chunks: ChunkPool,
}

impl<L: Leases> Memory<L> {
    /// The bytes of a view.
    pub fn bytes(&self, view: BufView) -> &[u8] {
        match view.source {
            Source::Lease(direction, buf) => self.leases.bytes(direction, buf, view.range()),
            Source::Chunk(id) => &self.chunks.bytes(id)[view.range()],
        }
    }

    /// The bytes of a view of a receive buffer, and the chunks to copy them to; `None` for other views.
    pub fn lease_and_chunks(&mut self, view: BufView) -> Option<(&[u8], &mut ChunkPool)> {
        match view.source {
            Source::Lease(direction, buf) => Some((self.leases.bytes(direction, buf, view.range()), &mut self.chunks)),
            Source::Chunk(_) => None,
        }
    }

    /// The bytes of a view, to be changed where they are: one header in place of another. Nobody may have a send of
    /// them in flight.
    pub fn bytes_mut(&mut self, view: BufView) -> &mut [u8] {
        match view.source {
            Source::Lease(direction, buf) => self.leases.bytes_mut(direction, buf, view.range()),
            Source::Chunk(id) => &mut self.chunks.bytes_mut(id)[view.range()],
        }
    }

    /// One more reference to a view's memory.
    pub fn retain(&mut self, source: Source) {
        match source {
            Source::Lease(direction, buf) => self.leases.retain(direction, buf),
            Source::Chunk(id) => self.chunks.retain(id),
        }
    }

    /// One reference less.
    pub fn release(&mut self, source: Source) {
        match source {
            Source::Lease(direction, buf) => self.leases.release(direction, buf),
            Source::Chunk(id) => self.chunks.release(id),
        }
    }

    /// Copies a view's bytes to `at` in a chunk.
    ///
    /// # Panics
    /// When they do not fit behind `at`; that is a fault of ours.
    pub fn copy_to_chunk(&mut self, to: ChunkId, at: u32, from: BufView) {
        match from.source {
            Source::Lease(direction, buf) => {
                let bytes = self.leases.bytes(direction, buf, from.range());
                self.chunks.write(to, at, bytes);
            }
            Source::Chunk(id) => self.chunks.copy_within(to, at, id, from.range()),
        }
    }
}
