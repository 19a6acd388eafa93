//! The node's log directories: found logs at the start, syncs and checkpoints while it runs, the clean end.
//!
//! `node.rs` opens them, `partitions.rs` takes logs from them and makes new ones. Each directory has one flusher thread, which
//! syncs whatever asked for it since its last round (group commit). A directory that fails stays out of service for the life
//! of the process, as Kafka does; with the last one the node cannot go on.

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use gregor_config::BrokerConfig;
use gregor_log::{
    CheckpointKind, DeletedPartition, DirectoryError, Disk, LogConfig, LogDirectory, LogError, PartitionDirectoryKind,
    PartitionLog,
};
use gregor_types::{BrokerEpoch, BrokerId, ClusterId, DirectoryId, Offset, Timestamp, TopicId, TopicPartition, Uuid};
use tokio::sync::watch;

use crate::{api::now, partition::Partition};

/// Bytes that an opening checks between two looks at whether the node stops.
const OPENING_STEP_BYTES: u64 = 64 << 20;

/// One entry of `log.dirs`.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its id, which the metadata knows it by.
    pub(crate) id: DirectoryId,
    disk: Arc<dyn Disk>,
    /// `None` once it is closed.
    open: RwLock<Option<LogDirectory>>,
    failed: AtomicBool,
    /// What each checkpoint file says, so that nothing is written where nothing changed.
    written: Mutex<HashMap<CheckpointKind, Vec<(TopicPartition, Offset)>>>,
    failures: Arc<watch::Sender<Option<String>>>,
    flushes: Mutex<FlushQueue>,
    flush_wanted: Condvar,
}

/// Partitions that wait for the flusher; each is in it at most once.
#[derive(Debug, Default)]
struct FlushQueue {
    partitions: VecDeque<Arc<Partition>>,
    stopped: bool,
}

/// All log directories of the node.
#[derive(Debug)]
pub(crate) struct Storage {
    directories: Vec<Arc<Directory>>,
    cluster_id: ClusterId,
    metadata_directory_id: DirectoryId,
    previous_broker_epoch: BrokerEpoch,
    flushers: Mutex<Vec<thread::JoinHandle<()>>>,
}

/// A log that was found at the start and that no topic has claimed yet.
#[derive(Debug)]
pub(crate) struct FoundLog {
    /// Where it lies.
    pub(crate) directory: Arc<Directory>,
    /// The log.
    pub(crate) log: PartitionLog,
    /// What its checkpoint remembers.
    pub(crate) high_watermark: Offset,
}

/// Why the node cannot use its directories.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A directory cannot be opened.
    #[error("the log directory {path} cannot be used: {source}", path = .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: DirectoryError,
    },
    /// A directory is not formatted.
    #[error("the log directory {path} is not formatted: run `gregor storage format` first", path = .0.display())]
    NotFormatted(PathBuf),
    /// A directory of another node or cluster.
    #[error(
        "the log directory {path} belongs to node {found_node} of cluster {found_cluster}, and this is node {node} of cluster \
         {cluster}: check log.dirs and node.id",
        path = .path.display()
    )]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        found_node: BrokerId,
        /// Of which cluster.
        found_cluster: ClusterId,
        /// This node.
        node: BrokerId,
        /// The cluster of the first directory.
        cluster: ClusterId,
    },
    /// `metadata.log.dir` is not one of the directories.
    #[error("metadata.log.dir={path} is not among log.dirs, which is not served yet", path = .0.display())]
    MetadataDirectory(PathBuf),
    /// A thread could not be started.
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
}

impl Storage {
    /// Opens and locks every directory. What fails later is told to `failures`.
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        config: &BrokerConfig,
        failures: watch::Sender<Option<String>>,
    ) -> Result<Self, StorageError> {
        let mut opened = Vec::with_capacity(config.log_dirs.len());
        let mut cluster_id: Option<ClusterId> = None;
        for path in &config.log_dirs {
            let directory = LogDirectory::open(Arc::clone(disk), path.clone())
                .map_err(|source| StorageError::Directory { path: path.clone(), source })?;
            let unformatted = || StorageError::NotFormatted(path.clone());
            let properties = directory.meta_properties().ok_or_else(unformatted)?.clone();
            let id = properties.directory_id.ok_or_else(unformatted)?;
            let cluster = cluster_id.get_or_insert_with(|| properties.cluster_id.clone());
            if properties.node_id != config.node_id || properties.cluster_id != *cluster {
                return Err(StorageError::Foreign {
                    path: path.clone(),
                    found_node: properties.node_id,
                    found_cluster: properties.cluster_id,
                    node: config.node_id,
                    cluster: cluster.clone(),
                });
            }
            opened.push((path.clone(), id, directory));
        }
        let metadata_path = &config.metadata_log_dir;
        let metadata_directory = opened.iter().find(|(path, ..)| path == metadata_path);
        let metadata_directory_id =
            metadata_directory.ok_or_else(|| StorageError::MetadataDirectory(metadata_path.clone()))?.1;
        let cluster_id = cluster_id.ok_or_else(|| StorageError::MetadataDirectory(metadata_path.clone()))?;
        // KIP-966: the stop was clean only where every directory remembers the same epoch.
        let mut epochs: Vec<_> = opened.iter().map(|(_, _, directory)| directory.previous_broker_epoch()).collect();
        epochs.dedup();
        let previous_broker_epoch = match epochs[..] {
            [Some(epoch)] => epoch,
            _ => BrokerEpoch::NONE,
        };
        let failures = Arc::new(failures);
        let (mut directories, mut flushers) = (Vec::new(), Vec::new());
        for (path, id, directory) in opened {
            let directory = Arc::new(Directory {
                path,
                id,
                disk: Arc::clone(disk),
                open: RwLock::new(Some(directory)),
                failed: AtomicBool::new(false),
                written: Mutex::default(),
                failures: Arc::clone(&failures),
                flushes: Mutex::default(),
                flush_wanted: Condvar::new(),
            });
            let flusher = Arc::clone(&directory);
            let thread = thread::Builder::new().name("gregor-flush".to_owned()).spawn(move || flusher.run_flusher());
            flushers.push(thread.map_err(StorageError::Thread)?);
            directories.push(directory);
        }
        let flushers = Mutex::new(flushers);
        Ok(Self { directories, cluster_id, metadata_directory_id, previous_broker_epoch, flushers })
    }

    /// The cluster that the directories belong to.
    pub(crate) fn cluster_id(&self) -> &ClusterId {
        &self.cluster_id
    }

    /// The id of the directory that holds the metadata log.
    pub(crate) fn metadata_directory_id(&self) -> DirectoryId {
        self.metadata_directory_id
    }

    /// The broker's epoch when it last stopped cleanly; -1 if it did not.
    pub(crate) fn previous_broker_epoch(&self) -> BrokerEpoch {
        self.previous_broker_epoch
    }

    /// The directories, in the order of `log.dirs`.
    pub(crate) fn directories(&self) -> &[Arc<Directory>] {
        &self.directories
    }

    /// Opens the logs of every partition that lies here, recovering those that were not closed. `config_of` gives what is known
    /// of a topic's settings; `stopping` ends it early. Leftovers of deletions are removed.
    pub(crate) fn load(
        &self,
        config_of: impl Fn(&TopicPartition) -> Arc<LogConfig>,
        stopping: impl Fn() -> bool,
    ) -> HashMap<TopicPartition, FoundLog> {
        let mut found = HashMap::new();
        for directory in &self.directories {
            if let Err(error) = directory.load(&config_of, &stopping, &mut found) {
                directory.fail(&error.to_string());
            }
        }
        found
    }

    /// Ends the flushers, then closes the directories with Kafka's clean-shutdown marker. Every log must be closed before.
    pub(crate) fn close(&self, broker_epoch: BrokerEpoch) {
        for directory in &self.directories {
            directory.stop_flusher();
        }
        for flusher in std::mem::take(&mut *self.flushers.lock().unwrap_or_else(PoisonError::into_inner)) {
            if flusher.join().is_err() {
                tracing::error!("a flusher had panicked");
            }
        }
        for directory in &self.directories {
            let taken = directory.open.write().unwrap_or_else(PoisonError::into_inner).take();
            let (Some(log_directory), false) = (taken, directory.is_failed()) else { continue };
            if let Err(error) = log_directory.finish_clean_shutdown(broker_epoch) {
                tracing::error!(path = %directory.path.display(), %error, "the clean shutdown could not be marked");
            }
        }
    }
}

impl Directory {
    /// Whether it is out of service.
    pub(crate) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Takes the directory out of service for the rest of the process's life.
    pub(crate) fn fail(&self, why: &str) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(path = %self.path.display(), why, "a log directory failed and is out of service");
            self.failures.send_replace(Some(format!("{}: {why}", self.path.display())));
        }
    }

    /// Makes the log of a new partition.
    pub(crate) fn create(
        &self,
        partition: TopicPartition,
        topic_id: TopicId,
        config: Arc<LogConfig>,
        now: Timestamp,
    ) -> Result<PartitionLog, LogError> {
        self.with(|directory| directory.create_partition(partition, Some(topic_id), config, now))
    }

    /// Renames the folder of a deleted partition; its files are removed later.
    pub(crate) fn delete(&self, log: PartitionLog, unique: Uuid) -> Result<DeletedPartition, LogError> {
        self.with(|directory| directory.delete_partition(log, unique))
    }

    /// Renames the folder of a partition that the metadata says is not ours; nothing of it is lost.
    pub(crate) fn set_stray(&self, log: PartitionLog, unique: Uuid) -> Result<PathBuf, LogError> {
        self.with(|directory| directory.set_stray(log, unique))
    }

    /// Replaces a checkpoint file, unless it says the same already.
    pub(crate) fn checkpoint(&self, kind: CheckpointKind, mut entries: Vec<(TopicPartition, Offset)>) {
        if self.is_failed() {
            return;
        }
        entries.sort_unstable();
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.get(&kind) == Some(&entries) {
            return;
        }
        match self.with(|directory| directory.write_checkpoint(kind, entries.iter().cloned())) {
            Ok(()) => {
                written.insert(kind, entries);
            }
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// Has the flusher sync a partition soon.
    pub(crate) fn request_flush(&self, partition: &Arc<Partition>) {
        if partition.mark_flush_queued() {
            let mut queue = self.flushes.lock().unwrap_or_else(PoisonError::into_inner);
            queue.partitions.push_back(Arc::clone(partition));
            self.flush_wanted.notify_one();
        }
    }

    fn with<T>(&self, act: impl FnOnce(&LogDirectory) -> Result<T, LogError>) -> Result<T, LogError> {
        let directory = self.open.read().unwrap_or_else(PoisonError::into_inner);
        match &*directory {
            Some(directory) => act(directory),
            None => Err(LogError::Io { path: self.path.clone(), source: std::io::ErrorKind::NotConnected.into() }),
        }
    }

    fn load(
        self: &Arc<Self>,
        config_of: impl Fn(&TopicPartition) -> Arc<LogConfig>,
        stopping: impl Fn() -> bool,
        found: &mut HashMap<TopicPartition, FoundLog>,
    ) -> Result<(), LoadError> {
        let guard = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(directory) = &*guard else { return Ok(()) };
        for entry in directory.find_partitions()? {
            if stopping() {
                break;
            }
            match entry.kind {
                PartitionDirectoryKind::Partition if is_metadata_log(&entry.path) => continue,
                PartitionDirectoryKind::Partition => {}
                PartitionDirectoryKind::Deleted => {
                    // A deletion that a stop of the node cut off.
                    if let Err(error) = self.disk.remove_directory(&entry.path) {
                        let path = entry.path.display();
                        tracing::warn!(%path, %error, "the rest of a deleted partition could not be removed");
                    }
                    continue;
                }
                PartitionDirectoryKind::Stray | PartitionDirectoryKind::Future => continue,
            }
            let partition = entry.topic_partition.clone();
            let mut opening = directory.opening(&entry, config_of(&partition), now())?;
            let mut step = opening.step(OPENING_STEP_BYTES)?;
            while !step.done && !stopping() {
                tracing::info!(%partition, remaining_bytes = step.remaining_bytes, "checking a log that was not closed");
                step = opening.step(OPENING_STEP_BYTES)?;
            }
            if !step.done {
                break;
            }
            let log = opening.finish()?;
            let high_watermark =
                directory.checkpoint(CheckpointKind::HighWatermark, &partition).unwrap_or_else(|| log.start_offset());
            found.insert(partition, FoundLog { directory: Arc::clone(self), log, high_watermark });
        }
        Ok(())
    }

    fn run_flusher(&self) {
        loop {
            let mut queue = self.flushes.lock().unwrap_or_else(PoisonError::into_inner);
            while queue.partitions.is_empty() && !queue.stopped {
                queue = self.flush_wanted.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            let round = std::mem::take(&mut queue.partitions);
            let stopped = queue.stopped;
            drop(queue);
            for partition in &round {
                partition.flush(now());
            }
            if stopped && round.is_empty() {
                return;
            }
        }
    }

    fn stop_flusher(&self) {
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.flush_wanted.notify_all();
    }
}

/// Why a directory's logs could not be opened.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// The metadata log belongs to the quorum.
fn is_metadata_log(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "__cluster_metadata-0")
}
