//! What processes of an agent can count on: streams, endings, terminals, identity, signals, containers.
//!
//! Connections that break are the business of `channels`. The asymmetry to know: stderr of `exec` is at the next
//! sequence, and a terminal has none.

use ringway::wire::hyper::Code;
use serde_json::json;
use sha2::Digest;

use crate::host::{Guest, is_alive, is_root};

#[test]
fn input_output_errors_and_status_arrive_in_order() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "cat; echo problem >&2; exit 3");
    host.send(1, b"hello ");
    host.send(1, b"there");
    host.send_eof(1);
    assert_eq!(host.status(1), 3);
    assert_eq!((host.text(1).as_str(), host.text(2).as_str()), ("hello there", "problem\n"));
    let ends: Vec<_> = host.order.iter().rev().take(3).rev().copied().collect();
    assert_eq!(ends, [(2, 0), (1, 0), (1, 1)], "EOF of stderr, EOF of stdout, status");
}

#[test]
fn without_a_sequence_stderr_goes_where_stdout_goes() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.exec_with(1, &["sh", "-c", "echo out; echo err >&2"], json!({ "stderr": 0 }));
    assert_eq!(host.status(1), 0);
    assert_eq!(host.text(1), "out\nerr\n");
    host.json(Code::ExecCmd, json!({ "process": { "args": ["sh", "-c", "cat; echo nobody hears"] } })).unwrap();
}

#[test]
fn signals_and_failed_starts_have_a_shells_statuses() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "kill -9 $$");
    assert_eq!(host.status(1), 128 + 9);
    host.sh(3, "kill -40 $$");
    assert_eq!(host.status(3), 128 + 40);
    host.exec(5, &["no-such-program", "x"]);
    assert_eq!(host.status(5), 127);
    assert!(host.text(6).contains("no-such-program: not found"), "{}", host.text(6));
    host.exec(7, &["/"]);
    assert_eq!(host.status(7), 126);
    host.exec_with(9, &["true"], json!({ "workdir": "/no/such/dir" }));
    assert_eq!(host.status(9), 126);
    assert!(host.text(10).contains("working directory"));
    host.exec_with(11, &["no-such-program"], json!({ "terminal": true, "stderr": 0 }));
    assert_eq!(host.status(11), 127);
    assert!(host.text(11).ends_with("not found\r\n"));
}

#[test]
fn a_sequence_is_free_once_the_status_is_out() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    for round in 0..50_u8 {
        host.sh(1, &format!("exit {round}"));
        assert_eq!(host.status(1), round);
        host.forget(1);
    }
    host.sh(1, "cat");
    let busy = host.json(Code::ExecCmd, json!({ "process": { "stdio": 1, "args": ["true"] } })).unwrap_err();
    assert!(busy.contains("in use"), "{busy}");
}

#[test]
fn environment_and_working_directory_are_what_was_asked_for() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    let envs = json!([{ "env": "GREETING", "value": "a b=c" }, { "env": "HOME", "value": "/else" }]);
    host.exec_with(1, &["sh", "-c", "pwd; env | sort"], json!({ "workdir": "/usr", "envs": envs }));
    assert_eq!(host.status(1), 0);
    let text = host.text(1);
    assert!(text.starts_with("/usr\n"), "{text}");
    assert!(text.contains("\nGREETING=a b=c\n") && text.contains("\nHOME=/else\n"), "{text}");
    assert!(text.contains("\nPATH=/usr/local/sbin:"), "{text}");
    assert!(!text.contains("CARGO"), "the agent's own environment stays its own: {text}");
}

#[test]
fn identity_is_resolved_in_the_containers_files() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    if !is_root() {
        eprintln!("skipped in part: changing identity needs root");
        let refused = json!({ "process": { "stdio": 1, "args": ["id"], "user": "0" } });
        assert!(host.json(Code::ExecCmd, refused).unwrap_err().contains("without privilege"));
        return;
    }
    let who = json!({ "user": "1234", "group": "2345", "additionalGroups": ["77", "88"] });
    host.exec_with(1, &["sh", "-c", "id -u; id -g; id -G"], who);
    assert_eq!(host.status(1), 0);
    assert_eq!(host.text(1), "1234\n2345\n2345 77 88\n");
    host.exec_with(3, &["sh", "-c", "id -u; grep -E '^(CapEff|Groups)' /proc/self/status"], json!({ "user": "root" }));
    assert_eq!(host.status(3), 0);
    assert!(host.text(3).starts_with("0\n"));
    let unknown = json!({ "process": { "stdio": 5, "args": ["id"], "user": "nobody-of-that-name" } });
    assert!(host.json(Code::ExecCmd, unknown).unwrap_err().contains("nobody-of-that-name"));
}

#[test]
fn a_terminal_has_a_size_and_its_keys() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    let terminal = json!({ "terminal": true, "stderr": 0, "id": "shell" });
    let script = "tty; echo $TERM; echo READY; while read line; do echo got $line; stty size; done; echo BYE";
    host.exec_with(1, &["sh", "-c", script], terminal.clone());
    host.expect(1, "READY\r\n");
    assert!(host.text(1).contains("/dev/pts/") && host.text(1).contains("xterm\r\n"), "{}", host.text(1));
    host.json(Code::WinSize, json!({ "seq": 1, "row": 33, "column": 101 })).unwrap();
    host.send(1, b"one\r");
    host.expect(1, "33 101");
    host.json(Code::WinSize, json!({ "container": "", "process": "shell", "row": 34, "column": 102 })).unwrap();
    host.send(1, b"two\r");
    host.expect(1, "34 102");
    host.send_eof(1);
    host.send(1, b"three\r");
    host.expect(1, "got three");
    host.send(1, &[4]);
    assert_eq!(host.status(1), 0);
    assert!(host.text(1).contains("BYE\r\n"));

    host.exec_with(3, &["sh", "-c", "echo READY; exec sleep 1000"], terminal);
    host.expect(3, "READY");
    host.send(3, &[3]);
    assert_eq!(host.status(3), 128 + 2, "^C is SIGINT");

    host.sh(5, "cat");
    let refused = host.json(Code::WinSize, json!({ "seq": 5, "row": 1, "column": 1 })).unwrap_err();
    assert!(refused.contains("no terminal"), "{refused}");
    assert!(host.json(Code::WinSize, json!({ "seq": 99, "row": 1, "column": 1 })).is_err());
}

#[test]
fn containers_are_started_signalled_and_removed() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.json(Code::StartPod, json!({ "hostname": "guest", "shareDir": "/", "containers": [] })).unwrap();
    assert!(host.json(Code::StartPod, json!({})).unwrap_err().contains("already"));
    let process = |seq: u64, id: &str, script: &str| {
        let args = ["sh", "-c", script];
        json!({ "id": id, "stdio": seq, "stderr": seq + 1, "args": args })
    };
    let first = process(1, "init", "trap 'echo term; exit 5' TERM; echo up; while :; do sleep 0.01; done");
    host.json(Code::NewContainer, json!({ "id": "c", "process": first })).unwrap();
    assert!(host.json(Code::NewContainer, json!({ "id": "c", "process": process(9, "x", "true") })).is_err());
    host.expect(1, "up");
    host.json(Code::ExecCmd, json!({ "container": "c", "process": process(3, "more", "echo up; sleep 1000") }))
        .unwrap();
    host.expect(3, "up");
    let twice = json!({ "container": "c", "process": process(5, "more", "true") });
    assert!(host.json(Code::ExecCmd, twice).unwrap_err().contains("already"));
    host.json(Code::SignalProcess, json!({ "container": "c", "process": "more", "signal": 10 })).unwrap();
    assert_eq!(host.status(3), 128 + 10);
    assert!(host.json(Code::SignalProcess, json!({ "container": "c", "process": "more", "signal": 10 })).is_err());
    assert!(host.json(Code::RemoveContainer, json!({ "container": "c" })).unwrap_err().contains("running"));
    host.json(Code::KillContainer, json!({ "container": "c", "signal": 15 })).unwrap();
    assert_eq!(host.status(1), 5);
    assert!(host.text(1).contains("term"));
    host.json(Code::RemoveContainer, json!({ "container": "c" })).unwrap();
    assert!(host.json(Code::RemoveContainer, json!({ "container": "c" })).is_err());
    assert!(host.json(Code::KillContainer, json!({ "container": "c", "signal": 15 })).is_err());
    let gone = json!({ "container": "c", "process": process(7, "x", "true") });
    assert!(host.json(Code::ExecCmd, gone).unwrap_err().contains("no container 'c'"));
}

#[test]
fn kill_ends_all_of_a_container() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    let process = |seq: u64| json!({ "stdio": seq, "args": ["sh", "-c", "echo up; sleep 1000; :"] });
    host.json(Code::NewContainer, json!({ "id": "c", "process": process(1) })).unwrap();
    host.json(Code::ExecCmd, json!({ "container": "c", "process": process(3) })).unwrap();
    host.expect(1, "up");
    host.expect(3, "up");
    host.json(Code::KillContainer, json!({ "container": "c", "signal": 9 })).unwrap();
    assert_eq!((host.status(1), host.status(3)), (137, 137));
}

#[test]
fn a_root_directory_is_entered_or_refused() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    let process = json!({ "stdio": 1, "stderr": 2, "args": ["/missing"] });
    let nowhere = json!({ "id": "n", "rootfs": "/no/such/root", "process": process });
    assert!(host.json(Code::NewContainer, nowhere).unwrap_err().contains("not a directory"));
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("etc")).unwrap();
    std::fs::write(root.path().join("etc/passwd"), "only-here:x:7:8::/:\n").unwrap();
    let inside =
        json!({ "id": "c", "rootfs": root.path(), "process": { "stdio": 1, "args": ["sh", "-c", "sleep 1000"] } });
    host.json(Code::NewContainer, inside).unwrap();
    if !is_root() {
        eprintln!("skipped in part: chroot needs root, so the container has this root");
        return;
    }
    assert_eq!(host.status(1), 127, "an empty root has no sh");
    host.forget(1);
    let user = json!({ "container": "c", "process": { "stdio": 3, "user": "only-here", "args": ["sh"] } });
    host.json(Code::ExecCmd, user).unwrap();
    assert_eq!(host.status(3), 127);
    let mut file = json!({ "container": "c", "file": "/etc/new" }).to_string().into_bytes();
    file.extend_from_slice(b"content");
    host.ask(Code::WriteFile, file).unwrap();
    assert_eq!(std::fs::read(root.path().join("etc/new")).unwrap(), b"content");
}

#[test]
fn files_are_written_and_read() {
    let guest = Guest::start(&["--control-max", "1000000"]);
    let mut host = guest.connect();
    let path = guest.path("file");
    let data: Vec<u8> = (0..500_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let name = json!({ "container": "", "file": path });
    host.ask(Code::WriteFile, [name.to_string().as_bytes(), data.as_slice()].concat()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), data);
    assert_eq!(host.json(Code::ReadFile, name).unwrap(), data);
    assert!(host.json(Code::ReadFile, json!({ "file": "/no/such/file" })).unwrap_err().contains("/no/such/file"));
    assert!(host.json(Code::ReadFile, json!({ "file": "/" })).unwrap_err().contains("directory"));
}

#[test]
fn a_process_that_does_not_read_stops_only_its_own_stdin() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "read go < /dev/null; exec sleep 1000");
    host.sh(3, "cat");
    host.send(1, &vec![0; 900_000]);
    host.send(3, b"still here\n");
    host.expect(3, "still here");
    host.json(Code::ExecCmd, json!({ "process": { "stdio": 5, "args": ["true"] } })).unwrap();
    assert_eq!(host.status(5), 0);
}

#[test]
fn a_full_stdin_waits_and_loses_nothing() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    let go = guest.path("go");
    host.sh(1, &format!("while ! test -e {}; do sleep 0.01; done; sha256sum", go.display()));
    host.sh(3, "cat");
    let data: Vec<u8> = (0..6_000_000_u32).map(|n| (n * 7 / 3).to_le_bytes()[0]).collect();
    std::thread::scope(|scope| {
        let mut sender = host.io.try_clone().unwrap();
        let copy = &data;
        scope.spawn(move || {
            for payload in copy.chunks(4_084) {
                crate::host::write_frame(&mut sender, 1, payload);
            }
            crate::host::write_frame(&mut sender, 1, b"");
            crate::host::write_frame(&mut sender, 3, b"after\n");
        });
        host.ask(Code::Ping, "").unwrap();
        std::fs::write(&go, "").unwrap();
        assert_eq!(host.status(1), 0);
        host.expect(3, "after");
    });
    let digest: String = sha2::Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(host.text(1).starts_with(&digest), "{}", host.text(1));
}

#[test]
fn a_signal_frees_a_channel_that_a_process_has_filled() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.exec_with(1, &["sleep", "1000"], json!({ "id": "sleeper" }));
    let mut sender = host.io.try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        for _ in 0..1_000 {
            crate::host::write_frame(&mut sender, 1, &[0; 4_084]);
        }
        crate::host::write_frame(&mut sender, 77, b"stray");
    });
    host.json(Code::SignalProcess, json!({ "container": "", "process": "sleeper", "signal": 15 })).unwrap();
    assert_eq!(host.status(1), 128 + 15);
    host.take_until(77, |seen| seen.eofs > 0);
    flood.join().unwrap();
}

#[test]
fn a_process_may_close_its_stdin() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "exec <&-; echo closed; sleep 0.2; exit 4");
    host.expect(1, "closed");
    host.send(1, &vec![0; 300_000]);
    assert_eq!(host.status(1), 4);
}

#[test]
fn many_processes_at_once() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    for n in 0..20_u64 {
        host.sh(n * 2 + 1, &format!("head -c {} /dev/zero; cat; exit {n}", 200_000 + n));
    }
    for n in 0..20_u64 {
        host.send(n * 2 + 1, &vec![1; 50_000]);
        host.send_eof(n * 2 + 1);
    }
    for n in 0..20_u64 {
        assert_eq!(u64::from(host.status(n * 2 + 1)), n);
        assert_eq!(host.seen[&(n * 2 + 1)].data.len() as u64, 250_000 + n);
    }
}

#[test]
fn frames_are_as_long_as_was_asked_for() {
    for max in [128, 10_240, 1 << 20] {
        let guest = Guest::start(&["--frame-max", &max.to_string()]);
        let mut host = guest.connect();
        host.sh(1, "seq 1 50000");
        assert_eq!(host.status(1), 0);
        let expected: String = (1..=50_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(host.text(1), expected);
        assert!(host.order.iter().all(|&(_, len)| len + 12 <= max), "{max}");
    }
}

#[test]
fn a_family_of_orphans_does_not_survive_its_guest() {
    let mut guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "(setsid sh -c 'setsid sh -c \"echo \\$\\$; sleep 1000; :\" & wait' 2>/dev/null &) | head -n 1");
    assert_eq!(host.status(1), 0);
    let deepest = host.text(1).trim().to_owned();
    assert!(is_alive(&deepest), "{deepest:?}");
    host.ask(Code::DestroyPod, "").unwrap();
    assert_eq!(guest.wait(), Some(0));
    assert!(!is_alive(&deepest));
}

#[test]
fn a_flood_does_not_starve_the_others() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "cat /dev/zero");
    host.sh(3, "while read line; do echo $line; done");
    for n in 0..20 {
        host.send(3, format!("line {n}\n").as_bytes());
        host.expect(3, &format!("line {n}\n"));
    }
}

#[test]
fn output_ends_with_the_process_even_if_a_descendant_holds_it() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "sleep 1000 & echo $!; head -c 60000 /dev/zero; exit 6");
    assert_eq!(host.status(1), 6);
    let text = host.text(1);
    let (pid, rest) = text.split_once('\n').unwrap();
    assert_eq!(rest.len(), 60_000, "what the process wrote is all there");
    assert!(is_alive(pid));
    host.sh(3, "yes & exit 7");
    assert_eq!(host.status(3), 7, "an endless descendant does not delay the end for ever");
}

#[test]
fn output_may_end_before_the_process() {
    let guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "exec >&- 2>&-; read line; exit 8");
    host.take_until(1, |seen| seen.eofs == 1);
    host.send(1, b"go\n");
    assert_eq!(host.status(1), 8);
}

#[test]
fn orphans_are_reaped() {
    let mut guest = Guest::start(&[]);
    let mut host = guest.connect();
    host.sh(1, "(sleep 0.3 >/dev/null 2>&1 & echo $!)");
    assert_eq!(host.status(1), 0);
    let pid = host.text(1).trim().to_owned();
    let begin = std::time::Instant::now();
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        assert!(begin.elapsed() < crate::host::PATIENCE, "{pid} is left");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    host.sh(3, "setsid sleep 1000 >/dev/null 2>&1 & echo $!");
    assert_eq!(host.status(3), 0);
    let daemon = host.text(3).trim().to_owned();
    host.ask(Code::DestroyPod, "").unwrap();
    assert_eq!(guest.wait(), Some(0));
    assert!(!is_alive(&daemon), "an orphan does not survive its guest");
}
