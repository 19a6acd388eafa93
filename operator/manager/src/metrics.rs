//! The operator's own metrics, under `gregor_operator_`. Labels have few values: kinds, outcomes, reasons; never names.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// One kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// `KafkaCluster` or `KafkaTopic`.
    pub kind: &'static str,
}

/// How a reconcile of a kind ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// `KafkaCluster` or `KafkaTopic`.
    pub kind: &'static str,
    /// The word of the condition, or of the error.
    pub outcome: &'static str,
}

/// A step that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StepLabel {
    /// What it was.
    pub step: &'static str,
}

/// Who holds certificates.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HolderLabel {
    /// `authority` or `node`.
    pub holder: &'static str,
}

/// When the first of a cluster's certificates end, in seconds since 1970; of a cluster that has any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CertificateEnds {
    /// Its authority's.
    pub authority: Option<i64>,
    /// Its nodes'.
    pub nodes: Option<i64>,
}

/// Everything that is counted.
#[derive(Clone)]
pub struct Metrics {
    /// Reconciles by how they ended.
    pub reconciles: Family<OutcomeLabel, Counter>,
    /// Steps that were carried out.
    pub steps: Family<StepLabel, Counter>,
    /// Statuses written.
    pub status_writes: Counter,
    /// Seconds that reconciles took.
    pub seconds: Family<KindLabel, Histogram, fn() -> Histogram>,
    /// 1 on the replica that leads.
    pub leader: Gauge<f64, AtomicU64>,
    /// When the first certificate of any cluster ends.
    pub certificate_end: Family<HolderLabel, Gauge>,
    /// The same of each cluster, by its uid.
    ends: Arc<Mutex<HashMap<String, CertificateEnds>>>,
    registry: Arc<Mutex<Registry>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds: Family<KindLabel, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.0, 14)));
        let metrics = Self {
            reconciles: Family::default(),
            steps: Family::default(),
            status_writes: Counter::default(),
            seconds,
            leader: Gauge::default(),
            certificate_end: Family::default(),
            ends: Arc::default(),
            registry: Arc::default(),
        };
        let mut registry = Registry::with_prefix("gregor_operator");
        registry.register("reconciles", "Reconciles by kind and by how they ended", metrics.reconciles.clone());
        registry.register("steps", "Steps that were carried out", metrics.steps.clone());
        registry.register("status_writes", "Statuses that were written", metrics.status_writes.clone());
        registry.register("reconcile_seconds", "Seconds that reconciles took", metrics.seconds.clone());
        registry.register("leader", "1 on the replica that leads", metrics.leader.clone());
        registry.register(
            "certificate_end_seconds",
            "When the first certificate of any cluster ends, in seconds since 1970",
            metrics.certificate_end.clone(),
        );
        *metrics.registry.lock().expect("nobody else has it yet") = registry;
        metrics
    }
}

impl Metrics {
    /// Notes when a cluster's certificates end.
    pub fn note_certificates(&self, cluster_uid: &str, ends: CertificateEnds) {
        let mut all = self.ends.lock().expect("nothing panics while it holds this lock");
        if ends == CertificateEnds::default() {
            all.remove(cluster_uid);
        } else {
            all.insert(cluster_uid.to_owned(), ends);
        }
        let first_of = |of: fn(&CertificateEnds) -> Option<i64>| all.values().filter_map(of).min();
        for (holder, first) in [("authority", first_of(|ends| ends.authority)), ("node", first_of(|ends| ends.nodes))] {
            match first {
                Some(first) => drop(self.certificate_end.get_or_create(&HolderLabel { holder }).set(first)),
                None => drop(self.certificate_end.remove(&HolderLabel { holder })),
            }
        }
    }

    /// The text that `/metrics` serves.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().expect("nothing panics while it holds this lock");
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}
