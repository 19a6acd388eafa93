//! Checks what a client produced, before any lock is taken, and readies it for the log.
//!
//! Called by the Produce handler with the bytes of one partition's records; the log then only patches offsets into the
//! header (`LogValidator` and `ProduceRequest.validateRecords` in Kafka, which do half of this under the partition's lock).

use std::borrow::Cow;

use gregor_types::{ErrorCode, LeaderEpoch, Offset, Timestamp};

use super::{
    BatchChecksum, BatchError, BatchHeader, BatchOptions, BatchView, HEADER_BYTES_V2, ProducerStamp,
    RecordBatchBuilder, RecordView, TimestampType,
    header::{ATTRIBUTES_AT, CRC_AT, LEADER_EPOCH_AT, MAX_TIMESTAMP_AT, TIMESTAMP_TYPE_BIT},
    records::iterate,
    survey::survey,
};
use crate::compression::{Compression, CompressionType, decompress};

/// What a topic asks of produced batches.
#[derive(Debug, Clone)]
pub struct ProduceRules {
    /// `max.message.bytes`: the largest batch, as it lies in the log.
    pub max_message_bytes: usize,
    /// `message.timestamp.type`.
    pub timestamp_type: TimestampType,
    /// `message.timestamp.before.max.ms`.
    pub timestamp_before_max_ms: i64,
    /// `message.timestamp.after.max.ms`.
    pub timestamp_after_max_ms: i64,
    /// Whether `cleanup.policy` holds `compact`: every record then needs a key.
    pub compacted: bool,
    /// `compression.type` and the codec's level.
    pub compression: TopicCompression,
    /// Whether the Produce version may carry zstd (7 and later).
    pub zstd_allowed: bool,
    /// The most that one batch may decompress to, in bytes.
    pub decompressed_bytes_max: usize,
}

/// `compression.type` of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TopicCompression {
    /// As the producer compressed it.
    #[default]
    Producer,
    /// Always so; other batches are compressed anew.
    Fixed(Compression),
}

/// One record that was refused, for the response's `RecordErrors` (KIP-467).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordError {
    /// The record's place in the batch, from 0.
    pub batch_index: i32,
    /// What is wrong with it.
    pub message: String,
}

/// Why a produced batch is refused. [`ProduceError::error_code`] is what the client is told.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    /// No batch in the request.
    #[error("a produce request must carry exactly one record batch for each partition; this one carries none")]
    NoBatch,
    /// More bytes after the first batch.
    #[error("a produce request must carry exactly one record batch for each partition; this one carries more")]
    MoreThanOneBatch,
    /// An old message format.
    #[error("a produce request must carry a record batch of magic 2, not {0}")]
    OldMagic(i8),
    /// Not a batch, or not the bytes that the client sent.
    #[error(transparent)]
    Corrupt(BatchError),
    /// A header or records that contradict themselves.
    #[error("the batch is invalid: {0}")]
    Invalid(String),
    /// Larger than the topic allows.
    #[error("the record batch size is {size} bytes, more than the topic's max.message.bytes of {max}")]
    TooLarge {
        /// The batch, in bytes.
        size: usize,
        /// The topic's bound.
        max: usize,
    },
    /// A codec that this version of the request cannot carry.
    #[error("zstd needs a Produce request of version 7 or later")]
    ZstdNotAllowed,
    /// Single records are refused, and with them the whole batch.
    #[error("{} of the batch's records are refused; the first, at index {}: {}", .errors.len(), .errors[0].batch_index, .errors[0].message)]
    Records {
        /// Whether the error is about timestamps.
        timestamps: bool,
        /// What is wrong with which; at least one, at most [`RECORD_ERRORS_MAX`].
        errors: Vec<RecordError>,
    },
}

/// So many refused records are listed; a client needs no more to see what it does wrong.
const RECORD_ERRORS_MAX: usize = 100;

/// A batch that may be appended as it is. Only offsets and the leader epoch are missing, which no checksum covers.
#[derive(Debug)]
pub struct ValidatedBatch<'a> {
    header_bytes: [u8; HEADER_BYTES_V2],
    header: BatchHeader,
    body: Cow<'a, [u8]>,
}

impl ProduceError {
    /// The code in the response.
    pub const fn error_code(&self) -> ErrorCode {
        match self {
            Self::Corrupt(_) => ErrorCode::CorruptMessage,
            Self::TooLarge { .. } => ErrorCode::MessageTooLarge,
            Self::ZstdNotAllowed => ErrorCode::UnsupportedCompressionType,
            Self::Records { timestamps: true, .. } => ErrorCode::InvalidTimestamp,
            Self::NoBatch | Self::MoreThanOneBatch | Self::OldMagic(_) | Self::Invalid(_) | Self::Records { .. } => {
                ErrorCode::InvalidRecord
            }
        }
    }

    /// The refused records, if the error is about some of them.
    pub fn record_errors(&self) -> &[RecordError] {
        match self {
            Self::Records { errors, .. } => errors,
            _ => &[],
        }
    }
}

impl Default for ProduceRules {
    /// A topic with Kafka's defaults.
    fn default() -> Self {
        Self {
            max_message_bytes: 1_048_588,
            timestamp_type: TimestampType::CreateTime,
            timestamp_before_max_ms: i64::MAX,
            timestamp_after_max_ms: 3_600_000,
            compacted: false,
            compression: TopicCompression::Producer,
            zstd_allowed: true,
            decompressed_bytes_max: 64 << 20,
        }
    }
}

/// Checks one partition's records of a Produce request. `scratch` holds decompressed records for the time of the call;
/// a caller that keeps it saves the allocation.
pub fn validate_produced<'a>(
    bytes: &'a [u8],
    rules: &ProduceRules,
    now: Timestamp,
    scratch: &mut Vec<u8>,
) -> Result<ValidatedBatch<'a>, ProduceError> {
    if bytes.is_empty() {
        return Err(ProduceError::NoBatch);
    }
    let batch = BatchView::parse(bytes).map_err(|error| match error {
        BatchError::UnknownMagic(magic) => ProduceError::OldMagic(magic),
        error => ProduceError::Corrupt(error),
    })?;
    if batch.magic < 2 {
        return Err(ProduceError::OldMagic(batch.magic));
    }
    if batch.bytes().len() != bytes.len() {
        return Err(ProduceError::MoreThanOneBatch);
    }
    let header = *batch.header();
    let codec = header.compression().map_err(|error| ProduceError::Invalid(error.to_string()))?;
    if codec == CompressionType::Zstd && !rules.zstd_allowed {
        return Err(ProduceError::ZstdNotAllowed);
    }
    check_size(bytes.len(), rules)?;
    batch.check_crc().map_err(ProduceError::Corrupt)?;
    check_header(&header)?;

    scratch.clear();
    let records = if codec == CompressionType::None {
        batch.body()
    } else {
        decompress(codec, batch.body(), rules.decompressed_bytes_max, scratch)
            .map_err(|error| ProduceError::Invalid(error.to_string()))?;
        scratch.as_slice()
    };
    let max_timestamp = check_records(&header, records, rules, now)?;

    let target = match rules.compression {
        TopicCompression::Producer => codec,
        TopicCompression::Fixed(compression) => compression.kind,
    };
    let mut validated =
        if target == codec { ValidatedBatch::new(header, bytes) } else { recompress(&header, records, rules)? };
    match rules.timestamp_type {
        TimestampType::CreateTime => validated.set_max_timestamp(TimestampType::CreateTime, max_timestamp),
        TimestampType::LogAppendTime => validated.set_max_timestamp(TimestampType::LogAppendTime, now),
    }
    Ok(validated)
}

fn check_size(size: usize, rules: &ProduceRules) -> Result<(), ProduceError> {
    if size > rules.max_message_bytes {
        return Err(ProduceError::TooLarge { size, max: rules.max_message_bytes });
    }
    Ok(())
}

fn check_header(header: &BatchHeader) -> Result<(), ProduceError> {
    let invalid = |reason: String| Err(ProduceError::Invalid(reason));
    if header.base_offset != Offset::ZERO {
        return invalid(format!("its base offset is {}, a producer's is 0", header.base_offset));
    }
    if header.records_count <= 0 {
        return invalid(format!("it counts {} records", header.records_count));
    }
    if i64::from(header.records_count) != i64::from(header.last_offset_delta) + 1 {
        return invalid(format!(
            "it counts {} records and its last offset delta is {}",
            header.records_count, header.last_offset_delta
        ));
    }
    if header.is_control() {
        return invalid("clients may not write control records".to_owned());
    }
    if header.delete_horizon().is_some() {
        return invalid("only the log cleaner sets a delete horizon".to_owned());
    }
    if header.has_producer_id() && header.base_sequence < 0 {
        return invalid(format!(
            "its base sequence is {} though it has a producer id, {}",
            header.base_sequence, header.producer_id
        ));
    }
    if header.is_transactional() && !header.has_producer_id() {
        return invalid("it is transactional and has no producer id".to_owned());
    }
    Ok(())
}

/// Checks every record and returns the largest timestamp.
fn check_records(
    header: &BatchHeader,
    records: &[u8],
    rules: &ProduceRules,
    now: Timestamp,
) -> Result<Timestamp, ProduceError> {
    if let Some(latest) = latest_of_faultless(header, records, rules, now) {
        return Ok(latest);
    }
    let mut max_timestamp = Timestamp::NONE;
    let mut errors = Vec::new();
    let mut timestamps = false;
    for (index, record) in iterate(header, records).enumerate() {
        let record = record.map_err(|error| ProduceError::Invalid(error.to_string()))?;
        max_timestamp = max_timestamp.max(record.timestamp);
        if let Some((message, about_timestamp)) = record_error(header, index, &record, rules, now) {
            timestamps |= about_timestamp;
            errors.push(RecordError { batch_index: index as i32, message });
            if errors.len() == RECORD_ERRORS_MAX {
                break;
            }
        }
    }
    if errors.is_empty() { Ok(max_timestamp) } else { Err(ProduceError::Records { timestamps, errors }) }
}

/// The largest timestamp where all records are as they should be; `None` where one of them may not be.
fn latest_of_faultless(
    header: &BatchHeader,
    records: &[u8],
    rules: &ProduceRules,
    now: Timestamp,
) -> Option<Timestamp> {
    let found = survey(header, records)?;
    let may_set_times = match rules.timestamp_type {
        TimestampType::LogAppendTime => true,
        TimestampType::CreateTime => {
            let are_its_own = header.timestamp_type() == TimestampType::CreateTime;
            are_its_own && is_in_window(found.earliest, rules, now) && is_in_window(found.latest, rules, now)
        }
    };
    (may_set_times && (found.all_have_keys || !rules.compacted)).then_some(found.latest.max(Timestamp::NONE))
}

fn is_in_window(timestamp: Timestamp, rules: &ProduceRules, now: Timestamp) -> bool {
    let age_ms = now.since(timestamp);
    age_ms <= rules.timestamp_before_max_ms && age_ms >= rules.timestamp_after_max_ms.saturating_neg()
}

fn record_error(
    header: &BatchHeader,
    index: usize,
    record: &RecordView<'_>,
    rules: &ProduceRules,
    now: Timestamp,
) -> Option<(String, bool)> {
    if record.offset.0 != index as i64 {
        return Some((format!("its offset delta is {}, not {index}", record.offset), false));
    }
    if rules.compacted && record.key.is_none() {
        return Some(("a compacted topic accepts no record without a key".to_owned(), false));
    }
    if rules.timestamp_type == TimestampType::LogAppendTime {
        return None;
    }
    if header.timestamp_type() == TimestampType::LogAppendTime {
        let message = "a producer may not set the timestamp type to LogAppendTime".to_owned();
        return Some((message, true));
    }
    let in_window = record.timestamp == Timestamp::NONE || is_in_window(record.timestamp, rules, now);
    (!in_window).then(|| {
        let earliest = now.plus_ms(rules.timestamp_before_max_ms.saturating_neg());
        let latest = now.plus_ms(rules.timestamp_after_max_ms);
        (
            format!("its timestamp {} is out of range: it should be within [{earliest}, {latest}]", record.timestamp),
            true,
        )
    })
}

fn recompress(
    header: &BatchHeader,
    records: &[u8],
    rules: &ProduceRules,
) -> Result<ValidatedBatch<'static>, ProduceError> {
    let TopicCompression::Fixed(compression) = rules.compression else {
        unreachable!("only a topic with a codec of its own compresses anew");
    };
    let producer =
        ProducerStamp { id: header.producer_id, epoch: header.producer_epoch, base_sequence: header.base_sequence };
    let mut builder = RecordBatchBuilder::new(BatchOptions {
        compression,
        producer: Some(producer),
        transactional: header.is_transactional(),
        ..BatchOptions::default()
    });
    for (index, record) in iterate(header, records).enumerate() {
        let record = record.map_err(|error| ProduceError::Invalid(error.to_string()))?;
        let headers: Vec<_> = record.headers.iter().map(|header| (header.key, header.value)).collect();
        builder.append_delta(index as i32, record.timestamp, record.key, record.value, headers.into_iter());
    }
    let bytes = builder.try_build().map_err(|error| ProduceError::Invalid(error.to_string()))?;
    check_size(bytes.len(), rules)?;
    let header = BatchHeader::parse(&bytes).map_err(ProduceError::Corrupt)?;
    let (header_bytes, body) = bytes.split_first_chunk().expect("a built batch has its header");
    Ok(ValidatedBatch { header_bytes: *header_bytes, header, body: Cow::Owned(body.to_vec()) })
}

impl<'a> ValidatedBatch<'a> {
    fn new(header: BatchHeader, bytes: &'a [u8]) -> Self {
        let (header_bytes, body) = bytes.split_first_chunk().expect("a parsed batch has its header");
        Self { header_bytes: *header_bytes, header, body: Cow::Borrowed(body) }
    }

    /// A batch of our own making (a coordinator's, a marker), which needs no check but that it is one whole batch.
    pub fn trusted(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let batch = BatchView::parse(bytes)?;
        if batch.magic < 2 {
            return Err(BatchError::UnknownMagic(batch.magic));
        }
        if batch.bytes().len() != bytes.len() {
            return Err(BatchError::InconsistentHeader("more bytes follow the batch"));
        }
        Ok(Self::new(*batch.header(), bytes))
    }

    /// The header, with the timestamps that the log will hold and with offsets from 0.
    pub const fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// All of the batch as it will lie in the log, in bytes.
    pub fn size(&self) -> usize {
        HEADER_BYTES_V2 + self.body.len()
    }

    /// How many offsets the batch takes.
    pub const fn offsets_count(&self) -> i64 {
        self.header.last_offset_delta as i64 + 1
    }

    /// The header's bytes with offset and epoch put in.
    pub fn stamped_header(&self, base_offset: Offset, leader_epoch: LeaderEpoch) -> [u8; HEADER_BYTES_V2] {
        let mut bytes = self.header_bytes;
        bytes[..8].copy_from_slice(&base_offset.0.to_be_bytes());
        bytes[LEADER_EPOCH_AT..LEADER_EPOCH_AT + 4].copy_from_slice(&leader_epoch.0.to_be_bytes());
        bytes
    }

    /// What follows the header.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The checksum covers both fields, so it is made anew, unless nothing changes.
    fn set_max_timestamp(&mut self, kind: TimestampType, max_timestamp: Timestamp) {
        if self.header.timestamp_type() == kind && self.header.max_timestamp == max_timestamp {
            return;
        }
        let mut attributes = self.header.attributes & !TIMESTAMP_TYPE_BIT;
        if kind == TimestampType::LogAppendTime {
            attributes |= TIMESTAMP_TYPE_BIT;
        }
        self.header.attributes = attributes;
        self.header.max_timestamp = max_timestamp;
        self.header_bytes[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.to_be_bytes());
        self.header_bytes[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&max_timestamp.0.to_be_bytes());
        let mut checksum = BatchChecksum::new(2);
        checksum.update(&self.header_bytes[ATTRIBUTES_AT..]);
        checksum.update(&self.body);
        self.header.crc = checksum.finish();
        self.header_bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&self.header.crc.to_be_bytes());
    }
}
