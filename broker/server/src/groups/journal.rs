//! Appends a coordinator's records to its partition, as the leader of one epoch.

use std::sync::Arc;

use gregor_coordinators::{Journal, Record};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Offset, Timestamp};
use gregor_wire::batch::{BatchOptions, RecordBatchBuilder, validate_produced};

use crate::partition::Partition;

/// A partition, open for one shard's records.
pub(super) struct PartitionJournal<'p> {
    node_id: BrokerId,
    partition: &'p Arc<Partition>,
    epoch: LeaderEpoch,
}

impl<'p> PartitionJournal<'p> {
    pub(super) fn new(node_id: BrokerId, partition: &'p Arc<Partition>, epoch: LeaderEpoch) -> Self {
        Self { node_id, partition, epoch }
    }
}

impl Journal for PartitionJournal<'_> {
    fn append(&mut self, records: &[Record], now: Timestamp) -> Result<Offset, ErrorCode> {
        // A shard of an older epoch has not seen what was written since.
        if self.partition.leadership(self.node_id) != (Some(self.node_id), self.epoch) {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        let mut builder = RecordBatchBuilder::new(BatchOptions::default());
        for record in records {
            builder.append(now, Some(&record.key), record.value.as_deref(), &[]);
        }
        let bytes = builder.build();
        let settings = Arc::clone(&self.partition.lock().settings);
        let mut scratch = Vec::new();
        let batch =
            validate_produced(&bytes, &settings.rules, now, &mut scratch).map_err(|error| error.error_code())?;
        let produced = self.partition.append(&batch, true, now)?;
        Ok(produced.info.last_offset.plus(1))
    }
}
