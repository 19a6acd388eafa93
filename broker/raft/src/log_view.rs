//! What the quorum may know of its log: ends, epochs and snapshots, never bytes.

use gregor_types::{LeaderEpoch, Offset};

/// An end in a log: all before `offset` (exclusive), of which the last record has `epoch`. Ordered as logs are compared in
/// elections: by epoch, then by offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OffsetAndEpoch {
    /// The offset, exclusive.
    pub offset: Offset,
    /// The epoch of the record before it.
    pub epoch: LeaderEpoch,
}

/// A snapshot is named by the end of the log that it stands for.
pub type SnapshotId = OffsetAndEpoch;

impl OffsetAndEpoch {
    /// The end of an empty log, and the id of the snapshot that formatting writes, which is never served to others.
    pub const BOOTSTRAP: Self = Self { offset: Offset::ZERO, epoch: LeaderEpoch(0) };

    /// An end in a log.
    pub const fn new(offset: Offset, epoch: LeaderEpoch) -> Self {
        Self { offset, epoch }
    }
}

impl PartialOrd for OffsetAndEpoch {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OffsetAndEpoch {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.epoch, self.offset).cmp(&(other.epoch, other.offset))
    }
}

/// The log as the quorum sees it. Everything that has been appended counts, synced or not: what is durable the quorum hears by token.
pub trait LogView {
    /// The end of the log and the epoch of its last record; of the latest snapshot if the log is empty.
    fn end(&self) -> OffsetAndEpoch;

    /// The first offset that the log still has.
    fn start(&self) -> Offset;

    /// The end of the records of the largest epoch that is not above `epoch`. A log that starts with a snapshot's end has that of its epoch,
    /// and none of an earlier one: then it is [`OffsetAndEpoch::BOOTSTRAP`].
    fn end_of_epoch(&self, epoch: LeaderEpoch) -> OffsetAndEpoch;

    /// The newest complete snapshot, that of formatting included.
    fn latest_snapshot(&self) -> Option<SnapshotId>;

    /// The oldest complete snapshot.
    fn earliest_snapshot(&self) -> Option<SnapshotId>;

    /// The size of a snapshot in bytes, if it is there.
    fn snapshot_size(&self, id: SnapshotId) -> Option<u64>;
}
