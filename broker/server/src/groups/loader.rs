//! Reads a partition of `__consumer_offsets` from its start to its end into a shard.

use std::{io, sync::Arc};

use bytes::Bytes;
use gregor_coordinators::{LoggedRecord, Record, ReplayError, Shard, group::GroupCoordinator};
use gregor_types::{ErrorCode, LeaderEpoch, Offset};
use gregor_wire::batch::{BatchError, BatchView, ControlRecordType, split_batches};

use crate::partition::{Isolation, Partition, Query};

const READ_BYTES: u32 = 1 << 20;
const DECOMPRESSED_BYTES_MAX: usize = 256 << 20;

/// Why a shard cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("the log is not to be read: {0}")]
    Refused(ErrorCode),
    #[error("the log cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("at offset {at}: {source}")]
    Batch { at: i64, source: BatchError },
    #[error("at offset {at}: {source}")]
    Record { at: i64, source: ReplayError },
}

/// Fills a shard with what its partition says, and returns it with the offset behind the last record.
pub(super) fn load(
    partition: &Arc<Partition>,
    mut shard: Shard<GroupCoordinator>,
) -> (Shard<GroupCoordinator>, Result<Offset, LoadError>) {
    let loaded = read(partition, &mut shard);
    (shard, loaded)
}

fn read(partition: &Arc<Partition>, shard: &mut Shard<GroupCoordinator>) -> Result<Offset, LoadError> {
    let bounds = partition.with_log(|log, _| (log.start_offset(), log.end_offset()));
    let (mut at, end) = bounds.ok_or(LoadError::Refused(ErrorCode::KafkaStorageError))?;
    while at < end {
        let read = partition.read(&Query {
            from: at,
            current_leader_epoch: LeaderEpoch::NONE,
            last_fetched_epoch: LeaderEpoch::NONE,
            max_bytes: READ_BYTES,
            min_one_batch: true,
            isolation: Isolation::LogEnd,
            of_any_replica: false,
            near: &[],
            follower: None,
        });
        let read = read.map_err(LoadError::Refused)?;
        let bytes = read.plan.read_all()?;
        let before = at;
        for batch in split_batches(&bytes) {
            let failed = |source| LoadError::Batch { at: before.value(), source };
            let batch = batch.map_err(failed)?;
            batch.check_crc().map_err(failed)?;
            take_in(&batch, at, shard)?;
            at = batch.next_offset();
        }
        if at == before {
            // The segment's end was lost with the machine's power, and the name of the next, empty one was not: as in Kafka, a
            // log may end with offsets that nothing stands at.
            break;
        }
    }
    Ok(end)
}

fn take_in(batch: &BatchView<'_>, from: Offset, shard: &mut Shard<GroupCoordinator>) -> Result<(), LoadError> {
    let at = batch.base_offset.value();
    let failed = |source| LoadError::Batch { at, source };
    let records = batch.records(DECOMPRESSED_BYTES_MAX).map_err(failed)?;
    for record in &records {
        let record = record.map_err(failed)?;
        let Some(key) = record.key.filter(|_| record.offset >= from) else { continue };
        if batch.is_control() {
            match ControlRecordType::from_key(key) {
                Some(ControlRecordType::Commit) => shard.replay_end(batch.producer_id, true),
                Some(ControlRecordType::Abort) => shard.replay_end(batch.producer_id, false),
                _ => {}
            }
            continue;
        }
        let record = LoggedRecord {
            offset: record.offset,
            transaction: batch.is_transactional().then_some(batch.producer_id),
            record: Record { key: Bytes::copy_from_slice(key), value: record.value.map(Bytes::copy_from_slice) },
        };
        shard.replay(record).map_err(|source| LoadError::Record { at, source })?;
    }
    Ok(())
}
