//! The sizes and habits of one simulated world: drawn from a seed, or set by a scenario.
//!
//! The asymmetry to know: a seed draws extremes more often than the middle, because bugs live there.

use crate::kernel::UNIX_PIECE;
use ringway::relay::Tuning;

use crate::disk::DiskShape;
use crate::leases::GroupShape;
use crate::random::Random;

/// How many bytes one receive takes of those that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pieces {
    /// Mostly one.
    Crumbs,
    /// Any number.
    Any,
    /// As many as there are.
    Full,
}

/// Sizes and habits of a world.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) tuning: Tuning,
    pub(crate) to_client: GroupShape,
    pub(crate) to_agent: GroupShape,
    /// Client sockets take a send whole or not at all.
    pub(crate) unix_clients: bool,
    /// Agent sockets likewise.
    pub(crate) unix_agents: bool,
    /// Bytes a client's socket holds.
    pub(crate) client_room: usize,
    /// Bytes an agent's socket holds.
    pub(crate) agent_room: usize,
    /// Bytes that may wait to be received from one peer.
    pub(crate) inbox: usize,
    pub(crate) agents: usize,
    pub(crate) clients: usize,
    pub(crate) turns: usize,
    /// Of a hundred sessions, so many have a token.
    pub(crate) tokens: usize,
    /// Of a hundred things the coordinator does for one, so many answer a message.
    pub(crate) answers: usize,
    /// Things peers do in one turn, at most.
    pub(crate) acts: usize,
    pub(crate) pieces: Pieces,
    /// Longest payload of a usual frame.
    pub(crate) payload: usize,
    /// Percent of sends that find less room than there is.
    pub(crate) short: usize,
    /// Things peers do between two that go wrong (closing, dying, garbage), on average.
    pub(crate) calm: usize,
    /// Percent of what peers do that stops or resumes their reading.
    pub(crate) stalls: usize,
    /// Percent of completions there are that one turn reaps, at least one.
    pub(crate) reap: usize,
    /// Where output spills; `None`: nowhere.
    pub(crate) disk: Option<DiskShape>,
}

impl Shape {
    /// A world with room for everything, where nothing goes wrong by itself.
    pub(crate) fn calm() -> Shape {
        Shape {
            tuning: Tuning {
                agent_frame_max: 4096,
                stream_frame_max: 1 << 20,
                session_buffer: 64 * 1024,
                total_buffer: 1 << 30,
            },
            to_client: GroupShape { count: 8, len: 16 * 1024, incremental: false },
            to_agent: GroupShape { count: 4, len: 32 * 1024, incremental: true },
            unix_clients: true,
            unix_agents: true,
            client_room: 64 * 1024,
            agent_room: 64 * 1024,
            inbox: 1 << 20,
            agents: 1,
            clients: 1,
            turns: 0,
            tokens: 0,
            answers: 0,
            acts: 0,
            pieces: Pieces::Full,
            payload: 1000,
            short: 0,
            calm: 1_000_000,
            stalls: 0,
            reap: 100,
            disk: None,
        }
    }

    /// A world of this seed.
    pub(crate) fn random(random: &mut Random) -> Shape {
        let pieces = random.pick(&[Pieces::Crumbs, Pieces::Any, Pieces::Any, Pieces::Full, Pieces::Full]);
        let (to_client, to_agent) = (random_group(random), random_group(random));
        let (unix_clients, unix_agents) = (random.percent(70), random.percent(60));
        let payload = random.pick(&[1, 30, 200, 600, 2_000, 9_000, 14_000, 45_000]);
        let least = to_client.bytes().min(to_agent.bytes());
        Shape {
            tuning: random_tuning(random),
            to_client,
            to_agent,
            unix_clients,
            unix_agents,
            client_room: room(random, unix_clients),
            agent_room: room(random, unix_agents),
            inbox: (least * 8).clamp(2_000, 128 * 1024),
            agents: random.between(1, 4),
            clients: random.between(1, 10),
            tokens: random.pick(&[0, 50, 80, 100]),
            answers: random.pick(&[0, 20, 60]),
            turns: random.pick(&[20, 60, 120, 200]),
            acts: random.pick(&[2, 6, 12]),
            pieces,
            payload,
            short: random.pick(&[0, 5, 30]),
            calm: random.pick(&[30, 150, 150, 1_000]),
            stalls: random.pick(&[0, 5, 15]),
            reap: random.pick(&[20, 60, 100, 100]),
            disk: random.percent(60).then(|| DiskShape::random(random)),
        }
    }
}

fn random_group(random: &mut Random) -> GroupShape {
    let len = random.pick(&[64, 200, 1_024, 4_096, 16_384, 65_536]);
    let count = u16::try_from(random.pick(&[1, 2, 3, 8])).expect("small");
    GroupShape { count, len, incremental: random.percent(50) }
}

fn random_tuning(random: &mut Random) -> Tuning {
    Tuning {
        agent_frame_max: random.pick(&[30, 64, 100, 700, 4_096, 4_096, 10_240]),
        stream_frame_max: random.pick(&[16_000, 40_000, 1 << 20]),
        session_buffer: random.pick(&[1, 4, 4, 16, 64, 256]) * 1024,
        total_buffer: random.pick(&[64, 256, 1_024, 1 << 20]) * 1024,
    }
}

fn room(random: &mut Random, unix: bool) -> usize {
    if unix { random.between(UNIX_PIECE, 3 * UNIX_PIECE) } else { random.pick(&[1, 50, 500, 5_000, 50_000]) }
}
