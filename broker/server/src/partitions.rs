//! The partitions of this broker: which there are, what each is, kept as the metadata says.
//!
//! Handlers look partitions up here without a lock. Changes come from the control thread as image and delta; a thread of its
//! own applies them (it creates files and deletes them) and tells the control thread how far it is, so that the broker is
//! unfenced only once it can serve. It never decides who leads.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use arc_swap::ArcSwap;
use gregor_config::BrokerConfig;
use gregor_log::{CheckpointKind, DeletedPartition, LogConfig};
use gregor_metadata::{Changes, ConfigResource, Image, MetadataImage, ResourceType};
use gregor_node::{LocalDirectory, PartitionAction, ReplicaRole, choose_directory, is_stray, partition_actions};
use gregor_replication::PartitionAssignment;
use gregor_types::{BrokerId, ErrorCode, KString, Offset, PartitionIndex, TopicId, TopicPartition, Uuid};
use tokio::sync::watch;

use crate::{
    api::now,
    control::{ImageUpdate, MetadataListener},
    metrics::Metrics,
    partition::Partition,
    storage::{Directory, FoundLog, Storage},
    topic_settings::TopicSettings,
};

/// All partitions with a replica here.
#[derive(Debug)]
pub(crate) struct Partitions {
    node_id: BrokerId,
    base_config: Arc<BrokerConfig>,
    storage: Arc<Storage>,
    metrics: Arc<Metrics>,
    map: ArcSwap<PartitionMap>,
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    /// Names of topics that were deleted, for the coordinators, which keep offsets of them.
    deleted_topics: Mutex<Vec<KString>>,
    /// The offset of the newest image that is applied.
    applied: watch::Sender<Offset>,
    /// Folders that are renamed and wait for `file.delete.delay.ms`, taken by the housekeeper.
    deleted: Mutex<Vec<(gregor_types::Timestamp, DeletedPartition)>>,
}

/// Topics with a partition here, by both of their names.
#[derive(Debug, Default, Clone)]
struct PartitionMap {
    names: HashMap<KString, Arc<TopicPartitions>>,
    ids: HashMap<TopicId, Arc<TopicPartitions>>,
    /// How many partitions each log directory holds.
    by_directory: HashMap<Uuid, usize>,
}

/// One topic's partitions here.
#[derive(Debug, Clone)]
pub(crate) struct TopicPartitions {
    /// Its name.
    pub(crate) name: KString,
    /// Its id.
    pub(crate) id: TopicId,
    partitions: BTreeMap<i32, Arc<Partition>>,
}

/// What the control thread published and nobody has applied yet. A backlog is merged into its newest image.
#[derive(Debug, Default)]
struct Inbox {
    image: Option<Arc<MetadataImage>>,
    /// `None` where images were merged: then the images are compared.
    changes: Option<Changes>,
    stopped: bool,
}

/// The control thread's end of the inbox.
#[derive(Debug)]
pub(crate) struct Publisher(pub(crate) Arc<Partitions>);

impl MetadataListener for Publisher {
    fn publish(&mut self, update: ImageUpdate) {
        let mut inbox = self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.changes = if inbox.image.is_none() { Some(update.changes) } else { None };
        inbox.image = Some(update.image);
        self.0.arrived.notify_one();
    }
}

impl Partitions {
    /// No partitions yet.
    pub(crate) fn new(
        node_id: BrokerId,
        config: Arc<BrokerConfig>,
        storage: Arc<Storage>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            node_id,
            base_config: config,
            storage,
            metrics,
            map: ArcSwap::default(),
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            deleted_topics: Mutex::default(),
            applied: watch::Sender::new(Offset::NONE),
            deleted: Mutex::default(),
        })
    }

    /// Starts the thread that opens the logs that lie in the directories and then applies metadata. `loaded` is told the
    /// offset of each image that is done.
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

    /// The topics that were deleted since this was asked last.
    pub(crate) fn take_deleted_topics(&self) -> Vec<KString> {
        std::mem::take(&mut *self.deleted_topics.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the thread after what it is doing.
    pub(crate) fn stop(&self) {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.arrived.notify_all();
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

    /// The log directories.
    pub(crate) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Folders of deleted partitions whose time has come.
    pub(crate) fn take_deleted(&self, now: gregor_types::Timestamp) -> Vec<DeletedPartition> {
        let mut deleted = self.deleted.lock().unwrap_or_else(PoisonError::into_inner);
        let (due, later) = std::mem::take(&mut *deleted).into_iter().partition(|(due, _)| *due <= now);
        *deleted = later;
        let due: Vec<_> = due;
        due.into_iter().map(|(_, partition)| partition).collect()
    }

    /// Writes the checkpoint files: one kind, every directory.
    pub(crate) fn checkpoint(&self, kind: CheckpointKind) {
        let partitions = self.all();
        for directory in self.storage.directories() {
            let here = partitions.iter().filter(|partition| Arc::ptr_eq(&partition.directory, directory));
            let entries = here.filter_map(|partition| Some((partition.name(), partition.checkpoint_entry(kind)?)));
            directory.checkpoint(kind, entries.collect());
        }
    }

    /// Closes every log: syncs, writes producer snapshots, then the checkpoints.
    pub(crate) fn close(&self) {
        let partitions = self.all();
        for partition in &partitions {
            partition.flush(now());
        }
        for kind in [CheckpointKind::RecoveryPoint, CheckpointKind::LogStart, CheckpointKind::HighWatermark] {
            self.checkpoint(kind);
        }
        let mut ends: HashMap<TopicPartition, Offset> = HashMap::new();
        for partition in &partitions {
            let Some(mut log) = partition.take_log() else { continue };
            match log.close().and_then(gregor_log::FlushToken::complete) {
                Ok(flushed) => {
                    ends.insert(partition.name(), flushed.end_offset);
                }
                Err(error) => partition.directory.fail(&error.to_string()),
            }
        }
        for directory in self.storage.directories() {
            let here = partitions.iter().filter(|partition| Arc::ptr_eq(&partition.directory, directory));
            let entries = here.filter_map(|partition| Some((partition.name(), *ends.get(&partition.name())?)));
            directory.checkpoint(CheckpointKind::RecoveryPoint, entries.collect());
        }
    }

    fn run(&self, loaded: impl Fn(Offset)) {
        // A topic's own settings come with the first image; until then nothing is appended or deleted.
        let log_config = Arc::new(LogConfig {
            producer_id_expiration_ms: self.base_config.producer_id_expiration_ms,
            ..LogConfig::default()
        });
        let is_stopping = || self.inbox.lock().unwrap_or_else(PoisonError::into_inner).stopped;
        let mut found = self.storage.load(|_| Arc::clone(&log_config), is_stopping);
        let mut previous = Arc::new(MetadataImage::default());
        let mut config = Arc::clone(&self.base_config);
        let mut first = true;
        loop {
            let (image, changes) = {
                let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
                while inbox.image.is_none() && !inbox.stopped {
                    inbox = self.arrived.wait(inbox).unwrap_or_else(PoisonError::into_inner);
                }
                if inbox.stopped {
                    return;
                }
                let Some(image) = inbox.image.take() else { continue };
                (image, inbox.changes.take())
            };
            let changes = changes.unwrap_or_else(|| Changes::between(&previous.image, &image.image));
            if first {
                self.set_strays(&image, &mut found);
                first = false;
            }
            self.apply(&previous, &image, &changes, &mut config, &mut found);
            loaded(image.position.last_offset);
            let deleted = changes.topics_deleted.values().map(|topic| topic.name.clone());
            self.deleted_topics.lock().unwrap_or_else(PoisonError::into_inner).extend(deleted);
            self.applied.send_replace(image.position.last_offset);
            previous = image;
        }
    }

    fn apply(
        &self,
        previous: &Image,
        image: &Image,
        changes: &Changes,
        config: &mut Arc<BrokerConfig>,
        found: &mut HashMap<TopicPartition, FoundLog>,
    ) {
        let brokers_changed = changes.configs.iter().any(|resource| resource.resource_type == ResourceType::Broker);
        if brokers_changed {
            *config = self.effective_config(image);
        }
        let mut map = PartitionMap::clone(&self.map.load());
        let mut settings: HashMap<TopicId, Arc<TopicSettings>> = HashMap::new();
        for action in partition_actions(self.node_id, previous, image, changes) {
            match action {
                PartitionAction::Delete { topic_id, index, .. } => self.delete(&mut map, topic_id, index),
                PartitionAction::Hold { topic_id, topic, index, role, partition } => {
                    let settings = settings.entry(topic_id).or_insert_with(|| TopicSettings::of(&topic, config, image));
                    let held = map.get(topic_id, index).or_else(|| {
                        let assigned = partition.directory_of(self.node_id).unwrap_or(Uuid::DIRECTORY_UNASSIGNED);
                        let opened = self.open(&map, (topic, topic_id, index), assigned, settings, found)?;
                        map.insert(&opened);
                        Some(opened)
                    });
                    if let Some(held) = held {
                        self.set_role(&held, role, &partition);
                    }
                }
            }
        }
        self.map.store(Arc::new(map));
        for topic in self.map.load().ids.values() {
            if brokers_changed || changes.configs.contains(&ConfigResource::topic(topic.name.clone())) {
                let settings = TopicSettings::of(&topic.name, config, image);
                topic.partitions.values().for_each(|one| one.set_settings(&settings, now()));
            }
        }
    }

    /// `server.properties` with what was set at run time over it: for all brokers, then for this one.
    fn effective_config(&self, image: &Image) -> Arc<BrokerConfig> {
        let own = ConfigResource::new(ResourceType::Broker, self.node_id.to_string());
        let common = ConfigResource::all_brokers();
        let values = image.configs().of(&common).chain(image.configs().of(&own));
        match self.base_config.with_dynamic(values.map(|(key, value)| (key.as_str(), value.as_str()))) {
            Ok(config) => Arc::new(config),
            Err(error) => {
                tracing::error!(%error, "the dynamic configuration cannot be used; the static one stays");
                Arc::clone(&self.base_config)
            }
        }
    }

    fn set_role(&self, partition: &Arc<Partition>, role: ReplicaRole, state: &gregor_metadata::Partition) {
        let leader = match role {
            ReplicaRole::Leader => Some(self.node_id),
            ReplicaRole::Follower(leader) => Some(leader),
            ReplicaRole::Leaderless => None,
        };
        let assignment = PartitionAssignment {
            leader_epoch: state.leader_epoch,
            partition_epoch: state.partition_epoch,
            replicas: state.replicas.clone(),
            isr: state.isr.clone(),
        };
        partition.set_role(self.node_id, leader, &assignment, now());
    }

    /// The partition over the log that was found, else over a new one.
    fn open(
        &self,
        map: &PartitionMap,
        (topic, topic_id, index): (KString, TopicId, PartitionIndex),
        assigned: Uuid,
        settings: &Arc<TopicSettings>,
        found: &mut HashMap<TopicPartition, FoundLog>,
    ) -> Option<Arc<Partition>> {
        let name = TopicPartition::new(topic.compact(), index);
        let existing = found.remove(&name);
        let found = existing.or_else(|| self.create(map, &name, topic_id, assigned, settings))?;
        let FoundLog { directory, mut log, high_watermark } = found;
        log.set_config(Arc::clone(&settings.log));
        let metrics = self.metrics.topic(&topic);
        let identity = (name.topic, topic_id, index);
        Some(Arc::new(Partition::new(identity, directory, log, high_watermark, Arc::clone(settings), metrics)))
    }

    fn create(
        &self,
        map: &PartitionMap,
        name: &TopicPartition,
        topic_id: TopicId,
        assigned: Uuid,
        settings: &TopicSettings,
    ) -> Option<FoundLog> {
        let directory = self.directory_for(map, assigned)?;
        match directory.create(name.clone(), topic_id, Arc::clone(&settings.log), now()) {
            Ok(log) => Some(FoundLog { directory, log, high_watermark: Offset::ZERO }),
            Err(error) => {
                directory.fail(&format!("{name}: {error}"));
                None
            }
        }
    }

    fn directory_for(&self, map: &PartitionMap, assigned: Uuid) -> Option<Arc<Directory>> {
        let usable = || self.storage.directories().iter().filter(|directory| !directory.is_failed());
        let local = |directory: &Arc<Directory>| LocalDirectory {
            id: directory.id,
            partitions: map.by_directory.get(&directory.id).copied().unwrap_or(0),
            cordoned: false,
        };
        let online: Vec<LocalDirectory> = usable().map(local).collect();
        let chosen = choose_directory(assigned, &online)?;
        usable().find(|directory| directory.id == chosen).cloned()
    }

    fn delete(&self, map: &mut PartitionMap, topic: TopicId, index: PartitionIndex) {
        let Some(partition) = map.remove(topic, index) else { return };
        if !map.ids.contains_key(&topic) {
            self.metrics.forget_topic(&partition.topic);
        }
        let delay_ms = partition.lock().settings.log.file_delete_delay_ms;
        let Some(log) = partition.take_log() else { return };
        match partition.directory.delete(log, random_uuid()) {
            Ok(deleted) => {
                let mut waiting = self.deleted.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.push((now().plus_ms(delay_ms), deleted));
            }
            Err(error) => partition.directory.fail(&error.to_string()),
        }
    }

    /// Sets aside what the metadata says is not this broker's.
    fn set_strays(&self, image: &Image, found: &mut HashMap<TopicPartition, FoundLog>) {
        let is_stray = |name: &TopicPartition, found: &mut FoundLog| {
            is_stray(self.node_id, image, found.log.topic_id(), &name.topic, name.partition)
        };
        found.extract_if(is_stray).for_each(|(name, log)| set_stray(&name, log));
    }
}

/// Sets a log aside that the metadata says is not ours; nothing of it is deleted.
fn set_stray(name: &TopicPartition, found: FoundLog) {
    match found.directory.set_stray(found.log, random_uuid()) {
        Ok(path) => {
            tracing::warn!(partition = %name, path = %path.display(), "a partition that is not this broker's is set aside");
        }
        Err(error) => found.directory.fail(&error.to_string()),
    }
}

impl PartitionMap {
    fn get(&self, topic: TopicId, index: PartitionIndex) -> Option<Arc<Partition>> {
        self.ids.get(&topic)?.partitions.get(&index.value()).cloned()
    }

    fn insert(&mut self, partition: &Arc<Partition>) {
        // Taken out of both, the entry is copied only if a published map still holds it: a large topic is built in linear time.
        self.names.remove(&partition.topic);
        let mut entry = match self.ids.remove(&partition.topic_id) {
            Some(entry) => Arc::unwrap_or_clone(entry),
            None => {
                TopicPartitions { name: partition.topic.clone(), id: partition.topic_id, partitions: BTreeMap::new() }
            }
        };
        if entry.partitions.insert(partition.index.value(), Arc::clone(partition)).is_none() {
            *self.by_directory.entry(partition.directory.id).or_default() += 1;
        }
        self.put(entry);
    }

    fn remove(&mut self, topic: TopicId, index: PartitionIndex) -> Option<Arc<Partition>> {
        let mut entry = TopicPartitions::clone(self.ids.get(&topic)?);
        let removed = entry.partitions.remove(&index.value())?;
        if let Some(held) = self.by_directory.get_mut(&removed.directory.id) {
            *held -= 1;
        }
        if entry.partitions.is_empty() {
            self.ids.remove(&topic);
            if self.names.get(&entry.name).is_some_and(|named| named.id == topic) {
                self.names.remove(&entry.name);
            }
        } else {
            self.put(entry);
        }
        Some(removed)
    }

    fn put(&mut self, entry: TopicPartitions) {
        let entry = Arc::new(entry);
        self.names.insert(entry.name.clone(), Arc::clone(&entry));
        self.ids.insert(entry.id, entry);
    }
}

impl TopicPartitions {
    /// All of them, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Partition>> {
        self.partitions.values()
    }
}

/// An id for a folder that is renamed.
pub(crate) fn random_uuid() -> Uuid {
    Uuid::from_random(crate::random::u128)
}
