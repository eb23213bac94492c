//! The daemon's life: look at the kernel, listen, start shards, serve, drain, end.
//!
//! It owns the coordinator's runtime and the signals; everything else has an owner below. This is the one module
//! that knows the coordinator's runtime is tokio-uring's. The asymmetry to know: the first signal asks for a clean
//! end within a bounded time, the second one is obeyed at once.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::{Config, Sandbox};
use crate::coordinator::{Coordinator, Settings, UserLimits};
use crate::door::cc::{Allowed, Gate};
use crate::door::{admin, cc};
use crate::limits::{CHUNK_LEN, DESCRIPTORS_RESERVED, SOCKETS_PER_SHARD, SPILL_DIR};
use crate::os::listener::{Listener, directory_of};
use crate::os::spill_dir::open_spill_dir;
use crate::os::usage::Usage;
use crate::os::{activation, calls, cpu, heap, rlimit, sandbox};
use crate::reactor;
use crate::relay::{SpillBounds, SpillSpace, Tuning};
use crate::shard::{self, Mailbox, Order, ShardConfig, ShardHandle, SpillPlace};

/// Mode of the proxy socket: the owner and the group may connect.
const PROXY_MODE: u32 = 0o660;
/// Mode of the admin socket: the owner alone.
const ADMIN_MODE: u32 = 0o600;

/// How long the shards' threads may take to end once they are told to.
const THREAD_PATIENCE: Duration = Duration::from_secs(1);

/// Exit status after a second signal.
const KILLED: i32 = 130;

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What keeps it from starting or going on, with what to do about it.
pub fn run(config: Config) -> anyhow::Result<()> {
    let layers = Layers(config.sandbox);
    heap::return_blocks_of(CHUNK_LEN);
    let features = reactor::probe()?;
    let descriptors = rlimit::raise_descriptors().context("raising RLIMIT_NOFILE")?;
    rlimit::reserve_descriptors(descriptors.min(DESCRIPTORS_RESERVED)).context("the table of descriptors")?;
    let (proxy, owned) = proxy_listener(&config)?;
    let socket = address(&proxy).unwrap_or_else(|| config.socket.clone());
    let admin = Listener::bind(&config.admin_socket, ADMIN_MODE)?;
    let usage = Usage::open().context("reading about this process in /proc")?;
    let spill = spill_place(&config)?;
    let own_sockets = [Some(&*config.admin_socket), owned.as_ref().map(|_| &*config.socket)];
    // Threads inherit it, so there must be none yet.
    layers.close_paths(own_sockets.into_iter().flatten(), spill.as_ref())?;
    let runtime = tokio_uring::Runtime::new(&runtime()).context("the coordinator's ring")?;
    let drop_capabilities = layers.close("capabilities", sandbox::check_capabilities)?;
    let reports = Arc::new(Notify::new());
    let sockets_max = u32::try_from(descriptors).unwrap_or(u32::MAX).clamp(1, SOCKETS_PER_SHARD);
    let common = ShardConfig {
        number: 0,
        cpu: None,
        tuning: tuning(&config),
        sockets: sockets_max,
        features,
        drop_capabilities,
        spill,
    };
    let mut shards = start_shards(&config, &common, &reports)?;
    if drop_capabilities {
        sandbox::drop_capabilities().context("sandbox: capabilities")?;
    }
    let questions = admin::spawn(admin.socket()?).context("starting the admin socket's thread")?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %socket.display(),
        admin = %config.admin_socket.display(),
        shards = shards.len(),
        incremental_buffers = features.incremental_buffers,
        descriptors,
        sandbox = ?config.sandbox,
        "ringway serves"
    );
    let threads: Vec<_> = shards.iter_mut().map(|shard| (shard.mailbox.clone(), shard.thread.take())).collect();
    let served = runtime.block_on(async {
        let coordinator = Coordinator::new(settings(&config, &socket, sockets_max), shards, reports, usage);
        tokio::task::spawn_local(admin::answer(questions, coordinator.clone()));
        let listener = UnixListener::from_std(proxy).context("proxy socket")?;
        serve(&config, coordinator, listener, gate(&config, &socket), owned).await
    });
    drop(runtime);
    end(threads);
    served?;
    drop(admin);
    info!("ringway has stopped");
    Ok(())
}

/// The proxy socket: the service manager's, or one of our own whose file we remove.
fn proxy_listener(config: &Config) -> anyhow::Result<(std::os::unix::net::UnixListener, Option<Listener>)> {
    if let Some(listener) = activation::listener().context("socket activation")? {
        return Ok((listener, None));
    }
    let listener = Listener::bind(&config.socket, PROXY_MODE)?;
    Ok((listener.socket()?, Some(listener)))
}

/// Where a listening socket really is: a service manager's need not be where the configuration says.
fn address(listener: &std::os::unix::net::UnixListener) -> Option<PathBuf> {
    let address = listener.local_addr().ok()?;
    std::path::absolute(address.as_pathname()?).ok()
}

fn settings(config: &Config, socket: &Path, sockets_max: u32) -> Settings {
    Settings {
        socket: socket.display().to_string(),
        vm_dirs: config.vm_dirs.clone(),
        deadline: config.deadline,
        shim_patience: config.shim_patience,
        control_message_max: config.control_message_max,
        sockets_max,
        sessions_per_vm: config.max_sessions_per_vm,
        commands_per_vm: config.max_commands_per_vm,
        user: UserLimits {
            clients: config.max_clients_per_user,
            sessions: config.max_sessions_per_user,
            bytes: config.user_buffer,
        },
        slow_reader: config.slow_reader,
    }
}

/// Where slow clients' output may spill. A directory that was named must do; without the default one nothing spills.
fn spill_place(config: &Config) -> anyhow::Result<Option<SpillPlace>> {
    let dir = config.spill_dir.as_deref().unwrap_or(Path::new(SPILL_DIR));
    let space = SpillSpace::new(config.spill_total);
    let bounds = SpillBounds { session: config.spill_session, space };
    match open_spill_dir(dir) {
        Ok(dir) => Ok(Some(SpillPlace { dir: Arc::new(dir), bounds })),
        Err(error) if config.spill_dir.is_some() => Err(error).context("spill-dir"),
        Err(error) => {
            warn!(%error, "nothing spills: a VM waits as soon as a client of it does not read");
            Ok(None)
        }
    }
}

/// Who may connect: the configuration's lists or, where there are none, whoever the socket's file says.
fn gate(config: &Config, socket: &Path) -> Gate {
    let (uids, gids) = (config.allow_uids.clone(), config.allow_gids.clone());
    let is_listed = !uids.is_empty() || !gids.is_empty();
    Gate::new(if is_listed { Allowed::Listed { uids, gids } } else { Allowed::AsFile(socket.to_owned()) })
}

/// The bounds of a shard's plane.
fn tuning(config: &Config) -> Tuning {
    Tuning {
        agent_frame_max: config.agent_frame_max,
        stream_frame_max: config.stream_frame_max,
        session_buffer: config.session_buffer,
        total_buffer: config.total_buffer / config.shards,
    }
}

/// Starts the shards, each with its number and CPU and else what is `common` to them.
fn start_shards(config: &Config, common: &ShardConfig, reports: &Arc<Notify>) -> anyhow::Result<Vec<ShardHandle>> {
    let allowed = cpu::allowed().context("reading the CPUs this process may use")?;
    let cpus = if config.cpus.is_empty() { allowed } else { config.cpus.clone() };
    // As many as the limit, so that it is the limit that is hit first, where the client is told about it: a socket of
    // a shard has a plain descriptor too.
    (0..config.shards)
        .map(|number| {
            let cpu = (config.pin && !cpus.is_empty()).then(|| cpus[number % cpus.len()]);
            let number = u32::try_from(number).context("number of shards")?;
            let shard = ShardConfig { number, cpu, ..common.clone() };
            shard::spawn(shard, Arc::clone(reports)).with_context(|| match cpu {
                Some(cpu) => format!("starting shard {number} on CPU {cpu}"),
                None => format!("starting shard {number}"),
            })
        })
        .collect()
}

/// The runtime of the coordinator. Its ring is never enabled: nothing is asked of it, and nobody can.
fn runtime() -> tokio_uring::Builder {
    let mut builder = tokio_uring::builder();
    builder.entries(8).uring_builder(tokio_uring::uring_builder().setup_r_disabled());
    builder
}

/// The layers that close while the daemon starts. One that is missing is a warning, or the end where the operator asks
/// for all of them.
#[derive(Debug, Clone, Copy)]
struct Layers(Sandbox);

impl Layers {
    /// Closes the layer of this name; whether it is closed.
    fn close(self, layer: &str, close: impl FnOnce() -> io::Result<()>) -> anyhow::Result<bool> {
        if self.0 == Sandbox::Off {
            return Ok(false);
        }
        match close() {
            Ok(()) => Ok(true),
            Err(error) if self.0 == Sandbox::Require => Err(error)
                .with_context(|| format!("sandbox: {layer} cannot be closed, and --sandbox require asks for it")),
            Err(error) => {
                warn!(layer, %error, "a layer of the sandbox is missing");
                Ok(false)
            }
        }
    }

    /// Closes the file system, but for files that spill and for removing these sockets at the end.
    fn close_paths<'a>(
        self,
        sockets: impl Iterator<Item = &'a Path>,
        spill: Option<&SpillPlace>,
    ) -> anyhow::Result<bool> {
        let dirs: Vec<_> = sockets.map(directory_of).collect();
        let manager = std::env::var_os("NOTIFY_SOCKET").unwrap_or_default();
        // A service manager whose socket has no file is still to be told when the daemon is ready.
        let has_no_file = manager.as_encoded_bytes().starts_with(b"@");
        let written = spill.map(|place| (*place.dir).as_fd());
        self.close("landlock", || sandbox::close_paths(&dirs, written, has_no_file))
    }
}

/// Ends the shards' threads, so that their rings are gone before the process is. One that is stuck is left behind.
fn end(threads: Vec<(Mailbox, Option<JoinHandle<()>>)>) {
    let deadline = std::time::Instant::now() + THREAD_PATIENCE;
    for (mailbox, _) in &threads {
        // A full queue belongs to a shard that is stuck.
        let _ = mailbox.post(Order::Stop);
    }
    for thread in threads.into_iter().filter_map(|(_, thread)| thread) {
        while !thread.is_finished() && std::time::Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if !thread.is_finished() {
            warn!(thread = thread.thread().name(), "a shard does not end; the daemon ends without it");
        }
    }
}

/// Serves until a signal or a failed shard, then drains.
async fn serve(
    config: &Config,
    coordinator: Coordinator,
    listener: UnixListener,
    gate: Gate,
    owned: Option<Listener>,
) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("signal handlers")?;
    Layers(config.sandbox).close("system calls", calls::close)?;
    let door = tokio::task::spawn_local(cc::serve(listener, coordinator.clone(), gate, config.max_clients));
    notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        name = signals.next() => info!(signal = name, "stopping: no new clients, flushing what they are owed"),
        () = coordinator.failed() => anyhow::bail!("a shard's ring failed; see the log"),
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    // New clients are refused from now on: they would be heard by nobody.
    door.abort();
    let _ = door.await;
    drop(owned);
    let deadline = Instant::now() + config.stop_timeout;
    tokio::select! {
        () = coordinator.drain(deadline) => Ok(()),
        name = signals.next() => {
            warn!(signal = name, "a second signal: ending at once");
            process::exit(KILLED);
        }
    }
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "the service manager cannot be told");
    }
}

/// The signals that end the daemon, and SIGHUP, which does not.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => info!("SIGHUP: there is nothing to reload"),
            }
        }
    }
}
