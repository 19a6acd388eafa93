//! JoinGroup: answered once the members of the group have joined, which may take as long as their rebalance timeout.

use gregor_coordinators::group::{ClientInfo, GroupRequest};
use gregor_messages::{JoinGroupRequest, JoinGroupResponse};
use gregor_types::{ErrorCode, KString};

use super::Context;

/// From this version on, there may be no protocol; before, it has an empty name.
const NULLABLE_PROTOCOL: i16 = 7;

/// Answers a request.
pub(crate) async fn handle(context: &Context, request: JoinGroupRequest, version: i16) -> JoinGroupResponse {
    let client = ClientInfo { client_id: context.client_id().into(), client_host: context.client_host().into() };
    let group = request.group_id.clone();
    let member = request.member_id.clone();
    let joined = context.broker.groups.ask(&group, GroupRequest::Join { request, version, client }).await;
    let mut response: JoinGroupResponse = joined.unwrap_or_else(|error: ErrorCode| JoinGroupResponse {
        error_code: error.code(),
        member_id: member,
        ..Default::default()
    });
    let named = response.protocol_name.take().filter(|name| !name.is_empty());
    response.protocol_name = if version < NULLABLE_PROTOCOL { named.or(Some(KString::default())) } else { named };
    response
}
