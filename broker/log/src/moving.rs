//! A replica on its way to another log directory of its broker (KIP-113): a second log in a `-future` folder, which copies
//! the first one batch by batch and, once it has all of it, takes its place.
//!
//! The server decides when and drives the steps. Whoever stops in between finds, at the next start, the first log whole or
//! the second one whole: the first loses its name before the second gets it, and never before the second is on the disk.

use std::path::PathBuf;

use gregor_types::{Offset, Timestamp, TopicId, TopicPartition, Uuid};

use crate::{
    DeletedPartition, LogConfig, LogDirectory, LogError, PartitionDirectoryKind, PartitionLog, ReadError, ReadPlan,
    ReadRequest, RestingLog, file_names::marked_directory_name,
};

/// What the source of a copy is at one moment, as far as its copy has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySource {
    /// Its first offset.
    pub start_offset: Offset,
    /// Its end.
    pub end_offset: Offset,
    /// Up to here the copy has what the source has.
    common_end: Offset,
}

impl LogDirectory {
    /// Creates an empty log in a `-future` folder of this directory. `unique` tells it from others of the same name.
    pub fn create_future(
        &self,
        topic_partition: TopicPartition,
        topic_id: Option<TopicId>,
        config: std::sync::Arc<LogConfig>,
        unique: Uuid,
        now: Timestamp,
    ) -> Result<PartitionLog, LogError> {
        let name = marked_directory_name(&topic_partition, unique.0, PartitionDirectoryKind::Future);
        let mut log =
            PartitionLog::create(self.disk.clone(), self.path.join(name), topic_partition, topic_id, config, now)?;
        // A start has to know whose copy it is, even before the first batch comes.
        log.write_topic_id()?;
        Ok(log)
    }

    /// Gives a log that lies in a `-future` folder of this directory the replica's own name, durably. Blocks.
    pub fn promote(&self, future: &mut PartitionLog) -> Result<(), LogError> {
        let to = self.path.join(future.topic_partition().to_string());
        future.move_folder(to)?;
        self.disk.sync_directory(&self.path).complete().map_err(LogError::io(&self.path))
    }

    /// The same for a log that nobody has opened yet.
    pub fn promote_resting(&self, future: &mut RestingLog) -> Result<(), LogError> {
        let to = self.path.join(future.topic_partition().to_string());
        self.disk.rename(future.directory(), &to).map_err(LogError::io(future.directory()))?;
        future.set_directory(to);
        self.disk.sync_directory(&self.path).complete().map_err(LogError::io(&self.path))
    }

    /// Takes the replica's own name from a log whose copy has all of it, durably: the folder waits to be removed from then on.
    /// Blocks.
    pub fn retire(&self, log: &mut PartitionLog, unique: Uuid) -> Result<DeletedPartition, LogError> {
        let name = marked_directory_name(log.topic_partition(), unique.0, PartitionDirectoryKind::Deleted);
        log.move_folder(self.path.join(name))?;
        self.disk.sync_directory(&self.path).complete().map_err(LogError::io(&self.path))?;
        Ok(DeletedPartition::new(self.disk.clone(), log.directory().to_owned()))
    }

    /// Gives a log that was retired its name back: its copy could not take its place.
    pub fn restore(&self, log: &mut PartitionLog) -> Result<(), LogError> {
        self.promote(log)
    }
}

/// Whether the folder of a partition on its way can have a name: it is longer than the partition's own, and is never cut.
pub fn can_have_future(topic_partition: &TopicPartition) -> bool {
    const UNIQUE_BYTES: usize = 32;
    const NAME_BYTES_MAX: usize = 255;
    let suffix = ".".len() + UNIQUE_BYTES + "-future".len();
    topic_partition.to_string().len() + suffix <= NAME_BYTES_MAX
}

impl PartitionLog {
    /// What a copy of this log has to know to go on.
    pub fn copy_source(&self, copy: &Self) -> CopySource {
        let common_end = common_end(self, copy).min(self.end_offset);
        CopySource { start_offset: self.start_offset, end_offset: self.end_offset, common_end }
    }

    /// Plans the read of the next batches for a copy that ends at `from`.
    pub fn read_for_copy(&mut self, from: Offset, max_bytes: u32) -> Result<ReadPlan, ReadError> {
        let from = from.max(self.start_offset);
        self.read(&ReadRequest { from, upper_bound: self.end_offset, max_bytes, min_one_batch: true })
    }

    /// Follows the source of which this is a copy in what it has cut off at either end.
    pub fn follow_source(&mut self, source: &CopySource, now: Timestamp) -> Result<(), LogError> {
        if source.common_end < self.end_offset {
            self.truncate_to(source.common_end, now)?;
        }
        if self.end_offset < source.start_offset {
            self.truncate_fully_and_start_at(source.start_offset, now)?;
        }
        self.advance_start(source.start_offset)
    }

    /// Ends the copy where its source ends, behind the last batch: a follower may have cut its log where there was none.
    pub fn skip_to(&mut self, end: Offset) {
        self.end_offset = self.end_offset.max(end);
    }

    /// Whether this copy has all that its source has, on the disk too where the source has.
    pub fn can_replace(&self, source: &Self) -> bool {
        self.end_offset == source.end_offset
            && self.recovery_point >= source.recovery_point
            && common_end(source, self) == source.end_offset
    }

    /// Takes over what the source knows beside its batches: producers that retention has taken the batches of, leader
    /// epochs without a batch, where the log begins, how far it is compacted.
    pub fn take_over(&mut self, source: &mut Self) -> Result<(), LogError> {
        self.advance_start(source.start_offset)?;
        std::mem::swap(&mut self.producers, &mut source.producers);
        self.epochs.replace(source.epochs.entries());
        self.cleaned_to = source.cleaned_to;
        self.set_config(source.config.clone());
        Ok(())
    }

    /// Renames the log's folder. Files that are open stay so.
    fn move_folder(&mut self, to: PathBuf) -> Result<(), LogError> {
        let epoch_file = self.epoch_file.clone();
        epoch_file
            .while_moved_to(&to, || self.disk.rename(&self.directory, &to).map_err(LogError::io(&self.directory)))?;
        for segment in &mut self.segments {
            segment.set_directory(&to);
        }
        for (_, path) in &mut self.removals {
            if let Some(name) = path.file_name() {
                *path = to.join(name);
            }
        }
        self.directory = to;
        Ok(())
    }
}

/// The end of what two logs have in common, by their leader epochs: within an epoch, an offset is one record for ever.
fn common_end(source: &PartitionLog, copy: &PartitionLog) -> Offset {
    let ends =
        |log: &PartitionLog, index: usize| log.epochs().get(index + 1).map_or(log.end_offset, |(_, start)| *start);
    let mut common = if copy.epochs().is_empty() { copy.end_offset } else { copy.epochs()[0].1 };
    for (index, (epoch, start)) in copy.epochs().iter().enumerate() {
        let Some(known) = source.epochs().iter().position(|(other, _)| other == epoch) else {
            return (*start).min(source.end_offset);
        };
        let (ours, theirs) = (ends(copy, index), ends(source, known));
        common = ours.min(theirs);
        if theirs < ours {
            break;
        }
    }
    common.min(source.end_offset)
}
