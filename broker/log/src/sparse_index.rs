//! The sparse indexes beside a segment: from offset to position (`.index`) and from time to offset (`.timeindex`).
//!
//! Only the newest entries are in memory. The file is opened when it is needed, read by `pread` and never mapped; what is
//! not written yet is written when enough has gathered, at a roll, at a flush and at the end.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
};

use gregor_types::{Offset, Timestamp};

use crate::{
    Disk,
    disk::{SharedFile, SyncToken},
    file_names::{TEMPORARY, with_suffix},
};

/// An entry of an index, of fixed size, big endian.
pub(crate) trait Entry: Copy + std::fmt::Debug {
    const BYTES: usize;
    fn encode(&self, output: &mut Vec<u8>);
    fn decode(bytes: &[u8]) -> Self;
}

/// `.index`: where in the file the batch stands whose last record has this offset, relative to the segment's base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OffsetEntry {
    pub(crate) relative_offset: u32,
    pub(crate) position: u32,
}

/// `.timeindex`: no record before this offset, relative to the segment's base, has a larger timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeEntry {
    pub(crate) timestamp: Timestamp,
    pub(crate) relative_offset: u32,
}

impl Entry for OffsetEntry {
    const BYTES: usize = 8;

    fn encode(&self, output: &mut Vec<u8>) {
        output.extend_from_slice(&self.relative_offset.to_be_bytes());
        output.extend_from_slice(&self.position.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Self {
        Self { relative_offset: u32_at(bytes, 0), position: u32_at(bytes, 4) }
    }
}

impl Entry for TimeEntry {
    const BYTES: usize = 12;

    fn encode(&self, output: &mut Vec<u8>) {
        output.extend_from_slice(&self.timestamp.0.to_be_bytes());
        output.extend_from_slice(&self.relative_offset.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Self {
        let timestamp = i64::from(u32_at(bytes, 0)) << 32 | i64::from(u32_at(bytes, 4));
        Self { timestamp: Timestamp(timestamp), relative_offset: u32_at(bytes, 8) }
    }
}

impl OffsetEntry {
    pub(crate) fn new(base: Offset, offset: Offset, position: u32) -> Self {
        Self { relative_offset: (offset.0 - base.0) as u32, position }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("a range of 4 bytes is an array of 4"))
}

/// So many entries are in memory at most, written or not: a write for each 256 KiB of log, a few KiB for each log.
const IN_MEMORY_MAX: usize = 64;
/// Below so many entries a search reads them all at once.
const BLOCK_ENTRIES: usize = 256;

#[derive(Debug)]
pub(crate) struct SparseIndex<E> {
    path: PathBuf,
    file: Option<SharedFile>,
    /// How many entries there are.
    len: usize,
    /// How many of them are in the file.
    written: usize,
    /// The newest entries, up to the last; the first `len - recent.len()` are in the file only.
    recent: Vec<E>,
}

impl<E: Entry> SparseIndex<E> {
    /// An empty index with an empty file, which Kafka needs to see beside every segment.
    pub(crate) fn create(disk: &dyn Disk, path: PathBuf) -> io::Result<Self> {
        disk.create(&path)?;
        Ok(Self { path, file: None, len: 0, written: 0, recent: Vec::new() })
    }

    /// An index whose file is there and whole.
    pub(crate) fn existing(path: PathBuf, file_bytes: u64) -> Self {
        let len = file_bytes as usize / E::BYTES;
        Self { path, file: None, len, written: len, recent: Vec::new() }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder was renamed.
    pub(crate) fn set_path(&mut self, path: PathBuf) {
        self.path = path;
    }

    pub(crate) fn last(&mut self, disk: &dyn Disk) -> io::Result<Option<E>> {
        match self.recent.last() {
            Some(entry) => Ok(Some(*entry)),
            None if self.len == 0 => Ok(None),
            None => self.entry(disk, self.len - 1).map(Some),
        }
    }

    /// Does what a push and a look at the last entry would otherwise need the disk for: what comes after an append's write
    /// must not fail.
    pub(crate) fn prepare(&mut self, disk: &dyn Disk) -> io::Result<()> {
        if self.recent.len() >= IN_MEMORY_MAX {
            self.write_tail(disk)?;
            self.recent.drain(..self.recent.len() - IN_MEMORY_MAX / 2);
        } else if self.recent.is_empty() && self.len > 0 {
            let last = self.entry(disk, self.len - 1)?;
            self.recent.push(last);
        }
        Ok(())
    }

    /// Adds an entry, in memory.
    pub(crate) fn push(&mut self, entry: E) {
        self.recent.push(entry);
        self.len += 1;
    }

    /// The last entry, after [`SparseIndex::prepare`].
    pub(crate) fn newest(&self) -> Option<E> {
        self.recent.last().copied()
    }

    /// The last entry for which `holds` says yes; entries that hold come before those that do not.
    pub(crate) fn last_that(&mut self, disk: &dyn Disk, holds: impl Fn(&E) -> bool) -> io::Result<Option<E>> {
        if self.recent.first().is_some_and(&holds) {
            let count = self.recent.partition_point(&holds);
            return Ok(Some(self.recent[count - 1]));
        }
        let (mut low, mut high) = (0, self.len - self.recent.len());
        while high - low > BLOCK_ENTRIES {
            let middle = usize::midpoint(low, high);
            if holds(&self.entry(disk, middle)?) {
                low = middle;
            } else {
                high = middle;
            }
        }
        if high == low {
            return Ok(None);
        }
        let mut block = [0; BLOCK_ENTRIES * 12];
        let block = &mut block[..(high - low) * E::BYTES];
        let file = self.file(disk)?;
        file.read_exact_at(block, (low * E::BYTES) as u64)?;
        Ok(block.chunks_exact(E::BYTES).map(E::decode).take_while(|entry| holds(entry)).last())
    }

    /// The first entry for which `holds` says no; entries that hold come before those that do not.
    pub(crate) fn first_not(&mut self, disk: &dyn Disk, holds: impl Fn(&E) -> bool) -> io::Result<Option<E>> {
        if self.recent.first().is_some_and(&holds) {
            return Ok(self.recent.get(self.recent.partition_point(&holds)).copied());
        }
        let in_file = self.len - self.recent.len();
        let (mut low, mut high) = (0, in_file);
        while low < high {
            let middle = usize::midpoint(low, high);
            if holds(&self.entry(disk, middle)?) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low < in_file { self.entry(disk, low).map(Some) } else { Ok(self.recent.first().copied()) }
    }

    fn entry(&mut self, disk: &dyn Disk, index: usize) -> io::Result<E> {
        let mut bytes = [0; 12];
        let bytes = &mut bytes[..E::BYTES];
        self.file(disk)?.read_exact_at(bytes, (index * E::BYTES) as u64)?;
        Ok(E::decode(bytes))
    }

    fn file(&mut self, disk: &dyn Disk) -> io::Result<&SharedFile> {
        if self.file.is_none() {
            self.file = Some(disk.open(&self.path)?);
        }
        Ok(self.file.as_ref().expect("it was just opened"))
    }

    /// Writes what is in memory only.
    pub(crate) fn write_tail(&mut self, disk: &dyn Disk) -> io::Result<()> {
        let unwritten = self.len - self.written;
        if unwritten == 0 {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(unwritten * E::BYTES);
        for entry in &self.recent[self.recent.len() - unwritten..] {
            entry.encode(&mut bytes);
        }
        let position = (self.written * E::BYTES) as u64;
        // A log that is only appended to needs no open index: this comes once in a hundred KiB.
        let file = self.file.clone().map_or_else(|| disk.open(&self.path), Ok)?;
        file.write_all_at(&mut [IoSlice::new(&bytes)], position)?;
        self.written = self.len;
        Ok(())
    }

    /// Drops the entries for which `stays` says no; those that stay come before those that go.
    pub(crate) fn truncate(&mut self, disk: &dyn Disk, stays: impl Fn(&E) -> bool) -> io::Result<()> {
        self.write_tail(disk)?;
        self.recent.clear();
        let (mut low, mut high) = (0, self.len);
        while low < high {
            let middle = usize::midpoint(low, high);
            if stays(&self.entry(disk, middle)?) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low < self.len {
            self.file(disk)?.truncate((low * E::BYTES) as u64)?;
            (self.len, self.written) = (low, low);
        }
        Ok(())
    }

    /// Empties the index and its file, which is created if it lacks.
    pub(crate) fn clear(&mut self, disk: &dyn Disk) -> io::Result<()> {
        self.file = Some(disk.create(&self.path)?);
        (self.len, self.written) = (0, 0);
        self.recent.clear();
        Ok(())
    }

    /// Empties the index and goes on in a file aside, so that a crash leaves the one that is known to be bad, not half of a
    /// good one.
    pub(crate) fn begin_aside(&mut self, disk: &dyn Disk) -> io::Result<()> {
        self.path = with_suffix(&self.path, TEMPORARY);
        self.clear(disk)
    }

    /// Puts the file aside, which is synced, in its place.
    pub(crate) fn publish(&mut self, disk: &dyn Disk) -> io::Result<()> {
        let place = self.path.with_extension("");
        disk.rename(&self.path, &place)?;
        self.path = place;
        Ok(())
    }

    pub(crate) fn sync(&mut self, disk: &dyn Disk) -> io::Result<SyncToken> {
        self.write_tail(disk)?;
        Ok(self.file(disk)?.clone().sync())
    }

    /// Closes the file and forgets what is written, as a sealed segment needs neither until it is read.
    pub(crate) fn seal(&mut self, disk: &dyn Disk) -> io::Result<()> {
        self.write_tail(disk)?;
        self.release();
        self.recent = Vec::new();
        Ok(())
    }

    /// Closes the file.
    pub(crate) fn release(&mut self) {
        self.file = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FaultyDisk;

    #[test]
    fn entries_are_found_in_memory_and_in_the_file() {
        let disk = FaultyDisk::new();
        disk.create_directory(Path::new("/d")).unwrap();
        let mut index = SparseIndex::create(&disk, PathBuf::from("/d/0.index")).unwrap();
        for i in 0..1000 {
            index.prepare(&disk).unwrap();
            index.push(OffsetEntry { relative_offset: i * 10, position: i * 4096 });
        }
        let find = |index: &mut SparseIndex<OffsetEntry>, offset| {
            index.last_that(&disk, |entry| entry.relative_offset <= offset).unwrap().map(|entry| entry.position / 4096)
        };
        for offset in [0, 5, 10, 4567, 9989, 9990, 50_000] {
            assert_eq!(find(&mut index, offset), Some((offset / 10).min(999)), "{offset}");
        }
        index.seal(&disk).unwrap();
        assert_eq!(find(&mut index, 4567), Some(456));
        assert_eq!(disk.open(index.path()).unwrap().len().unwrap(), 8000);
        index.truncate(&disk, |entry| entry.relative_offset < 100).unwrap();
        assert_eq!((index.len(), find(&mut index, 9999)), (10, Some(9)));
        let mut reopened: SparseIndex<OffsetEntry> = SparseIndex::existing("/d/0.index".into(), 80);
        assert_eq!(reopened.last(&disk).unwrap().unwrap().relative_offset, 90);
    }
}
