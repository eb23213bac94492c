//! `ringway exec` through a daemon and an agent, each in a process of its own.

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::thread;

use sha2::{Digest, Sha256};

use super::client::pattern;
use super::harness::{Daemon, wait};

fn exec(daemon: &Daemon, args: &[&str]) -> Command {
    let mut command = daemon.command(&[&["exec", "--vm", "vm"], args].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(daemon: &Daemon, args: &[&str]) -> Output {
    exec(daemon, args).output().unwrap()
}

#[test]
fn stdin_stdout_stderr_and_the_exit_status() {
    let daemon = Daemon::start(&[]);
    let _agent = daemon.agent("vm", &[]);
    let mut child = exec(&daemon, &["--", "sh", "-c", "tr a-z A-Z; echo to stderr >&2; exit 7"]);
    let mut child = child.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"some words\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout, b"SOME WORDS\n");
    assert_eq!(output.stderr, b"to stderr\n");
}

#[test]
fn every_exit_status_is_the_commands_own() {
    let daemon = Daemon::start(&[]);
    let _agent = daemon.agent("vm", &[]);
    for status in [0, 1, 2, 124, 126, 255] {
        let output = output(&daemon, &["sh", "-c", &format!("exit {status}")]);
        assert_eq!(output.status.code(), Some(status));
    }
}

#[test]
fn a_signal_arrives_though_stdin_is_stuck() {
    let daemon = Daemon::start(&[]);
    let _agent = daemon.agent("vm", &[]);
    for protocol in ["1", "2"] {
        let script = "trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done";
        let mut command = exec(&daemon, &["--protocol", protocol, "--", "sh", "-c", script]);
        let mut child = command.stdin(std::fs::File::open("/dev/zero").unwrap()).spawn().unwrap();
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        thread::sleep(std::time::Duration::from_millis(300));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
        assert_eq!(wait(&mut child).code(), Some(9), "protocol {protocol}");
    }
}

#[test]
fn failures_are_not_taken_for_the_commands_own_status() {
    let daemon = Daemon::start(&[]);
    let _agent = daemon.agent("vm", &[]);
    let missing = output(&daemon, &["/no/such/program"]);
    let words = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(missing.status.code(), Some(127), "as a shell has it: {words}");
    assert!(words.contains("/no/such/program: not found"), "{words}");
    let nowhere = daemon.command(&["exec", "--vm", "nobody", "true"]).output().unwrap();
    let words = String::from_utf8(nowhere.stderr).unwrap();
    assert_eq!(nowhere.status.code(), Some(125), "{words}");
    assert!(words.contains("unknown containerID: nobody"), "{words}");
}

#[test]
fn a_vm_that_dies_ends_exec_with_an_error() {
    let daemon = Daemon::start(&[]);
    let mut agent = daemon.agent("vm", &[]);
    // The command ends by itself when its agent and with it its stdin are gone.
    let mut child = exec(&daemon, &["sh", "-c", "echo up; exec cat"]);
    let mut child = child.stdin(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
    let status = wait(&mut child);
    let mut words = String::new();
    child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert_eq!(status.code(), Some(125), "{words}");
    assert!(words.contains("VM vm is gone"), "{words}");
}

/// Sends this many bytes through `cat` and compares checksums.
fn there_and_back(daemon: &Daemon, seed: u64, len: usize) {
    let mut child = exec(daemon, &["cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let block = pattern(seed, 1 << 20);
    let rounds = len / block.len();
    let sender = thread::spawn(move || {
        let mut sent = Sha256::new();
        for _ in 0..rounds {
            stdin.write_all(&block).unwrap();
            sent.update(&block);
        }
        sent.finalize()
    });
    let (mut received, mut total) = (Sha256::new(), 0);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let n = stdout.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        received.update(&buffer[..n]);
        total += n;
    }
    assert_eq!(total, len);
    assert!(sender.join().unwrap() == received.finalize(), "the checksum of session {seed}");
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn four_streams_of_64_mb_at_once_come_back_unchanged() {
    let daemon = Daemon::start(&[]);
    let _agent = daemon.agent("vm", &[]);
    thread::scope(|scope| {
        for seed in 0..4 {
            let daemon = &daemon;
            scope.spawn(move || there_and_back(daemon, seed, 64 << 20));
        }
    });
    let status = daemon.status();
    let (to_client, to_agent) = (status.vms[0].to_client.bytes, status.vms[0].to_agent.bytes);
    assert!(to_client > 256 << 20 && to_agent > 256 << 20, "{to_client} {to_agent}");
}
