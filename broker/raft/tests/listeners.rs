//! Controllers with more than one listener: who is told of which, and what has no order.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod lone_voter;

use bytes::Bytes;
use gregor_messages::UpdateRaftVoterRequest;
use gregor_raft::{
    Config, ControlRecord, ElectionState, Endpoint, Input, LogView as _, Origin, Outgoing, Reply, Request, RequestId,
    SnapshotId, Voter, VoterHistory, VoterSet,
};
use gregor_state_records::control::KRaftVersionRecord;
use gregor_types::{LeaderEpoch, Offset};
use lone_voter::{OTHER, Paper, Rig, THIRD, ballot, begins, config, ends, fetch, fetched, piece, voter};

/// Where a voter can be told to listen, the port being its id.
type Listeners<'a> = &'a [(&'a str, &'a str)];

const LISTENERS: Listeners<'_> = &[("CONTROLLER", "outside"), ("INSIDE", "inside")];

fn listening(id: i32, listeners: Listeners<'_>) -> Voter {
    let endpoint =
        |(name, host): &(&str, &str)| Endpoint { name: (*name).into(), host: (*host).into(), port: id as u16 };
    Voter { endpoints: listeners.iter().map(endpoint).collect(), ..voter(id, true) }
}

fn configured(listeners: Listeners<'_>) -> Config {
    Config { local: listening(1, listeners), ..config(0) }
}

/// Three voters that stand in a snapshot of the log.
fn written(listeners: Listeners<'_>) -> VoterHistory {
    let voters = VoterSet::new((1..=3).map(|id| listening(id, listeners)));
    let version = KRaftVersionRecord { k_raft_version: 1, ..Default::default() };
    let mut history = VoterHistory::default();
    let records = [ControlRecord::KRaftVersion(version), ControlRecord::Voters((&voters).into())];
    history.load_snapshot(SnapshotId::new(Offset(0), LeaderEpoch(1)), &records);
    history
}

/// A follower of the second voter in epoch 4.
fn following(own: Listeners<'_>, in_log: Listeners<'_>) -> Rig {
    Rig::of(configured(own), written(in_log), Paper::default(), ElectionState::elected(LeaderEpoch(4), OTHER))
}

/// The nodes of an answer, and where each listens.
fn told(reply: Reply) -> Vec<(i32, String)> {
    macro_rules! nodes {
        ($answer:ident) => {
            $answer.node_endpoints.iter().map(|node| (node.node_id, node.host.to_string())).collect()
        };
    }
    match reply {
        Reply::Fetch(answer) => nodes!(answer),
        Reply::FetchSnapshot(answer, _) => nodes!(answer),
        Reply::Vote(answer) => nodes!(answer),
        Reply::BeginQuorumEpoch(answer) => nodes!(answer),
        Reply::EndQuorumEpoch(answer) => nodes!(answer),
        Reply::UpdateRaftVoter(answer) => {
            vec![(answer.current_leader.leader_id, answer.current_leader.host.to_string())]
        }
        other => panic!("it names no leader: {other:?}"),
    }
}

#[test]
fn who_asks_is_told_of_the_leaders_endpoint_on_the_listener_on_which_it_asks() {
    let requests: [(i16, fn() -> Request); 6] = [
        (17, || Request::Fetch(fetch(THIRD, 0, 0, 4))),
        (1, || piece(0, SnapshotId::new(Offset(5), LeaderEpoch(1)), 4)),
        (2, || Request::Vote(ballot(3, 2, false))),
        (1, || begins(THIRD, 3)),
        (1, || ends(THIRD, 3)),
        (0, || Request::UpdateRaftVoter(UpdateRaftVoterRequest { current_leader_epoch: 4, ..Default::default() })),
    ];
    for (version, request) in requests {
        let mut rig = following(LISTENERS, LISTENERS);
        for (listener, host) in
            [("CONTROLLER", "outside"), ("INSIDE", "inside"), ("UNHEARD_OF", "outside"), ("", "outside")]
        {
            let reply = rig.ask_on(listener, version, request());
            let shown = format!("{reply:?}");
            assert_eq!(told(reply), [(2, host.to_owned())], "on {listener}: {shown}");
        }
        // Whatever the order in which they stand in the log.
        let mut rig = following(LISTENERS, &[("INSIDE", "inside"), ("CONTROLLER", "outside")]);
        assert_eq!(told(rig.ask_on("CONTROLLER", version, request())), [(2, "outside".to_owned())]);
        assert_eq!(told(rig.ask_on("", version, request())), [(2, "outside".to_owned())]);
        // Only this node calls a listener so.
        let mut rig = following(&[("ANOTHER", "another")], LISTENERS);
        assert_eq!(told(rig.ask_on("ANOTHER", version, request())), [(2, "outside".to_owned())]);
    }
}

#[test]
fn a_fetch_that_waits_remembers_on_which_listener_it_came() {
    for (listener, host) in [("CONTROLLER", "outside"), ("INSIDE", "inside")] {
        let log = Paper::default();
        let mut rig = Rig::of(configured(LISTENERS), written(LISTENERS), log, ElectionState::INITIAL).elected();
        let (end, epoch) = (rig.log.end().offset.value(), rig.quorum.epoch().value());
        let mut request = fetch(THIRD, end, epoch, epoch);
        request.max_wait_ms = 500;
        // It says that it knows what is committed, which nothing is yet.
        request.topics[0].partitions[0].high_watermark = end;
        let origin = Origin { version: 18, listener: listener.into() };
        rig.step(Input::Request { id: RequestId(1), origin, request: Request::Fetch(request) });
        assert!(rig.replies.is_empty(), "{:?}", rig.replies);
        rig.pass(500);
        let answer = fetched(rig.replies.pop().expect("an answer"));
        assert_eq!(told(Reply::Fetch(answer)), [(1, host.to_owned())]);
    }
}

/// What a follower asks its leader for beside records while it follows for long.
fn asks_for_changes(rig: &mut Rig) -> bool {
    for _ in 0..10 {
        rig.pass(500);
        if rig.sent.iter().any(|(_, request)| matches!(request, Outgoing::UpdateRaftVoter(_))) {
            return true;
        }
        rig.records(Bytes::new(), 0);
    }
    false
}

#[test]
fn a_voter_whose_endpoints_stand_in_the_log_in_another_order_has_nothing_to_say() {
    let turned: Listeners<'_> = &[("INSIDE", "inside"), ("CONTROLLER", "outside")];
    assert!(!asks_for_changes(&mut following(LISTENERS, LISTENERS)));
    assert!(!asks_for_changes(&mut following(LISTENERS, turned)));
    let records_of_epoch = |in_log: Listeners<'_>| {
        let rig = Rig::of(configured(LISTENERS), written(in_log), Paper::default(), ElectionState::INITIAL).elected();
        rig.log.epochs.len()
    };
    assert_eq!(records_of_epoch(LISTENERS), 1, "the leader's name");
    assert_eq!(records_of_epoch(turned), 1);

    for other in [&[("CONTROLLER", "outside")][..], &[("INSIDE", "elsewhere"), ("CONTROLLER", "outside")]] {
        assert!(asks_for_changes(&mut following(LISTENERS, other)), "{other:?}");
        assert_eq!(records_of_epoch(other), 2, "and the voters, of whom it is another now: {other:?}");
    }
}
