//! What the daemon tells about itself is what happened: `status`, `/metrics`, `doctor`.

use std::io::Write;

use ringway::wire::admin::{Flow, Status};
use serde_json::Value;

use super::client::frame;
use super::guest::Guest;
use super::harness::{Daemon, until};

/// Waits for a status that is so; frames take a moment.
fn until_status(daemon: &Daemon, is_so: impl Fn(&Status) -> bool) -> Status {
    until("a status as expected", || Some(daemon.status()).filter(&is_so))
}

#[test]
fn frames_and_bytes_are_counted_as_they_were_sent() {
    let daemon = Daemon::start(&[]);
    let (mut one, mut two) = (daemon.client(), daemon.client());
    let mut first = Guest::boot(&daemon, &mut one, "one");
    let mut second = Guest::boot(&daemon, &mut two, "two");
    let (mut a, mut b, mut c) = (one.allocate(2), one.allocate(1), two.allocate(1));
    for _ in 0..10 {
        first.send(a.base, &[1; 88]);
        first.send(a.base + 1, &[2; 188]);
        a.next_frame().unwrap();
        a.next_frame().unwrap();
        b.send(&[3; 38]);
        first.take_frame();
    }
    // Cut on the way, counted as it came.
    second.send(c.base, &[4; 20_456]);
    c.take(20_456);
    c.send(&[5; 9_988]);
    (0..3).for_each(|_| drop(second.take_frame()));
    first.send(4_711, &[6; 100]);
    first.send(b.base, b"");
    b.expect(b"");
    let flow = |frames, bytes| Flow { frames, bytes };
    let status = daemon.status();
    let vm = |id: &str| status.vms.iter().find(|vm| vm.id == id).unwrap();
    assert_eq!((vm("one").to_client, vm("one").to_agent), (flow(21, 3_012), flow(10, 500)));
    assert_eq!((vm("two").to_client, vm("two").to_agent), (flow(1, 20_468), flow(1, 10_000)));
    let sessions = &vm("one").sessions;
    assert_eq!((sessions[0].io_base, sessions[0].streams, sessions[0].to_client), (a.base, 2, flow(20, 3_000)));
    assert_eq!((sessions[1].io_base, sessions[1].streams, sessions[1].to_agent), (b.base, 1, flow(10, 500)));
    assert!(sessions.iter().all(|session| session.state == "open" && !session.slow));
    let mut sum = (Flow::default(), Flow::default());
    for shard in &status.shards {
        sum.0 += shard.to_client;
        sum.1 += shard.to_agent;
    }
    assert_eq!(sum, (flow(22, 23_480), flow(11, 10_500)));
    assert_eq!(status.shards.iter().map(|shard| shard.skipped_frames).sum::<u64>(), 1);
    assert_eq!(status.shards.iter().map(|shard| (shard.links, shard.sessions)).max(), Some((1, 2)), "spread");
    let metrics = daemon.admin().metrics().unwrap();
    let total = |name: &str, direction: &str| -> u64 {
        let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(direction));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    assert_eq!(total("ringway_frames_total", "to_client"), 22);
    assert_eq!(total("ringway_frame_bytes_total", "to_client"), 23_480);
    assert_eq!(total("ringway_frames_total", "to_agent"), 11);
    assert_eq!(total("ringway_frame_bytes_total", "to_agent"), 10_500);
    assert_eq!(total("ringway_skipped_frames_total", ""), 1);
}

#[test]
fn requests_clients_and_vms_are_counted() {
    let daemon = Daemon::start(&[]);
    let mut client = daemon.client();
    let guest = Guest::boot(&daemon, &mut client, "vm");
    let _session = client.allocate(1);
    client.attach("nobody").unwrap_err();
    let mut faulty = daemon.client();
    faulty.send_text("{");
    faulty.expect_end();
    drop(faulty);
    drop(guest);
    let status = until_status(&daemon, |status| status.counters.vms_lost == 1 && status.clients == 1);
    let counters = status.counters;
    assert_eq!((counters.clients_accepted, counters.clients_faulty), (2, 1));
    assert_eq!((counters.requests_ok, counters.requests_failed), (2, 1));
    assert_eq!((counters.vms_added, counters.sessions_opened, counters.commands_overdue), (1, 1, 0));
    assert_eq!(status.vms[0].state, "gone");
    let metrics = daemon.admin().metrics().unwrap();
    for line in ["ringway_clients_accepted_total 2", "ringway_vms_lost_total 1", "ringway_vms 1", "ringway_clients 1"] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
}

#[test]
fn queues_of_both_directions_are_shown() {
    let daemon = Daemon::start(&[]);
    let mut client = daemon.client();
    let mut guest = Guest::boot(&daemon, &mut client, "vm");
    let mut session = client.allocate(1);
    // It could have output any time, so that the VM is read although the other one's client is behind.
    let _idle = client.allocate(1);
    let owed = 200 * 8_204;
    for _ in 0..200 {
        guest.send(session.base, &[9; 8_192]);
    }
    let status = until_status(&daemon, |status| status.vms[0].to_client.bytes == owed);
    let shown = &status.vms[0].sessions[0];
    // The rest is in the socket, whose size is the kernel's business.
    assert!(shown.slow && shown.queued_to_client > 0 && shown.queued_to_client < owed, "{shown:?}");
    assert_eq!(status.vms[0].blocked_by, None);
    session.take(200 * 8_192);
    until_status(&daemon, |status| {
        let shown = &status.vms[0].sessions[0];
        !shown.slow && shown.queued_to_client == 0
    });
    session.flood(&[8; 4_084], 16_384);
    let status = daemon.status();
    let shown = &status.vms[0].sessions[0];
    assert!(shown.queued_to_agent > 0, "{shown:?}");
    assert_eq!(status.vms[0].queued_to_agent, shown.queued_to_agent);
    client.send_hyper("startpod", &Value::Null);
    let status = until_status(&daemon, |status| status.vms[0].command.is_some());
    assert_eq!(status.vms[0].command.as_deref(), Some("startpod"));
}

#[test]
fn status_for_programs_and_for_people_say_the_same() {
    let daemon = Daemon::start(&["--session-buffer", "64KiB", "--slow-reader", "block"]);
    let mut client = daemon.client();
    let guest = Guest::boot(&daemon, &mut client, "held");
    let session = client.allocate(1);
    let (mut io, base) = (guest.io.try_clone().unwrap(), session.base);
    io.set_write_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
    while io.write_all(&frame(base, &[1; 8_192])).is_ok() {}
    until_status(&daemon, |status| status.vms[0].blocked_by == Some(base));
    let json = daemon.command(&["status", "--json"]).output().unwrap();
    assert!(json.status.success());
    let json: Status = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json.pid.to_string(), daemon.pid().to_string());
    assert_eq!(json.socket, daemon.socket().display().to_string());
    assert_eq!((json.vms[0].blocked_by, json.vms[0].sessions[0].slow), (Some(base), true));
    let text = daemon.command(&["status", "--no-rates"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    for words in ["1 VM, 1 session, 1 client", "blocks its VM", "ATTENTION", "VM held"] {
        assert!(text.contains(words), "{words}\n{text}");
    }
}

#[test]
fn the_number_of_descriptors_is_the_processs_own() {
    let daemon = Daemon::start(&[]);
    let mut client = daemon.client();
    let _guest = Guest::boot(&daemon, &mut client, "vm");
    let _sessions: Vec<_> = (0..10).map(|_| client.allocate(1)).collect();
    let counted = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count() as u64;
    // The one that the question itself comes in on is there for the daemon only.
    until("both counts to agree", || (daemon.status().open_fds == counted() + 1).then_some(()));
}

#[test]
fn the_doctor_finds_the_daemon_and_its_vms() {
    let mut daemon = Daemon::start(&[]);
    let mut client = daemon.client();
    let _guest = Guest::boot(&daemon, &mut client, "vm");
    let ask = |daemon: &Daemon| -> Value {
        let output = daemon.command(&["doctor", "--json"]).output().unwrap();
        let checks: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        checks.into_iter().find(|check| check["name"] == "daemon").unwrap()
    };
    let check = ask(&daemon);
    assert_eq!(check["verdict"], "ok");
    let found = check["found"].as_str().unwrap();
    assert!(found.contains(&format!("pid {}", daemon.pid())) && found.ends_with("1 VM"), "{found}");
    daemon.stop();
    assert_eq!(ask(&daemon)["verdict"], "warn");
}
