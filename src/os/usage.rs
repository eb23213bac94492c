//! What this process uses: CPU time, memory, descriptors.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::stat::Mode;
use nix::unistd::{SysconfVar, sysconf};

/// CPU time used so far, user and system, microseconds.
pub fn cpu_us() -> u64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return 0 };
    let micros = |t: nix::sys::time::TimeVal| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000 + u64::try_from(t.tv_usec()).unwrap_or(0)
    };
    micros(usage.user_time()) + micros(usage.system_time())
}

/// Where the kernel tells about this process. Opened once: behind the sandbox there is no opening any more.
#[derive(Debug)]
pub struct Usage {
    memory: File,
    descriptors: RefCell<Dir>,
}

impl Usage {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel's: no /proc.
    pub fn open() -> io::Result<Usage> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let descriptors = Dir::open("/proc/self/fd", flags, Mode::empty())?;
        Ok(Usage { memory: File::open("/proc/self/statm")?, descriptors: RefCell::new(descriptors) })
    }

    /// Resident memory, bytes.
    pub fn memory_bytes(&self) -> u64 {
        let mut text = [0; 128];
        let len = self.memory.read_at(&mut text, 0).unwrap_or(0);
        let statm = String::from_utf8_lossy(&text[..len]);
        let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok());
        pages * page.unwrap_or(4096)
    }

    /// Descriptors open.
    pub fn open_fds(&self) -> u64 {
        let mut descriptors = self.descriptors.borrow_mut();
        // The directory itself and the one above are entries too.
        (descriptors.iter().count() as u64).saturating_sub(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_is_told_anew_each_time() {
        let usage = Usage::open().unwrap();
        for _ in 0..3 {
            let (memory, fds) = (usage.memory_bytes(), usage.open_fds());
            assert!(memory > 0 && fds >= 5, "{memory} {fds}");
        }
    }
}
