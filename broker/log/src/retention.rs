//! Retention: old segments go when they are too old, too many, or before the log's start.

use std::io;

use gregor_types::{Offset, Timestamp, planted::planted};

use crate::{LogError, PartitionLog};

/// What a step of retention did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetentionProgress {
    /// Segments that were deleted by this step.
    pub deleted_segments: usize,
    /// Whether the budget ended before the work did.
    pub more: bool,
}

impl PartitionLog {
    /// Deletes at most `budget` segments that retention does not keep, removes files whose delay is over and forgets silent
    /// producers. Nothing at or above the high watermark is deleted.
    pub fn retain(
        &mut self,
        high_watermark: Offset,
        now: Timestamp,
        budget: usize,
    ) -> Result<RetentionProgress, LogError> {
        self.producers.remove_expired(now, self.config.producer_id_expiration_ms);
        let mut progress = RetentionProgress::default();
        let mut excess_bytes = match u64::try_from(self.config.retention_bytes) {
            Ok(bytes) if self.config.delete => self.size().saturating_sub(bytes),
            _ => 0,
        };
        while self.first_segment_is_over(high_watermark, now, excess_bytes)? {
            if progress.deleted_segments == budget {
                progress.more = true;
                break;
            }
            if self.segments.len() == 1 {
                self.roll(now)?;
            }
            let segment = self.segments.remove(0);
            excess_bytes = excess_bytes.saturating_sub(segment.size().into());
            self.remove_segment(segment, now)?;
            progress.deleted_segments += 1;
            let first = self.segments[0].base_offset;
            self.advance_start(first)?;
        }
        self.remove_files(now)?;
        Ok(progress)
    }

    fn first_segment_is_over(
        &mut self,
        high_watermark: Offset,
        now: Timestamp,
        excess_bytes: u64,
    ) -> Result<bool, LogError> {
        let next = self.segments.get(1).map(|next| next.base_offset);
        let end = next.unwrap_or(self.end_offset);
        let size = u64::from(self.segments[0].size());
        if high_watermark < end || (next.is_none() && size == 0) {
            return Ok(false);
        }
        // The active segment stays for the log start alone: a log that is all deleted keeps its end.
        let start = self.start_offset;
        if next.is_some() && (end <= start || (planted("retention-too-early") && self.segments[0].base_offset < start))
        {
            return Ok(true);
        }
        if !self.config.delete {
            return Ok(false);
        }
        if excess_bytes > 0 && (excess_bytes >= size || planted("retention-beyond-size")) {
            return Ok(true);
        }
        if self.config.retention_ms < 0 {
            return Ok(false);
        }
        let disk = self.disk.clone();
        let largest = self.segments[0].largest_timestamp(&*disk)?;
        Ok(now.since(largest) > self.config.retention_ms)
    }

    fn remove_files(&mut self, now: Timestamp) -> Result<(), LogError> {
        while let Some((due, _)) = self.removals.front()
            && *due <= now
        {
            let (_, path) = self.removals.pop_front().expect("it was just looked at");
            match self.disk.remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(LogError::io(&path)(error)),
                _ => {}
            }
        }
        Ok(())
    }
}
