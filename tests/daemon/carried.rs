//! What shims carry for processes of a real agent: bytes both ways, the ends of streams, signals, sizes, statuses.

use std::thread;

use ringway::wire::cc2::{self, Command, Kind, Stream};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::client::pattern;
use super::framed::{Framed, exec, process, vm};
use super::harness::{Agent, Daemon, until};

/// What agents are like: those of hyperstart 0.7 and those of 1.x.
const OLD: &[&str] = &["--ignore-rootfs", "--api-version", "4242"];
const NEW: &[&str] = &["--ignore-rootfs", "--exit-report", "event", "--api-version", "4244"];

#[test]
fn output_of_both_streams_then_the_status() {
    for flags in [OLD, NEW] {
        let daemon = Daemon::start(&[]);
        let (_agent, mut runtime, tokens) = vm(&daemon, flags, 2);
        let mut shim = Framed::shim(&daemon, &tokens[0]);
        runtime.run(&tokens[0], "p", "echo out; seq 100000 >&2; echo last; exit 7");
        let seen = shim.rest();
        let numbers: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
        assert!(seen.stdout == b"out\nlast\n" && seen.stderr == numbers.as_bytes() && seen.status == 7);
        // The shim's order, and the daemon's memory, end here.
        assert_eq!(shim.ask(Command::DisconnectShim, &json!({})), Ok(Vec::new()));
        shim.expect_end();
        let mut shim = Framed::shim(&daemon, &tokens[1]);
        let container = json!({ "id": "c", "process": process("init", "echo up; exit 255") });
        runtime.hyper("newcontainer", &[&tokens[1]], &container).unwrap();
        shim.exits("up\n", "", 255);
    }
}

#[test]
fn an_empty_frame_ends_stdin() {
    let daemon = Daemon::start(&[]);
    let (_agent, mut runtime, tokens) = vm(&daemon, OLD, 1);
    let mut shim = Framed::shim(&daemon, &tokens[0]);
    runtime.run(&tokens[0], "p", "cat; echo and the end");
    shim.stdin(b"words\n");
    assert_eq!(shim.take(6), b"words\n");
    shim.stdin(b"");
    shim.exits("and the end\n", "", 0);
}

#[test]
fn frames_over_every_bound_arrive_whole() {
    let daemon = Daemon::start(&[]);
    let lens = [4_084, 4_085, 10_228, 10_229, 32_756, 32_757, 1 << 20, 4_000_000];
    let (_agent, mut runtime, tokens) = vm(&daemon, OLD, lens.len());
    for (len, token) in lens.into_iter().zip(&tokens) {
        let mut shim = Framed::shim(&daemon, token);
        runtime.run(token, &format!("p{len}"), "cat");
        let sent = pattern(len as u64, len);
        let frame = cc2::encode(Kind::Stream(Stream::Stdin), &sent);
        let mut socket = shim.socket.try_clone().unwrap();
        let writer = thread::spawn(move || std::io::Write::write_all(&mut socket, &frame).unwrap());
        assert!(shim.take(len) == sent, "{len} bytes");
        writer.join().unwrap();
        shim.stdin(b"");
        shim.exits("", "", 0);
    }
}

/// Sends this much through `cat` and compares checksums.
fn there_and_back(shim: &mut Framed, seed: u64, len: usize) {
    let mut socket = shim.socket.try_clone().unwrap();
    let block = pattern(seed, 1 << 20);
    let rounds = len / block.len();
    let sender = thread::spawn(move || {
        let mut sent = Sha256::new();
        for _ in 0..rounds {
            for piece in block.chunks(32_000) {
                let frame = cc2::encode(Kind::Stream(Stream::Stdin), piece);
                std::io::Write::write_all(&mut socket, &frame).unwrap();
            }
            sent.update(&block);
        }
        std::io::Write::write_all(&mut socket, &cc2::encode(Kind::Stream(Stream::Stdin), b"")).unwrap();
        sent.finalize()
    });
    let (mut received, mut total) = (Sha256::new(), 0);
    while total < len {
        let (kind, payload) = shim.next_frame().expect("more output");
        assert_eq!(kind, Kind::Stream(Stream::Stdout));
        received.update(&payload);
        total += payload.len();
    }
    assert!(sender.join().unwrap() == received.finalize(), "the checksum of {seed}");
    shim.exits("", "", 0);
}

#[test]
fn three_shims_of_32_mb_each_way_at_once() {
    let daemon = Daemon::start(&[]);
    let (_agent, mut runtime, tokens) = vm(&daemon, NEW, 3);
    let mut shims: Vec<Framed> = tokens.iter().map(|token| Framed::shim(&daemon, token)).collect();
    for (n, token) in tokens.iter().enumerate() {
        runtime.run(token, &format!("p{n}"), "cat");
    }
    thread::scope(|scope| {
        for (seed, shim) in shims.iter_mut().enumerate() {
            scope.spawn(move || there_and_back(shim, seed as u64, 32 << 20));
        }
    });
}

#[test]
fn a_terminal_has_the_size_it_was_told_and_one_stream() {
    for flags in [OLD, NEW] {
        let daemon = Daemon::start(&[]);
        let (_agent, mut runtime, tokens) = vm(&daemon, flags, 1);
        let mut shim = Framed::shim(&daemon, &tokens[0]);
        let mut data = exec("p", "stty -echo; echo up; read x; stty size; echo too >&2; exit 3");
        data["process"]["terminal"] = json!(true);
        runtime.hyper("execcmd", &[&tokens[0]], &data).unwrap();
        assert_eq!(shim.take(4), b"up\r\n");
        let size = json!({ "signalNumber": 28, "columns": 123, "rows": 45 });
        assert_eq!(shim.ask(Command::Signal, &size), Ok(Vec::new()));
        shim.stdin(b"\n");
        shim.exits("45 123\r\ntoo\r\n", "", 3);
    }
}

/// A container whose first process says which signal it got.
fn container(id: &str) -> serde_json::Value {
    let script = "trap 'echo hup' HUP; trap 'echo term; exit 5' TERM; echo up; while :; do sleep 0.02; done";
    json!({ "id": id, "process": process("init", script) })
}

#[test]
fn signals_reach_a_containers_first_process() {
    for flags in [OLD, NEW] {
        let daemon = Daemon::start(&[]);
        let (_agent, mut runtime, tokens) = vm(&daemon, flags, 2);
        let mut shim = Framed::shim(&daemon, &tokens[0]);
        runtime.hyper("newcontainer", &[&tokens[0]], &container("c")).unwrap();
        assert_eq!(shim.take(3), b"up\n");
        assert_eq!(shim.signal(1), Ok(Vec::new()));
        assert_eq!(shim.take(4), b"hup\n");
        assert_eq!(shim.signal(15), Ok(Vec::new()));
        shim.exits("term\n", "", 5);
        assert!(shim.signal(15).is_err(), "it is gone");
        let mut shim = Framed::shim(&daemon, &tokens[1]);
        runtime.hyper("newcontainer", &[&tokens[1]], &container("d")).unwrap();
        assert_eq!(shim.take(3), b"up\n");
        assert_eq!(shim.signal(9), Ok(Vec::new()));
        shim.exits("", "", 137);
    }
}

#[test]
fn a_process_of_execcmd_is_signalled_where_the_agent_can() {
    let script = "trap 'echo hup; exit 4' HUP; echo up; while :; do sleep 0.02; done";
    for (flags, can) in [(OLD, false), (NEW, true)] {
        let daemon = Daemon::start(&[]);
        let (_agent, mut runtime, tokens) = vm(&daemon, flags, 1);
        let mut shim = Framed::shim(&daemon, &tokens[0]);
        runtime.run(&tokens[0], "p", script);
        assert_eq!(shim.take(3), b"up\n");
        if can {
            assert_eq!(shim.signal(1), Ok(Vec::new()));
            shim.exits("hup\n", "", 4);
        } else {
            let error = "the agent (hyperstart API 4242) cannot signal a process started by execcmd";
            assert_eq!(shim.signal(1), Err(error.to_owned()));
        }
    }
}

#[test]
fn a_signal_arrives_while_the_process_does_not_read_its_stdin() {
    let daemon = Daemon::start(&[]);
    let (_agent, mut runtime, tokens) = vm(&daemon, OLD, 1);
    let mut shim = Framed::shim(&daemon, &tokens[0]);
    runtime.hyper("newcontainer", &[&tokens[0]], &container("c")).unwrap();
    assert_eq!(shim.take(3), b"up\n");
    // More than the process's pipe and the agent hold, less than the daemon reads ahead of an agent that does not.
    for _ in 0..48 {
        shim.stdin(&[b'x'; 32_000]);
    }
    assert_eq!(shim.signal(1), Ok(Vec::new()));
    assert_eq!(shim.take(4), b"hup\n");
    assert_eq!(shim.signal(15), Ok(Vec::new()));
    shim.exits("term\n", "", 5);
}

#[test]
fn two_hundred_processes_start_at_once_on_twenty_vms() {
    let daemon = Daemon::start(&["--shim-patience", "3600"]);
    let agents: Vec<Agent> = (0..20).map(|n| daemon.agent(&format!("vm{n}"), NEW)).collect();
    // One start waits for a shim that never comes, on the first VM: it is in nobody's way.
    let (mut stuck, tokens) = Framed::attached(&daemon, "vm0", 1);
    stuck.send_hyper("execcmd", &[&tokens[0]], &exec("never", "true"));
    thread::scope(|scope| {
        for n in 0..200 {
            let daemon = &daemon;
            scope.spawn(move || {
                let (mut runtime, tokens) = Framed::attached(daemon, &format!("vm{}", n % 20), 1);
                let data = json!({ "id": format!("c{n}"), "process": process("init", &format!("echo {n}")) });
                runtime.send_hyper("newcontainer", &[&tokens[0]], &data);
                let mut shim = Framed::shim(daemon, &tokens[0]);
                assert_eq!(runtime.response(Command::Hyper), Ok(Vec::new()));
                shim.exits(&format!("{n}\n"), "", 0);
                assert_eq!(shim.ask(Command::DisconnectShim, &json!({})), Ok(Vec::new()));
            });
        }
    });
    let sessions = || daemon.status().vms.iter().map(|vm| vm.sessions.len()).sum::<usize>();
    until("all given up but the one that waits", || (sessions() == 1).then_some(()));
    drop(agents);
}
