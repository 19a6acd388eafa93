//! The node's log directories: found logs at the start, syncs and checkpoints while it runs, the clean end.
//!
//! `node.rs` opens them, `partitions.rs` takes logs from them and makes new ones. Each directory has one flusher thread, which
//! syncs whatever asked for it since its last round (group commit). A directory that fails stays out of service for the life
//! of the process, as Kafka does; with the last one the node cannot go on.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt::Display,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use gregor_config::BrokerConfig;
use gregor_log::{
    CheckpointKind, DeletedPartition, DirectoryError, Disk, LogConfig, LogDirectory, LogError, PartitionDirectoryKind,
    PartitionLog, RestingLog,
};
use gregor_types::{BrokerEpoch, BrokerId, ClusterId, DirectoryId, Offset, Timestamp, TopicId, TopicPartition, Uuid};
use tokio::sync::watch;

use crate::{api::now, held_log::HeldLog, partition::Partition, recovery::Progress};

/// So many folders are worth a thread to list them.
const FOLDERS_PER_THREAD_MIN: usize = 64;

/// One entry of `log.dirs`.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its id, which the metadata knows it by.
    pub(crate) id: DirectoryId,
    /// How far its recovery is.
    pub(crate) recovery: Progress,
    disk: Arc<dyn Disk>,
    was_clean: bool,
    /// `None` once it is closed.
    open: RwLock<Option<LogDirectory>>,
    failed: AtomicBool,
    /// The logs that were found and that nobody serves yet; `None` until it was looked for them.
    waiting: Mutex<Option<HashSet<TopicPartition>>>,
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
    pub(crate) log: RestingLog,
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
                recovery: Progress::default(),
                disk: Arc::clone(disk),
                was_clean: directory.was_clean(),
                open: RwLock::new(Some(directory)),
                failed: AtomicBool::new(false),
                waiting: Mutex::default(),
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

    /// Lists the folder of every partition that lies here, by so many threads for each directory; opens no log. `stopping` ends it
    /// early. Leftovers of deletions are removed.
    pub(crate) fn survey(
        &self,
        threads: usize,
        stopping: &(impl Fn() -> bool + Sync),
    ) -> HashMap<TopicPartition, FoundLog> {
        let survey = |directory: &Arc<Directory>| match directory.survey(threads, stopping) {
            Ok(found) => found,
            Err(error) => {
                directory.fail(&error.to_string());
                Vec::new()
            }
        };
        let survey = &survey;
        let found: Vec<_> = thread::scope(|scope| {
            let surveys: Vec<_> =
                self.directories.iter().map(|directory| scope.spawn(move || survey(directory))).collect();
            surveys.into_iter().flat_map(|survey| survey.join().expect("a survey does not panic")).collect()
        });
        found.into_iter().collect()
    }

    /// Logs that have to be checked and are not whole yet, in directories that work.
    pub(crate) fn unchecked_logs(&self) -> i64 {
        let working = self.directories.iter().filter(|directory| !directory.is_failed());
        working.map(|directory| directory.recovery.remaining_logs()).sum()
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
            if !directory.is_whole() {
                let path = directory.path.display();
                tracing::warn!(%path, "stopped before every log was checked; the next start checks what is left");
                continue;
            }
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

    /// Whether each of its logs is as a clean start expects it.
    fn is_whole(&self) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let all_serve = waiting.as_ref().is_some_and(HashSet::is_empty);
        all_serve || (self.was_clean && self.recovery.has_not_begun())
    }

    /// What a checkpoint says of the logs that nobody serves yet; `None` before it is known which there are.
    pub(crate) fn waiting(&self, kind: CheckpointKind) -> Option<HashMap<TopicPartition, Offset>> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let (waiting, directory) = (waiting.as_ref()?, open.as_ref()?);
        let entry = |name: &TopicPartition| Some((name.clone(), directory.checkpoint(kind, name)?));
        Some(waiting.iter().filter_map(entry).collect())
    }

    /// A log that was found is served now, or set aside.
    pub(crate) fn settle(&self, name: &TopicPartition) {
        if let Some(waiting) = &mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) {
            waiting.remove(name);
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
    pub(crate) fn delete(&self, log: HeldLog, unique: Uuid) -> Result<Option<DeletedPartition>, LogError> {
        self.with(|directory| match log {
            HeldLog::Open(log) => directory.delete_partition(*log, unique).map(Some),
            HeldLog::Resting(log, _) => directory.delete_resting(*log, unique).map(Some),
            HeldLog::Gone => Ok(None),
        })
    }

    /// Renames the folder of a partition that the metadata says is not ours; nothing of it is lost.
    pub(crate) fn set_stray(&self, log: RestingLog, unique: Uuid) -> Result<PathBuf, LogError> {
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
            Err(error) => self.on_error(&self.path.display(), &error),
        }
    }

    /// A call on a file of `what` went wrong. The directory is out of service then, unless what stood in the way passes.
    pub(crate) fn on_error(&self, what: &dyn Display, error: &LogError) {
        match passing(error) {
            Some(advice) => tracing::warn!(%what, %error, "{advice}"),
            None => self.fail(&format!("{what}: {error}")),
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

    fn survey(
        self: &Arc<Self>,
        threads: usize,
        stopping: &(impl Fn() -> bool + Sync),
    ) -> Result<Vec<(TopicPartition, FoundLog)>, LoadError> {
        let guard = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(directory) = &*guard else { return Ok(Vec::new()) };
        let mut folders = Vec::new();
        for entry in directory.find_partitions()? {
            match entry.kind {
                PartitionDirectoryKind::Partition if is_metadata_log(&entry.path) => {}
                PartitionDirectoryKind::Partition => folders.push(entry),
                PartitionDirectoryKind::Deleted => {
                    // A deletion that a stop of the node cut off.
                    if let Err(error) = self.disk.remove_directory(&entry.path) {
                        let path = entry.path.display();
                        tracing::warn!(%path, %error, "the rest of a deleted partition could not be removed");
                    }
                }
                PartitionDirectoryKind::Stray | PartitionDirectoryKind::Future => {}
            }
        }
        let next = AtomicUsize::new(0);
        let survey = || {
            let mut found = Vec::new();
            while let Some(folder) = folders.get(next.fetch_add(1, Ordering::Relaxed))
                && !stopping()
            {
                let name = folder.topic_partition.clone();
                let log = directory.survey(folder.clone())?;
                let high_watermark = directory.checkpoint(CheckpointKind::HighWatermark, &name);
                let high_watermark = high_watermark.unwrap_or_else(|| log.start_offset());
                found.push((name, FoundLog { directory: Arc::clone(self), log, high_watermark }));
            }
            Ok::<_, LogError>(found)
        };
        let found = thread::scope(|scope| {
            // A second thread does not pay for a few folders.
            let threads = threads.min(folders.len() / FOLDERS_PER_THREAD_MIN);
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(survey)).collect();
            let mut found = survey()?;
            for other in others {
                found.append(&mut other.join().expect("a survey does not panic")?);
            }
            Ok::<_, LogError>(found)
        })?;
        let names = found.iter().map(|(name, _)| name.clone()).collect();
        // Ended early, it is not known what there is.
        if found.len() == folders.len() {
            *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(names);
        }
        Ok(found)
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

/// What to do about an error that says nothing bad of the disk: once there is room, or a free descriptor, the same call
/// succeeds, and nothing that was acknowledged is touched. `None` for all others.
fn passing(error: &LogError) -> Option<&'static str> {
    use rustix::io::Errno;
    if error.is_disk_full() {
        return Some("the disk is full: producers are refused until there is room");
    }
    let LogError::Io { source, .. } = error else { return None };
    let out_of_descriptors = matches!(Errno::from_io_error(source), Some(Errno::MFILE | Errno::NFILE));
    out_of_descriptors.then_some("too many open files: raise the limit of this process")
}

/// The metadata log belongs to the quorum.
fn is_metadata_log(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "__cluster_metadata-0")
}
