//! A daemon at rest does nothing: no thread of it runs, and it holds one descriptor for each session and two for each
//! VM. Counts only; how long anything takes plays no part, a thread that never comes to rest fails by patience alone.

use std::fs;
use std::thread;
use std::time::Duration;

use ringway::wire::hyper::Code;

use super::framed::{self, Framed};
use super::guest::Guest;
use super::harness::{Daemon, until};

const VMS: usize = 25;
const SESSIONS: usize = 2;
/// Every session's, so that each shard has received enough to have something to give back at rest.
const PAYLOAD: [u8; 10_000] = [7; 10_000];
/// Between two looks at threads that should not have run.
const PAUSE: Duration = Duration::from_millis(700);

/// How often threads of the daemon have been switched away from, of their own accord or not.
fn switches(daemon: &Daemon) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let of = |task: fs::DirEntry| -> u64 {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let counts = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
        counts.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum()
    };
    tasks.map(|task| of(task.unwrap())).sum()
}

fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

/// Waits until no thread has run between two looks, then looks once more. Returns the descriptors it then holds.
fn at_rest(daemon: &Daemon) -> usize {
    let mut last = switches(daemon);
    until("a daemon at rest", || {
        thread::sleep(PAUSE);
        let before = std::mem::replace(&mut last, switches(daemon));
        (last == before).then_some(())
    });
    thread::sleep(2 * PAUSE);
    assert_eq!(switches(daemon) - last, 0, "something wakes an idle daemon");
    descriptors(daemon)
}

#[test]
fn nothing_wakes_a_daemon_whose_sessions_are_idle_and_a_session_is_one_descriptor() {
    let daemon = Daemon::start(&[]);
    let before = at_rest(&daemon);
    let mut all = Vec::new();
    for vm in 0..VMS {
        let mut client = daemon.client();
        let mut guest = Guest::boot(&daemon, &mut client, &format!("vm{vm}"));
        let mut sessions: Vec<_> = (0..SESSIONS).map(|_| client.allocate(2)).collect();
        for session in &mut sessions {
            guest.send(session.base, &PAYLOAD);
            session.expect(&PAYLOAD);
            session.send(&PAYLOAD[..4_000]);
            assert_eq!(guest.take_frame(), (session.base, PAYLOAD[..4_000].to_vec()));
        }
        all.push((guest, sessions));
    }
    assert_eq!(at_rest(&daemon) - before, VMS * (2 + SESSIONS));
    // It is asleep, not gone.
    for (guest, sessions) in &mut all {
        guest.send(sessions[0].base, b"and on");
        sessions[0].expect(b"and on");
    }
    drop(all);
    until("the end of all sessions", || {
        let status = daemon.status();
        (status.shards.iter().all(|shard| shard.links + shard.sessions == 0)).then_some(())
    });
    assert_eq!(at_rest(&daemon), before, "nothing is left behind");
}

#[test]
fn nothing_wakes_a_daemon_whose_shims_are_idle_and_a_shim_is_one_descriptor() {
    let daemon = Daemon::start(&[]);
    let before = at_rest(&daemon);
    let mut all = Vec::new();
    for vm in 0..VMS {
        let (mut guest, mut runtime, tokens) =
            framed::boot(&daemon, &format!("vm{vm}"), i64::try_from(SESSIONS).unwrap());
        let mut shims = Vec::new();
        for token in &tokens {
            let mut shim = Framed::shim(&daemon, token);
            runtime.send_hyper("execcmd", &[token], &framed::exec(token, "true"));
            guest.serve(Code::ExecCmd, Code::Ack, b"");
            shim.stdin(&PAYLOAD[..4_000]);
            let (seq, input) = guest.take_frame();
            assert_eq!(input, &PAYLOAD[..4_000]);
            guest.send(seq, &PAYLOAD);
            assert_eq!(shim.take(PAYLOAD.len()), &PAYLOAD);
            // A message too: what deals with it must not stay.
            shim.signal(0).unwrap_err();
            shims.push(shim);
        }
        all.push((guest, shims));
    }
    assert_eq!(at_rest(&daemon) - before, VMS * (2 + SESSIONS));
    let status = daemon.status();
    assert_eq!(status.clients, (VMS * SESSIONS) as u64, "a shim counts as a client");
    for (_, shims) in &mut all {
        shims[0].signal(0).unwrap_err();
    }
}
