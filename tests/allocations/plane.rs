//! The plane alone, with receive buffers of plain memory: every frame's way, and none of the kernel's.

use ringway::limits::{CHUNK_LEN, SESSION_BUFFER, SPARE_CHUNKS};

use crate::Alone;
use crate::rig::{BATCH, Protocol, Rig, outputs, seq};

const PROTOCOLS: [Protocol; 2] = [Protocol::One, Protocol::Two];
/// Empty, copied, sent from where they are, and cut on their way to an agent: bytes of payload.
const PAYLOADS: [usize; 5] = [0, 64, 1_024, 4_084, 10_228];
/// Clients of the one agent.
const CLIENTS: [usize; 3] = [1, 16, 256];
/// Bytes of a window.
const WINDOW: usize = 2 * 1024 * 1024;
/// Turns that a slow peer takes nothing, before it takes everything.
const SLOW_TURNS: usize = 3;

/// Runs `case` with every protocol, number of clients and payload.
fn everywhere(case: impl Fn(&Alone, Protocol, usize, usize)) {
    let alone = Alone::new();
    for protocol in PROTOCOLS {
        for clients in CLIENTS {
            PAYLOADS.iter().for_each(|&payload| case(&alone, protocol, clients, payload));
        }
    }
}

fn takes_all(bytes: usize) -> usize {
    bytes
}

/// A peer that does not read.
fn takes_nothing(_bytes: usize) -> usize {
    0
}

/// Where a stream of `bytes` bytes is cut: never at the same place of a frame for long.
fn pieces(bytes: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let lengths = [BATCH, 1, 5_003, 11, 30_011, 12].into_iter().cycle();
    let ends = lengths.scan(0, |end, len| {
        *end += len;
        Some(*end)
    });
    let ends = ends.take_while(move |&end| end < bytes).chain([bytes]);
    ends.scan(0, |begin, end| Some(std::mem::replace(begin, end)..end))
}

#[test]
fn frames_to_clients_that_read() {
    everywhere(|alone, protocol, clients, payload| {
        let mut rig = Rig::new(clients, protocol);
        let (stream, _) = outputs(clients, payload, WINDOW);
        alone.assert_none(&format!("to {clients} clients, {payload} bytes"), || {
            for piece in pieces(stream.len()) {
                // One client alone is not sent more than it takes: its agent is read a turn later.
                while !rig.load(rig.agent(), &stream[piece.clone()]) {
                    rig.turn(takes_all);
                }
                rig.turn(takes_all);
            }
            rig.turns();
        });
    });
}

#[test]
fn frames_to_clients_that_are_slow() {
    everywhere(|alone, protocol, clients, payload| {
        let mut rig = Rig::new(clients, protocol);
        let (batch, _) = outputs(clients, payload, BATCH);
        let mut spilled = 0;
        alone.assert_none(&format!("to {clients} slow clients, {payload} bytes"), || {
            for _ in 0..WINDOW / BATCH / SLOW_TURNS {
                for _ in 0..SLOW_TURNS {
                    rig.load(rig.agent(), &batch);
                    rig.turn(takes_nothing);
                }
                spilled = spilled.max(rig.mem.chunks.in_use());
                rig.turns();
            }
        });
        // An empty frame ends a shim's output, and is not sent on.
        assert!(spilled > 0 || (protocol, payload) == (Protocol::Two, 0), "nobody was slow");
    });
}

#[test]
fn frames_to_an_agent_that_reads() {
    everywhere(|alone, protocol, clients, payload| {
        let mut rig = Rig::new(clients, protocol);
        let streams: Vec<_> = (0..clients).map(|client| inputs(protocol, client, payload, WINDOW / clients)).collect();
        alone.assert_none(&format!("of {clients} clients, {payload} bytes"), || {
            for piece in pieces(streams[0].len()) {
                for (client, stream) in streams.iter().enumerate() {
                    rig.load(rig.client(client), &stream[piece.clone()]);
                }
                rig.turns();
            }
        });
    });
}

#[test]
fn frames_to_an_agent_that_is_slow() {
    everywhere(|alone, protocol, clients, payload| {
        let mut rig = Rig::new(clients, protocol);
        let batches: Vec<_> = (0..clients).map(|client| inputs(protocol, client, payload, BATCH / clients)).collect();
        let mut spilled = 0;
        alone.assert_none(&format!("of {clients} clients to a slow agent, {payload} bytes"), || {
            for _ in 0..WINDOW / BATCH / SLOW_TURNS {
                for _ in 0..SLOW_TURNS {
                    for (client, batch) in batches.iter().enumerate() {
                        rig.load(rig.client(client), batch);
                    }
                    rig.turn(takes_nothing);
                }
                spilled = spilled.max(rig.mem.chunks.in_use());
                rig.turns();
            }
        });
        assert!(spilled > 0, "it was not slow");
    });
}

/// Frames of one client, `bytes` in all and at least one.
fn inputs(protocol: Protocol, client: usize, payload: usize, bytes: usize) -> Vec<u8> {
    let frame = protocol.input(seq(client), payload);
    frame.repeat((bytes / frame.len()).max(1))
}

/// The rule of memory for peers that do not read: as much as was needed lately is there again, and what was not needed
/// for a while has been given back, so that it costs an allocation for each chunk, however many frames it holds.
#[test]
fn memory_for_slow_peers_is_kept_while_it_is_needed() {
    let alone = Alone::new();
    let mut rig = Rig::new(2, Protocol::One);
    let (batch, _) = outputs(1, 1_024, BATCH);
    let fill_and_drain = |rig: &mut Rig| {
        while rig.load(rig.agent(), &batch) {
            rig.turn(takes_nothing);
        }
        let held = rig.mem.chunks.in_use();
        rig.turns();
        assert_eq!(rig.mem.chunks.in_use(), 0, "everything has left");
        held
    };
    let held = fill_and_drain(&mut rig);
    assert!(held * CHUNK_LEN >= SESSION_BUFFER && held > SPARE_CHUNKS);
    alone.assert_none("memory that was needed lately", || {
        fill_and_drain(&mut rig);
    });
    let counts = [(); 3].map(|()| {
        // Nothing was needed between the two.
        rig.mem.chunks.trim();
        rig.mem.chunks.trim();
        alone.count(|| {
            fill_and_drain(&mut rig);
        })
    });
    assert!(counts.contains(&(held - SPARE_CHUNKS)), "{held} chunks were held: {counts:?} allocations");
}
