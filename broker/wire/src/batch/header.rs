//! A batch's header, of any magic, and a view of a whole batch in place.

use std::ops::Deref;

use gregor_types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp};

use super::{BatchChecksum, BatchError, Records, TimestampType};
use crate::compression::{CompressionError, CompressionType};

/// Base offset and length, which every batch of every magic starts with; the length counts what follows it.
pub const OFFSET_AND_LENGTH_BYTES: usize = 12;
/// The header of a batch of magic 2.
pub const HEADER_BYTES_V2: usize = 61;
/// The smallest batch there is: an empty message of magic 0. With so many bytes, a header's size and magic can be read.
pub const SMALLEST_HEADER_BYTES: usize = 26;

pub(super) const LEADER_EPOCH_AT: usize = 12;
const MAGIC_AT: usize = 16;
pub(super) const CRC_AT: usize = 17;
pub(super) const ATTRIBUTES_AT: usize = 21;
pub(super) const LAST_OFFSET_DELTA_AT: usize = 23;
pub(super) const BASE_TIMESTAMP_AT: usize = 27;
pub(super) const MAX_TIMESTAMP_AT: usize = 35;
pub(super) const PRODUCER_ID_AT: usize = 43;
pub(super) const PRODUCER_EPOCH_AT: usize = 51;
pub(super) const BASE_SEQUENCE_AT: usize = 53;
pub(super) const RECORDS_COUNT_AT: usize = 57;

pub(super) const LEGACY_CRC_AT: usize = 12;
pub(super) const LEGACY_ATTRIBUTES_AT: usize = 17;
pub(super) const LEGACY_TIMESTAMP_AT: usize = 18;
const LEGACY_HEADER_BYTES_V1: usize = 34;

pub(super) const TIMESTAMP_TYPE_BIT: i16 = 1 << 3;
pub(super) const TRANSACTIONAL_BIT: i16 = 1 << 4;
pub(super) const CONTROL_BIT: i16 = 1 << 5;
pub(super) const DELETE_HORIZON_BIT: i16 = 1 << 6;

/// The fields of a batch's header. For a message of magic 0 or 1, which is a batch of its own, what it lacks is
/// Kafka's "none", and base and last offset are both the message's offset: of a compressed wrapper, its last record's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// The offset of the first record.
    pub base_offset: Offset,
    /// All of the batch, from its base offset field to its end, in bytes.
    pub size: u32,
    /// The epoch of the leader that appended it.
    pub leader_epoch: LeaderEpoch,
    /// The format: 2 since Kafka 0.11.
    pub magic: i8,
    /// The checksum as stored.
    pub crc: u32,
    /// Codec, timestamp type, transactional, control and delete-horizon bits.
    pub attributes: i16,
    /// The last record's offset less the base offset.
    pub last_offset_delta: i32,
    /// What the records' timestamps are relative to; the delete horizon, if that bit is set.
    pub base_timestamp: Timestamp,
    /// The largest timestamp of the records, or the append time.
    pub max_timestamp: Timestamp,
    /// The idempotent producer, if any.
    pub producer_id: ProducerId,
    /// That producer's epoch.
    pub producer_epoch: ProducerEpoch,
    /// The sequence number of the first record; -1 without one.
    pub base_sequence: i32,
    /// How many records there are; 0 after cleaning took them all; -1 where only the records know (magic 0 and 1).
    pub records_count: i32,
}

/// One whole batch, in place. Dereferences to its [`BatchHeader`].
#[derive(Debug, Clone, Copy)]
pub struct BatchView<'a> {
    bytes: &'a [u8],
    header: BatchHeader,
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`, which may end before the batch does. `Truncated` says how many bytes
    /// the header needs.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let truncated = |needed| BatchError::Truncated { needed, available: bytes.len() };
        if bytes.len() <= MAGIC_AT {
            return Err(truncated(MAGIC_AT + 1));
        }
        let magic = bytes[MAGIC_AT] as i8;
        let header_bytes = match magic {
            0 => SMALLEST_HEADER_BYTES,
            1 => LEGACY_HEADER_BYTES_V1,
            2 => HEADER_BYTES_V2,
            other => return Err(BatchError::UnknownMagic(other)),
        };
        let base_offset = i64_at(bytes, 0);
        let size = i64::from(i32_at(bytes, 8)) + OFFSET_AND_LENGTH_BYTES as i64;
        if size < header_bytes as i64 {
            return Err(BatchError::TooSmall { base_offset, size });
        }
        if bytes.len() < header_bytes {
            return Err(truncated(header_bytes));
        }
        let header = if magic == 2 { Self::v2(bytes, size as u32) } else { Self::legacy(bytes, size as u32, magic) };
        if base_offset < 0
            || header.last_offset_delta < 0
            || base_offset.checked_add(header.last_offset_delta.into()).is_none()
        {
            return Err(BatchError::InconsistentHeader("its offsets are negative"));
        }
        Ok(header)
    }

    fn v2(bytes: &[u8], size: u32) -> Self {
        Self {
            base_offset: Offset(i64_at(bytes, 0)),
            size,
            leader_epoch: LeaderEpoch(i32_at(bytes, LEADER_EPOCH_AT)),
            magic: 2,
            crc: i32_at(bytes, CRC_AT) as u32,
            attributes: i16_at(bytes, ATTRIBUTES_AT),
            last_offset_delta: i32_at(bytes, LAST_OFFSET_DELTA_AT),
            base_timestamp: Timestamp(i64_at(bytes, BASE_TIMESTAMP_AT)),
            max_timestamp: Timestamp(i64_at(bytes, MAX_TIMESTAMP_AT)),
            producer_id: ProducerId(i64_at(bytes, PRODUCER_ID_AT)),
            producer_epoch: ProducerEpoch(i16_at(bytes, PRODUCER_EPOCH_AT)),
            base_sequence: i32_at(bytes, BASE_SEQUENCE_AT),
            records_count: i32_at(bytes, RECORDS_COUNT_AT),
        }
    }

    fn legacy(bytes: &[u8], size: u32, magic: i8) -> Self {
        let timestamp = if magic == 1 { Timestamp(i64_at(bytes, LEGACY_TIMESTAMP_AT)) } else { Timestamp::NONE };
        Self {
            base_offset: Offset(i64_at(bytes, 0)),
            size,
            leader_epoch: LeaderEpoch::NONE,
            magic,
            crc: i32_at(bytes, LEGACY_CRC_AT) as u32,
            // Only codec and timestamp type exist there.
            attributes: i16::from(bytes[LEGACY_ATTRIBUTES_AT]) & 0x0f,
            last_offset_delta: 0,
            base_timestamp: timestamp,
            max_timestamp: timestamp,
            producer_id: ProducerId::NONE,
            producer_epoch: ProducerEpoch::NONE,
            base_sequence: -1,
            records_count: -1,
        }
    }

    /// The offset of the last record.
    pub const fn last_offset(&self) -> Offset {
        Offset(self.base_offset.0 + self.last_offset_delta as i64)
    }

    /// The offset that follows the batch.
    pub const fn next_offset(&self) -> Offset {
        Offset(self.last_offset().0 + 1)
    }

    /// The codec of the records.
    pub const fn compression(&self) -> Result<CompressionType, CompressionError> {
        CompressionType::from_attributes(self.attributes)
    }

    /// What the records' timestamps say.
    pub const fn timestamp_type(&self) -> TimestampType {
        if self.attributes & TIMESTAMP_TYPE_BIT == 0 { TimestampType::CreateTime } else { TimestampType::LogAppendTime }
    }

    /// Whether the batch belongs to a transaction.
    pub const fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL_BIT != 0
    }

    /// Whether the records are Kafka's own marks, which no consumer sees.
    pub const fn is_control(&self) -> bool {
        self.attributes & CONTROL_BIT != 0
    }

    /// When the cleaner may remove the batch's tombstones or marker, if it has set that time.
    pub const fn delete_horizon(&self) -> Option<Timestamp> {
        if self.magic >= 2 && self.attributes & DELETE_HORIZON_BIT != 0 { Some(self.base_timestamp) } else { None }
    }

    /// Whether an idempotent or transactional producer sent it.
    pub const fn has_producer_id(&self) -> bool {
        self.producer_id.0 > -1
    }

    /// The sequence number of the last record; -1 without one. Sequences go round at `i32::MAX`.
    pub const fn last_sequence(&self) -> i32 {
        if self.base_sequence < 0 {
            -1
        } else {
            (self.base_sequence as i64 + self.last_offset_delta as i64).rem_euclid(i32::MAX as i64 + 1) as i32
        }
    }

    /// Where, from the batch's start, the bytes begin over which its checksum goes.
    pub const fn checksummed_from(&self) -> usize {
        if self.magic >= 2 { ATTRIBUTES_AT } else { MAGIC_AT }
    }
}

impl<'a> BatchView<'a> {
    /// The batch at the start of `bytes`; what follows it is not looked at. The checksum is not checked yet.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        let size = header.size as usize;
        let bytes = bytes.get(..size).ok_or(BatchError::Truncated { needed: size, available: bytes.len() })?;
        Ok(Self { bytes, header })
    }

    /// The header's fields.
    pub const fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// What follows the header of a batch of magic 2: the records, compressed or not.
    pub fn body(&self) -> &'a [u8] {
        if self.header.magic >= 2 { &self.bytes[HEADER_BYTES_V2..] } else { self.bytes }
    }

    /// Checks the checksum over the bytes.
    pub fn check_crc(&self) -> Result<(), BatchError> {
        let mut checksum = BatchChecksum::new(self.header.magic);
        checksum.update(&self.bytes[self.header.checksummed_from()..]);
        let computed = checksum.finish();
        if computed == self.header.crc {
            Ok(())
        } else {
            Err(BatchError::Corrupt { base_offset: self.header.base_offset.0, stored: self.header.crc, computed })
        }
    }

    /// The records, decompressed if need be to at most `limit` bytes.
    pub fn records(&self, limit: usize) -> Result<Records<'a>, BatchError> {
        Records::new(self, limit)
    }
}

impl Deref for BatchView<'_> {
    type Target = BatchHeader;

    fn deref(&self) -> &BatchHeader {
        &self.header
    }
}

/// The whole batches in `bytes`, one after the other. Ends without an error where the last one is cut off, as a fetched
/// response's last batch may be; anything else that is not a batch is an error, the last item.
pub fn split_batches(bytes: &[u8]) -> impl Iterator<Item = Result<BatchView<'_>, BatchError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || match BatchView::parse(rest) {
        Ok(batch) => {
            rest = &rest[batch.size as usize..];
            Some(Ok(batch))
        }
        Err(BatchError::Truncated { .. }) => None,
        Err(error) => {
            rest = &[];
            Some(Err(error))
        }
    })
}

fn i16_at(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes(array_at(bytes, at))
}

pub(super) fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(array_at(bytes, at))
}

pub(super) fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a range of N bytes is an array of N")
}
