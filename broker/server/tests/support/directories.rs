//! A node with two log directories, and what a client asks about them.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use gregor_log::Disk;
use gregor_messages::{
    AlterReplicaLogDirsRequest, AlterReplicaLogDirsResponse, DeleteTopicsRequest, DescribeLogDirsRequest,
    DescribeLogDirsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
    alter_replica_log_dirs_request::{AlterReplicaLogDir, AlterReplicaLogDirTopic},
    delete_topics_request::DeleteTopicState,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
};
use gregor_types::ErrorCode;

use super::{Client, DEADLINE, Home, error};

/// The two directories, by the names of their folders.
pub const FIRST: &str = "data";
pub const SECOND: &str = "more";

/// What is said of a partition in a directory: its size, its lag, and whether it is a copy on its way there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lies {
    pub size: i64,
    pub lag: i64,
    pub is_future: bool,
}

/// What is said of one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub error: ErrorCode,
    pub is_cordoned: bool,
    pub partitions: BTreeMap<(String, i32), Vec<Lies>>,
}

/// A node whose second directory is empty: it gets its identity with the first start.
pub fn two_directories(disk: Arc<dyn Disk>) -> Home {
    let home = Home::on(disk);
    let paths = format!("{},{}", path(&home, FIRST).display(), path(&home, SECOND).display());
    home.with("log.dirs", paths)
}

pub fn path(home: &Home, name: &str) -> PathBuf {
    home.folder.path().join(name)
}

/// Asks for a move.
pub fn move_to(client: &mut Client, home: &Home, name: &str, topic: &str, partition: i32) -> ErrorCode {
    let topic = AlterReplicaLogDirTopic { name: topic.into(), partitions: vec![partition], ..Default::default() };
    let directory = AlterReplicaLogDir {
        path: path(home, name).to_string_lossy().into_owned().into(),
        topics: vec![topic],
        ..Default::default()
    };
    let request = AlterReplicaLogDirsRequest { dirs: vec![directory], ..Default::default() };
    let response: AlterReplicaLogDirsResponse = client.call(2, &request);
    error(response.results[0].partitions[0].error_code)
}

pub fn describe(client: &mut Client) -> BTreeMap<String, Described> {
    let response: DescribeLogDirsResponse =
        client.call(5, &DescribeLogDirsRequest { topics: None, ..Default::default() });
    let directory = |result: gregor_messages::describe_log_dirs_response::DescribeLogDirsResult| {
        let name = result.log_dir.rsplit('/').next().unwrap().to_owned();
        let mut partitions: BTreeMap<(String, i32), Vec<Lies>> = BTreeMap::new();
        for topic in &result.topics {
            for partition in &topic.partitions {
                let lies = Lies {
                    size: partition.partition_size,
                    lag: partition.offset_lag,
                    is_future: partition.is_future_key,
                };
                partitions.entry((topic.name.to_string(), partition.partition_index)).or_default().push(lies);
            }
        }
        (name, Described { error: error(result.error_code), is_cordoned: result.is_cordoned, partitions })
    };
    response.results.into_iter().map(directory).collect()
}

/// In which directories a partition lies, and whether as a copy.
pub fn whereabouts(client: &mut Client, topic: &str, partition: i32) -> Vec<(String, bool)> {
    let described = describe(client);
    let key = (topic.to_owned(), partition);
    let lies = described.iter().flat_map(|(name, directory)| {
        let found = directory.partitions.get(&key).into_iter().flatten();
        found.map(|lies| (name.clone(), lies.is_future))
    });
    lies.collect()
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a move is done.
pub fn wait_until_in(client: &mut Client, name: &str, topic: &str, partition: i32) {
    let there = [(name.to_owned(), false)];
    wait_until(&format!("{topic}-{partition} in {name}"), || whereabouts(client, topic, partition) == there);
}

/// Sets something of broker 1 at run time.
pub fn set_broker(client: &mut Client, key: &str, value: &str) -> ErrorCode {
    let config = AlterableConfig { name: key.into(), value: Some(value.into()), ..Default::default() };
    let resource = AlterConfigsResource {
        resource_type: 4,
        resource_name: "1".into(),
        configs: vec![config],
        ..Default::default()
    };
    let request = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
    let response: IncrementalAlterConfigsResponse = client.call(1, &request);
    error(response.responses[0].error_code)
}

pub fn delete_topic(client: &mut Client, topic: &str) {
    let state = DeleteTopicState { name: Some(topic.into()), ..Default::default() };
    let request = DeleteTopicsRequest { topics: vec![state], timeout_ms: 10_000, ..Default::default() };
    assert_eq!(client.call(6, &request).responses[0].error_code, 0);
}
