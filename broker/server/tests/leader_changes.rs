//! What clients are told while leadership goes to another broker and comes back: who leads now, and nothing that is less than what they
//! were told before. The other broker is one that nobody runs: it registers, is in sync, and fetches only when the test does.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::Instant;

use gregor_messages::{
    AlterPartitionReassignmentsRequest, BrokerHeartbeatRequest, BrokerRegistrationRequest, CreateTopicsRequest,
    ElectLeadersRequest, FetchRequest, ListOffsetsRequest, ProduceRequest,
    alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic},
    broker_registration_request::{Feature, Listener},
    create_topics_request::{CreatableReplicaAssignment, CreatableTopic},
    elect_leaders_request::TopicPartitions,
    fetch_request::ReplicaState,
    list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    produce_request::{PartitionProduceData, TopicProduceData},
};
use gregor_metadata::SERVED_FEATURES;
use gregor_types::{ErrorCode, TopicId, Uuid};
use support::{Client, DEADLINE, Home, Running, batch, error, fetch_request};

/// The broker that nobody runs, and a port that nobody listens at.
const ABSENT: i32 = 9;
const NOWHERE: u16 = 1;
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
/// Sees all of a log, as no consumer does.
const DEBUGGING: i32 = -2;
const CONSUMER: i32 = -1;

/// A node, and what the absent broker was told when it registered.
struct Stage {
    node: Running,
    absent_epoch: i64,
    topic_id: TopicId,
    _home: Home,
}

impl Stage {
    /// With a topic whose partitions this node leads, each with a replica on the absent broker, which is in sync.
    fn with_topic(partitions: i32) -> Self {
        // The absent broker is heard of once, and followers that do not fetch stay in sync: for longer than a test takes.
        let home = Home::new().with("broker.session.timeout.ms", "600000").with("replica.lag.time.max.ms", "600000");
        let node = home.start();
        let absent_epoch = register_absent(&node);
        let assignment = |index| CreatableReplicaAssignment {
            partition_index: index,
            broker_ids: vec![1, ABSENT],
            ..Default::default()
        };
        let topic = CreatableTopic {
            name: "t".into(),
            num_partitions: -1,
            replication_factor: -1,
            assignments: (0..partitions).map(assignment).collect(),
            ..Default::default()
        };
        let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 20_000, ..Default::default() };
        let created = node.client().call(7, &request).topics.remove(0);
        assert_eq!(error(created.error_code), ErrorCode::None, "{:?}", created.error_message);
        let stage = Self { node, absent_epoch, topic_id: created.topic_id, _home: home };
        for index in 0..partitions {
            stage.until_listed(index, DEBUGGING, 0);
        }
        stage
    }

    /// Produces to the first partitions, one record each, in a version; returns the number to receive the answer by.
    fn send(&self, client: &mut Client, version: i16, acks: i16, partitions: i32) -> i32 {
        let data = |index| PartitionProduceData { index, records: Some(batch(&["value"])), ..Default::default() };
        let mut topic = TopicProduceData { partition_data: (0..partitions).map(data).collect(), ..Default::default() };
        if version >= 13 {
            topic.topic_id = self.topic_id;
        } else {
            topic.name = "t".into();
        }
        let request = ProduceRequest { acks, timeout_ms: 60_000, topic_data: vec![topic], ..Default::default() };
        client.send(version, &request)
    }

    /// A fetch of the first partition by the topic's id.
    fn fetch(&self, offset: i64, max_wait_ms: i32) -> FetchRequest {
        let mut request = fetch_request("", &[(0, offset)], max_wait_ms);
        request.topics[0].topic_id = self.topic_id;
        request
    }

    /// The error and the offset of a place in a partition.
    fn list(&self, version: i16, index: i32, replica_id: i32, timestamp: i64) -> (ErrorCode, i64) {
        let partition =
            ListOffsetsPartition { partition_index: index, timestamp, current_leader_epoch: -1, ..Default::default() };
        let topic = ListOffsetsTopic { name: "t".into(), partitions: vec![partition], ..Default::default() };
        let request = ListOffsetsRequest { replica_id, topics: vec![topic], ..Default::default() };
        let listed = self.node.client().call(version, &request).topics[0].partitions[0].clone();
        (error(listed.error_code), listed.offset)
    }

    /// Waits until a partition ends there.
    fn until_listed(&self, index: i32, replica_id: i32, end: i64) {
        self.until(|stage| stage.list(7, index, replica_id, LATEST) == (ErrorCode::None, end));
    }

    fn until(&self, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "not in time");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// Gives a partition these replicas.
    fn assign(&self, index: i32, replicas: &[i32]) {
        let partition =
            ReassignablePartition { partition_index: index, replicas: Some(replicas.to_vec()), ..Default::default() };
        let topic = ReassignableTopic { name: "t".into(), partitions: vec![partition], ..Default::default() };
        let request =
            AlterPartitionReassignmentsRequest { timeout_ms: 20_000, topics: vec![topic], ..Default::default() };
        let answer = self.node.client().call(0, &request);
        let assigned = &answer.responses[0].partitions[0];
        assert_eq!(error(assigned.error_code), ErrorCode::None, "{:?}", assigned.error_message);
    }

    /// Has the first of these replicas lead the first partition.
    fn elect(&self, replicas: &[i32]) {
        self.assign(0, replicas);
        let partitions = TopicPartitions { topic: "t".into(), partitions: vec![0], ..Default::default() };
        let request = ElectLeadersRequest { topic_partitions: Some(vec![partitions]), ..Default::default() };
        let answer = self.node.client().call(2, &request);
        let elected = &answer.replica_election_results[0].partition_result[0];
        assert_eq!(error(elected.error_code), ErrorCode::None, "{:?}", elected.error_message);
    }
}

/// Registers the absent broker with the node's controller and has it unfenced; returns its epoch.
fn register_absent(node: &Running) -> i64 {
    let listener = Listener { name: "PLAINTEXT".into(), host: "127.0.0.1".into(), port: NOWHERE, ..Default::default() };
    let features = SERVED_FEATURES.map(|feature| Feature {
        name: feature.name.into(),
        min_supported_version: feature.min,
        max_supported_version: feature.max,
        ..Default::default()
    });
    let registration = BrokerRegistrationRequest {
        broker_id: ABSENT,
        cluster_id: "test-cluster".into(),
        incarnation_id: Uuid(0x9999_2222_3333_4444_8555_6666_7777_8888),
        listeners: vec![listener],
        features: features.into(),
        log_dirs: vec![Uuid(0x9999_2222_3333_4444_8555_6666_7777_9999)],
        ..Default::default()
    };
    let mut controller = Client::connect(node.address_of("CONTROLLER"));
    let registered = controller.call(4, &registration);
    assert_eq!(error(registered.error_code), ErrorCode::None);
    let epoch = registered.broker_epoch;
    let heartbeat = BrokerHeartbeatRequest {
        broker_id: ABSENT,
        broker_epoch: epoch,
        current_metadata_offset: epoch,
        ..Default::default()
    };
    let beaten = controller.call(1, &heartbeat);
    assert_eq!((error(beaten.error_code), beaten.is_fenced), (ErrorCode::None, false));
    epoch
}

#[test]
fn who_waits_while_leadership_goes_is_told_who_leads_now_and_where() {
    let stage = Stage::with_topic(2);
    let mut clients: Vec<_> = [9, 12, 13]
        .map(|version| {
            let mut client = stage.node.client();
            let sent = stage.send(&mut client, version, -1, 2);
            (version, client, sent)
        })
        .into();
    // All is appended, and waits for the follower.
    for index in 0..2 {
        stage.until_listed(index, DEBUGGING, 3);
    }
    let mut consumer = stage.node.client();
    let mut fetch = stage.fetch(0, 20_000);
    fetch.topics[0].partitions[0].current_leader_epoch = 0;
    let fetch = consumer.send(16, &fetch);
    // Another leads the one, and the other is not here any more at all.
    stage.elect(&[ABSENT, 1]);
    stage.assign(1, &[ABSENT]);
    for (version, client, sent) in &mut clients {
        let answer = client.receive::<ProduceRequest>(*version, *sent);
        let partitions = &answer.responses[0].partition_responses;
        assert_eq!(partitions.len(), 2);
        for partition in partitions {
            assert_eq!(error(partition.error_code), ErrorCode::NotLeaderOrFollower, "version {version}");
            let leader = &partition.current_leader;
            if *version < 10 {
                assert_eq!(leader.leader_id, -1);
            } else {
                assert!(leader.leader_id == ABSENT && leader.leader_epoch > 0, "version {version}: {leader:?}");
            }
        }
        let places: Vec<_> = answer.node_endpoints.iter().map(|one| (one.node_id, one.port)).collect();
        let wanted = [(ABSENT, i32::from(NOWHERE))];
        assert_eq!(places, wanted[..usize::from(*version >= 10)], "version {version}");
    }
    let answer = consumer.receive::<FetchRequest>(16, fetch);
    let partition = &answer.responses[0].partitions[0];
    assert_eq!(error(partition.error_code), ErrorCode::FencedLeaderEpoch);
    assert_eq!(partition.current_leader.leader_id, ABSENT);
    assert_eq!(answer.node_endpoints.len(), 1);
    // The absent broker would be waited for.
    stage.node.abandon();
}

#[test]
fn a_new_leader_tells_no_end_before_it_knows_one_that_the_last_could_have_told() {
    let stage = Stage::with_topic(1);
    let mut client = stage.node.client();
    for _ in 0..3 {
        let sent = stage.send(&mut client, 12, 1, 1);
        let answer = client.receive::<ProduceRequest>(12, sent);
        assert_eq!(error(answer.responses[0].partition_responses[0].error_code), ErrorCode::None);
    }
    stage.elect(&[ABSENT, 1]);
    stage.elect(&[1, ABSENT]);
    stage.until(|stage| stage.list(7, 0, CONSUMER, LATEST).0 == ErrorCode::OffsetNotAvailable);
    assert_eq!(stage.list(7, 0, CONSUMER, 0).0, ErrorCode::OffsetNotAvailable, "nor who asks by time");
    assert_eq!(stage.list(4, 0, CONSUMER, LATEST).0, ErrorCode::LeaderNotAvailable, "as older clients know it");
    assert_eq!(stage.list(7, 0, CONSUMER, EARLIEST), (ErrorCode::None, 0), "its start is what it was");
    assert_eq!(stage.list(7, 0, DEBUGGING, LATEST), (ErrorCode::None, 3));
    // The follower shows that it has everything: the epoch's start is committed.
    let mut fetch = stage.fetch(3, 0);
    fetch.replica_state = ReplicaState { replica_id: ABSENT, replica_epoch: stage.absent_epoch, ..Default::default() };
    fetch.topics[0].partitions[0].last_fetched_epoch = 0;
    fetch.topics[0].partitions[0].log_start_offset = 0;
    let answer = client.call(16, &fetch);
    assert_eq!(error(answer.responses[0].partitions[0].error_code), ErrorCode::None);
    assert_eq!(stage.list(7, 0, CONSUMER, LATEST), (ErrorCode::None, 3));
    assert_eq!(stage.list(7, 0, CONSUMER, 0), (ErrorCode::None, 0));
    stage.node.abandon();
}
