//! The metadata log of one node of a model: batches in a row, and how far they are on its disk.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use gregor_raft::{
    ControlRecord, LogView, OffsetAndEpoch, SnapshotId, VoterHistory,
    control::{Content, ControlError, read_batches},
};
use gregor_types::{BrokerId, LeaderEpoch, Offset};
use gregor_wire::batch::split_batches;

/// A batch. Two with one digest are the same, byte for byte.
#[derive(Debug, Clone)]
pub struct Stored {
    pub base: i64,
    pub end: i64,
    pub epoch: LeaderEpoch,
    pub digest: u64,
    /// The sets of voters in it.
    pub voters: Vec<Vec<BrokerId>>,
    bytes: Bytes,
}

impl PartialEq for Stored {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Hash for Stored {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.digest.hash(hasher);
    }
}

/// See the module. No snapshot is made, so the log begins at 0.
#[derive(Debug, Clone, Default, PartialEq, Hash)]
pub struct Log {
    pub batches: Vec<Stored>,
    /// Up to where it is on the disk.
    pub durable: i64,
}

impl Log {
    pub fn end_offset(&self) -> i64 {
        self.batches.last().map_or(0, |batch| batch.end)
    }

    pub fn append(&mut self, base: Offset, bytes: &Bytes) {
        assert_eq!(base.value(), self.end_offset(), "an append lands at the end");
        let mut rest = bytes.clone();
        for batch in split_batches(bytes) {
            let batch = batch.expect("a whole batch");
            let bytes = rest.split_to(batch.size as usize);
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            let stored = Stored {
                base: batch.base_offset.value(),
                end: batch.next_offset().value(),
                epoch: batch.leader_epoch,
                digest: hasher.finish(),
                voters: control_records(&bytes).iter().filter_map(|(_, record)| voters_in(record)).collect(),
                bytes,
            };
            assert_eq!(stored.base, self.end_offset(), "batches follow each other");
            self.batches.push(stored);
        }
    }

    pub fn read(&self, from: Offset, max_bytes: u32) -> Bytes {
        let mut read = Vec::new();
        for batch in self.batches.iter().filter(|batch| batch.end > from.value()) {
            if !read.is_empty() && read.len() + batch.bytes.len() > max_bytes as usize {
                break;
            }
            read.extend_from_slice(&batch.bytes);
        }
        read.into()
    }

    pub fn truncate(&mut self, end: Offset) {
        self.batches.retain(|batch| batch.base < end.value());
        assert_eq!(self.end_offset(), end.value(), "logs are cut between batches");
        self.durable = self.durable.min(end.value());
    }

    /// What was not synced is gone.
    pub fn crash(&mut self) {
        self.batches.retain(|batch| batch.end <= self.durable);
    }

    /// Whether it begins with these batches, on the disk.
    pub fn has_durably(&self, committed: &[Stored]) -> bool {
        self.batches.starts_with(committed) && committed.last().is_none_or(|last| last.end <= self.durable)
    }

    /// Reads the voters out of the log.
    pub fn replay(&self, history: &mut VoterHistory) {
        for batch in &self.batches {
            for (offset, record) in control_records(&batch.bytes) {
                history.replay(offset, &record);
            }
        }
    }
}

impl LogView for Log {
    fn end(&self) -> OffsetAndEpoch {
        let last = self.batches.last();
        last.map_or(OffsetAndEpoch::BOOTSTRAP, |batch| OffsetAndEpoch::new(Offset(batch.end), batch.epoch))
    }
    fn start(&self) -> Offset {
        Offset::ZERO
    }
    fn end_of_epoch(&self, epoch: LeaderEpoch) -> OffsetAndEpoch {
        let last = self.batches.iter().rev().find(|batch| batch.epoch <= epoch);
        last.map_or(OffsetAndEpoch::BOOTSTRAP, |last| OffsetAndEpoch::new(Offset(last.end), last.epoch))
    }
    fn latest_snapshot(&self) -> Option<SnapshotId> {
        None
    }
    fn earliest_snapshot(&self) -> Option<SnapshotId> {
        None
    }
    fn snapshot_size(&self, _: SnapshotId) -> Option<u64> {
        None
    }
}

fn control_records(bytes: &Bytes) -> Vec<(Offset, ControlRecord)> {
    let mut control = Vec::new();
    read_batches::<ControlError>(bytes, |entry| {
        if let Content::Control(record) = entry.content {
            control.push((entry.offset, record));
        }
        Ok(())
    })
    .expect("whole batches");
    control
}

fn voters_in(record: &ControlRecord) -> Option<Vec<BrokerId>> {
    let ControlRecord::Voters(voters) = record else { return None };
    Some(voters.voters.iter().map(|voter| BrokerId(voter.voter_id)).collect())
}
