//! The log of one node of a cluster under test, with its snapshots, on a disk that forgets what was not synced.

use std::collections::BTreeMap;

use bytes::Bytes;
use gregor_raft::{
    ControlRecord, LogView, OffsetAndEpoch, SnapshotId, VoterHistory,
    control::{Content, ControlError, read_batches},
    snapshot::{self, SnapshotError, SnapshotWriter},
};
use gregor_types::{LeaderEpoch, Offset, Timestamp};
use gregor_wire::batch::split_batches;

/// A batch of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub base: i64,
    pub end: i64,
    pub epoch: LeaderEpoch,
    pub bytes: Bytes,
}

impl Stored {
    /// What a snapshot says of a batch that it stands for, so that a test can tell what it stands for.
    fn summary(&self) -> [u8; 20] {
        let mut summary = [0; 20];
        summary[..8].copy_from_slice(&self.base.to_be_bytes());
        summary[8..16].copy_from_slice(&self.end.to_be_bytes());
        summary[16..].copy_from_slice(&self.epoch.value().to_be_bytes());
        summary
    }
}

#[derive(Debug, Clone)]
pub struct Log {
    /// Where the log starts: the end of a snapshot.
    pub start: SnapshotId,
    pub batches: Vec<Stored>,
    /// Up to where it is on the disk.
    pub durable: i64,
    /// Complete snapshots, all on the disk.
    snapshots: BTreeMap<i64, (SnapshotId, Bytes)>,
    /// A snapshot that is being received.
    part: Option<(SnapshotId, Vec<u8>)>,
}

impl Default for Log {
    fn default() -> Self {
        Self { start: SnapshotId::BOOTSTRAP, batches: Vec::new(), durable: 0, snapshots: BTreeMap::new(), part: None }
    }
}

impl Log {
    pub fn end_offset(&self) -> i64 {
        self.batches.last().map_or(self.start.offset.value(), |batch| batch.end)
    }

    pub fn append(&mut self, base: Offset, bytes: &Bytes) {
        assert_eq!(base.value(), self.end_offset(), "an append lands at the end");
        let mut rest = bytes.clone();
        for batch in split_batches(bytes) {
            let batch = batch.expect("a whole batch");
            let stored = Stored {
                base: batch.base_offset.value(),
                end: batch.next_offset().value(),
                epoch: batch.leader_epoch,
                bytes: rest.split_to(batch.size as usize),
            };
            assert_eq!(stored.base, self.end_offset(), "batches follow each other");
            self.batches.push(stored);
        }
    }

    pub fn read(&self, from: Offset, max_bytes: u32) -> Bytes {
        assert!(from >= self.start.offset, "nobody is served what is cut off");
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

    /// Writes a snapshot of what is committed, of which `committed` are the batches, and says which.
    pub fn make_snapshot<'a>(
        &mut self,
        high_watermark: Offset,
        history: &VoterHistory,
        committed: impl Iterator<Item = &'a Stored>,
    ) -> Option<SnapshotId> {
        let last = self.batches.iter().rfind(|batch| batch.end <= high_watermark.value())?;
        let id = OffsetAndEpoch::new(Offset(last.end), last.epoch);
        let (version, voters) = history.at(id.offset);
        let mut writer =
            SnapshotWriter::new(id.epoch, Timestamp(0), Timestamp(0), (version >= 1).then_some((version, voters)));
        for batch in committed.take_while(|batch| batch.end <= last.end) {
            writer.append(&batch.summary());
        }
        self.snapshots.insert(id.offset.value(), (id, Bytes::from(writer.finish().concat())));
        Some(id)
    }

    /// Cuts off the log's head up to the newest snapshot, and deletes all others.
    pub fn clean(&mut self) {
        let Some((_, (newest, bytes))) = self.snapshots.pop_last() else { return };
        if newest.offset.value() > self.end_offset() {
            return;
        }
        self.snapshots = BTreeMap::from([(newest.offset.value(), (newest, bytes))]);
        self.batches.retain(|batch| batch.base >= newest.offset.value());
        self.start = newest;
    }

    pub fn snapshot_bytes(&self, id: SnapshotId, position: u64, max_bytes: u32) -> Bytes {
        let (_, bytes) = &self.snapshots[&id.offset.value()];
        let position = position as usize;
        bytes.slice(position..bytes.len().min(position + max_bytes as usize))
    }

    pub fn add_piece(&mut self, id: SnapshotId, position: u64, bytes: &[u8]) {
        if position == 0 {
            self.part = Some((id, Vec::new()));
        }
        let (part, received) = self.part.as_mut().expect("a first piece came before");
        assert_eq!((*part, received.len() as u64), (id, position), "pieces follow each other");
        received.extend_from_slice(bytes);
    }

    /// Gives the snapshot that was received its name, if it is one.
    pub fn complete_part(&mut self, id: SnapshotId) -> Option<Vec<ControlRecord>> {
        let (part, received) = self.part.take().expect("a snapshot was received");
        assert_eq!(part, id, "one snapshot at a time");
        let bytes = Bytes::from(received);
        let control = control_records(&bytes).ok()?;
        self.snapshots.insert(id.offset.value(), (id, bytes));
        Some(control)
    }

    /// Begins anew behind a snapshot.
    pub fn install(&mut self, id: SnapshotId) {
        assert!(self.snapshots.contains_key(&id.offset.value()), "the snapshot is complete");
        self.batches.clear();
        self.start = id;
        self.durable = id.offset.value();
        self.snapshots.retain(|offset, _| *offset >= id.offset.value());
    }

    /// What is on the disk after a crash: of what was not synced, the first `lucky` batches.
    pub fn crash(&mut self, lucky: usize) {
        let synced = self.batches.iter().filter(|batch| batch.end <= self.durable).count();
        self.batches.truncate(synced + lucky);
        self.durable = self.end_offset();
        self.part = None;
        if let Some(newest) = self.latest_snapshot().filter(|newest| !newest.is_end_in(self)) {
            self.install(newest);
        }
    }

    pub fn volatile_batches(&self) -> usize {
        self.batches.iter().filter(|batch| batch.end > self.durable).count()
    }

    /// Reads the voters and versions out of the snapshot that the log starts with, and out of the log.
    pub fn replay(&self, history: &mut VoterHistory) {
        if let Some((id, bytes)) = self.snapshots.get(&self.start.offset.value()) {
            history.load_snapshot(*id, &control_records(bytes).unwrap());
        }
        for batch in &self.batches {
            read_batches::<ControlError>(&batch.bytes, |entry| {
                if let Content::Control(control) = entry.content {
                    history.replay(entry.offset, &control);
                }
                Ok(())
            })
            .unwrap();
        }
    }

    /// Whether the snapshot that the log starts with stands for exactly these batches.
    pub fn check_start<'a>(&self, committed: impl Iterator<Item = &'a Stored>) {
        let Some((id, bytes)) = self.snapshots.get(&self.start.offset.value()) else { return };
        assert_eq!(*id, self.start);
        let mut said = Vec::new();
        snapshot::read::<SnapshotError>(bytes, |content| {
            if let Content::Data(data) = content {
                said.push(data);
            }
            Ok(())
        })
        .unwrap();
        let meant: Vec<_> = committed
            .take_while(|batch| batch.end <= id.offset.value())
            .map(|batch| Bytes::copy_from_slice(&batch.summary()))
            .collect();
        assert_eq!(said, meant, "the snapshot {id:?} is what was committed up to there");
    }
}

fn control_records(bytes: &Bytes) -> Result<Vec<ControlRecord>, SnapshotError> {
    let mut control = Vec::new();
    snapshot::read::<SnapshotError>(bytes, |content| {
        if let Content::Control(record) = content {
            control.push(record);
        }
        Ok(())
    })?;
    Ok(control)
}

impl LogView for Log {
    fn end(&self) -> OffsetAndEpoch {
        let epoch = self.batches.last().map_or(self.start.epoch, |batch| batch.epoch);
        OffsetAndEpoch::new(Offset(self.end_offset()), epoch)
    }
    fn start(&self) -> Offset {
        self.start.offset
    }
    fn end_of_epoch(&self, epoch: LeaderEpoch) -> OffsetAndEpoch {
        if let Some(last) = self.batches.iter().rev().find(|batch| batch.epoch <= epoch) {
            return OffsetAndEpoch::new(Offset(last.end), last.epoch);
        }
        if self.start.epoch <= epoch { self.start } else { OffsetAndEpoch::BOOTSTRAP }
    }
    fn latest_snapshot(&self) -> Option<SnapshotId> {
        self.snapshots.values().next_back().map(|(id, _)| *id)
    }
    fn earliest_snapshot(&self) -> Option<SnapshotId> {
        self.snapshots.values().next().map(|(id, _)| *id)
    }
    fn snapshot_size(&self, id: SnapshotId) -> Option<u64> {
        self.snapshots.get(&id.offset.value()).filter(|(known, _)| *known == id).map(|(_, bytes)| bytes.len() as u64)
    }
}
