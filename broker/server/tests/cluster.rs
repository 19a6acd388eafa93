//! Brokers that are a cluster: each a voter too, with replicas of the same partition.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{
    net::ToSocketAddrs,
    time::{Duration, Instant},
};

use gregor_messages::{CreateTopicsRequest, create_topics_request::CreatableTopic};
use gregor_types::{BrokerId, ErrorCode, PartitionIndex};
use support::{
    Client, DEADLINE, batch,
    controllers::{BROKER_PORT, Cluster, until},
};

/// Produces to the partition with acks=all, as soon as its leader knows that it leads; returns the record's offset.
fn produce(client: &mut Client, value: &str) -> i64 {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let answer = client.produce("t", 0, batch(&[value]));
        match ErrorCode::from(answer.error_code) {
            ErrorCode::None => return answer.base_offset,
            ErrorCode::UnknownTopicOrPartition | ErrorCode::NotLeaderOrFollower => {}
            error => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "nobody leads in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_record_that_all_replicas_have_is_there_when_its_leader_stops() {
    let mut cluster = Cluster::new(3, 0, false)
        .with("default.replication.factor", "3")
        .with("min.insync.replicas", "2")
        .with("broker.session.timeout.ms", "3000")
        .with("broker.heartbeat.interval.ms", "300");
    cluster.combined = true;
    cluster.start_together().await;
    let address = |id| (cluster.host(id), BROKER_PORT).to_socket_addrs().unwrap().next().unwrap();
    let addresses = [address(1), address(2), address(3)];
    let connect = move |id: BrokerId| Client::connect(addresses[id.value() as usize - 1]);
    let topic = CreatableTopic { name: "t".into(), num_partitions: 1, replication_factor: 3, ..Default::default() };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 20_000, ..Default::default() };
    // Whoever is asked passes it on to the active controller.
    for id in 1..=3 {
        let request = request.clone();
        let answer = tokio::task::spawn_blocking(move || connect(BrokerId(id)).call(7, &request)).await.unwrap();
        let error = answer.topics[0].error_code;
        assert_eq!(error, if id == 1 { 0 } else { 36 }, "{:?}", answer.topics[0].error_message);
    }
    let leader_at = |cluster: &Cluster, id: i32| {
        let image = cluster.node(id).control().image();
        let partition = image.topics().by_name("t")?.partition(PartitionIndex(0))?.clone();
        partition.leader.map(|leader| (leader, partition.isr.len()))
    };
    let mut first = None;
    until("all replicas in sync", || {
        first = leader_at(&cluster, 1).filter(|(_, isr)| *isr == 3).map(|(leader, _)| leader);
        first.is_some()
    })
    .await;
    let first = first.unwrap();
    let produced = tokio::task::spawn_blocking(move || produce(&mut connect(first), "kept")).await.unwrap();
    assert_eq!(produced, 0, "the first record");
    cluster.stop(first.value()).await;
    let asked = (1..=3).find(|id| *id != first.value()).unwrap();
    let mut second = None;
    until("another leader", || {
        second = leader_at(&cluster, asked).map(|(leader, _)| leader).filter(|leader| *leader != first);
        second.is_some()
    })
    .await;
    let second = second.unwrap();
    let end = tokio::task::spawn_blocking(move || produce(&mut connect(second), "more")).await.unwrap();
    assert_eq!(end, 1, "the new leader has the first record");
    // The last of three has no controller that could let it go, and goes by itself.
    cluster.stop_all().await;
}
