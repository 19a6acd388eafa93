//! OffsetDelete: an administrator takes back what a group has committed.

use gregor_coordinators::group::GroupRequest;
use gregor_messages::{
    OffsetDeleteRequest, OffsetDeleteResponse,
    offset_delete_request::OffsetDeleteRequestTopic,
    offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic},
};
use gregor_types::ErrorCode;

use super::Context;

/// Answers a request.
pub(crate) async fn handle(context: &Context, mut request: OffsetDeleteRequest, _version: i16) -> OffsetDeleteResponse {
    let image = context.broker.image();
    let is_known = |topic: &OffsetDeleteRequestTopic| image.topics().by_name(&topic.name).is_some();
    let (known, unknown): (Vec<_>, Vec<_>) = std::mem::take(&mut request.topics).into_iter().partition(is_known);
    request.topics = known;
    let group = request.group_id.clone();
    let answer = context.broker.groups.ask(&group, GroupRequest::OffsetDelete(request)).await;
    let mut response: OffsetDeleteResponse = answer
        .unwrap_or_else(|error: ErrorCode| OffsetDeleteResponse { error_code: error.code(), ..Default::default() });
    if response.error_code == ErrorCode::None.code() {
        response.topics.extend(unknown.iter().map(missing));
    }
    response
}

fn missing(topic: &OffsetDeleteRequestTopic) -> OffsetDeleteResponseTopic {
    let partitions = topic.partitions.iter().map(|row| OffsetDeleteResponsePartition {
        partition_index: row.partition_index,
        error_code: ErrorCode::UnknownTopicOrPartition.code(),
        ..Default::default()
    });
    OffsetDeleteResponseTopic { name: topic.name.clone(), partitions: partitions.collect(), ..Default::default() }
}
