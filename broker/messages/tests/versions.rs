//! The rules of versions: what a message says in each, which headers it has, and who serves it.

use gregor_messages::{
    ApiKey, Listener, MetadataRequest, OffsetCommitRequest, ProduceRequest, Request, fetch_response,
};
use gregor_wire::{EncodeError, Message};

#[test]
fn a_field_that_a_version_lacks_is_an_error_unless_kafka_lets_it_be_dropped() {
    let request = MetadataRequest { allow_auto_topic_creation: false, ..Default::default() };
    assert_eq!(
        request.to_bytes(3),
        Err(EncodeError::FieldNotInVersion { field: "MetadataRequest.allow_auto_topic_creation", version: 3 })
    );
    assert!(request.to_bytes(4).is_ok());

    // A group instance's id may not be dropped, a retention time may.
    let request = OffsetCommitRequest { retention_time_ms: 5, ..Default::default() };
    assert_eq!(request.to_bytes(5), OffsetCommitRequest::default().to_bytes(5));
    let request = OffsetCommitRequest { group_instance_id: Some("one".into()), ..Default::default() };
    assert!(matches!(request.to_bytes(6), Err(EncodeError::FieldNotInVersion { .. })));
}

#[test]
fn null_is_refused_in_a_version_that_has_none() {
    let all = MetadataRequest { topics: None, ..Default::default() };
    assert_eq!(all.to_bytes(0), Err(EncodeError::Null { field: "MetadataRequest.topics" }));
    assert_eq!(&all.to_bytes(1).unwrap()[..], [0xff, 0xff, 0xff, 0xff]);
    assert_eq!(MetadataRequest::from_bytes(all.to_bytes(1).unwrap(), 1).unwrap(), all);
}

#[test]
fn a_version_that_does_not_exist_is_neither_written_nor_read() {
    assert!(matches!(ProduceRequest::default().to_bytes(2), Err(EncodeError::UnsupportedVersion { version: 2, .. })));
    assert!(ProduceRequest::from_bytes(bytes::Bytes::from_static(&[0; 32]), 14).is_err());
}

#[test]
fn a_tagged_field_with_its_default_takes_no_byte() {
    let mut partition = gregor_messages::FetchResponse {
        responses: vec![fetch_response::FetchableTopicResponse {
            partitions: vec![fetch_response::PartitionData::default()],
            ..Default::default()
        }],
        ..Default::default()
    };
    let without = partition.to_bytes(17).unwrap().len();
    partition.responses[0].partitions[0].current_leader.leader_id = 3;
    // Tag, size, id, epoch, and the struct's own empty tagged fields.
    assert_eq!(partition.to_bytes(17).unwrap().len(), without + 1 + 1 + 4 + 4 + 1);
}

#[test]
fn headers_follow_the_versions_and_api_versions_always_answers_with_the_oldest() {
    for (key, version, request, response) in [
        (ApiKey::Produce, 8, 1, 0),
        (ApiKey::Produce, 9, 2, 1),
        (ApiKey::Metadata, 8, 1, 0),
        (ApiKey::Metadata, 9, 2, 1),
        (ApiKey::ApiVersions, 2, 1, 0),
        (ApiKey::ApiVersions, 3, 2, 0),
        (ApiKey::ApiVersions, 5, 2, 0),
        (ApiKey::SaslHandshake, 1, 1, 0),
        (ApiKey::ConsumerGroupHeartbeat, 0, 2, 1),
    ] {
        let versions = (key.request_header_version(version), key.response_header_version(version));
        assert_eq!(versions, (request, response), "{key} v{version}");
    }
}

#[test]
fn the_table_of_apis_is_that_of_kafka_4_4() {
    let codes: Vec<i16> = ApiKey::ALL.iter().map(|key| key.code()).collect();
    assert_eq!(codes, (0..=94).filter(|code| !(4..=7).contains(code)).collect::<Vec<_>>());
    for &key in ApiKey::ALL {
        assert_eq!(ApiKey::from_code(key.code()), Some(key));
    }
    assert_eq!(ApiKey::from_code(5), None);
    assert_eq!(ApiKey::from_code(95), None);
    assert_eq!(MetadataRequest::KEY, ApiKey::Metadata);
    assert_eq!(ApiKey::Metadata.name(), "Metadata");
    assert_eq!(ApiKey::ApiVersions.versions(), 0..=5);
    let unstable: Vec<ApiKey> = ApiKey::ALL.iter().copied().filter(|key| key.latest_version_is_unstable()).collect();
    assert_eq!(unstable, [ApiKey::InitProducerId]);
    assert_eq!(ApiKey::InitProducerId.stable_versions(), 0..=5);
}

#[test]
fn the_quorum_is_served_on_the_controller_s_listener_only() {
    for key in [ApiKey::Vote, ApiKey::BeginQuorumEpoch, ApiKey::FetchSnapshot, ApiKey::BrokerHeartbeat] {
        assert!(key.is_served_on(Listener::Controller) && !key.is_served_on(Listener::Broker), "{key}");
    }
    for key in [ApiKey::Produce, ApiKey::Metadata, ApiKey::JoinGroup] {
        assert!(key.is_served_on(Listener::Broker) && !key.is_served_on(Listener::Controller), "{key}");
    }
    assert!(ApiKey::Fetch.is_served_on(Listener::Broker) && ApiKey::Fetch.is_served_on(Listener::Controller));
}
