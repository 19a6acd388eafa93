//! Which partition a record goes to: by its key as every Kafka client does it, else to one partition at a time.

use std::collections::HashMap;

use gregor_types::{KString, PartitionIndex};

use crate::Topic;

/// Kafka's hash of a key (`org.apache.kafka.common.utils.Utils.murmur2`).
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    const SEED: u32 = 0x9747_b28c;
    let mut hash = SEED ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        k = (k ^ k >> R).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(M);
    hash ^ hash >> 15
}

/// Chooses partitions. Records without a key fill a batch of one partition before the next is chosen (KIP-794), so that
/// batches are large.
#[derive(Debug, Default)]
pub(crate) struct Partitioner {
    sticky: HashMap<KString, Sticky>,
    random: u64,
}

#[derive(Debug)]
struct Sticky {
    partition: PartitionIndex,
    bytes: usize,
}

impl Partitioner {
    pub(crate) fn new(seed: u64) -> Self {
        Self { sticky: HashMap::new(), random: seed | 1 }
    }

    /// The partition for a record of so many bytes; `switch_bytes` is how much one partition gets in a row.
    pub(crate) fn choose(
        &mut self,
        name: &KString,
        topic: &Topic,
        key: Option<&[u8]>,
        bytes: usize,
        switch_bytes: usize,
    ) -> PartitionIndex {
        if let Some(key) = key {
            let partitions = topic.partitions.len().max(1) as u32;
            return PartitionIndex(((murmur2(key) & 0x7fff_ffff) % partitions) as i32);
        }
        if let Some(sticky) = self.sticky.get_mut(name)
            && sticky.bytes < switch_bytes
            && topic.partitions.get(&sticky.partition).is_some_and(|partition| partition.leader.is_some())
        {
            sticky.bytes += bytes;
            return sticky.partition;
        }
        let partition = self.another(topic);
        self.sticky.insert(name.clone(), Sticky { partition, bytes });
        partition
    }

    /// Any partition that has a leader; any at all if none has.
    fn another(&mut self, topic: &Topic) -> PartitionIndex {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let pick = |count: usize| (self.random % count.max(1) as u64) as usize;
        let available = topic.available().count();
        let chosen = topic.available().nth(pick(available));
        chosen
            .or_else(|| topic.partitions.keys().copied().nth(pick(topic.partitions.len())))
            .unwrap_or(PartitionIndex(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_as_in_javas_client() {
        // The values that Kafka's own UtilsTest states.
        for (key, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }
}
