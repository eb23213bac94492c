//! What one peer is owed: pieces in, sends out.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};

use ringway::buf::{BufView, ChunkPool, Direction, Memory};
use ringway::limits::SEND_MAX;
use ringway::relay::outbox::{Arena, Outbox};

use crate::rig::{BATCH, Buffers};

/// An outbox with its memory, one receive buffer filled, and the frames in it.
struct Owed {
    outbox: Outbox,
    arena: Arena,
    mem: Memory<Buffers>,
    frames: Vec<BufView>,
    views: Vec<BufView>,
}

impl Owed {
    /// Frames of `len` bytes, `gap` bytes apart: with a gap no frame joins the one before it.
    fn new(len: u32, gap: u32) -> Owed {
        let mut mem = Memory { leases: Buffers::new(1), chunks: ChunkPool::default() };
        let mut rest = mem.leases.fill(Direction::ToClient, &[0x2e; BATCH]);
        let mut frames = Vec::new();
        while rest.len >= len + gap {
            frames.push(rest.first(len));
            rest = rest.skip(len + gap);
        }
        Owed { outbox: Outbox::default(), arena: Arena::default(), mem, frames, views: Vec::new() }
    }

    fn push(&mut self) {
        for &frame in &self.frames {
            self.outbox.push(&mut self.arena, &mut self.mem, black_box(frame), true);
        }
    }

    fn send(&mut self) {
        loop {
            let bytes = self.outbox.plan(&self.arena, SEND_MAX, &mut self.views);
            black_box(&self.views);
            self.views.clear();
            if bytes == 0 {
                return;
            }
            self.outbox.consume(&mut self.arena, &mut self.mem, bytes);
        }
    }
}

/// Pushes a batch of frames, plans the sends and takes them.
pub(crate) fn owe_and_send(c: &mut Criterion) {
    let mut group = c.benchmark_group("outbox");
    for (name, len, gap) in
        [("copied", 76, 0), ("joined", 1_036, 0), ("views", 1_036, 4), ("views", 4_096, 4), ("views", 10_240, 4)]
    {
        let mut owed = Owed::new(len, gap);
        group.throughput(Throughput::Elements(owed.frames.len() as u64));
        group.bench_function(BenchmarkId::new(name, len), |b| {
            b.iter(|| {
                owed.push();
                owed.send();
            });
        });
    }
    group.finish();
}

/// The same for a peer that does not keep up: what is owed moves into chunks first.
pub(crate) fn settle(c: &mut Criterion) {
    let mut group = c.benchmark_group("outbox settled");
    for len in [1_036, 4_096, 10_240] {
        let mut owed = Owed::new(len, 4);
        group.throughput(Throughput::Elements(owed.frames.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |b| {
            b.iter(|| {
                owed.push();
                owed.outbox.settle(&mut owed.arena, &mut owed.mem);
                owed.send();
            });
        });
    }
    group.finish();
}
