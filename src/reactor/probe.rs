//! What this kernel offers, and what to do where it does not offer enough.
//!
//! Required: Linux 6.1. Optional, found by trying: incremental receive buffers (6.12).

use std::fs;
use std::io;

use io_uring::{Probe, opcode};
use nix::errno::Errno;

use super::buf_pool::BufGroup;
use crate::buf::Direction;

/// The oldest kernel supported, as (major, minor). Source: Debian 12.
pub const MINIMUM_KERNEL: (u32, u32) = (6, 1);

/// What is there beyond the required.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Receives of several sockets share a buffer.
    pub incremental_buffers: bool,
}

/// Why there can be no reactor here. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel is older than required.
    #[error("Linux {found} is too old: ringway needs {}.{} or newer", MINIMUM_KERNEL.0, MINIMUM_KERNEL.1)]
    TooOld {
        /// Its release string.
        found: String,
    },
    /// `kernel.io_uring_disabled` forbids it.
    #[error(
        "io_uring is disabled on this host (kernel.io_uring_disabled = {value}): run \
         `sysctl -w kernel.io_uring_disabled=0`{}",
        if *value == 1 { ", or run ringway as root or in the group kernel.io_uring_group names" } else { "" }
    )]
    Disabled {
        /// The setting: 1 restricted to a group, 2 for everybody.
        value: u32,
    },
    /// A seccomp profile forbids it.
    #[error(
        "io_uring is forbidden to this process ({errno}), most likely by a container's seccomp profile: allow \
         io_uring_setup, io_uring_enter and io_uring_register, or run ringway on the host"
    )]
    Forbidden {
        /// What the kernel said.
        errno: Errno,
    },
    /// The kernel was built without it.
    #[error("this kernel has no io_uring (built without CONFIG_IO_URING, or hidden by seccomp)")]
    Missing,
    /// Locked memory is too little.
    #[error(
        "not enough lockable memory for a ring (RLIMIT_MEMLOCK is {limit}): raise it with `ulimit -l unlimited`, or \
         LimitMEMLOCK=infinity in the service"
    )]
    LockedMemory {
        /// The limit in force.
        limit: String,
    },
    /// Out of descriptors.
    #[error("no descriptor left for a ring (RLIMIT_NOFILE): raise it with `ulimit -n`, or LimitNOFILE= in the service")]
    Descriptors,
    /// An operation that every supported kernel has is missing.
    #[error("this kernel's io_uring lacks {0}: ringway needs Linux 6.1 or newer, unpatched")]
    Operation(&'static str),
    /// Anything else.
    #[error("io_uring cannot be used here: {0}")]
    Other(io::Error),
}

/// Makes a ring as a shard does, looks at what it can do, and drops it.
///
/// # Errors
/// One message that says what to do.
pub fn probe() -> Result<Features, ProbeError> {
    check_release(&release())?;
    let ring = super::build_ring().map_err(|error| explain(error, disabled_setting()))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(ProbeError::Other)?;
    let needed = [
        (opcode::RecvMulti::CODE, "receive"),
        (opcode::Send::CODE, "send"),
        (opcode::SendMsg::CODE, "sendmsg"),
        (opcode::PollAdd::CODE, "poll"),
        (opcode::AsyncCancel::CODE, "cancel"),
        (opcode::Read::CODE, "read"),
        (opcode::Timeout::CODE, "timeout"),
        (opcode::OpenAt::CODE, "openat"),
        (opcode::Writev::CODE, "writev"),
        (opcode::Readv::CODE, "readv"),
        (opcode::Fallocate::CODE, "fallocate"),
        (opcode::Close::CODE, "close"),
    ];
    if let Some((_, name)) = needed.into_iter().find(|&(code, _)| !probe.is_supported(code)) {
        return Err(ProbeError::Operation(name));
    }
    let try_group = |incremental| BufGroup::register(&ring.submitter(), Direction::ToAgent, (4, 4096), incremental);
    let incremental = try_group(true);
    let incremental_buffers = incremental.is_ok();
    if !incremental_buffers {
        try_group(false).map_err(|error| explain(error, disabled_setting()))?;
    }
    drop(ring);
    Ok(Features { incremental_buffers })
}

/// This kernel's release string.
pub fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Checks a release string against [`MINIMUM_KERNEL`]; an unreadable one passes, the ring itself will tell.
///
/// # Errors
/// The kernel is too old.
pub fn check_release(release: &str) -> Result<(), ProbeError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < MINIMUM_KERNEL => {
            Err(ProbeError::TooOld { found: release.to_owned() })
        }
        _ => Ok(()),
    }
}

/// The setting `kernel.io_uring_disabled`; 0 where the kernel does not have it.
pub fn disabled_setting() -> u32 {
    let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    setting.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Turns what the kernel said to a new ring into what an operator can do about it.
pub(super) fn explain(error: io::Error, disabled: u32) -> ProbeError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) if disabled > 0 => ProbeError::Disabled { value: disabled },
        Some(errno @ (Errno::EPERM | Errno::EACCES)) => ProbeError::Forbidden { errno },
        Some(Errno::ENOSYS) => ProbeError::Missing,
        Some(Errno::ENOMEM) => ProbeError::LockedMemory { limit: crate::os::rlimit::locked_memory() },
        Some(Errno::EMFILE | Errno::ENFILE) => ProbeError::Descriptors,
        Some(Errno::EINVAL) => ProbeError::TooOld { found: release() },
        _ => ProbeError::Other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        for good in ["6.1.0-18-amd64", "6.18.44", "10.0", "7.0-rc1", "", "unreadable"] {
            assert!(check_release(good).is_ok(), "{good}");
        }
        for old in ["5.19.0", "4.4", "6.0.12-generic"] {
            assert!(check_release(old).is_err(), "{old}");
        }
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let said = |errno: Errno, disabled| explain(io::Error::from(errno), disabled).to_string();
        assert!(said(Errno::EPERM, 2).contains("sysctl -w kernel.io_uring_disabled=0"));
        assert!(said(Errno::EPERM, 1).contains("kernel.io_uring_group"));
        assert!(said(Errno::EPERM, 0).contains("seccomp"));
        assert!(said(Errno::ENOSYS, 0).contains("CONFIG_IO_URING"));
        assert!(said(Errno::ENOMEM, 0).contains("ulimit -l"));
        assert!(said(Errno::EMFILE, 0).contains("ulimit -n"));
        assert!(said(Errno::EINVAL, 0).contains("6.1"));
    }
}
