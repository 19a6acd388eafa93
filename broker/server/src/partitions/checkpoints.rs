//! What is written down of all partitions now and then, how they are closed, and how the folders of deleted ones go.

use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use gregor_log::{CheckpointKind, DeletedPartition, FlushToken};
use gregor_types::{Offset, Timestamp, TopicPartition};

use super::{Partitions, Work};
use crate::{
    clock::now,
    held_log::HeldLog,
    partition::Partition,
    storage::{Directory, Flush},
};

/// Files of a deleted partition that are removed in one step.
const FILES_PER_STEP: usize = 8;
/// Threads that close logs at the same time.
const CLOSING_THREADS: usize = 16;
/// So many logs are worth a thread to close them.
const PARTITIONS_PER_THREAD_MIN: usize = 16;

impl Partitions {
    /// Writes the checkpoint files: one kind, every directory.
    pub(crate) fn checkpoint(&self, kind: CheckpointKind) {
        for directory in self.storage.directories() {
            self.checkpoint_in(directory, kind);
        }
    }

    /// Writes a checkpoint file of a directory; whether it says what is so now, or never has to.
    fn checkpoint_in(&self, directory: &Arc<Directory>, kind: CheckpointKind) -> bool {
        let _one_at_a_time = self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked for first: whoever serves in between is in both, nobody is in neither.
        let Some(mut waiting) = directory.waiting(kind) else { return true };
        for partition in self.all() {
            waiting.extend(entry(&partition, directory, kind).map(|offset| (partition.name(), offset)));
        }
        directory.checkpoint(kind, waiting.into_iter().collect())
    }

    /// Any checkpoint may name logs that are gone.
    pub(super) fn outdate_checkpoints(&self, work: &mut Work) {
        work.outdated = self.storage.directories().to_vec();
    }

    /// The checkpoints say nothing more of logs that are gone: a new one of the same name would begin where the old one did, and
    /// lose its records at the next start. Those that could not be written stay outdated.
    pub(super) fn forget_gone(&self, work: &mut Work) {
        let is_written =
            |directory: &Arc<Directory>| CheckpointKind::ALL.iter().all(|kind| self.checkpoint_in(directory, *kind));
        work.outdated.retain(|directory| !is_written(directory));
    }

    /// Closes every log: syncs, writes producer snapshots, then the checkpoints.
    pub(crate) fn close(&self) {
        let partitions = self.all();
        for_all(&partitions, |partition| partition.flush(now()));
        for kind in CheckpointKind::ALL {
            self.checkpoint(kind);
        }
        let ends: Vec<_> = for_all(&partitions, close_partition).into_iter().flatten().collect();
        for directory in self.storage.directories() {
            let Some(mut waiting) = directory.waiting(CheckpointKind::RecoveryPoint) else { continue };
            let here = ends.iter().filter(|(of, ..)| Arc::ptr_eq(of, directory));
            waiting.extend(here.map(|(_, name, end)| (name.clone(), *end)));
            directory.checkpoint(CheckpointKind::RecoveryPoint, waiting.into_iter().collect());
        }
    }

    /// A folder of a deleted partition is to be removed after a while.
    pub(crate) fn add_deleted(&self, deleted: Option<DeletedPartition>, delay_ms: i64) {
        let mut waiting = self.deleted.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(deleted.map(|deleted| (now().plus_ms(delay_ms), deleted)));
    }

    /// What deletions of an earlier run left is removed once there is time for it.
    pub(super) fn add_leftovers(&self, leftovers: Vec<DeletedPartition>) {
        for leftover in leftovers {
            self.add_deleted(Some(leftover), 0);
        }
    }

    /// Removes some files of a deleted partition whose time has come; whether there is more to remove now.
    pub(crate) fn remove_deleted_step(&self, now: Timestamp) -> bool {
        let due = {
            let mut deleted = self.deleted.lock().unwrap_or_else(PoisonError::into_inner);
            let place = deleted.iter().position(|(due, _)| *due <= now);
            place.map(|place| deleted.swap_remove(place))
        };
        let Some((since, folder)) = due else { return false };
        match folder.remove_some(FILES_PER_STEP) {
            Ok(true) => {}
            Ok(false) => self.deleted.lock().unwrap_or_else(PoisonError::into_inner).push((since, folder)),
            Err(error) => tracing::warn!(%error, "a deleted partition's files could not be removed"),
        }
        true
    }
}

/// What a directory's checkpoint says of a partition: of its log, or of its copy on the way there.
fn entry(partition: &Partition, directory: &Arc<Directory>, kind: CheckpointKind) -> Option<Offset> {
    let future = partition.with_future(|future| {
        let goes_there = Arc::ptr_eq(&future.directory, directory);
        goes_there.then(|| (future.recovery_checkpoint(), future.start_offset(), future.extent().1))
    });
    let Some((recovery_point, start, end)) = future.flatten() else {
        let is_here = Arc::ptr_eq(&partition.directory(), directory);
        return is_here.then(|| partition.checkpoint_entry(kind)).flatten();
    };
    match kind {
        CheckpointKind::RecoveryPoint => Some(recovery_point),
        CheckpointKind::LogStart => (start > Offset::ZERO).then_some(start),
        CheckpointKind::HighWatermark => Some(partition.high_watermark().min(end)),
        CheckpointKind::Cleaner => None,
    }
}

/// Closes a partition's log, and its copy if it is on its way; where each ends whose all is on the disk.
fn close_partition(partition: &Arc<Partition>) -> Vec<(Arc<Directory>, TopicPartition, Offset)> {
    let future = partition.take_future();
    let logs = std::iter::once((partition.directory(), partition.take_log()))
        .chain(future.map(|future| (Arc::clone(&future.directory), future.into_log())));
    let ends = logs.filter_map(|(directory, log)| close(&directory, log).map(|end| (directory, partition.name(), end)));
    ends.collect()
}

/// Does something with each partition that mostly waits for syncs: those that wait at the same time share what the file system writes
/// down for them.
fn for_all<T: Send>(partitions: &[Arc<Partition>], act: impl Fn(&Arc<Partition>) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let act_on_some = || {
        let of_next = || Some(act(partitions.get(next.fetch_add(1, Ordering::Relaxed))?));
        std::iter::from_fn(of_next).collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let threads = CLOSING_THREADS.min(partitions.len() / PARTITIONS_PER_THREAD_MIN);
        // Where no thread can be had, this one does it all.
        let start = |_| thread::Builder::new().name("gregor-close".to_owned()).spawn_scoped(scope, act_on_some).ok();
        let others: Vec<_> = (1..threads).filter_map(start).collect();
        let mut done = act_on_some();
        for other in others {
            done.append(&mut other.join().expect("closing a log does not panic"));
        }
        done
    })
}

/// Closes a log; its end, if all of it is on the disk.
fn close(directory: &Directory, log: HeldLog) -> Option<Offset> {
    match log {
        HeldLog::Open(mut log) => match log.close().and_then(FlushToken::complete) {
            Ok(flushed) => Some(flushed.end_offset),
            Err(error) => {
                // Whatever it was: the next start must not take this one for a clean end.
                directory.fail(&error.to_string());
                None
            }
        },
        HeldLog::Resting(log, _) => Some(log.recovery_point()),
        HeldLog::Gone => None,
    }
}
