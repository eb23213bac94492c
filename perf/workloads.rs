//! The workloads by name, and what one sample of each is.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use crate::load::Plan;
use crate::measure::{Observed, Subject, Window};
use crate::report::{Better, Sample};
use crate::rig::{Contestant, Direction, Rig, Shape};
use crate::{churn, echo, hostile, neighbour};

/// Bytes a session gets whose client reads nothing.
const STUCK_BYTES: u64 = 1024 * 1024;
/// Samples that `echo-half`'s rate is half the median of.
const SATURATION_SAMPLES: usize = 3;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// VMs write batches, clients read: CPU time per frame
    Out,
    /// Clients write batches, VMs read: CPU time per frame
    In,
    /// As out, but agents write one frame at a time, as real ones do
    OutSingle,
    /// As in, but clients write one frame at a time, as real ones do
    InSingle,
    /// Round trips: latency with one frame under way for each session
    Echo,
    /// Round trips at half the rate that saturates
    EchoHalf,
    /// As out, with one session that gets 1 MiB and reads nothing: what the others get
    Slow,
    /// Round trips at a fixed, modest rate, alone and beside another VM that floods both ways: latency
    Neighbour,
    /// Round trips beside one hostile guest or client of each kind, and hello beside hostile connections
    Hostile,
    /// VMs with idle sessions: memory before and after traffic, descriptors, time to set up, CPU time at rest
    Density,
    /// VMs registered, pinged and unregistered, by one client and by eight at once
    Control,
    /// Processes started by several clients at once
    Storm,
}

/// What the user may change about the cases.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) shapes: Option<Vec<Shape>>,
    pub(crate) payloads: Option<Vec<usize>>,
    pub(crate) quick: bool,
    /// Count system calls of daemons.
    pub(crate) count: bool,
    /// VMs of the density workload, already within the limits.
    pub(crate) density: usize,
    pub(crate) logs: Option<PathBuf>,
    pub(crate) window: Window,
}

impl Workload {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// One line for people.
    pub(crate) fn help(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }

    /// Loads run one after the other on one rig; the others start afresh for each sample.
    pub(crate) fn is_load(self) -> bool {
        !matches!(self, Workload::Density | Workload::Control | Workload::Storm)
    }

    pub(crate) fn shapes(self, choice: &Choice) -> Vec<Shape> {
        let shape = |vms, sessions| Shape { vms, sessions };
        let own = match self {
            Workload::Density => return vec![shape(choice.density, 4), shape(choice.density.min(500), 2)],
            Workload::Control => return vec![shape(1, 0), shape(8, 0)],
            Workload::Storm => return vec![shape(16, 0)],
            Workload::Slow => return vec![shape(1, 2), shape(1, 16)],
            Workload::Neighbour => return neighbour::shapes(choice),
            Workload::Hostile => vec![shape(15, 1)],
            Workload::Echo | Workload::EchoHalf => vec![shape(1, 1), shape(1, 16), shape(16, 16)],
            _ => vec![shape(1, 1), shape(1, 16), shape(16, 16), shape(64, 4)],
        };
        match &choice.shapes {
            Some(shapes) => shapes.clone(),
            None if choice.quick => vec![shape(1, 16)],
            None => own,
        }
    }

    /// Bytes of payload in a frame; 0 where there are no frames.
    pub(crate) fn payloads(self, choice: &Choice) -> Vec<usize> {
        let own: &[usize] = match self {
            Workload::Out | Workload::In => &[64, 1024, 4096, 10_228, 32 * 1024, 128 * 1024],
            Workload::OutSingle => &[64, 1024, 4096, 10_228],
            Workload::InSingle => &[64, 1024, 4084, 10_228],
            Workload::Echo | Workload::EchoHalf | Workload::Neighbour => &[64, 4084],
            Workload::Slow => return vec![1024],
            Workload::Hostile => return vec![64],
            Workload::Density | Workload::Control | Workload::Storm => return vec![0],
        };
        match &choice.payloads {
            Some(payloads) => payloads.clone(),
            None if choice.quick => own[..1].to_vec(),
            None => own.to_vec(),
        }
    }

    /// Who can take part.
    pub(crate) fn admits(self, contestant: &Contestant) -> bool {
        matches!(contestant, Contestant::Daemon(_))
            || (self.is_load() && !matches!(self, Workload::Slow | Workload::Hostile))
    }

    /// A contestant as it takes part: `neighbour` and `hostile` are about one shard.
    pub(crate) fn variant_of(self, contestant: &Contestant) -> Contestant {
        match contestant {
            Contestant::Daemon(spec) if matches!(self, Workload::Neighbour | Workload::Hostile) => {
                Contestant::Daemon(spec.on_one_shard())
            }
            other => other.clone(),
        }
    }

    /// Takes a sample of a load.
    pub(crate) fn sample(self, rig: &mut Rig, payload: usize, choice: &Choice) -> Result<Sample> {
        let window = &choice.window;
        let mut sample = match self {
            Workload::Echo => echo::run(rig, payload, None, window).map(|trips| of_trips(&trips))?,
            Workload::EchoHalf => {
                let rate = saturation(rig, payload, window)? / 2.0;
                let mut sample = of_trips(&echo::run(rig, payload, Some(rate), window)?);
                sample.push(("asked trips/s", Better::Neither, rate));
                sample
            }
            Workload::Slow => return slow(rig, payload, window),
            Workload::Neighbour => return neighbour::run(rig, payload, window),
            Workload::Hostile => return hostile::run(rig, payload, window),
            _ => self.transfer(rig, payload, window).map(|seen| of_frames(&seen, payload))?,
        };
        if choice.count && matches!(rig.subject, Subject::Process(_)) {
            let counted = match self {
                Workload::EchoHalf => return Ok(sample),
                Workload::Echo => of_trips(&echo::run(rig, payload, None, &window.counting())?),
                _ => of_frames(&self.transfer(rig, payload, &window.counting())?, payload),
            };
            sample.extend(counted.into_iter().filter(|(name, ..)| name.starts_with("syscalls")));
        }
        Ok(sample)
    }

    fn transfer(self, rig: &mut Rig, payload: usize, window: &Window) -> Result<Observed> {
        let (direction, single) = match self {
            Workload::Out => (Direction::ToClient, false),
            Workload::OutSingle => (Direction::ToClient, true),
            Workload::In => (Direction::ToAgent, false),
            Workload::InSingle => (Direction::ToAgent, true),
            _ => anyhow::bail!("{} moves no frames", self.name()),
        };
        rig.transfer(direction, Plan { payload, single, stuck: None, gives_way: false }, window)
    }

    /// Takes a sample of what is no load.
    pub(crate) fn churn(self, contestant: &Contestant, shape: Shape, choice: &Choice) -> Result<Sample> {
        let Contestant::Daemon(spec) = contestant else { anyhow::bail!("floors have no control plane") };
        match self {
            Workload::Density => churn::density(spec, shape, choice),
            Workload::Control => churn::control(spec, shape.vms, choice),
            _ => churn::storm(spec, shape.vms, choice),
        }
    }
}

/// Round trips per second that saturate: the median of several whole samples, taken once for a rig and payload, so
/// that all samples of a contestant are paced alike.
fn saturation(rig: &mut Rig, payload: usize, window: &Window) -> Result<f64> {
    if let Some((known, rate)) = rig.saturation
        && known == payload
    {
        return Ok(rate);
    }
    let mut rates = Vec::with_capacity(SATURATION_SAMPLES);
    for _ in 0..SATURATION_SAMPLES {
        let seen = echo::run(rig, payload, None, window)?.observed;
        rates.push(per_second(seen.units, &seen));
    }
    rates.sort_by(f64::total_cmp);
    let rate = rates[SATURATION_SAMPLES / 2];
    rig.saturation = Some((payload, rate));
    Ok(rate)
}

/// What the other sessions of a VM get while one does not read, and while it does.
fn slow(rig: &mut Rig, payload: usize, window: &Window) -> Result<Sample> {
    let plan = Plan { payload, single: false, stuck: None, gives_way: false };
    let even = rig.transfer(Direction::ToClient, plan, window)?;
    let slow = rig.transfer(Direction::ToClient, Plan { stuck: Some(STUCK_BYTES), ..plan }, window)?;
    Ok(vec![
        ("MB/s", Better::More, per_second(slow.units, &slow) / 1e6),
        ("MB/s without it", Better::Neither, per_second(even.units, &even) / 1e6),
    ])
}

/// Units per second.
pub(crate) fn per_second(units: u64, seen: &Observed) -> f64 {
    units as f64 / seen.wall.as_secs_f64()
}

/// CPU seconds per second.
fn busy(seen: &Observed) -> f64 {
    seen.cpu_ns as f64 / 1e9 / seen.wall.as_secs_f64()
}

/// What the generator used, and its busiest thread: near 1 it, and not the daemon, may be the limit.
fn of_generator(seen: &Observed) -> Sample {
    let share = |ns: u64| ns as f64 / 1e9 / seen.wall.as_secs_f64();
    vec![
        ("generator CPUs", Better::Neither, share(seen.generator_ns)),
        ("its busiest thread", Better::Neither, share(seen.busiest_ns)),
    ]
}

/// Frames are counted as they were sent; a daemon may have cut them.
fn of_frames(seen: &Observed, payload: usize) -> Sample {
    let bytes = seen.units as f64;
    let frames = bytes / payload as f64;
    let cpu = seen.cpu_ns as f64;
    let mut sample = vec![
        ("CPU ns/frame", Better::Less, cpu / frames),
        ("CPU s/GB", Better::Less, cpu / bytes),
        ("MB/s", Better::More, per_second(seen.units, seen) / 1e6),
        ("CPUs busy", Better::Neither, busy(seen)),
    ];
    sample.extend(seen.syscalls.map(|calls| ("syscalls/frame", Better::Less, calls / frames)));
    sample.extend(seen.peak.map(|peak| ("peak MB", Better::Less, peak as f64 / 1e6)));
    sample.extend(of_generator(seen));
    sample
}

fn of_trips(trips: &echo::Trips) -> Sample {
    let seen = &trips.observed;
    let micros = |quantile: f64| trips.latency.value_at_quantile(quantile) as f64 / 1e3;
    let mut sample = vec![
        ("p50 µs", Better::Less, micros(0.5)),
        ("p99 µs", Better::Less, micros(0.99)),
        ("p99.9 µs", Better::Less, micros(0.999)),
        ("max µs", Better::Neither, trips.latency.max() as f64 / 1e3),
        ("CPU µs/trip", Better::Less, seen.cpu_ns as f64 / 1e3 / seen.units as f64),
        ("trips/s", Better::More, per_second(seen.units, seen)),
        ("CPUs busy", Better::Neither, busy(seen)),
    ];
    sample.extend(seen.syscalls.map(|calls| ("syscalls/trip", Better::Less, calls / seen.units as f64)));
    sample.extend(of_generator(seen));
    sample
}
