//! The control thread on real files: a quorum of one that leads, registers, decides, remembers, snapshots and refuses.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/served.rs"]
mod served;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use gregor_channel::Security;
use gregor_config::{BrokerConfig, Properties};
use gregor_log::disk::RealDisk;
use gregor_messages::{
    BrokerHeartbeatRequest, CreateTopicsRequest, DescribeQuorumRequest, FetchRequest, VoteRequest,
    create_topics_request::CreatableTopic,
    describe_quorum_request,
    fetch_request::{FetchPartition, FetchTopic},
    vote_request,
};
use gregor_metadata::{ConfigResource, ELIGIBLE_LEADER_REPLICAS_FEATURE};
use gregor_node::LifecycleConfig;
use gregor_raft::{Endpoint, ReplicaKey, StartError, Voter};
use gregor_server::control::{
    self, BrokerState, ControlError, ControlHandle, ControlOptions, ControlThread, FormatOptions, ImageUpdate,
    InitialVoters, MetadataListener, format_storage,
};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Timestamp, Uuid};
use gregor_wire::batch::split_batches;

const DIRECTORY: Uuid = Uuid(0x1111_2222_3333_4444_8555_6666_7777_8888);
const DEADLINE: Duration = Duration::from_secs(20);

/// A node's folder and settings.
struct Home {
    folder: tempfile::TempDir,
    properties: Vec<(&'static str, String)>,
    voters: Voting,
    /// Smaller than the configuration allows, so that a test need not write megabytes.
    segment_bytes: Option<i32>,
}

#[derive(Clone, Copy, PartialEq)]
enum Voting {
    Static,
    Dynamic,
}

/// Remembers what it is told.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<ImageUpdate>>>);

impl MetadataListener for Memory {
    fn publish(&mut self, update: ImageUpdate) {
        self.0.lock().unwrap().push(update);
    }
}

struct Node {
    control: ControlHandle,
    thread: ControlThread,
    memory: Memory,
}

impl Home {
    fn new(voters: Voting) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), properties: Vec::new(), voters, segment_bytes: None }
    }

    fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.properties.push((key, value.into()));
        self
    }

    fn directory(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn partition(&self) -> PathBuf {
        self.directory().join("__cluster_metadata-0")
    }

    fn config(&self) -> BrokerConfig {
        let mut properties = Properties::default();
        properties.set("node.id", "1");
        properties.set("process.roles", "broker,controller");
        properties.set("listeners", "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093");
        properties.set("controller.listener.names", "CONTROLLER");
        properties.set("log.dirs", self.directory().to_str().unwrap());
        match self.voters {
            Voting::Static => properties.set("controller.quorum.voters", "1@127.0.0.1:9093"),
            Voting::Dynamic => properties.set("controller.quorum.bootstrap.servers", "127.0.0.1:9093"),
        }
        for (key, value) in &self.properties {
            properties.set(*key, value);
        }
        let mut config = BrokerConfig::from_properties(&properties).unwrap().0;
        config.metadata_log_segment_bytes = self.segment_bytes.unwrap_or(config.metadata_log_segment_bytes);
        config
    }

    fn format_options(&self) -> FormatOptions {
        let voter = Voter {
            key: ReplicaKey::new(BrokerId(1), DIRECTORY),
            endpoints: vec![Endpoint { name: "CONTROLLER".into(), host: "127.0.0.1".into(), port: 9093 }],
            kraft_versions: (0, 1),
        };
        FormatOptions {
            cluster_id: "cluster".into(),
            node_id: BrokerId(1),
            directories: vec![(self.directory(), DIRECTORY)],
            metadata_directory: self.directory(),
            voters: if self.voters == Voting::Dynamic {
                InitialVoters::Dynamic(vec![voter])
            } else {
                InitialVoters::None
            },
            metadata_version: 30,
            features: Vec::new(),
            ignore_formatted: false,
            now: Timestamp(1_700_000_000_000),
        }
    }

    fn format(&self) {
        format_storage(&RealDisk, &self.format_options()).unwrap();
    }

    fn try_start(&self) -> Result<Node, ControlError> {
        let config = Arc::new(self.config());
        let memory = Memory::default();
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
        let options = ControlOptions {
            config,
            disk: Arc::new(RealDisk),
            cluster_id: "cluster".into(),
            metadata_directory_id: DIRECTORY,
            controller_endpoints: vec![Endpoint { name: "CONTROLLER".into(), host: "127.0.0.1".into(), port: 9093 }],
            broker,
            listener: Box::new(memory.clone()),
        };
        let (control, thread) = control::start(options, Security::Plaintext)?;
        Ok(Node { control, thread, memory })
    }

    /// Starts a node and waits until its broker serves.
    async fn start(&self) -> Node {
        let node = self.try_start().unwrap();
        let serves = served::serves(&node.control);
        assert!(tokio::time::timeout(DEADLINE, serves).await.expect("the broker is not unfenced in time"));
        node
    }
}

impl Node {
    async fn create_topic(&self, name: &str, partitions: i32) -> ErrorCode {
        let topic = CreatableTopic {
            name: name.into(),
            num_partitions: partitions,
            replication_factor: 1,
            ..Default::default()
        };
        let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
        ErrorCode::from(self.control.ask(7, request).await.unwrap().topics[0].error_code)
    }

    async fn stop(mut self) {
        self.control.stop().await.unwrap();
        self.thread.ended().await.unwrap();
    }
}

fn checkpoints(partition: &Path) -> Vec<String> {
    let names = std::fs::read_dir(partition).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".checkpoint")).collect();
    names.sort();
    names
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_formatted_node_leads_registers_and_creates_topics() {
    for voting in [Voting::Static, Voting::Dynamic] {
        let home = Home::new(voting);
        home.format();
        let node = home.start().await;
        assert_eq!(node.create_topic("first", 3).await, ErrorCode::None);
        assert_eq!(node.create_topic("first", 3).await, ErrorCode::TopicAlreadyExists);
        let image = node.control.image();
        assert_eq!(image.topics().by_name("first").unwrap().partitions().count(), 3, "an answer comes after its image");
        assert_eq!(image.features().metadata_version().level(), 30);
        assert!(image.cluster().is_active(BrokerId(1)));
        until("the controller's registration", || node.control.image().cluster().controller(BrokerId(1)).is_some())
            .await;
        let leader = node.control.quorum_leader().borrow().clone();
        assert_eq!((leader.epoch, leader.leader), (LeaderEpoch(1), Some(BrokerId(1))));
        assert_eq!(leader.endpoint.unwrap().port, 9093, "the only voter leads, and says where it listens");
        let seen =
            node.memory.0.lock().unwrap().iter().map(|update| update.changes.topics_created.len()).sum::<usize>();
        assert_eq!(seen, 1, "the listener hears of each topic once");
        node.stop().await;
        let state = std::fs::read_to_string(home.partition().join("quorum-state")).unwrap();
        assert!(
            state.starts_with(if voting == Voting::Dynamic {
                r#"{"leaderId":1,"leaderEpoch":1"#
            } else {
                r#"{"clusterId":"","leaderId":1"#
            }),
            "{state}"
        );
    }
}

#[tokio::test]
async fn metadata_survives_restarts_and_each_has_a_new_epoch() {
    let home = Home::new(Voting::Dynamic);
    home.format();
    let node = home.start().await;
    assert_eq!(node.create_topic("kept", 1).await, ErrorCode::None);
    let id = node.control.image().topics().by_name("kept").unwrap().id;
    let first_epoch = node.control.broker_epoch();
    node.stop().await;
    let node = home.start().await;
    assert_eq!(node.control.image().topics().by_name("kept").unwrap().id, id);
    assert!(node.control.broker_epoch() > first_epoch);
    let partition = describe_quorum_request::PartitionData::default();
    let topic = describe_quorum_request::TopicData {
        topic_name: "__cluster_metadata".into(),
        partitions: vec![partition],
        ..Default::default()
    };
    let request = DescribeQuorumRequest { topics: vec![topic], ..Default::default() };
    let quorum = node.control.ask(2, request).await.unwrap();
    let partition = &quorum.topics[0].partitions[0];
    assert_eq!((partition.leader_id, partition.leader_epoch), (1, 2));
    assert_eq!(partition.current_voters[0].replica_directory_id, DIRECTORY);
    node.stop().await;
}

#[tokio::test]
async fn a_thread_that_was_not_stopped_leaves_a_log_that_can_be_read() {
    let home = Home::new(Voting::Static);
    home.format();
    let node = home.start().await;
    assert_eq!(node.create_topic("kept", 1).await, ErrorCode::None);
    let copy = Home::new(Voting::Static);
    // A copy of the files as they are now is what a kill leaves.
    std::fs::create_dir_all(copy.partition()).unwrap();
    for entry in std::fs::read_dir(home.partition()).unwrap() {
        let entry = entry.unwrap();
        match std::fs::copy(entry.path(), copy.partition().join(entry.file_name())) {
            // What is being written anew has a name of its own until it is whole.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            copied => drop(copied.unwrap()),
        }
    }
    std::fs::copy(home.directory().join("bootstrap.checkpoint"), copy.directory().join("bootstrap.checkpoint"))
        .unwrap();
    let second = copy.start().await;
    assert!(second.control.image().topics().by_name("kept").is_some());
    second.stop().await;
    node.stop().await;
}

#[tokio::test]
async fn snapshots_are_written_old_ones_go_and_a_restart_reads_the_newest() {
    let mut home = Home::new(Voting::Dynamic)
        .with("metadata.log.max.record.bytes.between.snapshots", "2000")
        .with("metadata.max.retention.bytes", "1000")
        .with("metadata.max.idle.interval.ms", "0");
    home.segment_bytes = Some(2_000);
    home.format();
    let node = home.start().await;
    for number in 0..60 {
        assert_eq!(node.create_topic(&format!("topic-{number}"), 2).await, ErrorCode::None);
    }
    let partition = home.partition();
    until("one snapshot, and not that of formatting", || {
        let names = checkpoints(&partition);
        names.len() == 1 && names[0] != "00000000000000000000-0000000000.checkpoint"
    })
    .await;
    node.stop().await;
    assert!(!partition.join("00000000000000000000.log").exists(), "the log before the snapshots goes with them");
    let node = home.start().await;
    assert_eq!(node.control.image().topics().iter().count(), 60);
    let first = node.memory.0.lock().unwrap()[0].clone();
    assert_eq!(first.changes.topics_created.len(), 60, "the first update says everything");
    node.stop().await;
}

#[tokio::test]
async fn every_snapshot_ends_where_a_batch_does() {
    let home = Home::new(Voting::Dynamic).with("metadata.log.max.record.bytes.between.snapshots", "1");
    home.format();
    let node = home.start().await;
    // Several records in one batch: what is cut within would be half of a decision.
    for number in 0..20 {
        assert_eq!(node.create_topic(&format!("topic-{number}"), 3).await, ErrorCode::None);
    }
    let partition = home.partition();
    let snapshots = || -> Vec<i64> { checkpoints(&partition).iter().map(|name| name[..20].parse().unwrap()).collect() };
    until("several snapshots", || snapshots().len() > 5).await;
    node.stop().await;
    let log = std::fs::read(partition.join("00000000000000000000.log")).unwrap();
    let ends: Vec<i64> = split_batches(&log).map(|batch| batch.unwrap().next_offset().value()).collect();
    assert!(ends.len() < ends.last().copied().unwrap() as usize / 2, "the batches have one record each");
    // What formatting wrote is of no batch.
    for snapshot in snapshots().into_iter().filter(|end| *end > 0) {
        assert!(ends.contains(&snapshot), "{snapshot} lies within a batch: {ends:?}");
    }
}

#[tokio::test]
async fn a_log_that_was_lost_behind_its_snapshot_starts_again_there() {
    let home = Home::new(Voting::Dynamic).with("metadata.log.max.record.bytes.between.snapshots", "1");
    home.format();
    let node = home.start().await;
    assert_eq!(node.create_topic("kept", 1).await, ErrorCode::None);
    let end = node.control.image().position.last_offset;
    let partition = home.partition();
    until("a snapshot with the topic", || {
        checkpoints(&partition).last().is_some_and(|name| name[..20].parse::<i64>().unwrap() > end.value())
    })
    .await;
    node.stop().await;
    for file in ["00000000000000000000.log", "00000000000000000000.index", "00000000000000000000.timeindex"] {
        std::fs::remove_file(partition.join(file)).unwrap();
    }
    std::fs::remove_file(partition.join("leader-epoch-checkpoint")).unwrap();
    let node = home.start().await;
    assert!(node.control.image().topics().by_name("kept").is_some());
    assert!(node.control.image().position.last_offset > end);
    node.stop().await;
}

#[tokio::test]
async fn a_log_without_its_head_and_the_snapshot_for_it_is_refused_before_it_is_replayed() {
    let mut home = Home::new(Voting::Dynamic)
        .with("metadata.log.max.record.bytes.between.snapshots", "2000")
        .with("metadata.max.retention.bytes", "1000");
    home.segment_bytes = Some(2_000);
    home.format();
    let node = home.start().await;
    let partition = home.partition();
    let mut number = 0;
    while partition.join("00000000000000000000.log").exists() {
        assert!(number < 1_000, "the head of the log never goes");
        assert_eq!(node.create_topic(&format!("topic-{number}"), 2).await, ErrorCode::None);
        number += 1;
    }
    node.stop().await;
    for name in checkpoints(&partition) {
        std::fs::remove_file(partition.join(name)).unwrap();
    }
    let kept = || {
        let paths = std::fs::read_dir(&partition).unwrap().map(|entry| entry.unwrap().path());
        let is_kept = |path: &PathBuf| path.ends_with("quorum-state") || path.extension() == Some("log".as_ref());
        let mut kept: Vec<_> = paths.filter(is_kept).map(|path| (std::fs::read(&path).unwrap(), path)).collect();
        kept.sort();
        kept
    };
    let before = kept();
    let error = home.try_start().map(drop).unwrap_err();
    assert!(matches!(error, ControlError::Quorum(StartError::MissingSnapshot { newest: None, .. })), "{error}");
    assert!(error.to_string().contains("put back the .checkpoint file"), "{error}");
    assert!(kept() == before, "what it promised and what it knows stay as they were");
}

#[tokio::test]
async fn an_observer_can_fetch_the_log_as_it_lies_on_disk() {
    let home = Home::new(Voting::Dynamic);
    home.format();
    let node = home.start().await;
    let partition = FetchPartition {
        partition: 0,
        current_leader_epoch: 1,
        fetch_offset: 0,
        last_fetched_epoch: 0,
        partition_max_bytes: 1 << 20,
        ..Default::default()
    };
    let topic = FetchTopic { topic_id: Uuid::METADATA_TOPIC, partitions: vec![partition], ..Default::default() };
    let request = FetchRequest { max_bytes: 1 << 20, topics: vec![topic], ..Default::default() };
    let response = node.control.ask(17, request).await.unwrap();
    let records = response.responses[0].partitions[0].records.clone().unwrap();
    assert!(!records.is_empty());
    node.stop().await;
    let log = std::fs::read(home.partition().join("00000000000000000000.log")).unwrap();
    assert_eq!(records, log[..records.len()]);
}

#[tokio::test]
async fn a_heartbeat_of_a_stranger_is_refused_and_the_broker_goes_when_asked() {
    let home = Home::new(Voting::Static);
    home.format();
    let node = home.start().await;
    let stranger = BrokerHeartbeatRequest { broker_id: 9, broker_epoch: 1, ..Default::default() };
    let error = ErrorCode::from(node.control.ask(1, stranger).await.unwrap().error_code);
    assert!(matches!(error, ErrorCode::BrokerIdNotRegistered | ErrorCode::StaleBrokerEpoch), "{error}");
    tokio::time::timeout(DEADLINE, node.control.shut_down_broker()).await.expect("no leave to go in time").unwrap();
    assert!(matches!(*node.control.broker_state().borrow(), BrokerState::ShuttingDown(_)));
    node.stop().await;
}

#[test]
fn a_directory_that_wants_more_than_is_served_is_refused_by_name() {
    let home = Home::new(Voting::Static);
    let mut options = home.format_options();
    options.features = vec![("group.version".to_owned(), 1)];
    let error = format_storage(&RealDisk, &options).unwrap_err().to_string();
    assert!(error.contains("group.version") && error.contains("level 1"), "{error}");
    options.features = vec![("metadata.version".to_owned(), 34)];
    assert!(format_storage(&RealDisk, &options).is_err());
    assert!(!home.directory().exists(), "nothing is written before everything is checked");
    home.format();
    assert!(format_storage(&RealDisk, &home.format_options()).unwrap_err().to_string().contains("formatted already"));
}

#[tokio::test]
async fn a_new_cluster_keeps_eligible_leader_replicas_where_apaches_would() {
    let asked = |level: i16| vec![(ELIGIBLE_LEADER_REPLICAS_FEATURE.to_owned(), level)];
    for (metadata_version, features, keeps) in
        [(25, vec![], false), (25, asked(1), true), (26, vec![], true), (30, asked(0), false)]
    {
        let home = Home::new(Voting::Dynamic).with("min.insync.replicas", "2");
        let mut options = home.format_options();
        (options.metadata_version, options.features) = (metadata_version, features);
        format_storage(&RealDisk, &options).unwrap();
        let node = home.start().await;
        let image = node.control.image();
        assert_eq!(image.features().has_eligible_leader_replicas(), keeps, "at {metadata_version}");
        let for_all = image.configs().get(&ConfigResource::all_brokers(), "min.insync.replicas").cloned();
        assert_eq!(for_all.as_deref(), keeps.then_some("2"), "at {metadata_version}");
        node.stop().await;
    }
    let home = Home::new(Voting::Dynamic);
    let mut options = home.format_options();
    (options.metadata_version, options.features) = (22, asked(1));
    let error = format_storage(&RealDisk, &options).unwrap_err().to_string();
    assert!(error.ends_with("it depends on metadata.version level 23"), "{error}");
    assert!(!home.directory().exists(), "nothing is written before everything is checked");
}

#[test]
fn a_node_without_voters_says_what_to_do() {
    let mut home = Home::new(Voting::Dynamic);
    home.voters = Voting::Static;
    home.format();
    home.voters = Voting::Dynamic;
    let error = home.try_start().map(drop).unwrap_err().to_string();
    assert!(error.contains("--standalone"), "{error}");
}

#[tokio::test]
async fn a_leader_that_hears_of_a_newer_epoch_steps_down_and_leads_again_without_losing_anything() {
    let home = Home::new(Voting::Dynamic).with("controller.quorum.election.timeout.ms", "20");
    home.format();
    let node = home.start().await;
    assert_eq!(node.create_topic("before", 1).await, ErrorCode::None);
    let ballot = vote_request::PartitionData { replica_epoch: 50, replica_id: 7, ..Default::default() };
    let topic = vote_request::TopicData {
        topic_name: "__cluster_metadata".into(),
        partitions: vec![ballot],
        ..Default::default()
    };
    let request = VoteRequest { voter_id: 1, topics: vec![topic], ..Default::default() };
    let answer = node.control.ask(2, request).await.unwrap();
    let partition = &answer.topics[0].partitions[0];
    assert!(!partition.vote_granted, "the candidate's log is behind");
    assert_eq!((partition.leader_id, partition.leader_epoch), (-1, 50));
    let deadline = Instant::now() + DEADLINE;
    // Nobody decides until there is a leader again.
    loop {
        match node.create_topic("after", 1).await {
            ErrorCode::None => break,
            error => assert_eq!(error, ErrorCode::NotController),
        }
        assert!(Instant::now() < deadline, "no leader in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let image = node.control.image();
    assert!(image.topics().by_name("before").is_some());
    assert_eq!(image.position.epoch.value(), 51);
    node.stop().await;
}
