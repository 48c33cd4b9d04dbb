//! What an operator watches, in Prometheus' text format: `freeboard sidecar --metrics ADDRESS` serves it.
//!
//! Base units, `_total` for what only grows, one series for each container and never one for each process. A container
//! is named by the inode number of its cgroup's directory: a sidecar sees no more of it than that.

mod server;

pub use server::Server;

use crate::service::{Snapshot, Watched};
use freeboard_budget::layout::{ASIDES, Aside};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;

/// A family with one series for each container: name without unit, help, unit, and where the number is found; `None`:
/// the container has none at the moment.
type PerContainer = (&'static str, &'static str, Option<Unit>, fn(&Watched) -> Option<f64>);

const GAUGES: [PerContainer; 11] = [
    ("limit", "Limit that rules the container's memory.", Some(Unit::Bytes), |one| bytes(one.row?.limit)),
    ("target", "What its usage should stay under.", Some(Unit::Bytes), |one| bytes(one.row?.target)),
    ("usage", "What is charged to that limit.", Some(Unit::Bytes), |one| bytes(one.row?.usage)),
    ("unwritten", "Page cache that is not on the disk yet.", Some(Unit::Bytes), |one| bytes(one.row?.unwritten)),
    ("other", "Memory that is no page cache.", Some(Unit::Bytes), |one| bytes(one.row?.other)),
    ("allowed", "Most that all its writers may leave unwritten.", Some(Unit::Bytes), |one| {
        bytes(one.row?.verdict.allowed)
    }),
    ("unowned", "Unwritten bytes that no process answers for now.", Some(Unit::Bytes), |one| bytes(one.row?.unowned)),
    ("unseen_peak", "Most unwritten bytes that no process answered for during a second.", Some(Unit::Bytes), |one| {
        bytes(one.summary.unseen_bytes)
    }),
    ("disk_speed_bytes_per_second", "What its disk was seen to write.", None, |one| one.row?.speed.map(|it| it as f64)),
    ("ancestors_unseen", "1 where it has ancestors that cannot be seen, whose limits may rule.", None, |one| {
        Some(if one.ancestors_seen? { 0.0 } else { 1.0 })
    }),
    ("longest_held_back", "Longest time that one call was held back.", Some(Unit::Seconds), |one| {
        seconds(one.summary.totals.longest_held_back_ns)
    }),
];

const COUNTERS: [PerContainer; 9] = [
    ("limit_hits", "Times that the limit was met since the sidecar first saw the container.", None, |one| {
        Some(one.row?.limit_hits as f64)
    }),
    ("written", "Written by calls that were seen.", Some(Unit::Bytes), |one| bytes(one.summary.totals.written_bytes)),
    ("flushed", "Sent to the disk early.", Some(Unit::Bytes), |one| bytes(one.summary.totals.flushed_bytes)),
    ("confirmed", "Seen to arrive on the disk.", Some(Unit::Bytes), |one| bytes(one.summary.totals.confirmed_bytes)),
    ("dropped", "Clean page cache that was given back.", Some(Unit::Bytes), |one| {
        bytes(one.summary.totals.dropped_bytes)
    }),
    ("held_back", "Time that calls were held back.", Some(Unit::Seconds), |one| {
        seconds(one.summary.totals.held_back_ns)
    }),
    ("held_calls", "Calls that were held back.", None, |one| Some(one.summary.totals.held_calls as f64)),
    ("calls", "Calls that write.", None, |one| Some(one.summary.totals.calls as f64)),
    ("processes", "Processes that wrote.", None, |one| Some(one.summary.totals.processes as f64)),
];

/// The label of a reason for standing aside.
const REASONS: [(Aside, &str); 11] = [
    (Aside::NotAFile, "not_a_file"),
    (Aside::Direct, "direct"),
    (Aside::Memory, "memory"),
    (Aside::Unknown, "unknown_filesystem"),
    (Aside::Policy, "policy"),
    (Aside::Nested, "nested"),
    (Aside::Stalled, "stalled"),
    (Aside::Unlimited, "unlimited"),
    (Aside::Full, "table_full"),
    (Aside::Outside, "outside"),
    (Aside::Filtered, "seccomp"),
];
const _: () = assert!(REASONS.len() <= ASIDES);

/// `u64::MAX`, which stands for "no limit", has no place on a scale of bytes.
fn bytes(count: u64) -> Option<f64> {
    (count != u64::MAX).then_some(count as f64)
}

fn seconds(ns: u64) -> Option<f64> {
    Some(ns as f64 / 1e9)
}

/// The text of one scrape.
pub(crate) fn text(snapshot: Snapshot) -> String {
    let mut registry = Registry::with_prefix("freeboard");
    registry.register_collector(Box::new(Families(snapshot)));
    let mut text = String::new();
    // writing to a string does not fail
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Families(Snapshot);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Families(snapshot) = self;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let info = encoder.encode_descriptor("build_info", "The program's version.", None, MetricType::Gauge);
        ConstGauge::new(1i64).encode(info?.encode_family(&version)?)?;
        let help = "Time since the sidecar last looked at everything.";
        let age = encoder.encode_descriptor("heartbeat_age", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        ConstGauge::new(snapshot.heartbeat_age.as_secs_f64()).encode(age)?;
        let help = "1 where the workload file is in force as it was last read, 0 where it was refused.";
        let config = encoder.encode_descriptor("config_last_reload_successful", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::from(snapshot.is_config_in_force)).encode(config)?;
        let containers = encoder.encode_descriptor("containers", "Containers served.", None, MetricType::Gauge)?;
        ConstGauge::new(snapshot.containers.len() as i64).encode(containers)?;

        for (name, help, unit, value) in &GAUGES {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            for one in &snapshot.containers {
                if let Some(value) = value(one) {
                    ConstGauge::new(value).encode(family.encode_family(&[("cgroup", one.name())])?)?;
                }
            }
        }
        for (name, help, unit, value) in &COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for one in &snapshot.containers {
                if let Some(value) = value(one) {
                    ConstCounter::new(value).encode(family.encode_family(&[("cgroup", one.name())])?)?;
                }
            }
        }
        let done = snapshot.sweep;
        let sweep: [(&str, &str, Option<Unit>, u64); 3] = [
            (
                "sweep_flushed",
                "Sent to the disk by the sweep of shared volumes.",
                Some(Unit::Bytes),
                done.flushed_bytes,
            ),
            ("sweep_dropped", "Page cache that the sweep gave back.", Some(Unit::Bytes), done.dropped_bytes),
            (
                "sweep_back_offs",
                "Times that the sweep left a file alone for longer, because it was read again or is mapped.",
                None,
                done.back_offs,
            ),
        ];
        for (name, help, unit, count) in &sweep {
            let family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            ConstCounter::new(*count).encode(family)?;
        }
        let help = "Times that the library stood aside.";
        let mut family = encoder.encode_descriptor("asides", help, None, MetricType::Counter)?;
        for one in &snapshot.containers {
            for (reason, label) in REASONS {
                let count = one.summary.totals.aside[reason as usize];
                let labels = [("cgroup", one.name()), ("reason", label.to_owned())];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
