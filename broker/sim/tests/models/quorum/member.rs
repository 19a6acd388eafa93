//! One node of a model: its machine, its log, its disk, and what it has asked and been asked.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

use gregor_messages::{AddRaftVoterRequest, RemoveRaftVoterRequest, add_raft_voter_request::Listener};
use gregor_raft::{
    Config, ControlRecord, ElectionState, Endpoint, Nanos, Quorum, ReplicaKey, Reply, Request, RequestId, SnapshotId,
    Token, Voter, VoterHistory, VoterSet,
};
use gregor_state_records::control::KRaftVersionRecord;
use gregor_types::{BrokerId, Uuid};

use super::{
    NODES, PATIENCE, PAUSE,
    log::Log,
    network::{Ballot, Message, Route},
};

/// One node. Two with one digest behave alike from now on.
#[derive(Clone)]
pub struct Member {
    pub quorum: Quorum,
    pub log: Log,
    /// What its disk remembers of elections.
    pub election: ElectionState,
    pub writes: VecDeque<(Token, Write)>,
    /// Answers that wait for a write.
    pub held: Vec<(Token, RequestId, Reply)>,
    /// What it was asked and has not answered.
    pub pending: BTreeMap<RequestId, (Route, Option<Ballot>)>,
    /// Whom it has asked something.
    pub asked: BTreeMap<BrokerId, u8>,
    pub numbers: [u8; 3],
    /// No part of the state: how long it was ago is, where it matters.
    pub clock: Nanos,
    pub digest: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Write {
    Election(ElectionState),
    /// The log up to here.
    Log(i64),
}

impl Member {
    pub fn new(id: BrokerId, first_voters: usize) -> Self {
        let log = Log::default();
        Self {
            quorum: quorum(id, first_voters, ElectionState::INITIAL, &log),
            log,
            election: ElectionState::INITIAL,
            writes: VecDeque::new(),
            held: Vec::new(),
            pending: BTreeMap::new(),
            asked: BTreeMap::new(),
            numbers: [0; 3],
            clock: 0,
            digest: 0,
        }
    }

    /// Tokens count up for ever, so of an answer that is held the place of the write counts that it waits for.
    pub fn seal(&mut self) {
        let mut hasher = DefaultHasher::new();
        self.quorum.hash(&mut hasher);
        self.log.hash(&mut hasher);
        self.election.hash(&mut hasher);
        for (token, write) in &self.writes {
            write.hash(&mut hasher);
            let held = self.held.iter().filter(|(waited_for, ..)| waited_for == token);
            held.for_each(|(_, to, reply)| (to, Message::answer(reply.clone(), true)).hash(&mut hasher));
        }
        self.pending.hash(&mut hasher);
        self.asked.hash(&mut hasher);
        self.numbers.hash(&mut hasher);
        self.digest = hasher.finish().max(1);
    }
}

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Hash for Member {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.digest.hash(hasher);
    }
}

pub fn index(id: BrokerId) -> usize {
    id.value() as usize - 1
}

pub fn others(id: BrokerId) -> [BrokerId; 2] {
    let next = |by: usize| NODES[(index(id) + by) % NODES.len()];
    [next(1), next(2)]
}

/// A node as a voter.
fn voter(id: BrokerId) -> Voter {
    let endpoint = Endpoint { name: "CONTROLLER".into(), host: "node".into(), port: id.value() as u16 };
    let key = ReplicaKey::new(id, Uuid(0x1000 + u128::from(id.value().unsigned_abs())));
    Voter { key, endpoints: vec![endpoint], kraft_versions: (0, 1) }
}

pub fn quorum(id: BrokerId, first_voters: usize, election: ElectionState, log: &Log) -> Quorum {
    let config = Config {
        cluster_id: "cluster".into(),
        local: voter(id),
        election_timeout: PATIENCE,
        fetch_timeout: PATIENCE,
        election_backoff_max: PATIENCE,
        retry_backoff: PAUSE,
        fetch_bytes: 1 << 20,
        snapshot_piece_bytes: 1 << 20,
        request_timeout: PATIENCE,
        bootstrap_servers: 0,
        auto_join: false,
    };
    let version = KRaftVersionRecord { k_raft_version: 1, ..Default::default() };
    let voters = VoterSet::new(NODES[..first_voters].iter().map(|id| voter(*id)));
    let formatted = [ControlRecord::KRaftVersion(version), ControlRecord::Voters((&voters).into())];
    let mut history = VoterHistory::default();
    history.load_snapshot(SnapshotId::BOOTSTRAP, &formatted);
    log.replay(&mut history);
    Quorum::new(config, election, history, log).expect("a node that can start")
}

pub fn add_voter(node: BrokerId) -> Request {
    let Voter { key, endpoints, .. } = voter(node);
    let listener = |endpoint: Endpoint| Listener {
        name: endpoint.name,
        host: endpoint.host,
        port: endpoint.port,
        ..Default::default()
    };
    Request::AddRaftVoter(AddRaftVoterRequest {
        cluster_id: Some("cluster".into()),
        voter_id: node.value(),
        voter_directory_id: key.directory_or_zero(),
        listeners: endpoints.into_iter().map(listener).collect(),
        ..Default::default()
    })
}

pub fn remove_voter(node: BrokerId) -> Request {
    Request::RemoveRaftVoter(RemoveRaftVoterRequest {
        cluster_id: Some("cluster".into()),
        voter_id: node.value(),
        voter_directory_id: voter(node).key.directory_or_zero(),
        ..Default::default()
    })
}
