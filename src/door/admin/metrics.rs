//! `/metrics`: the daemon's status as OpenMetrics text. Every number is in `/status` too, under the same name.
//!
//! Per VM there is one gauge (whether it is held back); the rest is per shard or for the daemon, so that the number
//! of series does not grow with the number of sessions.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::wire::admin::{ShardStatus, Status};

/// The media type of the text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The status as text.
pub(super) fn render(status: Status) -> String {
    let mut registry = Registry::with_prefix("ringway");
    registry.register_collector(Box::new(Exposition(status)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes all that is written");
    text
}

#[derive(Debug)]
struct Exposition(Status);

/// A number of the daemon: name, help, value.
type DaemonNumber = (&'static str, &'static str, fn(&Status) -> u64);
/// A number of a shard.
type ShardNumber = (&'static str, &'static str, fn(&ShardStatus) -> u64);
/// A number of a shard that has a direction: name, help, to clients, to agents.
type DirectedNumber = (&'static str, &'static str, fn(&ShardStatus) -> (u64, u64));

const DAEMON_COUNTERS: [DaemonNumber; 11] = [
    ("clients_accepted", "Client connections accepted", |s| s.counters.clients_accepted),
    ("clients_faulty", "Client connections ended for breaking the protocol", |s| s.counters.clients_faulty),
    ("clients_refused", "Client connections turned away", |s| s.counters.clients_refused),
    ("requests_ok", "Requests answered with success", |s| s.counters.requests_ok),
    ("requests_failed", "Requests answered with an error", |s| s.counters.requests_failed),
    ("vms_added", "VMs registered", |s| s.counters.vms_added),
    ("vms_lost", "VMs that ended without bye", |s| s.counters.vms_lost),
    ("sessions_opened", "Sessions allocated", |s| s.counters.sessions_opened),
    ("shims_lost", "Shims that left without giving their token up", |s| s.counters.shims_lost),
    ("commands_overdue", "Commands whose agent did not answer in time", |s| s.counters.commands_overdue),
    ("cpu_microseconds", "CPU time used, user and system", |s| s.cpu_us),
];

const DAEMON_GAUGES: [DaemonNumber; 4] = [
    ("clients", "Client connections open", |s| s.clients),
    ("vms", "VMs registered, those included that are gone and not unregistered", |s| s.vms.len() as u64),
    ("memory_bytes", "Resident memory", |s| s.memory_bytes),
    ("open_fds", "Descriptors open", |s| s.open_fds),
];

const SHARD_COUNTERS: [ShardNumber; 12] = [
    ("shard_cpu_microseconds", "CPU time the shard's thread used, user and system", |s| s.cpu_us),
    ("turns", "Turns of the shard's loop", |s| s.turns),
    ("skipped_frames", "Frames from agents that no session wanted", |s| s.skipped_frames),
    ("buffers_exhausted", "Receives that found no free buffer", |s| s.buffers_exhausted),
    ("stale_completions", "Completions that matched no operation", |s| s.stale_completions),
    ("links_blocked", "Times a VM stopped being read because of a client", |s| s.links_blocked),
    ("faulty_peers", "Peers ended for breaking the protocol", |s| s.faulty_peers),
    ("sessions_too_slow", "Sessions ended because their clients did not read", |s| s.sessions_too_slow),
    ("spill_written_bytes", "Bytes written to spill files", |s| s.spill_written),
    ("spill_read_bytes", "Bytes read back from spill files", |s| s.spill_read),
    ("spill_full", "Times nothing more could be written to a spill file for want of space", |s| s.spill_full),
    ("spill_errors", "Operations on spill files that failed for another reason", |s| s.spill_errors),
];

const SHARD_GAUGES: [ShardNumber; 7] = [
    ("load_permille", "Load measured over some seconds, thousandths of one CPU", |s| s.load_permille),
    ("expected_permille", "Load that new VMs are still expected to bring, likewise", |s| s.expected_permille),
    ("links", "VMs served", |s| s.links),
    ("sessions", "Sessions served", |s| s.sessions),
    ("chunks_in_use", "Chunks that hold what slow peers are owed", |s| s.chunks_in_use),
    ("spilling", "Sessions whose output goes to a spill file", |s| s.spilling),
    ("spill_bytes", "Bytes of space that spill files have", |s| s.spill_bytes),
];

const DIRECTED_COUNTERS: [DirectedNumber; 2] = [
    ("frames", "Whole frames", |s| (s.to_client.frames, s.to_agent.frames)),
    ("frame_bytes", "Bytes of whole frames, headers included", |s| (s.to_client.bytes, s.to_agent.bytes)),
];

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Exposition(status) = self;
        for (name, help, value) in DAEMON_COUNTERS {
            let metric = ConstCounter::new(value(status));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        for (name, help, value) in DAEMON_GAUGES {
            let metric = gauge(value(status));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        for (name, help, value) in SHARD_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            each_shard(status, |labels, shard| {
                ConstCounter::new(value(shard)).encode(family.encode_family(&[labels[0]])?)
            })?;
        }
        for (name, help, value) in SHARD_GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            each_shard(status, |labels, shard| gauge(value(shard)).encode(family.encode_family(&[labels[0]])?))?;
        }
        for (name, help, values) in DIRECTED_COUNTERS {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            directed(status, family, values)?;
        }
        let help = "1 for a VM whose stream channel is not read because of a client";
        let mut family = encoder.encode_descriptor("vm_blocked", help, None, MetricType::Gauge)?;
        for vm in &status.vms {
            let blocked = u64::from(vm.blocked_by.is_some());
            gauge(blocked).encode(family.encode_family(&[("vm", vm.id.as_str())])?)?;
        }
        Ok(())
    }
}

fn gauge(value: u64) -> ConstGauge {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

fn each_shard(
    status: &Status,
    mut encode: impl FnMut([(&str, &str); 1], &ShardStatus) -> Result<(), fmt::Error>,
) -> Result<(), fmt::Error> {
    for shard in &status.shards {
        encode([("shard", shard.shard.to_string().as_str())], shard)?;
    }
    Ok(())
}

fn directed(
    status: &Status,
    mut family: MetricEncoder<'_>,
    values: fn(&ShardStatus) -> (u64, u64),
) -> Result<(), fmt::Error> {
    each_shard(status, |[shard_label], shard| {
        let (to_client, to_agent) = values(shard);
        for (direction, value) in [("to_client", to_client), ("to_agent", to_agent)] {
            let labels = [shard_label, ("direction", direction)];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::admin::{Flow, VmStatus};

    #[test]
    fn the_text_has_every_series_once() {
        let to_client = Flow { frames: 5, bytes: 500 };
        let shard = |shard| ShardStatus { shard, to_client, cpu_us: 77, load_permille: 9, ..ShardStatus::default() };
        let vm = VmStatus { id: "a\"b".to_owned(), blocked_by: Some(7), ..VmStatus::default() };
        let status = Status { clients: 3, shards: vec![shard(0), shard(1)], vms: vec![vm], ..Status::default() };
        let text = render(status);
        for line in [
            "ringway_clients 3",
            "ringway_frames_total{shard=\"1\",direction=\"to_client\"} 5",
            "ringway_frame_bytes_total{shard=\"0\",direction=\"to_agent\"} 0",
            "ringway_turns_total{shard=\"0\"} 0",
            "ringway_shard_cpu_microseconds_total{shard=\"1\"} 77",
            "ringway_load_permille{shard=\"0\"} 9",
            "ringway_expected_permille{shard=\"0\"} 0",
            "ringway_spill_bytes{shard=\"1\"} 0",
            "ringway_spill_written_bytes_total{shard=\"0\"} 0",
            "ringway_vm_blocked{vm=\"a\\\"b\"} 1",
            "# EOF",
        ] {
            assert_eq!(text.lines().filter(|&l| l == line).count(), 1, "{line}\n{text}");
        }
    }
}
