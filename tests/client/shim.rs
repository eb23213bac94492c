//! `ringway shim` as a program, and `ringway exec` over protocol 2.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use ringway::wire::cc2;

use crate::proxy2::Proxy2;

fn ringway(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn shim(proxy: &Proxy2, token: &str) -> Command {
    let uri = format!("unix://{}", proxy.socket().display());
    ringway(&["shim", "--container-id", "c", "--token", token, "--uri", &uri])
}

fn exec(proxy: &Proxy2, args: &[&str]) -> Command {
    let mut command = ringway(&["exec", "--vm", "vm", "--container", "c", "--socket"]);
    command.arg(proxy.socket()).arg("--").args(args);
    command
}

fn texts(output: &Output) -> (String, String, Option<i32>) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

fn send(child: &Child, signal: i32) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::try_from(signal).unwrap()).unwrap();
}

/// Starts the command and returns once its process said that it is ready.
fn ready(mut command: Command) -> (Child, BufReader<ChildStdout>) {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, stdout)
}

#[test]
fn outputs_and_status_are_the_process_s() {
    let proxy = Proxy2::start();
    let token = proxy.token(&["both", "3"]);
    let output = shim(&proxy, &token).output().unwrap();
    assert_eq!(texts(&output), ("to stdout\n".into(), "to stderr\n".into(), Some(3)));
    proxy.wait_until(|proxy| proxy.claims(&token) == (1, true));
    let output = exec(&proxy, &["both", "4"]).output().unwrap();
    assert_eq!(texts(&output), ("to stdout\n".into(), "to stderr\n".into(), Some(4)));
    let start = proxy.commands().pop().unwrap();
    assert!(start.0 == "execcmd" && start.1.contains(r#""stdio":0"#) && !start.1.contains("stderr"), "{start:?}");
    proxy.wait_until(|proxy| proxy.requests(cc2::Command::DisconnectShim).len() == 2);
}

#[test]
fn megabytes_go_through_unchanged() {
    let proxy = Proxy2::start();
    let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 253).to_le_bytes()[0]).collect();
    for mut command in [shim(&proxy, &proxy.token(&["cat"])), exec(&proxy, &["cat"])] {
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let (mut stdin, copy) = (child.stdin.take().unwrap(), sent.clone());
        let thread = std::thread::spawn(move || stdin.write_all(&copy).unwrap());
        let output = child.wait_with_output().unwrap();
        thread.join().unwrap();
        assert!(output.stdout == sent, "{} bytes of {}", output.stdout.len(), sent.len());
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    }
}

#[test]
fn the_end_does_not_wait_for_stdin() {
    let proxy = Proxy2::start();
    for mut command in [shim(&proxy, &proxy.token(&["both", "0"])), exec(&proxy, &["both", "0"])] {
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        drop(stdin);
    }
}

#[test]
fn signals_are_the_process_s_to_handle() {
    let proxy = Proxy2::start();
    for number in [1, 2, 3, 10, 15, 18, 20] {
        let (mut child, _stdout) = ready(shim(&proxy, &proxy.token(&["await-signal"])));
        send(&child, number);
        assert_eq!(child.wait().unwrap().code(), Some(100 + number), "{number}");
    }
    // exec is the runtime too and names the process; the mock takes 3 only from a shim.
    for number in [1, 2, 3, 10, 15] {
        let (mut child, _stdout) = ready(exec(&proxy, &["await-signal"]));
        send(&child, number);
        assert_eq!(child.wait().unwrap().code(), Some(100 + number), "{number}");
    }
}

#[test]
fn a_refused_signal_ends_exec_and_not_the_shim() {
    let proxy = Proxy2::start();
    let (child, _stdout) = ready(exec(&proxy, &["await-signal"]));
    send(&child, 12);
    let (_, stderr, code) = texts(&child.wait_with_output().unwrap());
    assert_eq!(code, Some(128 + 12));
    assert!(stderr.contains("the agent does not take signal 12"), "{stderr}");

    let (child, _stdout) = ready(shim(&proxy, &proxy.token(&["await-signal"])));
    send(&child, 12);
    proxy.wait_until(|proxy| !proxy.log().is_empty());
    let entry = proxy.log().pop().unwrap();
    assert_eq!((entry.source.as_str(), entry.container_id.as_str(), entry.level.as_str()), ("shim", "c", "warn"));
    assert_eq!(entry.msg, "signal 12 was refused: no such signal here");
    send(&child, 10);
    let (_, stderr, code) = texts(&child.wait_with_output().unwrap());
    assert_eq!((stderr.as_str(), code), ("", Some(110)));
}

#[test]
fn debug_says_it_here_and_there() {
    let proxy = Proxy2::start();
    let token = proxy.token(&["both", "0"]);
    let (_, stderr, code) = texts(&shim(&proxy, &token).arg("--debug").output().unwrap());
    assert_eq!(code, Some(0));
    assert!(stderr.contains("connected") && stderr.contains("status 0"), "{stderr}");
    // The proxy may read it after the shim has ended.
    proxy.wait_until(|proxy| proxy.log().iter().any(|entry| entry.msg == "connected"));
}

#[test]
fn a_lost_connection_is_taken_up_where_it_ended() {
    let proxy = Proxy2::start();
    let token = proxy.token(&["interrupted"]);
    let mut child = shim(&proxy, &token).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        line
    };
    assert_eq!((line(), line()), ("one\n".to_owned(), "two, all of it\n".to_owned()));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"first\n").unwrap();
    assert_eq!(line(), "first\n");
    proxy.wait_until(|proxy| proxy.claims(&token).0 == 3);
    stdin.write_all(b"second\n").unwrap();
    assert_eq!(line(), "second\n");
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(9));
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "three\n");
}

#[test]
fn a_signal_is_not_stuck_behind_stdin() {
    let proxy = Proxy2::start();
    let (mut child, mut stdout) = ready(shim(&proxy, &proxy.token(&["deaf"])));
    let mut stdin = child.stdin.take().unwrap();
    let thread = std::thread::spawn(move || stdin.write_all(&vec![0; 3_000_000]).unwrap());
    send(&child, 10);
    thread.join().unwrap();
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), child.wait().unwrap().code()), ("3000000\n", Some(0)));
}

#[test]
fn failures_have_a_status_and_a_reason() {
    let proxy = Proxy2::start();
    let failed = |mut command: Command| {
        let (_, stderr, code) = texts(&command.output().unwrap());
        (stderr, code)
    };
    let unknown = ("ringway: unknown token: nonsense\n".to_owned(), Some(1));
    assert_eq!(failed(shim(&proxy, "nonsense")), unknown);
    let gone = ("ringway: the session ended without an exit status\n".to_owned(), Some(1));
    assert_eq!(failed(shim(&proxy, &proxy.token(&["gone"]))), gone);
    let text = "ringway: the session ended without an exit status: VM vm is gone, or was removed\n".to_owned();
    assert_eq!(failed(exec(&proxy, &["gone"])), (text, Some(125)));
    let text = "ringway: cannot run 'missing': missing: no such program\n".to_owned();
    assert_eq!(failed(exec(&proxy, &["missing"])), (text, Some(125)));

    // The daemon is gone for longer than the shim waits.
    let token = proxy.token(&["interrupted"]);
    let mut child = shim(&proxy, &token).args(["-r", "0"]).spawn().unwrap();
    std::fs::remove_file(proxy.socket()).unwrap();
    let code = child.wait().unwrap().code();
    assert_eq!(code, Some(1));
}

#[test]
fn a_reader_that_leaves_ends_exec_and_not_the_shim() {
    let proxy = Proxy2::start();
    let mut child = exec(&proxy, &["yes"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10_000]).unwrap();
    drop(stdout);
    assert_eq!(texts(&child.wait_with_output().unwrap()), (String::new(), String::new(), Some(141)));
    let last = proxy.commands().pop().unwrap();
    assert!(last.0 == "signalprocess" && last.1.contains("\"signal\":13"), "{last:?}");

    let (mut child, stdout) = ready(shim(&proxy, &proxy.token(&["deaf"])));
    drop(stdout);
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(0), "what it says is lost, how it ended is not");
}

/// On a terminal of its own, until the process has echoed one key.
fn on_terminal(proxy: &Proxy2, mut command: Command) {
    let signals = proxy.requests(cc2::Command::Signal).len();
    let size = Winsize { ws_row: 33, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
    let before = tcgetattr(&slave).unwrap();
    let end = || Stdio::from(slave.try_clone().unwrap());
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    let mut keyboard = std::fs::File::from(master.try_clone().unwrap());
    let mut screen = BufReader::new(std::fs::File::from(master));
    let mut line = String::new();
    screen.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), "ready");
    proxy.wait_until(|_| !tcgetattr(&slave).unwrap().local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO));
    assert_eq!(proxy.requests(cc2::Command::Signal)[signals..], [r#"{"signalNumber":28,"columns":111,"rows":33}"#]);
    send(&child, 28);
    proxy.wait_until(|proxy| proxy.requests(cc2::Command::Signal).len() == signals + 2);
    keyboard.write_all(b"\x03").unwrap();
    let mut echoed = [0];
    screen.read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, [3], "^C is a byte for the process");
    assert_eq!(child.wait().unwrap().code(), Some(6));
    assert_eq!(tcgetattr(&slave).unwrap(), before, "restored");
}

#[test]
fn a_terminal_is_raw_and_has_its_size() {
    let proxy = Proxy2::start();
    on_terminal(&proxy, shim(&proxy, &proxy.token(&["terminal"])));
    let mut command = ringway(&["exec", "--protocol", "2", "--tty", "--vm", "vm", "--socket"]);
    command.arg(proxy.socket()).args(["--", "terminal"]);
    on_terminal(&proxy, command);
}
