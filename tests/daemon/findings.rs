//! What a review found, where only the real daemon shows it.

use std::os::unix::net::UnixStream;
use std::process::Stdio;

use nix::sys::signal::Signal;

use super::client::{patient, pattern};
use super::guest::{Guest, Ports};
use super::harness::{ringway, until};
use super::scene::Scene;

#[test]
fn sighup_ends_nothing() {
    let mut scene = Scene::set(&[]);
    scene.daemon.signal(Signal::SIGHUP);
    scene.daemon.logged(&["INFO", "SIGHUP: there is nothing to reload"]);
    scene.is_sound();
    scene.daemon.stop();
}

#[test]
fn new_clients_are_refused_while_it_stops() {
    let mut scene = Scene::set(&["--stop-timeout", "3600"]);
    let mut client = scene.daemon.client();
    let mut guest = Guest::boot(&scene.daemon, &mut client, "owing");
    let mut session = client.allocate(1);
    let _other = client.allocate(1);
    // More than the sockets hold: the daemon waits for this client.
    let len = 4 << 20;
    pattern(3, len).chunks(8_192).for_each(|payload| guest.send(session.base, payload));
    until("all of it received", || {
        scene.daemon.session(session.base).filter(|session| session.to_client.frames == len as u64 / 8_192)
    });
    scene.daemon.signal(Signal::SIGTERM);
    scene.daemon.logged(&["stopping"]);
    until("a refusal", || UnixStream::connect(scene.daemon.socket()).is_err().then_some(()));
    assert!(scene.daemon.is_running());
    assert!(session.take(len) == pattern(3, len));
    assert_eq!(scene.daemon.wait().code(), Some(0));
}

#[test]
fn a_vm_that_fails_its_hello_says_why_and_is_not_lost() {
    let mut scene = Scene::set(&[]);
    let ports = Ports::open(&scene.daemon, "bad");
    let mut client = scene.daemon.client();
    ports.send_hello(&mut client, "bad");
    let mut guest = ports.accept();
    // A message of 4 bytes: less than its own header.
    std::io::Write::write_all(&mut guest.ctl, &[0, 0, 0, 8, 0, 0, 0, 4]).unwrap();
    let error = client.response().unwrap_err();
    assert!(error.starts_with("bad: the VM is gone: the agent broke the protocol on its control channel"), "{error}");
    scene.daemon.logged(&["WARN", "hello failed", "broke the protocol"]);
    assert_eq!(scene.daemon.status().counters.vms_lost, 0);
    assert!(!scene.daemon.log().contains("VM lost"), "{}", scene.daemon.log());
    drop((client, guest));
    scene.is_sound();
}

#[test]
fn refusals_are_short_and_do_not_flood_the_log() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    let long = "x".repeat(100_000);
    let error = client.ask(&long, &serde_json::Value::Null).unwrap_err();
    assert_eq!(error, format!("no payload named '{}'", &long[..512]));
    for _ in 0..100 {
        client.is_in_step();
    }
    drop(client);
    scene.is_sound();
    let log = scene.daemon.log();
    assert_eq!(log.lines().filter(|line| line.contains("request refused")).count(), 10);
    assert!(log.lines().all(|line| line.len() < 2_000));
}

#[test]
fn protocol_2_begins_a_connection_or_is_a_fault() {
    let mut scene = Scene::set(&[]);
    let mut client = scene.daemon.client();
    client.is_in_step();
    client.send_bytes(&[0, 2, 0, 0, 0, 0, 0, 0]);
    client.expect_end();
    scene.daemon.logged(&["WARN", "connection ended: protocol broken by the client"]);
    assert!(!scene.daemon.log().contains("speaks protocol 2"), "{}", scene.daemon.log());
    drop(client);
    scene.is_sound();
}

#[test]
fn the_agent_logs_as_much_as_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    for (level, speaks) in [("info", true), ("error", false)] {
        let (ctl, io) = (dir.path().join(format!("{level}.ctl")), dir.path().join(format!("{level}.io")));
        let mut command = ringway(&["agent", "--log", level, "--ctl", ctl.to_str().unwrap()]);
        let mut child = command.arg("--io").arg(&io).stderr(Stdio::piped()).spawn().unwrap();
        let mut host = patient(until("a connection", || UnixStream::connect(&ctl).ok()));
        // READY: it has said before what it had to say of its start.
        std::io::Read::read_exact(&mut host, &mut [0; 8]).unwrap();
        child.kill().unwrap();
        let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
        assert_eq!(said.contains("agent started"), speaks, "{said}");
    }
}
