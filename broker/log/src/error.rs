//! What can go wrong with a log, and which error of Kafka's a client is told.

use std::{
    io,
    path::{Path, PathBuf},
};

use gregor_types::{ErrorCode, LeaderEpoch, Offset, ProducerEpoch, ProducerId};
use gregor_wire::batch::BatchError;

/// A log's files cannot be used. The directory that holds them is then offline until someone has looked at it.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused a file.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it answered.
        source: io::Error,
    },
    /// A sync failed. What it was to write may be lost although later syncs say nothing, so the log takes no more.
    #[error("{path}: what was written could not be made durable: {source}", path = .path.display())]
    SyncFailed {
        /// The folder.
        path: PathBuf,
        /// What the operating system answered.
        source: io::Error,
    },
    /// A file is not what it should be, and no recovery can make it so.
    #[error("{path}: {reason}", path = .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The log start offset cannot move there.
    #[error("the log start offset cannot move to {to}: the log holds {start} to {end}")]
    StartOutOfRange {
        /// Where it was to move.
        to: Offset,
        /// The log start offset.
        start: Offset,
        /// The log end offset.
        end: Offset,
    },
}

/// Why a batch was not appended. Nothing of it is in the log then.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// A sequence number that does not follow the producer's last one.
    #[error("producer {producer_id} sent sequence {incoming} after {last} in epoch {epoch}: one is missing")]
    OutOfOrderSequence {
        /// The producer.
        producer_id: ProducerId,
        /// Its epoch.
        epoch: ProducerEpoch,
        /// The sequence of the batch's first record.
        incoming: i32,
        /// The sequence of the last record in the log; -1 if none.
        last: i32,
    },
    /// An older instance of the producer.
    #[error(
        "producer {producer_id} sent epoch {incoming}, its current one is {current}: a newer instance has taken over"
    )]
    InvalidProducerEpoch {
        /// The producer.
        producer_id: ProducerId,
        /// The epoch that it sent.
        incoming: ProducerEpoch,
        /// The epoch in the log.
        current: ProducerEpoch,
    },
    /// A marker of a transaction coordinator that has been replaced.
    #[error("a marker for producer {producer_id} came from coordinator epoch {incoming}, the current one is {current}")]
    CoordinatorFenced {
        /// The producer.
        producer_id: ProducerId,
        /// The marker's coordinator epoch.
        incoming: i32,
        /// The coordinator epoch in the log.
        current: i32,
    },
    /// A batch outside a transaction while the producer's transaction is open.
    #[error("producer {0} has an open transaction and sent a batch outside of it")]
    InvalidTransactionState(ProducerId),
    /// The batch does not fit any segment.
    #[error("the batch of {size} bytes is larger than a segment (segment.bytes = {max})")]
    LargerThanSegment {
        /// The batch, in bytes.
        size: usize,
        /// `segment.bytes`.
        max: u32,
    },
    /// A leader's batch does not continue this log.
    #[error("the batch at offset {incoming} does not continue the log, which ends at {end}")]
    OutOfOrderOffsets {
        /// The batch's first offset.
        incoming: Offset,
        /// The log end offset.
        end: Offset,
    },
    /// A leader's batch is of an epoch older than the log's last one, or without any.
    #[error("the batch at offset {offset} has leader epoch {incoming}, the log is at {current}")]
    StaleLeaderEpoch {
        /// The batch's first offset.
        offset: Offset,
        /// Its epoch.
        incoming: LeaderEpoch,
        /// The log's last epoch.
        current: LeaderEpoch,
    },
    /// A leader's bytes are not batches.
    #[error(transparent)]
    Corrupt(#[from] BatchError),
    /// The disk failed. Some of the batch may be in the file, behind the log's end; it is written over or cut off.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Why a read cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The offset is before the log's start or behind its end.
    #[error("offset {offset} is out of range: the log holds {start} to {end}")]
    OffsetOutOfRange {
        /// The offset asked for.
        offset: Offset,
        /// The log start offset.
        start: Offset,
        /// The bound of the read, exclusive.
        end: Offset,
    },
    /// The disk has not kept what was written: the batch at this offset or behind it is not what its checksum says.
    #[error("{path}: damaged at position {position}, at offset {offset} or behind it: {reason}", path = .path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it, in bytes.
        position: u64,
        /// The offset that was read from.
        offset: Offset,
        /// What is wrong.
        reason: String,
    },
    /// The disk failed.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl AppendError {
    /// What the producer is told.
    pub const fn error_code(&self) -> ErrorCode {
        match self {
            Self::OutOfOrderSequence { .. } => ErrorCode::OutOfOrderSequenceNumber,
            Self::InvalidProducerEpoch { .. } => ErrorCode::InvalidProducerEpoch,
            Self::CoordinatorFenced { .. } => ErrorCode::TransactionCoordinatorFenced,
            Self::InvalidTransactionState(_) => ErrorCode::InvalidTxnState,
            Self::LargerThanSegment { .. } => ErrorCode::RecordListTooLarge,
            Self::OutOfOrderOffsets { .. } | Self::StaleLeaderEpoch { .. } | Self::Corrupt(_) => {
                ErrorCode::CorruptMessage
            }
            Self::Log(_) => ErrorCode::KafkaStorageError,
        }
    }
}

impl ReadError {
    /// What the consumer is told.
    pub const fn error_code(&self) -> ErrorCode {
        match self {
            Self::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
            Self::Damaged { .. } | Self::Log(LogError::Malformed { .. }) => ErrorCode::CorruptMessage,
            Self::Log(_) => ErrorCode::KafkaStorageError,
        }
    }
}

impl LogError {
    /// Whether there was no room. Nothing that was acknowledged is touched by that: once there is room, the same call succeeds.
    pub fn is_disk_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// For `map_err` at a call on a file. The path is copied only if there is an error.
    pub(crate) fn io(path: &(impl AsRef<Path> + ?Sized)) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.as_ref().to_owned(), source }
    }

    pub(crate) fn malformed(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.into(), reason: reason.into() }
    }
}
