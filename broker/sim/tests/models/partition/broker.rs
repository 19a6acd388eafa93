//! One broker of a model: its log, which outlives its processes, and what a process does around the production's leader and follower.

use std::sync::Arc;

use gregor_replication::{
    EpochEnd, FetchPlan, FetchPosition, Fetcher, FetcherConfig, FollowedPartition, FollowerFetch, FollowerLog,
    FollowerState, FollowerStep, History, IsrProposal, LeaderMarks, LeaderState, LeadersLog, LogPosition, NextRequest,
    PartitionAnswer, ProposalAnswer, ProposalOutcome, ReplicationLimits, compare_history,
};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId};

use super::{
    desk::{MIN_ISR, Said, View},
    log::{Log, Record},
};

/// It is always now. A follower that does not have everything has been behind for too long as soon as its leader looks.
const NOW: Timestamp = Timestamp(1_000);
const LIMITS: ReplicationLimits = ReplicationLimits { min_isr: MIN_ISR, max_lag_ms: -1 };
const PLACE: FollowedPartition = FollowedPartition { topic_id: TopicId::METADATA_TOPIC, partition: PartitionIndex(0) };

/// See the module.
#[derive(Debug, Clone, PartialEq, Hash)]
pub struct Broker {
    pub id: BrokerId,
    pub log: Log,
    /// Counts its processes.
    pub life: u8,
    /// Whether it lost what it had, and the controller has not heard of it.
    pub has_lost: bool,
    pub process: Option<Process>,
}

#[derive(Debug, Clone, PartialEq, Hash)]
pub struct Process {
    pub epoch: BrokerEpoch,
    /// How much of the metadata it has read: the place of its view among all that the world still has.
    pub read: usize,
    pub view: Arc<View>,
    pub role: Role,
    /// Records whose producers wait, with the offset behind each.
    waiting: Vec<(Offset, Record)>,
    /// What the controller is to be asked for.
    pub proposal: Option<IsrProposal>,
}

#[derive(Debug, Clone, PartialEq, Hash)]
pub enum Role {
    Leader(LeaderState),
    Follower(FollowerState),
}

/// A leader's answer to a fetch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fetched {
    error: ErrorCode,
    high_watermark: Offset,
    diverging: Option<EpochEnd>,
    records: Vec<Record>,
}

impl Broker {
    pub fn new(id: BrokerId) -> Self {
        Self { id, log: Log::default(), life: 0, has_lost: false, process: None }
    }

    /// A process begins, which has registered, and reads the metadata from there on.
    pub fn start(&mut self, epoch: BrokerEpoch, read: usize, view: &Arc<View>) {
        let role = Role::Follower(FollowerState::new(None, LeaderEpoch::NONE, Offset::ZERO));
        self.has_lost = false;
        self.process = Some(Process { epoch, read, view: Arc::clone(view), role, waiting: Vec::new(), proposal: None });
        self.read(read, view);
    }

    /// The process reads the metadata up to here.
    pub fn read(&mut self, read: usize, view: &Arc<View>) {
        let Self { id, log, process: Some(process), .. } = self else { return };
        let assignment = view.assignment();
        (process.read, process.view) = (read, Arc::clone(view));
        if let (Role::Leader(leader), true) = (&mut process.role, view.leader == Some(*id))
            && leader.leader_epoch() == view.leader_epoch
        {
            leader.on_assignment(&assignment, NOW);
            introduce(leader, view);
            return;
        }
        let high_watermark = process.high_watermark();
        process.proposal = None;
        process.waiting.clear();
        if view.leader != Some(*id) {
            process.role = Role::Follower(FollowerState::new(view.leader, view.leader_epoch, high_watermark));
            return;
        }
        log.begin_epoch(view.leader_epoch);
        let own = LeadersLog { start: Offset::ZERO, end: log.end(), durable_end: None, high_watermark };
        let mut leader = LeaderState::new(*id, &assignment, LIMITS, own, NOW);
        introduce(&mut leader, view);
        process.role = Role::Leader(leader);
    }

    /// Whether it takes a record that is to be acknowledged by all.
    pub fn takes_records(&self) -> bool {
        self.leading().is_some_and(|leader| leader.check_min_isr().is_ok())
    }

    pub fn append(&mut self, value: u8) {
        let Self { log, process: Some(Process { role: Role::Leader(leader), waiting, .. }), .. } = self else { return };
        let record = Record { epoch: leader.leader_epoch(), value };
        log.append(record);
        waiting.push((log.end(), record));
        leader.on_append(log.end(), NOW);
    }

    /// The leader looks for followers that are too far behind.
    pub fn look_for_laggards(&mut self) {
        let Some(process) = &mut self.process else { return };
        if let Role::Leader(leader) = &mut process.role
            && let Some(proposal) = leader.on_tick(NOW)
        {
            process.proposal = Some(proposal);
        }
    }

    /// What it asks its leader for next.
    pub fn next_fetch(&self) -> Option<(BrokerId, FetchPosition)> {
        let Role::Follower(follower) = &self.process.as_ref()?.role else { return None };
        let (_, plan) = fetcher(follower.leader_epoch(), self.log.position());
        Some((follower.leader()?, plan.wanted[0].1))
    }

    /// Answers a fetch.
    pub fn serve(&mut self, replica: BrokerId, broker_epoch: BrokerEpoch, position: &FetchPosition) -> Fetched {
        let Self { log, process, .. } = self;
        let refused = |error| Fetched { error, high_watermark: Offset::NONE, diverging: None, records: Vec::new() };
        let Some(Process { role: Role::Leader(leader), view, proposal, .. }) = process else {
            return refused(ErrorCode::NotLeaderOrFollower);
        };
        if let Err(error) = leader.check_epoch(position.leader_epoch) {
            return refused(error.into());
        }
        let here = log.end_of_epoch(position.last_fetched_epoch);
        let mut diverging = None;
        match compare_history(position.offset, position.last_fetched_epoch, Offset::ZERO, here) {
            History::Same if position.offset <= log.end() => {}
            History::Same | History::OutOfRange => return refused(ErrorCode::OffsetOutOfRange),
            History::Diverged(end) => diverging = Some(end),
        }
        if diverging.is_none() {
            let fetch = FollowerFetch {
                replica,
                broker_epoch,
                leader_epoch: position.leader_epoch,
                offset: position.offset,
                log_start: position.log_start,
                registration: view.registration(replica),
            };
            match leader.on_fetch(fetch, NOW) {
                Ok(progress) => *proposal = progress.proposal.or(proposal.take()),
                Err(error) => return refused(error.into()),
            }
        }
        let records = if diverging.is_none() { log.read(position.offset) } else { Vec::new() };
        Fetched { error: ErrorCode::None, high_watermark: leader.high_watermark(), diverging, records }
    }

    /// Takes the answer to a fetch, and says what it cut off.
    pub fn take(&mut self, position: &FetchPosition, fetched: &Fetched) -> Cut {
        let asked_at =
            LogPosition { start: position.log_start, end: position.offset, last_epoch: position.last_fetched_epoch };
        let (mut fetcher, plan) = fetcher(position.leader_epoch, asked_at);
        let Self { log, process: Some(Process { role: Role::Follower(follower), .. }), .. } = self else {
            return Cut::Nothing;
        };
        assert!(fetcher.on_fetched(plan.number, ErrorCode::None, 0, [PLACE].into_iter(), NOW), "it asked for this");
        let leader = LeaderMarks { high_watermark: fetched.high_watermark, log_start: Offset::ZERO };
        let answer = PartitionAnswer { error: fetched.error, leader, diverging: fetched.diverging };
        match fetcher.on_answer(PLACE, &answer, &*log, NOW) {
            FollowerStep::Append { leader_epoch, from, leader }
                if follower.admits(leader_epoch) && from == log.end() =>
            {
                for record in fetched.records.iter().take_while(|record| record.epoch <= leader_epoch) {
                    log.append(*record);
                }
                follower.on_appended(Offset::ZERO, log.end(), leader);
                Cut::Nothing
            }
            FollowerStep::Truncate { leader_epoch, to } if follower.admits(leader_epoch) && to < log.end() => {
                let cut = if to < follower.high_watermark() { Cut::Committed } else { Cut::Tail };
                log.truncate(to);
                follower.on_cut(Offset::ZERO, log.end());
                cut
            }
            FollowerStep::StartOver { .. } => unreachable!("nothing is deleted at the start of a log"),
            FollowerStep::Append { .. } | FollowerStep::Truncate { .. } | FollowerStep::Nothing => Cut::Nothing,
        }
    }

    /// Hears what the controller said to a proposal.
    pub fn hear(&mut self, asked: &IsrProposal, said: &Said) {
        let Some(Process { role: Role::Leader(leader), proposal, .. }) = &mut self.process else { return };
        let outcome = match said {
            Said::Nothing if leader.has_proposed(asked) => ProposalOutcome::Retry,
            Said::Nothing => ProposalOutcome::Ignored,
            Said::Refused(error) => leader.on_proposal_answered(asked, &ProposalAnswer::Refused(*error), NOW),
            Said::Accepted { isr, leader_epoch, partition_epoch } => {
                let answer = ProposalAnswer::Accepted {
                    isr: isr.clone(),
                    leader_epoch: *leader_epoch,
                    partition_epoch: *partition_epoch,
                };
                leader.on_proposal_answered(asked, &answer, NOW)
            }
        };
        if outcome == ProposalOutcome::Retry {
            *proposal = Some(asked.clone());
        }
    }

    /// Whether a producer waits.
    pub fn has_waiting(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.waiting.is_empty())
    }

    /// The records that may be acknowledged now.
    pub fn take_acknowledged(&mut self) -> Vec<(Offset, Record)> {
        let Some(Process { role: Role::Leader(leader), waiting, .. }) = &mut self.process else { return Vec::new() };
        let (committed, enough) = (leader.high_watermark(), leader.check_min_isr().is_ok());
        let (ready, waits): (Vec<_>, Vec<_>) = waiting.drain(..).partition(|(end, _)| *end <= committed);
        *waiting = waits;
        // With too few in sync their producers are told that nobody knows.
        if enough { ready } else { Vec::new() }
    }

    pub fn leading(&self) -> Option<&LeaderState> {
        match &self.process.as_ref()?.role {
            Role::Leader(leader) => Some(leader),
            Role::Follower(_) => None,
        }
    }
}

/// What a follower cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    Nothing,
    Tail,
    /// What it knew to be committed.
    Committed,
}

impl Process {
    pub fn high_watermark(&self) -> Offset {
        match &self.role {
            Role::Leader(leader) => leader.high_watermark(),
            Role::Follower(follower) => follower.high_watermark(),
        }
    }
}

fn introduce(leader: &mut LeaderState, view: &View) {
    for id in super::BROKERS {
        leader.on_registration(id, view.registration(id), NOW);
    }
}

/// A fetcher that has just asked for what follows this position. Each request has its own, as if every answer ended the session.
fn fetcher(leader_epoch: LeaderEpoch, log: LogPosition) -> (Fetcher, FetchPlan) {
    let mut fetcher = Fetcher::new(FetcherConfig { backoff_ms: 1, first_backoff_ms: 1 });
    let step = fetcher.follow(PLACE, leader_epoch, log, Offset::ZERO);
    assert_eq!(step, FollowerStep::Nothing, "a log with epochs is not cut before its leader said where");
    match fetcher.next(None, NOW) {
        NextRequest::Fetch(plan) => (fetcher, plan),
        other => panic!("a new fetcher fetches, and does not {other:?}"),
    }
}
