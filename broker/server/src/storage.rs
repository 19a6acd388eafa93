//! The node's log directories: found logs at the start, syncs and checkpoints while it runs, the clean end.
//!
//! `node.rs` opens them, `partitions.rs` takes logs from them and makes new ones. Each directory has one flusher thread, which
//! syncs whatever asked for it since its last round (group commit). A directory that fails stays out of service for the life
//! of the process, as Kafka does; with the last one the node cannot go on.

mod checkpoints;
mod opening;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt::{Debug, Display},
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
use gregor_types::{BrokerEpoch, ClusterId, DirectoryId, Offset, Timestamp, TopicId, TopicPartition, Uuid};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
};

use crate::{
    append_mode::AppendMode,
    append_watch::{AppendWatch, WatchedRuntimes},
    clock::now,
    held_log::HeldLog,
    pulse::Pulse,
    recovery::Progress,
};

use checkpoints::Written;
pub use opening::StorageError;
use opening::{Opened, OpenedDirectory, open_all};

/// So many folders are worth a thread to list them.
const FOLDERS_PER_THREAD_MIN: usize = 64;

/// Threads that wait for reads of one directory; others may be waited for at the same time.
const READERS: usize = 2;

/// One entry of `log.dirs`.
#[derive(Debug)]
pub(crate) struct Directory {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Its id, which the metadata knows it by.
    pub(crate) id: DirectoryId,
    /// How far its recovery is.
    pub(crate) recovery: Progress,
    was_clean: bool,
    /// Where its appends are made.
    pub(crate) appends: Arc<AppendMode>,
    /// Turns of those who wait for it to read, so that one that is stuck takes no thread from the others.
    pub(crate) readers: Arc<Semaphore>,
    /// `None` once it is closed.
    open: RwLock<Option<LogDirectory>>,
    failed: AtomicBool,
    /// Whether it gets no new replicas (KIP-1066).
    cordoned: AtomicBool,
    /// The logs that were found and that nobody serves yet; `None` until it was looked for them.
    waiting: Mutex<Option<HashSet<TopicPartition>>>,
    /// What its checkpoint files say.
    written: Mutex<Written>,
    failures: Arc<watch::Sender<Option<String>>>,
    flushes: Mutex<FlushQueue>,
    flush_wanted: Condvar,
}

/// What a directory's flusher syncs: a partition.
pub(crate) trait Flush: Debug + Send + Sync {
    /// Syncs what was appended; blocks.
    fn flush(&self, now: Timestamp);

    /// Marks it as queued until it is flushed; false where it is queued already.
    fn mark_flush_queued(&self) -> bool;
}

/// Partitions that wait for the flusher; each is in it at most once.
#[derive(Debug, Default)]
struct FlushQueue {
    partitions: VecDeque<Arc<dyn Flush>>,
    stopped: bool,
}

/// All log directories of the node.
#[derive(Debug)]
pub(crate) struct Storage {
    directories: Vec<Arc<Directory>>,
    cluster_id: ClusterId,
    metadata_directory_id: DirectoryId,
    /// `metadata.log.dir`, where it is none of `log.dirs`: it is held for its lock.
    metadata_directory: Mutex<Option<LogDirectory>>,
    previous_broker_epoch: BrokerEpoch,
    flushers: Mutex<Vec<thread::JoinHandle<()>>>,
    watch: Mutex<Option<AppendWatch>>,
    runtimes: Arc<WatchedRuntimes>,
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
    /// Whether it is a copy on its way there from another directory.
    pub(crate) is_future: bool,
}

/// What lies in the directories at the start.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Folders by what they say whose they are: more than one where a move was under way, or a directory came back.
    pub(crate) found: HashMap<TopicPartition, Vec<FoundLog>>,
    /// What deletions left that a stop of the node cut off.
    pub(crate) leftovers: Vec<DeletedPartition>,
}

impl Storage {
    /// Opens and locks every directory. What fails later is told to `failures`.
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        config: &BrokerConfig,
        failures: watch::Sender<Option<String>>,
    ) -> Result<Self, StorageError> {
        let Opened {
            directories: opened,
            cluster_id,
            metadata_directory_id,
            metadata_directory,
            previous_broker_epoch,
        } = open_all(disk, config)?;
        let failures = Arc::new(failures);
        let (mut directories, mut flushers) = (Vec::new(), Vec::new());
        let pulse = Arc::<Pulse>::default();
        for OpenedDirectory { path, id, directory } in opened {
            let directory = Arc::new(Directory {
                path,
                id,
                recovery: Progress::default(),
                was_clean: directory.as_ref().is_ok_and(LogDirectory::was_clean),
                failed: AtomicBool::new(directory.is_err()),
                cordoned: AtomicBool::new(false),
                open: RwLock::new(directory.ok()),
                waiting: Mutex::default(),
                appends: AppendMode::new(Arc::clone(&pulse)),
                readers: Arc::new(Semaphore::new(READERS)),
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
        let appends = directories.iter().map(|directory: &Arc<Directory>| Arc::clone(&directory.appends)).collect();
        let runtimes = Arc::<WatchedRuntimes>::default();
        runtimes.add(Handle::current());
        let watch = AppendWatch::start(pulse, appends, Arc::clone(&runtimes)).map_err(StorageError::Thread)?;
        let (flushers, watch) = (Mutex::new(flushers), Mutex::new(Some(watch)));
        let metadata_directory = Mutex::new(metadata_directory);
        Ok(Self {
            directories,
            cluster_id,
            metadata_directory_id,
            metadata_directory,
            previous_broker_epoch,
            flushers,
            watch,
            runtimes,
        })
    }

    /// The runtimes whose tasks append to it.
    pub(crate) const fn runtimes(&self) -> &Arc<WatchedRuntimes> {
        &self.runtimes
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

    /// Whether appends to any of them are slow: almost always there is none to look for.
    pub(crate) fn is_any_slow(&self) -> bool {
        self.directories.iter().any(|directory| directory.appends.is_slow())
    }

    /// Those that work.
    pub(crate) fn online(&self) -> impl Iterator<Item = &Arc<Directory>> {
        self.directories.iter().filter(|directory| !directory.is_failed())
    }

    /// The directory out of service in which something lies that the metadata says is in `assigned`: that one, or, as a
    /// directory that cannot be read has no id, any.
    pub(crate) fn offline(&self, assigned: DirectoryId) -> Option<&Arc<Directory>> {
        let offline = || self.directories.iter().filter(|directory| directory.is_failed());
        offline().find(|directory| directory.id == assigned).or_else(|| offline().next())
    }

    /// The directory of this path, as a client names it.
    pub(crate) fn by_path(&self, path: &Path) -> Option<&Arc<Directory>> {
        self.directories.iter().find(|directory| directory.is_at(path))
    }

    /// Whether the node can go on: some directory works, and the one of the metadata log does, if it is among them. One of its own
    /// is the control thread's, which ends when it fails.
    pub(crate) fn is_usable(&self) -> bool {
        let is_metadata = |directory: &&Arc<Directory>| directory.id == self.metadata_directory_id;
        let metadata = self.directories.iter().find(is_metadata);
        self.online().next().is_some() && metadata.is_none_or(|metadata| !metadata.is_failed())
    }

    /// Lists the folder of every partition that lies here, by so many threads for each directory; opens no log. `stopping` ends it
    /// early.
    pub(crate) fn survey(&self, threads: usize, stopping: &(impl Fn() -> bool + Sync)) -> Survey {
        let survey = |directory: &Arc<Directory>| {
            directory.survey(threads, stopping).unwrap_or_else(|error| {
                directory.fail(&error.to_string());
                DirectorySurvey::default()
            })
        };
        let survey = &survey;
        let surveys: Vec<_> = thread::scope(|scope| {
            let surveys: Vec<_> = self.online().map(|directory| scope.spawn(move || survey(directory))).collect();
            surveys.into_iter().map(|survey| survey.join().expect("a survey does not panic")).collect()
        });
        let mut survey = Survey::default();
        for DirectorySurvey { found, mut leftovers } in surveys {
            for (name, log) in found {
                survey.found.entry(name).or_default().push(log);
            }
            survey.leftovers.append(&mut leftovers);
        }
        survey
    }

    /// Logs that have to be checked and are not whole yet, in directories that work.
    pub(crate) fn unchecked_logs(&self) -> i64 {
        let working = self.directories.iter().filter(|directory| !directory.is_failed());
        working.map(|directory| directory.recovery.remaining_logs()).sum()
    }

    /// Ends the flushers, then closes the directories with Kafka's clean-shutdown marker. Every log must be closed before. A broker that
    /// was never registered wrote nothing since the marker that it found, and leaves the same.
    pub(crate) fn close(&self, broker_epoch: BrokerEpoch) {
        let was_registered = broker_epoch != BrokerEpoch::NONE;
        let broker_epoch = if was_registered { broker_epoch } else { self.previous_broker_epoch };
        for directory in &self.directories {
            directory.stop_flusher();
        }
        if let Some(watch) = self.watch.lock().unwrap_or_else(PoisonError::into_inner).take() {
            watch.stop();
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
        // As Kafka, it leaves no marker where there are no partitions.
        drop(self.metadata_directory.lock().unwrap_or_else(PoisonError::into_inner).take());
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

    /// Whether it gets no new replicas (KIP-1066).
    pub(crate) fn is_cordoned(&self) -> bool {
        self.cordoned.load(Ordering::Acquire)
    }

    /// From now on it gets no new replicas, or it does again.
    pub(crate) fn set_cordoned(&self, cordoned: bool) {
        self.cordoned.store(cordoned, Ordering::Release);
    }

    /// Whether a path names it.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        std::path::absolute(path).is_ok_and(|path| path == self.path)
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

    /// Makes everything durable on the file system that it is on. Blocks.
    pub(crate) fn sync(&self) -> Result<(), LogError> {
        let io = |source| LogError::Io { path: self.path.clone(), source };
        self.with(|directory| directory.sync().complete().map_err(io))
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

    /// Makes the log of a copy on its way here.
    pub(crate) fn create_future(
        &self,
        partition: TopicPartition,
        topic_id: TopicId,
        config: Arc<LogConfig>,
        unique: Uuid,
        now: Timestamp,
    ) -> Result<PartitionLog, LogError> {
        self.with(|directory| directory.create_future(partition, Some(topic_id), config, unique, now))
    }

    /// Gives a copy the replica's name.
    pub(crate) fn promote(&self, copy: &mut PartitionLog) -> Result<(), LogError> {
        self.with(|directory| directory.promote(copy))
    }

    /// The same for a copy that nobody has opened yet.
    pub(crate) fn promote_resting(&self, copy: &mut RestingLog) -> Result<(), LogError> {
        self.with(|directory| directory.promote_resting(copy))
    }

    /// Takes the replica's name from a log that its copy replaces.
    pub(crate) fn retire(&self, log: &mut PartitionLog, unique: Uuid) -> Result<DeletedPartition, LogError> {
        self.with(|directory| directory.retire(log, unique))
    }

    /// Gives it back.
    pub(crate) fn restore(&self, log: &mut PartitionLog) -> Result<(), LogError> {
        self.with(|directory| directory.restore(log))
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

    /// A call on a file of `what` went wrong. The directory is out of service then, unless what stood in the way passes.
    pub(crate) fn on_error(&self, what: &dyn Display, error: &LogError) {
        match passing(error) {
            Some(advice) => tracing::warn!(%what, %error, "{advice}"),
            None => self.fail(&format!("{what}: {error}")),
        }
    }

    /// Has the flusher sync a partition soon.
    pub(crate) fn request_flush<F: Flush + 'static>(&self, partition: &Arc<F>) {
        if partition.mark_flush_queued() {
            let queued: Arc<dyn Flush> = partition.clone();
            let mut queue = self.flushes.lock().unwrap_or_else(PoisonError::into_inner);
            queue.partitions.push_back(queued);
            self.flush_wanted.notify_one();
        }
    }

    /// Whoever asks for a sync waits until what this gives is dropped.
    #[cfg(test)]
    pub(crate) fn hold_flush_requests(&self) -> impl Sized + '_ {
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner)
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
    ) -> Result<DirectorySurvey, LoadError> {
        let guard = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(directory) = &*guard else { return Ok(DirectorySurvey::default()) };
        let (mut folders, mut leftovers) = (Vec::new(), Vec::new());
        for entry in directory.find_partitions()? {
            match entry.kind {
                PartitionDirectoryKind::Partition if is_metadata_log(&entry.path) => {}
                PartitionDirectoryKind::Partition | PartitionDirectoryKind::Future => folders.push(entry),
                PartitionDirectoryKind::Deleted => leftovers.push(directory.deleted_partition(entry)),
                PartitionDirectoryKind::Stray => {}
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
                let is_future = folder.kind == PartitionDirectoryKind::Future;
                found.push((name, FoundLog { directory: Arc::clone(self), log, high_watermark, is_future }));
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
        Ok(DirectorySurvey { found, leftovers })
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

/// What lies in one directory.
#[derive(Debug, Default)]
struct DirectorySurvey {
    found: Vec<(TopicPartition, FoundLog)>,
    leftovers: Vec<DeletedPartition>,
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
