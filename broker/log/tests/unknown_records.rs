//! Records of types that only a later Kafka knows survive cleaning: whoever wrote them may come back.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use common::*;
use gregor_log::{LogConfig, PartitionLog, ReadRequest, disk::FaultyDisk};
use gregor_types::{Offset, Timestamp};
use gregor_wire::batch::{BatchOptions, RecordBatchBuilder, split_batches};

fn keyed(control: bool, key: &[u8], value: Option<&[u8]>) -> bytes::Bytes {
    let mut builder = RecordBatchBuilder::new(BatchOptions { control, ..BatchOptions::default() });
    builder.append(NOW, Some(key), value, &[]);
    builder.build()
}

/// Every batch that is there: where it begins, and the key of its record.
fn batches(log: &mut PartitionLog) -> Vec<(i64, Vec<u8>)> {
    let upper_bound = log.end_offset();
    let request = ReadRequest { from: Offset(0), upper_bound, max_bytes: 1 << 20, min_one_batch: true };
    let (mut found, mut next) = (Vec::new(), Offset(0));
    while next < upper_bound {
        let bytes = log.read(&ReadRequest { from: next, ..request }).unwrap().read_all().unwrap();
        for batch in split_batches(&bytes) {
            let batch = batch.unwrap();
            batch.check_crc().unwrap();
            next = batch.next_offset();
            let records = batch.records(1 << 20).unwrap();
            found.extend(records.iter().map(|record| record.unwrap()).map(|r| (r.offset.0, r.key.unwrap().to_vec())));
        }
    }
    found
}

#[test]
fn control_records_and_group_records_of_unknown_types_are_kept() {
    let settings = LogConfig { compact: true, delete: false, delete_retention_ms: 1_000, ..LogConfig::default() };
    let disk = FaultyDisk::new();
    let mut log = create(&disk, settings);
    // A control record of type 77, and one of an abort in a version of its own, of no producer.
    let control: [&[u8]; 2] = [&[0, 0, 0, 77], &[0, 9, 0, 88]];
    for key in control {
        append(&mut log, &keyed(true, key, Some(b"of tomorrow")));
    }
    // As in __consumer_offsets, a key begins with its type: 1 is a committed offset, nobody knows 4711.
    let unknown = |name: &str| [&4711_i16.to_be_bytes()[..], name.as_bytes()].concat();
    append(&mut log, &keyed(false, &unknown("one"), Some(b"old")));
    append(&mut log, &keyed(false, &unknown("two"), Some(b"stays")));
    append(&mut log, &keyed(false, b"\0\x01known", Some(b"stays")));
    append(&mut log, &keyed(false, &unknown("one"), Some(b"new")));
    let expected = [
        (0, control[0].to_vec()),
        (1, control[1].to_vec()),
        (3, unknown("two")),
        (4, b"\0\x01known".to_vec()),
        (5, unknown("one")),
    ];
    for round in 0..3 {
        append(&mut log, &keyed(false, b"of the round", Some(b"")));
        log.roll(NOW).unwrap();
        append(&mut log, &keyed(false, b"of the round", Some(b"")));
        // Far beyond any delete horizon.
        let now = Timestamp(NOW.0 + i64::from(round) * 100_000);
        flush(&mut log);
        clean(&mut log, now, 1 << 20, u64::MAX).unwrap();
        assert_eq!(batches(&mut log)[..5], expected, "round {round}");
        log = kill_and_reopen(&disk, log);
        assert_eq!(batches(&mut log)[..5], expected, "round {round}, after a restart");
    }
}
