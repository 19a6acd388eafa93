//! Replicas move between the log directories of a node while they are written and read, through restarts and crashes.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use gregor_log::{
    Disk,
    disk::{Crash, FaultyDisk, Operation, RealDisk},
};
use gregor_messages::{
    DeleteRecordsRequest,
    delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
};
use gregor_types::ErrorCode;
use gregor_wire::batch::{BatchOptions, RecordBatchBuilder, split_batches};
use support::{
    Client, batch,
    directories::{
        FIRST, SECOND, delete_topic, describe, move_to, path, set_broker, two_directories, wait_until, wait_until_in,
        whereabouts,
    },
    error, idempotent,
};

const RATE: &str = "replica.alter.log.dirs.io.max.bytes.per.second";
const SMALL_SEGMENTS: [(&str, &str); 2] = [("segment.bytes", "1048576"), ("index.interval.bytes", "100")];

/// The directory that a partition is in, and the other one.
fn sides(client: &mut Client, topic: &str) -> (&'static str, &'static str) {
    let at = whereabouts(client, topic, 0);
    assert_eq!(at.len(), 1, "{at:?}");
    if at[0].0 == FIRST { (FIRST, SECOND) } else { (SECOND, FIRST) }
}

/// All values of a partition, whose offsets must follow each other.
fn values(client: &mut Client, topic: &str, from: i64) -> Vec<String> {
    let end = client.end_offset(topic, 0);
    let mut values = Vec::new();
    let mut next = from;
    while next < end {
        let fetched = client.fetch(topic, 0, next, 1_000);
        assert_eq!(fetched.error_code, 0);
        let records = fetched.records.unwrap_or_default();
        for batch in split_batches(&records).map_while(Result::ok) {
            for record in &batch.records(1 << 20).unwrap() {
                let record = record.unwrap();
                if record.offset.0 >= next {
                    assert_eq!(record.offset.0, next, "no hole");
                    values.push(String::from_utf8(record.value.unwrap().to_vec()).unwrap());
                    next += 1;
                }
            }
        }
    }
    values
}

fn produce(client: &mut Client, topic: &str, values: std::ops::Range<i64>) {
    let padding = "x".repeat(2_000);
    for value in values {
        let produced = client.produce(topic, 0, batch(&[&format!("{value} {padding}")]));
        assert_eq!((error(produced.error_code), produced.base_offset), (ErrorCode::None, value));
    }
}

fn assert_values(client: &mut Client, topic: &str, from: i64, count: i64) {
    let values = values(client, topic, from);
    let numbers: Vec<i64> = values.iter().map(|value| value.split(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(numbers, (from..count).collect::<Vec<_>>());
}

/// Deletes what is before an offset; returns where all replicas begin then.
fn delete_records(client: &mut Client, before: i64, timeout_ms: i32) -> (ErrorCode, i64) {
    let partition = DeleteRecordsPartition { partition_index: 0, offset: before, ..Default::default() };
    let topic = DeleteRecordsTopic { name: "t".into(), partitions: vec![partition], ..Default::default() };
    let request = DeleteRecordsRequest { topics: vec![topic], timeout_ms, ..Default::default() };
    let deleted = &client.call(2, &request).topics[0].partitions[0];
    (error(deleted.error_code), deleted.low_watermark)
}

fn folders(disk: &dyn Disk, directory: &Path, topic: &str) -> Vec<String> {
    let entries = disk.list(directory).unwrap().into_iter().filter(|entry| entry.is_directory);
    let mut names: Vec<_> = entries.map(|entry| entry.name).filter(|name| name.starts_with(topic)).collect();
    names.sort();
    names
}

#[test]
fn a_replica_moves_while_it_is_written_and_is_there_after_a_restart() {
    let home = two_directories(Arc::new(RealDisk));
    let node = home.start();
    let mut client = node.with_topic("t", 1, &SMALL_SEGMENTS);
    produce(&mut client, "t", 0..1_500);
    let (from, to) = sides(&mut client, "t");
    let mut writer = node.client();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writing = std::thread::spawn(move || {
        let mut next = 1_500;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            produce(&mut writer, "t", next..next + 1);
            next += 1;
            // Slower than a copy without optimizations, or the move would never end.
            std::thread::sleep(Duration::from_millis(1));
        }
        next
    });
    assert_eq!(move_to(&mut client, &home, to, "t", 0), ErrorCode::None);
    wait_until_in(&mut client, to, "t", 0);
    stop.send(()).unwrap();
    let end = writing.join().unwrap();
    assert_values(&mut client, "t", 0, end);
    let left = folders(&RealDisk, &path(&home, from), "t-");
    assert!(left.len() == 1 && left[0].ends_with("-delete"), "{left:?}");
    assert_eq!(folders(&RealDisk, &path(&home, to), "t-"), ["t-0"]);
    wait_until("what is elsewhere now has no checkpoint here", || {
        let checkpoint = std::fs::read_to_string(path(&home, from).join("recovery-point-offset-checkpoint"));
        checkpoint.is_ok_and(|text| !text.contains("t 0 "))
    });
    node.stop();

    let node = home.start();
    let mut client = node.client();
    assert_eq!(whereabouts(&mut client, "t", 0), [(to.to_owned(), false)]);
    assert_values(&mut client, "t", 0, end);
    produce(&mut client, "t", end..end + 10);
    wait_until("the rest of the old folder goes", || folders(&RealDisk, &path(&home, from), "t-").is_empty());
    // And back again.
    assert_eq!(move_to(&mut client, &home, from, "t", 0), ErrorCode::None);
    wait_until_in(&mut client, from, "t", 0);
    assert_values(&mut client, "t", 0, end + 10);
    node.stop();
}

#[test]
fn a_move_keeps_to_its_rate_shows_how_far_it_is_and_goes_on_after_a_restart() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk.clone()));
    let node = home.start();
    let mut client = node.with_topic("t", 1, &SMALL_SEGMENTS);
    assert_eq!(set_broker(&mut client, RATE, "soon"), ErrorCode::InvalidRequest);
    assert_eq!(set_broker(&mut client, RATE, "1"), ErrorCode::None);
    produce(&mut client, "t", 0..1_000);
    let (from, to) = sides(&mut client, "t");
    assert_eq!(move_to(&mut client, &home, to, "t", 0), ErrorCode::None);
    assert_eq!(move_to(&mut client, &home, to, "t", 0), ErrorCode::None, "asked twice, it is one move");
    let is_slow = |client: &mut Client| {
        let described = describe(client);
        let (at, copy) = (&described[from].partitions, &described[to].partitions);
        let (at, copy) = (at[&("t".to_owned(), 0)][0], copy[&("t".to_owned(), 0)][0]);
        assert!(!at.is_future && copy.is_future);
        assert!(copy.size < at.size && copy.lag > 0, "{copy:?} of {at:?}");
        copy
    };
    wait_until("the first step is copied", || is_slow(&mut client).size > 0);
    // What is deleted on the way is not copied; it counts as deleted once the copy has followed.
    assert_eq!(delete_records(&mut client, 900, 100), (ErrorCode::RequestTimedOut, 0));
    assert_eq!(client.list_offset("t", 0, -2).offset, 900);
    node.stop();

    let node = home.start();
    let mut client = node.client();
    assert_eq!(whereabouts(&mut client, "t", 0).len(), 2, "the move goes on where it was");
    assert_eq!(set_broker(&mut client, RATE, "100000000"), ErrorCode::None);
    wait_until_in(&mut client, to, "t", 0);
    assert_eq!(client.list_offset("t", 0, -2).offset, 900);
    assert_values(&mut client, "t", 900, 1_000);
    produce(&mut client, "t", 1_000..1_010);
    node.stop();
}

#[test]
fn records_are_deleted_once_a_copy_on_its_way_has_followed_or_is_given_up() {
    let home = two_directories(Arc::new(FaultyDisk::new()));
    let node = home.start();
    let mut client = node.with_topic("t", 1, &SMALL_SEGMENTS);
    produce(&mut client, "t", 0..1_000);
    let (from, to) = sides(&mut client, "t");
    for (before, is_given_up) in [(300, true), (600, false)] {
        assert_eq!(set_broker(&mut client, RATE, "1"), ErrorCode::None);
        assert_eq!(move_to(&mut client, &home, to, "t", 0), ErrorCode::None);
        wait_until("there is a copy", || whereabouts(&mut client, "t", 0).len() == 2);
        let mut other = node.client();
        let deletion = std::thread::spawn(move || delete_records(&mut other, before, 60_000));
        wait_until("the log begins later", || client.list_offset("t", 0, -2).offset == before);
        if is_given_up {
            assert_eq!(move_to(&mut client, &home, from, "t", 0), ErrorCode::None);
        } else {
            assert_eq!(set_broker(&mut client, RATE, "100000000"), ErrorCode::None);
        }
        assert_eq!(deletion.join().unwrap(), (ErrorCode::None, before));
    }
    wait_until_in(&mut client, to, "t", 0);
    assert_values(&mut client, "t", 600, 1_000);
    node.stop();
}

#[test]
fn the_replicas_of_a_topic_move_to_and_fro_on_several_threads() {
    const PARTITIONS: i32 = 6;
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk)).with("num.replica.alter.log.dirs.threads", "3");
    let node = home.start();
    let mut client = node.with_topic("t", PARTITIONS, &[]);
    for turn in 0..6 {
        for partition in 0..PARTITIONS {
            let produced = client.produce("t", partition, batch(&[&turn.to_string()]));
            assert_eq!((error(produced.error_code), produced.base_offset), (ErrorCode::None, turn));
        }
        let to = [FIRST, SECOND][usize::try_from(turn).unwrap() % 2];
        for partition in 0..PARTITIONS {
            assert_eq!(move_to(&mut client, &home, to, "t", partition), ErrorCode::None);
        }
        // Asked to move on at once when it is there, a replica does.
        for partition in 0..PARTITIONS {
            wait_until_in(&mut client, to, "t", partition);
        }
    }
    for partition in 0..PARTITIONS {
        assert_eq!(client.end_offset("t", partition), 6);
    }
    wait_until("the controller knows where all of them are", || {
        node.http("/metrics").contains("\nkafka_server_assignmentsmanager_queuedreplicatodirassignments 0\n")
    });
    node.stop();
}

#[test]
fn a_copy_does_not_hide_what_the_disk_has_not_kept() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk.clone()));
    let node = home.start();
    let mut client = node.with_topic("t", 1, &[]);
    produce(&mut client, "t", 0..10);
    let (from, to) = sides(&mut client, "t");
    // Nothing of it was read in the life of the next process when it rots.
    node.stop();
    let log = path(&home, from).join("t-0/00000000000000000000.log");
    let size = disk.open(&log).unwrap().len().unwrap();
    disk.corrupt(&log, size * 3 / 4, 1);
    let node = home.start();
    let mut client = node.client();
    let is_read = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_read);
    disk.set_fault(move |operation, path: &Path| {
        told.fetch_or(operation == Operation::Read && path == log, Ordering::AcqRel);
        None
    });
    assert_eq!(move_to(&mut client, &home, to, "t", 0), ErrorCode::None);
    wait_until("the move reads it", || is_read.load(Ordering::Acquire));
    assert_eq!(error(client.fetch("t", 0, 7, 0).error_code), ErrorCode::CorruptMessage);
    for offset in 0..7 {
        assert_eq!(error(client.fetch("t", 0, offset, 0).error_code), ErrorCode::None, "{offset}");
    }
    assert_eq!(whereabouts(&mut client, "t", 0).len(), 2, "the replica stays where it is");
    // Whatever was read is copied, or refused, before the node stops.
    node.stop();
    let copies = folders(&disk, &path(&home, to), "t-");
    assert!(copies.len() == 1 && copies[0].ends_with("-future"), "{copies:?}");
    let copy = disk.open(&path(&home, to).join(&copies[0]).join("00000000000000000000.log")).unwrap();
    let mut copied = vec![0; usize::try_from(copy.len().unwrap()).unwrap()];
    copy.read_exact_at(&mut copied, 0).unwrap();
    for batch in split_batches(&copied).map(Result::unwrap) {
        assert!(batch.next_offset().0 <= 7, "only what is good");
    }
}

/// The keys of a compacted topic that are there, with how often each is.
fn keys(client: &mut Client, topic: &str) -> BTreeMap<String, usize> {
    let end = client.end_offset(topic, 0);
    let (mut keys, mut next) = (BTreeMap::new(), 0);
    while next < end {
        let fetched = client.fetch(topic, 0, next, 0);
        assert_eq!(fetched.error_code, 0);
        let records = fetched.records.unwrap_or_default();
        for batch in split_batches(&records).map_while(Result::ok) {
            next = batch.next_offset().0;
            for record in &batch.records(1 << 20).unwrap() {
                let key = String::from_utf8(record.unwrap().key.unwrap().to_vec()).unwrap();
                *keys.entry(key).or_default() += 1;
            }
        }
    }
    keys
}

/// Records of which none outlives those that come later, in segments of a few.
fn write_keys(client: &mut Client, count: usize) {
    let padding = "x".repeat(40_000);
    for i in 0..count {
        let mut builder = RecordBatchBuilder::new(BatchOptions::default());
        builder.append(support::now(), Some(format!("key {}", i % 3).as_bytes()), Some(padding.as_bytes()), &[]);
        assert_eq!(client.produce("table", 0, builder.build()).error_code, 0);
    }
}

#[test]
fn a_compacted_log_moves_with_what_is_known_of_its_compaction() {
    let home = two_directories(Arc::new(RealDisk)).with("log.cleaner.backoff.ms", "20");
    let node = home.start();
    let configs = [("cleanup.policy", "compact"), ("segment.bytes", "1048576"), ("min.cleanable.dirty.ratio", "0.01")];
    let mut client = node.with_topic("table", 1, &configs);
    write_keys(&mut client, 90);
    let is_compacted = |client: &mut Client| keys(client, "table").values().sum::<usize>() < 40;
    wait_until("it is compacted", || is_compacted(&mut client));
    let (from, to) = sides(&mut client, "table");
    let clean_to = |directory: &str| {
        let checkpoint = std::fs::read_to_string(path(&home, directory).join("cleaner-offset-checkpoint"));
        checkpoint.is_ok_and(|text| text.contains("table 0 "))
    };
    wait_until("its checkpoint is written", || clean_to(from));
    assert_eq!(move_to(&mut client, &home, to, "table", 0), ErrorCode::None);
    wait_until_in(&mut client, to, "table", 0);
    wait_until("the checkpoint goes with it", || clean_to(to) && !clean_to(from));
    assert_eq!(client.end_offset("table", 0), 90);
    assert!(is_compacted(&mut client));
    // It goes on being compacted where it is now, also after a restart.
    write_keys(&mut client, 90);
    wait_until("it is compacted there", || is_compacted(&mut client));
    node.stop();
    let node = home.start();
    let mut client = node.client();
    assert_eq!(client.end_offset("table", 0), 180);
    assert_eq!(keys(&mut client, "table").len(), 3);
    node.stop();
}

#[test]
fn the_directory_that_it_is_in_ends_a_move_and_so_does_its_deletion() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk.clone()));
    let node = home.start();
    let mut client = node.with_topic("t", 1, &[("file.delete.delay.ms", "0")]);
    client.create_topic("u", 1, &[("file.delete.delay.ms", "0")]);
    assert_eq!(set_broker(&mut client, RATE, "1"), ErrorCode::None);
    for topic in ["t", "u"] {
        produce(&mut client, topic, 0..1_000);
        let (_, to) = sides(&mut client, topic);
        assert_eq!(move_to(&mut client, &home, to, topic, 0), ErrorCode::None);
        assert_eq!(whereabouts(&mut client, topic, 0).len(), 2);
    }
    let at = whereabouts(&mut client, "t", 0).into_iter().find(|(_, is_future)| !is_future).unwrap().0;
    let to = if at == FIRST { SECOND } else { FIRST };
    assert_eq!(move_to(&mut client, &home, &at, "t", 0), ErrorCode::None);
    assert_eq!(whereabouts(&mut client, "t", 0), [(at.clone(), false)]);
    assert_values(&mut client, "t", 0, 1_000);
    wait_until("the copy's folder is gone", || folders(&disk, &path(&home, to), "t-").is_empty());

    delete_topic(&mut client, "u");
    for directory in [FIRST, SECOND] {
        wait_until("the topic's folders are gone", || folders(&disk, &path(&home, directory), "u-").is_empty());
    }
    node.stop();
}

#[test]
fn what_cannot_move_is_told_as_kafka_tells_it() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk));
    let node = home.start();
    let mut client = node.client();
    assert_eq!(move_to(&mut client, &home, "elsewhere", "t", 0), ErrorCode::LogDirNotFound);
    let long = "x".repeat(214);
    assert_eq!(move_to(&mut client, &home, SECOND, &long, 0), ErrorCode::InvalidTopicException);
    for partition in 0..4 {
        let refused = move_to(&mut client, &home, SECOND, "t", partition);
        assert_eq!(refused, ErrorCode::UnknownTopicOrPartition, "and it is remembered");
    }
    client.create_topic("t", 6, &[]);
    for partition in 0..4 {
        assert_eq!(whereabouts(&mut client, "t", partition), [(SECOND.to_owned(), false)]);
    }
    for partition in 4..6 {
        assert_eq!(whereabouts(&mut client, "t", partition), [(FIRST.to_owned(), false)], "where there is less");
    }
    assert_eq!(set_broker(&mut client, "cordoned.log.dirs", path(&home, FIRST).to_str().unwrap()), ErrorCode::None);
    wait_until("the cordon", || describe(&mut client)[FIRST].is_cordoned);
    assert_eq!(move_to(&mut client, &home, FIRST, "t", 0), ErrorCode::InvalidReplicaAssignment);
    node.stop();
}

/// Lets so many operations pass from the first of a kind on, then fails all: the machine is off from there.
fn stop_from(disk: &FaultyDisk, first: (Operation, &'static str), mut passing: usize) -> Arc<AtomicBool> {
    let is_off = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_off);
    let mut begun = false;
    disk.set_fault(move |operation, path: &Path| {
        begun |= operation == first.0 && path.to_string_lossy().ends_with(first.1);
        if !begun || passing > 0 {
            passing -= usize::from(begun);
            return None;
        }
        told.store(true, Ordering::Release);
        Some(io::Error::other("the machine is off"))
    });
    is_off
}

#[test]
fn a_crash_in_a_move_loses_nothing_that_was_promised() {
    // The copy begins, the old folder loses its name, the copy gets it.
    let places = [(Operation::Create, "-future"), (Operation::Rename, "/t-0"), (Operation::Rename, "-future")];
    let stops = [0, 1, 2, 4, 8, 16];
    let crashes = |seed| [Crash::LoseUnsynced, Crash::Tear(seed), Crash::KeepAll];
    for (round, (place, passing)) in places.into_iter().flat_map(|place| stops.map(|stop| (place, stop))).enumerate() {
        let disk = FaultyDisk::new();
        let home = two_directories(Arc::new(disk.clone()));
        let node = home.start();
        let mut client = node.with_topic("t", 1, &[("flush.messages", "1")]);
        let mut written: i64 = 0;
        let mut write = |client: &mut Client| {
            let produced = client.produce("t", 0, idempotent(9, written as i32, &[&written.to_string()]));
            let is_written = produced.error_code == 0;
            written += i64::from(is_written);
            (is_written, written)
        };
        for _ in 0..20 {
            assert!(write(&mut client).0);
        }
        let (_, to) = sides(&mut client, "t");
        let is_off = stop_from(&disk, place, passing);
        move_to(&mut client, &home, to, "t", 0);
        while !is_off.load(Ordering::Acquire) && write(&mut client).0 {
            // Few records are enough: each sync of this disk copies the whole file.
            std::thread::sleep(Duration::from_millis(2));
        }
        let (_, promised) = write(&mut client);
        let crash = crashes(round as u64)[round % 3];
        disk.crash(crash);
        node.abandon();

        let node = home.start();
        let mut client = node.client();
        let end = client.end_offset("t", 0);
        assert!(end >= promised, "{end} of {promised}, {passing} after {place:?}, {crash:?}");
        assert_values(&mut client, "t", 0, end);
        let next = i32::try_from(end).unwrap();
        let produced = client.produce("t", 0, idempotent(9, next, &["next"]));
        assert_eq!((error(produced.error_code), produced.base_offset), (ErrorCode::None, end));
        // A move that was under way comes to its end.
        wait_until("one replica, no copy", || whereabouts(&mut client, "t", 0).len() == 1);
        node.stop();
    }
}
