//! Makes batches of magic 2: for coordinators, the metadata log, snapshots, our client, and produced batches that the
//! topic wants in another codec.

use bytes::Bytes;
use gregor_types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp};

use super::{
    BatchError, ControlRecordType, EndTransactionMarker, HEADER_BYTES_V2, OFFSET_AND_LENGTH_BYTES, TimestampType,
    crc32c,
    header::{
        ATTRIBUTES_AT, BASE_SEQUENCE_AT, BASE_TIMESTAMP_AT, CONTROL_BIT, CRC_AT, DELETE_HORIZON_BIT,
        LAST_OFFSET_DELTA_AT, LEADER_EPOCH_AT, MAX_TIMESTAMP_AT, PRODUCER_EPOCH_AT, PRODUCER_ID_AT, RECORDS_COUNT_AT,
        TIMESTAMP_TYPE_BIT, TRANSACTIONAL_BIT,
    },
    varint::{put_nullable_bytes, put_varint, put_varlong, varint_len, varlong_len},
};
use crate::compression::{Compression, CompressionType, compress};

/// What stands in a batch's header besides what its records give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// The offset of the first record; 0 where the leader gives offsets.
    pub base_offset: Offset,
    /// The leader's epoch; [`LeaderEpoch::NONE`] where the leader stamps it.
    pub leader_epoch: LeaderEpoch,
    /// Codec and level.
    pub compression: Compression,
    /// `Some` time of append: all records have this timestamp.
    pub log_append_time: Option<Timestamp>,
    /// The idempotent or transactional producer.
    pub producer: Option<ProducerStamp>,
    /// Whether the batch belongs to a transaction.
    pub transactional: bool,
    /// Whether the records are control records.
    pub control: bool,
}

/// A producer's mark on a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerStamp {
    /// The producer's id.
    pub id: ProducerId,
    /// Its epoch.
    pub epoch: ProducerEpoch,
    /// The first record's sequence number; -1 on a control batch.
    pub base_sequence: i32,
}

/// Collects records into one batch.
#[derive(Debug)]
pub struct RecordBatchBuilder {
    options: BatchOptions,
    /// Header (filled in last) and records, uncompressed.
    bytes: Vec<u8>,
    count: i32,
    pub(super) last_offset_delta: i32,
    base_timestamp: Timestamp,
    pub(super) max_timestamp: Timestamp,
    /// When the cleaner may remove tombstones or a marker; then it stands in place of the first record's timestamp.
    pub(super) delete_horizon: Option<Timestamp>,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            base_offset: Offset::ZERO,
            leader_epoch: LeaderEpoch::NONE,
            compression: Compression::default(),
            log_append_time: None,
            producer: None,
            transactional: false,
            control: false,
        }
    }
}

impl RecordBatchBuilder {
    /// An empty batch. A batch without records is refused by Kafka's readers: append at least one.
    pub fn new(options: BatchOptions) -> Self {
        Self {
            options,
            bytes: vec![0; HEADER_BYTES_V2],
            count: 0,
            last_offset_delta: -1,
            base_timestamp: Timestamp::NONE,
            max_timestamp: Timestamp::NONE,
            delete_horizon: None,
        }
    }

    /// A finished batch of control records, each a type and its value.
    pub fn control_batch<'v>(
        base_offset: Offset,
        leader_epoch: LeaderEpoch,
        timestamp: Timestamp,
        records: impl IntoIterator<Item = (ControlRecordType, &'v [u8])>,
    ) -> Bytes {
        let mut builder =
            Self::new(BatchOptions { base_offset, leader_epoch, control: true, ..BatchOptions::default() });
        for (kind, value) in records {
            builder.append(timestamp, Some(&kind.key()), Some(value), &[]);
        }
        builder.build()
    }

    /// A finished batch that ends a producer's transaction.
    pub fn end_transaction_marker(
        marker: EndTransactionMarker,
        id: ProducerId,
        epoch: ProducerEpoch,
        timestamp: Timestamp,
    ) -> Bytes {
        let mut builder = Self::new(BatchOptions {
            producer: Some(ProducerStamp { id, epoch, base_sequence: -1 }),
            transactional: true,
            control: true,
            ..BatchOptions::default()
        });
        builder.append(timestamp, Some(&marker.kind().key()), Some(&marker.value()), &[]);
        builder.build()
    }

    /// Appends a record behind the last one and returns its offset.
    pub fn append(
        &mut self,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> Offset {
        let headers = headers.iter().map(|(key, value)| (key.as_bytes(), *value));
        self.append_delta(self.last_offset_delta + 1, timestamp, key, value, headers)
    }

    pub(super) fn append_delta<'h>(
        &mut self,
        offset_delta: i32,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl ExactSizeIterator<Item = (&'h [u8], Option<&'h [u8]>)> + Clone,
    ) -> Offset {
        if self.count == 0 {
            self.base_timestamp = self.delete_horizon.unwrap_or(timestamp);
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.count += 1;
        self.last_offset_delta = offset_delta;
        let timestamp_delta = timestamp.since(self.base_timestamp);
        let nullable_len = |bytes: Option<&[u8]>| bytes.map_or(1, |bytes| varint_len(bytes.len() as i32) + bytes.len());
        let headers_len: usize =
            headers.clone().map(|(key, value)| nullable_len(Some(key)) + nullable_len(value)).sum();
        let len = 1
            + varlong_len(timestamp_delta)
            + varint_len(offset_delta)
            + nullable_len(key)
            + nullable_len(value)
            + varint_len(headers.len() as i32)
            + headers_len;
        let output = &mut self.bytes;
        put_varint(len as i32, output);
        output.push(0); // attributes, none of which is defined
        put_varlong(timestamp_delta, output);
        put_varint(offset_delta, output);
        put_nullable_bytes(key, output);
        put_nullable_bytes(value, output);
        put_varint(headers.len() as i32, output);
        for (key, value) in headers {
            put_nullable_bytes(Some(key), output);
            put_nullable_bytes(value, output);
        }
        self.options.base_offset.plus(offset_delta.into())
    }

    /// How many records there are.
    pub const fn records_count(&self) -> i32 {
        self.count
    }

    /// The batch's size if it were not compressed, in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no record was appended.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The finished batch.
    pub fn build(self) -> Bytes {
        self.try_build().expect("codecs write to memory and take every level that is in their range")
    }

    /// The finished batch; an error where the codec refuses its level.
    pub fn try_build(mut self) -> Result<Bytes, BatchError> {
        if self.options.compression.kind != CompressionType::None {
            let mut packed = Vec::with_capacity(HEADER_BYTES_V2 + self.bytes.len() / 2);
            packed.resize(HEADER_BYTES_V2, 0);
            compress(self.options.compression, &self.bytes[HEADER_BYTES_V2..], &mut packed)?;
            self.bytes = packed;
        }
        self.fill_header();
        Ok(self.bytes.into())
    }

    fn fill_header(&mut self) {
        let options = self.options;
        let mut attributes = options.compression.kind.id();
        if options.log_append_time.is_some() {
            attributes |= TIMESTAMP_TYPE_BIT;
        }
        if options.transactional {
            attributes |= TRANSACTIONAL_BIT;
        }
        if options.control {
            attributes |= CONTROL_BIT;
        }
        if self.delete_horizon.is_some() {
            attributes |= DELETE_HORIZON_BIT;
        }
        let max_timestamp = options.log_append_time.unwrap_or(self.max_timestamp);
        let producer = options.producer.unwrap_or(ProducerStamp {
            id: ProducerId::NONE,
            epoch: ProducerEpoch::NONE,
            base_sequence: -1,
        });
        let length = (self.bytes.len() - OFFSET_AND_LENGTH_BYTES) as i32;
        let mut put = |at: usize, field: &[u8]| self.bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &options.base_offset.0.to_be_bytes());
        put(8, &length.to_be_bytes());
        put(LEADER_EPOCH_AT, &options.leader_epoch.0.to_be_bytes());
        put(LEADER_EPOCH_AT + 4, &[2]);
        put(ATTRIBUTES_AT, &attributes.to_be_bytes());
        put(LAST_OFFSET_DELTA_AT, &self.last_offset_delta.max(0).to_be_bytes());
        put(BASE_TIMESTAMP_AT, &self.base_timestamp.0.to_be_bytes());
        put(MAX_TIMESTAMP_AT, &max_timestamp.0.to_be_bytes());
        put(PRODUCER_ID_AT, &producer.id.0.to_be_bytes());
        put(PRODUCER_EPOCH_AT, &producer.epoch.0.to_be_bytes());
        put(BASE_SEQUENCE_AT, &producer.base_sequence.to_be_bytes());
        put(RECORDS_COUNT_AT, &self.count.to_be_bytes());
        let crc = crc32c(&self.bytes[ATTRIBUTES_AT..]);
        self.bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    }
}

impl TimestampType {
    /// Kafka's name, as `message.timestamp.type` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CreateTime => "CreateTime",
            Self::LogAppendTime => "LogAppendTime",
        }
    }
}
