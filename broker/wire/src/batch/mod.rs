//! Record batches: the one form in which records travel and lie on disk (`org.apache.kafka.common.record`).
//!
//! [`BatchView`] reads a batch in place, [`RecordBatchBuilder`] makes one, [`validate_produced`] checks one that a client
//! sent, before any lock is taken. The log reads headers alone with [`BatchHeader`]. Batches of magic 0 and 1, which lie in
//! old directories, are read, and made only from what a cleaner leaves of such. Nothing here opens a file or takes an offset by itself.

mod builder;
mod control;
mod header;
mod legacy;
mod records;
mod rewrite;
mod survey;
mod validate;
mod varint;

pub use builder::{BatchOptions, ProducerStamp, RecordBatchBuilder};
pub use control::{ControlRecordType, EndTransactionMarker};
pub use header::{
    BatchHeader, BatchView, HEADER_BYTES_V2, OFFSET_AND_LENGTH_BYTES, SMALLEST_HEADER_BYTES, split_batches,
};
pub use records::{HeaderView, HeadersIter, HeadersView, RecordIter, RecordView, Records};
pub use rewrite::{emptied_batch, retained_batch};
pub use validate::{ProduceError, ProduceRules, RecordError, TopicCompression, ValidatedBatch, validate_produced};

use crate::compression::CompressionError;

/// What a record's timestamp says; bit 3 of the attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TimestampType {
    /// When the producer made the record.
    #[default]
    CreateTime,
    /// When the leader appended the batch: the batch's max timestamp is that of all its records.
    LogAppendTime,
}

/// Why bytes are not a batch, or its records not records.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than the batch says it has.
    #[error("the batch is cut off: it needs {needed} bytes, {available} are there")]
    Truncated {
        /// Bytes that the batch, or its header, needs.
        needed: usize,
        /// Bytes that are there.
        available: usize,
    },
    /// A length too small for any batch of its magic.
    #[error("the batch at offset {base_offset} says that it has {size} bytes, fewer than its header")]
    TooSmall {
        /// The batch's base offset, as its header says.
        base_offset: i64,
        /// Its size, as its header says.
        size: i64,
    },
    /// A magic that Kafka does not have.
    #[error("the batch's magic is {0}: Kafka has 0, 1 and 2")]
    UnknownMagic(i8),
    /// The bytes are not those over which the checksum was made.
    #[error(
        "the batch at offset {base_offset} is corrupt: its checksum is {stored:#010x}, its bytes give {computed:#010x}"
    )]
    Corrupt {
        /// The batch's base offset.
        base_offset: i64,
        /// The checksum in its header.
        stored: u32,
        /// The checksum of its bytes.
        computed: u32,
    },
    /// A record that breaks its own lengths.
    #[error("a record of the batch is malformed: {0}")]
    MalformedRecord(&'static str),
    /// Header fields that contradict each other.
    #[error("the batch's header is inconsistent: {0}")]
    InconsistentHeader(&'static str),
    /// The records could not be decompressed.
    #[error(transparent)]
    Compression(#[from] CompressionError),
}

/// The checksum of batches of magic 2: CRC-32C (Castagnoli).
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// A checksum over bytes that come in pieces: recovery reads a batch in steps, whatever its size.
#[derive(Debug)]
pub struct BatchChecksum(crc_fast::Digest);

impl BatchChecksum {
    /// The checksum that batches of this magic use.
    pub fn new(magic: i8) -> Self {
        let algorithm =
            if magic >= 2 { crc_fast::CrcAlgorithm::Crc32Iscsi } else { crc_fast::CrcAlgorithm::Crc32IsoHdlc };
        Self(crc_fast::Digest::new(algorithm))
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes taken in.
    pub fn finish(&self) -> u32 {
        self.0.finalize() as u32
    }
}
