//! A shard's counters, readable from any thread: written once a turn by the shard alone, never locked.
//!
//! The asymmetry to know: the numbers are of one turn when the shard writes them, and may be of two neighbouring
//! turns when another thread reads them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::wire::admin::{Flow, ShardStatus};

/// The shared form of a [`ShardStatus`].
#[derive(Debug, Default)]
pub struct ShardStats([AtomicU64; 20]);

impl ShardStats {
    /// Publishes the numbers of this turn.
    pub(super) fn store(&self, now: &ShardStatus) {
        let numbers = [
            now.links,
            now.sessions,
            now.turns,
            now.to_client.frames,
            now.to_client.bytes,
            now.to_agent.frames,
            now.to_agent.bytes,
            now.skipped_frames,
            now.buffers_exhausted,
            now.stale_completions,
            now.chunks_in_use,
            now.links_blocked,
            now.faulty_peers,
            now.sessions_too_slow,
            now.spilling,
            now.spill_bytes,
            now.spill_written,
            now.spill_read,
            now.spill_full,
            now.spill_errors,
        ];
        for (slot, number) in self.0.iter().zip(numbers) {
            slot.store(number, Relaxed);
        }
    }

    /// The numbers of the shard with this number and CPU; its load is not among what a shard knows.
    pub fn status(&self, shard: u32, cpu: Option<u32>) -> ShardStatus {
        let [
            links,
            sessions,
            turns,
            cf,
            cb,
            af,
            ab,
            skipped,
            exhausted,
            stale,
            chunks,
            blocked,
            faulty,
            too_slow,
            spilling,
            spill_bytes,
            spill_written,
            spill_read,
            spill_full,
            spill_errors,
        ] = std::array::from_fn(|index| self.0[index].load(Relaxed));
        ShardStatus {
            shard,
            cpu,
            links,
            sessions,
            turns,
            to_client: Flow { frames: cf, bytes: cb },
            to_agent: Flow { frames: af, bytes: ab },
            skipped_frames: skipped,
            buffers_exhausted: exhausted,
            stale_completions: stale,
            chunks_in_use: chunks,
            links_blocked: blocked,
            faulty_peers: faulty,
            sessions_too_slow: too_slow,
            spilling,
            spill_bytes,
            spill_written,
            spill_read,
            spill_full,
            spill_errors,
            ..ShardStatus::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_arrives_under_its_own_name() {
        let now = ShardStatus {
            shard: 7,
            cpu: Some(1),
            links: 1,
            sessions: 2,
            turns: 3,
            to_client: Flow { frames: 4, bytes: 5 },
            to_agent: Flow { frames: 6, bytes: 7 },
            skipped_frames: 8,
            buffers_exhausted: 9,
            stale_completions: 10,
            chunks_in_use: 11,
            links_blocked: 12,
            faulty_peers: 13,
            sessions_too_slow: 14,
            spilling: 15,
            spill_bytes: 16,
            spill_written: 17,
            spill_read: 18,
            spill_full: 19,
            spill_errors: 20,
            ..ShardStatus::default()
        };
        let stats = ShardStats::default();
        stats.store(&now);
        assert_eq!(stats.status(7, Some(1)), now);
    }
}
