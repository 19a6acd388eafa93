//! In which log directory a replica is, and how the controller gets to know (KIP-858).

use std::collections::BTreeMap;

use gregor_messages::{
    AssignReplicasToDirsRequest, AssignReplicasToDirsResponse,
    assign_replicas_to_dirs_request::{DirectoryData, PartitionData, TopicData},
};
use gregor_types::{BrokerEpoch, BrokerId, DirectoryId, ErrorCode, PartitionIndex, TopicId, Uuid};

use crate::Nanos;

/// No request reports more replicas than this (`AssignmentsManager.MAX_ASSIGNMENTS_PER_REQUEST`).
const MAX_REPORTS: usize = 2_250;
const RETRY_PAUSE: Nanos = 500_000_000;

/// A log directory that is online.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalDirectory {
    /// Its id.
    pub id: DirectoryId,
    /// How many partitions it holds.
    pub partitions: usize,
    /// Whether it is to get no new ones (KIP-1066).
    pub cordoned: bool,
}

/// The directory of a new replica: the one that the metadata says, if it is here; else the one with the fewest partitions that is not
/// cordoned, or, if all are, the one with the fewest. `None` if no directory is online.
pub fn choose_directory(assigned: DirectoryId, online: &[LocalDirectory]) -> Option<DirectoryId> {
    if online.iter().any(|directory| directory.id == assigned) {
        return Some(assigned);
    }
    let fewest = online.iter().min_by_key(|directory| (directory.cordoned, directory.partitions));
    fewest.map(|directory| directory.id)
}

/// Whether the controller is to be told that a replica is in `actual`, where the metadata says `assigned`. `online` are the ids of
/// this broker's directories that work.
///
/// A replica in a directory that failed is told too where the metadata has it in one that works: the controller learned of a move
/// that the failure cut off, and would keep a replica that is gone, or elect it (Kafka reverts such an assignment in
/// `ReplicaAlterLogDirsThread`). Where it knows of no good directory it waits for none.
pub fn is_to_be_reported(assigned: DirectoryId, actual: DirectoryId, online: &[DirectoryId]) -> bool {
    let is_unknown = assigned == Uuid::DIRECTORY_UNASSIGNED || assigned == Uuid::DIRECTORY_MIGRATING;
    let is_offline = !online.contains(&actual);
    // A directory that could not be read has no id to report.
    assigned != actual && actual != Uuid::DIRECTORY_LOST && (!is_offline || is_unknown || online.contains(&assigned))
}

/// Replicas whose directory the controller does not know yet, told in batches, one request at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct DirectoryReports {
    pending: BTreeMap<(TopicId, PartitionIndex), DirectoryId>,
    under_way: Option<BTreeMap<(TopicId, PartitionIndex), DirectoryId>>,
    not_before: Nanos,
}

impl DirectoryReports {
    /// Remembers to report a replica; a later report of the same one replaces it.
    pub fn report(&mut self, topic: TopicId, index: PartitionIndex, directory: DirectoryId) {
        self.pending.insert((topic, index), directory);
    }

    /// The next request to send, if there is something to tell and nothing under way.
    pub fn next_request(
        &mut self,
        broker: BrokerId,
        epoch: BrokerEpoch,
        now: Nanos,
    ) -> Option<AssignReplicasToDirsRequest> {
        if self.under_way.is_some() || self.pending.is_empty() || now < self.not_before {
            return None;
        }
        let mut batch = BTreeMap::new();
        while batch.len() < MAX_REPORTS {
            let Some((replica, directory)) = self.pending.pop_first() else { break };
            batch.insert(replica, directory);
        }
        let mut directories: BTreeMap<DirectoryId, BTreeMap<TopicId, Vec<PartitionData>>> = BTreeMap::new();
        for ((topic, index), directory) in &batch {
            let partition = PartitionData { partition_index: index.value(), ..Default::default() };
            directories.entry(*directory).or_default().entry(*topic).or_default().push(partition);
        }
        self.under_way = Some(batch);
        let topic = |(topic_id, partitions)| TopicData { topic_id, partitions, ..Default::default() };
        let directory = |(id, topics): (DirectoryId, BTreeMap<TopicId, Vec<PartitionData>>)| DirectoryData {
            id,
            topics: topics.into_iter().map(topic).collect(),
            ..Default::default()
        };
        Some(AssignReplicasToDirsRequest {
            broker_id: broker.value(),
            broker_epoch: epoch.value(),
            directories: directories.into_iter().map(directory).collect(),
            ..Default::default()
        })
    }

    /// Takes the answer; `None` if the controller could not be reached. What it did not take is told again.
    pub fn answered(&mut self, response: Option<&AssignReplicasToDirsResponse>, now: Nanos) {
        let Some(batch) = self.under_way.take() else { return };
        let taken = response.filter(|response| response.error_code == 0);
        let Some(response) = taken else {
            self.not_before = now + RETRY_PAUSE;
            for (replica, directory) in batch {
                self.pending.entry(replica).or_insert(directory);
            }
            return;
        };
        for directory in &response.directories {
            for topic in &directory.topics {
                for partition in &topic.partitions {
                    let replica = (topic.topic_id, PartitionIndex(partition.partition_index));
                    let again = ErrorCode::from_code(partition.error_code) == Some(ErrorCode::OperationNotAttempted);
                    if let Some(reported) = batch.get(&replica).filter(|_| again) {
                        self.not_before = now + RETRY_PAUSE;
                        self.pending.entry(replica).or_insert(*reported);
                    }
                }
            }
        }
    }

    /// How many replicas are still to be told of, those under way among them (`QueuedReplicaToDirAssignments`).
    pub fn queued(&self) -> usize {
        self.pending.len() + self.under_way.as_ref().map_or(0, BTreeMap::len)
    }

    /// When [`next_request`](Self::next_request) may have something, if ever.
    pub fn next_deadline(&self) -> Option<Nanos> {
        (!self.pending.is_empty() && self.under_way.is_none()).then_some(self.not_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: DirectoryId = Uuid(0x1111_2222_3333_4444_8555_6666_7777_8888);
    const SECOND: DirectoryId = Uuid(0x2111_2222_3333_4444_8555_6666_7777_8888);

    #[test]
    fn a_replica_that_works_is_reported_wherever_the_metadata_does_not_say_so() {
        let both = [FIRST, SECOND];
        assert!(!is_to_be_reported(FIRST, FIRST, &both));
        for assigned in [SECOND, Uuid::DIRECTORY_UNASSIGNED, Uuid::DIRECTORY_MIGRATING, Uuid::DIRECTORY_LOST] {
            assert!(is_to_be_reported(assigned, FIRST, &both), "{assigned}");
        }
    }

    #[test]
    fn a_replica_that_is_gone_is_reported_only_where_the_controller_takes_it_for_good_or_knows_nothing() {
        let online = [SECOND];
        assert!(is_to_be_reported(SECOND, FIRST, &online), "its move was cut off");
        assert!(is_to_be_reported(Uuid::DIRECTORY_UNASSIGNED, FIRST, &online));
        assert!(!is_to_be_reported(FIRST, FIRST, &online));
        assert!(!is_to_be_reported(Uuid::DIRECTORY_LOST, FIRST, &online));
        assert!(!is_to_be_reported(SECOND, FIRST, &[]), "both are gone");
        assert!(
            !is_to_be_reported(SECOND, Uuid::DIRECTORY_LOST, &online),
            "nobody knows the id of what cannot be read"
        );
    }
}
