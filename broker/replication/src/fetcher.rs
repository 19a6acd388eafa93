//! The partitions that a broker follows at one leader: what to ask it for next, and what to do with each answer
//! (`AbstractFetcherThread`, `RemoteLeaderEndPoint`).
//!
//! The server has a task for each fetcher. It sends what [`Fetcher::next`] says, one request at a time, and hands back the
//! answer, partition by partition; each gives a [`FollowerStep`] to do to the partition's log, under the partition's lock and
//! only while [`crate::FollowerState::admits`] the step's epoch. Then it says where the log ends now. Nothing here waits, or
//! sees a record, a log or a socket. Work per request is for the partitions that changed since the last, not for all.

mod assign;
mod partition;
mod requests;
mod session;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use gregor_types::{ErrorCode, LeaderEpoch, Offset, Timestamp, planted::planted};

use partition::{Entry, Phase};
use session::Session;

pub use assign::{FetcherId, fetcher_index};
pub use requests::{
    FetchPlan, FetchPosition, FetcherConfig, FollowedPartition, FollowerLog, FollowerStep, LogPosition, LogSide,
    NextRequest, OffsetLookUp, PartitionAnswer, StepFailure,
};

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetcher {
    config: FetcherConfig,
    session: Session,
    partitions: BTreeMap<FollowedPartition, Entry>,
    /// Whose part of the session may have to change.
    changed: BTreeSet<FollowedPartition>,
    /// Who pauses until when.
    delayed: BTreeSet<(Timestamp, FollowedPartition)>,
    /// Who waits for an end of the leader's log.
    look_ups: BTreeSet<FollowedPartition>,
    throttled: BTreeSet<FollowedPartition>,
    /// Counts answers, so that a full request can begin with who was served longest ago.
    turn: u64,
    failures: u32,
    paused_until: Option<Timestamp>,
}

impl Fetcher {
    /// Follows nothing yet.
    pub fn new(config: FetcherConfig) -> Self {
        Self {
            config,
            session: Session::new(),
            partitions: BTreeMap::new(),
            changed: BTreeSet::new(),
            delayed: BTreeSet::new(),
            look_ups: BTreeSet::new(),
            throttled: BTreeSet::new(),
            turn: 0,
            failures: 0,
            paused_until: None,
        }
    }

    /// Whether it follows nothing, so that its task may end once [`Fetcher::next`] says to wait.
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// How many records a partition is behind its leader, as far as is known.
    pub fn lag(&self, partition: FollowedPartition) -> Option<i64> {
        self.partitions.get(&partition)?.lag
    }

    /// Whether a partition stands still until the metadata says something new of it.
    pub fn is_stopped(&self, partition: FollowedPartition) -> bool {
        self.partitions.get(&partition).is_some_and(|entry| matches!(entry.phase, Phase::Fenced | Phase::Failed))
    }

    /// The leader leads the partition in this epoch, and this broker's log is so. A state of the same or an older epoch than is
    /// known changes nothing.
    ///
    /// A log with epochs is never cut here: the leader's first answer says where histories part. A log without any (of
    /// messages before version 2) cannot tell, so it is cut to the high watermark, as Kafka does.
    pub fn follow(
        &mut self,
        partition: FollowedPartition,
        leader_epoch: LeaderEpoch,
        log: LogPosition,
        high_watermark: Offset,
    ) -> FollowerStep {
        let known = self.partitions.get(&partition);
        if known.is_some_and(|entry| entry.position.leader_epoch >= leader_epoch) {
            return FollowerStep::Nothing;
        }
        let in_session = known.and_then(|entry| entry.in_session);
        let served = known.map_or(0, |entry| entry.served);
        let knows_epochs = log.last_epoch != LeaderEpoch::NONE && !planted("cut-to-high-watermark");
        let cuts = !knows_epochs && high_watermark < log.end;
        let phase = if cuts { Phase::Working } else { Phase::Fetching };
        self.forget_waits(partition);
        let entry = Entry::new(FetchPosition::at(log, leader_epoch), phase, in_session, served);
        self.partitions.insert(partition, entry);
        // The leader need not forget it: it is named again, which replaces what the session has of it.
        self.session.remembers(partition);
        self.changed.insert(partition);
        if cuts { FollowerStep::Truncate { leader_epoch, to: high_watermark } } else { FollowerStep::Nothing }
    }

    /// The partition is another's to follow from now on, or nobody's.
    pub fn unfollow(&mut self, partition: FollowedPartition) {
        self.forget_waits(partition);
        self.changed.remove(&partition);
        self.throttled.remove(&partition);
        if self.partitions.remove(&partition).is_some_and(|entry| entry.in_session.is_some()) {
            self.session.forgets(partition);
        }
    }

    /// Whether the partition is among `follower.replication.throttled.replicas`.
    pub fn set_throttled(&mut self, partition: FollowedPartition, throttled: bool) {
        let moved = if throttled { self.throttled.insert(partition) } else { self.throttled.remove(&partition) };
        if moved {
            self.changed.insert(partition);
        }
    }

    /// Whether what is fetched of the partition counts against the throttle.
    pub fn is_throttled(&self, partition: FollowedPartition) -> bool {
        self.throttled.contains(&partition)
    }

    /// Retention or the leader moved the start of the partition's log, which the leader wants to know.
    pub fn on_log_start(&mut self, partition: FollowedPartition, log_start: Offset) {
        if let Some(entry) = self.partitions.get_mut(&partition) {
            entry.position.log_start = log_start;
            self.changed.insert(partition);
        }
    }

    /// What to send now. `throttled_until` is what [`crate::ReplicationQuota::exceeded_until`] says: until then, throttled
    /// partitions that are behind are left out.
    pub fn next(&mut self, throttled_until: Option<Timestamp>, now: Timestamp) -> NextRequest {
        while let Some((at, partition)) = self.delayed.first().copied().filter(|(at, _)| *at <= now) {
            self.delayed.remove(&(at, partition));
            if let Some(entry) = self.partitions.get_mut(&partition) {
                entry.paused_until = None;
                if matches!(entry.phase, Phase::LookingUp(_)) {
                    self.look_ups.insert(partition);
                }
                self.changed.insert(partition);
            }
        }
        if let Some(until) = self.paused_until.filter(|until| *until > now) {
            return NextRequest::Wait(Some(until));
        }
        self.paused_until = None;
        if !self.look_ups.is_empty() {
            return NextRequest::LookUp(self.take_look_ups());
        }
        if !self.throttled.is_empty() {
            // Whether they may be fetched depends on the quota, which moves by itself.
            self.changed.extend(self.throttled.iter().copied());
        }
        if let Some(plan) = self.plan_fetch(throttled_until.is_some()) {
            return NextRequest::Fetch(plan);
        }
        let delayed = self.delayed.first().map(|(at, _)| *at);
        let throttled = throttled_until.filter(|_| !self.throttled.is_empty());
        NextRequest::Wait(delayed.into_iter().chain(throttled).min())
    }

    /// The request failed, or its answer as a whole could not be read: all is asked for again after a pause, in a new
    /// session.
    pub fn on_request_failed(&mut self, number: u64, now: Timestamp) {
        if self.session.fails(number) {
            self.pause(now);
        }
    }

    /// The answer to a Fetch. `answered` names the partitions in it. Whether they are to be gone through.
    pub fn on_fetched(
        &mut self,
        number: u64,
        error: ErrorCode,
        session_id: i32,
        answered: impl Iterator<Item = FollowedPartition>,
        now: Timestamp,
    ) -> bool {
        let Self { session, partitions, .. } = self;
        let in_session = |partition| partitions.get(&partition).is_some_and(|entry| entry.in_session.is_some());
        match session.answered(number, error, session_id, answered, in_session) {
            session::Verdict::Good => {
                self.failures = 0;
                true
            }
            // A leader that forgot the session is asked for another at once, but not over and over.
            session::Verdict::Bad if error == ErrorCode::FetchSessionIdNotFound && self.failures == 0 => {
                self.failures = 1;
                false
            }
            session::Verdict::Bad => {
                self.pause(now);
                false
            }
            session::Verdict::Stale => false,
        }
    }

    /// One partition's part of an answer that is to be gone through.
    pub fn on_answer(
        &mut self,
        partition: FollowedPartition,
        answer: &PartitionAnswer,
        log: &dyn FollowerLog,
        now: Timestamp,
    ) -> FollowerStep {
        let Some(entry) = self.partitions.get_mut(&partition) else { return FollowerStep::Nothing };
        // What was asked for is what the session has. If the partition has moved since, the answer is of another position or
        // leadership.
        let is_current = entry.phase == Phase::Fetching
            && entry.paused_until.is_none()
            && entry.in_session.is_some_and(|asked| asked.matches(&entry.position));
        if !is_current {
            return FollowerStep::Nothing;
        }
        match answer.error {
            ErrorCode::None => {}
            ErrorCode::OffsetOutOfRange => {
                self.look_up(partition, LogSide::Latest);
                return FollowerStep::Nothing;
            }
            // The leader's leadership is newer than the one that the metadata has told this broker of.
            ErrorCode::FencedLeaderEpoch => {
                entry.phase = Phase::Fenced;
                self.changed.insert(partition);
                return FollowerStep::Nothing;
            }
            _ => {
                self.delay(partition, now);
                return FollowerStep::Nothing;
            }
        }
        let leader_epoch = entry.position.leader_epoch;
        entry.phase = Phase::Working;
        self.changed.insert(partition);
        if let Some(leaders) = answer.diverging {
            return FollowerStep::Truncate { leader_epoch, to: partition::cut_for(leaders, log) };
        }
        entry.leader_high_watermark = answer.leader.high_watermark;
        FollowerStep::Append { leader_epoch, from: entry.position.offset, leader: answer.leader }
    }

    /// The answer to a look-up: the offset, or the partition's error; a request that failed is an error of each of its
    /// partitions.
    pub fn on_looked_up(
        &mut self,
        asked: &OffsetLookUp,
        answer: Result<Offset, ErrorCode>,
        log: &dyn FollowerLog,
        now: Timestamp,
    ) -> FollowerStep {
        let partition = asked.partition;
        let Some(entry) = self.partitions.get_mut(&partition) else { return FollowerStep::Nothing };
        if entry.phase != Phase::LookingUp(asked.end) || entry.position.leader_epoch != asked.leader_epoch {
            return FollowerStep::Nothing;
        }
        let offset = match answer {
            Ok(offset) => offset,
            Err(ErrorCode::FencedLeaderEpoch) => {
                entry.phase = Phase::Fenced;
                self.changed.insert(partition);
                return FollowerStep::Nothing;
            }
            Err(_) => {
                self.delay(partition, now);
                return FollowerStep::Nothing;
            }
        };
        let leader_epoch = entry.position.leader_epoch;
        let end = log.position().end;
        match asked.end {
            // An unclean election has made a replica leader that has less.
            LogSide::Latest if offset < end => {
                entry.phase = Phase::Working;
                FollowerStep::Truncate { leader_epoch, to: offset }
            }
            LogSide::Latest => {
                self.look_up(partition, LogSide::Earliest);
                FollowerStep::Nothing
            }
            LogSide::Earliest if offset > end => {
                entry.phase = Phase::Working;
                FollowerStep::StartOver { leader_epoch, at: offset }
            }
            LogSide::Earliest => {
                // The leader has what is wanted next, after all. If it says so over and over, pauses grow.
                entry.phase = Phase::Fetching;
                entry.position = FetchPosition::at(log.position(), leader_epoch);
                self.delay(partition, now);
                FollowerStep::Nothing
            }
        }
    }

    /// A step was done, or found that the partition had changed meanwhile: its log is so now.
    pub fn on_log_changed(&mut self, partition: FollowedPartition, log: LogPosition, now: Timestamp) {
        let Some(entry) = self.partitions.get_mut(&partition) else { return };
        let before = entry.position;
        entry.position = FetchPosition::at(log, before.leader_epoch);
        self.changed.insert(partition);
        let worked = entry.phase == Phase::Working;
        if worked {
            entry.phase = Phase::Fetching;
        }
        let appends = entry.leader_high_watermark != Offset::NONE;
        if appends {
            entry.lag = Some((entry.leader_high_watermark.value() - log.end.value()).max(0));
            entry.leader_high_watermark = Offset::NONE;
        }
        if log.end > before.offset {
            self.turn += 1;
            entry.served = self.turn;
        }
        if worked && !appends && entry.position == before {
            // A cut that cut nothing would be asked for again at once, for ever.
            self.delay(partition, now);
        } else {
            entry.failures = 0;
        }
    }

    /// A step could not be done.
    pub fn on_step_failed(&mut self, partition: FollowedPartition, failure: StepFailure, now: Timestamp) {
        let Some(entry) = self.partitions.get_mut(&partition) else { return };
        if entry.phase != Phase::Working {
            return;
        }
        entry.leader_high_watermark = Offset::NONE;
        match failure {
            StepFailure::Transient => {
                entry.phase = Phase::Fetching;
                self.delay(partition, now);
            }
            StepFailure::Permanent => {
                entry.phase = Phase::Failed;
                self.changed.insert(partition);
            }
        }
    }

    fn take_look_ups(&mut self) -> Vec<OffsetLookUp> {
        let mut taken = Vec::new();
        for partition in std::mem::take(&mut self.look_ups) {
            if let Some(entry) = self.partitions.get(&partition)
                && let Phase::LookingUp(end) = entry.phase
            {
                taken.push(OffsetLookUp { partition, leader_epoch: entry.position.leader_epoch, end });
            }
        }
        taken
    }

    fn plan_fetch(&mut self, throttles: bool) -> Option<FetchPlan> {
        let Self { session, partitions, changed, throttled, .. } = self;
        let asks_all = session.begins();
        let mut wanted = Vec::new();
        let mut forgotten = Vec::new();
        let mut consider = |partition: FollowedPartition, entry: &mut Entry| {
            let holds_back = throttles && entry.is_behind() && throttled.contains(&partition);
            let before = entry.in_session.filter(|_| !asks_all);
            let now = (entry.is_ready() && !holds_back).then_some(entry.position);
            entry.in_session = now;
            match (before, now) {
                (before, Some(position)) if before != now => {
                    wanted.push((entry.served, partition, position));
                    session.has_more(usize::from(before.is_none()));
                }
                (Some(_), None) => {
                    forgotten.push(partition);
                    session.has_less();
                }
                _ => {}
            }
        };
        let changed = std::mem::take(changed);
        if asks_all {
            for (partition, entry) in partitions.iter_mut() {
                consider(*partition, entry);
            }
        } else {
            for partition in changed {
                if let Some(entry) = partitions.get_mut(&partition) {
                    consider(partition, entry);
                }
            }
        }
        wanted.sort_unstable_by_key(|(served, partition, _)| (*served, *partition));
        let wanted = wanted.into_iter().map(|(_, partition, position)| (partition, position)).collect();
        session.plan(wanted, forgotten)
    }

    fn look_up(&mut self, partition: FollowedPartition, end: LogSide) {
        let Some(entry) = self.partitions.get_mut(&partition) else { return };
        entry.phase = Phase::LookingUp(end);
        self.look_ups.insert(partition);
        self.changed.insert(partition);
    }

    /// Leaves a partition alone for a while, longer each time in a row.
    fn delay(&mut self, partition: FollowedPartition, now: Timestamp) {
        let Some(entry) = self.partitions.get_mut(&partition) else { return };
        let until = now.plus_ms(self.config.backoff(entry.failures));
        entry.failures = entry.failures.saturating_add(1);
        if let Some(old) = entry.paused_until.replace(until) {
            self.delayed.remove(&(old, partition));
        }
        self.delayed.insert((until, partition));
        self.changed.insert(partition);
    }

    fn pause(&mut self, now: Timestamp) {
        self.paused_until = Some(now.plus_ms(self.config.backoff(self.failures)));
        self.failures = self.failures.saturating_add(1);
    }

    fn forget_waits(&mut self, partition: FollowedPartition) {
        self.look_ups.remove(&partition);
        if let Some(until) = self.partitions.get_mut(&partition).and_then(|entry| entry.paused_until.take()) {
            self.delayed.remove(&(until, partition));
        }
    }
}
