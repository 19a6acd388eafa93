//! A node on a disk that fails and forgets: what was acknowledged under which promise, and how a failure is told.

mod support;

use std::{io, path::Path, sync::Arc};

use gregor_log::disk::{Crash, FaultyDisk, Operation};
use gregor_types::ErrorCode;
use support::{Home, batch, error, idempotent};

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
    assert_eq!(client.list_offset("promised", 0, -1).offset, 20);
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
        assert_eq!(client.list_offset("kept", 0, -1).offset, expected, "round {round}");
        for _ in 0..10 {
            assert_eq!(client.produce("kept", 0, batch(&["a", "b"])).base_offset, expected);
            expected += 2;
        }
        disk.crash(Crash::KeepAll);
        node.abandon();
    }
}
