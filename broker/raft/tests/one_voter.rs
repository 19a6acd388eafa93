//! A quorum of one voter: how it starts, what it writes, when it says that something is committed.

mod common;

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
};

use common::{Dice, Log, Node, config, first_history, local_voter};
use gregor_messages::{
    DescribeQuorumRequest, FetchRequest, FetchSnapshotRequest, VoteRequest, describe_quorum_request,
    fetch_request::{FetchPartition, FetchTopic, ReplicaState},
    fetch_snapshot_request::{PartitionSnapshot, SnapshotId as SnapshotIdField, TopicSnapshot},
    vote_request,
};
use gregor_raft::{
    ControlRecord, Effect, Effects, ElectionState, Input, Now, OffsetAndEpoch, Quorum, ReplicaKey, Reply, Request,
    RequestId, Rng, Role, StartError, Voter, VoterHistory, VoterSet, check_voters,
};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Offset, Timestamp, Uuid};

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn fetch(offset: i64, last_epoch: i32, leader_epoch: i32, max_wait_ms: i32) -> Request {
    let partition = FetchPartition {
        partition: 0,
        current_leader_epoch: leader_epoch,
        fetch_offset: offset,
        last_fetched_epoch: last_epoch,
        partition_max_bytes: 1024,
        replica_directory_id: Uuid(0xabcd_0000_0000_0000_0000_0000_0000_0000),
        ..Default::default()
    };
    let topic = FetchTopic { topic_id: Uuid::METADATA_TOPIC, partitions: vec![partition], ..Default::default() };
    Request::Fetch(FetchRequest {
        cluster_id: Some("cluster".into()),
        replica_state: ReplicaState { replica_id: 7, ..Default::default() },
        max_wait_ms,
        max_bytes: 1024,
        topics: vec![topic],
        ..Default::default()
    })
}

fn last_fetch(node: &Node) -> gregor_messages::fetch_response::PartitionData {
    match node.replies.last() {
        Some((_, Reply::Fetch(response))) => response.responses[0].partitions[0].clone(),
        other => panic!("no answer to a fetch, but {other:?}"),
    }
}

fn vote(epoch: i32, last_offset: i64, last_epoch: i32, pre_vote: bool) -> Request {
    let ballot = vote_request::PartitionData {
        replica_epoch: epoch,
        replica_id: 9,
        last_offset,
        last_offset_epoch: last_epoch,
        pre_vote,
        ..Default::default()
    };
    let topic = vote_request::TopicData {
        topic_name: "__cluster_metadata".into(),
        partitions: vec![ballot],
        ..Default::default()
    };
    Request::Vote(VoteRequest {
        cluster_id: Some("cluster".into()),
        voter_id: 1,
        topics: vec![topic],
        ..Default::default()
    })
}

#[test]
fn leads_only_after_its_vote_for_itself_is_on_disk() {
    let mut node = Node::new(false, 1);
    assert!(matches!(node.quorum.role(), Role::Candidate(_)));
    assert_eq!(node.log.records.len(), 0);
    node.complete_write();
    assert_eq!(node.election, ElectionState::voted(LeaderEpoch(1), local_voter().key));
    assert!(matches!(node.quorum.role(), Role::Leader(_)));
    node.settle();
    assert_eq!(node.election, ElectionState::elected(LeaderEpoch(1), BrokerId(1)));
}

#[test]
fn a_static_quorum_starts_its_epoch_with_the_leaders_name_alone() {
    let mut node = Node::new(false, 1);
    node.settle();
    assert!(matches!(&node.log.records[..], [only] if matches!(only.control, Some(ControlRecord::LeaderChange(_)))));
}

#[test]
fn a_dynamic_quorum_writes_its_voters_into_the_log_once() {
    let mut node = Node::new(true, 1);
    node.settle();
    let kinds: Vec<_> =
        node.log.records.iter().map(|record| record.control.as_ref().map(|control| control.kind().id())).collect();
    assert_eq!(kinds, [Some(2), Some(5), Some(6)], "LeaderChange, KRaftVersion, Voters");
    let mut node = node.crash();
    node.settle();
    assert_eq!(node.log.records.len(), 4, "only a LeaderChange is added by the next epoch");
}

#[test]
fn a_voter_that_listens_elsewhere_now_says_so_in_its_first_batch() {
    let mut moved = config();
    moved.local.endpoints[0].port = 19_093;
    let mut history = VoterHistory::default();
    let version = gregor_state_records::control::KRaftVersionRecord { k_raft_version: 1, ..Default::default() };
    let voters = (&VoterSet::new([local_voter()])).into();
    history.load_snapshot(
        OffsetAndEpoch::new(Offset(0), LeaderEpoch(1)),
        &[ControlRecord::KRaftVersion(version), ControlRecord::Voters(voters)],
    );
    let mut quorum = Quorum::new(moved, ElectionState::INITIAL, history, &Log::default()).unwrap();
    let (mut effects, now) = (Effects::default(), Now { monotonic: 0, wall: Timestamp(0) });
    quorum.step(Input::Start, &Log::default(), now, &mut Dice(1), &mut effects);
    let Some(Effect::Persist { token, .. }) = effects.pop() else { panic!("a vote comes first") };
    quorum.step(Input::Durable(token), &Log::default(), now, &mut Dice(1), &mut effects);
    assert_eq!(quorum.history().voters().voter(BrokerId(1)).unwrap().endpoints[0].port, 19_093);
}

#[test]
fn nothing_is_committed_before_the_epochs_first_record_is_on_disk() {
    let mut node = Node::new(false, 1);
    node.complete_write();
    node.append(3);
    assert_eq!(node.quorum.high_watermark(), None);
    node.settle();
    assert_eq!(node.quorum.high_watermark(), Some(Offset(4)));
}

#[test]
fn an_append_that_would_land_elsewhere_is_refused() {
    let mut node = Node::new(false, 1);
    node.settle();
    let end = node.log.records.len();
    node.step(Input::Append { epoch: LeaderEpoch(1), base: Offset(0), records: vec![bytes::Bytes::from_static(b"x")] });
    node.step(Input::Append {
        epoch: LeaderEpoch(9),
        base: Offset(end as i64),
        records: vec![bytes::Bytes::from_static(b"x")],
    });
    node.step(Input::Append { epoch: LeaderEpoch(1), base: Offset(end as i64), records: Vec::new() });
    assert_eq!(node.log.records.len(), end);
}

#[test]
fn committed_records_survive_every_crash_and_the_high_watermark_never_passes_the_disk() {
    for seed in 0..400 {
        let mut node = Node::new(seed % 2 == 0, seed);
        let mut dice = Dice(seed);
        let mut epochs = vec![node.quorum.epoch()];
        for _ in 0..200 {
            match dice.below(20) {
                0..=6 => node.append(1 + dice.below(3) as usize),
                7..=12 => drop(node.complete_write()),
                13..=15 => node.complete_append(),
                16 => node.pass(dice.below(1_500)),
                17 => node.request(1, 17, fetch(dice.below(20) as i64, 1, node.quorum.epoch().value(), 500)),
                18 => {
                    let ahead = node.quorum.epoch().value() + dice.below(2) as i32;
                    node.request(2, 2, vote(ahead, 1_000, ahead - 1, dice.below(2) == 0));
                }
                _ => node = node.crash(),
            }
            epochs.push(node.quorum.epoch());
        }
        node.settle();
        node.pass(3_000);
        node.settle();
        assert!(matches!(node.quorum.role(), Role::Leader(_)), "seed {seed}: no leader after all faults ended");
        assert_eq!(node.committed, node.log.records, "seed {seed}");
    }
}

#[test]
fn a_vote_for_another_leaves_only_once_it_is_on_disk_and_is_kept_through_a_crash() {
    let mut node = Node::new(false, 1);
    node.settle();
    node.request(5, 2, vote(8, 1_000, 7, false));
    assert!(node.replies.is_empty(), "the answer waits for the election state");
    node.settle();
    let Some((RequestId(5), Reply::Vote(response))) = node.replies.pop() else { panic!("no vote") };
    assert!(response.topics[0].partitions[0].vote_granted);
    assert_eq!(node.election, ElectionState::voted(LeaderEpoch(8), ReplicaKey::new(BrokerId(9), Uuid::ZERO)));
    assert_eq!(
        node.crash().quorum.epoch(),
        LeaderEpoch(9),
        "after a crash it stands in a later epoch, never in that one"
    );
}

#[test]
fn a_pre_vote_in_the_present_epoch_changes_nothing_on_a_leader() {
    let mut node = Node::new(false, 1);
    node.settle();
    let before = hash(&node.quorum);
    node.request(5, 2, vote(1, 1_000, 1, true));
    let Some((_, Reply::Vote(response))) = node.replies.pop() else { panic!("no answer") };
    assert!(!response.topics[0].partitions[0].vote_granted);
    assert_eq!(hash(&node.quorum), before);
    node.request(6, 2, vote(1, 1_000, 1, false));
    let Some((_, Reply::Vote(response))) = node.replies.pop() else { panic!("no answer") };
    assert_eq!(
        response.topics[0].partitions[0].error_code,
        ErrorCode::InvalidRequest.code(),
        "a log cannot be of the epoch it stands for"
    );
}

#[test]
fn fetches_are_checked_as_apache_checks_them() {
    let mut node = Node::new(false, 1);
    node.settle();
    node.append(2);
    node.settle();
    let error = |node: &Node| ErrorCode::from(last_fetch(node).error_code);
    node.request(1, 17, fetch(3, 1, 0, 0));
    assert_eq!(error(&node), ErrorCode::InvalidRequest, "the last epoch is above the leader's");
    node.request(1, 17, fetch(0, 0, 0, 0));
    assert_eq!(error(&node), ErrorCode::FencedLeaderEpoch);
    node.request(1, 17, fetch(3, 1, 2, 0));
    assert_eq!(error(&node), ErrorCode::UnknownLeaderEpoch);
    node.request(1, 17, fetch(3, 1, 1, 0));
    let answer = last_fetch(&node);
    assert_eq!((answer.error_code, answer.high_watermark, answer.current_leader.leader_id), (0, 3, 1));
    node.request(1, 17, fetch(9, 1, 1, 0));
    assert_eq!(last_fetch(&node).diverging_epoch.end_offset, 3, "beyond the end is another history");
    let Request::Fetch(mut other) = fetch(3, 1, 1, 0) else { unreachable!() };
    other.cluster_id = Some("other".into());
    node.request(1, 17, Request::Fetch(other));
    let Some((_, Reply::Fetch(response))) = node.replies.last() else { panic!("no answer") };
    assert_eq!(response.error_code, ErrorCode::InconsistentClusterId.code());
}

#[test]
fn an_observer_waits_for_records_and_is_listed_with_its_end() {
    let mut node = Node::new(true, 1);
    node.settle();
    node.request(1, 17, fetch(3, 1, 1, 500));
    assert!(node.replies.is_empty(), "nothing new yet");
    node.append(1);
    node.complete_append();
    assert_eq!(node.replies.len(), 1, "new records are sent before they are on the leader's disk");
    node.settle();
    node.request(2, 17, fetch(4, 1, 1, 500));
    node.pass(499);
    assert_eq!(node.replies.len(), 1);
    node.pass(2);
    assert_eq!(node.replies.len(), 2, "an empty answer when the wait is over");
    let partition = describe_quorum_request::PartitionData::default();
    let topic = describe_quorum_request::TopicData {
        topic_name: "__cluster_metadata".into(),
        partitions: vec![partition],
        ..Default::default()
    };
    node.request(3, 2, Request::DescribeQuorum(DescribeQuorumRequest { topics: vec![topic], ..Default::default() }));
    let Some((_, Reply::DescribeQuorum(response))) = node.replies.pop() else { panic!("no answer") };
    let partition = &response.topics[0].partitions[0];
    assert_eq!((partition.leader_id, partition.leader_epoch, partition.high_watermark), (1, 1, 4));
    assert_eq!(partition.current_voters[0].log_end_offset, 4);
    assert_eq!((partition.observers[0].replica_id, partition.observers[0].log_end_offset), (7, 4));
    assert_eq!(partition.observers[0].last_fetch_timestamp, node.now.wall.value() - 501);
    assert_eq!(response.nodes[0].listeners[0].port, 9093);
    node.pass(300_000);
    assert!(!format!("{:?}", node.quorum).contains("BrokerId(7)"), "a silent observer is forgotten");
}

#[test]
fn snapshots_are_served_in_pieces_and_the_one_of_formatting_never() {
    let mut node = Node::new(true, 1);
    node.settle();
    let of = |max_bytes, offset, epoch, position| {
        let snapshot_id = SnapshotIdField { end_offset: offset, epoch, ..Default::default() };
        let partition =
            PartitionSnapshot { partition: 0, current_leader_epoch: 1, snapshot_id, position, ..Default::default() };
        let topic =
            TopicSnapshot { name: "__cluster_metadata".into(), partitions: vec![partition], ..Default::default() };
        Request::FetchSnapshot(FetchSnapshotRequest { max_bytes, topics: vec![topic], ..Default::default() })
    };
    let piece = |offset, epoch, position| of(50, offset, epoch, position);
    let answer = |node: &mut Node, request| {
        node.request(1, 1, request);
        match node.replies.pop() {
            Some((_, Reply::FetchSnapshot(response, read))) => {
                (ErrorCode::from(response.topics[0].partitions[0].error_code), read)
            }
            other => panic!("no answer, but {other:?}"),
        }
    };
    node.log.snapshot = Some((OffsetAndEpoch::BOOTSTRAP, 100));
    assert_eq!(answer(&mut node, piece(0, 0, 0)).0, ErrorCode::SnapshotNotFound);
    node.log.snapshot = Some((OffsetAndEpoch::new(Offset(3), LeaderEpoch(1)), 100));
    let (error, read) = answer(&mut node, piece(3, 1, 50));
    assert_eq!((error, read.unwrap().position), (ErrorCode::None, 50));
    for (asked, given) in [(50, 50), (-1, 0), (i32::MAX, 8 << 20)] {
        let (_, read) = answer(&mut node, of(asked, 3, 1, 0));
        assert_eq!(read.unwrap().max_bytes, given, "nobody has a node read more at once than it sends");
    }
    assert_eq!(answer(&mut node, piece(3, 1, 100)).0, ErrorCode::PositionOutOfRange);
    node.request(1, 17, fetch(0, 0, 1, 0));
    assert_eq!(last_fetch(&node).snapshot_id.end_offset, 3, "an empty log is filled from a snapshot");
}

#[test]
fn equal_states_are_equal_however_they_were_reached() {
    let settled = |extra_time: u64, extra_writes: bool| {
        let mut node = Node::new(false, 7);
        node.now.monotonic += extra_time;
        if extra_writes {
            node.settle();
            node.request(1, 17, fetch(1, 1, 1, 0));
            node.pass(400_000);
        }
        node.settle();
        node.quorum
    };
    let (one, other) = (settled(0, false), settled(123_456_789, true));
    assert_eq!(one, other);
    assert_eq!(HashSet::from([hash(&one), hash(&other)]).len(), 1);
    let mut dice = Dice(1);
    assert!((10..20).contains(&dice.spread(10)));
}

#[test]
fn a_node_that_cannot_take_part_says_why() {
    let local = local_voter().key;
    let start = |history: &VoterHistory, finds_others| check_voters(history.voters(), local, finds_others);
    let voter = |id, directory| Voter { key: ReplicaKey::new(BrokerId(id), Uuid(directory)), ..local_voter() };
    let nobody = VoterHistory::default();
    assert_eq!(start(&nobody, false), Err(StartError::NoVoters));
    assert_eq!(start(&nobody, true), Ok(()), "others may know who votes");
    let elsewhere = VoterHistory::new(VoterSet::new([voter(1, 77)]));
    assert!(matches!(start(&elsewhere, false), Err(StartError::OtherDirectory { .. })));
    let others = VoterHistory::new(VoterSet::new([voter(2, 0), voter(3, 0)]));
    assert_eq!(start(&others, false), Ok(()));
    let alone = first_history(true);
    assert_eq!(start(&alone, false), Ok(()));
}
