//! A node on a disk that fails and forgets: what was acknowledged under which promise, and how a failure is told.

mod support;

use std::{io, path::Path, sync::Arc};

use gregor_log::{
    Disk,
    disk::{Crash, FaultyDisk, Operation},
};
use gregor_types::ErrorCode;
use support::{Home, batch, directories::wait_until, error, idempotent};

#[test]
fn a_disk_that_fails_is_told_to_the_producer_and_to_whoever_runs_the_node() {
    let disk = FaultyDisk::new();
    let home = Home::on(Arc::new(disk.clone()));
    let node = home.start();
    let mut client = node.with_topic("doomed", 1, &[]);
    assert_eq!(client.produce("doomed", 0, batch(&["kept"])).error_code, 0);
    disk.set_fault(|operation, path: &Path| {
        let hit = operation == Operation::Write && path.to_string_lossy().contains("doomed-0");
        hit.then(|| io::Error::from_raw_os_error(5))
    });
    let refused = client.produce("doomed", 0, batch(&["lost"]));
    assert_eq!(error(refused.error_code), ErrorCode::KafkaStorageError);
    disk.clear_fault();
    let after = client.produce("doomed", 0, batch(&["too late"]));
    assert_eq!(error(after.error_code), ErrorCode::KafkaStorageError, "a failed directory is never trusted again");
    assert_eq!(error(client.fetch("doomed", 0, 0, 0).error_code), ErrorCode::KafkaStorageError);
    let failure = node.failure();
    assert!(failure.contains("doomed-0"), "{failure}");
    node.abandon();
}

#[test]
fn what_was_synced_before_its_acknowledgement_survives_the_loss_of_power() {
    let disk = FaultyDisk::new();
    let home = Home::on(Arc::new(disk.clone()));
    let node = home.start();
    let mut client = node.with_topic("promised", 1, &[("flush.messages", "1")]);
    for sequence in 0..20 {
        let produced = client.produce("promised", 0, idempotent(7, sequence, &["value"]));
        assert_eq!((error(produced.error_code), produced.base_offset), (ErrorCode::None, i64::from(sequence)));
    }
    disk.crash(Crash::LoseUnsynced);
    node.abandon();

    let node = home.start();
    let mut client = node.client();
    assert_eq!(client.end_offset("promised", 0), 20);
    assert_eq!(client.produce("promised", 0, idempotent(7, 20, &["next"])).base_offset, 20, "the producer goes on");
    node.stop();
}

#[test]
fn a_crash_of_the_process_loses_nothing_that_was_acknowledged() {
    let disk = FaultyDisk::new();
    let home = Home::on(Arc::new(disk.clone()));
    let mut expected = 0;
    for round in 0..5 {
        let node = home.start();
        let mut client = node.client();
        if round == 0 {
            client.create_topic("kept", 1, &[]);
        }
        assert_eq!(client.end_offset("kept", 0), expected, "round {round}");
        for _ in 0..10 {
            assert_eq!(client.produce("kept", 0, batch(&["a", "b"])).base_offset, expected);
            expected += 2;
        }
        disk.crash(Crash::KeepAll);
        node.abandon();
    }
}

#[test]
fn a_full_disk_refuses_producers_serves_consumers_and_goes_on_when_there_is_room() {
    let disk = FaultyDisk::new();
    let home = Home::on(Arc::new(disk.clone()));
    let node = home.start();
    let mut client = node.with_topic("filled", 1, &[]);
    assert_eq!(client.produce("filled", 0, batch(&["first"])).base_offset, 0);
    disk.set_capacity(Some(disk.used() + 1_000));
    let mut acknowledged = 1;
    let refused = loop {
        let produced = client.produce("filled", 0, batch(&["a record that takes a little room"]));
        if produced.error_code != 0 {
            break produced;
        }
        acknowledged += 1;
    };
    assert_eq!(error(refused.error_code), ErrorCode::KafkaStorageError);
    let fetched = client.fetch("filled", 0, 0, 0);
    assert_eq!((error(fetched.error_code), fetched.high_watermark), (ErrorCode::None, acknowledged));
    disk.set_capacity(None);
    assert_eq!(client.produce("filled", 0, batch(&["there is room again"])).base_offset, acknowledged);
    // The metadata log found no room either, and goes on too.
    client.create_topic("later", 1, &[]);
    assert_eq!(client.produce("later", 0, batch(&["new"])).error_code, 0);
    node.stop();
    let node = home.start();
    assert_eq!(node.client().end_offset("filled", 0), acknowledged + 1);
    node.stop();
}

#[test]
fn a_sync_that_fails_acknowledges_nothing_and_takes_the_directory_out_of_service() {
    let disk = FaultyDisk::new();
    let home = Home::on(Arc::new(disk.clone()));
    let node = home.start();
    let mut client = node.with_topic("promised", 1, &[("flush.messages", "1")]);
    assert_eq!(client.produce("promised", 0, batch(&["kept"])).error_code, 0);
    disk.set_fault(|operation, path: &Path| {
        let hit = operation == Operation::Sync && path.to_string_lossy().contains("promised-0");
        hit.then(|| io::Error::from_raw_os_error(5))
    });
    assert_ne!(client.produce("promised", 0, batch(&["lost"])).error_code, 0);
    disk.clear_fault();
    assert_ne!(client.produce("promised", 0, batch(&["lost too"])).error_code, 0);
    assert!(node.failure().contains("promised-0"));
    disk.crash(Crash::LoseUnsynced);
    node.abandon();
    let node = home.start();
    assert_eq!(node.client().end_offset("promised", 0), 1);
    node.stop();
}

#[test]
fn a_batch_that_the_disk_has_not_kept_is_refused_to_readers_and_the_rest_is_served() {
    let disk = FaultyDisk::new();
    let home = Home::on(Arc::new(disk.clone()));
    let node = home.start();
    let mut client = node.with_topic("rotten", 2, &[]);
    for partition in 0..2 {
        for value in ["good", "evil", "good"] {
            assert_eq!(client.produce("rotten", partition, batch(&[value])).error_code, 0);
        }
    }
    node.stop();
    let segment = home.folder.path().join("data/rotten-0/00000000000000000000.log");
    disk.corrupt(&segment, third(&disk, &segment) + 70, 1);

    let node = home.start();
    let mut client = node.client();
    assert_eq!([client.end_offset("rotten", 0), client.end_offset("rotten", 1)], [3, 3]);
    let first = client.fetch("rotten", 0, 0, 0);
    assert_eq!(
        (error(first.error_code), first.records.unwrap().len()),
        (ErrorCode::None, third(&disk, &segment) as usize)
    );
    for _ in 0..2 {
        assert_eq!(error(client.fetch("rotten", 0, 1, 0).error_code), ErrorCode::CorruptMessage);
    }
    assert_eq!(error(client.fetch("rotten", 0, 2, 0).error_code), ErrorCode::None);
    assert_eq!(error(client.fetch("rotten", 1, 0, 0).error_code), ErrorCode::None);
    assert_eq!(client.produce("rotten", 0, batch(&["it goes on"])).base_offset, 3);
    node.stop();
}

/// A third of a file's length: one of three batches.
fn third(disk: &FaultyDisk, path: &Path) -> u64 {
    disk.open(path).and_then(|file| file.len()).expect("the segment is there") / 3
}

#[test]
fn new_partitions_have_their_topics_ids_on_the_disk_before_anybody_writes_to_them() {
    let disk = FaultyDisk::new();
    let home = Home::on(Arc::new(disk.clone()));
    let node = home.start();
    let topics = [("few", 3), ("many", 40)];
    for (topic, partitions) in topics {
        node.client().create_topic(topic, partitions, &[]);
    }
    let files = || topics.iter().flat_map(|(topic, count)| (0..*count).map(move |index| format!("{topic}-{index}")));
    let are_there = |disk: &FaultyDisk| {
        let path = |name| home.config().log_dirs[0].join(name).join("partition.metadata");
        files().all(|name| disk.open(&path(name)).is_ok())
    };
    wait_until("the ids are on the disk", || {
        let afterwards = disk.fork();
        afterwards.crash(Crash::LoseUnsynced);
        are_there(&afterwards)
    });
    node.stop();
}
