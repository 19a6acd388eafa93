//! A partition as a follower of another broker's: appends what its fetcher fetched, cuts what its leader does not have.
//!
//! `fetchers/` calls it, on a thread that may wait for the disk where more than a quick append is to be done. Each step is done only
//! while the leadership that it was decided under is the partition's, and by the fetcher that took the partition over last,
//! which is looked at under the same lock.

use std::sync::{Arc, atomic::Ordering};

use gregor_log::{AppendError, EpochEndOffset, LogError, PartitionLog};
use gregor_replication::{EpochEnd, FollowerLog, FollowerStep, LeaderMarks, LogPosition, StepFailure};
use gregor_types::{LeaderEpoch, Offset, Timestamp};
use gregor_wire::batch::split_batches;

use super::{Partition, Role, State};
use crate::storage::Flush;

/// More records are not written in a moment.
pub(crate) const QUICK_BYTES_MAX: usize = 256 << 10;

/// By what a fetcher follows a partition: the higher one counts, where two think that the partition is theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Assignment {
    /// Counts what all fetchers of the broker are given to follow.
    pub(crate) number: u64,
    /// Counts by which of a fetcher's tasks it was followed since.
    pub(crate) turn: u64,
}

/// Why a partition is not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotFollowed {
    /// Its log is gone, or a later assignment's.
    Over,
    /// Its log cannot be opened or synced now; it may be later.
    Yet,
}

/// What a step fails with.
enum Failed {
    Append(AppendError),
    Log(LogError),
}

impl From<AppendError> for Failed {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Log(error) => Self::Log(error),
            error => Self::Append(error),
        }
    }
}

impl From<LogError> for Failed {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

impl Partition {
    /// From now on only this assignment's steps are done. Where its log starts and ends, and the high watermark.
    ///
    /// Whoever asks a leader for what follows says that all before is here to stay. Where only synced records count, what a run that was
    /// killed, or a leadership that is over, has left unsynced is therefore synced first.
    pub(crate) fn followed_from(&self, by: Assignment, now: Timestamp) -> Result<(LogPosition, Offset), NotFollowed> {
        self.check_online().map_err(|_| NotFollowed::Over)?;
        let mut state = self.lock();
        if by < state.followed_by {
            return Err(NotFollowed::Over);
        }
        state.followed_by = by;
        let is_unsynced = state.has_unsynced_that_count();
        drop(state);
        if is_unsynced {
            self.flush(now);
        }
        let look = |log: &mut PartitionLog, high_watermark| (position(log), high_watermark);
        let position = self.with_log(look);
        let state = self.lock();
        if self.is_offline() || state.log.is_gone() {
            return Err(NotFollowed::Over);
        }
        // A full disk may have room later, and it may be another log by now.
        if state.has_unsynced_that_count() {
            return Err(NotFollowed::Yet);
        }
        position.ok_or(NotFollowed::Yet)
    }

    /// Whether an append of no more than [`QUICK_BYTES_MAX`] is made in a moment: nothing of its log has to be read before, nor synced
    /// afterwards, and its directory is not slow.
    pub(crate) fn appends_quickly(&self) -> bool {
        if self.home.load().appends.is_slow() {
            return false;
        }
        // Who holds it may be stuck.
        let Some(mut state) = self.try_lock() else { return false };
        state.log.opened_mut().is_some() && !state.settings.syncs_before_acknowledging()
    }

    /// Whether it is among `follower.replication.throttled.replicas`.
    pub(crate) fn follows_throttled(&self) -> bool {
        self.lock().settings.throttled.followers.contains(self.index)
    }

    /// Its fetcher says how many records it is behind, as far as that is known.
    pub(crate) fn set_lag(&self, records: Option<i64>) {
        self.lag.store(records.unwrap_or(0), Ordering::Relaxed);
    }

    /// Does what a fetcher decided. Gives the log's position afterwards, also where the step was not done because the
    /// partition's leadership has changed, or it is another fetcher's.
    pub(crate) fn follow_step(
        self: &Arc<Self>,
        step: FollowerStep,
        by: Assignment,
        records: &[u8],
        now: Timestamp,
    ) -> Result<LogPosition, StepFailure> {
        if matches!(step, FollowerStep::Truncate { .. } | FollowerStep::StartOver { .. }) {
            self.outdate_future(|| self.do_locked(step, by, records, now))
        } else {
            self.do_locked(step, by, records, now)
        }
    }

    fn do_locked(
        self: &Arc<Self>,
        step: FollowerStep,
        by: Assignment,
        records: &[u8],
        now: Timestamp,
    ) -> Result<LogPosition, StepFailure> {
        self.check_online().map_err(|_| StepFailure::Permanent)?;
        let mut state = self.lock();
        let before = (state.log.start_offset(), state.high_watermark());
        let done = self.do_step(&mut state, step, by, records, now);
        let after = (state.log.start_offset(), state.high_watermark());
        if after.1 != before.1 {
            // Consumers that read here wait for it (KIP-392).
            state.on_high_watermark(Some(after.1), &self.waiters);
        }
        self.on_marks([before.0], [after.0]);
        let is_synced = state.log.recovery_point() >= state.log.end_offset();
        let wants_flush = state.log.opened_mut().is_some_and(|log| log.has_unsynced_sealed_segments())
            || state.unflushed.is_some_and(|(records, _)| records >= state.settings.flush_messages);
        let syncs = state.settings.syncs_before_acknowledging();
        drop(state);
        if syncs && !is_synced {
            self.sync_followed(now)?;
        } else if wants_flush {
            self.home.load().request_flush(self);
        }
        match done {
            Ok(position) => position.ok_or(StepFailure::Permanent),
            Err(Failed::Append(error)) => {
                tracing::warn!(partition = %self.name(), %error, "what the leader sent cannot be appended; it is fetched again");
                Err(StepFailure::Transient)
            }
            Err(Failed::Log(error)) => {
                self.on_log_error(&error);
                Err(if self.is_offline() { StepFailure::Permanent } else { StepFailure::Transient })
            }
        }
    }

    /// The next fetch tells the leader that this replica has what it has, and the leader acknowledges it to producers.
    fn sync_followed(&self, now: Timestamp) -> Result<(), StepFailure> {
        let end = self.lock().log.end_offset();
        self.flush(now);
        let state = self.lock();
        if state.log.is_gone() || state.log.recovery_point() >= end {
            return Ok(());
        }
        drop(state);
        // A full disk may have room later: until then nothing of it is said.
        Err(if self.is_offline() { StepFailure::Permanent } else { StepFailure::Transient })
    }

    fn do_step(
        &self,
        state: &mut State,
        step: FollowerStep,
        by: Assignment,
        records: &[u8],
        now: Timestamp,
    ) -> Result<Option<LogPosition>, Failed> {
        let State { log, role, settings, unflushed, uncommitted_bytes, followed_by, .. } = state;
        let Some(log) = log.open(&settings.log)? else { return Ok(None) };
        let (FollowerStep::Append { leader_epoch, .. }
        | FollowerStep::Truncate { leader_epoch, .. }
        | FollowerStep::StartOver { leader_epoch, .. }) = step
        else {
            return Ok(Some(position(log)));
        };
        let Role::Follower(follower) = role else { return Ok(Some(position(log))) };
        if !follower.admits(leader_epoch) || *followed_by != by {
            return Ok(Some(position(log)));
        }
        let synced = log.recovery_checkpoint();
        match step {
            FollowerStep::Append { from, leader, .. } if from == log.end_offset() => {
                let bytes = u32::try_from(records.len()).unwrap_or(u32::MAX);
                let home = self.home.load();
                let timed = (1..=QUICK_BYTES_MAX).contains(&records.len()).then(|| home.appends.time());
                let appended = append(log, leader_epoch, records, now)?;
                drop(timed);
                if appended > 0 {
                    let (records, since) = unflushed.unwrap_or((0, now));
                    *unflushed = Some((records.saturating_add(appended), since));
                    *uncommitted_bytes = uncommitted_bytes.saturating_add(bytes);
                    self.isr_changes.metrics.bytes_in.inc_by(u64::from(bytes));
                    if self.is_reassigned.load(Ordering::Relaxed) {
                        self.isr_changes.metrics.reassignment_bytes_in.inc_by(u64::from(bytes));
                    }
                }
                let moved = follower.on_appended(log.start_offset(), log.end_offset(), leader);
                if let Some(start) = moved.log_start {
                    log.advance_start(start)?;
                }
            }
            FollowerStep::Truncate { to, .. } => {
                tracing::info!(partition = %self.name(), to = to.value(), end = log.end_offset().value(), "the log is cut back to its leader's");
                log.truncate_to(to, now)?;
                follower.on_cut(log.start_offset(), log.end_offset());
            }
            FollowerStep::StartOver { at, .. } => {
                tracing::warn!(partition = %self.name(), at = at.value(), "the leader's log starts behind the end of ours, which begins anew there");
                log.truncate_fully_and_start_at(at, now)?;
                follower.on_cut(log.start_offset(), log.end_offset());
            }
            FollowerStep::Append { .. } | FollowerStep::Nothing => {}
        }
        if log.recovery_checkpoint() < synced {
            self.home.load().lower_recovery_point(log.topic_partition().clone(), log.recovery_checkpoint());
        }
        Ok(Some(position(log)))
    }
}

impl State {
    /// Whether there are records that are not on the disk, where only those that are count.
    fn has_unsynced_that_count(&self) -> bool {
        let counts_synced = self.settings.syncs_before_acknowledging() && !self.log.is_gone();
        counts_synced && self.log.recovery_point() < self.log.end_offset()
    }
}

impl FollowerLog for Partition {
    fn position(&self) -> LogPosition {
        // A log that is gone has nothing; the step that follows says so.
        let gone = LogPosition { start: Offset::ZERO, end: Offset::ZERO, last_epoch: LeaderEpoch::NONE };
        self.with_log(|log, _| position(log)).unwrap_or(gone)
    }

    fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<EpochEnd> {
        self.with_log(|log, _| known(log.end_offset_for_epoch(epoch))).flatten()
    }
}

/// What is known of where an epoch ends.
pub(super) fn known(end: EpochEndOffset) -> Option<EpochEnd> {
    (end.end_offset != Offset::NONE).then_some(EpochEnd { epoch: end.leader_epoch, end: end.end_offset })
}

fn position(log: &PartitionLog) -> LogPosition {
    LogPosition { start: log.start_offset(), end: log.end_offset(), last_epoch: log.last_epoch() }
}

/// Appends the batches up to the first of a leadership that this broker has not heard of; gives how many offsets they take.
fn append(log: &mut PartitionLog, leader_epoch: LeaderEpoch, records: &[u8], now: Timestamp) -> Result<i64, Failed> {
    let mut known = 0;
    for batch in split_batches(records) {
        let batch = batch.map_err(AppendError::from)?;
        if batch.leader_epoch > leader_epoch {
            break;
        }
        known += batch.size as usize;
    }
    // A batch that is cut off at the end counts in no answer but one that has nothing else.
    if known == 0 && (records.is_empty() || split_batches(records).next().is_some()) {
        return Ok(0);
    }
    let before = log.end_offset();
    let whole = if known == 0 { records } else { &records[..known] };
    log.append_as_replica(whole, now)?;
    Ok(log.end_offset().value() - before.value())
}

/// What a leader says of its log, in a Fetch answer.
pub(crate) const fn leader_marks(high_watermark: i64, log_start: i64) -> LeaderMarks {
    LeaderMarks { high_watermark: Offset(high_watermark), log_start: Offset(log_start) }
}
