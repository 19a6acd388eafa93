//! The partitions of this broker: which there are, what each is, kept as the metadata says.
//!
//! Handlers look partitions up here without a lock. Changes come from the control thread as image and delta; a thread of its
//! own applies them (it creates files and deletes them) and tells the control thread how far it is, so that the broker is
//! unfenced only once it can serve. It never decides who leads.

mod applying;
mod checkpoints;
mod folders;
mod map;
mod topic_ids;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use arc_swap::ArcSwap;
use gregor_config::BrokerConfig;
use gregor_log::DeletedPartition;
use gregor_metadata::{Changes, Image, MetadataImage};
use gregor_node::ReplicaRole;
use gregor_types::{BrokerId, ErrorCode, KString, Offset, PartitionIndex, TopicId, TopicPartition, Uuid};
use tokio::sync::watch;

use crate::{
    control::{ImageUpdate, MetadataListener},
    fetchers::Fetchers,
    held_log::HeldLog,
    isr_changes::IsrChanges,
    metrics::{Metrics, TopicMetrics},
    moves::Moves,
    partition::{Future, Partition},
    recovery::{Customer, Job, Recovered},
    storage::{Directory, FoundLog, Storage},
    throttles::Throttles,
    topic_settings::TopicSettings,
};

use map::PartitionMap;
pub(crate) use map::TopicPartitions;
pub(crate) use topic_ids::TopicIds;

/// All partitions with a replica here.
#[derive(Debug)]
pub(crate) struct Partitions {
    node_id: BrokerId,
    /// Which run of the broker this is.
    incarnation: Uuid,
    base_config: Arc<BrokerConfig>,
    /// With what was set at run time.
    config: ArcSwap<BrokerConfig>,
    storage: Arc<Storage>,
    metrics: Arc<Metrics>,
    map: ArcSwap<PartitionMap>,
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    /// Names of topics that were deleted, for the coordinators, which keep offsets of them.
    deleted_topics: Mutex<Vec<KString>>,
    /// The offset of the newest image that is applied.
    applied: watch::Sender<Offset>,
    /// Whether there is an image that is published and not applied.
    is_behind: AtomicBool,
    /// Folders that are renamed and wait for `file.delete.delay.ms`; the housekeeper removes them.
    deleted: Mutex<Vec<(gregor_types::Timestamp, DeletedPartition)>>,
    topic_ids: Arc<TopicIds>,
    /// Held while the checkpoint files are written: an older content must not replace a newer one.
    checkpoints: Mutex<()>,
    /// The directories that get no new replicas; `None` where the finalized level does not know of such.
    cordoned: watch::Sender<Option<Vec<Uuid>>>,
    /// What fetches those that others lead.
    fetchers: Fetchers,
    /// How fast those out of sync are replicated.
    throttles: Arc<Throttles>,
    /// What its leaders ask the controller for.
    pub(crate) isr_changes: Arc<IsrChanges>,
    /// Replicas on their way to another directory.
    pub(crate) moves: Moves,
}

/// What the control thread published and nobody has applied yet. A backlog is merged into its newest image.
#[derive(Debug, Default)]
struct Inbox {
    image: Option<Arc<MetadataImage>>,
    /// `None` where images were merged: then the images are compared.
    changes: Option<Changes>,
    /// Logs that are whole since.
    recovered: Vec<Recovered>,
    /// Whether a log directory has failed since.
    failed: bool,
    /// Whether it is time to try again what a full disk stood in the way of.
    retry: bool,
    stopped: bool,
}

/// What the partitions' thread works on.
#[derive(Debug)]
struct Work {
    /// The image that is applied.
    image: Arc<MetadataImage>,
    /// `server.properties` with what was set at run time over it.
    config: Arc<BrokerConfig>,
    /// Folders that were found, until the first image says what they are.
    surveyed: HashMap<TopicPartition, Vec<FoundLog>>,
    /// Logs that were found and that no topic has claimed yet.
    found: HashMap<TopicPartition, FoundLog>,
    /// Copies on their way that wait for their partition.
    futures: HashMap<TopicPartition, Future>,
    /// Logs that are to be checked before they serve.
    unchecked: Vec<Job>,
    /// Partitions whose logs are being checked; nobody finds them until they are whole.
    recovering: HashMap<TopicPartition, Arc<Directory>>,
    /// Logs that the next published map serves or has dealt with.
    settled: Vec<(Arc<Directory>, TopicPartition)>,
    /// Partitions of new logs, until they are published.
    made: Vec<Arc<Partition>>,
    /// Replicas that could not be made: the disk was full. Nobody finds them until they are.
    unmade: BTreeSet<(TopicId, PartitionIndex)>,
    /// What the partitions of a topic share, for as long as one image is applied.
    topics: HashMap<TopicId, TopicParts>,
    /// How many partitions each log directory holds, once that was asked for while one image is applied.
    counts: Option<HashMap<Uuid, usize>>,
    /// Directories whose checkpoints may name logs that are gone: deleted, set aside, or not there any more when this run began.
    outdated: Vec<Arc<Directory>>,
}

/// What the partitions of one topic share.
#[derive(Debug, Clone)]
struct TopicParts {
    name: KString,
    settings: Arc<TopicSettings>,
    metrics: TopicMetrics,
}

/// A partition that the metadata gives to this broker.
#[derive(Debug)]
struct Replica<'i> {
    topic_id: TopicId,
    topic: KString,
    index: PartitionIndex,
    role: ReplicaRole,
    state: &'i gregor_metadata::Partition,
}

/// The control thread's end of the inbox.
#[derive(Debug)]
pub(crate) struct Publisher(pub(crate) Arc<Partitions>);

impl MetadataListener for Publisher {
    fn announce(&mut self) {
        self.0.is_behind.store(true, Ordering::Release);
    }

    fn publish(&mut self, update: ImageUpdate) {
        let mut inbox = self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.changes = if inbox.image.is_none() { Some(update.changes) } else { None };
        inbox.image = Some(update.image);
        // The image before it may have been applied since this one was announced.
        self.0.is_behind.store(true, Ordering::Release);
        self.0.arrived.notify_one();
    }
}

impl Inbox {
    fn has_work(&self, has_unmade: bool) -> bool {
        let retries = self.retry && has_unmade;
        self.image.is_some() || !self.recovered.is_empty() || self.failed || retries || self.stopped
    }
}

impl Customer for Partitions {
    fn recovered(&self, recovered: Recovered) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.recovered.push(recovered);
        self.arrived.notify_one();
    }

    fn is_stopping(&self) -> bool {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).stopped
    }
}

impl Partitions {
    /// No partitions yet.
    /// `incarnation` is what this run of the broker registers with.
    pub(crate) fn new(
        (node_id, incarnation): (BrokerId, Uuid),
        config: Arc<BrokerConfig>,
        storage: Arc<Storage>,
        metrics: Arc<Metrics>,
        fetchers: Fetchers,
    ) -> Arc<Self> {
        let topic_ids = Arc::<TopicIds>::default();
        fetchers.set_topic_ids(&topic_ids);
        fetchers.set_watched(storage.runtimes());
        Arc::new(Self {
            node_id,
            incarnation,
            config: ArcSwap::new(Arc::clone(&config)),
            base_config: config,
            storage,
            map: ArcSwap::default(),
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            deleted_topics: Mutex::default(),
            applied: watch::Sender::new(Offset::NONE),
            is_behind: AtomicBool::new(false),
            deleted: Mutex::default(),
            topic_ids,
            checkpoints: Mutex::default(),
            cordoned: watch::Sender::new(None),
            isr_changes: Arc::new(IsrChanges::new(metrics.replication.clone())),
            throttles: Arc::clone(fetchers.throttles()),
            fetchers,
            moves: Moves::default(),
            metrics,
        })
    }

    /// Starts the thread that finds the logs that lie in the directories and then applies metadata. `loaded` is told the
    /// offset of each image that is done: logs that have to be checked first are not waited for.
    pub(crate) fn start(
        self: &Arc<Self>,
        loaded: impl Fn(Offset) + Send + 'static,
    ) -> std::io::Result<thread::JoinHandle<()>> {
        let this = Arc::clone(self);
        thread::Builder::new().name("gregor-partitions".to_owned()).spawn(move || this.run(loaded))
    }

    /// Wakes when an image is applied: partitions then have the roles that it gives them.
    pub(crate) fn applied(&self) -> watch::Receiver<Offset> {
        self.applied.subscribe()
    }

    /// Whether partitions may not have the roles yet that clients are told of.
    pub(crate) fn is_behind(&self) -> bool {
        self.is_behind.load(Ordering::Acquire)
    }

    /// Waits for as long as images are to be applied and what it asks is so.
    pub(crate) async fn wait_while_behind(&self, is_awaited: impl Fn() -> bool) {
        // Before it is looked at, so that nothing is missed in between.
        let mut applied = self.applied();
        while self.is_behind() && is_awaited() && applied.changed().await.is_ok() {}
    }

    /// The directories that get no new replicas, where the finalized level knows of such (KIP-1066).
    pub(crate) fn cordoned(&self) -> watch::Receiver<Option<Vec<Uuid>>> {
        self.cordoned.subscribe()
    }

    /// The topics that were deleted since this was asked last.
    pub(crate) fn take_deleted_topics(&self) -> Vec<KString> {
        std::mem::take(&mut *self.deleted_topics.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A log directory failed: what is in it is out of service.
    pub(crate) fn directory_failed(&self) {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).failed = true;
        self.arrived.notify_all();
    }

    /// Has replicas made that a full disk stood in the way of, if there is room now.
    pub(crate) fn retry_unmade(&self) {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).retry = true;
        self.arrived.notify_all();
    }

    /// This node.
    pub(crate) const fn node_id(&self) -> BrokerId {
        self.node_id
    }

    /// Ends the thread after what it is doing.
    pub(crate) fn stop(&self) {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.arrived.notify_all();
    }

    /// `server.properties` with what was set at run time over it.
    pub(crate) fn config(&self) -> Arc<BrokerConfig> {
        self.config.load_full()
    }

    /// The node's metrics.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// A topic's partitions here, by name.
    pub(crate) fn topic(&self, name: &str) -> Option<Arc<TopicPartitions>> {
        self.map.load().names.get(name).cloned()
    }

    /// A partition by name, where there is one here.
    pub(crate) fn get(&self, topic: &str, index: i32) -> Option<Arc<Partition>> {
        self.map.load().names.get(topic)?.partitions.get(&index).cloned()
    }

    /// A partition by its topic's id, where there is one here.
    pub(crate) fn get_by_id(&self, topic: TopicId, index: i32) -> Option<Arc<Partition>> {
        self.map.load().ids.get(&topic)?.partitions.get(&index).cloned()
    }

    /// A partition by name, or what to tell the client that asked for it.
    pub(crate) fn find(&self, topic: &str, index: i32, image: &Image) -> Result<Arc<Partition>, ErrorCode> {
        if let Some(partition) = self.get(topic, index) {
            return Ok(partition);
        }
        Err(match image.topics().by_name(topic).and_then(|topic| topic.partition(PartitionIndex(index))) {
            Some(_) => ErrorCode::NotLeaderOrFollower,
            None => ErrorCode::UnknownTopicOrPartition,
        })
    }

    /// A partition by its topic's id, or what to tell the client that asked for it.
    pub(crate) fn find_by_id(&self, topic: TopicId, index: i32, image: &Image) -> Result<Arc<Partition>, ErrorCode> {
        if let Some(partition) = self.get_by_id(topic, index) {
            return Ok(partition);
        }
        Err(match image.topics().by_id(topic) {
            None => ErrorCode::UnknownTopicId,
            Some(topic) if topic.partition(PartitionIndex(index)).is_none() => ErrorCode::UnknownTopicOrPartition,
            Some(_) => ErrorCode::NotLeaderOrFollower,
        })
    }

    /// Every partition here.
    pub(crate) fn all(&self) -> Vec<Arc<Partition>> {
        let map = self.map.load();
        map.ids.values().flat_map(|topic| topic.partitions.values().cloned()).collect()
    }

    /// How fast replicas out of sync are replicated.
    pub(crate) fn throttles(&self) -> &Throttles {
        &self.throttles
    }

    /// The log directories.
    pub(crate) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    pub(crate) fn delete_log(&self, directory: &Arc<Directory>, log: HeldLog, delay_ms: i64) {
        match directory.delete(log, random_uuid()) {
            Ok(deleted) => self.add_deleted(deleted, delay_ms),
            Err(_) if directory.is_failed() => {}
            Err(error) => directory.on_error(&directory.path.display(), &error),
        }
    }
}

impl Work {
    /// What the partitions of a replica's topic share.
    fn topic(&mut self, replica: &Replica<'_>, metrics: &Metrics) -> &TopicParts {
        self.topics.entry(replica.topic_id).or_insert_with(|| TopicParts {
            name: replica.topic.compact(),
            settings: TopicSettings::of(&replica.topic, &self.config, &self.image),
            metrics: metrics.topic(&replica.topic),
        })
    }
}

/// An id for a folder that is renamed.
pub(crate) fn random_uuid() -> Uuid {
    Uuid::from_random(crate::random::u128)
}
