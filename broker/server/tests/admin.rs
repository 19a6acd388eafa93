//! Administration over a socket: topics made, grown, configured and deleted, by name and on first use, and found again after a restart.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::time::Instant;

use gregor_messages::{
    AlterConfigsRequest, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, DescribeClusterRequest,
    DescribeConfigsRequest, DescribeQuorumRequest, DescribeTopicPartitionsRequest, IncrementalAlterConfigsRequest,
    ListConfigResourcesRequest, MetadataRequest, Request,
    create_partitions_request::CreatePartitionsTopic,
    create_topics_request::CreatableTopic,
    delete_topics_request::DeleteTopicState,
    describe_configs_request::DescribeConfigsResource,
    describe_quorum_request,
    describe_topic_partitions_request::TopicRequest,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
    metadata_request::MetadataRequestTopic,
    metadata_response::MetadataResponseTopic,
};
use gregor_types::{ErrorCode, Uuid};
use support::{Client, DEADLINE, Home, batch, error};

fn metadata(client: &mut Client, name: &str, create: bool) -> MetadataResponseTopic {
    let request = MetadataRequest {
        topics: Some(vec![MetadataRequestTopic { name: Some(name.into()), ..Default::default() }]),
        allow_auto_topic_creation: create,
        ..Default::default()
    };
    client.call(13, &request).topics.remove(0)
}

fn set(client: &mut Client, resource_type: i8, name: &str, key: &str, value: Option<&str>) -> ErrorCode {
    let config = AlterableConfig {
        name: key.into(),
        config_operation: i8::from(value.is_none()),
        value: value.map(Into::into),
        ..Default::default()
    };
    let resource =
        AlterConfigsResource { resource_type, resource_name: name.into(), configs: vec![config], ..Default::default() };
    let request = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
    error(client.call(1, &request).responses[0].error_code)
}

fn value(client: &mut Client, resource_type: i8, name: &str, key: &str) -> (Option<String>, i8) {
    let resource = DescribeConfigsResource {
        resource_type,
        resource_name: name.into(),
        configuration_keys: Some(vec![key.into()]),
        ..Default::default()
    };
    let request = DescribeConfigsRequest { resources: vec![resource], ..Default::default() };
    let response = client.call(4, &request);
    let config = &response.results[0].configs[0];
    (config.value.as_ref().map(ToString::to_string), config.config_source)
}

#[test]
fn a_topic_is_created_by_its_first_use_where_client_and_broker_allow_it() {
    let home = Home::new().with("num.partitions", "3");
    let node = home.start();
    let mut client = node.client();
    assert_eq!(error(metadata(&mut client, "t", false).error_code), ErrorCode::UnknownTopicOrPartition);
    let topic = metadata(&mut client, "t", true);
    assert_eq!((error(topic.error_code), topic.partitions.len()), (ErrorCode::None, 3));
    assert_eq!(topic.partitions[0].leader_id, 1);
    assert_eq!(metadata(&mut client, "t", false).topic_id, topic.topic_id);
    assert_eq!(error(metadata(&mut client, "not a name", true).error_code), ErrorCode::InvalidTopicException);
    // It can be written soon: its partition is made by a thread of its own.
    let deadline = Instant::now() + DEADLINE;
    while client.produce("t", 2, batch(&["value"])).error_code != 0 {
        assert!(Instant::now() < deadline, "t-2 never took a record");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    node.stop();

    let home = Home::new().with("auto.create.topics.enable", "false");
    let node = home.start();
    let mut client = node.client();
    assert_eq!(error(metadata(&mut client, "t", true).error_code), ErrorCode::UnknownTopicOrPartition);
    node.stop();
}

#[test]
fn topics_that_are_used_first_together_are_created_together() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("there", 1, &[]);
    let names = ["a", "not a name", "b", "there", "c"];
    let topics = names.map(|name| MetadataRequestTopic { name: Some(name.into()), ..Default::default() });
    let request = MetadataRequest { topics: Some(topics.to_vec()), ..Default::default() };
    let codes: Vec<_> = client.call(12, &request).topics.iter().map(|topic| error(topic.error_code)).collect();
    let none = ErrorCode::None;
    assert_eq!(codes, [none, ErrorCode::InvalidTopicException, none, none, none]);
    node.stop();
}

#[test]
fn many_clients_that_use_a_topic_first_get_the_same_one() {
    let home = Home::new();
    let node = home.start();
    let address = node.address;
    let clients: Vec<_> =
        (0..8).map(|_| std::thread::spawn(move || metadata(&mut Client::connect(address), "t", true))).collect();
    let ids: std::collections::BTreeSet<Uuid> = clients
        .into_iter()
        .map(|client| {
            let topic = client.join().unwrap();
            assert_eq!(error(topic.error_code), ErrorCode::None);
            topic.topic_id
        })
        .collect();
    assert_eq!(ids.len(), 1);
    node.stop();
}

#[test]
fn topics_and_configurations_survive_a_restart() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("t", 2, &[("retention.ms", "1000")]);
    let id = metadata(&mut client, "t", false).topic_id;
    assert_eq!(set(&mut client, 2, "t", "segment.bytes", Some("2097152")), ErrorCode::None);
    assert_eq!(set(&mut client, 2, "t", "segment.bytes", Some("many")), ErrorCode::InvalidConfig);
    assert_eq!(set(&mut client, 4, "1", "log.retention.bytes", Some("5000000")), ErrorCode::None);
    assert_eq!(set(&mut client, 4, "", "log.retention.bytes", Some("6000000")), ErrorCode::None);
    assert_eq!(set(&mut client, 4, "1", "log.dirs", Some("/elsewhere")), ErrorCode::InvalidRequest);
    node.stop();

    let node = home.start();
    let mut client = node.client();
    let topic = metadata(&mut client, "t", false);
    assert_eq!((topic.topic_id, topic.partitions.len()), (id, 2));
    assert_eq!(value(&mut client, 2, "t", "retention.ms"), (Some("1000".to_owned()), 1));
    assert_eq!(value(&mut client, 2, "t", "segment.bytes"), (Some("2097152".to_owned()), 1));
    assert_eq!(value(&mut client, 2, "t", "retention.bytes"), (Some("5000000".to_owned()), 2));
    assert_eq!(set(&mut client, 4, "1", "log.retention.bytes", None), ErrorCode::None);
    assert_eq!(value(&mut client, 2, "t", "retention.bytes"), (Some("6000000".to_owned()), 3));
    assert_eq!(value(&mut client, 4, "1", "log.retention.bytes"), (Some("6000000".to_owned()), 3));
    node.stop();
}

#[test]
fn a_client_metrics_subscription_is_kept_shown_and_listed_until_it_is_gone() {
    const CLIENT_METRICS: i8 = 16;
    fn listed(client: &mut Client) -> Vec<String> {
        let request = ListConfigResourcesRequest { resource_types: vec![CLIENT_METRICS], ..Default::default() };
        client.call(1, &request).config_resources.iter().map(|one| one.resource_name.to_string()).collect()
    }
    let home = Home::new();
    let node = home.start();
    let mut client = node.client();
    let client = &mut client;
    assert_eq!(set(client, CLIENT_METRICS, "m", "interval.ms", Some("60000")), ErrorCode::None);
    assert_eq!(set(client, CLIENT_METRICS, "m", "interval.ms", Some("1")), ErrorCode::InvalidRequest);
    assert_eq!(set(client, CLIENT_METRICS, "never", "match", Some("client_id")), ErrorCode::InvalidConfig);
    node.stop();

    let node = home.start();
    let mut client = node.client();
    let client = &mut client;
    assert_eq!(value(client, CLIENT_METRICS, "m", "interval.ms"), (Some("60000".to_owned()), 7));
    assert_eq!(value(client, CLIENT_METRICS, "m", "match"), (Some(String::new()), 5));
    assert_eq!(listed(client), ["m"]);
    assert_eq!(set(client, CLIENT_METRICS, "m", "interval.ms", None), ErrorCode::None);
    let deadline = Instant::now() + DEADLINE;
    while !listed(client).is_empty() {
        assert!(Instant::now() < deadline, "it is still listed");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    node.stop();
}

#[test]
fn topics_grow_and_go() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("t", 1, &[]);
    let grow = |client: &mut Client, count| {
        let topic = CreatePartitionsTopic { name: "t".into(), count, assignments: None, ..Default::default() };
        let request = CreatePartitionsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
        error(client.call(3, &request).results[0].error_code)
    };
    assert_eq!(grow(&mut client, 4), ErrorCode::None);
    assert_eq!(grow(&mut client, 2), ErrorCode::InvalidPartitions);
    assert_eq!(metadata(&mut client, "t", false).partitions.len(), 4);
    assert_eq!(client.produce("t", 0, batch(&["value"])).error_code, 0);

    let id = metadata(&mut client, "t", false).topic_id;
    let delete = |client: &mut Client, name: Option<&str>, topic_id: Uuid| {
        let topic = DeleteTopicState { name: name.map(Into::into), topic_id, ..Default::default() };
        let request = DeleteTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
        error(client.call(6, &request).responses[0].error_code)
    };
    assert_eq!(delete(&mut client, None, id), ErrorCode::None);
    assert_eq!(delete(&mut client, Some("t"), Uuid::ZERO), ErrorCode::UnknownTopicOrPartition);
    assert_eq!(error(metadata(&mut client, "t", false).error_code), ErrorCode::UnknownTopicOrPartition);
    // Its name is free at once, for a topic without its records.
    client.create_topic("t", 1, &[]);
    // Until this broker's thread for partitions has heard of it, the name is that of the one that is gone.
    let deadline = Instant::now() + DEADLINE;
    while client.list_offset("t", 0, -1).offset != 0 {
        assert!(Instant::now() < deadline, "t-0 never became the new one");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    node.stop();
}

#[test]
fn a_create_that_cannot_be_says_why_and_one_that_only_asks_creates_nothing() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.client();
    let topic = CreatableTopic { name: "t".into(), num_partitions: 1, replication_factor: 3, ..Default::default() };
    let mut request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
    let response = client.call(7, &request);
    assert_eq!(error(response.topics[0].error_code), ErrorCode::InvalidReplicationFactor);
    let message = response.topics[0].error_message.as_ref().unwrap();
    assert!(message.contains("only 1 broker(s) are registered"), "{message}");
    request.topics[0].replication_factor = -1;
    request.validate_only = true;
    assert_eq!(error(client.call(7, &request).topics[0].error_code), ErrorCode::None);
    assert_eq!(error(metadata(&mut client, "t", false).error_code), ErrorCode::UnknownTopicOrPartition);
    node.stop();
}

#[test]
fn the_cluster_and_its_quorum_are_described() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("t", 3, &[]);
    let cluster = client.call(2, &DescribeClusterRequest::default());
    assert_eq!((cluster.cluster_id.as_str(), cluster.controller_id, cluster.brokers.len()), ("test-cluster", 1, 1));
    assert_eq!(cluster.brokers[0].port, i32::from(node.address.port()));
    let wrong = DescribeClusterRequest { endpoint_type: 2, ..Default::default() };
    assert_eq!(error(client.call(2, &wrong).error_code), ErrorCode::MismatchedEndpointType);

    let request = DescribeTopicPartitionsRequest {
        topics: vec![TopicRequest { name: "t".into(), ..Default::default() }],
        response_partition_limit: 2,
        ..Default::default()
    };
    let page = client.call(0, &request);
    assert_eq!((page.topics[0].partitions.len(), page.next_cursor.unwrap().partition_index), (2, 2));

    let quorum = client.call(2, &metadata_quorum());
    let partition = &quorum.topics[0].partitions[0];
    assert_eq!(
        (error(quorum.error_code), partition.leader_id, partition.current_voters.len()),
        (ErrorCode::None, 1, 1)
    );
    node.stop();
}

fn metadata_quorum() -> DescribeQuorumRequest {
    let topic = describe_quorum_request::TopicData {
        topic_name: "__cluster_metadata".into(),
        partitions: vec![describe_quorum_request::PartitionData::default()],
        ..Default::default()
    };
    DescribeQuorumRequest { topics: vec![topic], ..Default::default() }
}

/// What a client sends that asks for nothing in particular must be answered in every version that is advertised.
#[test]
fn every_version_is_answered() {
    fn all<R: Request>(client: &mut Client, request: &R) {
        for version in R::VERSIONS {
            client.call(version, request);
        }
    }
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("t", 1, &[]);
    all(&mut client, &MetadataRequest { topics: Some(Vec::new()), ..Default::default() });
    all(&mut client, &DescribeTopicPartitionsRequest::default());
    all(&mut client, &DescribeClusterRequest::default());
    all(&mut client, &metadata_quorum());
    all(&mut client, &ListConfigResourcesRequest::default());
    all(&mut client, &CreateTopicsRequest::default());
    all(&mut client, &CreatePartitionsRequest::default());
    all(&mut client, &AlterConfigsRequest::default());
    all(&mut client, &IncrementalAlterConfigsRequest::default());
    let resource = |resource_type, name: &str| DescribeConfigsResource {
        resource_type,
        resource_name: name.into(),
        configuration_keys: None,
        ..Default::default()
    };
    let resources = vec![
        resource(2, "t"),
        resource(4, "1"),
        resource(4, ""),
        resource(8, "1"),
        resource(16, "m"),
        resource(32, "g"),
    ];
    let mut request = DescribeConfigsRequest { resources, ..Default::default() };
    all(&mut client, &request);
    request.include_synonyms = true;
    request.include_documentation = true;
    for version in 3..=4 {
        let response = client.call(version, &request);
        for result in &response.results {
            assert_eq!(result.error_code, 0, "{:?}", result.error_message);
        }
    }
    for version in 1..=5 {
        let request = DeleteTopicsRequest { topic_names: vec!["nope".into()], ..Default::default() };
        let response = client.call(version, &request);
        assert_eq!(error(response.responses[0].error_code), ErrorCode::UnknownTopicOrPartition);
    }
    node.stop();
}

#[test]
fn what_another_node_is_to_change_is_refused_and_the_rest_is_done() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("t", 1, &[]);
    let resource = |resource_type, name: &str, key: &str| AlterConfigsResource {
        resource_type,
        resource_name: name.into(),
        configs: vec![AlterableConfig { name: key.into(), value: Some("3".into()), ..Default::default() }],
        ..Default::default()
    };
    let threads = "log.cleaner.threads";
    let resources = vec![
        resource(4, "2", threads),
        resource(2, "t", "retention.ms"),
        resource(4, "one", threads),
        resource(4, "1", threads),
    ];
    let request = IncrementalAlterConfigsRequest { resources, ..Default::default() };
    let answers: Vec<_> = client.call(1, &request).responses;
    let told = |at: usize| {
        let message = answers[at].error_message.as_ref().map(ToString::to_string);
        (answers[at].resource_name.to_string(), error(answers[at].error_code), message.unwrap_or_default())
    };
    assert_eq!(answers.len(), 4);
    let refused = |name: &str, why: &str| (name.to_owned(), ErrorCode::InvalidRequest, why.to_owned());
    assert_eq!(told(0), refused("2", "Unexpected broker id, expected 1, but received 2"));
    assert_eq!(told(1), ("t".to_owned(), ErrorCode::None, String::new()));
    assert_eq!(told(2), refused("one", "Node id must be an integer, but it is: one"));
    assert_eq!(told(3), ("1".to_owned(), ErrorCode::None, String::new()));
    assert_eq!(set(&mut client, 4, "2", threads, Some("3")), ErrorCode::InvalidRequest);
    assert_eq!(set(&mut client, 4, "", threads, Some("3")), ErrorCode::None, "all brokers have no number");
    node.stop();
}
