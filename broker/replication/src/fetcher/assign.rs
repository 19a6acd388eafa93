//! Which fetcher follows which partition.
//!
//! The server asks when the metadata changes, and moves a partition from one fetcher to another.

use gregor_types::{BrokerId, PartitionIndex};

/// Which of `fetchers` fetchers from one leader follows a partition (`AbstractFetcherManager.getFetcherId`), so that a change
/// of `num.replica.fetchers` moves the same partitions as at Apache's.
pub fn fetcher_index(topic: &str, partition: PartitionIndex, fetchers: u32) -> u32 {
    // Java's String.hashCode.
    let hash = topic.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    let mixed = hash.wrapping_mul(31).wrapping_add(partition.value());
    let positive = if mixed == i32::MIN { 0 } else { mixed.unsigned_abs() };
    positive % fetchers.max(1)
}

/// A fetcher's name among all of a broker's: a change of leader or of `num.replica.fetchers` moves a partition to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FetcherId {
    /// From whom it fetches.
    pub leader: BrokerId,
    /// Which of the fetchers from there.
    pub index: u32,
}
