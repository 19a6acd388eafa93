//! The threads that compact logs: the filthiest log first, one log at a time for each thread.
//!
//! `node.rs` starts them; they end with the node. A round reads and writes without the partition's lock, in steps that a
//! throttle spreads out, and takes the lock to begin and to put a cleaned segment in its place. A log that cannot be cleaned is
//! left as it is, told once and counted, while the others go on.

use std::{
    cmp::Ordering,
    collections::HashSet,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use gregor_config::CleanerConfig;
use gregor_log::{CheckpointKind, Cleanable, CleanedSegment, Cleaning, CleaningOptions, CleaningStep, LogError};
use gregor_types::{Offset, TopicPartition};

use crate::{clock::now, partition::Partition, partitions::Partitions};

/// Bytes between two looks at whether the node stops, and between two pauses of the throttle.
const STEP_BYTES: u64 = 1 << 20;
/// How long a thread sleeps after an error of the disk.
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// The longest pause at once, so that a stop is not held up.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// The running threads.
#[derive(Debug)]
pub(crate) struct Cleaner(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    partitions: Arc<Partitions>,
    board: Mutex<Board>,
    wake: Condvar,
    /// By number; the first stays as long as the node runs, and keeps their number as configured.
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

/// Who is at what.
#[derive(Debug, Default)]
struct Board {
    in_progress: HashSet<TopicPartition>,
    /// Not by name: a topic that is created anew is another.
    uncleanable: Vec<Weak<Partition>>,
    stopped: bool,
}

/// How a round ended.
enum Round {
    Clean(Offset),
    /// The log was changed, deleted or moved meanwhile, or the node stops: another round will tell.
    Given,
}

/// Counts a thread that panics.
struct CountedIfDead<'a>(&'a Shared);

impl Drop for CountedIfDead<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.partitions.metrics().cleaner.on_dead_thread();
        }
    }
}

impl Board {
    fn is_uncleanable(&self, partition: &Arc<Partition>) -> bool {
        self.uncleanable.iter().any(|one| one.as_ptr() == Arc::as_ptr(partition))
    }
}

impl Cleaner {
    /// Starts `log.cleaner.threads` threads.
    pub(crate) fn start(partitions: Arc<Partitions>) -> std::io::Result<Self> {
        let (board, wake, threads) = (Mutex::default(), Condvar::new(), Mutex::default());
        let shared = Arc::new(Shared { partitions, board, wake, threads });
        shared.tell_uncleanable();
        shared.grow_to(1)?;
        Ok(Self(shared))
    }

    /// Ends the threads; a round that is under way is given up, and nothing of it is left.
    pub(crate) fn stop(self) {
        self.0.board().stopped = true;
        self.0.wake.notify_all();
        // The first thread adds others: with it gone, none is left out. It needs the list for that, which is not held meanwhile.
        let next = || self.0.threads().pop();
        while let Some(thread) = next() {
            if thread.join().is_err() {
                tracing::error!("a cleaner had panicked");
            }
        }
    }
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn threads(&self) -> MutexGuard<'_, Vec<thread::JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds threads up to that number; those that are too many end by themselves.
    fn grow_to(self: &Arc<Self>, count: usize) -> std::io::Result<()> {
        let mut threads = self.threads();
        if self.board().stopped {
            return Ok(());
        }
        while let Some(finished) = threads.pop_if(|thread| thread.is_finished()) {
            if finished.join().is_err() {
                self.partitions.metrics().cleaner.on_replaced_thread();
            }
        }
        for number in threads.len()..count {
            let shared = Arc::clone(self);
            let thread = thread::Builder::new().name(format!("gregor-cleaner-{number}"));
            threads.push(thread.spawn(move || {
                let _counted = CountedIfDead(&shared);
                shared.run(number);
            })?);
        }
        Ok(())
    }

    fn config(&self) -> CleanerConfig {
        CleanerConfig::of(&self.partitions.config())
    }

    fn run(self: &Arc<Self>, number: usize) {
        loop {
            let config = self.config();
            if number > 0 && number >= config.threads {
                return;
            }
            if number == 0
                && let Err(error) = self.grow_to(config.threads)
            {
                tracing::warn!(%error, "another cleaner thread cannot be started");
            }
            let chosen = if config.threads > 0 { self.choose() } else { None };
            match chosen {
                Some((partition, cleanable)) => {
                    let round = self.clean(&partition, &cleanable, &config);
                    self.end(&partition, round);
                }
                None => self.pause(Duration::from_millis(config.backoff_ms)),
            }
            if self.board().stopped {
                return;
            }
        }
    }

    /// Sleeps until the time is over or the node stops.
    fn pause(&self, time: Duration) {
        let board = self.board();
        let _ = self.wake.wait_timeout_while(board, time, |board| !board.stopped);
    }

    /// The log with the largest dirty share among those that are due.
    fn choose(&self) -> Option<(Arc<Partition>, Cleanable)> {
        let mut best: Option<(Arc<Partition>, Cleanable)> = None;
        let (mut dirtiest, mut delay_ms, all) = (0.0_f64, 0, self.partitions.all());
        self.forget_uncleanable_but(&all);
        for partition in all.into_iter().filter(|partition| partition.may_be_compacted() && !partition.is_moving()) {
            let name = partition.name();
            {
                let board = self.board();
                if board.stopped {
                    return None;
                }
                if board.in_progress.contains(&name) || board.is_uncleanable(&partition) {
                    continue;
                }
            }
            let looked = partition.with_log(|log, high_watermark| {
                let cleanable = log.cleanable(high_watermark, now())?;
                Ok::<_, LogError>((cleanable, cleanable.is_due(log.config()), log.has_unsynced_sealed_segments()))
            });
            let (cleanable, is_due, awaits_sync) = match looked {
                Some(Ok(looked)) => looked,
                Some(Err(error)) => {
                    self.give_up(&partition, &error);
                    continue;
                }
                None => continue,
            };
            if awaits_sync {
                // After a crash nothing else may ask for it until something is appended; what is not synced is not cleaned.
                partition.directory().request_flush(&partition);
            }
            dirtiest = dirtiest.max(cleanable.dirty_ratio());
            delay_ms = delay_ms.max(cleanable.overdue_ms);
            let is_dirtier = best.as_ref().is_none_or(|(_, other)| {
                cleanable.dirty_ratio().partial_cmp(&other.dirty_ratio()) == Some(Ordering::Greater)
            });
            if is_due && is_dirtier {
                best = Some((partition, cleanable));
            }
        }
        self.partitions.metrics().cleaner.on_look(dirtiest, delay_ms);
        let (partition, cleanable) = best?;
        // Another thread may have chosen the same.
        self.board().in_progress.insert(partition.name()).then_some((partition, cleanable))
    }

    /// A deleted partition counts no more; what the others have changes.
    fn forget_uncleanable_but(&self, all: &[Arc<Partition>]) {
        let mut board = self.board();
        if board.uncleanable.is_empty() {
            return;
        }
        board.uncleanable.retain(|one| all.iter().any(|partition| one.as_ptr() == Arc::as_ptr(partition)));
        drop(board);
        self.tell_uncleanable();
    }

    /// Sets the gauges of every directory.
    fn tell_uncleanable(&self) {
        let uncleanable: Vec<_> = self.board().uncleanable.iter().filter_map(Weak::upgrade).collect();
        for directory in self.partitions.storage().directories() {
            let here = uncleanable.iter().filter(|partition| Arc::ptr_eq(&partition.directory(), directory));
            let bytes = here.clone().filter_map(|partition| {
                let cleanable = partition.with_log(|log, high_watermark| log.cleanable(high_watermark, now()))?;
                cleanable.ok().map(|cleanable| cleanable.cleanable_bytes)
            });
            self.partitions.metrics().cleaner.set_uncleanable(&directory.path, here.clone().count(), bytes.sum());
        }
    }

    fn clean(&self, partition: &Partition, cleanable: &Cleanable, config: &CleanerConfig) -> Result<Round, LogError> {
        let options = CleaningOptions {
            memory_bytes: config.dedupe_buffer_bytes / config.threads.max(1),
            load_factor: config.load_factor,
            now: now(),
        };
        let began = Instant::now();
        let begun = partition.with_log(|log, _| log.begin_cleaning(cleanable, &options));
        let Some(mut cleaning) = begun else { return Ok(Round::Given) };
        let (mut before, mut after) = (0, 0);
        let round = loop {
            let step = cleaning.step(STEP_BYTES).and_then(|step| match step {
                CleaningStep::More => Ok(None),
                CleaningStep::Swap(cleaned) => {
                    before += cleaned.bytes_before();
                    after += cleaned.bytes_after();
                    Ok(if swap(partition, &cleaned)? { None } else { Some(Round::Given) })
                }
                CleaningStep::Done(to) => {
                    let noted = partition.with_log(|log, _| log.note_cleaned(&cleaning, to));
                    Ok(Some(if noted == Some(true) { Round::Clean(to) } else { Round::Given }))
                }
            });
            match step {
                Ok(None) => {}
                Ok(Some(round)) => break round,
                Err(error) if is_not_found(&error) && !is_all_there(partition, &cleaning) => break Round::Given,
                Err(error) => return Err(error),
            }
            if !self.throttle(&cleaning, began) {
                cleaning.abandon()?;
                return Ok(Round::Given);
            }
        };
        if let Round::Clean(to) = round {
            let took = began.elapsed();
            self.partitions.metrics().cleaner.on_round(before, after, took, cleaning.buffer_utilization());
            tracing::info!(
                partition = %partition.name(),
                clean_to = to.value(),
                bytes_before = before,
                bytes_after = after,
                milliseconds = took.as_millis() as u64,
                "compacted"
            );
        }
        Ok(round)
    }

    /// Waits until the round is within `log.cleaner.io.max.bytes.per.second`; `false` where the node stops.
    fn throttle(&self, cleaning: &Cleaning, began: Instant) -> bool {
        loop {
            let config = self.config();
            #[allow(clippy::cast_precision_loss, reason = "a pace, not a count")]
            let due = cleaning.bytes() as f64 * config.threads.max(1) as f64 / config.io_max_bytes_per_second.max(1.0);
            let ahead = due - began.elapsed().as_secs_f64();
            if self.board().stopped {
                return false;
            }
            if ahead <= 0.0 {
                return true;
            }
            self.pause(Duration::from_secs_f64(ahead.min(PAUSE_MAX.as_secs_f64())));
        }
    }

    fn end(&self, partition: &Arc<Partition>, round: Result<Round, LogError>) {
        match round {
            Ok(Round::Clean(_)) => self.partitions.checkpoint(CheckpointKind::Cleaner),
            Ok(Round::Given) => {}
            Err(error) => self.give_up(partition, &error),
        }
        self.board().in_progress.remove(&partition.name());
    }

    /// A log that cannot be cleaned is not tried again by this process, as in Kafka. An error of the disk is the directory's.
    fn give_up(&self, partition: &Arc<Partition>, error: &LogError) {
        if let LogError::Io { .. } = error {
            partition.directory().on_error(&partition.name(), error);
            return self.pause(AFTER_ERROR);
        }
        tracing::warn!(
            partition = %partition.name(), %error,
            "this log cannot be compacted: it is left as it is until the next start"
        );
        self.board().uncleanable.push(Arc::downgrade(partition));
        self.tell_uncleanable();
    }
}

fn is_not_found(error: &LogError) -> bool {
    matches!(error, LogError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
}

/// Whether the log has all that the round is about: if not, its segments were deleted, or all of it was, or moved. A move that
/// fails at its very end has had the folder renamed, and gives it its name back.
fn is_all_there(partition: &Partition, cleaning: &Cleaning) -> bool {
    !partition.is_moving() && partition.with_log(|log, _| log.has_sources_of(cleaning)).unwrap_or(false)
}

/// Puts a cleaned segment in its place; `false` where the log was changed meanwhile.
fn swap(partition: &Partition, cleaned: &CleanedSegment) -> Result<bool, LogError> {
    // A log that moves meanwhile keeps what it has until it is there.
    let begun = partition.with_unmoved_log(|log| log.begin_swap(cleaned)).transpose()?;
    let Some(Some(token)) = begun else { return Ok(false) };
    let synced = token.complete();
    synced.map_err(|source| LogError::Io { path: partition.directory().path.clone(), source })?;
    let swapped = partition.with_log(|log, _| log.complete_swap(cleaned, now())).transpose()?;
    Ok(swapped.unwrap_or(false))
}
