//! The admin socket's documents: what `GET /status` answers, as JSON. Counters are totals since the daemon started
//! or the object was made; bytes count whole frames with their headers.

use serde::{Deserialize, Serialize};

use super::SlowReader;

/// Frames and bytes that moved one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Whole frames.
    pub frames: u64,
    /// Bytes, headers included.
    pub bytes: u64,
}

impl std::ops::AddAssign for Flow {
    fn add_assign(&mut self, other: Flow) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }
}

/// The whole daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Ringway's version.
    pub version: String,
    /// The daemon's process ID.
    pub pid: u32,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// The proxy socket.
    pub socket: String,
    /// Client connections open now.
    pub clients: u64,
    /// CPU time used, user and system, microseconds.
    pub cpu_us: u64,
    /// Resident memory, bytes.
    pub memory_bytes: u64,
    /// Descriptors open.
    pub open_fds: u64,
    /// Counters by name, as `/metrics` has them.
    pub counters: Counters,
    /// The shards, by number.
    pub shards: Vec<ShardStatus>,
    /// Registered VMs and those whose sessions still drain, by name.
    pub vms: Vec<VmStatus>,
}

/// Totals of the control plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Client connections accepted.
    pub clients_accepted: u64,
    /// Client connections ended for breaking the protocol.
    pub clients_faulty: u64,
    /// Client connections turned away: of somebody who may not connect, or over a user's limit.
    #[serde(default)]
    pub clients_refused: u64,
    /// Requests answered with success.
    pub requests_ok: u64,
    /// Requests answered with an error.
    pub requests_failed: u64,
    /// VMs registered.
    pub vms_added: u64,
    /// VMs that ended without bye.
    pub vms_lost: u64,
    /// Sessions allocated.
    pub sessions_opened: u64,
    /// Shims that left without giving their token up.
    #[serde(default)]
    pub shims_lost: u64,
    /// Commands whose agent did not answer in time.
    pub commands_overdue: u64,
}

/// One shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Its number.
    pub shard: u32,
    /// The CPU it is pinned to.
    pub cpu: Option<u32>,
    /// CPU time its thread used, user and system, microseconds.
    #[serde(default)]
    pub cpu_us: u64,
    /// Load that was measured, over some seconds, thousandths of one CPU.
    #[serde(default)]
    pub load_permille: u64,
    /// Load that new VMs are still expected to bring, in the same unit. New VMs go by the sum of both.
    #[serde(default)]
    pub expected_permille: u64,
    /// VMs it serves.
    pub links: u64,
    /// Sessions it serves.
    pub sessions: u64,
    /// Turns of its loop.
    pub turns: u64,
    /// Frames and bytes to clients.
    pub to_client: Flow,
    /// Frames and bytes to agents.
    pub to_agent: Flow,
    /// Frames from agents that no session wanted.
    pub skipped_frames: u64,
    /// Receives that found no free buffer.
    pub buffers_exhausted: u64,
    /// Completions of operations whose slot had moved on; always 0 in a sound daemon.
    pub stale_completions: u64,
    /// Chunks of memory that hold what slow peers are owed.
    pub chunks_in_use: u64,
    /// VM sockets that stopped being read because of a session that does not read.
    pub links_blocked: u64,
    /// Peers ended for breaking the protocol.
    pub faulty_peers: u64,
    /// Sessions ended because their clients did not read.
    #[serde(default)]
    pub sessions_too_slow: u64,
    /// Sessions whose output goes to a spill file now.
    #[serde(default)]
    pub spilling: u64,
    /// Bytes of space that spill files have now.
    #[serde(default)]
    pub spill_bytes: u64,
    /// Bytes written to spill files.
    #[serde(default)]
    pub spill_written: u64,
    /// Bytes read back from them.
    #[serde(default)]
    pub spill_read: u64,
    /// Times nothing more could be written to one for want of space.
    #[serde(default)]
    pub spill_full: u64,
    /// Operations on them that failed for another reason.
    #[serde(default)]
    pub spill_errors: u64,
}

/// One VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name.
    pub id: String,
    /// `connecting`, `ready`, `unresponsive` (a command is overdue) or `gone` (sessions drain).
    pub state: String,
    /// The shard that serves its stream channel.
    pub shard: u32,
    /// Path of the control channel's socket.
    pub ctl: String,
    /// Path of the stream channel's socket.
    pub io: String,
    /// The command in flight on its control channel.
    pub command: Option<String>,
    /// Commands that wait for it.
    pub commands_queued: u64,
    /// Frames and bytes to its clients.
    pub to_client: Flow,
    /// Frames and bytes to its agent.
    pub to_agent: Flow,
    /// Bytes accepted from clients that its agent has not taken.
    pub queued_to_agent: u64,
    /// `ioBase` of the session that stops this VM's stream channel from being read.
    pub blocked_by: Option<u64>,
    /// Its sessions, by `ioBase`.
    pub sessions: Vec<SessionStatus>,
}

/// One session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// First sequence: stdin and stdout.
    pub io_base: u64,
    /// Sequences: 1, or 2 with stderr of its own.
    pub streams: u8,
    /// `open`, `input-ended` (the client will send no more), `output-refused` (it closed, and what it sent is still
    /// read), `detached` (no shim has its token), `draining` (its VM is gone and it is owed output) or `leaving` (it is
    /// gone and its agent is owed input).
    pub state: String,
    /// Frames and bytes to the client.
    pub to_client: Flow,
    /// Frames and bytes to the agent.
    pub to_agent: Flow,
    /// Bytes received that the client has not taken.
    pub queued_to_client: u64,
    /// Bytes received that the agent has not taken.
    pub queued_to_agent: u64,
    /// The client does not keep up: a send waits for it.
    pub slow: bool,
    /// It has a token: protocol 2.
    #[serde(default)]
    pub token: bool,
    /// At most this many bytes of output were taken by the kernel for shims that left, and may have gone unread.
    #[serde(default)]
    pub maybe_unread: u64,
    /// What is done when its client does not read.
    #[serde(default)]
    pub slow_reader: SlowReader,
    /// Bytes of `queued_to_client` that are in its spill file.
    #[serde(default)]
    pub spilled: u64,
    /// Why nothing more is written to it just now.
    #[serde(default)]
    pub spill_stopped: Option<String>,
}
