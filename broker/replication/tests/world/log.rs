//! A log in memory: records with their epochs, what of it is on the disk, and an epoch cache by Kafka's rules.

use gregor_replication::{EpochEnd, FollowerLog, LogPosition};
use gregor_types::{LeaderEpoch, Offset};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub epoch: i32,
    pub value: u64,
}

#[derive(Debug, Clone, Default)]
pub struct Log {
    pub start: i64,
    records: Vec<Record>,
    epochs: Vec<(i32, i64)>,
    /// Everything before is on the disk.
    synced: i64,
}

impl Log {
    pub fn end(&self) -> i64 {
        self.start + self.records.len() as i64
    }

    pub fn get(&self, offset: i64) -> Option<Record> {
        self.records.get(usize::try_from(offset - self.start).ok()?).copied()
    }

    pub fn read(&self, from: i64, max: usize) -> Vec<Record> {
        let from = usize::try_from(from - self.start).expect("a read from the log's start on");
        self.records[from..].iter().take(max).copied().collect()
    }

    pub fn last_epoch(&self) -> i32 {
        self.epochs.last().map_or(-1, |(epoch, _)| *epoch)
    }

    pub fn begin_epoch(&mut self, epoch: i32) {
        assert!(
            epoch > self.last_epoch(),
            "a leader's epoch {epoch} is not newer than its log's {}",
            self.last_epoch()
        );
        self.assign(epoch, self.end());
    }

    pub fn append(&mut self, record: Record) {
        if let Some(last) = self.records.last() {
            assert!(last.epoch <= record.epoch, "epochs only grow along a log: {record:?} behind {last:?}");
        }
        self.assign(record.epoch, self.end());
        self.records.push(record);
    }

    pub fn truncate(&mut self, to: i64) {
        if to < self.start {
            self.start_over(to);
            return;
        }
        let to = to.min(self.end());
        self.records.truncate((to - self.start) as usize);
        self.epochs.retain(|(_, start)| *start < to);
        self.synced = self.synced.min(to);
    }

    pub fn start_over(&mut self, at: i64) {
        *self = Self { start: at, synced: at, ..Self::default() };
    }

    pub fn advance_start(&mut self, start: i64) {
        let start = start.min(self.end());
        if start <= self.start {
            return;
        }
        self.records.drain(..(start - self.start) as usize);
        self.start = start;
        self.synced = self.synced.max(start);
        let later = self.epochs.partition_point(|(_, begins)| *begins <= start);
        if later > 0 {
            self.epochs.drain(..later - 1);
            self.epochs[0].1 = start;
        }
    }

    pub fn sync(&mut self, end: i64) {
        self.synced = self.synced.max(end.min(self.end()));
    }

    /// The power fails: what was not synced is lost, from some point on.
    pub fn lose(&mut self, keep: impl Fn(u64) -> u64) -> i64 {
        let unsynced = (self.end() - self.synced) as u64;
        let end = self.synced + keep(unsynced + 1) as i64;
        let lost = self.end() - end;
        self.truncate(end);
        lost
    }

    fn assign(&mut self, epoch: i32, start: i64) {
        if epoch != self.last_epoch() {
            self.epochs.retain(|(known, begins)| *known < epoch && *begins < start);
            self.epochs.push((epoch, start));
        }
    }
}

impl FollowerLog for Log {
    fn position(&self) -> LogPosition {
        LogPosition { start: Offset(self.start), end: Offset(self.end()), last_epoch: LeaderEpoch(self.last_epoch()) }
    }

    fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<EpochEnd> {
        let requested = epoch.value();
        if self.epochs.is_empty() || requested > self.last_epoch() {
            return None;
        }
        let later = self.epochs.partition_point(|(known, _)| *known <= requested);
        let end = self.epochs.get(later).map_or(self.end(), |(_, start)| *start);
        let floor = later.checked_sub(1).map_or(requested, |floor| self.epochs[floor].0);
        Some(EpochEnd { epoch: LeaderEpoch(floor), end: Offset(end) })
    }
}
