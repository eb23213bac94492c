//! `ringway shim` through a daemon and an agent, each in a process of its own; this process is the runtime.

use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway::client::RuntimeClient;
use ringway::wire::hyper::{EnvVar, ExecCmd, Process};

use super::harness::{Daemon, ringway, until, wait};

/// A runtime attached to `vm`, with one token.
fn attach(daemon: &Daemon) -> (RuntimeClient, String) {
    let mut runtime = RuntimeClient::connect(daemon.socket()).unwrap();
    let (url, mut tokens) = runtime.attach_vm("vm", 1).unwrap();
    assert_eq!(url, format!("unix://{}", daemon.socket().display()));
    (runtime, tokens.pop().unwrap())
}

fn shim(daemon: &Daemon, token: &str) -> Child {
    let uri = format!("unix://{}", daemon.socket().display());
    let mut command: Command = ringway(&["shim", "-c", "c", "-t", token, "-u", &uri]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Starts a shell script for the token; the daemon waits for its shim.
fn start(runtime: &mut RuntimeClient, token: &str, script: &str) {
    let path = EnvVar { env: "PATH".into(), value: std::env::var("PATH").unwrap() };
    let process = Process {
        id: Some("p".into()),
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        envs: vec![path],
        workdir: "/".into(),
        ..Process::default()
    };
    let command = ExecCmd { container: String::new(), process };
    runtime.hyper("execcmd", &[token.to_owned()], &command).unwrap();
}

/// Reads until the output ends with `end`.
fn read_until(stdout: &mut ChildStdout, end: &str) -> String {
    let mut got = String::new();
    while !got.ends_with(end) {
        let mut buffer = [0; 4096];
        let read = stdout.read(&mut buffer).unwrap();
        assert!(read > 0, "ended after {got}");
        got.push_str(str::from_utf8(&buffer[..read]).unwrap());
    }
    got
}

#[test]
fn a_shim_is_its_process() {
    let daemon = Daemon::start(&[]);
    let _agent = daemon.agent("vm", &["--exit-report", "event", "--api-version", "4244"]);
    let (mut runtime, token) = attach(&daemon);
    let mut shim = shim(&daemon, &token);
    start(&mut runtime, &token, "tr a-z A-Z; echo to stderr >&2; exit 7");
    shim.stdin.take().unwrap().write_all(b"some words\n").unwrap();
    let output = shim.wait_with_output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"SOME WORDS\n"[..], &b"to stderr\n"[..]));
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn its_signals_are_the_process_s() {
    let daemon = Daemon::start(&[]);
    let _agent = daemon.agent("vm", &["--api-version", "4244"]);
    let (mut runtime, token) = attach(&daemon);
    let mut shim = shim(&daemon, &token);
    start(&mut runtime, &token, "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done");
    read_until(shim.stdout.as_mut().unwrap(), "up\n");
    kill(Pid::from_raw(i32::try_from(shim.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(wait(&mut shim).code(), Some(9));
}

#[test]
fn a_killed_shim_is_replaced_and_nothing_is_lost() {
    let daemon = Daemon::start(&[]);
    let _agent = daemon.agent("vm", &[]);
    let (mut runtime, token) = attach(&daemon);
    let mut first = shim(&daemon, &token);
    start(&mut runtime, &token, "echo one; read x; echo \"$x\"; read x; seq 20000; exit 4");
    read_until(first.stdout.as_mut().unwrap(), "one\n");
    first.stdin.as_mut().unwrap().write_all(b"two\n").unwrap();
    read_until(first.stdout.as_mut().unwrap(), "two\n");
    first.kill().unwrap();
    first.wait().unwrap();
    let is_free = || daemon.vm("vm")?.sessions.iter().any(|session| session.state == "detached").then_some(());
    until("a token without a shim", is_free);
    let mut second = shim(&daemon, &token);
    second.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = second.wait_with_output().unwrap();
    let expected: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    assert!(String::from_utf8_lossy(&output.stdout) == expected, "{} bytes", output.stdout.len());
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(4), &b""[..]));
}
