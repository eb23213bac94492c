//! What a daemon has given up once it serves: seen from outside on the real one, and tried from inside.
//!
//! The asymmetry to know: who tries from inside is this test program itself, started once more, which closes the same
//! layers by the same calls as the daemon; whatever is closed in a process stays closed.

use std::fs;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway::os::guest_socket::GuestSocket;
use ringway::os::{calls, sandbox};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use super::guest::Guest;
use super::harness::{Daemon, ringway};

/// Names the directory in which the program that tries from inside finds what it needs.
const INSIDE: &str = "RINGWAY_TEST_INSIDE";
/// CAP_DAC_OVERRIDE as `/proc` shows it.
const REACHES_OTHERS_SOCKETS: u64 = 1 << 1;

/// This program once more, for one test of this file.
fn again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&format!("sandbox::{test}"), "--exact", "--nocapture"]).stdin(Stdio::null());
    command
}

/// What the kernel says about each thread of a process: its name and the value of `key`.
fn threads(pid: Pid, key: &str) -> Vec<(String, String)> {
    let value = |status: &str, key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{key} in {status}")).trim().to_owned()
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    // A thread may have ended meanwhile.
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    statuses.map(|status| (value(&status, "Name"), value(&status, key))).collect()
}

/// A daemon with all the threads it ever has.
fn busy(flags: &[&str]) -> (Daemon, Guest) {
    let daemon = Daemon::start(flags);
    let mut client = daemon.client();
    let mut guest = Guest::boot(&daemon, &mut client, "vm");
    let mut session = client.allocate(1);
    guest.send(session.base, b"hello");
    session.expect(b"hello");
    // A path that is looked up for the first time takes a thread of its own.
    client.hello("nobody", Path::new("/nonexistent/ctl"), Path::new("/nonexistent/io")).unwrap_err();
    (daemon, guest)
}

#[test]
fn every_thread_of_a_daemon_is_inside() {
    let mode = if sandbox::landlock_version().is_ok() { "require" } else { "on" };
    let (mut daemon, _guest) = busy(&["--sandbox", mode]);
    let pid = daemon.pid();
    let names: Vec<_> = threads(pid, "Name").into_iter().map(|(name, _)| name).collect();
    for name in ["ringway", "shard-0", "shard-1", "admin", "open"] {
        assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
    }
    for (key, expected) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("CapInh", "0000000000000000")] {
        for (name, value) in threads(pid, key) {
            assert_eq!(value, expected, "{key} of {name}");
        }
    }
    for key in ["CapEff", "CapPrm", "CapAmb"] {
        for (name, value) in threads(pid, key) {
            let value = u64::from_str_radix(&value, 16).unwrap();
            assert_eq!(value & !REACHES_OTHERS_SOCKETS, 0, "{key} of {name}");
        }
    }
    // What it tells about itself it reads from descriptors that it opened before.
    let status = daemon.status();
    assert!(status.memory_bytes > 0 && status.open_fds > 5, "{} {}", status.memory_bytes, status.open_fds);
    daemon.stop();
    assert!(!daemon.socket().exists() && !daemon.path("admin.sock").exists());
}

#[test]
fn off_means_off() {
    let (daemon, _guest) = busy(&["--sandbox", "off"]);
    for (name, value) in threads(daemon.pid(), "Seccomp").into_iter().chain(threads(daemon.pid(), "NoNewPrivs")) {
        assert_eq!(value, "0", "{name}");
    }
}

/// Turns this process into a daemon that finds a kernel without landlock.
fn serve_without_landlock(mode: &str) -> io::Error {
    let missing = [(nix::libc::SYS_landlock_create_ruleset, Vec::new())].into();
    let (absent, machine) = (SeccompAction::Errno(Errno::ENOSYS as u32), std::env::consts::ARCH.try_into().unwrap());
    let filter = SeccompFilter::new(missing, SeccompAction::Allow, absent, machine).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    let socket = std::env::var_os("RINGWAY_SOCKET").unwrap();
    ringway(&["serve", "--shards", "1", "--no-pin", "--sandbox", mode]).env("RINGWAY_SOCKET", socket).exec()
}

#[test]
fn a_layer_that_is_missing_is_a_warning_or_the_end() {
    if let Some(mode) = std::env::var_os(INSIDE) {
        panic!("{}", serve_without_landlock(mode.to_str().unwrap()));
    }
    let serve = |mode: &str| {
        let mut command = again("a_layer_that_is_missing_is_a_warning_or_the_end");
        command.env(INSIDE, mode).stdout(Stdio::null());
        command
    };
    let daemon = Daemon::start_with(|_| serve("on"));
    daemon.logged(&["WARN", "a layer of the sandbox is missing", "landlock", "CONFIG_SECURITY_LANDLOCK"]);
    for (name, value) in threads(daemon.pid(), "Seccomp_filters") {
        assert_eq!(value, "2", "the test's and the daemon's for {name}");
    }
    let dir = tempfile::tempdir().unwrap();
    let output = serve("require").env("RINGWAY_SOCKET", dir.path().join("proxy.sock")).output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("sandbox: landlock cannot be closed"), "{words}");
}

fn refused<T>(what: &str, outcome: io::Result<T>, errno: Errno) {
    assert_eq!(outcome.err().and_then(|error| error.raw_os_error()), Some(errno as i32), "{what}");
}

/// What is tried from inside the sandbox, in a process of its own: the one of [`nothing_else_works_from_inside`].
fn inside(dir: &Path) {
    let parent = Pid::parent();
    let landlock = sandbox::close_paths(&[dir], None, false).and_then(|()| sandbox::landlock_version());
    sandbox::drop_capabilities().unwrap();
    calls::close().unwrap();
    nothing_is_started_or_reached(dir, parent);
    match landlock {
        Ok(version) => nothing_is_opened(dir, parent, version),
        Err(error) => eprintln!("paths are not tried: {error}"),
    }
    a_daemon_goes_on(dir);
}

fn nothing_is_started_or_reached(dir: &Path, parent: Pid) {
    let command = || Command::new("/bin/true");
    refused::<()>("execve", Err(command().exec()), Errno::ENOSYS);
    refused("fork", command().spawn(), Errno::ENOSYS);
    refused("a signal", kill(parent, Signal::SIGWINCH).map_err(io::Error::from), Errno::ENOSYS);
    refused("TCP", TcpListener::bind("127.0.0.1:0"), Errno::ENOSYS);
    refused("UDP", UdpSocket::bind("127.0.0.1:0"), Errno::ENOSYS);
    refused("listening", UnixListener::bind(dir.join("new.sock")), Errno::ENOSYS);
    refused("making a directory", fs::create_dir(dir.join("new")), Errno::ENOSYS);
    let same = fs::metadata(dir).unwrap().permissions();
    refused("changing a mode", fs::set_permissions(dir, same), Errno::ENOSYS);
    assert!(ringway::reactor::probe().is_err(), "a ring without bounds");
}

fn nothing_is_opened(dir: &Path, parent: Pid, landlock: i64) {
    let file = dir.join("file");
    refused("reading a file", fs::read("/etc/passwd"), Errno::EACCES);
    refused("reading a file beside the sockets", fs::read(&file), Errno::EACCES);
    refused("reading a directory", fs::read_dir("/"), Errno::EACCES);
    refused("reading about itself", fs::read("/proc/self/environ"), Errno::EACCES);
    refused("a peer's namespaces", fs::read_link(format!("/proc/{parent}/ns/pid")), Errno::EACCES);
    refused("making a file", fs::write(dir.join("new"), ""), Errno::EACCES);
    refused("removing what is elsewhere", fs::remove_file(dir.join("../file")), Errno::EACCES);
    // The version of Linux 6.12.
    if landlock >= 6 {
        let name = SocketAddr::from_abstract_name(abstract_name(dir)).unwrap();
        refused("a socket without a file", UnixStream::connect_addr(&name), Errno::EPERM);
    }
}

/// What a daemon does once it serves.
fn a_daemon_goes_on(dir: &Path) {
    fs::remove_file(dir.join("file")).unwrap();
    let socket = dir.join("vm/ctl.sock");
    let socket = GuestSocket::open(socket.to_str().unwrap(), u32::MAX, &[dir.to_owned()]).unwrap();
    socket.connect().unwrap();
    std::thread::Builder::new().name("more".to_owned()).spawn(|| ()).unwrap().join().unwrap();
}

fn abstract_name(dir: &Path) -> &[u8] {
    dir.file_name().unwrap().as_encoded_bytes()
}

#[test]
fn nothing_else_works_from_inside() {
    if let Some(dir) = std::env::var_os(INSIDE) {
        return inside(Path::new(&dir));
    }
    let above = tempfile::tempdir().unwrap();
    let dir = above.path().join(above.path().file_name().unwrap());
    fs::create_dir_all(dir.join("vm")).unwrap();
    fs::write(above.path().join("file"), "").unwrap();
    fs::write(dir.join("file"), "").unwrap();
    let _vm = UnixListener::bind(dir.join("vm/ctl.sock")).unwrap();
    let _without_file = UnixListener::bind_addr(&SocketAddr::from_abstract_name(abstract_name(&dir)).unwrap()).unwrap();
    let output = again("nothing_else_works_from_inside").env(INSIDE, &dir).output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && words.contains("1 passed"), "{words}");
}
