//! What a host can count on from the two channels: READY, answers, garbage, reconnects, the end.
//!
//! What processes do is the business of `processes`. The asymmetry to know: garbage ends the connection it came on,
//! never the agent.

use std::io::{Read, Write};

use ringway::wire::hyper::{Code, FrameHeader, Message, StreamSeq};
use serde_json::{Value, json};

use crate::host::{Guest, is_alive};

#[test]
fn ready_comes_once_per_start() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    assert_eq!(host.next_message(), Message::new(Code::Ready, ""));
    assert_eq!(host.ask(Code::Ping, ""), Ok(vec![]));
    drop(host);
    let mut again = guest.connect();
    assert_eq!(again.ask(Code::Ping, ""), Ok(vec![]));
    assert!(again.said.is_empty(), "no READY for a host that comes back: {:?}", again.said);
}

#[test]
fn ready_comes_on_every_connection_where_asked_for() {
    let guest = Guest::start(&["--ready-per-connection"]);
    for _ in 0..3 {
        assert_eq!(guest.connect().next_message(), Message::new(Code::Ready, ""));
    }
}

#[test]
fn the_version_is_what_was_asked_for() {
    let guest = Guest::start(&[]);
    assert_eq!(guest.connect().ask(Code::Version, ""), Ok(4244_u32.to_be_bytes().to_vec()));
    let guest = Guest::start(&["--api-version", "4244"]);
    assert_eq!(guest.connect().ask(Code::Version, ""), Ok(4244_u32.to_be_bytes().to_vec()));
}

#[test]
fn what_the_agent_does_not_do_it_says() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    for code in [Code::SetupInterface, Code::SetupRoute, Code::DeleteInterface, Code::StopPod, Code::GetPod] {
        assert!(host.ask(code, "{}").unwrap_err().contains("not supported"), "{code:?}");
    }
    host.ctl.write_all(&Message { code: 4711, payload: vec![] }.encode()).unwrap();
    assert!(host.answer().unwrap_err().contains("unknown command"));
    assert!(host.ask(Code::ExecCmd, "no json").unwrap_err().contains("invalid payload"));
    assert_eq!(host.ask(Code::Ping, ""), Ok(vec![]), "the conversation goes on");
}

#[test]
fn commands_in_one_write_and_in_pieces_are_answered_in_order() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    let batch = [Message::new(Code::Version, ""), Message::new(Code::SetupRoute, ""), Message::new(Code::Ping, "")];
    let bytes: Vec<u8> = batch.iter().flat_map(Message::encode).collect();
    host.ctl.write_all(&bytes).unwrap();
    assert_eq!(host.answer().unwrap().len(), 4);
    assert!(host.answer().is_err());
    assert_eq!(host.answer(), Ok(vec![]));
    for byte in bytes {
        host.ctl.write_all(&[byte]).unwrap();
    }
    assert_eq!(host.answer().unwrap().len(), 4);
}

#[test]
fn reads_are_announced_where_asked_for() {
    let guest = Guest::start(&["--send-next"]);
    let mut host = guest.connect();
    host.ask(Code::SetupRoute, "{}").unwrap_err();
    let announced: Vec<_> = host.said.iter().filter(|message| message.code == Code::Next as u32).collect();
    assert_eq!(announced[0].payload, 8_u32.to_be_bytes());
    assert_eq!(announced[1].payload, 2_u32.to_be_bytes());
}

#[test]
fn ends_are_events_where_asked_for() {
    let guest = Guest::start(&["--exit-report", "event"]);
    let mut host = guest.connect();
    let nameless = json!({ "process": { "stdio": 1, "args": ["true"] } });
    assert!(host.json(Code::ExecCmd, nameless).unwrap_err().contains("needs an id"));
    host.exec_with(1, &["sh", "-c", "exit 9"], json!({ "id": "p" }));
    while !host.said.iter().any(|message| message.code == Code::ProcessAsyncEvent as u32) {
        let message = host.next_message();
        host.said.push(message);
    }
    let event: Value = serde_json::from_slice(&host.said.last().unwrap().payload).unwrap();
    assert_eq!(event, json!({ "container": "", "process": "p", "event": "finished", "status": 9 }));
    host.take_until(1, |seen| seen.eofs == 1);
    host.sh_named(3, "p", "exit 1");
    host.take_until(3, |seen| seen.eofs == 1);
    assert_eq!((host.seen[&1].status, host.seen[&3].status), (None, None), "no status frame besides");
}

#[test]
fn input_for_nobody_is_answered_with_eof() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.send(42, b"anybody?");
    host.take_until(42, |seen| seen.eofs == 1);
    host.sh(1, "cat");
    host.send(2, b"to a stderr");
    host.send(1, b"x\n");
    host.expect(1, "x\n");
    assert!(!host.seen.contains_key(&2), "stderr takes no input and is not ended by it");
}

fn is_closed(mut socket: &std::os::unix::net::UnixStream) -> bool {
    let mut buf = [0; 64];
    loop {
        match socket.read(&mut buf) {
            Ok(0) => return true,
            Ok(_) => {}
            // A close with bytes of ours unread.
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn garbage_ends_its_connection_and_nothing_else() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "cat");
    for garbage in [&[0, 0, 0, 12, 0, 0, 0, 7][..], &[0, 0, 0, 12, 0, 1, 0, 0], &[0xff; 100]] {
        let mut ctl = guest.connect_to("ctl");
        drop(std::mem::replace(&mut host.ctl, ctl.try_clone().unwrap()));
        ctl.write_all(garbage).unwrap();
        assert!(is_closed(&ctl));
    }
    for len in [0_u32, 11, 10_241, u32::MAX] {
        drop(host);
        host = guest.connect();
        let mut head = FrameHeader { seq: StreamSeq(1), len }.encode().to_vec();
        head.resize(12, 0);
        host.io.write_all(&head).unwrap();
        assert!(is_closed(&host.io), "length {len}");
    }
    drop(host);
    let mut host = guest.connect();
    assert_eq!(host.ask(Code::Ping, ""), Ok(vec![]));
    host.send_frame(1, &[b'x'; 10_228]);
    host.expect(1, "x");
}

#[test]
fn processes_and_their_output_outlive_a_connection() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    let go = guest.path("go");
    host.sh(
        1,
        &format!("echo before; while ! test -e {}; do sleep 0.01; done; seq 1 100000; cat; exit 3", go.display()),
    );
    host.expect(1, "before\n");
    drop(host);
    std::fs::write(&go, "").unwrap();
    let mut host = guest.connect();
    assert_eq!(host.ask(Code::Ping, ""), Ok(vec![]));
    host.send(1, b"input");
    host.send_eof(1);
    assert_eq!(host.status(1), 3);
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(host.text(1), expected + "input");
}

#[test]
fn a_connection_that_breaks_in_the_middle_of_output_leaves_whole_frames() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "cat /dev/zero");
    for _ in 0..5 {
        for _ in 0..20 {
            host.take_frame();
        }
        drop(host);
        host = guest.connect();
        assert_eq!(host.ask(Code::Ping, ""), Ok(vec![]));
    }
    let data = host.take_until(1, |seen| seen.data.len() > 1_000_000);
    assert!(data.data.iter().all(|&byte| byte == 0));
}

#[test]
fn a_host_can_come_back_while_a_process_refuses_to_read() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.exec(1, &["sleep", "1000"]);
    host.io.set_nonblocking(true).unwrap();
    let mut frame = FrameHeader::for_payload(StreamSeq(1), 4_084).encode().to_vec();
    frame.resize(4_096, 0);
    let mut sent = 0;
    while sent < 2_000_000 {
        match host.io.write(&frame) {
            Ok(count) if count == frame.len() => sent += count,
            _ => break,
        }
    }
    drop(host);
    let mut host = guest.connect();
    host.sh(3, "echo out");
    assert_eq!(host.status(3), 0);
}

#[test]
fn destroypod_ends_everything_and_then_the_agent() {
    let mut guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "trap 'echo ended; exit 0' TERM; echo $$; while :; do sleep 0.01; done");
    host.sh(3, "trap '' TERM HUP; echo $$; while :; do sleep 0.1; done");
    host.expect(1, "\n");
    host.expect(3, "\n");
    let stubborn = host.text(3).trim().to_owned();
    assert_eq!(host.ask(Code::DestroyPod, ""), Ok(vec![]));
    assert_eq!((host.status(1), host.status(3)), (0, 137));
    assert!(host.text(1).ends_with("ended\n"));
    assert_eq!(guest.wait(), Some(0));
    assert!(!is_alive(&stubborn));
    assert!(!guest.path("ctl").exists() && !guest.path("io").exists(), "its sockets are gone");
}

#[test]
fn sigterm_ends_everything_too() {
    let mut guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "echo $$; exec sleep 1000");
    host.expect(1, "\n");
    let pid = host.text(1).trim().to_owned();
    guest.terminate();
    assert_eq!(host.status(1), 128 + 15);
    assert_eq!(guest.wait(), Some(0));
    assert!(!is_alive(&pid));
}

#[test]
fn a_killed_agent_leaves_no_processes_and_its_sockets_can_be_reused() {
    let mut guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "echo $$; exec sleep 1000");
    host.expect(1, "\n");
    let pid = host.text(1).trim().to_owned();
    guest.child.kill().unwrap();
    guest.wait();
    let begin = std::time::Instant::now();
    while is_alive(&pid) {
        assert!(begin.elapsed() < crate::host::PATIENCE, "{pid} is left");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(guest.path("ctl").exists());
    guest.restart();
    assert_eq!(guest.connect().ask(Code::Ping, ""), Ok(vec![]));
}

#[test]
fn an_agent_can_run_in_a_thread() {
    let dir = tempfile::tempdir().unwrap();
    let config = ringway::agent::Config::new(dir.path().join("ctl"), dir.path().join("io"));
    let running = std::thread::spawn(|| ringway::agent::run(config));
    let mut host = crate::host::connect(dir.path());
    host.sh(1, "exit 2");
    assert_eq!(host.status(1), 2);
    assert_eq!(host.ask(Code::DestroyPod, ""), Ok(vec![]));
    running.join().unwrap().unwrap();
}

#[test]
fn character_devices_are_opened() {
    let (ctl_host, ctl_guest) = ringway::os::terminal::open().unwrap();
    let (io_host, io_guest) = ringway::os::terminal::open().unwrap();
    let name = |fd: &std::os::fd::OwnedFd| {
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    };
    let config = ringway::agent::Config::new(name(&ctl_guest), name(&io_guest));
    let running = std::thread::spawn(|| ringway::agent::run(config));
    let mut ctl = crate::host::Device(ctl_host.into());
    let mut io = crate::host::Device(io_host.into());
    assert_eq!(ctl.take(8), Message::new(Code::Ready, "").encode());
    let process = json!({ "process": { "stdio": 1, "args": ["sh", "-c", "echo hi; exit 5"] } });
    ctl.put(&Message::new(Code::ExecCmd, process.to_string()).encode());
    assert_eq!(ctl.take(8), Message::new(Code::Ack, "").encode());
    let expected = [(3, &b"hi\n"[..]), (0, b""), (1, &[5])];
    for (len, payload) in expected {
        let frame = [&FrameHeader::for_payload(StreamSeq(1), len).encode()[..], payload].concat();
        assert_eq!(io.take(frame.len()), frame);
    }
    ctl.put(&Message::new(Code::DestroyPod, "").encode());
    assert_eq!(ctl.take(8), Message::new(Code::Ack, "").encode());
    running.join().unwrap().unwrap();
}
