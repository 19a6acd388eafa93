//! One partition's log: what it holds in memory, how it begins, rolls, flushes and ends.
//!
//! Appends, reads, truncation, retention and opening are in modules of their own, each with its part of [`PartitionLog`].

use std::{
    collections::{BTreeSet, VecDeque},
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use gregor_types::{LeaderEpoch, Offset, Timestamp, TopicId, TopicPartition, planted::planted};

use crate::{
    ActiveProducer, Disk, EpochEndOffset, LogConfig, LogError,
    checkpoint::encode_epochs,
    disk::{SyncToken, replace_file},
    epoch_cache::EpochCache,
    file_names::{LEADER_EPOCH_CHECKPOINT, LOG, PRODUCER_SNAPSHOT, offset_file, offset_of},
    producer_snapshot,
    producer_state::ProducerState,
    segment::Segment,
    topic_id_file::TopicIdFile,
};

/// A partition's log. Every call is made under the partition's lock; none waits for a sync, but the very first append,
/// which makes the topic's id durable before the first record where nobody has done so.
#[derive(Debug)]
pub struct PartitionLog {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) directory: PathBuf,
    pub(crate) topic_partition: TopicPartition,
    pub(crate) topic_id: Option<TopicId>,
    pub(crate) config: Arc<LogConfig>,
    /// Ascending; the last one is active. Never empty.
    pub(crate) segments: Vec<Segment>,
    pub(crate) start_offset: Offset,
    pub(crate) end_offset: Offset,
    pub(crate) recovery_point: Offset,
    pub(crate) epochs: EpochCache,
    pub(crate) producers: ProducerState,
    /// The offsets of the producer snapshots on disk.
    pub(crate) snapshots: BTreeSet<Offset>,
    /// The newest batches of the active segment, so that readers at the end need no look into files.
    pub(crate) recent: VecDeque<RecentBatch>,
    /// Files that were renamed to `.deleted`, each with the time from which it may be removed.
    pub(crate) removals: VecDeque<(Timestamp, PathBuf)>,
    pub(crate) jitter_ms: i64,
    /// How far `partition.metadata` is.
    pub(crate) topic_id_file: TopicIdFile,
    /// Counts files created, renamed and removed, so that a flush knows whether the folder is to be synced.
    pub(crate) directory_changes: u64,
    /// Counts truncations of the active segment: until a flush, a crash may bring back what was cut off.
    pub(crate) truncations: u64,
    /// The lowest offset of those truncations.
    pub(crate) truncated_to: Option<Offset>,
    /// The indexes of segments that begin before this offset are on the disk.
    pub(crate) indexes_synced_to: Offset,
    synced: Synced,
    pub(crate) epoch_file: Arc<EpochFile>,
    /// Whether a sync has failed. What it was to write may be gone although a later sync says nothing, so none is believed.
    sync_failed: Arc<AtomicBool>,
    /// The bases of the segments that a cleaned one is about to replace.
    pub(crate) swapping: Vec<Offset>,
    /// The cleaner has been over everything before this offset.
    pub(crate) cleaned_to: Option<Offset>,
}

/// A batch near the end of the active segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecentBatch {
    pub(crate) base_offset: Offset,
    pub(crate) last_offset: Offset,
    pub(crate) position: u32,
    pub(crate) size: u32,
}

pub(crate) const RECENT_BATCHES: usize = 32;

/// A flush that has begun: what was appended before is being made durable.
#[derive(Debug)]
#[must_use = "nothing is durable until the token is completed"]
pub struct FlushToken {
    directory: PathBuf,
    tokens: Vec<SyncToken>,
    /// Writes `leader-epoch-checkpoint` anew, as a whole: where that fails it can be tried again.
    epochs: Option<SyncToken>,
    flushed: Flushed,
    sync_failed: Arc<AtomicBool>,
}

/// A flush that is done; give it to [`PartitionLog::flushed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flushed {
    /// Everything before this offset is on the disk.
    pub end_offset: Offset,
    /// The indexes of segments that begin before this offset are on the disk.
    indexes_to: Offset,
    synced: Synced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Synced {
    directory_changes: u64,
    epochs_version: u64,
    truncations: u64,
}

/// Writes `leader-epoch-checkpoint` from flushes that may end out of order: an older content never replaces a newer one.
#[derive(Debug)]
pub(crate) struct EpochFile(Mutex<WrittenEpochs>);

#[derive(Debug)]
struct WrittenEpochs {
    path: PathBuf,
    version: u64,
}

impl FlushToken {
    /// Blocks until it is on the disk. May be called on any thread.
    pub fn complete(self) -> Result<Flushed, LogError> {
        for token in self.tokens {
            let synced = token.complete();
            if planted("sync-error-ignored") {
                continue;
            }
            synced.map_err(|source| {
                self.sync_failed.store(true, Ordering::Release);
                LogError::SyncFailed { path: self.directory.clone(), source }
            })?;
        }
        self.epochs.map_or(Ok(()), SyncToken::complete).map_err(LogError::io(&self.directory))?;
        Ok(self.flushed)
    }

    /// Everything before this offset is on the disk once the token is completed.
    pub const fn end_offset(&self) -> Offset {
        self.flushed.end_offset
    }
}

impl PartitionLog {
    /// Creates the log of a new replica: its folder and an empty segment. A folder that has a log already is refused:
    /// what is in it is somebody's data.
    pub fn create(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        topic_partition: TopicPartition,
        topic_id: Option<TopicId>,
        config: Arc<LogConfig>,
        now: Timestamp,
    ) -> Result<Self, LogError> {
        disk.create_directory(&directory).map_err(LogError::io(&directory))?;
        let entries = disk.list(&directory).map_err(LogError::io(&directory))?;
        if let Some(entry) = entries.iter().find(|entry| offset_of(&entry.name, LOG).is_some()) {
            return Err(LogError::malformed(directory.join(&entry.name), "a log is there already: open it instead"));
        }
        let segment = Segment::create(&*disk, &directory, Offset::ZERO, now)?;
        let mut log = Self::assemble(disk, directory, topic_partition, config, vec![segment]);
        log.topic_id = topic_id;
        log.topic_id_file = if topic_id.is_some() { TopicIdFile::Missing } else { TopicIdFile::Durable };
        log.directory_changes = 1;
        Ok(log)
    }

    /// A log of these segments with nothing else known yet.
    pub(crate) fn assemble(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        topic_partition: TopicPartition,
        config: Arc<LogConfig>,
        segments: Vec<Segment>,
    ) -> Self {
        let start_offset = segments.first().map_or(Offset::ZERO, |segment| segment.base_offset);
        let epoch_path = directory.join(LEADER_EPOCH_CHECKPOINT);
        let jitter_ms = jitter(&topic_partition, config.segment_jitter_ms);
        Self {
            disk,
            directory,
            topic_partition,
            topic_id: None,
            config,
            segments,
            start_offset,
            end_offset: start_offset,
            recovery_point: start_offset,
            epochs: EpochCache::default(),
            producers: ProducerState::default(),
            snapshots: BTreeSet::new(),
            recent: VecDeque::new(),
            removals: VecDeque::new(),
            jitter_ms,
            topic_id_file: TopicIdFile::Durable,
            directory_changes: 0,
            truncations: 0,
            truncated_to: None,
            indexes_synced_to: start_offset,
            synced: Synced::default(),
            epoch_file: Arc::new(EpochFile(Mutex::new(WrittenEpochs { path: epoch_path, version: 0 }))),
            sync_failed: Arc::default(),
            swapping: Vec::new(),
            cleaned_to: None,
        }
    }

    /// Whose log it is.
    pub const fn topic_partition(&self) -> &TopicPartition {
        &self.topic_partition
    }

    /// The partition's folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The settings in force.
    pub const fn config(&self) -> &Arc<LogConfig> {
        &self.config
    }

    /// Puts new settings in force from the next call on.
    pub fn set_config(&mut self, config: Arc<LogConfig>) {
        if planted("settings-not-taken-over") {
            return;
        }
        self.jitter_ms = jitter(&self.topic_partition, config.segment_jitter_ms);
        self.config = config;
    }

    /// The first offset that readers may see.
    pub const fn start_offset(&self) -> Offset {
        self.start_offset
    }

    /// The offset of the next record.
    pub const fn end_offset(&self) -> Offset {
        self.end_offset
    }

    /// Everything before this offset is known to be on the disk.
    pub const fn recovery_point(&self) -> Offset {
        self.recovery_point
    }

    /// What `recovery-point-offset-checkpoint` is to say: where a recovery begins to check. Within the active segment it is
    /// kept before the last synced record, so that a segment whose indexes are not synced is never past it. To be written
    /// down after each truncation too, as Kafka does: records that came later are not those that were synced.
    pub fn recovery_checkpoint(&self) -> Offset {
        if self.recovery_point > self.indexes_synced_to { self.recovery_point.plus(-1) } else { self.recovery_point }
    }

    /// All batches, in bytes.
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|segment| u64::from(segment.size())).sum()
    }

    /// How many segments there are.
    pub const fn segments_count(&self) -> usize {
        self.segments.len()
    }

    /// The base offset of the active segment.
    pub fn active_segment_base(&self) -> Offset {
        self.segments.last().expect("a log has an active segment").base_offset
    }

    /// The leader epoch of the last batch; [`LeaderEpoch::NONE`] if there is none.
    pub fn last_epoch(&self) -> LeaderEpoch {
        self.epochs.latest()
    }

    /// The leader epochs and where each begins.
    pub fn epochs(&self) -> &[(LeaderEpoch, Offset)] {
        self.epochs.entries()
    }

    /// On becoming leader: the epoch begins at the log's end.
    pub fn assign_epoch_start(&mut self, epoch: LeaderEpoch, start: Offset) {
        self.epochs.assign(epoch, start);
    }

    /// Where an epoch ends. A follower that is to cut its log there is told [`Self::cut_for_epoch`].
    pub fn end_offset_for_epoch(&self, epoch: LeaderEpoch) -> EpochEndOffset {
        self.epochs.end_offset_for(epoch, self.end_offset)
    }

    /// The leader epoch of the record at an offset.
    pub fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        self.epochs.epoch_at(offset)
    }

    /// The last stable offset: where a read-committed reader stops. A transaction that began before the log's start holds it
    /// at the start.
    pub fn last_stable_offset(&mut self, high_watermark: Offset) -> Offset {
        let unstable = self.producers.first_unstable_offset(high_watermark).map(|first| first.max(self.start_offset));
        let unstable = unstable.filter(|_| !planted("last-stable-too-high"));
        unstable.map_or(high_watermark, |first| first.min(high_watermark))
    }

    /// The producers that the log remembers.
    pub fn active_producers(&self) -> impl Iterator<Item = ActiveProducer> + '_ {
        self.producers.active()
    }

    /// Whether segments were sealed that are not synced yet: a background flush is due, as Kafka does after a roll.
    pub fn has_unsynced_sealed_segments(&self) -> bool {
        self.active_segment_base() > self.recovery_point.min(self.indexes_synced_to)
    }

    pub(crate) fn active(&mut self) -> &mut Segment {
        self.segments.last_mut().expect("a log has an active segment")
    }

    /// The place in `segments` of the segment that holds an offset, or would.
    pub(crate) fn segment_at(&self, offset: Offset) -> usize {
        self.segments.partition_point(|segment| segment.base_offset <= offset).saturating_sub(1)
    }

    /// Seals the active segment and begins a new one at the log's end. Does nothing if the active one is empty.
    pub fn roll(&mut self, now: Timestamp) -> Result<(), LogError> {
        if self.active().size() == 0 && self.active_segment_base() == self.end_offset {
            return Ok(());
        }
        let disk = self.disk.clone();
        self.active().seal(&*disk)?;
        self.take_producer_snapshot()?;
        self.segments.push(Segment::create(&*disk, &self.directory, self.end_offset, now)?);
        self.recent.clear();
        self.directory_changes += 1;
        Ok(())
    }

    /// Writes the producers as of the log's end. A checksum guards the file, so it need not be synced.
    pub(crate) fn take_producer_snapshot(&mut self) -> Result<(), LogError> {
        if self.end_offset == Offset::ZERO || self.snapshots.contains(&self.end_offset) {
            return Ok(());
        }
        let path = offset_file(&self.directory, self.end_offset, PRODUCER_SNAPSHOT);
        let content = producer_snapshot::encode(&self.producers);
        self.disk
            .create(&path)
            .and_then(|file| file.write_all_at(&mut [IoSlice::new(&content)], 0))
            .map_err(LogError::io(&path))?;
        self.snapshots.insert(self.end_offset);
        self.directory_changes += 1;
        Ok(())
    }

    /// Removes the producer snapshots that `stays` says no to.
    pub(crate) fn remove_snapshots(&mut self, stays: impl Fn(Offset) -> bool) -> Result<(), LogError> {
        let gone: Vec<_> = self.snapshots.iter().copied().filter(|offset| !stays(*offset)).collect();
        for offset in gone {
            let path = offset_file(&self.directory, offset, PRODUCER_SNAPSHOT);
            match self.disk.remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(LogError::io(&path)(error)),
                _ => {}
            }
            self.snapshots.remove(&offset);
            self.directory_changes += 1;
        }
        Ok(())
    }

    /// Begins to make everything durable that was appended so far; `None` if it is. Sealed segments are synced with their
    /// indexes; the active one's indexes are made anew by a recovery, so they are not.
    pub fn flush(&mut self) -> Result<Option<FlushToken>, LogError> {
        self.check_syncs()?;
        let target = self.sync_target();
        let indexes_are_synced = self.active_segment_base() <= self.indexes_synced_to;
        if self.end_offset == self.recovery_point && target == self.synced && indexes_are_synced {
            return Ok(None);
        }
        let mut tokens = Vec::new();
        let disk = self.disk.clone();
        if self.end_offset > self.recovery_point || self.truncated_to.is_some() || !indexes_are_synced {
            let active = self.segments.len() - 1;
            let first = if planted("sealed-segment-unsynced") { active } else { self.first_unsynced_segment() };
            for (index, segment) in self.segments.iter_mut().enumerate().skip(first) {
                segment.sync(&*disk, index < active, &mut tokens)?;
            }
        }
        Ok(Some(self.token(target, tokens)))
    }

    fn first_unsynced_segment(&self) -> usize {
        // The segment that a truncation has cut ends at that offset: another may begin there since.
        let cut = self.truncated_to.map_or(self.recovery_point, |offset| offset.plus(-1));
        self.segment_at(self.recovery_point.min(self.indexes_synced_to).min(cut))
    }

    pub(crate) fn note_truncation(&mut self, to: Offset) {
        self.truncations += 1;
        self.cleaned_to = self.cleaned_to.map(|cleaned| cleaned.min(to));
        self.truncated_to = Some(self.truncated_to.map_or(to, |lowest| lowest.min(to)));
        self.indexes_synced_to = self.indexes_synced_to.min(self.segments[self.segment_at(to)].base_offset);
    }

    fn sync_target(&self) -> Synced {
        Synced {
            directory_changes: self.directory_changes,
            epochs_version: self.epochs.version(),
            truncations: self.truncations,
        }
    }

    fn push_directory_syncs(&self, target: Synced, tokens: &mut Vec<SyncToken>) {
        if target.directory_changes != self.synced.directory_changes && !planted("folder-unsynced") {
            tokens.push(self.disk.sync_directory(&self.directory));
            if let (0, Some(parent)) = (self.synced.directory_changes, self.directory.parent()) {
                tokens.push(self.disk.sync_directory(parent));
            }
        }
    }

    fn token(&self, synced: Synced, mut tokens: Vec<SyncToken>) -> FlushToken {
        self.push_directory_syncs(synced, &mut tokens);
        let epochs = (synced.epochs_version != self.synced.epochs_version).then(|| {
            let (disk, file) = (self.disk.clone(), self.epoch_file.clone());
            let content = encode_epochs(self.epochs.entries());
            SyncToken::new(move || file.write(&*disk, synced.epochs_version, &content))
        });
        let indexes_to = self.active_segment_base();
        let flushed = Flushed { end_offset: self.end_offset, indexes_to, synced };
        let sync_failed = Arc::clone(&self.sync_failed);
        FlushToken { directory: self.directory.clone(), tokens, epochs, flushed, sync_failed }
    }

    /// Nothing is written any more once a sync has failed: it could not be made durable.
    pub(crate) fn check_syncs(&self) -> Result<(), LogError> {
        if self.sync_failed.load(Ordering::Acquire) {
            let source = io::Error::other("an earlier sync failed: restart the node once the disk is well");
            return Err(LogError::SyncFailed { path: self.directory.clone(), source });
        }
        Ok(())
    }

    /// Takes note of a flush that is done: the recovery point moves up, unless the log was truncated in between, as what
    /// lies at those offsets now may be other records, or a sync has failed since.
    pub fn flushed(&mut self, flushed: Flushed) {
        if self.sync_failed.load(Ordering::Acquire) {
            return;
        }
        if flushed.synced.truncations == self.truncations {
            let end = if planted("recovery-point-past-unsynced") { self.end_offset } else { flushed.end_offset };
            self.recovery_point = self.recovery_point.max(end);
            self.truncated_to = None;
            self.indexes_synced_to = self.indexes_synced_to.max(flushed.indexes_to);
        }
        let (old, new) = (self.synced, flushed.synced);
        self.synced = Synced {
            directory_changes: old.directory_changes.max(new.directory_changes),
            epochs_version: old.epochs_version.max(new.epochs_version),
            truncations: old.truncations.max(new.truncations),
        };
    }

    /// Readies the log for a clean start of Gregor or Apache Kafka: indexes complete, producers as of the end, epochs. The
    /// caller completes the token, then writes the checkpoints and the marker; an append after this undoes it.
    pub fn close(&mut self) -> Result<FlushToken, LogError> {
        self.check_syncs()?;
        let disk = self.disk.clone();
        self.write_topic_id()?;
        self.active().write_indexes(&*disk)?;
        let snapshot_is_new = !self.snapshots.contains(&self.end_offset);
        self.take_producer_snapshot()?;
        let target = self.sync_target();
        let mut tokens = Vec::new();
        let first = self.first_unsynced_segment();
        for segment in self.segments.iter_mut().skip(first) {
            segment.sync(&*disk, true, &mut tokens)?;
        }
        if snapshot_is_new && self.snapshots.contains(&self.end_offset) {
            let path = offset_file(&self.directory, self.end_offset, PRODUCER_SNAPSHOT);
            tokens.push(disk.open(&path).map_err(LogError::io(&path))?.sync());
        }
        let mut token = self.token(target, tokens);
        token.flushed.indexes_to = self.end_offset;
        Ok(token)
    }

    /// Closes the files of sealed segments; the next read opens them again. Due now and then, so that a reader that went
    /// over the whole log does not leave all of it open.
    pub fn release_files(&mut self) {
        if let Some((_active, sealed)) = self.segments.split_last_mut() {
            for segment in sealed {
                segment.release();
            }
        }
    }
}

impl EpochFile {
    fn write(&self, disk: &dyn Disk, version: u64, content: &[u8]) -> io::Result<()> {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if written.version < version {
            replace_file(disk, &written.path, content)?;
            written.version = version;
        }
        Ok(())
    }

    /// Renames the log's folder while no flush writes into it.
    pub(crate) fn while_moved_to<E>(&self, folder: &Path, rename: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rename()?;
        written.path = folder.join(LEADER_EPOCH_CHECKPOINT);
        Ok(())
    }
}

/// A log's own share of `segment.jitter.ms`, so that logs created together do not roll together.
fn jitter(topic_partition: &TopicPartition, max_ms: i64) -> i64 {
    if max_ms <= 0 {
        return 0;
    }
    let hash = topic_partition
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash % (max_ms as u64 + 1)) as i64
}
