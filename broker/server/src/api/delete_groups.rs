//! DeleteGroups: groups without members go, with their offsets.

use gregor_coordinators::group::GroupRequest;
use gregor_messages::{DeleteGroupsRequest, DeleteGroupsResponse, delete_groups_response::DeletableGroupResult};
use gregor_types::ErrorCode;

use super::Context;

/// Answers a request.
pub(crate) async fn handle(context: &Context, request: DeleteGroupsRequest, _version: i16) -> DeleteGroupsResponse {
    let mut results = Vec::with_capacity(request.groups_names.len());
    for group_id in request.groups_names {
        let delete = GroupRequest::Delete { group_id: group_id.clone() };
        let answer = context.broker.groups.ask(&group_id, delete).await;
        results.push(answer.unwrap_or_else(|error: ErrorCode| DeletableGroupResult {
            group_id: group_id.clone(),
            error_code: error.code(),
            ..Default::default()
        }));
    }
    DeleteGroupsResponse { results, ..Default::default() }
}
