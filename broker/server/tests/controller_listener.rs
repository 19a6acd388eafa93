//! The controllers' own listener: what it takes is what Kafka's schema says, tools may ask a controller without a broker between (KIP-919), and
//! who does not lead says so in each version, as an envelope says it too.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use gregor_channel::Channel;
use gregor_messages::{
    AllocateProducerIdsRequest, AlterClientQuotasRequest, AlterConfigsRequest, AlterPartitionReassignmentsRequest,
    AlterUserScramCredentialsRequest, ApiKey, ApiVersionsRequest, CreatePartitionsRequest, CreateTopicsRequest,
    DeleteTopicsRequest, DescribeClusterRequest, DescribeConfigsRequest, DescribeQuorumRequest, ElectLeadersRequest,
    ListPartitionReassignmentsRequest, Listener, Request, UnregisterBrokerRequest, UnregisterControllerRequest,
    UpdateFeaturesRequest,
    alter_client_quotas_request::EntryData,
    alter_configs_request,
    alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic},
    alter_user_scram_credentials_request::ScramCredentialDeletion,
    create_partitions_request::CreatePartitionsTopic,
    create_topics_request::CreatableTopic,
    delete_topics_request::DeleteTopicState,
    describe_configs_request::DescribeConfigsResource,
    describe_quorum_request,
    elect_leaders_request::TopicPartitions,
    incremental_alter_configs_request,
    update_features_request::FeatureUpdateKey,
};
use gregor_types::ErrorCode;
use support::{
    Client, Home,
    controllers::{Cluster, DEADLINE, KEY, alteration},
    directories::wait_until,
    envelope::envelope_of,
    error,
};

fn creation(name: &str) -> CreateTopicsRequest {
    let topic = CreatableTopic { name: name.into(), num_partitions: 1, replication_factor: 1, ..Default::default() };
    CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() }
}

/// Version 6 names topics otherwise.
fn deletion(name: &str, version: i16) -> DeleteTopicsRequest {
    let state = DeleteTopicState { name: Some(name.into()), ..Default::default() };
    let (topics, topic_names) = if version >= 6 { (vec![state], Vec::new()) } else { (Vec::new(), vec![name.into()]) };
    DeleteTopicsRequest { topics, topic_names, timeout_ms: 10_000, ..Default::default() }
}

fn growth(name: &str, count: i32) -> CreatePartitionsRequest {
    let topic = CreatePartitionsTopic { name: name.into(), count, assignments: None, ..Default::default() };
    CreatePartitionsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() }
}

fn election(name: &str, partitions: &[i32]) -> ElectLeadersRequest {
    let topic = TopicPartitions { topic: name.into(), partitions: partitions.to_vec(), ..Default::default() };
    ElectLeadersRequest { topic_partitions: Some(vec![topic]), timeout_ms: 10_000, ..Default::default() }
}

fn move_of(name: &str, replicas: Option<&[i32]>) -> AlterPartitionReassignmentsRequest {
    let replicas = replicas.map(<[i32]>::to_vec);
    let partition = ReassignablePartition { partition_index: 0, replicas, ..Default::default() };
    let topic = ReassignableTopic { name: name.into(), partitions: vec![partition], ..Default::default() };
    AlterPartitionReassignmentsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() }
}

/// A controller that does not lead.
struct Standby(Channel);

impl Standby {
    /// Asks in every version, in the open and in an envelope.
    async fn refuses<R: Request>(&self, request: impl Fn(i16) -> R, codes: impl Fn(&R::Response) -> Vec<i16>) {
        for version in R::VERSIONS {
            let answer = self.0.call_with(version..=version, DEADLINE, &request).await;
            let (_, answer) = answer.unwrap_or_else(|error| panic!("{} {version}: {error}", R::KEY));
            let codes: Vec<_> = codes(&answer).into_iter().map(error).collect();
            assert!(!codes.is_empty(), "{} {version}", R::KEY);
            assert!(codes.iter().all(|code| *code == ErrorCode::NotController), "{} {version}: {codes:?}", R::KEY);
            self.refuses_envelope(version, &request(version)).await;
        }
    }

    /// The broker that forwarded has to hear of it, whatever the answer inside could say.
    async fn refuses_envelope<R: Request>(&self, version: i16, request: &R) {
        let answer = self.0.call(&envelope_of(version, request)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{} {version} in an envelope: {error}", R::KEY));
        let answer = (error(answer.error_code), answer.response_data);
        assert_eq!(answer, (ErrorCode::NotController, None), "{} {version} in an envelope", R::KEY);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_lead_says_so_in_each_version_and_at_the_level_of_an_envelope() {
    let mut cluster = Cluster::new(3, 0, false).with("controller.quorum.fetch.timeout.ms", "30000");
    cluster.start_all().await;
    let (leader, _) = cluster.leader().await;
    let standby = Standby(cluster.channel(1 + leader % 3));
    standby.refuses(|_| creation("t"), |answer| answer.topics.iter().map(|one| one.error_code).collect()).await;
    standby
        .refuses(|version| deletion("t", version), |answer| answer.responses.iter().map(|one| one.error_code).collect())
        .await;
    standby.refuses(|_| growth("t", 2), |answer| answer.results.iter().map(|one| one.error_code).collect()).await;
    standby
        .refuses(
            |_| election("t", &[0, 1]),
            |answer| {
                let results = answer.replica_election_results.iter().flat_map(|topic| &topic.partition_result);
                results.map(|one| one.error_code).collect()
            },
        )
        .await;
    // Nothing is named that version 0 could say it of.
    let everything = ElectLeadersRequest { topic_partitions: None, ..Default::default() };
    standby.refuses_envelope(0, &everything).await;
    standby.refuses(|_| alteration(KEY, 1), |answer| answer.responses.iter().map(|one| one.error_code).collect()).await;
    let resource = || alter_configs_request::AlterConfigsResource { resource_type: 4, ..Default::default() };
    standby
        .refuses(
            |_| AlterConfigsRequest { resources: vec![resource()], ..Default::default() },
            |answer| answer.responses.iter().map(|one| one.error_code).collect(),
        )
        .await;
    standby
        .refuses(
            |_| AlterClientQuotasRequest { entries: vec![EntryData::default()], ..Default::default() },
            |answer| answer.entries.iter().map(|one| one.error_code).collect(),
        )
        .await;
    let gone = || ScramCredentialDeletion { name: "u".into(), mechanism: 1, ..Default::default() };
    standby
        .refuses(
            |_| AlterUserScramCredentialsRequest { deletions: vec![gone()], ..Default::default() },
            |answer| answer.results.iter().map(|one| one.error_code).collect(),
        )
        .await;
    standby.refuses(|_| move_of("t", None), |answer| vec![answer.error_code]).await;
    standby.refuses(|_| ListPartitionReassignmentsRequest::default(), |answer| vec![answer.error_code]).await;
    standby.refuses(|_| UpdateFeaturesRequest::default(), |answer| vec![answer.error_code]).await;
    standby.refuses(|_| UnregisterBrokerRequest::default(), |answer| vec![answer.error_code]).await;
    standby.refuses(|_| UnregisterControllerRequest::default(), |answer| vec![answer.error_code]).await;
    standby.refuses(|_| AllocateProducerIdsRequest::default(), |answer| vec![answer.error_code]).await;
    cluster.stop_all().await;
}

/// APIs with their versions, as a node says what it serves.
fn advertised(client: &mut Client) -> Vec<(i16, i16, i16)> {
    let request = ApiVersionsRequest {
        client_software_name: "test".into(),
        client_software_version: "1".into(),
        ..Default::default()
    };
    let answer = client.call(4, &request);
    assert_eq!(error(answer.error_code), ErrorCode::None);
    answer.api_keys.iter().map(|api| (api.api_key, api.min_version, api.max_version)).collect()
}

#[test]
fn a_controllers_listener_advertises_what_kafkas_schema_has_for_it_and_closes_on_all_else() {
    let home = Home::new();
    let node = home.start();
    let address = node.address_of("CONTROLLER");
    let (served, others): (Vec<ApiKey>, Vec<_>) =
        ApiKey::ALL.iter().copied().partition(|key: &ApiKey| key.is_served_on(Listener::Controller));
    let expected: Vec<_> =
        served.iter().map(|key| (key.code(), *key.stable_versions().start(), *key.stable_versions().end())).collect();
    assert_eq!(advertised(&mut Client::connect(address)), expected);
    for key in &others {
        let mut client = Client::connect(address);
        let version = *key.versions().end();
        let header = [&key.code().to_be_bytes()[..], &version.to_be_bytes(), &7_i32.to_be_bytes(), &[0xff; 2]];
        client.send_frame(&header.concat());
        assert!(client.is_closed(), "{key} is a client's of brokers");
    }
    // Not because they could not be read: they have no body.
    let line = format!("gregor_connections_closed_total{{reason=\"unknown_api\"}} {}\n", others.len());
    wait_until(&line, || node.http("/metrics").contains(&line));
    for (key, min, max) in advertised(&mut node.client()) {
        let api = ApiKey::from_code(key).unwrap();
        assert!(api.is_served_on(Listener::Broker), "{api} is the controllers' own");
        let known = api.stable_versions();
        // Produce says that it goes back further than it does.
        assert!((*known.start() == min || api == ApiKey::Produce) && max <= *known.end(), "{api}: {min} to {max}");
    }
    node.stop();
}

#[test]
fn tools_ask_a_controller_directly() {
    let home = Home::new();
    let node = home.start();
    let mut client = Client::connect(node.address_of("CONTROLLER"));
    let client = &mut client;
    let none = ErrorCode::None;

    assert_eq!(error(client.call(7, &creation("t")).topics[0].error_code), none);
    assert_eq!(error(client.call(7, &creation("t")).topics[0].error_code), ErrorCode::TopicAlreadyExists);
    assert_eq!(error(client.call(3, &growth("t", 3)).results[0].error_code), none);
    for version in 0..=2 {
        let results = client.call(version, &election("t", &[0, 7])).replica_election_results;
        let codes: Vec<_> = results[0].partition_result.iter().map(|one| error(one.error_code)).collect();
        assert_eq!(codes, [ErrorCode::ElectionNotNeeded, ErrorCode::UnknownTopicOrPartition], "version {version}");
    }
    let moved = |client: &mut Client, replicas: Option<&[i32]>| {
        let answer = client.call(1, &move_of("t", replicas));
        assert_eq!(error(answer.error_code), none);
        error(answer.responses[0].partitions[0].error_code)
    };
    assert_eq!(moved(client, Some(&[1])), none);
    assert_eq!(moved(client, Some(&[2])), ErrorCode::InvalidReplicaAssignment);
    assert_eq!(moved(client, None), ErrorCode::NoReassignmentInProgress);
    let moves = client.call(0, &ListPartitionReassignmentsRequest { topics: None, ..Default::default() });
    assert_eq!((error(moves.error_code), moves.topics.len()), (none, 0));

    // A controller takes the configuration of any node, and of topics.
    for (resource_type, name, key) in [(2, "t", "retention.ms"), (4, "1", KEY), (4, "", KEY)] {
        let resource = incremental_alter_configs_request::AlterConfigsResource {
            resource_type,
            resource_name: name.into(),
            ..alteration(key, 70_000).resources.remove(0)
        };
        let mut request = alteration(key, 70_000);
        request.resources = vec![resource];
        assert_eq!(error(client.call(1, &request).responses[0].error_code), none, "{resource_type} {name}");
        let asked = DescribeConfigsResource {
            resource_type,
            resource_name: name.into(),
            configuration_keys: Some(vec![key.into()]),
            ..Default::default()
        };
        wait_until("the configuration to be shown", || {
            let asked = DescribeConfigsRequest { resources: vec![asked.clone()], ..Default::default() };
            let shown = client.call(4, &asked);
            shown.results[0].configs.first().and_then(|config| config.value.as_deref()) == Some("70000")
        });
    }

    let level = |level| {
        let update = FeatureUpdateKey {
            feature: "metadata.version".into(),
            max_version_level: level,
            upgrade_type: 1,
            ..Default::default()
        };
        UpdateFeaturesRequest { feature_updates: vec![update], timeout_ms: 10_000, ..Default::default() }
    };
    assert_eq!(error(client.call(2, &level(30)).error_code), none);
    assert_eq!(error(client.call(2, &level(9_999)).error_code), ErrorCode::InvalidUpdateVersion);

    let topic = describe_quorum_request::TopicData {
        topic_name: "__cluster_metadata".into(),
        partitions: vec![describe_quorum_request::PartitionData::default()],
        ..Default::default()
    };
    let quorum = client.call(2, &DescribeQuorumRequest { topics: vec![topic], ..Default::default() });
    let partition = &quorum.topics[0].partitions[0];
    assert_eq!((error(partition.error_code), partition.leader_id, partition.current_voters.len()), (none, 1, 1));
    let cluster = client.call(2, &DescribeClusterRequest { endpoint_type: 2, ..Default::default() });
    assert_eq!((error(cluster.error_code), cluster.controller_id, cluster.endpoint_type), (none, 1, 2));
    let stranger = UnregisterBrokerRequest { broker_id: 9, ..Default::default() };
    assert_eq!(error(client.call(0, &stranger).error_code), ErrorCode::BrokerIdNotRegistered);

    for version in [5, 6] {
        let name = format!("gone-{version}");
        assert_eq!(error(client.call(7, &creation(&name)).topics[0].error_code), none);
        assert_eq!(error(client.call(version, &deletion(&name, version)).responses[0].error_code), none);
        let again = client.call(version, &deletion(&name, version)).responses[0].error_code;
        assert_eq!(error(again), ErrorCode::UnknownTopicOrPartition);
    }
    // What was asked of the controller is what brokers show.
    assert_eq!(error(node.client().call(7, &creation("t")).topics[0].error_code), ErrorCode::TopicAlreadyExists);
    node.stop();
}
