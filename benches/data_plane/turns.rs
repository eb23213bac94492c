//! Whole turns of a plane: bytes arrive, are routed and owed, sends are gathered and taken.

use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};

use crate::rig::{BATCH, Protocol, Rig, outputs, seq};

const PROTOCOLS: [(&str, Protocol); 2] = [("protocol 1", Protocol::One), ("protocol 2", Protocol::Two)];
const PAYLOADS: [usize; 4] = [64, 1_024, 4_096, 10_228];
/// Clients that send.
const SENDERS: usize = 16;

/// A batch of 64 KiB of an agent, frames of its sessions in turn, until every client has taken its part.
pub(crate) fn to_clients(c: &mut Criterion) {
    for (name, protocol) in PROTOCOLS {
        let mut group = c.benchmark_group(format!("turns to clients, {name}"));
        for (clients, payload) in [1, 16, 256].into_iter().flat_map(|n| PAYLOADS.map(|payload| (n, payload))) {
            let mut rig = Rig::new(clients, protocol);
            let (batch, frames) = outputs(clients, payload, BATCH);
            let load = |rig: &mut Rig| assert!(rig.load(rig.agent(), &batch), "the agent is read");
            let id = BenchmarkId::new(format!("{clients} clients"), payload);
            measure(&mut group, id, frames, &mut rig, load);
        }
        group.finish();
    }
}

/// 4 KiB of each of 16 clients, or one frame where that is longer, until the agent has taken all of it.
pub(crate) fn to_agent(c: &mut Criterion) {
    for (name, protocol) in PROTOCOLS {
        let mut group = c.benchmark_group(format!("turns to the agent, {name}"));
        for payload in PAYLOADS {
            let mut rig = Rig::new(SENDERS, protocol);
            let each = (BATCH / SENDERS / (payload + 12)).max(1);
            let batches: Vec<_> =
                (0..SENDERS).map(|client| protocol.input(seq(client), payload).repeat(each)).collect();
            let load = |rig: &mut Rig| {
                for (client, batch) in batches.iter().enumerate() {
                    assert!(rig.load(rig.client(client), batch), "the client is read");
                }
            };
            let id = BenchmarkId::new(format!("{SENDERS} clients"), payload);
            measure(&mut group, id, SENDERS * each, &mut rig, load);
        }
        group.finish();
    }
}

/// Measures turns; `load`, which plays the kernel, is not measured.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    frames: usize,
    rig: &mut Rig,
    load: impl Fn(&mut Rig),
) {
    group.throughput(Throughput::Elements(frames as u64));
    group.bench_function(id, |b| {
        b.iter_custom(|times| {
            let mut spent = Duration::ZERO;
            for _ in 0..times {
                load(rig);
                let began = Instant::now();
                rig.turns();
                spent += began.elapsed();
            }
            spent
        });
    });
}
