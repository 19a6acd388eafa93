//! DeleteRecords: moves a partition's start up, at most to its high watermark.
//!
//! Whole segments before the start go with the next retention; the offset itself is what clients see at once.

use gregor_messages::{
    DeleteRecordsRequest, DeleteRecordsResponse,
    delete_records_request::DeleteRecordsPartition,
    delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult},
};
use gregor_metadata::MetadataImage;
use gregor_types::{ErrorCode, LeaderEpoch, Offset, is_internal_topic};

use crate::api::Context;

/// Delete everything that is committed.
const TO_HIGH_WATERMARK: i64 = -1;

/// Answers a request.
pub(crate) async fn handle(context: &Context, request: DeleteRecordsRequest, _version: i16) -> DeleteRecordsResponse {
    let image = context.broker.image();
    let topics = request.topics.iter().map(|topic| DeleteRecordsTopicResult {
        name: topic.name.clone(),
        partitions: topic.partitions.iter().map(|wanted| shown(context, &image, &topic.name, wanted)).collect(),
        ..Default::default()
    });
    DeleteRecordsResponse { topics: topics.collect(), ..Default::default() }
}

fn shown(
    context: &Context,
    image: &MetadataImage,
    topic: &str,
    wanted: &DeleteRecordsPartition,
) -> DeleteRecordsPartitionResult {
    let (low_watermark, error) = match delete(context, image, topic, wanted) {
        Ok(low_watermark) => (low_watermark, ErrorCode::None),
        Err(error) => (Offset::NONE, error),
    };
    DeleteRecordsPartitionResult {
        partition_index: wanted.partition_index,
        low_watermark: low_watermark.value(),
        error_code: error.code(),
        ..Default::default()
    }
}

fn delete(
    context: &Context,
    image: &MetadataImage,
    topic: &str,
    wanted: &DeleteRecordsPartition,
) -> Result<Offset, ErrorCode> {
    if is_internal_topic(topic) {
        return Err(ErrorCode::InvalidTopicException);
    }
    let partition = context.broker.partitions.find(topic, wanted.partition_index, image)?;
    if !partition.lock().settings.deletes_records {
        return Err(ErrorCode::PolicyViolation);
    }
    partition.with_leader(LeaderEpoch::NONE, |log, leader| {
        let high_watermark = leader.high_watermark();
        let until = if wanted.offset == TO_HIGH_WATERMARK { high_watermark } else { Offset(wanted.offset) };
        if until < Offset::ZERO || until > high_watermark {
            return Ok(Err(ErrorCode::OffsetOutOfRange));
        }
        if until > log.start_offset() {
            log.advance_start(until)?;
            leader.on_log_start(until);
        }
        Ok(Ok(leader.low_watermark()))
    })?
}
