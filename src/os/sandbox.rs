//! What a process gives up for good once it has what it needs: rights, and files by their names. The third layer,
//! system calls, is [`super::calls`].
//!
//! The asymmetry to know: both are a thread's, and of the threads it starts afterwards; threads that run already keep
//! what they have.

use std::error::Error;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
};
use nix::errno::Errno;
use nix::libc;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities,
};

/// The newest rules of landlock that are made use of. Later ones would say which sockets may be connected to: those of
/// VMs may be anywhere.
const RULES: ABI = ABI::V8;

/// Forbids to gain rights by running a program, and to do anything with files by their names but to look where a name
/// leads, to connect to sockets, to write and read files below `written`, and to remove files below `emptied`. TCP goes
/// with it, and signals to others; with `abstract_sockets` it stays possible to connect to sockets without a file.
///
/// # Errors
/// Where the kernel has no landlock, with what to do about it; then rights cannot be gained any more, and nothing else
/// has changed.
pub fn close_paths(emptied: &[&Path], written: Option<BorrowedFd<'_>>, abstract_sockets: bool) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    landlock_version()?;
    restrict_paths(emptied, written, abstract_sockets).map_err(io::Error::other)
}

fn restrict_paths(
    emptied: &[&Path],
    written: Option<BorrowedFd<'_>>,
    abstract_sockets: bool,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut scopes = Scope::from_all(RULES);
    if abstract_sockets {
        scopes.remove(Scope::AbstractUnixSocket);
    }
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(RULES))?
        .handle_access(AccessNet::from_all(RULES))?
        .scope(scopes)?;
    let mut rules = rules.create()?;
    for dir in emptied {
        rules = rules.add_rule(PathBeneath::new(PathFd::new(dir)?, AccessFs::RemoveFile))?;
    }
    if let Some(dir) = written {
        rules = rules.add_rule(PathBeneath::new(dir, AccessFs::ReadFile | AccessFs::WriteFile))?;
    }
    rules.restrict_self()?;
    Ok(())
}

/// The version of landlock in the kernel.
///
/// # Errors
/// There is none, with what to do about it.
pub fn landlock_version() -> io::Result<i64> {
    const ASK_VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no pointer and makes nothing; it answers with a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0_usize, 0_usize, ASK_VERSION) };
    Errno::result(version).map_err(|errno| {
        io::Error::other(match errno {
            Errno::EOPNOTSUPP => "landlock is switched off: add it to lsm= on the kernel's command line".to_owned(),
            Errno::ENOSYS => {
                "the kernel was built without CONFIG_SECURITY_LANDLOCK, or a seccomp profile hides it".to_owned()
            }
            errno => format!("landlock: {errno}"),
        })
    })
}

/// Gives up the calling thread's capabilities, but for the one that reaches the sockets of other users' VMs.
///
/// # Errors
/// The kernel's, or a seccomp profile's.
pub fn drop_capabilities() -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        // The bounding set says what may be gained, which is nothing any more. Who may not change it leaves it.
        let _ = remove_capability_from_bounding_set(capability);
    }
    clear_ambient_capability_set()?;
    let kept = capabilities(None)?.permitted & CapabilitySet::DAC_OVERRIDE;
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })?;
    Ok(())
}

/// Whether capabilities could be given up.
///
/// # Errors
/// A seccomp profile's.
pub fn check_capabilities() -> io::Result<()> {
    Ok(set_capabilities(None, capabilities(None)?)?)
}
