//! Reads: a plan of where bytes lie, which the server sends by `sendfile` or reads itself, and look-ups by time.

use std::{io, ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;
use gregor_types::{LeaderEpoch, Offset, Timestamp, planted::planted};
use gregor_wire::batch::{BatchHeader, BatchView};

use crate::{
    EpochEndOffset, LogError, PartitionLog, ReadError,
    checked_bytes::CheckedBytes,
    disk::{self, SharedFile},
    scanner::{BatchScanner, SWEEP_BUFFER_BYTES, Scan},
    transaction_index::AbortedTransaction,
};

/// A batch that a look-up by time opens may not decompress to more.
const DECOMPRESSED_BYTES_MAX: usize = 256 << 20;

/// A look whether bytes are in memory is made every so often: about what the kernel reads ahead by itself, and a small part of
/// what sending them costs.
const LOOK_EVERY: usize = 128 << 10;
/// Reading ahead is done in such steps.
const READ_AHEAD_BYTES: usize = 128 << 10;

/// What to read.
#[derive(Debug, Clone, Copy)]
pub struct ReadRequest {
    /// The first offset wanted; the batch that holds it is given whole.
    pub from: Offset,
    /// The read ends before this offset: the high watermark, the last stable offset or the log end offset.
    pub upper_bound: Offset,
    /// The most to read, in bytes; the last batch may be cut off there, the first is not.
    pub max_bytes: u32,
    /// Whether the first batch is given even if it is larger; else nothing is given then.
    pub min_one_batch: bool,
}

/// Where the bytes of a read lie; nothing is read yet.
#[derive(Debug, Clone, Default)]
pub struct ReadPlan {
    region: Option<Region>,
    unchecked: Option<Unchecked>,
    /// The base offset of the segment that is read.
    segment: Option<Offset>,
    /// Whether it begins with one of the batches that were appended last.
    is_recent: bool,
}

/// What is needed to check a plan's bytes.
#[derive(Debug, Clone)]
struct Unchecked {
    path: PathBuf,
    /// Where the batches end: the first at the first offset or later, all before the second.
    offsets: Range<Offset>,
    checked: Arc<CheckedBytes>,
}

/// A piece of a read. Remote segments will be another kind.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Region {
    /// Bytes of a segment's file.
    File {
        /// The file; the plan keeps it open, whatever becomes of the segment.
        file: SharedFile,
        /// The first byte.
        position: u64,
        /// How many bytes.
        len: u32,
    },
}

/// A record found by its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimestampAndOffset {
    /// The record's timestamp.
    pub timestamp: Timestamp,
    /// Its offset.
    pub offset: Offset,
    /// The leader epoch of its batch.
    pub leader_epoch: LeaderEpoch,
}

impl ReadPlan {
    /// The pieces in their order.
    pub const fn regions(&self) -> &[Region] {
        self.region.as_slice()
    }

    /// How many bytes the read gives.
    pub fn len(&self) -> u64 {
        self.regions().iter().map(|Region::File { len, .. }| u64::from(*len)).sum()
    }

    /// Whether the read gives nothing.
    pub const fn is_empty(&self) -> bool {
        self.region.is_none()
    }

    /// Whether bytes are read that this program has not seen yet: they are to be checked before anybody gets them.
    pub const fn needs_check(&self) -> bool {
        self.unchecked.is_some()
    }

    /// Checks what needs it, reading it once; what is damaged is left out, and if that is the first batch, it is an error.
    /// Blocks on the disk, so it is not done under the partition's lock.
    pub fn check(mut self) -> Result<Self, ReadError> {
        if planted("rot-served") {
            self.unchecked = None;
        }
        let (Some(unchecked), Some(Region::File { file, position, len })) = (self.unchecked.take(), &mut self.region)
        else {
            return Ok(self);
        };
        let start = *position;
        let mut scanner = BatchScanner::new(file.clone(), start, start + u64::from(*len), SWEEP_BUFFER_BYTES);
        // The checksum leaves out a batch's offset, which has to be in its place all the same.
        let mut expected = unchecked.offsets.clone();
        let mut last_at = start;
        let (good_to, damage) = loop {
            match scanner.next_checked().map_err(LogError::io(&unchecked.path))? {
                Scan::Batch { position, header } => {
                    if header.last_offset() < expected.start || header.last_offset() >= expected.end {
                        let what =
                            format!("the batch's last offset is {}, not within {expected:?}", header.last_offset());
                        // Of two batches that contradict each other, the earlier may be the wrong one.
                        break (last_at, Some(what));
                    }
                    expected.start = header.next_offset();
                    last_at = position;
                }
                Scan::End => break (scanner.position(), None),
                Scan::Damage(error) => break (scanner.position(), Some(error.to_string())),
            }
        };
        if good_to > start {
            unchecked.checked.add(start as u32..good_to as u32);
        }
        match damage {
            Some(reason) if good_to == start => {
                let Unchecked { path, offsets, .. } = unchecked;
                return Err(ReadError::Damaged { path, position: start, offset: offsets.start, reason });
            }
            // The last batch may be cut off there: the next read begins with it.
            Some(_) => *len = (good_to - start) as u32,
            None => {}
        }
        Ok(self)
    }

    /// Whether its bytes are in memory, as far as a look at some of them tells: then sending them waits for no disk. What was
    /// appended a moment ago is not looked at.
    pub fn is_cached(&self) -> bool {
        self.is_recent || disk::without_waiting(|| self.regions().iter().all(is_region_cached))
    }

    /// Has all of its bytes in memory, as far as there is room for them. Blocks on the disk.
    pub fn read_ahead(&self) -> io::Result<()> {
        let mut scratch = vec![0; READ_AHEAD_BYTES];
        for Region::File { file, position, len } in self.regions() {
            let (mut at, end) = (*position, position + u64::from(*len));
            while at < end {
                let step = (end - at).min(READ_AHEAD_BYTES as u64);
                file.read_exact_at(&mut scratch[..step as usize], at)?;
                at += step;
            }
        }
        Ok(())
    }

    /// Reads it all, behind what `output` holds already.
    pub fn read_into(&self, output: &mut Vec<u8>) -> io::Result<()> {
        for Region::File { file, position, len } in self.regions() {
            let at = output.len();
            output.resize(at + *len as usize, 0);
            file.read_exact_at(&mut output[at..], *position)?;
        }
        Ok(())
    }

    /// Reads it all into memory.
    pub fn read_all(&self) -> io::Result<Bytes> {
        let mut output = Vec::new();
        self.read_into(&mut output)?;
        Ok(output.into())
    }
}

fn is_region_cached(Region::File { file, position, len }: &Region) -> bool {
    let last = position + u64::from(len.saturating_sub(1));
    let is_cached = |at| !matches!(file.read_at(&mut [0], at), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    (*position..last).step_by(LOOK_EVERY).all(is_cached) && is_cached(last)
}

impl PartitionLog {
    /// Plans a read. Empty at the log's end and at the bound. A plan never goes over a segment's end.
    pub fn read(&mut self, request: &ReadRequest) -> Result<ReadPlan, ReadError> {
        let (from, upper_bound) = (request.from, request.upper_bound.min(self.end_offset));
        if from < self.start_offset || from > self.end_offset {
            let (start, end) = (self.start_offset, self.end_offset);
            return Err(ReadError::OffsetOutOfRange { offset: from, start, end });
        }
        if from >= upper_bound {
            return Ok(ReadPlan::default());
        }
        let mut index = self.segment_at(from);
        // Where cleaning has left a gap, the next record may be in a later segment.
        let (_, position, first_size) = loop {
            if let Some(found) = self.batch_at(index, from)? {
                break found;
            }
            index += 1;
            if index == self.segments.len() {
                return Ok(ReadPlan::default());
            }
        };
        let next_base = self.segments.get(index + 1).map_or(self.end_offset, |next| next.base_offset);
        let end = if upper_bound >= next_base {
            self.segments[index].size()
        } else {
            match self.batch_at(index, upper_bound)? {
                Some((_, position, _)) => position,
                None => self.segments[index].size(),
            }
        };
        let available = end.saturating_sub(position);
        let mut len = available.min(request.max_bytes);
        if len < first_size.min(available) {
            if !request.min_one_batch {
                return Ok(ReadPlan::default());
            }
            len = first_size.min(available);
        }
        if len == 0 {
            return Ok(ReadPlan::default());
        }
        let disk = self.disk.clone();
        let segment = &mut self.segments[index];
        let file = segment.file(&*disk)?.clone();
        let unchecked = (!segment.checked().holds(&(position..position + len))).then(|| Unchecked {
            path: segment.path().to_owned(),
            offsets: from..next_base,
            checked: Arc::clone(segment.checked()),
        });
        let region = Some(Region::File { file, position: position.into(), len });
        let is_recent = self.recent.front().is_some_and(|first| first.base_offset <= from);
        Ok(ReadPlan { region, unchecked, segment: Some(self.segments[index].base_offset), is_recent })
    }

    /// Where an epoch ends, for a follower that has to cut its log there (KIP-595): [`Self::end_offset_for_epoch`], but never amid a batch.
    ///
    /// Records are deleted up to any offset, and the epoch of the batch that the log then starts in is known to begin at the log's start.
    /// What a follower has in place of that batch begins before. Kafka's leader tells it to cut its log at the start all the same, and
    /// Kafka's follower then takes for its log's end what is inside a batch that it has removed.
    pub fn cut_for_epoch(&mut self, epoch: LeaderEpoch) -> Result<EpochEndOffset, LogError> {
        let mut end = self.end_offset_for_epoch(epoch);
        if end.end_offset == self.start_offset && self.start_offset < self.end_offset {
            end.end_offset = self.batch_start(self.start_offset)?;
        }
        Ok(end)
    }

    /// The base offset of the batch that holds an offset; the offset where none does.
    fn batch_start(&mut self, offset: Offset) -> Result<Offset, LogError> {
        let found = self.batch_at(self.segment_at(offset), offset)?;
        Ok(found.map_or(offset, |(base, ..)| base.min(offset)))
    }

    /// Base offset, position and size of the first batch in a segment that ends at `offset` or later.
    fn batch_at(&mut self, index: usize, offset: Offset) -> Result<Option<(Offset, u32, u32)>, LogError> {
        if index + 1 == self.segments.len() {
            if offset >= self.end_offset {
                return Ok(None);
            }
            if self.recent.front().is_some_and(|first| first.base_offset <= offset) {
                let at = self.recent.partition_point(|batch| batch.last_offset < offset);
                return Ok(self.recent.get(at).map(|batch| (batch.base_offset, batch.position, batch.size)));
            }
        }
        let disk = self.disk.clone();
        let located = self.segments[index].locate(&*disk, offset)?;
        Ok(located.map(|located| (located.header.base_offset, located.position, located.header.size)))
    }

    /// The first record whose timestamp is `timestamp` or later (ListOffsets by time).
    pub fn offset_for_timestamp(&mut self, timestamp: Timestamp) -> Result<Option<TimestampAndOffset>, LogError> {
        let disk = self.disk.clone();
        for index in 0..self.segments.len() {
            let start = self.start_offset;
            let segment = &mut self.segments[index];
            let largest = segment.load_max_timestamp(&*disk)?;
            if largest.is_none_or(|largest| largest.timestamp < timestamp) {
                continue;
            }
            let from = segment.offset_before(&*disk, timestamp)?;
            let wanted = |batch: &BatchHeader| batch.max_timestamp >= timestamp && batch.last_offset() >= start;
            let found = self.first_record(index, from, wanted, |record| record.timestamp >= timestamp)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The first record that has the largest timestamp of all (ListOffsets -3, KIP-734).
    pub fn max_timestamp(&mut self) -> Result<Option<TimestampAndOffset>, LogError> {
        let disk = self.disk.clone();
        let mut largest: Option<(Timestamp, usize, Offset)> = None;
        for (index, segment) in self.segments.iter_mut().enumerate() {
            if let Some(entry) = segment.load_max_timestamp(&*disk)?
                && largest.is_none_or(|(timestamp, ..)| entry.timestamp > timestamp)
            {
                largest = Some((entry.timestamp, index, segment.base_offset.plus(entry.relative_offset.into())));
            }
        }
        let Some((timestamp, index, batch_end)) = largest else { return Ok(None) };
        let wanted = |batch: &BatchHeader| batch.last_offset() >= batch_end;
        self.first_record(index, batch_end, wanted, |record| record.timestamp == timestamp)
    }

    fn first_record(
        &mut self,
        index: usize,
        from: Offset,
        batch_wanted: impl Fn(&BatchHeader) -> bool,
        record_wanted: impl Fn(&TimestampAndOffset) -> bool,
    ) -> Result<Option<TimestampAndOffset>, LogError> {
        let disk = self.disk.clone();
        let start = self.start_offset;
        let segment = &mut self.segments[index];
        let mut after = Offset::NONE;
        while let Some(located) =
            segment.find(&*disk, from.max(after), |batch| batch.last_offset() > after && batch_wanted(batch))?
        {
            let mut bytes = vec![0; located.header.size as usize];
            let path = segment.path().to_owned();
            segment.file(&*disk)?.read_exact_at(&mut bytes, located.position.into()).map_err(LogError::io(&path))?;
            let damaged = |error| LogError::malformed(&path, format!("at position {}: {error}", located.position));
            let batch = BatchView::parse(&bytes).map_err(|error| damaged(error.to_string()))?;
            batch.check_crc().map_err(|error| damaged(error.to_string()))?;
            let records = batch.records(DECOMPRESSED_BYTES_MAX).map_err(|error| damaged(error.to_string()))?;
            for record in &records {
                let record = record.map_err(|error| damaged(error.to_string()))?;
                let (timestamp, offset) = (record.timestamp, record.offset);
                let found = TimestampAndOffset { timestamp, offset, leader_epoch: located.header.leader_epoch };
                if record.offset >= start && record_wanted(&found) {
                    return Ok(Some(found));
                }
            }
            after = located.header.last_offset();
        }
        Ok(None)
    }

    /// The aborted transactions that touch what a plan from `from` on reads, for a read-committed fetch. A few more may be
    /// named: where the plan ends is only known as exactly as the index tells.
    pub fn aborted_transactions_in(
        &mut self,
        from: Offset,
        upper_bound: Offset,
        plan: &ReadPlan,
    ) -> Result<Vec<AbortedTransaction>, LogError> {
        if self.segments.iter().skip(self.segment_at(from)).all(|segment| segment.transactions.is_empty()) {
            return Ok(Vec::new());
        }
        let Some(segment) = plan.segment else { return Ok(Vec::new()) };
        let end = plan.regions().iter().map(|Region::File { position, len, .. }| position + u64::from(*len)).max();
        let disk = self.disk.clone();
        let index = self.segment_at(segment);
        let next_base = self.segments.get(index + 1).map_or(self.end_offset, |next| next.base_offset);
        let bound = self.segments[index].offset_behind(&*disk, end.unwrap_or(0))?;
        self.aborted_transactions(from, bound.unwrap_or(next_base).min(upper_bound))
    }

    /// The aborted transactions that touch `from` to `upper_bound`, exclusive.
    pub fn aborted_transactions(
        &mut self,
        from: Offset,
        upper_bound: Offset,
    ) -> Result<Vec<AbortedTransaction>, LogError> {
        let mut found = Vec::new();
        for segment in self.segments.iter().skip(self.segment_at(from)) {
            for transaction in segment.transactions.read(&*self.disk).map_err(LogError::io(segment.path()))? {
                if transaction.last_offset >= from && transaction.first_offset < upper_bound {
                    found.push(transaction);
                }
                // No transaction that ends later began before this offset.
                if transaction.last_stable_offset >= upper_bound {
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }
}
