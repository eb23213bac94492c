//! `ringway exec` as a program: its outputs, its exit status, signals.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;

use crate::proxy::Proxy;

fn exec(proxy: &Proxy, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command.arg("exec").arg("--socket").arg(proxy.socket()).args(["--protocol", "1", "--vm", "vm", "--"]).args(args);
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

/// A terminal, and an exec on it that runs `terminal` and has entered raw mode.
struct OnTerminal {
    child: Child,
    screen: BufReader<std::fs::File>,
    keyboard: std::fs::File,
    slave: std::os::fd::OwnedFd,
    before: Termios,
}

fn on_terminal(proxy: &Proxy) -> OnTerminal {
    let size = Winsize { ws_row: 33, ws_col: 111, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
    let before = tcgetattr(&slave).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command
        .args(["exec", "--protocol", "1", "--tty", "--vm", "vm", "--socket"])
        .arg(proxy.socket())
        .args(["--", "terminal"]);
    let end = || Stdio::from(slave.try_clone().unwrap());
    let child = command.env("TERM", "vt220").stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    let keyboard = std::fs::File::from(master.try_clone().unwrap());
    let mut screen = BufReader::new(std::fs::File::from(master));
    let mut line = String::new();
    screen.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\r\n");
    let now = tcgetattr(&slave).unwrap();
    assert!(!now.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG), "raw mode");
    OnTerminal { child, screen, keyboard, slave, before }
}

fn sizes(proxy: &Proxy) -> Vec<String> {
    proxy.commands().into_iter().filter(|(name, _)| name == "winsize").map(|(_, data)| data).collect()
}

#[test]
fn a_terminal_is_raw_while_the_command_runs() {
    let proxy = Proxy::start();
    let mut on = on_terminal(&proxy);
    assert_eq!(sizes(&proxy), [r#"{"seq":1,"row":33,"column":111}"#]);
    let start = proxy.commands().into_iter().find(|(name, _)| name == "execcmd").unwrap().1;
    assert!(start.contains(r#""terminal":true"#) && !start.contains("stderr"), "{start}");
    assert!(start.contains(r#"{"env":"TERM","value":"vt220"}"#), "{start}");
    send(&on.child, Signal::SIGWINCH);
    while sizes(&proxy).len() < 2 {
        std::thread::yield_now();
    }
    // ^C is a byte for the command, not a signal for ringway.
    on.keyboard.write_all(b"\x03").unwrap();
    let mut echoed = [0];
    on.screen.read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, [3]);
    assert_eq!(on.child.wait().unwrap().code(), Some(6));
    assert_eq!(tcgetattr(&on.slave).unwrap(), on.before, "restored");
}

#[test]
fn a_signal_restores_the_terminal() {
    let proxy = Proxy::start();
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let mut on = on_terminal(&proxy);
        send(&on.child, signal);
        assert_eq!(on.child.wait().unwrap().code(), Some(128 + signal as i32));
        assert_eq!(tcgetattr(&on.slave).unwrap(), on.before, "restored after {signal}");
    }
}
