//! Benchmarks of the data plane's parts, each in nanoseconds a frame: headers, routing, outboxes, buffers, and a whole
//! turn of the plane in both directions.
//!
//! No sockets and no other threads: what the kernel does is measured by `perf/`. `cargo bench` measures,
//! `cargo test --bench data_plane` runs each once. The asymmetry to know: the turns run on receive buffers of plain
//! memory, the real ones are in `buffers`.

mod buffers;
mod headers;
mod outbox;
mod rig;
mod routes;
mod turns;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

fn short() -> Criterion {
    Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1_000))
        .without_plots()
}

criterion_group! {
    name = data_plane;
    config = short();
    targets = headers::decode, headers::frames, routes::find, outbox::owe_and_send, outbox::settle, buffers::receive,
        buffers::chunks, turns::to_clients, turns::to_agent
}
criterion_main!(data_plane);
