//! Puts a cleaned segment in the place of those that it was made from (`LocalLog.replaceSegments`).
//!
//! In two short holds of the partition's lock, with a sync of the folder between them: once its files are called `.swap` on
//! the disk, a start completes the swap, and only then may what it replaces go. A log that was changed meanwhile keeps what it
//! has.

use std::{
    io,
    path::{Path, PathBuf},
};

use gregor_types::{Offset, Timestamp};

use crate::{
    Disk, LogError, PartitionLog,
    disk::SyncToken,
    file_names::{CLEANED, DELETED, LOG, OFFSET_INDEX, SWAP, TIME_INDEX, TRANSACTION_INDEX, offset_file, with_suffix},
    segment::{Segment, SegmentFiles},
};

/// The log's file first: while it is called `.swap`, a start takes the indexes beside it for those of the old segment.
const KINDS: [&str; 4] = [LOG, OFFSET_INDEX, TIME_INDEX, TRANSACTION_INDEX];

/// A segment that is complete and on the disk, under names that a start removes.
#[derive(Debug)]
pub struct CleanedSegment {
    pub(super) directory: PathBuf,
    pub(super) base: Offset,
    pub(super) files: SegmentFiles,
    /// The segments that it replaces: their bases and sizes.
    pub(super) replaced: Vec<(Offset, u32)>,
    /// How often the log had been truncated when they were read.
    pub(super) truncations: u64,
    /// Their bytes.
    pub(super) bytes_before: u64,
}

impl CleanedSegment {
    /// How many bytes the segments had that it replaces.
    pub const fn bytes_before(&self) -> u64 {
        self.bytes_before
    }

    /// How many it has.
    pub const fn bytes_after(&self) -> u64 {
        self.files.log
    }

    fn path(&self, kind: &str, mark: &str) -> PathBuf {
        with_suffix(&offset_file(&self.directory, self.base, kind), mark)
    }

    fn rename(&self, disk: &dyn Disk, from: &str, to: &str) -> Result<(), LogError> {
        for kind in KINDS {
            let (from, to) = (self.path(kind, from), self.path(kind, to));
            match disk.rename(&from, &to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(LogError::io(&from)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn remove(&self, disk: &dyn Disk, mark: &str) -> Result<(), LogError> {
        remove_files(disk, &self.directory, self.base, mark)
    }
}

/// Removes the files of a segment that bear a mark.
pub(super) fn remove_files(disk: &dyn Disk, directory: &Path, base: Offset, mark: &str) -> Result<(), LogError> {
    for kind in KINDS {
        let path = with_suffix(&offset_file(directory, base, kind), mark);
        match disk.remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(LogError::io(&path)(error)),
            _ => {}
        }
    }
    Ok(())
}

impl PartitionLog {
    /// Readies the swap. Complete the token without the lock, then call [`PartitionLog::complete_swap`]. `None` where the log has
    /// changed since: the cleaned segment is gone then, and the log is as it was.
    pub fn begin_swap(&mut self, cleaned: &CleanedSegment) -> Result<Option<SyncToken>, LogError> {
        let disk = self.disk.clone();
        if self.directory != cleaned.directory
            || self.truncations != cleaned.truncations
            || self.place_of(cleaned).is_none()
        {
            cleaned.remove(&*disk, CLEANED)?;
            return Ok(None);
        }
        cleaned.rename(&*disk, CLEANED, SWAP)?;
        self.swapping = cleaned.replaced.iter().map(|(base, _)| *base).collect();
        self.directory_changes += 1;
        Ok(Some(disk.sync_directory(&self.directory)))
    }

    /// Completes the swap; `false` where the log has changed since.
    pub fn complete_swap(&mut self, cleaned: &CleanedSegment, now: Timestamp) -> Result<bool, LogError> {
        let disk = self.disk.clone();
        let place = self.place_of(cleaned);
        let (Some(place), false) = (place, std::mem::take(&mut self.swapping).is_empty()) else {
            cleaned.remove(&*disk, SWAP)?;
            return Ok(false);
        };
        let segment = Segment::existing(&self.directory, cleaned.base, &cleaned.files, now);
        let count = cleaned.replaced.len();
        // From the oldest on: a start that finds some of them still there finds the newer ones, with their tombstones.
        let old: Vec<_> = self.segments.splice(place..place + count, [segment]).collect();
        let due = now.plus_ms(self.config.file_delete_delay_ms);
        for segment in old {
            let base = segment.base_offset;
            for path in segment.mark_deleted(&*disk, DELETED)? {
                self.removals.push_back((due, path));
            }
            if base != cleaned.base {
                self.remove_snapshots(|offset| offset != base)?;
            }
        }
        cleaned.rename(&*disk, SWAP, "")?;
        self.directory_changes += 1;
        Ok(true)
    }

    /// Whether a swap is readied and not completed yet.
    pub const fn is_swapping(&self) -> bool {
        !self.swapping.is_empty()
    }

    /// A segment goes that a swap was about to replace: the swap must not come about, now or at a start.
    pub(crate) fn abandon_swap_of(&mut self, base: Offset) -> Result<(), LogError> {
        let Some(first) = self.swapping.first().copied().filter(|_| self.swapping.contains(&base)) else {
            return Ok(());
        };
        self.swapping.clear();
        remove_files(&*self.disk, &self.directory, first, SWAP)
    }

    /// Where the replaced segments stand, if they are all there as they were read.
    fn place_of(&self, cleaned: &CleanedSegment) -> Option<usize> {
        let (first, _) = cleaned.replaced.first()?;
        let place = self.segments.iter().position(|segment| segment.base_offset == *first)?;
        let there = self.segments[place..self.segments.len() - 1].iter().map(|s| (s.base_offset, s.size()));
        there.take(cleaned.replaced.len()).eq(cleaned.replaced.iter().copied()).then_some(place)
    }
}
