//! A log moves from one log directory to another: its copy has the same bytes, follows what becomes of it, takes its place,
//! and a crash at any change of the disk leaves one of the two whole.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{NOW, append, batch, batch_bases, flush, names, partition, produced, read_all, try_append};
use gregor_log::{
    Appended, CheckpointKind, Disk, LogConfig, LogDirectory, LogError, PartitionDirectoryKind, PartitionLog,
    can_have_future,
    disk::{Crash, FaultyDisk, Operation},
};
use gregor_types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, TopicPartition, Uuid};
use gregor_wire::batch::{EndTransactionMarker, RecordBatchBuilder};

const TOPIC: Uuid = Uuid(77 << 80);

fn directory(disk: &FaultyDisk, path: &str) -> LogDirectory {
    LogDirectory::open(Arc::new(disk.clone()), path.into()).unwrap()
}

fn small_segments() -> Arc<LogConfig> {
    Arc::new(LogConfig { segment_bytes: 400, index_interval_bytes: 100, ..LogConfig::default() })
}

fn source(directory: &LogDirectory) -> PartitionLog {
    directory.create_partition(partition(), Some(TOPIC), small_segments(), NOW).unwrap()
}

fn future(directory: &LogDirectory) -> PartitionLog {
    directory.create_future(partition(), Some(TOPIC), small_segments(), Uuid(5), NOW).unwrap()
}

/// One bounded step of a copy; whether anything was copied.
fn copy_step(from: &mut PartitionLog, to: &mut PartitionLog, max_bytes: u32) -> bool {
    let source = from.copy_source(to);
    to.follow_source(&source, NOW).unwrap();
    let bytes = from.read_for_copy(to.end_offset(), max_bytes).unwrap().read_all().unwrap();
    if bytes.is_empty() {
        to.skip_to(source.end_offset);
        return false;
    }
    to.append_as_replica(&bytes, NOW).unwrap();
    true
}

fn copy(from: &mut PartitionLog, to: &mut PartitionLog) {
    while copy_step(from, to, 300) {}
}

/// The swap as the server does it.
fn swap(
    (home, mut from): (&LogDirectory, PartitionLog),
    (target, mut to): (&LogDirectory, PartitionLog),
) -> Result<PartitionLog, LogError> {
    assert!(to.can_replace(&from));
    let deleted = home.retire(&mut from, Uuid(6))?;
    target.promote(&mut to)?;
    to.take_over(&mut from)?;
    drop(deleted);
    Ok(to)
}

fn folders(disk: &FaultyDisk, path: &str) -> Vec<String> {
    let mut names: Vec<_> = disk.list(Path::new(path)).unwrap().into_iter().filter(|one| one.is_directory).collect();
    names.sort_by(|a, b| a.name.cmp(&b.name));
    names.into_iter().map(|entry| entry.name).collect()
}

#[test]
fn a_copy_has_the_same_batches_and_takes_the_place_of_its_source() {
    let disk = FaultyDisk::new();
    let (home, target) = (directory(&disk, "/a"), directory(&disk, "/b"));
    let mut log = source(&home);
    for round in 0..20 {
        append(&mut log, &produced(9, 0, round * 2, false, &["x", "y"]));
    }
    let (records, bases) = (read_all(&mut log), batch_bases(&mut log));
    let mut moving = future(&target);
    copy(&mut log, &mut moving);
    append(&mut log, &produced(9, 0, 40, false, &["late", "later"]));
    flush(&mut moving);
    assert!(!moving.can_replace(&log), "two records are missing");
    copy(&mut log, &mut moving);
    let log = &mut swap((&home, log), (&target, moving)).unwrap();

    assert_eq!(folders(&disk, "/b"), ["t-0"]);
    assert!(folders(&disk, "/a")[0].ends_with("-delete"));
    assert_eq!(log.directory(), Path::new("/b/t-0"));
    assert_eq!(read_all(log)[..40], records);
    assert_eq!(batch_bases(log)[..20], bases);
    let again = try_append(log, 0, &produced(9, 0, 40, false, &["late", "later"])).unwrap();
    assert!(matches!(again, Appended::Duplicate(info) if info.base_offset == Offset(40)), "{again:?}");
    for round in 0..20 {
        append(log, &produced(9, 0, 42 + round, false, &["z"]));
    }
    flush(log);
    assert!(names(&disk, Path::new("/b/t-0")).len() > 12, "new segments are where the log is now");
    assert_eq!(read_all(log).len(), 62);
}

#[test]
fn a_copy_follows_what_its_source_cuts_off() {
    let disk = FaultyDisk::new();
    let (home, target) = (directory(&disk, "/a"), directory(&disk, "/b"));
    let mut log = source(&home);
    for _ in 0..10 {
        try_append(&mut log, 1, &batch(&["a", "b"])).unwrap();
    }
    let mut moving = future(&target);
    copy_step(&mut log, &mut moving, 500);
    let behind = moving.end_offset();
    assert!(behind > Offset(4) && behind < Offset(20));

    // The start moves up behind the copy's end, and into the middle of a batch.
    log.advance_start(Offset(13)).unwrap();
    copy(&mut log, &mut moving);
    assert_eq!((moving.start_offset(), moving.end_offset()), (Offset(13), Offset(20)));
    assert_eq!(read_all(&mut moving), read_all(&mut log));

    // Another leader's history takes the place of the end: as long as before, of another epoch.
    log.truncate_to(Offset(16), NOW).unwrap();
    for _ in 0..2 {
        try_append(&mut log, 2, &batch(&["c", "d"])).unwrap();
    }
    assert_eq!(log.end_offset(), Offset(20));
    flush(&mut moving);
    assert!(!moving.can_replace(&log), "the same end is not the same history");
    copy(&mut log, &mut moving);
    assert_eq!(read_all(&mut moving), read_all(&mut log));
    assert_eq!(moving.epochs(), log.epochs());

    // A source that loses everything.
    log.truncate_fully_and_start_at(Offset(100), NOW).unwrap();
    try_append(&mut log, 3, &batch(&["e"])).unwrap();
    copy(&mut log, &mut moving);
    assert_eq!(read_all(&mut moving), [(100, "e".to_owned())]);
    flush(&mut moving);
    assert!(moving.can_replace(&log));
}

#[test]
fn what_the_batches_do_not_tell_is_taken_over() {
    let disk = FaultyDisk::new();
    let (home, target) = (directory(&disk, "/a"), directory(&disk, "/b"));
    let mut log = source(&home);
    append(&mut log, &produced(7, 3, 0, false, &["only batch of its producer"]));
    log.roll(NOW).unwrap();
    append(&mut log, &produced(8, 0, 0, true, &["open"]));
    let abort = EndTransactionMarker { commit: false, coordinator_epoch: 0 };
    append(&mut log, &RecordBatchBuilder::end_transaction_marker(abort, ProducerId(8), ProducerEpoch(0), NOW));
    // Retention takes the first segment; the producer is still known.
    log.advance_start(Offset(1)).unwrap();
    log.retain(Offset(3), NOW, 10).unwrap();
    log.assign_epoch_start(LeaderEpoch(5), log.end_offset());
    let mut moving = future(&target);
    copy(&mut log, &mut moving);
    flush(&mut moving);
    assert_eq!(moving.active_producers().count(), 1);
    let aborted = log.aborted_transactions(Offset(1), Offset(3)).unwrap();
    let mut log = swap((&home, log), (&target, moving)).unwrap();
    assert_eq!(log.active_producers().count(), 2);
    assert_eq!(log.epochs(), [(LeaderEpoch(0), Offset(1)), (LeaderEpoch(5), Offset(3))]);
    assert_eq!(log.aborted_transactions(Offset(1), Offset(3)).unwrap(), aborted);
    assert_eq!(aborted.len(), 1);
    flush(&mut log);
    let epochs = disk.open(Path::new("/b/t-0/leader-epoch-checkpoint")).unwrap();
    let mut content = vec![0; epochs.len().unwrap() as usize];
    epochs.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(String::from_utf8(content).unwrap(), "0\n2\n0 1\n5 3\n");
}

#[test]
fn a_log_whose_copy_cannot_take_its_place_goes_on() {
    let disk = FaultyDisk::new();
    let (home, target) = (directory(&disk, "/a"), directory(&disk, "/b"));
    let mut log = source(&home);
    append(&mut log, &batch(&["a"]));
    let mut moving = future(&target);
    copy(&mut log, &mut moving);
    let _retired = home.retire(&mut log, Uuid(6)).unwrap();
    disk.set_fault(|operation, path: &Path| {
        let hit = operation == Operation::Rename && path.starts_with("/b");
        hit.then(|| std::io::Error::from_raw_os_error(5))
    });
    target.promote(&mut moving).unwrap_err();
    home.restore(&mut log).unwrap();
    append(&mut log, &batch(&["b"]));
    log.roll(NOW).unwrap();
    flush(&mut log);
    assert_eq!(folders(&disk, "/a"), ["t-0"]);
    assert_eq!(read_all(&mut log).len(), 2);
}

#[test]
fn a_damaged_batch_is_not_copied() {
    let disk = FaultyDisk::new();
    let (home, target) = (directory(&disk, "/a"), directory(&disk, "/b"));
    let mut log = source(&home);
    append(&mut log, &batch(&["a"]));
    append(&mut log, &batch(&["b"]));
    disk.corrupt(Path::new("/a/t-0/00000000000000000000.log"), 60, 1);
    let mut moving = future(&target);
    let bytes = log.read_for_copy(Offset(0), 1 << 20).unwrap().read_all().unwrap();
    moving.append_as_replica(&bytes, NOW).unwrap_err();
    assert_eq!(moving.end_offset(), Offset(0));
}

#[test]
fn a_name_that_is_too_long_cannot_move() {
    assert!(can_have_future(&TopicPartition::new("x".repeat(213), 0)));
    assert!(!can_have_future(&TopicPartition::new("x".repeat(214), 0)));
}

/// A whole move, with an append between each two steps.
fn move_under_appends(disk: &FaultyDisk, promised: &mut i64) -> Result<(), Box<dyn std::error::Error>> {
    let open = |path: &str| LogDirectory::open(Arc::new(disk.clone()), path.into());
    let (home, target) = (open("/a")?, open("/b")?);
    let found = home.find_partitions()?;
    let mut log = home.opening(&found[0], small_segments(), NOW)?.finish()?;
    let mut next = log.end_offset().0;
    let mut add = |log: &mut PartitionLog, promised: &mut i64| -> Result<(), Box<dyn std::error::Error>> {
        try_append(log, 0, &batch(&[&next.to_string()]))?;
        next += 1;
        if let Some(token) = log.flush()? {
            log.flushed(token.complete()?);
        }
        *promised = next;
        Ok(())
    };
    let mut moving = target.create_future(partition(), Some(TOPIC), small_segments(), Uuid(5), NOW)?;
    for step in 0.. {
        let source = log.copy_source(&moving);
        moving.follow_source(&source, NOW)?;
        let bytes = log.read_for_copy(moving.end_offset(), 200)?.read_all()?;
        if bytes.is_empty() {
            break;
        }
        moving.append_as_replica(&bytes, NOW)?;
        if step < 4 {
            add(&mut log, promised)?;
        }
    }
    if let Some(token) = moving.flush()? {
        moving.flushed(token.complete()?);
    }
    for (kind, offset) in [
        (CheckpointKind::RecoveryPoint, moving.recovery_checkpoint()),
        (CheckpointKind::LogStart, moving.start_offset()),
    ] {
        target.write_checkpoint(kind, [(partition(), offset)])?;
    }
    let mut log = swap((&home, log), (&target, moving))?;
    for kind in [CheckpointKind::RecoveryPoint, CheckpointKind::LogStart] {
        home.write_checkpoint(kind, [])?;
    }
    add(&mut log, promised)?;
    target.write_checkpoint(CheckpointKind::RecoveryPoint, [(partition(), log.recovery_checkpoint())])?;
    let leftover = home.find_partitions()?.remove(0);
    while !home.deleted_partition(leftover.clone()).remove_some(2)? {}
    Ok(())
}

/// A source with records that are on the disk.
fn prepared() -> FaultyDisk {
    let disk = FaultyDisk::new();
    let (home, target) = (directory(&disk, "/a"), directory(&disk, "/b"));
    let mut log = source(&home);
    for value in 0..8 {
        append(&mut log, &batch(&[&value.to_string()]));
    }
    flush(&mut log);
    home.write_checkpoint(CheckpointKind::RecoveryPoint, [(partition(), log.recovery_checkpoint())]).unwrap();
    disk.sync_file_system(Path::new("/")).complete().unwrap();
    drop((home, target));
    disk
}

/// What a start finds: the log under its own name, or else its complete copy, which gets the name then.
fn found_after_crash(disk: &FaultyDisk) -> PartitionLog {
    let directories = [directory(disk, "/a"), directory(disk, "/b")];
    let mut found = Vec::new();
    for (index, directory) in directories.iter().enumerate() {
        found.extend(directory.find_partitions().unwrap().into_iter().map(|one| (index, one)));
    }
    let named: Vec<_> = found.iter().filter(|(_, one)| one.kind == PartitionDirectoryKind::Partition).collect();
    assert!(named.len() < 2, "two folders claim to be the replica: {found:?}");
    if let Some((index, one)) = named.first() {
        return directories[*index].opening(one, small_segments(), NOW).unwrap().finish().unwrap();
    }
    let (index, one) =
        found.iter().find(|(_, one)| one.kind == PartitionDirectoryKind::Future).expect("a copy is left");
    assert_eq!(directories[*index].topic_id(one).unwrap(), Some(TOPIC));
    let mut log = directories[*index].opening(one, small_segments(), NOW).unwrap().finish().unwrap();
    directories[*index].promote(&mut log).unwrap();
    assert_eq!(log.directory(), PathBuf::from("/b/t-0"));
    log
}

#[test]
fn a_crash_at_any_change_of_the_disk_loses_nothing_that_was_promised() {
    let whole = prepared();
    let before = whole.mutations();
    move_under_appends(&whole, &mut 0).unwrap();
    let changes = whole.mutations() - before;
    assert!(changes > 60, "a move makes many changes, not {changes}");
    for stop in 0..=changes {
        for crash in [Crash::KeepAll, Crash::LoseUnsynced, Crash::Tear(stop)] {
            let disk = prepared();
            disk.stop_after(disk.mutations() + stop);
            let mut promised = 8;
            let outcome = move_under_appends(&disk, &mut promised);
            assert!(outcome.is_err() || stop >= changes, "it ran on after {stop} changes");
            disk.crash(crash);
            let mut log = found_after_crash(&disk);
            let records = read_all(&mut log);
            assert!(records.len() as i64 >= promised, "{} of {promised} after {stop}, {crash:?}", records.len());
            for (offset, value) in records {
                assert_eq!(offset.to_string(), value, "after {stop}, {crash:?}");
            }
            // It goes on, and ends as a log does.
            let end = log.end_offset();
            append(&mut log, &batch(&[&end.0.to_string()]));
            flush(&mut log);
        }
    }
}
