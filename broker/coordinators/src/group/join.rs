//! JoinGroup: a client becomes a member, or a member comes (back) for the next generation.

use bytes::Bytes;
use gregor_messages::{JoinGroupRequest, JoinGroupResponse};
use gregor_types::{ErrorCode, KString, Uuid};

use super::{
    ClassicGroup, ClientInfo, GroupCoordinator, GroupResponse, GroupState, Timer, Turn, append_error, classic::Member,
    rebalance, records,
};
use crate::{Scope, Token};

/// From this version on a client must come back with the id it was given before it counts as a member (KIP-394).
const MEMBER_ID_REQUIRED: i16 = 4;
/// From this version on a static member that leads can be told not to assign again (KIP-814).
const SKIP_ASSIGNMENT: i16 = 9;

/// A JoinGroup request on its way through.
struct Join<'r> {
    request: &'r JoinGroupRequest,
    version: i16,
    client: &'r ClientInfo,
    token: Token,
}

impl GroupCoordinator {
    pub(super) fn join(
        &mut self,
        request: &JoinGroupRequest,
        version: i16,
        client: &ClientInfo,
        token: Token,
        scope: &mut Scope<'_, GroupResponse>,
    ) {
        let join = Join { request, version, client, token };
        let bounds = self.config.session_timeout_min_ms..=self.config.session_timeout_max_ms;
        let unknown = request.member_id.is_empty();
        if request.group_id.is_empty() {
            return refuse(scope, &join, ErrorCode::InvalidGroupId, KString::default());
        }
        if !bounds.contains(&request.session_timeout_ms) {
            return refuse(scope, &join, ErrorCode::InvalidSessionTimeout, KString::default());
        }
        if !self.groups.contains_key(&request.group_id) {
            if !unknown {
                return refuse(scope, &join, ErrorCode::UnknownMemberId, KString::default());
            }
            let id = request.group_id.compact();
            self.groups.insert(id.clone(), ClassicGroup::new(id, scope.wall_clock()));
        }
        let Some((group, mut turn)) = self.turn(&request.group_id, scope) else { return };
        if !accepts(&turn, group, &request.member_id) {
            let member = request.member_id.clone();
            rebalance::drop_member(&mut turn, group, &member);
            return refuse(turn.scope, &join, ErrorCode::GroupMaxSizeReached, KString::default());
        }
        let names: Vec<KString> = request.protocols.iter().map(|protocol| protocol.name.clone()).collect();
        if !group.supports(&request.protocol_type, &names) {
            return refuse(turn.scope, &join, ErrorCode::InconsistentGroupProtocol, request.member_id.clone());
        }
        if unknown { join_new(&mut turn, group, &join) } else { join_known(&mut turn, group, &join) }
    }
}

/// `group.max.size`: who waits already counts, so that a group above a lowered limit shrinks with its next rebalance.
fn accepts(turn: &Turn<'_, '_>, group: &ClassicGroup, member: &str) -> bool {
    let known = group.member(member);
    match group.state() {
        GroupState::Empty => true,
        GroupState::PreparingRebalance { .. } => {
            known.is_some_and(|member| member.joining.is_some()) || group.joining_count() < turn.config.group_size_max
        }
        GroupState::CompletingRebalance | GroupState::Stable => {
            known.is_some() || group.member_count() < turn.config.group_size_max
        }
    }
}

fn join_new(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup, join: &Join<'_>) {
    let request = join.request;
    let name = request.group_instance_id.as_ref().unwrap_or(&join.client.client_id);
    let random = Uuid(turn.scope.random());
    let id = KString::from(format!("{name}-{}", hyphenated(random)));
    if let Some(instance) = &request.group_instance_id {
        match group.static_member(instance).cloned() {
            Some(old) => static_member_returns(turn, group, join, &old, id),
            None => add_member(turn, group, join, id),
        }
    } else if join.version >= MEMBER_ID_REQUIRED {
        group.pending_join.insert(id.clone());
        let timeout = request.session_timeout_ms.max(0) as u64;
        let key = Timer::Session(group.id.clone(), id.clone());
        turn.timers.set(key, turn.scope.now().plus_ms(timeout));
        refuse(turn.scope, join, ErrorCode::MemberIdRequired, id);
    } else {
        add_member(turn, group, join, id);
    }
}

fn join_known(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup, join: &Join<'_>) {
    let request = join.request;
    let id = request.member_id.compact();
    if request.group_instance_id.is_none() && group.pending_join.contains(&id) {
        return add_member(turn, group, join, id);
    }
    if let Err(error) = group.check_member(&id, request.group_instance_id.as_ref()) {
        return refuse(turn.scope, join, error, id);
    }
    let unchanged = group.member(&id).is_some_and(|member| same_protocols(member, request));
    let leads = group.leader.as_ref() == Some(&id);
    match group.state() {
        // It may not have got the answer to its join: give it once more.
        GroupState::CompletingRebalance if unchanged => {
            let members = if leads { group.members_for_leader() } else { Vec::new() };
            let response = JoinGroupResponse { members, ..joined(group, id) };
            turn.scope.answer_now(join.token, GroupResponse::Join(response));
        }
        // A leader that joins wants to assign anew, as when topics grew. The others just learn where the group is.
        GroupState::Stable if unchanged && !leads => {
            let response = joined(group, id);
            turn.scope.answer_now(join.token, GroupResponse::Join(response));
        }
        GroupState::Empty => refuse(turn.scope, join, ErrorCode::UnknownMemberId, KString::default()),
        _ => update_member(turn, group, join, &id),
    }
}

fn add_member(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup, join: &Join<'_>, id: KString) {
    let request = join.request;
    group.extend_initial_delay();
    if group.member_count() == 0 {
        group.protocol_type = Some(request.protocol_type.compact());
    }
    group.insert(Member {
        id: id.clone(),
        instance: request.group_instance_id.as_ref().map(KString::compact),
        client_id: join.client.client_id.compact(),
        client_host: join.client.client_host.compact(),
        rebalance_timeout_ms: rebalance_timeout_ms(request),
        session_timeout_ms: request.session_timeout_ms,
        protocols: protocols(request),
        assignment: Bytes::new(),
        joining: Some(join.token),
        syncing: None,
        is_new: true,
    });
    // It cannot send heartbeats before it knows its id, and nobody sees whether it still waits: so it gets a time to be answered.
    let until = turn.scope.now().plus_ms(turn.config.new_member_join_timeout_ms);
    turn.timers.set(Timer::Session(group.id.clone(), id), until);
    rebalance::prepare_or_complete(turn, group);
}

fn update_member(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup, join: &Join<'_>, id: &KString) {
    if let Some(member) = group.member_mut(id) {
        member.protocols = protocols(join.request);
        member.rebalance_timeout_ms = rebalance_timeout_ms(join.request);
        member.session_timeout_ms = join.request.session_timeout_ms;
        // A client that asks again has given up on its first request.
        if let Some(given_up) = member.joining.replace(join.token) {
            let error_code = ErrorCode::UnknownMemberId.code();
            let response = JoinGroupResponse { error_code, ..rebalance::join_refusal() };
            turn.scope.answer_now(given_up, GroupResponse::Join(response));
        }
    }
    rebalance::prepare_or_complete(turn, group);
}

/// KIP-345: a static member was restarted. The group need not rebalance if nothing but its id changes.
fn static_member_returns(
    turn: &mut Turn<'_, '_>,
    group: &mut ClassicGroup,
    join: &Join<'_>,
    old: &KString,
    new: KString,
) {
    let before = group.clone();
    let old_leader = group.leader.clone();
    let (joining, syncing) = group.replace_static(old, new.clone());
    let fenced = ErrorCode::FencedInstanceId.code();
    let fence = |turn: &mut Turn<'_, '_>| {
        turn.timers.cancel(&Timer::Session(before.id.clone(), old.clone()));
        if let Some(token) = joining {
            let response =
                JoinGroupResponse { error_code: fenced, member_id: old.clone(), ..rebalance::join_refusal() };
            turn.scope.answer_now(token, GroupResponse::Join(response));
        }
        if let Some(token) = syncing {
            let response = gregor_messages::SyncGroupResponse { error_code: fenced, ..Default::default() };
            turn.scope.answer_now(token, GroupResponse::Sync(response));
        }
    };
    if let Some(member) = group.member_mut(&new) {
        member.protocols = protocols(join.request);
        member.rebalance_timeout_ms = rebalance_timeout_ms(join.request);
        member.session_timeout_ms = join.request.session_timeout_ms;
        member.client_id = join.client.client_id.compact();
        member.client_host = join.client.client_host.compact();
    }
    if group.state() == GroupState::Stable && group.select_protocol() == group.protocol {
        let written = records::group(group, |member| member.assignment.clone(), turn.scope.wall_clock())
            .and_then(|record| turn.scope.append(&[record]));
        if let Err(error) = written {
            *group = before;
            return refuse(turn.scope, join, append_error(error), KString::default());
        }
        fence(turn);
        group.state_since = turn.scope.wall_clock();
        rebalance::restart_session(turn, group, &new);
        let leads = group.leader.as_ref() == Some(&new);
        let mut response = joined(group, new);
        if join.version >= SKIP_ASSIGNMENT {
            response.skip_assignment = leads;
            response.members = if leads { group.members_for_leader() } else { Vec::new() };
        } else {
            // Under the old leader's id, the client does not take itself for the leader and keeps the assignment.
            response.leader = old_leader.unwrap_or_default();
        }
        turn.scope.answer(join.token, GroupResponse::Join(response));
        return;
    }
    fence(turn);
    if let Some(member) = group.member_mut(&new) {
        member.joining = Some(join.token);
    }
    rebalance::restart_session(turn, group, &new);
    rebalance::prepare_or_complete(turn, group);
}

/// The group as it is, told to a member.
fn joined(group: &ClassicGroup, member_id: KString) -> JoinGroupResponse {
    JoinGroupResponse {
        generation_id: group.generation,
        protocol_type: group.protocol_type.clone(),
        protocol_name: group.protocol.clone(),
        leader: group.leader.clone().unwrap_or_default(),
        member_id,
        ..Default::default()
    }
}

fn refuse(scope: &mut Scope<'_, GroupResponse>, join: &Join<'_>, error: ErrorCode, member_id: KString) {
    let response = JoinGroupResponse { error_code: error.code(), member_id, ..rebalance::join_refusal() };
    scope.answer_now(join.token, GroupResponse::Join(response));
}

fn protocols(request: &JoinGroupRequest) -> Vec<(KString, Bytes)> {
    let own = |metadata: &Bytes| Bytes::copy_from_slice(metadata);
    request.protocols.iter().map(|protocol| (protocol.name.compact(), own(&protocol.metadata))).collect()
}

fn same_protocols(member: &Member, request: &JoinGroupRequest) -> bool {
    let asked = request.protocols.iter().map(|protocol| (&protocol.name, &protocol.metadata));
    member.protocols.iter().map(|(name, metadata)| (name, metadata)).eq(asked)
}

/// Version 0 has no rebalance timeout: the session's is both.
fn rebalance_timeout_ms(request: &JoinGroupRequest) -> i32 {
    if request.rebalance_timeout_ms < 0 { request.session_timeout_ms } else { request.rebalance_timeout_ms }
}

/// A random id in the form of Java's `UUID.toString`.
fn hyphenated(id: Uuid) -> String {
    let digits = format!("{:032x}", id.0);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}
