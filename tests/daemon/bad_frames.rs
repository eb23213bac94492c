//! Clients that break protocol 2, or use it wrongly: they get an error where the protocol has one, else their own
//! connection ends; nobody else notices, and the log says who it was.

use std::io::Write;
use std::net::Shutdown;

use ringway::wire::cc2::{self, Command, Kind, PROCESS_EXITED, Stream};
use ringway::wire::hyper::Code;
use serde_json::json;

use super::framed::{Framed, exec};
use super::scene::Scene;

fn me() -> String {
    format!("pid={}", std::process::id())
}

/// A header of these bytes: type and flags, opcode, length of the payload.
fn header(words: u8, flags: u8, opcode: u8, len: u32) -> Vec<u8> {
    [&[0, 2, words, 0, 0, 0, flags, opcode][..], &len.to_be_bytes()].concat()
}

/// Sends these bytes behind a sound command, as a runtime and as a shim: the connection ends, the log names it.
fn is_cut_off(bytes: &[u8], why: &str) {
    as_runtime(bytes, why);
    as_shim(bytes, why);
}

fn as_runtime(bytes: &[u8], why: &str) {
    let mut scene = Scene::set(&[]);
    let (mut runtime, _) = Framed::attached(&scene.daemon, "witness", 0);
    // The daemon may close before it has everything.
    let _ = runtime.socket.write_all(bytes);
    runtime.expect_end();
    drop(runtime);
    scene.daemon.logged(&["WARN", "connection ended", why, &me()]);
    scene.is_sound();
    assert_eq!(scene.daemon.status().counters.clients_faulty, 1);
}

fn as_shim(bytes: &[u8], why: &str) {
    let mut scene = Scene::set(&[]);
    let (_runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
    let _ = shim.socket.write_all(bytes);
    shim.expect_end();
    scene.daemon.logged(&["WARN", "by its own fault", why, &me(), "vm=\"witness\""]);
    assert_eq!(scene.daemon.status().counters.clients_faulty, 1);
    // Its token is free.
    let mut next = Framed::next_shim(&scene.daemon, &tokens[0]);
    assert_eq!(next.ask(Command::DisconnectShim, &json!({})), Ok(Vec::new()));
    next.expect_end();
    drop((shim, next, _runtime));
    scene.is_sound();
}

#[test]
fn another_version() {
    for version in [0, 1, 3, 0xffff_u16] {
        let mut bytes = header(3, 0, 2, 2);
        bytes[..2].copy_from_slice(&version.to_be_bytes());
        is_cut_off(&bytes, &format!("version {version} instead of 2"));
    }
}

#[test]
fn a_header_below_12_bytes() {
    for words in 0..3 {
        is_cut_off(&header(words, 0, 2, 0), &format!("length {} is shorter than the 12-byte header", words * 4));
    }
}

#[test]
fn a_longer_header_is_skipped() {
    let mut scene = Scene::set(&[]);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    let long = |flags: u8, opcode: u8, payload: &[u8]| {
        let len = u32::try_from(payload.len()).unwrap();
        [header(255, flags, opcode, len), vec![0xee; 252 * 4], payload.to_vec()].concat()
    };
    runtime.send_bytes(&long(0, Command::AttachVm as u8, b"{\"containerId\":\"witness\"}"));
    runtime.response(Command::AttachVm).unwrap();
    let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
    runtime.send_hyper("execcmd", &[&tokens[0]], &exec("p", "true"));
    scene.guest.serve(Code::ExecCmd, Code::Ack, b"");
    runtime.response(Command::Hyper).unwrap();
    shim.send_bytes(&long(2, 0, b"input"));
    assert_eq!(scene.guest.take_frame().1, b"input");
    shim.send_bytes(&long(2, 0, b""));
    assert_eq!(scene.guest.take_frame().1, b"");
    for byte in long(2, 0, b"slowly") {
        shim.send_bytes(&[byte]);
    }
    assert_eq!(scene.guest.take_frame().1, b"slowly");
    shim.send_bytes(&long(0, Command::Signal as u8, b"{}"));
    assert_eq!(shim.response(Command::Signal), Err("invalid signal number 0: 1 to 64".to_owned()));
    scene.serves();
}

#[test]
fn types_opcodes_and_flags_that_do_not_exist() {
    for (flags, opcode) in [(0, 7), (0, 255), (1, 7), (2, 4), (4, 0), (15, 0), (0x10, 2), (0x12, 0), (0x13, 0)] {
        is_cut_off(&header(3, flags, opcode, 0), &format!("type {flags:#04x} with opcode {opcode} is not part"));
    }
}

#[test]
fn a_payload_of_4_gib() {
    for (flags, opcode) in [(0, 2), (2, 0), (2, 3), (3, 0)] {
        is_cut_off(&header(3, flags, opcode, u32::MAX), "length 4294967295 is over the bound");
    }
}

#[test]
fn a_log_entry_of_1_mb_or_of_broken_json() {
    is_cut_off(&[header(3, 2, 3, 1 << 20), vec![b'x'; 1 << 20]].concat(), "length 1048576 is over the bound");
    let log = |payload: &[u8]| cc2::encode(Kind::Stream(Stream::Log), payload);
    is_cut_off(&log(b"{\"source\":\"shim\","), "invalid JSON");
    is_cut_off(&log(b"\xff\xfe"), "invalid JSON");
    is_cut_off(&log(b"{\"level\":5}"), "invalid JSON");
}

#[test]
fn a_response_or_output_sent_by_a_client() {
    is_cut_off(&header(3, 1, 0, 0), "a response where none may be");
    is_cut_off(&header(3, 0x11, 6, 0), "a response where none may be");
    is_cut_off(&header(3, 2, 1, 0), "output of a process where none may be");
    is_cut_off(&header(3, 2, 2, 5), "output of a process where none may be");
}

#[test]
fn stdin_before_connect_shim_is_refused_by_its_header() {
    as_runtime(&header(3, 2, 0, 0), "stdin before ConnectShim where none may be");
    as_runtime(&header(3, 2, 0, 16 << 20), "stdin before ConnectShim where none may be");
}

#[test]
fn a_truncated_frame() {
    let whole = cc2::encode(Kind::Command(Command::AttachVm), b"{}");
    for len in [5, 12, 13] {
        let mut scene = Scene::set(&[]);
        let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
        runtime.send_bytes(&whole[..len]);
        runtime.socket.shutdown(Shutdown::Write).unwrap();
        runtime.expect_end();
        scene.daemon.logged(&["WARN", "in the middle of a message", &me()]);
        let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
        shim.send_bytes(&whole[..len]);
        drop(shim);
        let mut shim = Framed::next_shim(&scene.daemon, &tokens[0]);
        assert_eq!(shim.signal(65), Err("invalid signal number 65: 1 to 64".to_owned()));
        shim.ask(Command::DisconnectShim, &json!({})).unwrap();
        drop((runtime, shim));
        scene.is_sound();
    }
}

#[test]
fn bad_payloads_of_commands_are_answered() {
    let mut scene = Scene::set(&[]);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    let mut shim = Framed::shim(&scene.daemon, &tokens[0]);
    for client in [&mut runtime, &mut shim] {
        for payload in [&b""[..], b"{", b"[]", b"7", b"\xff", b"{} {}"] {
            for command in [Command::RegisterVm, Command::UnregisterVm, Command::AttachVm, Command::Hyper] {
                client.send(Kind::Command(command), payload);
                let error = client.response(command).unwrap_err();
                assert!(error.starts_with("malformed payload: "), "{command:?} {error}");
            }
        }
        assert_eq!(client.ask(Command::AttachVm, &json!({})), Err("unknown containerID: ".to_owned()));
        assert_eq!(client.ask(Command::RegisterVm, &json!({})), Err("malformed hello command".to_owned()));
        assert!(!client.ask(Command::Hyper, &json!({})).unwrap_err().is_empty());
        // Notifications nobody knows are nobody's business.
        client.send(Kind::Notification(PROCESS_EXITED), b"\0");
        client.send(Kind::Notification(200), &[1; 1_000]);
        client.ask(Command::AttachVm, &json!({ "containerId": "witness" })).unwrap();
    }
    for (payload, error) in [
        (json!({ "signalNumber": 0 }), "invalid signal number 0: 1 to 64"),
        (json!({ "signalNumber": 65 }), "invalid signal number 65: 1 to 64"),
        (json!({ "signalNumber": -1 }), "invalid signal number -1: 1 to 64"),
        (json!({ "signalNumber": 28 }), "SIGWINCH needs columns and rows from 1 to 65535"),
        (json!({ "signalNumber": 28, "rows": 5 }), "SIGWINCH needs columns and rows from 1 to 65535"),
        (
            json!({ "signalNumber": 28, "rows": 5, "columns": 65_536 }),
            "SIGWINCH needs columns and rows from 1 to 65535",
        ),
    ] {
        assert_eq!(shim.ask(Command::Signal, &payload), Err(error.to_owned()));
        assert_eq!(runtime.ask(Command::Signal, &payload), Err("client isn't a shim".to_owned()));
    }
    shim.ask(Command::DisconnectShim, &json!({})).unwrap();
    drop((runtime, shim));
    scene.is_sound();
    assert_eq!(scene.daemon.status().counters.clients_faulty, 0);
}

#[test]
fn frames_byte_by_byte_are_served_and_delay_nobody() {
    let mut scene = Scene::set(&[]);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    let connect = json!({ "token": tokens[0] }).to_string();
    let mut shim = Framed::connect(&scene.daemon);
    for byte in cc2::encode(Kind::Command(Command::ConnectShim), connect.as_bytes()) {
        shim.send_bytes(&[byte]);
        scene.serves();
    }
    shim.response(Command::ConnectShim).unwrap();
    runtime.send_hyper("execcmd", &[&tokens[0]], &exec("p", "true"));
    scene.guest.serve(Code::ExecCmd, Code::Ack, b"");
    for byte in cc2::encode(Kind::Stream(Stream::Stdin), b"input") {
        shim.send_bytes(&[byte]);
    }
    assert_eq!(scene.guest.take_frame().1, b"input");
    scene.serves();
}

#[test]
fn input_in_the_same_write_as_connect_shim_is_kept() {
    let mut scene = Scene::set(&[]);
    let (mut runtime, tokens) = Framed::attached(&scene.daemon, "witness", 1);
    let connect = json!({ "token": tokens[0] }).to_string();
    let connect = cc2::encode(Kind::Command(Command::ConnectShim), connect.as_bytes());
    let mut shim = Framed::connect(&scene.daemon);
    let input = cc2::encode(Kind::Stream(Stream::Stdin), &[b'x'; 3_000]);
    shim.send_bytes(&[connect, input.clone(), input[..100].to_vec()].concat());
    shim.response(Command::ConnectShim).unwrap();
    shim.send_bytes(&input[100..]);
    runtime.send_hyper("execcmd", &[&tokens[0]], &exec("p", "true"));
    scene.guest.serve(Code::ExecCmd, Code::Ack, b"");
    let mut got = 0;
    while got < 6_000 {
        let payload = scene.guest.take_frame().1;
        assert!(payload.iter().all(|&byte| byte == b'x'));
        got += payload.len();
    }
    assert_eq!(got, 6_000);
}
