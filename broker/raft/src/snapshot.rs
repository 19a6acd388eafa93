//! `.checkpoint` files as bytes: snapshots of the metadata log (KIP-630), and the files of the same form that formatting writes.
//!
//! A snapshot is a control batch with a header (and, from `kraft.version` 1 on, version and voters), batches of framed metadata
//! records, and a control batch with a footer. Its offsets count from 0 and mean nothing outside.

use bytes::Bytes;
use gregor_state_records::control::{KRaftVersionRecord, SnapshotFooterRecord, SnapshotHeaderRecord, VotersRecord};
use gregor_types::{LeaderEpoch, Offset, Timestamp};
use gregor_wire::batch::{BatchOptions, RecordBatchBuilder};

use crate::{
    Batch, ControlRecord, SnapshotId, VoterSet,
    control::{Content, ControlError, Entry, read_batches},
};

/// A data batch of a snapshot is closed at this size: large enough to be few, small enough not to be held twice.
const BATCH_BYTES: usize = 512 * 1024;
/// And at this number of records.
const BATCH_RECORDS: i32 = 10_000;
/// The suffix of a complete snapshot.
const SUFFIX: &str = ".checkpoint";

/// Why a file is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Its batches are broken.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// It does not begin as a snapshot does.
    #[error("the snapshot has no header: it is not a snapshot, or its start was lost")]
    NoHeader,
    /// It does not end as a snapshot does.
    #[error("the snapshot has no footer at its end: it was not written to the end, or was cut off")]
    NoFooter,
}

/// Writes a snapshot, a batch at a time.
#[derive(Debug)]
pub struct SnapshotWriter {
    epoch: LeaderEpoch,
    now: Timestamp,
    next: Offset,
    open: RecordBatchBuilder,
    done: Vec<Bytes>,
}

impl SnapshotWriter {
    /// Starts a snapshot of the epoch of its id. `last_contained` is the time of the newest record that it stands for. `quorum` is
    /// `kraft.version` and the voters, where the version is 1 or more; formatting alone writes a version 0.
    pub fn new(
        epoch: LeaderEpoch,
        last_contained: Timestamp,
        now: Timestamp,
        quorum: Option<(i16, &VoterSet)>,
    ) -> Self {
        let mut records = vec![ControlRecord::SnapshotHeader(SnapshotHeaderRecord {
            version: 0,
            last_contained_log_timestamp: last_contained.value(),
            ..Default::default()
        })];
        if let Some((version, voters)) = quorum {
            records.push(ControlRecord::KRaftVersion(KRaftVersionRecord {
                version: 0,
                k_raft_version: version,
                ..Default::default()
            }));
            records.push(ControlRecord::Voters(VotersRecord::from(voters)));
        }
        let next = Offset(records.len() as i64);
        let header = Batch::Control(records).encode(Offset::ZERO, epoch, now);
        Self { epoch, now, next, open: open_batch(next, epoch), done: vec![header] }
    }

    /// Adds a framed metadata record.
    pub fn append(&mut self, record: &[u8]) {
        if self.open.size() + record.len() > BATCH_BYTES || self.open.records_count() >= BATCH_RECORDS {
            self.close_batch();
        }
        self.open.append(self.now, None, Some(record), &[]);
        self.next = self.next.plus(1);
    }

    /// Takes the batches that are complete, to write them out before the rest is made.
    pub fn take(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.done)
    }

    /// Ends the snapshot and returns the batches that were not taken yet.
    pub fn finish(mut self) -> Vec<Bytes> {
        self.close_batch();
        let footer = Batch::Control(vec![ControlRecord::SnapshotFooter(SnapshotFooterRecord::default())]);
        self.done.push(footer.encode(self.next, self.epoch, self.now));
        self.done
    }

    fn close_batch(&mut self) {
        if !self.open.is_empty() {
            let full = std::mem::replace(&mut self.open, open_batch(self.next, self.epoch));
            self.done.push(full.build());
        }
    }
}

fn open_batch(base_offset: Offset, leader_epoch: LeaderEpoch) -> RecordBatchBuilder {
    RecordBatchBuilder::new(BatchOptions { base_offset, leader_epoch, ..BatchOptions::default() })
}

/// Reads a whole snapshot: calls `each` with its records between header and footer. Returns the header.
pub fn read<E: From<SnapshotError>>(
    bytes: &Bytes,
    mut each: impl FnMut(Content) -> Result<(), E>,
) -> Result<SnapshotHeaderRecord, E> {
    let mut header = None;
    let mut footer = false;
    let read = read_batches(bytes, |Entry { content, .. }| {
        match content {
            Content::Control(ControlRecord::SnapshotHeader(record)) if header.is_none() => header = Some(record),
            _ if header.is_none() || footer => return Err(Failure::Shape),
            Content::Control(ControlRecord::SnapshotFooter(_)) => footer = true,
            content => each(content).map_err(Failure::Caller)?,
        }
        Ok(())
    });
    let read = match read {
        Ok(read) => read,
        Err(Failure::Caller(error)) => return Err(error),
        Err(Failure::Batches(error)) => return Err(SnapshotError::Control(error).into()),
        Err(Failure::Shape) => {
            return Err(if footer { SnapshotError::NoFooter } else { SnapshotError::NoHeader }.into());
        }
    };
    let header = header.ok_or(SnapshotError::NoHeader)?;
    if !footer || read != bytes.len() {
        return Err(SnapshotError::NoFooter.into());
    }
    Ok(header)
}

/// The time of the newest record that a snapshot stands for, from its first batch alone.
pub fn last_contained(head: &Bytes) -> Result<Timestamp, SnapshotError> {
    let mut found = None;
    let read = read_batches::<Failure<()>>(head, |entry| {
        if let Content::Control(ControlRecord::SnapshotHeader(header)) = entry.content {
            found = Some(Timestamp(header.last_contained_log_timestamp));
        }
        Err(Failure::Shape)
    });
    match (found, read) {
        (Some(time), _) => Ok(time),
        (None, Err(Failure::Batches(error))) => Err(error.into()),
        (None, _) => Err(SnapshotError::NoHeader),
    }
}

enum Failure<E> {
    Batches(ControlError),
    Shape,
    Caller(E),
}

impl<E> From<ControlError> for Failure<E> {
    fn from(error: ControlError) -> Self {
        Self::Batches(error)
    }
}

/// The name of a snapshot's file.
pub fn file_name(id: SnapshotId) -> String {
    format!("{:020}-{:010}{SUFFIX}", id.offset.value(), id.epoch.value())
}

/// The snapshot whose complete file has this name.
pub fn parse_file_name(name: &str) -> Option<SnapshotId> {
    let (offset, epoch) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    let digits = |text: &str, length: usize| text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(offset, 20) || !digits(epoch, 10) {
        return None;
    }
    Some(SnapshotId::new(Offset(offset.parse().ok()?), LeaderEpoch(epoch.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use gregor_types::{BrokerId, Uuid};

    use super::*;
    use crate::{Endpoint, ReplicaKey, Voter};

    fn voters() -> VoterSet {
        VoterSet::new([Voter {
            key: ReplicaKey::new(BrokerId(1), "aJ1wnXWNSda2GQ5ekap1FA".parse().unwrap()),
            endpoints: vec![Endpoint { name: "CONTROLLER".into(), host: "127.0.0.1".into(), port: 29093 }],
            kraft_versions: (0, 1),
        }])
    }

    fn read_all(bytes: &Bytes) -> Result<Vec<Content>, SnapshotError> {
        let mut contents = Vec::new();
        read(bytes, |content| {
            contents.push(content);
            Ok::<_, SnapshotError>(())
        })?;
        Ok(contents)
    }

    /// The header batch of the checkpoint with which Apache Kafka 4.4.0 formatted a dynamic quorum. Apache stamps each record with
    /// the time of its making; here all have the batch's, so the two times and the checksum differ and are left out.
    #[test]
    fn the_header_batch_of_a_dynamic_quorum_has_apaches_layout() {
        let writer = SnapshotWriter::new(LeaderEpoch(0), Timestamp(0), Timestamp(5), Some((1, &voters())));
        let header = writer.finish().remove(0);
        assert_eq!(header.len(), 12 + 0x9a, "the size of Apache's header batch");
        let voters_record = b"\x0bCONTROLLER\x0a127.0.0.1\x71\xa5\x00\x00\x00\x00\x01\x00\x00\x00\x00";
        assert!(header.ends_with(voters_record), "{header:?}");
    }

    #[test]
    fn a_snapshot_reads_back_in_order_across_batches() {
        let mut writer = SnapshotWriter::new(LeaderEpoch(3), Timestamp(1), Timestamp(2), Some((1, &voters())));
        let records: Vec<Bytes> = (0..25_000u32).map(|number| Bytes::copy_from_slice(&number.to_be_bytes())).collect();
        for record in &records {
            writer.append(record);
        }
        let bytes = Bytes::from(writer.finish().concat());
        let contents = read_all(&bytes).unwrap();
        assert!(
            matches!(&contents[1], Content::Control(ControlRecord::Voters(record)) if VoterSet::from(record) == voters())
        );
        let data: Vec<Bytes> = contents
            .into_iter()
            .filter_map(|content| if let Content::Data(bytes) = content { Some(bytes) } else { None })
            .collect();
        assert_eq!(data, records);
    }

    #[test]
    fn a_snapshot_that_was_cut_off_anywhere_is_refused() {
        let mut writer = SnapshotWriter::new(LeaderEpoch(3), Timestamp(1), Timestamp(2), None);
        writer.append(b"some record");
        let whole = Bytes::from(writer.finish().concat());
        assert!(read_all(&whole).is_ok());
        for length in 0..whole.len() {
            assert!(read_all(&whole.slice(..length)).is_err(), "{length} of {} bytes", whole.len());
        }
        let twice = Bytes::from([&whole[..], &whole[..]].concat());
        assert!(read_all(&twice).is_err());
    }

    #[test]
    fn file_names_are_kafkas() {
        let id = SnapshotId::new(Offset(1234), LeaderEpoch(5));
        assert_eq!(file_name(id), "00000000000000001234-0000000005.checkpoint");
        assert_eq!(parse_file_name(&file_name(id)), Some(id));
        for other in ["bootstrap.checkpoint", "00000000000000001234-0000000005.checkpoint.part", "1-1.checkpoint", "x"]
        {
            assert_eq!(parse_file_name(other), None, "{other}");
        }
        assert_eq!(Uuid::ZERO, ReplicaKey::new(BrokerId(1), Uuid::ZERO).directory_or_zero());
    }
}
