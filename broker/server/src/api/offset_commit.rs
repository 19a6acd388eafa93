//! OffsetCommit: topics are checked and named here; the group's shard decides and writes.

use gregor_coordinators::group::GroupRequest;
use gregor_messages::{
    OffsetCommitRequest, OffsetCommitResponse,
    offset_commit_request::OffsetCommitRequestTopic,
    offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
};
use gregor_types::{ErrorCode, KString};

use super::Context;

/// From this version on, topics come by their ids alone.
const TOPIC_IDS: i16 = 10;

/// Answers a request.
pub(crate) async fn handle(context: &Context, mut request: OffsetCommitRequest, version: i16) -> OffsetCommitResponse {
    let image = context.broker.image();
    let mut places = Vec::with_capacity(request.topics.len());
    let mut known = Vec::with_capacity(request.topics.len());
    for mut topic in std::mem::take(&mut request.topics) {
        let found = if version >= TOPIC_IDS {
            image.topics().by_id(topic.topic_id).ok_or(ErrorCode::UnknownTopicId)
        } else {
            image.topics().by_name(&topic.name).ok_or(ErrorCode::UnknownTopicOrPartition)
        };
        match found {
            Ok(found) => {
                topic.name = found.name.clone();
                places.push(Ok(known.len()));
                known.push(topic);
            }
            Err(error) => places.push(Err(refused(&topic, error))),
        }
    }
    let asked = known.clone();
    let group = request.group_id.clone();
    let answer = if known.is_empty() {
        Ok(OffsetCommitResponse::default())
    } else {
        request.topics = known;
        context.broker.groups.ask::<OffsetCommitResponse>(&group, GroupRequest::OffsetCommit(request)).await
    };
    let mut committed = match answer {
        Ok(response) => response.topics,
        Err(error) => asked.iter().map(|topic| refused(topic, error)).collect(),
    };
    let topics = places.into_iter().map(|place| match place {
        Ok(at) => std::mem::take(&mut committed[at]),
        Err(refused) => refused,
    });
    let mut response = OffsetCommitResponse { topics: topics.collect(), ..Default::default() };
    if version >= TOPIC_IDS {
        response.topics.iter_mut().for_each(|topic| topic.name = KString::default());
    }
    response
}

fn refused(topic: &OffsetCommitRequestTopic, error: ErrorCode) -> OffsetCommitResponseTopic {
    let partitions = topic.partitions.iter().map(|row| OffsetCommitResponsePartition {
        partition_index: row.partition_index,
        error_code: error.code(),
        ..Default::default()
    });
    OffsetCommitResponseTopic {
        name: topic.name.clone(),
        topic_id: topic.topic_id,
        partitions: partitions.collect(),
        ..Default::default()
    }
}
