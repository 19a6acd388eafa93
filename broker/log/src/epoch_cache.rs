//! Where each leader epoch begins in the log: what a follower or consumer needs to find where histories part (KIP-101, KIP-320).
//!
//! Kept in memory and in `leader-epoch-checkpoint`. The file is written before the recovery point passes an entry: what is
//! behind the recovery point is found again by reading the batches.

use gregor_types::{LeaderEpoch, Offset, planted::planted};

/// The end of an epoch, as OffsetForLeaderEpoch answers it; [`LeaderEpoch::NONE`] and -1 where nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochEndOffset {
    /// The largest epoch of this log that is not above the one asked for.
    pub leader_epoch: LeaderEpoch,
    /// The offset that follows its last record.
    pub end_offset: Offset,
}

#[derive(Debug, Default)]
pub(crate) struct EpochCache {
    /// Ascending in epoch and in start offset.
    entries: Vec<(LeaderEpoch, Offset)>,
    /// Counts the changes, so that a flush knows what it has made durable.
    version: u64,
}

impl EpochEndOffset {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { leader_epoch: LeaderEpoch::NONE, end_offset: Offset::NONE };
}

impl EpochCache {
    pub(crate) fn new(entries: Vec<(LeaderEpoch, Offset)>) -> Self {
        let mut cache = Self::default();
        for (epoch, start) in entries {
            cache.assign(epoch, start);
        }
        cache.version = 0;
        cache
    }

    pub(crate) fn entries(&self) -> &[(LeaderEpoch, Offset)] {
        &self.entries
    }

    pub(crate) const fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn latest(&self) -> LeaderEpoch {
        self.entries.last().map_or(LeaderEpoch::NONE, |(epoch, _)| *epoch)
    }

    /// Notes that an epoch starts at an offset. Entries that contradict it were of a history that is gone.
    pub(crate) fn assign(&mut self, epoch: LeaderEpoch, start: Offset) {
        if epoch < LeaderEpoch(0) || start < Offset::ZERO {
            return;
        }
        if let Some(&(last_epoch, last_start)) = self.entries.last()
            && epoch == last_epoch
            && start >= last_start
        {
            return;
        }
        while self.entries.last().is_some_and(|(e, s)| *e >= epoch || *s >= start) {
            self.entries.pop();
        }
        self.entries.push((epoch, start));
        self.version += 1;
    }

    /// Puts another log's entries in place of these.
    pub(crate) fn replace(&mut self, entries: &[(LeaderEpoch, Offset)]) {
        if self.entries != entries {
            self.entries = entries.to_vec();
            self.version += 1;
        }
    }

    pub(crate) fn truncate_from_end(&mut self, end: Offset) {
        let kept = self.entries.partition_point(|(_, start)| *start < end);
        if kept < self.entries.len() && !planted("cut-epochs-kept") {
            self.entries.truncate(kept);
            self.version += 1;
        }
    }

    /// Forgets epochs that end at or before `start`; the one that goes on there begins there now.
    pub(crate) fn truncate_from_start(&mut self, start: Offset) {
        let later = self.entries.partition_point(|(_, s)| *s <= start);
        if later == 0 || (later == 1 && self.entries[0].1 == start) {
            return;
        }
        self.entries.drain(..later - 1);
        self.entries[0].1 = start;
        self.version += 1;
    }

    pub(crate) fn clear(&mut self) {
        if !self.entries.is_empty() {
            self.entries.clear();
            self.version += 1;
        }
    }

    pub(crate) fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        let later = self.entries.partition_point(|(_, start)| *start <= offset);
        later.checked_sub(1).map(|index| self.entries[index].0)
    }

    pub(crate) fn end_offset_for(&self, requested: LeaderEpoch, log_end: Offset) -> EpochEndOffset {
        if requested == LeaderEpoch::NONE || self.entries.is_empty() {
            return EpochEndOffset::UNKNOWN;
        }
        if requested == self.latest() {
            return EpochEndOffset { leader_epoch: requested, end_offset: log_end };
        }
        let higher = self.entries.partition_point(|(epoch, _)| *epoch <= requested);
        let Some(&(_, end_offset)) = self.entries.get(higher) else {
            return EpochEndOffset::UNKNOWN;
        };
        let leader_epoch = if higher == 0 { requested } else { self.entries[higher - 1].0 };
        EpochEndOffset { leader_epoch, end_offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> EpochCache {
        EpochCache::new(vec![(LeaderEpoch(2), Offset(10)), (LeaderEpoch(4), Offset(20)), (LeaderEpoch(5), Offset(30))])
    }

    #[test]
    fn the_end_of_an_epoch_is_the_start_of_the_next() {
        let cache = cache();
        let end = |epoch| {
            let end = cache.end_offset_for(LeaderEpoch(epoch), Offset(44));
            (end.leader_epoch.0, end.end_offset.0)
        };
        assert_eq!(end(5), (5, 44));
        assert_eq!(end(4), (4, 30));
        assert_eq!(end(3), (2, 20), "an epoch that nobody wrote in ends with the one before it");
        assert_eq!(end(1), (1, 10), "older than all: ends where the log's first begins");
        assert_eq!(end(6), (-1, -1));
        assert_eq!(end(-1), (-1, -1));
    }

    #[test]
    fn truncation_forgets_what_is_gone() {
        let mut cache = cache();
        cache.truncate_from_end(Offset(20));
        assert_eq!(cache.latest(), LeaderEpoch(2));
        let mut cache = self::cache();
        cache.truncate_from_start(Offset(25));
        assert_eq!(cache.entries(), [(LeaderEpoch(4), Offset(25)), (LeaderEpoch(5), Offset(30))]);
        assert_eq!(cache.epoch_at(Offset(29)), Some(LeaderEpoch(4)));
        assert_eq!(cache.epoch_at(Offset(24)), None);
    }

    #[test]
    fn a_new_entry_removes_those_that_contradict_it() {
        let mut cache = cache();
        cache.assign(LeaderEpoch(6), Offset(15));
        assert_eq!(cache.entries(), [(LeaderEpoch(2), Offset(10)), (LeaderEpoch(6), Offset(15))]);
        let version = cache.version();
        cache.assign(LeaderEpoch(6), Offset(99));
        assert_eq!(cache.version(), version, "an epoch that goes on changes nothing");
    }
}
