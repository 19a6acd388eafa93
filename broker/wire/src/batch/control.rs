//! Control records: marks that Kafka itself puts between the records of a log.

use super::{BatchHeader, records::iterate};

/// What a control record says; the second number of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControlRecordType {
    /// A transaction ended and its records do not count.
    Abort,
    /// A transaction ended and its records count.
    Commit,
    /// A new leader of the metadata quorum.
    LeaderChange,
    /// The first record of a snapshot.
    SnapshotHeader,
    /// The last record of a snapshot.
    SnapshotFooter,
    /// The finalized `kraft.version`.
    KRaftVersion,
    /// The voters of the metadata quorum.
    KRaftVoters,
    /// A type of a later Kafka: kept, and otherwise ignored.
    Unknown(i16),
}

/// The value of a transaction's marker, of version 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndTransactionMarker {
    /// Whether the transaction is committed, else aborted. Stands in the key.
    pub commit: bool,
    /// The epoch of the transaction coordinator, which fences late markers of an older one.
    pub coordinator_epoch: i32,
}

const CURRENT_VERSION: i16 = 0;

impl ControlRecordType {
    /// The type in a control record's key: a version, which later ones may raise, and the type.
    pub fn from_key(key: &[u8]) -> Option<Self> {
        let (version, rest) = key.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        if i16::from_be_bytes(*version) < 0 {
            return None;
        }
        Some(match i16::from_be_bytes(*kind) {
            0 => Self::Abort,
            1 => Self::Commit,
            2 => Self::LeaderChange,
            3 => Self::SnapshotHeader,
            4 => Self::SnapshotFooter,
            5 => Self::KRaftVersion,
            6 => Self::KRaftVoters,
            other => Self::Unknown(other),
        })
    }

    /// The number in the key.
    pub const fn id(self) -> i16 {
        match self {
            Self::Abort => 0,
            Self::Commit => 1,
            Self::LeaderChange => 2,
            Self::SnapshotHeader => 3,
            Self::SnapshotFooter => 4,
            Self::KRaftVersion => 5,
            Self::KRaftVoters => 6,
            Self::Unknown(id) => id,
        }
    }

    /// The key of a control record of this type.
    pub fn key(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (CURRENT_VERSION.to_be_bytes(), self.id().to_be_bytes());
        [a, b, c, d]
    }
}

impl EndTransactionMarker {
    /// Reads a marker from a control record, if it is one.
    pub fn parse(key: &[u8], value: &[u8]) -> Option<Self> {
        let commit = match ControlRecordType::from_key(key)? {
            ControlRecordType::Commit => true,
            ControlRecordType::Abort => false,
            _ => return None,
        };
        let (version, rest) = value.split_first_chunk::<2>()?;
        let (epoch, _) = rest.split_first_chunk::<4>()?;
        (i16::from_be_bytes(*version) >= 0).then(|| Self { commit, coordinator_epoch: i32::from_be_bytes(*epoch) })
    }

    /// The marker in a control batch of magic 2, if it is one; control batches are never compressed.
    pub fn in_batch(header: &BatchHeader, body: &[u8]) -> Option<Self> {
        if !header.is_control() || !header.has_producer_id() {
            return None;
        }
        let record = iterate(header, body).next()?.ok()?;
        Self::parse(record.key?, record.value?)
    }

    /// The control record's type.
    pub const fn kind(self) -> ControlRecordType {
        if self.commit { ControlRecordType::Commit } else { ControlRecordType::Abort }
    }

    /// The control record's value.
    pub fn value(self) -> [u8; 6] {
        let mut value = [0; 6];
        value[..2].copy_from_slice(&CURRENT_VERSION.to_be_bytes());
        value[2..].copy_from_slice(&self.coordinator_epoch.to_be_bytes());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_reads_back_as_it_was_written() {
        let marker = EndTransactionMarker { commit: true, coordinator_epoch: 7 };
        assert_eq!(marker.kind().key(), [0, 0, 0, 1]);
        assert_eq!(EndTransactionMarker::parse(&marker.kind().key(), &marker.value()), Some(marker));
        assert_eq!(EndTransactionMarker::parse(&ControlRecordType::LeaderChange.key(), &marker.value()), None);
        assert_eq!(ControlRecordType::from_key(&[0, 0, 0, 99]), Some(ControlRecordType::Unknown(99)));
        assert_eq!(ControlRecordType::from_key(&[0, 0]), None);
    }
}
