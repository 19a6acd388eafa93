//! Reads.

use std::io;

use bytes::Bytes;
use gregor_types::{LeaderEpoch, Offset, Timestamp};

use crate::{LogError, PartitionLog, ReadError, disk::SharedFile};

/// What to read.
#[derive(Debug, Clone, Copy)]
pub struct ReadRequest {
    /// The first offset wanted; the batch that holds it is given whole.
    pub from: Offset,
    /// The read ends before this offset: the high watermark, the last stable offset or the log end offset.
    pub upper_bound: Offset,
    /// The most to read, in bytes; the last batch may be cut off there.
    pub max_bytes: u32,
    /// Whether the first batch is given whole even if it is larger.
    pub min_one_batch: bool,
}

/// Where the bytes of a read lie; nothing is read yet.
#[derive(Debug, Clone, Default)]
pub struct ReadPlan {
    region: Option<Region>,
}

/// A piece of a read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Region {
    /// Bytes of a segment's file.
    File {
        /// The file; the plan keeps it open, whatever becomes of the segment.
        file: SharedFile,
        /// The first byte.
        position: u64,
        /// How many bytes.
        len: u32,
    },
}

/// A record found by its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimestampAndOffset {
    /// The record's timestamp.
    pub timestamp: Timestamp,
    /// Its offset.
    pub offset: Offset,
    /// The leader epoch of its batch.
    pub leader_epoch: LeaderEpoch,
}

impl ReadPlan {
    /// The pieces in their order.
    pub fn regions(&self) -> &[Region] {
        self.region.as_slice()
    }

    /// How many bytes the read gives.
    pub fn len(&self) -> u64 {
        self.regions().iter().map(|Region::File { len, .. }| u64::from(*len)).sum()
    }

    /// Whether the read gives nothing.
    pub fn is_empty(&self) -> bool {
        self.region.is_none()
    }

    /// Reads it all into memory.
    pub fn read_all(&self) -> io::Result<Bytes> {
        unimplemented!()
    }
}

impl PartitionLog {
    /// Plans a read.
    pub fn read(&mut self, _request: &ReadRequest) -> Result<ReadPlan, ReadError> {
        unimplemented!()
    }

    /// The first record whose timestamp is `timestamp` or later.
    pub fn offset_for_timestamp(&mut self, _timestamp: Timestamp) -> Result<Option<TimestampAndOffset>, LogError> {
        unimplemented!()
    }

    /// The record with the largest timestamp (ListOffsets -3).
    pub fn max_timestamp(&mut self) -> Result<Option<TimestampAndOffset>, LogError> {
        unimplemented!()
    }
}
