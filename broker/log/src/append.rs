//! Appends: as a leader, which gives offsets, and as a follower, which takes a leader's bytes as they are.
//!
//! One `pwritev` per batch and no allocation on the warm path: the header is patched on the stack, the records go from the
//! request's buffer to the file. Nothing is synced here.

use std::io::IoSlice;

use gregor_types::{LeaderEpoch, Offset, Timestamp, planted::planted};
use gregor_wire::batch::{BatchError, BatchHeader, EndTransactionMarker, TimestampType, ValidatedBatch, split_batches};

use crate::{
    AppendError, LogError, PartitionLog,
    log::{RECENT_BATCHES, RecentBatch},
    producer_state::BatchMetadata,
    segment::Incoming,
};

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
    /// The epoch of the last batch.
    pub leader_epoch: LeaderEpoch,
}

/// What became of a produced batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is in the log now.
    New(AppendInfo),
    /// It was already there: the producer sent it again. A success, with the old offsets.
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

/// Who made a batch: what a leader checks depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A client. Its sequences tell duplicates and gaps.
    Client {
        /// A transactional producer of KIP-890's second part begins every epoch at sequence 0, and what it wrote is never
        /// forgotten while it matters: where nothing is known of it, a later sequence is a gap.
        begins_at_0: bool,
    },
    /// A coordinator, whose records have no sequences.
    Coordinator,
    /// A coordinator that ends a transaction.
    Marker(MarkerEpoch),
}

/// Which producer epoch a marker has, compared with the transaction that it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkerEpoch {
    /// The same, or a later one that fences it (transaction.version 0 and 1).
    SameOrLater,
    /// A later one (transaction.version 2): the same one is of a transaction that was ended before, and only harmless while
    /// none is open.
    Later,
}

impl PartitionLog {
    /// Appends one batch as the partition's leader, at the log's end. For a client's batch, and through
    /// [`ValidatedBatch::trusted`] for a coordinator's records and for markers of transactions.
    pub fn append_as_leader(
        &mut self,
        batch: &ValidatedBatch<'_>,
        leader_epoch: LeaderEpoch,
        now: Timestamp,
    ) -> Result<Appended, AppendError> {
        let origin = if batch.header().is_control() {
            Origin::Marker(MarkerEpoch::SameOrLater)
        } else {
            Origin::Client { begins_at_0: false }
        };
        self.append_from(origin, batch, leader_epoch, now)
    }

    /// The same, for whoever knows more of where the batch comes from.
    pub fn append_from(
        &mut self,
        origin: Origin,
        batch: &ValidatedBatch<'_>,
        leader_epoch: LeaderEpoch,
        now: Timestamp,
    ) -> Result<Appended, AppendError> {
        let base_offset = self.end_offset;
        let header = BatchHeader { base_offset, leader_epoch, ..*batch.header() };
        self.check_epoch(&header)?;
        let (size, max) = (batch.size(), self.config.segment_bytes);
        if size > max as usize {
            return Err(AppendError::LargerThanSegment { size, max });
        }
        let marker = EndTransactionMarker::in_batch(&header, batch.body());
        if let Some(marker) = marker {
            let rule = if let Origin::Marker(rule) = origin { rule } else { MarkerEpoch::SameOrLater };
            self.producers.check_marker(&header, marker, rule)?;
        } else if header.has_producer_id()
            && let Some(known) = self.producers.check(&header, origin)?
        {
            return Ok(Appended::Duplicate(self.duplicate_info(&header, &known)));
        }
        self.append_new(&header, batch, marker, now).inspect_err(|error| {
            if matches!(error, AppendError::Log(error) if error.is_disk_full()) {
                self.producers.refuse(&header);
            }
        })?;
        Ok(Appended::New(self.info(&header, base_offset)))
    }

    fn append_new(
        &mut self,
        header: &BatchHeader,
        batch: &ValidatedBatch<'_>,
        marker: Option<EndTransactionMarker>,
        now: Timestamp,
    ) -> Result<(), AppendError> {
        self.make_room(header.size as usize, header.last_offset(), header.max_timestamp, now)?;
        let disk = self.disk.clone();
        let header_bytes = batch.stamped_header(header.base_offset, header.leader_epoch);
        self.active().write(&*disk, &mut [IoSlice::new(&header_bytes), IoSlice::new(batch.body())])?;
        Ok(self.take_in(header, marker).inspect_err(|_| self.active().cut_uncounted())?)
    }

    /// Appends a leader's batches exactly as they are, with their offsets and epochs: what a follower fetched, and what the
    /// metadata quorum's leader made itself. A batch that is cut off at the end is left out.
    pub fn append_as_follower(&mut self, batches: &[u8], now: Timestamp) -> Result<AppendInfo, AppendError> {
        let mut total = 0;
        let mut end = self.end_offset;
        let mut first_offset = None;
        let mut last: Option<BatchHeader> = None;
        let mut max_timestamp = Timestamp::NONE;
        for batch in split_batches(batches) {
            let batch = batch?;
            batch.check_crc()?;
            // A message of magic 0 or 1 tells its last offset only.
            let incoming = if batch.magic < 2 { batch.last_offset() } else { batch.base_offset };
            if incoming < end {
                return Err(AppendError::OutOfOrderOffsets { incoming, end });
            }
            if last.is_none() {
                self.check_epoch(&batch)?;
            }
            first_offset.get_or_insert(incoming);
            end = batch.next_offset();
            total += batch.size as usize;
            max_timestamp = max_timestamp.max(batch.max_timestamp);
            last = Some(*batch.header());
        }
        let (Some(first_offset), Some(last)) = (first_offset, last) else {
            return Err(BatchError::Truncated { needed: batches.len() + 1, available: batches.len() }.into());
        };
        let whole = &batches[..total];
        if total <= self.config.segment_bytes as usize {
            self.append_whole(whole, last.last_offset(), max_timestamp, now)?;
        } else {
            for batch in split_batches(whole) {
                let batch = batch?;
                self.append_whole(batch.bytes(), batch.last_offset(), batch.max_timestamp, now)?;
            }
        }
        Ok(self.info(&last, first_offset))
    }

    /// The same for a replica, or a copy, of a log that may begin inside of a batch, as one does whose records were deleted by request:
    /// an empty one that begins there takes the batch whole, and still begins where it did. What fails leaves it empty. Batches are
    /// checked: a copy of a damaged one would hide the damage.
    pub fn append_as_replica(&mut self, batches: &[u8], now: Timestamp) -> Result<(), AppendError> {
        let start = self.start_offset;
        let first = split_batches(batches).next().transpose()?;
        let begins_before = first.filter(|first| first.base_offset < start && first.magic >= 2);
        let Some(first) = begins_before.filter(|_| start == self.end_offset) else {
            return self.append_as_follower(batches, now).map(drop);
        };
        self.truncate_fully_and_start_at(first.base_offset, now)?;
        if let Err(error) = self.append_as_follower(batches, now) {
            self.truncate_fully_and_start_at(start, now)?;
            return Err(error);
        }
        Ok(self.advance_start(start)?)
    }

    /// Appends whole batches to one segment by one write.
    fn append_whole(
        &mut self,
        batches: &[u8],
        last_offset: Offset,
        max_timestamp: Timestamp,
        now: Timestamp,
    ) -> Result<(), AppendError> {
        self.make_room(batches.len(), last_offset, max_timestamp, now)?;
        let disk = self.disk.clone();
        self.active().write(&*disk, &mut [IoSlice::new(batches)])?;
        for batch in split_batches(batches) {
            let batch = batch?;
            let marker = EndTransactionMarker::in_batch(&batch, batch.body());
            self.take_in(&batch, marker).inspect_err(|_| self.active().cut_uncounted())?;
        }
        Ok(())
    }

    fn check_epoch(&self, batch: &BatchHeader) -> Result<(), AppendError> {
        let current = self.epochs.latest();
        if batch.leader_epoch >= LeaderEpoch(0) && batch.leader_epoch < current {
            let (offset, incoming) = (batch.base_offset, batch.leader_epoch);
            return Err(AppendError::StaleLeaderEpoch { offset, incoming, current });
        }
        Ok(())
    }

    fn make_room(
        &mut self,
        size: usize,
        last_offset: Offset,
        max_timestamp: Timestamp,
        now: Timestamp,
    ) -> Result<(), AppendError> {
        self.check_syncs()?;
        self.write_topic_id()?;
        let config = self.config.clone();
        // A follower takes what its leader took: the leader's bound may have been another when it did.
        if size > i32::MAX as usize {
            return Err(AppendError::LargerThanSegment { size, max: config.segment_bytes });
        }
        let incoming = Incoming { size: size as u32, last_offset, max_timestamp };
        let (disk, jitter_ms) = (self.disk.clone(), self.jitter_ms);
        if self.active().should_roll(&*disk, &config, jitter_ms, &incoming, now)? {
            self.roll(now)?;
        }
        Ok(self.active().prepare(&*disk)?)
    }

    /// Takes a batch into account that is in the file now, behind all others. After an error nothing of it counts.
    fn take_in(&mut self, header: &BatchHeader, marker: Option<EndTransactionMarker>) -> Result<(), LogError> {
        let (disk, config) = (self.disk.clone(), self.config.clone());
        let position = self.active().size();
        if let Some(aborted) = marker.and_then(|marker| self.producers.aborted_by(header, marker))
            && !planted("aborted-not-indexed")
        {
            let segment = self.active();
            segment.transactions.append(&*disk, &aborted).map_err(LogError::io(segment.path()))?;
        }
        self.active().count_batch(header, &config);
        if let Some(marker) = marker {
            self.producers.end_transaction(header, marker);
        } else if !header.is_control() {
            self.producers.update(header);
        }
        self.epochs.assign(header.leader_epoch, header.base_offset);
        self.end_offset = header.next_offset();
        if self.recent.len() == RECENT_BATCHES {
            self.recent.pop_front();
        }
        self.recent.push_back(RecentBatch {
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
            position,
            size: header.size,
        });
        Ok(())
    }

    fn info(&self, last: &BatchHeader, base_offset: Offset) -> AppendInfo {
        AppendInfo {
            base_offset,
            last_offset: last.last_offset(),
            log_append_time: append_time(last, last.max_timestamp),
            log_start_offset: self.start_offset,
            leader_epoch: last.leader_epoch,
        }
    }

    fn duplicate_info(&self, header: &BatchHeader, known: &BatchMetadata) -> AppendInfo {
        AppendInfo {
            base_offset: known.first_offset(),
            last_offset: known.last_offset,
            log_append_time: append_time(header, known.timestamp),
            log_start_offset: self.start_offset,
            leader_epoch: header.leader_epoch,
        }
    }
}

fn append_time(header: &BatchHeader, timestamp: Timestamp) -> Timestamp {
    match header.timestamp_type() {
        TimestampType::LogAppendTime => timestamp,
        TimestampType::CreateTime => Timestamp::NONE,
    }
}
