//! What a fetcher decided, as requests of Kafka's protocol, and their answers as it understands them.
//!
//! Only the worker uses it. Partitions stand in a request in the fetcher's order, which is who had to wait longest.

use gregor_messages::{
    FetchRequest, ListOffsetsRequest, ListOffsetsResponse,
    fetch_request::{FetchPartition, FetchTopic, ForgottenTopic, ReplicaState},
    fetch_response::PartitionData,
    list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
};
use gregor_replication::{EpochEnd, FetchPlan, FollowedPartition, LogSide, OffsetLookUp, PartitionAnswer};
use gregor_types::{ErrorCode, KString, LeaderEpoch, Offset};

use super::Shared;
use crate::partition::leader_marks;

/// The timestamps of ListOffsets that ask for the ends of a log.
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;

pub(super) fn fetch(shared: &Shared, plan: &FetchPlan, max_wait_ms: i32) -> FetchRequest {
    let config = &shared.config;
    let topic = |wanted: &[(FollowedPartition, gregor_replication::FetchPosition)]| FetchTopic {
        topic_id: wanted[0].0.topic_id,
        partitions: wanted
            .iter()
            .map(|(partition, position)| FetchPartition {
                partition: partition.partition.value(),
                current_leader_epoch: position.leader_epoch.value(),
                fetch_offset: position.offset.value(),
                last_fetched_epoch: position.last_fetched_epoch.value(),
                log_start_offset: position.log_start.value(),
                partition_max_bytes: config.replica_fetch_max_bytes,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let forgotten = |partition: &FollowedPartition| ForgottenTopic {
        topic_id: partition.topic_id,
        partitions: vec![partition.partition.value()],
        ..Default::default()
    };
    FetchRequest {
        replica_state: ReplicaState {
            replica_id: shared.me.value(),
            replica_epoch: shared.epoch().value(),
            ..Default::default()
        },
        max_wait_ms,
        min_bytes: config.replica_fetch_min_bytes,
        max_bytes: config.replica_fetch_response_max_bytes,
        session_id: plan.session_id,
        session_epoch: plan.session_epoch,
        topics: plan.wanted.chunk_by(|one, other| one.0.topic_id == other.0.topic_id).map(topic).collect(),
        forgotten_topics_data: plan.forgotten.iter().map(forgotten).collect(),
        ..Default::default()
    }
}

pub(super) fn answer(partition: &PartitionData) -> PartitionAnswer {
    let diverging = &partition.diverging_epoch;
    let parts = diverging.epoch >= 0 || diverging.end_offset >= 0;
    PartitionAnswer {
        error: ErrorCode::from(partition.error_code),
        leader: leader_marks(partition.high_watermark, partition.log_start_offset),
        diverging: parts.then_some(EpochEnd { epoch: LeaderEpoch(diverging.epoch), end: Offset(diverging.end_offset) }),
    }
}

pub(super) fn look_up(
    shared: &Shared,
    asked: &[OffsetLookUp],
    topic_of: impl Fn(FollowedPartition) -> Option<KString>,
) -> ListOffsetsRequest {
    let topic = |asked: &OffsetLookUp| {
        let partition = ListOffsetsPartition {
            partition_index: asked.partition.partition.value(),
            current_leader_epoch: asked.leader_epoch.value(),
            timestamp: if asked.end == LogSide::Latest { LATEST } else { EARLIEST },
            ..Default::default()
        };
        Some(ListOffsetsTopic { name: topic_of(asked.partition)?, partitions: vec![partition], ..Default::default() })
    };
    ListOffsetsRequest {
        replica_id: shared.me.value(),
        topics: asked.iter().filter_map(topic).collect(),
        ..Default::default()
    }
}

/// What was answered for one of the partitions that were asked for.
pub(super) fn looked_up(
    response: Option<&ListOffsetsResponse>,
    topic: Option<&KString>,
    asked: &OffsetLookUp,
) -> Result<Offset, ErrorCode> {
    let topics = response.ok_or(ErrorCode::NetworkException)?.topics.iter();
    let mut partitions = topics.filter(|answered| Some(&answered.name) == topic).flat_map(|topic| &topic.partitions);
    let answered = partitions.find(|answered| answered.partition_index == asked.partition.partition.value());
    let answered = answered.ok_or(ErrorCode::UnknownTopicOrPartition)?;
    match ErrorCode::from(answered.error_code) {
        ErrorCode::None => Ok(Offset(answered.offset)),
        error => Err(error),
    }
}
