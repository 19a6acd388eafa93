//! A node with two log directories: its replicas are spread over both, the metadata comes to say where each is, and one that
//! fails takes down what is in it, no more.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gregor_log::{
    Disk, MetaProperties,
    disk::{FaultyDisk, Operation, RealDisk},
};
use gregor_metadata::Image;
use gregor_raft::{Endpoint, ReplicaKey, Voter};
use gregor_server::control::{FormatOptions, InitialVoters, format_storage};
use gregor_state_records::metadata::MetadataRecord;
use gregor_types::{BrokerId, DirectoryId, ErrorCode, PartitionIndex, Timestamp, Uuid};
use gregor_wire::batch::split_batches;
use support::{
    Client, DEADLINE, Home, batch,
    directories::{
        FIRST as DATA, SECOND as MORE, delete_topic, describe, move_to, path, set_broker, two_directories, wait_until,
        wait_until_in, whereabouts,
    },
    error,
};

/// The id that [`Home`] gives its first directory.
const FIRST: Uuid = Uuid(0x1111_2222_3333_4444_8555_6666_7777_8888);
const SECOND: Uuid = Uuid(0x2111_2222_3333_4444_8555_6666_7777_8888);

/// Where the replicas of a topic are, as the metadata log on disk says.
fn assigned(disk: &dyn Disk, data: &Path, topic: &str) -> BTreeMap<PartitionIndex, DirectoryId> {
    let file = disk.open(&data.join("__cluster_metadata-0/00000000000000000000.log")).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
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
    while assigned(&RealDisk, &first, "t") != expected {
        assert!(Instant::now() < deadline, "{:?} is not {expected:?}", assigned(&RealDisk, &first, "t"));
        std::thread::sleep(Duration::from_millis(20));
    }
    node.stop();
}

/// Makes every access to a directory fail, as a disk does that is broken.
fn break_disk(disk: &FaultyDisk, directory: &Path) {
    let directory = directory.to_owned();
    disk.set_fault(move |_: Operation, path: &Path| {
        path.starts_with(&directory).then(|| io::Error::from_raw_os_error(5))
    });
}

/// A topic with a partition in each directory: the first is in `data`, the second in `more`.
fn spread(client: &mut Client, home: &Home, topic: &str) {
    for (partition, directory) in [(0, DATA), (1, MORE)] {
        assert_eq!(move_to(client, home, directory, topic, partition), ErrorCode::UnknownTopicOrPartition);
    }
    client.create_topic(topic, 2, &[]);
    for partition in 0..2 {
        assert_eq!(client.produce(topic, partition, batch(&["kept"])).error_code, 0);
    }
    assert_eq!(whereabouts(client, topic, 1), [(MORE.to_owned(), false)]);
}

/// Moves the second replica to and fro: the controller knows where it is then.
fn make_known(client: &mut Client, home: &Home) {
    for directory in [DATA, MORE] {
        assert_eq!(move_to(client, home, directory, "t", 1), ErrorCode::None);
        wait_until_in(client, directory, "t", 1);
    }
}

#[test]
fn a_directory_that_fails_takes_down_what_is_in_it_and_no_more() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk.clone()));
    let node = home.start();
    let mut client = node.client();
    spread(&mut client, &home, "t");
    make_known(&mut client, &home);

    break_disk(&disk, &path(&home, MORE));
    let refused = client.produce("t", 1, batch(&["lost"]));
    assert_eq!(error(refused.error_code), ErrorCode::KafkaStorageError);
    assert_eq!(client.produce("t", 0, batch(&["served"])).error_code, 0, "the other directory works");
    wait_until("the directory is told to be offline", || {
        describe(&mut client)[MORE].error == ErrorCode::KafkaStorageError
    });
    let is_offline = |client: &mut Client| {
        assert_eq!(error(client.produce("t", 1, batch(&["lost"])).error_code), ErrorCode::KafkaStorageError);
        assert_eq!(error(client.fetch("t", 1, 0, 0).error_code), ErrorCode::KafkaStorageError);
        assert_eq!(error(client.list_offset("t", 1, -1).error_code), ErrorCode::KafkaStorageError);
    };
    is_offline(&mut client);
    assert_eq!(move_to(&mut client, &home, MORE, "t", 0), ErrorCode::KafkaStorageError);
    assert_eq!(move_to(&mut client, &home, DATA, "t", 1), ErrorCode::KafkaStorageError);
    wait_until("nobody leads what is gone", || leader(&mut client, "t", 1) == -1);
    assert_eq!(leader(&mut client, "t", 0), 1);
    is_offline(&mut client);
    let page = node.http("/metrics");
    assert!(page.contains("\nkafka_log_logmanager_offlinelogdirectorycount 1\n"), "{page}");
    assert!(page.contains("\nkafka_server_replicamanager_offlinereplicacount 1\n"), "{page}");
    client.create_topic("new", 2, &[]);
    for partition in 0..2 {
        assert_eq!(whereabouts(&mut client, "new", partition), [(DATA.to_owned(), false)]);
    }
    node.stop();

    // It is no better with the next start: the node goes on without it, and makes nothing anew elsewhere.
    let node = home.start();
    let mut client = node.client();
    is_offline(&mut client);
    assert_eq!(client.produce("t", 0, batch(&["served still"])).error_code, 0);
    assert_eq!(describe(&mut client)[MORE].error, ErrorCode::KafkaStorageError);
    assert!(whereabouts(&mut client, "t", 1).is_empty());
    assert!(node.http("/metrics").contains("\nkafka_server_replicamanager_offlinereplicacount 1\n"));
    node.stop();

    // Repaired, it has what it had.
    disk.clear_fault();
    let node = home.start();
    let mut client = node.client();
    assert_eq!(client.end_offset("t", 1), 1);
    assert_eq!(client.produce("t", 1, batch(&["served"])).base_offset, 1);
    node.stop();
}

#[test]
fn the_controller_takes_back_a_move_that_the_failure_of_the_replicas_directory_cuts_off() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk.clone()));
    let (data, more) = (path(&home, DATA), path(&home, MORE));
    let node = home.start();
    let mut client = node.client();
    spread(&mut client, &home, "t");
    // The controller is told where the replica will be, then the replica's folder keeps its name: the disk is full.
    let mut retires = false;
    let replica = more.join("t-1");
    disk.set_fault(move |operation, path: &Path| {
        let renames = operation == Operation::Rename && path == replica;
        // Only the way there: what is given back after it keeps its name.
        retires ^= renames;
        (renames && retires).then(|| io::Error::from_raw_os_error(28))
    });
    assert_eq!(move_to(&mut client, &home, DATA, "t", 1), ErrorCode::None);
    let id = |directory: &Path| MetaProperties::read(&disk, directory).unwrap().unwrap().directory_id.unwrap();
    let known = || assigned(&disk, &data, "t")[&PartitionIndex(1)];
    wait_until("the controller knows of the move", || known() == id(&data));
    assert_eq!(whereabouts(&mut client, "t", 1).len(), 2);

    // Nor does the copy get a name of its own: it has all, and could take the place of what is gone at the very moment.
    let copy = data.join("t-1.").to_string_lossy().into_owned();
    let broken = more.clone();
    disk.set_fault(move |operation, path: &Path| {
        let is_copy = operation == Operation::Rename && path.to_string_lossy().starts_with(&copy);
        let code = if path.starts_with(&broken) { 5 } else { 28 };
        (is_copy || code == 5).then(|| io::Error::from_raw_os_error(code))
    });
    assert_eq!(error(client.produce("t", 1, batch(&["lost"])).error_code), ErrorCode::KafkaStorageError);
    wait_until("nobody leads what is gone", || leader(&mut client, "t", 1) == -1);
    disk.clear_fault();
    assert_eq!(known(), id(&more), "so a start without that directory makes nothing anew elsewhere");
    node.stop();

    let node = home.start();
    let mut client = node.client();
    assert_eq!(client.end_offset("t", 1), 1);
    wait_until_in(&mut client, DATA, "t", 1);
    assert_eq!(client.produce("t", 1, batch(&["served"])).base_offset, 1);
    node.stop();
}

#[test]
fn two_directories_of_which_one_is_a_copy_of_the_other_are_refused() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk.clone()));
    let (data, more) = (path(&home, DATA), path(&home, MORE));
    home.start().stop();
    let id = MetaProperties::read(&disk, &data).unwrap().unwrap().directory_id.unwrap();
    let copy = MetaProperties::read(&disk, &data).unwrap().unwrap();
    copy.write(&disk, &more).unwrap();
    let refusal = home.refusal();
    for said in [data.to_str().unwrap(), more.to_str().unwrap(), &format!("directory.id={id}"), "take the copy out"] {
        assert!(refusal.contains(said), "{refusal}");
    }
}

fn leader(client: &mut Client, topic: &str, partition: i32) -> i32 {
    let topic =
        gregor_messages::metadata_request::MetadataRequestTopic { name: Some(topic.into()), ..Default::default() };
    let request = gregor_messages::MetadataRequest { topics: Some(vec![topic]), ..Default::default() };
    let response = client.call(9, &request);
    let found = response.topics[0].partitions.iter().find(|one| one.partition_index == partition);
    found.unwrap().leader_id
}

#[test]
fn the_directory_of_the_metadata_is_not_gone_on_without() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk.clone()));
    let node = home.start();
    let mut client = node.client();
    spread(&mut client, &home, "t");
    break_disk(&disk, &path(&home, DATA));
    assert_eq!(error(client.produce("t", 0, batch(&["lost"])).error_code), ErrorCode::KafkaStorageError);
    let failure = node.failure();
    assert!(failure.contains("/data"), "{failure}");
    node.abandon();
}

#[test]
fn a_copy_on_its_way_to_a_directory_that_fails_is_given_up() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk.clone()));
    let node = home.start();
    let mut client = node.client();
    spread(&mut client, &home, "t");
    assert_eq!(set_broker(&mut client, "replica.alter.log.dirs.io.max.bytes.per.second", "0"), ErrorCode::None);
    assert_eq!(move_to(&mut client, &home, MORE, "t", 0), ErrorCode::None);
    assert_eq!(whereabouts(&mut client, "t", 0).len(), 2);
    break_disk(&disk, &path(&home, MORE));
    assert_eq!(error(client.produce("t", 1, batch(&["lost"])).error_code), ErrorCode::KafkaStorageError);
    wait_until("the copy is given up", || whereabouts(&mut client, "t", 0) == [(DATA.to_owned(), false)]);
    assert_eq!(client.produce("t", 0, batch(&["served"])).base_offset, 1);
    node.stop();

    // The copy is there again when the directory is, and goes on.
    disk.clear_fault();
    let node = home.start();
    let mut client = node.client();
    wait_until("the copy was checked", || whereabouts(&mut client, "t", 0).len() == 2);
    assert_eq!(set_broker(&mut client, "replica.alter.log.dirs.io.max.bytes.per.second", "1000000"), ErrorCode::None);
    wait_until_in(&mut client, MORE, "t", 0);
    assert_eq!(client.end_offset("t", 0), 2);
    node.stop();
}

#[test]
fn a_cordoned_directory_gets_nothing_new_and_keeps_what_it_has() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk));
    let node = home.start();
    let mut client = node.client();
    spread(&mut client, &home, "t");
    let more = path(&home, MORE).to_string_lossy().into_owned();
    assert_eq!(set_broker(&mut client, "cordoned.log.dirs", "/elsewhere"), ErrorCode::InvalidRequest);
    assert_eq!(set_broker(&mut client, "cordoned.log.dirs", &more), ErrorCode::None);
    wait_until("the cordon", || describe(&mut client)[MORE].is_cordoned);
    client.create_topic("new", 4, &[]);
    for partition in 0..4 {
        assert_eq!(whereabouts(&mut client, "new", partition), [(DATA.to_owned(), false)]);
    }
    assert_eq!(client.produce("t", 1, batch(&["served"])).error_code, 0);
    assert!(node.http("/metrics").contains("\nkafka_log_logmanager_cordonedlogdirectorycount 1\n"));
    node.stop();
    let node = home.start();
    let mut client = node.client();
    wait_until("the cordon, after a restart", || describe(&mut client)[MORE].is_cordoned);
    // With all of them cordoned, the controller finds no broker for a new replica.
    assert_eq!(set_broker(&mut client, "cordoned.log.dirs", "*"), ErrorCode::None);
    wait_until("no room for a topic", || create(&mut client, "none") == ErrorCode::InvalidReplicationFactor);
    assert_eq!(set_broker(&mut client, "cordoned.log.dirs", ""), ErrorCode::None);
    wait_until("room again", || create(&mut client, "some") == ErrorCode::None);
    node.stop();
}

/// Only asks whether a topic could be created.
fn create(client: &mut Client, topic: &str) -> ErrorCode {
    let topic = gregor_messages::create_topics_request::CreatableTopic {
        name: topic.into(),
        num_partitions: 1,
        replication_factor: 1,
        ..Default::default()
    };
    let request =
        gregor_messages::CreateTopicsRequest { topics: vec![topic], validate_only: true, ..Default::default() };
    error(client.call(7, &request).topics[0].error_code)
}

/// Copies a folder with its files.
fn copy_folder(disk: &dyn Disk, from: &Path, to: &Path) {
    disk.create_directory(to).unwrap();
    for entry in disk.list(from).unwrap() {
        let file = disk.open(&from.join(&entry.name)).unwrap();
        let mut content = vec![0; entry.len as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        let copy = disk.create(&to.join(&entry.name)).unwrap();
        copy.write_all_at(&mut [io::IoSlice::new(&content)], 0).unwrap();
    }
}

fn names(disk: &dyn Disk, directory: &Path) -> Vec<String> {
    let entries = disk.list(directory).unwrap().into_iter().filter(|entry| entry.is_directory);
    let mut names: Vec<_> = entries.map(|entry| entry.name).filter(|name| name.starts_with("t-")).collect();
    names.sort();
    names
}

#[test]
fn of_two_folders_of_a_partition_the_metadata_says_which_is_the_replica() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk.clone()));
    let (data, more) = (path(&home, DATA), path(&home, MORE));
    let node = home.start();
    let mut client = node.client();
    spread(&mut client, &home, "t");
    make_known(&mut client, &home);
    node.stop();
    // Somebody has copied a replica by hand, and there is a copy under way that never began, and what a deletion left.
    copy_folder(&disk, &more.join("t-1"), &data.join("t-1"));
    disk.create_directory(&more.join("t-0.0123456789abcdef0123456789abcdef-future")).unwrap();
    copy_folder(&disk, &more.join("t-1"), &data.join("t-7.0123456789abcdef0123456789abcdef-delete"));

    let node = home.start();
    let mut client = node.client();
    assert_eq!(whereabouts(&mut client, "t", 0), [(DATA.to_owned(), false)]);
    assert_eq!(whereabouts(&mut client, "t", 1), [(MORE.to_owned(), false)]);
    wait_until("the rest of a deletion is removed", || {
        !names(&disk, &data).iter().any(|name| name.contains("-delete"))
    });
    let is_stray = |name: &String, of: &str| name.starts_with(of) && name.ends_with("-stray");
    let (at_data, at_more) = (names(&disk, &data), names(&disk, &more));
    assert!(at_data.len() == 2 && at_data[0] == "t-0" && is_stray(&at_data[1], "t-1."), "{at_data:?}");
    assert!(at_more.len() == 2 && is_stray(&at_more[0], "t-0.") && at_more[1] == "t-1", "{at_more:?}");
    assert_eq!(client.produce("t", 1, batch(&["served"])).base_offset, 1);
    node.stop();
}

#[test]
fn a_replica_that_was_offline_while_its_topic_was_made_anew_is_set_aside() {
    let disk = FaultyDisk::new();
    let home = two_directories(Arc::new(disk.clone()));
    let more = path(&home, MORE);
    let node = home.start();
    let mut client = node.client();
    spread(&mut client, &home, "t");
    break_disk(&disk, &more);
    assert_eq!(error(client.produce("t", 1, batch(&["lost"])).error_code), ErrorCode::KafkaStorageError);
    delete_topic(&mut client, "t");
    wait_until("the topic can be made anew", || create(&mut client, "t") == ErrorCode::None);
    client.create_topic("t", 2, &[]);
    for partition in 0..2 {
        assert_eq!(client.produce("t", partition, batch(&["new"])).base_offset, 0);
    }
    node.stop();
    disk.clear_fault();
    let node = home.start();
    let mut client = node.client();
    for partition in 0..2 {
        assert_eq!(whereabouts(&mut client, "t", partition), [(DATA.to_owned(), false)]);
        assert_eq!(client.end_offset("t", partition), 1);
    }
    let left = names(&disk, &more);
    assert!(left.len() == 1 && left[0].ends_with("-stray"), "{left:?}");
    node.stop();
}
