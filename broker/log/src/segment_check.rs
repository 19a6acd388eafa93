//! The check of one segment: every batch against its checksum, and the indexes made anew.
//!
//! It asks nothing of the segments before it, so that an opening can have several checked at the same time; what depends on
//! their order (epochs, producers, where the log ends) is put together by `recovery.rs`.

use std::{io, path::PathBuf, sync::Arc};

use gregor_types::{LeaderEpoch, Offset};
use gregor_wire::batch::BatchHeader;

use crate::{
    Disk, LogConfig, LogError,
    disk::SharedFile,
    scanner::{BatchScanner, SWEEP_BUFFER_BYTES, Scan},
    segment::Segment,
    transaction_index::TransactionIndex,
};

/// Changes of the leader epoch that a check remembers; a segment with more is read once more for them.
const EPOCHS_MAX: usize = 4096;

/// What is to be done with one segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) segment: usize,
    pub(crate) file_len: u64,
    /// Check everything, and end the log at the first damage.
    pub(crate) check: bool,
    /// Make the indexes anew.
    pub(crate) reindex: bool,
    /// Where the next segment begins, if there is one.
    pub(crate) next_base: Option<Offset>,
    /// A segment ends before the next begins where the cleaner has taken its last records, or where power failed after the next one
    /// had reached the disk. The latter is damage, though Kafka would serve the hole.
    pub(crate) may_end_early: bool,
}

/// A segment that is being checked; [`LogOpening::take_check`](crate::LogOpening::take_check) gives it out.
#[derive(Debug)]
pub struct SegmentCheck {
    pub(crate) work: Work,
    pub(crate) segment: Segment,
    /// The end of the last batch seen.
    pub(crate) end: Offset,
    /// Whether the segment is seen to its end, and how that was.
    pub(crate) verdict: Option<Verdict>,
    /// What its batches say, as far as it is worth remembering.
    pub(crate) summary: Summary,
    disk: Arc<dyn Disk>,
    config: Arc<LogConfig>,
    scanner: Option<BatchScanner>,
    checked_bytes: u64,
}

/// How a segment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Whole,
    /// Something behind its last good batch was cut off.
    Damaged,
}

/// What a check remembers of the batches, so that they need not be read again.
#[derive(Debug)]
pub(crate) struct Summary {
    /// The first batch of each leader epoch, in the order of the batches.
    pub(crate) epochs: Vec<EpochBegin>,
    /// Whether a batch is a producer's, or there were more epochs than are remembered.
    pub(crate) is_incomplete: bool,
    end: Offset,
}

/// Where an epoch was first seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EpochBegin {
    pub(crate) epoch: LeaderEpoch,
    pub(crate) first: Offset,
    /// Where the batch before it ends.
    pub(crate) behind: Offset,
}

/// Takes in a good batch: the file, the batch's position in it, its header, and the index for a transaction that it aborts.
pub(crate) type OnBatch<'b> =
    &'b mut dyn FnMut(&SharedFile, u64, &BatchHeader, &mut TransactionIndex) -> io::Result<()>;

impl Summary {
    const fn new(end: Offset) -> Self {
        Self { epochs: Vec::new(), is_incomplete: false, end }
    }

    fn add(&mut self, header: &BatchHeader) {
        self.is_incomplete |= header.has_producer_id();
        if self.epochs.last().is_none_or(|begin| begin.epoch != header.leader_epoch) {
            if self.epochs.len() == EPOCHS_MAX {
                self.is_incomplete = true;
            } else {
                let (epoch, first) = (header.leader_epoch, header.base_offset);
                self.epochs.push(EpochBegin { epoch, first, behind: self.end });
            }
        }
        self.end = header.next_offset();
    }
}

impl SegmentCheck {
    pub(crate) fn new(disk: Arc<dyn Disk>, config: Arc<LogConfig>, segment: Segment, work: Work) -> Self {
        let end = segment.base_offset;
        let summary = Summary::new(end);
        Self { work, segment, end, verdict: None, summary, disk, config, scanner: None, checked_bytes: 0 }
    }

    /// Reads about `budget_bytes` of the segment, or to its end.
    pub fn step(&mut self, budget_bytes: u64) -> Result<(), LogError> {
        let mut summary = std::mem::replace(&mut self.summary, Summary::new(self.end));
        let result = self.step_with(budget_bytes, &mut |_, _, header, _| {
            summary.add(header);
            Ok(())
        });
        self.summary = summary;
        result.map(drop)
    }

    /// Whether nothing is left to read.
    pub const fn is_done(&self) -> bool {
        self.verdict.is_some()
    }

    /// Bytes read so far.
    pub const fn checked_bytes(&self) -> u64 {
        self.checked_bytes
    }

    /// The same as [`SegmentCheck::step`] for whoever takes the batches in at once. Returns the bytes read.
    pub(crate) fn step_with(&mut self, budget_bytes: u64, on_batch: OnBatch<'_>) -> Result<u64, LogError> {
        if self.is_done() {
            return Ok(0);
        }
        let disk = self.disk.clone();
        let path = self.segment.path().to_owned();
        let file = self.segment.file(&*disk)?.clone();
        if self.scanner.is_none() {
            self.begin(&*disk, &file)?;
        }
        let (work, base) = (self.work, self.segment.base_offset);
        let start = self.checked_bytes;
        let scanner = self.scanner.as_mut().expect("it was just put there");
        let damage = loop {
            let before = scanner.position();
            let scan = if work.reindex { scanner.next_checked() } else { scanner.next() };
            break match scan.map_err(LogError::io(&path))? {
                Scan::Batch { position, header } if continues(&header, self.end, base) => {
                    if work.reindex {
                        self.segment.add_batch(&*disk, &header, &self.config)?;
                    }
                    on_batch(&file, position, &header, &mut self.segment.transactions).map_err(LogError::io(&path))?;
                    self.end = header.next_offset();
                    self.checked_bytes += scanner.position() - before;
                    if self.checked_bytes - start >= budget_bytes {
                        return Ok(self.checked_bytes - start);
                    }
                    continue;
                }
                Scan::End
                    if work.check && !work.may_end_early && work.next_base.is_some_and(|next| next != self.end) =>
                {
                    Some((scanner.position(), "the next segment does not begin where it ends".to_owned()))
                }
                Scan::End => None,
                Scan::Batch { position, .. } => Some((position, "its offsets do not follow".to_owned())),
                Scan::Damage(error) => Some((scanner.position(), error.to_string())),
            };
        };
        // Of a sealed segment that was synced only the producers are wanted: what lies behind the damage is as good as it was, and
        // whoever reads the damage is told. Where the log ends is no matter of guessing.
        if let (Some((position, reason)), false, None) = (&damage, work.reindex, work.next_base) {
            return Err(LogError::malformed(&path, format!("at position {position}: {reason}")));
        }
        self.finish(&*disk, damage.is_some() && work.reindex)?;
        Ok(self.checked_bytes - start)
    }

    /// Goes over the good batches of a checked segment once more.
    pub(crate) fn visit(&mut self, on_batch: OnBatch<'_>) -> Result<(), LogError> {
        let disk = self.disk.clone();
        let file = self.segment.file(&*disk)?.clone();
        let path = self.segment.path().to_owned();
        let mut scanner = self.segment.scan(&*disk, 0, SWEEP_BUFFER_BYTES)?;
        loop {
            match scanner.next().map_err(LogError::io(&path))? {
                Scan::End => return Ok(()),
                Scan::Damage(error) => return Err(LogError::malformed(&path, error.to_string())),
                Scan::Batch { position, header } => {
                    on_batch(&file, position, &header, &mut self.segment.transactions).map_err(LogError::io(&path))?;
                }
            }
        }
    }

    fn begin(&mut self, disk: &dyn Disk, file: &SharedFile) -> Result<(), LogError> {
        if self.work.reindex {
            self.segment.begin_reindex(disk, !self.work.check)?;
        }
        if self.work.check {
            let path: PathBuf = self.segment.path().to_owned();
            self.segment.transactions.clear(disk).map_err(LogError::io(&path))?;
        }
        self.scanner = Some(BatchScanner::new(file.clone(), 0, self.work.file_len, SWEEP_BUFFER_BYTES));
        Ok(())
    }

    fn finish(&mut self, disk: &dyn Disk, damaged: bool) -> Result<(), LogError> {
        self.scanner = None;
        if self.work.reindex {
            self.segment.end_reindex(disk, self.work.file_len)?;
        }
        if self.work.reindex && !self.work.check {
            self.segment.publish_indexes(disk)?;
        }
        self.verdict = Some(if damaged { Verdict::Damaged } else { Verdict::Whole });
        Ok(())
    }
}

/// Whether a batch can stand in a segment behind a batch that ends at `end`.
fn continues(header: &BatchHeader, end: Offset, segment_base: Offset) -> bool {
    let first = if header.magic < 2 { header.last_offset() } else { header.base_offset };
    first >= end && header.last_offset().0 - segment_base.0 <= i64::from(i32::MAX)
}
