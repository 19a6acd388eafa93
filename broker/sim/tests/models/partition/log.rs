//! A replica's log in a model: records with the leader epochs that they were appended in, and an epoch cache by Kafka's rules.

use gregor_replication::{EpochEnd, FollowerLog, LogPosition};
use gregor_types::{LeaderEpoch, Offset};

/// A record, of which no two have the same value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Record {
    pub epoch: LeaderEpoch,
    pub value: u8,
}

/// See the module. Nothing is deleted at its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Log {
    pub records: Vec<Record>,
    /// Each epoch with the offset that it begins at; one may have no record.
    epochs: Vec<(LeaderEpoch, i64)>,
}

impl Log {
    pub fn end(&self) -> Offset {
        Offset(self.records.len() as i64)
    }

    pub fn last_epoch(&self) -> LeaderEpoch {
        self.epochs.last().map_or(LeaderEpoch::NONE, |(epoch, _)| *epoch)
    }

    /// A leadership begins.
    pub fn begin_epoch(&mut self, epoch: LeaderEpoch) {
        let end = self.end().value();
        if epoch != self.last_epoch() {
            self.epochs.retain(|(known, begins)| *known < epoch && *begins < end);
            self.epochs.push((epoch, end));
        }
    }

    pub fn append(&mut self, record: Record) {
        assert!(record.epoch >= self.last_epoch(), "epochs only grow along a log: {record:?} behind {self:?}");
        self.begin_epoch(record.epoch);
        self.records.push(record);
    }

    pub fn read(&self, from: Offset) -> Vec<Record> {
        self.records[from.value() as usize..].to_vec()
    }

    pub fn truncate(&mut self, to: Offset) {
        self.records.truncate(to.value() as usize);
        self.epochs.retain(|(_, begins)| *begins < to.value());
    }
}

impl FollowerLog for Log {
    fn position(&self) -> LogPosition {
        LogPosition { start: Offset::ZERO, end: self.end(), last_epoch: self.last_epoch() }
    }

    fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<EpochEnd> {
        if epoch > self.last_epoch() {
            return None;
        }
        let later = self.epochs.partition_point(|(known, _)| *known <= epoch);
        let end = self.epochs.get(later).map_or(self.end().value(), |(_, begins)| *begins);
        let epoch = later.checked_sub(1).map_or(epoch, |floor| self.epochs[floor].0);
        Some(EpochEnd { epoch, end: Offset(end) })
    }
}
