//! The daemon's own life: its sockets, its start, its settings, its limits and its end.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::json;

use super::client::{Client, patient, pattern};
use super::guest::Guest;
use super::harness::{Daemon, PATIENCE, ringway, ringway_after, until};
use super::scene::Scene;

const SERVE: [&str; 4] = ["serve", "--shards", "1", "--no-pin"];

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// What a daemon that cannot start says; it must end with 1.
fn refuses_to_start(mut command: std::process::Command) -> String {
    let output = command.stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    words
}

/// A VM whose session owes its client this much, which the client has not read.
fn owing(scene: &mut Scene, client: &mut Client, len: usize) -> [super::client::Session; 2] {
    let mut guest = Guest::boot(&scene.daemon, client, "owing");
    let session = client.allocate(1);
    // It could have output any time, so that the VM is read although the other one's client is behind.
    let idle = client.allocate(1);
    pattern(7, len).chunks(8_192).for_each(|payload| guest.send(session.base, payload));
    // Whole frames counted: all of it has arrived.
    let frames = len.div_ceil(8_192) as u64;
    let has_all = |session: &ringway::wire::admin::SessionStatus| session.to_client.frames == frames;
    until("all of it received", || scene.daemon.session(session.base).filter(has_all));
    [session, idle]
}

#[test]
fn sigterm_flushes_what_is_owed_to_a_client_that_reads() {
    let mut scene = Scene::set(&["--stop-timeout", "3600"]);
    let mut client = scene.daemon.client();
    let len = 4 << 20;
    let [mut session, _idle] = owing(&mut scene, &mut client, len);
    scene.daemon.signal(Signal::SIGTERM);
    scene.daemon.logged(&["stopping", "SIGTERM"]);
    assert!(session.take(len) == pattern(7, len));
    session.expect_end();
    scene.session.expect_end();
    assert_eq!(scene.daemon.wait().code(), Some(0));
    assert!(!scene.daemon.socket().exists() && !scene.daemon.path("admin.sock").exists());
}

#[test]
fn sigterm_waits_for_a_client_that_never_reads_for_a_bounded_time_only() {
    let mut scene = Scene::set(&["--stop-timeout", "1"]);
    let mut client = scene.daemon.client();
    let _sessions = owing(&mut scene, &mut client, 4 << 20);
    scene.daemon.stop();
    scene.daemon.logged(&["WARN", "some clients have not read"]);
}

#[test]
fn sigint_stops_it_too() {
    let mut scene = Scene::set(&[]);
    scene.daemon.signal(Signal::SIGINT);
    assert_eq!(scene.daemon.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut scene = Scene::set(&["--stop-timeout", "3600"]);
    let mut client = scene.daemon.client();
    let _sessions = owing(&mut scene, &mut client, 4 << 20);
    scene.daemon.signal(Signal::SIGTERM);
    scene.daemon.logged(&["stopping", "SIGTERM"]);
    assert!(scene.daemon.is_running());
    scene.daemon.signal(Signal::SIGTERM);
    assert_eq!(scene.daemon.wait().code(), Some(130));
}

#[test]
fn new_work_is_refused_while_it_stops() {
    let mut scene = Scene::set(&["--stop-timeout", "3600"]);
    let mut client = scene.daemon.client();
    let len = 4 << 20;
    let [mut session, _idle] = owing(&mut scene, &mut client, len);
    scene.daemon.signal(Signal::SIGTERM);
    scene.daemon.logged(&["stopping"]);
    // The signal's effect and this request may cross: what counts is that it is refused in the end.
    until("a refusal", || {
        client.send("hello", &json!({ "containerId": "late", "ctlSerial": "/missing", "ioSerial": "/missing" }));
        (client.response() == Err("the daemon is stopping".to_owned())).then_some(())
    });
    assert!(session.take(len) == pattern(7, len));
    assert_eq!(scene.daemon.wait().code(), Some(0));
}

#[test]
fn a_stale_socket_is_replaced_and_what_is_no_socket_stays() {
    let daemon = Daemon::start_with(|dir| {
        for name in ["proxy.sock", "admin.sock"] {
            drop(UnixListener::bind(dir.join(name)).unwrap());
        }
        ringway(&SERVE)
    });
    assert!(daemon.client().attach("nobody").is_err());
    let file = daemon.path("file");
    fs::write(&file, "precious").unwrap();
    let mut command = ringway(&SERVE);
    command.args(["--socket", file.to_str().unwrap()]);
    let words = refuses_to_start(command);
    assert!(words.contains("exists and is not a socket"), "{words}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_live_socket_is_refused_with_its_owners_pid() {
    let daemon = Daemon::start(&[]);
    let mut command = ringway(&SERVE);
    command.env("RINGWAY_SOCKET", daemon.socket());
    let words = refuses_to_start(command);
    let expected = format!("{}: already served by process {}", daemon.socket().display(), daemon.pid());
    assert!(words.contains(&expected), "{words}");
    // The same for the admin socket alone; and the first one's files are still there.
    let mut command = ringway(&SERVE);
    command.env("RINGWAY_SOCKET", daemon.path("other.sock"));
    let words = refuses_to_start(command);
    assert!(words.contains(&format!("already served by process {}", daemon.pid())), "{words}");
    assert!(!daemon.path("other.sock").exists());
    assert!(daemon.client().attach("nobody").is_err());
    daemon.status();
}

#[test]
fn sockets_and_their_directory_have_these_modes() {
    let daemon = Daemon::start_with(|dir| {
        let mut command = ringway_after("umask 0;", &SERVE);
        command.arg("--socket").arg(dir.join("made/here/proxy.sock"));
        command.arg("--admin-socket").arg(dir.join("admin.sock"));
        command
    });
    let socket = daemon.path("made/here/proxy.sock");
    let modes = (mode(&socket), mode(&daemon.path("admin.sock")), mode(socket.parent().unwrap()));
    assert_eq!(modes, (0o660, 0o600, 0o750));
}

#[test]
fn a_socket_path_that_is_too_long_is_refused() {
    let mut command = ringway(&SERVE);
    command.args(["--socket", &format!("/tmp/{}", "x".repeat(103))]);
    let words = refuses_to_start(command);
    assert!(words.contains("107") && words.contains("108"), "{words}");
}

#[test]
fn a_socket_of_the_service_managers_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("activated.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // Connected before the daemon runs, as it is with socket activation.
    let mut early = Client { socket: patient(std::os::unix::net::UnixStream::connect(&path).unwrap()) };
    early.send("attach", &json!({ "containerId": "nobody" }));
    let mut daemon = Daemon::start_with(|_| {
        let mut command = ringway_after("exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1;", &SERVE);
        command.stdin(OwnedFd::from(listener));
        command
    });
    assert_eq!(early.response(), Err("unknown containerID: nobody".to_owned()));
    assert!(!daemon.socket().exists(), "no socket of its own");
    let mut late = Client::connect(&path);
    let mut guest = Guest::boot(&daemon, &mut late, "vm");
    let mut session = late.allocate(1);
    guest.send(session.base, b"hello");
    session.expect(b"hello");
    daemon.stop();
    assert!(path.exists(), "it is not the daemon's to remove");
}

#[test]
fn activation_with_anything_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = ringway_after("exec 3</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1;", &SERVE);
    command.env("RINGWAY_SOCKET", dir.path().join("proxy.sock"));
    let words = refuses_to_start(command);
    assert!(words.contains("socket activation"), "{words}");
}

#[test]
fn the_service_manager_is_told_ready_and_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = |socket: &UnixDatagram| {
        let mut buffer = [0; 256];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    };
    let mut daemon = Daemon::start_with(|_| {
        let mut command = ringway(&SERVE);
        command.env("NOTIFY_SOCKET", &path);
        command
    });
    assert!(told(&socket).lines().any(|line| line == "READY=1"));
    daemon.signal(Signal::SIGTERM);
    assert!(told(&socket).lines().any(|line| line == "STOPPING=1"));
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_configuration_file_is_obeyed_and_flags_weigh_more() {
    let dir = tempfile::tempdir().unwrap();
    let (file, socket) = (dir.path().join("ringway.toml"), dir.path().join("from-file.sock"));
    let text = format!("shards = 3\nno-pin = true\nlog-format = \"json\"\nsocket = \"{}\"\n", socket.display());
    fs::write(&file, text).unwrap();
    let serve = |dir: &Path, more: &[&str]| {
        let mut command = ringway(&[&["serve", "--config", file.to_str().unwrap()], more].concat());
        // The harness asks at the default place beside this one.
        command.args(["--admin-socket", dir.join("admin.sock").to_str().unwrap()]);
        command
    };
    let more = ["--shards", "1"];
    for (flags, shards) in [(&[][..], 3), (&more[..], 1)] {
        // The environment is a flag by another name, so it is the file's socket only without one.
        let daemon = Daemon::start_with(|dir| {
            let mut command = ringway_after("unset RINGWAY_SOCKET;", &[]);
            command.args(serve(dir, flags).get_args());
            command
        });
        assert_eq!(daemon.status().shards.len(), shards);
        assert!(Client::connect(&socket).attach("nobody").is_err());
        assert!(daemon.log().starts_with('{'), "{}", daemon.log());
    }
}

#[test]
fn configuration_errors_name_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ringway.toml");
    let shown = file.display();
    let cases = [
        ("# fine\ndeadline = 0\n", "2: deadline: 0 is too little"),
        ("shards = 1\n\ndeadlin = 3\n", "3: deadlin: unknown field"),
        ("session-buffer = \"8MB\"\n", "1: session-buffer: "),
        ("deadline = \"long\"\n", "1: deadline: "),
        ("shards = 1\nshards = \n", "2: shards: "),
        ("log = \"ringway=loud\"\n", "1: log: "),
    ];
    for (text, words) in cases {
        fs::write(&file, text).unwrap();
        let said = refuses_to_start(ringway(&["serve", "--config", file.to_str().unwrap()]));
        assert!(said.starts_with(&format!("ringway: {shown}:{words}")), "{text:?}: {said}");
    }
    let missing = dir.path().join("missing.toml");
    let said = refuses_to_start(ringway(&["serve", "--config", missing.to_str().unwrap()]));
    assert!(said.contains(&format!("cannot read {}", missing.display())), "{said}");
}
