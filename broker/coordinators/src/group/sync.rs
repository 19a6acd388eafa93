//! SyncGroup and Heartbeat: a member learns what it is assigned, and says that it lives.

use std::collections::HashMap;

use bytes::Bytes;
use gregor_messages::{HeartbeatRequest, HeartbeatResponse, SyncGroupRequest, SyncGroupResponse};
use gregor_types::{ErrorCode, KString};

use super::{ClassicGroup, GroupCoordinator, GroupResponse, GroupState, Timer, Turn, append_error, rebalance, records};
use crate::{Scope, Token};

impl GroupCoordinator {
    pub(super) fn sync(&mut self, request: &SyncGroupRequest, token: Token, scope: &mut Scope<'_, GroupResponse>) {
        if request.group_id.is_empty() {
            return refuse(scope, token, ErrorCode::InvalidGroupId);
        }
        let Some((group, mut turn)) = self.turn(&request.group_id, scope) else {
            return refuse(scope, token, ErrorCode::UnknownMemberId);
        };
        if let Err(error) = check(group, request) {
            return refuse(turn.scope, token, error);
        }
        let member = request.member_id.compact();
        match group.state() {
            GroupState::Empty => refuse(turn.scope, token, ErrorCode::UnknownMemberId),
            GroupState::PreparingRebalance { .. } => refuse(turn.scope, token, ErrorCode::RebalanceInProgress),
            GroupState::CompletingRebalance => {
                synced(&mut turn, group, &member);
                if let Some(waiting) = group.member_mut(&member)
                    && let Some(given_up) = waiting.syncing.replace(token)
                {
                    refuse(turn.scope, given_up, ErrorCode::UnknownMemberId);
                }
                if group.leader.as_ref() == Some(&member) {
                    assign(&mut turn, group, request);
                }
            }
            GroupState::Stable => {
                synced(&mut turn, group, &member);
                let assignment = group.member(&member).map(|member| member.assignment.clone()).unwrap_or_default();
                let response = assigned(group, assignment);
                turn.scope.answer(token, GroupResponse::Sync(response));
                rebalance::restart_session(&mut turn, group, &member);
            }
        }
    }

    pub(super) fn heartbeat(&mut self, request: &HeartbeatRequest, token: Token, scope: &mut Scope<'_, GroupResponse>) {
        let error = if request.group_id.is_empty() {
            ErrorCode::InvalidGroupId
        } else if let Some((group, mut turn)) = self.turn(&request.group_id, scope) {
            let checked = group
                .check_member(&request.member_id, request.group_instance_id.as_ref())
                .and_then(|()| check_generation(group, request.generation_id));
            match (checked, group.state()) {
                (Err(error), _) => error,
                (Ok(()), GroupState::Empty) => ErrorCode::UnknownMemberId,
                (Ok(()), state) => {
                    rebalance::restart_session(&mut turn, group, &request.member_id.compact());
                    match state {
                        GroupState::PreparingRebalance { .. } => ErrorCode::RebalanceInProgress,
                        // Heartbeats may start before the assignment is there.
                        _ => ErrorCode::None,
                    }
                }
            }
        } else {
            ErrorCode::UnknownMemberId
        };
        let response = HeartbeatResponse { error_code: error.code(), ..Default::default() };
        scope.answer_now(token, GroupResponse::Heartbeat(response));
    }
}

fn check(group: &ClassicGroup, request: &SyncGroupRequest) -> Result<(), ErrorCode> {
    group.check_member(&request.member_id, request.group_instance_id.as_ref())?;
    check_generation(group, request.generation_id)?;
    let differs = |asked: &Option<KString>, is: &Option<KString>| asked.is_some() && asked != is;
    if differs(&request.protocol_type, &group.protocol_type) || differs(&request.protocol_name, &group.protocol) {
        return Err(ErrorCode::InconsistentGroupProtocol);
    }
    Ok(())
}

fn check_generation(group: &ClassicGroup, generation: i32) -> Result<(), ErrorCode> {
    if group.generation == generation { Ok(()) } else { Err(ErrorCode::IllegalGeneration) }
}

fn synced(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup, member: &KString) {
    group.pending_sync.remove(member);
    if group.pending_sync.is_empty() {
        turn.timers.cancel(&Timer::Sync(group.id.clone()));
    }
}

/// The leader has assigned: write it down, then tell everybody who waits. A member that it left out is assigned nothing.
fn assign(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup, request: &SyncGroupRequest) {
    let given: HashMap<&KString, &Bytes> =
        request.assignments.iter().map(|row| (&row.member_id, &row.assignment)).collect();
    let assignment = |id: &KString| given.get(id).map(|bytes| Bytes::copy_from_slice(bytes)).unwrap_or_default();
    let wall_clock = turn.scope.wall_clock();
    let written = records::group(group, |member| assignment(&member.id), wall_clock)
        .and_then(|record| turn.scope.append(&[record]));
    if let Err(error) = written {
        rebalance::fail_syncs(turn, group, append_error(error));
        rebalance::prepare_or_complete(turn, group);
        return;
    }
    group.set_state(GroupState::Stable, wall_clock);
    let mut waiting = Vec::new();
    for member in group.members_mut() {
        member.assignment = assignment(&member.id);
        if let Some(token) = member.syncing.take() {
            waiting.push((member.id.clone(), token, member.assignment.clone()));
        }
    }
    for (member, token, assignment) in waiting {
        let response = assigned(group, assignment);
        turn.scope.answer(token, GroupResponse::Sync(response));
        rebalance::restart_session(turn, group, &member);
    }
}

fn assigned(group: &ClassicGroup, assignment: Bytes) -> SyncGroupResponse {
    SyncGroupResponse {
        protocol_type: group.protocol_type.clone(),
        protocol_name: group.protocol.clone(),
        assignment,
        ..Default::default()
    }
}

fn refuse(scope: &mut Scope<'_, GroupResponse>, token: Token, error: ErrorCode) {
    let response = SyncGroupResponse { error_code: error.code(), ..Default::default() };
    scope.answer_now(token, GroupResponse::Sync(response));
}
