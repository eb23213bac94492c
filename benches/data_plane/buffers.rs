//! Receive buffers as a ring has them, and chunks.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use io_uring::IoUring;

use ringway::buf::{ChunkPool, Direction, Leases};
use ringway::limits::{TO_AGENT_BUFFERS, TO_CLIENT_BUFFERS};
use ringway::reactor::{BufGroup, BufPool};

/// A completion's buffer is noted, kept by two holders, given up by both, lent again and shown to the kernel.
pub(crate) fn receive(c: &mut Criterion) {
    let ring = IoUring::new(8).expect("io_uring");
    let group = |direction, shape| BufGroup::register(&ring.submitter(), direction, shape, false).expect("buffers");
    let mut pool = BufPool {
        to_client: group(Direction::ToClient, TO_CLIENT_BUFFERS),
        to_agent: group(Direction::ToAgent, TO_AGENT_BUFFERS),
    };
    let (count, len) = TO_CLIENT_BUFFERS;
    let mut group = c.benchmark_group("receive buffer");
    group.throughput(Throughput::Elements(u64::from(count)));
    group.bench_function("received, retained, released, lent", |b| {
        b.iter(|| {
            for buf in 0..count {
                black_box(pool.to_client.received(black_box(buf), len, false));
                pool.retain(Direction::ToClient, buf);
                pool.release(Direction::ToClient, buf);
                pool.release(Direction::ToClient, buf);
            }
            pool.to_client.publish();
        });
    });
    pool.to_client.received(0, len, false);
    group.throughput(Throughput::Elements(1));
    group.bench_function("a view's bytes", |b| {
        b.iter(|| pool.bytes(Direction::ToClient, 0, black_box(100)..black_box(176)).len());
    });
    group.finish();
    // The kernel lets go of the buffers before they are unmapped.
    drop(ring);
}

/// A chunk is taken, written, kept by two holders and given up by both.
pub(crate) fn chunks(c: &mut Criterion) {
    let mut pool = ChunkPool::default();
    let mut group = c.benchmark_group("chunk");
    group.throughput(Throughput::Elements(1));
    group.bench_function("taken, written, retained, released", |b| {
        b.iter(|| {
            let chunk = pool.take();
            pool.write(chunk, 0, black_box(&[0x2e; 76]));
            pool.retain(chunk);
            pool.release(chunk);
            pool.release(chunk);
        });
    });
    group.finish();
}
