//! How a group comes to its next generation: prepare, wait for joins, let the leader assign.
//!
//! Called by the modules that handle requests, and by timers. Each function leaves the group in a state from which either a
//! request or a timer leads on: a group is never stuck.

use gregor_messages::{JoinGroupResponse, SyncGroupResponse};
use gregor_types::{ErrorCode, KString};

use super::{ClassicGroup, GroupResponse, GroupState, Timer, Turn, classic::InitialDelay, records};

/// A member changed or came: rebalance, or go on with the rebalance that runs.
pub(super) fn prepare_or_complete(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup) {
    if group.is_preparing() {
        maybe_complete(turn, group);
    } else {
        prepare(turn, group);
    }
}

/// Members left: those who remain rebalance, or need not wait for the others any more.
pub(super) fn after_removal(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup) {
    match group.state() {
        GroupState::Stable | GroupState::CompletingRebalance => prepare(turn, group),
        GroupState::PreparingRebalance { .. } => maybe_complete(turn, group),
        GroupState::Empty => {}
    }
}

/// Starts a rebalance: every member is to join again.
pub(super) fn prepare(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup) {
    if group.state() == GroupState::CompletingRebalance {
        fail_syncs(turn, group, ErrorCode::RebalanceInProgress);
    }
    turn.timers.cancel(&Timer::Sync(group.id.clone()));
    let now = turn.scope.now();
    let wall_clock = turn.scope.wall_clock();
    let timeout_ms = group.rebalance_timeout_ms();
    let initial = (group.state() == GroupState::Empty).then(|| {
        let delay_ms = turn.config.initial_rebalance_delay_ms;
        InitialDelay { delay_ms, remaining_ms: timeout_ms.saturating_sub(delay_ms), member_added: false }
    });
    group.set_state(GroupState::PreparingRebalance { initial }, wall_clock);
    let wait_ms = initial.map_or(timeout_ms, |initial| initial.delay_ms);
    turn.timers.set(Timer::Join(group.id.clone()), now.plus_ms(wait_ms));
    maybe_complete(turn, group);
}

/// Ends the wait for joins once nobody is missing. The first members of an empty group wait their delay out.
pub(super) fn maybe_complete(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup) {
    if group.state() == (GroupState::PreparingRebalance { initial: None }) && group.all_have_joined() {
        complete_join(turn, group);
    }
}

/// The time to join is up, or the initial delay is over.
pub(super) fn join_time_is_up(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup) {
    let GroupState::PreparingRebalance { initial } = group.state() else { return };
    match initial {
        Some(initial) if initial.member_added && initial.remaining_ms > 0 => {
            // Members came while it waited: wait once more, as long as the rebalance timeout allows.
            let delay_ms = turn.config.initial_rebalance_delay_ms.min(initial.remaining_ms);
            let remaining_ms = initial.remaining_ms.saturating_sub(initial.delay_ms);
            group.set_initial_delay(InitialDelay { delay_ms, remaining_ms, member_added: false });
            turn.timers.set(Timer::Join(group.id.clone()), turn.scope.now().plus_ms(delay_ms));
        }
        _ => complete_join(turn, group),
    }
}

fn complete_join(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup) {
    turn.timers.cancel(&Timer::Join(group.id.clone()));
    let now = turn.scope.now();
    let wall_clock = turn.scope.wall_clock();
    // Dynamic members that did not come are out; static ones keep their place until their session expires.
    let gone: Vec<KString> = group
        .members()
        .filter(|member| member.joining.is_none() && member.instance.is_none())
        .map(|member| member.id.clone())
        .collect();
    for member in gone {
        group.remove(&member);
        turn.timers.cancel(&Timer::Session(group.id.clone(), member));
    }
    if !group.elect_leader_that_joined() && group.member_count() > 0 {
        // Only static members are left, and none of them came: wait until they do or their sessions expire.
        if let GroupState::PreparingRebalance { .. } = group.state() {
            group.set_state(GroupState::PreparingRebalance { initial: None }, wall_clock);
        }
        turn.timers.set(Timer::Join(group.id.clone()), now.plus_ms(group.rebalance_timeout_ms().max(1)));
        return;
    }
    group.next_generation(wall_clock);
    if group.state() == GroupState::Empty {
        let record = records::group(group, |member| member.assignment.clone(), wall_clock);
        // If this cannot be written, a coordinator after this one sees the last generation and lets its sessions expire.
        let _ = record.map(|record| turn.scope.append(&[record]));
        return;
    }
    let members = group.members_for_leader();
    let leader = group.leader.clone().unwrap_or_default();
    let (generation, protocol, protocol_type) = (group.generation, group.protocol.clone(), group.protocol_type.clone());
    let ids: Vec<KString> = group.members().map(|member| member.id.clone()).collect();
    for id in &ids {
        let Some(member) = group.member_mut(id) else { continue };
        member.is_new = false;
        if let Some(token) = member.joining.take() {
            let response = JoinGroupResponse {
                generation_id: generation,
                protocol_type: protocol_type.clone(),
                protocol_name: protocol.clone(),
                leader: leader.clone(),
                member_id: id.clone(),
                members: if *id == leader { members.clone() } else { Vec::new() },
                ..Default::default()
            };
            turn.scope.answer_now(token, GroupResponse::Join(response));
        }
        group.pending_sync.insert(id.clone());
        restart_session(turn, group, id);
    }
    let until = now.plus_ms(group.rebalance_timeout_ms());
    turn.timers.set(Timer::Sync(group.id.clone()), until);
}

/// Members that joined but have not synced by now are out.
pub(super) fn sync_time_is_up(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup) {
    if !matches!(group.state(), GroupState::CompletingRebalance | GroupState::Stable) || group.pending_sync.is_empty() {
        return;
    }
    for member in std::mem::take(&mut group.pending_sync) {
        drop_member(turn, group, &member);
    }
    prepare(turn, group);
}

/// A member has been silent for too long.
pub(super) fn session_expired(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup, member: &KString) {
    if group.pending_join.remove(member) {
        maybe_complete(turn, group);
        return;
    }
    let Some(found) = group.member(member) else { return };
    // A member whose request waits here is silent by necessity; its session starts again with the answer. One that never got
    // an id may have given up long ago.
    if found.is_waiting() && !found.is_new {
        return;
    }
    drop_member(turn, group, member);
    after_removal(turn, group);
}

/// Takes a member out and tells it so, if it waits.
pub(super) fn drop_member(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup, member: &KString) {
    turn.timers.cancel(&Timer::Session(group.id.clone(), member.clone()));
    let Some(removed) = group.remove(member) else { return };
    let error_code = ErrorCode::UnknownMemberId.code();
    if let Some(token) = removed.joining {
        let response = JoinGroupResponse { error_code, ..join_refusal() };
        turn.scope.answer_now(token, GroupResponse::Join(response));
    }
    if let Some(token) = removed.syncing {
        turn.scope.answer_now(token, GroupResponse::Sync(SyncGroupResponse { error_code, ..Default::default() }));
    }
}

/// The member was heard of: its session starts anew.
pub(super) fn restart_session(turn: &mut Turn<'_, '_>, group: &ClassicGroup, member: &KString) {
    if let Some(found) = group.member(member) {
        let timeout = found.session_timeout_ms.max(0) as u64;
        let key = Timer::Session(group.id.clone(), member.clone());
        turn.timers.set(key, turn.scope.now().plus_ms(timeout));
    }
}

/// The assignment will not come: whoever waits for it is told why.
pub(super) fn fail_syncs(turn: &mut Turn<'_, '_>, group: &mut ClassicGroup, error: ErrorCode) {
    let mut told = Vec::new();
    for member in group.members_mut() {
        member.assignment = bytes::Bytes::new();
        if let Some(token) = member.syncing.take() {
            let response = SyncGroupResponse { error_code: error.code(), ..Default::default() };
            turn.scope.answer_now(token, GroupResponse::Sync(response));
            told.push(member.id.clone());
        }
    }
    for member in &told {
        restart_session(turn, group, member);
    }
}

/// What Kafka fills into a JoinGroup response that is an error.
pub(super) fn join_refusal() -> JoinGroupResponse {
    JoinGroupResponse { generation_id: -1, protocol_name: Some(KString::default()), ..Default::default() }
}
