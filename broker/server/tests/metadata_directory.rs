//! A node whose metadata log is in a directory of its own, beside `log.dirs`: an identity, a lock and a failure of its own.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use gregor_log::{
    Disk, MetaProperties,
    disk::{Crash, FaultyDisk, Operation},
};
use gregor_types::DirectoryId;
use support::{
    Home, batch,
    directories::{FIRST as METADATA, describe, path, wait_until},
};

const LOGS: [&str; 2] = ["one", "two"];

/// The metadata directory is formatted; the others get their identity with the first start.
fn home(disk: &FaultyDisk) -> Home {
    let home = Home::on(Arc::new(disk.clone()));
    let logs = LOGS.map(|name| path(&home, name).to_string_lossy().into_owned());
    let metadata = path(&home, METADATA).to_string_lossy().into_owned();
    home.with("log.dirs", logs.join(",")).with("metadata.log.dir", metadata)
}

fn folders(disk: &dyn Disk, directory: &Path) -> BTreeSet<String> {
    let entries = disk.list(directory).unwrap().into_iter().filter(|entry| entry.is_directory);
    entries.map(|entry| entry.name).collect()
}

fn id(disk: &dyn Disk, directory: &Path) -> DirectoryId {
    MetaProperties::read(disk, directory).unwrap().unwrap().directory_id.unwrap()
}

/// Makes every access below these paths fail, as a disk does that is broken.
fn break_disk(disk: &FaultyDisk, broken: &[PathBuf]) {
    let broken = broken.to_vec();
    disk.set_fault(move |_: Operation, path: &Path| {
        broken.iter().any(|broken| path.starts_with(broken)).then(|| io::Error::from_raw_os_error(5))
    });
}

#[test]
fn the_metadata_log_is_there_and_the_partitions_are_not() {
    let disk = FaultyDisk::new();
    let home = home(&disk);
    let node = home.start();
    let mut client = node.with_topic("t", 4, &[]);
    for partition in 0..4 {
        assert_eq!(client.produce("t", partition, batch(&["kept"])).base_offset, 0);
    }
    assert_eq!(folders(&disk, &path(&home, METADATA)), BTreeSet::from(["__cluster_metadata-0".to_owned()]));
    let held = LOGS.map(|name| folders(&disk, &path(&home, name)));
    assert!(held.iter().all(|folders| folders.len() == 2), "{held:?}");
    assert_eq!(describe(&mut client).into_keys().collect::<Vec<_>>(), LOGS, "it is none of the log directories");
    let ids: BTreeSet<_> = [METADATA, LOGS[0], LOGS[1]].map(|name| id(&disk, &path(&home, name))).into();
    assert_eq!(ids.len(), 3, "each has an id of its own");
    let refusal = home.refusal();
    assert!(refusal.contains("/data/.lock is locked"), "{refusal}");
    node.stop();

    let node = home.start();
    let mut client = node.client();
    for partition in 0..4 {
        assert_eq!(client.produce("t", partition, batch(&["next"])).base_offset, 1);
    }
    node.stop();
}

#[test]
fn a_metadata_directory_that_fails_ends_the_node() {
    let disk = FaultyDisk::new();
    let home = home(&disk);
    let node = home.start();
    let mut client = node.with_topic("t", 1, &[]);
    let metadata = [path(&home, METADATA)];
    break_disk(&disk, &metadata);
    // The quorum writes now and then even where nobody asks for anything.
    let failure = node.failure();
    assert!(failure.contains("/data/__cluster_metadata-0"), "{failure}");
    assert_eq!(client.produce("t", 0, batch(&["served while it ends"])).error_code, 0);
    node.abandon();

    disk.crash(Crash::KeepAll);
    break_disk(&disk, &metadata);
    let refusal = home.refusal();
    assert!(refusal.contains("/data cannot be used"), "{refusal}");
}

#[test]
fn a_node_does_not_go_on_without_any_of_the_log_directories() {
    let disk = FaultyDisk::new();
    let home = home(&disk);
    let node = home.start();
    let mut client = node.with_topic("t", 2, &[]);
    let logs = LOGS.map(|name| path(&home, name));
    break_disk(&disk, &logs);
    for partition in 0..2 {
        assert_ne!(client.produce("t", partition, batch(&["lost"])).error_code, 0);
    }
    let failure = node.failure();
    assert!(LOGS.iter().any(|name| failure.contains(name)), "{failure}");
    node.abandon();

    disk.crash(Crash::KeepAll);
    break_disk(&disk, &logs);
    let refusal = home.refusal();
    assert!(LOGS.iter().any(|name| refusal.contains(&format!("{name} cannot be used"))), "{refusal}");
    disk.clear_fault();
    let node = home.start();
    wait_until("it serves", || node.client().list_offset("t", 1, -1).error_code == 0);
    node.stop();
}

#[test]
fn a_log_directory_that_is_a_copy_of_it_is_refused() {
    let disk = FaultyDisk::new();
    let home = home(&disk);
    home.start().stop();
    let copy = MetaProperties::read(&disk, &path(&home, METADATA)).unwrap().unwrap();
    copy.write(&disk, &path(&home, LOGS[1])).unwrap();
    let refusal = home.refusal();
    for said in ["/data ", "/two ", "same directory.id"] {
        assert!(refusal.contains(said), "{refusal}");
    }
}
