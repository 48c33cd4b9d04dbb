//! What an operator watches, in the text format of OpenMetrics.

use crate::review::{Failure, Outcome};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Admission {
    result: &'static str,
    reason: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Told {
    result: &'static str,
}

/// The series.
pub struct Metrics {
    registry: Registry,
    admissions: Family<Admission, Counter>,
    events: Family<Told, Counter>,
    /// Until when the certificate that is served is good, in seconds since 1970.
    pub certificate_expiry: Gauge,
    /// When the Secret and the webhook's configuration were last seen to be in place, in seconds since 1970.
    pub cluster_seen: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("freeboard_injector");
        let admissions: Family<Admission, Counter> = Family::default();
        let events: Family<Told, Counter> = Family::default();
        let [certificate_expiry, cluster_seen] = [Gauge::default(), Gauge::default()];
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The program's version", version);
        registry.register("admissions", "Reviews answered, and why what was not injected", admissions.clone());
        registry.register("events", "Events for pods' owners", events.clone());
        let help = "When the certificate that is served expires";
        registry.register_with_unit("certificate_expiry_timestamp", help, Unit::Seconds, certificate_expiry.clone());
        let help = "When the Secret and the webhook's configuration were last in place";
        registry.register_with_unit("cluster_seen_timestamp", help, Unit::Seconds, cluster_seen.clone());
        // at 0, so that the first of each is an increase
        for failure in Failure::ALL {
            admissions.get_or_create_owned(&labels(Outcome::Failed(failure)));
        }
        for outcome in [Outcome::Injected, Outcome::Already, Outcome::NotAsked] {
            admissions.get_or_create_owned(&labels(outcome));
        }
        for result in ["sent", "failed", "dropped"] {
            events.get_or_create_owned(&Told { result });
        }
        Metrics { registry, admissions, events, certificate_expiry, cluster_seen }
    }
}

impl Metrics {
    /// Counts a review.
    pub fn count(&self, outcome: Outcome) {
        self.admissions.get_or_create_owned(&labels(outcome)).inc();
    }

    /// Counts an Event: sent, failed or dropped.
    pub fn count_event(&self, result: &'static str) {
        self.events.get_or_create_owned(&Told { result }).inc();
    }

    /// One scrape.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // writing to a string does not fail
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

fn labels(outcome: Outcome) -> Admission {
    let (result, reason) = match outcome {
        Outcome::Injected => ("injected", String::new()),
        Outcome::Already => ("already", String::new()),
        Outcome::Skipped(reason) => ("skipped", reason.to_string()),
        Outcome::NotAsked => ("not-asked", String::new()),
        Outcome::Failed(failure) => ("failed", failure.to_string()),
    };
    Admission { result, reason }
}
