//! Headers of both protocols, and frames found in received bytes.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};

use ringway::limits::STREAM_FRAME_MAX;
use ringway::relay::frames::{FrameReader, Head, Step};
use ringway::wire::cc2;
use ringway::wire::hyper::{FRAME_HEADER_LEN, FrameHeader};

use crate::rig::{BATCH, Protocol, outputs, seq};

const HEADERS: u32 = 1_024;

/// Decodes headers one after the other.
pub(crate) fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("header");
    group.throughput(Throughput::Elements(u64::from(HEADERS)));
    let hyper: Vec<_> = (0..HEADERS).map(|n| FrameHeader::for_payload(seq(n as usize), n).encode()).collect();
    group.bench_function("hyperstart", |b| {
        b.iter(|| hyper.iter().map(|&bytes| length::<FrameHeader>(bytes)).fold(0, u32::wrapping_add));
    });
    let kind = |n: u32| cc2::Kind::Stream(if n.is_multiple_of(2) { cc2::Stream::Stdin } else { cc2::Stream::Stdout });
    let second: Vec<_> = (0..HEADERS).map(|n| cc2::Header::new(kind(n), n).encode()).collect();
    group.bench_function("protocol 2", |b| {
        b.iter(|| second.iter().map(|&bytes| length::<cc2::Header>(bytes)).fold(0, u32::wrapping_add));
    });
    group.finish();
}

fn length<H: Head>(bytes: [u8; FRAME_HEADER_LEN]) -> u32 {
    H::decode(black_box(bytes), STREAM_FRAME_MAX).expect("a header of ours").frame()
}

/// Finds the frames of a batch: whole ones, and all of them in pieces of 57 bytes, so that most headers are split.
pub(crate) fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frames");
    for payload in [64, 1_024] {
        let (batch, frames) = outputs(16, payload, BATCH);
        group.throughput(Throughput::Elements(frames as u64));
        for (name, piece) in [("whole", BATCH), ("split", 57)] {
            group.bench_function(BenchmarkId::new(format!("hyperstart, {name}"), payload), |b| {
                b.iter(|| walk::<FrameHeader>(black_box(&batch), piece));
            });
        }
        let batch = Protocol::Two.input(seq(0), payload).repeat(frames);
        for (name, piece) in [("whole", BATCH), ("split", 57)] {
            group.bench_function(BenchmarkId::new(format!("protocol 2, {name}"), payload), |b| {
                b.iter(|| walk::<cc2::Header>(black_box(&batch), piece));
            });
        }
    }
    group.finish();
}

/// Steps through `bytes`, which arrive in pieces. Returns the number of frames that began.
fn walk<H: Head>(bytes: &[u8], piece: usize) -> usize {
    let mut reader = FrameReader::default();
    let mut begun = 0;
    for mut rest in bytes.chunks(piece) {
        while !rest.is_empty() {
            let taken = match reader.step::<H>(rest, STREAM_FRAME_MAX).expect("frames of ours") {
                Step::Whole(header) => {
                    begun += 1;
                    header.frame()
                }
                Step::Begin { taken, .. } => {
                    begun += 1;
                    taken
                }
                Step::Body { len } | Step::Skip { len } => len,
                Step::Kept => break,
            };
            rest = &rest[taken as usize..];
        }
    }
    begun
}
