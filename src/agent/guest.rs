//! What commands do to the guest itself: files, its name, hot-plugged processors and memory, a container's root.
//!
//! Processes are not its business. The asymmetry to know: a request that cannot be met is refused in words, except
//! for the host name, which is only a wish and is ignored with a line in the log.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::limits::CONTROL_REPLY_MAX;
use crate::os::rooted;
use crate::wire::hyper::MESSAGE_HEADER_LEN;

use super::command::{Refusal, refuse};

/// Reads a whole file of a container.
pub(super) fn read_file(root: &Path, path: &str) -> Result<Vec<u8>, Refusal> {
    let failed = |error| Refusal(format!("cannot read {path}: {error}"));
    let most = CONTROL_REPLY_MAX - MESSAGE_HEADER_LEN;
    let mut data = Vec::new();
    let bound = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    rooted::open(root, path).map_err(failed)?.take(bound).read_to_end(&mut data).map_err(failed)?;
    if data.len() > most { refuse(format!("cannot read {path}: it is longer than {most} bytes")) } else { Ok(data) }
}

/// Makes or replaces a file of a container. Its directory has to exist.
pub(super) fn write_file(root: &Path, path: &str, data: &[u8]) -> Result<(), Refusal> {
    let failed = |error| Refusal(format!("cannot write {path}: {error}"));
    rooted::create(root, path).map_err(failed)?.write_all(data).map_err(failed)
}

/// A text file of a container, empty when there is none.
pub(super) fn text_file(root: &Path, path: &str) -> String {
    read_file(root, path).map(|data| String::from_utf8_lossy(&data).into_owned()).unwrap_or_default()
}

/// Finds a container's root: this one when it asks for none.
pub(super) fn container_root(share_dir: &str, id: &str, rootfs: &str) -> Result<PathBuf, Refusal> {
    if rootfs.is_empty() {
        return Ok("/".into());
    }
    let wanted = Path::new(rootfs);
    let places = match (wanted.is_absolute(), share_dir) {
        (true, _) => vec![wanted.to_owned()],
        (false, "") => return refuse(format!("rootfs '{rootfs}' is relative, and startpod named no shareDir")),
        (false, share) => vec![Path::new(share).join(id).join(wanted), Path::new(share).join(wanted)],
    };
    match places.iter().find(|place| place.is_dir()).and_then(|place| place.canonicalize().ok()) {
        Some(root) => Ok(root),
        None => refuse(format!("rootfs '{rootfs}' is not a directory in this guest")),
    }
}

/// Brings every processor and memory block that is off line on line; says how many there were.
pub(super) fn bring_online(system: &Path) -> Result<usize, Refusal> {
    let processors = switch(&system.join("cpu"), "cpu", "online", "0", "1")?;
    let blocks = switch(&system.join("memory"), "memory", "state", "offline", "online")?;
    Ok(processors + blocks)
}

/// Writes `on` to every `directory/<kind><number>/<file>` that reads `off`.
fn switch(directory: &Path, kind: &str, file: &str, off: &str, on: &str) -> Result<usize, Refusal> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(0) };
    let mut switched = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(kind)).and_then(|rest| rest.parse::<u32>().ok());
        let state = entry.path().join(file);
        if number.is_none() || fs::read_to_string(&state).is_ok_and(|text| text.trim() != off) || !state.exists() {
            continue;
        }
        fs::write(&state, on).map_err(|error| Refusal(format!("cannot bring {} on line: {error}", name.display())))?;
        switched += 1;
    }
    Ok(switched)
}

/// Names the guest, if the name is the guest's own to change.
pub(super) fn set_hostname(hostname: &str) {
    if hostname.is_empty() {
        return;
    }
    let link = |path: &str| fs::read_link(path).ok().and_then(|link| link.to_str().map(str::to_owned));
    let own = link("/proc/self/ns/uts");
    let init = link("/proc/1/ns/uts");
    let init_pid = link("/proc/self/ns/pid");
    if !owns_name(std::process::id(), own.as_deref(), init.as_deref(), init_pid.as_deref()) {
        tracing::info!(hostname, "host name ignored: this agent shares its name with the system it runs on");
    } else if let Err(error) = nix::unistd::sethostname(hostname) {
        tracing::warn!(hostname, %error, "cannot set the host name");
    }
}

/// Name of the UTS namespace the kernel starts with, and of its PID namespace: their numbers are fixed.
const FIRST_UTS: &str = "uts:[4026531838]";
const FIRST_PID: &str = "pid:[4026531836]";

/// Whether the UTS namespace is this agent's: it is the first process of the whole system, or the namespace is not
/// the system's and not that of the process 1 it sees (unless that is itself).
fn owns_name(pid: u32, own_uts: Option<&str>, init_uts: Option<&str>, pid_namespace: Option<&str>) -> bool {
    match own_uts {
        None => false,
        Some(FIRST_UTS) => pid == 1 && pid_namespace == Some(FIRST_PID),
        Some(own) => pid == 1 || init_uts.is_some_and(|init| init != own),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_off_line_is_switched() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in
            [("cpu/cpu1/online", "0\n"), ("cpu/cpu2/online", "1\n"), ("memory/memory7/state", "offline\n")]
        {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        fs::create_dir_all(dir.path().join("cpu/cpu0")).unwrap();
        fs::create_dir_all(dir.path().join("cpu/cpufreq")).unwrap();
        assert_eq!(bring_online(dir.path()), Ok(2));
        assert_eq!(fs::read_to_string(dir.path().join("cpu/cpu1/online")).unwrap(), "1");
        assert_eq!(fs::read_to_string(dir.path().join("memory/memory7/state")).unwrap(), "online");
        fs::write(dir.path().join("memory/memory7/state"), "online").unwrap();
        assert_eq!(bring_online(dir.path()), Ok(0));
        assert_eq!(bring_online(Path::new("/no/such/place")), Ok(0));
    }

    #[test]
    fn roots_are_found_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().to_str().unwrap();
        fs::create_dir_all(dir.path().join("c1/rootfs")).unwrap();
        fs::create_dir_all(dir.path().join("plain")).unwrap();
        assert_eq!(container_root("", "c1", ""), Ok("/".into()));
        assert_eq!(container_root(share, "c1", "rootfs"), Ok(dir.path().canonicalize().unwrap().join("c1/rootfs")));
        assert!(container_root(share, "c1", "plain").unwrap().ends_with("plain"));
        assert!(container_root(share, "c2", "rootfs").is_err());
        assert!(container_root("", "c1", "rootfs").is_err());
        assert!(container_root("", "c1", "/no/such/place").is_err());
    }

    #[test]
    fn the_name_is_changed_only_where_it_is_ours() {
        let own = Some("uts:[4026532000]");
        assert!(owns_name(1, Some(FIRST_UTS), Some(FIRST_UTS), Some(FIRST_PID)));
        assert!(!owns_name(1, Some(FIRST_UTS), Some(FIRST_UTS), Some("pid:[4026532001]")));
        assert!(!owns_name(77, Some(FIRST_UTS), Some(FIRST_UTS), Some(FIRST_PID)));
        assert!(owns_name(77, own, Some(FIRST_UTS), Some(FIRST_PID)));
        assert!(!owns_name(77, own, own, Some(FIRST_PID)));
        assert!(!owns_name(77, own, None, None));
        assert!(owns_name(1, own, own, None));
    }

    #[test]
    fn files_go_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        write_file(dir.path(), "/f", b"bytes").unwrap();
        assert_eq!(read_file(dir.path(), "/f"), Ok(b"bytes".to_vec()));
        assert!(read_file(dir.path(), "/missing").unwrap_err().0.contains("/missing"));
        assert!(write_file(dir.path(), "/no/dir/f", b"").is_err());
        assert_eq!(text_file(dir.path(), "/missing"), "");
    }
}
