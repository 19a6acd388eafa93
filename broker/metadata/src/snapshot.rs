//! An image as the records that make it again: what a metadata snapshot holds, in Kafka's order (`MetadataImage.write`).

use gregor_state_records::metadata::{MetadataRecord, ProducerIdsRecord};

use crate::{Image, MetadataVersion};

/// A metadata record with the version in which it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionedRecord {
    /// The record.
    pub record: MetadataRecord,
    /// Its version; never above what the finalized `metadata.version` knows.
    pub version: i16,
}

impl VersionedRecord {
    /// The record in the version of a metadata level; `None` if that level does not know it.
    pub fn at(level: MetadataVersion, record: MetadataRecord) -> Option<Self> {
        let version = level.record_version(&record)?;
        Some(Self { record, version })
    }
}

impl Image {
    /// Hands every record of a snapshot of this image to `emit`, in order, as the finalized `metadata.version` writes it.
    /// While a transaction is open it writes what is [`visible`](Self::visible): a snapshot holds no transaction.
    pub fn write_snapshot(&self, mut emit: impl FnMut(VersionedRecord)) {
        let image = self.visible();
        let version = image.features.metadata_version();
        let mut emit = |record: MetadataRecord| {
            if let Some(record) = VersionedRecord::at(version, record) {
                emit(record);
            }
        };
        image.features.write(&mut emit);
        image.cluster.write(version, &mut emit);
        image.topics.write(version, &mut emit);
        image.configs.write(&mut emit);
        image.client_quotas.write(&mut emit);
        if let Some(next) = image.next_producer_id {
            emit(MetadataRecord::ProducerIds(ProducerIdsRecord {
                broker_id: -1,
                broker_epoch: -1,
                next_producer_id: next.value(),
                ..Default::default()
            }));
        }
        image.acls.write(&mut emit);
        image.scram_credentials.write(version, &mut emit);
        image.delegation_tokens.write(version, &mut emit);
    }
}
