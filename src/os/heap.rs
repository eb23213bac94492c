//! How the C library's allocator behaves: large blocks go back to the kernel when they are freed.

/// Takes blocks of `len` bytes and more from the kernel one by one, and gives each back when it is freed. Otherwise
/// they would come from heaps that shrink only when their very end is free, and stay in them after a burst.
#[cfg(target_env = "gnu")]
pub fn return_blocks_of(len: usize) {
    let Ok(len) = nix::libc::c_int::try_from(len) else { return };
    // SAFETY: it sets a number inside the allocator; an allocator that refuses it goes on as before.
    let _ = unsafe { nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, len) };
}

/// Other libraries' allocators have no such setting.
#[cfg(not(target_env = "gnu"))]
pub fn return_blocks_of(_: usize) {}
