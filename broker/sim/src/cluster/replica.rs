//! One replica of a partition: what the server's `partition.rs` and the files beside it do under a lock, in steps.
//!
//! Who leads, what is committed and where logs part is decided in `gregor_replication`; the log is the production's, on a simulated disk.

use std::sync::Arc;

use bytes::Bytes;
use gregor_log::{
    AppendError, Appended, EpochEndOffset, FlushToken, LogConfig, LogError, PartitionLog, ReadPlan, ReadRequest,
};
use gregor_raft::Nanos;
use gregor_replication::{
    EpochEnd, FetchPosition, FollowedPartition, FollowerFetch, FollowerLog, FollowerState, FollowerStep, History,
    IsrProposal, LeaderMarks, LeaderState, LeadersLog, LogPosition, LogSide, OffsetLookUp, PartitionAnswer,
    PartitionAssignment, Registration, ReplicationLimits, StepFailure, compare_history,
};
use gregor_server::TopicSettings;
use gregor_types::{BrokerId, ErrorCode, KString, LeaderEpoch, Offset, Timestamp};
use gregor_wire::batch::{split_batches, validate_produced};

use super::{
    ledger::Seen,
    letters::{Answer, FollowerQuestion, Return},
};
use crate::{Random, clock::MILLISECOND, network::Batches};

const FETCH_BYTES: u32 = 4_000;
/// How long a sync takes.
const SYNC: std::ops::Range<Nanos> = MILLISECOND / 10..25 * MILLISECOND;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) topic: KString,
    pub(super) id: FollowedPartition,
    pub(super) log: PartitionLog,
    pub(super) role: Role,
    settings: Arc<TopicSettings>,
    /// What a leadership begins with.
    limits: ReplicationLimits,
    /// Appends that wait until they are committed.
    waiting: Vec<Waiting>,
    unflushed: i64,
    flush_wanted: bool,
    flushing: Option<(Nanos, FlushToken)>,
    /// Answers whose time has come.
    answers: Vec<(Return, Answer)>,
    /// What the controller is to be asked for.
    proposal: Option<IsrProposal>,
    /// Whether what it takes for committed may not be: where power was lost, a batch that was cut off may be back, below a high watermark that was written
    /// later. It is so until a leader has found their logs the same, or it leads itself.
    pub(super) is_doubtful: bool,
    /// The epoch of a fetch that it has answered as the leader in another one.
    pub(super) answered_in: Option<LeaderEpoch>,
    /// How often the log was cut back to a leader's, and how often it began anew where a leader's log begins.
    pub(super) truncations: u64,
    pub(super) starts_over: u64,
    /// Whether something was cut off that was synced, since that was asked last.
    pub(super) is_cut: bool,
    /// Where it stood when it was asked last whether that has changed: the epoch in which it leads, where its log begins and ends, and the high
    /// watermark.
    stood: Option<(Option<LeaderEpoch>, [Offset; 3])>,
    /// What the ledger has seen of it.
    pub(super) seen: Option<Seen>,
}

/// What it is now.
#[derive(Debug)]
pub(super) enum Role {
    Leader(LeaderState),
    Follower(FollowerState),
}

#[derive(Debug)]
struct Waiting {
    back: Return,
    base: Offset,
    end: Offset,
    epoch: LeaderEpoch,
}

impl Replica {
    pub(super) fn new(
        topic: KString,
        id: FollowedPartition,
        mut log: PartitionLog,
        high_watermark: Offset,
        settings: Arc<TopicSettings>,
    ) -> Self {
        log.set_config(small(&settings.log));
        let high_watermark = high_watermark.clamp(log.start_offset(), log.end_offset());
        Self {
            topic,
            id,
            log,
            role: Role::Follower(FollowerState::new(None, LeaderEpoch::NONE, high_watermark)),
            limits: settings.limits,
            settings,
            waiting: Vec::new(),
            unflushed: 0,
            flush_wanted: false,
            flushing: None,
            answers: Vec::new(),
            proposal: None,
            is_doubtful: false,
            answered_in: None,
            truncations: 0,
            starts_over: 0,
            is_cut: false,
            stood: None,
            seen: None,
        }
    }

    /// Everything before it is committed.
    pub(super) fn high_watermark(&self) -> Offset {
        match &self.role {
            Role::Leader(leader) => leader.high_watermark(),
            Role::Follower(follower) => follower.high_watermark(),
        }
    }

    pub(super) fn set_role(
        &mut self,
        me: BrokerId,
        leader: Option<BrokerId>,
        assignment: &PartitionAssignment,
        registered: impl Fn(BrokerId) -> Option<Registration>,
        now: Timestamp,
    ) {
        if let (Role::Leader(leading), true) = (&mut self.role, leader == Some(me))
            && leading.leader_epoch() == assignment.leader_epoch
        {
            leading.on_assignment(assignment, now);
            introduce(leading, assignment, registered, now);
            return;
        }
        let high_watermark = self.high_watermark();
        self.proposal = None;
        for waiting in std::mem::take(&mut self.waiting) {
            self.answers.push((waiting.back, Answer::Refused(ErrorCode::NotLeaderOrFollower)));
        }
        if leader != Some(me) {
            self.role = Role::Follower(FollowerState::new(leader, assignment.leader_epoch, high_watermark));
            return;
        }
        if assignment.leader_epoch > self.log.last_epoch() {
            self.log.assign_epoch_start(assignment.leader_epoch, self.log.end_offset());
        }
        let durable_end = self.settings.syncs_before_acknowledging().then(|| self.log.recovery_point());
        self.flush_wanted |= durable_end.is_some();
        let (start, end) = (self.log.start_offset(), self.log.end_offset());
        let log = LeadersLog { start, end, durable_end, high_watermark };
        let mut leading = LeaderState::new(me, assignment, self.limits, log, now);
        introduce(&mut leading, assignment, registered, now);
        self.role = Role::Leader(leading);
        self.is_doubtful = false;
    }

    pub(super) fn on_registrations(&mut self, brokers: &[(BrokerId, Option<Registration>)], now: Timestamp) {
        if let Role::Leader(leader) = &mut self.role {
            for (broker, registration) in brokers {
                leader.on_registration(*broker, *registration, now);
            }
        }
    }

    /// As the server: before the roles of the same metadata.
    pub(super) fn expect_limits(&mut self, limits: ReplicationLimits) {
        self.limits = limits;
        if let Role::Leader(leader) = &mut self.role {
            leader.raise_min_isr(limits.min_isr);
        }
    }

    pub(super) fn set_settings(&mut self, settings: &Arc<TopicSettings>, now: Timestamp) {
        self.log.set_config(small(&settings.log));
        (self.settings, self.limits) = (Arc::clone(settings), settings.limits);
        let durable = settings.syncs_before_acknowledging().then(|| self.log.recovery_point());
        if let Role::Leader(leader) = &mut self.role {
            leader.on_limits(settings.limits, now);
            leader.on_durability(durable, now);
        }
        self.flush_wanted |= durable.is_some();
    }

    /// Takes a client's batch; the answer comes once it is committed.
    pub(super) fn produce(&mut self, back: Return, bytes: &[u8], now: Timestamp) -> Result<(), LogError> {
        let refuse = |error| (back, Answer::Refused(error));
        let settings = Arc::clone(&self.settings);
        let mut scratch = Vec::new();
        let Role::Leader(leader) = &mut self.role else {
            self.answers.push(refuse(ErrorCode::NotLeaderOrFollower));
            return Ok(());
        };
        if leader.check_min_isr().is_err() {
            self.answers.push(refuse(ErrorCode::NotEnoughReplicas));
            return Ok(());
        }
        let epoch = leader.leader_epoch();
        let batch = match validate_produced(bytes, &settings.rules, now, &mut scratch) {
            Ok(batch) => batch,
            Err(error) => {
                self.answers.push((back, Answer::Wrong(error.error_code(), epoch)));
                return Ok(());
            }
        };
        let appended = match self.log.append_as_leader(&batch, epoch, now) {
            Ok(appended) => appended,
            Err(AppendError::Log(error)) if !error.is_disk_full() => return Err(error),
            Err(error @ AppendError::Log(_)) => {
                self.answers.push(refuse(error.error_code()));
                return Ok(());
            }
            Err(error) => {
                self.answers.push((back, Answer::Wrong(error.error_code(), epoch)));
                return Ok(());
            }
        };
        if let Appended::New(info) = &appended {
            leader.on_append(info.last_offset.plus(1), now);
            self.unflushed += batch.offsets_count();
            let sealed = self.log.has_unsynced_sealed_segments();
            self.flush_wanted |= sealed || self.unflushed >= settings.flush_messages;
        }
        let info = appended.info();
        self.flush_wanted |= settings.syncs_before_acknowledging();
        self.waiting.push(Waiting { back, base: info.base_offset, end: info.last_offset.plus(1), epoch });
        Ok(())
    }

    /// What is committed from an offset on, for a client.
    pub(super) fn read(&mut self, from: Offset) -> Result<Answer, LogError> {
        let Role::Leader(leader) = &self.role else { return Ok(Answer::Refused(ErrorCode::NotLeaderOrFollower)) };
        let high_watermark = leader.high_watermark();
        if from < self.log.start_offset() || from > self.log.end_offset() {
            return Ok(Answer::Refused(ErrorCode::OffsetOutOfRange));
        }
        let records = if from < high_watermark { self.bytes(from, high_watermark)? } else { Bytes::new() };
        Ok(Answer::Read(Batches(records), high_watermark))
    }

    /// The log is to begin here, where all before is committed; followers hear of it with their next answers.
    pub(super) fn delete_records(&mut self, until: Offset) -> Result<Answer, LogError> {
        let Role::Leader(leader) = &mut self.role else { return Ok(Answer::Refused(ErrorCode::NotLeaderOrFollower)) };
        if until > leader.high_watermark() {
            return Ok(Answer::Refused(ErrorCode::OffsetOutOfRange));
        }
        self.log.advance_start(until)?;
        leader.on_log_start(self.log.start_offset());
        Ok(Answer::Deleted)
    }

    /// Whole batches of the log; a part of one may stand at their end.
    pub(super) fn bytes(&mut self, from: Offset, upper_bound: Offset) -> Result<Bytes, LogError> {
        let request = ReadRequest { from, upper_bound, max_bytes: FETCH_BYTES, min_one_batch: true };
        let path = self.log.directory().to_owned();
        match self.log.read(&request).and_then(ReadPlan::check) {
            Ok(plan) => plan.read_all().map_err(|source| LogError::Io { path, source }),
            Err(gregor_log::ReadError::Log(error)) => Err(error),
            Err(_) => Ok(Bytes::new()),
        }
    }

    /// Answers a follower's fetch. `is_new` says that the leader has not taken note of it yet.
    pub(super) fn serve(
        &mut self,
        asked: &FollowerQuestion,
        position: &FetchPosition,
        registration: Option<Registration>,
        is_new: bool,
        now: Timestamp,
    ) -> Result<(PartitionAnswer, Bytes), LogError> {
        let refused = |error| Ok((refusal(error), Bytes::new()));
        let Role::Leader(leader) = &mut self.role else { return refused(ErrorCode::NotLeaderOrFollower) };
        if let Err(error) = leader.check_epoch(position.leader_epoch) {
            return refused(error.into());
        }
        if position.leader_epoch != leader.leader_epoch() {
            self.answered_in = Some(position.leader_epoch);
        }
        let (start, end) = (self.log.start_offset(), self.log.end_offset());
        let here = known(self.log.cut_for_epoch(position.last_fetched_epoch)?);
        let mut diverging = None;
        match compare_history(position.offset, position.last_fetched_epoch, start, here) {
            History::Same if position.offset < start || position.offset > end => {
                return refused(ErrorCode::OffsetOutOfRange);
            }
            History::Same => {}
            History::OutOfRange => return refused(ErrorCode::OffsetOutOfRange),
            History::Diverged(end) => diverging = Some(end),
        }
        if is_new && diverging.is_none() {
            let fetch = FollowerFetch {
                replica: asked.replica,
                broker_epoch: asked.broker_epoch,
                leader_epoch: position.leader_epoch,
                offset: position.offset,
                log_start: position.log_start,
                registration,
            };
            match leader.on_fetch(fetch, now) {
                Ok(progress) => self.proposal = progress.proposal.or(self.proposal.take()),
                Err(error) => return refused(error.into()),
            }
        }
        let marks = LeaderMarks { high_watermark: leader.high_watermark(), log_start: start };
        let records =
            if diverging.is_none() && position.offset < end { self.bytes(position.offset, end)? } else { Bytes::new() };
        Ok((PartitionAnswer { error: ErrorCode::None, leader: marks, diverging }, records))
    }

    /// The log is about to have more, of which a follower could not know that was here last at this time and had everything.
    pub(super) fn on_quiet_fetch(&mut self, follower: BrokerId, at: Timestamp) {
        if let Role::Leader(leader) = &mut self.role {
            leader.on_quiet_fetch(follower, at);
        }
    }

    /// Whether anything that a session looks at has changed since this was asked last.
    pub(super) fn take_change(&mut self) -> bool {
        let epoch = match &self.role {
            Role::Leader(leader) => Some(leader.leader_epoch()),
            Role::Follower(_) => None,
        };
        let stand = (epoch, [self.log.start_offset(), self.log.end_offset(), self.high_watermark()]);
        self.stood.replace(stand) != Some(stand)
    }

    /// Where the log begins or ends, for a follower.
    pub(super) fn look_up(&self, asked: &OffsetLookUp) -> Result<Offset, ErrorCode> {
        let Role::Leader(leader) = &self.role else { return Err(ErrorCode::NotLeaderOrFollower) };
        leader.check_epoch(asked.leader_epoch)?;
        Ok(match asked.end {
            LogSide::Latest => self.log.end_offset(),
            LogSide::Earliest => self.log.start_offset(),
        })
    }

    /// Before it asks a leader for what follows: where only synced records count, all that it has is synced.
    pub(super) fn sync_before_following(&mut self) -> Result<(), LogError> {
        if !self.settings.syncs_before_acknowledging() || self.log.recovery_point() >= self.log.end_offset() {
            return Ok(());
        }
        match self.flush_now() {
            Err(error) if error.is_disk_full() => Ok(()),
            synced => synced,
        }
    }

    /// Does what a fetcher decided, if the leadership is still the one that it was decided under.
    pub(super) fn follow_step(
        &mut self,
        step: FollowerStep,
        records: &[u8],
        now: Timestamp,
    ) -> Result<Result<LogPosition, StepFailure>, LogError> {
        match self.do_step(step, records, now) {
            Ok(()) => {}
            Err(AppendError::Log(error)) if !error.is_disk_full() => return Err(error),
            Err(_) => return Ok(Err(StepFailure::Transient)),
        }
        let is_synced = self.log.recovery_point() >= self.log.end_offset();
        if self.settings.syncs_before_acknowledging() && !is_synced {
            // The next fetch tells the leader that this replica has it.
            match self.flush_now() {
                Ok(()) => {}
                Err(error) if error.is_disk_full() => return Ok(Err(StepFailure::Permanent)),
                Err(error) => return Err(error),
            }
        }
        self.flush_wanted |= self.log.has_unsynced_sealed_segments();
        Ok(Ok(self.position()))
    }

    fn do_step(&mut self, step: FollowerStep, records: &[u8], now: Timestamp) -> Result<(), AppendError> {
        let (FollowerStep::Append { leader_epoch, .. }
        | FollowerStep::Truncate { leader_epoch, .. }
        | FollowerStep::StartOver { leader_epoch, .. }) = step
        else {
            return Ok(());
        };
        let Role::Follower(follower) = &mut self.role else { return Ok(()) };
        if !follower.admits(leader_epoch) {
            return Ok(());
        }
        let log = &mut self.log;
        let synced = log.recovery_checkpoint();
        match step {
            FollowerStep::Append { from, leader, .. } if from == log.end_offset() => {
                self.is_doubtful = false;
                let known = known_part(records, leader_epoch);
                if !known.is_empty() {
                    log.append_as_replica(known, now)?;
                    self.unflushed += log.end_offset().value() - from.value();
                }
                let moved = follower.on_appended(log.start_offset(), log.end_offset(), leader);
                if let Some(start) = moved.log_start {
                    log.advance_start(start).map_err(AppendError::Log)?;
                }
            }
            FollowerStep::Truncate { to, .. } => {
                self.truncations += u64::from(to < log.end_offset());
                log.truncate_to(to, now).map_err(AppendError::Log)?;
                follower.on_cut(log.start_offset(), log.end_offset());
            }
            FollowerStep::StartOver { at, .. } => {
                self.starts_over += 1;
                log.truncate_fully_and_start_at(at, now).map_err(AppendError::Log)?;
                follower.on_cut(log.start_offset(), log.end_offset());
            }
            FollowerStep::Append { .. } | FollowerStep::Nothing => {}
        }
        self.is_cut |= self.log.recovery_checkpoint() < synced;
        Ok(())
    }

    fn flush_now(&mut self) -> Result<(), LogError> {
        if let Some(token) = self.log.flush()? {
            let flushed = token.complete()?;
            self.log.flushed(flushed);
        }
        self.unflushed = 0;
        Ok(())
    }

    /// Completes a sync that is due, and begins one that is wanted, which takes its time.
    pub(super) fn sync(&mut self, now: Nanos, random: &mut Random, wall: Timestamp) -> Result<(), LogError> {
        if let Some((_, token)) = self.flushing.take_if(|(due, _)| *due <= now) {
            match token.complete() {
                Ok(flushed) => self.log.flushed(flushed),
                Err(error) if error.is_disk_full() => self.flush_wanted = true,
                Err(error) => return Err(error),
            }
            let durable = self.log.recovery_point();
            if let (Role::Leader(leader), true) = (&mut self.role, self.settings.syncs_before_acknowledging()) {
                leader.on_durable(durable, wall);
            }
        }
        if self.flush_wanted && self.flushing.is_none() {
            match self.log.flush() {
                Ok(token) => {
                    self.flushing = token.map(|token| (now + random.between(SYNC.start, SYNC.end), token));
                }
                Err(error) if error.is_disk_full() => return Ok(()),
                Err(error) => return Err(error),
            }
            (self.flush_wanted, self.unflushed) = (false, 0);
        }
        Ok(())
    }

    /// Whether it wants a sync, and none is under way.
    pub(super) const fn wants_sync(&self) -> bool {
        self.flush_wanted && self.flushing.is_none()
    }

    /// When the sync under way is to be completed.
    pub(super) fn sync_due(&self) -> Option<Nanos> {
        self.flushing.as_ref().map(|(due, _)| *due)
    }

    /// The leader looks for followers that are too far behind.
    pub(super) fn drop_laggards(&mut self, now: Timestamp) {
        if let Role::Leader(leader) = &mut self.role
            && let Some(proposal) = leader.on_tick(now)
        {
            self.proposal = Some(proposal);
        }
    }

    /// What the controller is to be asked for and was not yet.
    pub(super) fn take_proposal(&mut self) -> Option<IsrProposal> {
        self.proposal.take()
    }

    /// The replica is to go: whoever waits is told.
    pub(super) fn give_up(&mut self) -> Vec<(Return, Answer)> {
        let mut answers = std::mem::take(&mut self.answers);
        for waiting in std::mem::take(&mut self.waiting) {
            answers.push((waiting.back, Answer::Refused(ErrorCode::NotLeaderOrFollower)));
        }
        answers
    }

    /// The answers that may leave: what they say is committed, or never will be.
    pub(super) fn take_answers(&mut self) -> Vec<(Return, Answer)> {
        let mut ready = std::mem::take(&mut self.answers);
        if let Role::Leader(leader) = &self.role {
            let (committed, epoch) = (leader.high_watermark(), leader.leader_epoch());
            let enough = leader.check_min_isr().is_ok();
            self.waiting.retain(|waiting| {
                let is_ready = waiting.end <= committed || waiting.epoch != epoch;
                if is_ready && waiting.epoch != epoch {
                    ready.push((waiting.back, Answer::Refused(ErrorCode::NotLeaderOrFollower)));
                } else if is_ready && enough {
                    ready.push((waiting.back, Answer::Produced(waiting.base, epoch)));
                } else if is_ready {
                    ready.push((waiting.back, Answer::Refused(ErrorCode::NotEnoughReplicasAfterAppend)));
                }
                !is_ready
            });
        }
        ready
    }
}

impl FollowerLog for Replica {
    fn position(&self) -> LogPosition {
        let log = &self.log;
        LogPosition { start: log.start_offset(), end: log.end_offset(), last_epoch: log.last_epoch() }
    }

    fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<EpochEnd> {
        known(self.log.end_offset_for_epoch(epoch))
    }
}

/// The part of an answer that says no.
pub(super) const fn refusal(error: ErrorCode) -> PartitionAnswer {
    let leader = LeaderMarks { high_watermark: Offset::NONE, log_start: Offset::NONE };
    PartitionAnswer { error, leader, diverging: None }
}

fn introduce(
    leader: &mut LeaderState,
    assignment: &PartitionAssignment,
    registered: impl Fn(BrokerId) -> Option<Registration>,
    now: Timestamp,
) {
    for id in &assignment.replicas {
        leader.on_registration(*id, registered(*id), now);
    }
}

fn known(end: EpochEndOffset) -> Option<EpochEnd> {
    (end.end_offset != Offset::NONE).then_some(EpochEnd { epoch: end.leader_epoch, end: end.end_offset })
}

/// The whole batches up to the first of a leadership that this broker has not heard of.
fn known_part(records: &[u8], leader_epoch: LeaderEpoch) -> &[u8] {
    let mut known = 0;
    for batch in split_batches(records) {
        let Ok(batch) = batch else { break };
        if batch.leader_epoch > leader_epoch {
            break;
        }
        known += batch.bytes().len();
    }
    &records[..known]
}

/// A topic's settings with segments a thousandth as large, as in a world of one node.
fn small(config: &LogConfig) -> Arc<LogConfig> {
    Arc::new(LogConfig { segment_bytes: config.segment_bytes / 1_000, ..config.clone() })
}
