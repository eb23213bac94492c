//! Who may connect to the proxy socket: users and groups that the kernel vouches for, whatever the socket's mode.
//! Needs root, which alone can be somebody else.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Gid, Uid, chown, geteuid};

use super::harness::{Daemon, ringway_after};

/// Nobody's user and groups.
const UID: &str = "64201";
const GID: &str = "64202";
const SUPPLEMENTARY: u32 = 64_203;

/// Whether this process can start others as somebody else.
pub(crate) fn can_be_somebody_else() -> bool {
    let can = geteuid().is_root() && Command::new("setpriv").arg("--version").output().is_ok();
    if !can {
        println!("skipped: only root can be somebody else, and only with setpriv");
    }
    can
}

/// What `ringway vm rm nobody` says as somebody else, with this group and one more if there is one.
fn says(daemon: &Daemon, socket: &Path, gid: &str, more: Option<u32>) -> String {
    let binary = daemon.path("ringway");
    if !binary.exists() {
        fs::copy(env!("CARGO_BIN_EXE_ringway"), &binary).unwrap();
        fs::set_permissions(binary.parent().unwrap(), fs::Permissions::from_mode(0o711)).unwrap();
    }
    let groups = more.map_or("--clear-groups".to_owned(), |gid| format!("--groups={gid}"));
    let mut command = Command::new("setpriv");
    command.args(["--reuid", UID, "--regid", gid, &groups]).arg(binary).args(["vm", "rm", "nobody"]);
    let output = command.env("RINGWAY_SOCKET", socket).output().unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It was let in: the daemon has answered.
fn is_let_in(words: &str) -> bool {
    words.contains("unknown containerID: nobody")
}

fn open_to(path: &Path, gid: u32, mode: u32) {
    chown(path, None, Some(Gid::from_raw(gid))).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn members_of_the_sockets_group_may_by_either_kind_of_membership_and_others_not() {
    if !can_be_somebody_else() {
        return;
    }
    let daemon = Daemon::start(&[]);
    let socket = daemon.socket();
    open_to(&socket, SUPPLEMENTARY, 0o660);
    let by_first_group = says(&daemon, &socket, &SUPPLEMENTARY.to_string(), None);
    assert!(is_let_in(&by_first_group), "{by_first_group}");
    let by_another = says(&daemon, &socket, GID, Some(SUPPLEMENTARY));
    assert!(is_let_in(&by_another), "{by_another}");
    assert!(!is_let_in(&says(&daemon, &socket, GID, None)), "the socket's mode");
    assert_eq!(daemon.status().counters.clients_refused, 0, "the kernel refused it");
    // A mode that was changed by accident opens it to nobody else.
    open_to(&socket, SUPPLEMENTARY, 0o666);
    assert!(!is_let_in(&says(&daemon, &socket, GID, Some(SUPPLEMENTARY + 1))));
    daemon.logged(&["WARN", "turned away", "uid=64201", "gid=64202", "--allow-uid"]);
    assert_eq!(daemon.status().counters.clients_refused, 1);
    assert!(is_let_in(&says(&daemon, &socket, GID, Some(SUPPLEMENTARY))));
    // Its owner may too.
    chown(&socket, Some(Uid::from_raw(UID.parse().unwrap())), None).unwrap();
    assert!(is_let_in(&says(&daemon, &socket, GID, None)));
    assert!(daemon.client().attach("nobody").unwrap_err().contains("unknown"), "root always may");
}

#[test]
fn a_list_replaces_the_sockets_group() {
    if !can_be_somebody_else() {
        return;
    }
    let cases: [(&[&str], bool); 4] = [
        (&["--allow-uid", UID], true),
        (&["--allow-uid", "1", "--allow-gid", GID], true),
        (&["--allow-gid", "64203"], true),
        (&["--allow-uid", "1", "--allow-gid", "2"], false),
    ];
    for (flags, lets_in) in cases {
        let daemon = Daemon::start(flags);
        let socket = daemon.socket();
        open_to(&socket, 0, 0o666);
        let words = says(&daemon, &socket, GID, Some(SUPPLEMENTARY));
        assert_eq!(is_let_in(&words), lets_in, "{flags:?}: {words}");
        // Its group is nobody who was named.
        open_to(&socket, SUPPLEMENTARY + 2, 0o666);
        assert!(!is_let_in(&says(&daemon, &socket, &(SUPPLEMENTARY + 2).to_string(), None)) || flags[1] == UID);
        assert!(daemon.client().attach("nobody").unwrap_err().contains("unknown"), "root always may");
    }
}

#[test]
fn a_socket_of_the_service_managers_has_its_own_group() {
    if !can_be_somebody_else() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let path = dir.path().join("activated.sock");
    let listener = UnixListener::bind(&path).unwrap();
    open_to(&path, SUPPLEMENTARY, 0o666);
    let daemon = Daemon::start_with(|_| {
        let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1;";
        let mut command = ringway_after(script, &["serve", "--shards", "1", "--no-pin"]);
        command.stdin(OwnedFd::from(listener));
        command
    });
    assert!(is_let_in(&says(&daemon, &path, GID, Some(SUPPLEMENTARY))));
    assert!(!is_let_in(&says(&daemon, &path, GID, None)));
    daemon.logged(&["WARN", "turned away", "uid=64201"]);
}
