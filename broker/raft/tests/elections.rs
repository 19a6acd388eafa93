//! How one voter goes through elections, event by event: whom it asks for what, and how long it waits.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod lone_voter;

use bytes::Bytes;
use gregor_messages::{BeginQuorumEpochResponse, VoteResponse, begin_quorum_epoch_response, vote_response};
use gregor_raft::{ElectionState, Input, Origin, Request, RequestId, Response, Role};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch};
use lone_voter::{OTHER, Paper, Rig, THIRD, ballot, ends, verdict};

#[test]
fn a_voter_that_cannot_be_asked_whether_it_would_vote_is_asked_for_its_vote() {
    let mut rig = Rig::new(Paper::default(), ElectionState::unknown_leader(LeaderEpoch(3)));
    rig.pass(2_000);
    let mut asked = rig.ballots();
    asked.sort_unstable();
    assert_eq!(asked, [(OTHER, true), (THIRD, true)]);
    rig.sent.clear();
    let unknown = VoteResponse { error_code: ErrorCode::UnsupportedVersion.code(), ..Default::default() };
    rig.step(Input::Response { from: OTHER, response: Some(Response::Vote(unknown.clone())) });
    assert!(matches!(rig.quorum.role(), Role::Candidate(_)), "{:?}", rig.quorum.role());
    assert_eq!(rig.quorum.epoch(), LeaderEpoch(4));
    rig.sync();
    assert_eq!(rig.ballots(), [(OTHER, false)], "at once, and for its vote");
    rig.vote(true);
    assert!(matches!(rig.quorum.role(), Role::Leader(_)), "{:?}", rig.quorum.role());
    // What was asked before it stood changes nothing.
    rig.step(Input::Response { from: THIRD, response: Some(Response::Vote(unknown)) });
    assert!(matches!(rig.quorum.role(), Role::Leader(_)), "{:?}", rig.quorum.role());
}

#[test]
fn a_leader_that_is_no_voter_here_is_found_where_an_answer_to_a_ballot_says() {
    let mut rig = Rig::new(Paper::default(), ElectionState::unknown_leader(LeaderEpoch(3)));
    rig.pass(2_000);
    assert!(matches!(rig.quorum.role(), Role::Prospective(_)), "{:?}", rig.quorum.role());
    // It may be the one that this voter's log says was taken out, which is not so elsewhere.
    let stranger = BrokerId(9);
    let partition = vote_response::PartitionData { leader_id: 9, leader_epoch: 4, ..Default::default() };
    let topic = vote_response::TopicData { partitions: vec![partition], ..Default::default() };
    let node = vote_response::NodeEndpoint { node_id: 9, host: "there".into(), port: 77, ..Default::default() };
    let response = VoteResponse { topics: vec![topic], node_endpoints: vec![node], ..Default::default() };
    rig.step(Input::Response { from: OTHER, response: Some(Response::Vote(response)) });
    assert_eq!(rig.quorum.leader_id(), Some(stranger));
    let [endpoint] = rig.quorum.leader_endpoints() else { panic!("{:?}", rig.quorum.leader_endpoints()) };
    assert_eq!((endpoint.host.as_str(), endpoint.port), ("there", 77));
}

#[test]
fn a_leader_that_is_told_of_a_later_one_goes_where_the_answer_says_that_it_listens() {
    let mut rig = Rig::leading(Paper::default(), false);
    // The second voter was told that this one leads.
    let partition = begin_quorum_epoch_response::PartitionData { leader_id: 9, leader_epoch: 7, ..Default::default() };
    let topic = begin_quorum_epoch_response::TopicData { partitions: vec![partition], ..Default::default() };
    let node =
        begin_quorum_epoch_response::NodeEndpoint { node_id: 9, host: "there".into(), port: 77, ..Default::default() };
    let response = BeginQuorumEpochResponse { topics: vec![topic], node_endpoints: vec![node], ..Default::default() };
    rig.step(Input::Response { from: OTHER, response: Some(Response::BeginQuorumEpoch(response)) });
    assert_eq!(rig.quorum.leader_id(), Some(BrokerId(9)));
    let [endpoint] = rig.quorum.leader_endpoints() else { panic!("{:?}", rig.quorum.leader_endpoints()) };
    assert_eq!((endpoint.host.as_str(), endpoint.port), ("there", 77));
}

/// A voter that knows no leader, whose log ends in epoch 2.
fn unattached() -> Rig {
    Rig::new(Paper { epochs: vec![2], ..Paper::default() }, ElectionState::unknown_leader(LeaderEpoch(3)))
}

/// How many milliseconds pass until the voter has another role.
fn time_in_role(rig: &mut Rig) -> u64 {
    let before = std::mem::discriminant(rig.quorum.role());
    let mut milliseconds = 0;
    while std::mem::discriminant(rig.quorum.role()) == before {
        rig.pass(1);
        milliseconds += 1;
        assert!(milliseconds < 10_000, "for ever {:?}", rig.quorum.role());
    }
    milliseconds
}

/// The second voter wants a vote, and gets it or not.
fn wants_vote(rig: &mut Rig, epoch: i32, last_epoch: i32) -> bool {
    let request = Request::Vote(ballot(epoch, last_epoch, false));
    rig.step(Input::Request { id: RequestId(1), origin: Origin::here(2), request });
    rig.sync();
    let (error, granted) = verdict(rig.replies.pop().unwrap());
    assert_eq!(error, ErrorCode::None);
    granted
}

#[test]
fn one_who_stands_in_vain_keeps_nobody_from_standing() {
    let waits = time_in_role(&mut unattached());
    let mut rig = unattached();
    rig.pass(waits - 1);
    assert!(!wants_vote(&mut rig, 9, 1), "its log is behind");
    assert_eq!(rig.quorum.epoch(), LeaderEpoch(9));
    assert_eq!(time_in_role(&mut rig), 1);
    assert!(matches!(rig.quorum.role(), Role::Prospective(_)), "{:?}", rig.quorum.role());
    // So it is for one who asks whether it would win, and for a candidate.
    let asks = || {
        let mut rig = unattached();
        time_in_role(&mut rig);
        rig
    };
    let stands = || {
        let mut rig = asks();
        rig.vote(true);
        rig.sync();
        rig
    };
    for nominee in [&asks as &dyn Fn() -> Rig, &stands] {
        let waits = time_in_role(&mut nominee());
        let mut rig = nominee();
        rig.pass(waits - 1);
        assert!(!wants_vote(&mut rig, 9, 1));
        assert!(matches!(rig.quorum.role(), Role::Unattached(_)), "{:?}", rig.quorum.role());
        assert_eq!(time_in_role(&mut rig), 1);
    }
}

#[test]
fn who_votes_for_another_leaves_it_the_time_of_an_election() {
    let waits = time_in_role(&mut unattached());
    let voted = || {
        let mut rig = unattached();
        rig.pass(waits - 1);
        assert!(wants_vote(&mut rig, 3, 2));
        rig
    };
    let waits = time_in_role(&mut voted());
    assert!(waits >= 1_000, "{waits} ms");
    // A vote that is asked for again is none that was given again.
    let mut rig = voted();
    rig.pass(waits - 1);
    assert!(wants_vote(&mut rig, 3, 2));
    assert_eq!(time_in_role(&mut rig), 1);
    // Who asks whether it would win votes, too.
    let mut rig = unattached();
    time_in_role(&mut rig);
    let mut other = unattached();
    time_in_role(&mut other);
    let waits = time_in_role(&mut other);
    rig.pass(waits - 1);
    assert!(wants_vote(&mut rig, 3, 2));
    assert!(matches!(rig.quorum.role(), Role::Prospective(_)), "{:?}", rig.quorum.role());
    let waits = time_in_role(&mut rig);
    assert!(waits >= 1_000, "{waits} ms");
}

#[test]
fn who_would_not_win_waits_before_it_asks_again_and_whom_nobody_answered_does_not() {
    let mut rig = unattached();
    time_in_role(&mut rig);
    rig.vote_of(OTHER, false);
    rig.vote_of(THIRD, false);
    assert!(matches!(rig.quorum.role(), Role::Unattached(_)), "{:?}", rig.quorum.role());
    let waits = time_in_role(&mut rig);
    assert!(waits >= 1_000, "{waits} ms");
    // No answer comes.
    time_in_role(&mut rig);
    rig.step(Input::Tick);
    assert!(matches!(rig.quorum.role(), Role::Prospective(_)), "{:?}", rig.quorum.role());
}

#[test]
fn who_hears_that_its_leader_gives_way_would_vote_for_another_at_once() {
    let mut rig = Rig::following();
    rig.records(Bytes::new(), 0);
    rig.sync();
    let would_vote = |rig: &mut Rig| verdict(rig.ask(2, Request::Vote(ballot(4, 0, true))));
    assert_eq!(would_vote(&mut rig), (ErrorCode::None, false), "it hears its leader");
    rig.ask(1, ends(OTHER, 4));
    assert!(matches!(rig.quorum.role(), Role::Follower(_)), "{:?}", rig.quorum.role());
    assert_eq!(would_vote(&mut rig), (ErrorCode::None, true));
}
