//! Every bound of the daemon, in one place. A queue, buffer or table that is not bounded here does not exist.
//!
//! Values that an operator may change are defaults here and fields of `config`; the others are fixed by a
//! protocol or by the kernel, and the comment says which. Relations between them are const assertions.

/// Longest path of an `AF_UNIX` socket: `sun_path` is 108 bytes with its terminating zero (unix(7)).
pub const UNIX_PATH_MAX: usize = 107;

/// Longest container or VM identifier a client may register, in bytes.
pub const VM_ID_MAX: usize = 256;

/// Longest protocol 1 message (JSON, without its 8-byte header) a client may send.
///
/// Ten times what any agent takes, so that the agent's own limit answers first with an error that names it.
pub const CC1_MESSAGE_MAX: usize = 128 * 1024 - 1;

/// Longest payload of a protocol 2 frame that is not stdin, stdout, stderr or a response, bytes.
pub const CC2_MESSAGE_MAX: u32 = 128 * 1024;

/// Longest payload of a protocol 2 response, bytes: what an agent may answer ([`CONTROL_REPLY_MAX`]).
pub const CC2_RESPONSE_MAX: u32 = 16 * 1024 * 1024;

/// Longest message on a control channel that agents of every age accept, header included.
/// Source: hyperstart 0.7's fixed read buffer (specification of `--control-message-max`).
pub const CONTROL_MESSAGE_MAX: usize = 10_240;

/// Longest message an agent may send us on a control channel, header included (`readfile` answers are the long ones).
pub const CONTROL_REPLY_MAX: usize = 16 * 1024 * 1024;

/// Bytes for an agent that its control channel's socket has not taken. Only an agent that answers commands without
/// reading them gets beyond two messages; it is given up.
pub const CONTROL_OUTGOING_MAX: usize = 1024 * 1024;

/// Commands that may wait for one VM's control channel (`--max-commands-per-vm`). Each client connection waits for at
/// most one.
pub const COMMANDS_PER_VM: usize = 1_024;

/// The most `--max-commands-per-vm` may be raised to.
pub const CONTROL_QUEUE_MAX: usize = 16_384;

/// Longest stream frame accepted from an agent or a client, header included. A longer one breaks that channel.
pub const STREAM_FRAME_MAX: u32 = 16 * 1024 * 1024;

/// Longest stream frame sent to an agent unless `--agent-frame-max` says more, header included.
/// Source: hyperstart's C agents; a longer one is fatal to the VM.
pub const AGENT_FRAME_DEFAULT: u32 = 4_096;

/// The most `--agent-frame-max` may be raised to.
pub const AGENT_FRAME_CEILING: u32 = 10_240;

/// Longest stream frame sent to a protocol 1 client, header included. cc-shim 2 refuses longer ones.
pub const CC1_FRAME_MAX: u32 = 10_240;

/// Most bytes in one send to a client: one kernel buffer on an `AF_UNIX` stream, queued whole or not at all.
pub const SEND_MAX: usize = 32 * 1024;

/// Most bytes in one send to an agent. Agents read a stream and need no border kept, and more does not fit a socket.
pub const AGENT_SEND_MAX: usize = 256 * 1024;

/// Least bytes offered to an agent at once, however few it took last time.
pub const AGENT_SEND_LEAST: usize = 16 * 1024;

/// Most pieces in one gathered send (`UIO_MAXIOV`).
pub const SEND_PIECES_MAX: usize = 1_024;

/// Bytes of one chunk of owned memory. A send never needs more than one.
pub const CHUNK_LEN: usize = SEND_MAX;

/// Pieces up to this many bytes are copied into a run instead of becoming a gather entry of their own.
/// Source: measured; at 64 bytes a copy costs half of an iovec.
pub const COPY_MAX: usize = 512;

/// Bytes one session may owe its client before its VM's stream channel stops being read (`--session-buffer`).
pub const SESSION_BUFFER: usize = 8 * 1024 * 1024;

/// Bytes of a spilling session's output that are kept in memory in front of its file; a smaller `--session-buffer`
/// keeps half of it.
pub const SPILL_HEAD: usize = 1024 * 1024;

/// Bytes of one write to a spill file, and of one read; a smaller `--session-buffer` writes a quarter of it.
pub const SPILL_SEGMENT: usize = 256 * 1024;

/// Bytes read back from a spill file whose space is given back at once.
pub const SPILL_PUNCH: u64 = 4 * 1024 * 1024;

/// Bytes one session's spill file may have (`--spill-session`).
pub const SPILL_SESSION: u64 = 1024 * 1024 * 1024;

/// Bytes all spill files may have together (`--spill-total`).
pub const SPILL_TOTAL: u64 = 4 * 1024 * 1024 * 1024;

/// Where spill files are unless an operator says otherwise (`--spill-dir`). Source: hier(7).
pub const SPILL_DIR: &str = "/var/tmp";

/// The most either may be raised to.
pub const SPILL_CEILING: u64 = 1 << 50;

/// The least either may be lowered to: a few writes.
pub const SPILL_FLOOR: u64 = 1024 * 1024;

/// Milliseconds after which a session that could not write to its spill file tries again, though nothing else happened.
pub const SPILL_RETRY_MS: u64 = 1_000;

/// Bytes one session may owe its agent before its client stops being read. While the agent takes nothing its client
/// stops at the first whole frame.
pub const TO_AGENT_BUFFER: usize = 128 * 1024;

/// Bytes a session may owe its agent before its shim stops being read, while its process does not run and behind
/// input that was not taken for two beats ([`REST_MS`]): more than other clients', so that a signal is still seen.
pub const SHIM_INPUT_BUFFER: usize = 1024 * 1024;

/// Messages of one shim that may be under way to the coordinator before the shim stops being read.
pub const SHIM_MESSAGES_MAX: u32 = 64;

/// Bytes of answers a shim may leave unread before it stops being read.
pub const SHIM_REPLIES_BUFFER: usize = 4 * CHUNK_LEN;

/// Longest stream frame sent to a shim, header included: one send.
#[expect(clippy::cast_possible_truncation, reason = "32 KiB")]
pub const CC2_FRAME_MAX: u32 = SEND_MAX as u32;

/// Bytes the kernel may hold for a shim, hence what may go unread when it is killed.
pub const SHIM_AT_RISK: u64 = 208 * 1024;

/// Seconds a process's start waits for its shim, and a shim's input and signals for the process (`--shim-patience`).
pub const SHIM_PATIENCE_SECS: u64 = 30;

/// Events of an agent that wait to be looked at; more are skipped, with a line in the log.
pub const AGENT_EVENTS_MAX: usize = 4_096;

/// Longest line of a VM's console in the log, bytes; a longer one is cut in two.
pub const CONSOLE_LINE_MAX: usize = 1_024;

/// Tokens one RegisterVM or AttachVM may ask for.
pub const TOKENS_PER_REQUEST: i64 = 1_024;

/// Sessions one VM may have, of both protocols (`--max-sessions-per-vm`).
pub const SESSIONS_PER_VM: usize = 8_192;

/// Sessions one user may have, on all VMs (`--max-sessions-per-user`).
pub const SESSIONS_PER_USER: usize = 65_536;

/// The most both may be raised to.
pub const SESSIONS_CEILING: usize = 1 << 20;

/// Bytes of owned memory all sessions of the daemon may hold together (`--total-buffer`).
pub const TOTAL_BUFFER: usize = 1024 * 1024 * 1024;

/// Free chunks a shard at rest keeps for reuse.
pub const SPARE_CHUNKS: usize = 4;

/// Messages of ended sends a busy shard keeps for reuse: as many as its ring's submission queue holds.
pub const SPARE_SENDS: usize = 1_024;

/// Turns after which a busy shard gives the free chunks back that it has not needed meanwhile.
pub const TRIM_TURNS: u64 = 4_096;

/// Milliseconds without any event after which a shard is at rest and gives back what only traffic needs. Also from
/// one beat to the next, at which it looks after shims whose input is not taken.
pub const REST_MS: u64 = 250;

/// Bytes received into buffers of one direction that make it worth giving their memory back at rest.
pub const REST_BYTES: u64 = 128 * 1024;

/// Receive buffers of the to-client direction, per shard: count and bytes of each (together 512 KiB, inside L2).
pub const TO_CLIENT_BUFFERS: (u16, u32) = (8, 64 * 1024);

/// Receive buffers of the to-agent direction where the kernel consumes them incrementally (6.12 and later).
pub const TO_AGENT_BUFFERS_INCREMENTAL: (u16, u32) = (8, 128 * 1024);

/// Receive buffers of the to-agent direction on older kernels: one receive takes one whole buffer.
pub const TO_AGENT_BUFFERS: (u16, u32) = (64, 16 * 1024);

/// Direct descriptors one shard can hold: links and sessions together (lowered to `RLIMIT_NOFILE` at start).
pub const SOCKETS_PER_SHARD: u32 = 32 * 1024;

/// Descriptors the kernel's table has places for from the start (8 bytes each), if `RLIMIT_NOFILE` allows as many.
pub const DESCRIPTORS_RESERVED: u64 = 32 * 1024;

/// Direct descriptors of a shard that no new socket is promised: sockets that have ended and are not gone yet.
pub const SOCKETS_SLACK: u32 = 64;

/// Orders that may wait for one shard. The coordinator waits when it is full.
pub const MAILBOX_LEN: usize = 1_024;

/// Shards a daemon may run.
pub const SHARDS_MAX: usize = 256;

/// Client connections served at once (`--max-clients`); more wait in the listener's backlog.
pub const CLIENTS_MAX: usize = 4_096;

/// Part of `--max-clients` that is left to others by one user, unless `--max-clients-per-user` says how many he may
/// have: an eighth.
pub const CLIENTS_LEFT_TO_OTHERS: usize = 8;

/// Connections that are turned away and told why, at once; more are closed without a word.
pub const TURNED_AWAY_MAX: usize = 64;

/// Bytes that one user's connections may hold in the daemon: requests that are not whole, and responses that are not
/// read (`--user-buffer`).
pub const USER_BUFFER: usize = 256 * 1024 * 1024;

/// The least `--user-buffer` may be lowered to: one request and its response.
pub const USER_BUFFER_FLOOR: usize = 2 * (CC1_MESSAGE_MAX + 1);

/// Milliseconds a connection that broke its protocol stays before it closes, so that one that does it again and again
/// costs little.
pub const FAULT_PAUSE_MS: u64 = 50;

/// Frames in one receive from an agent above which it is read piece by piece: nearly empty ones, a flood of which would
/// take the turns of others.
pub const FRAMES_PER_RECEIVE: u64 = 2_048;

/// Lines in the log of each kind that peers can cause as often as they like, in [`PEER_LINES_SECS`]; more are counted.
pub const PEER_LINES: u32 = 50;

/// Seconds after which there may be [`PEER_LINES`] more.
pub const PEER_LINES_SECS: u64 = 10;

/// Bytes of a text a client chose that an answer or a line of the log repeats.
pub const ECHO_MAX: usize = 512;

/// Refusals of one connection that the log has at `info`; later ones are at `debug`.
pub const REFUSALS_LOGGED: u32 = 10;

/// Admin clients served at once.
pub const ADMIN_CLIENTS_MAX: usize = 64;
/// The most `--max-clients` may be raised to.
pub const CLIENTS_CEILING: usize = 65_536;

/// The least `--agent-frame-max` may be lowered to: below it headers outweigh what they carry.
pub const AGENT_FRAME_FLOOR: u32 = 512;

/// The least `--control-message-max` may be lowered to: commands that start a process must pass.
pub const CONTROL_MESSAGE_FLOOR: usize = 4_096;

/// The least `--session-buffer` may be lowered to: one send and what arrives meanwhile.
pub const SESSION_BUFFER_FLOOR: usize = 2 * CHUNK_LEN;

/// The most `--total-buffer` may be raised to.
pub const TOTAL_BUFFER_CEILING: usize = 1 << 46;

/// The most `--deadline`, `--shim-patience` and `--stop-timeout` may be raised to, in seconds.
pub const SECONDS_MAX: u64 = 3_600;

/// Highest number of a CPU that may be named, exclusive: what a `cpu_set_t` holds (sched_setaffinity(2)).
pub const CPUS_END: u32 = 1_024;

/// VMs' sockets being opened at once; more wait. Each takes a thread, for as long as its file system does.
pub const OPENINGS_MAX: usize = 256;

/// Registered VMs at once.
pub const VMS_MAX: usize = 16_384;

/// Largest stream sequence handed out, exclusive: Go clients parse it as a float, exact below 2^53.
pub const SEQ_END: u64 = 1 << 53;

/// Where the counter of sequences goes for a VM that was up before the daemon: sequences for each millisecond since
/// [`SEQ_EPOCH_SECS`]. An earlier daemon handed out fewer, so that none of its numbers is met again.
pub const SEQ_PER_MILLI: u64 = 256;

/// The beginning of 2020, in seconds since 1970.
pub const SEQ_EPOCH_SECS: u64 = 1_577_836_800;

/// Seconds hello, hyper and bye may take before they are answered with an error (`--deadline`).
pub const COMMAND_DEADLINE_SECS: u64 = 30;

/// Milliseconds without READY after which a VM is asked with PING whether it was booted before.
pub const READY_PATIENCE_MS: u64 = 1_000;

/// Seconds a stopping daemon spends on flushing what clients are owed (`--stop-timeout`).
pub const STOP_TIMEOUT_SECS: u64 = 5;

/// `ringway agent`: the API version it answers (`--api-version`). Source: hyperstart
/// 1.1, the first whose agents signal any process.
pub const GUEST_API_VERSION: u32 = 4_244;

/// `ringway agent`: longest frame it writes, header included (`--frame-max`). Source: hyperstart's agents.
pub const GUEST_FRAME_DEFAULT: u32 = 10_240;

/// `ringway agent`: the range of `--frame-max`. The least still lets one gathered read fill a whole turn.
pub const GUEST_FRAME_RANGE: (u32, u32) = (128, 1024 * 1024);

/// `ringway agent`: the range of `--control-max`, longest control channel message it takes, header included.
pub const GUEST_CONTROL_RANGE: (usize, usize) = (64, 64 * 1024 * 1024);

/// `ringway agent`: bytes read from one process's output in its turn.
pub const GUEST_READ: usize = 64 * 1024;

/// `ringway agent`: stdin bytes held for one process; above it the stream channel is not read.
pub const GUEST_STDIN_BUFFER: usize = 1024 * 1024;

/// `ringway agent`: stdin bytes held for all processes; above it the stream channel is not read.
pub const GUEST_STDIN_TOTAL: usize = 64 * 1024 * 1024;

/// `ringway agent`: processes at once, those whose last output is not delivered included.
pub const GUEST_PROCESSES_MAX: usize = 4_096;

/// `ringway agent`: unknown sequences whose EOF answer may wait; more are not answered.
pub const GUEST_STRAYS_MAX: usize = 1_024;

/// `ringway agent`: milliseconds output stays open after its process ended, for descendants that still hold it.
pub const GUEST_OUTPUT_GRACE_MS: u64 = 100;

/// `ringway agent`: milliseconds between TERM and KILL when everything ends.
pub const GUEST_TERM_GRACE_MS: u64 = 1_000;

/// `ringway agent`: milliseconds the host has to take the last output and statuses when everything ends.
pub const GUEST_FLUSH_MS: u64 = 1_000;

const _: () = assert!(SEND_MAX <= AGENT_SEND_MAX);
const _: () = assert!(AGENT_FRAME_DEFAULT <= AGENT_FRAME_CEILING);
const _: () = assert!(CC1_FRAME_MAX as usize <= SEND_MAX && AGENT_FRAME_CEILING as usize <= SEND_MAX);
const _: () = assert!(CC2_RESPONSE_MAX as usize == CONTROL_REPLY_MAX);
const _: () = assert!(COPY_MAX < CHUNK_LEN);
const _: () = assert!(VM_ID_MAX < ECHO_MAX);
const _: () = assert!(CONTROL_MESSAGE_MAX < CC1_MESSAGE_MAX);
const _: () =
    assert!(CC1_MESSAGE_MAX < 0x2_0000, "protocol 2 begins 00 02: a protocol 1 length must stay below 128 KiB");
const _: () = assert!(SESSION_BUFFER <= TOTAL_BUFFER && TOTAL_BUFFER <= TOTAL_BUFFER_CEILING);
const _: () = assert!(SESSION_BUFFER_FLOOR <= SESSION_BUFFER);
const _: () = assert!(AGENT_FRAME_FLOOR <= AGENT_FRAME_DEFAULT);
const _: () = assert!(CONTROL_MESSAGE_FLOOR <= CONTROL_MESSAGE_MAX);
const _: () = assert!(CLIENTS_MAX <= CLIENTS_CEILING);
const _: () = assert!(COMMANDS_PER_VM <= CONTROL_QUEUE_MAX);
const _: () = assert!(SESSIONS_PER_VM <= SESSIONS_CEILING && SESSIONS_PER_USER <= SESSIONS_CEILING);
const _: () = assert!(USER_BUFFER_FLOOR <= USER_BUFFER);
const _: () = assert!(COMMAND_DEADLINE_SECS <= SECONDS_MAX && STOP_TIMEOUT_SECS <= SECONDS_MAX);
const _: () = assert!(TOKENS_PER_REQUEST.unsigned_abs() <= SESSIONS_PER_VM as u64);
const _: () = assert!(SHIM_PATIENCE_SECS <= SECONDS_MAX);
const _: () = assert!(GUEST_FRAME_DEFAULT >= GUEST_FRAME_RANGE.0 && GUEST_FRAME_DEFAULT <= GUEST_FRAME_RANGE.1);
const _: () = assert!(CONTROL_MESSAGE_MAX >= GUEST_CONTROL_RANGE.0 && CONTROL_MESSAGE_MAX <= GUEST_CONTROL_RANGE.1);
const _: () = assert!(GUEST_STDIN_BUFFER <= GUEST_STDIN_TOTAL);
