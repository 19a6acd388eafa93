//! Topics and their partitions, by id and by name.

use std::{ops::Bound, sync::Arc};

use gregor_state_records::metadata::{MetadataRecord, PartitionChangeRecord, PartitionRecord, TopicRecord};
use gregor_types::{BrokerId, DirectoryId, KString, LeaderEpoch, PartitionIndex, TopicId, Uuid};
use rpds::RedBlackTreeMapSync;

use crate::{ApplyError, MetadataVersion};

/// In a `PartitionChangeRecord`: the leader and its epoch stay as they are.
pub(crate) const NO_LEADER_CHANGE: i32 = -2;

/// Whether the leader may have lost records that its predecessors acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaderRecoveryState {
    /// Elected from the in-sync replicas, or recovered since.
    Recovered,
    /// Elected uncleanly; its in-sync replicas are itself alone until it has recovered.
    Recovering,
}

/// A partition as the controller decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The brokers that hold it, the preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// The log directory of each replica, in the same order (KIP-858).
    pub directories: Vec<DirectoryId>,
    /// The in-sync replicas.
    pub isr: Vec<BrokerId>,
    /// Replicas that leave when the reassignment is done.
    pub removing: Vec<BrokerId>,
    /// Replicas that came with the reassignment.
    pub adding: Vec<BrokerId>,
    /// Eligible leader replicas (KIP-966).
    pub elr: Vec<BrokerId>,
    /// The last known eligible leader replicas.
    pub last_known_elr: Vec<BrokerId>,
    /// The leader, if there is one now.
    pub leader: Option<BrokerId>,
    /// Whether the leader was elected uncleanly and has not recovered.
    pub leader_recovery: LeaderRecoveryState,
    /// Raised with each leader, and where followers must notice a change.
    pub leader_epoch: LeaderEpoch,
    /// Raised with each change of this partition.
    pub partition_epoch: i32,
}

/// A topic with its partitions.
#[derive(Debug, Clone, PartialEq)]
pub struct Topic {
    /// Its id, which outlives no deletion.
    pub id: TopicId,
    /// Its name.
    pub name: KString,
    partitions: RedBlackTreeMapSync<PartitionIndex, Arc<Partition>>,
}

/// All topics.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Topics {
    by_id: RedBlackTreeMapSync<TopicId, Arc<Topic>>,
    by_name: RedBlackTreeMapSync<KString, TopicId>,
}

impl LeaderRecoveryState {
    /// The number in a record.
    pub const fn code(self) -> i8 {
        match self {
            Self::Recovered => 0,
            Self::Recovering => 1,
        }
    }

    /// The state of a number in a record or request.
    pub const fn from_code(code: i8) -> Option<Self> {
        match code {
            0 => Some(Self::Recovered),
            1 => Some(Self::Recovering),
            _ => None,
        }
    }
}

impl Partition {
    /// The log directory of a broker's replica; `None` if the broker holds none.
    pub fn directory_of(&self, broker: BrokerId) -> Option<DirectoryId> {
        let position = self.replicas.iter().position(|replica| *replica == broker)?;
        Some(self.directories.get(position).copied().unwrap_or(Uuid::DIRECTORY_MIGRATING))
    }

    /// The replica that leads if it can: the first one.
    pub fn preferred_leader(&self) -> Option<BrokerId> {
        self.replicas.first().copied()
    }

    /// The record that creates this partition as it stands now, with what `version` can hold.
    pub fn to_record(&self, topic: TopicId, index: PartitionIndex, version: MetadataVersion) -> PartitionRecord {
        let eligible = |brokers: &[BrokerId]| {
            (version.has_eligible_leader_replicas() && !brokers.is_empty()).then(|| numbers(brokers))
        };
        PartitionRecord {
            partition_id: index.value(),
            topic_id: topic,
            replicas: numbers(&self.replicas),
            isr: numbers(&self.isr),
            removing_replicas: numbers(&self.removing),
            adding_replicas: numbers(&self.adding),
            leader: self.leader.unwrap_or(BrokerId::NONE).value(),
            leader_recovery_state: self.leader_recovery.code(),
            leader_epoch: self.leader_epoch.value(),
            partition_epoch: self.partition_epoch,
            directories: if version.has_directory_assignment() { self.directories.clone() } else { Vec::new() },
            eligible_leader_replicas: eligible(&self.elr),
            last_known_elr: eligible(&self.last_known_elr),
            ..Default::default()
        }
    }

    /// This partition after a change. A new leader raises the leader epoch, any change the partition epoch.
    pub fn with_change(&self, record: &PartitionChangeRecord) -> Result<Self, ApplyError> {
        let mut changed = self.clone();
        changed.partition_epoch += 1;
        if record.leader != NO_LEADER_CHANGE {
            changed.leader = broker(record.leader);
            changed.leader_epoch = changed.leader_epoch.next();
        }
        let replace = |list: &mut Vec<BrokerId>, with: &Option<Vec<i32>>| {
            if let Some(with) = with {
                *list = brokers(with);
            }
        };
        replace(&mut changed.replicas, &record.replicas);
        replace(&mut changed.isr, &record.isr);
        replace(&mut changed.removing, &record.removing_replicas);
        replace(&mut changed.adding, &record.adding_replicas);
        replace(&mut changed.elr, &record.eligible_leader_replicas);
        replace(&mut changed.last_known_elr, &record.last_known_elr);
        if record.leader_recovery_state != -1 {
            changed.leader_recovery = recovery_state(record.leader_recovery_state)?;
        }
        let directories = record.directories.as_deref().unwrap_or(&self.directories);
        changed.directories = directories_for(directories, changed.replicas.len(), record.directories.is_some())?;
        Ok(changed)
    }
}

impl Topic {
    /// A partition of this topic.
    pub fn partition(&self, index: PartitionIndex) -> Option<&Arc<Partition>> {
        self.partitions.get(&index)
    }

    /// All partitions, by number.
    pub fn partitions(&self) -> impl Iterator<Item = (PartitionIndex, &Arc<Partition>)> {
        self.partitions.iter().map(|(index, partition)| (*index, partition))
    }

    /// All partitions from this number on.
    pub fn partitions_from(&self, start: PartitionIndex) -> impl Iterator<Item = (PartitionIndex, &Arc<Partition>)> {
        self.partitions.range(start..).map(|(index, partition)| (*index, partition))
    }

    /// How many partitions it has.
    pub fn partition_count(&self) -> usize {
        self.partitions.size()
    }
}

impl Topics {
    /// The topic of this id.
    pub fn by_id(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.by_id.get(&id)
    }

    /// The topic of this name.
    pub fn by_name(&self, name: &str) -> Option<&Arc<Topic>> {
        self.by_id.get(self.by_name.get(name)?)
    }

    /// A partition by its topic's id and its number.
    pub fn partition(&self, id: TopicId, index: PartitionIndex) -> Option<&Arc<Partition>> {
        self.by_id.get(&id)?.partition(index)
    }

    /// All topics, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.by_name.values().filter_map(|id| self.by_id.get(id))
    }

    /// All topics from this name on, by name.
    pub fn iter_from<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Arc<Topic>> {
        self.by_name.range::<str, _>((Bound::Included(name), Bound::Unbounded)).filter_map(|(_, id)| self.by_id.get(id))
    }

    /// How many topics there are.
    pub fn len(&self) -> usize {
        self.by_id.size()
    }

    /// Whether there is no topic.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(crate) fn create(&mut self, record: &TopicRecord) -> Result<(), ApplyError> {
        if self.by_name.contains_key(record.name.as_str()) {
            return Err(ApplyError::TopicExists(record.name.clone()));
        }
        if self.by_id.contains_key(&record.topic_id) {
            return Err(ApplyError::TopicIdTaken(record.topic_id));
        }
        let name = record.name.compact();
        let topic = Topic { id: record.topic_id, name: name.clone(), partitions: RedBlackTreeMapSync::new_sync() };
        self.by_name.insert_mut(name, record.topic_id);
        self.by_id.insert_mut(record.topic_id, Arc::new(topic));
        Ok(())
    }

    pub(crate) fn create_partition(&mut self, record: &PartitionRecord) -> Result<(), ApplyError> {
        let replicas = brokers(&record.replicas);
        let partition = Partition {
            directories: directories_for(&record.directories, replicas.len(), !record.directories.is_empty())?,
            replicas,
            isr: brokers(&record.isr),
            removing: brokers(&record.removing_replicas),
            adding: brokers(&record.adding_replicas),
            elr: brokers(record.eligible_leader_replicas.as_deref().unwrap_or_default()),
            last_known_elr: brokers(record.last_known_elr.as_deref().unwrap_or_default()),
            leader: broker(record.leader),
            leader_recovery: recovery_state(record.leader_recovery_state)?,
            leader_epoch: LeaderEpoch(record.leader_epoch),
            partition_epoch: record.partition_epoch,
        };
        self.put_partition(record.topic_id, PartitionIndex(record.partition_id), partition)
    }

    pub(crate) fn change_partition(&mut self, record: &PartitionChangeRecord) -> Result<(), ApplyError> {
        let index = PartitionIndex(record.partition_id);
        let topic = self.by_id.get(&record.topic_id).ok_or(ApplyError::UnknownTopic(record.topic_id))?;
        let partition = topic.partition(index).ok_or(ApplyError::UnknownPartition { topic: record.topic_id, index })?;
        self.put_partition(record.topic_id, index, partition.with_change(record)?)
    }

    pub(crate) fn remove(&mut self, id: TopicId) -> Result<Arc<Topic>, ApplyError> {
        let topic = self.by_id.get(&id).cloned().ok_or(ApplyError::UnknownTopic(id))?;
        self.by_id.remove_mut(&id);
        self.by_name.remove_mut(topic.name.as_str());
        Ok(topic)
    }

    /// Forgets the eligible leader replicas of one topic, or of all where the name is empty; says which partitions had some.
    pub(crate) fn clear_elr(&mut self, name: &str) -> Result<Vec<(TopicId, PartitionIndex)>, ApplyError> {
        let topics: Vec<_> = if name.is_empty() {
            self.iter().cloned().collect()
        } else {
            vec![self.by_name(name).cloned().ok_or_else(|| ApplyError::UnknownTopicName(name.into()))?]
        };
        let mut cleared = Vec::new();
        for topic in topics {
            for (index, partition) in topic.partitions() {
                if partition.elr.is_empty() && partition.last_known_elr.is_empty() {
                    continue;
                }
                // As Kafka replays it: a change like any other, which raises the partition epoch.
                let change = PartitionChangeRecord {
                    leader: NO_LEADER_CHANGE,
                    leader_recovery_state: -1,
                    eligible_leader_replicas: Some(Vec::new()),
                    last_known_elr: Some(Vec::new()),
                    ..Default::default()
                };
                self.put_partition(topic.id, index, partition.with_change(&change)?)?;
                cleared.push((topic.id, index));
            }
        }
        Ok(cleared)
    }

    pub(crate) fn write(&self, version: MetadataVersion, emit: &mut impl FnMut(MetadataRecord)) {
        for topic in self.iter() {
            emit(MetadataRecord::Topic(TopicRecord {
                name: topic.name.clone(),
                topic_id: topic.id,
                ..Default::default()
            }));
            for (index, partition) in topic.partitions() {
                emit(MetadataRecord::Partition(partition.to_record(topic.id, index, version)));
            }
        }
    }

    fn put_partition(&mut self, id: TopicId, index: PartitionIndex, partition: Partition) -> Result<(), ApplyError> {
        let mut topic = self.by_id.get(&id).cloned().ok_or(ApplyError::UnknownTopic(id))?;
        Arc::make_mut(&mut topic).partitions.insert_mut(index, Arc::new(partition));
        self.by_id.insert_mut(id, topic);
        Ok(())
    }
}

/// Brokers as the numbers of a record.
fn numbers(brokers: &[BrokerId]) -> Vec<i32> {
    brokers.iter().map(|broker| broker.value()).collect()
}

fn brokers(numbers: &[i32]) -> Vec<BrokerId> {
    numbers.iter().copied().map(BrokerId).collect()
}

fn broker(number: i32) -> Option<BrokerId> {
    (number >= 0).then_some(BrokerId(number))
}

fn recovery_state(code: i8) -> Result<LeaderRecoveryState, ApplyError> {
    LeaderRecoveryState::from_code(code).ok_or(ApplyError::UnknownChange { field: "leaderRecoveryState", value: code })
}

/// Directories must be one per replica; records from before KIP-858 have none, and every replica is then "migrating".
/// A change of the replicas alone makes the old list void in the same way.
fn directories_for(directories: &[DirectoryId], replicas: usize, given: bool) -> Result<Vec<DirectoryId>, ApplyError> {
    if directories.len() == replicas {
        return Ok(directories.to_vec());
    }
    if given {
        return Err(ApplyError::DirectoriesMismatch { directories: directories.len(), replicas });
    }
    Ok(vec![Uuid::DIRECTORY_MIGRATING; replicas])
}
