//! OffsetFetch: what groups have committed, of one group in the old form and of several in the new.

use gregor_coordinators::group::GroupRequest;
use gregor_messages::{
    OffsetFetchRequest, OffsetFetchResponse,
    offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
    offset_fetch_response::{
        OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
        OffsetFetchResponseTopic, OffsetFetchResponseTopics,
    },
};
use gregor_metadata::MetadataImage;
use gregor_types::{ErrorCode, KString};

use super::Context;

/// The first version that asks about several groups.
const BATCHED: i16 = 8;
/// The first version with an error for the whole group.
const GROUP_ERROR: i16 = 2;
/// From this version on, topics come by their ids alone.
const TOPIC_IDS: i16 = 10;

/// Answers a request.
pub(crate) async fn handle(context: &Context, request: OffsetFetchRequest, version: i16) -> OffsetFetchResponse {
    if version >= BATCHED {
        let mut groups = Vec::with_capacity(request.groups.len());
        for group in request.groups {
            groups.push(fetch(context, group, request.require_stable, version).await);
        }
        return OffsetFetchResponse { groups, ..Default::default() };
    }
    let topics = request.topics.map(|topics| {
        let row = |topic: gregor_messages::offset_fetch_request::OffsetFetchRequestTopic| OffsetFetchRequestTopics {
            name: topic.name,
            partition_indexes: topic.partition_indexes,
            ..Default::default()
        };
        topics.into_iter().map(row).collect()
    });
    let group = OffsetFetchRequestGroup { group_id: request.group_id, topics, ..Default::default() };
    in_old_form(fetch(context, group, request.require_stable, version).await, version)
}

async fn fetch(
    context: &Context,
    group: OffsetFetchRequestGroup,
    require_stable: bool,
    version: i16,
) -> OffsetFetchResponseGroup {
    let image = context.broker.image();
    let asked = group.clone();
    let (group, unknown) = if version >= TOPIC_IDS { by_name(group, &image) } else { (group, Vec::new()) };
    let id = group.group_id.clone();
    let request = GroupRequest::OffsetFetch { request: group, require_stable };
    let answer = context.broker.groups.ask::<OffsetFetchResponseGroup>(&id, request).await;
    let mut response = match answer {
        Ok(response) => response,
        Err(error) => {
            // Before there was an error for the group, each partition carried it.
            let topics = if version < GROUP_ERROR { asked.topics.unwrap_or_default() } else { Vec::new() };
            let topics = topics.iter().map(|topic| refused(topic, error)).collect();
            return OffsetFetchResponseGroup { group_id: id, topics, error_code: error.code(), ..Default::default() };
        }
    };
    if version >= TOPIC_IDS {
        by_id(&mut response, &image);
        response.topics.extend(unknown);
    }
    response
}

/// Names the topics of a request; those that cannot be named are answered here.
fn by_name(
    mut group: OffsetFetchRequestGroup,
    image: &MetadataImage,
) -> (OffsetFetchRequestGroup, Vec<OffsetFetchResponseTopics>) {
    let mut unknown = Vec::new();
    if let Some(topics) = &mut group.topics {
        topics.retain_mut(|topic| {
            let found = image.topics().by_id(topic.topic_id);
            match found {
                Some(found) => topic.name = found.name.clone(),
                None => unknown.push(refused(topic, ErrorCode::UnknownTopicId)),
            }
            found.is_some()
        });
    }
    (group, unknown)
}

/// Gives the topics of a response their ids in place of their names; a topic that is gone has none.
fn by_id(response: &mut OffsetFetchResponseGroup, image: &MetadataImage) {
    response.topics.retain_mut(|topic| {
        let found = image.topics().by_name(&topic.name);
        if let Some(found) = found {
            topic.topic_id = found.id;
            topic.name = KString::default();
        }
        found.is_some()
    });
}

fn refused(topic: &OffsetFetchRequestTopics, error: ErrorCode) -> OffsetFetchResponseTopics {
    let partitions = topic.partition_indexes.iter().map(|index| OffsetFetchResponsePartitions {
        partition_index: *index,
        committed_offset: -1,
        committed_leader_epoch: -1,
        metadata: Some(KString::default()),
        error_code: error.code(),
        ..Default::default()
    });
    OffsetFetchResponseTopics {
        name: topic.name.clone(),
        topic_id: topic.topic_id,
        partitions: partitions.collect(),
        ..Default::default()
    }
}

fn in_old_form(group: OffsetFetchResponseGroup, version: i16) -> OffsetFetchResponse {
    let partition = |row: OffsetFetchResponsePartitions| OffsetFetchResponsePartition {
        partition_index: row.partition_index,
        committed_offset: row.committed_offset,
        committed_leader_epoch: row.committed_leader_epoch,
        metadata: row.metadata,
        error_code: row.error_code,
        ..Default::default()
    };
    let topics = group.topics.into_iter().map(|topic| OffsetFetchResponseTopic {
        name: topic.name,
        partitions: topic.partitions.into_iter().map(partition).collect(),
        ..Default::default()
    });
    let error_code = if version >= GROUP_ERROR { group.error_code } else { 0 };
    OffsetFetchResponse { topics: topics.collect(), error_code, ..Default::default() }
}
