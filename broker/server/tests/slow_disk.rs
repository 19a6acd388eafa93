//! A disk whose writes are stuck: who asks for that disk waits, and nobody else does.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{
    io::{self, IoSlice},
    os::fd::BorrowedFd,
    path::Path,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use gregor_log::disk::{DirectoryEntry, Disk, DiskFile, FileLock, RealDisk, SharedFile, SyncToken, may_wait};
use gregor_messages::{
    FetchRequest, FindCoordinatorRequest, IncrementalAlterConfigsRequest, MetadataRequest, OffsetCommitRequest,
    ProduceRequest,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
    offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
};
use support::{DEADLINE, Home, batch, error, fetch_request, only, produce_request};

/// What writes to the log of `stuck-0` or of a group, or reads it, waits while this is closed.
#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn set(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }

    fn is_closed(&self) -> bool {
        *self.closed.lock().unwrap()
    }

    fn pass(&self) {
        drop(self.opened.wait_while(self.closed.lock().unwrap(), |closed| *closed).unwrap());
    }
}

#[derive(Debug, Default)]
struct Gates {
    writes: Gate,
    reads: Gate,
    /// What syncs a whole file system waits while this is closed.
    file_system: Gate,
    /// Folders of `new` that were synced alone.
    folders_synced: AtomicUsize,
}

/// Opens them when a test ends, however it does: a node that waits for them could not be dropped.
struct OpenedAtTheEnd(Arc<Gates>);

impl Drop for OpenedAtTheEnd {
    fn drop(&mut self) {
        self.0.writes.set(false);
        self.0.reads.set(false);
        self.0.file_system.set(false);
    }
}

#[derive(Debug)]
struct GatedDisk(Arc<Gates>);

#[derive(Debug)]
struct GatedFile(SharedFile, Arc<Gates>);

impl GatedDisk {
    fn guard(&self, path: &Path, file: SharedFile) -> SharedFile {
        let text = path.to_string_lossy();
        let is_gated = text.contains("/stuck-0/") || text.contains("/__consumer_offsets-");
        let is_stuck = is_gated && path.extension().is_some_and(|kind| kind == "log");
        if is_stuck { Arc::new(GatedFile(file, Arc::clone(&self.0))) } else { file }
    }
}

impl Disk for GatedDisk {
    fn open(&self, path: &Path) -> io::Result<SharedFile> {
        Ok(self.guard(path, RealDisk.open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<SharedFile> {
        Ok(self.guard(path, RealDisk.create(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_directory(path)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_directory(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirectoryEntry>> {
        RealDisk.list(path)
    }

    fn sync_directory(&self, path: &Path) -> SyncToken {
        let (gates, sync) = (Arc::clone(&self.0), RealDisk.sync_directory(path));
        let is_counted = path.to_string_lossy().contains("/new-");
        SyncToken::new(move || {
            gates.folders_synced.fetch_add(usize::from(is_counted), Ordering::SeqCst);
            sync.complete()
        })
    }

    fn sync_file_system(&self, path: &Path) -> SyncToken {
        let (gates, sync) = (Arc::clone(&self.0), RealDisk.sync_file_system(path));
        SyncToken::new(move || {
            gates.file_system.pass();
            sync.complete()
        })
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<FileLock>> {
        RealDisk.try_lock(path)
    }
}

impl DiskFile for GatedFile {
    fn write_all_at(&self, slices: &mut [IoSlice<'_>], position: u64) -> io::Result<()> {
        self.1.writes.pass();
        self.0.write_all_at(slices, position)
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        if self.1.reads.is_closed() && !may_wait() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.1.reads.pass();
        self.0.read_at(buffer, position)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn modified(&self) -> io::Result<SystemTime> {
        self.0.modified()
    }

    fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        self.0.set_modified(time)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }

    fn sync(self: Arc<Self>) -> SyncToken {
        Arc::clone(&self.0).sync()
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_fd()
    }
}

/// A commit of a group that has no members.
fn commit_request(offset: i64) -> OffsetCommitRequest {
    OffsetCommitRequest {
        group_id: "group".into(),
        generation_id_or_member_epoch: -1,
        topics: vec![OffsetCommitRequestTopic {
            name: "free".into(),
            partitions: vec![OffsetCommitRequestPartition { committed_offset: offset, ..Default::default() }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn find_coordinator_request() -> FindCoordinatorRequest {
    FindCoordinatorRequest { key: "group".into(), ..Default::default() }
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_stuck_disk_holds_up_only_who_asks_for_it_and_loses_nothing() {
    const PIPELINED: usize = 5;
    let gates = Arc::new(Gates::default());
    let home = Home::on(Arc::new(GatedDisk(Arc::clone(&gates))));
    let node = home.start();
    let _opened = OpenedAtTheEnd(Arc::clone(&gates));
    let mut other = node.with_topic("free", 1, &[]);
    assert_eq!(other.produce("free", 0, batch(&["before"])).error_code, 0);
    let mut clients: Vec<_> = (0..4).map(|_| node.client()).collect();
    clients[0].create_topic("stuck", 1, &[]);
    let request = |value: &str| produce_request("stuck", 0, -1, batch(&[value]));

    gates.writes.set(true);
    let first = clients[0].send(9, &request("first"));
    wait_for("the appends are on a thread of their own", || {
        node.http("/metrics")
            .lines()
            .any(|line| line.starts_with("gregor_log_append_offloaded") && line.ends_with(" 1"))
    });
    // What applies metadata waits for the same lock from here on, so nobody knows yet whether this broker still leads.
    let config = AlterableConfig { name: "retention.ms".into(), value: Some("7200000".into()), ..Default::default() };
    let resource = AlterConfigsResource {
        resource_type: 2,
        resource_name: "stuck".into(),
        configs: vec![config],
        ..Default::default()
    };
    let alter = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
    assert_eq!(other.call(1, &alter).responses[0].error_code, 0);
    let waiting: Vec<Vec<i32>> = clients[1..]
        .iter_mut()
        .map(|client| (0..PIPELINED).map(|number| client.send(9, &request(&number.to_string()))).collect())
        .collect();
    let mut readers: Vec<_> = (0..4).map(|_| node.client()).collect();
    let reading: Vec<i32> =
        readers.iter_mut().map(|reader| reader.send(12, &fetch_request("stuck", &[(0, 0)], 30_000))).collect();
    // The node has two threads; more than two requests for the disk are stuck now, and as many for what an append has locked.
    let metadata = other.call(12, &MetadataRequest::default());
    assert_eq!(metadata.brokers.len(), 1);
    assert!(!other.fetch("free", 0, 0, 0).records.unwrap().is_empty());

    gates.writes.set(false);
    let answer = only(clients[0].receive::<ProduceRequest>(9, first));
    assert_eq!(error(answer.error_code), error(0));
    for (client, sent) in clients[1..].iter_mut().zip(waiting) {
        let offsets: Vec<i64> = sent
            .into_iter()
            .map(|request| {
                let answer = only(client.receive::<ProduceRequest>(9, request));
                assert_eq!(error(answer.error_code), error(0));
                answer.base_offset
            })
            .collect();
        assert!(offsets.is_sorted(), "a connection's appends stay in their order: {offsets:?}");
    }
    for (reader, request) in readers.iter_mut().zip(reading) {
        let fetched = reader.receive::<FetchRequest>(12, request);
        assert!(!fetched.responses[0].partitions[0].records.as_ref().unwrap().is_empty());
    }
    assert_eq!(other.end_offset("stuck", 0), 1 + 3 * PIPELINED as i64);
    wait_for("a calm disk is written to directly again", || {
        node.http("/metrics")
            .lines()
            .any(|line| line.starts_with("gregor_log_append_offloaded") && line.ends_with(" 0"))
    });
    assert!(node.http("/metrics").contains("gregor_log_append_duration_seconds_bucket"));
    assert_eq!(other.produce("stuck", 0, batch(&["after"])).error_code, 0);
    drop((other, clients, readers));
    node.stop();
}

#[test]
fn readers_of_what_is_not_in_memory_hold_up_nobody_and_get_it() {
    /// More than the node knows the places of by heart, which is what the last readers want.
    const BATCHES: i64 = 100;
    let gates = Arc::new(Gates::default());
    let home = Home::on(Arc::new(GatedDisk(Arc::clone(&gates))));
    let node = home.start();
    let _opened = OpenedAtTheEnd(Arc::clone(&gates));
    let mut other = node.with_topic("free", 1, &[]);
    assert_eq!(other.produce("free", 0, batch(&["before"])).error_code, 0);
    other.create_topic("stuck", 1, &[]);
    for number in 0..BATCHES {
        assert_eq!(other.produce("stuck", 0, batch(&[&number.to_string()])).error_code, 0);
    }

    gates.reads.set(true);
    let mut readers: Vec<_> = (0..6).map(|_| node.client()).collect();
    let reading: Vec<i32> =
        readers.iter_mut().map(|reader| reader.send(12, &fetch_request("stuck", &[(0, 0)], 0))).collect();
    // The node has two threads; six would be stuck.
    for _ in 0..20 {
        let metadata = other.call(12, &MetadataRequest::default());
        assert_eq!(metadata.brokers.len(), 1);
        assert!(!other.fetch("free", 0, 0, 0).records.unwrap().is_empty());
    }
    assert!(node.http("/metrics").contains("gregor_"));

    gates.reads.set(false);
    let all = other.fetch("stuck", 0, 0, 0).records.unwrap();
    for (reader, request) in readers.iter_mut().zip(reading) {
        let fetched = reader.receive::<FetchRequest>(12, request);
        let partition = &fetched.responses[0].partitions[0];
        assert_eq!(error(partition.error_code), error(0));
        assert_eq!(partition.high_watermark, BATCHES);
        assert_eq!(partition.records.as_ref().unwrap(), &all);
    }
    drop((other, readers));
    node.stop();
}

#[test]
fn who_writes_to_many_new_partitions_waits_for_the_sync_that_all_share_and_holds_up_nobody() {
    let gates = Arc::new(Gates::default());
    let home = Home::on(Arc::new(GatedDisk(Arc::clone(&gates))));
    let node = home.start();
    let _opened = OpenedAtTheEnd(Arc::clone(&gates));
    let mut other = node.with_topic("free", 1, &[]);
    assert_eq!(other.produce("free", 0, batch(&["before"])).error_code, 0);

    gates.file_system.set(true);
    other.create_topic("new", 20, &[]);
    let mut clients: Vec<_> = (0..6).map(|_| node.client()).collect();
    let sent: Vec<i32> = clients
        .iter_mut()
        .zip(0..)
        .map(|(client, index)| client.send(9, &produce_request("new", index, -1, batch(&["first"]))))
        .collect();
    // The node has two threads; six would be stuck.
    for number in 1..=20 {
        assert_eq!(other.produce("free", 0, batch(&["meanwhile"])).base_offset, number);
    }

    gates.file_system.set(false);
    for (client, request) in clients.iter_mut().zip(sent) {
        let answer = only(client.receive::<ProduceRequest>(9, request));
        assert_eq!((error(answer.error_code), answer.base_offset), (error(0), 0));
    }
    assert_eq!(gates.folders_synced.load(Ordering::SeqCst), 0, "no append paid for its own");
    drop((other, clients));
    node.stop();
}

#[test]
fn groups_on_a_stuck_disk_hold_up_nobody_else_and_lose_nothing() {
    let gates = Arc::new(Gates::default());
    let disk = Arc::new(GatedDisk(Arc::clone(&gates)));
    let home = Home::on(disk).with("offsets.topic.replication.factor", "1").with("offsets.topic.num.partitions", "1");
    let node = home.start();
    let _opened = OpenedAtTheEnd(Arc::clone(&gates));
    let mut other = node.with_topic("free", 1, &[]);
    assert_eq!(other.produce("free", 0, batch(&["before"])).error_code, 0);
    wait_for("the groups are coordinated", || {
        let _created = other.call(3, &find_coordinator_request());
        other.call(8, &commit_request(0)).topics[0].partitions[0].error_code == 0
    });
    let mut clients: Vec<_> = (0..5).map(|_| node.client()).collect();

    gates.writes.set(true);
    let first = clients[0].send(8, &commit_request(1));
    wait_for("the appends are on a thread of their own", || {
        node.http("/metrics")
            .lines()
            .any(|line| line.starts_with("gregor_log_append_offloaded") && line.ends_with(" 1"))
    });
    // The node has two threads; five commits wait for the disk.
    let later: Vec<i32> = clients[1..].iter_mut().map(|client| client.send(8, &commit_request(2))).collect();
    for _ in 0..20 {
        let metadata = other.call(12, &MetadataRequest::default());
        assert_eq!(metadata.brokers.len(), 1);
        assert!(!other.fetch("free", 0, 0, 0).records.unwrap().is_empty());
    }

    gates.writes.set(false);
    for (client, request) in clients.iter_mut().zip([first].into_iter().chain(later)) {
        let answer = client.receive::<OffsetCommitRequest>(8, request);
        assert_eq!(error(answer.topics[0].partitions[0].error_code), error(0));
    }
    drop((other, clients));
    node.stop();
}

#[test]
fn what_is_left_to_recover_is_told_while_it_becomes_less() {
    let gates = Arc::new(Gates::default());
    let home = Home::on(Arc::new(GatedDisk(Arc::clone(&gates))));
    let node = home.start();
    let _opened = OpenedAtTheEnd(Arc::clone(&gates));
    let mut client = node.with_topic("stuck", 1, &[]);
    client.create_topic("free", 3, &[]);
    for (topic, partition) in [("stuck", 0), ("free", 0), ("free", 1), ("free", 2)] {
        assert_eq!(client.produce(topic, partition, batch(&["kept"])).error_code, 0);
    }
    drop(client);
    node.stop();
    // As after a crash before anything was synced.
    let data = home.folder.path().join("data");
    std::fs::remove_file(data.join(".kafka_cleanshutdown")).unwrap();
    std::fs::write(data.join("recovery-point-offset-checkpoint"), "0\n0\n").unwrap();
    let size = std::fs::metadata(data.join("stuck-0/00000000000000000000.log")).unwrap().len() as i64;

    gates.reads.set(true);
    let node = home.start();
    // Of all threads together, where each has a line.
    let left = |name: &str| -> Option<i64> {
        let page = node.http("/metrics");
        let values =
            page.lines().filter(|line| line.starts_with(name)).map(|line| line.rsplit_once(' ')?.1.parse::<i64>().ok());
        values.sum()
    };
    let (logs, bytes) = ("kafka_log_logmanager_remaininglogstorecover{", "gregor_recovery_remaining_bytes{");
    let segments = "kafka_log_logmanager_remainingsegmentstorecover{";
    wait_for("only the log that cannot be read is left", || (left(logs), left(bytes)) == (Some(1), Some(size)));
    wait_for("a thread is at its segment", || left(segments) == Some(1));
    assert!(!node.http("/readyz").starts_with("HTTP/1.1 200"), "not all of it serves");
    let mut client = node.client();
    wait_for("what is whole serves", || client.produce("free", 2, batch(&["more"])).error_code == 0);
    gates.reads.set(false);
    wait_for("nothing is left", || (left(logs), left(bytes), left(segments)) == (Some(0), Some(0), Some(0)));
    wait_for("all of it serves", || node.http("/readyz").starts_with("HTTP/1.1 200"));
    assert_eq!(client.end_offset("stuck", 0), 1);
    drop(client);
    node.stop();
}
