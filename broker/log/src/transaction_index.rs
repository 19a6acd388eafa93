//! `.txnindex`: the aborted transactions that end in a segment. The file exists only where there is one.

use std::{
    io::{self, IoSlice},
    path::PathBuf,
};

use gregor_types::{Offset, ProducerId};

use crate::{
    Disk,
    disk::{SharedFile, SyncToken, read_file},
};

const ENTRY_BYTES: usize = 34;
const VERSION: i16 = 0;
/// A segment of 2 GiB cannot hold more markers than fill this.
const FILE_BYTES_MAX: usize = 1 << 30;

/// A transaction that was aborted: its records are in the log and a read-committed reader leaves them out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AbortedTransaction {
    /// Whose transaction it was.
    pub producer_id: ProducerId,
    /// Its first record.
    pub first_offset: Offset,
    /// Its marker.
    pub last_offset: Offset,
    /// The last stable offset when the marker was appended: no transaction that ends later began before it.
    pub last_stable_offset: Offset,
}

#[derive(Debug)]
pub(crate) struct TransactionIndex {
    path: PathBuf,
    len: usize,
    file: Option<SharedFile>,
    /// Whether entries were cut off: until a sync, power loss may bring them back.
    was_cut: bool,
}

/// The entries that an index had at some time.
#[derive(Debug)]
pub(crate) struct WrittenTransactions {
    path: PathBuf,
    len: usize,
}

impl TransactionIndex {
    /// `file_bytes` is `None` where there is no file. An empty one is what a cut left that may never have been synced: the program
    /// that made it has ended since.
    pub(crate) fn new(path: PathBuf, file_bytes: Option<u64>) -> Self {
        let len = file_bytes.unwrap_or(0) as usize / ENTRY_BYTES;
        Self { path, len, file: None, was_cut: file_bytes == Some(0) }
    }

    pub(crate) const fn is_whole(file_bytes: u64) -> bool {
        file_bytes.is_multiple_of(ENTRY_BYTES as u64)
    }

    /// The folder was renamed.
    pub(crate) fn set_path(&mut self, path: PathBuf) {
        self.path = path;
    }

    pub(crate) const fn file_bytes(&self) -> u64 {
        (self.len * ENTRY_BYTES) as u64
    }

    pub(crate) fn append(&mut self, disk: &dyn Disk, transaction: &AbortedTransaction) -> io::Result<()> {
        let mut entry = Vec::with_capacity(ENTRY_BYTES);
        entry.extend_from_slice(&VERSION.to_be_bytes());
        for field in [
            transaction.producer_id.0,
            transaction.first_offset.0,
            transaction.last_offset.0,
            transaction.last_stable_offset.0,
        ] {
            entry.extend_from_slice(&field.to_be_bytes());
        }
        let position = (self.len * ENTRY_BYTES) as u64;
        let file = match &self.file {
            Some(file) => file,
            None if self.len == 0 => self.file.insert(disk.create(&self.path)?),
            None => self.file.insert(disk.open(&self.path)?),
        };
        let written = file.write_all_at(&mut [IoSlice::new(&entry)], position);
        match written {
            Ok(()) => self.len += 1,
            // Part of an entry would make the whole index suspect.
            Err(_) => drop(file.truncate(position)),
        }
        written
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn read(&self, disk: &dyn Disk) -> io::Result<Vec<AbortedTransaction>> {
        self.as_it_is().read(disk)
    }

    /// What stands in it now, to be read without the lock of the log.
    pub(crate) fn as_it_is(&self) -> WrittenTransactions {
        WrittenTransactions { path: self.path.clone(), len: self.len }
    }

    /// Drops the transactions that end at or after `end`.
    pub(crate) fn truncate(&mut self, disk: &dyn Disk, end: Offset) -> io::Result<()> {
        let kept = self.read(disk)?.partition_point(|transaction| transaction.last_offset < end);
        if kept < self.len {
            disk.open(&self.path)?.truncate((kept * ENTRY_BYTES) as u64)?;
            self.len = kept;
            self.file = None;
            self.was_cut = true;
        }
        Ok(())
    }

    pub(crate) fn clear(&mut self, disk: &dyn Disk) -> io::Result<()> {
        self.file = None;
        self.len = 0;
        self.was_cut = false;
        match disk.remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn sync(&self, disk: &dyn Disk) -> io::Result<Option<SyncToken>> {
        if self.len == 0 && !self.was_cut {
            return Ok(None);
        }
        let file = match &self.file {
            Some(file) => file.clone(),
            None => disk.open(&self.path)?,
        };
        Ok(Some(file.sync()))
    }

    pub(crate) fn release(&mut self) {
        self.file = None;
    }
}

impl WrittenTransactions {
    pub(crate) const fn bytes(&self) -> u64 {
        (self.len * ENTRY_BYTES) as u64
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn read(&self, disk: &dyn Disk) -> io::Result<Vec<AbortedTransaction>> {
        if self.len == 0 {
            return Ok(Vec::new());
        }
        let content = read_file(disk, &self.path, FILE_BYTES_MAX)?;
        let field = |entry: &[u8], index: usize| {
            let at = 2 + index * 8;
            i64::from_be_bytes(entry[at..at + 8].try_into().expect("an entry has four fields of 8 bytes"))
        };
        Ok(content
            .chunks_exact(ENTRY_BYTES)
            .take(self.len)
            .map(|entry| AbortedTransaction {
                producer_id: ProducerId(field(entry, 0)),
                first_offset: Offset(field(entry, 1)),
                last_offset: Offset(field(entry, 2)),
                last_stable_offset: Offset(field(entry, 3)),
            })
            .collect())
    }
}
