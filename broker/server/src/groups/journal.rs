//! Appends a coordinator's records to its partition, as the leader of one epoch.

use std::sync::Arc;

use gregor_coordinators::{Journal, Record};
use gregor_types::{ErrorCode, LeaderEpoch, Offset, Timestamp};
use gregor_wire::batch::{BatchOptions, RecordBatchBuilder, validate_produced};

use crate::partition::Partition;

/// A partition, open for one shard's records.
pub(super) struct PartitionJournal<'p> {
    partition: &'p Arc<Partition>,
    epoch: LeaderEpoch,
}

impl<'p> PartitionJournal<'p> {
    pub(super) fn new(partition: &'p Arc<Partition>, epoch: LeaderEpoch) -> Self {
        Self { partition, epoch }
    }
}

impl Journal for PartitionJournal<'_> {
    fn append(&mut self, records: &[Record], now: Timestamp) -> Result<Offset, ErrorCode> {
        let mut builder = RecordBatchBuilder::new(BatchOptions::default());
        for record in records {
            builder.append(now, Some(&record.key), record.value.as_deref(), &[]);
        }
        let bytes = builder.build();
        let settings = Arc::clone(&self.partition.lock().settings);
        let mut scratch = Vec::new();
        let batch =
            validate_produced(&bytes, &settings.rules, now, &mut scratch).map_err(|error| error.error_code())?;
        // A shard of an older epoch has not seen what was written since: only its own epoch's leader takes its records.
        let produced = self.partition.append_in_epoch(&batch, self.epoch, now)?;
        Ok(produced.info.last_offset.plus(1))
    }
}
