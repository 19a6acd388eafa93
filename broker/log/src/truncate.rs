//! Moving the ends of a log: a follower cuts off what its leader does not have, DeleteRecords and snapshots move the start.

use std::path::Path;

use gregor_types::{Offset, Timestamp};
use gregor_wire::batch::{BatchHeader, BatchView, EndTransactionMarker};

use crate::{
    Disk, LogError, PartitionLog,
    disk::{SharedFile, read_file},
    file_names::{DELETED, PRODUCER_SNAPSHOT, offset_file},
    producer_snapshot,
    producer_state::ProducerState,
    scanner::{SWEEP_BUFFER_BYTES, Scan},
    segment::Segment,
};

/// A marker's batch has one record of a few bytes; a control batch that is larger is not a marker.
const MARKER_BATCH_BYTES_MAX: u32 = 4096;
const SNAPSHOT_BYTES_MAX: usize = 1 << 30;

impl PartitionLog {
    /// Cuts off every batch that ends at `offset` or later, and the epochs that begin there. The log then ends at `offset` or, if that was inside a batch, at
    /// the batch's start. Below the log's first segment, the log is emptied and begins there.
    pub fn truncate_to(&mut self, offset: Offset, now: Timestamp) -> Result<(), LogError> {
        if offset >= self.end_offset {
            // This broker may have led an epoch in which it appended nothing: the entry contradicts the leader's log.
            self.epochs.truncate_from_end(self.end_offset);
            return Ok(());
        }
        if offset < self.segments[0].base_offset {
            return self.truncate_fully_and_start_at(offset, now);
        }
        let disk = self.disk.clone();
        let segments = self.segments.len();
        while self.segments.len() > 1 && self.active_segment_base() > offset {
            let segment = self.segments.pop().expect("there is more than one");
            self.remove_segment(segment, now)?;
        }
        if self.segments.len() < segments {
            self.sync_removals()?;
        }
        let mut end = offset;
        let active = self.active();
        if let Some(located) = active.locate(&*disk, offset)? {
            if located.header.magic >= 2 {
                end = end.min(located.header.base_offset);
            }
            active.truncate(&*disk, located.position, end)?;
        }
        self.end_offset = end;
        self.start_offset = self.start_offset.min(end);
        self.recovery_point = self.recovery_point.min(end);
        self.note_truncation(end);
        self.recent.clear();
        self.epochs.truncate_from_end(end);
        self.rebuild_producers(now)
    }

    /// What was removed at the end stays so before anything before it is cut: a loss of power in between would leave a hole.
    fn sync_removals(&self) -> Result<(), LogError> {
        let path = self.directory.clone();
        self.disk.sync_directory(&path).complete().map_err(|source| LogError::SyncFailed { path, source })
    }

    /// Empties the log; it begins at `offset`: where the leader's log or a snapshot begins.
    pub fn truncate_fully_and_start_at(&mut self, offset: Offset, now: Timestamp) -> Result<(), LogError> {
        while let Some(segment) = self.segments.pop() {
            if self.segments.is_empty() && segment.base_offset == offset {
                self.sync_removals()?;
                self.abandon_swap_of(offset)?;
                // The same names are needed at once, so the files are emptied and not renamed.
                break;
            }
            self.remove_segment(segment, now)?;
        }
        self.segments.push(Segment::create(&*self.disk, &self.directory, offset, now)?);
        self.directory_changes += 1;
        (self.start_offset, self.end_offset) = (offset, offset);
        self.recovery_point = self.recovery_point.min(offset);
        self.note_truncation(offset);
        self.recent.clear();
        self.epochs.clear();
        self.producers.clear();
        self.remove_snapshots(|_| false)?;
        let active = self.segments.last_mut().expect("it was just pushed");
        active.transactions.clear(&*self.disk).map_err(LogError::io(&self.directory))
    }

    /// Moves the log start offset up; the segments below it go with the next retention. The caller bounds it by the high
    /// watermark. A start that is behind already is left as it is.
    pub fn advance_start(&mut self, offset: Offset) -> Result<(), LogError> {
        if offset > self.end_offset {
            let (start, end) = (self.start_offset, self.end_offset);
            return Err(LogError::StartOutOfRange { to: offset, start, end });
        }
        if offset > self.start_offset {
            self.start_offset = offset;
            self.epochs.truncate_from_start(offset);
        }
        Ok(())
    }

    /// Renames a segment's files to `.deleted`; readers that have them go on, retention removes them later.
    pub(crate) fn remove_segment(&mut self, segment: Segment, now: Timestamp) -> Result<(), LogError> {
        let base = segment.base_offset;
        self.abandon_swap_of(base)?;
        let due = now.plus_ms(self.config.file_delete_delay_ms);
        for path in segment.mark_deleted(&*self.disk, DELETED)? {
            self.removals.push_back((due, path));
        }
        self.directory_changes += 1;
        self.remove_snapshots(|offset| offset != base)
    }

    /// Producers as of the log's end, from the newest good snapshot and the batches after it.
    pub(crate) fn rebuild_producers(&mut self, now: Timestamp) -> Result<(), LogError> {
        let end = self.end_offset;
        self.remove_snapshots(|offset| offset <= end)?;
        let (mut producers, from) = self.load_snapshot(end, now)?;
        let disk = self.disk.clone();
        let first = self.segment_at(from);
        for segment in self.segments.iter_mut().skip(first) {
            let file = segment.file(&*disk)?.clone();
            let path = segment.path().to_owned();
            let mut scanner = segment.scan(&*disk, 0, SWEEP_BUFFER_BYTES)?;
            loop {
                match scanner.next().map_err(LogError::io(&path))? {
                    Scan::End => break,
                    Scan::Damage(error) => return Err(LogError::malformed(&path, error.to_string())),
                    Scan::Batch { position, header } if header.base_offset >= from => {
                        replay(&mut producers, &file, position, &header).map_err(LogError::io(&path))?;
                    }
                    Scan::Batch { .. } => {}
                }
            }
        }
        self.producers = producers;
        Ok(())
    }

    /// The newest snapshot at or below an offset that is whole; damaged ones are removed. With none, nothing as of the
    /// log's start.
    pub(crate) fn load_snapshot(
        &mut self,
        at_most: Offset,
        now: Timestamp,
    ) -> Result<(ProducerState, Offset), LogError> {
        while let Some(offset) = self.snapshots.range(..=at_most).next_back().copied() {
            if let Some(mut state) = read_snapshot(&*self.disk, &self.directory, offset)? {
                // As Kafka does at a load, so that a producer idle for long may begin anew at either broker.
                state.remove_expired(now, self.config.producer_id_expiration_ms);
                return Ok((state, offset));
            }
            self.remove_snapshots(|other| other != offset)?;
        }
        Ok((ProducerState::default(), self.segments[0].base_offset))
    }
}

/// The producers in a snapshot; `None` if it is damaged.
pub(crate) fn read_snapshot(
    disk: &dyn Disk,
    directory: &Path,
    offset: Offset,
) -> Result<Option<ProducerState>, LogError> {
    let path = offset_file(directory, offset, PRODUCER_SNAPSHOT);
    let content = read_file(disk, &path, SNAPSHOT_BYTES_MAX).map_err(LogError::io(&path))?;
    Ok(producer_snapshot::decode(&content))
}

/// Takes one batch of the log into a producer state that is being rebuilt, and returns a transaction that it aborted.
pub(crate) fn replay(
    producers: &mut ProducerState,
    file: &SharedFile,
    position: u64,
    header: &BatchHeader,
) -> std::io::Result<Option<crate::AbortedTransaction>> {
    if !header.has_producer_id() {
        return Ok(None);
    }
    if !header.is_control() {
        producers.update(header);
        return Ok(None);
    }
    if header.size > MARKER_BATCH_BYTES_MAX {
        return Ok(None);
    }
    let mut bytes = [0; MARKER_BATCH_BYTES_MAX as usize];
    let bytes = &mut bytes[..header.size as usize];
    file.read_exact_at(bytes, position)?;
    let marker = BatchView::parse(bytes).ok().and_then(|batch| EndTransactionMarker::in_batch(header, batch.body()));
    Ok(marker.and_then(|marker| producers.end_transaction(header, marker)))
}
