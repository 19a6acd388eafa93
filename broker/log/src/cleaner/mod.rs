//! Compaction: of the records with the same key, only the newest stays (`LogCleaner`, `Cleaner`).
//!
//! A round reads the dirty part of a log into a map from key to newest offset, then copies the segments from the log's start
//! up to where the map ends, without what the map or a transaction's end says is obsolete. The shell drives a [`Cleaning`] by
//! steps, without the partition's lock; the lock is held to begin and to put each cleaned segment in its place.
//!
//! Architecture Invariant: offsets never change, the active segment and what is not stable are never touched, and what a
//! crash leaves is either the old segments or the cleaned one.

mod filter;
mod offset_map;
mod plan;
mod swap;
mod transactions;

use std::{
    collections::VecDeque,
    io::IoSlice,
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use gregor_types::{Offset, Timestamp, planted::planted};
use gregor_wire::batch::{BatchHeader, BatchView};

use self::{
    filter::{DECOMPRESSED_BYTES_MAX, Kept, Rules},
    offset_map::OffsetMap,
    transactions::CleanedTransactions,
};
use crate::{
    AbortedTransaction, Disk, LogConfig, LogError, PartitionLog,
    disk::{SharedFile, SyncToken},
    file_names::{CLEANED, LOG, offset_file},
    scanner::{BatchScanner, SWEEP_BUFFER_BYTES, Scan},
    segment::Segment,
    transaction_index::WrittenTransactions,
};

pub(crate) use filter::LastRecord;
pub use plan::Cleanable;
pub use swap::CleanedSegment;

/// Cleaned batches are written when so many bytes have gathered.
const OUTPUT_BYTES: usize = 512 << 10;

/// What a round of cleaning may use.
#[derive(Debug, Clone, Copy)]
pub struct CleaningOptions {
    /// `log.cleaner.dedupe.buffer.size`, shared among the cleaner's threads: bytes for the map of keys.
    pub memory_bytes: usize,
    /// `log.cleaner.io.buffer.load.factor`: how full the map may get, 0 to 1.
    pub load_factor: f64,
    /// The time of the round.
    pub now: Timestamp,
}

/// What a step of a round came to.
#[derive(Debug)]
pub enum CleaningStep {
    /// There is more to do.
    More,
    /// A segment is to be put in its place before the next step.
    Swap(CleanedSegment),
    /// The round is over: everything before this offset is clean.
    Done(Offset),
}

/// One round over one log.
#[derive(Debug)]
pub struct Cleaning {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    config: Arc<LogConfig>,
    truncations: u64,
    first_dirty: Offset,
    sources: Vec<Source>,
    /// The first of them that is not replaced yet.
    next_source: usize,
    aborted: Vec<AbortedTransaction>,
    rules: Rules,
    map: OffsetMap,
    /// For the pass at hand.
    transactions: CleanedTransactions,
    phase: Phase,
    buffer: Vec<u8>,
    bytes: u64,
}

/// A segment to read.
#[derive(Debug, Clone, Copy)]
struct Source {
    base: Offset,
    next_base: Offset,
    size: u32,
    offset_index_bytes: u64,
    time_index_bytes: u64,
}

#[derive(Debug)]
enum Phase {
    /// Reading which transactions were aborted: the indexes that are left.
    Transactions(VecDeque<WrittenTransactions>),
    /// Reading keys: the source at hand.
    Mapping(usize, Option<BatchScanner>),
    Copying(Box<Copying>),
}

#[derive(Debug)]
struct Copying {
    groups: VecDeque<Range<usize>>,
    output: Option<Output>,
    old_deletes_before: SystemTime,
}

/// A cleaned segment in the making.
#[derive(Debug)]
struct Output {
    group: Range<usize>,
    segment: Segment,
    /// Batches that are not written yet.
    pending: Vec<u8>,
    headers: Vec<BatchHeader>,
    /// The source at hand, and its scanner once it is open.
    source: usize,
    scanner: Option<(BatchScanner, bool)>,
    modified: SystemTime,
}

impl PartitionLog {
    /// Begins a round over what is cleanable. Reads nothing.
    pub fn begin_cleaning(&self, cleanable: &Cleanable, options: &CleaningOptions) -> Cleaning {
        let upper_bound = cleanable.first_uncleanable;
        let sealed = self.segments.len() - 1;
        let next_bases = self.segments.iter().skip(1).map(|next| next.base_offset);
        let sources: Vec<_> = self.segments[..sealed]
            .iter()
            .zip(next_bases)
            .filter(|(segment, _)| segment.base_offset < upper_bound)
            .map(|(segment, next_base)| {
                let files = segment.files();
                Source {
                    base: segment.base_offset,
                    next_base,
                    size: segment.size(),
                    offset_index_bytes: files.offset_index.unwrap_or(0),
                    time_index_bytes: files.time_index.unwrap_or(0),
                }
            })
            .collect();
        // Beyond the upper bound too: what begins before it may end there.
        let indexes = self.segments.iter().map(|segment| segment.transactions.as_it_is());
        let keys_max = upper_bound.0.saturating_sub(cleanable.first_dirty.0).clamp(0, 1 << 40) as usize;
        Cleaning {
            disk: self.disk.clone(),
            directory: self.directory.clone(),
            config: self.config.clone(),
            truncations: self.truncations,
            first_dirty: cleanable.first_dirty,
            sources,
            next_source: 0,
            transactions: CleanedTransactions::new(Vec::new()),
            aborted: Vec::new(),
            rules: Rules {
                now: options.now,
                delete_retention_ms: self.config.delete_retention_ms,
                last_records: self.producers.last_records(),
                upper_bound,
            },
            map: OffsetMap::new(options.memory_bytes, options.load_factor, keys_max),
            phase: Phase::Transactions(indexes.filter(|index| !index.is_empty()).collect()),
            buffer: Vec::new(),
            bytes: 0,
        }
    }
}

impl Cleaning {
    /// Reads and writes about `budget_bytes`. After an error the round is over, and nothing of it is left.
    pub fn step(&mut self, budget_bytes: u64) -> Result<CleaningStep, LogError> {
        let until = self.bytes.saturating_add(budget_bytes.max(1));
        while self.bytes < until {
            match &self.phase {
                Phase::Transactions(_) => self.read_transactions()?,
                Phase::Mapping(..) => self.map_more(until)?,
                Phase::Copying(copying) if copying.output.is_none() && copying.groups.is_empty() => {
                    return Ok(CleaningStep::Done(self.map.latest().plus(1).max(self.first_dirty)));
                }
                Phase::Copying(_) => {
                    if let Some(cleaned) = self.copy_more(until)? {
                        return Ok(CleaningStep::Swap(cleaned));
                    }
                }
            }
        }
        Ok(CleaningStep::More)
    }

    /// Bytes that were read and written so far, for a throttle.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The share of the memory for keys that is taken: 0 to 1.
    pub fn buffer_utilization(&self) -> f64 {
        self.map.utilization()
    }

    /// Removes what the round has written and not handed over: the log is not to be cleaned after all.
    pub fn abandon(self) -> Result<(), LogError> {
        let Phase::Copying(copying) = self.phase else { return Ok(()) };
        let Some(output) = copying.output else { return Ok(()) };
        swap::remove_files(&*self.disk, &self.directory, output.segment.base_offset, CLEANED)
    }

    fn path(&self, source: &Source) -> PathBuf {
        offset_file(&self.directory, source.base, LOG)
    }

    fn open(&self, source: &Source) -> Result<SharedFile, LogError> {
        let path = self.path(source);
        self.disk.open(&path).map_err(LogError::io(&path))
    }

    /// Reads one index.
    fn read_transactions(&mut self) -> Result<(), LogError> {
        let Phase::Transactions(indexes) = &mut self.phase else { return Ok(()) };
        let upper_bound = self.rules.upper_bound;
        if let Some(index) = indexes.pop_front() {
            let read = index.read(&*self.disk).map_err(LogError::io(&self.directory))?;
            self.bytes += index.bytes();
            // No transaction that ends later began before this offset.
            let is_last = read.last().is_some_and(|last| last.last_stable_offset >= upper_bound);
            self.aborted.extend(read.into_iter().filter(|transaction| transaction.first_offset < upper_bound));
            if !is_last {
                return Ok(());
            }
        }
        // An older one of the same producer would be taken for the one that is open.
        let ends_in_dirty_part = self.aborted.iter().filter(|one| one.last_offset >= self.first_dirty);
        self.transactions = CleanedTransactions::new(ends_in_dirty_part.copied().collect());
        self.phase = Phase::Mapping(0, None);
        Ok(())
    }

    fn map_more(&mut self, until: u64) -> Result<(), LogError> {
        let Phase::Mapping(at, scanner) = &mut self.phase else { return Ok(()) };
        let Some(source) = self.sources.get(*at).copied() else { return self.begin_copying() };
        if source.next_base <= self.first_dirty {
            *at += 1;
            return Ok(());
        }
        let mut scanner = match scanner.take() {
            Some(scanner) => scanner,
            None => BatchScanner::new(self.open(&source)?, 0, source.size.into(), SWEEP_BUFFER_BYTES),
        };
        let path = self.path(&source);
        while self.bytes < until {
            match scanner.next().map_err(LogError::io(&path))? {
                Scan::Batch { header, .. } if header.last_offset() < self.first_dirty => {}
                Scan::Batch { position, header } => {
                    let file = scanner.file().clone();
                    read_batch(&file, position, &header, &mut self.buffer, &path)?;
                    self.bytes += u64::from(header.size);
                    if !self.note(&path)? {
                        return self.begin_copying();
                    }
                }
                Scan::End => {
                    self.map.advance(source.next_base.min(self.rules.upper_bound).plus(-1));
                    if let Phase::Mapping(at, _) = &mut self.phase {
                        *at += 1;
                    }
                    return Ok(());
                }
                Scan::Damage(error) => return Err(LogError::malformed(&path, error.to_string())),
            }
        }
        if let Phase::Mapping(_, kept) = &mut self.phase {
            *kept = Some(scanner);
        }
        Ok(())
    }

    /// Takes the keys of the batch in the buffer into the map; `false` where it is full.
    fn note(&mut self, path: &std::path::Path) -> Result<bool, LogError> {
        let malformed = |error: gregor_wire::batch::BatchError| LogError::malformed(path, error.to_string());
        let batch = BatchView::parse(&self.buffer).map_err(malformed)?;
        let records = batch.records(DECOMPRESSED_BYTES_MAX).map_err(malformed)?;
        if batch.is_control() {
            self.transactions.on_control(&batch, &records);
        } else if !self.transactions.on_data(&batch) {
            for record in &records {
                let record = record.map_err(malformed)?;
                if let Some(key) = record.key.filter(|_| record.offset >= self.first_dirty)
                    && !self.map.put(key, record.offset)
                {
                    return Ok(false);
                }
            }
        }
        self.map.advance(batch.last_offset());
        Ok(true)
    }

    fn begin_copying(&mut self) -> Result<(), LogError> {
        let end = self.map.latest().plus(1);
        self.sources.retain(|source| source.base < end);
        let last_clean = self.sources.iter().rfind(|source| source.base < self.first_dirty).copied();
        let old_deletes_before = match last_clean {
            Some(source) => {
                let path = self.path(&source);
                let modified = self.open(&source)?.modified().map_err(LogError::io(&path))?;
                let retention = std::time::Duration::from_millis(self.rules.delete_retention_ms.max(0).unsigned_abs());
                modified.checked_sub(retention).unwrap_or(UNIX_EPOCH)
            }
            None => UNIX_EPOCH,
        };
        let groups = plan::groups(&self.sources, &self.config).into();
        self.transactions = CleanedTransactions::new(std::mem::take(&mut self.aborted));
        self.phase = Phase::Copying(Box::new(Copying { groups, output: None, old_deletes_before }));
        Ok(())
    }

    fn copy_more(&mut self, until: u64) -> Result<Option<CleanedSegment>, LogError> {
        let Phase::Copying(copying) = &mut self.phase else { return Ok(None) };
        let output = if let Some(output) = copying.output.take() {
            output
        } else {
            let Some(group) = copying.groups.pop_front() else { return Ok(None) };
            self.next_source = group.start;
            let base = self.sources[group.start].base;
            let segment = Segment::create_marked(&*self.disk, &self.directory, base, CLEANED, self.rules.now)?;
            Output {
                source: group.start,
                group,
                segment,
                pending: Vec::new(),
                headers: Vec::new(),
                scanner: None,
                modified: UNIX_EPOCH,
            }
        };
        let (base, old_deletes_before) = (output.segment.base_offset, copying.old_deletes_before);
        let copied = self.copy_into(output, old_deletes_before, until);
        if copied.is_err() {
            // On a full disk, it would take from producers the room that they need.
            let _ = swap::remove_files(&*self.disk, &self.directory, base, CLEANED);
        }
        copied
    }

    fn copy_into(
        &mut self,
        mut output: Output,
        old_deletes_before: SystemTime,
        until: u64,
    ) -> Result<Option<CleanedSegment>, LogError> {
        while self.bytes < until {
            if output.source == output.group.end {
                return self.finish(output).map(Some);
            }
            self.copy_source(&mut output, old_deletes_before, until)?;
        }
        if let Phase::Copying(copying) = &mut self.phase {
            copying.output = Some(output);
        }
        Ok(None)
    }

    fn copy_source(&mut self, output: &mut Output, old_deletes_before: SystemTime, until: u64) -> Result<(), LogError> {
        let source = self.sources[output.source];
        let path = self.path(&source);
        let (mut scanner, old_deletes_stay) = if let Some(scanner) = output.scanner.take() {
            scanner
        } else {
            let file = self.open(&source)?;
            output.modified = file.modified().map_err(LogError::io(&path))?;
            let stay = output.modified > old_deletes_before;
            (BatchScanner::new(file, 0, source.size.into(), SWEEP_BUFFER_BYTES), stay)
        };
        let malformed = |error: gregor_wire::batch::BatchError| LogError::malformed(&path, error.to_string());
        while self.bytes < until {
            let (position, header) = match scanner.next().map_err(LogError::io(&path))? {
                Scan::Batch { position, header } => (position, header),
                Scan::End => {
                    output.source += 1;
                    return Ok(());
                }
                Scan::Damage(error) => return Err(malformed(error)),
            };
            let file = scanner.file().clone();
            read_batch(&file, position, &header, &mut self.buffer, &path)?;
            let batch = BatchView::parse(&self.buffer).map_err(malformed)?;
            let filtered =
                self.rules.filter(&batch, &self.map, &mut self.transactions, old_deletes_stay).map_err(malformed)?;
            if let Some(aborted) = filtered.aborted {
                output.segment.transactions.append(&*self.disk, &aborted).map_err(LogError::io(&path))?;
            }
            self.bytes += u64::from(header.size);
            match &filtered.kept {
                Kept::Nothing => continue,
                Kept::Original => output.take(batch.bytes(), header),
                Kept::Rewritten(bytes) => output.take(bytes, *BatchView::parse(bytes).map_err(malformed)?.header()),
            }
            if output.pending.len() >= OUTPUT_BYTES {
                self.bytes += output.write(&*self.disk, &self.config)?;
            }
        }
        output.scanner = Some((scanner, old_deletes_stay));
        Ok(())
    }

    /// Makes the cleaned segment durable under its `.cleaned` names. Blocks.
    fn finish(&mut self, mut output: Output) -> Result<CleanedSegment, LogError> {
        let disk = &*self.disk;
        self.bytes += output.write(disk, &self.config)?;
        let segment = &mut output.segment;
        segment.write_indexes(disk)?;
        let mut tokens = Vec::new();
        segment.sync(disk, true, &mut tokens)?;
        if !planted("cleaned-unsynced") {
            tokens.into_iter().try_for_each(SyncToken::complete).map_err(LogError::io(segment.path()))?;
        }
        // Retention goes by the file's time where records have none.
        let modified = output.modified;
        let path = segment.path().to_owned();
        segment.file(disk)?.set_modified(modified).map_err(LogError::io(&path))?;
        let replaced: Vec<_> = self.sources[output.group.clone()].iter().map(|s| (s.base, s.size)).collect();
        Ok(CleanedSegment {
            directory: self.directory.clone(),
            base: segment.base_offset,
            files: segment.files(),
            bytes_before: replaced.iter().map(|(_, size)| u64::from(*size)).sum(),
            replaced,
            truncations: self.truncations,
        })
    }
}

impl Output {
    fn take(&mut self, bytes: &[u8], header: BatchHeader) {
        self.pending.extend_from_slice(bytes);
        self.headers.push(header);
    }

    fn write(&mut self, disk: &dyn Disk, config: &LogConfig) -> Result<u64, LogError> {
        if self.pending.is_empty() {
            return Ok(0);
        }
        // Messages of old formats grow as they are rewritten, and a position is a signed number in Kafka's indexes.
        if u64::from(self.segment.size()) + self.pending.len() as u64 > i32::MAX as u64 {
            return Err(LogError::malformed(
                self.segment.path(),
                "rewritten, its segments are too large for one".to_owned(),
            ));
        }
        self.segment.write(disk, &mut [IoSlice::new(&self.pending)])?;
        for header in self.headers.drain(..) {
            self.segment.add_batch(disk, &header, config)?;
        }
        let written = self.pending.len() as u64;
        self.pending.clear();
        Ok(written)
    }
}

/// Reads a whole batch and checks that it is what was written: damage is never copied on as good.
fn read_batch(
    file: &SharedFile,
    position: u64,
    header: &BatchHeader,
    buffer: &mut Vec<u8>,
    path: &std::path::Path,
) -> Result<(), LogError> {
    buffer.clear();
    buffer.resize(header.size as usize, 0);
    file.read_exact_at(buffer, position).map_err(LogError::io(path))?;
    let checked = BatchView::parse(buffer).and_then(|batch| batch.check_crc());
    checked.map_err(|error| LogError::malformed(path, format!("at position {position}: {error}")))
}
