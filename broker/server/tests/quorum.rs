//! Controllers on sockets of their own: they elect, replicate, catch up, and change who votes.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::{Duration, Instant};

use gregor_channel::Security;
use gregor_messages::{AddRaftVoterRequest, DescribeClusterRequest, RemoveRaftVoterRequest, add_raft_voter_request};
use gregor_metadata::{ConfigResource, ResourceType};
use gregor_server::{
    Node,
    control::{self, BrokerState},
};
use gregor_types::{BrokerId, ErrorCode};
use support::controllers::{
    CLUSTER, Cluster, DEADLINE, OTHER_KEY, PORT, alteration, copy_folder, directory_id, holds, shown, until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_controllers_elect_one_and_have_the_same_log() {
    for is_static in [true, false] {
        // So long that no follower loses sight of its leader on a busy machine.
        let mut cluster = Cluster::new(3, 0, is_static).with("controller.quorum.fetch.timeout.ms", "30000");
        cluster.start_all().await;
        cluster.commit(1_001).await;
        cluster.all_see(1_001).await;
        let (leader, epoch) = cluster.leader().await;
        let described = cluster.describe(leader).await;
        assert_eq!((described.leader_id, described.leader_epoch), (leader, epoch.value()));
        assert_eq!(described.current_voters.len(), 3);
        until("every controller to be registered", || {
            let knows_all = |node: &Node| {
                let image = node.control().image();
                (1..=3).all(|id| image.cluster().controller(BrokerId(id)).is_some())
            };
            cluster.running().all(knows_all)
        })
        .await;
        for id in 1..=3 {
            let request = DescribeClusterRequest { endpoint_type: 2, ..Default::default() };
            let described = cluster.channel(id).call(&request).await.unwrap();
            let nodes: Vec<_> = described.brokers.iter().map(|node| node.host.as_str().to_owned()).collect();
            assert_eq!(described.controller_id, leader, "each says whom to ask");
            assert_eq!(nodes, (1..=3).map(|id| cluster.host(id)).collect::<Vec<_>>());
        }
        cluster.stop_all().await;
        let logs: Vec<_> = (1..=3).map(|id| cluster.log(id)).collect();
        let common = logs.iter().map(Vec::len).min().unwrap();
        assert!(common > 0 && logs.iter().all(|log| log[..common] == logs[0][..common]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_one_leads_when_the_leader_stops_and_who_was_away_catches_up() {
    let mut cluster = Cluster::new(3, 0, false);
    cluster.start_all().await;
    cluster.commit(1_001).await;
    let (first, epoch) = cluster.leader().await;
    cluster.stop(first).await;
    let (second, later) = cluster.leader().await;
    assert!(second != first && later > epoch);
    cluster.commit(1_002).await;
    cluster.all_see(1_002).await;
    cluster.start(first).await;
    cluster.sees(first, 1_002).await;
    cluster.commit(1_003).await;
    cluster.all_see(1_003).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_for_long_takes_the_leaders_snapshot() {
    let mut cluster = Cluster::new(3, 0, false)
        .with("metadata.log.max.record.bytes.between.snapshots", "500")
        .with("metadata.max.retention.bytes", "100")
        .with("controller.quorum.fetch.snapshot.max.bytes", "64");
    cluster.start_all().await;
    cluster.commit(1_000).await;
    cluster.all_see(1_000).await;
    let (leader, _) = cluster.leader().await;
    let away = if leader == 3 { 1 } else { 3 };
    cluster.stop(away).await;
    let before = cluster.log(away).len();
    for value in 1_001..1_060 {
        cluster.commit(value).await;
    }
    let (leader, _) = cluster.leader().await;
    let partition = cluster.directory(leader).join("__cluster_metadata-0");
    until("the leader's log to begin behind what the other has", || {
        let names = std::fs::read_dir(&partition).unwrap().map(|entry| entry.unwrap().file_name());
        let offsets = names.filter_map(|name| {
            let name = name.to_str()?;
            name.ends_with(".checkpoint").then(|| name[..20].parse::<i64>().unwrap())
        });
        offsets.min().is_some_and(|offset| offset > 30)
    })
    .await;
    cluster.start(away).await;
    cluster.sees(away, 1_059).await;
    cluster.commit(1_060).await;
    cluster.all_see(1_060).await;
    cluster.stop_all().await;
    let partition = cluster.directory(away).join("__cluster_metadata-0");
    assert!(before > 0 && !partition.join("00000000000000000000.log").exists(), "its log began anew behind a snapshot");
    // What it took is what it starts from.
    cluster.start_all().await;
    cluster.all_see(1_060).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_lonely_leader_had_is_cut_off_and_never_shown() {
    // So long that the leader stays one while nobody follows.
    let mut cluster = Cluster::new(3, 0, false).with("controller.quorum.fetch.timeout.ms", "30000");
    cluster.start_all().await;
    cluster.commit(1_001).await;
    cluster.all_see(1_001).await;
    let (leader, _) = cluster.leader().await;
    let others: Vec<_> = (1..=3).filter(|id| *id != leader).collect();
    for other in &others {
        cluster.stop(*other).await;
    }
    let before = cluster.log(leader).len();
    let control = cluster.node(leader).control().clone();
    let undecided = tokio::spawn(async move { control.ask(1, alteration(OTHER_KEY, 1_002)).await });
    until("the leader to append it", || holds(&cluster.log(leader)[before..], "1002")).await;
    cluster.stop(leader).await;
    let answer = undecided.await.unwrap();
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.responses[0].error_code != 0), "it is not committed");
    cluster.properties.push(("controller.quorum.fetch.timeout.ms", "600"));
    for other in &others {
        cluster.start(*other).await;
    }
    cluster.commit(1_003).await;
    cluster.start(leader).await;
    cluster.sees(leader, 1_003).await;
    let image = cluster.node(leader).control().image();
    assert_eq!(image.configs().get(&ConfigResource::new(ResourceType::Broker, ""), OTHER_KEY), None);
    cluster.stop_all().await;
    let (cut, kept) = (cluster.log(leader), cluster.log(others[0]));
    let common = cut.len().min(kept.len());
    assert!(common > before && cut[..common] == kept[..common]);
    assert!(!holds(&cut, "1002"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_follows_becomes_a_voter_and_is_one_no_more() {
    // So long that no follower loses sight of its leader on a busy machine.
    let mut cluster = Cluster::new(3, 1, false).with("controller.quorum.fetch.timeout.ms", "30000");
    cluster.start_all().await;
    cluster.commit(1_001).await;
    cluster.sees(4, 1_001).await;
    let (leader, _) = cluster.leader().await;
    assert!(cluster.describe(leader).await.observers.iter().any(|observer| observer.replica_id == 4));
    let endpoint = add_raft_voter_request::Listener {
        name: "CONTROLLER".into(),
        host: cluster.host(4).as_str().into(),
        port: PORT,
        ..Default::default()
    };
    let add = AddRaftVoterRequest {
        cluster_id: Some(CLUSTER.into()),
        timeout_ms: 20_000,
        voter_id: 4,
        voter_directory_id: directory_id(4),
        listeners: vec![endpoint],
        ..Default::default()
    };
    let answer = cluster.channel(leader).call(&add).await.unwrap();
    assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::None, "{:?}", answer.error_message);
    assert_eq!(cluster.describe(leader).await.current_voters.len(), 4);
    let answer = cluster.channel(leader).call(&add).await.unwrap();
    assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::DuplicateVoter);
    cluster.commit(1_002).await;
    cluster.all_see(1_002).await;
    let (leader, _) = cluster.leader().await;
    let remove = RemoveRaftVoterRequest {
        voter_id: 4,
        voter_directory_id: directory_id(4),
        ..RemoveRaftVoterRequest::default()
    };
    let remove = RemoveRaftVoterRequest { cluster_id: Some(CLUSTER.into()), ..remove };
    let answer = cluster.channel(leader).call(&remove).await.unwrap();
    assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::None, "{:?}", answer.error_message);
    cluster.commit(1_003).await;
    cluster.all_see(1_003).await;
    let (leader, _) = cluster.leader().await;
    assert_eq!(cluster.describe(leader).await.current_voters.len(), 3);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_may_join_makes_itself_a_voter() {
    let mut cluster = Cluster::new(3, 1, false).with("controller.quorum.auto.join.enable", "true");
    cluster.start_all().await;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let (leader, _) = cluster.leader().await;
        if cluster.describe(leader).await.current_voters.iter().any(|voter| voter.replica_id == 4) {
            break;
        }
        assert!(Instant::now() < deadline, "it does not vote in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.commit(1_001).await;
    cluster.all_see(1_001).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_a_controller_reads_the_metadata_of_voters_it_was_told_of() {
    for is_static in [true, false] {
        let mut cluster = Cluster::new(3, 1, is_static);
        for id in 1..=3 {
            cluster.start(id).await;
        }
        cluster.commit(1_001).await;
        cluster.properties.extend([("process.roles", "broker"), ("listeners", "PLAINTEXT://127.0.0.1:9092")]);
        let (control, mut thread) = control::start(cluster.observer(4), Security::Plaintext).unwrap();
        until("the broker to see it", || shown(&control).as_deref() == Some("1001")).await;
        assert!(control.quorum_leader().borrow().endpoint.is_some(), "it knows where the active controller is");
        cluster.commit(1_002).await;
        until("the broker to see the next", || shown(&control).as_deref() == Some("1002")).await;
        control.stop().await.unwrap();
        thread.ended().await.unwrap();
        cluster.stop_all().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_registers_with_a_controller_of_another_node_and_keeps_to_whoever_leads() {
    let mut cluster = Cluster::new(3, 1, false);
    for id in 1..=3 {
        cluster.start(id).await;
    }
    cluster.properties.extend([("process.roles", "broker"), ("listeners", "PLAINTEXT://127.0.0.1:9092")]);
    let (broker, mut thread) = control::start(cluster.observer(4), Security::Plaintext).unwrap();
    until("the broker's registration", || broker.image().cluster().broker(BrokerId(4)).is_some()).await;
    broker.loaded(broker.image().position.last_offset).await.unwrap();
    let state = broker.broker_state();
    until("the broker to be unfenced", || matches!(*state.borrow(), BrokerState::Running(_))).await;
    let epoch = broker.broker_epoch();
    let (leader, _) = cluster.leader().await;
    cluster.stop(leader).await;
    cluster.leader().await;
    // Only the one that leads now can let it go.
    tokio::time::timeout(DEADLINE, broker.shut_down_broker()).await.expect("it may not go").unwrap();
    assert_eq!(broker.broker_epoch(), epoch, "it was one registration all along");
    broker.stop().await.unwrap();
    thread.ended().await.unwrap();
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_is_there_after_all_were_killed() {
    let mut cluster = Cluster::new(3, 0, true);
    cluster.start_all().await;
    for value in 1_001..1_020 {
        cluster.commit(value).await;
    }
    // Copies of the files as they are now are what a kill leaves.
    let copies = tempfile::tempdir().unwrap();
    copy_folder(cluster.folder.path(), copies.path());
    cluster.stop_all().await;
    cluster.folder = copies;
    cluster.start_all().await;
    cluster.all_see(1_019).await;
    cluster.commit(1_020).await;
    cluster.all_see(1_020).await;
    cluster.stop_all().await;
}
