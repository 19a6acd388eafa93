//! FetchSnapshot: a follower that is too far behind takes a snapshot in pieces (KIP-630).

use gregor_messages::{
    FetchSnapshotRequest, FetchSnapshotResponse,
    fetch_snapshot_response::{LeaderIdAndEpoch, PartitionSnapshot, SnapshotId as SnapshotIdField, TopicSnapshot},
};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Offset};

use super::{Origin, VERSION_OF_ENDPOINTS, fetch::MAX_FETCH_BYTES};
use crate::{LogView, METADATA_TOPIC, OffsetAndEpoch, Quorum, ReplicaKey, Role, api::SnapshotRead};

impl Quorum {
    pub(crate) fn on_fetch_snapshot(
        &mut self,
        origin: &Origin,
        request: &FetchSnapshotRequest,
        log: &dyn LogView,
    ) -> (FetchSnapshotResponse, Option<SnapshotRead>) {
        let failed =
            |error: ErrorCode| (FetchSnapshotResponse { error_code: error.code(), ..Default::default() }, None);
        if !self.is_our_cluster(request.cluster_id.as_ref()) {
            return failed(ErrorCode::InconsistentClusterId);
        }
        let [topic] = request.topics.as_slice() else { return failed(ErrorCode::InvalidRequest) };
        let [partition] = topic.partitions.as_slice() else { return failed(ErrorCode::InvalidRequest) };
        let id =
            OffsetAndEpoch::new(Offset(partition.snapshot_id.end_offset), LeaderEpoch(partition.snapshot_id.epoch));
        let checked = if topic.name != METADATA_TOPIC || partition.partition != 0 {
            Err(ErrorCode::UnknownTopicOrPartition)
        } else {
            self.check_leader(LeaderEpoch(partition.current_leader_epoch))
                .and_then(|()| piece(id, partition.position, log))
        };
        let mut answer = PartitionSnapshot {
            index: partition.partition,
            snapshot_id: SnapshotIdField {
                end_offset: id.offset.value(),
                epoch: id.epoch.value(),
                ..Default::default()
            },
            current_leader: LeaderIdAndEpoch {
                leader_id: self.leader_or_none(),
                leader_epoch: self.epoch().value(),
                ..Default::default()
            },
            ..Default::default()
        };
        let read = match checked {
            Err(error) => {
                answer.error_code = error.code();
                None
            }
            Ok(size) => {
                let replica = ReplicaKey::new(BrokerId(request.replica_id), partition.replica_directory_id);
                self.note_snapshot_fetch(replica);
                answer.size = size;
                answer.position = partition.position;
                Some(SnapshotRead {
                    id,
                    position: partition.position as u64,
                    max_bytes: request.max_bytes.clamp(0, MAX_FETCH_BYTES) as u32,
                })
            }
        };
        let topic = TopicSnapshot { name: topic.name.clone(), partitions: vec![answer], ..Default::default() };
        let node_endpoints = self.leader_nodes(origin, VERSION_OF_ENDPOINTS);
        (FetchSnapshotResponse { topics: vec![topic], node_endpoints, ..Default::default() }, read)
    }

    /// A voter that takes a snapshot follows: it must not look dead while it has no time to fetch records.
    fn note_snapshot_fetch(&mut self, replica: ReplicaKey) {
        let voter = self.voters().voter(replica.id).filter(|_| self.voters().contains(replica)).map(|voter| voter.key);
        if let (Role::Leader(leader), Some(voter)) = (&mut self.role, voter) {
            leader.on_snapshot_fetched(voter);
            leader.followed_by.insert(voter.id);
        }
    }
}

/// The size of the snapshot, if it is there and has a byte at that position.
fn piece(id: OffsetAndEpoch, position: i64, log: &dyn LogView) -> Result<i64, ErrorCode> {
    if id == OffsetAndEpoch::BOOTSTRAP {
        return Err(ErrorCode::SnapshotNotFound);
    }
    let size = log.snapshot_size(id).ok_or(ErrorCode::SnapshotNotFound)? as i64;
    if (0..size).contains(&position) { Ok(size) } else { Err(ErrorCode::PositionOutOfRange) }
}
