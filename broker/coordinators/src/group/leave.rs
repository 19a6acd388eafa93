//! LeaveGroup: members go, or an administrator takes static ones out.

use gregor_messages::{
    LeaveGroupRequest, LeaveGroupResponse, leave_group_request::MemberIdentity, leave_group_response::MemberResponse,
};
use gregor_types::{ErrorCode, KString};

use super::{ClassicGroup, GroupCoordinator, GroupResponse, Timer, Turn, rebalance};
use crate::{Scope, Token};

/// The first version that names several members.
const BATCHED: i16 = 3;

impl GroupCoordinator {
    pub(super) fn leave(
        &mut self,
        request: &LeaveGroupRequest,
        version: i16,
        token: Token,
        scope: &mut Scope<'_, GroupResponse>,
    ) {
        let single = [MemberIdentity { member_id: request.member_id.clone(), ..Default::default() }];
        let identities: &[MemberIdentity] = if version >= BATCHED { &request.members } else { &single };
        let response = if request.group_id.is_empty() {
            Err(ErrorCode::InvalidGroupId)
        } else if let Some((group, mut turn)) = self.turn(&request.group_id, scope) {
            Ok(leave_all(&mut turn, group, identities))
        } else {
            Err(ErrorCode::UnknownMemberId)
        };
        let response = match response {
            Err(error) => LeaveGroupResponse { error_code: error.code(), ..Default::default() },
            Ok(members) if version >= BATCHED => LeaveGroupResponse { members, ..Default::default() },
            Ok(members) => {
                let error_code = members.first().map_or(0, |member| member.error_code);
                LeaveGroupResponse { error_code, ..Default::default() }
            }
        };
        scope.answer_now(token, GroupResponse::Leave(response));
    }
}

fn leave_all(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup, identities: &[MemberIdentity]) -> Vec<MemberResponse> {
    let mut members_left = false;
    let rows = identities.iter().map(|identity| {
        let left = leave_one(turn, group, identity);
        members_left |= left == Ok(true);
        MemberResponse {
            member_id: identity.member_id.clone(),
            group_instance_id: identity.group_instance_id.clone(),
            error_code: left.map_or_else(ErrorCode::code, |_| ErrorCode::None.code()),
            ..Default::default()
        }
    });
    let rows = rows.collect();
    if members_left {
        rebalance::after_removal(turn, group);
    }
    rows
}

/// Whether a member left, or only an id that nobody had joined with.
fn leave_one(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup, identity: &MemberIdentity) -> Result<bool, ErrorCode> {
    let instance = identity.group_instance_id.as_ref();
    let member: KString = if identity.member_id.is_empty() {
        // An administrator knows a static member by its name only.
        let found = instance.and_then(|instance| group.static_member(instance));
        found.cloned().ok_or(ErrorCode::UnknownMemberId)?
    } else {
        identity.member_id.compact()
    };
    if group.pending_join.remove(&member) {
        turn.timers.cancel(&Timer::Session(group.id.clone(), member));
        rebalance::maybe_complete(turn, group);
        return Ok(false);
    }
    group.check_member(&member, instance)?;
    rebalance::drop_member(turn, group, &member);
    Ok(true)
}
