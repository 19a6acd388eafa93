//! What the cleaner's threads tell, under the names that the exporter of Kafka's JMX metrics gives them.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};

/// The gauges of log compaction.
#[derive(Debug, Default)]
pub(crate) struct CleanerMetrics {
    recopy_percent: Gauge,
    round_seconds: Gauge<f64, AtomicU64>,
    max_dirty_percent: Gauge,
    uncleanable: Gauge,
}

impl CleanerMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge(
            "kafka_log_logcleaner_cleaner_recopy_percent",
            "What the last round copied, of what it read",
            &self.recopy_percent,
        );
        gauge(
            "kafka_log_logcleanermanager_max_dirty_percent",
            "The largest share of a compacted log that was never cleaned",
            &self.max_dirty_percent,
        );
        gauge(
            "kafka_log_logcleanermanager_uncleanable_partitions_count",
            "Logs that cannot be compacted",
            &self.uncleanable,
        );
        let help = "How long the last round took, in seconds";
        registry.register("kafka_log_logcleaner_max_clean_time_secs", help, self.round_seconds.clone());
    }

    /// A round made so many bytes of so many.
    pub(crate) fn on_round(&self, before: u64, after: u64, took: Duration) {
        self.recopy_percent.set((after * 100 / before.max(1)) as i64);
        self.round_seconds.set(took.as_secs_f64());
    }

    /// The dirtiest log, as a share from 0 to 1.
    pub(crate) fn set_max_dirty(&self, ratio: f64) {
        self.max_dirty_percent.set((ratio * 100.0) as i64);
    }

    pub(crate) fn set_uncleanable(&self, count: usize) {
        self.uncleanable.set(count as i64);
    }
}
