//! Several quorums in one thread: a network that drops, delays and cuts, disks that forget what was not synced, and what must hold all the
//! same, checked as it runs.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]
#![allow(dead_code, reason = "each test takes what it needs")]

mod checks;
mod log;
mod network;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
};

use bytes::Bytes;
use gregor_messages::{AddRaftVoterRequest, RemoveRaftVoterRequest, add_raft_voter_request::Listener as AddedListener};
use gregor_raft::{
    Config, ControlRecord, Effect, Effects, ElectionState, Endpoint, Input, Now, Origin, Quorum, ReplicaKey, Reply,
    Request, RequestId, Rng, Role, RoleChange, SnapshotId, Token, UpgradeError, Voter, VoterHistory, VoterSet,
};
use gregor_state_records::control::KRaftVersionRecord;
use gregor_types::{BrokerId, LeaderEpoch, Offset, Timestamp, Uuid};
use log::{Log, Stored};
use network::Event;

pub const MS: u64 = 1_000_000;

#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Rng for Dice {
    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

enum Write {
    Election(ElectionState),
    /// The log up to here: what it had when the sync began, and what was not cut off since.
    Log(i64),
    /// A snapshot that was received.
    Snapshot(SnapshotId),
}

struct Member {
    quorum: Quorum,
    log: Log,
    election: ElectionState,
    effects: Effects,
    writes: VecDeque<(Token, Write)>,
    volatile: BTreeSet<Token>,
    held: Vec<(Token, RequestId, Reply)>,
    /// The requests under way: the numbers that their answers carry, and whom they are for.
    asked: BTreeMap<u64, BrokerId>,
    timer: Option<u64>,
    /// When its disk has done all that it was asked.
    busy_until: u64,
}

impl Member {
    /// A sync under way says nothing of what was cut off since.
    fn forget_syncs_behind(&mut self, end: Offset) {
        for (_, write) in &mut self.writes {
            if let Write::Log(synced) = write {
                *synced = end.value().min(*synced);
            }
        }
    }
}

/// The world.
pub struct Cluster {
    pub dice: Dice,
    now: u64,
    /// The first voters, and all nodes that there are.
    voters: Vec<Voter>,
    nodes: Vec<BrokerId>,
    dynamic: bool,
    /// How often a node got a new disk.
    disk_changes: BTreeMap<BrokerId, u128>,
    pub auto_join: bool,
    /// Nodes that listen at another port than first.
    pub moved: BTreeMap<BrokerId, u16>,
    /// What admins were answered.
    pub replies: Vec<(u64, Reply)>,
    members: BTreeMap<BrokerId, Member>,
    /// Counts starts, so that what was meant for an earlier life of a node is not taken by a later one.
    lives: BTreeMap<BrokerId, u64>,
    disks: BTreeMap<BrokerId, (Log, ElectionState)>,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    details: BTreeMap<u64, Event>,
    next_number: u64,
    origins: BTreeMap<u64, (BrokerId, u64)>,
    cut: BTreeSet<(BrokerId, BrokerId)>,
    /// How many of a hundred messages are lost, and how late the others may be.
    pub loss_percent: u64,
    pub delay_ms: u64,
    /// How long a write takes at most.
    pub disk_ms: u64,
    leaders: BTreeMap<LeaderEpoch, BrokerId>,
    committed: BTreeMap<i64, Stored>,
    /// The sets of voters that were committed, by offset.
    pub voter_sets: BTreeMap<i64, VoterSet>,
    pub truncations: usize,
    /// How many snapshots took the place of a log.
    pub transfers: usize,
    /// How many pieces of snapshots came.
    pub pieces: usize,
    /// Whether a node dies where it should cut its log for a snapshot.
    pub crash_at_install: bool,
    upgraded: Option<Result<(), UpgradeError>>,
}

impl Cluster {
    pub fn new(size: i32, dynamic: bool, seed: u64) -> Self {
        Self::with_observers(size, 0, dynamic, seed)
    }

    /// Nodes of which the first `size` vote.
    pub fn with_observers(size: i32, observers: i32, dynamic: bool, seed: u64) -> Self {
        let voters = (1..=size).map(|id| Voter {
            key: ReplicaKey { id: BrokerId(id), directory: dynamic.then_some(directory(BrokerId(id))) },
            endpoints: endpoints(BrokerId(id)),
            kraft_versions: (0, 1),
        });
        let mut cluster = Self {
            dice: Dice(seed),
            now: 0,
            voters: voters.collect(),
            nodes: (1..=size + observers).map(BrokerId).collect(),
            dynamic,
            disk_changes: BTreeMap::new(),
            auto_join: false,
            moved: BTreeMap::new(),
            replies: Vec::new(),
            members: BTreeMap::new(),
            lives: BTreeMap::new(),
            disks: BTreeMap::new(),
            events: BinaryHeap::new(),
            details: BTreeMap::new(),
            next_number: 0,
            origins: BTreeMap::new(),
            cut: BTreeSet::new(),
            loss_percent: 0,
            delay_ms: 5,
            disk_ms: 10,
            leaders: BTreeMap::new(),
            committed: BTreeMap::new(),
            voter_sets: BTreeMap::new(),
            truncations: 0,
            transfers: 0,
            pieces: 0,
            crash_at_install: false,
            upgraded: None,
        };
        for id in cluster.ids() {
            cluster.start(id);
        }
        cluster
    }

    pub fn ids(&self) -> Vec<BrokerId> {
        self.nodes.clone()
    }

    pub fn is_up(&self, id: BrokerId) -> bool {
        self.members.contains_key(&id)
    }

    pub fn start(&mut self, id: BrokerId) {
        if self.is_up(id) {
            return;
        }
        let (log, election) = self.disks.remove(&id).unwrap_or((Log::default(), ElectionState::INITIAL));
        let is_first = self.voters.iter().any(|voter| voter.key.id == id) && !self.disk_changes.contains_key(&id);
        let mut history = if self.dynamic && !is_first {
            // Formatted without voters: it learns of them from the log.
            VoterHistory::default()
        } else if self.dynamic {
            let version = KRaftVersionRecord { k_raft_version: 1, ..Default::default() };
            let voters = (&VoterSet::new(self.voters.clone())).into();
            let mut history = VoterHistory::default();
            let records = [ControlRecord::KRaftVersion(version), ControlRecord::Voters(voters)];
            history.load_snapshot(SnapshotId::BOOTSTRAP, &records);
            history
        } else {
            VoterHistory::new(VoterSet::new(self.voters.clone()))
        };
        log.replay(&mut history);
        let local = self.local(id);
        let config = Config {
            cluster_id: "cluster".into(),
            local,
            election_timeout: 1_000 * MS,
            fetch_timeout: 2_000 * MS,
            election_backoff_max: 1_000 * MS,
            retry_backoff: 20 * MS,
            fetch_bytes: 1 << 20,
            snapshot_piece_bytes: 700,
            request_timeout: 2_000 * MS,
            bootstrap_servers: self.nodes.len() as u16,
            auto_join: self.auto_join,
        };
        let quorum = Quorum::new(config, election, history, &log).unwrap();
        let member = Member {
            quorum,
            log,
            election,
            effects: Effects::default(),
            writes: VecDeque::new(),
            volatile: BTreeSet::new(),
            held: Vec::new(),
            asked: BTreeMap::new(),
            timer: None,
            busy_until: 0,
        };
        self.members.insert(id, member);
        *self.lives.entry(id).or_default() += 1;
        self.step(id, Input::Start);
    }

    /// A node as a voter.
    fn local(&self, id: BrokerId) -> Voter {
        let changes = self.disk_changes.get(&id).copied().unwrap_or(0);
        Voter {
            key: ReplicaKey::new(id, Uuid(directory(id).0 + (changes << 64))),
            endpoints: self.moved.get(&id).map_or_else(|| endpoints(id), |port| endpoints(BrokerId(i32::from(*port)))),
            kraft_versions: (0, 1),
        }
    }

    /// The node dies, and comes back with a new disk that has nothing on it.
    pub fn replace_disk(&mut self, id: BrokerId) {
        self.kill(id);
        self.disks.remove(&id);
        *self.disk_changes.entry(id).or_default() += 1;
    }

    /// Whether any node that is up takes this one for a voter.
    pub fn is_known_as_voter(&self, id: BrokerId) -> bool {
        self.members.values().any(|member| member.quorum.history().voters().voter(id).is_some())
    }

    /// An admin asks a node to make another a voter; returns the number of the request.
    pub fn add_voter(&mut self, asked: BrokerId, id: BrokerId) -> u64 {
        let voter = self.local(id);
        let listener = |endpoint: &Endpoint| AddedListener {
            name: endpoint.name.clone(),
            host: endpoint.host.clone(),
            port: endpoint.port,
            ..Default::default()
        };
        self.request(
            asked,
            Request::AddRaftVoter(AddRaftVoterRequest {
                cluster_id: Some("cluster".into()),
                voter_id: id.value(),
                voter_directory_id: voter.key.directory_or_zero(),
                listeners: voter.endpoints.iter().map(listener).collect(),
                ..Default::default()
            }),
        )
    }

    /// An admin asks a node to make another a voter no more.
    pub fn remove_voter(&mut self, asked: BrokerId, key: ReplicaKey) -> u64 {
        self.request(
            asked,
            Request::RemoveRaftVoter(RemoveRaftVoterRequest {
                cluster_id: Some("cluster".into()),
                voter_id: key.id.value(),
                voter_directory_id: key.directory_or_zero(),
                ..Default::default()
            }),
        )
    }

    /// A request of an admin; its answer will be among `replies`.
    pub fn request(&mut self, asked: BrokerId, request: Request) -> u64 {
        self.next_number += 1;
        let number = self.next_number;
        self.step(asked, Input::Request { id: RequestId(number), origin: Origin::here(1), request });
        number
    }

    /// Asks a node to finalize a `kraft.version` in its epoch.
    pub fn upgrade(&mut self, id: BrokerId, version: i16, validate_only: bool) -> Result<(), UpgradeError> {
        let epoch = self.quorum(id).epoch();
        self.step(id, Input::UpgradeKRaftVersion { id: RequestId(0), epoch, version, validate_only });
        self.upgraded.take().expect("it is answered at once")
    }

    /// What a request was answered, if it was.
    pub fn reply_to(&self, number: u64) -> Option<&Reply> {
        self.replies.iter().find(|(answered, _)| *answered == number).map(|(_, reply)| reply)
    }

    /// The key that a node has now.
    pub fn key(&self, id: BrokerId) -> ReplicaKey {
        self.local(id).key
    }

    /// The node dies; of what was not synced, a part at the log's end may be on the disk all the same.
    pub fn kill(&mut self, id: BrokerId) {
        let Some(mut member) = self.members.remove(&id) else { return };
        let volatile = member.log.volatile_batches() as u64;
        let lucky = if self.dice.percent(30) { self.dice.below(volatile + 1) as usize } else { 0 };
        member.log.crash(lucky);
        self.disks.insert(id, (member.log, member.election));
        *self.lives.entry(id).or_default() += 1;
    }

    /// The log and the snapshots of a node that is down are gone, its votes are not.
    pub fn wipe_log(&mut self, id: BrokerId) {
        self.disks.get_mut(&id).expect("a node that is down").0 = Log::default();
    }

    /// Cuts the way from one node to another.
    pub fn cut(&mut self, from: BrokerId, to: BrokerId) {
        self.cut.insert((from, to));
    }

    pub fn isolate(&mut self, id: BrokerId) {
        for other in self.ids() {
            self.cut(id, other);
            self.cut(other, id);
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.loss_percent = 0;
        self.delay_ms = 5;
        self.disk_ms = 10;
    }

    pub fn resign(&mut self, id: BrokerId) {
        self.step(id, Input::Resign);
    }

    pub fn quorum(&self, id: BrokerId) -> &Quorum {
        &self.members[&id].quorum
    }

    /// All that take themselves for leaders.
    pub fn leaders(&self) -> Vec<BrokerId> {
        let leads = |member: &Member| matches!(member.quorum.role(), Role::Leader(_));
        self.members.iter().filter(|(_, member)| leads(member)).map(|(id, _)| *id).collect()
    }

    /// The leader of the newest epoch that is up.
    pub fn leader(&self) -> Option<BrokerId> {
        let leaders = self.members.iter().filter(|(_, member)| matches!(member.quorum.role(), Role::Leader(_)));
        leaders.max_by_key(|(_, member)| member.quorum.epoch()).map(|(id, _)| *id)
    }

    pub fn end(&self, id: BrokerId) -> i64 {
        self.members[&id].log.end_offset()
    }

    pub fn committed_end(&self) -> i64 {
        self.committed.values().map(|batch| batch.end).max().unwrap_or(0)
    }

    pub fn append(&mut self, id: BrokerId) {
        let Some(member) = self.members.get(&id) else { return };
        let Some(base) = member.quorum.next_offset() else { return };
        let epoch = member.quorum.epoch();
        let value = self.dice.next_u64().to_be_bytes();
        let records = vec![Bytes::copy_from_slice(&value); 1 + self.dice.below(3) as usize];
        self.step(id, Input::Append { epoch, base, records });
    }

    /// Makes a snapshot of what a node knows to be committed, and cuts its log up to there.
    pub fn snapshot(&mut self, id: BrokerId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let Some(high_watermark) = member.quorum.high_watermark() else { return };
        let history = member.quorum.history();
        if let Some(snapshot) = member.log.make_snapshot(high_watermark, history, self.committed.values()) {
            self.step(id, Input::SnapshotReady(snapshot));
        }
    }

    /// Cuts a node's log up to its newest snapshot and deletes the others.
    pub fn clean(&mut self, id: BrokerId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.log.clean();
        let start = member.log.start;
        self.step(id, Input::SnapshotReady(start));
    }

    /// Lets time pass.
    pub fn run(&mut self, milliseconds: u64) {
        let until = self.now + milliseconds * MS;
        while let Some(Reverse((at, number))) = self.events.peek().copied() {
            if at > until {
                break;
            }
            self.events.pop();
            self.now = at;
            if let Some(event) = self.details.remove(&number) {
                self.happen(event);
            }
        }
        self.now = until;
    }

    /// Lets time pass until something holds; how long it took, in milliseconds.
    pub fn run_until(&mut self, what: &str, milliseconds: u64, holds: impl Fn(&Self) -> bool) -> u64 {
        let began = self.now;
        while !holds(self) {
            assert!(
                self.now < began + milliseconds * MS,
                "after {milliseconds} ms not yet: {what}\n{}",
                self.picture()
            );
            self.run(1);
        }
        (self.now - began) / MS
    }

    /// Whether one node leads, all others follow it, and all have all of its log and know it as committed.
    pub fn has_converged(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let (epoch, end) = (self.quorum(leader).epoch(), self.end(leader));
        self.members.values().all(|member| {
            member.quorum.epoch() == epoch
                && member.quorum.leader_id() == Some(leader)
                && member.log.end_offset() == end
                && member.quorum.high_watermark() == Some(Offset(end))
        })
    }

    /// Who thinks what, for a test that fails.
    fn picture(&self) -> String {
        let line = |(id, member): (&BrokerId, &Member)| {
            let quorum = &member.quorum;
            let voters: Vec<_> = quorum.history().voters().iter().map(|voter| voter.key).collect();
            let (end, committed) = (member.log.end_offset(), quorum.high_watermark());
            format!("{id}: {:?}, log to {end}, committed {committed:?}, voters {voters:?}\n", quorum.role())
        };
        self.members.iter().map(line).collect()
    }

    fn at(&mut self, at: u64, event: Event) {
        self.next_number += 1;
        self.events.push(Reverse((at, self.next_number)));
        self.details.insert(self.next_number, event);
    }

    fn step(&mut self, id: BrokerId, input: Input) {
        let now = Now { monotonic: self.now, wall: Timestamp(1_700_000_000_000 + (self.now / MS) as i64) };
        let Some(member) = self.members.get_mut(&id) else { return };
        let mut effects = std::mem::take(&mut member.effects);
        member.quorum.step(input, &member.log, now, &mut self.dice, &mut effects);
        while let Some(effect) = effects.pop() {
            if self.is_up(id) {
                self.carry_out(id, effect);
            }
        }
        if let Some(member) = self.members.get_mut(&id) {
            member.effects = effects;
        }
    }

    fn carry_out(&mut self, id: BrokerId, effect: Effect) {
        let life = self.lives[&id];
        let member = self.members.get_mut(&id).expect("only who is up has effects");
        match effect {
            Effect::Persist { token, state } => self.begin_write(id, token, Write::Election(state)),
            Effect::Flush { token, .. } => {
                let end = member.log.end_offset();
                self.begin_write(id, token, Write::Log(end));
            }
            Effect::Append { token, base, epoch, timestamp, batch } => {
                member.log.append(base, &batch.encode(base, epoch, timestamp));
                self.step(id, Input::Appended(token));
            }
            Effect::AppendFetched { base, records } => member.log.append(base, &records),
            Effect::Truncate { end } => {
                assert!(
                    member.quorum.high_watermark().is_none_or(|committed| committed <= end),
                    "{id} cut what is committed"
                );
                member.log.truncate(end);
                member.forget_syncs_behind(end);
                self.truncations += 1;
            }
            Effect::SnapshotPiece { id: snapshot, position, bytes } => {
                member.log.add_piece(snapshot, position, &bytes);
                self.pieces += 1;
            }
            Effect::CompleteSnapshot { token, id: snapshot } => self.begin_write(id, token, Write::Snapshot(snapshot)),
            Effect::InstallSnapshot { .. } if self.crash_at_install => self.kill(id),
            Effect::InstallSnapshot { id: snapshot } => {
                member.log.install(snapshot);
                member.forget_syncs_behind(snapshot.offset);
                member.log.check_start(self.committed.values());
                self.transfers += 1;
            }
            Effect::Reply { after, to, reply, read } => {
                let reply = match (reply, read) {
                    (Reply::Fetch(mut response), Some(read)) => {
                        let records = member.log.read(read.from, read.max_bytes);
                        response.responses[0].partitions[0].records = Some(records);
                        Reply::Fetch(response)
                    }
                    (Reply::FetchSnapshot(mut response, Some(read)), _) => {
                        response.topics[0].partitions[0].unaligned_records =
                            member.log.snapshot_bytes(read.id, read.position, read.max_bytes);
                        Reply::FetchSnapshot(response, None)
                    }
                    (reply, _) => reply,
                };
                match after.filter(|token| member.volatile.contains(token)) {
                    Some(token) => member.held.push((token, to, reply)),
                    None => self.reply(id, to, reply),
                }
            }
            Effect::Send { to, request } => self.send(id, to, request),
            Effect::HighWatermark(end) => self.commit(id, end),
            Effect::Timer { at } => {
                member.timer = Some(at);
                self.at(at, Event::TimerDue(id, life));
            }
            Effect::Role(RoleChange::Leader { epoch, .. }) => self.crown(id, epoch),
            Effect::Upgraded { result, .. } => self.upgraded = Some(result),
            Effect::Role(RoleChange::NotLeader { .. }) | Effect::Refused { .. } => {}
        }
    }

    fn begin_write(&mut self, id: BrokerId, token: Token, write: Write) {
        let life = self.lives[&id];
        let member = self.members.get_mut(&id).expect("only who is up writes");
        member.volatile.insert(token);
        member.writes.push_back((token, write));
        let takes = 1 + self.dice.below(self.disk_ms);
        // Writes are done in the order in which they were asked for.
        member.busy_until = member.busy_until.max(self.now) + takes * MS;
        let at = member.busy_until;
        self.at(at, Event::WriteDone(id, life));
    }

    fn complete_write(&mut self, id: BrokerId) {
        let member = self.members.get_mut(&id).expect("this life is on");
        let Some((token, write)) = member.writes.pop_front() else { return };
        match write {
            Write::Election(state) => {
                assert!(state.epoch >= member.election.epoch, "{id}: epochs never go back");
                member.election = state;
            }
            Write::Log(end) => member.log.durable = member.log.durable.max(end),
            Write::Snapshot(snapshot) => {
                let control = member.log.complete_part(snapshot);
                return self.step(id, Input::SnapshotReceived { token, control });
            }
        }
        member.volatile.remove(&token);
        let (ready, held) = member.held.drain(..).partition(|(waited_for, ..)| *waited_for == token);
        member.held = held;
        let ready: Vec<(Token, RequestId, Reply)> = ready;
        for (_, to, reply) in ready {
            self.reply(id, to, reply);
        }
        self.step(id, Input::Durable(token));
    }
}

fn directory(id: BrokerId) -> Uuid {
    Uuid(0x1234_0000_0000_0000_0000_0000_0000_0000 + id.value() as u128)
}

fn endpoints(id: BrokerId) -> Vec<Endpoint> {
    vec![Endpoint { name: "CONTROLLER".into(), host: "node".into(), port: id.value() as u16 }]
}
