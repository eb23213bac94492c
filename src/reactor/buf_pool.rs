//! The receive buffers: one group per direction, lent to the kernel through a provided buffer ring.
//!
//! A buffer is the kernel's from the moment it is put on the ring until a completion names it for the last time,
//! and ours while a reference to it is held. The asymmetry to know: an incremental group's buffer can be both at
//! once, the kernel filling it behind the bytes we look at.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::buf::{BufView, Direction, Leases, Source};
use crate::limits::REST_BYTES;
use crate::os::region::Region;

/// Registration flag of buffers the kernel consumes piece by piece (`IOU_PBUF_RING_INC`, Linux 6.12).
const INCREMENTAL: u16 = 2;

/// What a buffer is doing.
#[derive(Debug, Clone, Copy, Default)]
struct Buffer {
    /// References held by us.
    refs: u32,
    /// The kernel may still put bytes into it.
    lent: bool,
    /// Bytes received into it since it was lent.
    filled: u32,
}

/// One group of buffers of equal size.
#[derive(Debug)]
pub struct BufGroup {
    direction: Direction,
    /// The ring of buffers lent, shared with the kernel.
    ring: Region,
    /// The buffers.
    memory: Region,
    buffers: Vec<Buffer>,
    buffer_len: u32,
    incremental: bool,
    /// Our end of the ring; published by [`BufGroup::publish`].
    tail: u16,
    lent: u16,
    /// Bytes received since the memory was last given back.
    touched: u64,
}

impl BufGroup {
    /// Makes `count` buffers (a power of two) of `len` bytes, registers them as group `id` and lends them all.
    ///
    /// # Errors
    /// The kernel's. `EINVAL` for `incremental` on a kernel that does not know it.
    pub fn register(
        submitter: &Submitter<'_>,
        direction: Direction,
        (count, len): (u16, u32),
        incremental: bool,
    ) -> io::Result<BufGroup> {
        assert!(count.is_power_of_two(), "the ring's size is a mask");
        let ring = Region::anonymous(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Region::anonymous(usize::from(count) * len as usize)?;
        let flags = if incremental { INCREMENTAL } else { 0 };
        let address = ring.base().as_ptr() as u64;
        // SAFETY: the region is page-aligned, holds `count` entries and is zeroed; `BufPool` keeps it until the ring
        // that reads it is gone (the reactor drops its ring first).
        unsafe { submitter.register_buf_ring_with_flags(address, count, group_id(direction), flags) }?;
        let buffers = vec![Buffer::default(); usize::from(count)];
        let (tail, lent, touched) = (0, 0, 0);
        let mut group =
            BufGroup { direction, ring, memory, buffers, buffer_len: len, incremental, tail, lent, touched };
        (0..count).for_each(|buf| group.lend(buf));
        group.publish();
        Ok(group)
    }

    fn buffer_base(&self, buf: u16) -> NonNull<u8> {
        let offset = usize::from(buf) * self.buffer_len as usize;
        assert!(offset + self.buffer_len as usize <= self.memory.len(), "a buffer of this group");
        // SAFETY: the assertion above keeps the offset inside the mapping.
        unsafe { self.memory.base().add(offset) }
    }

    /// Puts a buffer at the ring's end. The kernel sees it after [`BufGroup::publish`].
    fn lend(&mut self, buf: u16) {
        let slot = usize::from(self.tail) & (self.buffers.len() - 1);
        let base = self.buffer_base(buf).as_ptr() as u64;
        let entries = self.ring.base().cast::<BufRingEntry>();
        // SAFETY: `slot` is below the number of entries the region was made for.
        let entry = unsafe { entries.add(slot) };
        // SAFETY: the kernel does not look at entries from its tail on, and this one lies there until `publish`; the
        // region is aligned and every bit pattern is an entry.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(base);
        entry.set_len(self.buffer_len);
        entry.set_bid(buf);
        self.tail = self.tail.wrapping_add(1);
        self.lent += 1;
        self.buffers[usize::from(buf)] = Buffer { refs: 0, lent: true, filled: 0 };
    }

    /// Shows the kernel the buffers lent since the last call.
    pub fn publish(&self) {
        // SAFETY: the region holds at least one entry, zeroed or set by `lend`.
        let tail = unsafe { BufRingEntry::tail(self.ring.base().cast::<BufRingEntry>().as_ptr()) };
        // SAFETY: the tail is an aligned u16 inside the region that only we write and the kernel reads.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Takes note of a completion: `len` bytes in `buf`, `more` when the kernel goes on filling it. The view's
    /// reference belongs to the caller.
    pub fn received(&mut self, buf: u16, len: u32, more: bool) -> BufView {
        let buffer = &mut self.buffers[usize::from(buf)];
        let off = buffer.filled;
        buffer.filled = (off + len).min(self.buffer_len);
        buffer.refs += 1;
        self.touched += u64::from(len);
        if !(self.incremental && more) {
            buffer.lent = false;
            self.lent -= 1;
        }
        BufView { source: Source::Lease(self.direction, buf), off, len: buffer.filled - off }
    }

    /// Buffers the kernel can fill.
    pub fn available(&self) -> usize {
        usize::from(self.lent)
    }

    /// Whether less than half of them is left.
    pub fn is_scarce(&self) -> bool {
        self.available() * 2 < self.buffers.len()
    }

    /// Sockets worth receiving from again, with what is available: an incremental buffer serves many.
    pub fn credit(&self) -> usize {
        if self.incremental { self.available() * 16 } else { self.available() }
    }

    /// Whether every buffer is the kernel's and no reference is held.
    pub fn is_whole(&self) -> bool {
        self.buffers.iter().all(|buffer| buffer.refs == 0 && buffer.lent)
    }

    /// Whether so much was received that giving the memory back is worth it.
    pub fn has_surplus(&self) -> bool {
        self.touched >= REST_BYTES
    }

    /// Gives the buffers' memory back to the kernel if nobody looks at any of it. They stay lent.
    pub fn rest(&mut self) {
        if self.has_surplus() && self.is_whole() {
            // SAFETY: no buffer has a reference left, so nobody looks at the bytes; the kernel writes what a receive
            // brings only inside an enter of this thread (DEFER_TASKRUN), which has returned, and each such receive
            // has been taken note of in `received`.
            unsafe { self.memory.discard() };
            self.touched = 0;
        }
    }

    fn bytes(&self, buf: u16, range: std::ops::Range<usize>) -> &[u8] {
        let buffer = self.buffers[usize::from(buf)];
        assert!(buffer.refs > 0 && range.end <= buffer.filled as usize, "a view of bytes that are held");
        // SAFETY: `filled` never exceeds the buffer's length, so the range lies inside the mapping.
        let start = unsafe { self.buffer_base(buf).add(range.start) };
        // SAFETY: bytes below `filled` of a buffer with references are not written by the kernel any more (it fills
        // behind them, and gets the buffer back only at zero references), and nobody else writes receive buffers.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), range.len()) }
    }

    fn bytes_mut(&mut self, buf: u16, range: std::ops::Range<usize>) -> &mut [u8] {
        let buffer = self.buffers[usize::from(buf)];
        assert!(buffer.refs > 0 && range.end <= buffer.filled as usize, "a view of bytes that are held");
        // SAFETY: `filled` never exceeds the buffer's length, so the range lies inside the mapping.
        let start = unsafe { self.buffer_base(buf).add(range.start) };
        // SAFETY: as in `bytes`, the kernel does not write these bytes any more; `self` is borrowed for as long as the
        // slice lives, so no other slice of them exists.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), range.len()) }
    }

    fn retain(&mut self, buf: u16) {
        let buffer = &mut self.buffers[usize::from(buf)];
        assert!(buffer.refs > 0, "a buffer nobody holds");
        buffer.refs += 1;
    }

    fn release(&mut self, buf: u16) {
        let buffer = &mut self.buffers[usize::from(buf)];
        assert!(buffer.refs > 0, "a buffer nobody holds");
        buffer.refs -= 1;
        if buffer.refs == 0 && !buffer.lent {
            self.lend(buf);
        }
    }
}

/// The number a direction's group is registered under.
pub(super) fn group_id(direction: Direction) -> u16 {
    match direction {
        Direction::ToClient => 0,
        Direction::ToAgent => 1,
    }
}

/// Both groups of one shard.
#[derive(Debug)]
pub struct BufPool {
    /// Received from agents.
    pub to_client: BufGroup,
    /// Received from clients.
    pub to_agent: BufGroup,
}

impl BufPool {
    /// The group of a direction.
    pub fn group(&mut self, direction: Direction) -> &mut BufGroup {
        match direction {
            Direction::ToClient => &mut self.to_client,
            Direction::ToAgent => &mut self.to_agent,
        }
    }
}

impl Leases for BufPool {
    fn bytes(&self, direction: Direction, buf: u16, range: std::ops::Range<usize>) -> &[u8] {
        match direction {
            Direction::ToClient => self.to_client.bytes(buf, range),
            Direction::ToAgent => self.to_agent.bytes(buf, range),
        }
    }

    fn bytes_mut(&mut self, direction: Direction, buf: u16, range: std::ops::Range<usize>) -> &mut [u8] {
        self.group(direction).bytes_mut(buf, range)
    }

    fn is_scarce(&self, direction: Direction) -> bool {
        match direction {
            Direction::ToClient => self.to_client.is_scarce(),
            Direction::ToAgent => self.to_agent.is_scarce(),
        }
    }

    fn retain(&mut self, direction: Direction, buf: u16) {
        self.group(direction).retain(buf);
    }

    fn release(&mut self, direction: Direction, buf: u16) {
        self.group(direction).release(buf);
    }
}
