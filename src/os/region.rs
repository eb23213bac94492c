//! A page-aligned piece of anonymous memory at a fixed address, for what the kernel reads and writes on its own.
//!
//! It hands out raw pointers only: who may touch which bytes when is its owner's rule.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// Anonymous memory, zeroed, unmapped when dropped.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: NonZeroUsize,
}

impl Region {
    /// Maps `len` bytes, rounded up to pages by the kernel.
    ///
    /// # Errors
    /// The kernel's: out of memory, or a `len` of 0.
    pub fn anonymous(len: usize) -> io::Result<Region> {
        let len = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: an anonymous private mapping without a fixed address touches no memory that exists already.
        let base = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_PRIVATE) }?;
        Ok(Region { base: base.cast(), len })
    }

    /// The first byte's address; valid and unmoved until the region is dropped.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Gives the memory back to the kernel; it reads as zeroes from now on, and comes back as it is written.
    ///
    /// # Safety
    /// Nobody may hold a reference to the region's bytes, or miss what is in them.
    pub unsafe fn discard(&self) {
        // A kernel that does not (locked memory) leaves it as it is.
        // SAFETY: the range is that of the mapping made in `anonymous`, which is private and anonymous; that nobody
        // holds a reference to its bytes is the caller's promise.
        let _ = unsafe { madvise(self.base.cast(), self.len.get(), MmapAdvise::MADV_DONTNEED) };
    }

    /// Bytes asked for.
    pub fn len(&self) -> usize {
        self.len.get()
    }

    /// Never: a region has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are those of the mapping made in `anonymous`, which nothing else unmaps; the owner
        // has ended every use of the memory, the kernel's included, before dropping the region.
        let _ = unsafe { munmap(self.base.cast(), self.len.get()) };
    }
}
