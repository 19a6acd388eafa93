//! The record that takes a partition from what it is to what it should be (`PartitionChangeBuilder`).

use gregor_metadata::{Cluster, LeaderRecoveryState, MetadataVersion, Partition};
use gregor_state_records::metadata::PartitionChangeRecord;
use gregor_types::{BrokerId, DirectoryId, PartitionIndex, TopicId, Uuid};

/// In a change: the leader and its epoch stay.
const NO_LEADER_CHANGE: i32 = -2;

/// Who may become leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Election {
    /// The first replica if it can, else as `Online`.
    Preferred,
    /// The leader stays if it can; else the first replica in the ISR that can.
    Online,
    /// As `Online`, and if there is none, the first replica that is up, though it may lack records.
    Unclean,
}

/// A change in the making.
pub(crate) struct PartitionChange<'a> {
    /// What is.
    pub(crate) partition: &'a Partition,
    /// The in-sync replicas to be.
    pub(crate) isr: Vec<BrokerId>,
    /// Whether a broker may lead.
    pub(crate) may_lead: &'a dyn Fn(BrokerId) -> bool,
    /// How to choose the leader.
    pub(crate) election: Election,
    /// Whether the leader has recovered.
    pub(crate) recovery: LeaderRecoveryState,
    /// The replicas to be, those that leave included.
    pub(crate) replicas: Vec<BrokerId>,
    /// Replicas that leave once the others are in sync.
    pub(crate) removing: Vec<BrokerId>,
    /// Replicas that are new.
    pub(crate) adding: Vec<BrokerId>,
    /// The finalized level.
    pub(crate) version: MetadataVersion,
}

impl<'a> PartitionChange<'a> {
    /// A change of nothing yet.
    pub(crate) fn new(
        partition: &'a Partition,
        may_lead: &'a dyn Fn(BrokerId) -> bool,
        version: MetadataVersion,
    ) -> Self {
        Self {
            partition,
            isr: partition.isr.clone(),
            may_lead,
            election: Election::Online,
            recovery: partition.leader_recovery,
            replicas: partition.replicas.clone(),
            removing: partition.removing.clone(),
            adding: partition.adding.clone(),
            version,
        }
    }

    /// The record; none if nothing would change.
    pub(crate) fn build(
        mut self,
        topic: TopicId,
        index: PartitionIndex,
        cluster: &Cluster,
    ) -> Option<PartitionChangeRecord> {
        self.complete_reassignment();
        // Without eligible leader replicas the last in-sync replica stays the last one: it alone has everything.
        if self.isr.is_empty() {
            self.isr.clone_from(&self.partition.isr);
        }
        let (leader, unclean) = self.elect();
        if unclean {
            self.isr = leader.into_iter().collect();
            self.recovery = LeaderRecoveryState::Recovering;
        }
        let mut record = PartitionChangeRecord {
            partition_id: index.value(),
            topic_id: topic,
            leader: NO_LEADER_CHANGE,
            leader_recovery_state: -1,
            ..Default::default()
        };
        let mut changed = false;
        let shrunk = self.partition.isr.iter().any(|replica| !self.isr.contains(replica));
        // A replica that goes must not be waited for any more by a leader that has not heard of it.
        let leaves = self.partition.replicas.iter().any(|replica| !self.replicas.contains(replica));
        let bump = leaves || (shrunk && self.version.bumps_leader_epoch_on_isr_shrink());
        if leader != self.partition.leader || bump {
            record.leader = leader.unwrap_or(BrokerId::NONE).value();
            changed = true;
        }
        let numbers = |brokers: &[BrokerId]| Some(brokers.iter().map(|broker| broker.value()).collect());
        if self.isr != self.partition.isr {
            record.isr = numbers(&self.isr);
            changed = true;
        }
        if self.replicas != self.partition.replicas {
            record.replicas = numbers(&self.replicas);
            if self.version.has_directory_assignment() {
                record.directories = Some(self.directories(cluster));
            }
            changed = true;
        }
        if self.removing != self.partition.removing {
            record.removing_replicas = numbers(&self.removing);
            changed = true;
        }
        if self.adding != self.partition.adding {
            record.adding_replicas = numbers(&self.adding);
            changed = true;
        }
        if self.recovery != self.partition.leader_recovery {
            record.leader_recovery_state = self.recovery.code();
            changed = true;
        }
        changed.then_some(record)
    }

    /// Lets the replicas go that leave, once all others are in sync.
    fn complete_reassignment(&mut self) {
        if self.removing.is_empty() && self.adding.is_empty() {
            return;
        }
        let stay = |brokers: &[BrokerId]| -> Vec<BrokerId> {
            brokers.iter().copied().filter(|broker| !self.removing.contains(broker)).collect()
        };
        let (replicas, isr) = (stay(&self.replicas), stay(&self.isr));
        if !replicas.is_empty() && replicas.iter().all(|replica| isr.contains(replica)) {
            (self.replicas, self.isr) = (replicas, isr);
            self.removing.clear();
            self.adding.clear();
        }
    }

    /// Where each of the replicas is, or will be.
    fn directories(&self, cluster: &Cluster) -> Vec<DirectoryId> {
        let new =
            |replica| cluster.broker(replica).map_or(Uuid::DIRECTORY_UNASSIGNED, |broker| broker.default_directory());
        let directory = |replica: &BrokerId| self.partition.directory_of(*replica).unwrap_or_else(|| new(*replica));
        self.replicas.iter().map(directory).collect()
    }

    /// The leader to be, and whether it may lack records.
    fn elect(&self) -> (Option<BrokerId>, bool) {
        let valid = |replica: &BrokerId| self.isr.contains(replica) && (self.may_lead)(*replica);
        if self.election == Election::Preferred
            && let Some(preferred) = self.replicas.first().copied().filter(valid)
        {
            return (Some(preferred), false);
        }
        if let Some(leader) = self.partition.leader.filter(valid) {
            return (Some(leader), false);
        }
        if let Some(replica) = self.replicas.iter().copied().find(valid) {
            return (Some(replica), false);
        }
        if self.election == Election::Unclean
            && let Some(replica) = self.replicas.iter().copied().find(|replica| (self.may_lead)(*replica))
        {
            return (Some(replica), true);
        }
        (None, false)
    }
}
