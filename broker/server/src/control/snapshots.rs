//! Writes metadata snapshots beside the running control thread: an image is cheap to clone and never changes.

use std::{
    io::{self, IoSlice},
    path::PathBuf,
    sync::Arc,
};

use gregor_log::Disk;
use gregor_metadata::Image;
use gregor_raft::{SnapshotId, VoterSet, snapshot};
use gregor_types::Timestamp;
use gregor_wire::EncodeError;

/// What a snapshot is made of.
#[derive(Debug)]
pub(super) struct SnapshotJob {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) partition: PathBuf,
    pub(super) id: SnapshotId,
    pub(super) image: Image,
    pub(super) kraft_version: i16,
    pub(super) voters: VoterSet,
    pub(super) last_contained: Timestamp,
    pub(super) now: Timestamp,
}

/// Why a snapshot was not written; the next one is tried when it is due.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotWriteError {
    #[error(transparent)]
    File(#[from] io::Error),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl SnapshotJob {
    /// Writes the snapshot: under another name until all of it is on disk.
    pub(super) fn write(&self) -> Result<SnapshotId, SnapshotWriteError> {
        let path = self.partition.join(snapshot::file_name(self.id));
        let mut partial = path.clone().into_os_string();
        partial.push(".part");
        let partial = PathBuf::from(partial);
        let file = self.disk.create(&partial)?;
        let mut position = 0;
        let mut put = |batches: Vec<bytes::Bytes>| -> io::Result<()> {
            for batch in batches {
                file.write_all_at(&mut [IoSlice::new(&batch)], position)?;
                position += batch.len() as u64;
            }
            Ok(())
        };
        let quorum = (self.kraft_version >= 1).then_some((self.kraft_version, &self.voters));
        let mut writer = snapshot::SnapshotWriter::new(self.id.epoch, self.last_contained, self.now, quorum);
        let mut result = Ok(());
        self.image.write_snapshot(|record| {
            if result.is_ok() {
                result =
                    record.record.encode_framed(record.version).map_err(SnapshotWriteError::from).and_then(|framed| {
                        writer.append(&framed);
                        Ok(put(writer.take())?)
                    });
            }
        });
        result?;
        put(writer.finish())?;
        file.sync().complete()?;
        self.disk.rename(&partial, &path)?;
        self.disk.sync_directory(&self.partition).complete()?;
        Ok(self.id)
    }
}
