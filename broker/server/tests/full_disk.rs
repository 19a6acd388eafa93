//! A node whose disk fills up: a real file system that is small, ext4 in a file, mounted by a loop device (that needs root; where
//! it cannot be mounted, the test says so and checks nothing), and one that is only said to be full.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod support;

use std::{
    fs, io,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use gregor_log::disk::{Crash, FaultyDisk, Operation, RealDisk};
use gregor_messages::{
    DeleteRecordsRequest,
    delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
};
use gregor_types::ErrorCode;
use support::{
    Home, batch,
    directories::{SECOND, delete_topic, path, two_directories, wait_until, whereabouts},
    error,
};

const FILE_SYSTEM_BYTES: u64 = 64 << 20;
const BALLAST_BYTES: usize = 16 << 20;
const RECORD_BYTES: usize = 500_000;

/// A mounted file system; unmounted when it is dropped, which frees its loop device too.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new() -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let (image, point) = (folder.path().join("image"), folder.path().join("mounted"));
        fs::File::create(&image).unwrap().set_len(FILE_SYSTEM_BYTES).unwrap();
        fs::create_dir(&point).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &point]))?;
        Ok(Self(folder))
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("mounted")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What still has files open keeps it busy for a moment longer, not for ever.
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(self.path())) {
            eprintln!("{}: {error}", self.path().display());
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn fill(path: &Path) {
    fs::write(path, vec![7; BALLAST_BYTES]).unwrap();
}

#[test]
fn a_node_on_a_full_file_system_refuses_producers_and_goes_on_when_there_is_room() {
    let mounted = match Mounted::new() {
        Ok(mounted) => mounted,
        Err(reason) => return eprintln!("not tested: a file system cannot be mounted here: {reason}"),
    };
    let ballast = mounted.path().join("ballast");
    fill(&ballast);
    let home = Home::of(Arc::new(RealDisk), tempfile::tempdir_in(mounted.path()).unwrap());
    let node = home.start();
    let record = "x".repeat(RECORD_BYTES);
    let mut client = node.with_topic("filled", 1, &[("segment.bytes", "8000000")]);
    let mut acknowledged = 0;
    let refused = loop {
        let produced = client.produce("filled", 0, batch(&[&record]));
        if produced.error_code != 0 {
            break produced;
        }
        assert_eq!(produced.base_offset, acknowledged);
        acknowledged += 1;
        assert!(acknowledged < 200, "the file system never fills up");
    };
    assert_eq!(error(refused.error_code), ErrorCode::KafkaStorageError);
    for _ in 0..3 {
        assert_eq!(error(client.produce("filled", 0, batch(&[&record])).error_code), ErrorCode::KafkaStorageError);
    }
    let last = client.fetch("filled", 0, acknowledged - 1, 0);
    assert_eq!((error(last.error_code), last.high_watermark), (ErrorCode::None, acknowledged), "consumers read on");

    fs::remove_file(&ballast).unwrap();
    for _ in 0..10 {
        let produced = client.produce("filled", 0, batch(&[&record]));
        assert_eq!((error(produced.error_code), produced.base_offset), (ErrorCode::None, acknowledged));
        acknowledged += 1;
    }
    client.create_topic("later", 1, &[]);
    node.stop();

    let node = home.start();
    let mut client = node.client();
    assert_eq!(client.end_offset("filled", 0), acknowledged);
    for offset in 0..acknowledged {
        let fetched = client.fetch("filled", 0, offset, 0);
        assert_eq!(error(fetched.error_code), ErrorCode::None, "offset {offset}");
        assert!(fetched.records.unwrap().len() > RECORD_BYTES, "offset {offset}");
    }
    node.stop();
}

#[test]
fn a_partition_that_a_full_disk_had_no_room_for_is_made_when_there_is_room() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk.clone()));
    let node = home.start();
    let mut client = node.client();
    let full = path(&home, SECOND);
    disk.set_fault(move |operation, path: &Path| {
        (operation == Operation::Create && path.starts_with(&full)).then(|| io::Error::from_raw_os_error(28))
    });
    client.ask_for_topic("t", 2, &[]);
    let is_there = |client: &mut support::Client, index| client.list_offset("t", index, -1).error_code == 0;
    wait_until("the partition for which there is room", || is_there(&mut client, 0) || is_there(&mut client, 1));
    let unmade = i32::from(is_there(&mut client, 0));
    let refused = error(client.produce("t", unmade, batch(&["early"])).error_code);
    assert_eq!(refused, ErrorCode::NotLeaderOrFollower, "which a client tries again");

    disk.clear_fault();
    wait_until("the other partition", || is_there(&mut client, unmade));
    assert_eq!(client.produce("t", unmade, batch(&["kept"])).base_offset, 0);
    assert_eq!(whereabouts(&mut client, "t", unmade).len(), 1);
    node.stop();
    let node = home.start();
    assert_eq!(node.client().end_offset("t", unmade), 1);
    node.stop();
}

#[test]
fn a_new_topic_waits_for_room_to_write_down_that_the_log_of_another_of_its_name_is_gone() {
    const START: i64 = 10;
    let disk = FaultyDisk::new();
    let home = Home::on(Arc::new(disk.clone()));
    let node = home.start();
    let mut client = node.with_topic("t", 1, &[]);
    for offset in 0..=START {
        assert_eq!(client.produce("t", 0, batch(&["of the old topic"])).base_offset, offset);
    }
    let partitions = vec![DeleteRecordsPartition { offset: START, ..Default::default() }];
    let topics = vec![DeleteRecordsTopic { name: "t".into(), partitions, ..Default::default() }];
    let request = DeleteRecordsRequest { topics, timeout_ms: 20_000, ..Default::default() };
    assert_eq!(error(client.call(2, &request).topics[0].partitions[0].error_code), ErrorCode::None);
    // The checkpoint of where logs start is written.
    node.stop();
    let node = home.start();
    let mut client = node.client();
    let refused = Arc::new(AtomicUsize::new(0));
    let refusing = Arc::clone(&refused);
    disk.set_fault(move |operation, path: &Path| {
        let name = path.file_name()?.to_string_lossy();
        (operation == Operation::Create && name.starts_with("log-start-offset-checkpoint")).then(|| {
            refusing.fetch_add(1, Ordering::Relaxed);
            io::Error::from_raw_os_error(28)
        })
    });
    delete_topic(&mut client, "t");
    client.ask_for_topic("t", 1, &[]);
    // The old one is longer.
    let is_there = |client: &mut support::Client| {
        let end = client.list_offset("t", 0, -1);
        end.error_code == 0 && end.offset <= START
    };
    wait_until("the new topic is heard of", || refused.load(Ordering::Relaxed) > 1 || is_there(&mut client));
    disk.clear_fault();
    wait_until("the topic", || is_there(&mut client));
    for offset in 0..3 {
        assert_eq!(client.produce("t", 0, batch(&["new"])).base_offset, offset);
    }
    disk.crash(Crash::KeepAll);
    node.abandon();
    let node = home.start();
    let mut client = node.client();
    wait_until("the log is whole", || is_there(&mut client));
    assert_eq!(
        (client.list_offset("t", 0, -2).offset, client.end_offset("t", 0)),
        (0, 3),
        "what was acknowledged is there"
    );
    node.stop();
}
