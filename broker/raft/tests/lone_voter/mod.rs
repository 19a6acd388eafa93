//! A voter of three whose peers and disk are the test.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::VecDeque;

use bytes::Bytes;
use gregor_messages::{
    AddRaftVoterRequest, ApiVersionsResponse, BeginQuorumEpochRequest, EndQuorumEpochRequest, FetchRequest,
    FetchResponse, FetchSnapshotRequest, VoteRequest, VoteResponse, add_raft_voter_request,
    api_versions_response::SupportedFeatureKey,
    begin_quorum_epoch_request, end_quorum_epoch_request,
    fetch_request::{FetchPartition, FetchTopic, ReplicaState},
    fetch_response::{self, FetchableTopicResponse},
    fetch_snapshot_request::{PartitionSnapshot, SnapshotId as SnapshotIdField, TopicSnapshot},
    vote_request, vote_response,
};
use gregor_raft::{
    AppendError, Config, ControlRecord, Effect, Effects, ElectionState, Endpoint, Input, LogView, Now, OffsetAndEpoch,
    Origin, Outgoing, Quorum, ReplicaKey, Reply, Request, RequestId, Response, Rng, Role, SnapshotId, Token, Voter,
    VoterHistory, VoterSet,
};
use gregor_state_records::control::KRaftVersionRecord;
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Offset, Timestamp, Uuid};

pub const MS: u64 = 1_000_000;
pub const OTHER: BrokerId = BrokerId(2);
pub const THIRD: BrokerId = BrokerId(3);

/// A log on paper: the epochs of its records from `start` on.
#[derive(Default)]
pub struct Paper {
    pub start: i64,
    pub epochs: Vec<i32>,
    pub snapshot: Option<SnapshotId>,
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

pub struct Dice(u64);

impl Rng for Dice {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 16
    }
}

/// Voter 1 of three.
pub struct Rig {
    pub quorum: Quorum,
    pub log: Paper,
    pub now: u64,
    pub dice: Dice,
    /// Writes that are not on the disk yet.
    pub volatile: VecDeque<Token>,
    /// How often the election state was written.
    pub persisted: usize,
    pub held: Vec<(Token, Reply)>,
    pub replies: Vec<Reply>,
    pub sent: Vec<(BrokerId, Outgoing)>,
    pub refused: Option<AppendError>,
    pub high_watermark: Option<Offset>,
}

pub fn directory(id: BrokerId) -> Uuid {
    Uuid(0x1234_0000_0000_0000_0000_0000_0000_0000 + id.value() as u128)
}

pub fn voter(id: i32, dynamic: bool) -> Voter {
    Voter {
        key: ReplicaKey { id: BrokerId(id), directory: dynamic.then_some(directory(BrokerId(id))) },
        endpoints: vec![Endpoint { name: "CONTROLLER".into(), host: "node".into(), port: id as u16 }],
        kraft_versions: (0, 1),
    }
}

pub fn history(dynamic: bool) -> VoterHistory {
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

pub fn config(bootstrap_servers: u16) -> Config {
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
    pub fn new(log: Paper, election: ElectionState) -> Self {
        Self::with(log, election, false, 0)
    }

    pub fn with(log: Paper, election: ElectionState, dynamic: bool, bootstrap_servers: u16) -> Self {
        Self::of(config(bootstrap_servers), history(dynamic), log, election)
    }

    pub fn of(config: Config, history: VoterHistory, log: Paper, election: ElectionState) -> Self {
        let quorum = Quorum::new(config, election, history, &log).unwrap();
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
    pub fn following() -> Self {
        Self::new(Paper::default(), ElectionState::elected(LeaderEpoch(4), OTHER))
    }

    /// A replica that does not vote, and follows the second voter in epoch 4.
    pub fn observing(config: Config) -> Self {
        let config = Config { local: voter(4, true), ..config };
        Self::of(config, history(true), Paper::default(), ElectionState::elected(LeaderEpoch(4), OTHER))
    }

    /// The leader that the second voter elected, with all of its log on the disk.
    pub fn leading(log: Paper, dynamic: bool) -> Self {
        let epoch = log.end().epoch;
        Self::with(log, ElectionState::unknown_leader(epoch), dynamic, 0).elected()
    }

    /// The second voter elects this one.
    pub fn elected(mut self) -> Self {
        self.pass(2_000);
        self.vote(true);
        self.sync();
        self.vote(true);
        assert!(matches!(self.quorum.role(), Role::Leader(_)), "{:?}", self.quorum.role());
        self.sync();
        self.sent.clear();
        self
    }

    pub fn step(&mut self, input: Input) {
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

    pub fn pass(&mut self, milliseconds: u64) {
        self.now += milliseconds * MS;
        self.step(Input::Tick);
    }

    /// The disk has done all that it was asked.
    pub fn sync(&mut self) {
        while let Some(token) = self.volatile.pop_front() {
            let held = std::mem::take(&mut self.held);
            let (ready, held): (Vec<_>, Vec<_>) = held.into_iter().partition(|(waited_for, _)| *waited_for == token);
            self.held = held;
            self.replies.extend(ready.into_iter().map(|(_, reply)| reply));
            self.step(Input::Durable(token));
        }
    }

    /// The second voter answers what it was asked, a vote or whether it would give one.
    pub fn vote(&mut self, granted: bool) {
        self.vote_of(OTHER, granted);
    }

    /// The same of any voter.
    pub fn vote_of(&mut self, from: BrokerId, granted: bool) {
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
        self.step(Input::Response { from, response: Some(response) });
    }

    /// Who was asked for records leads not, and says who does in which epoch, and where that one listens.
    pub fn says_who_leads(&mut self, from: BrokerId, leader: BrokerId, epoch: LeaderEpoch) {
        let error_code = ErrorCode::NotLeaderOrFollower.code();
        let mut data = fetch_response::PartitionData { error_code, ..Default::default() };
        data.current_leader.leader_id = leader.value();
        data.current_leader.leader_epoch = epoch.value();
        let topic = FetchableTopicResponse { partitions: vec![data], ..Default::default() };
        let node = fetch_response::NodeEndpoint {
            node_id: leader.value(),
            host: "node".into(),
            port: leader.value(),
            ..Default::default()
        };
        let response = FetchResponse { responses: vec![topic], node_endpoints: vec![node], ..Default::default() };
        self.step(Input::Response { from, response: Some(Response::Fetch(response)) });
    }

    /// The leader answers with records.
    pub fn records(&mut self, records: Bytes, high_watermark: i64) {
        let mut data = fetch_response::PartitionData { high_watermark, records: Some(records), ..Default::default() };
        data.current_leader.leader_id = OTHER.value();
        data.current_leader.leader_epoch = self.quorum.epoch().value();
        let topic = FetchableTopicResponse { partitions: vec![data], ..Default::default() };
        let response = Response::Fetch(FetchResponse { responses: vec![topic], ..Default::default() });
        self.step(Input::Response { from: OTHER, response: Some(response) });
    }

    /// Somebody wants a replica to vote.
    pub fn ask_to_add(&mut self, replica: BrokerId) {
        let port = replica.value() as u16;
        let listener = add_raft_voter_request::Listener { name: "CONTROLLER".into(), port, ..Default::default() };
        let request = AddRaftVoterRequest {
            cluster_id: Some("cluster".into()),
            voter_id: replica.value(),
            voter_directory_id: directory(replica),
            listeners: vec![listener],
            ..Default::default()
        };
        self.step(Input::Request {
            id: RequestId(9),
            origin: Origin::here(1),
            request: Request::AddRaftVoter(request),
        });
    }

    /// A replica that shall vote answers which versions of `kraft.version` it runs, if any.
    pub fn says_it_runs(&mut self, replica: BrokerId, range: Option<(i16, i16)>) {
        let feature = |(min_version, max_version)| SupportedFeatureKey {
            name: "kraft.version".into(),
            min_version,
            max_version,
            ..Default::default()
        };
        let supported_features = range.map(feature).into_iter().collect();
        let response = Response::ApiVersions(ApiVersionsResponse { supported_features, ..Default::default() });
        self.step(Input::Response { from: replica, response: Some(response) });
    }

    pub fn ask(&mut self, version: i16, request: Request) -> Reply {
        self.ask_on("", version, request)
    }

    /// The same on a listener of this node.
    pub fn ask_on(&mut self, listener: &str, version: i16, request: Request) -> Reply {
        let origin = Origin { version, listener: listener.into() };
        self.step(Input::Request { id: RequestId(1), origin, request });
        self.replies.pop().expect("an answer")
    }

    /// The votes that were asked for, each with whether it is only asked whether it would be given.
    pub fn ballots(&self) -> Vec<(BrokerId, bool)> {
        let ballot = |(to, request): &(BrokerId, Outgoing)| match request {
            Outgoing::Vote(request) => Some((*to, request.topics[0].partitions[0].pre_vote)),
            _ => None,
        };
        self.sent.iter().filter_map(ballot).collect()
    }
}

pub fn fetch(replica: BrokerId, offset: i64, last_epoch: i32, epoch: i32) -> FetchRequest {
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

pub fn fetched(reply: Reply) -> FetchResponse {
    match reply {
        Reply::Fetch(response) => response,
        other => panic!("no answer to a fetch, but {other:?}"),
    }
}

pub fn ballot(epoch: i32, last_epoch: i32, pre_vote: bool) -> VoteRequest {
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

pub fn verdict(reply: Reply) -> (ErrorCode, bool) {
    match reply {
        Reply::Vote(response) => {
            let data = &response.topics[0].partitions[0];
            (ErrorCode::from(data.error_code), data.vote_granted)
        }
        other => panic!("no answer to a vote, but {other:?}"),
    }
}

pub fn piece(position: i64, id: SnapshotId, epoch: i32) -> Request {
    let snapshot_id = SnapshotIdField { end_offset: id.offset.value(), epoch: id.epoch.value(), ..Default::default() };
    let partition = PartitionSnapshot { current_leader_epoch: epoch, snapshot_id, position, ..Default::default() };
    let topic = TopicSnapshot { name: "__cluster_metadata".into(), partitions: vec![partition], ..Default::default() };
    Request::FetchSnapshot(FetchSnapshotRequest { max_bytes: 50, topics: vec![topic], ..Default::default() })
}

pub fn error_of_piece(reply: &Reply) -> ErrorCode {
    match reply {
        Reply::FetchSnapshot(response, _) => ErrorCode::from(response.topics[0].partitions[0].error_code),
        other => panic!("no answer to a fetch of a snapshot, but {other:?}"),
    }
}

/// A voter says that it leads an epoch.
pub fn begins(leader: BrokerId, epoch: i32) -> Request {
    let partition = begin_quorum_epoch_request::PartitionData {
        leader_id: leader.value(),
        leader_epoch: epoch,
        ..Default::default()
    };
    let topic = begin_quorum_epoch_request::TopicData {
        topic_name: "__cluster_metadata".into(),
        partitions: vec![partition],
        ..Default::default()
    };
    Request::BeginQuorumEpoch(BeginQuorumEpochRequest { topics: vec![topic], voter_id: -1, ..Default::default() })
}

/// A voter says that it leads an epoch no more.
pub fn ends(leader: BrokerId, epoch: i32) -> Request {
    let partition = end_quorum_epoch_request::PartitionData {
        leader_id: leader.value(),
        leader_epoch: epoch,
        ..Default::default()
    };
    let topic = end_quorum_epoch_request::TopicData {
        topic_name: "__cluster_metadata".into(),
        partitions: vec![partition],
        ..Default::default()
    };
    Request::EndQuorumEpoch(EndQuorumEpochRequest { topics: vec![topic], ..Default::default() })
}
