//! One partition's log.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use gregor_types::{
    BrokerEpoch, BrokerId, ClusterId, LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp, TopicId,
    TopicPartition, Uuid,
};

use crate::{LogConfig, LogError, disk::Disk};

/// A partition's log; every call is made under the partition's lock.
#[derive(Debug)]
pub struct PartitionLog {}

/// A flush that has begun; see [`PartitionLog::flush`].
#[derive(Debug)]
#[must_use = "nothing is durable until the token is completed"]
pub struct FlushToken {}

/// A flush that is done; give it to [`PartitionLog::flushed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flushed {
    /// Everything before this offset is on the disk.
    pub end_offset: Offset,
}

impl FlushToken {
    /// Blocks until it is on the disk.
    pub fn complete(self) -> Result<Flushed, LogError> {
        unimplemented!()
    }
    /// Everything before this offset is covered.
    pub fn end_offset(&self) -> Offset {
        unimplemented!()
    }
}

/// What the log knows of the end of an epoch; `NONE` where it knows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochEndOffset {
    /// The largest epoch at or below the one asked for.
    pub leader_epoch: LeaderEpoch,
    /// The offset behind its last record; -1 unknown.
    pub end_offset: Offset,
}

/// How a log is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Whose log it is.
    pub topic_partition: TopicPartition,
    /// Its settings.
    pub config: Arc<LogConfig>,
    /// Everything before it was synced.
    pub recovery_point: Offset,
    /// The start that was last written down.
    pub log_start_offset: Offset,
    /// Whether the directory was shut down cleanly.
    pub clean: bool,
    /// The time.
    pub now: Timestamp,
}

/// A log that is being opened, step by step.
#[derive(Debug)]
pub struct LogOpening {}

/// How far an opening is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpeningProgress {
    /// Whether it is done.
    pub done: bool,
    /// Bytes of log checked.
    pub checked_bytes: u64,
    /// Bytes still to check.
    pub remaining_bytes: u64,
}

impl LogOpening {
    /// Begins.
    pub fn new(_disk: Arc<dyn Disk>, _directory: PathBuf, _options: OpenOptions) -> Result<Self, LogError> {
        unimplemented!()
    }
    /// Checks at most so many bytes.
    pub fn step(&mut self, _budget_bytes: u64) -> Result<OpeningProgress, LogError> {
        unimplemented!()
    }
    /// The opened log.
    pub fn finish(self) -> Result<PartitionLog, LogError> {
        unimplemented!()
    }
}

/// What retention did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetentionProgress {
    /// Segments deleted.
    pub deleted_segments: usize,
    /// Whether there is more to do.
    pub more: bool,
}

/// An aborted transaction, for a read-committed fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AbortedTransaction {
    /// The producer.
    pub producer_id: ProducerId,
    /// Its first offset.
    pub first_offset: Offset,
    /// Its marker's offset.
    pub last_offset: Offset,
    /// The last stable offset when it ended.
    pub last_stable_offset: Offset,
}

/// A producer that the log remembers (DescribeProducers).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveProducer {
    /// Its id.
    pub producer_id: ProducerId,
    /// Its epoch.
    pub producer_epoch: ProducerEpoch,
    /// Its last sequence.
    pub last_sequence: i32,
    /// Its last timestamp.
    pub last_timestamp: Timestamp,
    /// The coordinator epoch of its last marker.
    pub coordinator_epoch: i32,
    /// Where its open transaction starts.
    pub current_transaction_start: Option<Offset>,
}

impl PartitionLog {
    /// Creates it.
    pub fn create(
        _disk: Arc<dyn Disk>,
        _directory: PathBuf,
        _topic_partition: TopicPartition,
        _topic_id: Option<TopicId>,
        _config: Arc<LogConfig>,
        _now: Timestamp,
    ) -> Result<Self, LogError> {
        unimplemented!()
    }
    /// Opens it.
    pub fn open(_disk: Arc<dyn Disk>, _directory: PathBuf, _options: OpenOptions) -> Result<Self, LogError> {
        unimplemented!()
    }
    /// Whose.
    pub fn topic_partition(&self) -> &TopicPartition {
        unimplemented!()
    }
    /// Topic id.
    pub fn topic_id(&self) -> Option<TopicId> {
        unimplemented!()
    }
    /// Folder.
    pub fn directory(&self) -> &Path {
        unimplemented!()
    }
    /// Settings.
    pub fn config(&self) -> &Arc<LogConfig> {
        unimplemented!()
    }
    /// New settings.
    pub fn set_config(&mut self, _config: Arc<LogConfig>) {
        unimplemented!()
    }
    /// Log start offset.
    pub fn start_offset(&self) -> Offset {
        unimplemented!()
    }
    /// Log end offset.
    pub fn end_offset(&self) -> Offset {
        unimplemented!()
    }
    /// Synced up to here.
    pub fn recovery_point(&self) -> Offset {
        unimplemented!()
    }
    /// Bytes of log.
    pub fn size(&self) -> u64 {
        unimplemented!()
    }
    /// Number of segments.
    pub fn segments_count(&self) -> usize {
        unimplemented!()
    }
    /// The last leader epoch; NONE.
    pub fn last_epoch(&self) -> LeaderEpoch {
        unimplemented!()
    }
    /// On becoming leader.
    pub fn assign_epoch_start(&mut self, _epoch: LeaderEpoch, _start: Offset) -> Result<(), LogError> {
        unimplemented!()
    }
    /// OffsetForLeaderEpoch.
    pub fn end_offset_for_epoch(&self, _epoch: LeaderEpoch) -> EpochEndOffset {
        unimplemented!()
    }
    /// The epoch of the record at an offset.
    pub fn epoch_at(&self, _offset: Offset) -> Option<LeaderEpoch> {
        unimplemented!()
    }
    /// Cuts off everything at and after an offset.
    pub fn truncate_to(&mut self, _offset: Offset, _now: Timestamp) -> Result<(), LogError> {
        unimplemented!()
    }
    /// Empties the log.
    pub fn truncate_fully_and_start_at(&mut self, _offset: Offset, _now: Timestamp) -> Result<(), LogError> {
        unimplemented!()
    }
    /// Moves the log start offset up.
    pub fn advance_start(&mut self, _offset: Offset) -> Result<(), LogError> {
        unimplemented!()
    }
    /// Retention.
    pub fn retain(
        &mut self,
        _high_watermark: Offset,
        _now: Timestamp,
        _segments_budget: usize,
    ) -> Result<RetentionProgress, LogError> {
        unimplemented!()
    }
    /// Rolls.
    pub fn roll(&mut self, _now: Timestamp) -> Result<(), LogError> {
        unimplemented!()
    }
    /// Begins a flush of all that was appended; None if nothing is to be flushed.
    pub fn flush(&mut self) -> Result<Option<FlushToken>, LogError> {
        unimplemented!()
    }
    /// Takes note of a flush.
    pub fn flushed(&mut self, _flushed: Flushed) {
        unimplemented!()
    }
    /// Clean shutdown.
    pub fn close(&mut self, _now: Timestamp) -> Result<FlushToken, LogError> {
        unimplemented!()
    }
    /// Last stable offset.
    pub fn last_stable_offset(&self, _high_watermark: Offset) -> Offset {
        unimplemented!()
    }
    /// Aborted transactions of a read.
    pub fn aborted_transactions(
        &mut self,
        _from: Offset,
        _upper_bound: Offset,
    ) -> Result<Vec<AbortedTransaction>, LogError> {
        unimplemented!()
    }
    /// Producers.
    pub fn active_producers(&self) -> impl Iterator<Item = ActiveProducer> + '_ {
        std::iter::empty()
    }
}

/// `meta.properties`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaProperties {
    /// 0 or 1.
    pub version: i32,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The node.
    pub node_id: BrokerId,
    /// This directory.
    pub directory_id: Option<Uuid>,
}

/// One entry of `log.dirs`.
#[derive(Debug)]
pub struct LogDirectory {}
/// The four checkpoint files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckpointKind {
    /// recovery-point-offset-checkpoint
    RecoveryPoint,
    /// log-start-offset-checkpoint
    LogStart,
    /// replication-offset-checkpoint
    HighWatermark,
    /// cleaner-offset-checkpoint
    Cleaner,
}
/// What a partition's folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionDirectoryKind {
    /// A replica.
    Partition,
    /// To be removed.
    Deleted,
    /// Not ours by the metadata.
    Stray,
    /// Being moved here.
    Future,
}
/// A partition's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPartition {
    /// Folder.
    pub path: PathBuf,
    /// Its kind.
    pub kind: PartitionDirectoryKind,
    /// Whose.
    pub topic_partition: TopicPartition,
}
/// A deleted partition, renamed.
#[derive(Debug)]
pub struct DeletedPartition {}
impl DeletedPartition {
    /// Removes its files.
    pub fn remove(self) -> Result<(), LogError> {
        unimplemented!()
    }
}
/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A file.
    #[error(transparent)]
    Log(#[from] LogError),
}
impl LogDirectory {
    /// Opens it.
    pub fn open(_disk: Arc<dyn Disk>, _path: PathBuf) -> Result<Self, DirectoryError> {
        unimplemented!()
    }
    /// Formats it.
    pub fn format(_disk: &dyn Disk, _path: &Path, _properties: &MetaProperties) -> Result<(), LogError> {
        unimplemented!()
    }
    /// Path.
    pub fn path(&self) -> &Path {
        unimplemented!()
    }
    /// Its id.
    pub fn meta_properties(&self) -> Option<&MetaProperties> {
        unimplemented!()
    }
    /// Clean.
    pub fn was_clean(&self) -> bool {
        unimplemented!()
    }
    /// The broker epoch of the clean shutdown.
    pub fn previous_broker_epoch(&self) -> Option<BrokerEpoch> {
        unimplemented!()
    }
    /// Partitions in it.
    pub fn find_partitions(&self) -> Result<Vec<FoundPartition>, DirectoryError> {
        unimplemented!()
    }
    /// Opens one.
    pub fn opening(
        &self,
        _found: &FoundPartition,
        _config: Arc<LogConfig>,
        _now: Timestamp,
    ) -> Result<LogOpening, LogError> {
        unimplemented!()
    }
    /// Creates one.
    pub fn create_partition(
        &self,
        _topic_partition: TopicPartition,
        _topic_id: Option<TopicId>,
        _config: Arc<LogConfig>,
        _now: Timestamp,
    ) -> Result<PartitionLog, LogError> {
        unimplemented!()
    }
    /// From the files at start.
    pub fn checkpoint(&self, _kind: CheckpointKind, _topic_partition: &TopicPartition) -> Option<Offset> {
        unimplemented!()
    }
    /// Replaces the file.
    pub fn write_checkpoint(
        &self,
        _kind: CheckpointKind,
        _entries: impl IntoIterator<Item = (TopicPartition, Offset)>,
    ) -> Result<(), LogError> {
        unimplemented!()
    }
    /// Renames to -delete.
    pub fn delete_partition(&self, _log: PartitionLog, _unique: Uuid) -> Result<DeletedPartition, LogError> {
        unimplemented!()
    }
    /// Renames to -stray.
    pub fn set_stray(&self, _log: PartitionLog, _unique: Uuid) -> Result<PathBuf, LogError> {
        unimplemented!()
    }
    /// Writes the marker, after every log is closed and the checkpoints are written.
    pub fn finish_clean_shutdown(self, _broker_epoch: BrokerEpoch) -> Result<(), LogError> {
        unimplemented!()
    }
}
