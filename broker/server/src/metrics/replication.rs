//! What replication between brokers counts, under the names that the exporter of Kafka's JMX metrics gives them.
//!
//! Leaders and followers hold the counters; what can be asked of partitions is asked when the page is read.

use prometheus_client::{metrics::counter::Counter, registry::Registry};

use super::GaugeFamily;

/// The counters of a node as leader and as follower.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReplicationMetrics {
    /// Partitions led here that got more replicas in sync.
    pub(crate) isr_expands: Counter,
    /// Partitions led here that went on with fewer replicas in sync.
    pub(crate) isr_shrinks: Counter,
    /// Changes of in-sync replicas that the controller refused.
    pub(crate) failed_isr_updates: Counter,
    /// Bytes appended as a follower.
    pub(crate) bytes_in: Counter,
    /// Bytes given to followers.
    pub(crate) bytes_out: Counter,
    /// Those of them for replicas that a reassignment brings here.
    pub(crate) reassignment_bytes_in: Counter,
    /// Those of them for replicas that a reassignment brings to others.
    pub(crate) reassignment_bytes_out: Counter,
    /// Records that the replica furthest behind is behind its leader.
    max_lag: GaugeFamily,
}

impl ReplicationMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter(
            "kafka_server_replicamanager_isrexpands",
            "How often in-sync replicas of partitions led here became more",
            &self.isr_expands,
        );
        counter(
            "kafka_server_replicamanager_isrshrinks",
            "How often in-sync replicas of partitions led here became fewer",
            &self.isr_shrinks,
        );
        counter(
            "kafka_server_replicamanager_failedisrupdates",
            "How often the controller refused to change in-sync replicas of partitions led here",
            &self.failed_isr_updates,
        );
        counter(
            "kafka_server_brokertopicmetrics_replicationbytesin",
            "Bytes that this broker appended as a follower",
            &self.bytes_in,
        );
        counter(
            "kafka_server_brokertopicmetrics_replicationbytesout",
            "Bytes that this broker gave to followers",
            &self.bytes_out,
        );
        counter(
            "kafka_server_brokertopicmetrics_reassignmentbytesin",
            "Bytes appended as a follower that a reassignment brings here",
            &self.reassignment_bytes_in,
        );
        counter(
            "kafka_server_brokertopicmetrics_reassignmentbytesout",
            "Bytes given to followers that a reassignment brings",
            &self.reassignment_bytes_out,
        );
        registry.register(
            "kafka_server_replicafetchermanager_maxlag",
            "Records that the follower here that is furthest behind its leader is behind it",
            self.max_lag.clone(),
        );
    }

    /// The largest lag of a replica here.
    pub(crate) fn set_max_lag(&self, records: i64) {
        self.max_lag.get_or_create(&vec![("clientid".to_owned(), "Replica".to_owned())]).set(records);
    }
}
