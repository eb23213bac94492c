//! What an operator decides: defaults, then the file, then the flags, checked once.
//!
//! Owns the meaning of every setting; never opens a socket and never changes after start. The asymmetry to know: file
//! and flags are one table ([`Settings`]), but a switch such as `no-pin` can be turned on by either and off by neither.

mod file;
pub mod fuzzing;
mod value;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use file::ConfigFile;
pub use value::{CpuList, Size};

use crate::limits;
use crate::wire::SlowReader;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people; goes to the journal with its fields where standard error is the journal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Whether the daemon gives up what it does not need once it has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Sandbox {
    /// As far as the kernel lets it; what is missing is in the log.
    #[default]
    On,
    /// All of it, or it does not start.
    Require,
    /// Nothing, for debugging.
    Off,
}

/// The daemon's settings, resolved and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Path of the proxy socket.
    pub socket: PathBuf,
    /// Path of the admin socket.
    pub admin_socket: PathBuf,
    /// Directories whose sockets any client may name in hello; elsewhere a client may name its own sockets only.
    pub vm_dirs: Vec<PathBuf>,
    /// Shards to run, 1 ..= [`limits::SHARDS_MAX`].
    pub shards: usize,
    /// CPUs to pin shards to, ascending; shard n takes entry n modulo the length. Empty: all this process may use.
    pub cpus: Vec<u32>,
    /// Whether shards are pinned at all.
    pub pin: bool,
    /// Filter of log lines, in `tracing-subscriber`'s syntax: a level, or `target=level,…`.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What it gives up once it has started.
    pub sandbox: Sandbox,
    /// Longest stream frame sent to an agent, in bytes with its header.
    pub agent_frame_max: u32,
    /// Longest stream frame accepted, in bytes with its header.
    pub stream_frame_max: u32,
    /// Longest control channel message sent to an agent, in bytes with its header.
    pub control_message_max: usize,
    /// Bytes one session may owe its client before its VM stops being read.
    pub session_buffer: usize,
    /// Bytes all sessions together may owe.
    pub total_buffer: usize,
    /// Time hello, hyper and bye may take before they are answered with an error.
    pub deadline: Duration,
    /// Time a start waits for its shim, and a shim's input and signals for the start.
    pub shim_patience: Duration,
    /// Time a stopping daemon spends on flushing what clients are owed.
    pub stop_timeout: Duration,
    /// Client connections served at once.
    pub max_clients: usize,
    /// Of these, connections of one user.
    pub max_clients_per_user: usize,
    /// Sessions one user may have.
    pub max_sessions_per_user: usize,
    /// Sessions one VM may have.
    pub max_sessions_per_vm: usize,
    /// Commands that may wait for one VM.
    pub max_commands_per_vm: usize,
    /// Bytes one user's connections may hold.
    pub user_buffer: usize,
    /// Users who may connect.
    pub allow_uids: Vec<u32>,
    /// Groups whose members may connect. With no user and no group: the socket's owner and group.
    pub allow_gids: Vec<u32>,
    /// What is done about a session whose client does not read, unless it says otherwise.
    pub slow_reader: SlowReader,
    /// Where output of slow clients spills; `None`: [`limits::SPILL_DIR`], if that can be written to.
    pub spill_dir: Option<PathBuf>,
    /// Bytes of one session's spill file.
    pub spill_session: u64,
    /// Bytes of all spill files together.
    pub spill_total: u64,
}

/// The table of settings: each field is a flag of `ringway serve` and a key of the file, of the same name.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// Proxy socket to listen on [default: /run/ringway/proxy.sock, or ringway/proxy.sock in the runtime directory]
    #[arg(long, value_name = "PATH", env = "RINGWAY_SOCKET", hide_env_values = true)]
    pub socket: Option<PathBuf>,
    /// Admin socket to listen on [default: admin.sock next to the proxy socket]
    #[arg(long, value_name = "PATH", env = "RINGWAY_ADMIN_SOCKET", hide_env_values = true)]
    pub admin_socket: Option<PathBuf>,
    /// Let every client register VMs whose sockets are below this directory; may be given several times. Elsewhere a
    /// client may name only sockets that its own user owns [default: none]
    #[arg(long, value_name = "DIR")]
    pub vm_dir: Vec<PathBuf>,
    /// Shards to run: threads with an io_uring each [default: one for each CPU]
    #[arg(long, value_name = "N")]
    pub shards: Option<usize>,
    /// CPUs to pin the shards to, such as 0-3,8 [default: all this process may use]
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,
    /// Leave it to the kernel where shards run
    #[arg(long)]
    pub no_pin: bool,
    /// What to log: error, warn, info, debug, trace, or a filter such as ringway=debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
    /// How log lines look [default: text]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// Give up rights, files and system calls that a daemon that runs does not need [default: on]
    #[arg(long, value_name = "WHEN", value_enum)]
    pub sandbox: Option<Sandbox>,
    /// Longest stream frame sent to an agent, header included; more than 4096 is fatal to old agents [default: 4096]
    #[arg(long, value_name = "BYTES")]
    pub agent_frame_max: Option<Size>,
    /// Longest stream frame accepted from an agent or a client, header included [default: 16MiB]
    #[arg(long, value_name = "BYTES")]
    pub stream_frame_max: Option<Size>,
    /// Longest command sent to an agent, header included; more than 10240 is fatal to old agents [default: 10240]
    #[arg(long, value_name = "BYTES")]
    pub control_message_max: Option<Size>,
    /// Bytes one session may owe its client before its VM stops being read [default: 8MiB]
    #[arg(long, value_name = "BYTES")]
    pub session_buffer: Option<Size>,
    /// Bytes all sessions together may owe their clients and agents [default: 1GiB]
    #[arg(long, value_name = "BYTES")]
    pub total_buffer: Option<Size>,
    /// Seconds an agent may take to answer a command [default: 30]
    #[arg(long, value_name = "SECONDS")]
    pub deadline: Option<u64>,
    /// Seconds a process's start waits for its shim, and a shim's input and signals for the start [default: 30]
    #[arg(long, value_name = "SECONDS")]
    pub shim_patience: Option<u64>,
    /// Seconds to spend on flushing when told to stop [default: 5]
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<u64>,
    /// Client connections served at once; more wait [default: 4096]
    #[arg(long, value_name = "N")]
    pub max_clients: Option<usize>,
    /// Of these, connections of one user; more are refused [default: seven eighths of max-clients]
    #[arg(long, value_name = "N")]
    pub max_clients_per_user: Option<usize>,
    /// Sessions one user may have on all VMs; more are refused [default: 65536]
    #[arg(long, value_name = "N")]
    pub max_sessions_per_user: Option<usize>,
    /// Sessions one VM may have; more are refused [default: 8192]
    #[arg(long, value_name = "N")]
    pub max_sessions_per_vm: Option<usize>,
    /// Commands that may wait for one VM; more are refused [default: 1024]
    #[arg(long, value_name = "N")]
    pub max_commands_per_vm: Option<usize>,
    /// Bytes one user's connections may hold: unfinished requests, unread responses; more is refused [default: 256MiB]
    #[arg(long, value_name = "BYTES")]
    pub user_buffer: Option<Size>,
    /// Let this user connect to the proxy socket; may be given several times. Root and the daemon's own user always
    /// may [default: with no --allow-gid either, the socket's owner and the members of its group]
    #[arg(long, value_name = "UID")]
    pub allow_uid: Vec<u32>,
    /// Let members of this group connect to the proxy socket; may be given several times [default: as for --allow-uid]
    #[arg(long, value_name = "GID")]
    pub allow_gid: Vec<u32>,
    /// What to do when a client does not read and session-buffer is full: spill, block, disconnect [default: spill]
    #[arg(long, value_name = "POLICY")]
    pub slow_reader: Option<SlowReader>,
    /// Directory for the files that output of slow clients spills to [default: /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub spill_dir: Option<PathBuf>,
    /// Bytes one session may spill before its VM stops being read [default: 1GiB]
    #[arg(long, value_name = "BYTES")]
    pub spill_session: Option<Size>,
    /// Bytes all sessions together may spill [default: 4GiB]
    #[arg(long, value_name = "BYTES")]
    pub spill_total: Option<Size>,
}

/// A setting with a value it cannot have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Invalid {
    /// The setting's name.
    key: &'static str,
    /// What is wrong and what would be right.
    why: String,
}

/// Why there is no [`Config`]. The operator is at fault; the text says where and what to write instead, on one line
/// whatever the value it repeats.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.replace('\n', "; "))]
pub struct ConfigError(String);

impl Config {
    /// Merges defaults, the file and the flags, in rising order of weight, and checks the result.
    ///
    /// # Errors
    /// Names the flag, or the file, line and key, that is wrong.
    pub fn resolve(flags: Settings, file: Option<ConfigFile>) -> Result<Config, ConfigError> {
        flags.check().map_err(|bad| ConfigError(format!("--{}: {}", bad.key, bad.why)))?;
        let below = match file {
            Some(file) => file.checked()?,
            None => Settings::default(),
        };
        flags.over(below).into_config()
    }
}

impl Settings {
    /// These settings, and `below`'s where these say nothing.
    fn over(self, below: Settings) -> Settings {
        Settings {
            socket: self.socket.or(below.socket),
            admin_socket: self.admin_socket.or(below.admin_socket),
            vm_dir: if self.vm_dir.is_empty() { below.vm_dir } else { self.vm_dir },
            shards: self.shards.or(below.shards),
            cpus: self.cpus.or(below.cpus),
            no_pin: self.no_pin || below.no_pin,
            log: self.log.or(below.log),
            log_format: self.log_format.or(below.log_format),
            sandbox: self.sandbox.or(below.sandbox),
            agent_frame_max: self.agent_frame_max.or(below.agent_frame_max),
            stream_frame_max: self.stream_frame_max.or(below.stream_frame_max),
            control_message_max: self.control_message_max.or(below.control_message_max),
            session_buffer: self.session_buffer.or(below.session_buffer),
            total_buffer: self.total_buffer.or(below.total_buffer),
            deadline: self.deadline.or(below.deadline),
            shim_patience: self.shim_patience.or(below.shim_patience),
            stop_timeout: self.stop_timeout.or(below.stop_timeout),
            max_clients: self.max_clients.or(below.max_clients),
            max_clients_per_user: self.max_clients_per_user.or(below.max_clients_per_user),
            max_sessions_per_user: self.max_sessions_per_user.or(below.max_sessions_per_user),
            max_sessions_per_vm: self.max_sessions_per_vm.or(below.max_sessions_per_vm),
            max_commands_per_vm: self.max_commands_per_vm.or(below.max_commands_per_vm),
            user_buffer: self.user_buffer.or(below.user_buffer),
            allow_uid: if self.allow_uid.is_empty() { below.allow_uid } else { self.allow_uid },
            allow_gid: if self.allow_gid.is_empty() { below.allow_gid } else { self.allow_gid },
            slow_reader: self.slow_reader.or(below.slow_reader),
            spill_dir: self.spill_dir.or(below.spill_dir),
            spill_session: self.spill_session.or(below.spill_session),
            spill_total: self.spill_total.or(below.spill_total),
        }
    }

    /// Checks each value on its own.
    fn check(&self) -> Result<(), Invalid> {
        let size = |size: Option<Size>| size.map(|size| size.0);
        let count = |n: Option<usize>| n.map(|n| n as u64);
        let agent_frame = (u64::from(limits::AGENT_FRAME_FLOOR), u64::from(limits::AGENT_FRAME_CEILING));
        let stream_frame = (u64::from(limits::CC1_FRAME_MAX), u64::from(limits::STREAM_FRAME_MAX));
        let control = (limits::CONTROL_MESSAGE_FLOOR as u64, limits::CC1_MESSAGE_MAX as u64);
        let buffer = (limits::SESSION_BUFFER_FLOOR as u64, limits::TOTAL_BUFFER_CEILING as u64);
        let spill = (limits::SPILL_FLOOR, limits::SPILL_CEILING);
        check_path("socket", self.socket.as_deref())?;
        check_path("admin-socket", self.admin_socket.as_deref())?;
        check_range("shards", count(self.shards), (1, limits::SHARDS_MAX as u64))?;
        check_range("agent-frame-max", size(self.agent_frame_max), agent_frame)?;
        check_range("stream-frame-max", size(self.stream_frame_max), stream_frame)?;
        check_range("control-message-max", size(self.control_message_max), control)?;
        check_range("session-buffer", size(self.session_buffer), buffer)?;
        check_range("total-buffer", size(self.total_buffer), buffer)?;
        check_range("deadline", self.deadline, (1, limits::SECONDS_MAX))?;
        check_range("shim-patience", self.shim_patience, (1, limits::SECONDS_MAX))?;
        check_range("stop-timeout", self.stop_timeout, (0, limits::SECONDS_MAX))?;
        check_range("max-clients", count(self.max_clients), (1, limits::CLIENTS_CEILING as u64))?;
        self.check_shares()?;
        check_range("spill-session", size(self.spill_session), spill)?;
        check_range("spill-total", size(self.spill_total), spill)?;
        check_log(self.log.as_deref())
    }

    /// Checks what one user and one VM may have.
    fn check_shares(&self) -> Result<(), Invalid> {
        let count = |n: Option<usize>| n.map(|n| n as u64);
        let sessions = (1, limits::SESSIONS_CEILING as u64);
        let buffer = (limits::USER_BUFFER_FLOOR as u64, limits::TOTAL_BUFFER_CEILING as u64);
        check_range("max-clients-per-user", count(self.max_clients_per_user), (1, limits::CLIENTS_CEILING as u64))?;
        check_range("max-sessions-per-user", count(self.max_sessions_per_user), sessions)?;
        check_range("max-sessions-per-vm", count(self.max_sessions_per_vm), sessions)?;
        check_range("max-commands-per-vm", count(self.max_commands_per_vm), (1, limits::CONTROL_QUEUE_MAX as u64))?;
        check_range("user-buffer", self.user_buffer.map(|size| size.0), buffer)
    }

    /// Fills in defaults and checks what values mean together.
    fn into_config(self) -> Result<Config, ConfigError> {
        let socket = self.socket.unwrap_or_else(default_socket);
        let admin_socket = self.admin_socket.unwrap_or_else(|| admin_socket_beside(&socket));
        check_path("socket", Some(&socket)).map_err(|bad| ConfigError(format!("socket: {}", bad.why)))?;
        check_path("admin-socket", Some(&admin_socket))
            .map_err(|bad| ConfigError(format!("admin-socket: {}", bad.why)))?;
        if socket == admin_socket {
            return Err(ConfigError(format!("socket and admin-socket are both {}", socket.display())));
        }
        let cpus = self.cpus.map(|list| list.0).unwrap_or_default();
        let session_buffer = bytes(self.session_buffer, limits::SESSION_BUFFER);
        let shards = self.shards.unwrap_or_else(|| default_shards(&cpus));
        let total_buffer = bytes(self.total_buffer, limits::TOTAL_BUFFER.max(session_buffer.saturating_mul(shards)));
        let part = total_buffer / shards;
        if session_buffer > part {
            let text = format!(
                "session-buffer ({session_buffer} bytes) is over one shard's part of total-buffer ({total_buffer} \
                 bytes for {shards} shards: {part} each)"
            );
            return Err(ConfigError(text));
        }
        let max_clients = self.max_clients.unwrap_or(limits::CLIENTS_MAX);
        let others = max_clients / limits::CLIENTS_LEFT_TO_OTHERS;
        let spill_total = self.spill_total.map_or(limits::SPILL_TOTAL, |size| size.0);
        let spill_session = self.spill_session.map_or(limits::SPILL_SESSION.min(spill_total), |size| size.0);
        if spill_session > spill_total {
            let text = format!("spill-session ({spill_session} bytes) is over spill-total ({spill_total} bytes)");
            return Err(ConfigError(text));
        }
        Ok(Config {
            socket,
            admin_socket,
            vm_dirs: self.vm_dir,
            shards,
            cpus,
            pin: !self.no_pin,
            log: self.log.unwrap_or_else(|| "info".to_owned()),
            log_format: self.log_format.unwrap_or_default(),
            sandbox: self.sandbox.unwrap_or_default(),
            agent_frame_max: bytes32(self.agent_frame_max, limits::AGENT_FRAME_DEFAULT),
            stream_frame_max: bytes32(self.stream_frame_max, limits::STREAM_FRAME_MAX),
            control_message_max: bytes(self.control_message_max, limits::CONTROL_MESSAGE_MAX),
            session_buffer,
            total_buffer,
            deadline: Duration::from_secs(self.deadline.unwrap_or(limits::COMMAND_DEADLINE_SECS)),
            shim_patience: Duration::from_secs(self.shim_patience.unwrap_or(limits::SHIM_PATIENCE_SECS)),
            stop_timeout: Duration::from_secs(self.stop_timeout.unwrap_or(limits::STOP_TIMEOUT_SECS)),
            max_clients,
            max_clients_per_user: self.max_clients_per_user.unwrap_or(max_clients - others),
            max_sessions_per_user: self.max_sessions_per_user.unwrap_or(limits::SESSIONS_PER_USER),
            max_sessions_per_vm: self.max_sessions_per_vm.unwrap_or(limits::SESSIONS_PER_VM),
            max_commands_per_vm: self.max_commands_per_vm.unwrap_or(limits::COMMANDS_PER_VM),
            user_buffer: bytes(self.user_buffer, limits::USER_BUFFER),
            allow_uids: self.allow_uid,
            allow_gids: self.allow_gid,
            slow_reader: self.slow_reader.unwrap_or_default(),
            spill_dir: self.spill_dir,
            spill_session,
            spill_total,
        })
    }
}

/// Where the proxy socket is unless something says otherwise: in /run for root, else in the user's runtime directory.
pub fn default_socket() -> PathBuf {
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/ringway/proxy.sock");
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute()) {
        Some(dir) => PathBuf::from(dir).join("ringway/proxy.sock"),
        None => PathBuf::from(format!("/tmp/ringway-{uid}/proxy.sock")),
    }
}

/// Where the admin socket is unless something says otherwise: next to the proxy socket.
pub fn admin_socket_beside(socket: &Path) -> PathBuf {
    socket.with_file_name("admin.sock")
}

fn default_shards(cpus: &[u32]) -> usize {
    let usable = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let wanted = if cpus.is_empty() { usable } else { cpus.len() };
    wanted.min(limits::SHARDS_MAX)
}

/// A size that [`Settings::check`] has seen, or the default.
fn bytes(size: Option<Size>, default: usize) -> usize {
    size.and_then(|size| usize::try_from(size.0).ok()).unwrap_or(default)
}

fn bytes32(size: Option<Size>, default: u32) -> u32 {
    size.and_then(|size| u32::try_from(size.0).ok()).unwrap_or(default)
}

fn check_range(key: &'static str, value: Option<u64>, (low, high): (u64, u64)) -> Result<(), Invalid> {
    match value {
        Some(value) if value < low => {
            Err(Invalid { key, why: format!("{value} is too little; the least is {low}, the most {high}") })
        }
        Some(value) if value > high => {
            Err(Invalid { key, why: format!("{value} is too much; the least is {low}, the most {high}") })
        }
        _ => Ok(()),
    }
}

fn check_path(key: &'static str, path: Option<&Path>) -> Result<(), Invalid> {
    let Some(path) = path else { return Ok(()) };
    let (len, max) = (path.as_os_str().len(), limits::UNIX_PATH_MAX);
    if path.file_name().is_none() {
        return Err(Invalid { key, why: format!("'{}' does not name a socket", path.display()) });
    }
    if len > max {
        let why = format!("{} is {len} bytes long; the kernel takes at most {max}", path.display());
        return Err(Invalid { key, why });
    }
    Ok(())
}

fn check_log(filter: Option<&str>) -> Result<(), Invalid> {
    let Some(filter) = filter else { return Ok(()) };
    match tracing_subscriber::EnvFilter::try_new(filter) {
        Ok(_) if !filter.trim().is_empty() => Ok(()),
        Ok(_) => Err(Invalid { key: "log", why: "it is empty; try info, or debug".to_owned() }),
        Err(e) => Err(Invalid { key: "log", why: format!("'{filter}': {e}; try info, or ringway=debug") }),
    }
}

#[cfg(test)]
mod tests;
