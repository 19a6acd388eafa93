//! Several quorums in one thread: a network that drops, delays and cuts, disks that forget what was not synced, and what must hold all the
//! same, checked as it runs.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]
#![allow(dead_code, reason = "each test takes what it needs")]

mod log;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
};

use bytes::Bytes;
use gregor_raft::{
    Config, ControlRecord, Effect, Effects, ElectionState, Input, Now, Outgoing, Quorum, ReplicaKey, Reply, Request,
    RequestId, Response, Rng, Role, RoleChange, SnapshotId, Token, Voter, VoterHistory, VoterSet,
};
use gregor_state_records::control::KRaftVersionRecord;
use gregor_types::{BrokerId, LeaderEpoch, Offset, Timestamp, Uuid};
use log::{Log, Stored};

pub const MS: u64 = 1_000_000;
/// How long a driver waits for an answer.
const REQUEST_TIMEOUT: u64 = 2_000 * MS;
const FETCH_VERSION: i16 = 17;

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
    /// The requests under way, by node, and the number that their answers carry.
    asked: BTreeMap<BrokerId, u64>,
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

#[derive(Debug)]
enum Event {
    Arrives { from: BrokerId, to: BrokerId, number: u64, message: Message },
    WriteDone(BrokerId, u64),
    TimerDue(BrokerId, u64),
    NoAnswer { asker: BrokerId, asked: BrokerId, number: u64 },
}

#[derive(Debug, Clone)]
enum Message {
    Request(Request),
    Response(Response),
}

/// The world.
pub struct Cluster {
    pub dice: Dice,
    now: u64,
    voters: Vec<Voter>,
    dynamic: bool,
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
    pub truncations: usize,
    /// How many snapshots took the place of a log.
    pub transfers: usize,
    /// How many pieces of snapshots came.
    pub pieces: usize,
    /// Whether a node dies where it should cut its log for a snapshot.
    pub crash_at_install: bool,
}

impl Cluster {
    pub fn new(size: i32, dynamic: bool, seed: u64) -> Self {
        let voters = (1..=size).map(|id| Voter {
            key: ReplicaKey { id: BrokerId(id), directory: dynamic.then_some(directory(BrokerId(id))) },
            endpoints: Vec::new(),
            kraft_versions: (0, 1),
        });
        let mut cluster = Self {
            dice: Dice(seed),
            now: 0,
            voters: voters.collect(),
            dynamic,
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
            truncations: 0,
            transfers: 0,
            pieces: 0,
            crash_at_install: false,
        };
        for id in 1..=size {
            cluster.start(BrokerId(id));
        }
        cluster
    }

    pub fn ids(&self) -> Vec<BrokerId> {
        self.voters.iter().map(|voter| voter.key.id).collect()
    }

    pub fn is_up(&self, id: BrokerId) -> bool {
        self.members.contains_key(&id)
    }

    pub fn start(&mut self, id: BrokerId) {
        if self.is_up(id) {
            return;
        }
        let (log, election) = self.disks.remove(&id).unwrap_or((Log::default(), ElectionState::INITIAL));
        let mut history = if self.dynamic {
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
        let local = Voter { key: ReplicaKey::new(id, directory(id)), endpoints: Vec::new(), kraft_versions: (0, 1) };
        let config = Config {
            cluster_id: "cluster".into(),
            local,
            election_timeout: 1_000 * MS,
            fetch_timeout: 2_000 * MS,
            election_backoff_max: 1_000 * MS,
            retry_backoff: 20 * MS,
            snapshot_piece_bytes: 700,
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
            assert!(self.now < began + milliseconds * MS, "after {milliseconds} ms not yet: {what}");
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

    fn at(&mut self, at: u64, event: Event) {
        self.next_number += 1;
        self.events.push(Reverse((at, self.next_number)));
        self.details.insert(self.next_number, event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::WriteDone(id, life) if self.lives[&id] == life => self.complete_write(id),
            Event::TimerDue(id, life) if self.lives[&id] == life => {
                let member = self.members.get_mut(&id).expect("this life is on");
                if member.timer.is_some_and(|timer| timer <= self.now) {
                    member.timer = None;
                    self.step(id, Input::Tick);
                }
            }
            Event::NoAnswer { asker, asked, number } => self.answer(asker, asked, number, None),
            Event::Arrives { from, to, .. } if self.cut.contains(&(from, to)) => {}
            Event::Arrives { from, to, number, message: Message::Request(request) } => {
                if self.is_up(to) {
                    let life = self.lives[&to];
                    self.origins.insert(number, (from, life));
                    let version = match request {
                        Request::Fetch(_) => FETCH_VERSION,
                        Request::FetchSnapshot(_) => 1,
                        _ => 2,
                    };
                    self.step(to, Input::Request { id: RequestId(number), version, request });
                }
            }
            Event::Arrives { from, to, number, message: Message::Response(response) } => {
                self.answer(to, from, number, Some(response));
            }
            Event::WriteDone(..) | Event::TimerDue(..) => {}
        }
    }

    fn answer(&mut self, asker: BrokerId, asked: BrokerId, number: u64, response: Option<Response>) {
        let Some(member) = self.members.get_mut(&asker) else { return };
        if member.asked.get(&asked) == Some(&number) {
            member.asked.remove(&asked);
            self.step(asker, Input::Response { from: asked, response });
        }
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

    fn send(&mut self, from: BrokerId, to: BrokerId, request: Outgoing) {
        self.next_number += 1;
        let number = self.next_number;
        let member = self.members.get_mut(&from).expect("only who is up sends");
        assert!(member.asked.insert(to, number).is_none(), "one request at a time to each node");
        let request = match request {
            Outgoing::Vote(request) => Request::Vote(request),
            Outgoing::BeginQuorumEpoch(request) => Request::BeginQuorumEpoch(request),
            Outgoing::EndQuorumEpoch(request) => Request::EndQuorumEpoch(request),
            Outgoing::Fetch(request) => Request::Fetch(request),
            Outgoing::FetchSnapshot(request) => Request::FetchSnapshot(request),
        };
        self.transmit(from, to, number, Message::Request(request));
        // A node that is down refuses the connection at once.
        let patience = if self.is_up(to) { REQUEST_TIMEOUT } else { MS };
        self.at(self.now + patience, Event::NoAnswer { asker: from, asked: to, number });
    }

    fn reply(&mut self, from: BrokerId, to: RequestId, reply: Reply) {
        let Some((asker, life)) = self.origins.remove(&to.0) else { return };
        if self.lives[&from] != life {
            return;
        }
        let response = match reply {
            Reply::Vote(response) => Response::Vote(response),
            Reply::BeginQuorumEpoch(response) => Response::BeginQuorumEpoch(response),
            Reply::EndQuorumEpoch(response) => Response::EndQuorumEpoch(response),
            Reply::Fetch(response) => Response::Fetch(response),
            Reply::FetchSnapshot(response, _) => Response::FetchSnapshot(response),
            Reply::DescribeQuorum(_) => panic!("nobody asks who leads"),
        };
        self.transmit(from, asker, to.0, Message::Response(response));
    }

    fn transmit(&mut self, from: BrokerId, to: BrokerId, number: u64, message: Message) {
        if self.dice.percent(self.loss_percent) {
            return;
        }
        let delay = self.dice.below(self.delay_ms.max(1) * MS);
        self.at(self.now + delay, Event::Arrives { from, to, number, message });
    }

    fn crown(&mut self, id: BrokerId, epoch: LeaderEpoch) {
        let before = self.leaders.insert(epoch, id);
        assert!(before.is_none_or(|before| before == id), "{id} and {before:?} both lead epoch {epoch}");
        let log = &self.members[&id].log;
        log.check_start(self.committed.values());
        for batch in self.committed.values().filter(|batch| batch.end > log.start.offset.value()) {
            assert!(log.batches.contains(batch), "{id} leads epoch {epoch} without {} to {}", batch.base, batch.end);
        }
    }

    fn commit(&mut self, id: BrokerId, end: Offset) {
        let log = &self.members[&id].log;
        assert!(end.value() <= log.end_offset(), "{id} has not got what it says is committed");
        for batch in log.batches.iter().filter(|batch| batch.end <= end.value()) {
            let known = self.committed.entry(batch.base).or_insert_with(|| batch.clone());
            assert_eq!(known, batch, "{id} has another batch at {} than what is committed", batch.base);
        }
    }
}

fn directory(id: BrokerId) -> Uuid {
    Uuid(0x1234_0000_0000_0000_0000_0000_0000_0000 + id.value() as u128)
}
