//! Topics and partitions as users ask for them, with the errors that Apache Kafka gives.

mod common;

use common::{APPEND, DELETE, Rig, SET, SUBTRACT, alter, assert_error, assigned, ids, topic, with_config};
use gregor_messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest,
    DeleteTopicsResponse, IncrementalAlterConfigsResponse,
    create_partitions_request::{CreatePartitionsAssignment, CreatePartitionsTopic},
    create_topics_request::CreatableTopic,
    delete_topics_request::DeleteTopicState,
};
use gregor_metadata::ConfigResource;
use gregor_types::{ErrorCode, Uuid};

#[track_caller]
fn refused(rig: &mut Rig, topic: CreatableTopic, code: ErrorCode, part: &str) {
    let before = rig.log.len();
    let response = rig.create(vec![topic]);
    assert_error(response.topics[0].error_code, response.topics[0].error_message.as_ref(), code, part);
    assert_eq!(rig.log.len(), before, "a refused topic leaves no record");
}

#[test]
fn a_created_topic_is_answered_when_it_is_committed_with_its_id_and_effective_configs() {
    let mut rig = Rig::with(30, "log.retention.hours=2\n").brokers(1);
    let request = CreateTopicsRequest {
        topics: vec![with_config(topic("t", 3, 1), "segment.bytes", Some("2097152"))],
        ..Default::default()
    };
    let id = rig.submit(7, request);
    assert!(rig.replies.is_empty(), "nothing is answered before the commit");
    rig.commit();
    let response: CreateTopicsResponse = rig.take(id);
    let result = &response.topics[0];
    assert_eq!((result.error_code, result.num_partitions, result.replication_factor), (0, 3, 1));
    let topic = rig.image.topics().by_name("t").unwrap();
    assert_eq!((topic.id, topic.partition_count()), (result.topic_id, 3));
    let configs = result.configs.as_ref().unwrap();
    let config = |name: &str| {
        let config = configs.iter().find(|config| config.name == name).unwrap();
        (config.value.as_ref().unwrap().to_string(), config.config_source)
    };
    assert_eq!(config("segment.bytes"), ("2097152".to_owned(), 1));
    assert_eq!(config("retention.ms"), ("7200000".to_owned(), 4));
    assert_eq!(config("cleanup.policy"), ("delete".to_owned(), 5));
}

#[test]
fn minus_one_means_the_brokers_defaults() {
    let mut rig = Rig::with(30, "num.partitions=4\ndefault.replication.factor=2\n").brokers(3);
    let response = rig.create(vec![topic("t", -1, -1)]);
    assert_eq!((response.topics[0].num_partitions, response.topics[0].replication_factor), (4, 2));
}

#[test]
fn new_partitions_are_led_by_their_first_replica_in_its_directory() {
    let mut rig = Rig::at(30).brokers(3);
    rig.create(vec![assigned("t", &[(0, &[2, 1]), (1, &[3, 2])])]);
    let partition = rig.partition("t", 0);
    assert_eq!((partition.leader, &partition.replicas), (Some(ids(&[2])[0]), &ids(&[2, 1])));
    assert_eq!(partition.directories, [Uuid(1002), Uuid(1001)]);
    assert_eq!(partition.isr, ids(&[2, 1]));
}

#[test]
fn wrong_topics_get_kafkas_errors() {
    let mut rig = Rig::at(30).brokers(2);
    rig.create(vec![topic("taken", 1, 1), topic("a.b", 1, 1)]);
    refused(&mut rig, topic("taken", 1, 1), ErrorCode::TopicAlreadyExists, "Topic 'taken' already exists.");
    refused(&mut rig, topic("a_b", 1, 1), ErrorCode::InvalidTopicException, "collides with existing topic: a.b");
    refused(&mut rig, topic("a b", 1, 1), ErrorCode::InvalidTopicException, "a b");
    refused(&mut rig, topic("", 1, 1), ErrorCode::InvalidTopicException, "");
    refused(&mut rig, topic("__cluster_metadata", 1, 1), ErrorCode::InvalidRequest, "prohibited");
    refused(&mut rig, topic("t", 0, 1), ErrorCode::InvalidPartitions, "non-positive");
    refused(&mut rig, topic("t", -2, 1), ErrorCode::InvalidPartitions, "non-positive");
    refused(&mut rig, topic("t", 1, 0), ErrorCode::InvalidReplicationFactor, "larger than 0");
    refused(&mut rig, topic("t", 1, 3), ErrorCode::InvalidReplicationFactor, "only 2 broker(s) are registered");
    refused(&mut rig, topic("t", 10_001, 1), ErrorCode::PolicyViolation, "Excessively large");
    refused(&mut rig, topic("t", i32::MAX, 1), ErrorCode::PolicyViolation, "Excessively large");
    let bad = with_config(topic("t", 1, 1), "retention.ms", Some("soon"));
    refused(&mut rig, bad, ErrorCode::InvalidConfig, "Invalid value soon for configuration retention.ms");
    let unknown = with_config(topic("t", 1, 1), "no.such.key", Some("1"));
    refused(&mut rig, unknown, ErrorCode::InvalidConfig, "Unknown topic config name: no.such.key");
    let null = with_config(topic("t", 1, 1), "retention.ms", None);
    refused(&mut rig, null, ErrorCode::InvalidConfig, "Null value not supported for topic configs: retention.ms");
}

#[test]
fn a_request_for_too_many_partitions_is_refused_as_a_whole() {
    let mut rig = Rig::with(30, "num.partitions=4000\n").brokers(1);
    let codes = |rig: &mut Rig, topics: Vec<CreatableTopic>| -> Vec<ErrorCode> {
        rig.create(topics).topics.iter().map(|topic| ErrorCode::from(topic.error_code)).collect()
    };
    let too_many = vec![topic("a", -1, 1), topic("b", 6_000, 1), assigned("c", &[(0, &[1])])];
    assert_eq!(codes(&mut rig, too_many), [ErrorCode::PolicyViolation; 3], "10,001 partitions");
    // What cannot be counts too; what is named twice does not.
    let with_wrong = vec![topic("a b", 10_001, 1), topic("b", 1, 1)];
    assert_eq!(codes(&mut rig, with_wrong), [ErrorCode::PolicyViolation; 2]);
    let with_twice = vec![topic("a", 6_000, 1), topic("a", 6_000, 1), topic("b", 1, 1)];
    assert_eq!(codes(&mut rig, with_twice), [ErrorCode::InvalidRequest, ErrorCode::None]);
}

#[test]
fn wrong_manual_assignments_get_kafkas_errors() {
    let mut rig = Rig::at(30).brokers(3);
    let both = CreatableTopic { num_partitions: 1, ..assigned("t", &[(0, &[1])]) };
    refused(&mut rig, both, ErrorCode::InvalidRequest, "numPartitions was not set to -1");
    let both = CreatableTopic { replication_factor: 1, ..assigned("t", &[(0, &[1])]) };
    refused(&mut rig, both, ErrorCode::InvalidRequest, "replication factor was not set to -1");
    let wrong = ErrorCode::InvalidReplicaAssignment;
    refused(&mut rig, assigned("t", &[(0, &[])]), wrong, "empty replica list");
    refused(&mut rig, assigned("t", &[(0, &[9])]), wrong, "broker 9, but no such broker");
    refused(&mut rig, assigned("t", &[(0, &[1, 1])]), wrong, "broker 1 more than once");
    refused(&mut rig, assigned("t", &[(0, &[1]), (0, &[2])]), wrong, "multiple manual partition assignments");
    refused(&mut rig, assigned("t", &[(0, &[1]), (1, &[2, 3])]), wrong, "not consistent");
    refused(&mut rig, assigned("t", &[(0, &[1]), (2, &[2])]), wrong, "consecutive 0-based");
}

#[test]
fn one_bad_topic_does_not_stop_the_others_and_a_name_twice_is_answered_once() {
    let mut rig = Rig::at(30).brokers(1);
    let response =
        rig.create(vec![topic("good", 1, 1), topic("bad", 1, 9), topic("twice", 1, 1), topic("twice", 2, 1)]);
    let codes: Vec<_> = response.topics.iter().map(|topic| (topic.name.to_string(), topic.error_code)).collect();
    assert_eq!(codes, [("good".to_owned(), 0), ("bad".to_owned(), 38), ("twice".to_owned(), 42)]);
    assert!(rig.image.topics().by_name("good").is_some());
    assert_eq!(rig.image.topics().len(), 1);
}

#[test]
fn validate_only_says_what_would_happen_and_does_nothing() {
    let mut rig = Rig::at(30).brokers(1);
    let before = rig.log.len();
    let request = CreateTopicsRequest { topics: vec![topic("t", 2, 1)], validate_only: true, ..Default::default() };
    let response: CreateTopicsResponse = rig.ask(7, request);
    assert_eq!((response.topics[0].error_code, response.topics[0].num_partitions), (0, 2));
    assert_eq!(response.topics[0].topic_id, Uuid::ZERO);
    assert_eq!((rig.log.len(), rig.image.topics().len()), (before, 0));
}

fn grow(rig: &mut Rig, count: i32, assignments: Option<&[&[i32]]>) -> (i16, String) {
    let assignments = assignments.map(|assignments| {
        let assignment =
            |brokers: &&[i32]| CreatePartitionsAssignment { broker_ids: brokers.to_vec(), ..Default::default() };
        assignments.iter().map(assignment).collect()
    });
    let topic = CreatePartitionsTopic { name: "t".into(), count, assignments, ..Default::default() };
    let response: CreatePartitionsResponse =
        rig.ask(3, CreatePartitionsRequest { topics: vec![topic], ..Default::default() });
    let message = response.results[0].error_message.as_ref().map(ToString::to_string).unwrap_or_default();
    (response.results[0].error_code, message)
}

#[test]
fn partitions_are_added_and_never_taken_away() {
    let mut rig = Rig::at(30).brokers(2);
    assert_eq!(grow(&mut rig, 2, None).0, ErrorCode::UnknownTopicOrPartition as i16);
    rig.create(vec![topic("t", 2, 1)]);
    assert_eq!(grow(&mut rig, 4, None), (0, String::new()));
    assert_eq!(rig.image.topics().by_name("t").unwrap().partition_count(), 4);
    assert_eq!(grow(&mut rig, 4, None), (37, "Topic already has 4 partition(s).".to_owned()));
    let (code, message) = grow(&mut rig, 3, None);
    assert_eq!((code, message.contains("currently has 4 partition(s); 3 would not be an increase")), (37, true));
    assert_eq!(grow(&mut rig, -1, None).0, ErrorCode::InvalidPartitions as i16);
    assert_eq!(grow(&mut rig, 1_000_000, None).0, ErrorCode::PolicyViolation as i16);
    let (code, message) = grow(&mut rig, 6, Some(&[&[1]]));
    assert_eq!((code, message.contains("2 additional partition(s), but only 1 assignment(s)")), (39, true));
    assert_eq!(grow(&mut rig, 5, Some(&[&[1, 2]])).0, ErrorCode::InvalidReplicaAssignment as i16);
    assert_eq!(grow(&mut rig, 5, Some(&[&[2]])), (0, String::new()));
    assert_eq!(rig.partition("t", 4).replicas, ids(&[2]));
}

fn delete(rig: &mut Rig, name: Option<&str>, id: Uuid) -> (i16, Option<String>) {
    let topic = DeleteTopicState { name: name.map(Into::into), topic_id: id, ..Default::default() };
    let response: DeleteTopicsResponse = rig.ask(6, DeleteTopicsRequest { topics: vec![topic], ..Default::default() });
    (response.responses[0].error_code, response.responses[0].name.as_ref().map(ToString::to_string))
}

#[test]
fn topics_are_deleted_by_name_or_id_with_their_configuration() {
    let mut rig = Rig::at(30).brokers(1);
    rig.create(vec![topic("a", 1, 1), with_config(topic("b", 1, 1), "retention.ms", Some("1"))]);
    let id = rig.image.topics().by_name("b").unwrap().id;
    assert_eq!(delete(&mut rig, Some("a"), Uuid::ZERO).0, 0);
    assert_eq!(delete(&mut rig, None, id), (0, Some("b".to_owned())));
    assert!(rig.image.topics().is_empty());
    assert_eq!(rig.image.configs().of(&ConfigResource::topic("b")).count(), 0);
    assert_eq!(delete(&mut rig, Some("a"), Uuid::ZERO).0, ErrorCode::UnknownTopicOrPartition as i16);
    assert_eq!(delete(&mut rig, None, id).0, ErrorCode::UnknownTopicId as i16);
    assert_eq!(delete(&mut rig, None, Uuid::ZERO).0, ErrorCode::InvalidRequest as i16);
    assert_eq!(delete(&mut rig, Some("a"), id).0, ErrorCode::InvalidRequest as i16);
}

#[test]
fn a_topic_created_anew_has_another_id_and_none_of_its_old_configuration() {
    let mut rig = Rig::at(30).brokers(1);
    rig.create(vec![with_config(topic("t", 1, 1), "retention.ms", Some("1"))]);
    let old = rig.image.topics().by_name("t").unwrap().id;
    delete(&mut rig, Some("t"), Uuid::ZERO);
    rig.create(vec![topic("t", 1, 1)]);
    assert_ne!(rig.image.topics().by_name("t").unwrap().id, old);
    assert_eq!(rig.image.configs().of(&ConfigResource::topic("t")).count(), 0);
}

#[test]
fn deletion_can_be_disabled() {
    let mut rig = Rig::with(30, "delete.topic.enable=false\n").brokers(1);
    rig.create(vec![topic("t", 1, 1)]);
    assert_eq!(delete(&mut rig, Some("t"), Uuid::ZERO).0, ErrorCode::TopicDeletionDisabled as i16);
    let old = DeleteTopicsRequest { topic_names: vec!["t".into()], ..Default::default() };
    let response: DeleteTopicsResponse = rig.ask(1, old);
    assert_eq!(response.responses[0].error_code, ErrorCode::InvalidRequest as i16);
}

#[test]
fn topic_configs_change_value_by_value_and_lists_item_by_item() {
    let mut rig = Rig::at(30).brokers(1);
    rig.create(vec![topic("t", 1, 1)]);
    let mut change = |operations: &[(&str, i8, Option<&str>)]| {
        let response: IncrementalAlterConfigsResponse = rig.ask(1, alter(2, "t", operations));
        let values = rig.image.configs();
        let resource = ConfigResource::topic("t");
        let values: Vec<_> = values.of(&resource).map(|(name, value)| format!("{name}={value}")).collect();
        (response.responses[0].error_code, values.join(" "))
    };
    assert_eq!(change(&[("retention.ms", SET, Some("5"))]), (0, "retention.ms=5".to_owned()));
    // Appending starts from the default.
    let (code, values) = change(&[("cleanup.policy", APPEND, Some("compact")), ("retention.ms", DELETE, None)]);
    assert_eq!((code, values.as_str()), (0, "cleanup.policy=delete,compact"));
    assert_eq!(change(&[("cleanup.policy", SUBTRACT, Some("delete"))]), (0, "cleanup.policy=compact".to_owned()));
    let before = "cleanup.policy=compact".to_owned();
    assert_eq!(change(&[("retention.ms", APPEND, Some("5"))]), (ErrorCode::InvalidConfig as i16, before.clone()));
    assert_eq!(change(&[("retention.ms", SET, None)]), (ErrorCode::InvalidRequest as i16, before.clone()));
    assert_eq!(change(&[("retention.ms", 9, Some("1"))]), (ErrorCode::InvalidRequest as i16, before.clone()));
    let conflict = [("min.compaction.lag.ms", SET, Some("9")), ("max.compaction.lag.ms", SET, Some("5"))];
    assert_eq!(change(&conflict), (ErrorCode::InvalidConfig as i16, before));
}

#[test]
fn what_does_not_fit_one_batch_of_the_quorum_is_refused_whole() {
    let mut rig = Rig::at(30).brokers(1);
    let names: Vec<_> = (0..300).map(|index| format!("t{index}")).collect();
    rig.create(names.iter().map(|name| topic(name, 1, 1)).collect());
    let before = rig.log.len();
    let long = "1:1,".repeat(8_000);
    let mut request = alter(2, "t0", &[("leader.replication.throttled.replicas", SET, Some(&long))]);
    for name in &names[1..] {
        let mut resource = request.resources[0].clone();
        resource.resource_name = name.as_str().into();
        request.resources.push(resource);
    }
    let response: IncrementalAlterConfigsResponse = rig.ask(1, request);
    let done = response.responses.iter().filter(|response| response.error_code == 0).count();
    let refused = response.responses.iter().filter(|response| response.error_code == ErrorCode::PolicyViolation as i16);
    assert_eq!(done + refused.count(), 300);
    assert_eq!(rig.log.len() - before, done);
    assert!((200..300).contains(&done), "7 MiB hold {done} values of 32 kB");
}
