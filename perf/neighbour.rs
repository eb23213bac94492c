//! One VM beside another that floods: whether a daemon lets one starve the other.
//!
//! The first VM's sessions make small round trips, one after the other, at a fixed rate that any daemon can keep up
//! with. The last VM's agent and clients meanwhile send batches to each other as fast as they are taken, all compared
//! like any load; the flood's threads give way to the round trips', so that these wait for the daemon and not for the
//! generator. The same round trips without the flood come first, in the same sample.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

use crate::echo::{self, Sides, Trips};
use crate::load::{Flow, Lane, Plan, run_beside};
use crate::measure::{Progress, Window};
use crate::report::{Better, Sample};
use crate::rig::{Rig, Shape};
use crate::workloads::Choice;

/// Round trips per second, of all sessions of the VM.
const RATE: f64 = 1_000.0;
/// Bytes of payload in a round trip; the flood's frames have what the case says.
const TRIP: usize = 64;

/// Always two VMs; the user's shapes say how many sessions each has.
pub(crate) fn shapes(choice: &Choice) -> Vec<Shape> {
    let mut sessions: Vec<usize> = match &choice.shapes {
        Some(shapes) => shapes.iter().map(|shape| shape.sessions).collect(),
        None if choice.quick => vec![1],
        None => vec![1, 16],
    };
    sessions.dedup();
    sessions.into_iter().map(|sessions| Shape { vms: 2, sessions }).collect()
}

/// Takes a sample on a rig of two VMs.
pub(crate) fn run(rig: &mut Rig, payload: usize, window: &Window) -> Result<Sample> {
    let Rig { subject, vms, clients, seqs, pattern, to_client, to_agent, .. } = rig;
    let (asked, flooded) = vms.split_at_mut(1);
    let sessions = asked[0].sessions.clone();
    let first = clients.iter().position(|lane| lane.sessions.start >= sessions.end).context("there is one VM only")?;
    let (asking, flooding) = clients.split_at_mut(first);
    // The flood advances its own sessions' positions meanwhile.
    let mut ends = to_agent.clone();
    let mut trips = || {
        let (agents, clients) = (&mut *asked, &mut *asking);
        let sides = Sides { subject, agents, clients, seqs, pattern, ends: &mut ends };
        echo::run_between(sides, TRIP, Some(RATE), window)
    };
    let alone = trips()?;
    let twins = |lanes: &[Lane]| lanes.iter().map(Lane::twin).collect::<Result<Vec<_>>>();
    let (mut flooding_back, mut flooded_back) = (twins(flooding)?, twins(flooded)?);
    let out = Flow {
        pattern,
        seqs,
        senders: flooded,
        receivers: flooding,
        sent: &mut to_client.sent,
        received: &mut to_client.received,
    };
    let back = Flow {
        pattern,
        seqs,
        senders: &mut flooding_back,
        receivers: &mut flooded_back,
        sent: &mut to_agent.sent,
        received: &mut to_agent.received,
    };
    let plan = Plan { payload, single: false, stuck: None, gives_way: true };
    let (beside, rates) = run_beside([out, back], plan, window.patience, |progress| {
        let begin = Instant::now();
        let trips = trips()?;
        let seconds = begin.elapsed().as_secs_f64();
        let rate = |progress: &Progress| progress.done.load(Ordering::Relaxed) as f64 / seconds / 1e6;
        Ok((trips, [rate(&progress[0]), rate(&progress[1])]))
    })?;
    to_agent.sent[sessions.clone()].copy_from_slice(&ends.sent[sessions.clone()]);
    to_agent.received[sessions.clone()].copy_from_slice(&ends.received[sessions]);
    Ok(of(&beside, &alone, rates))
}

fn of(beside: &Trips, alone: &Trips, [out, back]: [f64; 2]) -> Sample {
    let micros = |latency: &Histogram<u64>, quantile: f64| latency.value_at_quantile(quantile) as f64 / 1e3;
    let (beside, alone) = (&beside.latency, &alone.latency);
    vec![
        ("p50 µs", Better::Less, micros(beside, 0.5)),
        ("p99 µs", Better::Less, micros(beside, 0.99)),
        ("p99.9 µs", Better::Less, micros(beside, 0.999)),
        ("p50 µs alone", Better::Neither, micros(alone, 0.5)),
        ("p99 µs alone", Better::Neither, micros(alone, 0.99)),
        ("p99.9 µs alone", Better::Neither, micros(alone, 0.999)),
        ("flood out MB/s", Better::Neither, out),
        ("flood in MB/s", Better::Neither, back),
    ]
}
