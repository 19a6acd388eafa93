//! What of a log may be cleaned, how urgent that is, and which segments are cleaned into one (`LogCleanerManager`).

use std::ops::Range;

use gregor_types::{Offset, Timestamp, planted::planted};

use super::{Cleaning, Source};
use crate::{LogConfig, LogError, PartitionLog};

/// How much of a log was never cleaned, and how much of that may be now. Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cleanable {
    /// The first offset that no round has been over.
    pub first_dirty: Offset,
    /// The base of the first segment that may not be cleaned: active, too young, or with records that are not stable or not synced.
    pub first_uncleanable: Offset,
    /// What was cleaned before.
    pub clean_bytes: u64,
    /// What may be cleaned now.
    pub cleanable_bytes: u64,
    /// For how long a record has waited beyond `max.compaction.lag.ms`; 0 if none has.
    pub overdue_ms: i64,
}

impl Cleanable {
    /// The share that is dirty, of what may be looked at: 0 to 1.
    #[allow(clippy::cast_precision_loss, reason = "a ratio of sizes far below 2^52")]
    pub fn dirty_ratio(&self) -> f64 {
        let total = self.clean_bytes + self.cleanable_bytes;
        if total == 0 { 0.0 } else { self.cleanable_bytes as f64 / total as f64 }
    }

    /// Whether a round is due under a log's configuration.
    pub fn is_due(&self, config: &LogConfig) -> bool {
        self.cleanable_bytes > 0 && (self.overdue_ms > 0 || self.dirty_ratio() > config.min_cleanable_dirty_ratio)
    }
}

impl PartitionLog {
    /// Up to where the cleaner has been over the log, for its checkpoint; `None` if it never was.
    pub const fn cleaned_to(&self) -> Option<Offset> {
        self.cleaned_to
    }

    /// Takes note that a round is over; `false` where the log was truncated or moved since it began: what stands there now, the
    /// round has not seen.
    pub fn note_cleaned(&mut self, round: &Cleaning, to: Offset) -> bool {
        let is_same = self.directory == round.directory && self.truncations == round.truncations;
        if is_same {
            self.cleaned_to = Some(to);
        }
        is_same
    }

    /// Whether the log still has what the round is about, where it was: then a file that the round does not find is lost, and was
    /// not deleted or moved meanwhile.
    pub fn has_sources_of(&self, round: &Cleaning) -> bool {
        let is_there = |source: &Source| {
            let found = self.segments.binary_search_by_key(&source.base, |segment| segment.base_offset);
            found.is_ok_and(|at| self.segments[at].size() == source.size)
        };
        self.directory == round.directory
            && self.truncations == round.truncations
            && round.sources[round.next_source..].iter().all(is_there)
    }

    /// What may be cleaned. A checkpoint that does not fit the log counts as none.
    pub fn cleanable(&mut self, high_watermark: Offset, now: Timestamp) -> Result<Cleanable, LogError> {
        let (start, end) = (self.start_offset, self.end_offset);
        let first_dirty = self.cleaned_to.filter(|offset| (start..=end).contains(offset)).unwrap_or(start);
        let (disk, config) = (self.disk.clone(), self.config.clone());
        let stable = if planted("unstable-cleaned") { end } else { self.last_stable_offset(high_watermark) };
        // A record must not go for a newer one of its key that a crash can still take.
        let mut uncleanable = stable.min(self.recovery_point).min(self.active_segment_base());
        let sealed = self.segments.len() - 1;
        let from = self.segment_at(first_dirty).min(sealed);
        for segment in &mut self.segments[from..sealed] {
            if config.min_compaction_lag_ms > 0
                && segment.largest_timestamp(&*disk)? > now.plus_ms(-config.min_compaction_lag_ms)
            {
                uncleanable = uncleanable.min(segment.base_offset);
                break;
            }
        }
        let first_uncleanable = self.segments[self.segment_at(uncleanable.max(first_dirty))].base_offset;
        let mut overdue_ms = 0;
        if config.max_compaction_lag_ms < i64::MAX {
            for segment in &mut self.segments[from..sealed] {
                let first = segment.first_timestamp(&*disk)?.filter(|first| first.0 > 0);
                let waited = first.map_or(0, |first| now.since(first).saturating_sub(config.max_compaction_lag_ms));
                overdue_ms = overdue_ms.max(waited);
            }
        }
        let bytes = |range: Range<Offset>| -> u64 {
            let inside = self.segments.iter().filter(|segment| range.contains(&segment.base_offset));
            inside.map(|segment| u64::from(segment.size())).sum()
        };
        let dirty_base = self.segments[self.segment_at(first_dirty)].base_offset.min(first_uncleanable);
        Ok(Cleanable {
            first_dirty,
            first_uncleanable,
            clean_bytes: bytes(Offset::ZERO..dirty_base),
            cleanable_bytes: bytes(dirty_base..first_uncleanable),
            overdue_ms,
        })
    }
}

/// Neighbours that together fit one segment, as ranges of `sources` (`Cleaner.groupSegmentsBySize`).
pub(super) fn groups(sources: &[Source], config: &LogConfig) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let mut first = 0;
    while first < sources.len() {
        let (mut size, mut offset_index, mut time_index) = (0, 0, 0);
        let mut end = first;
        while let Some(source) = sources.get(end) {
            let fits = size + u64::from(source.size) <= u64::from(config.segment_bytes)
                && offset_index + source.offset_index_bytes <= u64::from(config.segment_index_bytes)
                && time_index + source.time_index_bytes <= u64::from(config.segment_index_bytes)
                && source.next_base.0 - 1 - sources[first].base.0 <= i64::from(i32::MAX);
            if end > first && !fits && source.size > 0 {
                break;
            }
            size += u64::from(source.size);
            offset_index += source.offset_index_bytes;
            time_index += source.time_index_bytes;
            end += 1;
        }
        groups.push(first..end);
        first = end;
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_neighbours_are_cleaned_into_one_segment() {
        let source = |base: i64, size| Source {
            base: Offset(base),
            next_base: Offset(base + 10),
            size,
            offset_index_bytes: 8,
            time_index_bytes: 12,
        };
        let config = LogConfig { segment_bytes: 100, ..LogConfig::default() };
        let sources = [source(0, 60), source(10, 40), source(20, 0), source(30, 80), source(40, 30), source(50, 200)];
        assert_eq!(groups(&sources, &config), [0..3, 3..4, 4..5, 5..6]);
        let far = [source(0, 10), Source { next_base: Offset(i64::from(i32::MAX) + 2), ..source(20, 10) }];
        assert_eq!(groups(&far, &config), [0..1, 1..2]);
    }
}
