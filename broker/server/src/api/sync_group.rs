//! SyncGroup: answered once the leader has assigned and that is committed.

use gregor_coordinators::group::GroupRequest;
use gregor_messages::{SyncGroupRequest, SyncGroupResponse};
use gregor_types::ErrorCode;

use super::Context;

/// From this version on, a client says which protocol it takes the group to have.
const PROTOCOL_REQUIRED: i16 = 5;

/// Answers a request.
pub(crate) async fn handle(context: &Context, request: SyncGroupRequest, version: i16) -> SyncGroupResponse {
    let refused = |error: ErrorCode| SyncGroupResponse { error_code: error.code(), ..Default::default() };
    if version >= PROTOCOL_REQUIRED && (request.protocol_type.is_none() || request.protocol_name.is_none()) {
        return refused(ErrorCode::InconsistentGroupProtocol);
    }
    let group = request.group_id.clone();
    context.broker.groups.ask(&group, GroupRequest::Sync(request)).await.unwrap_or_else(refused)
}
