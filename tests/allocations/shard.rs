//! A real shard on its thread: sockets, the ring, every completion; the agent and the clients are this test.
//!
//! The test writes and reads with buffers of its own that it made before, so what is counted is the shard's. The
//! asymmetry to know: how much arrives in one turn is up to the kernel, so the first windows may still grow a list.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway::reactor::probe;
use ringway::shard::{Order, ShardConfig, ShardHandle, TokenOrder, spawn};
use ringway::wire::SlowReader;
use ringway::wire::admin::ShardStatus;
use tokio::sync::Notify;

use crate::Alone;
use crate::rig::{BATCH, Protocol, TUNING, outputs, seq};

/// Copied, and sent from where they are: bytes of payload.
const PAYLOADS: [usize; 2] = [64, 2_048];
/// Frames of a window, at least.
const FRAMES: usize = 20_000;
/// The one VM.
const VM: u64 = 1;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A shard with one VM and its clients.
struct Served {
    shard: ShardHandle,
    agent: UnixStream,
    clients: Vec<UnixStream>,
}

impl Served {
    fn new(clients: usize, protocol: Protocol) -> Served {
        let features = probe().expect("io_uring");
        let config = ShardConfig {
            number: 0,
            cpu: None,
            tuning: TUNING,
            sockets: 1_024,
            features,
            drop_capabilities: false,
            spill: None,
        };
        let shard = spawn(config, Arc::new(Notify::new())).expect("a shard");
        let (ours, agent) = pair();
        let post = |order| shard.mailbox.post(order).expect("room for orders");
        post(Order::OpenLink { vm: VM, fd: ours.into() });
        let slow_reader = SlowReader::Block;
        let client = |index| {
            let ((ours, client), base) = (pair(), seq(index));
            let fd = ours.into();
            match protocol {
                Protocol::One => post(Order::OpenSession { vm: VM, base, streams: 1, slow_reader, fd }),
                Protocol::Two => {
                    let (unparsed, reply) = (Vec::new(), Vec::new());
                    post(Order::OpenToken { vm: VM, base, slow_reader });
                    let connection = index as u64;
                    post(Order::Token(base, TokenOrder::Connect { connection, fd, unparsed, reply }));
                    post(Order::Token(base, TokenOrder::Started { terminal: false }));
                }
            }
            client
        };
        let clients = (0..clients).map(client).collect();
        Served { shard, agent, clients }
    }

    fn status(&self) -> ShardStatus {
        self.shard.stats.status(0, None)
    }

    /// Waits until the shard has routed so many bytes to clients since `before`.
    fn wait_for(&self, before: &ShardStatus, bytes: usize) {
        let began = Instant::now();
        while self.status().to_client.bytes - before.to_client.bytes < bytes as u64 {
            assert!(began.elapsed() < PATIENCE, "the shard is stuck: {:?}", self.shard.mailbox.next_report());
            std::thread::yield_now();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        assert!(self.shard.mailbox.post(Order::Stop).is_ok());
        let ended = self.shard.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    theirs.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    theirs.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    (ours, theirs)
}

/// Bytes that each client gets of a batch of `frames` frames for them in turn.
fn shares(clients: usize, frames: usize, frame: usize) -> impl Iterator<Item = usize> {
    (0..clients).map(move |client| frame * (frames / clients + usize::from(client < frames % clients)))
}

fn everywhere(case: impl Fn(&Alone, Protocol, usize, usize)) {
    let alone = Alone::new();
    for protocol in [Protocol::One, Protocol::Two] {
        for clients in [1, 16, 256] {
            PAYLOADS.iter().for_each(|&payload| case(&alone, protocol, clients, payload));
        }
    }
}

#[test]
fn frames_to_clients() {
    everywhere(|alone, protocol, clients, payload| {
        let mut served = Served::new(clients, protocol);
        let (batch, frames) = outputs(clients, payload, BATCH);
        let mut taken = vec![0; batch.len()];
        alone.assert_none(&format!("to {clients} clients, {payload} bytes"), || {
            for _ in 0..FRAMES.div_ceil(frames) {
                served.agent.write_all(&batch).expect("the shard reads");
                for (client, share) in served.clients.iter_mut().zip(shares(clients, frames, payload + 12)) {
                    client.read_exact(&mut taken[..share]).expect("the shard writes");
                }
            }
        });
    });
}

#[test]
fn frames_to_a_client_that_reads_too_late() {
    let alone = Alone::new();
    for (protocol, payload) in [(Protocol::One, 64), (Protocol::One, 10_228), (Protocol::Two, 10_228)] {
        // Of the two the other one could have output any time, so that the agent is read.
        let mut served = Served::new(2, protocol);
        // More than its socket and the receive buffers hold, and less than would hold the agent back.
        let batch = outputs(1, payload, 24 * BATCH).0;
        let mut taken = vec![0; batch.len()];
        let mut spilled = 0;
        alone.assert_none(&format!("to a client that reads too late, {payload} bytes"), || {
            for _ in 0..(FRAMES * (payload + 12)).div_ceil(batch.len()) {
                let before = served.status();
                served.agent.write_all(&batch).expect("the shard reads");
                served.wait_for(&before, batch.len());
                spilled = spilled.max(served.status().chunks_in_use);
                served.clients[0].read_exact(&mut taken).expect("the shard writes");
            }
        });
        assert!(spilled > 1, "it was read in time");
    }
}

#[test]
fn frames_to_the_agent() {
    everywhere(|alone, protocol, clients, payload| {
        let mut served = Served::new(clients, protocol);
        let each = (BATCH / clients / (payload + 12)).max(1);
        let batches: Vec<_> = (0..clients).map(|client| protocol.input(seq(client), payload).repeat(each)).collect();
        let mut taken = vec![0; (payload + 12) * each * clients];
        alone.assert_none(&format!("of {clients} clients, {payload} bytes"), || {
            for _ in 0..FRAMES.div_ceil(each * clients) {
                for (client, batch) in served.clients.iter_mut().zip(&batches) {
                    client.write_all(batch).expect("the shard reads");
                }
                served.agent.read_exact(&mut taken).expect("the shard writes");
            }
        });
    });
}
