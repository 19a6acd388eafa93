//! ListOffsets: where a partition begins and ends, and which record was the first at a time.
//!
//! Only the leader answers. What it tells a consumer never lies behind the high watermark (or the last stable offset).

use std::collections::HashSet;

use gregor_log::{LogError, PartitionLog, TimestampAndOffset};
use gregor_messages::{
    ListOffsetsRequest, ListOffsetsResponse,
    list_offsets_request::ListOffsetsPartition,
    list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse},
};
use gregor_metadata::MetadataImage;
use gregor_replication::LeaderState;
use gregor_types::{ErrorCode, LeaderEpoch, Offset, Timestamp};

use crate::api::Context;

/// The timestamps that mean something else, each with the first version that knows it.
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;
const EARLIEST_PENDING_UPLOAD: i64 = -6;
const SPECIAL: [(i64, i16); 6] = [
    (LATEST, 1),
    (EARLIEST, 1),
    (MAX_TIMESTAMP, 7),
    (EARLIEST_LOCAL, 8),
    (LATEST_TIERED, 9),
    (EARLIEST_PENDING_UPLOAD, 11),
];

/// A consumer that reads committed records only.
const READ_COMMITTED: i8 = 1;
/// A consumer, in `replica_id`.
const CONSUMER: i32 = -1;
/// From this version on a client understands that the answer is not known yet (KIP-207).
const FIRST_VERSION_WITH_LEADER_EPOCH: i16 = 4;
const FIRST_VERSION_WITH_OFFSET_NOT_AVAILABLE: i16 = 5;

/// What is answered for one partition.
type Answer = Result<TimestampAndOffset, ErrorCode>;

const NOTHING: TimestampAndOffset =
    TimestampAndOffset { timestamp: Timestamp::NONE, offset: Offset::NONE, leader_epoch: LeaderEpoch::NONE };

/// Answers a request.
pub(crate) async fn handle(context: &Context, request: ListOffsetsRequest, version: i16) -> ListOffsetsResponse {
    let image = context.broker.image();
    let mut seen = HashSet::new();
    let mut twice = HashSet::new();
    for topic in &request.topics {
        for partition in &topic.partitions {
            let key = (topic.name.clone(), partition.partition_index);
            if !seen.insert(key.clone()) {
                twice.insert(key);
            }
        }
    }
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let answer = |partition: &ListOffsetsPartition| {
            let answer = if twice.contains(&(topic.name.clone(), partition.partition_index)) {
                Err(ErrorCode::InvalidRequest)
            } else {
                answer(context, &image, &request, &topic.name, partition, version)
            };
            shown(partition.partition_index, answer, version)
        };
        topics.push(ListOffsetsTopicResponse {
            name: topic.name.clone(),
            partitions: topic.partitions.iter().map(answer).collect(),
            ..Default::default()
        });
    }
    ListOffsetsResponse { topics, ..Default::default() }
}

fn answer(
    context: &Context,
    image: &MetadataImage,
    request: &ListOffsetsRequest,
    topic: &str,
    wanted: &ListOffsetsPartition,
    version: i16,
) -> Answer {
    let timestamp = wanted.timestamp;
    let is_known = SPECIAL.iter().any(|(special, since)| *special == timestamp && version >= *since);
    if timestamp < 0 && !is_known {
        return Err(ErrorCode::UnsupportedVersion);
    }
    let partition = context.broker.partitions.find(topic, wanted.partition_index, image)?;
    let read_committed = request.isolation_level == READ_COMMITTED;
    let is_consumer = request.replica_id == CONSUMER;
    let answer = partition.with_leader(LeaderEpoch(wanted.current_leader_epoch), |log, leader| {
        find(log, leader, timestamp, is_consumer, read_committed)
    })?;
    answer.map_err(|error| match error {
        ErrorCode::OffsetNotAvailable if version < FIRST_VERSION_WITH_OFFSET_NOT_AVAILABLE => {
            ErrorCode::LeaderNotAvailable
        }
        error => error,
    })
}

fn find(
    log: &mut PartitionLog,
    leader: &LeaderState,
    timestamp: i64,
    is_consumer: bool,
    read_committed: bool,
) -> Result<Answer, LogError> {
    let end = match (is_consumer, read_committed) {
        (false, _) => log.end_offset(),
        (true, false) => leader.high_watermark(),
        (true, true) => log.last_stable_offset(leader.high_watermark()),
    };
    // KIP-207: until a new leader's high watermark has passed the start of its epoch, what it knows may be behind what the
    // last leader told already.
    let may_go_back = is_consumer && leader.high_watermark() < leader.epoch_start();
    if may_go_back && (timestamp == LATEST || timestamp == MAX_TIMESTAMP || timestamp >= 0) {
        return Ok(Err(ErrorCode::OffsetNotAvailable));
    }
    Ok(Ok(match timestamp {
        LATEST => TimestampAndOffset { timestamp: Timestamp::NONE, offset: end, leader_epoch: leader.leader_epoch() },
        EARLIEST | EARLIEST_LOCAL => {
            let start = log.start_offset();
            let leader_epoch = log.epoch_at(start).unwrap_or(LeaderEpoch::NONE);
            TimestampAndOffset { timestamp: Timestamp::NONE, offset: start, leader_epoch }
        }
        // Nothing is in tiered storage, which is what Kafka says without it as well.
        LATEST_TIERED | EARLIEST_PENDING_UPLOAD => NOTHING,
        MAX_TIMESTAMP => log.max_timestamp()?.filter(|found| found.offset < end).unwrap_or(NOTHING),
        timestamp => {
            let found = log.offset_for_timestamp(Timestamp(timestamp))?;
            found.filter(|found| found.offset < end).unwrap_or(NOTHING)
        }
    }))
}

fn shown(partition_index: i32, answer: Answer, version: i16) -> ListOffsetsPartitionResponse {
    let (error, found) = match answer {
        Ok(found) => (ErrorCode::None, found),
        Err(error) => (error, NOTHING),
    };
    ListOffsetsPartitionResponse {
        partition_index,
        error_code: error.code(),
        timestamp: found.timestamp.value(),
        offset: found.offset.value(),
        leader_epoch: if version >= FIRST_VERSION_WITH_LEADER_EPOCH { found.leader_epoch.value() } else { -1 },
        ..Default::default()
    }
}
