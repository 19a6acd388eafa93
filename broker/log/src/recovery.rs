//! Opening a log: tidying up what a crash left, checking what was not synced, and coming to know its end and its producers.
//!
//! The server opens many logs, in turns of [`LogOpening::step`], so that one log with much to check does not hold up the
//! rest. After a clean shutdown nothing is read but the end of the last segment and the producers' snapshot; after any other,
//! everything from the recovery point on is read and checked, and its indexes are made anew (`LogLoader` in Kafka).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use gregor_types::{LeaderEpoch, Offset, Timestamp, TopicPartition, planted::planted};
use gregor_wire::batch::BatchHeader;

use crate::{
    Disk, LogConfig, LogError, PartitionLog, SegmentCheck,
    checkpoint::read_epochs,
    disk::SharedFile,
    epoch_cache::EpochCache,
    file_names::{DELETED, LEADER_EPOCH_CHECKPOINT},
    folder::{self, Folder},
    producer_snapshot,
    producer_state::ProducerState,
    resting::closed_end,
    scanner::{SEEK_BUFFER_BYTES, Scan},
    segment::{Segment, SegmentFiles},
    segment_check::{EpochBegin, Verdict, Work},
    sparse_index::{Entry, OffsetEntry, TimeEntry},
    transaction_index::TransactionIndex,
    truncate::{read_snapshot, replay},
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
    /// Segments that are not read to their end.
    pub remaining_segments: usize,
}

/// A log that is being opened.
#[derive(Debug)]
pub struct LogOpening {
    log: PartitionLog,
    options: OpenOptions,
    producers: ProducerState,
    replay_from: Offset,
    work: Vec<Work>,
    /// Epochs of the checkpoint that begin in what is checked.
    known_epochs: VecDeque<(LeaderEpoch, Offset)>,
    /// Where the last batch ends that was checked.
    seen_end: Offset,
    /// The next of `work`.
    next: usize,
    /// Those that are under way, or done ahead of their turn, by their place in `work`.
    checks: BTreeMap<usize, SegmentCheck>,
    /// The next of `work` that can be given out.
    next_to_take: usize,
    /// Those that are given out.
    taken: BTreeSet<usize>,
    /// The log's end, once it is known.
    log_end: Option<Offset>,
    checked_bytes: u64,
    /// Whether something was cut off.
    damaged: bool,
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
        let folder = folder::tidy(&*disk, &directory)?;
        Self::of(disk, directory, options, folder)
    }

    /// The same for a folder that is tidy.
    pub(crate) fn of(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        options: OpenOptions,
        mut folder: Folder,
    ) -> Result<Self, LogError> {
        let now = options.now;
        // What a program that ended uncleanly did to the folder may not have reached the disk.
        let mut created = u64::from(!options.clean);
        let files = &mut folder.segments;
        let mut segments: Vec<_> =
            files.iter().map(|(base, files)| Segment::existing(&directory, *base, files, now)).collect();
        if segments.is_empty() {
            segments.push(Segment::create(&*disk, &directory, options.log_start_offset, now)?);
            files.push((options.log_start_offset, folder::EMPTY_SEGMENT));
            created += 1;
        }
        let epochs_path = directory.join(LEADER_EPOCH_CHECKPOINT);
        let epochs = if folder.has_epochs { read_epochs(&*disk, &epochs_path) } else { Ok(Vec::new()) };
        let mut log =
            PartitionLog::assemble(disk, directory, options.topic_partition.clone(), options.config.clone(), segments);
        log.topic_id = folder.topic_id;
        log.snapshots = folder.snapshots.iter().map(|(offset, _)| *offset).collect();
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
            known_epochs: VecDeque::new(),
            seen_end: Offset::ZERO,
            next: 0,
            checks: BTreeMap::new(),
            next_to_take: 0,
            taken: BTreeSet::new(),
            log_end: None,
            checked_bytes: 0,
            damaged: false,
        };
        opening.plan(&folder, check_from)?;
        Ok(opening)
    }

    fn plan(&mut self, folder: &Folder, mut check_from: usize) -> Result<(), LogError> {
        let files = &folder.segments;
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
            let known = if reindex[active] { None } else { closed_end(folder, self.options.recovery_point) };
            match known.map_or_else(|| self.find_end(reindex[active]), |end| Ok(Some(end)))? {
                Some(end) => self.log_end = Some(end),
                None => check_from = active,
            }
        }
        let snapshot_at_most = match (self.log_end, self.log.segments.get(check_from)) {
            (_, Some(segment)) => segment.base_offset,
            (end, None) => end.unwrap_or(Offset::ZERO),
        };
        if let Some(first) = self.log.segments.get(check_from) {
            // Epochs that begin there are found again; known from a later state, they would be in the way of earlier ones.
            let base = first.base_offset;
            let known = self.log.epochs.entries();
            self.known_epochs = known[known.partition_point(|(_, start)| *start < base)..].to_vec().into();
            self.log.epochs.truncate_from_end(base);
            self.seen_end = base;
        }
        self.remove_useless_snapshots()?;
        (self.producers, self.replay_from) = match (self.log_end, folder.snapshots.last()) {
            // Its length says that there is no producer in it.
            (Some(end), Some((newest, producer_snapshot::EMPTY_BYTES)))
                if end == *newest && check_from > active && self.log.snapshots.contains(newest) =>
            {
                (ProducerState::default(), end)
            }
            _ => self.log.load_snapshot(snapshot_at_most, self.options.now)?,
        };
        for (segment, (_, files)) in files.iter().enumerate() {
            let check = segment >= check_from;
            let next_base = self.log.segments.get(segment + 1).map(|next| next.base_offset).or(self.log_end);
            let replays = next_base.is_none_or(|next| next > self.replay_from);
            if check || reindex[segment] || replays {
                let reindex = check || reindex[segment];
                let may_end_early =
                    self.options.config.compact || self.log.segments[segment].base_offset < self.options.cleaned_to;
                let next_base = self.log.segments.get(segment + 1).map(|next| next.base_offset);
                self.work.push(Work { segment, file_len: files.log, check, reindex, next_base, may_end_early });
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

    /// Gives out a segment that can be checked by itself, on another thread; `None` if there is none (left). What
    /// [`LogOpening::step`] would do is the same, one segment after the other.
    pub fn take_check(&mut self) -> Option<SegmentCheck> {
        while let Some(work) = self.work.get(self.next_to_take.max(self.next)).copied() {
            let place = self.next_to_take.max(self.next);
            self.next_to_take = place + 1;
            if work.reindex && !self.checks.contains_key(&place) {
                self.taken.insert(place);
                return Some(self.check(work));
            }
        }
        None
    }

    /// Takes back a segment that is checked to its end.
    pub fn put_check(&mut self, check: SegmentCheck) {
        let place = self.work.iter().position(|work| work.segment == check.work.segment);
        // A segment behind a damage is gone by now.
        if let Some(place) = place {
            self.taken.remove(&place);
            self.checks.insert(place, check);
        }
    }

    /// Reads about `budget_bytes` of the log. Comes to nothing while the next segment in order is given out.
    pub fn step(&mut self, budget_bytes: u64) -> Result<OpeningProgress, LogError> {
        let mut left = budget_bytes.max(1);
        while left > 0
            && let Some(work) = self.work.get(self.next).copied()
            && !self.taken.contains(&self.next)
        {
            left = left.saturating_sub(self.step_segment(work, left)?.max(1));
        }
        let rest = self.work.iter().enumerate().skip(self.next);
        let left_of = |(place, work): (usize, &Work)| {
            let checked = self.checks.get(&place).map_or(0, SegmentCheck::checked_bytes);
            work.file_len.saturating_sub(checked)
        };
        Ok(OpeningProgress {
            done: self.next == self.work.len(),
            checked_bytes: self.checked_bytes,
            remaining_bytes: rest.map(left_of).sum(),
            remaining_segments: self.work.len() - self.next,
        })
    }

    /// A check of a segment, whose place in the log a new one keeps in the meantime.
    fn check(&mut self, work: Work) -> SegmentCheck {
        let place = &mut self.log.segments[work.segment];
        let stand_in =
            Segment::existing(&self.log.directory, place.base_offset, &SegmentFiles::default(), self.options.now);
        let segment = std::mem::replace(place, stand_in);
        SegmentCheck::new(self.log.disk.clone(), self.log.config.clone(), segment, work)
    }

    /// Of a transaction whose records the cleaner has taken, only the snapshot at a segment's begin knows where it began.
    fn take_snapshot_at(&mut self, base: Offset) -> Result<(), LogError> {
        if base > self.replay_from
            && self.log.snapshots.contains(&base)
            && let Some(mut producers) = read_snapshot(&*self.log.disk, &self.log.directory, base)?
        {
            producers.remove_expired(self.options.now, self.options.config.producer_id_expiration_ms);
            self.producers.replace_by(producers);
        }
        Ok(())
    }

    fn step_segment(&mut self, work: Work, budget_bytes: u64) -> Result<u64, LogError> {
        let begun = self.checks.remove(&self.next);
        if begun.as_ref().is_none_or(SegmentCheck::is_done) {
            self.take_snapshot_at(self.log.segments[work.segment].base_offset)?;
        }
        let mut check = match begun {
            Some(check) => check,
            None => self.check(work),
        };
        let Self { log, producers, replay_from, known_epochs, seen_end, .. } = self;
        let mut take_in = |file: &SharedFile, position, header: &BatchHeader, index: &mut TransactionIndex| {
            if work.check {
                let (epoch, first) = (header.leader_epoch, header.base_offset);
                begin_epoch(&mut log.epochs, known_epochs, &EpochBegin { epoch, first, behind: *seen_end });
                *seen_end = header.next_offset();
            }
            if header.base_offset >= *replay_from
                && let (true, Some(aborted)) = (work.check, replay(producers, file, position, header)?)
            {
                index.append(&*log.disk, &aborted)?;
            }
            Ok(())
        };
        let is_ahead = check.is_done();
        let mut read = 0;
        if is_ahead {
            // It was checked ahead of its turn: what depends on the order is still to come.
            if check.summary.is_incomplete {
                check.visit(&mut take_in)?;
            } else if work.check {
                check.summary.epochs.iter().for_each(|begin| begin_epoch(&mut log.epochs, known_epochs, begin));
                *seen_end = check.end;
            }
        } else {
            read = match check.step_with(budget_bytes, &mut take_in) {
                Err(LogError::Malformed { .. }) if self.options.clean && !work.reindex => {
                    self.distrust()?;
                    return Ok(work.file_len);
                }
                read => read?,
            };
        }
        self.checked_bytes += if is_ahead { check.checked_bytes() } else { read };
        if check.is_done() {
            self.end_segment(check)?;
        } else {
            self.checks.insert(self.next, check);
        }
        Ok(read)
    }

    /// A log that was closed is damaged where it ends: it is opened as if it had not been closed.
    fn distrust(&mut self) -> Result<(), LogError> {
        let (disk, directory) = (self.log.disk.clone(), self.log.directory.clone());
        let options = OpenOptions { clean: false, ..self.options.clone() };
        let folder = folder::tidy(&*disk, &directory)?;
        *self = Self::of(disk, directory, options, folder)?;
        Ok(())
    }

    fn end_segment(&mut self, check: SegmentCheck) -> Result<(), LogError> {
        let disk = self.log.disk.clone();
        let SegmentCheck { work, mut segment, end, verdict, .. } = check;
        self.next += 1;
        let is_last = work.segment + 1 == self.log.segments.len();
        let damaged = verdict == Some(Verdict::Damaged);
        let ends_here = is_last || (damaged && work.check);
        if !ends_here {
            segment.seal(&*disk)?;
            segment.release();
        }
        self.log.segments[work.segment] = segment;
        self.damaged |= damaged;
        if damaged && work.check {
            // Nothing behind the damage is known to follow what is before it.
            for later in self.log.segments.split_off(work.segment + 1) {
                for path in later.mark_deleted(&*disk, DELETED)? {
                    disk.remove_file(&path).map_err(LogError::io(&path))?;
                }
            }
            self.log.directory_changes += 1;
            self.work.truncate(self.next);
            self.checks.clear();
            self.taken.clear();
        }
        if ends_here {
            self.log_end = Some(end);
        }
        Ok(())
    }

    /// The opened log. Call it when [`OpeningProgress::done`].
    pub fn finish(mut self) -> Result<PartitionLog, LogError> {
        while !self.step(u64::MAX)?.done {}
        let OpenOptions { clean, now, recovery_point, log_start_offset, cleaned_to, .. } = self.options;
        let log = &mut self.log;
        log.cleaned_to = (cleaned_to > Offset::ZERO).then_some(cleaned_to);
        log.end_offset = self.log_end.unwrap_or(log.active_segment_base());
        log.producers = if planted("producers-not-restored") { ProducerState::default() } else { self.producers };
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
            // A cleaned segment is on the disk before it is in its place: what was cut off is only what is missing.
            log.cleaned_to = (cleaned_to > Offset::ZERO).then_some(cleaned_to.min(end));
        }
        // Of thousands of logs that are opened, few are used soon.
        log.release_files();
        log.active().release();
        log.recovery_point = if untouched { end } else { recovery_point.min(end) };
        Ok(self.log)
    }
}

/// Notes an epoch of a batch. The checkpoint says better where it begins, and which epochs were before it, if the cleaner has taken
/// their records; unless what it says is of another history.
fn begin_epoch(epochs: &mut EpochCache, known: &mut VecDeque<(LeaderEpoch, Offset)>, begin: &EpochBegin) {
    if planted("epochs-not-recovered") {
        return;
    }
    while let Some((epoch, start)) = known.pop_front_if(|(epoch, _)| *epoch <= begin.epoch) {
        if begin.behind <= start && start <= begin.first {
            epochs.assign(epoch, start);
        }
    }
    epochs.assign(begin.epoch, begin.first);
}
