//! What an implementer of KRaft gets wrong, one by one, on a voter whose peers and disk are the test.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod lone_voter;

use std::collections::BTreeSet;

use bytes::Bytes;
use gregor_messages::{
    DescribeQuorumRequest, FetchRequest, describe_quorum_request, end_quorum_epoch_request::ReplicaInfo,
};
use gregor_raft::{
    AppendError, Batch, Config, ElectionState, Input, LogView as _, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, Origin,
    Outgoing, Quorum, Reply, Request, RequestId, Role, SnapshotId, StartError,
};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Offset, Timestamp, Uuid};
use lone_voter::{
    OTHER, Paper, Rig, THIRD, ballot, begins, config, directory, ends, error_of_piece, fetch, fetched, history, piece,
    verdict,
};

#[test]
fn a_record_of_an_earlier_epoch_is_committed_only_with_one_of_the_leaders_own() {
    let mut rig = Rig::leading(Paper { epochs: vec![1, 1, 1], ..Paper::default() }, false);
    assert_eq!((rig.quorum.epoch(), rig.log.end().offset), (LeaderEpoch(2), Offset(4)));
    rig.ask(17, Request::Fetch(fetch(OTHER, 3, 1, 2)));
    // A majority has the three, and another leader could still put its own in their place.
    assert_eq!(rig.high_watermark, None);
    rig.ask(17, Request::Fetch(fetch(OTHER, 4, 2, 2)));
    assert_eq!(rig.high_watermark, Some(Offset(4)));
}

#[test]
fn a_voter_asks_for_more_only_once_what_it_has_is_on_its_disk() {
    let mut rig = Rig::following();
    assert!(matches!(&rig.sent[..], [(OTHER, Outgoing::Fetch(_))]), "{:?}", rig.sent);
    rig.sent.clear();
    let batch = Batch::Data(vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")]);
    rig.records(batch.encode(Offset(0), LeaderEpoch(4), Timestamp(0)), 2);
    rig.pass(100);
    assert_eq!(rig.log.end().offset, Offset(2));
    // A fetch would acknowledge the two to the leader, which may count them as committed then.
    assert!(rig.sent.is_empty(), "{:?}", rig.sent);
    assert_eq!(rig.high_watermark, None);
    rig.sync();
    assert_eq!(rig.high_watermark, Some(Offset(2)));
    let Some((OTHER, Outgoing::Fetch(next))) = rig.sent.first() else { panic!("no fetch, but {:?}", rig.sent) };
    assert_eq!(next.max_wait_ms, 500, "as long as Apache Kafka lets a leader wait");
    let partition = &next.topics[0].partitions[0];
    assert_eq!((partition.fetch_offset, partition.last_fetched_epoch), (2, 4));
    assert_eq!((next.max_bytes, partition.partition_max_bytes), (1_000, 1_000), "as many bytes as are configured");
}

#[test]
fn who_may_become_a_voter_asks_for_more_only_once_what_it_has_is_on_its_disk() {
    let mut rig = Rig::observing(Config { auto_join: true, ..config(0) });
    let fetches = |rig: &mut Rig| -> Vec<_> {
        let sent = std::mem::take(&mut rig.sent).into_iter();
        let offset = |request: FetchRequest| request.topics[0].partitions[0].fetch_offset;
        sent.filter_map(|(_, request)| if let Outgoing::Fetch(fetch) = request { Some(offset(fetch)) } else { None })
            .collect()
    };
    assert_eq!(fetches(&mut rig), [0]);
    let batch = Batch::Data(vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")]);
    rig.records(batch.encode(Offset(0), LeaderEpoch(4), Timestamp(0)), 2);
    rig.pass(100);
    assert_eq!(rig.log.end().offset, Offset(2));
    // The leader may take it for a voter from that fetch on, which acknowledges the two then.
    assert_eq!(fetches(&mut rig), [0; 0], "what it has is not on its disk");
    rig.sync();
    assert_eq!(fetches(&mut rig), [2]);
}

#[test]
fn a_candidate_asks_for_votes_only_once_its_own_is_on_disk() {
    let mut rig = Rig::new(Paper::default(), ElectionState::INITIAL);
    rig.pass(2_000);
    let mut asked = rig.ballots();
    asked.sort_unstable();
    assert_eq!(asked, [(OTHER, true), (THIRD, true)], "it asks first whether it would win");
    assert_eq!((rig.persisted, rig.quorum.epoch()), (0, LeaderEpoch(0)), "which writes nothing and raises no epoch");
    rig.sent.clear();
    rig.vote(true);
    assert!(matches!(rig.quorum.role(), Role::Candidate(_)));
    assert_eq!((rig.persisted, rig.ballots()), (1, Vec::new()));
    rig.sync();
    assert_eq!(rig.ballots(), [(OTHER, false)], "the third has not answered the first question yet");
}

#[test]
fn whether_a_vote_would_be_given_is_said_without_a_write_and_without_a_new_epoch() {
    let mut rig = Rig::new(Paper::default(), ElectionState::unknown_leader(LeaderEpoch(3)));
    let reply = rig.ask(2, Request::Vote(ballot(3, 3, true)));
    assert_eq!(verdict(reply), (ErrorCode::None, true));
    assert_eq!((rig.persisted, rig.quorum.epoch()), (0, LeaderEpoch(3)));
    let reply = rig.ask(2, Request::Vote(ballot(3, 4, true)));
    assert_eq!(verdict(reply).0, ErrorCode::InvalidRequest, "its log is of a later epoch than its own");
    let reply = rig.ask(2, Request::Vote(ballot(3, 3, false)));
    assert_eq!(verdict(reply).0, ErrorCode::InvalidRequest, "its log is of the epoch that it stands for");
    assert_eq!(rig.persisted, 0);
}

#[test]
fn a_vote_that_is_asked_of_another_replica_is_refused_by_its_key() {
    let mut rig = Rig::new(Paper::default(), ElectionState::unknown_leader(LeaderEpoch(3)));
    let mut other_node = ballot(3, 2, false);
    other_node.voter_id = 3;
    let mut other_disk = ballot(3, 2, false);
    other_disk.topics[0].partitions[0].voter_directory_id = Uuid(99);
    for wrong in [other_node, other_disk] {
        let reply = rig.ask(2, Request::Vote(wrong));
        assert_eq!(verdict(reply), (ErrorCode::InvalidVoterKey, false));
    }
    assert_eq!(rig.persisted, 0);
}

#[test]
fn a_candidate_that_the_voter_does_not_know_as_one_may_get_its_vote() {
    // It became one by a record that this voter does not have yet (KIP-853).
    let stranger = BrokerId(9);
    for dynamic in [false, true] {
        let mut rig = Rig::with(Paper::default(), ElectionState::unknown_leader(LeaderEpoch(3)), dynamic, 0);
        for pre_vote in [true, false] {
            let mut ballot = ballot(4, 2, pre_vote);
            ballot.topics[0].partitions[0].replica_id = stranger.value();
            ballot.topics[0].partitions[0].replica_directory_id = directory(stranger);
            rig.step(Input::Request { id: RequestId(1), origin: Origin::here(2), request: Request::Vote(ballot) });
            rig.sync();
            let reply = rig.replies.pop().expect("an answer once it is on the disk");
            assert_eq!(verdict(reply), (ErrorCode::None, true), "dynamic: {dynamic}, asked only: {pre_vote}");
        }
    }
}

#[test]
fn only_the_one_partition_of_the_metadata_is_fetched_and_only_from_where_there_can_be_a_record() {
    let mut rig = Rig::leading(Paper::default(), false);
    let epoch = rig.quorum.epoch().value();
    let whole = |change: &dyn Fn(&mut FetchRequest)| {
        let mut request = fetch(OTHER, 0, 0, epoch);
        change(&mut request);
        Request::Fetch(request)
    };
    for wrong in [
        whole(&|request| request.topics[0].topic_id = Uuid(5)),
        whole(&|request| request.topics.clear()),
        whole(&|request| request.topics[0].partitions.clear()),
        whole(&|request| request.topics[0].partitions[0].partition = 1),
        whole(&|request| {
            let again = request.topics[0].partitions[0].clone();
            request.topics[0].partitions.push(again);
        }),
    ] {
        let answer = fetched(rig.ask(17, wrong.clone()));
        assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::InvalidRequest, "{wrong:?}");
    }
    for wrong in [
        whole(&|request| request.topics[0].partitions[0].fetch_offset = -1),
        whole(&|request| request.topics[0].partitions[0].last_fetched_epoch = -1),
        whole(&|request| request.topics[0].partitions[0].current_leader_epoch = -1),
        whole(&|request| request.max_wait_ms = -1),
    ] {
        let answer = fetched(rig.ask(17, wrong.clone()));
        let error = ErrorCode::from(answer.responses[0].partitions[0].error_code);
        assert_eq!(error, ErrorCode::InvalidRequest, "{wrong:?}");
    }
    // Before version 13 the topic has its name.
    let mut named = fetch(OTHER, 0, 0, epoch);
    named.topics[0].topic = "__cluster_metadata".into();
    named.topics[0].topic_id = Uuid::ZERO;
    let answer = fetched(rig.ask(12, Request::Fetch(named)));
    assert_eq!((answer.error_code, answer.responses[0].partitions[0].error_code), (0, 0));
}

#[test]
fn who_does_not_lead_says_who_does_and_where_and_never_that_it_does_itself() {
    let mut rig = Rig::following();
    let answer = fetched(rig.ask(17, Request::Fetch(fetch(THIRD, 0, 0, 4))));
    let data = &answer.responses[0].partitions[0];
    assert_eq!(ErrorCode::from(data.error_code), ErrorCode::NotLeaderOrFollower);
    assert_eq!((data.current_leader.leader_id, data.current_leader.leader_epoch), (2, 4));
    let [endpoint] = &answer.node_endpoints[..] else { panic!("no endpoint: {answer:?}") };
    assert_eq!((endpoint.node_id, endpoint.host.as_str(), endpoint.port), (2, "node", 2));
    let reply = rig.ask(1, piece(0, SnapshotId::new(Offset(5), LeaderEpoch(1)), 4));
    assert_eq!(error_of_piece(&reply), ErrorCode::NotLeaderOrFollower, "nor does it serve snapshots");
    // An Apache node that is told of a leader, and not where it is, ends.
    for (version, endpoints) in [(0, Vec::new()), (1, vec![(2, "node".to_owned(), 2)])] {
        for request in [Request::Vote(ballot(3, 2, false)), begins(THIRD, 3), ends(THIRD, 3)] {
            let (error, leader, told) = verdict_and_leader(rig.ask(version, request));
            assert_eq!((error, leader), (ErrorCode::FencedLeaderEpoch, (2, 4)));
            assert_eq!(told, endpoints, "in version {version}");
        }
    }
    // A candidate has voted for itself, which makes it no leader.
    let mut rig = Rig::new(Paper::default(), ElectionState::INITIAL);
    rig.pass(2_000);
    rig.vote(true);
    rig.sync();
    assert!(matches!(rig.quorum.role(), Role::Candidate(_)));
    let answer = fetched(rig.ask(17, Request::Fetch(fetch(THIRD, 0, 0, 1))));
    let data = &answer.responses[0].partitions[0];
    assert_eq!(ErrorCode::from(data.error_code), ErrorCode::NotLeaderOrFollower);
    assert_eq!((data.current_leader.leader_id, data.current_leader.leader_epoch), (-1, 1));
    assert!(answer.node_endpoints.is_empty());
}

#[test]
fn a_leader_gives_way_once_no_majority_has_fetched_for_one_and_a_half_fetch_timeouts() {
    let mut rig = Rig::leading(Paper::default(), false);
    let (epoch, end) = (rig.quorum.epoch().value(), rig.log.end().offset.value());
    rig.pass(1_000);
    rig.ask(17, Request::Fetch(fetch(OTHER, end, epoch, epoch)));
    rig.pass(2_999);
    assert!(matches!(rig.quorum.role(), Role::Leader(_)), "{:?}", rig.quorum.role());
    rig.pass(1);
    assert!(matches!(rig.quorum.role(), Role::Resigned(_)), "{:?}", rig.quorum.role());
}

#[test]
fn the_first_of_a_leaders_successors_stands_at_once_and_each_next_one_leaves_more_time() {
    let waits = |version: i16, successors: &[(i32, Uuid)]| {
        let mut rig = Rig::following();
        let Request::EndQuorumEpoch(mut request) = ends(OTHER, 4) else { unreachable!() };
        let partition = &mut request.topics[0].partitions[0];
        partition.preferred_successors = successors.iter().map(|(id, _)| *id).collect();
        if version >= 1 {
            let info = |(candidate_id, candidate_directory_id): &(i32, Uuid)| ReplicaInfo {
                candidate_id: *candidate_id,
                candidate_directory_id: *candidate_directory_id,
                ..Default::default()
            };
            partition.preferred_candidates = successors.iter().map(info).collect();
        }
        rig.ask(version, Request::EndQuorumEpoch(request));
        let mut milliseconds = 0;
        while matches!(rig.quorum.role(), Role::Follower(_)) {
            rig.pass(1);
            milliseconds += 1;
        }
        assert!(matches!(rig.quorum.role(), Role::Prospective(_)), "{:?}", rig.quorum.role());
        milliseconds
    };
    let [own, third, fourth] = [1, 3, 4].map(|id| (id, directory(BrokerId(id))));
    for version in [0, 1] {
        assert_eq!(waits(version, &[own, third, fourth]), 0);
        let (second, last) = (waits(version, &[third, own, fourth]), waits(version, &[third, fourth, own]));
        assert_eq!(
            (second, last),
            (250, 500),
            "milliseconds, of which controller.quorum.election.backoff.max.ms has 1,000"
        );
        assert_eq!(waits(version, &[third, fourth]), 1_000, "who is not named leaves all of it");
    }
    assert_eq!(waits(1, &[(1, Uuid(9)), third]), 1_000, "who is named is this node on another disk");
}

#[test]
fn an_append_beyond_the_bounds_of_a_batch_is_refused_whole() {
    let mut rig = Rig::leading(Paper::default(), false);
    let (epoch, base) = (rig.quorum.epoch(), rig.log.end().offset);
    let too_many = vec![Bytes::from_static(b"x"); MAX_BATCH_RECORDS + 1];
    let too_large = vec![Bytes::from(vec![0; MAX_BATCH_BYTES]), Bytes::from_static(b"x")];
    for records in [too_many, too_large, Vec::new()] {
        rig.refused = None;
        rig.step(Input::Append { epoch, base, records });
        assert!(matches!(rig.refused, Some(AppendError::Size { .. })), "{:?}", rig.refused);
        assert_eq!(rig.log.end().offset, base);
    }
    rig.refused = None;
    rig.step(Input::Append { epoch, base, records: vec![Bytes::from_static(b"x"); MAX_BATCH_RECORDS] });
    assert_eq!((rig.refused, rig.log.end().offset), (None, base.plus(MAX_BATCH_RECORDS as i64)));
}

#[test]
fn a_snapshot_is_served_at_positions_that_it_has() {
    let id = SnapshotId::new(Offset(3), LeaderEpoch(1));
    let mut rig = Rig::leading(Paper { epochs: vec![1, 1, 1], snapshot: Some(id), ..Paper::default() }, false);
    for (position, error) in [
        (0, ErrorCode::None),
        (99, ErrorCode::None),
        (100, ErrorCode::PositionOutOfRange),
        (-1, ErrorCode::PositionOutOfRange),
        (i64::MAX, ErrorCode::PositionOutOfRange),
    ] {
        let reply = rig.ask(1, piece(position, id, 2));
        assert_eq!(error_of_piece(&reply), error, "at {position}");
    }
    let reply = rig.ask(1, piece(0, SnapshotId::new(Offset(2), LeaderEpoch(1)), 2));
    assert_eq!(error_of_piece(&reply), ErrorCode::SnapshotNotFound);
}

#[test]
fn a_log_without_its_head_starts_only_with_a_snapshot_that_stands_for_it() {
    let start = |snapshot: Option<i64>| {
        let snapshot = snapshot.map(|end| SnapshotId::new(Offset(end), LeaderEpoch(1)));
        let log = Paper { start: 5, epochs: vec![1], snapshot };
        Quorum::new(config(0), ElectionState::unknown_leader(LeaderEpoch(1)), history(false), &log).map(drop)
    };
    assert_eq!(start(None), Err(StartError::MissingSnapshot { start: Offset(5), newest: None }));
    assert!(matches!(start(Some(4)), Err(StartError::MissingSnapshot { newest: Some(_), .. })));
    assert_eq!(start(Some(5)), Ok(()));
    assert_eq!(start(Some(6)), Ok(()));
}

#[test]
fn a_replica_that_does_not_run_the_finalized_version_does_not_become_a_voter() {
    let fourth = BrokerId(4);
    for range in [None, Some((0, 0)), Some((2, 3))] {
        let mut rig = Rig::leading(Paper::default(), true);
        let (epoch, end) = (rig.quorum.epoch().value(), rig.log.end().offset.value());
        rig.ask(17, Request::Fetch(fetch(OTHER, end, epoch, epoch)));
        rig.ask(17, Request::Fetch(fetch(fourth, end, epoch, epoch)));
        assert_eq!(rig.high_watermark, Some(Offset(end)));
        rig.sent.clear();
        rig.ask_to_add(fourth);
        let asks = |(to, request): &(BrokerId, Outgoing)| *to == fourth && matches!(request, Outgoing::ApiVersions(_));
        assert!(rig.sent.iter().any(asks), "{:?} {:?}", rig.sent, rig.replies);
        rig.says_it_runs(fourth, range);
        let Some(Reply::AddRaftVoter(answer)) = rig.replies.pop() else { panic!("no answer for {range:?}") };
        assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::InvalidRequest, "{range:?}");
        assert_eq!((rig.quorum.history().voters().len(), rig.log.end().offset.value()), (3, end));
    }
}

#[test]
fn a_voter_that_knows_no_leader_asks_every_bootstrap_server_too() {
    let election = ElectionState::unknown_leader(LeaderEpoch(3));
    let mut rig = Rig::with(Paper::default(), election, false, 2);
    let mut asked = BTreeSet::new();
    // Within its election's timeout: then it asks for votes instead.
    for _ in 0..40 {
        for (to, request) in std::mem::take(&mut rig.sent) {
            assert!(matches!(request, Outgoing::Fetch(_)), "{request:?}");
            asked.insert(to);
            rig.step(Input::Response { from: to, response: None });
        }
        rig.pass(21);
    }
    assert!((0..2).all(|index| asked.contains(&Quorum::bootstrap_node(index))), "{asked:?}");
    assert!(asked.contains(&OTHER) && asked.contains(&THIRD), "and the voters that it knows: {asked:?}");
}

#[test]
fn who_does_not_vote_asks_every_bootstrap_server_again_once_its_leader_is_silent() {
    let mut rig = Rig::observing(config(2));
    let mut asked = BTreeSet::new();
    // Three times as long as a leader may be silent.
    for _ in 0..300 {
        for (to, _) in std::mem::take(&mut rig.sent) {
            asked.insert(to);
            rig.step(Input::Response { from: to, response: None });
        }
        rig.pass(21);
    }
    assert!((0..2).all(|index| asked.contains(&Quorum::bootstrap_node(index))), "{asked:?}");
    // The first that knows who leads by now has it followed.
    let next = loop {
        if let Some((to, _)) = rig.sent.pop() {
            break to;
        }
        rig.pass(21);
    };
    rig.sent.clear();
    rig.says_who_leads(next, THIRD, LeaderEpoch(5));
    assert_eq!((rig.quorum.leader_id(), rig.quorum.epoch()), (Some(THIRD), LeaderEpoch(5)));
    rig.sync();
    rig.pass(21);
    assert!(matches!(&rig.sent[..], [(THIRD, Outgoing::Fetch(_))]), "{:?}", rig.sent);
}

#[test]
fn a_voter_finds_out_where_a_leader_listens_that_its_own_log_does_not_know() {
    let (fourth, epoch) = (BrokerId(4), LeaderEpoch(4));
    // Its log was lost or cut before the record by which the fourth became a voter; who leads it remembers.
    let mut rig = Rig::with(Paper::default(), ElectionState::elected(epoch, fourth), true, 1);
    let stands_in_vain = |rig: &mut Rig| {
        let sent: Vec<_> = std::mem::take(&mut rig.sent).into_iter().map(|(to, _)| to).collect();
        for from in sent {
            rig.step(Input::Response { from, response: None });
        }
        rig.pass(2_000);
        assert!(matches!(rig.quorum.role(), Role::Prospective(_)), "{:?}", rig.quorum.role());
        rig.sent.clear();
        for voter in [OTHER, THIRD] {
            rig.vote_of(voter, false);
        }
    };
    stands_in_vain(&mut rig);
    let asked = rig.sent.iter().find(|(_, request)| matches!(request, Outgoing::Fetch(_))).map(|(to, _)| *to);
    let Some(asked) = asked.filter(|asked| *asked != fourth) else { panic!("it asks nobody: {:?}", rig.sent) };
    rig.says_who_leads(asked, fourth, epoch);
    let listens = |rig: &Rig| rig.quorum.leader_endpoints().first().map(|endpoint| endpoint.port);
    assert!(matches!(rig.quorum.role(), Role::Follower(_)), "{:?}", rig.quorum.role());
    assert_eq!((rig.quorum.leader_id(), listens(&rig)), (Some(fourth), Some(4)));
    stands_in_vain(&mut rig);
    assert!(matches!(rig.quorum.role(), Role::Follower(_)), "{:?}", rig.quorum.role());
    assert_eq!(listens(&rig), Some(4), "it does not forget it when it loses sight of the leader");
}

#[test]
fn a_follower_takes_whole_batches_and_only_those_that_begin_where_its_log_ends() {
    let mut rig = Rig::following();
    let batch = |base, values: &[&'static [u8]]| {
        let records = values.iter().map(|value| Bytes::from_static(value)).collect();
        Batch::Data(records).encode(Offset(base), LeaderEpoch(4), Timestamp(0))
    };
    let (first, second) = (batch(0, &[b"one", b"two"]), batch(2, &[b"three", b"four", b"five"]));
    // A leader sends as many bytes as it was asked for, wherever that is.
    rig.records(Bytes::from([&first[..], &second[..second.len() - 1]].concat()), 5);
    rig.sync();
    assert_eq!((rig.log.end().offset, rig.high_watermark), (Offset(2), Some(Offset(2))));
    // What begins before, as a read from within a batch does, or behind would be written over others or leave a hole.
    for elsewhere in [batch(1, &[b"two", b"three"]), batch(3, &[b"four"]), first] {
        rig.pass(21);
        rig.sent.clear();
        rig.records(elsewhere, 5);
        rig.sync();
        assert_eq!((rig.log.end().offset, rig.high_watermark), (Offset(2), Some(Offset(2))));
        assert!(rig.sent.is_empty(), "it asks again at once: {:?}", rig.sent);
    }
    rig.pass(21);
    rig.records(second, 5);
    rig.sync();
    assert_eq!((rig.log.end().offset, rig.high_watermark), (Offset(5), Some(Offset(5))));
}

#[test]
fn what_is_committed_stays_so_when_more_vote_and_have_it_not() {
    let fourth = BrokerId(4);
    let mut rig = Rig::leading(Paper::default(), true);
    let (epoch, end) = (rig.quorum.epoch().value(), rig.log.end().offset.value());
    rig.ask(17, Request::Fetch(fetch(OTHER, end, epoch, epoch)));
    rig.ask(17, Request::Fetch(fetch(fourth, end, epoch, epoch)));
    assert_eq!(rig.high_watermark, Some(Offset(end)));
    rig.ask_to_add(fourth);
    rig.says_it_runs(fourth, Some((0, 1)));
    rig.sync();
    assert_eq!((rig.quorum.history().voters().len(), rig.log.end().offset), (4, Offset(end + 1)));
    // The new voter lost what it had, and another never had it: of four, two have all, and a majority the first record.
    assert!(end > 1, "there is more than the first record of the epoch");
    for behind in [THIRD, fourth] {
        rig.ask(17, Request::Fetch(fetch(behind, 1, epoch, epoch)));
    }
    assert_eq!(rig.high_watermark, Some(Offset(end)));
    let answer = fetched(rig.ask(17, Request::Fetch(fetch(OTHER, end, epoch, epoch))));
    assert_eq!(answer.responses[0].partitions[0].high_watermark, end, "and so it is told to others");
    rig.ask(17, Request::Fetch(fetch(OTHER, end + 1, epoch, epoch)));
    assert_eq!(rig.high_watermark, Some(Offset(end)), "three of four have to have the change itself");
    rig.ask(17, Request::Fetch(fetch(THIRD, end + 1, epoch, epoch)));
    assert_eq!(rig.high_watermark, Some(Offset(end + 1)));
}

/// Nodes and where they listen.
type Nodes = Vec<(i32, String, u16)>;

/// An answer's error, the leader and the epoch that it names, and where nodes are.
fn verdict_and_leader(reply: Reply) -> (ErrorCode, (i32, i32), Nodes) {
    match reply {
        Reply::Vote(answer) => {
            let data = &answer.topics[0].partitions[0];
            let nodes = answer.node_endpoints.iter().map(|node| (node.node_id, node.host.to_string(), node.port));
            (ErrorCode::from(data.error_code), (data.leader_id, data.leader_epoch), nodes.collect())
        }
        Reply::BeginQuorumEpoch(answer) => {
            let data = &answer.topics[0].partitions[0];
            let nodes = answer.node_endpoints.iter().map(|node| (node.node_id, node.host.to_string(), node.port));
            (ErrorCode::from(data.error_code), (data.leader_id, data.leader_epoch), nodes.collect())
        }
        Reply::EndQuorumEpoch(answer) => {
            let data = &answer.topics[0].partitions[0];
            let nodes = answer.node_endpoints.iter().map(|node| (node.node_id, node.host.to_string(), node.port));
            (ErrorCode::from(data.error_code), (data.leader_id, data.leader_epoch), nodes.collect())
        }
        other => panic!("no answer to a vote or to a leader, but {other:?}"),
    }
}

/// What a description of a partition says: the error of the whole, and that of each partition.
fn described(rig: &mut Rig, topic: &str, partition: i32) -> (i16, Vec<ErrorCode>) {
    let partition = describe_quorum_request::PartitionData { partition_index: partition, ..Default::default() };
    let topic = describe_quorum_request::TopicData {
        topic_name: topic.into(),
        partitions: vec![partition],
        ..Default::default()
    };
    let request = DescribeQuorumRequest { topics: vec![topic], ..Default::default() };
    match rig.ask(2, Request::DescribeQuorum(request)) {
        Reply::DescribeQuorum(answer) => {
            let errors = answer.topics.iter().flat_map(|topic| &topic.partitions);
            (answer.error_code, errors.map(|partition| ErrorCode::from(partition.error_code)).collect())
        }
        other => panic!("no description, but {other:?}"),
    }
}

#[test]
fn inventing_observers_costs_no_voter_its_place() {
    let mut rig = Rig::leading(Paper::default(), false);
    let (epoch, end) = (rig.quorum.epoch().value(), rig.log.end().offset.value());
    // Long enough for the grace to be over that a new leader has.
    for _ in 0..5 {
        rig.pass(1_000);
        rig.ask(17, Request::Fetch(fetch(OTHER, end, epoch, epoch)));
        rig.ask(17, Request::Fetch(fetch(THIRD, end, epoch, epoch)));
    }
    rig.pass(500);
    for invented in 1_000..2_100 {
        rig.ask(17, Request::Fetch(fetch(BrokerId(invented), end, epoch, epoch)));
    }
    rig.pass(100);
    assert!(matches!(rig.quorum.role(), Role::Leader(_)), "{:?}", rig.quorum.role());
    rig.step(Input::Append { epoch: LeaderEpoch(epoch), base: Offset(end), records: vec![Bytes::from_static(b"x")] });
    rig.sync();
    rig.ask(17, Request::Fetch(fetch(OTHER, end + 1, epoch, epoch)));
    assert_eq!(rig.high_watermark, Some(Offset(end + 1)));
}

#[test]
fn a_topic_that_is_not_the_metadata_gets_apaches_error() {
    let named = |name: &str, partition: i32| {
        let mut requests = [Request::Vote(ballot(5, 2, false)), begins(OTHER, 4), ends(OTHER, 4)];
        match &mut requests {
            [Request::Vote(vote), Request::BeginQuorumEpoch(begin), Request::EndQuorumEpoch(end)] => {
                vote.topics[0].topic_name = name.into();
                vote.topics[0].partitions[0].partition_index = partition;
                begin.topics[0].topic_name = name.into();
                begin.topics[0].partitions[0].partition_index = partition;
                end.topics[0].topic_name = name.into();
                end.topics[0].partitions[0].partition_index = partition;
            }
            _ => unreachable!(),
        }
        requests
    };
    for (name, partition) in [("t", 0), ("__cluster_metadata", 1)] {
        let mut rig = Rig::following();
        let (role, epoch) = (format!("{:?}", rig.quorum.role()), rig.quorum.epoch());
        for request in named(name, partition) {
            let (top, topics) = match rig.ask(1, request) {
                Reply::Vote(answer) => (answer.error_code, answer.topics.len()),
                Reply::BeginQuorumEpoch(answer) => (answer.error_code, answer.topics.len()),
                Reply::EndQuorumEpoch(answer) => (answer.error_code, answer.topics.len()),
                other => panic!("{other:?}"),
            };
            assert_eq!((ErrorCode::from(top), topics), (ErrorCode::InvalidRequest, 0));
        }
        assert_eq!((format!("{:?}", rig.quorum.role()), rig.quorum.epoch()), (role, epoch), "and changes nothing");
        assert_eq!(described(&mut rig, name, partition), (0, vec![ErrorCode::UnknownTopicOrPartition]));
    }
    let mut rig = Rig::following();
    assert_eq!(described(&mut rig, "__cluster_metadata", 0), (0, vec![ErrorCode::NotLeaderOrFollower]));
}

#[test]
fn who_hears_its_leader_refuses_even_to_say_that_it_would_vote() {
    let mut rig = Rig::following();
    let end = rig.log.end();
    let mut question = ballot(4, end.epoch.value(), true);
    question.topics[0].partitions[0].last_offset = end.offset.value() + 10;
    assert_eq!(verdict(rig.ask(2, Request::Vote(question.clone()))), (ErrorCode::None, true), "it has not fetched yet");
    let sent = rig.sent.len();
    rig.records(Bytes::new(), 0);
    rig.sync();
    assert!(rig.sent.len() > sent, "it goes on fetching");
    assert_eq!(
        verdict(rig.ask(2, Request::Vote(question))),
        (ErrorCode::None, false),
        "with a log that is good enough"
    );
}

#[test]
fn a_leader_that_means_another_replica_is_told_so() {
    for (voter, disk) in [(3, Uuid::ZERO), (-1, Uuid(99))] {
        let mut rig = Rig::following();
        let mut request = begins(OTHER, 4);
        if let Request::BeginQuorumEpoch(begin) = &mut request {
            begin.voter_id = voter;
            begin.topics[0].partitions[0].voter_directory_id = disk;
        }
        assert_eq!(verdict_and_leader(rig.ask(1, request)).0, ErrorCode::InvalidVoterKey);
    }
}

#[test]
fn a_vote_is_for_one_disk_of_a_candidate() {
    let mut rig = Rig::new(Paper::default(), ElectionState::unknown_leader(LeaderEpoch(3)));
    let of = |disk| {
        let mut ballot = ballot(4, 2, false);
        ballot.topics[0].partitions[0].replica_directory_id = disk;
        Request::Vote(ballot)
    };
    for (disk, granted) in [(Uuid(7), true), (Uuid(7), true), (Uuid(8), false)] {
        rig.step(Input::Request { id: RequestId(1), origin: Origin::here(2), request: of(disk) });
        rig.sync();
        let reply = rig.replies.pop().expect("an answer once it is on the disk");
        assert_eq!(verdict(reply), (ErrorCode::None, granted), "on the disk {disk:?}");
    }
}
