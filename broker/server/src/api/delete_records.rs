//! DeleteRecords: moves a partition's start up, at most to its high watermark.
//!
//! Whole segments before the start go with the next retention; the offset itself is what clients see at once. A replica that is
//! on its way to another directory has deleted once its copy has, as in Kafka: the answer waits for that, at most as long as
//! the request says.

use std::{sync::Arc, time::Duration};

use gregor_messages::{
    DeleteRecordsRequest, DeleteRecordsResponse,
    delete_records_request::DeleteRecordsPartition,
    delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult},
};
use gregor_metadata::MetadataImage;
use gregor_types::{ErrorCode, LeaderEpoch, Offset, is_internal_topic};
use tokio::time::timeout_at;

use crate::{api::Context, partition::Partition};

/// Delete everything that is committed.
const TO_HIGH_WATERMARK: i64 = -1;

/// A partition whose log begins later now.
struct Deleted {
    partition: Arc<Partition>,
    until: Offset,
    low_watermark: Offset,
}

/// Answers a request.
pub(crate) async fn handle(context: &Context, request: DeleteRecordsRequest, _version: i16) -> DeleteRecordsResponse {
    let image = context.broker.image();
    let wanted = request.topics.iter().flat_map(|topic| topic.partitions.iter().map(|wanted| (&*topic.name, wanted)));
    // All are deleted before any is waited for.
    let deleted: Vec<_> = wanted.map(|(topic, wanted)| delete(context, &image, topic, wanted)).collect();
    if deleted.iter().flatten().any(|deleted| deleted.low_watermark < deleted.until) {
        context.broker.partitions.moves.wake();
    }
    let mut deleted = deleted.into_iter();
    let timeout = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let deadline = context.received_at + timeout;
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for (wanted, deleted) in topic.partitions.iter().zip(&mut deleted) {
            let settled = async {
                let deleted = deleted?;
                tokio::select! {
                    settled = timeout_at(deadline, settle(&deleted)) => match settled {
                        Ok(low_watermark) => low_watermark.map(|low_watermark| (low_watermark, ErrorCode::None)),
                        Err(_) => Ok((deleted.low_watermark, ErrorCode::RequestTimedOut)),
                    },
                    () = context.broker.drained() => Ok((deleted.low_watermark, ErrorCode::RequestTimedOut)),
                }
            };
            let (low_watermark, error) = settled.await.unwrap_or_else(|error| (Offset::NONE, error));
            partitions.push(DeleteRecordsPartitionResult {
                partition_index: wanted.partition_index,
                low_watermark: low_watermark.value(),
                error_code: error.code(),
                ..Default::default()
            });
        }
        topics.push(DeleteRecordsTopicResult { name: topic.name, partitions, ..Default::default() });
    }
    DeleteRecordsResponse { topics, ..Default::default() }
}

fn delete(
    context: &Context,
    image: &MetadataImage,
    topic: &str,
    wanted: &DeleteRecordsPartition,
) -> Result<Deleted, ErrorCode> {
    if is_internal_topic(topic) {
        return Err(ErrorCode::InvalidTopicException);
    }
    let partition = context.broker.partitions.find(topic, wanted.partition_index, image)?;
    if !partition.lock().settings.deletes_records {
        return Err(ErrorCode::PolicyViolation);
    }
    let (until, low_watermark) = partition.with_leader(LeaderEpoch::NONE, |log, leader| {
        let high_watermark = leader.high_watermark();
        let until = if wanted.offset == TO_HIGH_WATERMARK { high_watermark } else { Offset(wanted.offset) };
        if until < Offset::ZERO || until > high_watermark {
            return Ok(Err(ErrorCode::OffsetOutOfRange));
        }
        if until > log.start_offset() {
            log.advance_start(until)?;
            leader.on_log_start(until);
        }
        Ok(Ok((until, leader.low_watermark())))
    })??;
    let of_copy = partition.start_of_copy().map(|start| *start.borrow());
    let low_watermark = of_copy.map_or(low_watermark, |start| start.min(low_watermark));
    Ok(Deleted { partition, until, low_watermark })
}

/// Waits until a copy on its way, if there is one, begins there too; says where all replicas begin at the earliest.
async fn settle(Deleted { partition, until, .. }: &Deleted) -> Result<Offset, ErrorCode> {
    let mut of_copy = None;
    if let Some(mut start) = partition.start_of_copy() {
        // An error means that the move is over, one way or the other.
        of_copy = start.wait_for(|start| start >= until).await.ok().map(|start| *start);
    }
    let low_watermark = partition.deleted_everywhere(*until).await?;
    Ok(of_copy.map_or(low_watermark, |start| start.min(low_watermark)))
}
