//! What a start makes of what it finds: missing, damaged and old files.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::io::{self, IoSlice};

use common::*;
use gregor_log::{
    Appended, Disk, LogConfig, PartitionLog,
    disk::{Crash, FaultyDisk, Operation, read_file, replace_file},
};
use gregor_types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId};
use gregor_wire::{
    batch::{BatchHeader, EndTransactionMarker, RecordBatchBuilder, split_batches},
    compression::CompressionType,
};

fn config() -> LogConfig {
    LogConfig { segment_bytes: 1200, index_interval_bytes: 200, ..LogConfig::default() }
}

/// A log of several segments, epochs and producers, closed cleanly.
fn closed(disk: &FaultyDisk) -> Vec<(i64, String)> {
    let mut log = create(disk, config());
    for i in 0..60 {
        let value = format!("record {i}");
        try_append(&mut log, i / 20, &produced(5, 0, i, false, &[&value])).unwrap();
    }
    let records = read_all(&mut log);
    flush(&mut log);
    log.close().unwrap().complete().unwrap();
    assert!(log.segments_count() > 3);
    records
}

fn open_clean(disk: &FaultyDisk) -> PartitionLog {
    reopen(disk, options(config(), Offset(60), true))
}

fn path(name: &str) -> std::path::PathBuf {
    folder().join(name)
}

fn last_segment(disk: &FaultyDisk, suffix: &str) -> std::path::PathBuf {
    let names = names(disk, &folder());
    path(names.iter().rfind(|name| name.ends_with(suffix)).unwrap())
}

#[test]
fn missing_and_damaged_indexes_are_made_anew() {
    let disk = FaultyDisk::new();
    let records = closed(&disk);
    let files = names(&disk, &folder());
    let before: Vec<_> = files.iter().map(|name| read_file(&disk, &path(name), 1 << 20).unwrap()).collect();
    for (i, name) in files.iter().filter(|name| name.ends_with("index")).enumerate() {
        match i % 3 {
            0 => disk.remove_file(&path(name)).unwrap(),
            1 => disk.open(&path(name)).unwrap().truncate(5).unwrap(),
            _ => {}
        }
    }
    let mut log = open_clean(&disk);
    assert_eq!(read_all(&mut log), records);
    log.close().unwrap().complete().unwrap();
    for (name, before) in files.iter().zip(before) {
        assert_eq!(read_file(&disk, &path(name), 1 << 20).unwrap(), before, "{name} is what it was");
    }
}

#[test]
fn an_index_that_was_allocated_ahead_and_not_trimmed_is_no_trouble() {
    let disk = FaultyDisk::new();
    let records = closed(&disk);
    disk.open(&last_segment(&disk, ".index")).unwrap().truncate(8000).unwrap();
    disk.open(&last_segment(&disk, ".timeindex")).unwrap().truncate(12_000).unwrap();
    let mut log = open_clean(&disk);
    assert_eq!(read_all(&mut log), records);
    assert_eq!(log.offset_for_timestamp(NOW).unwrap().unwrap().offset, Offset(0));
}

#[test]
fn a_file_that_was_allocated_ahead_ends_where_its_zeros_begin() {
    let disk = FaultyDisk::new();
    let records = closed(&disk);
    let log_file = disk.open(&last_segment(&disk, ".log")).unwrap();
    let len = log_file.len().unwrap();
    log_file.truncate(len + 5000).unwrap();
    let mut log = reopen(&disk, options(config(), Offset(0), false));
    assert_eq!(read_all(&mut log), records);
    assert_eq!(log_file.len().unwrap(), len);
}

#[test]
fn torn_epochs_are_found_again_in_the_batches() {
    let disk = FaultyDisk::new();
    closed(&disk);
    replace_file(&disk, &path("leader-epoch-checkpoint"), b"0\n3\n0 0\n1 ").unwrap();
    let log = open_clean(&disk);
    let epochs: Vec<_> = log.epochs().iter().map(|(epoch, start)| (epoch.0, start.0)).collect();
    assert_eq!(epochs, [(0, 0), (1, 20), (2, 40)]);
}

#[test]
fn a_damaged_producer_snapshot_is_replaced_by_an_older_one_and_the_batches() {
    let disk = FaultyDisk::new();
    closed(&disk);
    let newest = last_segment(&disk, ".snapshot");
    assert!(newest.ends_with("00000000000000000060.snapshot"), "{}", newest.display());
    disk.corrupt(&newest, 20, 1);
    let mut log = open_clean(&disk);
    assert_eq!(log.active_producers().next().unwrap().last_sequence, 59);
    assert!(try_append(&mut log, 2, &produced(5, 0, 61, false, &["gap"])).is_err());
    try_append(&mut log, 2, &produced(5, 0, 60, false, &["next"])).unwrap();
}

#[test]
fn snapshots_that_serve_nobody_are_removed() {
    let disk = FaultyDisk::new();
    closed(&disk);
    for name in ["00000000000000000003.snapshot", "00000000000000000999.snapshot"] {
        disk.create(&path(name)).unwrap();
    }
    open_clean(&disk);
    let names = names(&disk, &folder());
    assert!(!names.iter().any(|name| name.contains("03.snapshot") || name.contains("999.snapshot")), "{names:?}");
}

#[test]
fn a_segment_that_lost_its_end_ends_the_log_unless_the_cleaner_was_there() {
    let disk = FaultyDisk::new();
    let records = closed(&disk);
    let first = path("00000000000000000000.log");
    let content = read_file(&disk, &first, 1 << 20).unwrap();
    let last = split_batches(&content).last().unwrap().unwrap().bytes().len();
    disk.open(&first).unwrap().truncate((content.len() - last) as u64).unwrap();
    let mut cleaned = options(config(), Offset(0), false);
    cleaned.cleaned_to = Offset(60);
    assert_eq!(reopen(&disk, cleaned).end_offset(), Offset(60));
    let mut log = reopen(&disk, options(config(), Offset(0), false));
    let found = read_all(&mut log);
    assert!(log.end_offset() < Offset(20), "{}", log.end_offset());
    assert_eq!(found, records[..found.len()]);
}

#[test]
fn a_log_that_ends_before_its_start_begins_anew_there() {
    let disk = FaultyDisk::new();
    closed(&disk);
    let mut options = options(config(), Offset(0), false);
    options.log_start_offset = Offset(100);
    let log = reopen(&disk, options);
    assert_eq!((log.start_offset(), log.end_offset(), log.segments_count()), (Offset(100), Offset(100), 1));
}

#[test]
fn records_before_the_log_start_stay_deleted() {
    let disk = FaultyDisk::new();
    let records = closed(&disk);
    let mut options = options(config(), Offset(60), true);
    options.log_start_offset = Offset(31);
    let mut log = reopen(&disk, options);
    assert_eq!(read_all(&mut log), records[31..]);
    assert_eq!(log.epochs()[0], (LeaderEpoch(1), Offset(31)));
}

#[test]
fn messages_of_magic_0_and_1_are_read_and_recovered() {
    let disk = FaultyDisk::new();
    drop(create(&disk, config()));
    let old: Vec<u8> = (0..40)
        .flat_map(|i| message((i / 20) as u8, i, CompressionType::None, None, Some(format!("old {i}").as_bytes())))
        .collect();
    let file = disk.open(&path("00000000000000000000.log")).unwrap();
    file.write_all_at(&mut [IoSlice::new(&old)], 0).unwrap();
    assert_eq!(BatchHeader::parse(&old).unwrap().magic, 0);
    let mut log = reopen(&disk, options(config(), Offset(0), false));
    assert_eq!(log.end_offset(), Offset(40));
    append(&mut log, &batch(&["new"]));
    let mut log = close_and_reopen(&disk, log);
    let records = read_all(&mut log);
    assert_eq!(records[7], (7, "old 7".to_owned()));
    assert_eq!(records[40], (40, "new".to_owned()));
    assert_eq!(records.len(), 41);
}

#[test]
fn a_sync_that_fails_moves_no_recovery_point() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, config());
    append(&mut log, &batch(&["x"]));
    disk.set_fault(|operation, _| (operation == Operation::Sync).then(|| io::Error::other("I/O error")));
    let error = log.flush().unwrap().unwrap().complete().unwrap_err();
    assert!(error.to_string().contains("/logs/t-0"), "{error}");
    assert_eq!(log.recovery_point(), Offset(0));
    disk.clear_fault();
    let error = log.flush().unwrap_err();
    assert!(error.to_string().contains("restart"), "a later sync is not believed: {error}");
    assert_eq!(log.recovery_point(), Offset(0));
}

#[test]
fn a_flush_that_began_before_a_truncation_promises_nothing_for_what_came_after() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, config());
    append(&mut log, &batch(&["a", "b", "c"]));
    append(&mut log, &batch(&["d"]));
    let token = log.flush().unwrap().unwrap();
    let flushed = token.complete().unwrap();
    log.truncate_to(Offset(3), NOW).unwrap();
    append(&mut log, &batch(&["other"]));
    log.flushed(flushed);
    assert!(log.recovery_point() <= Offset(3), "{}", log.recovery_point());
    disk.crash(Crash::LoseUnsynced);
}

#[test]
fn a_folder_that_has_a_log_is_not_taken_for_a_new_one() {
    let disk = FaultyDisk::new();
    let records = closed(&disk);
    let again = PartitionLog::create(
        std::sync::Arc::new(disk.clone()),
        folder(),
        partition(),
        None,
        std::sync::Arc::new(config()),
        NOW,
    );
    assert!(again.unwrap_err().to_string().contains("a log is there already"));
    assert_eq!(read_all(&mut open_clean(&disk)), records);
}

#[test]
fn the_topic_id_is_on_the_disk_before_the_first_record() {
    let disk = FaultyDisk::new();
    let topic_id = gregor_types::Uuid(42 << 90);
    let mut log = PartitionLog::create(
        std::sync::Arc::new(disk.clone()),
        folder(),
        partition(),
        Some(topic_id),
        std::sync::Arc::new(config()),
        NOW,
    )
    .unwrap();
    for parent in ["/", "/logs"] {
        disk.sync_directory(parent.as_ref()).complete().unwrap();
    }
    append(&mut log, &batch(&["x"]));
    drop(log);
    disk.crash(Crash::LoseUnsynced);
    let log = reopen(&disk, options(config(), Offset(0), false));
    assert_eq!(log.topic_id(), Some(topic_id));
}

#[test]
fn the_aborted_transaction_stays_known_though_the_cleaner_has_taken_all_its_records() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, config());
    append(&mut log, &produced(9, 0, 0, true, &["a", "b"]));
    log.roll(NOW).unwrap();
    let abort = EndTransactionMarker { commit: false, coordinator_epoch: 0 };
    append(&mut log, &RecordBatchBuilder::end_transaction_marker(abort, ProducerId(9), ProducerEpoch(0), NOW));
    drop(log);
    // What Kafka's cleaner leaves of a segment of aborted records: nothing.
    disk.open(&path("00000000000000000000.log")).unwrap().truncate(0).unwrap();
    let mut options = options(config(), Offset(0), false);
    options.cleaned_to = Offset(2);
    let mut log = reopen(&disk, options);
    let aborted = log.aborted_transactions(Offset(0), log.end_offset()).unwrap();
    assert_eq!(aborted.len(), 1);
    assert_eq!((aborted[0].first_offset, aborted[0].last_offset), (Offset(0), Offset(2)));
}

#[test]
fn producers_that_were_silent_for_too_long_are_not_taken_from_a_snapshot() {
    let disk = FaultyDisk::new();
    closed(&disk);
    for (producer_id_expiration_ms, known) in [(1_000, 1), (999, 0)] {
        let mut options = options(LogConfig { producer_id_expiration_ms, ..config() }, Offset(60), true);
        options.now = NOW.plus_ms(999);
        assert_eq!(reopen(&disk, options).active_producers().count(), known);
    }
}

#[test]
fn an_epoch_begins_where_its_checkpoint_says_though_the_cleaner_has_taken_its_first_records() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, config());
    for (epoch, value) in [(0, "a"), (1, "b"), (2, "c"), (2, "d"), (3, "e")] {
        try_append(&mut log, epoch, &batch(&[value])).unwrap();
        log.roll(NOW).unwrap();
    }
    flush(&mut log);
    drop(log);
    // All of epoch 1 is cleaned away, and the first record of epoch 2.
    for gone in ["00000000000000000001.log", "00000000000000000002.log"] {
        disk.open(&path(gone)).unwrap().truncate(0).unwrap();
    }
    let mut options = options(config(), Offset(0), false);
    options.cleaned_to = Offset(5);
    let log = reopen(&disk, options.clone());
    assert_eq!(
        log.epochs(),
        [(0, 0), (1, 1), (2, 2), (3, 4)].map(|(epoch, start)| (LeaderEpoch(epoch), Offset(start)))
    );
    drop(log);
    // Of another history is what contradicts the batches.
    replace_file(&disk, &path("leader-epoch-checkpoint"), b"0\n3\n0 0\n2 4\n9 5\n").unwrap();
    let log = reopen(&disk, options);
    assert_eq!(log.epochs(), [(0, 0), (2, 3), (3, 4)].map(|(epoch, start)| (LeaderEpoch(epoch), Offset(start))));
}

#[test]
fn the_last_five_batches_are_known_after_a_kill_though_a_segment_began_among_them() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, config());
    for sequence in 0..5 {
        if sequence == 3 {
            log.roll(NOW).unwrap();
        }
        append(&mut log, &produced(5, 0, sequence, false, &["in flight"]));
    }
    drop(log);
    let mut log = reopen(&disk, options(config(), Offset(0), false));
    for sequence in 0..5 {
        let again = try_append(&mut log, 0, &produced(5, 0, sequence, false, &["in flight"])).unwrap();
        assert!(matches!(again, Appended::Duplicate(info) if info.base_offset == Offset(sequence.into())), "{again:?}");
    }
}
