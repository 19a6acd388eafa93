//! OffsetForLeaderEpoch: where the records of an epoch end, so that a consumer notices a log that was cut back (KIP-320).

use gregor_messages::{
    OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
    offset_for_leader_epoch_request::OffsetForLeaderPartition,
    offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult},
};
use gregor_types::{ErrorCode, LeaderEpoch};

use crate::api::Context;

/// Answers a request.
pub(crate) async fn handle(
    context: &Context,
    request: OffsetForLeaderEpochRequest,
    _version: i16,
) -> OffsetForLeaderEpochResponse {
    let image = context.broker.image();
    let find = |topic: &str, wanted: &OffsetForLeaderPartition| -> Result<gregor_log::EpochEndOffset, ErrorCode> {
        let partition = context.broker.partitions.find(topic, wanted.partition, &image)?;
        partition.with_leader(LeaderEpoch(wanted.current_leader_epoch), |log, _| {
            Ok(log.end_offset_for_epoch(LeaderEpoch(wanted.leader_epoch)))
        })
    };
    let shown = |topic: &str, wanted: &OffsetForLeaderPartition| match find(topic, wanted) {
        Ok(end) => EpochEndOffset {
            partition: wanted.partition,
            leader_epoch: end.leader_epoch.value(),
            end_offset: end.end_offset.value(),
            ..Default::default()
        },
        Err(error) => EpochEndOffset { partition: wanted.partition, error_code: error.code(), ..Default::default() },
    };
    let topics = request.topics.iter().map(|topic| OffsetForLeaderTopicResult {
        topic: topic.topic.clone(),
        partitions: topic.partitions.iter().map(|wanted| shown(&topic.topic, wanted)).collect(),
        ..Default::default()
    });
    OffsetForLeaderEpochResponse { topics: topics.collect(), ..Default::default() }
}
