//! The partitions of a simulated node, kept as the metadata says: what the server's `partitions.rs`, `storage.rs` and
//! `housekeeper.rs` do on their threads, in steps.

use std::{collections::BTreeMap, sync::Arc};

use gregor_config::BrokerConfig;
use gregor_log::{CheckpointKind, LogDirectory, disk::FaultyDisk};
use gregor_metadata::{ConfigResource, MetadataImage};
use gregor_node::{PartitionAction, ReplicaRole, partition_actions};
use gregor_raft::Nanos;
use gregor_replication::PartitionAssignment;
use gregor_server::{TopicSettings, control::ImageUpdate};
use gregor_types::{BrokerEpoch, BrokerId, PartitionIndex, TopicPartition, Uuid};

use super::{LogFolder, Partition, cleaner::Cleaner, partition::Answer, process::Death};
use crate::{
    Random,
    clock::{Clock, MILLISECOND, SECOND},
    network::Place,
};

const CHECKPOINT_EVERY: Nanos = 5 * SECOND;
const RETENTION_EVERY: Nanos = 3 * SECOND;

/// See the module's documentation.
#[derive(Debug)]
pub struct Broker {
    me: BrokerId,
    config: Arc<BrokerConfig>,
    clock: Clock,
    random: Random,
    disk: FaultyDisk,
    folder: LogFolder,
    previous: Arc<MetadataImage>,
    partitions: BTreeMap<Place, Partition>,
    next_checkpoint: Nanos,
    next_retention: Nanos,
    cleaner: Cleaner,
    first: bool,
}

impl Broker {
    /// Looks at what lies in the directory. A log is opened, and checked if it was not closed, once the metadata gives it
    /// to this broker.
    pub(super) fn open(
        disk: &FaultyDisk,
        clock: &Clock,
        mut random: Random,
        config: Arc<BrokerConfig>,
        directory: LogDirectory,
    ) -> Result<Self, Death> {
        Ok(Self {
            me: config.node_id,
            config,
            clock: clock.clone(),
            cleaner: Cleaner::new(random.fork(), clock.nanos()),
            random,
            disk: disk.clone(),
            folder: LogFolder::open(disk, directory)?,
            previous: Arc::default(),
            partitions: BTreeMap::new(),
            next_checkpoint: clock.nanos() + CHECKPOINT_EVERY,
            next_retention: clock.nanos() + RETENTION_EVERY,
            first: true,
        })
    }

    /// Its partitions.
    pub fn partitions(&self) -> &BTreeMap<Place, Partition> {
        &self.partitions
    }

    pub(super) fn partitions_mut(&mut self) -> impl Iterator<Item = &mut Partition> {
        self.partitions.values_mut()
    }

    pub(super) fn partition(&mut self, place: &Place) -> Option<&mut Partition> {
        self.partitions.get_mut(place)
    }

    /// Creates, deletes and leads partitions as an image says.
    pub(super) fn apply(&mut self, update: &ImageUpdate) -> Result<(), Death> {
        let (previous, image) = (Arc::clone(&self.previous), Arc::clone(&update.image));
        if std::mem::take(&mut self.first) {
            self.folder.set_strays(self.me, &image, &mut self.random)?;
        }
        for action in partition_actions(self.me, &previous, &image, &update.changes) {
            match action {
                PartitionAction::Delete { topic, index, topic_id } => {
                    self.delete(&Place { topic: topic.to_string(), partition: index.value() }, topic_id)?;
                }
                PartitionAction::Hold { topic_id, topic, index, role, partition } => {
                    let place = Place { topic: topic.to_string(), partition: index.value() };
                    if !self.partitions.contains_key(&place) {
                        let settings = TopicSettings::of(&topic, &self.config, &image);
                        let Some(opened) = self.hold((topic, topic_id, index), settings)? else { continue };
                        self.partitions.insert(place.clone(), opened);
                    }
                    let assignment = PartitionAssignment {
                        leader_epoch: partition.leader_epoch,
                        partition_epoch: partition.partition_epoch,
                        replicas: partition.replicas.clone(),
                        isr: partition.isr.clone(),
                        adding: partition.adding.clone(),
                    };
                    let held = self.partitions.get_mut(&place).expect("it was just put there");
                    held.set_role(self.me, role == ReplicaRole::Leader, &assignment, self.clock.wall());
                }
            }
        }
        let now = self.clock.wall();
        for partition in self.partitions.values_mut() {
            if update.changes.configs.contains(&ConfigResource::topic(partition.topic.clone())) {
                partition.set_settings(&TopicSettings::of(&partition.topic, &self.config, &image), now);
            }
        }
        self.previous = image;
        Ok(())
    }

    fn hold(
        &mut self,
        (topic, topic_id, index): (gregor_types::KString, Uuid, PartitionIndex),
        settings: Arc<TopicSettings>,
    ) -> Result<Option<Partition>, Death> {
        let name = TopicPartition::new(topic.clone(), index);
        let held = self.partitions.values().map(|partition| (&partition.log, partition.high_watermark()));
        let opened = self.folder.open_log(&name, topic_id, &settings.log, &held, self.clock.wall())?;
        Ok(opened.map(|(log, high_watermark)| Partition::new((topic, topic_id, index), log, high_watermark, settings)))
    }

    fn delete(&mut self, place: &Place, topic_id: Uuid) -> Result<(), Death> {
        if self.partitions.get(place).is_some_and(|held| held.topic_id == topic_id) {
            let partition = self.partitions.remove(place).expect("it was just seen");
            self.folder.delete(partition.log, self.clock.wall(), &mut self.random)?;
        }
        Ok(())
    }

    /// Syncs, checkpoints, retention and compaction that are due; the answers that may leave.
    pub(super) fn on_time(&mut self) -> Result<Vec<Answer>, Death> {
        let (now, wall) = (self.clock.nanos(), self.clock.wall());
        let mut answers = Vec::new();
        for partition in self.partitions.values_mut() {
            partition.complete_flush(now, wall)?;
            partition.begin_flush(now + self.random.between(MILLISECOND / 10, 25 * MILLISECOND))?;
            answers.extend(partition.take_answers());
        }
        if self.next_retention <= now {
            self.next_retention = now + RETENTION_EVERY;
            self.partitions.values_mut().try_for_each(|partition| partition.retain(wall))?;
            self.checkpoint(CheckpointKind::LogStart)?;
            self.folder.remove_deleted(wall)?;
        }
        if self.next_checkpoint <= now {
            self.next_checkpoint = now + CHECKPOINT_EVERY;
            self.checkpoint(CheckpointKind::RecoveryPoint)?;
            self.checkpoint(CheckpointKind::HighWatermark)?;
        }
        if self.cleaner.on_time(&mut self.partitions, now, wall)? {
            self.checkpoint(CheckpointKind::Cleaner)?;
        }
        Ok(answers)
    }

    /// When something is due.
    pub(super) fn next_time(&self) -> Nanos {
        let flush = self.partitions.values().filter_map(Partition::flush_due).min().unwrap_or(Nanos::MAX);
        flush.min(self.next_checkpoint).min(self.next_retention).min(self.cleaner.next_time())
    }

    fn checkpoint(&self, kind: CheckpointKind) -> Result<bool, Death> {
        self.folder
            .checkpoint(kind, self.partitions.values().map(|partition| (&partition.log, partition.high_watermark())))
    }

    /// Closes every log and the directory: a clean stop.
    pub(super) fn close(mut self, epoch: BrokerEpoch) -> Result<(), Death> {
        let wall = self.clock.wall();
        let cleaner = std::mem::replace(&mut self.cleaner, Cleaner::new(self.random.fork(), Nanos::MAX / 2));
        cleaner.stop(&mut self.partitions, wall)?;
        debug_assert!(!self.disk.is_off(), "what is off closes nothing");
        let held = self.partitions.values_mut().map(|partition| {
            let high_watermark = partition.high_watermark();
            (&mut partition.log, high_watermark)
        });
        self.folder.close(epoch, held.collect())
    }
}
