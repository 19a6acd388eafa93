//! Fetch of the metadata log, by voters and observers (KIP-595).

use gregor_messages::{
    FetchRequest, FetchResponse,
    fetch_response::{
        EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, PartitionData, SnapshotId as SnapshotIdField,
    },
};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Offset, Uuid, planted::planted};

use crate::{
    Effect, Effects, LogView, METADATA_TOPIC, Now, OffsetAndEpoch, Origin, Quorum, ReplicaKey, Reply, RequestId, Role,
    SnapshotId, api::LogRead, leader::Waiting, time::Countdown,
};

/// The version from which a topic is named by id.
const VERSION_OF_TOPIC_IDS: i16 = 13;
/// The version from which an answer can name the leader's address.
const VERSION_OF_ENDPOINTS: i16 = 17;
/// The most bytes of records in one answer (`KafkaRaftClient.MAX_FETCH_SIZE_BYTES`).
pub(super) const MAX_FETCH_BYTES: i32 = 8 * 1024 * 1024;

/// What is left of a valid fetch while it waits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FetchPlan {
    pub(crate) origin: Origin,
    pub(crate) from: Offset,
    pub(crate) max_bytes: u32,
    pub(crate) log_start: Offset,
    /// The high watermark that the fetcher says it knows; before version 18 it does not say.
    pub(crate) known_high_watermark: Offset,
}

/// What the log says to an offset and the epoch of the record before it.
enum Position {
    Valid,
    Diverging(OffsetAndEpoch),
    Snapshot(SnapshotId),
}

impl Quorum {
    pub(crate) fn on_fetch(
        &mut self,
        id: RequestId,
        origin: &Origin,
        request: &FetchRequest,
        log: &dyn LogView,
        now: Now,
        effects: &mut Effects,
    ) {
        if !self.is_our_cluster(request.cluster_id.as_ref()) {
            return reply_error(id, ErrorCode::InconsistentClusterId, effects);
        }
        let [topic] = request.topics.as_slice() else {
            return reply_error(id, ErrorCode::InvalidRequest, effects);
        };
        let named = if origin.version >= VERSION_OF_TOPIC_IDS {
            topic.topic_id == Uuid::METADATA_TOPIC
        } else {
            topic.topic == METADATA_TOPIC
        };
        let [partition] = topic.partitions.as_slice() else {
            return reply_error(id, ErrorCode::InvalidRequest, effects);
        };
        if !named || partition.partition != 0 {
            return reply_error(id, ErrorCode::InvalidRequest, effects);
        }
        let plan = FetchPlan {
            origin: origin.clone(),
            from: Offset(partition.fetch_offset),
            max_bytes: request.max_bytes.min(partition.partition_max_bytes).clamp(0, MAX_FETCH_BYTES) as u32,
            log_start: log.start(),
            known_high_watermark: Offset(partition.high_watermark),
        };
        let last_epoch = LeaderEpoch(partition.last_fetched_epoch);
        let invalid = request.max_wait_ms < 0
            || plan.from < Offset::ZERO
            || last_epoch < LeaderEpoch(0)
            || partition.current_leader_epoch < 0
            || last_epoch > LeaderEpoch(partition.current_leader_epoch);
        let checked = if invalid {
            Err(ErrorCode::InvalidRequest)
        } else {
            self.check_leader(LeaderEpoch(partition.current_leader_epoch))
        };
        if let Err(error) = checked {
            let answer = self.fetch_answer(&plan, error, |_| {});
            effects.push(Effect::Reply { after: None, to: id, reply: Reply::Fetch(answer), read: None });
            return;
        }
        match position(plan.from, last_epoch, log) {
            Position::Diverging(end) => {
                let answer = self.fetch_answer(&plan, ErrorCode::None, |data| {
                    data.diverging_epoch = EpochEndOffset {
                        epoch: end.epoch.value(),
                        end_offset: end.offset.value(),
                        ..Default::default()
                    };
                });
                effects.reply(None, id, Reply::Fetch(answer));
            }
            Position::Snapshot(snapshot) => {
                let answer = self.fetch_answer(&plan, ErrorCode::None, |data| {
                    data.snapshot_id = SnapshotIdField {
                        end_offset: snapshot.offset.value(),
                        epoch: snapshot.epoch.value(),
                        ..Default::default()
                    };
                });
                effects.reply(None, id, Reply::Fetch(answer));
            }
            Position::Valid => {
                let node = if origin.version >= 15 { request.replica_state.replica_id } else { request.replica_id };
                self.note_fetch(BrokerId(node), partition.replica_directory_id, plan.from, effects);
                let waiting = Waiting { id, plan, timeout: Countdown::new(request.max_wait_ms as u64 * 1_000_000) };
                if waiting.plan.from < log.end().offset {
                    let read = Some(LogRead { from: waiting.plan.from, max_bytes: waiting.plan.max_bytes });
                    self.answer_fetch(&waiting, ErrorCode::None, read, log.start(), now, effects);
                } else if request.max_wait_ms == 0
                    || self.high_watermark.is_some_and(|known| waiting.plan.known_high_watermark < known)
                {
                    self.answer_fetch(&waiting, ErrorCode::None, None, log.start(), now, effects);
                } else {
                    self.wait_for_records(waiting, now, effects);
                }
            }
        }
    }

    /// Takes note of how far a replica is; a consumer or a tool (id -1) is none.
    fn note_fetch(&mut self, node: BrokerId, directory: Uuid, from: Offset, effects: &mut Effects) {
        if node.value() < 0 {
            return;
        }
        let key = ReplicaKey::new(node, directory);
        // Static voters have no directory in the set.
        let voter = self.voters().voter(node).filter(|_| self.voters().contains(key)).map(|voter| voter.key);
        if let Role::Leader(leader) = &mut self.role {
            leader.on_fetched(voter.unwrap_or(key), from, self.history.voters());
            if voter.is_some() {
                leader.followed_by.insert(node);
            }
        }
        self.update_high_watermark(effects);
    }

    pub(crate) fn answer_fetch(
        &mut self,
        waiting: &Waiting,
        error: ErrorCode,
        read: Option<LogRead>,
        log_start: Offset,
        _now: Now,
        effects: &mut Effects,
    ) {
        let plan = FetchPlan { log_start, ..waiting.plan.clone() };
        let answer = self.fetch_answer(&plan, error, |_| {});
        effects.push(Effect::Reply { after: None, to: waiting.id, reply: Reply::Fetch(answer), read });
    }

    fn fetch_answer(&self, plan: &FetchPlan, error: ErrorCode, fill: impl FnOnce(&mut PartitionData)) -> FetchResponse {
        let mut data = PartitionData {
            partition_index: 0,
            error_code: error.code(),
            high_watermark: self.high_watermark.unwrap_or(Offset::NONE).value(),
            last_stable_offset: -1,
            log_start_offset: plan.log_start.value(),
            current_leader: LeaderIdAndEpoch {
                leader_id: self.leader_or_none(),
                leader_epoch: self.epoch().value(),
                ..Default::default()
            },
            records: Some(bytes::Bytes::new()),
            ..Default::default()
        };
        fill(&mut data);
        let mut topic = FetchableTopicResponse { partitions: vec![data], ..Default::default() };
        if plan.origin.version >= VERSION_OF_TOPIC_IDS {
            topic.topic_id = Uuid::METADATA_TOPIC;
        } else {
            topic.topic = METADATA_TOPIC.into();
        }
        let node_endpoints = self.leader_nodes(&plan.origin, VERSION_OF_ENDPOINTS);
        FetchResponse { responses: vec![topic], node_endpoints, ..Default::default() }
    }
}

fn reply_error(id: RequestId, error: ErrorCode, effects: &mut Effects) {
    let answer = FetchResponse { error_code: error.code(), ..Default::default() };
    effects.reply(None, id, Reply::Fetch(answer));
}

/// `KafkaRaftClient.validateFetchOffsetAndEpoch` and `ReplicatedLog.validateOffsetAndEpoch`.
fn position(from: Offset, last_epoch: LeaderEpoch, log: &dyn LogView) -> Position {
    if from == Offset::ZERO {
        // For an empty follower a snapshot is always the shorter way; what formatting wrote is each node's own and never served.
        if let Some(snapshot) = log.latest_snapshot().filter(|id| *id != SnapshotId::BOOTSTRAP) {
            return Position::Snapshot(snapshot);
        }
        if log.start() == Offset::ZERO && last_epoch == LeaderEpoch(0) {
            return Position::Valid;
        }
    }
    if let (Some(earliest), Some(latest)) = (log.earliest_snapshot(), log.latest_snapshot()) {
        let start = log.start();
        let too_old = from < start || (from == start && last_epoch != earliest.epoch) || last_epoch < earliest.epoch;
        if too_old && latest != SnapshotId::BOOTSTRAP {
            return Position::Snapshot(latest);
        }
    }
    let end = log.end_of_epoch(last_epoch);
    let parts = (end.epoch != last_epoch || end.offset < from) && !planted("metadata-divergence-unchecked");
    if parts { Position::Diverging(end) } else { Position::Valid }
}
