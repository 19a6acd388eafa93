//! Offsets that were committed within transactions, until a marker ends them (KIP-98, KIP-447).
//!
//! They are known from the log: a broker that wrote them may be gone, and its transactions still open. Until they end, they are
//! nobody's offsets, but a reader that asks for stable ones is told to ask again.

use std::collections::BTreeMap;

use gregor_types::{KString, Offset, ProducerId};

use super::CommittedOffset;

/// An offset in a transaction.
#[derive(Debug)]
pub(super) struct PendingOffset {
    /// Where its record lies.
    pub(super) at: Offset,
    pub(super) group: KString,
    pub(super) topic: KString,
    pub(super) partition: i32,
    pub(super) committed: Option<CommittedOffset>,
}

/// Offsets in transactions that are open.
#[derive(Debug, Default)]
pub(super) struct PendingOffsets {
    by_producer: BTreeMap<ProducerId, Vec<PendingOffset>>,
    /// How many there are for a group's partition.
    counts: BTreeMap<KString, BTreeMap<(KString, i32), usize>>,
}

impl PendingOffsets {
    pub(super) fn add(&mut self, producer: ProducerId, offset: PendingOffset) {
        let partitions = self.counts.entry(offset.group.clone()).or_default();
        *partitions.entry((offset.topic.clone(), offset.partition)).or_default() += 1;
        self.by_producer.entry(producer).or_default().push(offset);
    }

    /// Takes out what a producer's transaction has committed, or would have.
    pub(super) fn end(&mut self, producer: ProducerId) -> Vec<PendingOffset> {
        let ended = self.by_producer.remove(&producer).unwrap_or_default();
        for offset in &ended {
            let Some(partitions) = self.counts.get_mut(&offset.group) else { continue };
            let partition = (offset.topic.clone(), offset.partition);
            if let Some(count) = partitions.get_mut(&partition) {
                *count -= 1;
                if *count == 0 {
                    partitions.remove(&partition);
                }
            }
            if partitions.is_empty() {
                self.counts.remove(&offset.group);
            }
        }
        ended
    }

    /// Whether an open transaction would commit an offset of this partition.
    pub(super) fn has(&self, group: &str, topic: &KString, partition: i32) -> bool {
        // Few groups have any, so that the key is seldom made.
        self.counts.get(group).is_some_and(|partitions| partitions.contains_key(&(topic.clone(), partition)))
    }

    /// Whether an open transaction would commit any offset of the group.
    pub(super) fn has_group(&self, group: &str) -> bool {
        self.counts.contains_key(group)
    }
}
