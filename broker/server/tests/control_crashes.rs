//! The control thread on a disk that stops at every change in turn and loses what was not synced: whatever was answered is still
//! there after the next start, and no epoch is used twice.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/served.rs"]
mod served;

use std::{path::PathBuf, sync::Arc, time::Duration};

use gregor_channel::Security;
use gregor_config::{BrokerConfig, Properties};
use gregor_log::{
    Disk,
    disk::{Crash, FaultyDisk},
};
use gregor_messages::{CreateTopicsRequest, create_topics_request::CreatableTopic};
use gregor_node::LifecycleConfig;
use gregor_raft::{Endpoint, ReplicaKey, Voter};
use gregor_server::control::{
    self, ControlOptions, FormatOptions, ImageUpdate, InitialVoters, MetadataListener, format_storage,
};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, Timestamp, Uuid};

const DIRECTORY: Uuid = Uuid(0x1111_2222_3333_4444_8555_6666_7777_8888);
const DEADLINE: Duration = Duration::from_secs(20);
/// Topics that a run tries to create.
const TOPICS: usize = 3;

struct Deaf;

impl MetadataListener for Deaf {
    fn publish(&mut self, _update: ImageUpdate) {}
}

/// What a run saw before its disk stopped.
#[derive(Debug, Default)]
struct Seen {
    topics: Vec<String>,
    broker_epoch: Option<BrokerEpoch>,
    epoch: Option<i32>,
}

fn endpoint() -> Endpoint {
    Endpoint { name: "CONTROLLER".into(), host: "127.0.0.1".into(), port: 9093 }
}

fn format(disk: &FaultyDisk) -> bool {
    let voter =
        Voter { key: ReplicaKey::new(BrokerId(1), DIRECTORY), endpoints: vec![endpoint()], kraft_versions: (0, 1) };
    let options = FormatOptions {
        cluster_id: "cluster".into(),
        node_id: BrokerId(1),
        directories: vec![(PathBuf::from("/data"), DIRECTORY)],
        metadata_directory: PathBuf::from("/data"),
        voters: InitialVoters::Dynamic(vec![voter]),
        metadata_version: 30,
        features: Vec::new(),
        ignore_formatted: true,
        now: Timestamp(1_700_000_000_000),
    };
    format_storage(disk, &options).is_ok()
}

fn options(disk: &FaultyDisk) -> ControlOptions {
    let mut properties = Properties::default();
    for (key, value) in [
        ("node.id", "1"),
        ("process.roles", "broker,controller"),
        ("listeners", "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"),
        ("controller.listener.names", "CONTROLLER"),
        ("controller.quorum.bootstrap.servers", "127.0.0.1:9093"),
        ("log.dirs", "/data"),
        ("metadata.max.idle.interval.ms", "0"),
        ("metadata.log.max.record.bytes.between.snapshots", "500"),
        ("metadata.max.retention.bytes", "1000"),
    ] {
        properties.set(key, value);
    }
    let config = Arc::new(BrokerConfig::from_properties(&properties).unwrap().0);
    let broker = LifecycleConfig {
        id: BrokerId(1),
        cluster_id: "cluster".into(),
        incarnation: Uuid(std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos()),
        listeners: vec![("PLAINTEXT".into(), "127.0.0.1".into(), 9092, 0)],
        rack: None,
        directories: vec![DIRECTORY],
        directory_failure_timeout: 30_000_000_000,
        previous_epoch: BrokerEpoch::NONE,
        heartbeat_interval: 2_000_000_000,
        registration_timeout: 20_000_000_000,
        session_timeout: 9_000_000_000,
    };
    ControlOptions {
        config,
        disk: Arc::new(disk.clone()) as Arc<dyn Disk>,
        cluster_id: "cluster".into(),
        metadata_directory_id: DIRECTORY,
        controller_endpoints: vec![endpoint()],
        broker,
        listener: Box::new(Deaf),
    }
}

/// Starts a node, registers it and creates topics until its disk stops, or all is done. Also checks what `before` has seen.
async fn run(disk: &FaultyDisk, topics: &[String], before: &Seen) -> Seen {
    let mut seen = Seen::default();
    let Ok((control, mut thread)) = control::start(options(disk), Security::Plaintext) else { return seen };
    let work = async {
        if !served::serves(&control).await {
            return;
        }
        let image = control.image();
        seen.broker_epoch = Some(control.broker_epoch());
        seen.epoch = Some(image.position.epoch.value());
        assert!(before.broker_epoch < seen.broker_epoch, "broker epoch {:?} after {before:?}", seen.broker_epoch);
        assert!(before.epoch < seen.epoch, "epoch {:?} after {before:?}", seen.epoch);
        for name in &before.topics {
            assert!(image.topics().by_name(name).is_some(), "the topic {name} was created and is lost");
        }
        for name in topics {
            let topic = CreatableTopic {
                name: name.as_str().into(),
                num_partitions: 1,
                replication_factor: 1,
                ..Default::default()
            };
            let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
            let Ok(response) = control.ask(7, request).await else { return };
            let error = ErrorCode::from(response.topics[0].error_code);
            assert!(matches!(error, ErrorCode::None | ErrorCode::TopicAlreadyExists), "{error}");
            seen.topics.push(name.clone());
        }
    };
    tokio::time::timeout(DEADLINE, work).await.expect("neither done nor failed in time");
    // The log may be closed, or the disk may have stopped: both end the thread.
    let _ = control.stop().await;
    let _ = tokio::time::timeout(DEADLINE, thread.ended()).await.expect("the thread does not end");
    seen
}

#[tokio::test]
async fn what_was_answered_survives_a_power_loss_at_every_change_of_the_disk() {
    let names: Vec<String> = (0..TOPICS).map(|number| format!("topic-{number}")).collect();
    let mut stops = 0;
    for crash in [Crash::LoseUnsynced, Crash::KeepAll, Crash::Tear(1), Crash::Tear(2)] {
        for stop in 0.. {
            let disk = FaultyDisk::new();
            assert!(format(&disk));
            disk.stop_after(disk.mutations() + stop);
            let seen = run(&disk, &names, &Seen::default()).await;
            let finished = seen.topics.len() == TOPICS;
            disk.crash(crash);
            let again = run(&disk, &names, &seen).await;
            assert_eq!(
                again.topics, names,
                "stopped at change {stop}: the node does not come back, having seen {seen:?}"
            );
            if finished {
                break;
            }
            stops += 1;
        }
    }
    assert!(stops > 30, "only {stops} places to stop at");
}

#[tokio::test]
async fn formatting_that_was_cut_off_is_done_again() {
    for stop in 0.. {
        let disk = FaultyDisk::new();
        disk.stop_after(stop);
        let whole = format(&disk);
        disk.crash(Crash::LoseUnsynced);
        assert!(format(&disk), "stopped at change {stop}");
        let seen = run(&disk, &["topic".to_owned()], &Seen::default()).await;
        assert_eq!(seen.topics.len(), 1, "stopped at change {stop}");
        if whole {
            return;
        }
    }
}
