//! `ringway demo`, which is the daemon, two agents and their sessions all at once.
//!
//! Each test gives it a temporary directory of its own, so that what it leaves behind would be seen.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn demo(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command.arg("demo").args(args).env("TMPDIR", dir).stdin(Stdio::null());
    command
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn the_story_is_the_same_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let tell = || {
        let output = demo(dir.path(), &[]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
        // The last line has memory and CPU time.
        let mut lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
        assert!(lines.pop().unwrap().ends_with("All as it should be."));
        lines
    };
    let story = tell();
    assert_eq!(story, tell());
    for expected in [
        "         stdout  hello from a guest",
        "         stderr  a complaint",
        "         status  3",
        "  3-4        vm-2  1         17 B     12 B  sort | head -n 2",
        "2 VMs, 6 sessions, 16 MiB moved in frames, 0 requests refused, 0 peers at fault.",
    ] {
        assert!(story.iter().any(|line| line == expected), "{expected:?} is not in {story:#?}");
    }
    assert!(is_empty(dir.path()));
}

#[test]
fn many_sessions_keep_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let output = demo(dir.path(), &["--vms", "3", "--sessions", "7", "--bytes", "300KiB"]).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(stdout.starts_with("3 VMs, 7 sessions, 300 KiB through cat each\n2.0 MiB each way in "), "{stdout}");
    assert!(stdout.contains("every checksum right"), "{stdout}");
    assert!(is_empty(dir.path()));
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut child = demo(dir.path(), &["--bytes", "64GiB"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "2 VMs, 4 sessions, 64 GiB through cat each\n");
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(128 + signal as i32));
        assert!(is_empty(dir.path()));
    }
}
