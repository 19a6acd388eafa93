//! Appends.

use gregor_types::{LeaderEpoch, Offset, Timestamp};
use gregor_wire::batch::ValidatedBatch;

use crate::{AppendError, PartitionLog};

/// Where a batch lies in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendInfo {
    /// The first record's offset.
    pub base_offset: Offset,
    /// The last record's offset.
    pub last_offset: Offset,
    /// The timestamp that the broker gave; [`Timestamp::NONE`] where the producer's stands.
    pub log_append_time: Timestamp,
    /// The log's start offset at the time of the append.
    pub log_start_offset: Offset,
    /// The epoch under which it was appended.
    pub leader_epoch: LeaderEpoch,
}

/// What became of a produced batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is in the log now.
    New(AppendInfo),
    /// It was already there: the producer sent it again.
    Duplicate(AppendInfo),
}

impl Appended {
    /// Where the batch lies.
    pub const fn info(&self) -> &AppendInfo {
        match self {
            Self::New(info) | Self::Duplicate(info) => info,
        }
    }
}

impl PartitionLog {
    /// Appends one batch as the partition's leader.
    pub fn append_as_leader(
        &mut self,
        _batch: &ValidatedBatch<'_>,
        _leader_epoch: LeaderEpoch,
        _now: Timestamp,
    ) -> Result<Appended, AppendError> {
        unimplemented!()
    }

    /// Appends a leader's batches exactly as they are. A batch that is cut off at the end is left out.
    pub fn append_as_follower(&mut self, _batches: &[u8], _now: Timestamp) -> Result<AppendInfo, AppendError> {
        unimplemented!()
    }
}
