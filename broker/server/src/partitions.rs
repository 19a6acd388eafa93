//! The partitions of this broker: which there are, what each is, kept as the metadata says.
//!
//! Handlers look partitions up here without a lock. Changes come from the control thread as image and delta; a thread of its
//! own applies them (it creates files and deletes them) and tells the control thread how far it is, so that the broker is
//! unfenced only once it can serve. It never decides who leads.

mod checkpoints;
mod folders;
mod map;
mod topic_ids;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use arc_swap::ArcSwap;
use gregor_config::BrokerConfig;
use gregor_log::DeletedPartition;
use gregor_metadata::{Changes, ConfigResource, Image, MetadataImage, ResourceType};
use gregor_node::{PartitionAction, ReplicaRole, partition_actions};
use gregor_replication::PartitionAssignment;
use gregor_types::{BrokerId, ErrorCode, KString, LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition, Uuid};
use tokio::sync::watch;

use crate::{
    clock::now,
    control::{ImageUpdate, MetadataListener},
    held_log::HeldLog,
    metrics::{Metrics, TopicMetrics},
    moves::Moves,
    partition::{Future, Partition},
    recovery::{Customer, Job, Recovered, Recovery},
    storage::{Directory, FoundLog, Storage},
    topic_settings::TopicSettings,
};

use map::PartitionMap;
pub(crate) use map::TopicPartitions;
use topic_ids::TopicIds;

/// All partitions with a replica here.
#[derive(Debug)]
pub(crate) struct Partitions {
    node_id: BrokerId,
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
    /// Folders that are renamed and wait for `file.delete.delay.ms`; the housekeeper removes them.
    deleted: Mutex<Vec<(gregor_types::Timestamp, DeletedPartition)>>,
    topic_ids: Arc<TopicIds>,
    /// Held while the checkpoint files are written: an older content must not replace a newer one.
    checkpoints: Mutex<()>,
    /// The directories that get no new replicas; `None` where the finalized level does not know of such.
    cordoned: watch::Sender<Option<Vec<Uuid>>>,
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
    fn publish(&mut self, update: ImageUpdate) {
        let mut inbox = self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.changes = if inbox.image.is_none() { Some(update.changes) } else { None };
        inbox.image = Some(update.image);
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
    pub(crate) fn new(
        node_id: BrokerId,
        config: Arc<BrokerConfig>,
        storage: Arc<Storage>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            node_id,
            config: ArcSwap::new(Arc::clone(&config)),
            base_config: config,
            storage,
            metrics,
            map: ArcSwap::default(),
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            deleted_topics: Mutex::default(),
            applied: watch::Sender::new(Offset::NONE),
            deleted: Mutex::default(),
            topic_ids: Arc::default(),
            checkpoints: Mutex::default(),
            cordoned: watch::Sender::new(None),
            moves: Moves::default(),
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

    /// The log directories.
    pub(crate) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    fn run(self: &Arc<Self>, loaded: impl Fn(Offset)) {
        let threads = self.base_config.num_recovery_threads_per_data_dir;
        let mut work = Work {
            image: Arc::new(MetadataImage::default()),
            config: Arc::clone(&self.base_config),
            surveyed: HashMap::new(),
            found: HashMap::new(),
            futures: HashMap::new(),
            unchecked: Vec::new(),
            recovering: HashMap::new(),
            settled: Vec::new(),
            made: Vec::new(),
            unmade: BTreeSet::new(),
            topics: HashMap::new(),
            counts: None,
        };
        let survey = self.storage.survey(threads, &|| self.is_stopping());
        self.add_leftovers(survey.leftovers);
        work.surveyed = survey.found;
        let mut recovery = None;
        loop {
            let (image, changes, recovered, failed, retry) = {
                let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
                while !inbox.has_work(!work.unmade.is_empty()) {
                    inbox = self.arrived.wait(inbox).unwrap_or_else(PoisonError::into_inner);
                }
                if inbox.stopped {
                    break;
                }
                let failed = std::mem::take(&mut inbox.failed);
                let retry = std::mem::take(&mut inbox.retry);
                (inbox.image.take(), inbox.changes.take(), std::mem::take(&mut inbox.recovered), failed, retry)
            };
            if failed {
                self.go_offline(&mut work);
            }
            if !recovered.is_empty() {
                self.take_in(&mut work, recovered);
            }
            if retry {
                self.make_unmade(&mut work);
            }
            if let Some(image) = image {
                let changes = changes.unwrap_or_else(|| Changes::between(&work.image.image, &image.image));
                let previous = std::mem::replace(&mut work.image, image);
                if recovery.is_none() {
                    self.settle_found(&mut work);
                }
                self.apply(&previous, &changes, &mut work);
                if recovery.is_none() {
                    let threads = work.config.num_recovery_threads_per_data_dir;
                    let jobs = std::mem::take(&mut work.unchecked);
                    recovery = match Recovery::start(jobs, threads, self) {
                        Ok(started) => Some(started),
                        Err(error) => {
                            tracing::error!(%error, "the threads that check logs cannot be started");
                            self.storage.directories().iter().for_each(|one| one.fail(&error.to_string()));
                            return;
                        }
                    };
                }
                loaded(work.image.position.last_offset);
                let deleted = changes.topics_deleted.values().map(|topic| topic.name.clone());
                self.deleted_topics.lock().unwrap_or_else(PoisonError::into_inner).extend(deleted);
            }
            self.applied.send_replace(work.image.position.last_offset);
        }
        if let Some(recovery) = recovery {
            recovery.join();
        }
        self.topic_ids.stop();
    }

    /// Serves the logs that are whole now, as the image has it.
    fn take_in(&self, work: &mut Work, recovered: Vec<Recovered>) {
        let mut map = PartitionMap::clone(&self.map.load());
        let image = Arc::clone(&work.image);
        for Recovered { directory, log, high_watermark, is_future } in recovered {
            let name = log.topic_partition().clone();
            work.settled.push((Arc::clone(&directory), name.clone()));
            if is_future {
                self.take_in_future(&map, name, Future::checked(directory, log), work);
                continue;
            }
            work.recovering.remove(&name);
            let named = image.topics().by_name(&name.topic);
            let topic = match log.topic_id() {
                Some(id) => image.topics().by_id(id),
                None => named,
            };
            if let Some(replica) = topic.and_then(|topic| self.replica(topic, name.partition)) {
                let partition = self.partition(&replica, directory, HeldLog::Open(Box::new(log)), high_watermark, work);
                self.set_role(&partition, replica.role, replica.state);
                map.insert(&partition);
                self.resume_move(&partition, work);
                continue;
            }
            let delay_ms = log.config().file_delete_delay_ms;
            self.delete_log(&directory, HeldLog::Open(Box::new(log)), delay_ms);
            // A topic of the same name may have come in the meantime; its folder's name is free now.
            if let Some(replica) = named.and_then(|topic| self.replica(topic, name.partition)) {
                self.hold(&mut map, &replica, work);
            }
        }
        self.publish(map, work);
    }

    fn publish(&self, map: PartitionMap, work: &mut Work) {
        self.topic_ids.add(std::mem::take(&mut work.made));
        self.map.store(Arc::new(map));
        work.settled.drain(..).for_each(|(directory, name)| directory.settle(&name));
        work.topics.clear();
        work.counts = None;
    }

    /// What the metadata says of a partition, if it gives it to this broker.
    fn replica<'i>(&self, topic: &'i gregor_metadata::Topic, index: PartitionIndex) -> Option<Replica<'i>> {
        let state = topic.partition(index).filter(|state| state.replicas.contains(&self.node_id))?;
        let role = match state.leader {
            Some(leader) if leader == self.node_id => ReplicaRole::Leader,
            Some(leader) => ReplicaRole::Follower(leader),
            None => ReplicaRole::Leaderless,
        };
        Some(Replica { topic_id: topic.id, topic: topic.name.clone(), index, role, state })
    }

    fn apply(&self, previous: &Image, changes: &Changes, work: &mut Work) {
        let image = Arc::clone(&work.image);
        let brokers_changed = changes.configs.iter().any(|resource| resource.resource_type == ResourceType::Broker);
        if brokers_changed {
            work.config = self.effective_config(&image);
            self.config.store(Arc::clone(&work.config));
        }
        if brokers_changed || changes.features {
            self.set_cordons(work);
        }
        let mut map = PartitionMap::clone(&self.map.load());
        let mut forgets = false;
        for action in partition_actions(self.node_id, previous, &image, changes) {
            match action {
                PartitionAction::Delete { topic_id, index, .. } => {
                    self.delete(&mut map, topic_id, index);
                    forgets = true;
                }
                PartitionAction::Hold { topic_id, topic, index, role, partition } => {
                    // A new log of the same name must not inherit what the checkpoints say of the old one.
                    if std::mem::take(&mut forgets) {
                        self.forget_deleted();
                    }
                    self.hold(&mut map, &Replica { topic_id, topic, index, role, state: &partition }, work);
                }
            }
        }
        if forgets {
            self.forget_deleted();
        }
        self.publish(map, work);
        self.moves.wake();
        for topic in self.map.load().ids.values() {
            if brokers_changed || changes.configs.contains(&ConfigResource::topic(topic.name.clone())) {
                let settings = TopicSettings::of(&topic.name, &work.config, &image);
                topic.partitions.values().for_each(|one| one.set_settings(&settings, now()));
            }
        }
    }

    /// `server.properties` with what was set at run time over it: for all brokers, then for this one.
    pub(crate) fn effective_config(&self, image: &Image) -> Arc<BrokerConfig> {
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
            adding: state.adding.clone(),
        };
        partition.set_role(self.node_id, leader, &assignment, now());
    }

    fn hold(&self, map: &mut PartitionMap, replica: &Replica<'_>, work: &mut Work) {
        let held = map.get(replica.topic_id, replica.index).or_else(|| {
            let opened = self.open(map, replica, work)?;
            map.insert(&opened);
            self.resume_move(&opened, work);
            Some(opened)
        });
        let Some(held) = held else { return };
        self.set_role(&held, replica.role, replica.state);
    }

    /// The partition over the log that was found, else over a new one; `None` while the log has to be checked.
    fn open(&self, map: &PartitionMap, replica: &Replica<'_>, work: &mut Work) -> Option<Arc<Partition>> {
        let name = TopicPartition { topic: replica.topic.clone(), partition: replica.index };
        if work.recovering.contains_key(&name) {
            return None;
        }
        let Some(found) = work.found.remove(&name) else {
            let (directory, log) = self.create(map, &name, replica, work)?;
            let partition = self.partition(replica, directory, log, Offset::ZERO, work);
            work.made.push(Arc::clone(&partition));
            return Some(partition);
        };
        if found.directory.is_failed() {
            return Some(self.partition(replica, found.directory, HeldLog::Gone, Offset::ZERO, work));
        }
        if found.log.end_offset().is_none() {
            let config = Arc::clone(&work.topic(replica, &self.metrics).settings.log);
            work.recovering.insert(name, Arc::clone(&found.directory));
            work.unchecked.push(Job { found, config });
            return None;
        }
        let FoundLog { directory, log, high_watermark, .. } = found;
        work.settled.push((Arc::clone(&directory), name));
        let held = HeldLog::Resting(Box::new(log), LeaderEpoch::NONE);
        Some(self.partition(replica, directory, held, high_watermark, work))
    }

    /// Makes the replicas that could not be made, until one cannot again.
    fn make_unmade(&self, work: &mut Work) {
        let image = Arc::clone(&work.image);
        let mut map = PartitionMap::clone(&self.map.load());
        let mut waiting = std::mem::take(&mut work.unmade);
        while work.unmade.is_empty()
            && let Some((topic, index)) = waiting.pop_first()
        {
            if let Some(replica) = image.topics().by_id(topic).and_then(|topic| self.replica(topic, index)) {
                self.hold(&mut map, &replica, work);
            }
        }
        work.unmade.append(&mut waiting);
        self.publish(map, work);
    }

    fn partition(
        &self,
        replica: &Replica<'_>,
        directory: Arc<Directory>,
        log: HeldLog,
        high_watermark: Offset,
        work: &mut Work,
    ) -> Arc<Partition> {
        let TopicParts { name, settings, metrics } = work.topic(replica, &self.metrics).clone();
        let identity = (name, replica.topic_id, replica.index);
        Arc::new(Partition::new(identity, directory, log, high_watermark, settings, metrics))
    }

    fn delete(&self, map: &mut PartitionMap, topic: TopicId, index: PartitionIndex) {
        let Some(partition) = map.remove(topic, index) else { return };
        if !map.ids.contains_key(&topic) {
            self.metrics.forget_topic(&partition.topic);
        }
        let delay_ms = partition.lock().settings.log.file_delete_delay_ms;
        let log = partition.take_log();
        // With the log gone, no further move begins.
        self.cancel_move(&partition);
        self.delete_log(&partition.directory(), log, delay_ms);
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
