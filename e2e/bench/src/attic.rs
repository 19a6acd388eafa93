//! Where the data of brokers that had their turn lies until a run has ended: `main.rs` puts it there.
//!
//! ext4 without a journal passes over every inode that was deleted in the last minutes when it looks for one for a new file: where the
//! data of one turn is deleted, the next turn's thousands of new files take ten times as long, whichever broker makes them. So
//! nothing is deleted between turns: files keep their inodes and lose their bytes.

use std::{
    fs::{self, File, OpenOptions},
    path::Path,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// A folder of folders; all of it is deleted when it is dropped.
pub struct Attic(TempDir);

impl Attic {
    /// An empty one.
    pub fn new() -> Result<Self> {
        Ok(Self(tempfile::Builder::new().prefix("gregor-bench-attic-").tempdir()?))
    }

    /// Takes the folder of a broker that has been stopped, and gives back the disk's room.
    pub fn keep(&self, folder: &Path) -> Result<()> {
        let name = folder.file_name().context("a temporary folder has a name")?;
        let path = self.0.path().join(name);
        fs::rename(folder, &path)?;
        empty_files(&path)?;
        sync_disk(&path)
    }
}

fn empty_files(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let (entry, kind) = entry.and_then(|entry| entry.file_type().map(|kind| (entry, kind)))?;
        if kind.is_dir() {
            empty_files(&entry.path())?;
        } else if kind.is_file() {
            OpenOptions::new().write(true).truncate(true).open(entry.path())?;
        }
    }
    Ok(())
}

/// Waits until the disk has all that was written to the file system of this folder, so that nobody pays for it later.
pub fn sync_disk(folder: &Path) -> Result<()> {
    Ok(rustix::fs::syncfs(File::open(folder)?)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn files_that_are_put_aside_keep_their_inodes_and_lose_their_bytes() {
        let attic = Attic::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("topic-0")).unwrap();
        let file = folder.path().join("topic-0/00000000000000000000.log");
        fs::write(&file, [1; 9_000]).unwrap();
        let inode = fs::metadata(&file).unwrap().ino();
        let name = folder.path().file_name().unwrap().to_owned();
        attic.keep(folder.path()).unwrap();
        let kept = attic.0.path().join(name).join("topic-0/00000000000000000000.log");
        let kept = fs::metadata(kept).unwrap();
        assert_eq!((kept.ino(), kept.len(), kept.blocks()), (inode, 0, 0));
        assert!(!file.exists());
    }
}
