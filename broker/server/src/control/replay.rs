//! The image of the metadata log: what snapshots and records say, applied in order, with what changed since the last publication.

use gregor_metadata::{ApplyError, Changes, Image, MetadataImage, MetadataPosition};
use gregor_raft::{
    LogView, SnapshotId, VoterHistory,
    control::{Content, Entry},
};
use gregor_state_records::{RecordError, metadata::MetadataRecord};
use gregor_types::{LeaderEpoch, Offset, Timestamp};

use super::metadata_log::{MetadataLog, MetadataLogError};

/// Why metadata cannot be replayed. The node cannot trust its image any more and stops, as Apache's does.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The log or a snapshot cannot be read.
    #[error(transparent)]
    Log(#[from] MetadataLogError),
    /// A record cannot be read.
    #[error("the metadata record at offset {offset} cannot be read: {error}; was it written by a later version?")]
    Record {
        /// Where.
        offset: Offset,
        /// Why.
        error: RecordError,
    },
    /// A record contradicts those before it.
    #[error("the metadata record at offset {offset} does not fit what came before it: {error}")]
    Apply {
        /// Where.
        offset: Offset,
        /// Why.
        error: ApplyError,
    },
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Replay {
    image: Image,
    changes: Changes,
    end: Offset,
    epoch: LeaderEpoch,
    last_timestamp: Timestamp,
    bytes_since_snapshot: u64,
    /// Whether the image was made anew, so that what changed is to be found by comparing.
    made_anew: bool,
}

impl Replay {
    /// Reads all that the log and its newest snapshot hold, and notes the voters. What is behind the high watermark is in it too:
    /// it must not be shown to anybody before it is committed.
    pub(super) fn load(log: &mut MetadataLog, history: &mut VoterHistory) -> Result<Self, ReplayError> {
        let mut this = Self {
            image: Image::default(),
            changes: Changes::default(),
            end: log.start(),
            epoch: LeaderEpoch::NONE,
            last_timestamp: Timestamp::NONE,
            bytes_since_snapshot: 0,
            made_anew: false,
        };
        if let Some(id) = log.latest_snapshot() {
            this.load_snapshot(log, id, history)?;
        }
        this.read(log, log.end().offset, |offset, content| {
            if let Content::Control(record) = content {
                history.replay(offset, record);
            }
        })?;
        Ok(this)
    }

    /// The same for a log of which a part was cut off, or that a snapshot of the leader took the place of.
    pub(super) fn load_anew(log: &mut MetadataLog) -> Result<Self, ReplayError> {
        // The quorum takes note of its voters by itself.
        let this = Self::load(log, &mut VoterHistory::default())?;
        Ok(Self { made_anew: true, ..this })
    }

    fn load_snapshot(
        &mut self,
        log: &MetadataLog,
        id: SnapshotId,
        history: &mut VoterHistory,
    ) -> Result<(), ReplayError> {
        let mut control = Vec::new();
        log.read_snapshot::<ReplayError>(id, |content| {
            match content {
                Content::Control(record) => control.push(record),
                // What formatting chose becomes metadata when the first controller writes it into the log (KIP-1170).
                Content::Data(_) if id == SnapshotId::BOOTSTRAP => {}
                Content::Data(bytes) => self.apply(id.offset, bytes)?,
            }
            Ok(())
        })?;
        history.load_snapshot(id, &control);
        self.end = id.offset;
        self.epoch = id.epoch;
        self.bytes_since_snapshot = 0;
        Ok(())
    }

    /// Applies what the log has up to `end`.
    pub(super) fn advance(&mut self, log: &mut MetadataLog, end: Offset) -> Result<(), ReplayError> {
        self.read(log, end, |_, _| {})
    }

    fn read(
        &mut self,
        log: &mut MetadataLog,
        end: Offset,
        mut note: impl FnMut(Offset, &Content),
    ) -> Result<(), ReplayError> {
        log.read::<ReplayError>(self.end, end, |Entry { offset, epoch, timestamp, content }| {
            if offset < self.end {
                return Ok(());
            }
            note(offset, &content);
            if let Content::Data(bytes) = content {
                self.bytes_since_snapshot += bytes.len() as u64;
                self.apply(offset, bytes)?;
            }
            self.end = offset.plus(1);
            self.epoch = epoch;
            self.last_timestamp = timestamp;
            Ok(())
        })
    }

    fn apply(&mut self, offset: Offset, bytes: bytes::Bytes) -> Result<(), ReplayError> {
        let record = MetadataRecord::decode_framed(bytes).map_err(|error| ReplayError::Record { offset, error })?;
        let change = self.image.apply(&record).map_err(|error| ReplayError::Apply { offset, error })?;
        self.changes.add(change);
        Ok(())
    }

    /// The image, with the records of an open metadata transaction.
    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    /// The offset after the last record in it.
    pub(super) fn end(&self) -> Offset {
        self.end
    }

    /// What a snapshot of this image is named.
    pub(super) fn snapshot_id(&self) -> SnapshotId {
        SnapshotId::new(self.end, self.epoch)
    }

    /// The time of the last record.
    pub(super) fn last_timestamp(&self) -> Timestamp {
        self.last_timestamp
    }

    /// Bytes of records since the last snapshot.
    pub(super) fn bytes_since_snapshot(&self) -> u64 {
        self.bytes_since_snapshot
    }

    /// A snapshot of this image has been begun.
    pub(super) fn snapshot_begun(&mut self) {
        self.bytes_since_snapshot = 0;
    }

    /// The image to show and what changed since the one that was shown last; none while a metadata transaction is open.
    pub(super) fn take_update(&mut self, shown: &Image, kraft_version: i16) -> Option<(MetadataImage, Changes)> {
        if self.image.in_transaction() {
            return None;
        }
        let position = MetadataPosition { last_offset: self.end.plus(-1), epoch: self.epoch };
        let image = MetadataImage { image: self.image.clone(), position, kraft_version };
        let changes = std::mem::take(&mut self.changes);
        let changes = if std::mem::take(&mut self.made_anew) { Changes::between(shown, &self.image) } else { changes };
        Some((image, changes))
    }
}
