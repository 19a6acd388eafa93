//! Eligible leader replicas (KIP-966) among real brokers that go one after another: who left with all that is acknowledged may lead when
//! nobody is in sync, and who died or was behind may not.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{
    net::ToSocketAddrs,
    time::{Duration, Instant},
};

use gregor_messages::{
    CreateTopicsRequest, DescribeTopicPartitionsRequest,
    create_topics_request::{CreatableReplicaAssignment, CreatableTopic},
    describe_topic_partitions_request::TopicRequest,
};
use gregor_types::ErrorCode;
use support::{
    Client, DEADLINE, batch,
    controllers::{BROKER_PORT, Cluster, holds},
    error, only, produce_request,
};

const TOPIC: &str = "t";

/// Four brokers: the first alone is a voter, and the others hold a partition of which two replicas have to be in sync.
struct Brokers(Cluster);

/// The partition as clients are told of it.
#[derive(Debug, PartialEq)]
struct State {
    leader: i32,
    isr: Vec<i32>,
    elr: Vec<i32>,
    last_known: Vec<i32>,
}

fn state(leader: i32, isr: &[i32], elr: &[i32], last_known: &[i32]) -> State {
    State { leader, isr: isr.to_vec(), elr: elr.to_vec(), last_known: last_known.to_vec() }
}

impl Brokers {
    async fn start() -> Self {
        let mut cluster = Cluster::new(1, 3, false)
            .with("min.insync.replicas", "2")
            .with("broker.session.timeout.ms", "3000")
            .with("broker.heartbeat.interval.ms", "300");
        cluster.combined = true;
        cluster.start_together().await;
        let brokers = Self(cluster);
        let assignment =
            CreatableReplicaAssignment { partition_index: 0, broker_ids: vec![2, 3, 4], ..Default::default() };
        let topic = CreatableTopic {
            name: TOPIC.into(),
            num_partitions: -1,
            replication_factor: -1,
            assignments: vec![assignment],
            ..Default::default()
        };
        let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 20_000, ..Default::default() };
        let answer = brokers.at(1, move |client| client.call(7, &request)).await;
        assert_eq!(error(answer.topics[0].error_code), ErrorCode::None, "{:?}", answer.topics[0].error_message);
        brokers
    }

    /// Talks to a broker, on a thread that may wait.
    async fn at<T: Send + 'static>(&self, id: i32, story: impl FnOnce(&mut Client) -> T + Send + 'static) -> T {
        let address = (self.0.host(id), BROKER_PORT).to_socket_addrs().unwrap().next().unwrap();
        tokio::task::spawn_blocking(move || story(&mut Client::connect(address))).await.unwrap()
    }

    /// Produces with acks=all as soon as the partition takes it; returns the record's offset.
    async fn produce(&self, leader: i32, value: &'static str) -> i64 {
        let produce = move |client: &mut Client| {
            let deadline = Instant::now() + DEADLINE;
            loop {
                let answer = client.produce(TOPIC, 0, batch(&[value]));
                match error(answer.error_code) {
                    ErrorCode::None => return answer.base_offset,
                    ErrorCode::UnknownTopicOrPartition
                    | ErrorCode::NotLeaderOrFollower
                    | ErrorCode::NotEnoughReplicas => {}
                    error => panic!("{error}"),
                }
                assert!(Instant::now() < deadline, "nobody takes it in time");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        self.at(leader, produce).await
    }

    /// All that is committed, as the leader gives it.
    async fn committed(&self, leader: i32) -> Vec<u8> {
        let fetched = self.at(leader, |client| client.fetch(TOPIC, 0, 0, 10_000)).await;
        assert_eq!(error(fetched.error_code), ErrorCode::None);
        fetched.records.unwrap_or_default().to_vec()
    }

    async fn state(&self) -> Option<State> {
        let topics = vec![TopicRequest { name: TOPIC.into(), ..Default::default() }];
        let request = DescribeTopicPartitionsRequest { topics, response_partition_limit: 10, ..Default::default() };
        let answer = self.at(1, move |client| client.call(0, &request)).await;
        let partition = answer.topics.first()?.partitions.first()?.clone();
        let mut isr = partition.isr_nodes;
        isr.sort_unstable();
        let (elr, last_known) = (partition.eligible_leader_replicas?, partition.last_known_elr?);
        Some(State { leader: partition.leader_id, isr, elr, last_known })
    }

    async fn until(&self, wanted: &State) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let state = self.state().await;
            if state.as_ref() == Some(wanted) {
                return;
            }
            assert!(Instant::now() < deadline, "{wanted:?} is wanted, and it stays {state:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Has them stop as they should, until nobody is in sync.
    async fn stop_one_after_another(&mut self) {
        self.0.stop(4).await;
        self.until(&state(2, &[2, 3], &[], &[])).await;
        assert_eq!(self.produce(2, "two").await, 1, "two are enough");
        self.0.stop(3).await;
        self.until(&state(2, &[2], &[3], &[])).await;
        // What one leader alone has may be lost: nobody is told that it is there.
        let request = produce_request(TOPIC, 0, 1, batch(&["of nobody else"]));
        let answer = only(self.at(2, move |client| client.call(9, &request)).await);
        assert_eq!((error(answer.error_code), answer.base_offset), (ErrorCode::None, 2));
        let fetched = self.at(2, |client| client.fetch(TOPIC, 0, 2, 0)).await;
        assert_eq!((fetched.high_watermark, fetched.records.unwrap_or_default().len()), (2, 0));
        self.0.stop(2).await;
        self.until(&state(-1, &[], &[2, 3], &[2])).await;
    }

    /// Makes it look as if the broker, which does not run, had died.
    fn forget_that_it_stopped(&self, id: i32) {
        std::fs::remove_file(self.0.directory(id).join(".kafka_cleanshutdown")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_acknowledged_survives_the_loss_of_two_replicas_of_three_one_after_another() {
    let mut brokers = Brokers::start().await;
    assert_eq!(brokers.produce(2, "one").await, 0);
    brokers.stop_one_after_another().await;
    // It was not in sync when the second record was acknowledged.
    brokers.0.start(4).await;
    assert_eq!(brokers.state().await, Some(state(-1, &[], &[2, 3], &[2])));
    brokers.0.start(3).await;
    brokers.until(&state(3, &[3, 4], &[], &[])).await;
    assert_eq!(brokers.produce(3, "three").await, 2);
    let there = brokers.committed(3).await;
    assert!(["one", "two", "three"].iter().all(|value| holds(&there, value)));
    assert!(!holds(&there, "of nobody else"));
    brokers.0.start(2).await;
    brokers.until(&state(3, &[2, 3, 4], &[], &[])).await;
    assert_eq!(brokers.produce(3, "four").await, 3, "the former leader has let go of what it alone had");
    brokers.0.abandon();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_died_may_not_lead_and_the_last_leader_does_when_nobody_else_may() {
    let mut brokers = Brokers::start().await;
    assert_eq!(brokers.produce(2, "one").await, 0);
    brokers.stop_one_after_another().await;
    brokers.forget_that_it_stopped(2);
    brokers.forget_that_it_stopped(3);
    brokers.0.start(4).await;
    brokers.0.start(3).await;
    // It may have lost what it had.
    brokers.until(&state(-1, &[], &[2], &[2])).await;
    brokers.0.start(2).await;
    brokers.until(&state(2, &[2, 3, 4], &[], &[])).await;
    assert_eq!(brokers.produce(2, "three").await, 3);
    let there = brokers.committed(2).await;
    assert!(["one", "two", "of nobody else", "three"].iter().all(|value| holds(&there, value)));
    brokers.0.abandon();
}
