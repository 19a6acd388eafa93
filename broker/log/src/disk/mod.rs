//! Every access to a file of a log goes through [`Disk`]: the real one, or one in memory that fails as disks do.
//!
//! Calls complete at once, except a sync: it gives a [`SyncToken`], which the caller completes on a thread that may block
//! (the group-commit flusher, a start-up thread), while the partition goes on. What was written before the token was made
//! is on the disk when it completes.

mod faulty;
mod real;
mod waiting;

use std::{
    fmt,
    io::{self, IoSlice},
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

pub use faulty::{Crash, FaultyDisk, Operation};
pub use real::RealDisk;
pub use waiting::{may_wait, without_waiting};

/// An open file, shared between a log and the read plans that it gave out: a plan stays readable when the file is deleted.
pub type SharedFile = Arc<dyn DiskFile>;

/// Files and folders, by absolute path.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<SharedFile>;
    /// Creates an empty file, in place of one that may be there, and opens it for reading and writing.
    fn create(&self, path: &Path) -> io::Result<SharedFile>;
    /// Renames a file or folder, in place of a file that may be there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder and what is in it.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
    /// Creates a folder, and those above it that lack.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// What is in a folder, in no particular order.
    fn list(&self, path: &Path) -> io::Result<Vec<DirectoryEntry>>;
    /// Begins to make a folder's entries durable: files created, renamed and removed in it.
    fn sync_directory(&self, path: &Path) -> SyncToken;
    /// Begins to make everything durable on the file system that a path is on.
    fn sync_file_system(&self, path: &Path) -> SyncToken;
    /// Takes a lock on a file, created if it lacks, that no other process can hold at the same time; held until the
    /// lock is dropped. `None` if another holds it.
    fn try_lock(&self, path: &Path) -> io::Result<Option<FileLock>>;
}

/// An open file. Positions and lengths are in bytes.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// Writes all slices, one behind the other, at `position`: one `pwritev` when the kernel takes all at once.
    fn write_all_at(&self, slices: &mut [IoSlice<'_>], position: u64) -> io::Result<()>;
    /// Reads what is there, at most `buffer`; 0 at the end of the file. Where the thread [may not wait](may_wait) and nothing of
    /// it is in memory, `WouldBlock`.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;
    /// The file's length.
    fn len(&self) -> io::Result<u64>;
    /// Whether nothing is in the file.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// When the file was last written.
    fn modified(&self) -> io::Result<SystemTime>;
    /// Sets the time that [`DiskFile::modified`] tells.
    fn set_modified(&self, time: SystemTime) -> io::Result<()>;
    /// Cuts the file off, or fills it up with zeros.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Begins to make the file's content durable.
    fn sync(self: Arc<Self>) -> SyncToken;
    /// The descriptor for `sendfile`; none where the file is in memory: then [`DiskFile::read_at`] serves.
    fn as_fd(&self) -> Option<BorrowedFd<'_>>;
}

impl dyn DiskFile {
    /// Reads exactly `buffer`; an error of kind `UnexpectedEof` if the file ends before.
    pub fn read_exact_at(&self, mut buffer: &mut [u8], mut position: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, position)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => {
                    buffer = &mut buffer[read..];
                    position += read as u64;
                }
            }
        }
        Ok(())
    }
}

/// What a folder holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The name in the folder.
    pub name: String,
    /// Whether it is a folder itself.
    pub is_directory: bool,
    /// A file's length in bytes; means nothing for a folder.
    pub len: u64,
}

/// A sync that has begun. It blocks whoever completes it; dropped, nothing is promised.
#[must_use = "nothing is durable until the token is completed"]
pub struct SyncToken(Box<dyn FnOnce() -> io::Result<()> + Send>);

impl SyncToken {
    /// A token whose completion is this call.
    pub fn new(complete: impl FnOnce() -> io::Result<()> + Send + 'static) -> Self {
        Self(Box::new(complete))
    }

    /// Blocks until what the token stands for is durable.
    pub fn complete(self) -> io::Result<()> {
        (self.0)()
    }
}

impl fmt::Debug for SyncToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SyncToken")
    }
}

/// Holds a lock on a file.
pub struct FileLock {
    path: PathBuf,
    _held: Box<dyn std::any::Any + Send + Sync>,
}

impl FileLock {
    /// A lock that is held as long as `held` lives.
    pub fn new(path: PathBuf, held: impl std::any::Any + Send + Sync) -> Self {
        Self { path, _held: Box::new(held) }
    }

    /// The locked file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Debug for FileLock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "FileLock({})", self.path.display())
    }
}

/// A read that gives less has reached the end of a file.
const SMALL_FILE_BYTES: usize = 512;

/// Reads a small file whole; an error if it is larger than `limit` bytes.
pub fn read_file(disk: &dyn Disk, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let mut small = [0; SMALL_FILE_BYTES];
    let read = file.read_at(&mut small, 0)?;
    if read < SMALL_FILE_BYTES.min(limit) {
        // The usual case costs no question for the length.
        return Ok(small[..read].to_vec());
    }
    let len = file.len()?;
    if len > limit as u64 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} is larger than {limit} bytes", path.display()),
        ));
    }
    let mut content = vec![0; len as usize];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

/// Puts a small file in place of another as a whole, as Kafka does: written beside it under `.tmp`, synced, renamed, and the
/// folder synced. Blocks.
pub fn replace_file(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let file = disk.create(&temporary)?;
    file.write_all_at(&mut [IoSlice::new(content)], 0)?;
    file.sync().complete()?;
    disk.rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |parent| disk.sync_directory(parent).complete())
}
