//! The log that a partition holds: open, or at rest until somebody wants what is in it.
//!
//! `partition.rs` keeps one behind its lock. What the listing of the folder says is answered without opening; everything else
//! opens the log first, which reads a few small files.

use std::sync::Arc;

use gregor_log::{LogConfig, LogError, PartitionLog, RestingLog};
use gregor_types::{LeaderEpoch, Offset};

use crate::clock::now;

/// A partition's log.
#[derive(Debug)]
pub(crate) enum HeldLog {
    /// In use.
    Open(Box<PartitionLog>),
    /// Closed by an earlier run and not used since. The epoch under which this node has begun to lead it, if it has.
    Resting(Box<RestingLog>, LeaderEpoch),
    /// The partition is deleted, or its directory failed, or the node stops.
    Gone,
}

impl HeldLog {
    /// Whether there is none.
    pub(crate) const fn is_gone(&self) -> bool {
        matches!(self, Self::Gone)
    }

    /// Opens the log if it is at rest; `None` if there is none.
    pub(crate) fn open(&mut self, config: &Arc<LogConfig>) -> Result<Option<&mut PartitionLog>, LogError> {
        if let Self::Resting(resting, epoch) = self {
            let mut log = resting.open(Arc::clone(config), now())?;
            if *epoch > log.last_epoch() {
                log.assign_epoch_start(*epoch, log.end_offset());
            }
            *self = Self::Open(Box::new(log));
        }
        Ok(self.opened_mut())
    }

    /// The log, if it is open.
    pub(crate) const fn opened_mut(&mut self) -> Option<&mut PartitionLog> {
        if let Self::Open(log) = self { Some(log) } else { None }
    }

    /// On becoming leader: the epoch begins at the log's end. False if there is no log.
    pub(crate) fn begin_epoch(&mut self, epoch: LeaderEpoch) -> bool {
        match self {
            Self::Open(log) => {
                if epoch > log.last_epoch() {
                    log.assign_epoch_start(epoch, log.end_offset());
                }
                true
            }
            Self::Resting(_, begun) => {
                *begun = epoch.max(*begun);
                true
            }
            Self::Gone => false,
        }
    }

    /// The first offset that readers may see.
    pub(crate) fn start_offset(&self) -> Offset {
        match self {
            Self::Open(log) => log.start_offset(),
            Self::Resting(log, _) => log.start_offset(),
            Self::Gone => Offset::ZERO,
        }
    }

    /// The offset of the next record.
    pub(crate) fn end_offset(&self) -> Offset {
        match self {
            Self::Open(log) => log.end_offset(),
            Self::Resting(log, _) => log.end_offset().unwrap_or(Offset::ZERO),
            Self::Gone => Offset::ZERO,
        }
    }

    /// Everything before this offset is on the disk.
    pub(crate) fn recovery_point(&self) -> Offset {
        match self {
            Self::Open(log) => log.recovery_point(),
            // It was closed: all of it is.
            Self::Resting(..) => self.end_offset(),
            Self::Gone => Offset::NONE,
        }
    }

    /// What the recovery point's checkpoint is to say.
    pub(crate) fn recovery_checkpoint(&self) -> Offset {
        match self {
            Self::Open(log) => log.recovery_checkpoint(),
            Self::Resting(log, _) => log.recovery_point(),
            Self::Gone => Offset::ZERO,
        }
    }

    /// How many segments it has.
    pub(crate) fn segments_count(&self) -> usize {
        match self {
            Self::Open(log) => log.segments_count(),
            Self::Resting(log, _) => log.segments_count(),
            Self::Gone => 0,
        }
    }

    /// What the cleaner's checkpoint is to say.
    pub(crate) fn cleaned_to(&self) -> Option<Offset> {
        match self {
            Self::Open(log) => log.cleaned_to(),
            Self::Resting(log, _) => log.cleaned_to(),
            Self::Gone => None,
        }
    }

    /// All batches, in bytes.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Open(log) => log.size(),
            Self::Resting(log, _) => log.size(),
            Self::Gone => 0,
        }
    }

    /// Takes the log out.
    pub(crate) const fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Gone)
    }
}
