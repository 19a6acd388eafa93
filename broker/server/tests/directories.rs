//! A node with two log directories: its replicas are spread over both, and the metadata comes to say where each is.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gregor_log::disk::RealDisk;
use gregor_metadata::Image;
use gregor_raft::{Endpoint, ReplicaKey, Voter};
use gregor_server::control::{FormatOptions, InitialVoters, format_storage};
use gregor_state_records::metadata::MetadataRecord;
use gregor_types::{BrokerId, DirectoryId, PartitionIndex, Timestamp, Uuid};
use gregor_wire::batch::split_batches;
use support::{DEADLINE, Home};

/// The id that [`Home`] gives its first directory.
const FIRST: Uuid = Uuid(0x1111_2222_3333_4444_8555_6666_7777_8888);
const SECOND: Uuid = Uuid(0x2111_2222_3333_4444_8555_6666_7777_8888);

/// Where the replicas of a topic are, as the metadata log on disk says.
fn assigned(data: &Path, topic: &str) -> BTreeMap<PartitionIndex, DirectoryId> {
    let bytes = std::fs::read(data.join("__cluster_metadata-0/00000000000000000000.log")).unwrap();
    let mut image = Image::default();
    // The last batch may be under way.
    for batch in split_batches(&bytes).map_while(Result::ok) {
        if batch.header().is_control() {
            continue;
        }
        for record in &batch.records(1 << 20).unwrap() {
            let value = Bytes::copy_from_slice(record.unwrap().value.unwrap());
            image.apply(&MetadataRecord::decode_framed(value).unwrap()).unwrap();
        }
    }
    let Some(topic) = image.topics().by_name(topic) else { return BTreeMap::new() };
    topic.partitions().map(|(index, partition)| (index, partition.directory_of(BrokerId(1)).unwrap())).collect()
}

fn folders(data: &Path) -> BTreeSet<PartitionIndex> {
    let entries = std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.filter_map(|name| name.strip_prefix("t-")?.parse::<i32>().ok().map(PartitionIndex)).collect()
}

#[test]
fn replicas_are_spread_over_directories_and_the_metadata_says_which() {
    let home = Home::new();
    let (first, second) = (home.folder.path().join("data"), home.folder.path().join("more"));
    let voter = Voter {
        key: ReplicaKey::new(BrokerId(1), FIRST),
        endpoints: vec![Endpoint { name: "CONTROLLER".into(), host: "127.0.0.1".into(), port: 9093 }],
        kraft_versions: (0, 1),
    };
    let options = FormatOptions {
        cluster_id: "test-cluster".into(),
        node_id: BrokerId(1),
        directories: vec![(first.clone(), FIRST), (second.clone(), SECOND)],
        metadata_directory: first.clone(),
        voters: InitialVoters::Dynamic(vec![voter]),
        metadata_version: 30,
        features: Vec::new(),
        ignore_formatted: true,
        now: Timestamp(1_700_000_000_000),
    };
    format_storage(&RealDisk, &options).unwrap();
    let home = home.with("log.dirs", format!("{},{}", first.display(), second.display()));
    let node = home.start();
    node.with_topic("t", 6, &[]);

    let expected: BTreeMap<_, _> = folders(&first)
        .into_iter()
        .map(|index| (index, FIRST))
        .chain(folders(&second).into_iter().map(|index| (index, SECOND)))
        .collect();
    assert_eq!(expected.len(), 6);
    assert!(folders(&second).len() >= 2, "the emptier directory gets the next one");
    let deadline = Instant::now() + DEADLINE;
    while assigned(&first, "t") != expected {
        assert!(Instant::now() < deadline, "{:?} is not {expected:?}", assigned(&first, "t"));
        std::thread::sleep(Duration::from_millis(20));
    }
    node.stop();
}
