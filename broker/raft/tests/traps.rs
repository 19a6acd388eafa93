//! What an implementer of KRaft gets wrong, one by one, on a voter whose peers and disk are the test.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use gregor_messages::{
    AddRaftVoterRequest, ApiVersionsResponse, FetchRequest, FetchResponse, FetchSnapshotRequest, VoteRequest,
    VoteResponse, add_raft_voter_request,
    api_versions_response::SupportedFeatureKey,
    fetch_request::{FetchPartition, FetchTopic, ReplicaState},
    fetch_response::{self, FetchableTopicResponse},
    fetch_snapshot_request::{PartitionSnapshot, SnapshotId as SnapshotIdField, TopicSnapshot},
    vote_request, vote_response,
};
use gregor_raft::{
    AppendError, Batch, Config, ControlRecord, Effect, Effects, ElectionState, Endpoint, Input, LogView,
    MAX_BATCH_BYTES, MAX_BATCH_RECORDS, Now, OffsetAndEpoch, Outgoing, Quorum, ReplicaKey, Reply, Request, RequestId,
    Response, Rng, Role, SnapshotId, StartError, Token, Voter, VoterHistory, VoterSet,
};
use gregor_state_records::control::KRaftVersionRecord;
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Offset, Timestamp, Uuid};

const MS: u64 = 1_000_000;
const OTHER: BrokerId = BrokerId(2);
const THIRD: BrokerId = BrokerId(3);

/// A log on paper: the epochs of its records from `start` on.
#[derive(Default)]
struct Paper {
    start: i64,
    epochs: Vec<i32>,
    snapshot: Option<SnapshotId>,
}

impl LogView for Paper {
    fn end(&self) -> OffsetAndEpoch {
        let of_snapshot = self.snapshot.map_or(LeaderEpoch(0), |id| id.epoch);
        let epoch = self.epochs.last().map_or(of_snapshot, |epoch| LeaderEpoch(*epoch));
        OffsetAndEpoch::new(Offset(self.start + self.epochs.len() as i64), epoch)
    }
    fn start(&self) -> Offset {
        Offset(self.start)
    }
    fn end_of_epoch(&self, epoch: LeaderEpoch) -> OffsetAndEpoch {
        let end = self.epochs.partition_point(|one| LeaderEpoch(*one) <= epoch);
        let last = end.checked_sub(1).map_or(LeaderEpoch(0), |last| LeaderEpoch(self.epochs[last]));
        OffsetAndEpoch::new(Offset(self.start + end as i64), last)
    }
    fn latest_snapshot(&self) -> Option<SnapshotId> {
        self.snapshot
    }
    fn earliest_snapshot(&self) -> Option<SnapshotId> {
        self.snapshot
    }
    fn snapshot_size(&self, id: SnapshotId) -> Option<u64> {
        (self.snapshot == Some(id)).then_some(100)
    }
}

struct Dice(u64);

impl Rng for Dice {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 16
    }
}

/// Voter 1 of three.
struct Rig {
    quorum: Quorum,
    log: Paper,
    now: u64,
    dice: Dice,
    /// Writes that are not on the disk yet.
    volatile: VecDeque<Token>,
    /// How often the election state was written.
    persisted: usize,
    held: Vec<(Token, Reply)>,
    replies: Vec<Reply>,
    sent: Vec<(BrokerId, Outgoing)>,
    refused: Option<AppendError>,
    high_watermark: Option<Offset>,
}

fn directory(id: BrokerId) -> Uuid {
    Uuid(0x1234_0000_0000_0000_0000_0000_0000_0000 + id.value() as u128)
}

fn voter(id: i32, dynamic: bool) -> Voter {
    Voter {
        key: ReplicaKey { id: BrokerId(id), directory: dynamic.then_some(directory(BrokerId(id))) },
        endpoints: vec![Endpoint { name: "CONTROLLER".into(), host: "node".into(), port: id as u16 }],
        kraft_versions: (0, 1),
    }
}

fn history(dynamic: bool) -> VoterHistory {
    let voters = VoterSet::new((1..=3).map(|id| voter(id, dynamic)));
    if !dynamic {
        return VoterHistory::new(voters);
    }
    let version = KRaftVersionRecord { k_raft_version: 1, ..Default::default() };
    let mut history = VoterHistory::default();
    let records = [ControlRecord::KRaftVersion(version), ControlRecord::Voters((&voters).into())];
    history.load_snapshot(SnapshotId::BOOTSTRAP, &records);
    history
}

fn config(bootstrap_servers: u16) -> Config {
    Config {
        cluster_id: "cluster".into(),
        local: voter(1, true),
        election_timeout: 1_000 * MS,
        fetch_timeout: 2_000 * MS,
        election_backoff_max: 1_000 * MS,
        retry_backoff: 20 * MS,
        fetch_bytes: 1_000,
        snapshot_piece_bytes: 10,
        request_timeout: 2_000 * MS,
        bootstrap_servers,
        auto_join: false,
    }
}

impl Rig {
    fn new(log: Paper, election: ElectionState) -> Self {
        Self::with(log, election, false, 0)
    }

    fn with(log: Paper, election: ElectionState, dynamic: bool, bootstrap_servers: u16) -> Self {
        let quorum = Quorum::new(config(bootstrap_servers), election, history(dynamic), &log).unwrap();
        let mut rig = Self {
            quorum,
            log,
            now: 0,
            dice: Dice(7),
            volatile: VecDeque::new(),
            persisted: 0,
            held: Vec::new(),
            replies: Vec::new(),
            sent: Vec::new(),
            refused: None,
            high_watermark: None,
        };
        rig.step(Input::Start);
        rig
    }

    /// A follower of the second voter, in epoch 4.
    fn following() -> Self {
        Self::new(Paper::default(), ElectionState::elected(LeaderEpoch(4), OTHER))
    }

    /// The leader that the second voter elected, with all of its log on the disk.
    fn leading(log: Paper, dynamic: bool) -> Self {
        let epoch = log.end().epoch;
        let mut rig = Self::with(log, ElectionState::unknown_leader(epoch), dynamic, 0);
        rig.pass(2_000);
        rig.vote(true);
        rig.sync();
        rig.vote(true);
        assert!(matches!(rig.quorum.role(), Role::Leader(_)), "{:?}", rig.quorum.role());
        rig.sync();
        rig.sent.clear();
        rig
    }

    fn step(&mut self, input: Input) {
        let (mut effects, now) = (Effects::default(), Now { monotonic: self.now, wall: Timestamp(0) });
        self.quorum.step(input, &self.log, now, &mut self.dice, &mut effects);
        let mut appended = Vec::new();
        while let Some(effect) = effects.pop() {
            match effect {
                Effect::Persist { token, .. } => {
                    self.volatile.push_back(token);
                    self.persisted += 1;
                }
                Effect::Flush { token, .. } => self.volatile.push_back(token),
                Effect::Append { token, epoch, batch, .. } => {
                    self.log.epochs.extend(std::iter::repeat_n(epoch.value(), batch.len()));
                    appended.push(token);
                }
                Effect::AppendFetched { records, .. } => {
                    let number = |at: usize| i32::from_be_bytes(records[at..at + 4].try_into().unwrap());
                    let (epoch, last_delta) = (number(12), number(23));
                    self.log.epochs.extend(std::iter::repeat_n(epoch, last_delta as usize + 1));
                }
                Effect::Reply { after: Some(token), reply, .. } if self.volatile.contains(&token) => {
                    self.held.push((token, reply));
                }
                Effect::Reply { reply, .. } => self.replies.push(reply),
                Effect::Send { to, request } => self.sent.push((to, request)),
                Effect::Refused { error, .. } => self.refused = Some(error),
                Effect::HighWatermark(end) => self.high_watermark = Some(end),
                Effect::Timer { .. } | Effect::Role(_) => {}
                other => panic!("nothing here asks for {other:?}"),
            }
        }
        for token in appended {
            self.step(Input::Appended(token));
        }
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now += milliseconds * MS;
        self.step(Input::Tick);
    }

    /// The disk has done all that it was asked.
    fn sync(&mut self) {
        while let Some(token) = self.volatile.pop_front() {
            let held = std::mem::take(&mut self.held);
            let (ready, held): (Vec<_>, Vec<_>) = held.into_iter().partition(|(waited_for, _)| *waited_for == token);
            self.held = held;
            self.replies.extend(ready.into_iter().map(|(_, reply)| reply));
            self.step(Input::Durable(token));
        }
    }

    /// The second voter answers what it was asked, a vote or whether it would give one.
    fn vote(&mut self, granted: bool) {
        let data = vote_response::PartitionData {
            leader_id: -1,
            leader_epoch: self.quorum.epoch().value(),
            vote_granted: granted,
            ..Default::default()
        };
        let topic = vote_response::TopicData {
            topic_name: "__cluster_metadata".into(),
            partitions: vec![data],
            ..Default::default()
        };
        let response = Response::Vote(VoteResponse { topics: vec![topic], ..Default::default() });
        self.step(Input::Response { from: OTHER, response: Some(response) });
    }

    fn ask(&mut self, version: i16, request: Request) -> Reply {
        self.step(Input::Request { id: RequestId(1), version, request });
        self.replies.pop().expect("an answer")
    }

    /// The votes that were asked for, each with whether it is only asked whether it would be given.
    fn ballots(&self) -> Vec<(BrokerId, bool)> {
        let ballot = |(to, request): &(BrokerId, Outgoing)| match request {
            Outgoing::Vote(request) => Some((*to, request.topics[0].partitions[0].pre_vote)),
            _ => None,
        };
        self.sent.iter().filter_map(ballot).collect()
    }
}

fn fetch(replica: BrokerId, offset: i64, last_epoch: i32, epoch: i32) -> FetchRequest {
    let partition = FetchPartition {
        current_leader_epoch: epoch,
        fetch_offset: offset,
        last_fetched_epoch: last_epoch,
        partition_max_bytes: 1_024,
        replica_directory_id: directory(replica),
        ..Default::default()
    };
    let topic = FetchTopic { topic_id: Uuid::METADATA_TOPIC, partitions: vec![partition], ..Default::default() };
    FetchRequest {
        cluster_id: Some("cluster".into()),
        replica_state: ReplicaState { replica_id: replica.value(), ..Default::default() },
        max_bytes: 1_024,
        topics: vec![topic],
        ..Default::default()
    }
}

fn fetched(reply: Reply) -> FetchResponse {
    match reply {
        Reply::Fetch(response) => response,
        other => panic!("no answer to a fetch, but {other:?}"),
    }
}

fn ballot(epoch: i32, last_epoch: i32, pre_vote: bool) -> VoteRequest {
    let ballot = vote_request::PartitionData {
        replica_epoch: epoch,
        replica_id: 2,
        last_offset: 100,
        last_offset_epoch: last_epoch,
        pre_vote,
        ..Default::default()
    };
    let topic = vote_request::TopicData {
        topic_name: "__cluster_metadata".into(),
        partitions: vec![ballot],
        ..Default::default()
    };
    VoteRequest { cluster_id: Some("cluster".into()), voter_id: 1, topics: vec![topic], ..Default::default() }
}

fn verdict(reply: Reply) -> (ErrorCode, bool) {
    match reply {
        Reply::Vote(response) => {
            let data = &response.topics[0].partitions[0];
            (ErrorCode::from(data.error_code), data.vote_granted)
        }
        other => panic!("no answer to a vote, but {other:?}"),
    }
}

fn piece(position: i64, id: SnapshotId, epoch: i32) -> Request {
    let snapshot_id = SnapshotIdField { end_offset: id.offset.value(), epoch: id.epoch.value(), ..Default::default() };
    let partition = PartitionSnapshot { current_leader_epoch: epoch, snapshot_id, position, ..Default::default() };
    let topic = TopicSnapshot { name: "__cluster_metadata".into(), partitions: vec![partition], ..Default::default() };
    Request::FetchSnapshot(FetchSnapshotRequest { max_bytes: 50, topics: vec![topic], ..Default::default() })
}

fn error_of_piece(reply: &Reply) -> ErrorCode {
    match reply {
        Reply::FetchSnapshot(response, _) => ErrorCode::from(response.topics[0].partitions[0].error_code),
        other => panic!("no answer to a fetch of a snapshot, but {other:?}"),
    }
}

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
    let mut data = fetch_response::PartitionData {
        high_watermark: 2,
        records: Some(batch.encode(Offset(0), LeaderEpoch(4), Timestamp(0))),
        ..Default::default()
    };
    data.current_leader.leader_id = OTHER.value();
    data.current_leader.leader_epoch = 4;
    let topic = FetchableTopicResponse { partitions: vec![data], ..Default::default() };
    let response = Response::Fetch(FetchResponse { responses: vec![topic], ..Default::default() });
    rig.step(Input::Response { from: OTHER, response: Some(response) });
    rig.pass(100);
    assert_eq!(rig.log.end().offset, Offset(2));
    // A fetch would acknowledge the two to the leader, which may count them as committed then.
    assert!(rig.sent.is_empty(), "{:?}", rig.sent);
    assert_eq!(rig.high_watermark, None);
    rig.sync();
    assert_eq!(rig.high_watermark, Some(Offset(2)));
    let Some((OTHER, Outgoing::Fetch(next))) = rig.sent.first() else { panic!("no fetch, but {:?}", rig.sent) };
    let partition = &next.topics[0].partitions[0];
    assert_eq!((partition.fetch_offset, partition.last_fetched_epoch), (2, 4));
    assert_eq!((next.max_bytes, partition.partition_max_bytes), (1_000, 1_000), "as many bytes as are configured");
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
        let listener = add_raft_voter_request::Listener { name: "CONTROLLER".into(), port: 4, ..Default::default() };
        let request = AddRaftVoterRequest {
            cluster_id: Some("cluster".into()),
            voter_id: fourth.value(),
            voter_directory_id: directory(fourth),
            listeners: vec![listener],
            ..Default::default()
        };
        rig.step(Input::Request { id: RequestId(9), version: 1, request: Request::AddRaftVoter(request) });
        let asks = |(to, request): &(BrokerId, Outgoing)| *to == fourth && matches!(request, Outgoing::ApiVersions(_));
        assert!(rig.sent.iter().any(asks), "{:?} {:?}", rig.sent, rig.replies);
        let feature = |(min_version, max_version)| SupportedFeatureKey {
            name: "kraft.version".into(),
            min_version,
            max_version,
            ..Default::default()
        };
        let supported_features = range.map(feature).into_iter().collect();
        let response = Response::ApiVersions(ApiVersionsResponse { supported_features, ..Default::default() });
        rig.step(Input::Response { from: fourth, response: Some(response) });
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
