//! How one voter goes through elections, event by event: whom it asks for what, and how long it waits.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod lone_voter;

use gregor_messages::VoteResponse;
use gregor_raft::{ElectionState, Input, Response, Role};
use gregor_types::{ErrorCode, LeaderEpoch};
use lone_voter::{OTHER, Paper, Rig, THIRD};

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
