//! The command line as people and shells meet it: help, pages, completions, and what wrong use says.

mod demo;

use std::process::{Command, Output};

const SUBCOMMANDS: [&[&str]; 14] = [
    &[],
    &["serve"],
    &["agent"],
    &["exec"],
    &["shim"],
    &["vm"],
    &["vm", "add"],
    &["vm", "rm"],
    &["vm", "ls"],
    &["status"],
    &["doctor"],
    &["demo"],
    &["completions"],
    &["man"],
];

fn ringway(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
    command.args(args).env_remove("RINGWAY_SOCKET").env_remove("RINGWAY_ADMIN_SOCKET").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_subcommand_has_help() {
    for subcommand in SUBCOMMANDS {
        for flag in ["--help", "-h"] {
            let output = ringway(&[subcommand, &[flag]].concat());
            assert!(output.status.success(), "{subcommand:?}");
            let help = text(&output.stdout);
            assert!(help.contains(&format!("Usage: {}", [&["ringway"], subcommand].concat().join(" "))), "{help}");
            assert!(output.stderr.is_empty());
        }
    }
}

#[test]
fn the_version_is_the_package_s() {
    assert_eq!(text(&ringway(&["--version"]).stdout), format!("ringway {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = ringway(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let script = text(&output.stdout);
        assert!(script.contains("ringway") && script.contains("admin-socket"), "{shell}");
    }
}

#[test]
fn a_page_for_every_subcommand() {
    let page = ringway(&["man"]);
    assert!(page.status.success() && text(&page.stdout).contains(".TH ringway 1"));
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    assert!(ringway(&["man", "--dir", pages.to_str().unwrap()]).status.success());
    for subcommand in SUBCOMMANDS {
        let name = [&["ringway"], subcommand].concat().join("-") + ".1";
        let page = std::fs::read_to_string(pages.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(page.contains(".TH"), "{name}");
    }
    assert_eq!(std::fs::read_dir(&pages).unwrap().count(), SUBCOMMANDS.len());
}

#[test]
fn wrong_use_is_2_and_says_so() {
    let cases: [(&[&str], &str); 9] = [
        (&[], "Usage: ringway"),
        (&["serf"], "unrecognized subcommand 'serf'"),
        (&["serve", "--speed", "9"], "unexpected argument '--speed'"),
        (&["serve", "--session-buffer", "8MB"], "'8MB' is no size"),
        (&["serve", "--cpus", "3-1"], "the range 3-1 runs backwards"),
        (&["exec", "--vm", "v"], "<CMD>..."),
        (&["exec", "ls"], "--vm <ID>"),
        (&["exec", "--vm", "v", "--env", "=x", "ls"], "needs a name"),
        (&["vm", "add", "x"], "--ctl <PATH>"),
    ];
    for (args, expected) in cases {
        let output = ringway(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
    }
}

#[test]
fn settings_that_cannot_be_are_1_and_name_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ringway.toml");
    std::fs::write(&file, "shards = 1\nagent-frame-max = 20000\n").unwrap();
    let output = ringway(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("ringway: {}:2: agent-frame-max: 20000 is too much; the least is 512", file.display());
    assert!(text(&output.stderr).starts_with(&expected), "{}", text(&output.stderr));
    let output = ringway(&["serve", "--deadline", "0"]);
    assert!(text(&output.stderr).starts_with("ringway: --deadline: 0 is too little"), "{}", text(&output.stderr));
}

#[test]
fn without_a_daemon_they_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("proxy.sock");
    let socket = socket.to_str().unwrap();
    let cases: [(&[&str], i32); 5] = [
        (&["status"], 1),
        (&["vm", "ls"], 1),
        (&["vm", "rm", "x"], 1),
        (&["vm", "add", "x", "--ctl", "/c", "--io", "/i"], 1),
        (&["exec", "--vm", "x", "ls"], 125),
    ];
    for (args, code) in cases {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringway"));
        let output = command.args(args).env("RINGWAY_SOCKET", socket).env_remove("RINGWAY_ADMIN_SOCKET").output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains("cannot connect to") && stderr.contains("is the daemon running"), "{args:?}: {stderr}");
        assert_eq!(stderr.matches("os error").count(), 1, "once is enough: {stderr}");
        assert!(stderr.contains(dir.path().to_str().unwrap()), "{stderr}");
    }
}

#[test]
fn the_doctor_reports_in_lines_and_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("proxy.sock");
    let output = ringway(&["doctor", "--socket", socket.to_str().unwrap()]);
    let report = text(&output.stdout);
    for name in
        ["kernel", "io_uring_disabled", "io_uring ", "descriptors", "locked memory", "socket directory", "daemon"]
    {
        assert!(report.contains(name), "{name}: {report}");
    }
    assert_eq!(output.status.success(), !report.contains("\nFAIL") && !report.starts_with("FAIL"), "{report}");
    let output = ringway(&["doctor", "--json", "--socket", socket.to_str().unwrap(), "--vm-dir", "/nonexistent"]);
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        checks.as_array().unwrap().iter().any(|check| check["name"] == "VM directory" && check["verdict"] == "fail")
    );
    assert_eq!(output.status.code(), Some(1));
}
