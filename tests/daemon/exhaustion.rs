//! A daemon that runs out of something: what is new is refused with an error that names the limit, or waits; what runs
//! goes on; and with room there is work again. Limits are lowered from outside (prlimit) while it runs, as well as
//! before it starts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::unistd::{Uid, chown, geteuid};
use serde_json::json;

use super::client::{Client, Session, frame, patient, pattern};
use super::gate::can_be_somebody_else;
use super::guest::{Guest, Ports};
use super::harness::{Daemon, ringway_after, until};
use super::scene::Scene;

const SERVE: [&str; 4] = ["serve", "--shards", "1", "--no-pin"];
/// A user of no other process, whose limits are his own: root has none on threads and locked memory.
const UID: u32 = 64_204;

/// Lowers or raises a soft limit of a daemon that runs, as a user who may.
fn limit(daemon: &Daemon, what: &str, soft: u32) {
    let user = fs::metadata(format!("/proc/{}", daemon.pid())).unwrap().uid().to_string();
    let mut command = Command::new("prlimit");
    if geteuid().is_root() && user != "0" {
        command = Command::new("setpriv");
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "prlimit"]);
    }
    let done = command.args(["--pid", &daemon.pid().to_string(), &format!("--{what}={soft}:")]).status();
    assert!(done.unwrap().success());
}

/// Nanoseconds of CPU time that the daemon's threads have used.
fn cpu_ns(daemon: &Daemon) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap();
        text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    tasks.map(|task| of(task.unwrap())).sum()
}

/// Bytes go both ways, and a command is answered.
fn goes_on(client: &mut Client, guest: &mut Guest, session: &mut Session) {
    for n in 0..20_u8 {
        guest.send(session.base, &[n; 100]);
        session.expect(&[n; 100]);
        session.send(&[n; 50]);
        assert_eq!(guest.take_frame(), (session.base, vec![n; 50]));
    }
    guest.obeys(client, "ping");
}

/// A daemon that may open few descriptors, and one VM with one session on it.
fn poor(limit: u32) -> (Daemon, Client, Guest, Session) {
    let daemon = Daemon::start_with(|_| ringway_after(&format!("ulimit -n {limit};"), &SERVE));
    let mut client = daemon.client();
    let guest = Guest::boot(&daemon, &mut client, "first");
    let session = client.allocate(1);
    (daemon, client, guest, session)
}

#[test]
fn out_of_descriptors_new_sessions_are_refused_and_running_ones_go_on() {
    let (daemon, mut client, mut guest, mut session) = poor(64);
    let ports = Ports::open(&daemon, "late");
    let mut more = Vec::new();
    let error = until("a refusal", || {
        client.send("allocateIO", &json!({ "nStreams": 1 }));
        match client.response() {
            Ok(_) => {
                let fd = ringway::os::fds::recv_with_fd(std::os::fd::AsFd::as_fd(&client.socket)).unwrap().1;
                more.push(fd);
                None
            }
            Err(error) => Some(error),
        }
    });
    assert!(error.contains("RLIMIT_NOFILE"), "{error}");
    assert!(more.len() > 5, "{} sessions before that", more.len());
    // hello needs descriptors too, and says what it lacks.
    ports.send_hello(&mut client, "late");
    let error = client.response().unwrap_err();
    assert!(error.contains("RLIMIT_NOFILE"), "{error}");
    goes_on(&mut client, &mut guest, &mut session);
    // Every session that was promised is there: each carries bytes.
    let mut promised: Vec<_> = more.into_iter().map(|fd| patient(fd.into())).collect();
    for (n, socket) in promised.iter_mut().enumerate() {
        let base = session.base + 1 + n as u64;
        std::io::Write::write_all(socket, &frame(base, b"here")).unwrap();
        assert_eq!(guest.take_frame(), (base, b"here".to_vec()));
    }
    // Some room again, and work is taken again.
    drop(promised);
    until("room", || client.ask("allocateIO", &json!({ "nStreams": 1 })).ok());
}

#[test]
fn out_of_descriptors_new_clients_wait_and_running_ones_are_served() {
    let (daemon, mut client, mut guest, _session) = poor(64);
    let mut waiting: Vec<Client> = (0..80).map(|_| daemon.client()).collect();
    daemon.logged(&["WARN", "cannot accept a client"]);
    guest.obeys(&mut client, "ping");
    let mut last = waiting.pop().unwrap();
    last.send("attach", &json!({ "containerId": "first" }));
    drop(waiting);
    assert_eq!(last.response(), Ok(json!({ "version": 1 })));
    guest.obeys(&mut last, "ping");
}

#[test]
fn clients_that_wait_at_a_limit_cost_no_cpu_time() {
    let (daemon, mut client, mut guest, mut session) = poor(64);
    let waiting: Vec<Client> = (0..200).map(|_| daemon.client()).collect();
    daemon.logged(&["WARN", "cannot accept a client"]);
    rests(&daemon);
    goes_on(&mut client, &mut guest, &mut session);
    drop(waiting);
    let daemon = Daemon::start(&["--max-clients", "4", "--max-clients-per-user", "4"]);
    let mut first = daemon.client();
    first.is_in_step();
    let waiting: Vec<Client> = (0..200).map(|_| daemon.client()).collect();
    until("all places taken", || (daemon.status().clients == 4).then_some(()));
    rests(&daemon);
    first.is_in_step();
    drop(waiting);
}

/// It has clients to accept and cannot, and does next to nothing meanwhile: one that tried all the time would use all
/// of the time that this sleeps.
fn rests(daemon: &Daemon) {
    let before = cpu_ns(daemon);
    thread::sleep(Duration::from_secs(1));
    let used = cpu_ns(daemon) - before;
    assert!(used < 100_000_000, "{used} ns of CPU time");
}

#[test]
fn with_the_limit_on_descriptors_lowered_to_nothing_what_runs_goes_on() {
    let mut scene = Scene::set(&[]);
    let ports = Ports::open(&scene.daemon, "late");
    limit(&scene.daemon, "nofile", 1);
    let refused = scene.client.ask("allocateIO", &json!({ "nStreams": 1 })).unwrap_err();
    assert_eq!(refused, "out of resources: no descriptor left in the daemon (RLIMIT_NOFILE)");
    ports.send_hello(&mut scene.client, "late");
    let refused = scene.client.response().unwrap_err();
    assert!(refused.contains("RLIMIT_NOFILE"), "{refused}");
    let mut late = scene.daemon.client();
    late.send("attach", &json!({ "containerId": "witness" }));
    scene.daemon.logged(&["WARN", "cannot accept a client"]);
    goes_on(&mut scene.client, &mut scene.guest, &mut scene.session);
    limit(&scene.daemon, "nofile", 1_024);
    assert_eq!(late.response(), Ok(json!({ "version": 1 })));
    drop(late.allocate(1));
    drop(ports.boot(&mut late, "late"));
    late.bye("late").unwrap();
    drop(late);
    scene.is_sound();
}

/// A daemon of another user, for whom alone the limits on threads and locked memory count, and what its shell does
/// before; `None` where this process cannot be somebody else.
fn somebody_elses(dir: &Path, before: &str) -> Option<Command> {
    if !can_be_somebody_else() {
        return None;
    }
    let binary = dir.join("ringway");
    fs::copy(env!("CARGO_BIN_EXE_ringway"), &binary).unwrap();
    chown(dir, Some(Uid::from_raw(UID)), None).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).unwrap();
    let mut shell = ringway_after(before, &SERVE);
    let mut command = Command::new("setpriv");
    let id = UID.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "sh", "-c"]);
    command.arg(format!("{before} exec \"$0\" \"$@\"")).arg(binary).args(SERVE);
    shell.env("RINGWAY_SOCKET", dir.join("proxy.sock"));
    command.envs(shell.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    Some(command)
}

#[test]
fn without_lockable_memory_it_does_not_start_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut command) = somebody_elses(dir.path(), "ulimit -l 0;") else { return };
    let output = command.output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("not enough lockable memory for a ring") && words.contains("LimitMEMLOCK"), "{words}");
}

#[test]
fn out_of_threads_a_hello_is_refused_and_running_sessions_go_on() {
    if !can_be_somebody_else() {
        return;
    }
    let daemon = Daemon::start_with(|dir| {
        let mut command = somebody_elses(dir, "").unwrap();
        command.arg("--vm-dir").arg(dir);
        command
    });
    let mut client = daemon.client();
    // Its sockets are the client's, who made them just now: they need no thread.
    let ports = Ports::open(&daemon, "first");
    let mode = fs::Permissions::from_mode(0o777);
    for path in [&ports.ctl_path, &ports.io_path] {
        fs::set_permissions(path, mode.clone()).unwrap();
    }
    let mut guest = ports.boot(&mut client, "first");
    let mut session = client.allocate(1);
    // Another's sockets do.
    let ports = Ports::open(&daemon, "late");
    for path in [&ports.ctl_path, &ports.io_path] {
        chown(path, Some(Uid::from_raw(UID)), None).unwrap();
    }
    limit(&daemon, "nproc", 1);
    ports.send_hello(&mut client, "late");
    let refused = client.response().unwrap_err();
    assert!(refused.contains("no thread left") && refused.contains("RLIMIT_NPROC"), "{refused}");
    goes_on(&mut client, &mut guest, &mut session);
    limit(&daemon, "nproc", 10_000);
    drop(ports.boot(&mut daemon.client(), "late"));
    goes_on(&mut client, &mut guest, &mut session);
}

#[test]
fn out_of_buffers_whoever_reads_goes_on_and_whoever_does_not_loses_nothing() {
    let mut scene = Scene::set(&["--shards", "1", "--session-buffer", "256KiB", "--total-buffer", "256KiB"]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "slow");
    // The third could have output any time, so that its VM is read although the other two are behind.
    let (mut slow, mut lazy, idle) = (client.allocate(1), client.allocate(1), client.allocate(1));
    let bytes = pattern(1, 4 << 20);
    let (one, other) = (slow.base, lazy.base);
    let feeder = thread::spawn({
        let bytes = bytes.clone();
        move || {
            for payload in bytes.chunks(4_000) {
                guest.send(one, payload);
                guest.send(other, payload);
            }
            guest
        }
    });
    let total = 256 * 1024 / 32_768;
    let used = || scene.daemon.status().shards[0].chunks_in_use >= total;
    until("all buffers used", || used().then_some(()));
    scene.serves();
    let reader = thread::spawn(move || lazy.take(4 << 20));
    assert!(slow.take(4 << 20) == bytes);
    assert!(reader.join().unwrap() == bytes);
    drop(feeder.join().unwrap());
    client.bye("slow").unwrap();
    drop((client, slow, idle));
    scene.is_sound();
}
