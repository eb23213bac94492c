//! VMs of protocol 2 over their life: named, unregistered, dead, shared with protocol 1; what they print and log.

use ringway::wire::cc2::{Command, Kind, PROCESS_EXITED, Stream};
use ringway::wire::hyper::Code;
use serde_json::json;
use std::io::Write;
use std::os::unix::net::UnixListener;

use super::client::pattern;
use super::framed::{Framed, boot, exec, register};
use super::guest::Ports;
use super::harness::{Daemon, until};
use super::scene::Scene;

/// Starts a process on a test's own agent, and returns its first sequence.
fn start(daemon: &Daemon, guest: &mut super::guest::Guest, runtime: &mut Framed, token: &str) -> u64 {
    runtime.send_hyper("execcmd", &[token], &exec("p", "true"));
    let payload = guest.serve(Code::ExecCmd, Code::Ack, b"");
    assert_eq!(runtime.response(Command::Hyper), Ok(Vec::new()));
    let sent: serde_json::Value = serde_json::from_slice(&payload).unwrap();
    let base = sent["process"]["stdio"].as_u64().unwrap();
    assert!(daemon.session(base).is_some());
    base
}

#[test]
fn an_unregistered_vm_gives_up_its_name_and_its_sessions_go_on() {
    let mut scene = Scene::set(&[]);
    let (mut guest, mut runtime, tokens) = boot(&scene.daemon, "vm", 2);
    let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
    let base = start(&scene.daemon, &mut guest, &mut runtime, &tokens[0]);
    // Another client does it: one that only knows the name.
    let mut other = Framed::connect(&scene.daemon);
    let name = json!({ "containerId": "vm" });
    assert_eq!(other.ask(Command::UnregisterVm, &name), Ok(Vec::new()));
    assert_eq!(other.ask(Command::UnregisterVm, &name), Err("unknown containerID: vm".to_owned()));
    assert_eq!(other.ask(Command::AttachVm, &name), Err("unknown containerID: vm".to_owned()));
    std::fs::remove_file(scene.daemon.path("vm.ctl")).unwrap();
    std::fs::remove_file(scene.daemon.path("vm.io")).unwrap();
    let (second, runtime2, _) = boot(&scene.daemon, "vm", 1);
    guest.send(base, b"still here");
    shim.expect(Kind::Stream(Stream::Stdout), b"still here");
    shim.stdin(b"me too");
    assert_eq!(guest.take_frame(), (base, b"me too".to_vec()));
    let mut next = {
        drop(shim);
        Framed::next_shim(&scene.daemon, &tokens[0])
    };
    guest.send(base, b"");
    guest.send(base, &[4]);
    next.expect(Kind::Notification(PROCESS_EXITED), &[4]);
    drop(guest);
    next.expect_end();
    assert_eq!(other.ask(Command::UnregisterVm, &name), Ok(Vec::new()));
    drop((second, runtime, runtime2, next, other));
    scene.is_sound();
}

#[test]
fn a_dead_vms_last_output_reaches_its_shims_then_they_end() {
    let mut scene = Scene::set(&[]);
    let (mut guest, mut runtime, tokens) = boot(&scene.daemon, "vm", 2);
    let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
    let mut idle = Framed::shim(&scene.daemon, &tokens[1]);
    let base = start(&scene.daemon, &mut guest, &mut runtime, &tokens[0]);
    let sent = pattern(4, 2 << 20);
    sent.chunks(8_000).for_each(|payload| guest.send(base, payload));
    drop(guest);
    idle.expect_end();
    scene.daemon.logged(&["VM lost", "vm=\"vm\""]);
    assert!(shim.take(sent.len()) == sent);
    shim.expect_end();
    let mut late = Framed::connect(&scene.daemon);
    let gone = format!("unknown token: {}", tokens[0]);
    until("a token of nobody", || late.claim(&tokens[0]).err().filter(|error| *error == gone));
    let error = runtime.hyper("ping", &[], &json!(null)).unwrap_err();
    assert!(error.starts_with("vm: the VM is gone: "), "{error}");
    assert_eq!(late.ask(Command::UnregisterVm, &json!({ "containerId": "vm" })), Ok(Vec::new()));
    drop((runtime, shim, idle, late));
    scene.is_sound();
}

#[test]
fn exits_reported_by_events_of_either_code_wait_for_all_output() {
    for code in [23_u32, 24] {
        let mut scene = Scene::set(&[]);
        let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
        let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
        let base = start(&scene.daemon, &mut scene.guest, &mut runtime, &tokens[0]);
        let event = br#"{"container":"","process":"p","event":"finished","status":9}"#;
        let len = u32::try_from(event.len() + 8).unwrap();
        let message = [&code.to_be_bytes()[..], &len.to_be_bytes(), event].concat();
        scene.guest.ctl.write_all(&message).unwrap();
        scene.guest.send(base, b"out");
        scene.guest.send(base, b"");
        scene.serves();
        scene.guest.send(base + 1, b"err");
        shim.expect(Kind::Stream(Stream::Stdout), b"out");
        shim.expect(Kind::Stream(Stream::Stderr), b"err");
        scene.guest.send(base + 1, b"");
        shim.expect(Kind::Notification(PROCESS_EXITED), &[9]);
        scene.serves();
    }
}

#[test]
fn both_protocols_share_a_vm_and_bye_ends_all() {
    let mut scene = Scene::set(&[]);
    // Registered by protocol 2, attached by protocol 1.
    let (mut guest, mut runtime, tokens) = boot(&scene.daemon, "vm", 1);
    let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
    let base = start(&scene.daemon, &mut guest, &mut runtime, &tokens[0]);
    let mut client = scene.daemon.client();
    client.attach("vm").unwrap();
    let mut session = client.allocate(2);
    assert!(session.base != base);
    guest.send(session.base, b"one");
    guest.send(base, b"two");
    session.expect(b"one");
    shim.expect(Kind::Stream(Stream::Stdout), b"two");
    client.bye("vm").unwrap();
    session.expect_end();
    shim.expect_end();
    assert_eq!(runtime.hyper("ping", &[], &json!(null)), Err("unknown containerID: vm".to_owned()));
    drop((guest, runtime, shim, client, session));
    scene.is_sound();
}

#[test]
fn an_unregistered_vm_goes_on_for_sessions_of_protocol_1_too() {
    let mut scene = Scene::set(&[]);
    let (mut guest, runtime, _) = boot(&scene.daemon, "vm", 1);
    let mut client = scene.daemon.client();
    client.attach("vm").unwrap();
    let mut session = client.allocate(1);
    let mut other = Framed::connect(&scene.daemon);
    assert_eq!(other.ask(Command::UnregisterVm, &json!({ "containerId": "vm" })), Ok(Vec::new()));
    guest.send(session.base, b"still here");
    session.expect(b"still here");
    drop((session, client));
    // Its last session is gone: so is the VM.
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut guest.io, &mut rest).unwrap();
    assert_eq!(rest, b"");
    drop((guest, runtime, other));
    scene.is_sound();
}

#[test]
fn consoles_and_log_streams_are_in_the_log() {
    let mut scene = Scene::set(&["--log", "debug"]);
    let ports = Ports::open(&scene.daemon, "vm");
    let console_path = scene.daemon.path("vm.console");
    let console = UnixListener::bind(&console_path).unwrap();
    let mut payload = register("vm", &ports, 1);
    payload["console"] = json!(console_path);
    let mut runtime = Framed::connect(&scene.daemon);
    runtime.command(Command::RegisterVm, &payload);
    let mut guest = ports.accept();
    guest.say(Code::Ready, b"");
    let tokens = super::framed::tokens_of(&runtime.response(Command::RegisterVm).unwrap());
    let mut console = console.accept().unwrap().0;
    console.write_all(b"Linux boots\r\nhalf a li").unwrap();
    scene.daemon.logged(&["DEBUG", "console", "vm=\"vm\"", "Linux boots"]);
    console.write_all(b"ne\n").unwrap();
    scene.daemon.logged(&["console", "half a line"]);
    let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
    for client in [&mut runtime, &mut shim] {
        for level in ["debug", "info", "warn", "error"] {
            let entry = json!({ "source": "shim", "containerId": "c7", "level": level, "msg": format!("a {level}") });
            client.send(Kind::Stream(Stream::Log), entry.to_string().as_bytes());
            scene.daemon.logged(&[&level.to_uppercase(), &format!("a {level}"), "source=\"shim\"", "container=\"c7\""]);
        }
    }
    // A client cannot write lines that look like ours.
    let entry = json!({ "source": "shim", "level": "info", "msg": "one\n2026 ERROR forged \u{1b}[31m" });
    shim.send(Kind::Stream(Stream::Log), entry.to_string().as_bytes());
    let line = scene.daemon.logged(&["forged"]);
    assert!(line.contains("INFO") && line.contains("one\\n2026 ERROR forged \\u{1b}[31m"), "{line}");
    runtime.ask(Command::UnregisterVm, &json!({ "containerId": "vm" })).unwrap();
    drop((guest, runtime, shim, console));
    scene.serves();
}
