//! Opening a log: tidying up what a crash left, checking what was not synced, and coming to know its end and its producers.
//!
//! The server opens many logs, in turns of [`LogOpening::step`], so that one log with much to check does not hold up the
//! rest. After a clean shutdown nothing is read but the end of the last segment and the producers' snapshot; after any other,
//! everything from the recovery point on is read and checked, and its indexes are made anew (`LogLoader` in Kafka).

use std::{path::PathBuf, sync::Arc};

use gregor_types::{Offset, Timestamp, TopicPartition};
use gregor_wire::batch::BatchHeader;

use crate::{
    Disk, LogConfig, LogError, PartitionLog,
    checkpoint::read_epochs,
    epoch_cache::EpochCache,
    file_names::{DELETED, LEADER_EPOCH_CHECKPOINT},
    folder::{self, Folder},
    producer_state::ProducerState,
    scanner::{BatchScanner, SEEK_BUFFER_BYTES, SWEEP_BUFFER_BYTES, Scan},
    segment::Segment,
    sparse_index::{Entry, OffsetEntry, TimeEntry},
    transaction_index::TransactionIndex,
    truncate::replay,
};

/// What is known of a log before it is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Whose log it is.
    pub topic_partition: TopicPartition,
    /// Its settings.
    pub config: Arc<LogConfig>,
    /// Everything before this offset was synced, says the checkpoint; 0 checks everything.
    pub recovery_point: Offset,
    /// The first offset that readers may see, says the checkpoint; 0 where it says nothing.
    pub log_start_offset: Offset,
    /// The cleaner has been over everything before this offset, says its checkpoint; 0 where it says nothing. A segment
    /// there may end before the next begins.
    pub cleaned_to: Offset,
    /// Whether the log was closed before the program ended.
    pub clean: bool,
    /// The time.
    pub now: Timestamp,
}

/// How far an opening is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpeningProgress {
    /// Whether [`LogOpening::finish`] has nothing left to read.
    pub done: bool,
    /// Bytes of segments read so far.
    pub checked_bytes: u64,
    /// Bytes of segments still to read, at most.
    pub remaining_bytes: u64,
}

/// A log that is being opened.
#[derive(Debug)]
pub struct LogOpening {
    log: PartitionLog,
    options: OpenOptions,
    producers: ProducerState,
    replay_from: Offset,
    work: Vec<Work>,
    /// The next of `work`.
    next: usize,
    current: Option<BatchScanner>,
    /// The end of the last batch seen in the segment at hand.
    end: Offset,
    /// The log's end, once it is known.
    log_end: Option<Offset>,
    checked_bytes: u64,
    /// Whether something was cut off.
    damaged: bool,
}

/// What is to be done with one segment.
#[derive(Debug, Clone, Copy)]
struct Work {
    segment: usize,
    file_len: u64,
    /// Check everything, and end the log at the first damage.
    check: bool,
    /// Make the indexes anew.
    reindex: bool,
}

impl PartitionLog {
    /// Opens a log at once, however much there is to check.
    pub fn open(disk: Arc<dyn Disk>, directory: PathBuf, options: OpenOptions) -> Result<Self, LogError> {
        let mut opening = LogOpening::new(disk, directory, options)?;
        while !opening.step(u64::MAX)?.done {}
        opening.finish()
    }
}

impl LogOpening {
    /// Tidies up the folder and finds out what there is to do. Reads little.
    pub fn new(disk: Arc<dyn Disk>, directory: PathBuf, options: OpenOptions) -> Result<Self, LogError> {
        let Folder { segments: mut files, snapshots, topic_id } = folder::tidy(&*disk, &directory)?;
        let now = options.now;
        // What a program that ended uncleanly did to the folder may not have reached the disk.
        let mut created = u64::from(!options.clean);
        let mut segments: Vec<_> =
            files.iter().map(|(base, files)| Segment::existing(&directory, *base, files, now)).collect();
        if segments.is_empty() {
            segments.push(Segment::create(&*disk, &directory, options.log_start_offset, now)?);
            files.push((options.log_start_offset, folder::EMPTY_SEGMENT));
            created += 1;
        }
        let epochs_path = directory.join(LEADER_EPOCH_CHECKPOINT);
        let epochs = read_epochs(&*disk, &epochs_path);
        let mut log =
            PartitionLog::assemble(disk, directory, options.topic_partition.clone(), options.config.clone(), segments);
        log.topic_id = topic_id;
        log.snapshots = snapshots;
        log.directory_changes = created;
        let mut check_from = log.segments.len();
        match epochs {
            Ok(entries) => log.epochs = EpochCache::new(entries),
            // A torn file is made anew from the batches themselves.
            Err(LogError::Malformed { .. }) => check_from = 0,
            Err(error) => return Err(error),
        }
        if !options.clean {
            check_from = check_from.min(log.segment_at(options.recovery_point));
        }
        let mut opening = Self {
            log,
            options,
            producers: ProducerState::default(),
            replay_from: Offset::ZERO,
            work: Vec::new(),
            next: 0,
            current: None,
            end: Offset::ZERO,
            log_end: None,
            checked_bytes: 0,
            damaged: false,
        };
        opening.plan(&files, check_from)?;
        Ok(opening)
    }

    fn plan(
        &mut self,
        files: &[(Offset, crate::segment::SegmentFiles)],
        mut check_from: usize,
    ) -> Result<(), LogError> {
        let active = self.log.segments.len() - 1;
        let broken = files
            .iter()
            .position(|(_, files)| files.transaction_index.is_some_and(|len| !TransactionIndex::is_whole(len)));
        check_from = check_from.min(broken.unwrap_or(usize::MAX));
        let whole = |len: Option<u64>, entry: usize| len.is_some_and(|len| len.is_multiple_of(entry as u64));
        let mut reindex: Vec<bool> = files
            .iter()
            .map(|(_, files)| {
                !whole(files.offset_index, OffsetEntry::BYTES) || !whole(files.time_index, TimeEntry::BYTES)
            })
            .collect();
        if check_from > active {
            let disk = self.log.disk.clone();
            reindex[active] |= !self.log.active().indexes_are_sane(&*disk)?;
            match self.find_end(reindex[active])? {
                Some(end) => self.log_end = Some(end),
                None => check_from = active,
            }
        }
        let snapshot_at_most = match (self.log_end, self.log.segments.get(check_from)) {
            (_, Some(segment)) => segment.base_offset,
            (end, None) => end.unwrap_or(Offset::ZERO),
        };
        self.remove_useless_snapshots()?;
        (self.producers, self.replay_from) = self.log.load_snapshot(snapshot_at_most)?;
        for (segment, (_, files)) in files.iter().enumerate() {
            let check = segment >= check_from;
            let next_base = self.log.segments.get(segment + 1).map(|next| next.base_offset).or(self.log_end);
            let replays = next_base.is_none_or(|next| next > self.replay_from);
            if check || reindex[segment] || replays {
                let reindex = check || reindex[segment];
                self.work.push(Work { segment, file_len: files.log, check, reindex });
            }
        }
        Ok(())
    }

    /// The log's end after a clean shutdown, from the last indexed batch on; `None` if there is damage.
    fn find_end(&mut self, without_index: bool) -> Result<Option<Offset>, LogError> {
        let disk = self.log.disk.clone();
        let active = self.log.active();
        let mut end = active.base_offset;
        if active.size() == 0 {
            return Ok(Some(end));
        }
        let from = if without_index { 0 } else { active.last_indexed_position(&*disk)? };
        let path = active.path().to_owned();
        let mut scanner = active.scan(&*disk, from.into(), SEEK_BUFFER_BYTES)?;
        loop {
            match scanner.next().map_err(LogError::io(&path))? {
                Scan::Batch { header, .. } if header.last_offset() >= end => end = header.next_offset(),
                Scan::End => return Ok(Some(end)),
                Scan::Batch { .. } | Scan::Damage(_) => return Ok(None),
            }
        }
    }

    /// Kafka's rule: a snapshot stays if a segment begins there, or if it is the newest behind the last segment's begin.
    fn remove_useless_snapshots(&mut self) -> Result<(), LogError> {
        let bases: Vec<_> = self.log.segments.iter().map(|segment| segment.base_offset).collect();
        let last_base = *bases.last().expect("a log has a segment");
        let newest = self.log.snapshots.last().copied().filter(|newest| *newest > last_base);
        self.log.remove_snapshots(|offset| bases.binary_search(&offset).is_ok() || newest == Some(offset))
    }

    /// Reads about `budget_bytes` of the log.
    pub fn step(&mut self, budget_bytes: u64) -> Result<OpeningProgress, LogError> {
        let until = self.checked_bytes.saturating_add(budget_bytes.max(1));
        while self.checked_bytes < until
            && let Some(work) = self.work.get(self.next).copied()
        {
            self.step_segment(work, until)?;
        }
        let remaining = self.work[self.next.min(self.work.len())..].iter().map(|work| work.file_len).sum::<u64>();
        let in_current = self.current.as_ref().map_or(0, BatchScanner::position);
        Ok(OpeningProgress {
            done: self.next == self.work.len(),
            checked_bytes: self.checked_bytes,
            remaining_bytes: remaining.saturating_sub(in_current),
        })
    }

    fn step_segment(&mut self, work: Work, until: u64) -> Result<(), LogError> {
        let disk = self.log.disk.clone();
        let config = self.log.config.clone();
        let next_base = self.log.segments.get(work.segment + 1).map(|next| next.base_offset);
        let segment = &mut self.log.segments[work.segment];
        // A segment ends before the next begins where the cleaner has taken its last records, or where power failed after
        // the next one had reached the disk. The latter is damage, though Kafka would serve the hole.
        let may_end_early = config.compact || segment.base_offset < self.options.cleaned_to;
        let path = segment.path().to_owned();
        let file = segment.file(&*disk)?.clone();
        if self.current.is_none() {
            if work.reindex {
                segment.begin_reindex(&*disk, !work.check)?;
            }
            if work.check {
                segment.transactions.clear(&*disk).map_err(LogError::io(&path))?;
            }
            self.end = segment.base_offset;
            self.current = Some(BatchScanner::new(file.clone(), 0, work.file_len, SWEEP_BUFFER_BYTES));
        }
        let scanner = self.current.as_mut().expect("it was just put there");
        loop {
            let before = scanner.position();
            let scan = if work.reindex { scanner.next_checked() } else { scanner.next() };
            let damage = match scan.map_err(LogError::io(&path))? {
                Scan::Batch { position, header } if continues(&header, self.end, segment.base_offset) => {
                    if work.reindex {
                        segment.add_batch(&*disk, &header, &config)?;
                    }
                    if work.check {
                        self.log.epochs.assign(header.leader_epoch, header.base_offset);
                    }
                    if header.base_offset >= self.replay_from {
                        let aborted = replay(&mut self.producers, &file, position, &header);
                        if let (true, Some(aborted)) = (work.check, aborted.map_err(LogError::io(&path))?) {
                            segment.transactions.append(&*disk, &aborted).map_err(LogError::io(&path))?;
                        }
                    }
                    self.end = header.next_offset();
                    self.checked_bytes += scanner.position() - before;
                    if self.checked_bytes >= until {
                        return Ok(());
                    }
                    continue;
                }
                Scan::End if work.check && !may_end_early && next_base.is_some_and(|next| next != self.end) => {
                    Some((scanner.position(), "the next segment does not begin where it ends".to_owned()))
                }
                Scan::End => None,
                Scan::Batch { position, .. } => Some((position, "its offsets do not follow".to_owned())),
                Scan::Damage(error) => Some((scanner.position(), error.to_string())),
            };
            if let (Some((position, reason)), false) = (&damage, work.reindex) {
                return Err(LogError::malformed(&path, format!("at position {position}: {reason}")));
            }
            return self.end_segment(work, damage.is_some());
        }
    }

    fn end_segment(&mut self, work: Work, damaged: bool) -> Result<(), LogError> {
        let disk = self.log.disk.clone();
        self.current = None;
        self.next += 1;
        let is_last = work.segment + 1 == self.log.segments.len();
        let segment = &mut self.log.segments[work.segment];
        if work.reindex {
            segment.end_reindex(&*disk, work.file_len)?;
        }
        if work.reindex && !work.check {
            segment.publish_indexes(&*disk)?;
        }
        if damaged {
            self.damaged = true;
            if work.check {
                // Nothing behind the damage is known to follow what is before it.
                for later in self.log.segments.split_off(work.segment + 1) {
                    for path in later.mark_deleted(&*disk, DELETED)? {
                        disk.remove_file(&path).map_err(LogError::io(&path))?;
                    }
                }
                self.log.directory_changes += 1;
                self.work.truncate(self.next);
                self.log_end = Some(self.end);
                return Ok(());
            }
        }
        if is_last {
            self.log_end = Some(self.end);
            return Ok(());
        }
        let segment = &mut self.log.segments[work.segment];
        segment.seal(&*disk)?;
        segment.release();
        Ok(())
    }

    /// The opened log. Call it when [`OpeningProgress::done`].
    pub fn finish(mut self) -> Result<PartitionLog, LogError> {
        while !self.step(u64::MAX)?.done {}
        let OpenOptions { clean, now, recovery_point, log_start_offset, .. } = self.options;
        let log = &mut self.log;
        log.end_offset = self.log_end.unwrap_or(log.active_segment_base());
        log.producers = self.producers;
        log.start_offset = log.segments[0].base_offset.max(log_start_offset);
        if log.end_offset < log.start_offset {
            let start = log.start_offset;
            log.truncate_fully_and_start_at(start, now)?;
        }
        let (start, end) = (log.start_offset, log.end_offset);
        log.epochs.truncate_from_end(end);
        log.epochs.truncate_from_start(start);
        log.remove_snapshots(|offset| offset <= end)?;
        let checked = self.work.iter().find(|work| work.check).map(|work| work.segment);
        let active = log.segments.len() - 1;
        log.indexes_synced_to = log.segments[checked.unwrap_or(active).min(active)].base_offset;
        let untouched = clean && !self.damaged;
        if !untouched {
            let from = recovery_point.min(end);
            log.note_truncation(from);
        }
        // Of thousands of logs that are opened, few are used soon.
        log.release_files();
        log.active().release();
        log.recovery_point = if untouched { end } else { recovery_point.min(end) };
        Ok(self.log)
    }
}

/// Whether a batch can stand in a segment behind a batch that ends at `end`.
fn continues(header: &BatchHeader, end: Offset, segment_base: Offset) -> bool {
    let first = if header.magic < 2 { header.last_offset() } else { header.base_offset };
    first >= end && header.last_offset().0 - segment_base.0 <= i64::from(i32::MAX)
}
