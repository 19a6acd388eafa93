//! A driver of one quorum over a disk that forgets: every write is volatile until its token is given back, and a crash loses some of
//! what is volatile. It checks the contract of tokens as it goes.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use gregor_raft::{
    Batch, Config, ControlRecord, Effect, Effects, ElectionState, Endpoint, Input, LogView, Now, OffsetAndEpoch,
    Origin, Quorum, ReplicaKey, Reply, Request, RequestId, Rng, SnapshotId, Token, Voter, VoterHistory, VoterSet,
};
use gregor_types::{BrokerId, LeaderEpoch, Offset, Timestamp, Uuid};

pub const MILLISECOND: u64 = 1_000_000;

/// A small generator; the same seed gives the same run.
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Rng for Dice {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 29)
    }
}

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

/// One record of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub epoch: LeaderEpoch,
    pub control: Option<ControlRecord>,
}

/// The log in memory, and how much of it is on the disk.
#[derive(Debug, Clone, Default)]
pub struct Log {
    pub records: Vec<Record>,
    pub durable: usize,
    pub snapshot: Option<(SnapshotId, u64)>,
}

impl LogView for Log {
    fn end(&self) -> OffsetAndEpoch {
        let epoch = self.records.last().map_or(LeaderEpoch(0), |record| record.epoch);
        OffsetAndEpoch::new(Offset(self.records.len() as i64), epoch)
    }
    fn start(&self) -> Offset {
        Offset::ZERO
    }
    fn end_of_epoch(&self, epoch: LeaderEpoch) -> OffsetAndEpoch {
        let end = self.records.partition_point(|record| record.epoch <= epoch);
        let epoch = end.checked_sub(1).map_or(LeaderEpoch(0), |last| self.records[last].epoch);
        OffsetAndEpoch::new(Offset(end as i64), epoch)
    }
    fn latest_snapshot(&self) -> Option<SnapshotId> {
        self.snapshot.map(|(id, _)| id)
    }
    fn earliest_snapshot(&self) -> Option<SnapshotId> {
        self.latest_snapshot()
    }
    fn snapshot_size(&self, id: SnapshotId) -> Option<u64> {
        self.snapshot.filter(|(snapshot, _)| *snapshot == id).map(|(_, size)| size)
    }
}

enum Write {
    Election(ElectionState),
    Log(usize),
}

/// A node with its disk.
pub struct Node {
    pub quorum: Quorum,
    pub log: Log,
    pub election: ElectionState,
    pub now: Now,
    pub dice: Dice,
    pub replies: Vec<(RequestId, Reply)>,
    /// What was announced as committed, by anybody, ever.
    pub committed: Vec<Record>,
    pub effects: Effects,
    dynamic: bool,
    writes: VecDeque<(Token, Write)>,
    appended: VecDeque<Token>,
    held: Vec<(Token, RequestId, Reply)>,
    durable_tokens: BTreeSet<Token>,
}

pub fn local_voter() -> Voter {
    Voter {
        key: ReplicaKey::new(BrokerId(1), Uuid(0x1234_0000_0000_0000_0000_0000_0000_0001)),
        endpoints: vec![Endpoint { name: "CONTROLLER".into(), host: "localhost".into(), port: 9093 }],
        kraft_versions: (0, 1),
    }
}

pub fn config() -> Config {
    Config {
        cluster_id: "cluster".into(),
        local: local_voter(),
        election_timeout: 1_000 * MILLISECOND,
        fetch_timeout: 2_000 * MILLISECOND,
        election_backoff_max: 1_000 * MILLISECOND,
        retry_backoff: 20 * MILLISECOND,
        fetch_bytes: 1 << 20,
        snapshot_piece_bytes: 1_000,
        request_timeout: 2_000 * MILLISECOND,
        bootstrap_servers: 0,
        auto_join: false,
    }
}

/// The voters as they are known before the log is read.
pub fn first_history(dynamic: bool) -> VoterHistory {
    if dynamic {
        let mut history = VoterHistory::default();
        let version = gregor_state_records::control::KRaftVersionRecord { k_raft_version: 1, ..Default::default() };
        let voters = (&VoterSet::new([local_voter()])).into();
        history.load_snapshot(
            SnapshotId::BOOTSTRAP,
            &[ControlRecord::KRaftVersion(version), ControlRecord::Voters(voters)],
        );
        return history;
    }
    let mut voter = local_voter();
    voter.key.directory = None;
    VoterHistory::new(VoterSet::new([voter]))
}

impl Node {
    pub fn new(dynamic: bool, seed: u64) -> Self {
        Self::restart(dynamic, seed, Log::default(), ElectionState::INITIAL)
    }

    fn restart(dynamic: bool, seed: u64, log: Log, election: ElectionState) -> Self {
        let mut history = first_history(dynamic);
        for (offset, record) in log.records.iter().enumerate() {
            if let Some(control) = &record.control {
                history.replay(Offset(offset as i64), control);
            }
        }
        let quorum = Quorum::new(config(), election, history, &log).expect("a valid start");
        let now = Now { monotonic: 0, wall: Timestamp(1_700_000_000_000) };
        let mut node = Self {
            quorum,
            log,
            election,
            now,
            dice: Dice(seed),
            replies: Vec::new(),
            committed: Vec::new(),
            effects: Effects::default(),
            dynamic,
            writes: VecDeque::new(),
            appended: VecDeque::new(),
            held: Vec::new(),
            durable_tokens: BTreeSet::new(),
        };
        node.step(Input::Start);
        node
    }

    pub fn step(&mut self, input: Input) {
        let mut effects = std::mem::take(&mut self.effects);
        self.quorum.step(input, &self.log, self.now, &mut self.dice, &mut effects);
        while let Some(effect) = effects.pop() {
            self.carry_out(effect);
        }
        self.effects = effects;
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Persist { token, state } => self.writes.push_back((token, Write::Election(state))),
            Effect::Append { token, base, epoch, batch, .. } => {
                assert_eq!(base.value() as usize, self.log.records.len(), "an append lands at the end");
                match batch {
                    Batch::Control(records) => {
                        self.log
                            .records
                            .extend(records.into_iter().map(|control| Record { epoch, control: Some(control) }));
                    }
                    Batch::Data(records) => {
                        self.log.records.extend(records.into_iter().map(|_| Record { epoch, control: None }));
                    }
                }
                self.appended.push_back(token);
            }
            Effect::Flush { token, end } => self.writes.push_back((token, Write::Log(end.value() as usize))),
            Effect::Reply { after: Some(token), to, reply, .. } if !self.durable_tokens.contains(&token) => {
                self.held.push((token, to, reply));
            }
            Effect::Reply { to, reply, .. } => self.replies.push((to, reply)),
            Effect::HighWatermark(end) => self.commit(end.value() as usize),
            Effect::Timer { .. } | Effect::Role(_) | Effect::Refused { .. } => {}
            Effect::Send { .. }
            | Effect::AppendFetched { .. }
            | Effect::Truncate { .. }
            | Effect::SnapshotPiece { .. }
            | Effect::CompleteSnapshot { .. }
            | Effect::InstallSnapshot { .. }
            | Effect::Upgraded { .. } => {
                unreachable!("a quorum of one has nobody to ask")
            }
        }
    }

    fn commit(&mut self, end: usize) {
        assert!(end <= self.log.durable, "the high watermark {end} passed what is on disk: {}", self.log.durable);
        assert!(end >= self.committed.len(), "the high watermark went back to {end} from {}", self.committed.len());
        assert_eq!(self.committed[..], self.log.records[..self.committed.len()], "a committed record changed");
        self.committed = self.log.records[..end].to_vec();
    }

    /// Completes the oldest write that is under way. Returns whether there was one.
    pub fn complete_write(&mut self) -> bool {
        let Some((token, write)) = self.writes.pop_front() else { return false };
        match write {
            Write::Election(state) => self.election = state,
            Write::Log(end) => self.log.durable = self.log.durable.max(end),
        }
        self.durable_tokens.insert(token);
        for (waited_for, to, reply) in std::mem::take(&mut self.held) {
            if waited_for == token {
                self.replies.push((to, reply));
            } else {
                self.held.push((waited_for, to, reply));
            }
        }
        self.step(Input::Durable(token));
        true
    }

    pub fn complete_append(&mut self) {
        if let Some(token) = self.appended.pop_front() {
            self.step(Input::Appended(token));
        }
    }

    /// Completes everything that is under way.
    pub fn settle(&mut self) {
        loop {
            self.complete_append();
            if !self.complete_write() && self.appended.is_empty() {
                return;
            }
        }
    }

    pub fn append(&mut self, records: usize) {
        let Some(base) = self.quorum.next_offset() else { return };
        let records = vec![Bytes::from_static(b"record"); records];
        self.step(Input::Append { epoch: self.quorum.epoch(), base, records });
    }

    pub fn request(&mut self, id: u64, version: i16, request: Request) {
        self.step(Input::Request { id: RequestId(id), origin: Origin::here(version), request });
    }

    pub fn pass(&mut self, milliseconds: u64) {
        self.now.monotonic += milliseconds * MILLISECOND;
        self.now.wall = self.now.wall.plus_ms(milliseconds as i64);
        self.step(Input::Tick);
    }

    /// Loses what is not on disk (a part of the log's volatile end may have got there all the same) and starts again.
    pub fn crash(self) -> Self {
        let mut dice = self.dice;
        let volatile = self.log.records.len() - self.log.durable;
        let kept = self.log.durable + dice.below(volatile as u64 + 1) as usize;
        let mut log = self.log;
        log.records.truncate(kept);
        log.durable = kept;
        let seed = dice.next_u64();
        let mut node = Self::restart(self.dynamic, seed, log, self.election);
        assert!(node.log.records.len() >= self.committed.len(), "a committed record was lost");
        node.committed = self.committed;
        node
    }
}
