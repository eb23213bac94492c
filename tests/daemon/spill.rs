//! Clients that do not read: their output goes to a file, in order and all of it, and nobody else notices.
//!
//! The asymmetry to know: bytes of a file that has no name show only in the daemon's own numbers, so these are what is
//! looked at; that the space is free again shows there too.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread::{self, JoinHandle};

use ringway::wire::admin::{SessionStatus, ShardStatus};
use serde_json::json;

use super::client::{Client, Session, frame, pattern};
use super::framed::{Framed, exec};
use super::guest::Guest;
use super::harness::{Daemon, ringway, until};
use super::scene::Scene;

/// Little memory, so that a file is soon needed.
const LITTLE: [&str; 2] = ["--session-buffer", "256KiB"];

/// The sum of a number over the shards.
fn sum(daemon: &Daemon, of: fn(&ShardStatus) -> u64) -> u64 {
    daemon.status().shards.iter().map(of).sum()
}

/// A daemon with little memory for slow clients, a VM, and its sessions: one to stop, others that read.
struct Stage {
    scene: Scene,
    client: Client,
    guest: Guest,
    stopped: Session,
    others: Vec<Session>,
}

impl Stage {
    fn set(flags: &[&str], others: usize) -> Stage {
        Stage::of(Scene::set(&[&LITTLE, flags].concat()), others)
    }

    fn of(scene: Scene, others: usize) -> Stage {
        let mut client = scene.daemon.client();
        let guest = Guest::boot(&scene.daemon, &mut client, "busy");
        let stopped = client.allocate(1);
        let others = (0..others).map(|_| client.allocate(1)).collect();
        Stage { scene, client, guest, stopped, others }
    }

    /// The VM writes `len` bytes for each session, in turns, in frames of `payload` bytes.
    fn writes(&self, len: usize, payload: usize) -> JoinHandle<()> {
        let bases: Vec<u64> = std::iter::once(&self.stopped).chain(&self.others).map(|session| session.base).collect();
        let mut io = self.guest.io.try_clone().unwrap();
        thread::spawn(move || {
            let streams: Vec<Vec<u8>> = bases.iter().map(|&base| pattern(base, len)).collect();
            for at in (0..len).step_by(payload) {
                for (&base, stream) in bases.iter().zip(&streams) {
                    io.write_all(&frame(base, &stream[at..len.min(at + payload)])).unwrap();
                }
            }
        })
    }

    /// All others read all of that.
    fn others_read(&mut self, len: usize) {
        let read = |mut session: Session| {
            thread::spawn(move || {
                assert!(session.take(len) == pattern(session.base, len));
                session
            })
        };
        let readers: Vec<_> = std::mem::take(&mut self.others).into_iter().map(read).collect();
        self.others = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    }

    fn status(&self) -> SessionStatus {
        self.scene.daemon.session(self.stopped.base).unwrap()
    }

    /// Every byte, in order; then the space is free and the VM is read.
    fn catches_up(mut self, len: usize, writer: JoinHandle<()>) -> Scene {
        assert!(self.stopped.take(len) == pattern(self.stopped.base, len));
        writer.join().unwrap();
        self.guest.obeys(&mut self.client, "ping");
        self.client.bye("busy").unwrap();
        self.is_clean();
        self.scene
    }

    fn is_clean(&self) {
        let daemon = &self.scene.daemon;
        until("no spill file", || (sum(daemon, |shard| shard.spilling + shard.spill_bytes) == 0).then_some(()));
        assert_eq!(sum(daemon, |shard| shard.spill_errors), 0);
    }
}

#[test]
fn a_client_that_never_reads_spills_and_none_of_the_fifteen_others_waits() {
    let mut stage = Stage::set(&[], 15);
    let len = 2 << 20;
    let writer = stage.writes(len, 4_084);
    stage.others_read(len);
    let status = stage.status();
    assert!(status.slow && status.spilled > 0 && status.spill_stopped.is_none(), "{status:?}");
    let in_memory = status.queued_to_client - status.spilled;
    assert!(in_memory < 1 << 20, "{in_memory} bytes in memory");
    assert_eq!(stage.scene.daemon.vm("busy").unwrap().blocked_by, None);
    assert_eq!(sum(&stage.scene.daemon, |shard| shard.links_blocked), 0);
    let metrics = stage.scene.daemon.admin().metrics().unwrap();
    assert!(metrics.contains("ringway_spill_written_bytes_total"), "{metrics}");
    let base = format!("session={}", stage.stopped.base);
    stage.scene.daemon.logged(&["INFO", "spills to a file", &base]);
    let mut scene = stage.catches_up(len, writer);
    scene.daemon.logged(&["INFO", "has caught up", &base]);
    let (written, read) =
        (sum(&scene.daemon, |shard| shard.spill_written), sum(&scene.daemon, |shard| shard.spill_read));
    assert!(written > 0 && read > 0, "{written} written, {read} read");
    scene.is_sound();
}

#[test]
fn at_the_bound_of_its_file_a_vm_waits_until_its_client_reads() {
    let stage = Stage::set(&["--spill-session", "1MiB"], 1);
    let len = 6 << 20;
    let writer = stage.writes_to_stopped(len);
    stage.is_held_back("has reached the bound of 1048576 bytes");
    stage.catches_up(len, writer).is_sound();
}

impl Stage {
    /// The VM writes `len` bytes for the one that does not read, and nothing for others.
    fn writes_to_stopped(&self, len: usize) -> JoinHandle<()> {
        let (mut io, base) = (self.guest.io.try_clone().unwrap(), self.stopped.base);
        thread::spawn(move || {
            pattern(base, len).chunks(8_192).for_each(|payload| io.write_all(&frame(base, payload)).unwrap());
        })
    }

    /// Nothing more is written for this reason, and the VM waits.
    fn is_held_back(&self, why: &str) {
        until("held back for good", || {
            let vm = self.scene.daemon.vm("busy").filter(|vm| vm.blocked_by == Some(self.stopped.base))?;
            let status = vm.sessions.into_iter().find(|session| session.io_base == self.stopped.base)?;
            status.spill_stopped.filter(|said| said.contains(why))
        });
        self.scene.daemon.logged(&["WARN", "cannot spill", why]);
        assert!(sum(&self.scene.daemon, |shard| shard.spill_full) > 0);
    }
}

#[test]
fn on_a_full_disk_a_vm_waits_until_its_client_reads_and_nothing_is_lost() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: a disk of our own takes root to mount");
    }
    let on_a_tiny_disk = |dir: &Path| {
        let disk = dir.join("disk");
        std::fs::create_dir(&disk).unwrap();
        let serve = ["serve", "--shards", "2", "--no-pin", "--session-buffer", "256KiB", "--spill-dir"];
        let binary = ringway(&[]).get_program().to_owned();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs \"$0\" && exec \"$@\" \"$0\""]);
        command.arg(disk).arg(binary).args(serve);
        command
    };
    let stage = Stage::of(Scene::around(Daemon::start_with(on_a_tiny_disk)), 1);
    let len = 6 << 20;
    let writer = stage.writes_to_stopped(len);
    stage.is_held_back("No space left on device");
    stage.catches_up(len, writer).is_sound();
}

#[test]
fn a_client_that_goes_away_takes_its_file_with_it() {
    let mut stage = Stage::set(&[], 3);
    let writer = stage.writes(2 << 20, 4_084);
    stage.others_read(2 << 20);
    writer.join().unwrap();
    until("a file", || (stage.status().spilled > 0).then_some(()));
    stage.stopped.socket.shutdown(std::net::Shutdown::Both).unwrap();
    stage.is_clean();
    stage.client.bye("busy").unwrap();
    let Stage { mut scene, client, guest, stopped, others } = stage;
    drop((client, guest, stopped, others));
    scene.is_sound();
}

#[test]
fn what_was_spilled_before_a_vm_died_reaches_its_client() {
    let mut stage = Stage::set(&[], 3);
    let len = 2 << 20;
    let writer = stage.writes(len, 4_084);
    stage.others_read(len);
    writer.join().unwrap();
    until("a file", || (stage.status().spilled > 0).then_some(()));
    let Stage { mut scene, mut client, guest, mut stopped, others } = stage;
    drop(guest);
    scene.daemon.logged(&["VM lost", "vm=\"busy\""]);
    assert!(stopped.take(len) == pattern(stopped.base, len));
    stopped.expect_end();
    client.bye("busy").unwrap();
    drop((client, stopped, others));
    scene.is_sound();
    assert_eq!(sum(&scene.daemon, |shard| shard.spilling + shard.spill_bytes), 0);
}

#[test]
fn output_that_no_shim_takes_spills_and_the_next_shim_gets_it() {
    let mut scene = Scene::set(&LITTLE);
    let (mut guest, mut runtime, tokens) = super::framed::boot(&scene.daemon, "kept", 2);
    let [token, other] = [0, 1].map(|n| tokens[n].as_str());
    let shim = Framed::shim(&scene.daemon, token);
    runtime.send_hyper("execcmd", &[token], &exec("p", "true"));
    guest.serve(ringway::wire::hyper::Code::ExecCmd, ringway::wire::hyper::Code::Ack, b"");
    runtime.response(ringway::wire::cc2::Command::Hyper).unwrap();
    let base = scene.daemon.vm("kept").unwrap().sessions[0].io_base;
    drop(shim);
    until("detached", || scene.daemon.session(base).filter(|session| session.state == "detached"));
    let sent = pattern(9, 4 << 20);
    sent.chunks(8_192).for_each(|payload| guest.send(base, payload));
    until("all of it", || scene.daemon.session(base).filter(|session| session.to_client.frames == 512));
    let status = scene.daemon.session(base).unwrap();
    assert!(status.spilled > 2 << 20, "{status:?}");
    assert_eq!(scene.daemon.vm("kept").unwrap().blocked_by, None);
    let mut shim = Framed::next_shim(&scene.daemon, token);
    assert!(shim.take(sent.len()) == sent);
    until("no file", || (sum(&scene.daemon, |shard| shard.spilling + shard.spill_bytes) == 0).then_some(()));
    drop(Framed::shim(&scene.daemon, other));
    scene.serves();
}

/// A session of the VM with a policy of its own.
fn allocate(client: &mut Client, policy: &str) -> Session {
    use std::os::fd::AsFd;
    let data = client.ask("allocateIO", &json!({ "nStreams": 1, "slowReader": policy })).unwrap();
    let (_, fd) = ringway::os::fds::recv_with_fd(client.socket.as_fd()).unwrap();
    Session { base: data["ioBase"].as_u64().unwrap(), socket: super::client::patient(fd.into()) }
}

#[test]
fn a_session_that_is_to_end_when_it_is_not_read_ends_alone() {
    let mut stage = Stage::set(&[], 1);
    let ended = std::mem::replace(&mut stage.stopped, allocate(&mut stage.client, "disconnect"));
    stage.writes_to_stopped(2 << 20).join().unwrap();
    let base = format!("session={}", stage.stopped.base);
    stage.scene.daemon.logged(&["WARN", "session ended before", &base, "owed more than 262144 bytes"]);
    assert!(stage.stopped.ends());
    assert_eq!(sum(&stage.scene.daemon, |shard| shard.sessions_too_slow), 1);
    stage.guest.send(stage.others[0].base, b"unharmed");
    stage.others[0].expect(b"unharmed");
    stage.client.bye("busy").unwrap();
    let Stage { mut scene, client, guest, stopped, others } = stage;
    drop((client, guest, stopped, others, ended));
    scene.is_sound();
}

#[test]
fn a_session_that_is_to_hold_its_vm_back_has_no_file() {
    let mut stage = Stage::set(&[], 1);
    let spare = std::mem::replace(&mut stage.stopped, allocate(&mut stage.client, "block"));
    let writer = stage.writes_to_stopped(4 << 20);
    let base = stage.stopped.base;
    until("held back", || stage.scene.daemon.vm("busy").filter(|vm| vm.blocked_by == Some(base)));
    assert_eq!(sum(&stage.scene.daemon, |shard| shard.spill_written), 0);
    drop(spare);
    stage.catches_up(4 << 20, writer).is_sound();
}

#[test]
fn a_policy_that_there_is_not_is_refused_by_both_protocols() {
    let mut stage = Stage::set(&[], 0);
    let error = stage.client.ask("allocateIO", &json!({ "nStreams": 1, "slowReader": "drop" })).unwrap_err();
    assert!(error.contains("slowReader: 'drop' is none of spill, block, disconnect"), "{error}");
    stage.client.is_in_step();
    let mut runtime = Framed::connect(&stage.scene.daemon);
    let asked = json!({ "containerId": "busy", "numIOStreams": 1, "slowReader": "drop" });
    let error = runtime.ask(ringway::wire::cc2::Command::AttachVm, &asked).unwrap_err();
    assert!(error.contains("slowReader: 'drop' is none of spill, block, disconnect"), "{error}");
}

#[test]
fn a_directory_that_cannot_serve_keeps_the_daemon_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("proxy.sock");
    let mut command = ringway(&["serve", "--spill-dir", "/proc", "--socket", socket.to_str().unwrap()]);
    let output = command.stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("/proc") && said.contains("--spill-dir"), "{said}");
}
