//! The limits the kernel puts on this process.

use std::io;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Raises the soft limit on descriptors to the hard one and returns it.
///
/// # Errors
/// The kernel's; raising up to the hard limit needs no privilege.
pub fn raise_descriptors() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Makes the kernel's table of this process's descriptors long enough for `count` of them. It becomes twice as long
/// when it is full, and whoever opens the next descriptor waits for milliseconds if the process has several threads:
/// call this before there are any.
///
/// # Errors
/// The kernel's: `count` is over the limit.
pub fn reserve_descriptors(count: u64) -> io::Result<()> {
    let last = i32::try_from(count.saturating_sub(1)).unwrap_or(i32::MAX);
    let any = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
    nix::unistd::close(fcntl(&any, FcntlArg::F_DUPFD_CLOEXEC(last))?)?;
    Ok(())
}

/// The soft and the hard limit on descriptors.
///
/// # Errors
/// The kernel's.
pub fn descriptors() -> io::Result<(u64, u64)> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?)
}

/// The limit on locked memory, for people.
pub fn locked_memory() -> String {
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((RLIM_INFINITY, _)) => "unlimited".to_owned(),
        Ok((soft, _)) => format!("{} KiB", soft / 1024),
        Err(_) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_reserved_up_to_the_limit() {
        let (soft, _) = descriptors().unwrap();
        reserve_descriptors(soft.min(1_024)).unwrap();
        assert!(soft >= 1 << 31 || reserve_descriptors(soft + 1).is_err());
    }
}
