//! LeaveGroup: members go, so that the others need not wait for their sessions to expire.

use gregor_coordinators::group::GroupRequest;
use gregor_messages::{LeaveGroupRequest, LeaveGroupResponse};
use gregor_types::ErrorCode;

use super::Context;

/// Answers a request.
pub(crate) async fn handle(context: &Context, request: LeaveGroupRequest, version: i16) -> LeaveGroupResponse {
    let group = request.group_id.clone();
    let answer = context.broker.groups.ask(&group, GroupRequest::Leave { request, version }).await;
    answer.unwrap_or_else(|error: ErrorCode| LeaveGroupResponse { error_code: error.code(), ..Default::default() })
}
