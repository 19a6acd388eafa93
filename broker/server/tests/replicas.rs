//! Brokers that replicate to each other over real sockets: what clients of each of them are told, and what becomes of replicas
//! that come, go and stay behind.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{
    net::ToSocketAddrs,
    time::{Duration, Instant},
};

use gregor_messages::{
    AlterPartitionReassignmentsRequest, CreateTopicsRequest, DeleteRecordsRequest, DeleteTopicsRequest,
    FindCoordinatorRequest, IncrementalAlterConfigsRequest, MetadataRequest, OffsetCommitRequest, OffsetFetchRequest,
    alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic},
    create_topics_request::{CreatableReplicaAssignment, CreatableTopic},
    delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
    fetch_response::PartitionData,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
    offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
    offset_fetch_request::OffsetFetchRequestTopic,
};
use gregor_types::{BrokerId, ErrorCode, PartitionIndex, TopicId};
use support::{
    Client, DEADLINE, batch,
    certificates::Authority,
    controllers::{BROKER_PORT, Cluster, PORT, copy_folder, until},
    error, fetch_request, http, produce_request,
};

const SELECTOR: &str = "org.apache.kafka.common.replica.RackAwareReplicaSelector";

/// Three brokers that are voters too.
struct Brokers(Cluster);

/// A partition as the metadata has it.
#[derive(Debug, Clone, PartialEq)]
struct State {
    topic_id: TopicId,
    leader: i32,
    leader_epoch: i32,
    replicas: Vec<i32>,
    isr: Vec<i32>,
}

impl Brokers {
    async fn start(configure: impl FnOnce(Cluster) -> Cluster) -> Self {
        let cluster = Cluster::new(3, 0, false)
            .with("broker.session.timeout.ms", "3000")
            .with("broker.heartbeat.interval.ms", "300");
        let mut cluster = configure(cluster);
        cluster.combined = true;
        cluster.start_together().await;
        Self(cluster)
    }

    /// Talks to a broker, on a thread that may wait.
    async fn at<T: Send + 'static>(&self, id: i32, story: impl FnOnce(&mut Client) -> T + Send + 'static) -> T {
        let address = (self.0.host(id), BROKER_PORT).to_socket_addrs().unwrap().next().unwrap();
        tokio::task::spawn_blocking(move || story(&mut Client::connect(address))).await.unwrap()
    }

    /// Makes a topic whose partitions are on these brokers, the first of which leads.
    async fn create(&self, topic: &str, partitions: i32, replicas: &[i32]) {
        let assignment = |index| CreatableReplicaAssignment {
            partition_index: index,
            broker_ids: replicas.to_vec(),
            ..Default::default()
        };
        let topic = CreatableTopic {
            name: topic.into(),
            num_partitions: -1,
            replication_factor: -1,
            assignments: (0..partitions).map(assignment).collect(),
            ..Default::default()
        };
        let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 20_000, ..Default::default() };
        let answer = self.at(replicas[0], move |client| client.call(7, &request)).await;
        assert_eq!(error(answer.topics[0].error_code), ErrorCode::None, "{:?}", answer.topics[0].error_message);
    }

    /// Has the only partition of a topic live on other brokers, and waits until it does.
    async fn reassign(&self, topic: &'static str, replicas: &'static [i32]) -> State {
        self.begin_to_reassign(topic, replicas).await;
        self.until(topic, |state| state.replicas == replicas && state.isr.len() == replicas.len()).await
    }

    async fn begin_to_reassign(&self, topic: &'static str, replicas: &'static [i32]) {
        let partition = ReassignablePartition { replicas: Some(replicas.to_vec()), ..Default::default() };
        let topics = vec![ReassignableTopic { name: topic.into(), partitions: vec![partition], ..Default::default() }];
        let request = AlterPartitionReassignmentsRequest { timeout_ms: 20_000, topics, ..Default::default() };
        let answer = self.at(1, move |client| client.call(0, &request)).await;
        assert_eq!(error(answer.error_code), ErrorCode::None, "{:?}", answer.error_message);
        assert_eq!(error(answer.responses[0].partitions[0].error_code), ErrorCode::None);
    }

    /// Sets values of a topic, or of all brokers where `topic` is empty.
    async fn set(&self, topic: &'static str, values: &'static [(&'static str, &'static str)]) {
        let config = |(name, value): &(&'static str, &'static str)| AlterableConfig {
            name: (*name).into(),
            value: Some((*value).into()),
            ..Default::default()
        };
        let resource = AlterConfigsResource {
            resource_type: if topic.is_empty() { 4 } else { 2 },
            resource_name: topic.into(),
            configs: values.iter().map(config).collect(),
            ..Default::default()
        };
        let request = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
        let answer = self.at(1, move |client| client.call(1, &request)).await;
        let altered = &answer.responses[0];
        assert_eq!(error(altered.error_code), ErrorCode::None, "{:?}", altered.error_message);
    }

    /// Waits until the first partition of a topic is so.
    async fn until(&self, topic: &str, is_so: impl Fn(&State) -> bool) -> State {
        let mut found = None;
        until(&format!("a state of {topic}"), || {
            found = self.state(topic).filter(|state| is_so(state));
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    fn state(&self, topic: &str) -> Option<State> {
        let image = self.0.running().next()?.control().image();
        let topic = image.topics().by_name(topic)?;
        let partition = topic.partition(PartitionIndex(0))?;
        Some(State {
            topic_id: topic.id,
            leader: partition.leader.map_or(-1, BrokerId::value),
            leader_epoch: partition.leader_epoch.value(),
            replicas: partition.replicas.iter().map(|id| id.value()).collect(),
            isr: partition.isr.iter().map(|id| id.value()).collect(),
        })
    }

    /// What lies in a broker's log directory.
    fn folders(&self, id: i32) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.directory(id)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// A figure of a broker's metrics.
    async fn metric(&self, id: i32, name: &'static str) -> u64 {
        let health = self.0.node(id).health_address().unwrap();
        let page = tokio::task::spawn_blocking(move || http(health, "/metrics")).await.unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in:\n{page}")).parse().unwrap()
    }
}

/// Produces with acks=all as soon as the partition can take it; returns the record's offset.
fn produce(client: &mut Client, topic: &str, value: &str) -> i64 {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer = client.produce(topic, 0, batch(&[value]));
        match error(answer.error_code) {
            ErrorCode::None => return answer.base_offset,
            ErrorCode::UnknownTopicOrPartition | ErrorCode::NotLeaderOrFollower | ErrorCode::NotEnoughReplicas => {}
            error => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "nobody takes it in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Fetches as a consumer in this rack; waits until there is something, or something to say.
fn fetch(client: &mut Client, topic: &str, offset: i64, rack: &str) -> PartitionData {
    let mut request = fetch_request(topic, &[(0, offset)], 20_000);
    request.rack_id = rack.into();
    client.call(12, &request).responses[0].partitions[0].clone()
}

/// Fetches from the start until there is so much: a follower hears last what is committed.
fn fetch_so_much(client: &mut Client, topic: &str, wanted: usize) -> Vec<u8> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer = fetch(client, topic, 0, "");
        if bytes(&answer).len() >= wanted {
            return bytes(&answer).to_vec();
        }
        assert!(Instant::now() < deadline, "no more is committed there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn bytes(answer: &PartitionData) -> &[u8] {
    answer.records.as_deref().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn consumers_read_from_the_replica_in_their_rack() {
    let brokers = Brokers::start(|cluster| {
        let cluster = cluster.with("replica.selector.class", SELECTOR).with("min.insync.replicas", "3");
        cluster.with_own(1, "broker.rack", "a").with_own(2, "broker.rack", "b").with_own(3, "broker.rack", "c")
    })
    .await;
    brokers.create("t", 1, &[1, 2, 3]).await;
    assert_eq!(brokers.at(1, |client| produce(client, "t", "one")).await, 0);
    let at_leader = brokers.at(1, |client| fetch(client, "t", 0, "a")).await;
    assert_eq!((error(at_leader.error_code), at_leader.preferred_read_replica), (ErrorCode::None, -1));
    assert!(!bytes(&at_leader).is_empty());
    let sent_away = brokers.at(1, |client| fetch(client, "t", 0, "b")).await;
    assert_eq!((error(sent_away.error_code), sent_away.preferred_read_replica), (ErrorCode::None, 2));
    assert!(bytes(&sent_away).is_empty() && sent_away.high_watermark == 1);
    let of_no_rack = brokers.at(1, |client| fetch(client, "t", 0, "nowhere")).await;
    assert_eq!(bytes(&of_no_rack), bytes(&at_leader), "who has no replica near is served by the leader");
    let at_follower = brokers.at(2, |client| fetch(client, "t", 0, "b")).await;
    assert_eq!((error(at_follower.error_code), at_follower.preferred_read_replica), (ErrorCode::None, -1));
    assert_eq!(bytes(&at_follower), bytes(&at_leader));
    let waits = brokers.at(2, |client| fetch(client, "t", 1, "b"));
    let (more, offset) = tokio::join!(waits, brokers.at(1, |client| produce(client, "t", "two")));
    assert!(!bytes(&more).is_empty() && offset == 1, "it waits at the follower");
    let beyond = brokers.at(2, |client| fetch(client, "t", 9, "b")).await;
    assert_eq!(error(beyond.error_code), ErrorCode::OffsetOutOfRange, "it goes back to the leader");
    let metadata = brokers.at(3, |client| client.call(12, &MetadataRequest::default())).await;
    let mut racks: Vec<_> = metadata.brokers.iter().map(|one| (one.node_id, one.rack.as_deref().unwrap())).collect();
    racks.sort_unstable();
    assert_eq!(racks, [(1, "a"), (2, "b"), (3, "c")]);
    brokers.0.abandon();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_asks_the_wrong_broker_is_told_who_leads_and_where() {
    let brokers = Brokers::start(|cluster| cluster).await;
    brokers.create("t", 1, &[1, 2]).await;
    assert_eq!(brokers.at(1, |client| produce(client, "t", "one")).await, 0);
    let state = brokers.state("t").unwrap();
    let leader = (state.leader, state.leader_epoch);
    let place = (1, brokers.0.host(1), i32::from(BROKER_PORT));
    let told = brokers.at(2, |client| client.call(10, &produce_request("t", 0, -1, batch(&["two"])))).await;
    let answer = &told.responses[0].partition_responses[0];
    assert_eq!(error(answer.error_code), ErrorCode::NotLeaderOrFollower);
    assert_eq!((answer.current_leader.leader_id, answer.current_leader.leader_epoch), leader);
    let endpoints: Vec<_> =
        told.node_endpoints.iter().map(|one| (one.node_id, one.host.to_string(), one.port)).collect();
    assert_eq!(endpoints, std::slice::from_ref(&place));
    // Broker 3 has no replica, and may hear of the topic last.
    let mut request = fetch_request("", &[(0, 0)], 1_000);
    request.topics[0].topic_id = state.topic_id;
    let told = brokers
        .at(3, move |client| {
            let deadline = Instant::now() + DEADLINE;
            loop {
                let told = client.call(16, &request);
                if error(told.responses[0].partitions[0].error_code) != ErrorCode::UnknownTopicId {
                    return told;
                }
                assert!(Instant::now() < deadline, "broker 3 never hears of the topic");
            }
        })
        .await;
    let answer = &told.responses[0].partitions[0];
    assert_eq!(error(answer.error_code), ErrorCode::NotLeaderOrFollower);
    assert_eq!((answer.current_leader.leader_id, answer.current_leader.leader_epoch), leader);
    let endpoints: Vec<_> =
        told.node_endpoints.iter().map(|one| (one.node_id, one.host.to_string(), one.port)).collect();
    assert_eq!(endpoints, [place]);
    brokers.0.abandon();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reassignment_brings_a_whole_replica_and_takes_another_away() {
    let brokers = Brokers::start(|cluster| cluster.with("log.segment.delete.delay.ms", "0")).await;
    brokers.create("t", 1, &[1, 2]).await;
    for (offset, value) in ["one", "two", "three"].into_iter().enumerate() {
        assert_eq!(brokers.at(1, move |client| produce(client, "t", value)).await, offset as i64);
    }
    let before = brokers.at(1, |client| fetch(client, "t", 0, "")).await;
    let before = bytes(&before).to_vec();
    let state = brokers.reassign("t", &[3, 2]).await;
    assert!([2, 3].contains(&state.leader), "{state:?}");
    assert_eq!(brokers.at(state.leader, |client| produce(client, "t", "four")).await, 3);
    for id in [2, 3] {
        let wanted = before.len();
        let after = brokers.at(id, move |client| fetch_so_much(client, "t", wanted)).await;
        assert!(after.starts_with(&before), "broker {id} has every byte");
    }
    until("the replica of broker 1 is gone", || !brokers.folders(1).iter().any(|name| name.starts_with("t-0"))).await;
    assert!(brokers.metric(3, "kafka_server_brokertopicmetrics_reassignmentbytesin_total").await > 0);
    brokers.0.abandon();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_throttled_reassignment_is_overtaken_and_ends_once_it_may() {
    const RECORDS: i64 = 30;
    const BYTES_IN: &str = "kafka_server_brokertopicmetrics_reassignmentbytesin_total";
    // Little more than one record at a time.
    let brokers = Brokers::start(|cluster| cluster.with("replica.fetch.max.bytes", "1024")).await;
    for topic in ["throttled", "free"] {
        brokers.create(topic, 1, &[1]).await;
        let produced = brokers.at(1, move |client| {
            let value = "x".repeat(1_000);
            (0..RECORDS).for_each(|offset| assert_eq!(produce(client, topic, &value), offset));
        });
        produced.await;
    }
    // What has come once is over a byte in a second for as long as it is remembered; so much again takes minutes.
    brokers.set("", &[("leader.replication.throttled.rate", "1"), ("follower.replication.throttled.rate", "1")]).await;
    brokers
        .set(
            "throttled",
            &[("leader.replication.throttled.replicas", "0:1"), ("follower.replication.throttled.replicas", "0:3")],
        )
        .await;
    brokers.begin_to_reassign("throttled", &[1, 3]).await;
    let deadline = Instant::now() + DEADLINE;
    while brokers.metric(3, BYTES_IN).await == 0 {
        assert!(Instant::now() < deadline, "nothing comes at all");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // As much, which began later, and whose replica is fetched from the same broker.
    brokers.reassign("free", &[1, 3]).await;
    let state = brokers.state("throttled").unwrap();
    assert_eq!((state.replicas, state.isr), (vec![1, 3], vec![1]), "it is on its way");
    let came = brokers.metric(3, BYTES_IN).await;
    assert!(came < (RECORDS * 1_000) as u64 * 3 / 2, "{came} bytes are far less than both have");
    brokers
        .set(
            "",
            &[
                ("leader.replication.throttled.rate", "1000000000"),
                ("follower.replication.throttled.rate", "1000000000"),
            ],
        )
        .await;
    brokers.until("throttled", |state| state.isr.len() == 2).await;
    let wanted = RECORDS as usize * 1_000;
    let leaders = brokers.at(1, move |client| fetch_so_much(client, "throttled", wanted)).await;
    let followers = brokers.at(3, move |client| fetch_so_much(client, "throttled", wanted)).await;
    assert_eq!(followers, leaders);
    brokers.0.abandon();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_replica_of_a_topic_that_was_made_anew_meanwhile_is_set_aside() {
    let mut brokers = Brokers::start(|cluster| cluster).await;
    brokers.create("t", 1, &[1, 2]).await;
    assert_eq!(brokers.at(1, |client| produce(client, "t", "of the old topic")).await, 0);
    brokers.0.stop(2).await;
    let request = DeleteTopicsRequest { topic_names: vec!["t".into()], timeout_ms: 20_000, ..Default::default() };
    let deleted = brokers.at(1, move |client| client.call(5, &request)).await;
    assert_eq!(error(deleted.responses[0].error_code), ErrorCode::None);
    // Until its leader has heard of that, what names the topic goes to the old one, as with Kafka.
    until("the old topic is gone from its leader", || !brokers.folders(1).contains(&"t-0".to_owned())).await;
    brokers.create("t", 1, &[1, 3]).await;
    assert_eq!(brokers.at(1, |client| produce(client, "t", "new")).await, 0);
    brokers.0.start(2).await;
    until("the old replica is set aside", || brokers.folders(2).iter().any(|name| name.ends_with("-stray"))).await;
    assert!(!brokers.folders(2).contains(&"t-0".to_owned()));
    let state = brokers.reassign("t", &[1, 2]).await;
    assert_eq!(state.leader, 1);
    let leaders = brokers.at(1, |client| fetch(client, "t", 0, "")).await;
    let followers = brokers.at(2, |client| fetch(client, "t", 0, "")).await;
    assert_eq!(bytes(&followers), bytes(&leaders), "it follows the new one");
    assert!(brokers.folders(2).iter().any(|name| name.ends_with("-stray")));
    brokers.0.abandon();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_topics_records_stay_though_the_log_of_another_of_its_name_began_later() {
    const START: i64 = 15;
    let mut brokers = Brokers::start(|cluster| cluster).await;
    brokers.create("t", 1, &[1, 2]).await;
    for _ in 0..=START {
        brokers.at(1, |client| produce(client, "t", "of the old topic")).await;
    }
    let partitions = vec![DeleteRecordsPartition { offset: START, ..Default::default() }];
    let topics = vec![DeleteRecordsTopic { name: "t".into(), partitions, ..Default::default() }];
    let request = DeleteRecordsRequest { topics, timeout_ms: 20_000, ..Default::default() };
    let deleted = brokers.at(1, move |client| client.call(2, &request)).await;
    assert_eq!(error(deleted.topics[0].partitions[0].error_code), ErrorCode::None);
    brokers.0.stop(2).await;
    let directory = brokers.0.directory(2);
    let starts = std::fs::read_to_string(directory.join("log-start-offset-checkpoint")).unwrap();
    assert!(starts.contains(&format!("t 0 {START}")), "{starts}");
    let request = DeleteTopicsRequest { topic_names: vec!["t".into()], timeout_ms: 20_000, ..Default::default() };
    let deleted = brokers.at(1, move |client| client.call(5, &request)).await;
    assert_eq!(error(deleted.responses[0].error_code), ErrorCode::None);
    brokers.0.start(2).await;
    until("the old replica is set aside", || brokers.folders(2).iter().any(|name| name.ends_with("-stray"))).await;
    brokers.create("t", 1, &[2]).await;
    assert_eq!(brokers.at(2, |client| produce(client, "t", "new")).await, 0);
    let before = brokers.at(2, |client| fetch(client, "t", 0, "")).await;
    // A copy of the files as they are now is what a kill leaves.
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&directory, copy.path());
    brokers.0.stop(2).await;
    std::fs::remove_dir_all(&directory).unwrap();
    std::fs::create_dir(&directory).unwrap();
    copy_folder(copy.path(), &directory);
    brokers.0.start(2).await;
    let after = brokers.at(2, |client| fetch_so_much(client, "t", 1)).await;
    assert_eq!(after, bytes(&before), "what was acknowledged is there");
    brokers.0.abandon();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn brokers_replicate_over_tls_with_certificates_on_both_sides() {
    let brokers = Brokers::start(|cluster| {
        let authority = Authority::new("brokers");
        let trusted = cluster.folder.path().join("authority.pem");
        std::fs::write(&trusted, authority.pem()).unwrap();
        let trusted = trusted.to_str().unwrap().to_owned();
        let mut cluster = cluster
            .with("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,REPLICATION:SSL,CONTROLLER:PLAINTEXT")
            .with("inter.broker.listener.name", "REPLICATION")
            .with("min.insync.replicas", "3")
            .with("listener.name.replication.ssl.client.auth", "required")
            .with("listener.name.replication.ssl.keystore.type", "PEM")
            .with("listener.name.replication.ssl.truststore.type", "PEM");
        for id in 1..=3 {
            let host = cluster.host(id);
            let store = cluster.folder.path().join(format!("broker-{id}.pem"));
            let identity = authority.sign_for(&format!("broker-{id}"), vec![host.clone()]);
            std::fs::write(&store, identity.store()).unwrap();
            let secure = BROKER_PORT - 1;
            let listeners =
                format!("PLAINTEXT://{host}:{BROKER_PORT},REPLICATION://{host}:{secure},CONTROLLER://{host}:{PORT}");
            cluster = cluster
                .with_own(id, "listeners", listeners)
                .with_own(id, "listener.name.replication.ssl.keystore.location", store.to_str().unwrap())
                .with_own(id, "listener.name.replication.ssl.truststore.location", trusted.clone());
        }
        cluster
    })
    .await;
    brokers.create("t", 1, &[1, 2, 3]).await;
    assert_eq!(brokers.at(1, |client| produce(client, "t", "one")).await, 0, "all three have it");
    let leaders = brokers.at(1, |client| fetch(client, "t", 0, "")).await;
    for id in [2, 3] {
        let followers = brokers.at(id, |client| fetch(client, "t", 0, "")).await;
        assert_eq!(bytes(&followers), bytes(&leaders));
    }
    brokers.0.abandon();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn followers_look_at_what_changes_however_many_partitions_there_are() {
    const PARTITIONS: i32 = 200;
    const RECORDS: u64 = 20;
    const READS: &str = "gregor_fetch_partition_reads_total";
    let brokers = Brokers::start(|cluster| cluster.with("min.insync.replicas", "3")).await;
    brokers.create("t", PARTITIONS, &[1, 2, 3]).await;
    assert_eq!(brokers.at(1, |client| produce(client, "t", "one")).await, 0);
    // Longer than a follower's request waits: by then each partition has been looked at, and rests.
    let round = Duration::from_millis(700);
    let deadline = Instant::now() + DEADLINE;
    let mut before = brokers.metric(1, READS).await;
    loop {
        tokio::time::sleep(round).await;
        let now = brokers.metric(1, READS).await;
        let resting = now - before <= 10;
        before = now;
        if resting {
            break;
        }
        assert!(Instant::now() < deadline, "idle partitions are looked at for ever");
    }
    for offset in 1..=RECORDS {
        assert_eq!(brokers.at(1, |client| produce(client, "t", "more")).await, offset as i64);
    }
    let reads = brokers.metric(1, READS).await - before;
    assert!(reads < RECORDS * 40, "{reads} for {RECORDS} records of one of {PARTITIONS} partitions");
    brokers.0.abandon();
}

/// The broker that coordinates group `g`, as soon as there is one.
fn coordinator(client: &mut Client) -> i32 {
    let request = FindCoordinatorRequest { key: "g".into(), ..Default::default() };
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer = client.call(3, &request);
        match error(answer.error_code) {
            ErrorCode::None => return answer.node_id,
            ErrorCode::CoordinatorNotAvailable => {}
            error => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "nobody coordinates in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Commits an offset for group `g`, as soon as this broker knows that it coordinates the group.
fn commit(client: &mut Client, offset: i64) {
    let partition = OffsetCommitRequestPartition { committed_offset: offset, ..Default::default() };
    let topic = OffsetCommitRequestTopic { name: "t".into(), partitions: vec![partition], ..Default::default() };
    let request = OffsetCommitRequest {
        group_id: "g".into(),
        generation_id_or_member_epoch: -1,
        topics: vec![topic],
        ..Default::default()
    };
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer = client.call(8, &request);
        match error(answer.topics[0].partitions[0].error_code) {
            ErrorCode::None => return,
            ErrorCode::NotCoordinator | ErrorCode::CoordinatorLoadInProgress | ErrorCode::CoordinatorNotAvailable => {}
            error => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "the coordinator takes no offset in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The committed offset of group `g`, as soon as this broker knows that it coordinates the group.
fn committed(client: &mut Client) -> i64 {
    let topic = OffsetFetchRequestTopic { name: "t".into(), partition_indexes: vec![0], ..Default::default() };
    let request = OffsetFetchRequest { group_id: "g".into(), topics: Some(vec![topic]), ..Default::default() };
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer = client.call(7, &request);
        match error(answer.error_code) {
            ErrorCode::None => return answer.topics[0].partitions[0].committed_offset,
            ErrorCode::NotCoordinator | ErrorCode::CoordinatorLoadInProgress => {}
            error => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "the coordinator is not loaded in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_group_has_its_offsets_at_another_coordinator_when_its_own_stops() {
    let mut brokers = Brokers::start(|cluster| {
        let cluster = cluster.with("offsets.topic.replication.factor", "3").with("offsets.topic.num.partitions", "1");
        cluster.with("min.insync.replicas", "2")
    })
    .await;
    brokers.create("t", 1, &[1, 2, 3]).await;
    assert_eq!(brokers.at(1, |client| produce(client, "t", "one")).await, 0, "all brokers know the topic");
    let first = brokers.at(1, coordinator).await;
    brokers.until("__consumer_offsets", |state| state.isr.len() == 3 && state.leader == first).await;
    for offset in [3, 7] {
        brokers.at(first, move |client| commit(client, offset)).await;
    }
    assert_eq!(brokers.at(first, committed).await, 7);
    brokers.0.stop(first).await;
    let second = brokers.until("__consumer_offsets", |state| state.leader != first && state.leader > 0).await.leader;
    assert_eq!(brokers.at(second, committed).await, 7, "what was acknowledged is there");
    assert_eq!(brokers.at(second, coordinator).await, second, "and it says that it coordinates the group");
    brokers.at(second, |client| commit(client, 9)).await;
    assert_eq!(brokers.at(second, committed).await, 9);
    brokers.0.abandon();
}
