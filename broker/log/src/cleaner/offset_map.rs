//! The newest offset of each key in a stretch of log, in bounded memory (`SkimpyOffsetMap`).
//!
//! Keys are known by 16 bytes of their SHA-256: clients choose keys, and two that could be made to collide would delete each
//! other's records. Slots are probed one after the other; entries never leave.

use gregor_types::Offset;
use sha2::{Digest, Sha256};

/// The bytes that an entry takes, as Kafka counts them in `log.cleaner.dedupe.buffer.size`.
const ENTRY_BYTES: usize = 24;

type KeyHash = [u8; 16];

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: KeyHash,
    offset: Offset,
}

#[derive(Debug)]
pub(super) struct OffsetMap {
    slots: Vec<Entry>,
    count: usize,
    count_max: usize,
    /// How many slots the memory that it may use has room for.
    slots_max: usize,
    /// The newest offset that was looked at: what comes later is not judged.
    latest: Offset,
}

impl OffsetMap {
    /// A map of at most `memory_bytes`, and no larger than `keys_max` keys need.
    #[allow(
        clippy::cast_precision_loss,
        reason = "a share of slots that fit in memory; one more or less does not matter"
    )]
    pub(super) fn new(memory_bytes: usize, load_factor: f64, keys_max: usize) -> Self {
        let slots_max = (memory_bytes / ENTRY_BYTES).max(16);
        let slots = slots_max.min(keys_max.saturating_mul(2)).max(16);
        let empty = Entry { hash: [0; 16], offset: Offset::NONE };
        // One slot stays empty, or a search for a key that is not there would never end.
        let count_max = ((slots as f64 * load_factor.clamp(0.01, 1.0)) as usize).clamp(1, slots - 1);
        Self { slots: vec![empty; slots], count: 0, count_max, slots_max, latest: Offset::NONE }
    }

    /// Notes a record; `false` where there is no room for a new key.
    pub(super) fn put(&mut self, key: &[u8], offset: Offset) -> bool {
        let hash = hash_of(key);
        let at = self.slot_of(&hash);
        if self.slots[at].offset == Offset::NONE {
            if self.count == self.count_max {
                return false;
            }
            self.count += 1;
        }
        self.slots[at] = Entry { hash, offset };
        self.latest = self.latest.max(offset);
        true
    }

    /// The newest offset of a key.
    pub(super) fn newest(&self, key: &[u8]) -> Option<Offset> {
        let entry = &self.slots[self.slot_of(&hash_of(key))];
        (entry.offset != Offset::NONE).then_some(entry.offset)
    }

    pub(super) const fn latest(&self) -> Offset {
        self.latest
    }

    /// The share of the memory that is taken: 0 to 1.
    #[allow(clippy::cast_precision_loss, reason = "a ratio of counts far below 2^52")]
    pub(super) fn utilization(&self) -> f64 {
        self.count as f64 / self.slots_max as f64
    }

    /// Everything up to here was looked at, also what had no key.
    pub(super) fn advance(&mut self, offset: Offset) {
        self.latest = self.latest.max(offset);
    }

    fn slot_of(&self, hash: &KeyHash) -> usize {
        let start = u64::from_le_bytes(hash[..8].try_into().expect("a hash has 16 bytes"));
        let mut at = (start % self.slots.len() as u64) as usize;
        while self.slots[at].offset != Offset::NONE && self.slots[at].hash != *hash {
            at = (at + 1) % self.slots.len();
        }
        at
    }
}

fn hash_of(key: &[u8]) -> KeyHash {
    let digest = Sha256::digest(key);
    digest[..16].try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_offset_of_each_key_is_known_until_the_map_is_full() {
        let mut map = OffsetMap::new(100 * ENTRY_BYTES, 0.9, 1_000);
        let key = |i: i64| i.to_be_bytes();
        for i in 0..90 {
            assert!(map.put(&key(i), Offset(i)));
        }
        assert!(!map.put(&key(90), Offset(90)), "90 of 100 slots are taken");
        assert!(map.put(&key(3), Offset(91)), "a key that is there takes no room");
        assert_eq!(map.newest(&key(3)), Some(Offset(91)));
        assert_eq!(map.newest(&key(4)), Some(Offset(4)));
        assert_eq!(map.newest(&key(90)), None);
        assert_eq!(map.latest(), Offset(91));
        assert!((map.utilization() - 0.9).abs() < 1e-9);
    }

    #[test]
    fn a_full_load_factor_leaves_a_slot_for_keys_that_are_not_there() {
        let mut map = OffsetMap::new(usize::MAX, 1.0, 8);
        let taken = (0..100_i64).filter(|i| map.put(&i.to_be_bytes(), Offset(*i))).count();
        assert_eq!(taken, 15);
        assert_eq!(map.newest(b"none"), None);
    }
}
