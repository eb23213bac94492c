//! Which shard a new VM goes to when the shards are not equally busy, seen from outside.

use std::io::Write;
use std::net::Shutdown;
use std::thread;

use ringway::wire::admin::ShardStatus;

use super::client::{Session, frame};
use super::guest::Guest;
use super::harness::{Daemon, until};

/// Thousandths of a CPU by which a load is the greater one, and greater still a while later.
const CLEARLY: u64 = 100;

/// A shard's load as new VMs see it.
fn load(shard: &ShardStatus) -> u64 {
    shard.load_permille + shard.expected_permille
}

/// Sends output through a session, and has it read, until its client goes away.
fn flood(guest: Guest, session: &Session) -> [thread::JoinHandle<()>; 2] {
    let (mut io, mut socket) = (guest.io, session.socket.try_clone().unwrap());
    // Small frames: work for the shard, little for its peers.
    let frames = frame(session.base, &[7; 52]).repeat(512);
    let sender = thread::spawn(move || {
        let _ctl = guest.ctl;
        while io.write_all(&frames).is_ok() {}
    });
    let reader = thread::spawn(move || drop(std::io::copy(&mut socket, &mut std::io::sink())));
    [sender, reader]
}

#[test]
fn vms_go_to_the_shard_that_works_less_however_many_it_has() {
    let daemon = Daemon::start(&[]);
    let mut client = daemon.client();
    let guest = Guest::boot(&daemon, &mut client, "busy");
    let session = client.allocate(1);
    let io = guest.io.try_clone().unwrap();
    let flooding = flood(guest, &session);
    let busy = daemon.vm("busy").unwrap().shard;
    let mut idle = Vec::new();
    for n in 0..4 {
        // By count, every second one would go to the busy shard.
        until("a shard that is clearly the busier one", || {
            let shards = daemon.status().shards;
            let (working, resting) = shards.iter().partition::<Vec<_>, _>(|shard| shard.shard == busy);
            (load(working[0]) > load(resting[0]) + CLEARLY).then_some(())
        });
        let name = format!("idle{n}");
        let mut client = daemon.client();
        idle.push((Guest::boot(&daemon, &mut client, &name), client));
        assert_ne!(daemon.vm(&name).unwrap().shard, busy, "{name}: {:?}", daemon.status().shards);
    }
    let status = daemon.status();
    let [used, rest] = [true, false].map(|its| status.shards.iter().find(|s| (s.shard == busy) == its).unwrap().cpu_us);
    assert!(used > rest && used <= status.cpu_us + 1_000_000, "{used} and {rest} of {}", status.cpu_us);
    let metrics = daemon.admin().metrics().unwrap();
    let name = format!("ringway_shard_cpu_microseconds_total{{shard=\"{busy}\"}} ");
    let counted = metrics.lines().find_map(|line| line.strip_prefix(&name)).expect("a counter");
    assert!(counted.parse::<u64>().unwrap() >= used, "{counted} after {used}");
    session.socket.shutdown(Shutdown::Both).unwrap();
    io.shutdown(Shutdown::Both).unwrap();
    flooding.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn vms_that_start_at_once_on_an_idle_host_are_spread_evenly() {
    let daemon = Daemon::start(&[]);
    let _vms: Vec<_> = (0..30)
        .map(|n| {
            let mut client = daemon.client();
            (Guest::boot(&daemon, &mut client, &format!("vm{n}")), client)
        })
        .collect();
    let shards: Vec<u32> = daemon.status().vms.iter().map(|vm| vm.shard).collect();
    assert_eq!([0, 1].map(|shard| shards.iter().filter(|&&on| on == shard).count()), [15, 15]);
}
