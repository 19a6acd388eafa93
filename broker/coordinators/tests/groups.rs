//! The classic group protocol, told as what members see.

mod world;

use bytes::Bytes;
use gregor_coordinators::group::{GroupConfig, GroupRequest};
use gregor_messages::{
    JoinGroupResponse, SyncGroupResponse, delete_groups_response::DeletableGroupResult,
    describe_groups_response::DescribedGroup, list_groups_response::ListedGroup,
};
use gregor_types::ErrorCode;
use world::{GROUP, Player, World, consumer, named, outsider};

fn consumers(count: usize) -> Vec<Player> {
    vec![consumer(); count]
}

fn error_of(joined: &JoinGroupResponse) -> ErrorCode {
    joined.error_code.into()
}

#[test]
fn many_members_meet_in_one_generation_and_each_learns_its_part() {
    let mut world = World::new();
    let players = world.stable_group(consumers(60));
    assert!(players.iter().all(|player| player.generation == 1));
    assert_eq!(world.member_count(), 60);
    assert!(players.iter().all(|player| world.heartbeat(player) == ErrorCode::None));
}

#[test]
fn the_first_rebalance_waits_for_members_that_are_still_starting() {
    let mut world = World::new();
    let (mut first, mut second) = (consumer(), consumer());
    let one = world.join_new(&mut first);
    world.pass_ms(2_900);
    let two = world.join_new(&mut second);
    world.pass_ms(200);
    assert_eq!(world.try_answer::<JoinGroupResponse>(one), None, "a member came, so it waits once more");
    world.pass_ms(3_000);
    assert_eq!(world.joined(&mut first, one).members.len(), 2);
    assert_eq!(world.joined(&mut second, two).leader, first.id, "the first to join leads");
}

#[test]
fn a_new_member_makes_everybody_rejoin() {
    let mut world = World::new();
    let mut players = world.stable_group(consumers(3));
    let mut new = consumer();
    let join = world.join_new(&mut new);
    let mut tokens = Vec::new();
    for player in &players {
        assert_eq!(world.heartbeat(player), ErrorCode::RebalanceInProgress);
        tokens.push(world.send_join(player, 9));
    }
    players.push(new);
    tokens.push(join);
    world.finish_rebalance(&mut players, &tokens);
    assert!(players.iter().all(|player| player.generation == 2));
}

#[test]
fn who_does_not_rejoin_in_time_is_left_behind() {
    let mut world = World::new();
    let mut players = world.stable_group(consumers(2));
    let sleeper = players.pop().unwrap();
    let token = world.send_join(&players[0], 9);
    for _ in 0..12 {
        // It says that it lives, but does not join.
        assert_eq!(world.heartbeat(&sleeper), ErrorCode::RebalanceInProgress);
        world.pass_ms(5_000);
    }
    assert_eq!(world.joined(&mut players[0], token).members.len(), 1);
    assert_eq!(world.heartbeat(&sleeper), ErrorCode::UnknownMemberId);
}

#[test]
fn a_silent_member_is_taken_for_dead_and_the_others_rebalance() {
    let mut world = World::new();
    let players = world.stable_group(consumers(2));
    world.pass_ms(9_000);
    assert_eq!(world.heartbeat(&players[0]), ErrorCode::None);
    world.pass_ms(2_000);
    assert_eq!(world.member_count(), 1);
    assert_eq!(world.heartbeat(&players[0]), ErrorCode::RebalanceInProgress);
    assert_eq!(world.heartbeat(&players[1]), ErrorCode::UnknownMemberId);
}

#[test]
fn who_joins_but_never_syncs_is_left_behind() {
    let mut world = World::new();
    let (mut first, mut second) = (consumer(), consumer());
    let tokens = [world.join_new(&mut first), world.join_new(&mut second)];
    world.pass_ms(10_000);
    world.joined(&mut first, tokens[0]);
    world.joined(&mut second, tokens[1]);
    let sync = world.send_sync(&second, &[]);
    for _ in 0..13 {
        world.pass_ms(5_000);
        world.heartbeat(&first);
        world.heartbeat(&second);
    }
    assert_eq!(ErrorCode::from(world.answer::<SyncGroupResponse>(sync).error_code), ErrorCode::RebalanceInProgress);
    assert_eq!(world.heartbeat(&first), ErrorCode::UnknownMemberId);
    assert_eq!(world.state(), "PreparingRebalance");
}

#[test]
fn zombies_of_an_older_generation_are_fenced() {
    let mut world = World::new();
    let mut players = world.stable_group(consumers(2));
    let zombie = players[1].clone();
    let tokens: Vec<_> = players.iter().map(|player| world.send_join(player, 9)).collect();
    world.finish_rebalance(&mut players, &tokens);
    assert_eq!(world.heartbeat(&zombie), ErrorCode::IllegalGeneration);
    assert_eq!(world.commit(&zombie, "orders", 5), ErrorCode::IllegalGeneration);
    let sync = world.send_sync(&zombie, &[]);
    assert_eq!(ErrorCode::from(world.answer::<SyncGroupResponse>(sync).error_code), ErrorCode::IllegalGeneration);
    let stranger = Player { id: "stranger".into(), ..zombie };
    assert_eq!(world.commit(&stranger, "orders", 5), ErrorCode::UnknownMemberId);
    assert_eq!(world.fetch("orders"), -1, "none of that was stored");
}

#[test]
fn a_static_member_that_restarts_keeps_its_part_and_fences_its_old_self() {
    let mut world = World::new();
    let players = world.stable_group(vec![named("a"), named("b")]);
    let old = players[1].clone();
    let mut back = Player { instance: old.instance.clone(), ..consumer() };
    let token = world.send_join(&back, 9);
    let joined = world.joined(&mut back, token);
    assert_eq!((joined.generation_id, joined.skip_assignment), (1, false));
    assert_ne!(back.id, old.id);
    let sync = world.send_sync(&back, &[]);
    assert_eq!(world.answer::<SyncGroupResponse>(sync).assignment, old.id.as_bytes(), "what its old self was assigned");
    assert_eq!(world.heartbeat(&old), ErrorCode::FencedInstanceId);
    assert_eq!(world.commit(&old, "orders", 1), ErrorCode::FencedInstanceId);
    assert_eq!(world.heartbeat(&players[0]), ErrorCode::None, "the other one noticed nothing");
}

#[test]
fn a_static_leader_that_restarts_is_told_not_to_assign_again() {
    let mut world = World::new();
    let players = world.stable_group(vec![named("a"), named("b")]);
    let mut back = Player { instance: players[0].instance.clone(), ..consumer() };
    let token = world.send_join(&back, 9);
    let joined = world.joined(&mut back, token);
    assert!(joined.skip_assignment);
    assert_eq!((joined.leader, joined.members.len()), (back.id.clone(), 2));
    // An older client cannot be told, so it is shown another leader.
    let mut again = Player { instance: players[0].instance.clone(), ..consumer() };
    let token = world.send_join(&again, 8);
    let joined = world.joined(&mut again, token);
    assert_eq!((joined.skip_assignment, joined.leader), (false, back.id));
}

#[test]
fn a_static_member_whose_return_cannot_be_written_changes_nothing() {
    let mut world = World::new();
    let players = world.stable_group(vec![named("a"), named("b")]);
    world.log.fails_with = Some(ErrorCode::NotEnoughReplicas);
    let token = world.send_join(&named("b"), 9);
    assert_eq!(error_of(&world.answer(token)), ErrorCode::CoordinatorNotAvailable);
    world.log.fails_with = None;
    assert_eq!(world.heartbeat(&players[1]), ErrorCode::None, "the old self is still the member");
}

#[test]
fn members_agree_on_the_protocol_that_most_prefer_among_those_all_know() {
    let mut world = World::new();
    let prefers = |names: &[&'static str]| Player {
        protocols: names.iter().map(|name| (*name, Bytes::from_static(b"\0\0\0\0\0\0\xff\xff\xff\xff"))).collect(),
        ..consumer()
    };
    let mut players =
        [prefers(&["range", "sticky"]), prefers(&["sticky", "range"]), prefers(&["solo", "sticky", "range"])];
    let tokens: Vec<_> = players.iter_mut().map(|player| world.join_new(player)).collect();
    world.pass_ms(10_000);
    let chosen = world.joined(&mut players[0], tokens[0]).protocol_name;
    assert_eq!(chosen.as_deref(), Some("sticky"));
    let token = world.send_join(&prefers(&["solo"]), 9);
    assert_eq!(error_of(&world.answer(token)), ErrorCode::InconsistentGroupProtocol);
}

#[test]
fn a_full_group_takes_no_more_members() {
    let mut world = World::with(GroupConfig { group_size_max: 2, ..GroupConfig::default() });
    world.stable_group(consumers(2));
    let token = world.send_join(&consumer(), 9);
    assert_eq!(error_of(&world.answer(token)), ErrorCode::GroupMaxSizeReached);
}

#[test]
fn session_timeouts_out_of_bounds_are_refused() {
    let mut world = World::with(GroupConfig { session_timeout_min_ms: 20_000, ..GroupConfig::default() });
    let token = world.send_join(&consumer(), 9);
    assert_eq!(error_of(&world.answer(token)), ErrorCode::InvalidSessionTimeout);
}

#[test]
fn an_id_that_nobody_comes_back_with_holds_nobody_up() {
    let mut world = World::new();
    let mut players = world.stable_group(consumers(1));
    let lost = world.send_join(&consumer(), 9);
    assert_eq!(error_of(&world.answer(lost)), ErrorCode::MemberIdRequired);
    assert_eq!(world.heartbeat(&players[0]), ErrorCode::None, "asking for an id disturbs nobody");
    let token = world.send_join(&players[0], 9);
    assert_eq!(world.try_answer::<JoinGroupResponse>(token), None, "it might still come");
    world.pass_ms(10_000);
    world.finish_rebalance(&mut players, &[token]);
}

#[test]
fn an_assignment_that_cannot_be_written_is_given_to_nobody() {
    let mut world = World::new();
    let (mut leader, mut follower) = (consumer(), consumer());
    let tokens = [world.join_new(&mut leader), world.join_new(&mut follower)];
    world.pass_ms(10_000);
    world.joined(&mut leader, tokens[0]);
    world.joined(&mut follower, tokens[1]);
    let waits = world.send_sync(&follower, &[]);
    world.log.fails_with = Some(ErrorCode::NotLeaderOrFollower);
    let assigns = world.send_sync(&leader, &[(leader.id.clone(), "all")]);
    for token in [waits, assigns] {
        assert_eq!(ErrorCode::from(world.answer::<SyncGroupResponse>(token).error_code), ErrorCode::NotCoordinator);
    }
    world.log.fails_with = None;
    assert_eq!(world.heartbeat(&leader), ErrorCode::RebalanceInProgress);
    let mut players = vec![leader, follower];
    let tokens: Vec<_> = players.iter().map(|player| world.send_join(player, 9)).collect();
    world.finish_rebalance(&mut players, &tokens);
}

#[test]
fn a_member_learns_its_part_only_once_that_is_committed() {
    let mut world = World::new();
    let mut player = consumer();
    let join = world.join_new(&mut player);
    world.pass_ms(10_000);
    world.joined(&mut player, join);
    world.commits_at_once = false;
    let sync = world.send_sync(&player, &[(player.id.clone(), "all")]);
    assert_eq!(world.try_answer::<SyncGroupResponse>(sync), None);
    world.commit_log();
    assert_eq!(world.answer::<SyncGroupResponse>(sync).assignment, "all");
}

#[test]
fn a_coordinator_that_takes_over_knows_members_and_their_parts() {
    let mut world = World::new();
    let players = world.stable_group(consumers(2));
    let mut next = world.reloaded();
    assert_eq!(next.shard.machine().durable_state(), world.shard.machine().durable_state());
    assert_eq!(next.heartbeat(&players[0]), ErrorCode::None);
    let sync = next.send_sync(&players[1], &[]);
    assert_eq!(next.answer::<SyncGroupResponse>(sync).assignment, players[1].id.as_bytes());
    next.pass_ms(11_000);
    assert_eq!(next.member_count(), 0, "whoever does not find the new coordinator loses its session");
}

#[test]
fn leaving_empties_the_group_and_that_is_remembered() {
    let mut world = World::new();
    let players = world.stable_group(consumers(2));
    assert_eq!(world.leave(&players[0]), ErrorCode::None);
    assert_eq!(world.leave(&players[0]), ErrorCode::UnknownMemberId);
    assert_eq!(world.state(), "PreparingRebalance");
    assert_eq!(world.leave(&players[1]), ErrorCode::None);
    assert_eq!(world.state(), "Empty");
    let next = world.reloaded();
    assert_eq!(next.shard.machine().durable_state(), world.shard.machine().durable_state());
    assert_eq!(next.state(), "Empty");
}

#[test]
fn groups_are_listed_described_and_deleted_only_when_nobody_is_in_them() {
    let mut world = World::new();
    let players = world.stable_group(consumers(1));
    world.commit(&players[0], "orders", 7);
    let list = world.ask(GroupRequest::List { states: vec!["stable".into()], types: vec!["Classic".into()] });
    assert_eq!(world.answer::<Vec<ListedGroup>>(list).len(), 1);
    let list = world.ask(GroupRequest::List { states: vec!["Empty".into()], types: Vec::new() });
    assert_eq!(world.answer::<Vec<ListedGroup>>(list), []);
    let describe = world.ask(GroupRequest::Describe { group_id: GROUP.into(), version: 6 });
    let described: DescribedGroup = world.answer(describe);
    assert_eq!((&*described.group_state, &*described.protocol_data), ("Stable", "range"));
    assert_eq!(described.members[0].member_assignment, players[0].id.as_bytes());

    let delete = |world: &mut World| {
        let token = world.ask(GroupRequest::Delete { group_id: GROUP.into() });
        ErrorCode::from(world.answer::<DeletableGroupResult>(token).error_code)
    };
    assert_eq!(delete(&mut world), ErrorCode::NonEmptyGroup);
    world.leave(&players[0]);
    assert_eq!(delete(&mut world), ErrorCode::None);
    assert_eq!(delete(&mut world), ErrorCode::GroupIdNotFound);
    assert_eq!(world.fetch("orders"), -1, "its offsets went with it");
    assert_eq!(world.reloaded().shard.machine().durable_state(), Vec::<String>::new());
    let describe = world.ask(GroupRequest::Describe { group_id: GROUP.into(), version: 5 });
    assert_eq!(&*world.answer::<DescribedGroup>(describe).group_state, "Dead");
}

#[test]
fn only_members_commit_while_a_group_has_some() {
    let mut world = World::new();
    assert_eq!(world.commit(&outsider(), "orders", 3), ErrorCode::None, "an empty group takes offsets from outside");
    let players = world.stable_group(consumers(1));
    assert_eq!(world.commit(&outsider(), "orders", 4), ErrorCode::UnknownMemberId);
    assert_eq!(world.commit(&players[0], "orders", 5), ErrorCode::None);
    assert_eq!(world.fetch("orders"), 5);
}
