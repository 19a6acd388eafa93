//! What stays of one batch: the decision, and the bytes (`Cleaner.cleanInto`, `MemoryRecords.filterTo`).
//!
//! A record stays while it is the newest of its key and, if it is a tombstone, until its delete horizon is over. Records that
//! the map has not reached stay as they are. Nothing here reads or writes a file.

use std::collections::HashMap;

use bytes::Bytes;
use gregor_types::{Offset, ProducerEpoch, ProducerId, Timestamp, planted::planted};
use gregor_wire::batch::{BatchError, BatchHeader, BatchView, RecordView, Records, emptied_batch, retained_batch};

use super::{
    offset_map::OffsetMap,
    transactions::{CleanedTransactions, MarkerSeen},
};
use crate::AbortedTransaction;

/// A batch may not decompress to more; a log with a larger one is left as it is.
pub(super) const DECOMPRESSED_BYTES_MAX: usize = 256 << 20;

/// The last thing that the log knows of a producer: the batch that holds it is kept, or a restart would forget its sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LastRecord {
    /// The last offset of its last batch; none if only a marker is known of it.
    pub(crate) offset: Option<Offset>,
    pub(crate) epoch: ProducerEpoch,
}

/// What is the same for all batches of a round.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) now: Timestamp,
    pub(super) delete_retention_ms: i64,
    pub(super) last_records: HashMap<ProducerId, LastRecord>,
    /// The end of what this round may clean: the last batch before it is kept, so that the end of the log is still known.
    pub(super) upper_bound: Offset,
}

/// What stays of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Nothing,
    Original,
    Rewritten(Bytes),
}

/// A decision about one batch.
#[derive(Debug)]
pub(super) struct Filtered {
    pub(super) kept: Kept,
    /// A transaction that the cleaned segment's index has to name.
    pub(super) aborted: Option<AbortedTransaction>,
}

impl Rules {
    /// Decides about one batch; `old_deletes_stay` is for tombstones of magic 0 and 1, which have no delete horizon.
    pub(super) fn filter(
        &self,
        batch: &BatchView<'_>,
        map: &OffsetMap,
        transactions: &mut CleanedTransactions,
        old_deletes_stay: bool,
    ) -> Result<Filtered, BatchError> {
        let header = batch.header();
        let records = batch.records(DECOMPRESSED_BYTES_MAX)?;
        if header.is_control() {
            let marker = transactions.on_control(batch, &records);
            let kept = self.keep_control(header, &records, marker)?;
            return Ok(Filtered { kept, aborted: marker.aborted });
        }
        let is_aborted = transactions.on_data(header);
        let kept = if is_aborted {
            self.keep_header(header)
        } else {
            self.keep_data(header, &records, map, old_deletes_stay)?
        };
        Ok(Filtered { kept, aborted: None })
    }

    fn keep_control(
        &self,
        header: &BatchHeader,
        records: &Records<'_>,
        marker: MarkerSeen,
    ) -> Result<Kept, BatchError> {
        match header.delete_horizon() {
            Some(horizon) if marker.removable && horizon <= self.now => Ok(self.keep_header(header)),
            None if marker.removable && header.records_count > 0 => {
                let records = records.iter().collect::<Result<Vec<_>, _>>()?;
                Ok(Kept::Rewritten(retained_batch(header, Some(self.new_horizon()), &records)?))
            }
            _ if header.records_count == 0 => Ok(self.keep_header(header)),
            _ => Ok(Kept::Original),
        }
    }

    fn keep_data(
        &self,
        header: &BatchHeader,
        records: &Records<'_>,
        map: &OffsetMap,
        old_deletes_stay: bool,
    ) -> Result<Kept, BatchError> {
        let deletes_stay = match header.delete_horizon() {
            _ if header.magic < 2 => old_deletes_stay,
            Some(horizon) => self.now < horizon,
            None => true,
        };
        let stays = |record: &RecordView<'_>| {
            if record.offset > map.latest() {
                return true;
            }
            let Some(key) = record.key else { return false };
            let is_newest = |newest| (record.offset >= newest) != planted("cleaned-not-newest");
            map.newest(key).is_none_or(is_newest) && (record.value.is_some() || deletes_stay)
        };
        let (mut kept, mut total, mut tombstones) = (Vec::new(), 0, false);
        for record in records {
            let record = record?;
            total += 1;
            if stays(&record) {
                tombstones |= record.value.is_none();
                kept.push(record);
            }
        }
        if kept.is_empty() {
            return Ok(self.keep_header(header));
        }
        let needs_horizon = tombstones && header.delete_horizon().is_none();
        let new_horizon = needs_horizon.then(|| self.new_horizon());
        // KIP-724: whatever stays of old formats is written in the new one.
        if kept.len() == total && new_horizon.is_none() && header.magic >= 2 {
            return Ok(Kept::Original);
        }
        Ok(Kept::Rewritten(retained_batch(header, new_horizon.or(header.delete_horizon()), &kept)?))
    }

    /// No record stays; the header does where it is all that is known of a producer, or of the end of what was cleaned.
    fn keep_header(&self, header: &BatchHeader) -> Kept {
        let is_needed = self.is_last_of_producer(header) || header.next_offset() == self.upper_bound;
        match (is_needed, header.records_count) {
            (false, _) => Kept::Nothing,
            (true, 0) => Kept::Original,
            (true, _) => Kept::Rewritten(emptied_batch(header)),
        }
    }

    fn is_last_of_producer(&self, header: &BatchHeader) -> bool {
        header.has_producer_id()
            && self.last_records.get(&header.producer_id).is_some_and(|last| match last.offset {
                Some(offset) => header.last_offset() == offset,
                None => header.is_control() && header.producer_epoch == last.epoch,
            })
    }

    const fn new_horizon(&self) -> Timestamp {
        Timestamp(self.now.0.saturating_add(self.delete_retention_ms))
    }
}
