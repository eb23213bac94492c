//! From a sequence to its session.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};

use ringway::relay::SessionId;
use ringway::relay::route::RouteTable;

use crate::rig::seq;

const LOOKUPS: u32 = 1_024;

/// Looks up the sequences of so many sessions in turn.
pub(crate) fn find(c: &mut Criterion) {
    let mut group = c.benchmark_group("route");
    group.throughput(Throughput::Elements(u64::from(LOOKUPS)));
    for sessions in [1_u32, 16, 256] {
        let mut routes = RouteTable::default();
        (0..sessions).for_each(|id| routes.add(seq(id as usize), SessionId(id)));
        let wanted: Vec<_> = (0..LOOKUPS).map(|n| seq((n % sessions) as usize)).collect();
        group.bench_function(BenchmarkId::from_parameter(sessions), |b| {
            b.iter(|| wanted.iter().filter_map(|&seq| routes.find(black_box(seq))).map(|id| id.0).sum::<u32>());
        });
    }
    group.finish();
}
