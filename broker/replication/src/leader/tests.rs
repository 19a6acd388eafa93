//! The traps of a leader, one by one.

use super::*;

const LIMITS: ReplicationLimits = ReplicationLimits { min_isr: 2, max_lag_ms: 30_000 };
const ALONE_IS_ENOUGH: ReplicationLimits = ReplicationLimits { min_isr: 1, max_lag_ms: 1_000 };
const START: Timestamp = Timestamp(1_000_000);
const LOG: LeadersLog =
    LeadersLog { start: Offset(0), end: Offset(100), durable_end: None, high_watermark: Offset(90) };

fn ids(ids: &[i32]) -> Vec<BrokerId> {
    ids.iter().map(|id| BrokerId(*id)).collect()
}

fn assignment(replicas: &[i32], isr: &[i32], partition_epoch: i32) -> PartitionAssignment {
    PartitionAssignment {
        leader_epoch: LeaderEpoch(3),
        partition_epoch,
        replicas: ids(replicas),
        isr: ids(isr),
        adding: Vec::new(),
    }
}

fn leader(replicas: &[i32], isr: &[i32], limits: ReplicationLimits) -> LeaderState {
    let assignment = assignment(replicas, isr, 7);
    LeaderState::new(BrokerId(1), &assignment, limits, LOG, START)
}

fn registered(epoch: i64) -> Registration {
    Registration { epoch: BrokerEpoch(epoch), active: true }
}

fn fetch(replica: i32, offset: i64) -> FollowerFetch {
    FollowerFetch {
        replica: BrokerId(replica),
        broker_epoch: BrokerEpoch(11),
        leader_epoch: LeaderEpoch(3),
        offset: Offset(offset),
        log_start: Offset(0),
        registration: Some(registered(11)),
    }
}

fn accepted(isr: &[i32], partition_epoch: i32) -> ProposalAnswer {
    ProposalAnswer::Accepted { isr: ids(isr), leader_epoch: LeaderEpoch(3), partition_epoch }
}

fn moved(outcome: ProposalOutcome) -> Option<i64> {
    match outcome {
        ProposalOutcome::Settled(moved) => moved.map(Offset::value),
        other => panic!("the proposal is not settled: {other:?}"),
    }
}

#[test]
fn a_leader_that_begins_alone_does_not_commit_what_is_not_synced_where_that_counts() {
    let log = LeadersLog { durable_end: Some(Offset(95)), ..LOG };
    let mut leader = LeaderState::new(BrokerId(1), &assignment(&[1], &[1], 7), ALONE_IS_ENOUGH, log, START);
    assert_eq!(leader.high_watermark(), Offset(95));
    assert_eq!(leader.on_durable(Offset(100), START), Some(Offset(100)));
}

#[test]
fn a_leader_alone_commits_what_it_appends() {
    let mut leader = leader(&[1], &[1], LIMITS);
    assert_eq!(leader.high_watermark(), Offset(100));
    assert_eq!(leader.on_append(Offset(110), START), Some(Offset(110)));
    assert_eq!(leader.check_min_isr(), Ok(()));
}

#[test]
fn only_synced_offsets_count_where_the_partition_asks_for_syncs() {
    let mut leader = leader(&[1], &[1], LIMITS);
    leader.on_durable(Offset(100), START);
    assert_eq!(leader.on_append(Offset(110), START), None);
    assert_eq!(leader.on_durable(Offset(105), START), Some(Offset(105)));
    assert_eq!(leader.on_durable(Offset(110), START), Some(Offset(110)));
}

#[test]
fn syncs_can_be_asked_for_and_no_more() {
    let mut leader = leader(&[1], &[1], LIMITS);
    assert_eq!(leader.on_durability(Some(Offset(100)), START), None);
    assert_eq!(leader.on_append(Offset(110), START), None);
    assert_eq!(leader.on_durability(None, START), Some(Offset(110)), "nothing waits for a sync that nobody begins");
}

#[test]
fn the_slowest_in_sync_replica_decides_what_is_committed() {
    let mut leader = leader(&[1, 2, 3], &[1, 2, 3], LIMITS);
    assert_eq!(leader.high_watermark(), Offset(90));
    assert_eq!(leader.on_fetch(fetch(2, 100), START).unwrap().high_watermark, None);
    assert_eq!(leader.on_fetch(fetch(3, 95), START).unwrap().high_watermark, Some(Offset(95)));
}

#[test]
fn what_in_sync_replicas_have_is_unknown_until_they_fetch() {
    let mut leader = leader(&[1, 2, 3], &[1, 2, 3], LIMITS);
    leader.on_append(Offset(110), START);
    leader.on_fetch(fetch(2, 110), START).unwrap();
    assert_eq!(leader.high_watermark(), Offset(90), "the third has not said what it has");
}

#[test]
fn a_fetch_that_says_nothing_of_this_leadership_changes_nothing() {
    let mut leader = leader(&[1, 2], &[1, 2], LIMITS);
    let before = leader.clone();
    let refused = |leader: &mut LeaderState, fetch| leader.on_fetch(fetch, START).map_err(ErrorCode::from).unwrap_err();
    assert_eq!(refused(&mut leader, fetch(4, 95)), ErrorCode::UnknownLeaderEpoch, "no replica, as far as is known");
    let older = FollowerFetch { leader_epoch: LeaderEpoch(2), ..fetch(2, 100) };
    assert_eq!(refused(&mut leader, older), ErrorCode::FencedLeaderEpoch);
    let newer = FollowerFetch { leader_epoch: LeaderEpoch(4), ..fetch(2, 100) };
    assert_eq!(refused(&mut leader, newer), ErrorCode::UnknownLeaderEpoch);
    assert_eq!(refused(&mut leader, fetch(2, 101)), ErrorCode::OffsetOutOfRange, "it has more than the leader");
    let former_life = FollowerFetch { broker_epoch: BrokerEpoch(10), ..fetch(2, 100) };
    assert_eq!(refused(&mut leader, former_life), ErrorCode::NotLeaderOrFollower);
    assert_eq!(leader, before);
}

#[test]
fn nothing_is_committed_below_min_insync_replicas() {
    let mut leader = leader(&[1, 2], &[1], LIMITS);
    assert_eq!(leader.check_min_isr(), Err(NotEnoughReplicas { in_sync: 1, min_isr: 2 }));
    assert_eq!(leader.on_append(Offset(110), START), None);
    let progress = leader.on_fetch(fetch(2, 110), START).unwrap();
    assert_eq!(progress.high_watermark, None, "the proposed replica is not committed yet");
    let proposal = progress.proposal.unwrap();
    assert_eq!(proposal.isr, [(BrokerId(1), BrokerEpoch::NONE), (BrokerId(2), BrokerEpoch(11))]);
    assert_eq!(moved(leader.on_proposal_answered(&proposal, &accepted(&[1, 2], 8), START)), Some(110));
}

#[test]
fn commits_go_on_when_min_insync_replicas_is_lowered() {
    let mut leader = leader(&[1, 2], &[1], LIMITS);
    leader.on_append(Offset(110), START);
    assert_eq!(leader.on_limits(ALONE_IS_ENOUGH, START), Some(Offset(110)));
}

#[test]
fn a_follower_that_stays_behind_is_dropped_and_then_commits_go_on() {
    let limits = ReplicationLimits { min_isr: 1, max_lag_ms: 30_000 };
    let mut leader = leader(&[1, 2], &[1, 2], limits);
    leader.on_append(Offset(110), START);
    assert_eq!(leader.on_tick(START.plus_ms(30_000)), None);
    let proposal = leader.on_tick(START.plus_ms(30_001)).unwrap();
    assert_eq!((proposal.isr.len(), proposal.partition_epoch), (1, 7));
    assert_eq!(leader.on_tick(START.plus_ms(40_000)), None, "one proposal at a time");
    assert_eq!(leader.high_watermark(), Offset(90), "it still counts until the controller agrees");
    let outcome = leader.on_proposal_answered(&proposal, &accepted(&[1], 8), START.plus_ms(40_000));
    assert_eq!(outcome, ProposalOutcome::AwaitsMetadata);
    assert_eq!(leader.on_tick(START.plus_ms(50_000)), None, "it is as good as done");
    let read = leader.on_assignment(&assignment(&[1, 2], &[1], 8), START.plus_ms(50_000));
    assert_eq!(read, Some(Offset(110)));
}

#[test]
fn who_leaves_counts_until_the_leader_knows_how_many_the_controller_wanted_in_sync() {
    let mut leader = leader(&[1, 2], &[1, 2], ALONE_IS_ENOUGH);
    leader.on_append(Offset(110), START);
    let later = START.plus_ms(1_001);
    let proposal = leader.on_tick(later).unwrap();
    // Two are wanted by now, so the second stays eligible to lead.
    leader.on_proposal_answered(&proposal, &accepted(&[1], 8), later);
    assert_eq!(leader.on_append(Offset(120), later), None);
    leader.raise_min_isr(2);
    leader.raise_min_isr(1);
    assert_eq!(leader.on_assignment(&assignment(&[1, 2], &[1], 8), later), None);
    assert_eq!(leader.high_watermark(), Offset(90), "the second does not have what comes after");
    assert_eq!(leader.on_limits(ALONE_IS_ENOUGH, later), Some(Offset(120)));
}

#[test]
fn an_idle_follower_that_has_everything_stays_in_sync_however_long_ago_it_fetched() {
    let mut leader = leader(&[1, 2], &[1, 2], ALONE_IS_ENOUGH);
    leader.on_fetch(fetch(2, 100), START).unwrap();
    assert_eq!(leader.on_tick(START.plus_ms(1_000_000)), None);
}

#[test]
fn a_follower_is_caught_up_as_of_its_previous_fetch() {
    let mut leader = leader(&[1, 2], &[1, 2], ALONE_IS_ENOUGH);
    leader.on_append(Offset(110), START);
    leader.on_fetch(fetch(2, 100), START.plus_ms(500)).unwrap();
    leader.on_append(Offset(120), START.plus_ms(600));
    // It has all that we had at +500, so it was caught up at +500 and may lag until +1500.
    leader.on_fetch(fetch(2, 110), START.plus_ms(1_400)).unwrap();
    assert_eq!(leader.on_tick(START.plus_ms(1_500)), None);
    assert!(leader.on_tick(START.plus_ms(1_501)).is_some());
}

#[test]
fn a_replica_joins_once_it_has_what_is_committed_and_what_the_leadership_began_with() {
    let mut leader = leader(&[1, 2, 3], &[1, 3], LIMITS);
    leader.on_fetch(fetch(3, 95), START).unwrap();
    assert_eq!(leader.high_watermark(), Offset(95));
    assert_eq!(leader.on_fetch(fetch(2, 99), START).unwrap().proposal, None, "the leadership began at 100");
    leader.on_append(Offset(200), START);
    let proposal = leader.on_fetch(fetch(2, 100), START).unwrap().proposal.unwrap();
    assert_eq!(proposal.isr.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids(&[1, 3, 2]));
}

#[test]
fn a_broker_that_the_metadata_does_not_know_in_this_life_never_joins() {
    let fenced = Some(Registration { epoch: BrokerEpoch(11), active: false });
    for registration in [None, Some(registered(10)), fenced] {
        let mut leader = leader(&[1, 2], &[1], ALONE_IS_ENOUGH);
        let fetch = FollowerFetch { registration, ..fetch(2, 100) };
        assert_eq!(leader.on_fetch(fetch, START).unwrap().proposal, None, "{registration:?}");
    }
    let mut leader = leader(&[1, 2], &[1], ALONE_IS_ENOUGH);
    let without_epochs = FollowerFetch { broker_epoch: BrokerEpoch::NONE, ..fetch(2, 100) };
    assert!(leader.on_fetch(without_epochs, START).unwrap().proposal.is_some());
}

#[test]
fn who_is_proposed_to_join_counts_before_the_controller_has_agreed() {
    let mut leader = leader(&[1, 2], &[1], ReplicationLimits { min_isr: 1, max_lag_ms: 10 });
    let proposal = leader.on_fetch(fetch(2, 100), START).unwrap().proposal.unwrap();
    let later = START.plus_ms(1_000);
    assert_eq!(leader.on_append(Offset(110), later), None, "the controller may have made it in-sync");
    let refused = ProposalAnswer::Refused(ErrorCode::IneligibleReplica);
    assert_eq!(moved(leader.on_proposal_answered(&proposal, &refused, later)), Some(110), "it has not");
}

#[test]
fn commits_wait_for_a_replica_that_is_about_to_join_and_not_for_one_that_is_far_behind() {
    let mut leader = leader(&[1, 2], &[1], ALONE_IS_ENOUGH);
    let far_behind = FollowerFetch { offset: Offset(5), ..fetch(2, 5) };
    leader.on_fetch(far_behind, START).unwrap();
    assert_eq!(leader.on_append(Offset(110), START), Some(Offset(110)), "it was never caught up");
    let proposal = leader.on_fetch(fetch(2, 110), START).unwrap().proposal.unwrap();
    let refused = ProposalAnswer::Refused(ErrorCode::OperationNotAttempted);
    leader.on_proposal_answered(&proposal, &refused, START);
    assert_eq!(leader.on_append(Offset(120), START), None, "it asks to join again with its next fetch");
    let gone = leader.on_registration(BrokerId(2), None, START);
    assert_eq!(gone, Some(Offset(120)), "a broker that is gone cannot join");
}

#[test]
fn only_a_definite_refusal_withdraws_a_proposal() {
    use ErrorCode as E;
    let withdrawn = [E::OperationNotAttempted, E::IneligibleReplica];
    let awaits = [
        E::UnknownTopicOrPartition,
        E::UnknownTopicId,
        E::FencedLeaderEpoch,
        E::InvalidUpdateVersion,
        E::InvalidRequest,
        E::NewLeaderElected,
    ];
    let retried = [E::UnknownServerError, E::RequestTimedOut, E::NotController, E::NetworkException];
    let answer = |error: E| {
        let mut leader = leader(&[1, 2], &[1], LIMITS);
        let proposal = leader.on_fetch(fetch(2, 100), START).unwrap().proposal.unwrap();
        let outcome = leader.on_proposal_answered(&proposal, &ProposalAnswer::Refused(error), START);
        (outcome, leader.on_fetch(fetch(2, 100), START).unwrap().proposal.is_some())
    };
    for error in withdrawn {
        assert_eq!(answer(error), (ProposalOutcome::Settled(None), true), "{error:?}");
    }
    for error in awaits {
        assert_eq!(answer(error), (ProposalOutcome::AwaitsMetadata, false), "{error:?}");
    }
    for error in retried {
        assert_eq!(answer(error), (ProposalOutcome::Retry, false), "{error:?}");
    }
}

#[test]
fn an_old_answer_of_the_controller_changes_nothing() {
    let mut leader = leader(&[1, 2, 3], &[1, 3], LIMITS);
    let old = leader.on_fetch(fetch(2, 100), START).unwrap().proposal.unwrap();
    assert_eq!(leader.on_assignment(&assignment(&[1, 2, 3], &[1, 2], 7), START), None, "known already");
    leader.on_assignment(&assignment(&[1, 2, 3], &[1], 8), START);
    assert_eq!(leader.isr(), ids(&[1]));
    assert_eq!(leader.on_proposal_answered(&old, &accepted(&[1, 2, 3], 8), START), ProposalOutcome::Ignored);
    let proposal = leader.on_fetch(fetch(2, 100), START).unwrap().proposal.unwrap();
    assert_eq!(proposal.partition_epoch, 8);
    assert_eq!(leader.on_proposal_answered(&proposal, &accepted(&[1, 2], 7), START), ProposalOutcome::Ignored);
    assert_eq!(leader.isr(), ids(&[1]));
}

#[test]
fn the_metadata_of_a_proposal_that_was_answered_does_not_end_the_next_one() {
    let mut leader = leader(&[1, 2, 3], &[1], ReplicationLimits { min_isr: 1, max_lag_ms: 10 });
    let first = leader.on_fetch(fetch(2, 100), START).unwrap().proposal.unwrap();
    leader.on_proposal_answered(&first, &accepted(&[1, 2], 8), START);
    let second = leader.on_fetch(fetch(3, 100), START).unwrap().proposal.unwrap();
    leader.on_assignment(&assignment(&[1, 2, 3], &[1, 2], 8), START);
    leader.on_append(Offset(110), START.plus_ms(1_000));
    leader.on_fetch(fetch(2, 110), START.plus_ms(1_000)).unwrap();
    assert_eq!(leader.high_watermark(), Offset(100), "the third may be in sync by now");
    assert_eq!(moved(leader.on_proposal_answered(&second, &accepted(&[1, 2, 3], 9), START)), None);
}

#[test]
fn a_reassignment_brings_replicas_and_takes_others_away() {
    let mut leader = leader(&[1, 2], &[1, 2], LIMITS);
    let adding = PartitionAssignment { adding: ids(&[3]), ..assignment(&[1, 2, 3], &[1, 2], 8) };
    leader.on_assignment(&adding, START);
    assert!(!leader.is_under_replicated(), "the new replica is not missing, it is on its way");
    leader.on_fetch(fetch(2, 100), START).unwrap();
    let proposal = leader.on_fetch(fetch(3, 100), START).unwrap().proposal.unwrap();
    leader.on_proposal_answered(&proposal, &accepted(&[1, 2, 3], 9), START);
    leader.on_assignment(&assignment(&[1, 3], &[1, 3], 10), START);
    assert_eq!(leader.on_append(Offset(110), START), None);
    assert_eq!(leader.on_fetch(fetch(3, 110), START).unwrap().high_watermark, Some(Offset(110)), "2 is gone");
    assert!(leader.on_fetch(fetch(2, 110), START).is_err());
}

#[test]
fn a_reassignment_that_only_brought_a_replica_is_over_once_the_metadata_says_so_of_a_state_that_is_known_already() {
    let mut leader = leader(&[1, 2], &[1, 2], LIMITS);
    let adding = PartitionAssignment { adding: ids(&[3]), ..assignment(&[1, 2, 3], &[1, 2], 8) };
    leader.on_assignment(&adding, START);
    leader.on_fetch(fetch(2, 100), START).unwrap();
    let proposal = leader.on_fetch(fetch(3, 100), START).unwrap().proposal.unwrap();
    // The change that brings the third into sync completes the reassignment, and the answer comes before the metadata.
    leader.on_proposal_answered(&proposal, &accepted(&[1, 2, 3], 9), START);
    assert!(leader.is_adding(BrokerId(3)), "nobody has said anything else");
    leader.on_assignment(&assignment(&[1, 2, 3], &[1, 2, 3], 9), START);
    assert!(!leader.is_adding(BrokerId(3)), "it is a replica like any other");
}

#[test]
fn a_record_counts_as_deleted_once_every_live_replica_has_deleted_it() {
    let mut leader = leader(&[1, 2, 3], &[1, 2], LIMITS);
    leader.on_log_start(Offset(50));
    assert_eq!(leader.low_watermark(), Offset(0), "the second has not fetched yet");
    leader.on_fetch(FollowerFetch { log_start: Offset(40), ..fetch(2, 100) }, START).unwrap();
    assert_eq!(leader.low_watermark(), Offset(40), "the third is not there");
    leader.on_fetch(FollowerFetch { log_start: Offset(30), ..fetch(3, 35) }, START).unwrap();
    assert_eq!(leader.low_watermark(), Offset(30), "a live one counts, in sync or not");
    leader.on_registration(BrokerId(3), None, START);
    assert_eq!(leader.low_watermark(), Offset(40));
}

#[test]
fn a_consumer_is_sent_to_the_in_sync_replica_near_it_that_has_most() {
    let mut leader = leader(&[1, 2, 3, 4], &[1, 2, 3], LIMITS);
    let near = ids(&[2, 3, 4]);
    assert_eq!(leader.preferred_read_replica(Offset(50), &near), None, "nobody has fetched");
    leader.on_fetch(fetch(2, 80), START).unwrap();
    leader.on_fetch(fetch(3, 90), START).unwrap();
    leader.on_fetch(fetch(4, 95), START).unwrap();
    assert_eq!(leader.preferred_read_replica(Offset(50), &near), Some(BrokerId(3)), "4 is not in sync");
    assert_eq!(leader.preferred_read_replica(Offset(90), &near), Some(BrokerId(3)));
    assert_eq!(leader.preferred_read_replica(Offset(91), &near), None, "nobody in sync has that offset");
    assert_eq!(leader.preferred_read_replica(Offset(50), &ids(&[2])), Some(BrokerId(2)));
    assert_eq!(leader.preferred_read_replica(Offset(50), &ids(&[1, 2])), None, "the leader is near itself");
    assert_eq!(leader.preferred_read_replica(Offset(50), &[]), None);
    leader.on_fetch(FollowerFetch { log_start: Offset(60), ..fetch(3, 90) }, START).unwrap();
    assert_eq!(leader.preferred_read_replica(Offset(50), &near), Some(BrokerId(2)), "3 has deleted it");
}

#[test]
fn a_follower_that_had_nothing_to_fetch_is_not_behind_once_there_is_something() {
    let mut leader = leader(&[1, 2], &[1, 2], ALONE_IS_ENOUGH);
    leader.on_fetch(fetch(2, 100), START).unwrap();
    let much_later = START.plus_ms(1_000_000);
    assert_eq!(leader.on_tick(much_later), None, "it has all there is");
    leader.on_quiet_fetch(BrokerId(2), much_later.plus_ms(-100));
    leader.on_append(Offset(110), much_later);
    assert_eq!(leader.on_tick(much_later.plus_ms(800)), None);
    let proposal = leader.on_tick(much_later.plus_ms(1_000)).expect("it has not fetched since");
    assert_eq!(proposal.isr.iter().map(|(id, _)| id.value()).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_quiet_fetch_says_nothing_for_a_follower_that_is_behind() {
    let mut leader = leader(&[1, 2], &[1, 2], ALONE_IS_ENOUGH);
    leader.on_fetch(fetch(2, 99), START).unwrap();
    leader.on_quiet_fetch(BrokerId(2), START.plus_ms(5_000));
    assert!(leader.on_tick(START.plus_ms(5_000)).is_some());
}
