//! What a node counts, and the page that Prometheus reads.
//!
//! Kafka's own metrics carry the names that the common mapping of Kafka's JMX exporter gives them, so that existing
//! dashboards work; ours begin with `gregor_`. The hot path only adds to atomics that it holds already; what can be asked
//! (sizes, counts of partitions) is asked when the page is read.

use std::{
    path::Path,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use gregor_messages::ApiKey;
use gregor_types::{ErrorCode, KString};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use self::cleaner::CleanerMetrics;
pub(crate) use self::replication::ReplicationMetrics;
use crate::{append_mode::AppendMetrics, histogram::DurationHistogram, recovery::Progress};

mod cleaner;
mod replication;

/// Label sets are short lists of pairs: some of Kafka's families have a row without labels beside those with.
type Labels = Vec<(String, String)>;
type CounterFamily = Family<Labels, Counter>;
type GaugeFamily = Family<Labels, Gauge<i64, AtomicI64>>;

/// Upper bounds of the request time histogram, in nanoseconds: 100 us to 30 s.
const REQUEST_TIMES: &[u64] = &[
    100_000,
    300_000,
    1_000_000,
    3_000_000,
    10_000_000,
    30_000_000,
    100_000_000,
    300_000_000,
    1_000_000_000,
    3_000_000_000,
    10_000_000_000,
    30_000_000_000,
];
/// Upper bounds of the histogram of appends, in nanoseconds: 30 us to 3 s.
const APPEND_TIMES: &[u64] = &[
    30_000,
    100_000,
    300_000,
    1_000_000,
    3_000_000,
    10_000_000,
    30_000_000,
    100_000_000,
    300_000_000,
    1_000_000_000,
    3_000_000_000,
];
/// More than Kafka has API keys.
const API_KEYS_MAX: usize = 128;

/// Every metric of a node.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    messages_in: CounterFamily,
    bytes_in: CounterFamily,
    bytes_out: CounterFamily,
    produce_requests: CounterFamily,
    fetch_requests: CounterFamily,
    failed_produce: CounterFamily,
    failed_fetch: CounterFamily,
    all_topics: TopicMetrics,
    requests: CounterFamily,
    errors: CounterFamily,
    request_seconds: Family<Labels, DurationHistogram, fn() -> DurationHistogram>,
    append_seconds: Family<Labels, DurationHistogram, fn() -> DurationHistogram>,
    append_offloaded: GaugeFamily,
    append_offloads: CounterFamily,
    /// By API key, each made at its first request.
    by_api: Box<[OnceLock<ApiMetrics>]>,
    /// Connections that are open, per listener.
    pub(crate) connections: GaugeFamily,
    /// Connections that we closed, by reason.
    pub(crate) closed: CounterFamily,
    /// How often a partition was looked at for a fetch.
    pub(crate) fetch_reads: Counter,
    /// How often a fetch had to wait for the disk or for whoever had a partition's lock, on a thread that may.
    pub(crate) fetch_offloads: Counter,
    /// How often TLS stores that had changed were read again, by listener and outcome.
    pub(crate) tls_reloads: CounterFamily,
    /// Log compaction.
    pub(crate) cleaner: CleanerMetrics,
    /// Replication between brokers.
    pub(crate) replication: ReplicationMetrics,
    /// What is asked when the page is read.
    pub(crate) sampled: Sampled,
}

/// The counters of one topic, held by its partitions.
#[derive(Debug, Clone)]
pub(crate) struct TopicMetrics {
    /// Records appended.
    pub(crate) messages_in: Counter,
    /// Bytes appended.
    pub(crate) bytes_in: Counter,
    /// Bytes fetched by clients.
    pub(crate) bytes_out: Counter,
    /// Produce requests that named the topic.
    pub(crate) produce_requests: Counter,
    /// Fetch requests that named the topic.
    pub(crate) fetch_requests: Counter,
    /// Produce requests that failed for the topic.
    pub(crate) failed_produce: Counter,
    /// Fetch requests that failed for the topic.
    pub(crate) failed_fetch: Counter,
}

/// The counters of one API.
#[derive(Debug, Clone)]
pub(crate) struct ApiMetrics {
    requests: Counter,
    seconds: DurationHistogram,
}

/// Gauges that are set when the page is read.
#[derive(Debug, Default)]
pub(crate) struct Sampled {
    /// Partitions with a replica here.
    pub(crate) partitions: Gauge,
    /// Partitions led here.
    pub(crate) leaders: Gauge,
    /// Partitions led here with fewer replicas in sync than they have.
    pub(crate) under_replicated: Gauge,
    /// Partitions led here with fewer replicas in sync than `min.insync.replicas`.
    pub(crate) under_min_isr: Gauge,
    /// Partitions led here with exactly `min.insync.replicas` in sync.
    pub(crate) at_min_isr: Gauge,
    /// Replicas here whose log directory failed.
    pub(crate) offline_replicas: Gauge,
    /// Replicas whose log directory the controller is still to be told.
    pub(crate) queued_assignments: Gauge,
    /// Log directories that failed.
    pub(crate) offline_directories: Gauge,
    /// Log directories that get no new replicas.
    pub(crate) cordoned_directories: Gauge,
    /// 1 where a log directory failed.
    offline_directory: GaugeFamily,
    /// 1 where a log directory gets no new replicas.
    cordoned_directory: GaugeFamily,
    /// 1 where this node is the active controller.
    pub(crate) active_controller: Gauge,
    /// Where the broker is in its life, as Kafka numbers it: 3 is running.
    pub(crate) broker_state: Gauge,
    /// Topics of the cluster.
    pub(crate) topics: Gauge,
    /// Partitions of the cluster.
    pub(crate) cluster_partitions: Gauge,
    /// The last offset of the metadata log that was applied.
    pub(crate) metadata_offset: Gauge,
    /// Bytes that requests hold while they arrive.
    pub(crate) request_memory: Gauge,
    /// Fetch sessions.
    pub(crate) fetch_sessions: Gauge,
    /// Groups coordinated here.
    pub(crate) groups: Gauge,
    /// Those of them without members.
    pub(crate) groups_empty: Gauge,
    /// Those of them whose members know their parts.
    pub(crate) groups_stable: Gauge,
    /// Offsets that groups have committed here.
    pub(crate) committed_offsets: Gauge,
    /// Produce and Fetch requests that wait, once for each partition, and once for all of a session that are idle.
    pub(crate) waiting: Gauge,
    /// A partition's size in bytes.
    pub(crate) log_size: GaugeFamily,
    /// A partition's start.
    pub(crate) log_start: GaugeFamily,
    /// A partition's end.
    pub(crate) log_end: GaugeFamily,
    /// Logs of a directory that are not whole yet.
    pub(crate) recovering_logs: GaugeFamily,
    /// Segments that a recovery thread has still to check of the log that it is at.
    pub(crate) recovering_segments: GaugeFamily,
    /// Bytes of a directory that are still to be checked.
    pub(crate) recovering_bytes: GaugeFamily,
    /// When the process started, in seconds since 1970.
    pub(crate) start_seconds: Gauge<f64, AtomicU64>,
    /// Resident memory.
    pub(crate) resident: Gauge,
    /// Open file descriptors.
    pub(crate) open_files: Gauge,
}

impl Metrics {
    /// All metrics at zero.
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let mut counter = |name: &str, help: &str| {
            let family = CounterFamily::default();
            registry.register(name, help, family.clone());
            family
        };
        let messages_in = counter("kafka_server_brokertopicmetrics_messagesin", "Records appended");
        let bytes_in = counter("kafka_server_brokertopicmetrics_bytesin", "Bytes appended");
        let bytes_out = counter("kafka_server_brokertopicmetrics_bytesout", "Bytes fetched by clients");
        let produce_requests =
            counter("kafka_server_brokertopicmetrics_totalproducerequests", "Produce requests, per topic named");
        let fetch_requests =
            counter("kafka_server_brokertopicmetrics_totalfetchrequests", "Fetch requests, per topic named");
        let failed_produce =
            counter("kafka_server_brokertopicmetrics_failedproducerequests", "Produce requests that failed");
        let failed_fetch = counter("kafka_server_brokertopicmetrics_failedfetchrequests", "Fetch requests that failed");
        let requests = counter("kafka_network_requestmetrics_requests", "Requests, by API");
        let errors = counter("kafka_network_requestmetrics_errors", "Errors in responses, by error");
        let closed = counter("gregor_connections_closed", "Connections that this node closed, by reason");
        let tls_reloads = counter(
            "gregor_tls_reloads",
            "How often changed TLS settings or files were taken over by a listener, or could not be",
        );
        let append_offloads = counter(
            "gregor_log_append_offloads",
            "How often slow appends of a log directory were moved to a thread of their own",
        );
        let fetch_reads = Counter::default();
        registry.register(
            "gregor_fetch_partition_reads",
            "How often a partition was looked at for a fetch: idle ones of a session are not",
            fetch_reads.clone(),
        );
        let fetch_offloads = Counter::default();
        registry.register(
            "gregor_fetch_offloads",
            "How often the reads of a fetch were made on a thread that may wait for the disk or for a lock",
            fetch_offloads.clone(),
        );
        let append_offloaded = GaugeFamily::default();
        registry.register(
            "gregor_log_append_offloaded",
            "1 while appends to a log directory are slow and made on a thread of their own",
            append_offloaded.clone(),
        );
        let append_seconds =
            Family::new_with_constructor((|| DurationHistogram::new(APPEND_TIMES)) as fn() -> DurationHistogram);
        registry.register(
            "gregor_log_append_duration_seconds",
            "How long the writes of appends took, by log directory: stalls are in the tail",
            append_seconds.clone(),
        );
        let connections = GaugeFamily::default();
        registry.register(
            "kafka_server_socket_server_metrics_connection_count",
            "Open connections, by listener",
            connections.clone(),
        );
        let request_seconds =
            Family::new_with_constructor((|| DurationHistogram::new(REQUEST_TIMES)) as fn() -> DurationHistogram);
        registry.register(
            "gregor_request_duration_seconds",
            "Time from a request's arrival to its response, waiting included",
            request_seconds.clone(),
        );
        let sampled = Sampled::default();
        sampled.register(&mut registry);
        let cleaner = CleanerMetrics::default();
        cleaner.register(&mut registry);
        let replication = ReplicationMetrics::default();
        replication.register(&mut registry);
        let topic = |labels: &Labels| TopicMetrics {
            messages_in: messages_in.get_or_create_owned(labels),
            bytes_in: bytes_in.get_or_create_owned(labels),
            bytes_out: bytes_out.get_or_create_owned(labels),
            produce_requests: produce_requests.get_or_create_owned(labels),
            fetch_requests: fetch_requests.get_or_create_owned(labels),
            failed_produce: failed_produce.get_or_create_owned(labels),
            failed_fetch: failed_fetch.get_or_create_owned(labels),
        };
        Self {
            all_topics: topic(&Vec::new()),
            registry: Mutex::new(registry),
            messages_in,
            bytes_in,
            bytes_out,
            produce_requests,
            fetch_requests,
            failed_produce,
            failed_fetch,
            requests,
            errors,
            request_seconds,
            append_seconds,
            append_offloaded,
            append_offloads,
            by_api: (0..API_KEYS_MAX).map(|_| OnceLock::new()).collect(),
            connections,
            closed,
            fetch_reads,
            fetch_offloads,
            tls_reloads,
            cleaner,
            replication,
            sampled,
        }
    }

    /// The counters of all topics together.
    pub(crate) fn all_topics(&self) -> &TopicMetrics {
        &self.all_topics
    }

    /// The counters of a topic; its partitions keep them.
    pub(crate) fn topic(&self, topic: &str) -> TopicMetrics {
        let labels = vec![("topic".to_owned(), topic.to_owned())];
        TopicMetrics {
            messages_in: self.messages_in.get_or_create_owned(&labels),
            bytes_in: self.bytes_in.get_or_create_owned(&labels),
            bytes_out: self.bytes_out.get_or_create_owned(&labels),
            produce_requests: self.produce_requests.get_or_create_owned(&labels),
            fetch_requests: self.fetch_requests.get_or_create_owned(&labels),
            failed_produce: self.failed_produce.get_or_create_owned(&labels),
            failed_fetch: self.failed_fetch.get_or_create_owned(&labels),
        }
    }

    /// What is counted of a log directory's appends.
    pub(crate) fn appends(&self, directory: &Path) -> AppendMetrics {
        let labels = vec![("log_directory".to_owned(), directory.display().to_string())];
        AppendMetrics {
            durations: self.append_seconds.get_or_create_owned(&labels),
            offloaded: self.append_offloaded.get_or_create_owned(&labels),
            offloads: self.append_offloads.get_or_create_owned(&labels),
        }
    }

    /// The topic is gone: so are its rows.
    pub(crate) fn forget_topic(&self, topic: &KString) {
        let labels = vec![("topic".to_owned(), topic.to_string())];
        for family in [
            &self.messages_in,
            &self.bytes_in,
            &self.bytes_out,
            &self.produce_requests,
            &self.fetch_requests,
            &self.failed_produce,
            &self.failed_fetch,
        ] {
            family.remove(&labels);
        }
    }

    /// A request was answered.
    pub(crate) fn on_request(&self, api: ApiKey, took: Duration) {
        let metrics = self.by_api[api.code() as usize].get_or_init(|| {
            let labels = vec![("request".to_owned(), api.name().to_owned())];
            ApiMetrics {
                requests: self.requests.get_or_create_owned(&labels),
                seconds: self.request_seconds.get_or_create_owned(&labels),
            }
        });
        metrics.requests.inc();
        metrics.seconds.observe(took);
    }

    /// A response carries an error.
    pub(crate) fn on_error(&self, api: &'static str, error: ErrorCode) {
        let labels = vec![("request".to_owned(), api.to_owned()), ("error".to_owned(), error.name().to_owned())];
        self.errors.get_or_create(&labels).inc();
    }

    /// The page, in the OpenMetrics text format.
    pub(crate) fn page(&self) -> String {
        self.sampled.sample_process();
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        encode(&mut text, &registry).expect("writing to a string cannot fail");
        // The library writes an empty list of labels; Kafka's exporters write none.
        text.replace("_total{} ", "_total ")
    }
}

impl Sampled {
    fn register(&self, registry: &mut Registry) {
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("kafka_server_replicamanager_partitioncount", "Partitions with a replica here", &self.partitions);
        gauge("kafka_server_replicamanager_leadercount", "Partitions led here", &self.leaders);
        gauge(
            "kafka_server_replicamanager_underreplicatedpartitions",
            "Partitions led here with replicas out of sync",
            &self.under_replicated,
        );
        gauge(
            "kafka_server_replicamanager_underminisrpartitioncount",
            "Partitions led here below min.insync.replicas",
            &self.under_min_isr,
        );
        gauge(
            "kafka_server_replicamanager_atminisrpartitioncount",
            "Partitions led here at min.insync.replicas",
            &self.at_min_isr,
        );
        gauge(
            "kafka_server_replicamanager_offlinereplicacount",
            "Replicas here whose log directory failed",
            &self.offline_replicas,
        );
        gauge(
            "kafka_server_assignmentsmanager_queuedreplicatodirassignments",
            "Replicas whose log directory the controller is still to be told",
            &self.queued_assignments,
        );
        gauge(
            "kafka_log_logmanager_offlinelogdirectorycount",
            "Log directories that failed",
            &self.offline_directories,
        );
        gauge(
            "kafka_log_logmanager_cordonedlogdirectorycount",
            "Log directories that get no new replicas",
            &self.cordoned_directories,
        );
        gauge(
            "kafka_controller_kafkacontroller_activecontrollercount",
            "1 on the active controller",
            &self.active_controller,
        );
        gauge("kafka_server_kafkaserver_brokerstate", "3 where the broker is running", &self.broker_state);
        gauge("kafka_controller_kafkacontroller_globaltopiccount", "Topics of the cluster", &self.topics);
        gauge(
            "kafka_controller_kafkacontroller_globalpartitioncount",
            "Partitions of the cluster",
            &self.cluster_partitions,
        );
        gauge(
            "kafka_server_broker_metadata_metrics_last_applied_record_offset",
            "The last applied offset of the metadata log",
            &self.metadata_offset,
        );
        gauge("gregor_request_memory_bytes", "Bytes that requests hold while they arrive", &self.request_memory);
        gauge(
            "kafka_server_fetchsessioncache_numincrementalfetchsessions",
            "Incremental fetch sessions",
            &self.fetch_sessions,
        );
        gauge("kafka_coordinator_group_groupmetadatamanager_numgroups", "Groups coordinated here", &self.groups);
        gauge("kafka_coordinator_group_groupmetadatamanager_numgroupsempty", "Empty groups", &self.groups_empty);
        gauge("kafka_coordinator_group_groupmetadatamanager_numgroupsstable", "Stable groups", &self.groups_stable);
        gauge("kafka_coordinator_group_groupmetadatamanager_numoffsets", "Committed offsets", &self.committed_offsets);
        gauge("gregor_waiting_requests", "Produce and Fetch requests that wait", &self.waiting);
        gauge("process_resident_memory_bytes", "Resident memory", &self.resident);
        gauge("process_open_fds", "Open file descriptors", &self.open_files);
        registry.register(
            "kafka_log_logmanager_logdirectoryoffline",
            "1 where a log directory failed",
            self.offline_directory.clone(),
        );
        registry.register(
            "kafka_log_logmanager_logdirectorycordoned",
            "1 where a log directory gets no new replicas",
            self.cordoned_directory.clone(),
        );
        registry.register("kafka_log_log_size", "A partition's size in bytes", self.log_size.clone());
        registry.register("kafka_log_log_logstartoffset", "A partition's first offset", self.log_start.clone());
        registry.register("kafka_log_log_logendoffset", "A partition's end offset", self.log_end.clone());
        registry.register(
            "kafka_log_logmanager_remaininglogstorecover",
            "Logs that are not whole yet, by directory",
            self.recovering_logs.clone(),
        );
        registry.register(
            "kafka_log_logmanager_remainingsegmentstorecover",
            "Segments left of the log that a recovery thread is at",
            self.recovering_segments.clone(),
        );
        registry.register(
            "gregor_recovery_remaining_bytes",
            "Bytes still to be checked, at most, by directory",
            self.recovering_bytes.clone(),
        );
        registry.register(
            "process_start_time_seconds",
            "When the process started, in seconds since 1970",
            self.start_seconds.clone(),
        );
    }

    /// The figures of one partition.
    pub(crate) fn set_log(&self, topic: &str, partition: i32, size: i64, start: i64, end: i64) {
        let labels = vec![("topic".to_owned(), topic.to_owned()), ("partition".to_owned(), partition.to_string())];
        self.log_size.get_or_create(&labels).set(size);
        self.log_start.get_or_create(&labels).set(start);
        self.log_end.get_or_create(&labels).set(end);
    }

    /// How far the recovery of a directory is.
    pub(crate) fn set_recovery(&self, directory: &str, progress: &Progress) {
        let directory = ("dir".to_owned(), directory.to_owned());
        let labels = vec![directory.clone()];
        self.recovering_logs.get_or_create(&labels).set(progress.remaining_logs());
        self.recovering_bytes.get_or_create(&labels).set(progress.remaining_bytes());
        for (thread, segments) in progress.remaining_segments().into_iter().enumerate() {
            let labels = vec![directory.clone(), ("threadnum".to_owned(), thread.to_string())];
            self.recovering_segments.get_or_create(&labels).set(segments);
        }
    }

    /// How a directory stands.
    pub(crate) fn set_directory(&self, directory: &str, failed: bool, cordoned: bool) {
        let labels = vec![("logdirectory".to_owned(), directory.to_owned())];
        self.offline_directory.get_or_create(&labels).set(i64::from(failed));
        self.cordoned_directory.get_or_create(&labels).set(i64::from(cordoned));
    }

    /// Forgets every partition, before those that exist are set anew.
    pub(crate) fn clear_logs(&self) {
        self.log_size.clear();
        self.log_start.clear();
        self.log_end.clear();
    }

    fn sample_process(&self) {
        if let Ok(status) = std::fs::read_to_string("/proc/self/status")
            && let Some(line) = status.lines().find(|line| line.starts_with("VmRSS:"))
            && let Some(kib) = line.split_whitespace().nth(1).and_then(|number| number.parse::<i64>().ok())
        {
            self.resident.set(kib << 10);
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.open_files.set(i64::try_from(files.count()).unwrap_or(i64::MAX));
        }
    }

    /// When the process started, once.
    pub(crate) fn set_start(&self, seconds: f64) {
        self.start_seconds.inner().store(seconds.to_bits(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_kafkas_names() {
        let metrics = Metrics::new();
        metrics.topic("events").messages_in.inc_by(7);
        metrics.all_topics().messages_in.inc_by(7);
        metrics.on_request(ApiKey::Produce, Duration::from_millis(2));
        metrics.sampled.partitions.set(3);
        let page = metrics.page();
        for line in [
            "kafka_server_brokertopicmetrics_messagesin_total 7",
            "kafka_server_brokertopicmetrics_messagesin_total{topic=\"events\"} 7",
            "kafka_network_requestmetrics_requests_total{request=\"Produce\"} 1",
            "kafka_server_replicamanager_partitioncount 3",
        ] {
            assert!(page.contains(line), "no {line:?} in:\n{page}");
        }
        metrics.forget_topic(&KString::from("events"));
        assert!(!metrics.page().contains("topic=\"events\""));
    }
}
