//! Which partitions a broker leads, follows and deletes, as the metadata changes.

use std::sync::Arc;

use gregor_metadata::{Changes, Image, Partition};
use gregor_types::{BrokerId, KString, PartitionIndex, TopicId};

/// What a broker is to do with a partition.
#[derive(Debug, Clone, PartialEq)]
pub enum PartitionAction {
    /// Hold it, in this role. The broker creates the log where it has none; where it has one of another topic id under the same name,
    /// that one is a stray.
    Hold {
        /// The topic.
        topic_id: TopicId,
        /// Its name.
        topic: KString,
        /// The partition.
        index: PartitionIndex,
        /// What to be.
        role: ReplicaRole,
        /// All that is known of the partition.
        partition: Arc<Partition>,
    },
    /// Delete it: the topic is gone, or the replica has moved away.
    Delete {
        /// The topic.
        topic_id: TopicId,
        /// Its name.
        topic: KString,
        /// The partition.
        index: PartitionIndex,
    },
}

/// What a broker is for a partition that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicaRole {
    /// It takes the writes.
    Leader,
    /// It fetches from this leader.
    Follower(BrokerId),
    /// Nobody leads; it keeps what it has and waits.
    Leaderless,
}

/// What `broker` is to do with partitions as `previous` becomes `image` by `changes`. Deletions come first, so that a topic that is
/// deleted and created again under its name finds its directory free.
pub fn partition_actions(broker: BrokerId, previous: &Image, image: &Image, changes: &Changes) -> Vec<PartitionAction> {
    let mut actions = Vec::new();
    for topic in changes.topics_deleted.values() {
        // As this broker knew it: since then replicas may have moved away before the topic went.
        let known = previous.topics().by_id(topic.id);
        for (index, partition) in known.into_iter().flat_map(|topic| topic.partitions()) {
            if partition.replicas.contains(&broker) {
                actions.push(PartitionAction::Delete { topic_id: topic.id, topic: topic.name.clone(), index });
            }
        }
    }
    let mut held = Vec::new();
    for &(topic_id, index) in &changes.partitions {
        let Some(topic) = image.topics().by_id(topic_id) else { continue };
        let Some(partition) = topic.partition(index) else { continue };
        if partition.replicas.contains(&broker) {
            let role = match partition.leader {
                Some(leader) if leader == broker => ReplicaRole::Leader,
                Some(leader) => ReplicaRole::Follower(leader),
                None => ReplicaRole::Leaderless,
            };
            let (topic, partition) = (topic.name.clone(), partition.clone());
            held.push(PartitionAction::Hold { topic_id, topic, index, role, partition });
        } else if previous.topics().partition(topic_id, index).is_some_and(|before| before.replicas.contains(&broker)) {
            actions.push(PartitionAction::Delete { topic_id, topic: topic.name.clone(), index });
        }
    }
    actions.append(&mut held);
    actions
}

/// Whether a partition found on disk is not this broker's any more: its topic is gone or was created anew, or its replica moved away.
/// A stray is set aside under another name, never deleted: the metadata may be the one that is wrong.
pub fn is_stray(
    broker: BrokerId,
    image: &Image,
    topic_id: Option<TopicId>,
    topic: &str,
    index: PartitionIndex,
) -> bool {
    let known = match topic_id {
        Some(id) => image.topics().by_id(id),
        None => image.topics().by_name(topic),
    };
    let partition = known.and_then(|topic| topic.partition(index));
    partition.is_none_or(|partition| !partition.replicas.contains(&broker))
}
