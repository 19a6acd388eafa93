//! One segment: a stretch of the log in a file of its own, with its indexes.
//!
//! The newest segment of a log is active: appends go there and its end of the indexes is in memory. A sealed segment holds
//! no open file until it is read.

use std::{
    io::{self, IoSlice},
    path::Path,
    sync::Arc,
    time::UNIX_EPOCH,
};

use gregor_types::{Offset, Timestamp, planted::planted};
use gregor_wire::batch::BatchHeader;

use crate::{
    Disk, LogConfig, LogError,
    checked_bytes::CheckedBytes,
    disk::{SharedFile, SyncToken},
    file_names::{LOG, OFFSET_INDEX, TIME_INDEX, TRANSACTION_INDEX, offset_file, with_suffix},
    scanner::{BatchScanner, SEEK_BUFFER_BYTES, Scan},
    sparse_index::{Entry, OffsetEntry, SparseIndex, TimeEntry},
    transaction_index::TransactionIndex,
};

/// Where a batch stands in its segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Located {
    pub(crate) position: u32,
    pub(crate) header: BatchHeader,
}

/// The lengths of a segment's files, as a folder lists them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SegmentFiles {
    pub(crate) log: u64,
    pub(crate) offset_index: Option<u64>,
    pub(crate) time_index: Option<u64>,
    pub(crate) transaction_index: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) base_offset: Offset,
    /// Bytes of whole batches; the file may be longer after a failed write.
    size: u32,
    /// Which of its bytes are known to be what their checksums say.
    checked: Arc<CheckedBytes>,
    path: std::path::PathBuf,
    file: Option<SharedFile>,
    offsets: SparseIndex<OffsetEntry>,
    times: SparseIndex<TimeEntry>,
    pub(crate) transactions: TransactionIndex,
    bytes_since_index: u32,
    /// The largest timestamp and the last offset of its batch, once it was looked up.
    max_timestamp: Option<TimeEntry>,
    max_timestamp_known: bool,
    /// The first batch's timestamp, against which `segment.ms` is measured.
    first_timestamp: Option<Timestamp>,
    opened_at: Timestamp,
}

impl Segment {
    /// A new empty segment with its three files.
    pub(crate) fn create(disk: &dyn Disk, directory: &Path, base: Offset, now: Timestamp) -> Result<Self, LogError> {
        Self::create_marked(disk, directory, base, "", now)
    }

    /// The same under names with a mark behind them.
    pub(crate) fn create_marked(
        disk: &dyn Disk,
        directory: &Path,
        base: Offset,
        mark: &str,
        now: Timestamp,
    ) -> Result<Self, LogError> {
        let in_file = |suffix| with_suffix(&offset_file(directory, base, suffix), mark);
        let path = in_file(LOG);
        let created = disk.create(&path).and_then(|file| {
            let offsets = SparseIndex::create(disk, in_file(OFFSET_INDEX))?;
            Ok((file, offsets, SparseIndex::create(disk, in_file(TIME_INDEX))?))
        });
        let (file, offsets, times) = created.map_err(|source| {
            // The segment before may still grow: an empty one would stand in the midst of it.
            for suffix in [LOG, OFFSET_INDEX, TIME_INDEX] {
                let _ = disk.remove_file(&in_file(suffix));
            }
            LogError::Io { path: path.clone(), source }
        })?;
        Ok(Self {
            base_offset: base,
            size: 0,
            checked: Arc::default(),
            path,
            file: Some(file),
            offsets,
            times,
            transactions: TransactionIndex::new(in_file(TRANSACTION_INDEX), None),
            bytes_since_index: 0,
            max_timestamp: None,
            max_timestamp_known: true,
            first_timestamp: None,
            opened_at: now,
        })
    }

    /// A segment whose files are there. Nothing is opened.
    pub(crate) fn existing(directory: &Path, base: Offset, files: &SegmentFiles, now: Timestamp) -> Self {
        let in_file = |suffix| offset_file(directory, base, suffix);
        Self {
            base_offset: base,
            size: files.log.min(u64::from(u32::MAX)) as u32,
            checked: Arc::new(CheckedBytes::none_of(files.log.min(u64::from(u32::MAX)) as u32)),
            path: in_file(LOG),
            file: None,
            offsets: SparseIndex::existing(in_file(OFFSET_INDEX), files.offset_index.unwrap_or(0)),
            times: SparseIndex::existing(in_file(TIME_INDEX), files.time_index.unwrap_or(0)),
            transactions: TransactionIndex::new(in_file(TRANSACTION_INDEX), files.transaction_index),
            bytes_since_index: 0,
            max_timestamp: None,
            max_timestamp_known: false,
            first_timestamp: None,
            opened_at: now,
        }
    }

    pub(crate) const fn size(&self) -> u32 {
        self.size
    }

    /// The lengths of its files, once the indexes are written.
    pub(crate) const fn files(&self) -> SegmentFiles {
        let transactions = self.transactions.file_bytes();
        SegmentFiles {
            log: self.size as u64,
            offset_index: Some((self.offsets.len() * OffsetEntry::BYTES) as u64),
            time_index: Some((self.times.len() * TimeEntry::BYTES) as u64),
            transaction_index: if transactions > 0 { Some(transactions) } else { None },
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) const fn checked(&self) -> &Arc<CheckedBytes> {
        &self.checked
    }

    pub(crate) fn file(&mut self, disk: &dyn Disk) -> Result<&SharedFile, LogError> {
        if self.file.is_none() {
            self.file = Some(disk.open(&self.path).map_err(LogError::io(&self.path))?);
        }
        Ok(self.file.as_ref().expect("it was just opened"))
    }

    /// Writes at the end. The batches count only once [`Segment::add_batch`] is told of them.
    pub(crate) fn write(&mut self, disk: &dyn Disk, slices: &mut [IoSlice<'_>]) -> Result<(), LogError> {
        let position = u64::from(self.size);
        let result = self.file(disk)?.write_all_at(slices, position);
        result.map_err(|source| {
            self.cut_uncounted();
            LogError::Io { path: self.path.clone(), source }
        })
    }

    /// Does all of a coming [`Segment::count_batch`] that needs the disk: what follows a write must not fail, or the file
    /// would hold batches that do not count.
    pub(crate) fn prepare(&mut self, disk: &dyn Disk) -> Result<(), LogError> {
        self.load_max_timestamp(disk)?;
        self.offsets.prepare(disk).map_err(LogError::io(self.offsets.path()))?;
        self.times.prepare(disk).map_err(LogError::io(self.times.path()))
    }

    /// Takes a batch into account that stands at the end of what counts: its size, and an index entry if one is due.
    pub(crate) fn add_batch(
        &mut self,
        disk: &dyn Disk,
        header: &BatchHeader,
        config: &LogConfig,
    ) -> Result<(), LogError> {
        self.prepare(disk)?;
        self.count_batch(header, config);
        Ok(())
    }

    /// [`Segment::add_batch`] after [`Segment::prepare`].
    pub(crate) fn count_batch(&mut self, header: &BatchHeader, config: &LogConfig) {
        if self.size == 0 {
            self.first_timestamp = Some(header.max_timestamp);
        }
        let relative_offset = (header.last_offset().0 - self.base_offset.0) as u32;
        if self.max_timestamp.is_none_or(|largest| header.max_timestamp > largest.timestamp) {
            self.max_timestamp = Some(TimeEntry { timestamp: header.max_timestamp, relative_offset });
        }
        if self.bytes_since_index > config.index_interval_bytes {
            let position = if planted("index-leads-log") { self.size + header.size } else { self.size };
            self.offsets.push(OffsetEntry::new(self.base_offset, header.last_offset(), position));
            self.push_time_entry();
            self.bytes_since_index = 0;
        }
        self.size += header.size;
        self.bytes_since_index = self.bytes_since_index.saturating_add(header.size);
    }

    /// Adds the largest timestamp to the time index, if it is news. After [`Segment::prepare`].
    fn push_time_entry(&mut self) {
        let Some(largest) = self.max_timestamp else { return };
        let last = self.times.newest();
        if largest.timestamp >= Timestamp(0) && last.is_none_or(|last| largest.timestamp > last.timestamp) {
            self.times.push(largest);
        }
    }

    /// Forgets what a failed append left behind the batches that count.
    pub(crate) fn cut_uncounted(&mut self) {
        if let Some(file) = &self.file {
            // It would look like a torn batch to a clean start; after an unclean one it is cut off anyway.
            let _ = file.truncate(self.size.into());
        }
    }

    /// The largest timestamp with the last offset of the batch that has it.
    pub(crate) fn load_max_timestamp(&mut self, disk: &dyn Disk) -> Result<Option<TimeEntry>, LogError> {
        if !self.max_timestamp_known {
            self.max_timestamp = self.times.last(disk).map_err(LogError::io(self.times.path()))?;
            self.max_timestamp_known = true;
        }
        Ok(self.max_timestamp)
    }

    /// The largest timestamp for retention; the file's own time if no record has any.
    pub(crate) fn largest_timestamp(&mut self, disk: &dyn Disk) -> Result<Timestamp, LogError> {
        if let Some(entry) = self.load_max_timestamp(disk)?
            && entry.timestamp >= Timestamp(0)
        {
            return Ok(entry.timestamp);
        }
        let modified = self.file(disk)?.modified().map_err(LogError::io(&self.path))?;
        let since_epoch = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Whether the segment is to be sealed before a batch of this size, last offset and timestamp is appended.
    pub(crate) fn should_roll(
        &mut self,
        disk: &dyn Disk,
        config: &LogConfig,
        jitter_ms: i64,
        incoming: &Incoming,
        now: Timestamp,
    ) -> Result<bool, LogError> {
        if self.size > 0 && u64::from(self.size) + u64::from(incoming.size) > u64::from(config.segment_bytes) {
            return Ok(true);
        }
        if self.size > 0 && incoming.last_offset.0 - self.base_offset.0 > i64::from(i32::MAX) {
            return Ok(true);
        }
        let index_max = config.segment_index_bytes as usize;
        if self.size > 0 && (self.offsets.len() >= index_max / 8 || self.times.len() + 1 >= index_max / 12) {
            return Ok(true);
        }
        Ok(self.size > 0
            && self.waited_ms(disk, incoming.max_timestamp, now)? > config.roll_ms().saturating_sub(jitter_ms))
    }

    fn waited_ms(&mut self, disk: &dyn Disk, incoming: Timestamp, now: Timestamp) -> Result<i64, LogError> {
        Ok(match self.first_timestamp(disk)? {
            Some(first) if first >= Timestamp(0) && incoming >= Timestamp(0) => incoming.since(first),
            _ => now.since(self.opened_at),
        })
    }

    /// The first batch's timestamp.
    pub(crate) fn first_timestamp(&mut self, disk: &dyn Disk) -> Result<Option<Timestamp>, LogError> {
        if self.first_timestamp.is_none() {
            let end = u64::from(self.size);
            let mut scanner = BatchScanner::new(self.file(disk)?.clone(), 0, end, SEEK_BUFFER_BYTES);
            if let Scan::Batch { header, .. } = scanner.next().map_err(LogError::io(&self.path))? {
                self.first_timestamp = Some(header.max_timestamp);
            }
        }
        Ok(self.first_timestamp)
    }

    /// The first batch, at or after `not_before`, whose last offset is `target` or later.
    pub(crate) fn locate(&mut self, disk: &dyn Disk, target: Offset) -> Result<Option<Located>, LogError> {
        self.find(disk, target, |header| header.last_offset() >= target)
    }

    /// From where the index sends a reader of `target` on, the first batch that is wanted.
    pub(crate) fn find(
        &mut self,
        disk: &dyn Disk,
        target: Offset,
        wanted: impl Fn(&BatchHeader) -> bool,
    ) -> Result<Option<Located>, LogError> {
        let relative = (target.0 - self.base_offset.0).clamp(0, i64::from(u32::MAX)) as u32;
        let entry = self
            .offsets
            .last_that(disk, |entry| entry.relative_offset <= relative)
            .map_err(LogError::io(self.offsets.path()))?;
        let position = entry.map_or(0, |entry| entry.position);
        let end = u64::from(self.size);
        let mut scanner = BatchScanner::new(self.file(disk)?.clone(), position.into(), end, SEEK_BUFFER_BYTES);
        loop {
            match scanner.next().map_err(LogError::io(&self.path))? {
                Scan::Batch { position, header } if wanted(&header) => {
                    return Ok(Some(Located { position: position as u32, header }));
                }
                Scan::Batch { .. } => {}
                Scan::End => return Ok(None),
                Scan::Damage(error) => {
                    let reason = format!("at position {}: {error}", scanner.position());
                    return Err(LogError::malformed(&self.path, reason));
                }
            }
        }
    }

    /// The offset after which records may have the timestamp or a later one, by the time index.
    pub(crate) fn offset_before(&mut self, disk: &dyn Disk, timestamp: Timestamp) -> Result<Offset, LogError> {
        let entry = self
            .times
            .last_that(disk, |entry| entry.timestamp <= timestamp)
            .map_err(LogError::io(self.times.path()))?;
        Ok(entry.map_or(self.base_offset, |entry| self.base_offset.plus(entry.relative_offset.into())))
    }

    /// An offset of a record that lies behind a position, as near as the index knows one; `None` if it knows none.
    pub(crate) fn offset_behind(&mut self, disk: &dyn Disk, position: u64) -> Result<Option<Offset>, LogError> {
        let entry = self
            .offsets
            .first_not(disk, |entry| u64::from(entry.position) < position)
            .map_err(LogError::io(self.offsets.path()))?;
        Ok(entry.map(|entry| self.base_offset.plus(entry.relative_offset.into())))
    }

    /// A scanner over the whole segment, or from a position on.
    pub(crate) fn scan(&mut self, disk: &dyn Disk, position: u64, buffer: usize) -> Result<BatchScanner, LogError> {
        let end = u64::from(self.size);
        Ok(BatchScanner::new(self.file(disk)?.clone(), position, end, buffer))
    }

    /// The position of the last index entry, from which a clean start looks for the end.
    pub(crate) fn last_indexed_position(&mut self, disk: &dyn Disk) -> Result<u32, LogError> {
        let last = self.offsets.last(disk).map_err(LogError::io(self.offsets.path()))?;
        Ok(last.map_or(0, |entry| entry.position))
    }

    /// Whether the last index entries agree with the segment, as Kafka's sanity check asks.
    pub(crate) fn indexes_are_sane(&mut self, disk: &dyn Disk) -> Result<bool, LogError> {
        let last = self.offsets.last(disk).map_err(LogError::io(self.offsets.path()))?;
        let time = self.times.last(disk).map_err(LogError::io(self.times.path()))?;
        // An index that its writer had allocated ahead and not trimmed ends in zeros.
        Ok(last.is_none_or(|last| last.position < self.size && last.position > 0)
            && time.is_none_or(|time| time.timestamp > Timestamp(0) || self.times.len() == 1))
    }

    /// Cuts the segment off at a position and drops index entries for what is gone. `end` is the offset of the first
    /// record that is gone.
    pub(crate) fn truncate(&mut self, disk: &dyn Disk, position: u32, end: Offset) -> Result<(), LogError> {
        self.file(disk)?.truncate(position.into()).map_err(LogError::io(&self.path))?;
        self.size = position;
        self.checked.cut(position);
        let relative = (end.0 - self.base_offset.0) as u32;
        self.offsets
            .truncate(disk, |entry| entry.relative_offset < relative)
            .map_err(LogError::io(self.offsets.path()))?;
        self.times.truncate(disk, |entry| entry.relative_offset < relative).map_err(LogError::io(self.times.path()))?;
        self.transactions.truncate(disk, end).map_err(LogError::io(&self.path))?;
        self.bytes_since_index = 0;
        if position == 0 {
            self.first_timestamp = None;
        }
        self.find_max_timestamp(disk)
    }

    /// The largest timestamp, also of the batches behind the last time entry.
    fn find_max_timestamp(&mut self, disk: &dyn Disk) -> Result<(), LogError> {
        self.max_timestamp = self.times.last(disk).map_err(LogError::io(self.times.path()))?;
        self.max_timestamp_known = true;
        let indexed = self.max_timestamp.map_or(0, |entry| entry.relative_offset);
        let from = self
            .offsets
            .last_that(disk, |entry| entry.relative_offset <= indexed)
            .map_err(LogError::io(self.offsets.path()))?;
        let mut scanner = self.scan(disk, from.map_or(0, |entry| entry.position.into()), SEEK_BUFFER_BYTES)?;
        while let Scan::Batch { header, .. } = scanner.next().map_err(LogError::io(&self.path))? {
            if self.max_timestamp.is_none_or(|largest| header.max_timestamp > largest.timestamp) {
                let relative_offset = (header.last_offset().0 - self.base_offset.0) as u32;
                self.max_timestamp = Some(TimeEntry { timestamp: header.max_timestamp, relative_offset });
            }
        }
        Ok(())
    }

    /// Empties indexes and counts, to be filled again by going over the batches; in files aside for a segment that the next
    /// start would not look over again.
    pub(crate) fn begin_reindex(&mut self, disk: &dyn Disk, aside: bool) -> Result<(), LogError> {
        if aside {
            self.offsets.begin_aside(disk).map_err(LogError::io(self.offsets.path()))?;
            self.times.begin_aside(disk).map_err(LogError::io(self.times.path()))?;
        } else {
            self.offsets.clear(disk).map_err(LogError::io(self.offsets.path()))?;
            self.times.clear(disk).map_err(LogError::io(self.times.path()))?;
        }
        self.size = 0;
        (self.max_timestamp, self.max_timestamp_known) = (None, true);
        self.first_timestamp = None;
        self.bytes_since_index = 0;
        Ok(())
    }

    /// Ends the reindexing: the file is cut off behind what counted, and the last time entry is written.
    pub(crate) fn end_reindex(&mut self, disk: &dyn Disk, file_len: u64) -> Result<(), LogError> {
        if file_len > u64::from(self.size) {
            let size = self.size;
            self.file(disk)?.truncate(size.into()).map_err(LogError::io(&self.path))?;
        }
        self.checked.all();
        self.prepare(disk)?;
        self.push_time_entry();
        Ok(())
    }

    /// Syncs the indexes that were made aside and puts them in their place. Blocks.
    pub(crate) fn publish_indexes(&mut self, disk: &dyn Disk) -> Result<(), LogError> {
        self.write_indexes(disk)?;
        let mut tokens = Vec::new();
        self.sync(disk, true, &mut tokens)?;
        tokens.into_iter().try_for_each(SyncToken::complete).map_err(LogError::io(&self.path))?;
        self.release();
        self.offsets.publish(disk).map_err(LogError::io(self.offsets.path()))?;
        self.times.publish(disk).map_err(LogError::io(self.times.path()))?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        disk.sync_directory(directory).complete().map_err(LogError::io(directory))
    }

    /// Writes what the indexes have in memory, with the last time entry that Kafka expects of a sealed segment.
    pub(crate) fn write_indexes(&mut self, disk: &dyn Disk) -> Result<(), LogError> {
        self.prepare(disk)?;
        self.push_time_entry();
        self.offsets.write_tail(disk).map_err(LogError::io(self.offsets.path()))?;
        self.times.write_tail(disk).map_err(LogError::io(self.times.path()))
    }

    /// No more appends come. The log's file stays open until it is synced and idle.
    pub(crate) fn seal(&mut self, disk: &dyn Disk) -> Result<(), LogError> {
        self.prepare(disk)?;
        self.push_time_entry();
        self.offsets.seal(disk).map_err(LogError::io(self.offsets.path()))?;
        self.times.seal(disk).map_err(LogError::io(self.times.path()))
    }

    /// Tokens that make the log's file, and if asked its indexes, durable.
    pub(crate) fn sync(
        &mut self,
        disk: &dyn Disk,
        with_indexes: bool,
        tokens: &mut Vec<SyncToken>,
    ) -> Result<(), LogError> {
        tokens.push(self.file(disk)?.clone().sync());
        if with_indexes {
            tokens.push(self.offsets.sync(disk).map_err(LogError::io(self.offsets.path()))?);
            tokens.push(self.times.sync(disk).map_err(LogError::io(self.times.path()))?);
        }
        tokens.extend(self.transactions.sync(disk).map_err(LogError::io(&self.path))?);
        Ok(())
    }

    /// The folder was renamed.
    pub(crate) fn set_directory(&mut self, directory: &Path) {
        let in_file = |suffix| offset_file(directory, self.base_offset, suffix);
        self.offsets.set_path(in_file(OFFSET_INDEX));
        self.times.set_path(in_file(TIME_INDEX));
        self.transactions.set_path(in_file(TRANSACTION_INDEX));
        self.path = in_file(LOG);
    }

    /// Closes the files; the next use opens them again.
    pub(crate) fn release(&mut self) {
        self.file = None;
        self.offsets.release();
        self.times.release();
        self.transactions.release();
    }

    /// Renames the segment's files so that a start removes them, and returns their new names.
    pub(crate) fn mark_deleted(mut self, disk: &dyn Disk, suffix: &str) -> Result<Vec<std::path::PathBuf>, LogError> {
        self.release();
        let directory = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        let mut marked = Vec::new();
        // The log goes behind the indexes that can be made anew: without them it is a segment still. But not behind its aborted
        // transactions: were power lost in between, they would come back as committed. An index without a log is nobody's.
        for kind in [OFFSET_INDEX, TIME_INDEX, LOG, TRANSACTION_INDEX] {
            let from = offset_file(&directory, self.base_offset, kind);
            let to = with_suffix(&from, suffix);
            match disk.rename(&from, &to) {
                Ok(()) => marked.push(to),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(LogError::io(&from)(error)),
            }
        }
        Ok(marked)
    }
}

/// What is about to be appended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Incoming {
    pub(crate) size: u32,
    pub(crate) last_offset: Offset,
    pub(crate) max_timestamp: Timestamp,
}
