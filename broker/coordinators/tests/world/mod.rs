//! A shard of the group coordinator with a log in memory, a clock that is set by hand, and words to ask it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;

use bytes::Bytes;
use gregor_coordinators::{
    Answer, Environment, Journal, LoggedRecord, Moment, Record, Shard, Token,
    group::{ClientInfo, GroupConfig, GroupCoordinator, GroupRequest, GroupResponse},
};
use gregor_messages::{
    ConsumerProtocolSubscription, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, OffsetCommitRequest, OffsetCommitResponse, SyncGroupRequest, SyncGroupResponse,
    join_group_request::JoinGroupRequestProtocol,
    leave_group_request::MemberIdentity,
    offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
    offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
    offset_fetch_response::OffsetFetchResponseGroup,
    sync_group_request::SyncGroupRequestAssignment,
};
use gregor_types::{ErrorCode, KString, Offset, Timestamp};
use gregor_wire::Message;

/// A log in memory that can be told to fail.
#[derive(Debug, Default)]
pub struct Log {
    pub records: Vec<Record>,
    pub fails_with: Option<ErrorCode>,
}

impl Journal for Log {
    fn append(&mut self, records: &[Record], _now: Timestamp) -> Result<Offset, ErrorCode> {
        if let Some(error) = self.fails_with {
            return Err(error);
        }
        self.records.extend_from_slice(records);
        Ok(Offset(self.records.len() as i64))
    }
}

pub struct World {
    pub shard: Shard<GroupCoordinator>,
    pub log: Log,
    /// Whether what is appended is committed at once.
    pub commits_at_once: bool,
    config: GroupConfig,
    now_ms: u64,
    random: u128,
    next_token: u64,
    answers: BTreeMap<Token, GroupResponse>,
}

/// A member as a client plays it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Player {
    pub id: KString,
    pub instance: Option<KString>,
    pub generation: i32,
    pub protocols: Vec<(&'static str, Bytes)>,
}

pub const GROUP: &str = "readers";

impl World {
    pub fn new() -> Self {
        Self::with(GroupConfig::default())
    }

    pub fn with(config: GroupConfig) -> Self {
        let mut world = Self {
            shard: Shard::new(GroupCoordinator::new(config)),
            log: Log::default(),
            commits_at_once: true,
            config,
            now_ms: 1_000_000,
            random: 0,
            next_token: 0,
            answers: BTreeMap::new(),
        };
        world.activate();
        world
    }

    /// Another coordinator that loads this one's records.
    pub fn reloaded(&self) -> Self {
        let mut world = Self::with(self.config);
        world.shard = Shard::new(GroupCoordinator::new(self.config));
        world.now_ms = self.now_ms;
        world.random = self.random + (1 << 64);
        for (at, record) in self.log.records.iter().enumerate() {
            let offset = Offset(at as i64);
            let record = LoggedRecord { offset, transaction: None, record: record.clone() };
            world.shard.replay(record).expect("its own records");
        }
        world.log.records.clone_from(&self.log.records);
        world.activate();
        world
    }

    /// A coordinator that loads what `load` gives it.
    pub fn loading(load: impl FnOnce(&mut Shard<GroupCoordinator>)) -> Self {
        let mut world = Self::new();
        world.shard = Shard::new(GroupCoordinator::new(world.config));
        load(&mut world.shard);
        world.activate();
        world
    }

    fn activate(&mut self) {
        let end = Offset(self.log.records.len() as i64);
        self.step(|shard, environment| shard.activate(end, end, environment));
    }

    fn step(&mut self, step: impl FnOnce(&mut Shard<GroupCoordinator>, Environment<'_>) -> Vec<Answer<GroupResponse>>) {
        let random = &mut self.random;
        let mut next = || {
            *random += 1;
            *random
        };
        let environment = Environment {
            now: Moment(self.now_ms),
            wall_clock: Timestamp(1_700_000_000_000 + self.now_ms as i64),
            random: &mut next,
            journal: &mut self.log,
        };
        let answers = step(&mut self.shard, environment);
        self.keep(answers);
        if self.commits_at_once {
            self.commit_log();
        }
    }

    fn keep(&mut self, answers: Vec<Answer<GroupResponse>>) {
        for answer in answers {
            let twice = self.answers.insert(answer.token, answer.response);
            assert_eq!(twice, None, "request {:?} was answered twice", answer.token);
        }
    }

    /// Everything appended so far is committed.
    pub fn commit_log(&mut self) {
        let answers = self.shard.committed(Offset(self.log.records.len() as i64));
        self.keep(answers);
    }

    pub fn ask(&mut self, request: GroupRequest) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.step(|shard, environment| shard.handle(request, token, environment).expect("an active shard"));
        token
    }

    /// The answer to a request, which must be there.
    pub fn answer<T: TryFrom<GroupResponse>>(&mut self, token: Token) -> T {
        self.try_answer(token).unwrap_or_else(|| panic!("request {token:?} has no answer yet"))
    }

    pub fn try_answer<T: TryFrom<GroupResponse>>(&mut self, token: Token) -> Option<T> {
        let response = self.answers.remove(&token)?;
        Some(T::try_from(response).unwrap_or_else(|_| panic!("the answer to {token:?} is of another kind")))
    }

    /// Lets time pass, timer by timer.
    pub fn pass_ms(&mut self, milliseconds: u64) {
        let until = self.now_ms + milliseconds;
        while let Some(next) = self.shard.next_time().filter(|next| next.0 <= until) {
            self.now_ms = self.now_ms.max(next.0);
            self.step(Shard::on_time);
        }
        self.now_ms = until;
    }

    pub fn state(&self) -> &'static str {
        self.shard.machine().group(GROUP).map_or("none", |group| group.state().name())
    }

    pub fn member_count(&self) -> usize {
        self.shard.machine().group(GROUP).map_or(0, gregor_coordinators::group::ClassicGroup::member_count)
    }

    pub fn send_join(&mut self, player: &Player, version: i16) -> Token {
        let protocols = player.protocols.iter().map(|(name, metadata)| JoinGroupRequestProtocol {
            name: (*name).into(),
            metadata: metadata.clone(),
            ..Default::default()
        });
        let request = JoinGroupRequest {
            group_id: GROUP.into(),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 60_000,
            member_id: player.id.clone(),
            group_instance_id: player.instance.clone(),
            protocol_type: "consumer".into(),
            protocols: protocols.collect(),
            ..Default::default()
        };
        let client = ClientInfo { client_id: "client".into(), client_host: "/127.0.0.1".into() };
        self.ask(GroupRequest::Join { request, version, client })
    }

    /// Joins as a new client does: it is given an id, and comes back with it. The answer is still to come.
    pub fn join_new(&mut self, player: &mut Player) -> Token {
        let token = self.send_join(player, 9);
        if player.instance.is_some() {
            return token;
        }
        let first: JoinGroupResponse = self.answer(token);
        assert_eq!(ErrorCode::from(first.error_code), ErrorCode::MemberIdRequired);
        player.id = first.member_id;
        self.send_join(player, 9)
    }

    pub fn send_sync(&mut self, player: &Player, assignments: &[(KString, &str)]) -> Token {
        let assignments = assignments.iter().map(|(member, assignment)| SyncGroupRequestAssignment {
            member_id: member.clone(),
            assignment: Bytes::copy_from_slice(assignment.as_bytes()),
            ..Default::default()
        });
        self.ask(GroupRequest::Sync(SyncGroupRequest {
            group_id: GROUP.into(),
            generation_id: player.generation,
            member_id: player.id.clone(),
            group_instance_id: player.instance.clone(),
            assignments: assignments.collect(),
            ..Default::default()
        }))
    }

    pub fn heartbeat(&mut self, player: &Player) -> ErrorCode {
        let token = self.ask(GroupRequest::Heartbeat(HeartbeatRequest {
            group_id: GROUP.into(),
            generation_id: player.generation,
            member_id: player.id.clone(),
            group_instance_id: player.instance.clone(),
            ..Default::default()
        }));
        self.answer::<gregor_messages::HeartbeatResponse>(token).error_code.into()
    }

    pub fn leave(&mut self, player: &Player) -> ErrorCode {
        let identity = MemberIdentity {
            member_id: player.id.clone(),
            group_instance_id: player.instance.clone(),
            ..Default::default()
        };
        let request = LeaveGroupRequest { group_id: GROUP.into(), members: vec![identity], ..Default::default() };
        let token = self.ask(GroupRequest::Leave { request, version: 5 });
        let left: LeaveGroupResponse = self.answer(token);
        left.members.first().map_or(left.error_code, |member| member.error_code).into()
    }

    pub fn send_commit(&mut self, player: &Player, topic: &str, offset: i64) -> Token {
        let row = OffsetCommitRequestPartition {
            partition_index: 0,
            committed_offset: offset,
            committed_metadata: Some("note".into()),
            ..Default::default()
        };
        let topic = OffsetCommitRequestTopic { name: topic.into(), partitions: vec![row], ..Default::default() };
        self.ask(GroupRequest::OffsetCommit(OffsetCommitRequest {
            group_id: GROUP.into(),
            generation_id_or_member_epoch: player.generation,
            member_id: player.id.clone(),
            group_instance_id: player.instance.clone(),
            topics: vec![topic],
            ..Default::default()
        }))
    }

    pub fn commit(&mut self, player: &Player, topic: &str, offset: i64) -> ErrorCode {
        let token = self.send_commit(player, topic, offset);
        self.answer::<OffsetCommitResponse>(token).topics[0].partitions[0].error_code.into()
    }

    pub fn send_fetch(&mut self, topic: &str) -> Token {
        let topic = OffsetFetchRequestTopics { name: topic.into(), partition_indexes: vec![0], ..Default::default() };
        let request =
            OffsetFetchRequestGroup { group_id: GROUP.into(), topics: Some(vec![topic]), ..Default::default() };
        self.ask(GroupRequest::OffsetFetch { request, require_stable: false })
    }

    /// What a reader is told that asks for offsets that no open transaction may move.
    pub fn fetch_stable(&mut self, topic: &str) -> (i64, ErrorCode) {
        let topic = OffsetFetchRequestTopics { name: topic.into(), partition_indexes: vec![0], ..Default::default() };
        let request =
            OffsetFetchRequestGroup { group_id: GROUP.into(), topics: Some(vec![topic]), ..Default::default() };
        let token = self.ask(GroupRequest::OffsetFetch { request, require_stable: true });
        let row = self.answer::<OffsetFetchResponseGroup>(token).topics[0].partitions[0].clone();
        (row.committed_offset, row.error_code.into())
    }

    pub fn fetch(&mut self, topic: &str) -> i64 {
        let token = self.send_fetch(topic);
        self.answer::<OffsetFetchResponseGroup>(token).topics[0].partitions[0].committed_offset
    }

    /// Takes the answer of a join: the player learns its id and generation.
    pub fn joined(&mut self, player: &mut Player, token: Token) -> JoinGroupResponse {
        let joined: JoinGroupResponse = self.answer(token);
        assert_eq!(ErrorCode::from(joined.error_code), ErrorCode::None, "{joined:?}");
        player.id = joined.member_id.clone();
        player.generation = joined.generation_id;
        joined
    }

    /// A stable group of so many new members, the leader first; each is assigned its own id.
    pub fn stable_group(&mut self, players: Vec<Player>) -> Vec<Player> {
        let mut players = players;
        let tokens: Vec<Token> = players.iter_mut().map(|player| self.join_new(player)).collect();
        self.pass_ms(10_000);
        self.finish_rebalance(&mut players, &tokens);
        players
    }

    /// Everybody's join is answered; the leader assigns each member its own id, and everybody syncs.
    pub fn finish_rebalance(&mut self, players: &mut [Player], tokens: &[Token]) {
        let mut leader = None;
        let mut assignments = Vec::new();
        for (player, token) in players.iter_mut().zip(tokens) {
            let joined = self.joined(player, *token);
            if joined.leader == joined.member_id {
                leader = Some(player.id.clone());
                assignments = joined.members.iter().map(|member| member.member_id.clone()).collect();
            }
        }
        let leader = leader.expect("one of them leads");
        players.sort_by_key(|player| player.id != leader);
        let assignments: Vec<_> = assignments.iter().map(|id| (id.clone(), id.as_str())).collect();
        let followers: Vec<Token> = players[1..].iter().map(|player| self.send_sync(player, &[])).collect();
        let token = self.send_sync(&players[0], &assignments);
        for (player, token) in players.iter().zip(std::iter::once(token).chain(followers)) {
            let synced: SyncGroupResponse = self.answer(token);
            assert_eq!(ErrorCode::from(synced.error_code), ErrorCode::None);
            assert_eq!(synced.assignment, player.id.as_bytes());
        }
        assert_eq!(self.state(), "Stable");
    }
}

/// A consumer of one topic with the range assignor.
pub fn consumer() -> Player {
    reads(&["orders"])
}

pub fn reads(topics: &[&str]) -> Player {
    let topics = topics.iter().map(|topic| KString::from(*topic)).collect();
    let subscription = ConsumerProtocolSubscription { topics, ..Default::default() };
    let mut metadata = vec![0, 0];
    metadata.extend_from_slice(&subscription.to_bytes(0).expect("names that fit"));
    Player { protocols: vec![("range", metadata.into())], generation: -1, ..Player::default() }
}

pub fn named(instance: &str) -> Player {
    Player { instance: Some(instance.into()), ..consumer() }
}

/// Nobody: commits from outside the group.
pub fn outsider() -> Player {
    Player { generation: -1, ..Player::default() }
}
