//! The map in which handlers find partitions: published as a whole, replaced as a whole.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use gregor_types::{KString, PartitionIndex, TopicId};

use crate::partition::Partition;

/// Topics with a partition here, by both of their names.
#[derive(Debug, Default, Clone)]
pub(super) struct PartitionMap {
    pub(super) names: HashMap<KString, Arc<TopicPartitions>>,
    pub(super) ids: HashMap<TopicId, Arc<TopicPartitions>>,
}

/// One topic's partitions here.
#[derive(Debug, Clone)]
pub(crate) struct TopicPartitions {
    /// Its name.
    pub(crate) name: KString,
    /// Its id.
    pub(crate) id: TopicId,
    pub(super) partitions: BTreeMap<i32, Arc<Partition>>,
}

impl PartitionMap {
    pub(super) fn get(&self, topic: TopicId, index: PartitionIndex) -> Option<Arc<Partition>> {
        self.ids.get(&topic)?.partitions.get(&index.value()).cloned()
    }

    pub(super) fn insert(&mut self, partition: &Arc<Partition>) {
        // Taken out of both, the entry is copied only if a published map still holds it: a large topic is built in linear time.
        self.names.remove(&partition.topic);
        let mut entry = match self.ids.remove(&partition.topic_id) {
            Some(entry) => Arc::unwrap_or_clone(entry),
            None => {
                TopicPartitions { name: partition.topic.clone(), id: partition.topic_id, partitions: BTreeMap::new() }
            }
        };
        entry.partitions.insert(partition.index.value(), Arc::clone(partition));
        self.put(entry);
    }

    pub(super) fn remove(&mut self, topic: TopicId, index: PartitionIndex) -> Option<Arc<Partition>> {
        let mut entry = TopicPartitions::clone(self.ids.get(&topic)?);
        let removed = entry.partitions.remove(&index.value())?;
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
