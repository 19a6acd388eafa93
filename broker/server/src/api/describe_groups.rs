//! DescribeGroups: groups with their members.

use gregor_coordinators::group::GroupRequest;
use gregor_messages::{DescribeGroupsRequest, DescribeGroupsResponse, describe_groups_response::DescribedGroup};
use gregor_types::ErrorCode;

use super::Context;

/// What a client may do with a group where nobody is forbidden anything: read, delete, describe, and describe and alter its
/// configuration, as bits of Kafka's operations.
const ALL_GROUP_OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;

/// Answers a request.
pub(crate) async fn handle(context: &Context, request: DescribeGroupsRequest, version: i16) -> DescribeGroupsResponse {
    let mut groups = Vec::with_capacity(request.groups.len());
    for group_id in request.groups {
        let describe = GroupRequest::Describe { group_id: group_id.clone(), version };
        let answer = context.broker.groups.ask(&group_id, describe).await;
        let mut row: DescribedGroup = answer.unwrap_or_else(|error: ErrorCode| DescribedGroup {
            error_code: error.code(),
            group_id: group_id.clone(),
            ..Default::default()
        });
        if request.include_authorized_operations && row.error_code == ErrorCode::None.code() {
            row.authorized_operations = ALL_GROUP_OPERATIONS;
        }
        groups.push(row);
    }
    DescribeGroupsResponse { groups, ..Default::default() }
}
