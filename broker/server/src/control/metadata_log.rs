//! The metadata log of this node: its records, its snapshots, and what the quorum may know of them.
//!
//! It is Kafka's partition `__cluster_metadata-0`: an ordinary log, checked from its first byte at every start, that is only ever cut
//! behind a snapshot. Used by the control thread alone.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use gregor_config::BrokerConfig;
use gregor_log::{
    AppendError, Disk, LogConfig, LogError, OpenOptions, PartitionLog, ReadError, ReadRequest, disk::SharedFile,
};
use gregor_raft::{
    Batch, LogView, METADATA_TOPIC, OffsetAndEpoch, SnapshotId,
    control::{Content, ControlError, Entry, read_batches},
    snapshot::{self, SnapshotError},
};
use gregor_types::{LeaderEpoch, Offset, Timestamp, TopicPartition, Uuid};

/// What is read of the log at a time.
const READ_BYTES: u32 = 4 * 1024 * 1024;
/// A snapshot's first batch ends before this, unless it has hundreds of voters.
const SNAPSHOT_HEAD_BYTES: usize = 64 * 1024;
/// How many segments are deleted at a time.
const SEGMENTS_AT_A_TIME: usize = 16;

/// Why the metadata log cannot be used. All of them stop the node.
#[derive(Debug, thiserror::Error)]
pub enum MetadataLogError {
    /// Opening, syncing or cutting it.
    #[error("the metadata log: {0}")]
    Log(#[from] LogError),
    /// Appending to it.
    #[error("appending to the metadata log: {0}")]
    Append(#[from] AppendError),
    /// Finding records in it.
    #[error("reading the metadata log: {0}")]
    Read(#[from] ReadError),
    /// Its batches.
    #[error("the metadata log is corrupt: {0}")]
    Corrupt(#[from] ControlError),
    /// A snapshot.
    #[error("the snapshot {name}: {error}")]
    Snapshot {
        /// Its file's name.
        name: String,
        /// Why.
        error: SnapshotError,
    },
    /// A file.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl MetadataLogError {
    /// Whether there was no room: nothing was done, and the same can be tried again.
    pub fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            Self::Log(error) | Self::Append(AppendError::Log(error)) => error.is_disk_full(),
            Self::File { error, .. } => matches!(error.kind(), StorageFull | QuotaExceeded),
            _ => false,
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct MetadataLog {
    disk: Arc<dyn Disk>,
    partition: PathBuf,
    log: PartitionLog,
    snapshots: BTreeMap<SnapshotId, SnapshotFile>,
}

#[derive(Debug, Clone, Copy)]
struct SnapshotFile {
    bytes: u64,
    /// The time of the newest record that it stands for.
    last_contained: Timestamp,
}

/// When old snapshots, and the log before them, go (`metadata.max.retention.*`); -1 for never.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retention {
    pub(super) bytes: i64,
    pub(super) milliseconds: i64,
}

impl MetadataLog {
    /// Opens the log in a formatted metadata directory, or makes an empty one.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        partition: PathBuf,
        config: &BrokerConfig,
        now: Timestamp,
    ) -> Result<Self, MetadataLogError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |error| MetadataLogError::File { path, error }
        };
        disk.create_directory(&partition).map_err(file(&partition))?;
        let entries = disk.list(&partition).map_err(file(&partition))?;
        let log_config = Arc::new(LogConfig {
            segment_bytes: config.metadata_log_segment_bytes.unsigned_abs(),
            segment_ms: config.metadata_log_segment_ms,
            retention_ms: -1,
            retention_bytes: -1,
            ..LogConfig::default()
        });
        let topic_partition = TopicPartition::new(METADATA_TOPIC, 0);
        let exists =
            entries.iter().any(|entry| Path::new(&entry.name).extension().is_some_and(|extension| extension == "log"));
        let log = if exists {
            // Nothing is taken on trust: neither a recovery point nor a clean shutdown, as in Apache's KafkaMetadataLog.
            let options = OpenOptions {
                topic_partition,
                config: log_config,
                recovery_point: Offset::ZERO,
                log_start_offset: Offset::ZERO,
                cleaned_to: Offset::ZERO,
                clean: false,
                now,
            };
            PartitionLog::open(disk.clone(), partition.clone(), options)?
        } else {
            PartitionLog::create(
                disk.clone(),
                partition.clone(),
                topic_partition,
                Some(Uuid::METADATA_TOPIC),
                log_config,
                now,
            )?
        };
        let mut this = Self { disk, partition, log, snapshots: BTreeMap::new() };
        for entry in entries {
            if let Some(id) = snapshot::parse_file_name(&entry.name) {
                this.add_snapshot(id)?;
            } else if entry.name.ends_with(".checkpoint.part") || entry.name.ends_with(".checkpoint.deleted") {
                let path = this.partition.join(&entry.name);
                this.disk.remove_file(&path).map_err(file(&path))?;
            }
        }
        this.start_at_newest_snapshot(now)?;
        this.sync_what_was_found(exists)?;
        Ok(this)
    }

    /// What a process wrote that died before it had synced it reads back all the same. Other voters count on what this log has, so all of it is on the
    /// disk before they hear of it; and the folder is, before a vote is written into it.
    fn sync_what_was_found(&mut self, exists: bool) -> Result<(), MetadataLogError> {
        if exists {
            match self.flush() {
                // There was no room for where epochs begin, which the next start finds again: the log itself is synced before that.
                Err(error) if error.is_disk_full() => {}
                synced => synced?,
            }
        }
        for folder in [Some(self.partition.as_path()), self.partition.parent()].into_iter().flatten() {
            let synced = self.disk.sync_directory(folder).complete();
            synced.map_err(|error| MetadataLogError::File { path: folder.to_owned(), error })?;
        }
        Ok(())
    }

    /// A log that does not have its newest snapshot's end is of no use: a follower crashed between taking the snapshot and cutting its log, or
    /// before the epochs of what it cut off were gone from the disk, too.
    fn start_at_newest_snapshot(&mut self, now: Timestamp) -> Result<(), MetadataLogError> {
        let is_lost = |id: &SnapshotId| {
            let is_all = self.log.start_offset() == self.log.end_offset() && self.log.end_offset() == id.offset;
            *id != SnapshotId::BOOTSTRAP && (!id.is_end_in(self) || is_all && self.end() != *id)
        };
        if let Some(id) = self.latest_snapshot().filter(is_lost) {
            let log_end = self.log.end_offset();
            tracing::warn!(snapshot = %snapshot::file_name(id), %log_end, "the metadata log does not have its newest snapshot's end: it starts again there");
            self.start_at(id, now)?;
        }
        Ok(())
    }

    /// Cuts off all of the log: the next record lands at the end that this snapshot stands for. Older snapshots stand for nothing any more.
    pub(super) fn start_at(&mut self, id: SnapshotId, now: Timestamp) -> Result<(), MetadataLogError> {
        self.log.truncate_fully_and_start_at(id.offset, now)?;
        while let Some((&oldest, _)) = self.snapshots.first_key_value().filter(|(oldest, _)| **oldest < id) {
            self.remove_snapshot(oldest)?;
        }
        Ok(())
    }

    /// Cuts off what is behind `end`.
    pub(super) fn truncate(&mut self, end: Offset, now: Timestamp) -> Result<(), MetadataLogError> {
        Ok(self.log.truncate_to(end, now)?)
    }

    /// The folder of the partition.
    pub(super) fn partition(&self) -> &Path {
        &self.partition
    }

    /// The files.
    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Appends a batch at the end of the log.
    pub(super) fn append(
        &mut self,
        batch: &Batch,
        base: Offset,
        epoch: LeaderEpoch,
        timestamp: Timestamp,
    ) -> Result<(), MetadataLogError> {
        assert_eq!(base, self.log.end_offset(), "the quorum appends at the end of the log");
        let bytes = batch.encode(base, epoch, timestamp);
        self.log.append_as_follower(&bytes, timestamp)?;
        Ok(())
    }

    /// Appends batches as the leader sent them.
    pub(super) fn append_fetched(
        &mut self,
        base: Offset,
        records: &Bytes,
        now: Timestamp,
    ) -> Result<(), MetadataLogError> {
        assert_eq!(base, self.log.end_offset(), "a follower appends at the end of the log");
        self.log.append_as_follower(records, now)?;
        Ok(())
    }

    /// Syncs everything that was appended.
    pub(super) fn flush(&mut self) -> Result<(), MetadataLogError> {
        if let Some(token) = self.log.flush()? {
            let flushed = token.complete()?;
            self.log.flushed(flushed);
        }
        Ok(())
    }

    /// Calls `each` with the records from `from` to `end`, in order. Both are bounds of batches.
    pub(super) fn read<E: From<MetadataLogError>>(
        &mut self,
        from: Offset,
        end: Offset,
        mut each: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut next = from;
        while next < end {
            let bytes = self.read_bytes(next, end, READ_BYTES)?;
            let read = read_batches::<Failure<E>>(&bytes, |entry| {
                next = entry.offset.plus(1);
                each(entry).map_err(Failure::Caller)
            });
            let read = read.map_err(|failure| match failure {
                Failure::Caller(error) => error,
                Failure::Batches(error) => MetadataLogError::Corrupt(error).into(),
            })?;
            if read == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whole batches, as they lie in the log, for another node.
    pub(super) fn read_bytes(
        &mut self,
        from: Offset,
        upper_bound: Offset,
        max_bytes: u32,
    ) -> Result<Bytes, MetadataLogError> {
        let plan = self.log.read(&ReadRequest { from, upper_bound, max_bytes, min_one_batch: true })?;
        plan.read_all().map_err(|error| MetadataLogError::File { path: self.partition.clone(), error })
    }

    /// A piece of a snapshot's file.
    pub(super) fn read_snapshot_bytes(
        &self,
        id: SnapshotId,
        position: u64,
        max_bytes: u32,
    ) -> Result<Bytes, MetadataLogError> {
        let size = self.snapshots.get(&id).map_or(0, |file| file.bytes);
        let length = u64::from(max_bytes).min(size.saturating_sub(position)) as usize;
        self.read_file(&snapshot::file_name(id), |file| {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, position)?;
            Ok(bytes.into())
        })
    }

    /// Reads a whole snapshot: calls `each` with what stands between its header and footer.
    pub(super) fn read_snapshot<E: From<MetadataLogError>>(
        &self,
        id: SnapshotId,
        mut each: impl FnMut(Content) -> Result<(), E>,
    ) -> Result<(), E> {
        let name = snapshot::file_name(id);
        let bytes = self.read_file(&name, whole)?;
        read_checkpoint(&name, &bytes, &mut each)
    }

    /// Takes note of a snapshot that has been written completely.
    pub(super) fn add_snapshot(&mut self, id: SnapshotId) -> Result<(), MetadataLogError> {
        let name = snapshot::file_name(id);
        let (bytes, head) = self.read_file(&name, |file| {
            let size = file.len()?;
            let mut head = vec![0; (size as usize).min(SNAPSHOT_HEAD_BYTES)];
            file.read_exact_at(&mut head, 0)?;
            Ok((size, Bytes::from(head)))
        })?;
        let last_contained =
            snapshot::last_contained(&head).map_err(|error| MetadataLogError::Snapshot { name, error })?;
        self.snapshots.insert(id, SnapshotFile { bytes, last_contained });
        Ok(())
    }

    /// Deletes snapshots that are not the newest, and the log before the oldest that stays, as far as retention wants
    /// (`KafkaMetadataLog.maybeClean`).
    pub(super) fn clean(
        &mut self,
        retention: Retention,
        high_watermark: Offset,
        now: Timestamp,
    ) -> Result<(), MetadataLogError> {
        while let Some((&oldest, &file)) = self.snapshots.first_key_value()
            && let Some((&next, _)) = self.snapshots.iter().nth(1)
        {
            let total = self.log.size() + self.snapshots.values().map(|file| file.bytes).sum::<u64>();
            let too_large = retention.bytes >= 0 && total > retention.bytes.unsigned_abs();
            let too_old = retention.milliseconds >= 0 && now.since(file.last_contained) > retention.milliseconds;
            if !too_large && !too_old {
                break;
            }
            // The log first: it may not start where no snapshot stands for what was before.
            self.log.advance_start(next.offset)?;
            while self.log.retain(high_watermark, now, SEGMENTS_AT_A_TIME)?.more {}
            self.remove_snapshot(oldest)?;
            tracing::info!(snapshot = %snapshot::file_name(oldest), log_start = %next.offset, "deleted an old metadata snapshot");
        }
        Ok(())
    }

    fn remove_snapshot(&mut self, id: SnapshotId) -> Result<(), MetadataLogError> {
        let path = self.partition.join(snapshot::file_name(id));
        self.disk.remove_file(&path).map_err(|error| MetadataLogError::File { path, error })?;
        self.snapshots.remove(&id);
        Ok(())
    }

    /// Closes the log: all of it is on disk.
    pub(super) fn close(mut self) -> Result<(), MetadataLogError> {
        self.log.close()?.complete()?;
        Ok(())
    }

    fn read_file<T>(&self, name: &str, read: impl FnOnce(&SharedFile) -> io::Result<T>) -> Result<T, MetadataLogError> {
        let path = self.partition.join(name);
        self.disk.open(&path).and_then(|file| read(&file)).map_err(|error| MetadataLogError::File { path, error })
    }
}

impl LogView for MetadataLog {
    fn end(&self) -> OffsetAndEpoch {
        let end = self.log.end_offset();
        match self.latest_snapshot() {
            Some(snapshot) if self.log.last_epoch() == LeaderEpoch::NONE && snapshot.offset == end => snapshot,
            _ => OffsetAndEpoch::new(end, self.log.last_epoch().max(LeaderEpoch(0))),
        }
    }

    fn start(&self) -> Offset {
        self.log.start_offset()
    }

    fn end_of_epoch(&self, epoch: LeaderEpoch) -> OffsetAndEpoch {
        let found = self.log.end_offset_for_epoch(epoch);
        if found.end_offset >= Offset::ZERO {
            return OffsetAndEpoch::new(found.end_offset, found.leader_epoch);
        }
        // Nothing of that epoch or an older one is left in the log: what was there stands in the snapshot at whose end the log starts. One that
        // a log has yet to start again with is no part of it.
        match self.snapshots.keys().rfind(|id| id.offset == self.start()) {
            Some(snapshot) if snapshot.epoch <= epoch => *snapshot,
            _ => OffsetAndEpoch::new(self.start(), LeaderEpoch(0)),
        }
    }

    fn latest_snapshot(&self) -> Option<SnapshotId> {
        self.snapshots.last_key_value().map(|(id, _)| *id)
    }

    fn earliest_snapshot(&self) -> Option<SnapshotId> {
        self.snapshots.first_key_value().map(|(id, _)| *id)
    }

    fn snapshot_size(&self, id: SnapshotId) -> Option<u64> {
        self.snapshots.get(&id).map(|file| file.bytes)
    }
}

/// Reads `bootstrap.checkpoint` of a directory, if it has one.
pub(super) fn read_bootstrap<E: From<MetadataLogError>>(
    disk: &dyn Disk,
    directory: &Path,
    mut each: impl FnMut(Content) -> Result<(), E>,
) -> Result<bool, E> {
    let path = directory.join(super::format::BOOTSTRAP_FILE);
    match disk.open(&path).and_then(|file| whole(&file)) {
        Ok(bytes) => read_checkpoint(super::format::BOOTSTRAP_FILE, &bytes, &mut each).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(MetadataLogError::File { path, error }.into()),
    }
}

fn whole(file: &SharedFile) -> io::Result<Bytes> {
    let mut bytes = vec![0; file.len()? as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes.into())
}

fn read_checkpoint<E: From<MetadataLogError>>(
    name: &str,
    bytes: &Bytes,
    each: &mut impl FnMut(Content) -> Result<(), E>,
) -> Result<(), E> {
    let read = snapshot::read::<SnapshotFailure<E>>(bytes, |content| each(content).map_err(SnapshotFailure::Caller));
    read.map(drop).map_err(|failure| match failure {
        SnapshotFailure::Caller(error) => error,
        SnapshotFailure::Snapshot(error) => MetadataLogError::Snapshot { name: name.to_owned(), error }.into(),
    })
}

enum Failure<E> {
    Batches(ControlError),
    Caller(E),
}

impl<E> From<ControlError> for Failure<E> {
    fn from(error: ControlError) -> Self {
        Self::Batches(error)
    }
}

enum SnapshotFailure<E> {
    Snapshot(SnapshotError),
    Caller(E),
}

impl<E> From<SnapshotError> for SnapshotFailure<E> {
    fn from(error: SnapshotError) -> Self {
        Self::Snapshot(error)
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use gregor_config::Properties;
    use gregor_log::disk::{Crash, FaultyDisk};
    use gregor_raft::snapshot::SnapshotWriter;

    use super::*;

    fn rig() -> (Arc<FaultyDisk>, PathBuf, BrokerConfig) {
        let mut properties = Properties::default();
        for (key, value) in [
            ("node.id", "1"),
            ("process.roles", "controller"),
            ("listeners", "CONTROLLER://localhost:9093"),
            ("controller.listener.names", "CONTROLLER"),
            ("controller.quorum.bootstrap.servers", "localhost:9093"),
            ("log.dirs", "/data"),
        ] {
            properties.set(key, value);
        }
        let config = BrokerConfig::from_properties(&properties).unwrap().0;
        (Arc::new(FaultyDisk::new()), PathBuf::from("/data/__cluster_metadata-0"), config)
    }

    /// Appends one record, of epoch 1.
    fn append(log: &mut MetadataLog, base: i64) {
        let batch = Batch::Data(vec![Bytes::from_static(b"record")]);
        log.append(&batch, Offset(base), LeaderEpoch(1), Timestamp(1)).unwrap();
    }

    /// What a leader sent under this name.
    fn receive(log: &mut MetadataLog, id: SnapshotId) {
        let bytes = SnapshotWriter::new(id.epoch, Timestamp(1), Timestamp(2), None).finish().concat();
        let file = log.disk.create(&log.partition.join(snapshot::file_name(id))).unwrap();
        file.write_all_at(&mut [IoSlice::new(&bytes)], 0).unwrap();
        log.add_snapshot(id).unwrap();
    }

    #[test]
    fn what_a_process_did_not_live_to_sync_is_on_the_disk_once_the_next_has_opened_the_log() {
        let (disk, partition, config) = rig();
        let open = || MetadataLog::open(disk.clone(), partition.clone(), &config, Timestamp(1)).unwrap();
        let mut log = open();
        append(&mut log, 0);
        log.flush().unwrap();
        append(&mut log, 1);
        drop(log);
        disk.crash(Crash::KeepAll);
        drop(open());
        disk.crash(Crash::LoseUnsynced);
        assert_eq!(open().end().offset, Offset(2));
    }

    #[test]
    fn a_snapshot_is_no_end_of_an_empty_log_until_the_log_starts_there() {
        const ID: SnapshotId = SnapshotId::new(Offset(12), LeaderEpoch(3));
        let (disk, partition, config) = rig();
        let mut log = MetadataLog::open(disk.clone(), partition.clone(), &config, Timestamp(1)).unwrap();
        receive(&mut log, ID);
        assert!(!ID.is_end_in(&log), "a leader's snapshot has come, and the log is still empty");
        log.start_at(ID, Timestamp(3)).unwrap();
        assert!(ID.is_end_in(&log));
        assert_eq!((log.end(), log.start()), (ID, ID.offset));
    }

    #[test]
    fn a_log_that_starts_with_a_snapshot_has_its_epoch_though_older_ones_are_still_on_the_disk() {
        const ID: SnapshotId = SnapshotId::new(Offset(2), LeaderEpoch(3));
        let (disk, partition, config) = rig();
        let open = || MetadataLog::open(disk.clone(), partition.clone(), &config, Timestamp(1)).unwrap();
        let mut log = open();
        append(&mut log, 0);
        append(&mut log, 1);
        log.flush().unwrap();
        receive(&mut log, ID);
        log.start_at(ID, Timestamp(3)).unwrap();
        drop(log);
        disk.crash(Crash::KeepAll);
        assert_eq!(open().end(), ID);
    }
}
