//! A snapshot that comes from the leader in pieces: written under another name, and checked as a whole before it gets its own.
//!
//! The driver calls it. What a crash leaves of it is removed when the metadata log is opened.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use gregor_log::{Disk, disk::SharedFile};
use gregor_raft::{
    ControlRecord, SnapshotId,
    control::Content,
    snapshot::{self, SnapshotError},
};
use gregor_state_records::metadata::MetadataRecord;

use super::metadata_log::MetadataLogError;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Download {
    disk: Arc<dyn Disk>,
    partition: PathBuf,
    begun: Option<(SnapshotId, SharedFile)>,
}

/// Why bytes are no snapshot of metadata.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("a record of it cannot be read: {0}")]
    Record(#[from] gregor_state_records::RecordError),
}

impl Download {
    pub(super) fn new(disk: Arc<dyn Disk>, partition: PathBuf) -> Self {
        Self { disk, partition, begun: None }
    }

    /// Writes a piece. The first one begins the file anew.
    pub(super) fn write(&mut self, id: SnapshotId, position: u64, bytes: &Bytes) -> Result<(), MetadataLogError> {
        let path = self.partial(id);
        let failed = |error| MetadataLogError::File { path: path.clone(), error };
        if position == 0 {
            self.give_up()?;
            self.begun = Some((id, self.disk.create(&path).map_err(failed)?));
        }
        match &self.begun {
            Some((begun, file)) if *begun == id => {
                file.write_all_at(&mut [IoSlice::new(bytes)], position).map_err(failed)
            }
            _ => Err(failed(io::Error::other("the pieces before this one are not there"))),
        }
    }

    /// Gives the file its name, durably, and returns the control records in it; `None` where it is no snapshot: then it is gone.
    pub(super) fn complete(&mut self, id: SnapshotId) -> Result<Option<Vec<ControlRecord>>, MetadataLogError> {
        let Some((_, file)) = self.begun.take_if(|(begun, _)| *begun == id) else { return Ok(None) };
        let path = self.partial(id);
        let failed = |error| MetadataLogError::File { path: path.clone(), error };
        let mut bytes = vec![0; file.len().map_err(failed)? as usize];
        file.read_exact_at(&mut bytes, 0).map_err(failed)?;
        let mut control = Vec::new();
        let read = snapshot::read::<Unusable>(&bytes.into(), |content| {
            match content {
                Content::Control(record) => control.push(record),
                Content::Data(record) => drop(MetadataRecord::decode_framed(record)?),
            }
            Ok(())
        });
        if let Err(error) = read {
            tracing::warn!(%error, snapshot = %snapshot::file_name(id), "what the leader sent is not a snapshot");
            self.disk.remove_file(&path).map_err(failed)?;
            return Ok(None);
        }
        file.sync().complete().map_err(failed)?;
        self.disk.rename(&path, &self.partition.join(snapshot::file_name(id))).map_err(failed)?;
        self.disk.sync_directory(&self.partition).complete().map_err(failed)?;
        Ok(Some(control))
    }

    /// Removes what was begun.
    fn give_up(&mut self) -> Result<(), MetadataLogError> {
        let Some((id, _)) = self.begun.take() else { return Ok(()) };
        let path = self.partial(id);
        match self.disk.remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(MetadataLogError::File { path, error }),
            _ => Ok(()),
        }
    }

    fn partial(&self, id: SnapshotId) -> PathBuf {
        partial(&self.partition, id)
    }
}

/// Kafka's name of a snapshot that is not whole yet.
fn partial(partition: &Path, id: SnapshotId) -> PathBuf {
    partition.join(format!("{}.part", snapshot::file_name(id)))
}

#[cfg(test)]
mod tests {
    use gregor_log::disk::FaultyDisk;
    use gregor_raft::snapshot::SnapshotWriter;
    use gregor_types::{LeaderEpoch, Offset, Timestamp};

    use super::*;

    const ID: SnapshotId = SnapshotId::new(Offset(12), LeaderEpoch(3));

    fn download() -> (Arc<FaultyDisk>, Download) {
        let disk = Arc::new(FaultyDisk::default());
        let partition = PathBuf::from("/data/__cluster_metadata-0");
        disk.create_directory(&partition).unwrap();
        let shared: Arc<dyn Disk> = disk.clone();
        (disk, Download::new(shared, partition))
    }

    fn names(disk: &FaultyDisk) -> Vec<String> {
        let entries = disk.list(Path::new("/data/__cluster_metadata-0")).unwrap();
        entries.into_iter().map(|entry| entry.name).collect()
    }

    #[test]
    fn pieces_become_a_snapshot_under_its_name_only_once_all_are_there() {
        let (disk, mut download) = download();
        let writer = SnapshotWriter::new(LeaderEpoch(3), Timestamp(1), Timestamp(2), None);
        let bytes = Bytes::from(writer.finish().concat());
        download.write(ID, 0, &bytes.slice(..10)).unwrap();
        download.write(ID, 10, &bytes.slice(10..)).unwrap();
        assert_eq!(names(&disk), ["00000000000000000012-0000000003.checkpoint.part"]);
        assert_eq!(download.complete(ID).unwrap(), Some(Vec::new()));
        assert_eq!(names(&disk), ["00000000000000000012-0000000003.checkpoint"]);
        assert_eq!(download.complete(ID).unwrap(), None, "it is complete once");
    }

    #[test]
    fn garbage_is_removed_and_a_new_download_takes_the_place_of_one_that_was_given_up() {
        let (disk, mut download) = download();
        download.write(ID, 0, &Bytes::from_static(b"garbage")).unwrap();
        assert_eq!(download.complete(ID).unwrap(), None);
        assert!(names(&disk).is_empty());
        download.write(ID, 0, &Bytes::from_static(b"one")).unwrap();
        let other = SnapshotId::new(Offset(13), LeaderEpoch(3));
        download.write(other, 0, &Bytes::from_static(b"two")).unwrap();
        assert_eq!(names(&disk), ["00000000000000000013-0000000003.checkpoint.part"]);
        assert!(download.write(ID, 3, &Bytes::from_static(b"more")).is_err());
    }
}
