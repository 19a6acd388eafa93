//! Controllers on sockets of their own: they elect, replicate, catch up, and change who votes.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/served.rs"]
mod served;
mod support;

use std::time::{Duration, Instant};

use gregor_channel::{Channel, ChannelOptions, Security};
use gregor_messages::{
    AddRaftVoterRequest, DescribeClusterRequest, DescribeQuorumRequest, FetchRequest, RemoveRaftVoterRequest,
    UnregisterControllerRequest, add_raft_voter_request, describe_quorum_request,
    describe_quorum_response::ReplicaState,
    fetch_request::{FetchPartition, FetchTopic},
};
use gregor_metadata::{ConfigResource, ResourceType};
use gregor_server::{Node, control};
use gregor_types::{BrokerId, ErrorCode, Uuid};
use support::controllers::{
    CLUSTER, Cluster, DEADLINE, OTHER_KEY, PORT, alteration, copy_folder, directory_id, holds, shown, until,
};

/// Of another controller listener.
const INSIDE_PORT: u16 = 19_094;

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
async fn a_controller_of_two_listeners_is_found_by_the_first_of_their_names_and_tells_each_who_asks_of_its_own() {
    let mut cluster = Cluster::new(1, 0, false)
        .with("controller.listener.names", "CONTROLLER,INSIDE")
        .with("listener.security.protocol.map", "CONTROLLER:PLAINTEXT,INSIDE:PLAINTEXT");
    let host = cluster.host(1);
    cluster = cluster.with_own(1, "listeners", format!("INSIDE://{host}:{INSIDE_PORT},CONTROLLER://{host}:{PORT}"));
    cluster.start(1).await;
    let (_, epoch) = cluster.leader().await;
    let metadata = describe_quorum_request::TopicData {
        topic_name: "__cluster_metadata".into(),
        partitions: vec![describe_quorum_request::PartitionData::default()],
        ..Default::default()
    };
    let request = DescribeQuorumRequest { topics: vec![metadata], ..Default::default() };
    let described = cluster.channel(1).call(&request).await.unwrap();
    let listeners = described.nodes[0].listeners.iter().map(|listener| (listener.name.as_str(), listener.port));
    assert_eq!(listeners.collect::<Vec<_>>(), [("CONTROLLER", PORT), ("INSIDE", INSIDE_PORT)]);
    for port in [PORT, INSIDE_PORT] {
        let partition =
            FetchPartition { current_leader_epoch: epoch.value() - 1, last_fetched_epoch: 0, ..Default::default() };
        let topic = FetchTopic { topic_id: Uuid::METADATA_TOPIC, partitions: vec![partition], ..Default::default() };
        let request = FetchRequest { topics: vec![topic], ..Default::default() };
        let channel = Channel::new(format!("{host}:{port}"), ChannelOptions::default());
        let answer = channel.call(&request).await.unwrap();
        let error = ErrorCode::from(answer.responses[0].partitions[0].error_code);
        let nodes: Vec<_> = answer.node_endpoints.iter().map(|node| (node.node_id, node.port)).collect();
        assert_eq!((error, nodes), (ErrorCode::FencedLeaderEpoch, vec![(1, i32::from(port))]));
    }
    cluster.stop_all().await;
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
    // Up to the record that is committed. Behind it a leader that lost its followers may have what nobody got: no-ops of its epoch.
    let common = kept.windows(4).position(|bytes| bytes == b"1003").unwrap() + 4;
    assert!(holds(&kept[..common], "1001") && cut.get(..common) == Some(&kept[..common]));
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

/// Asks a node to unregister a controller.
async fn unregister(cluster: &Cluster, at: i32, controller_id: i32) -> ErrorCode {
    let request = UnregisterControllerRequest { controller_id, ..Default::default() };
    ErrorCode::from(cluster.channel(at).call(&request).await.unwrap().error_code)
}

/// How a voter stands, as the leader says.
async fn voter(cluster: &Cluster, leader: i32, id: i32) -> ReplicaState {
    let voters = cluster.describe(leader).await.current_voters;
    voters.into_iter().find(|voter| voter.replica_id == id).expect("it votes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_tells_when_each_voter_fetched_last_and_when_it_had_everything() {
    /// Milliseconds by which a voter that is silent has to fall behind another; each fetches more often.
    const BEHIND: i64 = 1_500;
    // So long that no follower loses sight of its leader on a busy machine.
    let mut cluster = Cluster::new(3, 0, false).with("controller.quorum.fetch.timeout.ms", "30000");
    cluster.start_all().await;
    cluster.commit(1_001).await;
    cluster.all_see(1_001).await;
    let (leader, _) = cluster.leader().await;
    let others: Vec<_> = (1..=3).filter(|id| *id != leader).collect();
    let (silent, active) = (others[0], others[1]);
    let deadline = Instant::now() + DEADLINE;
    for id in [silent, active] {
        while voter(&cluster, leader, id).await.last_caught_up_timestamp <= 0 {
            assert!(Instant::now() < deadline, "voter {id} has caught up, and nobody says so");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    cluster.stop(silent).await;
    let (behind, ahead) = loop {
        let (behind, ahead) = (voter(&cluster, leader, silent).await, voter(&cluster, leader, active).await);
        let fetched = ahead.last_fetch_timestamp - behind.last_fetch_timestamp;
        let caught_up = ahead.last_caught_up_timestamp - behind.last_caught_up_timestamp;
        if fetched >= BEHIND && caught_up >= BEHIND {
            break (behind, ahead);
        }
        assert!(Instant::now() < deadline, "{behind:?} is not behind {ahead:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(behind.log_end_offset < ahead.log_end_offset, "no-op records come all the time");
    assert!(behind.last_caught_up_timestamp <= behind.last_fetch_timestamp + 1, "it cannot have more than it fetched");
    cluster.start(silent).await;
    while voter(&cluster, leader, silent).await.last_caught_up_timestamp <= ahead.last_caught_up_timestamp {
        assert!(Instant::now() < deadline, "it is back, and nobody says so");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_is_gone_is_unregistered_and_one_that_runs_registers_again() {
    // So long that no follower loses sight of its leader on a busy machine.
    let mut cluster = Cluster::at_level(33, 3, 0, false).with("controller.quorum.fetch.timeout.ms", "30000");
    cluster.start_all().await;
    let registered =
        |node: &Node, id: i32| Some(node.control().image().cluster().controller(BrokerId(id))?.incarnation);
    until("every controller to be registered", || {
        cluster.running().all(|node| (1..=3).all(|id| registered(node, id).is_some()))
    })
    .await;
    let (leader, _) = cluster.leader().await;
    let others: Vec<_> = (1..=3).filter(|id| *id != leader).collect();
    let away = others[0];
    assert_eq!(unregister(&cluster, away, others[1]).await, ErrorCode::NotController);
    assert_eq!(unregister(&cluster, leader, leader).await, ErrorCode::InvalidRequest);
    // What was answered is committed: who is registered then has registered since.
    assert_eq!(unregister(&cluster, leader, away).await, ErrorCode::None);
    until("it to register again", || cluster.running().all(|node| registered(node, away).is_some())).await;
    let before = registered(cluster.node(leader), away);
    cluster.stop(away).await;
    assert_eq!(unregister(&cluster, leader, away).await, ErrorCode::None);
    assert_eq!(unregister(&cluster, leader, away).await, ErrorCode::ControllerIdNotRegistered);
    cluster.commit(1_001).await;
    cluster.all_see(1_001).await;
    assert!(cluster.running().all(|node| registered(node, away).is_none()), "it is gone");
    cluster.start(away).await;
    until("it to be registered as another process", || {
        cluster.running().all(|node| registered(node, away).is_some_and(|now| Some(now) != before))
    })
    .await;
    // Who is registered stays so under another leader, and who led registers anew when it is back.
    let before = registered(cluster.node(leader), leader);
    cluster.stop(leader).await;
    cluster.commit(1_002).await;
    assert!(cluster.running().all(|node| (1..=3).all(|id| registered(node, id).is_some())));
    cluster.start(leader).await;
    until("the former leader to be registered as another process", || {
        cluster.running().all(|node| registered(node, leader).is_some_and(|now| Some(now) != before))
    })
    .await;
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
    assert!(tokio::time::timeout(DEADLINE, served::serves(&broker)).await.expect("the broker is not unfenced in time"));
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
