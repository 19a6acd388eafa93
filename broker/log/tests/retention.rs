//! Which segments go, and when.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use common::*;
use gregor_log::{LogConfig, disk::FaultyDisk};
use gregor_types::{Offset, Timestamp};

fn config() -> LogConfig {
    LogConfig { segment_bytes: 200, retention_ms: -1, file_delete_delay_ms: 1000, ..LogConfig::default() }
}

fn filled(disk: &FaultyDisk, config: LogConfig) -> gregor_log::PartitionLog {
    let mut log = create(disk, config);
    for i in 0..10 {
        append(&mut log, &batch_at(Timestamp(1000 * i), &[&"x".repeat(100)]));
    }
    assert_eq!(log.segments_count(), 10);
    log
}

#[test]
fn old_segments_go_first_and_none_above_the_high_watermark() {
    let disk = FaultyDisk::new();
    let mut log = filled(&disk, LogConfig { retention_ms: 3000, ..config() });
    let progress = log.retain(Offset(2), Timestamp(9500), 100).unwrap();
    assert_eq!((progress.deleted_segments, log.start_offset()), (2, Offset(2)));
    let progress = log.retain(Offset(10), Timestamp(9500), 3).unwrap();
    assert_eq!((progress.deleted_segments, progress.more), (3, true), "a step ends with its budget");
    let progress = log.retain(Offset(10), Timestamp(9500), 100).unwrap();
    assert_eq!((progress.deleted_segments, progress.more, log.start_offset()), (2, false, Offset(7)));
    assert_eq!(read_all(&mut log).len(), 3);
}

#[test]
fn when_everything_is_old_the_end_offset_stays() {
    let disk = FaultyDisk::new();
    let mut log = filled(&disk, LogConfig { retention_ms: 3000, ..config() });
    log.retain(Offset(10), Timestamp(1_000_000), 100).unwrap();
    assert_eq!((log.start_offset(), log.end_offset(), log.size()), (Offset(10), Offset(10), 0));
    let log = close_and_reopen(&disk, log);
    assert_eq!((log.start_offset(), log.end_offset()), (Offset(10), Offset(10)));
}

#[test]
fn size_keeps_at_least_what_it_says() {
    let disk = FaultyDisk::new();
    let mut log = filled(&disk, config());
    let segment = log.size() / 10;
    let keep = segment * 4 + 10;
    log.set_config(std::sync::Arc::new(LogConfig { retention_bytes: keep as i64, ..config() }));
    log.retain(Offset(10), NOW, 100).unwrap();
    assert_eq!((log.size(), log.start_offset()), (segment * 5, Offset(5)));
}

#[test]
fn deleted_records_go_with_their_segments_and_files_after_their_delay() {
    let disk = FaultyDisk::new();
    let mut log = filled(&disk, LogConfig { delete: false, compact: true, ..config() });
    log.advance_start(Offset(4)).unwrap();
    assert!(log.advance_start(Offset(11)).is_err());
    assert_eq!(read_all(&mut log)[0].0, 4);
    log.retain(Offset(10), NOW, 100).unwrap();
    assert_eq!(log.segments_count(), 6);
    let deleted = |disk: &FaultyDisk| names(disk, &folder()).iter().filter(|name| name.ends_with(".deleted")).count();
    assert_eq!(deleted(&disk), 12);
    log.retain(Offset(10), NOW.plus_ms(999), 100).unwrap();
    assert_eq!(deleted(&disk), 12);
    log.retain(Offset(10), NOW.plus_ms(1000), 100).unwrap();
    assert_eq!(deleted(&disk), 0);
}

#[test]
fn a_segment_is_rolled_by_the_time_of_its_records() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, LogConfig { segment_ms: 1000, ..LogConfig::default() });
    for timestamp in [5000, 5500, 6000, 6001, 5000, 7002] {
        append(&mut log, &batch_at(Timestamp(timestamp), &["x"]));
    }
    assert_eq!(log.segments_count(), 3);
}

#[test]
fn silent_producers_are_forgotten() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, LogConfig { producer_id_expiration_ms: 1000, ..config() });
    append(&mut log, &produced(1, 0, 0, false, &["x"]));
    append(&mut log, &produced(2, 0, 0, true, &["x"]));
    log.retain(Offset(0), NOW.plus_ms(1001), 1).unwrap();
    let left: Vec<_> = log.active_producers().map(|producer| producer.producer_id.0).collect();
    assert_eq!(left, [2], "a producer with an open transaction stays");
}
