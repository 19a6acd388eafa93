//! What a cleaner leaves of a batch: some of its records, or none of them (`MemoryRecords.filterTo`).
//!
//! Base offset, last offset, leader epoch and the producer's marks stay as they were, so that offsets never change and the
//! producer is still known by its last batch.

use bytes::Bytes;
use gregor_types::Timestamp;

use super::{BatchError, BatchHeader, BatchOptions, ProducerStamp, RecordBatchBuilder, RecordView, TimestampType};
use crate::compression::{Compression, CompressionType};

/// A batch of magic 2 with these of its records, at least one, in its own codec. With a delete horizon, the batch says from when
/// on its tombstones or its marker may be removed. Messages of magic 0 and 1 become a batch that begins and ends with them.
pub fn retained_batch(
    header: &BatchHeader,
    delete_horizon: Option<Timestamp>,
    records: &[RecordView<'_>],
) -> Result<Bytes, BatchError> {
    let (base_offset, last_offset_delta) = match (header.magic, records) {
        (0 | 1, [first, .., last]) => (first.offset, (last.offset.0 - first.offset.0) as i32),
        (0 | 1, [only]) => (only.offset, 0),
        _ => (header.base_offset, header.last_offset_delta),
    };
    let mut builder = resume(&BatchHeader { base_offset, ..*header }, header.compression()?.into());
    builder.delete_horizon = delete_horizon;
    for record in records {
        let delta = (record.offset.0 - base_offset.0) as i32;
        let headers: Vec<_> = record.headers.iter().map(|header| (header.key, header.value)).collect();
        builder.append_delta(delta, record.timestamp, record.key, record.value, headers.into_iter());
    }
    builder.last_offset_delta = last_offset_delta;
    builder.try_build()
}

/// A batch of magic 2 without its records: only its header.
pub fn emptied_batch(header: &BatchHeader) -> Bytes {
    let mut builder = resume(header, CompressionType::None.into());
    builder.last_offset_delta = header.last_offset_delta;
    builder.max_timestamp = header.max_timestamp;
    builder.build()
}

fn resume(header: &BatchHeader, compression: Compression) -> RecordBatchBuilder {
    // Messages of magic 0 have no timestamps, of either type.
    let is_append_time = header.magic > 0 && header.timestamp_type() == TimestampType::LogAppendTime;
    RecordBatchBuilder::new(BatchOptions {
        base_offset: header.base_offset,
        leader_epoch: header.leader_epoch,
        compression,
        log_append_time: is_append_time.then_some(header.max_timestamp),
        producer: Some(ProducerStamp {
            id: header.producer_id,
            epoch: header.producer_epoch,
            base_sequence: header.base_sequence,
        }),
        transactional: header.is_transactional(),
        control: header.is_control(),
    })
}

#[cfg(test)]
mod tests {
    use gregor_types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId};

    use super::*;
    use crate::batch::BatchView;

    fn batch(codec: CompressionType) -> Bytes {
        let producer = ProducerStamp { id: ProducerId(7), epoch: ProducerEpoch(3), base_sequence: 40 };
        let mut builder = RecordBatchBuilder::new(BatchOptions {
            base_offset: Offset(100),
            leader_epoch: LeaderEpoch(5),
            compression: codec.into(),
            producer: Some(producer),
            transactional: true,
            ..BatchOptions::default()
        });
        for i in 0..4 {
            let key = format!("k{i}");
            builder.append(Timestamp(1000 + i), Some(key.as_bytes()), Some(b"value"), &[("h", Some(b"x"))]);
        }
        builder.build()
    }

    #[test]
    fn what_is_left_of_a_batch_keeps_offsets_times_headers_and_producer() {
        for codec in [CompressionType::None, CompressionType::Gzip, CompressionType::Zstd] {
            let bytes = batch(codec);
            let original = BatchView::parse(&bytes).unwrap();
            let records = original.records(1 << 20).unwrap();
            let kept: Vec<_> = records.iter().map(Result::unwrap).filter(|record| record.offset.0 % 2 == 1).collect();
            let rewritten = retained_batch(original.header(), Some(Timestamp(9_000)), &kept).unwrap();
            let view = BatchView::parse(&rewritten).unwrap();
            view.check_crc().unwrap();
            assert_eq!(view.delete_horizon(), Some(Timestamp(9_000)));
            assert_eq!((view.base_offset, view.last_offset()), (Offset(100), Offset(103)));
            assert_eq!((view.producer_id, view.base_sequence), (ProducerId(7), 40));
            assert_eq!((view.leader_epoch, view.max_timestamp), (LeaderEpoch(5), Timestamp(1003)));
            assert!(view.is_transactional() && view.compression().unwrap() == codec);
            let records = view.records(1 << 20).unwrap();
            let seen: Vec<_> = records
                .iter()
                .map(|record| record.map(|r| (r.offset.0, r.timestamp.0, r.headers.len())).unwrap())
                .collect();
            assert_eq!(seen, [(101, 1001, 1), (103, 1003, 1)], "{codec}");
        }
    }

    #[test]
    fn an_emptied_batch_is_a_header_that_still_knows_its_producer() {
        let bytes = batch(CompressionType::Lz4);
        let original = BatchView::parse(&bytes).unwrap();
        let emptied = emptied_batch(original.header());
        let view = BatchView::parse(&emptied).unwrap();
        view.check_crc().unwrap();
        assert_eq!((view.size, view.records_count, view.last_sequence()), (61, 0, 43));
        assert_eq!((view.max_timestamp, view.last_offset()), (Timestamp(1003), Offset(103)));
        assert_eq!(view.records(1024).unwrap().iter().count(), 0);
    }
}
