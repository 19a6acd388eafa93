//! Control records of the metadata log and of snapshots, and the batches of both as bytes.

use bytes::Bytes;
use gregor_state_records::control::{
    KRaftVersionRecord, LeaderChangeMessage, SnapshotFooterRecord, SnapshotHeaderRecord, VotersRecord,
    leader_change_message::Voter,
};
use gregor_types::{BrokerId, LeaderEpoch, Offset, Timestamp};
use gregor_wire::{
    DecodeError, Message, Reader,
    batch::{BatchError, BatchOptions, ControlRecordType, RecordBatchBuilder, split_batches},
    compression::CompressionType,
};

use crate::Batch;

/// A control record.
#[derive(Debug, Clone, PartialEq)]
pub enum ControlRecord {
    /// A leader's first record.
    LeaderChange(LeaderChangeMessage),
    /// A snapshot's first record.
    SnapshotHeader(SnapshotHeaderRecord),
    /// A snapshot's last record.
    SnapshotFooter(SnapshotFooterRecord),
    /// The finalized `kraft.version`.
    KRaftVersion(KRaftVersionRecord),
    /// The voters.
    Voters(VotersRecord),
    /// One that we need not understand: a transaction marker, or something of a later Kafka.
    Other(i16),
}

/// One record of a log or of a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its offset: in the log, or counted from 0 in a snapshot.
    pub offset: Offset,
    /// The epoch of its batch.
    pub epoch: LeaderEpoch,
    /// Its time.
    pub timestamp: Timestamp,
    /// What it is.
    pub content: Content,
}

/// What an [`Entry`] holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A control record.
    Control(ControlRecord),
    /// A framed metadata record.
    Data(Bytes),
}

/// Why bytes are no batches of the metadata log.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A batch is broken.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A control record is broken.
    #[error("the control record at offset {offset} is malformed: {error}")]
    Record {
        /// Where.
        offset: Offset,
        /// Why.
        error: DecodeError,
    },
    /// A record without a value.
    #[error("the record at offset {0} has no value")]
    NoValue(Offset),
}

/// Kafka reads and writes control records in version 0 alone (`ControlRecordUtils`), though LeaderChange has a version 1 in its schema.
const VERSION: i16 = 0;
/// What a compressed batch may grow to.
const DECOMPRESSED_MAX: usize = 64 * 1024 * 1024;

impl ControlRecord {
    /// The type that stands in the record's key.
    pub fn kind(&self) -> ControlRecordType {
        match self {
            Self::LeaderChange(_) => ControlRecordType::LeaderChange,
            Self::SnapshotHeader(_) => ControlRecordType::SnapshotHeader,
            Self::SnapshotFooter(_) => ControlRecordType::SnapshotFooter,
            Self::KRaftVersion(_) => ControlRecordType::KRaftVersion,
            Self::Voters(_) => ControlRecordType::KRaftVoters,
            Self::Other(kind) => ControlRecordType::Unknown(*kind),
        }
    }

    fn value(&self) -> Bytes {
        let value = match self {
            Self::LeaderChange(record) => record.to_bytes(VERSION),
            Self::SnapshotHeader(record) => record.to_bytes(VERSION),
            Self::SnapshotFooter(record) => record.to_bytes(VERSION),
            Self::KRaftVersion(record) => record.to_bytes(VERSION),
            Self::Voters(record) => record.to_bytes(VERSION),
            Self::Other(_) => Ok(Bytes::new()),
        };
        value.expect("version 0 has every field that this crate sets")
    }

    fn parse(kind: ControlRecordType, value: Bytes) -> Result<Self, DecodeError> {
        // A later version may have more behind what version 0 has, so the rest is not an error.
        let mut reader = Reader::new(value);
        Ok(match kind {
            ControlRecordType::LeaderChange => Self::LeaderChange(Message::decode(&mut reader, VERSION)?),
            ControlRecordType::SnapshotHeader => Self::SnapshotHeader(Message::decode(&mut reader, VERSION)?),
            ControlRecordType::SnapshotFooter => Self::SnapshotFooter(Message::decode(&mut reader, VERSION)?),
            ControlRecordType::KRaftVersion => Self::KRaftVersion(Message::decode(&mut reader, VERSION)?),
            ControlRecordType::KRaftVoters => Self::Voters(Message::decode(&mut reader, VERSION)?),
            other => Self::Other(other.id()),
        })
    }
}

impl Batch {
    /// The batch as it stands in the log.
    pub fn encode(&self, base: Offset, epoch: LeaderEpoch, timestamp: Timestamp) -> Bytes {
        let control = matches!(self, Self::Control(_));
        let mut builder = RecordBatchBuilder::new(BatchOptions {
            base_offset: base,
            leader_epoch: epoch,
            control,
            ..BatchOptions::default()
        });
        match self {
            Self::Control(records) => {
                for record in records {
                    builder.append(timestamp, Some(&record.kind().key()), Some(&record.value()), &[]);
                }
            }
            Self::Data(records) => {
                for record in records {
                    builder.append(timestamp, None, Some(record), &[]);
                }
            }
        }
        builder.build()
    }
}

/// The first record of an epoch: who leads, who votes, and who voted for the leader. In version 0 voters are ids without directories.
pub(crate) fn leader_change(
    leader: BrokerId,
    voters: impl IntoIterator<Item = BrokerId>,
    granting: impl IntoIterator<Item = BrokerId>,
) -> ControlRecord {
    let voter = |id: BrokerId| Voter { voter_id: id.value(), ..Default::default() };
    ControlRecord::LeaderChange(LeaderChangeMessage {
        version: VERSION,
        leader_id: leader.value(),
        voters: voters.into_iter().map(voter).collect(),
        granting_voters: granting.into_iter().map(voter).collect(),
        ..Default::default()
    })
}

/// Calls `each` with every record of the whole batches in `bytes`, in order, and checks their checksums. Returns how many bytes
/// they take; what is left is the head of a batch that was cut off.
pub fn read_batches<E: From<ControlError>>(
    bytes: &Bytes,
    mut each: impl FnMut(Entry) -> Result<(), E>,
) -> Result<usize, E> {
    let mut read = 0;
    for batch in split_batches(bytes) {
        let batch = batch.map_err(ControlError::from)?;
        batch.check_crc().map_err(ControlError::from)?;
        let in_place = matches!(batch.compression(), Ok(CompressionType::None));
        let records = batch.records(DECOMPRESSED_MAX).map_err(ControlError::from)?;
        for record in &records {
            let record = record.map_err(ControlError::from)?;
            let value = record.value.ok_or(ControlError::NoValue(record.offset))?;
            let value = if in_place { bytes.slice_ref(value) } else { Bytes::copy_from_slice(value) };
            let content = if batch.is_control() {
                let kind = record.key.and_then(ControlRecordType::from_key).unwrap_or(ControlRecordType::Unknown(-1));
                let parsed = ControlRecord::parse(kind, value);
                Content::Control(parsed.map_err(|error| ControlError::Record { offset: record.offset, error })?)
            } else {
                Content::Data(value)
            };
            each(Entry { offset: record.offset, epoch: batch.leader_epoch, timestamp: record.timestamp, content })?;
        }
        read += batch.size as usize;
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// What Apache Kafka 4.4.0 wrote as the first batch of a static quorum of one.
    const STATIC_EPOCH_START: &str = "0000000000000000 0000004f 00000001 02 2a773310 0020 00000000 000001a20785aa65 000001a20785aa65
        ffffffffffffffff ffff ffffffff 00000001 3a 00 00 00 08 00000002 26 0000 00000001 02 00000001 00 02 00000001 00 00 00";

    #[test]
    fn the_first_batch_of_an_epoch_is_apaches_byte_for_byte() {
        let one = BrokerId(1);
        let batch = Batch::Control(vec![leader_change(one, [one], [one])]);
        let bytes = batch.encode(Offset::ZERO, LeaderEpoch(1), Timestamp(0x01a2_0785_aa65));
        assert_eq!(bytes, hex(STATIC_EPOCH_START));
    }

    #[test]
    fn what_was_encoded_reads_back() {
        let batch = Batch::Control(vec![leader_change(BrokerId(3), [BrokerId(3), BrokerId(4)], [BrokerId(3)])]);
        let bytes = batch.encode(Offset(7), LeaderEpoch(2), Timestamp(9));
        let mut entries = Vec::new();
        let read = read_batches::<ControlError>(&bytes, |entry| {
            entries.push(entry);
            Ok(())
        });
        assert_eq!(read.unwrap(), bytes.len());
        let Batch::Control(mut records) = batch else { unreachable!() };
        let content = Content::Control(records.remove(0));
        assert_eq!(entries, [Entry { offset: Offset(7), epoch: LeaderEpoch(2), timestamp: Timestamp(9), content }]);
    }
}
