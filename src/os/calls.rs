//! The system calls that a daemon makes once it serves; all others are refused (seccomp(2)).
//!
//! Owns the list. A call that is not on it fails with `ENOSYS`, as on a kernel that does not have it: a C library that
//! is newer than the list has a way round for that error, and for no other. The process is never killed for a call: a
//! call that was forgotten costs one request its error, not every container its output.

use std::collections::BTreeMap;
use std::io;

use nix::errno::Errno;
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// The one thing that a running daemon registers with a ring: other sockets in its table
/// (`IORING_REGISTER_FILES_UPDATE`).
pub const RING_FILES_UPDATE: u8 = 6;
/// Set when a ring is named by its registered number (`IORING_REGISTER_USE_REGISTERED_RING`).
const RING_BY_NUMBER: u64 = 1 << 31;

/// Calls that pass whatever their arguments are.
#[rustfmt::skip]
const CALLS: &[libc::c_long] = &[
    // Sockets, and what is read from and written to descriptors.
    libc::SYS_accept4, libc::SYS_connect, libc::SYS_getpeername, libc::SYS_getsockname, libc::SYS_getsockopt,
    libc::SYS_setsockopt, libc::SYS_shutdown, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_sendmmsg,
    libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_read, libc::SYS_readv, libc::SYS_write, libc::SYS_writev,
    libc::SYS_pread64, libc::SYS_lseek, libc::SYS_close, libc::SYS_dup, libc::SYS_fcntl,
    // Rings, and waiting.
    libc::SYS_io_uring_enter, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_ppoll,
    libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_nanosleep, libc::SYS_restart_syscall,
    // Names of files. What may be opened, and what removed, is the other layer's to say.
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_readlinkat,
    libc::SYS_faccessat, libc::SYS_getcwd, libc::SYS_getdents64, libc::SYS_unlinkat,
    // A log line too long for one datagram goes to the journal as a file in memory.
    libc::SYS_memfd_create,
    // Memory and threads.
    libc::SYS_brk, libc::SYS_madvise, libc::SYS_mremap, libc::SYS_munmap, libc::SYS_futex, libc::SYS_membarrier,
    libc::SYS_rseq, libc::SYS_sched_getaffinity, libc::SYS_sched_yield, libc::SYS_set_robust_list, libc::SYS_gettid,
    libc::SYS_sigaltstack, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_exit,
    libc::SYS_exit_group,
    // What it asks about itself.
    libc::SYS_getpid, libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getrandom, libc::SYS_getrusage,
];

/// What some of them were called before; newer machines have only the ones above.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER_CALLS: &[libc::c_long] = &[
    libc::SYS_access, libc::SYS_epoll_wait, libc::SYS_lstat, libc::SYS_poll, libc::SYS_readlink, libc::SYS_stat,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER_CALLS: &[libc::c_long] = &[];

/// What an argument has to be.
#[derive(Debug, Clone, Copy)]
enum Argument {
    Is(u64),
    /// Of these bits, exactly those are set.
    Has {
        of: u64,
        set: u64,
    },
}

/// Calls that pass when one argument, by its number, is as said.
fn restricted_calls() -> Vec<(libc::c_long, u8, Argument)> {
    use Argument::{Has, Is};
    let unix = Is(libc::AF_UNIX.unsigned_abs().into());
    let no_code = Has { of: libc::PROT_EXEC.unsigned_abs().into(), set: 0 };
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    vec![
        (libc::SYS_socket, 0, unix),
        (libc::SYS_socketpair, 0, unix),
        (libc::SYS_mmap, 2, no_code),
        (libc::SYS_mprotect, 2, no_code),
        // Threads, no processes. Flags of clone3 lie in memory, where a filter cannot look; who may not call it, calls
        // this.
        (libc::SYS_clone, 0, Has { of: thread, set: thread }),
        (libc::SYS_io_uring_register, 1, Has { of: !RING_BY_NUMBER & 0xffff_ffff, set: RING_FILES_UPDATE.into() }),
        (libc::SYS_ioctl, 1, Is(libc::FIONBIO)),
        (libc::SYS_prctl, 0, Is(libc::PR_SET_NAME.unsigned_abs().into())),
        // A process that aborts sends itself a signal.
        (libc::SYS_tgkill, 0, Is(std::process::id().into())),
    ]
}

/// Refuses every call that is not on the list, to all threads and for good.
///
/// # Errors
/// The kernel's; then nothing is refused.
pub fn close() -> io::Result<()> {
    let unsupported = |error| io::Error::other(format!("{error}"));
    let mut rules: BTreeMap<_, Vec<SeccompRule>> =
        CALLS.iter().chain(OLDER_CALLS).map(|&call| (call, vec![])).collect();
    for (call, number, argument) in restricted_calls() {
        let (operator, value) = match argument {
            Argument::Is(value) => (SeccompCmpOp::Eq, value),
            Argument::Has { of, set } => (SeccompCmpOp::MaskedEq(of), set),
        };
        let condition = SeccompCondition::new(number, SeccompCmpArgLen::Dword, operator, value).map_err(unsupported)?;
        rules.insert(call, vec![SeccompRule::new(vec![condition]).map_err(unsupported)?]);
    }
    let machine = std::env::consts::ARCH.try_into().map_err(unsupported)?;
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, machine).map_err(unsupported)?;
    let program: BpfProgram = filter.try_into().map_err(unsupported)?;
    seccompiler::apply_filter_all_threads(&program).map_err(|error| io::Error::other(error.to_string()))
}

/// Whether the kernel can refuse calls.
///
/// # Errors
/// The kernel's: it cannot, or may not be asked.
pub fn check() -> io::Result<()> {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the call reads the one number it is pointed to, which outlives it, and changes nothing.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    Errno::result(answer)?;
    Ok(())
}
