//! Reads of a partition: what a fetch gets, and how it gets it without holding up the thread that asks.
//!
//! `api/fetch.rs` first asks by [`Partition::read_now`], which waits for nothing: neither for the disk nor for an append that
//! holds the lock. What that cannot tell a thread that may block asks by [`Partition::read`], as the group coordinator does.
//! Consumers may read from followers too, up to what those know to be committed (KIP-392).

use std::{
    io,
    sync::{Arc, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use gregor_log::{AbortedTransaction, EpochEndOffset, LogError, ReadError, ReadPlan, ReadRequest, disk};
use gregor_replication::{History, check_leader_epoch, compare_history};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Offset};

use super::{FollowerReader, Partition, Role, State, following::known};

/// A lock that is still held after so long, and a turn of other threads, is held by an append that takes long, or that has no processor.
const LOCK_PATIENCE: Duration = Duration::from_millis(1);

/// Which records a reader may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// All that is committed: up to the high watermark.
    ReadUncommitted,
    /// Only what no open transaction can undo: up to the last stable offset.
    ReadCommitted,
    /// A follower reads all there is.
    LogEnd,
}

/// A read, ready to be sent.
#[derive(Debug)]
pub(crate) struct Read {
    /// Where the bytes lie.
    pub(crate) plan: ReadPlan,
    /// What the response says beside them.
    pub(crate) marks: Marks,
    /// The aborted transactions in the range, for a read-committed reader.
    pub(crate) aborted: Option<Vec<AbortedTransaction>>,
    /// The reader's log differs from ours after this point (KIP-595).
    pub(crate) diverging: Option<EpochEndOffset>,
    /// From where the reader is to read instead (KIP-392).
    pub(crate) preferred: Option<BrokerId>,
    /// What there is for a follower beyond this.
    pub(crate) supply: Supply,
    /// As what a follower's bytes count.
    pub(crate) traffic: Traffic,
}

/// What a leader has for a follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Supply {
    /// There may be more with any fetch, or the follower may be in sync.
    #[default]
    Open,
    /// The follower is in sync and has everything: it need not be looked at before something changes.
    Complete,
    /// A throttle keeps from the follower what there is (KIP-73).
    HeldBack,
}

/// As what bytes for a follower are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Traffic {
    /// This leader is among `leader.replication.throttled.replicas`.
    pub(crate) is_throttled: bool,
    /// A reassignment brings the follower.
    pub(crate) is_reassignment: bool,
}

/// The offsets that a fetch response shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Everything before it is committed.
    pub(crate) high_watermark: Offset,
    /// No open transaction began before it.
    pub(crate) last_stable_offset: Offset,
    /// The first offset that is kept.
    pub(crate) log_start: Offset,
}

/// What is asked of one partition.
#[derive(Clone, Copy)]
pub(crate) struct Query<'a> {
    /// The first offset wanted.
    pub(crate) from: Offset,
    /// The leader epoch that the reader knows.
    pub(crate) current_leader_epoch: LeaderEpoch,
    /// The epoch of the last record that it has.
    pub(crate) last_fetched_epoch: LeaderEpoch,
    /// Bytes at most.
    pub(crate) max_bytes: u32,
    /// Whether the first batch is given even if it is larger.
    pub(crate) min_one_batch: bool,
    /// What it may see.
    pub(crate) isolation: Isolation,
    /// Whether a replica that does not lead may answer (KIP-392).
    pub(crate) of_any_replica: bool,
    /// The brokers in the reader's rack, where the leader is to send it to them.
    pub(crate) near: &'a [BrokerId],
    /// Who asks, where that is a follower.
    pub(crate) follower: Option<FollowerReader<'a>>,
}

/// Why a read gives nothing.
enum Failed {
    /// What to answer.
    Refused(ErrorCode),
    /// The log cannot be read, or not without waiting.
    Read(ReadError),
}

impl Partition {
    /// Plans a read by a consumer or by a follower. Waits for the disk, and for whoever has the lock.
    pub(crate) fn read(self: &Arc<Self>, query: &Query<'_>) -> Result<Read, ErrorCode> {
        self.check_online()?;
        self.plan(self.lock(), query).map_err(|failed| self.on_failed(failed))
    }

    /// The same, of what is in memory: `None` where it would have to wait.
    pub(crate) fn read_now(self: &Arc<Self>, query: &Query<'_>) -> Option<Result<Read, ErrorCode>> {
        if let Err(error) = self.check_online() {
            return Some(Err(error));
        }
        let mut state = self.try_lock_a_while()?;
        // Opening one reads small files, and may not fail in the midst.
        if state.log.opened_mut().is_none() && !state.log.is_gone() {
            return None;
        }
        match disk::without_waiting(|| self.plan(state, query)) {
            Err(Failed::Read(ReadError::Log(LogError::Io { source, .. })))
                if source.kind() == io::ErrorKind::WouldBlock =>
            {
                None
            }
            Ok(read) if !read.plan.is_cached() => None,
            Ok(read) => Some(Ok(read)),
            Err(failed) => Some(Err(self.on_failed(failed))),
        }
    }

    /// Has a plan's bytes in memory. Waits for the disk.
    pub(crate) fn read_ahead(&self, plan: &ReadPlan) -> Result<(), ErrorCode> {
        plan.read_ahead().map_err(|source| {
            let path = self.directory().path.clone();
            self.on_read_error(&ReadError::Log(LogError::Io { path, source }))
        })
    }

    /// An append in memory takes microseconds: so long is worth a few turns.
    fn try_lock_a_while(&self) -> Option<MutexGuard<'_, State>> {
        let begun = Instant::now();
        loop {
            let state = self.try_lock();
            if state.is_some() || begun.elapsed() > LOCK_PATIENCE {
                return state;
            }
            thread::yield_now();
        }
    }

    fn plan(self: &Arc<Self>, mut state: MutexGuard<'_, State>, query: &Query<'_>) -> Result<Read, Failed> {
        let Query { from, last_fetched_epoch, max_bytes, min_one_batch, isolation, follower, near, .. } = *query;
        let mut high_watermark = state.readable(query)?;
        let State { log, settings, role, .. } = &mut *state;
        let log = self.usable(log, settings)?;
        let mut marks = Marks {
            high_watermark,
            last_stable_offset: log.last_stable_offset(high_watermark),
            log_start: log.start_offset(),
        };
        if let (Role::Leader(leader), false) = (role, near.is_empty())
            && let preferred @ Some(_) = leader.preferred_read_replica(from, near)
        {
            return Ok(Read { preferred, ..Read::empty(marks) });
        }
        let here = known(log.cut_for_epoch(last_fetched_epoch)?);
        match compare_history(from, last_fetched_epoch, marks.log_start, here) {
            History::Same => {}
            History::OutOfRange => return Err(Failed::Refused(ErrorCode::OffsetOutOfRange)),
            History::Diverged(end) => {
                let diverging = Some(EpochEndOffset { leader_epoch: end.epoch, end_offset: end.end });
                return Ok(Read { diverging, ..Read::empty(marks) });
            }
        }
        let upper_bound = match isolation {
            Isolation::ReadUncommitted => high_watermark,
            Isolation::ReadCommitted => marks.last_stable_offset,
            Isolation::LogEnd => log.end_offset(),
        };
        // A consumer may stand between the high watermark and the log's end after a change of leaders: it waits there.
        if from < marks.log_start || from > log.end_offset() {
            return Err(Failed::Refused(ErrorCode::OffsetOutOfRange));
        }
        if let Some(follower) = &follower {
            self.note_fetch(&mut state, query, follower)?;
            high_watermark = state.high_watermark();
            marks.high_watermark = high_watermark;
        }
        let State { log, settings, role, .. } = &mut *state;
        let log = self.usable(log, settings)?;
        let mut read = Read::empty(marks);
        if let (Some(follower), Role::Leader(leader)) = (&follower, role) {
            let is_throttled = settings.throttled.leaders.contains(self.index);
            read.traffic = Traffic { is_throttled, is_reassignment: leader.is_adding(follower.replica) };
            let in_sync = leader.is_in_sync(follower.replica);
            if in_sync && from == log.end_offset() {
                read.supply = Supply::Complete;
            } else if !in_sync && is_throttled && follower.is_over_quota {
                read.supply = Supply::HeldBack;
            }
        }
        if isolation == Isolation::ReadCommitted {
            read.aborted = Some(Vec::new());
        }
        if from < upper_bound && (max_bytes > 0 || min_one_batch) && read.supply != Supply::HeldBack {
            let request = ReadRequest { from, upper_bound, max_bytes, min_one_batch };
            read.plan = log.read(&request)?;
            if isolation == Isolation::ReadCommitted && !read.plan.is_empty() {
                read.aborted = Some(log.aborted_transactions_in(from, upper_bound, &read.plan)?);
            }
        }
        drop(state);
        if read.plan.needs_check() {
            read.plan = std::mem::take(&mut read.plan).check()?;
        }
        Ok(read)
    }

    fn on_failed(&self, failed: Failed) -> ErrorCode {
        match failed {
            Failed::Refused(error) => error,
            Failed::Read(error) => self.on_read_error(&error),
        }
    }
}

impl Read {
    fn empty(marks: Marks) -> Self {
        let (supply, traffic) = (Supply::default(), Traffic::default());
        Self { plan: ReadPlan::default(), marks, aborted: None, diverging: None, preferred: None, supply, traffic }
    }
}

impl State {
    /// Up to where it is committed, where this replica may answer the reader. One that does not lead may know of less than it has.
    fn readable(&self, query: &Query<'_>) -> Result<Offset, ErrorCode> {
        match &self.role {
            Role::Follower(follower) if query.of_any_replica => {
                check_leader_epoch(query.current_leader_epoch, follower.leader_epoch())?;
                Ok(follower.high_watermark())
            }
            Role::Leader(_) | Role::Follower(_) => Ok(self.leader(query.current_leader_epoch)?.high_watermark()),
        }
    }
}

impl From<ErrorCode> for Failed {
    fn from(error: ErrorCode) -> Self {
        Self::Refused(error)
    }
}

impl From<ReadError> for Failed {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<LogError> for Failed {
    fn from(error: LogError) -> Self {
        Self::Read(ReadError::Log(error))
    }
}
