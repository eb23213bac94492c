//! `ringway exec` as a program: its outputs, its exit status, signals.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::proxy::Proxy;

fn exec(proxy: &Proxy, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command.arg("exec").arg("--socket").arg(proxy.socket()).args(["--vm", "vm", "--"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn texts(output: &Output) -> (String, String, Option<i32>) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

#[test]
fn outputs_and_status_are_the_command_s() {
    let proxy = Proxy::start();
    let output = exec(&proxy, &["both", "3"]).output().unwrap();
    assert_eq!(texts(&output), ("to stdout\n".into(), "to stderr\n".into(), Some(3)));
    let output = exec(&proxy, &["late-stderr"]).output().unwrap();
    assert_eq!(texts(&output), (String::new(), "last words\n".into(), Some(4)));
    let output = exec(&proxy, &["no-stderr-end"]).output().unwrap();
    assert_eq!(texts(&output), (String::new(), String::new(), Some(5)));
}

#[test]
fn megabytes_go_through_unchanged() {
    let proxy = Proxy::start();
    let mut child = exec(&proxy, &["cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 253).to_le_bytes()[0]).collect();
    let (mut stdin, copy) = (child.stdin.take().unwrap(), sent.clone());
    let thread = std::thread::spawn(move || stdin.write_all(&copy).unwrap());
    let output = child.wait_with_output().unwrap();
    thread.join().unwrap();
    assert!(output.stdout == sent, "{} bytes of {}", output.stdout.len(), sent.len());
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_end_does_not_wait_for_stdin() {
    let proxy = Proxy::start();
    let mut child = exec(&proxy, &["both", "0"]).stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(stdin);
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let proxy = Proxy::start();
    let mut child = exec(&proxy, &["yes"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10_000]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(texts(&output), (String::new(), String::new(), Some(141)));
    let last = proxy.commands().pop().unwrap();
    assert!(last.0 == "signalprocess" && last.1.contains("\"signal\":13"), "{last:?}");
}

#[test]
fn failures_of_ringway_are_125() {
    let proxy = Proxy::start();
    let cases: [(&[&str], &str); 2] = [
        (&["missing"], "ringway: cannot run 'missing': missing: no such program\n"),
        (&["drop"], "ringway: the session ended without an exit status: VM vm is gone, or was removed\n"),
    ];
    for (args, expected) in cases {
        let (_, stderr, code) = texts(&exec(&proxy, args).output().unwrap());
        assert_eq!((stderr.as_str(), code), (expected, Some(125)), "{args:?}");
    }
    let output = exec(&proxy, &["cat"]).env("RINGWAY_SOCKET", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "the flag weighs more than the environment");
}

/// Starts `await-signal` and returns once it runs.
fn waiting(proxy: &Proxy) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = exec(proxy, &["await-signal"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, stdout)
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn signals_are_the_command_s_to_handle() {
    let proxy = Proxy::start();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1] {
        let (mut child, _stdout) = waiting(&proxy);
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(100 + signal as i32), "{signal}");
    }
}

#[test]
fn a_signal_the_agent_refuses_ends_ringway() {
    let proxy = Proxy::start();
    let (child, _stdout) = waiting(&proxy);
    send(&child, Signal::SIGUSR2);
    let (_, stderr, code) = texts(&child.wait_with_output().unwrap());
    assert_eq!(code, Some(128 + Signal::SIGUSR2 as i32));
    assert!(stderr.contains("the agent does not take signal 12"), "{stderr}");
}
