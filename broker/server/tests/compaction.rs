//! A compacted topic on a whole node: the cleaner's threads find it, follow its configuration, and remember how far they are.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use gregor_log::disk::{FaultyDisk, Operation};
use gregor_messages::{
    DeleteTopicsRequest, IncrementalAlterConfigsRequest,
    delete_topics_request::DeleteTopicState,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
};
use gregor_types::ErrorCode;
use gregor_wire::batch::{BatchOptions, RecordBatchBuilder, split_batches};
use support::{
    Client, DEADLINE, Home,
    directories::{SECOND, describe, move_to, two_directories, wait_until},
    now,
};

const TOPIC_RESOURCE: i8 = 2;
/// Three segments of 1 MiB and some more.
const RECORDS: i64 = 90;

const CONFIGS: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("segment.bytes", "1048576"),
    ("min.cleanable.dirty.ratio", "0.01"),
    ("min.compaction.lag.ms", "86400000"),
];

fn write(client: &mut Client, records: std::ops::Range<i64>) {
    for i in records {
        let mut builder = RecordBatchBuilder::new(BatchOptions::default());
        let (key, value) = (format!("key {}", i % 3), format!("{i} {}", "x".repeat(40_000)));
        builder.append(now(), Some(key.as_bytes()), Some(value.as_bytes()), &[]);
        assert_eq!(client.produce("table", 0, builder.build()).error_code, 0);
    }
}

/// Every record that is there: its offset and key, and the number that its value begins with.
fn read(client: &mut Client, end: i64) -> Vec<(i64, String, i64)> {
    let (mut found, mut next) = (Vec::new(), 0);
    while next < end {
        let fetched = client.fetch("table", 0, next, 0);
        assert_eq!(fetched.error_code, 0);
        let bytes = fetched.records.unwrap_or_default();
        for batch in split_batches(&bytes) {
            let batch = batch.unwrap();
            batch.check_crc().unwrap();
            next = batch.next_offset().0;
            for record in &batch.records(1 << 20).unwrap() {
                let record = record.unwrap();
                let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
                let number = text(record.value).split(' ').next().unwrap().parse().unwrap();
                found.push((record.offset.0, text(record.key), number));
            }
        }
    }
    found
}

fn newest(records: &[(i64, String, i64)]) -> BTreeMap<&str, i64> {
    records.iter().map(|(_, key, number)| (key.as_str(), *number)).collect()
}

/// Waits until of the first records only so many are left.
fn wait_until_compacted(client: &mut Client, end: i64, below: i64) -> Vec<(i64, String, i64)> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let records = read(client, end);
        if records.iter().all(|(offset, ..)| *offset >= below) {
            return records;
        }
        assert!(Instant::now() < deadline, "{} records are still there", records.len());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn lift_the_lag(client: &mut Client) {
    let lag = AlterableConfig {
        name: "min.compaction.lag.ms".into(),
        config_operation: 0,
        value: Some("0".into()),
        ..Default::default()
    };
    let resource = AlterConfigsResource {
        resource_type: TOPIC_RESOURCE,
        resource_name: "table".into(),
        configs: vec![lag],
        ..Default::default()
    };
    let altered = client.call(1, &IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() });
    assert_eq!(altered.responses[0].error_code, 0);
}

#[test]
fn a_compacted_topic_keeps_the_newest_record_of_each_key_also_over_a_restart() {
    let home = Home::new().with("log.cleaner.backoff.ms", "50").with("log.cleaner.threads", "2");
    let node = home.start();
    let mut client = node.with_topic("table", 1, &CONFIGS);
    write(&mut client, 0..RECORDS);
    assert_eq!(read(&mut client, RECORDS).len() as i64, RECORDS, "all are younger than min.compaction.lag.ms");

    lift_the_lag(&mut client);
    // Segments of 25 records each; the last one is active.
    let records = wait_until_compacted(&mut client, RECORDS, 70);
    let expected = BTreeMap::from([("key 0", RECORDS - 3), ("key 1", RECORDS - 2), ("key 2", RECORDS - 1)]);
    assert_eq!(newest(&records), expected);
    assert!(records.iter().all(|(offset, _, number)| offset == number), "offsets never change: {records:?}");
    let page = node.http("/metrics");
    let figure = |name: &str| -> i64 {
        let line = page.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        let figure = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        figure.unwrap_or_else(|| panic!("no {name} in {page}"))
    };
    assert_eq!(figure("kafka_log_logcleanermanager_uncleanable_partitions_count{logdirectory="), 0);
    assert_eq!(figure("kafka_log_logcleanermanager_uncleanable_bytes{logdirectory="), 0);
    assert_eq!(figure("kafka_log_logcleaner_deadthreadcount"), 0);
    assert_eq!(figure("kafka_log_logcleaner_max_compaction_delay_secs"), 0);
    assert!(figure("kafka_log_logcleaner_max_buffer_utilization_percent") <= 90);
    assert!(figure("kafka_log_logcleanermanager_time_since_last_run_ms") < DEADLINE.as_millis() as i64);
    drop(client);
    node.stop();

    let checkpoint = std::fs::read_to_string(home.folder.path().join("data/cleaner-offset-checkpoint")).unwrap();
    let cleaned_to: i64 = checkpoint.lines().find_map(|line| line.strip_prefix("table 0 ")).unwrap().parse().unwrap();
    assert!((70..=RECORDS).contains(&cleaned_to), "{checkpoint}");

    let node = home.start();
    let mut client = node.client();
    assert_eq!(client.end_offset("table", 0), RECORDS);
    assert_eq!(newest(&read(&mut client, RECORDS)), expected);
    write(&mut client, RECORDS..2 * RECORDS);
    let records = wait_until_compacted(&mut client, 2 * RECORDS, RECORDS);
    assert_eq!(newest(&records)["key 1"], 2 * RECORDS - 2);
    drop(client);
    node.stop();
}

#[test]
fn a_topic_that_could_not_be_compacted_can_once_it_is_created_anew() {
    let home = Home::new().with("log.cleaner.backoff.ms", "50");
    let node = home.start();
    let mut client = node.with_topic("table", 1, &CONFIGS);
    write(&mut client, 0..RECORDS);
    let path = home.folder.path().join("data/table-0/00000000000000000000.log");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0xff; 8], 1_000).unwrap();
    lift_the_lag(&mut client);
    let directory = home.folder.path().join("data");
    let wait_for = |count: u32, has_bytes: bool| {
        let of = |name: &str| {
            format!("kafka_log_logcleanermanager_uncleanable_{name}{{logdirectory=\"{}\"}}", directory.display())
        };
        let (count, no_bytes) = (format!("{} {count}\n", of("partitions_count")), format!("{} 0\n", of("bytes")));
        let deadline = Instant::now() + DEADLINE;
        loop {
            let page = node.http("/metrics");
            if page.contains(&count) && page.contains(&no_bytes) != has_bytes {
                break;
            }
            assert!(Instant::now() < deadline, "no {count} in {page}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for(1, true);

    let topic = DeleteTopicState { name: Some("table".into()), ..Default::default() };
    let request = DeleteTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
    assert_eq!(client.call(6, &request).responses[0].error_code, 0);
    wait_for(0, false);
    let mut client = node.with_topic("table", 1, &CONFIGS);
    lift_the_lag(&mut client);
    write(&mut client, 0..RECORDS);
    wait_until_compacted(&mut client, RECORDS, 70);
    drop(client);
    node.stop();
}

#[test]
fn a_file_that_the_disk_has_lost_takes_its_directory_out_of_service() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk.clone())).with("log.cleaner.backoff.ms", "20");
    let node = home.start();
    let mut client = node.client();
    assert_eq!(move_to(&mut client, &home, SECOND, "table", 0), ErrorCode::UnknownTopicOrPartition);
    client.create_topic("table", 1, &CONFIGS);
    write(&mut client, 0..RECORDS);
    disk.set_fault(|operation, path: &Path| {
        let is_lost = operation == Operation::Open && path.ends_with("table-0/00000000000000000000.log");
        is_lost.then(|| io::ErrorKind::NotFound.into())
    });
    lift_the_lag(&mut client);
    wait_until("the directory is offline", || describe(&mut client)[SECOND].error == ErrorCode::KafkaStorageError);
    node.stop();
}

#[test]
fn a_node_stops_whatever_its_cleaner_is_about_to_do() {
    let home = Home::new().with("log.cleaner.backoff.ms", "0").with("log.cleaner.threads", "3");
    for _ in 0..20 {
        home.start().stop();
    }
}
