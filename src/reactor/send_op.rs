//! One send in flight, or one write or read of a file: the kernel's view of the pieces, at an address that does not
//! move while it uses them.

use std::fmt;
use std::ptr;

use nix::libc;

use crate::buf::{BufView, Leases, Memory, Source};

/// The message of one send. Boxed and pooled: its address is the kernel's until the send completes.
pub(super) struct SendOp {
    header: libc::msghdr,
    pieces: Vec<libc::iovec>,
    sources: Vec<Source>,
}

impl fmt::Debug for SendOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendOp").field("pieces", &self.pieces.len()).finish_non_exhaustive()
    }
}

impl Default for SendOp {
    fn default() -> SendOp {
        let header = libc::msghdr {
            msg_name: ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: ptr::null_mut(),
            msg_iovlen: 0,
            msg_control: ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        SendOp { header, pieces: Vec::new(), sources: Vec::new() }
    }
}

impl SendOp {
    /// Fills the message with `views` and takes a reference to the memory of each.
    pub(super) fn load<L: Leases>(&mut self, mem: &mut Memory<L>, views: &[BufView]) {
        self.pieces.clear();
        self.sources.clear();
        for &view in views {
            let bytes = mem.bytes(view);
            self.pieces.push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
            if self.sources.last() != Some(&view.source) {
                mem.retain(view.source);
                self.sources.push(view.source);
            }
        }
        self.header.msg_iov = self.pieces.as_mut_ptr();
        self.header.msg_iovlen = self.pieces.len();
    }

    /// The same for chunks that are to be filled, one piece of each.
    pub(super) fn load_to_fill<L: Leases>(&mut self, mem: &mut Memory<L>, views: &[BufView]) {
        self.pieces.clear();
        self.sources.clear();
        for &view in views {
            let Source::Chunk(chunk) = view.source else { unreachable!("receive buffers are the kernel's to fill") };
            let bytes = &mut mem.chunks.bytes_mut(chunk)[view.range()];
            self.pieces.push(libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() });
            mem.retain(view.source);
            self.sources.push(view.source);
        }
    }

    /// The list of pieces and how many they are, for the kernel to read.
    pub(super) fn pieces(&self) -> (*const libc::iovec, u32) {
        (self.pieces.as_ptr(), u32::try_from(self.pieces.len()).expect("as many as one operation takes"))
    }

    /// Bytes of all pieces.
    pub(super) fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.iov_len).sum()
    }

    /// The message, for the kernel to read.
    pub(super) fn message(&self) -> *const libc::msghdr {
        &raw const self.header
    }

    /// The only piece, when there is one: a plain send is cheaper.
    pub(super) fn single(&self) -> Option<&libc::iovec> {
        match self.pieces.as_slice() {
            [piece] => Some(piece),
            _ => None,
        }
    }

    /// The send has completed: gives its references back.
    pub(super) fn unload<L: Leases>(&mut self, mem: &mut Memory<L>) {
        for source in self.sources.drain(..) {
            mem.release(source);
        }
    }
}
