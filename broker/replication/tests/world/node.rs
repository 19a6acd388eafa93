//! One broker of the world: what a server's shell does around the pure parts.

use std::collections::BTreeMap;

use gregor_replication::{
    FetchPlan, FetchPosition, Fetcher, FetcherConfig, FetcherId, FollowedPartition, FollowerFetch, FollowerLog,
    FollowerState, FollowerStep, History, IsrProposal, LeaderMarks, LeaderState, LeadersLog, OffsetLookUp,
    PartitionAnswer, PartitionAssignment, Registration, ReplicationLimits, compare_history,
};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId};

use super::{
    controller::{Broker, Image, Partition},
    log::{Log, Record},
};

pub const MAX_LAG_MS: i64 = 2_000;
pub const FETCHERS: u32 = 2;
const CONFIG: FetcherConfig = FetcherConfig { backoff_ms: 500, first_backoff_ms: 20 };

#[derive(Debug)]
pub enum Role {
    Leader(LeaderState),
    Follower(FollowerState),
}

#[derive(Debug)]
pub struct Replica {
    pub log: Log,
    pub role: Role,
    /// Appends that wait for their commit: the offset behind, the epoch, the value.
    pub waiting: Vec<(i64, i32, u64)>,
    pub proposal: Option<IsrProposal>,
}

#[derive(Debug, Clone)]
pub enum Asked {
    Fetch(u64),
    LookUp(Vec<OffsetLookUp>),
}

#[derive(Debug)]
pub struct FetcherTask {
    pub fetcher: Fetcher,
    pub wakes_at: u64,
    pub under_way: Option<(u64, u64, Asked)>,
}

#[derive(Debug, Default)]
struct Session {
    epoch: i32,
    positions: BTreeMap<FollowedPartition, FetchPosition>,
}

/// An answer to a fetch: the error, the session, and each partition's part with its records.
pub type Fetched = (ErrorCode, i32, Vec<(FollowedPartition, PartitionAnswer, Vec<Record>)>);

#[derive(Debug)]
pub struct Node {
    pub id: BrokerId,
    pub up: bool,
    /// Counts its lives; messages to an earlier one are lost.
    pub life: u64,
    /// Its broker epoch, once it has registered in this life.
    pub epoch: Option<i64>,
    pub version: usize,
    brokers: Vec<Broker>,
    pub replicas: BTreeMap<usize, Replica>,
    pub fetchers: BTreeMap<FetcherId, FetcherTask>,
    sessions: BTreeMap<i32, Session>,
    next_session: i32,
    /// Its high watermarks and logs outlive it.
    pub disk: BTreeMap<usize, (Log, i64)>,
    pub lost_power: bool,
}

pub fn place(index: usize) -> FollowedPartition {
    FollowedPartition { topic_id: TopicId::from_bytes([1; 16]), partition: PartitionIndex(index as i32) }
}

pub fn index_of(partition: FollowedPartition) -> usize {
    partition.partition.value() as usize
}

impl Replica {
    pub fn high_watermark(&self) -> i64 {
        match &self.role {
            Role::Leader(leader) => leader.high_watermark().value(),
            Role::Follower(follower) => follower.high_watermark().value(),
        }
    }
}

impl Node {
    pub fn new(id: BrokerId) -> Self {
        Self {
            id,
            up: false,
            life: 0,
            epoch: None,
            version: 0,
            brokers: Vec::new(),
            replicas: BTreeMap::new(),
            fetchers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_session: 1,
            disk: BTreeMap::new(),
            lost_power: false,
        }
    }

    pub fn stop(&mut self) {
        self.up = false;
        self.life += 1;
        self.epoch = None;
        self.fetchers.clear();
        self.sessions.clear();
        for (index, replica) in std::mem::take(&mut self.replicas) {
            let known = self.disk.get(&index).map_or(0, |(_, checkpoint)| *checkpoint);
            self.disk.insert(index, (replica.log, known));
        }
    }

    /// Writes down a high watermark, as the checkpoint does now and then.
    pub fn checkpoint(&mut self) {
        for (index, replica) in &self.replicas {
            self.disk.insert(*index, (Log::default(), replica.high_watermark()));
        }
    }

    /// Takes over a version of the metadata. The partitions that it leads anew.
    pub fn apply(&mut self, image: &Image, version: usize, now: u64) -> Vec<usize> {
        self.version = version;
        self.brokers.clone_from(&image.brokers);
        for replica in self.replicas.values_mut() {
            if let Role::Leader(leader) = &mut replica.role {
                leader.raise_min_isr(image.min_isr);
            }
        }
        let mut leads = Vec::new();
        for (index, partition) in image.partitions.iter().enumerate() {
            if !partition.replicas.contains(&self.id) {
                self.drop_replica(index);
                continue;
            }
            if !self.replicas.contains_key(&index) {
                self.open(index);
            }
            if self.set_role(index, partition, image.min_isr, now) {
                leads.push(index);
            }
        }
        let now = Timestamp(now as i64);
        let limits = ReplicationLimits { min_isr: image.min_isr, max_lag_ms: MAX_LAG_MS };
        for replica in self.replicas.values_mut() {
            if let Role::Leader(leader) = &mut replica.role {
                leader.on_limits(limits, now);
            }
        }
        for (id, broker) in image.brokers.iter().enumerate() {
            let id = BrokerId(id as i32);
            let epoch = if id == self.id { self.epoch.unwrap_or(-1) } else { broker.epoch };
            let registration = Registration { epoch: BrokerEpoch(epoch), active: !broker.fenced };
            for replica in self.replicas.values_mut() {
                if let Role::Leader(leader) = &mut replica.role {
                    leader.on_registration(id, Some(registration), now);
                }
            }
        }
        leads
    }

    fn open(&mut self, index: usize) {
        let (log, checkpoint) = self.disk.remove(&index).unwrap_or_default();
        let known = checkpoint.clamp(log.start, log.end());
        self.disk.insert(index, (Log::default(), known));
        let role = Role::Follower(FollowerState::new(None, LeaderEpoch(-1), Offset(known)));
        self.replicas.insert(index, Replica { log, role, waiting: vec![], proposal: None });
    }

    fn drop_replica(&mut self, index: usize) {
        self.replicas.remove(&index);
        self.disk.remove(&index);
        for task in self.fetchers.values_mut() {
            task.fetcher.unfollow(place(index));
        }
    }

    fn set_role(&mut self, index: usize, partition: &Partition, min_isr: usize, now: u64) -> bool {
        let replica = self.replicas.get_mut(&index).expect("it was opened");
        let assignment = PartitionAssignment {
            leader_epoch: LeaderEpoch(partition.leader_epoch),
            partition_epoch: partition.partition_epoch,
            replicas: partition.replicas.clone(),
            isr: partition.isr.clone(),
            adding: partition.adding.clone(),
        };
        let known = match &replica.role {
            Role::Leader(leader) => leader.leader_epoch(),
            Role::Follower(follower) => follower.leader_epoch(),
        };
        assert!(known <= assignment.leader_epoch, "metadata goes forward");
        if known == assignment.leader_epoch {
            if let Role::Leader(leader) = &mut replica.role {
                leader.on_assignment(&assignment, Timestamp(now as i64));
            }
            return false;
        }
        let high_watermark = Offset(replica.high_watermark());
        replica.waiting.clear();
        replica.proposal = None;
        for task in self.fetchers.values_mut() {
            task.fetcher.unfollow(place(index));
        }
        if partition.leader == Some(self.id) {
            replica.log.begin_epoch(partition.leader_epoch);
            let limits = ReplicationLimits { min_isr, max_lag_ms: MAX_LAG_MS };
            let (start, end) = (Offset(replica.log.start), Offset(replica.log.end()));
            let log = LeadersLog { start, end, durable_end: None, high_watermark };
            let now = Timestamp(now as i64);
            replica.role = Role::Leader(LeaderState::new(self.id, &assignment, limits, log, now));
            return true;
        }
        let epoch = assignment.leader_epoch;
        replica.role = Role::Follower(FollowerState::new(partition.leader, epoch, high_watermark));
        if let Some(leader) = partition.leader {
            let id = FetcherId { leader, index: index as u32 % FETCHERS };
            let task = self.fetchers.entry(id).or_insert_with(|| FetcherTask {
                fetcher: Fetcher::new(CONFIG),
                wakes_at: now,
                under_way: None,
            });
            task.wakes_at = task.wakes_at.min(now);
            let step = task.fetcher.follow(place(index), epoch, replica.log.position(), high_watermark);
            self.take_step(id, place(index), step, &[], now);
        }
        false
    }

    /// Does what a fetcher decided, if the partition still follows as it did then.
    pub fn take_step(
        &mut self,
        id: FetcherId,
        partition: FollowedPartition,
        step: FollowerStep,
        records: &[Record],
        now: u64,
    ) {
        let (FollowerStep::Append { leader_epoch, .. }
        | FollowerStep::Truncate { leader_epoch, .. }
        | FollowerStep::StartOver { leader_epoch, .. }) = step
        else {
            return;
        };
        let Some(replica) = self.replicas.get_mut(&index_of(partition)) else { return };
        let Replica { log, role: Role::Follower(state), .. } = replica else { return };
        if state.admits(leader_epoch) {
            match step {
                FollowerStep::Append { from, leader, .. } if from.value() == log.end() => {
                    for record in records.iter().take_while(|record| record.epoch <= leader_epoch.value()) {
                        log.append(*record);
                    }
                    let moved = state.on_appended(Offset(log.start), Offset(log.end()), leader);
                    if let Some(start) = moved.log_start {
                        log.advance_start(start.value());
                    }
                }
                FollowerStep::Truncate { to, .. } => {
                    log.truncate(to.value());
                    state.on_cut(Offset(log.start), Offset(log.end()));
                }
                FollowerStep::StartOver { at, .. } => {
                    log.start_over(at.value());
                    state.on_cut(at, at);
                }
                _ => {}
            }
        }
        if let Some(task) = self.fetchers.get_mut(&id) {
            task.fetcher.on_log_changed(partition, log.position(), Timestamp(now as i64));
        }
    }

    /// Answers a follower's fetch. `room` bounds the records of a partition; without sessions, a leader is short of memory.
    pub fn serve(
        &mut self,
        from: BrokerId,
        broker_epoch: i64,
        plan: &FetchPlan,
        (room, gives_sessions): (usize, bool),
        now: u64,
    ) -> Fetched {
        let (session_id, positions) = if plan.session_epoch == 0 {
            self.sessions.remove(&plan.session_id);
            let positions: BTreeMap<_, _> = plan.wanted.iter().copied().collect();
            let mut id = 0;
            if gives_sessions {
                id = self.next_session;
                self.next_session += 1;
                self.sessions.insert(id, Session { epoch: 1, positions: positions.clone() });
            }
            (id, positions)
        } else {
            let Some(session) = self.sessions.get_mut(&plan.session_id) else {
                return (ErrorCode::FetchSessionIdNotFound, 0, vec![]);
            };
            if session.epoch != plan.session_epoch {
                return (ErrorCode::InvalidFetchSessionEpoch, 0, vec![]);
            }
            session.epoch += 1;
            session.positions.retain(|partition, _| !plan.forgotten.contains(partition));
            session.positions.extend(plan.wanted.iter().copied());
            (plan.session_id, session.positions.clone())
        };
        let mut answers = Vec::new();
        for (partition, position) in positions {
            let (answer, records) = self.serve_partition(from, broker_epoch, partition, position, room, now);
            answers.push((partition, answer, records));
        }
        (ErrorCode::None, session_id, answers)
    }

    fn serve_partition(
        &mut self,
        from: BrokerId,
        broker_epoch: i64,
        partition: FollowedPartition,
        position: FetchPosition,
        room: usize,
        now: u64,
    ) -> (PartitionAnswer, Vec<Record>) {
        let nothing = LeaderMarks { high_watermark: Offset::NONE, log_start: Offset::NONE };
        let fails = |error| (PartitionAnswer { error, leader: nothing, diverging: None }, vec![]);
        let Some(Replica { log, role: Role::Leader(leader), proposal, .. }) =
            self.replicas.get_mut(&index_of(partition))
        else {
            return fails(ErrorCode::NotLeaderOrFollower);
        };
        if let Err(error) = leader.check_epoch(position.leader_epoch) {
            return fails(error.into());
        }
        let here = log.end_of_epoch(position.last_fetched_epoch);
        let marks = |leader: &LeaderState, log: &Log| LeaderMarks {
            high_watermark: leader.high_watermark(),
            log_start: Offset(log.start),
        };
        match compare_history(position.offset, position.last_fetched_epoch, Offset(log.start), here) {
            History::Same => {}
            History::Diverged(end) => {
                let leader = marks(leader, log);
                return (PartitionAnswer { error: ErrorCode::None, leader, diverging: Some(end) }, vec![]);
            }
            History::OutOfRange => return fails(ErrorCode::OffsetOutOfRange),
        }
        if position.offset.value() < log.start || position.offset.value() > log.end() {
            return fails(ErrorCode::OffsetOutOfRange);
        }
        let records = log.read(position.offset.value(), room);
        let broker = self.brokers[from.value() as usize];
        let fetch = FollowerFetch {
            replica: from,
            broker_epoch: BrokerEpoch(broker_epoch),
            leader_epoch: position.leader_epoch,
            offset: position.offset,
            log_start: position.log_start,
            registration: Some(Registration { epoch: BrokerEpoch(broker.epoch), active: !broker.fenced }),
        };
        match leader.on_fetch(fetch, Timestamp(now as i64)) {
            Err(error) => fails(error.into()),
            Ok(progress) => {
                if progress.proposal.is_some() {
                    *proposal = progress.proposal;
                }
                (PartitionAnswer { error: ErrorCode::None, leader: marks(leader, log), diverging: None }, records)
            }
        }
    }

    pub fn look_up(&self, asked: &OffsetLookUp) -> Result<Offset, ErrorCode> {
        match self.replicas.get(&index_of(asked.partition)) {
            Some(Replica { log, role: Role::Leader(leader), .. }) => {
                leader.check_epoch(asked.leader_epoch)?;
                Ok(Offset(if asked.end == gregor_replication::LogSide::Latest { log.end() } else { log.start }))
            }
            _ => Err(ErrorCode::NotLeaderOrFollower),
        }
    }
}
