//! Workloads of the control plane: many idle sessions, VMs that come and go, processes that start at once.
//!
//! Each sample has a daemon of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;

use crate::clients::close;
use crate::daemons::{Protocol, Spec};
use crate::load::Plan;
use crate::measure::{Meter, Observed, Subject};
use crate::report::{Better, Sample};
use crate::rig::{Direction, Host, Rig, Shape, vm_id};
use crate::workloads::{Choice, per_second};

/// Longest latency told apart, nanoseconds.
const LATENCY_MAX: u64 = 600_000_000_000;
/// Processes started in one sample at most: a daemon may hold descriptors for each until the end.
const STARTS_MAX: u64 = 4_000;
/// Bytes of payload in a frame of the traffic before a rest.
const REST_PAYLOAD: usize = 4_084;
/// Time a daemon has to come to rest.
const REST_BEGINS: Duration = Duration::from_secs(1);
/// Windows of traffic in which every session must have had some.
const REST_TRIES: usize = 20;
/// Clients that start processes at once.
const STARTERS: usize = 16;

/// VMs with idle sessions: what a daemon holds for them, before any traffic and after some on every session.
pub(crate) fn density(spec: &Spec, shape: Shape, choice: &Choice) -> Result<Sample> {
    let host = Host::start(spec, shape.vms, true, choice.logs.as_ref())?;
    // A daemon listens before it is all there; one that refuses an unknown VM is.
    let _ = host.runtime()?.attach("nobody", 0);
    let subject = host.subject();
    let (memory, descriptors) = (subject.memory().unwrap_or(0), subject.descriptors().unwrap_or(0));
    let meter = Meter::start(&subject)?;
    let mut booted = Vec::with_capacity(shape.vms);
    for vm in 0..shape.vms {
        booted.push(host.boot(vm, shape.sessions)?);
    }
    let sessions = shape.total() as u64;
    let seen = meter.stop(|| sessions)?;
    let grown = subject.memory().context("the daemon has gone")?.saturating_sub(memory);
    let opened = subject.descriptors().context("the daemon has gone")?.saturating_sub(descriptors);
    let each = |total: u64| total as f64 / sessions as f64;
    let mut sample = vec![
        ("MB", Better::Less, (grown + memory) as f64 / 1e6),
        ("bytes/session", Better::Less, each(grown)),
        ("descriptors/session", Better::Neither, each(opened)),
        ("sessions/s", Better::More, per_second(sessions, &seen)),
        ("CPU µs/session", Better::Less, each(seen.cpu_ns) / 1e3),
    ];
    let rings = subject.registered().map(|registered| ("registered/session", Better::Neither, each(registered)));
    sample.extend(rings);
    sample.extend(at_rest(Rig::over(host, booted)?, &subject, choice)?);
    Ok(sample)
}

/// What a daemon holds and does at rest, after traffic on every session in both directions.
fn at_rest(mut rig: Rig, subject: &Subject, choice: &Choice) -> Result<Sample> {
    let plan = Plan { payload: REST_PAYLOAD, single: false, stuck: None, gives_way: false };
    for direction in [Direction::ToClient, Direction::ToAgent] {
        let mut tries = 0;
        while rig.untouched(direction) > 0 {
            ensure!(tries < REST_TRIES, "not every session has had traffic: --seconds is too short");
            rig.transfer(direction, plan, &choice.window)?;
            tries += 1;
        }
    }
    thread::sleep(REST_BEGINS);
    let meter = Meter::start(subject)?;
    thread::sleep(choice.window.measured);
    let seen = meter.stop(|| 0)?;
    let memory = subject.memory().context("the daemon has gone")?;
    Ok(vec![
        ("MB at rest", Better::Less, memory as f64 / 1e6),
        ("CPU ns/s at rest", Better::Neither, seen.cpu_ns as f64 / seen.wall.as_secs_f64()),
    ])
}

/// VMs registered, asked for a sign of life and unregistered by `clients` clients at once, each with a VM of its own.
pub(crate) fn control(spec: &Spec, clients: usize, choice: &Choice) -> Result<Sample> {
    let host = Host::start(spec, clients, false, choice.logs.as_ref())?;
    let each = |client: usize, turn: u64| -> Result<()> {
        let id = format!("{}-{turn}", vm_id(client));
        let mut runtime = host.runtime()?;
        runtime.register(&id, &host.vms, client, 0).with_context(|| format!("registering {id}"))?;
        runtime.ping().with_context(|| format!("a ping to {id}"))?;
        runtime.unregister(&id).with_context(|| format!("unregistering {id}"))
    };
    let (seen, latency) = crowd(&host, clients, choice, u64::MAX, each)?;
    host.vms.forget();
    Ok(of_turns(&seen, &latency, "VMs/s", "CPU µs/VM"))
}

/// Processes started on `vms` VMs by as many clients as start them at once, each as its runtime and its shim would.
pub(crate) fn storm(spec: &Spec, vms: usize, choice: &Choice) -> Result<Sample> {
    let host = Host::start(spec, vms, true, choice.logs.as_ref())?;
    let mut held = Vec::with_capacity(vms);
    for vm in 0..vms {
        held.push(host.boot(vm, 0)?);
    }
    let protocol = spec.protocol;
    let tokens = usize::from(protocol == Protocol::Two);
    let each = |client: usize, turn: u64| -> Result<()> {
        let id = vm_id(client % vms);
        let mut runtime = host.runtime()?;
        let token = runtime.attach(&id, tokens).with_context(|| format!("attaching to {id}"))?;
        let name = format!("{id}-{client}-{turn}");
        let opened = runtime.open(&id, &name, token.first(), &host.daemon.socket, true);
        let (_, session) = opened.with_context(|| format!("starting {name}"))?;
        close(protocol, session)
    };
    let (seen, latency) = crowd(&host, STARTERS, choice, STARTS_MAX, each)?;
    let mut sample = of_turns(&seen, &latency, "starts/s", "CPU µs/start");
    sample.extend(seen.peak.map(|peak| ("peak MB", Better::Less, peak as f64 / 1e6)));
    Ok(sample)
}

/// Lets `clients` threads do one thing again and again, for the measured time or `most` times together.
fn crowd(
    host: &Host,
    clients: usize,
    choice: &Choice,
    most: u64,
    each: impl Fn(usize, u64) -> Result<()> + Sync,
) -> Result<(Observed, Histogram<u64>)> {
    let subject = host.subject();
    let (begun, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let meter = Meter::start(&subject)?;
    let end = Instant::now() + choice.window.measured;
    let work = |client: usize| -> Result<Histogram<u64>> {
        let mut latency = Histogram::new_with_bounds(1, LATENCY_MAX, 3)?;
        let mut turn = 0;
        while Instant::now() < end && begun.fetch_add(1, Ordering::Relaxed) < most {
            let begin = Instant::now();
            each(client, turn)?;
            latency.saturating_record(u64::try_from(begin.elapsed().as_nanos())?);
            done.fetch_add(1, Ordering::Relaxed);
            turn += 1;
        }
        Ok(latency)
    };
    let mut all = Histogram::new_with_bounds(1, LATENCY_MAX, 3)?;
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = (0..clients)
            .map(|client| {
                scope.spawn({
                    let work = &work;
                    move || work(client)
                })
            })
            .collect();
        let latencies: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        for latency in latencies {
            let Ok(latency) = latency else { bail!("a client panicked") };
            all.add(latency?)?;
        }
        Ok(())
    })?;
    Ok((meter.stop(|| done.load(Ordering::Relaxed))?, all))
}

fn of_turns(seen: &Observed, latency: &Histogram<u64>, rate: &'static str, cost: &'static str) -> Sample {
    let micros = |quantile: f64| latency.value_at_quantile(quantile) as f64 / 1e3;
    vec![
        (rate, Better::More, per_second(seen.units, seen)),
        ("p50 µs", Better::Less, micros(0.5)),
        ("p99 µs", Better::Less, micros(0.99)),
        (cost, Better::Less, seen.cpu_ns as f64 / 1e3 / seen.units as f64),
    ]
}
