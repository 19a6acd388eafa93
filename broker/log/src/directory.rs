//! One entry of `log.dirs`: its lock, its identity, its checkpoints, its partitions, and how it is left.
//!
//! The server owns the logs; this owns what they share. A clean shutdown is: close every log and complete its flush, write
//! the checkpoints, then [`LogDirectory::finish_clean_shutdown`].

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use gregor_types::{BrokerEpoch, Offset, Timestamp, TopicId, TopicPartition, Uuid, planted::planted};

use crate::{
    CheckpointKind, Disk, LogConfig, LogError, LogOpening, MetaProperties, PartitionDirectoryKind, PartitionLog,
    RestingLog,
    checkpoint::{read_offsets, write_offsets},
    disk::{FileLock, SyncToken, read_file, replace_file},
    file_names::{PARTITION_METADATA, marked_directory_name, parse_partition_directory},
    folder::read_topic_id,
    resting::Checkpoints,
};

const LOCK_FILE: &str = ".lock";
const CLEAN_SHUTDOWN_FILE: &str = ".kafka_cleanshutdown";
/// The only other folder that Kafka tolerates: its cache of remote segments' indexes.
const REMOTE_INDEX_CACHE: &str = "remote-log-index-cache";
const MARKER_BYTES_MAX: usize = 4096;

/// Why a log directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Another program has it.
    #[error("{0} is locked: another broker uses this log directory; give each its own, or stop the other")]
    Locked(PathBuf),
    /// A folder that is no partition's.
    #[error("{path} has no place in a log directory: its name is not <topic>-<partition>; move it elsewhere", path = .0.display())]
    Foreign(PathBuf),
    /// The operating system refused a file, or a file is not what it should be.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// A folder of a partition in a log directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPartition {
    /// The folder.
    pub path: PathBuf,
    /// What it is.
    pub kind: PartitionDirectoryKind,
    /// Whose it is; of a deleted folder, the topic's name may be cut.
    pub topic_partition: TopicPartition,
}

/// A deleted partition's folder, out of the way under its `-delete` name.
#[derive(Debug)]
#[must_use = "its files stay until they are removed"]
pub struct DeletedPartition {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

/// A log directory that this program holds the lock of.
#[derive(Debug)]
pub struct LogDirectory {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) path: PathBuf,
    meta_properties: Option<MetaProperties>,
    /// From the marker that the last program left, if it left one.
    previous_broker_epoch: Option<BrokerEpoch>,
    checkpoints: BTreeMap<CheckpointKind, BTreeMap<TopicPartition, Offset>>,
    _lock: FileLock,
}

impl LogDirectory {
    /// Takes the directory: locks it, reads its identity, the marker of a clean shutdown (which is removed, so that a crash
    /// from here on is seen) and the checkpoints. A checkpoint that cannot be read counts as missing: the logs are checked
    /// then, which is slow and safe. Blocks.
    pub fn open(disk: Arc<dyn Disk>, path: PathBuf) -> Result<Self, DirectoryError> {
        disk.create_directory(&path).map_err(LogError::io(&path))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = disk.try_lock(&lock_path).map_err(LogError::io(&lock_path))?;
        let lock = lock.ok_or(DirectoryError::Locked(lock_path))?;
        let meta_properties = MetaProperties::read(&*disk, &path)?;
        if meta_properties.is_none() {
            sync_names_above(&*disk, &path)?;
        }
        let mut checkpoints = BTreeMap::new();
        for kind in CheckpointKind::ALL {
            let offsets = match read_offsets(&*disk, &path.join(kind.file_name())) {
                Err(LogError::Malformed { .. }) => BTreeMap::new(),
                offsets => offsets?,
            };
            checkpoints.insert(kind, offsets);
        }
        let previous_broker_epoch = take_marker(&*disk, &path)?;
        Ok(Self { disk, path, meta_properties, previous_broker_epoch, checkpoints, _lock: lock })
    }

    /// Gives a directory its identity.
    pub fn format(disk: &dyn Disk, path: &Path, properties: &MetaProperties) -> Result<(), LogError> {
        disk.create_directory(path).map_err(LogError::io(path))?;
        sync_names_above(disk, path)?;
        properties.write(disk, path)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its identity; none if it was never formatted.
    pub const fn meta_properties(&self) -> Option<&MetaProperties> {
        self.meta_properties.as_ref()
    }

    /// Gives the directory an identity that it lacks, whole or in part.
    pub fn identify(&mut self, properties: MetaProperties) -> Result<(), LogError> {
        properties.write(&*self.disk, &self.path)?;
        self.meta_properties = Some(properties);
        Ok(())
    }

    /// Whether the last program that had it shut down cleanly.
    pub fn was_clean(&self) -> bool {
        self.previous_broker_epoch.is_some() || planted("torn-tail-kept")
    }

    /// The broker epoch of the last program, if it shut down cleanly; -1 within where it did not know its own (KIP-966).
    pub const fn previous_broker_epoch(&self) -> Option<BrokerEpoch> {
        self.previous_broker_epoch
    }

    /// The partitions in the directory; a folder of any other kind is refused, as Kafka does.
    pub fn find_partitions(&self) -> Result<Vec<FoundPartition>, DirectoryError> {
        let mut found = Vec::new();
        for entry in self.disk.list(&self.path).map_err(LogError::io(&self.path))? {
            if !entry.is_directory || entry.name == REMOTE_INDEX_CACHE {
                continue;
            }
            let path = self.path.join(&entry.name);
            let Some((topic_partition, kind)) = parse_partition_directory(&entry.name) else {
                return Err(DirectoryError::Foreign(path));
            };
            found.push(FoundPartition { path, kind, topic_partition });
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// The topic id of a found partition, without opening its log.
    pub fn topic_id(&self, found: &FoundPartition) -> Result<Option<TopicId>, LogError> {
        read_topic_id(&*self.disk, &found.path.join(PARTITION_METADATA))
    }

    /// Lists a found partition's folder, so that its log can be opened with what the checkpoints say of it. Reads no data.
    pub fn survey(&self, found: FoundPartition) -> Result<RestingLog, LogError> {
        let offset = |kind| self.checkpoint(kind, &found.topic_partition).unwrap_or(Offset::ZERO);
        let checkpoints = Checkpoints {
            recovery_point: offset(CheckpointKind::RecoveryPoint),
            log_start: if planted("log-start-forgotten") { Offset::ZERO } else { offset(CheckpointKind::LogStart) },
            cleaned_to: offset(CheckpointKind::Cleaner),
        };
        RestingLog::survey(self.disk.clone(), found.path, found.topic_partition, checkpoints, self.was_clean())
    }

    /// Begins to open a found partition's log, with what the checkpoints say of it.
    pub fn opening(
        &self,
        found: &FoundPartition,
        config: Arc<LogConfig>,
        now: Timestamp,
    ) -> Result<LogOpening, LogError> {
        self.survey(found.clone())?.opening(config, now)
    }

    /// Creates the log of a new replica in this directory.
    pub fn create_partition(
        &self,
        topic_partition: TopicPartition,
        topic_id: Option<TopicId>,
        config: Arc<LogConfig>,
        now: Timestamp,
    ) -> Result<PartitionLog, LogError> {
        let path = self.path.join(topic_partition.to_string());
        PartitionLog::create(self.disk.clone(), path, topic_partition, topic_id, config, now)
    }

    /// What a checkpoint file said when the directory was opened.
    pub fn checkpoint(&self, kind: CheckpointKind, topic_partition: &TopicPartition) -> Option<Offset> {
        self.checkpoints.get(&kind)?.get(topic_partition).copied()
    }

    /// Replaces a checkpoint file. Blocks until it is synced.
    pub fn write_checkpoint(
        &self,
        kind: CheckpointKind,
        entries: impl IntoIterator<Item = (TopicPartition, Offset)>,
    ) -> Result<(), LogError> {
        write_offsets(&*self.disk, &self.path.join(kind.file_name()), entries)
    }

    /// Has the checkpoint of recovery points say no more than `to` of a log that was cut off there: what comes behind that next was not synced when
    /// what stood there was, as in Kafka's `LogManager.truncateTo`. Blocks until it is synced.
    pub fn lower_recovery_point(&self, topic_partition: &TopicPartition, to: Offset) -> Result<(), LogError> {
        let mut offsets = read_offsets(&*self.disk, &self.path.join(CheckpointKind::RecoveryPoint.file_name()))?;
        match offsets.get_mut(topic_partition) {
            Some(known) if *known > to => *known = to,
            _ => return Ok(()),
        }
        self.write_checkpoint(CheckpointKind::RecoveryPoint, offsets)
    }

    /// Takes a log out of service, for good: its folder gets a `-delete` name at once, and readers that have its files go on.
    /// `unique` tells it from others of the same name.
    #[allow(clippy::needless_pass_by_value, reason = "its files are elsewhere now: it is not to be used again")]
    pub fn delete_partition(&self, log: PartitionLog, unique: Uuid) -> Result<DeletedPartition, LogError> {
        let path = self.rename(log.topic_partition(), log.directory(), unique, PartitionDirectoryKind::Deleted)?;
        Ok(DeletedPartition { disk: self.disk.clone(), path })
    }

    /// A folder that an earlier program left under its `-delete` name.
    pub fn deleted_partition(&self, found: FoundPartition) -> DeletedPartition {
        DeletedPartition { disk: self.disk.clone(), path: found.path }
    }

    /// The same for a log that was never opened.
    #[allow(clippy::needless_pass_by_value, reason = "its files are elsewhere now: it is not to be used again")]
    pub fn delete_resting(&self, log: RestingLog, unique: Uuid) -> Result<DeletedPartition, LogError> {
        let path = self.rename(log.topic_partition(), log.directory(), unique, PartitionDirectoryKind::Deleted)?;
        Ok(DeletedPartition { disk: self.disk.clone(), path })
    }

    /// Puts a replica aside that the metadata does not give to this broker. Nothing removes it by itself.
    #[allow(clippy::needless_pass_by_value, reason = "its files are elsewhere now: it is not to be used again")]
    pub fn set_stray(&self, log: RestingLog, unique: Uuid) -> Result<PathBuf, LogError> {
        self.rename(log.topic_partition(), log.directory(), unique, PartitionDirectoryKind::Stray)
    }

    fn rename(
        &self,
        topic_partition: &TopicPartition,
        from: &Path,
        unique: Uuid,
        kind: PartitionDirectoryKind,
    ) -> Result<PathBuf, LogError> {
        let path = self.path.join(marked_directory_name(topic_partition, unique.0, kind));
        self.disk.rename(from, &path).map_err(LogError::io(from))?;
        Ok(path)
    }

    /// Begins to sync the whole file system that the directory is on: cheaper than one sync for each of many files.
    pub fn sync(&self) -> SyncToken {
        self.disk.sync_file_system(&self.path)
    }

    /// Leaves the marker of a clean shutdown and unlocks the directory. Every log must be closed and synced and the
    /// checkpoints written before: the next start trusts them. Blocks.
    pub fn finish_clean_shutdown(self, broker_epoch: BrokerEpoch) -> Result<(), LogError> {
        let path = self.path.join(CLEAN_SHUTDOWN_FILE);
        let content = serde_json::json!({ "version": 0, "brokerEpoch": broker_epoch.0 }).to_string();
        replace_file(&*self.disk, &path, content.as_bytes()).map_err(LogError::io(&path))
    }
}

impl DeletedPartition {
    pub(crate) const fn new(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        Self { disk, path }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes at most `budget` of the files, and the folder with the last one; whether it is gone.
    pub fn remove_some(&self, budget: usize) -> Result<bool, LogError> {
        let entries = match self.disk.list(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            entries => entries.map_err(LogError::io(&self.path))?,
        };
        let files = entries.iter().filter(|entry| !entry.is_directory);
        let is_small = entries.len() <= budget;
        for entry in files.take(budget) {
            let path = self.path.join(&entry.name);
            match self.disk.remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(LogError::io(&path)(error)),
                _ => {}
            }
        }
        if is_small {
            match self.disk.remove_directory(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(LogError::io(&self.path)(error)),
                _ => {}
            }
        }
        Ok(is_small)
    }

    /// Removes the files; due `file.delete.delay.ms` after the deletion.
    pub fn remove(self) -> Result<(), LogError> {
        match self.disk.remove_directory(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LogError::io(&self.path)(error)),
            _ => Ok(()),
        }
    }
}

/// Reads and removes the marker. One that cannot be read still says that the shutdown was clean, as it does to Kafka.
fn take_marker(disk: &dyn Disk, directory: &Path) -> Result<Option<BrokerEpoch>, LogError> {
    let path = directory.join(CLEAN_SHUTDOWN_FILE);
    let content = match read_file(disk, &path, MARKER_BYTES_MAX) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LogError::io(&path)(error)),
    };
    let epoch = serde_json::from_slice::<serde_json::Value>(&content)
        .ok()
        .and_then(|marker| marker.get("brokerEpoch")?.as_i64());
    disk.remove_file(&path).map_err(LogError::io(&path))?;
    disk.sync_directory(directory).complete().map_err(LogError::io(&path))?;
    Ok(Some(epoch.map_or(BrokerEpoch::NONE, BrokerEpoch)))
}

/// A folder that was just made, and those above it, have to be found after a loss of power: nothing in it is durable before.
fn sync_names_above(disk: &dyn Disk, path: &Path) -> Result<(), LogError> {
    for folder in path.ancestors().skip(1).filter(|folder| folder.is_absolute()) {
        match disk.sync_directory(folder).complete() {
            // A folder that we may not list was there before us.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            synced => synced.map_err(LogError::io(folder))?,
        }
    }
    Ok(())
}
