//! Feature levels that are raised while a cluster runs, by what tools send to any node.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::{Duration, Instant};

use gregor_channel::Channel;
use gregor_messages::{
    ApiVersionsRequest, CreateTopicsRequest, IncrementalAlterConfigsRequest, UpdateFeaturesRequest,
    UpdateFeaturesResponse,
    create_topics_request::CreatableTopic,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
    update_features_request::FeatureUpdateKey,
};
use gregor_metadata::ConfigResource;
use gregor_types::{BrokerId, ErrorCode, PartitionIndex};
use support::controllers::{Cluster, DEADLINE, directory_id, until};

const ELIGIBLE: &str = "eligible.leader.replicas.version";
const MIN_IN_SYNC: &str = "min.insync.replicas";
const UPGRADE: i8 = 1;
const SAFE_DOWNGRADE: i8 = 2;

async fn update(channel: &Channel, feature: &str, level: i16, upgrade_type: i8) -> UpdateFeaturesResponse {
    let update =
        FeatureUpdateKey { feature: feature.into(), max_version_level: level, upgrade_type, ..Default::default() };
    let request = UpdateFeaturesRequest { feature_updates: vec![update], ..Default::default() };
    channel.call(&request).await.unwrap()
}

/// The finalized level as a node tells it to `kafka-features describe`.
async fn finalized(channel: &Channel, feature: &str) -> Option<i16> {
    let request = ApiVersionsRequest {
        client_software_name: "test".into(),
        client_software_version: "1".into(),
        ..Default::default()
    };
    let answer = channel.call(&request).await.unwrap();
    let found = answer.finalized_features.iter().find(|key| key.name == feature);
    found.map(|key| key.max_version_level)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_quorum_becomes_a_dynamic_one_and_stays_one() {
    let mut cluster = Cluster::new(3, 0, true);
    cluster.start_all().await;
    cluster.commit(1_001).await;
    cluster.all_see(1_001).await;
    let deadline = Instant::now() + DEADLINE;
    // Refused until every voter has told the leader which directory it votes with, or by who does not lead any more.
    loop {
        let (leader, _) = cluster.leader().await;
        let answer = update(&cluster.channel(leader), "kraft.version", 1, UPGRADE).await;
        match ErrorCode::from(answer.error_code) {
            ErrorCode::None => break,
            ErrorCode::InvalidUpdateVersion | ErrorCode::NotController => {}
            error => panic!("{error}: {:?}", answer.error_message),
        }
        assert!(Instant::now() < deadline, "not in time: {:?}", answer.error_message);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.commit(1_002).await;
    cluster.all_see(1_002).await;
    for id in 1..=3 {
        assert_eq!(finalized(&cluster.channel(id), "kraft.version").await, Some(1), "node {id}");
    }
    let (leader, _) = cluster.leader().await;
    let mut voters: Vec<_> =
        cluster.describe(leader).await.current_voters.iter().map(|voter| voter.replica_directory_id).collect();
    voters.sort_unstable();
    assert_eq!(voters, [directory_id(1), directory_id(2), directory_id(3)]);
    let again = update(&cluster.channel(leader), "kraft.version", 1, UPGRADE).await;
    assert_eq!(again.error_code, 0, "{:?}", again.error_message);
    let back = update(&cluster.channel(leader), "kraft.version", 0, SAFE_DOWNGRADE).await;
    assert_eq!(ErrorCode::from(back.error_code), ErrorCode::InvalidUpdateVersion);
    let other = (1..=3).find(|id| *id != leader).unwrap();
    let elsewhere = update(&cluster.channel(other), "kraft.version", 1, UPGRADE).await;
    assert_eq!(ErrorCode::from(elsewhere.error_code), ErrorCode::NotController);
    // What was written is what counts at the next start, whatever controller.quorum.voters says.
    cluster.stop_all().await;
    cluster.start_all().await;
    cluster.commit(1_003).await;
    cluster.all_see(1_003).await;
    let (leader, _) = cluster.leader().await;
    assert_eq!(cluster.describe(leader).await.current_voters.len(), 3);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_register_anew_when_a_level_holds_more_of_them() {
    // 3.6-IV2 knows of no directories and of no controllers.
    let mut cluster = Cluster::at_level(14, 3, 0, true).with("broker.session.timeout.ms", "3000");
    cluster.combined = true;
    cluster.start_together().await;
    let topic = CreatableTopic { name: "t".into(), num_partitions: 1, replication_factor: 3, ..Default::default() };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 20_000, ..Default::default() };
    let created = cluster.client(1).call(&request).await.unwrap();
    assert_eq!(created.topics[0].error_code, 0, "{:?}", created.topics[0].error_message);
    let image = cluster.node(1).control().image();
    assert!(image.cluster().brokers().all(|broker| broker.directories.is_empty()));
    assert_eq!(image.cluster().controllers().count(), 0);
    // Two of three brokers are not the controller, and forward it.
    let answer = update(&cluster.client(2), "metadata.version", 30, UPGRADE).await;
    assert_eq!(answer.error_code, 0, "{:?}", answer.error_message);
    for id in 1..=3 {
        until("every node to have said what the level holds", || {
            let image = cluster.node(id).control().image();
            let brokers = image.cluster();
            (1..=3).all(|one| {
                let broker = brokers.broker(BrokerId(one));
                broker.is_some_and(|broker| broker.directories == [directory_id(one)] && !broker.fenced)
                    && brokers.controller(BrokerId(one)).is_some()
            })
        })
        .await;
        assert_eq!(finalized(&cluster.client(id), "metadata.version").await, Some(30), "node {id}");
        assert_eq!(finalized(&cluster.client(id), ELIGIBLE).await, None, "nobody asked for them");
    }
    until("the replicas to have been found in their directories", || {
        let image = cluster.node(1).control().image();
        let partition = image.topics().by_name("t").unwrap().partition(PartitionIndex(0)).unwrap().clone();
        (1..=3).all(|id| partition.directory_of(BrokerId(id)) == Some(directory_id(id)))
    })
    .await;
    cluster.abandon();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eligible_leader_replicas_are_kept_once_asked_for_and_one_number_is_in_force_for_all_brokers() {
    // 4.0 serves them, and clusters do not begin with them.
    let mut cluster =
        Cluster::at_level(25, 3, 0, false).with(MIN_IN_SYNC, "2").with("broker.session.timeout.ms", "3000");
    cluster.combined = true;
    cluster.start_together().await;
    assert_eq!(finalized(&cluster.client(1), ELIGIBLE).await, None);
    // Two of three brokers are not the controller, and forward it.
    let answer = update(&cluster.client(2), ELIGIBLE, 1, UPGRADE).await;
    assert_eq!(answer.error_code, 0, "{:?}", answer.error_message);
    for id in 1..=3 {
        until("every node to have heard of it", || {
            let image = cluster.node(id).control().image();
            let number = image.configs().get(&ConfigResource::all_brokers(), MIN_IN_SYNC);
            image.features().has_eligible_leader_replicas() && number.is_some_and(|number| number == "2")
        })
        .await;
        assert_eq!(finalized(&cluster.client(id), ELIGIBLE).await, Some(1), "node {id}");
    }
    let config = AlterableConfig { name: MIN_IN_SYNC.into(), value: Some("1".into()), ..Default::default() };
    let resource = AlterConfigsResource {
        resource_type: 4,
        resource_name: "3".into(),
        configs: vec![config],
        ..Default::default()
    };
    let request = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
    let refused = cluster.client(3).call(&request).await.unwrap();
    let refused = &refused.responses[0];
    assert_eq!(ErrorCode::from(refused.error_code), ErrorCode::InvalidConfig, "{:?}", refused.error_message);
    let answer = update(&cluster.client(3), ELIGIBLE, 0, SAFE_DOWNGRADE).await;
    assert_eq!(answer.error_code, 0, "{:?}", answer.error_message);
    let allowed = cluster.client(3).call(&request).await.unwrap();
    assert_eq!(allowed.responses[0].error_code, 0, "{:?}", allowed.responses[0].error_message);
    cluster.abandon();
}
