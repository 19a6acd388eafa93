//! What the cleaner's threads tell, under the names that the exporter of Kafka's JMX metrics gives them.

use std::{
    path::Path,
    sync::{Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};

use super::GaugeFamily;

/// The gauges of log compaction.
#[derive(Debug, Default)]
pub(crate) struct CleanerMetrics {
    recopy_percent: Gauge,
    round_seconds: Gauge<f64, AtomicU64>,
    buffer_percent: Gauge,
    delay_seconds: Gauge,
    dead_threads: Gauge,
    max_dirty_percent: Gauge,
    since_last_run_ms: Gauge,
    last_run: Mutex<Option<Instant>>,
    uncleanable: GaugeFamily,
    uncleanable_bytes: GaugeFamily,
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
            "kafka_log_logcleaner_max_buffer_utilization_percent",
            "How full the memory for keys was in the last round",
            &self.buffer_percent,
        );
        gauge(
            "kafka_log_logcleaner_max_compaction_delay_secs",
            "For how long a record has waited beyond max.compaction.lag.ms, in seconds",
            &self.delay_seconds,
        );
        gauge("kafka_log_logcleaner_deadthreadcount", "Threads of the cleaner that ended by a bug", &self.dead_threads);
        gauge(
            "kafka_log_logcleanermanager_max_dirty_percent",
            "The largest share of a compacted log that was never cleaned",
            &self.max_dirty_percent,
        );
        gauge(
            "kafka_log_logcleanermanager_time_since_last_run_ms",
            "How long ago the cleaner looked for logs to compact, in milliseconds",
            &self.since_last_run_ms,
        );
        let mut family = |name: &str, help: &str, family: &GaugeFamily| registry.register(name, help, family.clone());
        family(
            "kafka_log_logcleanermanager_uncleanable_partitions_count",
            "Logs that cannot be compacted, by directory",
            &self.uncleanable,
        );
        family(
            "kafka_log_logcleanermanager_uncleanable_bytes",
            "Bytes that would be compacted if their logs could be, by directory",
            &self.uncleanable_bytes,
        );
        let help = "How long the last round took, in seconds";
        registry.register("kafka_log_logcleaner_max_clean_time_secs", help, self.round_seconds.clone());
    }

    /// A round made so many bytes of so many, with so much of its memory.
    pub(crate) fn on_round(&self, before: u64, after: u64, took: Duration, buffer_utilization: f64) {
        self.recopy_percent.set((after * 100 / before.max(1)) as i64);
        self.round_seconds.set(took.as_secs_f64());
        self.buffer_percent.set((buffer_utilization * 100.0) as i64);
    }

    /// A look at all logs: the dirtiest, as a share from 0 to 1, and the longest delay.
    pub(crate) fn on_look(&self, max_dirty: f64, max_delay_ms: i64) {
        self.max_dirty_percent.set((max_dirty * 100.0) as i64);
        self.delay_seconds.set(max_delay_ms / 1_000);
        *self.last_run.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How many logs of a directory cannot be compacted, and what they have that would be.
    pub(crate) fn set_uncleanable(&self, directory: &Path, count: usize, bytes: u64) {
        let labels = vec![("logdirectory".to_owned(), directory.display().to_string())];
        self.uncleanable.get_or_create(&labels).set(count as i64);
        self.uncleanable_bytes.get_or_create(&labels).set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// A thread ended by a panic.
    pub(crate) fn on_dead_thread(&self) {
        self.dead_threads.inc();
    }

    /// Another took the place of one that did.
    pub(crate) fn on_replaced_thread(&self) {
        self.dead_threads.dec();
    }

    /// Sets what depends on when it is asked.
    pub(crate) fn sample(&self) {
        let last_run = *self.last_run.lock().unwrap_or_else(PoisonError::into_inner);
        let since = last_run.map_or(Duration::ZERO, |last| last.elapsed());
        self.since_last_run_ms.set(since.as_millis() as i64);
    }
}
