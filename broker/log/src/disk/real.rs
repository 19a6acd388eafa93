//! The operating system's files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use rustix::{
    fs::{FlockOperation, fcntl_lock},
    io::{Errno, ReadWriteFlags},
};

use super::{DirectoryEntry, Disk, DiskFile, FileLock, SharedFile, SyncToken};

/// The machine's file systems.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile(File);

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<SharedFile> {
        Ok(Arc::new(RealFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<SharedFile> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirectoryEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            // Kafka's names are ASCII; another one is shown as well as can be and refused where it matters.
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            if kind.is_dir() {
                // The listing says so: a log directory of thousands of partitions needs no look at each.
                entries.push(DirectoryEntry { name, is_directory: true, len: 0 });
                continue;
            }
            // Looking up the name in the open folder is cheaper than its whole path, which only a link needs.
            let is_link = kind.is_symlink();
            let metadata = match if is_link { fs::metadata(entry.path()) } else { entry.metadata() } {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            entries.push(DirectoryEntry { name, is_directory: metadata.is_dir(), len: metadata.len() });
        }
        Ok(entries)
    }

    fn sync_directory(&self, path: &Path) -> SyncToken {
        let path = path.to_owned();
        SyncToken::new(move || File::open(path)?.sync_all())
    }

    fn sync_file_system(&self, path: &Path) -> SyncToken {
        let path = path.to_owned();
        SyncToken::new(move || Ok(rustix::fs::syncfs(File::open(path)?)?))
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<FileLock>> {
        // Java's FileChannel.tryLock is a POSIX lock too, so Apache Kafka and Gregor keep each other out.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(FileLock::new(path.to_owned(), file))),
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl DiskFile for RealFile {
    fn write_all_at(&self, slices: &mut [IoSlice<'_>], mut position: u64) -> io::Result<()> {
        let mut slices = slices;
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match rustix::io::pwritev(&self.0, slices, position) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    position += written as u64;
                    IoSlice::advance_slices(&mut slices, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        if !super::may_wait() {
            match rustix::io::preadv2(&self.0, &mut [IoSliceMut::new(buffer)], position, ReadWriteFlags::NOWAIT) {
                // A file system that cannot tell, and a call that was interrupted: as if it might wait.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
        loop {
            match self.0.read_at(buffer, position) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn modified(&self) -> io::Result<SystemTime> {
        self.0.metadata()?.modified()
    }

    fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        self.0.set_modified(time)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(self: Arc<Self>) -> SyncToken {
        SyncToken::new(move || self.0.sync_data())
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{read_file, without_waiting};

    #[test]
    fn a_read_that_may_not_wait_gives_what_is_in_memory_and_else_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = RealDisk.create(&path).unwrap();
        let written = vec![7; 1 << 20];
        file.write_all_at(&mut [IoSlice::new(&written)], 0).unwrap();
        Arc::clone(&file).sync().complete().unwrap();
        let descriptor = file.as_fd().unwrap();
        rustix::fs::fadvise(descriptor, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut buffer = [0; 100];
        // Some file systems keep all of it in memory, or cannot tell.
        match without_waiting(|| file.read_at(&mut buffer, 4096)) {
            Ok(read) => assert_eq!(buffer[..read], written[..read]),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        assert_eq!(read_file(&RealDisk, &path, 1 << 20).unwrap(), written, "and waits again afterwards");
        assert_eq!(without_waiting(|| file.read_at(&mut buffer, 4096)).unwrap(), 100);
    }
}
