//! Heartbeat: a member of a group says that it lives, and hears whether the group rebalances.

use gregor_coordinators::group::GroupRequest;
use gregor_messages::{HeartbeatRequest, HeartbeatResponse};
use gregor_types::ErrorCode;

use super::Context;

/// Answers a request.
pub(crate) async fn handle(context: &Context, request: HeartbeatRequest, _version: i16) -> HeartbeatResponse {
    let group = request.group_id.clone();
    let answer = context.broker.groups.ask(&group, GroupRequest::Heartbeat(request)).await;
    answer.unwrap_or_else(|error: ErrorCode| {
        // Apache's broker takes a group that is still loading for one whose members are fine.
        let error = if error == ErrorCode::CoordinatorLoadInProgress { ErrorCode::None } else { error };
        HeartbeatResponse { error_code: error.code(), ..Default::default() }
    })
}
