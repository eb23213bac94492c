//! A shard's counters, readable from any thread: written once a turn by the shard alone, never locked.
//!
//! The asymmetry to know: the numbers of one [`Snapshot`] are of one turn when the shard reads them, and may be of
//! two neighbouring turns when another thread does.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::wire::admin::{Flow, ShardStatus};

/// The numbers of one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// VMs served.
    pub links: u64,
    /// Sessions served.
    pub sessions: u64,
    /// Turns made.
    pub turns: u64,
    /// Whole frames to clients.
    pub to_client: Flow,
    /// Whole frames to agents.
    pub to_agent: Flow,
    /// Frames nobody wanted.
    pub skipped_frames: u64,
    /// Receives that found no buffer.
    pub buffers_exhausted: u64,
    /// Completions that matched no operation.
    pub stale_completions: u64,
    /// Chunks that hold what slow peers are owed.
    pub chunks_in_use: u64,
    /// Times a link stopped being read because of a client.
    pub links_blocked: u64,
    /// Peers that broke the protocol.
    pub faulty_peers: u64,
}

/// The shared form.
#[derive(Debug, Default)]
pub struct ShardStats([AtomicU64; 13]);

impl ShardStats {
    /// Publishes the numbers of this turn.
    pub fn store(&self, now: &Snapshot) {
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
        ];
        for (slot, number) in self.0.iter().zip(numbers) {
            slot.store(number, Relaxed);
        }
    }

    /// The numbers as `status` shows them.
    pub fn status(&self, shard: u32, cpu: Option<u32>) -> ShardStatus {
        let [links, sessions, turns, cf, cb, af, ab, skipped, exhausted, stale, chunks, blocked, faulty] =
            std::array::from_fn(|index| self.0[index].load(Relaxed));
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_arrives_under_its_own_name() {
        let now = Snapshot {
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
        };
        let stats = ShardStats::default();
        stats.store(&now);
        let want = ShardStatus {
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
        };
        assert_eq!(stats.status(7, Some(1)), want);
    }
}
