//! What a partition remembers of its producers: sequences to tell duplicates and gaps, and open transactions
//! (`ProducerStateManager`).
//!
//! Changed only by batches that are in the log, so that a leader, a follower and a recovery come to the same state.

use std::collections::{BTreeMap, HashMap};

use gregor_types::{Offset, ProducerEpoch, ProducerId, Timestamp, planted::planted};
use gregor_wire::batch::{BatchHeader, EndTransactionMarker};

use crate::{AppendError, MarkerEpoch, Origin, cleaner::LastRecord, transaction_index::AbortedTransaction};

/// So many of a producer's last batches are known, which is as many as it may have in flight.
const BATCHES_KEPT: usize = 5;
const NO_SEQUENCE: i32 = -1;
/// So many producers are remembered that a full disk refused.
const REFUSED_MAX: usize = 10_000;

/// A producer that the log remembers, as DescribeProducers shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveProducer {
    /// Its id.
    pub producer_id: ProducerId,
    /// Its epoch.
    pub producer_epoch: ProducerEpoch,
    /// The sequence of its last record; -1 if none.
    pub last_sequence: i32,
    /// The timestamp of its last batch or marker.
    pub last_timestamp: Timestamp,
    /// The coordinator epoch of its last marker; -1 if none.
    pub coordinator_epoch: i32,
    /// The first offset of its open transaction.
    pub current_transaction_start: Option<Offset>,
}

/// One of a producer's last batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchMetadata {
    pub(crate) last_sequence: i32,
    pub(crate) last_offset: Offset,
    pub(crate) offset_delta: i32,
    pub(crate) timestamp: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProducerEntry {
    pub(crate) epoch: ProducerEpoch,
    pub(crate) coordinator_epoch: i32,
    pub(crate) last_timestamp: Timestamp,
    pub(crate) current_transaction_start: Option<Offset>,
    /// Oldest first; only the first `count` count.
    batches: [BatchMetadata; BATCHES_KEPT],
    count: usize,
}

#[derive(Debug, Default)]
pub(crate) struct ProducerState {
    producers: HashMap<ProducerId, ProducerEntry>,
    /// Open transactions by their first offset.
    ongoing: BTreeMap<Offset, ProducerId>,
    /// Ended transactions, first offset to marker, whose marker the high watermark may not have passed yet.
    unreplicated: BTreeMap<Offset, Offset>,
    /// Producers whose very first batch was refused for want of room: what they have in flight behind it is not taken before it.
    refused: HashMap<ProducerId, ProducerEpoch>,
}

impl BatchMetadata {
    const NONE: Self =
        Self { last_sequence: NO_SEQUENCE, last_offset: Offset::NONE, offset_delta: 0, timestamp: Timestamp::NONE };

    fn first_sequence(&self) -> i32 {
        (i64::from(self.last_sequence) - i64::from(self.offset_delta)).rem_euclid(i64::from(i32::MAX) + 1) as i32
    }

    pub(crate) const fn first_offset(&self) -> Offset {
        Offset(self.last_offset.0 - self.offset_delta as i64)
    }
}

impl ProducerEntry {
    pub(crate) const fn new() -> Self {
        Self {
            epoch: ProducerEpoch::NONE,
            coordinator_epoch: -1,
            last_timestamp: Timestamp::NONE,
            current_transaction_start: None,
            batches: [BatchMetadata::NONE; BATCHES_KEPT],
            count: 0,
        }
    }

    pub(crate) fn last_batch(&self) -> Option<&BatchMetadata> {
        self.batches[..self.count].last()
    }

    pub(crate) fn push(&mut self, batch: BatchMetadata) {
        if self.count == BATCHES_KEPT {
            self.batches.copy_within(1.., 0);
            self.count -= 1;
        }
        self.batches[self.count] = batch;
        self.count += 1;
    }

    fn last_sequence(&self) -> i32 {
        self.last_batch().map_or(NO_SEQUENCE, |batch| batch.last_sequence)
    }

    fn set_epoch(&mut self, epoch: ProducerEpoch) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.count = 0;
        }
    }
}

impl ProducerState {
    /// Whether a produced batch may be appended, or is in the log already: then where.
    pub(crate) fn check(&self, batch: &BatchHeader, origin: Origin) -> Result<Option<BatchMetadata>, AppendError> {
        let entry = self.producers.get(&batch.producer_id);
        let (first, last) = (batch.base_sequence, batch.last_sequence());
        let nothing_is_known = entry.is_none_or(|entry| entry.count == 0);
        let begins_at_0 = match origin {
            Origin::Client { begins_at_0 } => {
                begins_at_0 || self.refused.get(&batch.producer_id) == Some(&batch.producer_epoch)
            }
            Origin::Coordinator | Origin::Marker(_) => false,
        };
        if nothing_is_known && first != 0 && begins_at_0 {
            return Err(AppendError::OutOfOrderSequence {
                producer_id: batch.producer_id,
                epoch: batch.producer_epoch,
                incoming: first,
                last: NO_SEQUENCE,
            });
        }
        let Some(entry) = entry else { return Ok(None) };
        let has_sequences = matches!(origin, Origin::Client { .. });
        if has_sequences && entry.epoch == batch.producer_epoch {
            let known = &entry.batches[..entry.count];
            if let Some(duplicate) = known.iter().find(|b| b.last_sequence == last && b.first_sequence() == first) {
                if planted("duplicate-accepted") {
                    return Ok(None);
                }
                return Ok(Some(*duplicate));
            }
        }
        if batch.producer_epoch < entry.epoch {
            return Err(AppendError::InvalidProducerEpoch {
                producer_id: batch.producer_id,
                incoming: batch.producer_epoch,
                current: entry.epoch,
            });
        }
        let last_known = if batch.producer_epoch == entry.epoch { entry.last_sequence() } else { NO_SEQUENCE };
        let follows = first == if last_known == i32::MAX { 0 } else { last_known + 1 };
        // Without an epoch nothing is known of the producer, because retention has taken all that it wrote.
        if has_sequences && entry.epoch != ProducerEpoch::NONE && !follows {
            return Err(AppendError::OutOfOrderSequence {
                producer_id: batch.producer_id,
                epoch: batch.producer_epoch,
                incoming: first,
                last: last_known,
            });
        }
        if entry.current_transaction_start.is_some() && !batch.is_transactional() {
            return Err(AppendError::InvalidTransactionState(batch.producer_id));
        }
        Ok(None)
    }

    /// A batch had no room. A smaller one behind it might have; of a producer that is known, its sequence would be a gap, and so it
    /// is of one whose first batch it was.
    pub(crate) fn refuse(&mut self, batch: &BatchHeader) {
        if batch.has_producer_id()
            && batch.base_sequence == 0
            && self.refused.len() < REFUSED_MAX
            && !self.producers.contains_key(&batch.producer_id)
        {
            self.refused.insert(batch.producer_id, batch.producer_epoch);
        }
    }

    /// Whether a transaction's marker may be appended.
    pub(crate) fn check_marker(
        &self,
        batch: &BatchHeader,
        marker: EndTransactionMarker,
        rule: MarkerEpoch,
    ) -> Result<(), AppendError> {
        let Some(entry) = self.producers.get(&batch.producer_id) else { return Ok(()) };
        // KAFKA-19999: a coordinator writes a marker again if it does not know whether it did, and goes on until it succeeds.
        let is_stale = match rule {
            MarkerEpoch::Later if entry.current_transaction_start.is_some() => batch.producer_epoch <= entry.epoch,
            MarkerEpoch::Later | MarkerEpoch::SameOrLater => batch.producer_epoch < entry.epoch,
        };
        if is_stale {
            return Err(AppendError::InvalidProducerEpoch {
                producer_id: batch.producer_id,
                incoming: batch.producer_epoch,
                current: entry.epoch,
            });
        }
        if marker.coordinator_epoch < entry.coordinator_epoch {
            return Err(AppendError::CoordinatorFenced {
                producer_id: batch.producer_id,
                incoming: marker.coordinator_epoch,
                current: entry.coordinator_epoch,
            });
        }
        Ok(())
    }

    /// Takes in a data batch of a producer that is in the log now.
    pub(crate) fn update(&mut self, batch: &BatchHeader) {
        if !batch.has_producer_id() {
            return;
        }
        if !self.refused.is_empty() {
            self.refused.remove(&batch.producer_id);
        }
        let entry = self.producers.entry(batch.producer_id).or_insert_with(ProducerEntry::new);
        entry.set_epoch(batch.producer_epoch);
        entry.push(BatchMetadata {
            last_sequence: batch.last_sequence(),
            last_offset: batch.last_offset(),
            offset_delta: batch.last_offset_delta,
            timestamp: batch.max_timestamp,
        });
        entry.last_timestamp = batch.max_timestamp;
        if batch.is_transactional() && entry.current_transaction_start.is_none() {
            entry.current_transaction_start = Some(batch.base_offset);
            self.ongoing.insert(batch.base_offset, batch.producer_id);
        }
    }

    /// The transaction that a marker would abort. `last_stable_offset` is as it stands after the marker
    /// (`ProducerStateManager.lastStableOffset`).
    pub(crate) fn aborted_by(&self, batch: &BatchHeader, marker: EndTransactionMarker) -> Option<AbortedTransaction> {
        let first_offset = self.producers.get(&batch.producer_id)?.current_transaction_start?;
        let last_offset = batch.last_offset();
        let still_open = self.ongoing.keys().find(|first| **first != first_offset);
        (!marker.commit).then_some(AbortedTransaction {
            producer_id: batch.producer_id,
            first_offset,
            last_offset,
            last_stable_offset: still_open.copied().unwrap_or(last_offset.plus(1)),
        })
    }

    /// Takes in a marker that is in the log now, and returns the transaction that it aborted.
    pub(crate) fn end_transaction(
        &mut self,
        batch: &BatchHeader,
        marker: EndTransactionMarker,
    ) -> Option<AbortedTransaction> {
        let aborted = self.aborted_by(batch, marker);
        let entry = self.producers.entry(batch.producer_id).or_insert_with(ProducerEntry::new);
        entry.set_epoch(batch.producer_epoch);
        entry.coordinator_epoch = marker.coordinator_epoch;
        entry.last_timestamp = batch.max_timestamp;
        let first_offset = entry.current_transaction_start.take()?;
        self.ongoing.remove(&first_offset);
        self.unreplicated.insert(first_offset, batch.last_offset());
        aborted
    }

    /// The first offset of the oldest transaction that is open, or ended by a marker that is not below the high watermark.
    pub(crate) fn first_unstable_offset(&mut self, high_watermark: Offset) -> Option<Offset> {
        while let Some(first) = self.unreplicated.first_entry() {
            if *first.get() >= high_watermark {
                break;
            }
            first.remove();
        }
        let ended = self.unreplicated.iter().find(|(_, marker)| **marker >= high_watermark).map(|(first, _)| *first);
        let open = self.ongoing.keys().next().copied();
        ended.into_iter().chain(open).min()
    }

    /// The last that is known of each producer.
    pub(crate) fn last_records(&self) -> HashMap<ProducerId, LastRecord> {
        let last = |entry: &ProducerEntry| LastRecord {
            offset: entry.last_batch().map(|batch| batch.last_offset),
            epoch: entry.epoch,
        };
        self.producers.iter().map(|(id, entry)| (*id, last(entry))).collect()
    }

    /// Forgets producers that were silent for longer than the bound and have no transaction open.
    pub(crate) fn remove_expired(&mut self, now: Timestamp, expiration_ms: i64) {
        self.producers.retain(|_, entry| {
            entry.current_transaction_start.is_some() || now.since(entry.last_timestamp) < expiration_ms
        });
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes a snapshot's state in place of this one. A snapshot has a producer's last batch only: where that is known here,
    /// those before it stay known too.
    pub(crate) fn replace_by(&mut self, mut snapshot: Self) {
        for (id, entry) in &mut snapshot.producers {
            if let Some(own) = self.producers.get(id)
                && own.epoch == entry.epoch
                && own.last_batch().map(|batch| batch.last_offset) == entry.last_batch().map(|batch| batch.last_offset)
            {
                (entry.batches, entry.count) = (own.batches, own.count);
            }
        }
        *self = snapshot;
    }

    pub(crate) fn insert(&mut self, id: ProducerId, entry: ProducerEntry) {
        if let Some(start) = entry.current_transaction_start {
            self.ongoing.insert(start, id);
        }
        self.producers.insert(id, entry);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ProducerId, &ProducerEntry)> {
        self.producers.iter().map(|(id, entry)| (*id, entry))
    }

    pub(crate) fn len(&self) -> usize {
        self.producers.len()
    }

    pub(crate) fn active(&self) -> impl Iterator<Item = ActiveProducer> + '_ {
        self.iter().map(|(producer_id, entry)| ActiveProducer {
            producer_id,
            producer_epoch: entry.epoch,
            last_sequence: entry.last_sequence(),
            last_timestamp: entry.last_timestamp,
            coordinator_epoch: entry.coordinator_epoch,
            current_transaction_start: entry.current_transaction_start,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gregor_types::LeaderEpoch;

    const CLIENT: Origin = Origin::Client { begins_at_0: false };
    const BEGINS_AT_0: Origin = Origin::Client { begins_at_0: true };

    fn batch(epoch: i16, sequence: i32, base_offset: i64, count: i32) -> BatchHeader {
        BatchHeader {
            base_offset: Offset(base_offset),
            size: 100,
            leader_epoch: LeaderEpoch(0),
            magic: 2,
            crc: 0,
            attributes: 0,
            last_offset_delta: count - 1,
            base_timestamp: Timestamp(1),
            max_timestamp: Timestamp(1),
            producer_id: ProducerId(9),
            producer_epoch: ProducerEpoch(epoch),
            base_sequence: sequence,
            records_count: count,
        }
    }

    fn transactional(epoch: i16, sequence: i32, base_offset: i64) -> BatchHeader {
        BatchHeader { attributes: 1 << 4, ..batch(epoch, sequence, base_offset, 1) }
    }

    #[test]
    fn the_last_five_batches_are_known_as_duplicates_and_the_sixth_is_out_of_order() {
        let mut state = ProducerState::default();
        for i in 0..6 {
            let batch = batch(0, i * 2, i64::from(i) * 2, 2);
            assert_eq!(state.check(&batch, CLIENT).unwrap(), None);
            state.update(&batch);
        }
        for i in 1..6 {
            let known = state.check(&batch(0, i * 2, 0, 2), CLIENT).unwrap().unwrap();
            assert_eq!(known.first_offset(), Offset(i64::from(i) * 2));
        }
        assert!(matches!(
            state.check(&batch(0, 0, 0, 2), CLIENT),
            Err(AppendError::OutOfOrderSequence { incoming: 0, last: 11, .. })
        ));
        assert!(state.check(&batch(0, 13, 0, 1), CLIENT).is_err());
        assert_eq!(state.check(&batch(0, 12, 0, 1), CLIENT).unwrap(), None);
    }

    #[test]
    fn a_new_epoch_starts_at_sequence_0_and_the_old_one_is_fenced() {
        let mut state = ProducerState::default();
        state.update(&batch(3, 0, 0, 5));
        assert!(matches!(state.check(&batch(2, 5, 0, 1), CLIENT), Err(AppendError::InvalidProducerEpoch { .. })));
        assert!(matches!(state.check(&batch(4, 5, 0, 1), CLIENT), Err(AppendError::OutOfOrderSequence { .. })));
        assert_eq!(state.check(&batch(4, 0, 0, 1), CLIENT).unwrap(), None);
    }

    #[test]
    fn sequences_go_round() {
        let mut state = ProducerState::default();
        state.update(&batch(0, i32::MAX - 1, 0, 2));
        assert_eq!(state.check(&batch(0, 0, 0, 1), CLIENT).unwrap(), None);
        let wrapping = batch(0, i32::MAX, 2, 3);
        assert_eq!(wrapping.last_sequence(), 1);
        state.update(&wrapping);
        assert!(state.check(&wrapping, CLIENT).unwrap().is_some(), "a batch across the turn is a duplicate too");
        assert_eq!(state.check(&batch(0, 2, 0, 1), CLIENT).unwrap(), None);
    }

    #[test]
    fn an_open_transaction_holds_the_stable_offset_until_its_marker_is_replicated() {
        let mut state = ProducerState::default();
        state.update(&transactional(0, 0, 10));
        assert_eq!(state.first_unstable_offset(Offset(50)), Some(Offset(10)));
        let control = BatchHeader { attributes: 3 << 4, ..batch(0, -1, 11, 1) };
        let marker = EndTransactionMarker { commit: false, coordinator_epoch: 2 };
        state.check_marker(&control, marker, MarkerEpoch::SameOrLater).unwrap();
        let aborted = state.end_transaction(&control, marker).unwrap();
        assert_eq!((aborted.first_offset, aborted.last_offset), (Offset(10), Offset(11)));
        assert_eq!(aborted.last_stable_offset, Offset(12));
        assert_eq!(state.first_unstable_offset(Offset(11)), Some(Offset(10)));
        assert_eq!(state.first_unstable_offset(Offset(12)), None);
        let late = EndTransactionMarker { commit: true, coordinator_epoch: 1 };
        assert!(matches!(
            state.check_marker(&control, late, MarkerEpoch::SameOrLater),
            Err(AppendError::CoordinatorFenced { .. })
        ));
    }

    fn marker_of(epoch: i16, base_offset: i64) -> BatchHeader {
        BatchHeader { attributes: 3 << 4, ..batch(epoch, -1, base_offset, 1) }
    }

    #[test]
    fn a_marker_of_the_second_version_needs_a_later_epoch_unless_it_is_written_again() {
        let mut state = ProducerState::default();
        let marker = EndTransactionMarker { commit: true, coordinator_epoch: 0 };
        let check = |state: &ProducerState, epoch, rule| state.check_marker(&marker_of(epoch, 9), marker, rule);
        state.update(&transactional(3, 0, 0));
        assert!(check(&state, 3, MarkerEpoch::SameOrLater).is_ok());
        assert!(matches!(check(&state, 3, MarkerEpoch::Later), Err(AppendError::InvalidProducerEpoch { .. })));
        assert!(check(&state, 4, MarkerEpoch::Later).is_ok());
        state.end_transaction(&marker_of(4, 1), marker);
        assert!(check(&state, 4, MarkerEpoch::Later).is_ok(), "the coordinator may not have seen that it was written");
        assert!(check(&state, 3, MarkerEpoch::Later).is_err());
        // The marker has raised the epoch: the next transaction begins at sequence 0 under it.
        assert!(state.check(&transactional(3, 1, 2), CLIENT).is_err());
        assert!(state.check(&transactional(4, 1, 2), CLIENT).is_err());
        assert_eq!(state.check(&transactional(4, 0, 2), CLIENT).unwrap(), None);
        state.update(&transactional(4, 0, 2));
        assert!(check(&state, 4, MarkerEpoch::Later).is_err(), "a late marker does not end the next transaction");
    }

    #[test]
    fn a_producer_of_which_nothing_is_known_begins_anywhere_unless_it_always_begins_at_0() {
        let mut state = ProducerState::default();
        assert_eq!(state.check(&batch(0, 7, 0, 1), CLIENT).unwrap(), None);
        assert!(matches!(
            state.check(&batch(0, 7, 0, 1), BEGINS_AT_0),
            Err(AppendError::OutOfOrderSequence { incoming: 7, last: -1, .. })
        ));
        assert_eq!(state.check(&batch(0, 0, 0, 1), BEGINS_AT_0).unwrap(), None);
        state.update(&batch(0, 0, 0, 1));
        assert_eq!(state.check(&batch(0, 1, 1, 1), BEGINS_AT_0).unwrap(), None);
    }

    #[test]
    fn a_coordinators_records_have_no_sequences_and_are_still_fenced() {
        let mut state = ProducerState::default();
        let record = |epoch, offset| BatchHeader { base_sequence: -1, ..transactional(epoch, 0, offset) };
        for offset in 0..3 {
            assert_eq!(state.check(&record(1, offset), Origin::Coordinator).unwrap(), None, "no duplicate");
            state.update(&record(1, offset));
        }
        assert!(matches!(
            state.check(&record(0, 3), Origin::Coordinator),
            Err(AppendError::InvalidProducerEpoch { .. })
        ));
    }

    #[test]
    fn an_open_transaction_keeps_its_producer_however_long_it_is_silent() {
        let mut state = ProducerState::default();
        state.update(&transactional(0, 0, 0));
        state.update(&BatchHeader { producer_id: ProducerId(10), ..batch(0, 0, 1, 1) });
        state.remove_expired(Timestamp(1 << 40), 1000);
        let left: Vec<_> = state.active().map(|producer| producer.producer_id.0).collect();
        assert_eq!(left, [9]);
    }
}
