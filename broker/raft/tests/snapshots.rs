//! A node that is too far behind takes the leader's snapshot, whatever comes in between, and believes no snapshot that cannot be one.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod cluster;

use bytes::Bytes;
use cluster::{Cluster, Dice, MS};
use gregor_messages::{
    FetchResponse, FetchSnapshotResponse, fetch_response,
    fetch_snapshot_response::{self, PartitionSnapshot},
};
use gregor_raft::{
    Config, Effect, Effects, ElectionState, Input, LogView, Now, OffsetAndEpoch, Outgoing, Quorum, ReplicaKey,
    Response, Role, SnapshotId, Token, Voter, VoterHistory, VoterSet,
};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Offset, Timestamp, Uuid};

/// A quorum whose leader has cut off what the last voter does not have yet; that voter is down.
fn with_a_voter_far_behind(size: i32, seed: u64) -> (Cluster, BrokerId, BrokerId) {
    let mut cluster = Cluster::new(size, true, seed);
    cluster.run_until("a leader whom all follow", 10_000, Cluster::has_converged);
    let leader = cluster.leader().unwrap();
    let behind = cluster.ids().into_iter().rfind(|id| *id != leader).unwrap();
    if size > 2 {
        cluster.kill(behind);
    }
    for _ in 0..100 {
        cluster.append(leader);
        cluster.run(5);
    }
    cluster.run(1_000);
    cluster.kill(behind);
    for id in cluster.ids() {
        cluster.snapshot(id);
        cluster.clean(id);
    }
    (cluster, leader, behind)
}

#[test]
fn a_follower_that_is_too_far_behind_takes_the_snapshot_and_fetches_on() {
    let (mut cluster, leader, behind) = with_a_voter_far_behind(3, 1);
    cluster.start(behind);
    cluster.run_until("it has the snapshot", 10_000, |cluster| cluster.transfers == 1);
    cluster.append(leader);
    cluster.run_until("it has all", 10_000, Cluster::has_converged);
    assert_eq!(cluster.quorum(behind).history().voters().len(), 3, "the snapshot says who votes");
    cluster.kill(behind);
    cluster.start(behind);
    cluster.run_until("it starts with the snapshot", 10_000, Cluster::has_converged);
    assert_eq!(cluster.transfers, 1);
}

#[test]
fn a_snapshot_that_is_deleted_while_it_is_taken_is_begun_anew_as_the_newer_one() {
    let (mut cluster, leader, behind) = with_a_voter_far_behind(3, 2);
    cluster.start(behind);
    cluster.run_until("the first piece is there", 10_000, |cluster| cluster.pieces > 0);
    cluster.append(leader);
    let end = cluster.end(leader);
    cluster.run_until("there is more to take a snapshot of", 1_000, |cluster| cluster.committed_end() == end);
    assert_eq!(cluster.transfers, 0, "it is still being taken");
    cluster.snapshot(leader);
    cluster.clean(leader);
    cluster.run_until("it has all", 10_000, Cluster::has_converged);
    assert_eq!(cluster.transfers, 1);
}

#[test]
fn a_leader_that_dies_while_its_snapshot_is_taken_is_replaced_by_another_with_its_own() {
    let (mut cluster, leader, behind) = with_a_voter_far_behind(3, 3);
    cluster.start(behind);
    cluster.run_until("the first piece is there", 10_000, |cluster| cluster.pieces > 0);
    cluster.kill(leader);
    cluster.run_until("the last one takes it from the other", 20_000, |cluster| cluster.transfers == 1);
    cluster.start(leader);
    cluster.run_until("all have all", 10_000, Cluster::has_converged);
}

#[test]
fn a_crash_between_the_snapshot_and_the_cut_of_the_log_is_made_good_at_the_start() {
    let (mut cluster, _, behind) = with_a_voter_far_behind(3, 4);
    cluster.start(behind);
    cluster.crash_at_install = true;
    cluster.run_until("it has the snapshot", 10_000, |cluster| !cluster.is_up(behind));
    cluster.crash_at_install = false;
    let before = cluster.pieces;
    cluster.start(behind);
    cluster.run_until("it has all", 10_000, Cluster::has_converged);
    assert_eq!((cluster.pieces, cluster.transfers), (before, 0), "nothing had to be taken again");
}

#[test]
fn a_voter_that_takes_a_snapshot_for_long_keeps_its_leader() {
    let (mut cluster, leader, behind) = with_a_voter_far_behind(2, 5);
    cluster.wipe_log(behind);
    cluster.start(behind);
    let epoch = cluster.quorum(leader).epoch();
    cluster.delay_ms = 900;
    cluster.run_until("it has the snapshot", 60_000, |cluster| cluster.transfers == 1);
    assert!(cluster.pieces > 4, "longer than a leader waits for a majority: {} pieces", cluster.pieces);
    assert_eq!(cluster.quorum(leader).epoch(), epoch, "nobody had to be elected anew");
}

/// A log that holds nothing.
struct Empty;

impl LogView for Empty {
    fn end(&self) -> OffsetAndEpoch {
        OffsetAndEpoch::BOOTSTRAP
    }
    fn start(&self) -> Offset {
        Offset::ZERO
    }
    fn end_of_epoch(&self, _: LeaderEpoch) -> OffsetAndEpoch {
        OffsetAndEpoch::BOOTSTRAP
    }
    fn latest_snapshot(&self) -> Option<SnapshotId> {
        None
    }
    fn earliest_snapshot(&self) -> Option<SnapshotId> {
        None
    }
    fn snapshot_size(&self, _: SnapshotId) -> Option<u64> {
        None
    }
}

/// A follower whose leader is the test.
struct Follower {
    quorum: Quorum,
    now: u64,
}

const LEADER: BrokerId = BrokerId(2);
const OFFERED: SnapshotId = SnapshotId::new(Offset(100), LeaderEpoch(3));

impl Follower {
    fn new() -> Self {
        let voter = |id| Voter {
            key: ReplicaKey { id: BrokerId(id), directory: None },
            endpoints: Vec::new(),
            kraft_versions: (0, 1),
        };
        let config = Config {
            cluster_id: "cluster".into(),
            local: Voter { key: ReplicaKey::new(BrokerId(1), Uuid(7)), ..voter(1) },
            election_timeout: 1_000 * MS,
            fetch_timeout: 2_000 * MS,
            election_backoff_max: 1_000 * MS,
            retry_backoff: 20 * MS,
            fetch_bytes: 1 << 20,
            snapshot_piece_bytes: 10,
            request_timeout: 2_000 * MS,
            bootstrap_servers: 0,
            auto_join: false,
        };
        let history = VoterHistory::new(VoterSet::new([voter(1), voter(2), voter(3)]));
        let quorum = Quorum::new(config, ElectionState::elected(LeaderEpoch(4), LEADER), history, &Empty).unwrap();
        let mut follower = Self { quorum, now: 0 };
        let first = follower.step(Input::Start);
        assert!(matches!(asked(&first), Some(Outgoing::Fetch(_))), "{first:?}");
        follower
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = Effects::default();
        let now = Now { monotonic: self.now, wall: Timestamp(0) };
        self.quorum.step(input, &Empty, now, &mut Dice(1), &mut effects);
        std::iter::from_fn(|| effects.pop()).collect()
    }

    fn pass(&mut self, milliseconds: u64) -> Vec<Effect> {
        self.now += milliseconds * MS;
        self.step(Input::Tick)
    }

    fn hear(&mut self, response: Response) -> Vec<Effect> {
        self.step(Input::Response { from: LEADER, response: Some(response) })
    }

    /// Is told to take the snapshot, and asks for its first piece.
    fn offered(id: SnapshotId) -> (Self, Vec<Effect>) {
        let mut follower = Self::new();
        let mut data = fetch_response::PartitionData::default();
        data.current_leader.leader_id = LEADER.value();
        data.current_leader.leader_epoch = 4;
        data.snapshot_id.end_offset = id.offset.value();
        data.snapshot_id.epoch = id.epoch.value();
        let topic = fetch_response::FetchableTopicResponse { partitions: vec![data], ..Default::default() };
        let effects = follower.hear(Response::Fetch(FetchResponse { responses: vec![topic], ..Default::default() }));
        (follower, effects)
    }
}

fn asked(effects: &[Effect]) -> Option<&Outgoing> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { to, request } => {
            assert_eq!(*to, LEADER);
            Some(request)
        }
        _ => None,
    })
}

fn position(effects: &[Effect]) -> Option<i64> {
    match asked(effects) {
        Some(Outgoing::FetchSnapshot(request)) => {
            assert_eq!((request.max_bytes, request.replica_id), (10, 1));
            Some(request.topics[0].partitions[0].position)
        }
        _ => None,
    }
}

fn piece(position: i64, size: i64, bytes: &'static [u8]) -> PartitionSnapshot {
    let mut piece = PartitionSnapshot { size, position, ..Default::default() };
    piece.snapshot_id.end_offset = OFFERED.offset.value();
    piece.snapshot_id.epoch = OFFERED.epoch.value();
    piece.current_leader.leader_id = LEADER.value();
    piece.current_leader.leader_epoch = 4;
    piece.unaligned_records = Bytes::from_static(bytes);
    piece
}

fn answer(piece: PartitionSnapshot) -> Response {
    let topic = fetch_snapshot_response::TopicSnapshot {
        name: "__cluster_metadata".into(),
        partitions: vec![piece],
        ..Default::default()
    };
    Response::FetchSnapshot(FetchSnapshotResponse { topics: vec![topic], ..Default::default() })
}

fn completed(effects: &[Effect]) -> Option<Token> {
    effects.iter().find_map(|effect| match effect {
        Effect::CompleteSnapshot { token, id } => {
            assert_eq!(*id, OFFERED);
            Some(*token)
        }
        _ => None,
    })
}

#[test]
fn pieces_are_asked_for_one_behind_the_other_and_nothing_is_fetched_before_the_whole_is_on_the_disk() {
    let (mut follower, effects) = Follower::offered(OFFERED);
    assert_eq!(position(&effects), Some(0));
    let effects = follower.hear(answer(piece(0, 15, b"0123456789")));
    assert_eq!(position(&effects), Some(10));
    assert!(matches!(&effects[0], Effect::SnapshotPiece { id: OFFERED, position: 0, bytes } if bytes.len() == 10));
    let effects = follower.hear(answer(piece(10, 15, b"01234")));
    let token = completed(&effects).unwrap();
    assert!(asked(&effects).is_none() && asked(&follower.pass(1_000)).is_none());
    let effects = follower.step(Input::SnapshotReceived { token, control: Some(Vec::new()) });
    assert!(effects.contains(&Effect::InstallSnapshot { id: OFFERED }));
    assert_eq!(follower.quorum.high_watermark(), Some(OFFERED.offset));
    let flushed = effects.iter().find_map(|effect| match effect {
        Effect::Flush { token, end } if *end == OFFERED.offset => Some(*token),
        _ => None,
    });
    assert!(asked(&effects).is_none(), "the cut is not on the disk yet");
    assert!(matches!(asked(&follower.step(Input::Durable(flushed.unwrap()))), Some(Outgoing::Fetch(_))));
}

#[test]
fn a_piece_that_is_not_the_one_asked_for_ends_the_download_and_is_not_written() {
    let wrong = |change: fn(&mut PartitionSnapshot)| {
        let mut wrong = piece(10, 25, b"0123456789");
        change(&mut wrong);
        wrong
    };
    let cases = [
        wrong(|piece| piece.position = 0),
        wrong(|piece| piece.position = -1),
        wrong(|piece| piece.size = 26),
        wrong(|piece| piece.size = -1),
        wrong(|piece| piece.snapshot_id.end_offset = 101),
        wrong(|piece| piece.snapshot_id.epoch = 2),
        wrong(|piece| piece.unaligned_records = Bytes::new()),
        wrong(|piece| piece.unaligned_records = Bytes::from_static(b"0123456789abcdef")),
        wrong(|piece| piece.error_code = ErrorCode::SnapshotNotFound.code()),
        wrong(|piece| piece.error_code = ErrorCode::PositionOutOfRange.code()),
    ];
    for case in cases {
        let (mut follower, _) = Follower::offered(OFFERED);
        follower.hear(answer(piece(0, 25, b"0123456789")));
        let effects = follower.hear(answer(case.clone()));
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::SnapshotPiece { .. })), "{case:?}");
        assert!(asked(&effects).is_none(), "it waits before it asks again: {case:?}");
        assert!(matches!(asked(&follower.pass(20)), Some(Outgoing::Fetch(_))), "{case:?}");
        assert!(matches!(follower.quorum.role(), Role::Follower(_)));
    }
}

#[test]
fn no_answer_keeps_what_has_come_and_asks_again() {
    let (mut follower, _) = Follower::offered(OFFERED);
    follower.hear(answer(piece(0, 25, b"0123456789")));
    let effects = follower.step(Input::Response { from: LEADER, response: None });
    assert!(asked(&effects).is_none());
    assert_eq!(position(&follower.pass(20)), Some(10));
}

#[test]
fn a_snapshot_of_nothing_new_is_not_taken() {
    for id in [SnapshotId::new(Offset(0), LeaderEpoch(3)), SnapshotId::new(Offset(-1), LeaderEpoch(3))] {
        let (mut follower, effects) = Follower::offered(id);
        assert!(asked(&effects).is_none(), "{id:?}");
        assert!(matches!(asked(&follower.pass(20)), Some(Outgoing::Fetch(_))));
    }
}

#[test]
fn a_file_that_turns_out_to_be_no_snapshot_changes_nothing_and_is_taken_again_after_a_while() {
    let (mut follower, _) = Follower::offered(OFFERED);
    let token = completed(&follower.hear(answer(piece(0, 5, b"01234")))).unwrap();
    let effects = follower.step(Input::SnapshotReceived { token, control: None });
    assert!(!effects.contains(&Effect::InstallSnapshot { id: OFFERED }));
    assert_eq!(follower.quorum.high_watermark(), None);
    assert!(asked(&effects).is_none() && asked(&follower.pass(500)).is_none());
    assert!(matches!(asked(&follower.pass(500)), Some(Outgoing::Fetch(_))));
}
