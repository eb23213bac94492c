//! The pool of chunks: owned memory of one size with counted references. It never blocks and never fails; whoever
//! fills it watches `in_use` and stops its feeder. A chunk that is freed is kept until the pool's owner says that it
//! is time to give some back. The asymmetry to know: bytes of a chunk that somebody holds a view of are never written
//! again, only the part behind them is.

use crate::limits::{CHUNK_LEN, SPARE_CHUNKS};

/// One chunk of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkId(u32);

#[derive(Debug, Default)]
struct Slot {
    /// Empty while nobody holds a reference.
    data: Box<[u8]>,
    refs: u32,
}

/// Chunks of [`CHUNK_LEN`] bytes.
#[derive(Debug, Default)]
pub struct ChunkPool {
    slots: Vec<Slot>,
    free: Vec<u32>,
    spare: Vec<Box<[u8]>>,
    /// The fewest spare chunks there were since the last [`ChunkPool::trim`].
    unneeded: usize,
}

impl ChunkPool {
    /// A chunk with one reference, which the caller holds. Its bytes are whatever they were.
    ///
    /// # Panics
    /// Never: 2^32 chunks are 128 TiB.
    pub fn take(&mut self) -> ChunkId {
        let data = self.spare.pop().unwrap_or_else(|| vec![0; CHUNK_LEN].into_boxed_slice());
        self.unneeded = self.unneeded.min(self.spare.len());
        let slot = Slot { data, refs: 1 };
        match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = slot;
                ChunkId(index)
            }
            None => {
                self.slots.push(slot);
                ChunkId(u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 chunks"))
            }
        }
    }

    /// One more reference.
    pub fn retain(&mut self, id: ChunkId) {
        let slot = &mut self.slots[id.0 as usize];
        assert!(slot.refs > 0, "a chunk nobody holds");
        slot.refs += 1;
    }

    /// One reference less; the last one frees the chunk.
    pub fn release(&mut self, id: ChunkId) {
        let slot = &mut self.slots[id.0 as usize];
        assert!(slot.refs > 0, "a chunk nobody holds");
        slot.refs -= 1;
        if slot.refs == 0 {
            let data = std::mem::take(&mut slot.data);
            self.free.push(id.0);
            self.spare.push(data);
        }
    }

    /// Gives back the spare chunks that were not needed since the last call, but for [`SPARE_CHUNKS`].
    pub fn trim(&mut self) {
        let kept = (self.spare.len() - self.unneeded).max(SPARE_CHUNKS);
        self.spare.truncate(kept);
        self.unneeded = self.spare.len();
    }

    /// Gives back every spare chunk but [`SPARE_CHUNKS`].
    pub fn rest(&mut self) {
        self.spare.truncate(SPARE_CHUNKS);
        self.spare.shrink_to_fit();
        self.unneeded = self.spare.len();
        if self.in_use() == 0 {
            (self.slots, self.free) = (Vec::new(), Vec::new());
        }
    }

    /// Chunks that are kept and nobody holds.
    pub fn spare(&self) -> usize {
        self.spare.len()
    }

    /// The whole chunk.
    pub fn bytes(&self, id: ChunkId) -> &[u8] {
        &self.slots[id.0 as usize].data
    }

    /// The same, to be written behind what is held.
    pub fn bytes_mut(&mut self, id: ChunkId) -> &mut [u8] {
        &mut self.slots[id.0 as usize].data
    }

    /// Writes `bytes` at `at`.
    pub fn write(&mut self, id: ChunkId, at: u32, bytes: &[u8]) {
        let at = at as usize;
        self.slots[id.0 as usize].data[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Copies `range` of one chunk to `at` in another (or the same).
    pub fn copy_within(&mut self, to: ChunkId, at: u32, from: ChunkId, range: std::ops::Range<usize>) {
        let at = at as usize;
        if to == from {
            self.slots[to.0 as usize].data.copy_within(range, at);
            return;
        }
        let mut target = std::mem::take(&mut self.slots[to.0 as usize].data);
        let source = &self.slots[from.0 as usize].data[range];
        target[at..at + source.len()].copy_from_slice(source);
        self.slots[to.0 as usize].data = target;
    }

    /// Chunks that somebody holds.
    pub fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_lives_as_long_as_its_last_reference() {
        let mut pool = ChunkPool::default();
        let id = pool.take();
        pool.retain(id);
        pool.release(id);
        assert_eq!(pool.in_use(), 1);
        pool.release(id);
        assert_eq!(pool.in_use(), 0);
        assert_eq!(pool.take(), id, "slots are reused");
    }

    #[test]
    fn copies_between_chunks() {
        let mut pool = ChunkPool::default();
        let (a, b) = (pool.take(), pool.take());
        pool.write(a, 3, b"hello");
        pool.copy_within(b, 10, a, 3..8);
        assert_eq!(&pool.bytes(b)[10..15], b"hello");
        pool.copy_within(a, 0, a, 3..8);
        assert_eq!(&pool.bytes(a)[..5], b"hello");
    }

    fn take_and_release(pool: &mut ChunkPool, count: usize) {
        let ids: Vec<_> = (0..count).map(|_| pool.take()).collect();
        ids.into_iter().for_each(|id| pool.release(id));
    }

    #[test]
    fn what_is_needed_again_and_again_is_kept_and_the_rest_given_back() {
        let mut pool = ChunkPool::default();
        take_and_release(&mut pool, SPARE_CHUNKS + 20);
        pool.trim();
        assert_eq!(pool.spare(), SPARE_CHUNKS + 20, "all were needed");
        take_and_release(&mut pool, SPARE_CHUNKS + 5);
        pool.trim();
        assert_eq!(pool.spare(), SPARE_CHUNKS + 5);
        pool.trim();
        assert_eq!(pool.spare(), SPARE_CHUNKS);
    }

    #[test]
    fn at_rest_few_spare_chunks_are_left_and_those_in_use() {
        let mut pool = ChunkPool::default();
        let held = pool.take();
        pool.write(held, 0, b"held");
        take_and_release(&mut pool, SPARE_CHUNKS + 20);
        pool.rest();
        assert_eq!((pool.spare(), pool.in_use(), &pool.bytes(held)[..4]), (SPARE_CHUNKS, 1, &b"held"[..]));
        pool.release(held);
        pool.rest();
        assert_eq!((pool.spare(), pool.slots.capacity()), (SPARE_CHUNKS, 0));
        take_and_release(&mut pool, 2);
        assert_eq!((pool.spare(), pool.in_use()), (SPARE_CHUNKS, 0));
    }
}
