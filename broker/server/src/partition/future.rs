//! A partition's copy in another log directory, on its way to take the place of its log (KIP-113).
//!
//! `moves.rs` drives it from one thread: a step at a time, so that the partition serves on. Whoever holds the copy's lock may
//! take the partition's, never the other way round.

use std::sync::{Arc, MutexGuard, PoisonError};

use gregor_log::{AppendError, DeletedPartition, FlushToken, LogError, PartitionLog, ReadError, RestingLog};
use gregor_types::{DirectoryId, LeaderEpoch, Offset, Timestamp, TopicId, Uuid};
use tokio::sync::watch;

use super::Partition;
use crate::{held_log::HeldLog, storage::Directory};

/// What is copied at most while nobody can append, at the first try: the rest of a copy that is almost complete. Each further
/// try allows for twice as much, or a partition that is written fast enough would never move.
const TAIL_BYTES: u64 = 256 << 10;
const TAIL_DOUBLINGS_MAX: u32 = 8;
/// Read at once of the rest.
const TAIL_STEP_BYTES: u32 = 1 << 20;
/// From this try on, a swap waits for the disk while nobody can append.
const PATIENT_TRY: u32 = 8;

/// A copy on its way.
#[derive(Debug)]
pub(crate) struct Future {
    /// Where it goes.
    pub(crate) directory: Arc<Directory>,
    log: FutureLog,
    /// Where it begins, for those who wait for it to follow a deletion of records.
    start: watch::Sender<Offset>,
    /// Whether it has once had all: from then on the controller is told where the replica will be (KIP-858).
    announced: bool,
    /// Whether an earlier run left it. Of a compacted log it may hold records whose tombstones are gone since: it begins anew.
    is_found: bool,
    /// Whether the log was cut, so that the copy may hold what the log does not.
    is_outdated: bool,
}

#[derive(Debug)]
enum FutureLog {
    /// Found by the start; opened with the first step, as that may have to check it.
    Found(Box<RestingLog>),
    Open(Box<PartitionLog>),
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyStep {
    /// So many bytes were copied; there may be more.
    Copied(u64),
    /// The copy has all that the log has, at this moment.
    CaughtUp,
    /// There is no copy any more, or no log.
    Gone,
}

/// What an attempt to swap came to.
#[derive(Debug)]
pub(crate) enum Swap {
    /// The copy is the log now. The old one's folder waits to be removed, unless its directory failed meanwhile.
    Done(Option<DeletedPartition>),
    /// The copy lacks something again, more than is copied while everybody waits.
    NotYet,
    /// There is no copy any more, or no log.
    Gone,
}

/// Why a move does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MoveError {
    /// The log cannot be read.
    #[error("its log cannot be read: {0}")]
    Source(ReadError),
    /// The copy's directory failed.
    #[error("the directory that it moves to failed: {0}")]
    Target(LogError),
    /// What was read is not what was written.
    #[error("a batch is damaged, and a copy would hide that: {0}")]
    Damaged(AppendError),
}

impl Future {
    /// A new, empty copy.
    pub(crate) fn new(directory: Arc<Directory>, log: PartitionLog) -> Self {
        let start = watch::Sender::new(log.start_offset());
        Self {
            directory,
            log: FutureLog::Open(Box::new(log)),
            start,
            announced: false,
            is_found: false,
            is_outdated: false,
        }
    }

    /// A copy that an earlier run left, and that had to be checked.
    pub(crate) fn checked(directory: Arc<Directory>, log: PartitionLog) -> Self {
        Self { is_found: true, ..Self::new(directory, log) }
    }

    /// A copy that an earlier run left.
    pub(crate) fn found(directory: Arc<Directory>, log: RestingLog) -> Self {
        let start = watch::Sender::new(log.start_offset());
        Self {
            directory,
            log: FutureLog::Found(Box::new(log)),
            start,
            announced: false,
            is_found: true,
            is_outdated: false,
        }
    }

    /// The log, to be given up.
    pub(crate) fn into_log(self) -> HeldLog {
        match self.log {
            FutureLog::Found(log) => HeldLog::Resting(log, LeaderEpoch::NONE),
            FutureLog::Open(log) => HeldLog::Open(log),
        }
    }

    /// The topic that it is a replica of.
    pub(crate) fn topic_id(&self) -> Option<TopicId> {
        match &self.log {
            FutureLog::Found(log) => log.topic_id(),
            FutureLog::Open(log) => log.topic_id(),
        }
    }

    /// Its size in bytes and its end.
    pub(crate) fn extent(&self) -> (u64, Offset) {
        match &self.log {
            FutureLog::Found(log) => (log.size(), log.end_offset().unwrap_or(Offset::ZERO)),
            FutureLog::Open(log) => (log.size(), log.end_offset()),
        }
    }

    /// What the checkpoint of its directory says of it: where a check begins.
    pub(crate) fn recovery_checkpoint(&self) -> Offset {
        match &self.log {
            FutureLog::Found(log) => log.recovery_point(),
            FutureLog::Open(log) => log.recovery_checkpoint(),
        }
    }

    /// Its first offset.
    pub(crate) fn start_offset(&self) -> Offset {
        match &self.log {
            FutureLog::Found(log) => log.start_offset(),
            FutureLog::Open(log) => log.start_offset(),
        }
    }

    fn open(&mut self, partition: &Partition, now: Timestamp) -> Result<&mut PartitionLog, MoveError> {
        if let FutureLog::Found(log) = &mut self.log {
            let config = Arc::clone(&partition.lock().settings.log);
            let opened = log.open(config, now).map_err(MoveError::Target)?;
            self.log = FutureLog::Open(Box::new(opened));
        }
        match &mut self.log {
            FutureLog::Open(log) => Ok(log),
            FutureLog::Found(_) => unreachable!("it was just opened"),
        }
    }
}

impl Partition {
    /// Runs something that cuts the log, after which a copy of it begins anew.
    pub(super) fn outdate_future<T>(&self, cut: impl FnOnce() -> T) -> T {
        let mut held = self.lock_future();
        if let Some(future) = &mut *held {
            future.is_outdated = true;
        }
        cut()
    }

    fn lock_future(&self) -> MutexGuard<'_, Option<Future>> {
        self.future.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a move; gives the copy back where there is nothing to move, or a copy already.
    pub(crate) fn begin_move(&self, future: Future) -> Result<(), Future> {
        let mut held = self.lock_future();
        let is_elsewhere = !Arc::ptr_eq(&self.directory(), &future.directory);
        if held.is_some() || !is_elsewhere || self.lock().log.is_gone() {
            return Err(future);
        }
        self.start_of_copy.store(Some(Arc::new(future.start.subscribe())));
        *held = Some(future);
        Ok(())
    }

    /// Ends a move before its end.
    pub(crate) fn take_future(&self) -> Option<Future> {
        let mut held = self.lock_future();
        self.start_of_copy.store(None);
        held.take()
    }

    /// Where its copy begins, if there is one; closed once the move is over. Looked at without the copy's lock, which is held
    /// while the disk is waited for.
    pub(crate) fn start_of_copy(&self) -> Option<watch::Receiver<Offset>> {
        self.start_of_copy.load().as_deref().cloned()
    }

    /// Looks at the copy, if there is one.
    pub(crate) fn with_future<T>(&self, look: impl FnOnce(&Future) -> T) -> Option<T> {
        self.lock_future().as_ref().map(look)
    }

    /// Whether it is on its way. Its log is not compacted then, as a copy of a part would lack the tombstones of another.
    pub(crate) fn is_moving(&self) -> bool {
        self.lock_future().is_some()
    }

    /// Runs something on the log unless it is on its way.
    pub(crate) fn with_unmoved_log<T>(&self, act: impl FnOnce(&mut PartitionLog) -> T) -> Option<T> {
        let future = self.lock_future();
        if future.is_some() {
            return None;
        }
        self.with_log(|log, _| act(log))
    }

    /// The directory that the controller is to know of: where the replica is, or, once its copy has all, where it will be.
    pub(crate) fn announced_directory(&self) -> DirectoryId {
        let announced = self.with_future(|future| future.announced.then_some(future.directory.id));
        announced.flatten().unwrap_or_else(|| self.directory().id)
    }

    /// From now on the controller is to know where the replica will be; whether that is news.
    pub(crate) fn announce_future(&self) -> bool {
        self.lock_future().as_mut().is_some_and(|future| !std::mem::replace(&mut future.announced, true))
    }

    /// Copies about so many bytes.
    pub(crate) fn copy_step(&self, max_bytes: u32, now: Timestamp) -> Result<CopyStep, MoveError> {
        let mut held = self.lock_future();
        let Some(future) = &mut *held else { return Ok(CopyStep::Gone) };
        let is_found = std::mem::take(&mut future.is_found);
        let is_outdated = std::mem::take(&mut future.is_outdated);
        let copy = future.open(self, now)?;
        let look = |log: &mut PartitionLog, _| {
            copy.set_config(Arc::clone(log.config()));
            (!log.is_swapping()).then(|| log.copy_source(copy))
        };
        let source = match self.with_log(look) {
            None => return Ok(CopyStep::Gone),
            // A segment is about to be replaced by a compacted one, the last before the move is over.
            Some(None) => return Ok(CopyStep::Copied(0)),
            Some(Some(source)) => source,
        };
        if is_outdated || (is_found && copy.config().compact) {
            copy.truncate_fully_and_start_at(source.start_offset, now).map_err(MoveError::Target)?;
        }
        copy.follow_source(&source, now).map_err(MoveError::Target)?;
        let (from, start) = (copy.end_offset(), copy.start_offset());
        future.start.send_if_modified(|known| std::mem::replace(known, start) != start);
        let copy = future.open(self, now)?;
        let planned = self.with_log(|log, _| (log.read_for_copy(from, max_bytes), log.end_offset()));
        let (plan, end) = match planned {
            None => return Ok(CopyStep::Gone),
            // It was cut off in between.
            Some((Err(ReadError::OffsetOutOfRange { .. }), _)) => return Ok(CopyStep::Copied(0)),
            Some((plan, end)) => (plan.map_err(|error| self.unreadable(error))?, end),
        };
        let bytes = plan.read_all().map_err(|source| self.unreadable_file(source))?;
        if bytes.is_empty() {
            copy.skip_to(end);
            return Ok(CopyStep::CaughtUp);
        }
        append(copy, &bytes, now)?;
        Ok(CopyStep::Copied(bytes.len() as u64))
    }

    /// Makes durable what is copied. Blocks, with no lock held.
    pub(crate) fn flush_future(&self) -> Result<(), MoveError> {
        let begin = |future: &mut Future| match &mut future.log {
            FutureLog::Open(log) => log.flush(),
            FutureLog::Found(_) => Ok(None),
        };
        let token = self.lock_future().as_mut().map(begin).transpose().map_err(MoveError::Target)?.flatten();
        let Some(flushed) = token.map(FlushToken::complete).transpose().map_err(MoveError::Target)? else {
            return Ok(());
        };
        if let Some(Future { log: FutureLog::Open(log), .. }) = self.lock_future().as_mut() {
            log.flushed(flushed);
        }
        Ok(())
    }

    /// Puts the copy in place of the log, once it has all: what is on the disk in one is on the disk in the other. The more
    /// often it was tried, the longer nobody can append meanwhile.
    pub(crate) fn swap(&self, tries: u32, unique: Uuid, now: Timestamp) -> Result<Swap, MoveError> {
        let mut held = self.lock_future();
        let Some(future) = &mut *held else { return Ok(Swap::Gone) };
        if future.is_outdated {
            return Ok(Swap::NotYet);
        }
        let target = Arc::clone(&future.directory);
        let copy = future.open(self, now)?;
        let mut state = self.lock();
        let config = Arc::clone(&state.settings.log);
        let opened = state.log.open(&config).map_err(|error| self.unreadable(ReadError::Log(error)))?;
        let Some(log) = opened else { return Ok(Swap::Gone) };
        if !self.copy_tail(log, copy, TAIL_BYTES << tries.min(TAIL_DOUBLINGS_MAX), now)? {
            return Ok(Swap::NotYet);
        }
        if tries >= PATIENT_TRY
            && let Some(token) = copy.flush().map_err(MoveError::Target)?
        {
            let flushed = token.complete().map_err(MoveError::Target)?;
            copy.flushed(flushed);
        }
        if !copy.can_replace(log) {
            return Ok(Swap::NotYet);
        }
        let home = self.directory();
        let restore = |log: &mut PartitionLog| {
            let restored = home.restore(log);
            if let Err(error) = &restored {
                home.fail(&error.to_string());
            }
            restored.is_ok()
        };
        let retired = match home.retire(log, unique) {
            Ok(retired) => Some(retired),
            Err(error) => {
                home.on_error(&self.name(), &error);
                if !home.is_failed() {
                    restore(log);
                    return Err(MoveError::Source(ReadError::Log(error)));
                }
                // What lies there cannot be served any more; the copy can.
                None
            }
        };
        if let Err(error) = target.promote(copy) {
            if !restore(log) {
                // Its folder is one to be removed: a sync of it that is under way must acknowledge nothing.
                state.generation += 1;
            }
            return Err(MoveError::Target(error));
        }
        copy.take_over(log).map_err(MoveError::Target)?;
        self.start_of_copy.store(None);
        if let Some(Future { log: FutureLog::Open(copy), .. }) = held.take() {
            state.log = HeldLog::Open(copy);
            state.generation += 1;
            self.home.store(target);
            self.lock_waiters().tell_sessions();
        }
        Ok(Swap::Done(retired))
    }

    /// Copies the last batches while nobody can append; false if there are more than so many bytes.
    fn copy_tail(
        &self,
        log: &mut PartitionLog,
        copy: &mut PartitionLog,
        mut bytes_max: u64,
        now: Timestamp,
    ) -> Result<bool, MoveError> {
        let source = log.copy_source(copy);
        copy.follow_source(&source, now).map_err(MoveError::Target)?;
        loop {
            let plan = log.read_for_copy(copy.end_offset(), TAIL_STEP_BYTES);
            let plan = plan.map_err(|error| self.unreadable(error))?;
            if plan.is_empty() {
                copy.skip_to(source.end_offset);
                return Ok(true);
            }
            let Some(rest) = bytes_max.checked_sub(plan.len()) else { return Ok(false) };
            bytes_max = rest;
            let bytes = plan.read_all().map_err(|source| self.unreadable_file(source))?;
            append(copy, &bytes, now)?;
        }
    }

    /// A log that moves and cannot be read is judged as for any other reader.
    fn unreadable(&self, error: ReadError) -> MoveError {
        self.on_read_error(&error);
        MoveError::Source(error)
    }

    fn unreadable_file(&self, source: std::io::Error) -> MoveError {
        self.unreadable(ReadError::Log(LogError::Io { path: self.directory().path.clone(), source }))
    }
}

fn append(copy: &mut PartitionLog, bytes: &[u8], now: Timestamp) -> Result<(), MoveError> {
    copy.append_as_replica(bytes, now).map_err(|error| match error {
        AppendError::Log(error) => MoveError::Target(error),
        error => MoveError::Damaged(error),
    })
}
