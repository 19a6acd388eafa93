//! The thread that applies metadata: partitions become led, followed, created and deleted as each image says.
//!
//! `partitions.rs` starts it. It alone changes which partitions there are.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, atomic::Ordering},
};

use gregor_config::BrokerConfig;
use gregor_metadata::{Changes, ConfigResource, Image, MetadataImage, ResourceType};
use gregor_node::{PartitionAction, ReplicaRole, partition_actions};
use gregor_replication::PartitionAssignment;
use gregor_types::{KString, LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition};

use super::{PartitionMap, Partitions, Replica, TopicParts, Work};
use crate::{
    api::registration_of,
    clock::now,
    held_log::HeldLog,
    partition::{Future, Partition},
    recovery::{Customer, Job, Recovered, Recovery},
    storage::{Directory, FoundLog},
    topic_settings::TopicSettings,
};

impl Partitions {
    pub(super) fn run(self: &Arc<Self>, loaded: impl Fn(Offset)) {
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
            outdated: self.storage.directories().to_vec(),
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
            let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            self.is_behind.store(inbox.image.is_some(), Ordering::Release);
            drop(inbox);
            self.applied.send_replace(work.image.position.last_offset);
        }
        self.is_behind.store(false, Ordering::Release);
        self.applied.send_modify(|_| {});
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
                self.set_role(&partition, replica.role, replica.state, &image);
                map.insert(&partition);
                self.resume_move(&partition, work);
                continue;
            }
            let delay_ms = log.config().file_delete_delay_ms;
            self.delete_log(&directory, HeldLog::Open(Box::new(log)), delay_ms);
            directory.settle(&name);
            self.outdate_checkpoints(work);
            // A topic of the same name may have come in the meantime; its folder's name is free now.
            if let Some(replica) = named.and_then(|topic| self.replica(topic, name.partition)) {
                self.hold(&mut map, &replica, work);
            }
        }
        self.publish(map, work);
    }

    pub(super) fn publish(&self, map: PartitionMap, work: &mut Work) {
        self.topic_ids.add(std::mem::take(&mut work.made));
        self.map.store(Arc::new(map));
        work.settled.drain(..).for_each(|(directory, name)| directory.settle(&name));
        work.topics.clear();
        work.counts = None;
    }

    /// What the metadata says of a partition, if it gives it to this broker.
    pub(super) fn replica<'i>(&self, topic: &'i gregor_metadata::Topic, index: PartitionIndex) -> Option<Replica<'i>> {
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
            self.fetchers.set_fetchers(work.config.num_replica_fetchers);
            self.throttles.set_rates(&image, self.node_id);
        }
        if brokers_changed || changes.features {
            self.set_cordons(work);
        }
        if !changes.brokers.is_empty() {
            self.fetchers.set_brokers(&image);
        }
        // A higher min.insync.replicas counts before the roles of the same image, all other settings after them.
        let is_concerned =
            |topic: &KString| brokers_changed || changes.configs.contains(&ConfigResource::topic(topic.clone()));
        for topic in self.map.load().ids.values().filter(|topic| is_concerned(&topic.name)) {
            let limits = TopicSettings::of(&topic.name, &work.config, &image).limits;
            topic.partitions.values().for_each(|one| one.expect_limits(limits));
        }
        let mut map = PartitionMap::clone(&self.map.load());
        let mut deletes = false;
        for action in partition_actions(self.node_id, previous, &image, changes) {
            match action {
                PartitionAction::Delete { topic_id, index, .. } => {
                    self.delete(&mut map, topic_id, index);
                    deletes = true;
                    self.outdate_checkpoints(work);
                }
                PartitionAction::Hold { topic_id, topic, index, role, partition } => {
                    self.hold(&mut map, &Replica { topic_id, topic, index, role, state: &partition }, work);
                }
            }
        }
        if deletes {
            self.forget_gone(work);
        }
        if self.is_registered(&image) && !self.is_registered(previous) {
            self.take_roles(&map, &image);
        }
        self.publish(map, work);
        self.tell_registrations(changes, &image);
        self.moves.wake();
        for topic in self.map.load().ids.values().filter(|topic| is_concerned(&topic.name)) {
            let settings = TopicSettings::of(&topic.name, &work.config, &image);
            topic.partitions.values().for_each(|one| self.set_settings(one, &settings));
        }
    }

    /// Whether the metadata knows this run of the broker.
    fn is_registered(&self, image: &Image) -> bool {
        image.cluster().broker(self.node_id).is_some_and(|broker| broker.incarnation == self.incarnation)
    }

    /// Gives all partitions their roles anew.
    fn take_roles(&self, map: &PartitionMap, image: &Image) {
        for held in map.ids.values().flat_map(|topic| topic.partitions.values()) {
            let topic = image.topics().by_id(held.topic_id);
            if let Some(replica) = topic.and_then(|topic| self.replica(topic, held.index)) {
                self.set_role(held, replica.role, replica.state, image);
            }
        }
    }

    fn set_settings(&self, partition: &Arc<Partition>, settings: &Arc<TopicSettings>) {
        let was_throttled = partition.follows_throttled();
        partition.set_settings(settings, now());
        if partition.follows_throttled() != was_throttled {
            self.fetchers.set_throttled(partition, !was_throttled);
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

    fn set_role(
        &self,
        partition: &Arc<Partition>,
        role: ReplicaRole,
        state: &gregor_metadata::Partition,
        image: &Image,
    ) {
        // An earlier run was elected, perhaps on a disk that had what this one's lacks, and others would cut their logs to it; and what this
        // one fetches is not to count as what that one has. The controller elects anew when it registers this run (Kafka's broker shows
        // itself no metadata before).
        let role = if self.is_registered(image) { role } else { ReplicaRole::Leaderless };
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
        partition.set_role(self.node_id, leader, &assignment, |id| registration_of(image, id), now());
        match role {
            ReplicaRole::Follower(leader) => self.fetchers.follow(partition, leader, state.leader_epoch),
            ReplicaRole::Leader | ReplicaRole::Leaderless => {
                self.fetchers.unfollow(partition.topic_id, partition.index);
            }
        }
    }

    fn hold(&self, map: &mut PartitionMap, replica: &Replica<'_>, work: &mut Work) {
        let held = map.get(replica.topic_id, replica.index).or_else(|| {
            let opened = self.open(map, replica, work)?;
            map.insert(&opened);
            self.resume_move(&opened, work);
            Some(opened)
        });
        let Some(held) = held else { return };
        self.set_role(&held, replica.role, replica.state, &work.image);
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

    pub(super) fn partition(
        &self,
        replica: &Replica<'_>,
        directory: Arc<Directory>,
        log: HeldLog,
        high_watermark: Offset,
        work: &mut Work,
    ) -> Arc<Partition> {
        let TopicParts { name, settings, metrics } = work.topic(replica, &self.metrics).clone();
        let identity = (name, replica.topic_id, replica.index);
        let surroundings = (metrics, Arc::clone(&self.isr_changes));
        Arc::new(Partition::new(identity, directory, log, high_watermark, settings, surroundings))
    }

    fn delete(&self, map: &mut PartitionMap, topic: TopicId, index: PartitionIndex) {
        self.fetchers.unfollow(topic, index);
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

    /// Leaders hear of brokers that registered, were fenced or unfenced, or are gone.
    fn tell_registrations(&self, changes: &Changes, image: &Image) {
        let brokers: Vec<_> = changes.brokers.iter().map(|id| (*id, registration_of(image, *id))).collect();
        if !brokers.is_empty() {
            self.all().iter().for_each(|partition| partition.on_registrations(&brokers, now()));
        }
    }
}
