//! The receive buffers of the simulated ring: two groups, counted strictly.
//!
//! Whoever reads, retains or releases a buffer that nobody holds panics, and a released buffer is poisoned, so that a
//! view kept without a reference shows as wrong bytes. The asymmetry to know: an incremental group lets several
//! receives share one buffer, which comes back when the kernel has filled it and all of them are released.

use std::collections::VecDeque;
use std::ops::Range;

use ringway::buf::{BufView, Direction, Leases, Source};

/// What a released byte becomes.
const POISON: u8 = 0xDB;

/// Size of one group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupShape {
    pub(crate) count: u16,
    pub(crate) len: usize,
    pub(crate) incremental: bool,
}

impl GroupShape {
    pub(crate) fn bytes(self) -> usize {
        usize::from(self.count) * self.len
    }
}

#[derive(Debug)]
struct Buf {
    data: Vec<u8>,
    /// References of the driver, of the plane and of sends.
    refs: u32,
    /// Bytes received into it.
    fill: usize,
    /// The kernel may receive more into it.
    filling: bool,
}

#[derive(Debug)]
struct Group {
    bufs: Vec<Buf>,
    free: VecDeque<u16>,
    current: Option<u16>,
    shape: GroupShape,
}

/// Both groups.
#[derive(Debug)]
pub(crate) struct SimLeases {
    groups: [Group; 2],
}

fn index(direction: Direction) -> usize {
    match direction {
        Direction::ToClient => 0,
        Direction::ToAgent => 1,
    }
}

impl Group {
    fn new(shape: GroupShape) -> Group {
        let buf = || Buf { data: vec![POISON; shape.len], refs: 0, fill: 0, filling: false };
        Group {
            bufs: (0..shape.count).map(|_| buf()).collect(),
            free: (0..shape.count).collect(),
            current: None,
            shape,
        }
    }

    fn buf(&mut self, id: u16) -> &mut Buf {
        &mut self.bufs[usize::from(id)]
    }

    /// The buffer the next receive goes to.
    fn next_buf(&mut self) -> Option<u16> {
        if let Some(id) = self.current {
            return Some(id);
        }
        let id = self.free.pop_front()?;
        *self.buf(id) = Buf { data: std::mem::take(&mut self.buf(id).data), refs: 0, fill: 0, filling: true };
        self.current = Some(id);
        Some(id)
    }

    fn receive(&mut self, bytes: &[u8]) -> Option<(u16, usize, usize)> {
        let id = self.next_buf()?;
        let incremental = self.shape.incremental;
        let buf = self.buf(id);
        let at = buf.fill;
        let len = bytes.len().min(buf.data.len() - at);
        buf.data[at..at + len].copy_from_slice(&bytes[..len]);
        buf.fill += len;
        buf.refs += 1;
        if !incremental || buf.fill == buf.data.len() {
            buf.filling = false;
            self.current = None;
        }
        Some((id, at, len))
    }

    fn release(&mut self, id: u16) {
        let buf = self.buf(id);
        assert!(buf.refs > 0, "buffer {id} released by somebody who does not hold it");
        buf.refs -= 1;
        if buf.refs > 0 {
            return;
        }
        let fill = buf.fill;
        buf.data[..fill].fill(POISON);
        if !buf.filling {
            self.free.push_back(id);
        }
    }
}

impl SimLeases {
    pub(crate) fn new(to_client: GroupShape, to_agent: GroupShape) -> SimLeases {
        SimLeases { groups: [Group::new(to_client), Group::new(to_agent)] }
    }

    /// Receives from the front of `bytes` into one buffer; `None` is ENOBUFS.
    pub(crate) fn receive(&mut self, direction: Direction, bytes: &[u8]) -> Option<BufView> {
        let (id, at, len) = self.groups[index(direction)].receive(bytes)?;
        let (off, len) = (u32::try_from(at).expect("small"), u32::try_from(len).expect("small"));
        Some(BufView { source: Source::Lease(direction, id), off, len })
    }

    /// Buffers that receives could take now.
    pub(crate) fn credits(&self, direction: Direction) -> usize {
        let group = &self.groups[index(direction)];
        group.free.len() + usize::from(group.current.is_some())
    }

    /// References held by anybody to buffers of a direction.
    pub(crate) fn refs(&self, direction: Direction) -> usize {
        self.groups[index(direction)].bufs.iter().map(|buf| buf.refs as usize).sum()
    }

    /// Spoils one byte of a received view.
    pub(crate) fn corrupt(&mut self, view: BufView, at: usize) {
        if let Source::Lease(direction, id) = view.source {
            self.groups[index(direction)].buf(id).data[view.off as usize + at] ^= 0x40;
        }
    }
}

impl Leases for SimLeases {
    fn bytes(&self, direction: Direction, buf: u16, range: Range<usize>) -> &[u8] {
        let lease = &self.groups[index(direction)].bufs[usize::from(buf)];
        assert!(lease.refs > 0, "buffer {buf} read by somebody who does not hold it");
        assert!(range.end <= lease.fill, "buffer {buf} read behind what was received");
        &lease.data[range]
    }

    fn bytes_mut(&mut self, direction: Direction, buf: u16, range: Range<usize>) -> &mut [u8] {
        let lease = &mut self.groups[index(direction)].bufs[usize::from(buf)];
        assert!(lease.refs > 0, "buffer {buf} written by somebody who does not hold it");
        assert!(range.end <= lease.fill, "buffer {buf} written behind what was received");
        &mut lease.data[range]
    }

    fn is_scarce(&self, direction: Direction) -> bool {
        self.credits(direction) * 2 < self.groups[index(direction)].bufs.len()
    }

    fn retain(&mut self, direction: Direction, buf: u16) {
        let lease = self.groups[index(direction)].buf(buf);
        assert!(lease.refs > 0, "buffer {buf} retained by somebody who does not hold it");
        lease.refs += 1;
    }

    fn release(&mut self, direction: Direction, buf: u16) {
        self.groups[index(direction)].release(buf);
    }
}
