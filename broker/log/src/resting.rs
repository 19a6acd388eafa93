//! A log that nobody has opened yet: what the listing of its folder and the checkpoints say of it.
//!
//! The server surveys every folder at its start and opens a log when it is first used. After a clean shutdown the listing says
//! where the log ends, and no file of it is opened before somebody wants what is in it; after any other, it says how much there
//! is to check.

use std::{path::PathBuf, sync::Arc};

use gregor_types::{Offset, Timestamp, TopicId, TopicPartition};

use crate::{
    Disk, LogConfig, LogError, LogOpening, OpenOptions, PartitionLog,
    folder::{self, Folder},
    sparse_index::{Entry, OffsetEntry, TimeEntry},
    transaction_index::TransactionIndex,
};

/// A log at rest. Its folder is tidied up; nobody else may change it from then on.
#[derive(Debug)]
pub struct RestingLog {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    topic_partition: TopicPartition,
    folder: Folder,
    checkpoints: Checkpoints,
    clean: bool,
    end: Option<Offset>,
    /// Whether an opening has begun and failed: the listing may be out of date then.
    tried: bool,
}

/// What the checkpoints of its directory say of a log; 0 where they say nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checkpoints {
    pub(crate) recovery_point: Offset,
    pub(crate) log_start: Offset,
    pub(crate) cleaned_to: Offset,
}

/// How much of a log is to be checked before it can be used, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unchecked {
    /// Segments.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl RestingLog {
    /// Tidies up the folder, lists it and reads the topic's id; nothing else is read.
    pub(crate) fn survey(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        topic_partition: TopicPartition,
        checkpoints: Checkpoints,
        clean: bool,
    ) -> Result<Self, LogError> {
        let folder = folder::tidy(&*disk, &directory)?;
        let end =
            if clean && indexes_look_whole(&folder) { closed_end(&folder, checkpoints.recovery_point) } else { None };
        let end = end.filter(|end| *end >= checkpoints.log_start);
        Ok(Self { disk, directory, topic_partition, folder, checkpoints, clean, end, tried: false })
    }

    /// Whose log it is.
    pub const fn topic_partition(&self) -> &TopicPartition {
        &self.topic_partition
    }

    /// The folder.
    pub const fn directory(&self) -> &PathBuf {
        &self.directory
    }

    /// The folder was renamed.
    pub(crate) fn set_directory(&mut self, directory: PathBuf) {
        self.directory = directory;
    }

    /// The topic's id, as `partition.metadata` has it.
    pub const fn topic_id(&self) -> Option<TopicId> {
        self.folder.topic_id
    }

    /// Where the log ends, if that is known without a look into its files: then [`RestingLog::open`] reads little and does not take long.
    pub const fn end_offset(&self) -> Option<Offset> {
        self.end
    }

    /// The first offset that readers may see.
    pub fn start_offset(&self) -> Offset {
        let first = self.folder.segments.first().map_or(Offset::ZERO, |(base, _)| *base);
        first.max(self.checkpoints.log_start)
    }

    /// What the checkpoint says: everything before this offset is on the disk.
    pub const fn recovery_point(&self) -> Offset {
        self.checkpoints.recovery_point
    }

    /// Up to where the cleaner has been over the log; `None` if it never was.
    pub fn cleaned_to(&self) -> Option<Offset> {
        (self.checkpoints.cleaned_to > Offset::ZERO).then_some(self.checkpoints.cleaned_to)
    }

    /// How many segments there are.
    pub const fn segments_count(&self) -> usize {
        self.folder.segments.len()
    }

    /// All batches, in bytes.
    pub fn size(&self) -> u64 {
        self.folder.segments.iter().map(|(_, files)| files.log).sum()
    }

    /// How much is to be checked, at most.
    pub fn unchecked(&self) -> Unchecked {
        let segments = &self.folder.segments;
        let first = if self.clean {
            // The end of the last segment is looked for.
            segments.len().saturating_sub(usize::from(self.end.is_none()))
        } else {
            segments.partition_point(|(base, _)| *base <= self.checkpoints.recovery_point).saturating_sub(1)
        };
        let rest = &segments[first..];
        Unchecked { segments: rest.len(), bytes: rest.iter().map(|(_, files)| files.log).sum() }
    }

    /// Begins to open the log. If that fails, for want of a descriptor or of memory, it can be tried again.
    pub fn opening(&mut self, config: Arc<LogConfig>, now: Timestamp) -> Result<LogOpening, LogError> {
        if self.tried {
            self.folder = folder::tidy(&*self.disk, &self.directory)?;
        }
        self.tried = true;
        let options = OpenOptions {
            topic_partition: self.topic_partition.clone(),
            config,
            recovery_point: self.checkpoints.recovery_point,
            log_start_offset: self.checkpoints.log_start,
            cleaned_to: self.checkpoints.cleaned_to,
            clean: self.clean,
            now,
        };
        LogOpening::of(self.disk.clone(), self.directory.clone(), options, self.folder.clone())
    }

    /// Opens the log at once.
    pub fn open(&mut self, config: Arc<LogConfig>, now: Timestamp) -> Result<PartitionLog, LogError> {
        self.opening(config, now)?.finish()
    }
}

/// Whether each segment has both indexes, of whole entries; their content is looked at when they are used.
fn indexes_look_whole(folder: &Folder) -> bool {
    let whole = |len: Option<u64>, entry: usize| len.is_some_and(|len| len.is_multiple_of(entry as u64));
    folder.segments.iter().all(|(_, files)| {
        whole(files.offset_index, OffsetEntry::BYTES)
            && whole(files.time_index, TimeEntry::BYTES)
            && files.transaction_index.is_none_or(TransactionIndex::is_whole)
    })
}

/// The end of a log that was closed: where its last snapshot of the producers was taken, if the checkpoint agrees. Two files,
/// written one after the other at the end of a clean shutdown, would have to be wrong in the same way.
pub(crate) fn closed_end(folder: &Folder, recovery_point: Offset) -> Option<Offset> {
    let (base, files) = folder.segments.last()?;
    if files.log == 0 {
        return Some(*base);
    }
    let (newest, _) = folder.snapshots.last()?;
    (newest > base && *newest == recovery_point).then_some(*newest)
}
