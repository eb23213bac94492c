//! What this project promises of its speed: a table, and nothing else. `verdict` holds reports against it.
//!
//! "The better peer" is the best of the other daemons in the same run and case; nothing here depends on who they are.

use crate::report::Better;

/// One promise, for some cases.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) workload: &'static str,
    /// VMs x sessions; where there are none, whatever was measured.
    pub(crate) shapes: &'static [&'static str],
    /// Bytes of payload in a frame; `None` for whatever was measured.
    pub(crate) payload: Option<usize>,
    pub(crate) measure: &'static str,
    pub(crate) bound: Bound,
    /// Only for this placement.
    pub(crate) pin: Option<&'static str>,
    /// Only for a daemon with this flag.
    pub(crate) flag: Option<&'static str>,
}

/// How good it has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    /// At most so much.
    AtMost(f64),
    /// At most this part of the better peer's.
    PartOfPeer(f64),
    /// Less than the better peer's.
    BelowPeer,
    /// At least so many times the better peer's.
    TimesPeer(f64),
    /// At most so many times that floor's.
    TimesFloor(&'static str, f64),
    /// At least this part of another measure of the same samples.
    PartOf(&'static str, f64),
    /// At most so many times another measure of the same samples.
    TimesOf(&'static str, f64),
}

impl Bound {
    /// Which end of a spread is the bad one.
    pub(crate) fn better(self) -> Better {
        match self {
            Bound::TimesPeer(_) | Bound::PartOf(..) => Better::More,
            _ => Better::Less,
        }
    }
}

const CPU: &str = "CPU ns/frame";
const ANY: &[&str] = &[];
const HOSTILE: &[&str] = &["15 x 1"];
const THREE: &[&str] = &["1 x 1", "1 x 16", "16 x 16"];

/// CPU time per frame: at most one `part`-th of the better peer's.
const fn frames(workload: &'static str, payload: usize, part: f64) -> Target {
    target(workload, THREE, Some(payload), CPU, Bound::PartOfPeer(1.0 / part))
}

/// CPU time per frame of `out`, one VM and 16 sessions, by itself.
const fn out_ns(pin: &'static str, payload: usize, ns: f64) -> Target {
    Target { pin: Some(pin), ..target("out", &["1 x 16"], Some(payload), CPU, Bound::AtMost(ns)) }
}

/// As [`out_ns`], against bytes that are copied and not looked at.
const fn out_copied(pin: &'static str, payload: usize, times: f64) -> Target {
    let bound = Bound::TimesFloor("floor-copy", times);
    Target { pin: Some(pin), ..target("out", &["1 x 16"], Some(payload), CPU, bound) }
}

const fn echo(measure: &'static str, bound: Bound) -> Target {
    target("echo", ANY, None, measure, bound)
}

/// What is left of the others' rate beside a hostile peer.
const fn hostile_rate(measure: &'static str) -> Target {
    target("hostile", HOSTILE, None, measure, Bound::PartOf("trips/s", 0.8))
}

/// The others' latency beside a hostile peer.
const fn hostile_p99(measure: &'static str) -> Target {
    target("hostile", HOSTILE, None, measure, Bound::TimesOf("p99 µs", 3.0))
}

const fn target(
    workload: &'static str,
    shapes: &'static [&'static str],
    payload: Option<usize>,
    measure: &'static str,
    bound: Bound,
) -> Target {
    Target { workload, shapes, payload, measure, bound, pin: None, flag: None }
}

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    frames("out", 64, 50.0),
    frames("out", 1024, 12.0),
    frames("out", 4096, 12.0),
    frames("out", 10_228, 12.0),
    frames("out", 32 * 1024, 14.0),
    frames("out-single", 64, 6.0),
    frames("out-single", 1024, 6.0),
    frames("out-single", 4096, 10.0),
    frames("in", 64, 50.0),
    frames("in", 1024, 12.0),
    frames("in", 4096, 8.0),
    // A peer's agent takes frames of that size; the default cuts them for agents that do not.
    Target { flag: Some("--agent-frame-max 10240"), ..frames("in", 10_228, 7.0) },
    out_ns("S", 64, 35.0),
    out_ns("S", 1024, 230.0),
    out_ns("S", 4096, 750.0),
    out_ns("S", 32 * 1024, 4_300.0),
    out_copied("S", 128 * 1024, 1.25),
    out_ns("X", 64, 50.0),
    out_ns("X", 1024, 430.0),
    out_ns("X", 4096, 1_450.0),
    out_ns("X", 32 * 1024, 8_500.0),
    out_copied("X", 128 * 1024, 1.25),
    Target { pin: Some("S"), ..target("in-single", &["1 x 16"], Some(64), CPU, Bound::AtMost(500.0)) },
    Target { pin: Some("S"), ..target("in-single", &["16 x 16"], Some(64), CPU, Bound::AtMost(600.0)) },
    // 2.7 µs a frame; a round trip is two.
    Target { pin: Some("S"), ..target("echo", &["1 x 1"], Some(64), "CPU µs/trip", Bound::AtMost(5.4)) },
    echo("CPU µs/trip", Bound::PartOfPeer(1.0 / 3.0)),
    echo("p50 µs", Bound::BelowPeer),
    echo("p99 µs", Bound::BelowPeer),
    echo("p99.9 µs", Bound::PartOfPeer(0.5)),
    target("density", ANY, None, "bytes/session", Bound::AtMost(2_048.0)),
    target("density", ANY, None, "sessions/s", Bound::TimesPeer(2.0)),
    target("slow", ANY, None, "MB/s", Bound::PartOf("MB/s without it", 0.9)),
    hostile_rate("trips/s, guest floods"),
    hostile_p99("p99 µs, guest floods"),
    hostile_rate("trips/s, guest of many sequences"),
    hostile_p99("p99 µs, guest of many sequences"),
    hostile_rate("trips/s, guest never reads"),
    hostile_p99("p99 µs, guest never reads"),
    hostile_rate("trips/s, guest reads slowly"),
    hostile_p99("p99 µs, guest reads slowly"),
    hostile_rate("trips/s, guest sends garbage"),
    hostile_p99("p99 µs, guest sends garbage"),
    hostile_rate("trips/s, guest dies"),
    hostile_p99("p99 µs, guest dies"),
    hostile_rate("trips/s, client floods"),
    hostile_p99("p99 µs, client floods"),
    hostile_rate("trips/s, client of many sessions"),
    hostile_p99("p99 µs, client of many sessions"),
    hostile_rate("trips/s, client never reads"),
    hostile_p99("p99 µs, client never reads"),
    hostile_rate("trips/s, client reads slowly"),
    hostile_p99("p99 µs, client reads slowly"),
    hostile_rate("trips/s, client sends garbage"),
    hostile_p99("p99 µs, client sends garbage"),
    hostile_rate("trips/s, session sends garbage"),
    hostile_p99("p99 µs, session sends garbage"),
    hostile_rate("trips/s, client dies"),
    hostile_p99("p99 µs, client dies"),
    target("hostile", HOSTILE, None, "hello p99 µs, 64 hostile", Bound::TimesOf("hello p99 µs", 2.0)),
];
