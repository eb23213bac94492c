//! The daemon's life: look at the kernel, listen, start shards, serve, drain, end.
//!
//! It owns the coordinator's runtime and the signals; everything else has an owner below. This is the one module
//! that knows the coordinator's runtime is tokio-uring's. The asymmetry to know: the first signal asks for a clean
//! end within a bounded time, the second one is obeyed at once.

use std::io;
use std::process;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::Config;
use crate::coordinator::{Coordinator, Settings};
use crate::door::{admin, cc};
use crate::limits::SOCKETS_PER_SHARD;
use crate::os::listener::Listener;
use crate::os::{activation, cpu, rlimit};
use crate::reactor::{self, Features};
use crate::relay::Tuning;
use crate::shard::{self, Order, ShardConfig, ShardHandle};

/// Mode of the proxy socket: the owner and the group may connect.
const PROXY_MODE: u32 = 0o660;
/// Mode of the admin socket: the owner alone.
const ADMIN_MODE: u32 = 0o600;

/// Exit status after a second signal.
const KILLED: i32 = 130;

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What keeps it from starting or going on, with what to do about it.
pub fn run(config: Config) -> anyhow::Result<()> {
    let features = reactor::probe()?;
    let descriptors = rlimit::raise_descriptors().context("raising RLIMIT_NOFILE")?;
    let (proxy, owned) = proxy_listener(&config)?;
    let admin = Listener::bind(&config.admin_socket, ADMIN_MODE)?;
    let reports = Arc::new(Notify::new());
    let shards = start_shards(&config, features, descriptors, &reports)?;
    let questions = admin::spawn(admin.socket()?).context("starting the admin socket's thread")?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %config.socket.display(),
        admin = %config.admin_socket.display(),
        shards = shards.len(),
        incremental_buffers = features.incremental_buffers,
        descriptors,
        "ringway serves"
    );
    tokio_uring::builder().entries(64).start(async {
        let threads: Vec<_> = shards.iter().map(|shard| shard.mailbox.clone()).collect();
        let coordinator = Coordinator::new(settings(&config), shards, reports);
        tokio::task::spawn_local(admin::answer(questions, coordinator.clone()));
        let listener = UnixListener::from_std(proxy).context("proxy socket")?;
        let outcome = serve(&config, coordinator, listener).await;
        for mailbox in threads {
            // A full queue belongs to a shard that is stuck; the process ends without it.
            let _ = mailbox.post(Order::Stop);
        }
        outcome
    })?;
    drop((owned, admin));
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

fn settings(config: &Config) -> Settings {
    Settings {
        socket: config.socket.display().to_string(),
        vm_dirs: config.vm_dirs.clone(),
        deadline: config.deadline,
        shim_patience: config.shim_patience,
        control_message_max: config.control_message_max,
    }
}

fn start_shards(
    config: &Config,
    features: Features,
    descriptors: u64,
    reports: &Arc<Notify>,
) -> anyhow::Result<Vec<ShardHandle>> {
    let allowed = cpu::allowed().context("reading the CPUs this process may use")?;
    let cpus = if config.cpus.is_empty() { allowed } else { config.cpus.clone() };
    let tuning = Tuning {
        agent_frame_max: config.agent_frame_max,
        stream_frame_max: config.stream_frame_max,
        session_buffer: config.session_buffer,
        total_buffer: config.total_buffer / config.shards,
    };
    // As many as the limit, so that it is the limit that is hit first, where the client is told about it: a socket of
    // a shard has a plain descriptor too.
    let sockets = u32::try_from(descriptors).unwrap_or(u32::MAX).clamp(1, SOCKETS_PER_SHARD);
    (0..config.shards)
        .map(|number| {
            let cpu = (config.pin && !cpus.is_empty()).then(|| cpus[number % cpus.len()]);
            let number = u32::try_from(number).context("number of shards")?;
            let shard = ShardConfig { number, cpu, tuning, sockets, features };
            shard::spawn(shard, Arc::clone(reports)).with_context(|| match cpu {
                Some(cpu) => format!("starting shard {number} on CPU {cpu}"),
                None => format!("starting shard {number}"),
            })
        })
        .collect()
}

/// Serves until a signal or a failed shard, then drains.
async fn serve(config: &Config, coordinator: Coordinator, listener: UnixListener) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("signal handlers")?;
    let door = tokio::task::spawn_local(cc::serve(listener, coordinator.clone(), config.max_clients));
    notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        name = signals.next() => info!(signal = name, "stopping: no new clients, flushing what they are owed"),
        () = coordinator.failed() => anyhow::bail!("a shard's ring failed; see the log"),
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    door.abort();
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

/// The signals that end the daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
