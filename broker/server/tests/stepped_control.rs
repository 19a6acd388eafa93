//! The control thread in a time of the test's own: what is due is done though requests never end, and others are told only of what this
//! broker has done.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use gregor_config::{BrokerConfig, Properties};
use gregor_log::{Disk, disk::FaultyDisk};
use gregor_messages::{
    BrokerHeartbeatRequest, BrokerRegistrationRequest, CreateTopicsRequest,
    broker_registration_request::{Feature, Listener},
    create_topics_request::{CreatableReplicaAssignment, CreatableTopic},
};
use gregor_node::LifecycleConfig;
use gregor_raft::{Endpoint, Nanos, Now, ReplicaKey, Voter};
use gregor_server::control::{
    Answered, BrokerState, ControlHandle, ControlOptions, FormatOptions, ImageUpdate, InitialVoters, MetadataListener,
    SteppedControl, Surroundings, format_storage,
};
use gregor_types::{BrokerEpoch, BrokerId, Timestamp, Uuid};

const DIRECTORY: Uuid = Uuid(0x1111_2222_3333_4444_8555_6666_7777_8888);
const ANOTHERS_DIRECTORY: Uuid = Uuid(0x2222_3333_4444_4555_8666_7777_8888_9999);
const SECOND: Nanos = 1_000_000_000;
const SESSION: Nanos = 9 * SECOND;
const HEARTBEAT: Nanos = 2 * SECOND;

/// Time as the test has it; what chance is asked for counts on.
#[derive(Clone, Default)]
struct Clock(Arc<AtomicU64>, u64);

impl Surroundings for Clock {
    fn now(&self) -> Now {
        let monotonic = self.0.load(Ordering::Relaxed);
        Now { monotonic, wall: Timestamp(1_700_000_000_000 + (monotonic / 1_000_000) as i64) }
    }

    fn random(&mut self) -> u64 {
        self.1 += 1;
        self.1
    }

    fn beside(&mut self, _name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<Option<JoinHandle<()>>> {
        work();
        Ok(None)
    }
}

/// Whether broker 2 is fenced, and how many topics there are, image by image.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(bool, usize)>>>);

impl MetadataListener for Seen {
    fn publish(&mut self, update: ImageUpdate) {
        let fenced = update.image.cluster().broker(BrokerId(2)).is_some_and(|broker| broker.fenced);
        self.0.lock().unwrap().push((fenced, update.image.topics().len()));
    }
}

/// A node that is a cluster of its own, and what is done to it.
struct Rig {
    clock: Clock,
    seen: Seen,
    handle: ControlHandle,
    control: SteppedControl,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    fn new() -> Self {
        let disk: Arc<dyn Disk> = Arc::new(FaultyDisk::default());
        let endpoint = Endpoint { name: "CONTROLLER".into(), host: "127.0.0.1".into(), port: 9093 };
        let voter = Voter {
            key: ReplicaKey::new(BrokerId(1), DIRECTORY),
            endpoints: vec![endpoint.clone()],
            kraft_versions: (0, 1),
        };
        let format = FormatOptions {
            cluster_id: "cluster".into(),
            node_id: BrokerId(1),
            directories: vec![(PathBuf::from("/data"), DIRECTORY)],
            metadata_directory: PathBuf::from("/data"),
            voters: InitialVoters::Dynamic(vec![voter]),
            metadata_version: 30,
            features: Vec::new(),
            ignore_formatted: false,
            now: Timestamp(1_700_000_000_000),
        };
        format_storage(&*disk, &format).unwrap();
        let (clock, seen) = (Clock::default(), Seen::default());
        let listener = Box::new(seen.clone());
        let (handle, control) =
            SteppedControl::open(options(disk, endpoint, listener), Box::new(clock.clone())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut rig = Self { clock, seen, handle, control, runtime };
        rig.steps();
        rig.loaded();
        assert!(matches!(*rig.handle.broker_state().borrow(), BrokerState::Running(_)));
        rig
    }

    /// Steps until nothing more is to be done now.
    fn steps(&mut self) {
        while self.control.step().unwrap().is_some_and(|at| at <= self.clock.now().monotonic) {}
    }

    fn pass(&mut self, nanos: Nanos) {
        self.clock.0.fetch_add(nanos, Ordering::Relaxed);
        self.steps();
    }

    /// This broker has done all that it was told.
    fn loaded(&mut self) {
        self.control.loaded(self.handle.image().position.last_offset).unwrap();
        self.steps();
    }

    fn ask<R: Answered>(&mut self, version: i16, request: R) -> R::Response {
        let response = self.control.request(version, request.into_request()).unwrap();
        self.steps();
        R::from_response(self.runtime.block_on(response).unwrap()).unwrap()
    }

    /// Another broker, which serves.
    fn register(&mut self) -> i64 {
        let listener = Listener { name: "PLAINTEXT".into(), host: "h".into(), port: 9092, ..Default::default() };
        let features = [("metadata.version", 7, 33), ("eligible.leader.replicas.version", 0, 1)];
        let request = BrokerRegistrationRequest {
            broker_id: 2,
            cluster_id: "cluster".into(),
            incarnation_id: Uuid(2),
            listeners: vec![listener],
            features: features
                .map(|(name, min_supported_version, max_supported_version)| Feature {
                    name: name.into(),
                    min_supported_version,
                    max_supported_version,
                    ..Default::default()
                })
                .to_vec(),
            log_dirs: vec![ANOTHERS_DIRECTORY],
            ..Default::default()
        };
        let registered = self.ask(4, request);
        assert_eq!(registered.error_code, 0);
        assert!(!self.heartbeat(registered.broker_epoch, false));
        registered.broker_epoch
    }

    /// Its heartbeat, with all metadata; returns whether it may go.
    fn heartbeat(&mut self, epoch: i64, want_shut_down: bool) -> bool {
        let request = BrokerHeartbeatRequest {
            broker_id: 2,
            broker_epoch: epoch,
            current_metadata_offset: self.handle.image().position.last_offset.value(),
            want_fence: false,
            want_shut_down,
            ..Default::default()
        };
        let response = self.ask(1, request);
        assert_eq!(response.error_code, 0);
        response.should_shut_down
    }
}

fn options(disk: Arc<dyn Disk>, endpoint: Endpoint, listener: Box<dyn MetadataListener>) -> ControlOptions {
    let mut properties = Properties::default();
    for (key, value) in [
        ("node.id", "1"),
        ("process.roles", "broker,controller"),
        ("listeners", "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"),
        ("controller.listener.names", "CONTROLLER"),
        ("controller.quorum.bootstrap.servers", "127.0.0.1:9093"),
        ("log.dirs", "/data"),
    ] {
        properties.set(key, value);
    }
    let broker = LifecycleConfig {
        id: BrokerId(1),
        cluster_id: "cluster".into(),
        incarnation: Uuid(1),
        listeners: vec![("PLAINTEXT".into(), "127.0.0.1".into(), 9092, 0)],
        rack: None,
        directories: vec![DIRECTORY],
        directory_failure_timeout: 30 * SECOND,
        previous_epoch: BrokerEpoch::NONE,
        heartbeat_interval: HEARTBEAT,
        registration_timeout: 20 * SECOND,
        session_timeout: SESSION,
    };
    ControlOptions {
        config: Arc::new(BrokerConfig::from_properties(&properties).unwrap().0),
        disk,
        cluster_id: "cluster".into(),
        metadata_directory_id: DIRECTORY,
        controller_endpoints: vec![endpoint],
        broker,
        listener,
    }
}

/// A topic of one partition on these brokers.
fn create(name: &str, brokers: &[i32]) -> CreateTopicsRequest {
    let assignment =
        CreatableReplicaAssignment { partition_index: 0, broker_ids: brokers.to_vec(), ..Default::default() };
    let topic = CreatableTopic {
        name: name.into(),
        num_partitions: -1,
        replication_factor: -1,
        assignments: vec![assignment],
        ..Default::default()
    };
    CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() }
}

#[test]
fn a_broker_that_fell_silent_is_fenced_though_requests_never_end() {
    const REQUESTS: usize = 300;
    let mut rig = Rig::new();
    rig.register();
    rig.pass(SESSION - SECOND);
    let handle = rig.handle.clone();
    rig.runtime.block_on(async {
        for index in 0..REQUESTS {
            let handle = handle.clone();
            tokio::spawn(async move { handle.ask(7, create(&format!("t{index}"), &[1])).await });
            // Lets it send its request.
            tokio::task::yield_now().await;
        }
    });
    rig.pass(3 * SECOND);
    let seen = rig.seen.0.lock().unwrap().clone();
    let topics = seen.iter().find(|(fenced, topics)| *fenced && *topics > 0).map(|(_, topics)| *topics);
    assert!(topics.is_some_and(|topics| topics < REQUESTS), "fenced once there were {topics:?} topics: {seen:?}");
}

#[test]
fn a_broker_that_stops_waits_until_the_others_have_taken_over() {
    let mut rig = Rig::new();
    let epoch = rig.register();
    assert_eq!(rig.ask(7, create("t", &[2, 1])).topics[0].error_code, 0);
    rig.loaded();
    assert!(!rig.heartbeat(epoch, true), "its leadership moves away first");
    rig.pass(HEARTBEAT);
    assert!(!rig.heartbeat(epoch, true), "the new leader knows of it, and does not lead yet");
    rig.loaded();
    rig.pass(HEARTBEAT);
    assert!(rig.heartbeat(epoch, true));
}
