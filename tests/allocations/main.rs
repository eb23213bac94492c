//! No frame costs an allocation: the plane alone with peers that keep up and peers that do not, and a real shard.
//!
//! Lists and pools grow until they hold what the busiest turn needs; then nothing is allocated any more. The asymmetry
//! to know: the counter counts the whole process, so tests measure one at a time and with peers that allocate nothing,
//! and what counts is the first of a few windows in which the test runner was silent too.

mod plane;
#[path = "../../benches/data_plane/rig.rs"]
mod rig;
mod shard;

use std::alloc::System;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Windows of which one must be free of allocations.
const WINDOWS: usize = 5;

/// The one test that runs.
#[derive(Debug)]
struct Alone(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Alone {
    /// Waits until no other test runs.
    fn new() -> Alone {
        static RUNNING: Mutex<()> = Mutex::new(());
        Alone(RUNNING.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Allocations and reallocations of the whole process during `work`.
    fn count<T>(&self, work: impl FnOnce() -> T) -> usize {
        let region = Region::new(ALLOCATOR);
        work();
        let change = region.change();
        change.allocations + change.reallocations
    }

    /// Runs `work` once so that lists and pools grow, then asserts that running it again allocates nothing.
    fn assert_none(&self, what: &str, mut work: impl FnMut()) {
        work();
        let mut counts = [0; WINDOWS];
        let silent = counts.iter_mut().any(|window| {
            *window = self.count(&mut work);
            *window == 0
        });
        assert!(silent, "{what}: allocations in each window: {counts:?}");
    }
}
