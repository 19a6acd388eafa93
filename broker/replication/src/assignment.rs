//! What the metadata says of a partition and of the brokers that hold it, as far as replication looks at it.
//!
//! The caller reads it from its image of the metadata; nothing here looks anything up.

use gregor_types::{BrokerEpoch, BrokerId, LeaderEpoch};

/// What the metadata log says about a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionAssignment {
    /// Counts leaderships.
    pub leader_epoch: LeaderEpoch,
    /// Counts changes of the partition's record; the controller refuses a proposal made on an older one.
    pub partition_epoch: i32,
    /// Where the partition lives, preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// The committed in-sync replicas, the leader among them.
    pub isr: Vec<BrokerId>,
    /// Those of the replicas that a reassignment brings: they do not count as missing yet.
    pub adding: Vec<BrokerId>,
}

/// The two settings that decide what is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicationLimits {
    /// `min.insync.replicas`. Kafka takes the number of replicas where that is smaller.
    pub min_isr: usize,
    /// `replica.lag.time.max.ms`.
    pub max_lag_ms: i64,
}

/// How the metadata knows a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Registration {
    /// Under which epoch it is registered.
    pub epoch: BrokerEpoch,
    /// Neither fenced nor in a controlled shutdown.
    pub active: bool,
}

impl Registration {
    /// KIP-903: whether a broker that fetches under `fetched_as` may join in-sync replicas. Under another epoch it is
    /// another life of that broker, which may have lost what it had; -1 comes from a protocol without epochs.
    pub(crate) fn lets_join(self, fetched_as: BrokerEpoch) -> bool {
        self.active && (fetched_as == BrokerEpoch::NONE || fetched_as == self.epoch)
    }
}
