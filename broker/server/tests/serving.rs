//! The data path of a whole node, in raw frames: what is produced is fetched, byte for byte, with everything in between.

mod support;

use std::time::{Duration, Instant};

use gregor_messages::{
    ApiVersionsRequest, ApiVersionsResponse, DeleteRecordsRequest, DeleteTopicsRequest, DescribeLogDirsRequest,
    DescribeProducersRequest, FetchRequest, IncrementalAlterConfigsRequest, MetadataRequest, MetadataResponse,
    OffsetForLeaderEpochRequest, ProduceRequest,
    delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
    delete_topics_request::DeleteTopicState,
    describe_producers_request::TopicRequest,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
    metadata_request::MetadataRequestTopic,
    offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic},
};
use gregor_types::{ErrorCode, Uuid};
use gregor_wire::{Message, Reader, ResponseHeader, Struct, batch::BatchOptions, compression::CompressionType};
use support::{Home, batch, batch_with, compressed, error, fetch_request, idempotent, only, produce_request, stamped};

#[test]
fn every_codec_comes_back_byte_for_byte() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("codecs", 1, &[]);
    let mut expected = Vec::new();
    let mut next_offset = 0;
    for kind in [
        CompressionType::None,
        CompressionType::Gzip,
        CompressionType::Snappy,
        CompressionType::Lz4,
        CompressionType::Zstd,
    ] {
        let records = compressed(kind, &["one", "two", &"three".repeat(500)]);
        let produced = client.produce("codecs", 0, records.clone());
        assert_eq!((error(produced.error_code), produced.base_offset), (ErrorCode::None, next_offset), "{kind:?}");
        let epoch = client.list_offset("codecs", 0, -1).leader_epoch;
        expected.extend(stamped(&records, next_offset, epoch));
        next_offset += 3;
    }
    let fetched = client.fetch("codecs", 0, 0, 0);
    assert_eq!(fetched.high_watermark, 15);
    assert_eq!(fetched.last_stable_offset, 15);
    assert!(fetched.records.unwrap() == expected, "the bytes differ");
    node.stop();
}

#[test]
fn large_fetches_leave_by_the_kernel_unharmed() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("large", 1, &[]);
    let value = "0123456789abcdef".repeat(4_000);
    let mut expected = Vec::new();
    for index in 0..40 {
        let records = batch(&[&value]);
        assert_eq!(client.produce("large", 0, records.clone()).base_offset, index);
        let epoch = client.list_offset("large", 0, -1).leader_epoch;
        expected.extend(stamped(&records, index, epoch));
    }
    let mut got = Vec::new();
    while got.len() < expected.len() {
        let offset = got.len() / (expected.len() / 40);
        let records = client.fetch("large", 0, offset as i64, 0).records.unwrap();
        let whole = records.len() - records.len() % (expected.len() / 40);
        got.extend_from_slice(&records[..whole]);
    }
    assert!(got == expected, "the bytes differ");
    node.stop();
}

#[test]
fn every_version_of_produce_and_fetch_is_answered() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("versions", 1, &[]);
    // From version 13 on topics have ids; those are what the next test names.
    let mut next_offset = 0;
    for version in 3..=12 {
        let request = produce_request("versions", 0, 1, batch(&["value"]));
        let produced = only(client.call(version, &request));
        assert_eq!((error(produced.error_code), produced.base_offset), (ErrorCode::None, next_offset), "{version}");
        next_offset += 1;
    }
    for version in 4..=12 {
        let mut request = fetch_request("versions", &[(0, 0)], 0);
        if version < 7 {
            request.session_epoch = 0;
        }
        let response = client.call(version, &request);
        let partition = &response.responses[0].partitions[0];
        assert_eq!((partition.error_code, partition.high_watermark), (0, next_offset), "{version}");
    }
    node.stop();
}

#[test]
fn a_producer_that_sends_again_gets_the_old_offset_and_a_gap_is_refused() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("idempotent", 1, &[]);
    assert_eq!(client.produce("idempotent", 0, idempotent(7, 0, &["a", "b"])).base_offset, 0);
    let again = client.produce("idempotent", 0, idempotent(7, 0, &["a", "b"]));
    assert_eq!((error(again.error_code), again.base_offset), (ErrorCode::None, 0));
    let gap = client.produce("idempotent", 0, idempotent(7, 5, &["c"]));
    assert_eq!(error(gap.error_code), ErrorCode::OutOfOrderSequenceNumber);
    assert_eq!(client.produce("idempotent", 0, idempotent(7, 2, &["c"])).base_offset, 2);

    let topic = TopicRequest { name: "idempotent".into(), partition_indexes: vec![0], ..Default::default() };
    let described = client.call(0, &DescribeProducersRequest { topics: vec![topic], ..Default::default() });
    let producer = &described.topics[0].partitions[0].active_producers[0];
    assert_eq!((producer.producer_id, producer.last_sequence, producer.current_txn_start_offset), (7, 2, -1));
    node.stop();
}

#[test]
fn without_acknowledgement_there_is_no_response_and_a_failure_closes() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("silent", 1, &[]);
    client.send(9, &produce_request("silent", 0, 0, batch(&["a"])));
    assert_eq!(client.produce("silent", 0, batch(&["b"])).base_offset, 1);
    client.send(9, &produce_request("no-such-topic", 0, 0, batch(&["a"])));
    assert!(client.is_closed());
    node.stop();
}

#[test]
fn pipelined_produces_are_appended_and_answered_in_order() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("pipeline", 1, &[]);
    let ids: Vec<i32> = (0..100)
        .map(|index| client.send(9, &produce_request("pipeline", 0, -1, batch(&[&index.to_string()]))))
        .collect();
    for (offset, correlation_id) in ids.into_iter().enumerate() {
        let produced = only(client.receive::<ProduceRequest>(9, correlation_id));
        assert_eq!((error(produced.error_code), produced.base_offset), (ErrorCode::None, offset as i64));
    }
    node.stop();
}

#[test]
fn an_acknowledgement_waits_for_the_disk_where_the_topic_asks_for_it() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("durable", 1, &[("flush.messages", "1")]);
    for acks in [-1, 1] {
        let ids: Vec<i32> =
            (0..10).map(|_| client.send(9, &produce_request("durable", 0, acks, batch(&["value"])))).collect();
        for id in ids {
            let produced = only(client.receive::<ProduceRequest>(9, id));
            assert_eq!(error(produced.error_code), ErrorCode::None);
        }
    }
    assert_eq!(client.list_offset("durable", 0, -1).offset, 20);
    node.stop();
}

#[test]
fn refused_batches_say_why_and_the_others_of_the_request_stand() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("strict", 1, &[("max.message.bytes", "200")]);
    let mut corrupt = batch(&["value"]).to_vec();
    *corrupt.last_mut().unwrap() ^= 1;
    let large = "x".repeat(500);
    for (records, expected) in [
        (corrupt.into(), ErrorCode::CorruptMessage),
        (batch(&[&large]), ErrorCode::MessageTooLarge),
        (bytes::Bytes::new(), ErrorCode::InvalidRecord),
        (
            batch_with(BatchOptions { transactional: true, ..stamped_producer() }, &["value"]),
            ErrorCode::TransactionalIdAuthorizationFailed,
        ),
    ] {
        let produced = client.produce("strict", 0, records);
        assert_eq!(error(produced.error_code), expected);
        assert!(produced.error_message.is_some(), "{expected} without words");
    }
    let mut request = produce_request("strict", 9, -1, batch(&["lost"]));
    let good = produce_request("strict", 0, -1, batch(&["kept"])).topic_data.remove(0);
    request.topic_data.push(good);
    let response = client.call(9, &request);
    let code = |topic: usize| error(response.responses[topic].partition_responses[0].error_code);
    assert_eq!((code(0), code(1)), (ErrorCode::UnknownTopicOrPartition, ErrorCode::None));

    let mut transactional = produce_request("strict", 0, -1, batch(&["value"]));
    transactional.transactional_id = Some("id".into());
    let refused = error(only(client.call(9, &transactional)).error_code);
    assert!(!refused.is_retriable(), "{refused} would be tried again for ever");
    let acks = error(only(client.call(9, &produce_request("strict", 0, 2, batch(&["v"])))).error_code);
    assert_eq!(acks, ErrorCode::InvalidRequiredAcks);
    node.stop();
}

fn stamped_producer() -> BatchOptions {
    let producer = gregor_wire::batch::ProducerStamp {
        id: gregor_types::ProducerId(9),
        epoch: gregor_types::ProducerEpoch(0),
        base_sequence: 0,
    };
    BatchOptions { producer: Some(producer), ..Default::default() }
}

#[test]
fn log_append_time_is_the_brokers() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("clocked", 1, &[("message.timestamp.type", "LogAppendTime")]);
    let produced = client.produce("clocked", 0, batch(&["value"]));
    assert!(produced.log_append_time_ms > 1_600_000_000_000, "{}", produced.log_append_time_ms);
    let found = client.list_offset("clocked", 0, produced.log_append_time_ms);
    assert_eq!((found.offset, found.timestamp), (0, produced.log_append_time_ms));
    node.stop();
}

#[test]
fn a_fetch_sleeps_until_there_is_something() {
    let home = Home::new();
    let node = home.start();
    let mut reader = node.with_topic("waiting", 1, &[]);
    let mut writer = node.client();
    let correlation_id = reader.send(12, &fetch_request("waiting", &[(0, 0)], 30_000));
    let asleep = Instant::now() + support::DEADLINE;
    while !node.http("/metrics").contains("gregor_waiting_requests 1") {
        assert!(Instant::now() < asleep, "the fetch never slept");
        std::thread::sleep(Duration::from_millis(5));
    }
    writer.produce("waiting", 0, batch(&["at last"]));
    let response = reader.receive::<FetchRequest>(12, correlation_id);
    assert!(!response.responses[0].partitions[0].records.as_ref().unwrap().is_empty());
    assert!(node.http("/metrics").contains("gregor_waiting_requests 0"), "the waiter stayed behind");
    node.stop();
}

#[test]
fn an_empty_fetch_ends_at_its_time() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("empty", 1, &[]);
    let fetched = client.fetch("empty", 0, 0, 50);
    assert_eq!((fetched.error_code, fetched.high_watermark), (0, 0));
    assert_eq!(fetched.records.unwrap_or_default().len(), 0);
    node.stop();
}

#[test]
fn an_incremental_session_tells_only_what_changed() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("session", 3, &[]);
    let mut first = fetch_request("session", &[(0, 0), (1, 0), (2, 0)], 0);
    first.session_epoch = 0;
    let opened = client.call(12, &first);
    assert_ne!(opened.session_id, 0);
    assert_eq!(opened.responses[0].partitions.len(), 3);
    client.produce("session", 1, batch(&["news"]));
    let incremental = FetchRequest {
        session_id: opened.session_id,
        session_epoch: 1,
        max_wait_ms: 0,
        max_bytes: 1 << 20,
        replica_id: -1,
        ..Default::default()
    };
    let changed = client.call(12, &incremental);
    let partitions: Vec<i32> = changed.responses[0].partitions.iter().map(|one| one.partition_index).collect();
    assert_eq!(partitions, [1]);
    let stale = client.call(12, &incremental);
    assert_eq!(error(stale.error_code), ErrorCode::InvalidFetchSessionEpoch);
    node.stop();
}

#[test]
fn offsets_are_listed_by_what_they_are_and_by_time() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("listed", 1, &[]);
    assert_eq!(client.list_offset("listed", 0, -1).offset, 0);
    assert_eq!(client.list_offset("listed", 0, -3).offset, -1, "nothing has a timestamp yet");
    client.produce("listed", 0, batch(&["a", "b"]));
    client.produce("listed", 0, batch(&["c"]));
    assert_eq!(client.list_offset("listed", 0, -1).offset, 3);
    assert_eq!(client.list_offset("listed", 0, -2).offset, 0);
    assert_eq!(client.list_offset("listed", 0, 0).offset, 0, "the first record after 1970");
    assert_eq!(client.list_offset("listed", 0, i64::MAX).offset, -1);
    assert!((0..3).contains(&client.list_offset("listed", 0, -3).offset));
    assert_eq!(error(client.list_offset("listed", 0, -4).error_code), ErrorCode::UnsupportedVersion, "since version 8");
    assert_eq!(error(client.list_offset("listed", 7, -1).error_code), ErrorCode::UnknownTopicOrPartition);
    node.stop();
}

#[test]
fn epochs_are_checked_and_their_ends_told() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("epochs", 1, &[]);
    client.produce("epochs", 0, batch(&["a", "b"]));
    let epoch = client.list_offset("epochs", 0, -1).leader_epoch;
    let ask = |current_leader_epoch| OffsetForLeaderEpochRequest {
        replica_id: -2,
        topics: vec![OffsetForLeaderTopic {
            topic: "epochs".into(),
            partitions: vec![OffsetForLeaderPartition {
                partition: 0,
                current_leader_epoch,
                leader_epoch: epoch,
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let told = client.call(4, &ask(epoch)).topics[0].partitions[0].clone();
    assert_eq!((told.error_code, told.leader_epoch, told.end_offset), (0, epoch, 2));
    let unknown = client.call(4, &ask(epoch + 1)).topics[0].partitions[0].error_code;
    assert_eq!(error(unknown), ErrorCode::UnknownLeaderEpoch);
    let mut fetch = fetch_request("epochs", &[(0, 0)], 0);
    fetch.topics[0].partitions[0].current_leader_epoch = epoch + 1;
    let fetched = client.call(12, &fetch).responses[0].partitions[0].error_code;
    assert_eq!(error(fetched), ErrorCode::UnknownLeaderEpoch);
    node.stop();
}

#[test]
fn deleted_records_are_out_of_range() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("deleted", 1, &[]);
    client.produce("deleted", 0, batch(&["a", "b", "c"]));
    let mut delete = |offset| {
        let partition = DeleteRecordsPartition { partition_index: 0, offset, ..Default::default() };
        let topic = DeleteRecordsTopic { name: "deleted".into(), partitions: vec![partition], ..Default::default() };
        let request = DeleteRecordsRequest { topics: vec![topic], timeout_ms: 1000, ..Default::default() };
        client.call(2, &request).topics[0].partitions[0].clone()
    };
    assert_eq!(error(delete(4).error_code), ErrorCode::OffsetOutOfRange);
    assert_eq!(delete(2).low_watermark, 2);
    assert_eq!(delete(1).low_watermark, 2, "a start never moves back");
    assert_eq!(error(client.fetch("deleted", 0, 1, 0).error_code), ErrorCode::OffsetOutOfRange);
    assert_eq!(error(client.fetch("deleted", 0, 4, 0).error_code), ErrorCode::OffsetOutOfRange);
    assert_eq!(client.fetch("deleted", 0, 2, 0).log_start_offset, 2);
    node.stop();
}

#[test]
fn a_restart_keeps_what_was_acknowledged_and_marks_a_clean_end() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("kept", 2, &[]);
    client.produce("kept", 0, batch(&["a", "b"]));
    client.produce("kept", 1, idempotent(7, 0, &["c"]));
    node.stop();
    let marker = home.folder.path().join("data/.kafka_cleanshutdown");
    assert!(marker.exists());

    let node = home.start();
    assert!(!marker.exists(), "a running node is not cleanly shut down");
    let mut client = node.client();
    assert_eq!(client.list_offset("kept", 0, -1).offset, 2);
    assert!(!client.fetch("kept", 0, 0, 0).records.unwrap().is_empty());
    let again = client.produce("kept", 1, idempotent(7, 0, &["c"]));
    assert_eq!((error(again.error_code), again.base_offset), (ErrorCode::None, 0), "the producer is remembered");
    assert_eq!(client.produce("kept", 1, idempotent(7, 1, &["d"])).base_offset, 1);
    node.stop();
}

#[test]
fn api_versions_answers_any_version() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.client();
    client.send_frame(&[&[0, 18, 0, 99, 0, 0, 0, 5, 0xff, 0xff][..], &[0, 1, 2, 3]].concat());
    let mut reader = Reader::new(client.read_frame());
    assert_eq!(ResponseHeader::read(&mut reader, 0).unwrap().correlation_id, 5);
    let response = ApiVersionsResponse::decode(&mut reader, 0).unwrap();
    assert_eq!(error(response.error_code), ErrorCode::UnsupportedVersion);
    let ranges: Vec<_> = response.api_keys.iter().map(|api| (api.api_key, api.min_version, api.max_version)).collect();
    assert_eq!(ranges, [(18, 0, 5)]);

    let request = ApiVersionsRequest {
        client_software_name: "test".into(),
        client_software_version: "1".into(),
        ..Default::default()
    };
    let response = client.call(4, &request);
    let produce = response.api_keys.iter().find(|api| api.api_key == 0).unwrap();
    assert_eq!((produce.min_version, produce.max_version), (0, 13));
    let names = |response: &ApiVersionsResponse| -> Vec<String> {
        response.supported_features.iter().map(|feature| feature.name.to_string()).collect()
    };
    assert_eq!(names(&response), ["metadata.version", "kraft.version", "eligible.leader.replicas.version"]);
    assert_eq!(names(&client.call(3, &request)), ["metadata.version"], "KAFKA-17492");
    let finalized =
        |name: &str| response.finalized_features.iter().find(|one| one.name == name).unwrap().max_version_level;
    assert_eq!((finalized("metadata.version"), finalized("kraft.version")), (30, 1));
    assert_eq!(finalized("eligible.leader.replicas.version"), 1);
    let stranger = ApiVersionsRequest { cluster_id: Some("another".into()), node_id: -1, ..request.clone() };
    assert_eq!(error(client.call(5, &stranger).error_code), ErrorCode::RebootstrapRequired);
    let nameless = ApiVersionsRequest { client_software_name: "".into(), ..request };
    assert_eq!(error(client.call(4, &nameless).error_code), ErrorCode::InvalidRequest);
    node.stop();
}

#[test]
fn log_dirs_say_how_large_partitions_are() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("sized", 1, &[]);
    let records = batch(&["a", "b", "c"]);
    client.produce("sized", 0, records.clone());
    let described = client.call(5, &DescribeLogDirsRequest { topics: None, ..Default::default() });
    let directory = &described.results[0];
    assert!(directory.usable_bytes > 0 && directory.total_bytes >= directory.usable_bytes);
    let topic = directory.topics.iter().find(|topic| topic.name == "sized").unwrap();
    assert_eq!(topic.partitions[0].partition_size, records.len() as i64);
    node.stop();
}

#[test]
fn topics_are_named_by_id_in_the_newest_versions() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("by-id", 1, &[]);
    let metadata: MetadataResponse = client.call(12, &MetadataRequest { topics: None, ..Default::default() });
    let topic_id = metadata.topics.iter().find(|topic| topic.name.as_deref() == Some("by-id")).unwrap().topic_id;
    let mut request = produce_request("", 0, -1, batch(&["value"]));
    request.topic_data[0].topic_id = topic_id;
    let response = client.call(13, &request);
    assert_eq!((response.responses[0].topic_id, only(response.clone()).base_offset), (topic_id, 0));
    request.topic_data[0].topic_id = Uuid(0x4711 << 64 | 0x815);
    assert_eq!(error(only(client.call(13, &request)).error_code), ErrorCode::UnknownTopicId);
    for version in 13..=18 {
        let mut fetch = fetch_request("", &[(0, 0)], 0);
        fetch.topics[0].topic_id = topic_id;
        if version >= 15 {
            fetch.replica_id = -1;
        }
        let fetched = client.call(version, &fetch);
        let partition = &fetched.responses[0].partitions[0];
        assert_eq!((partition.error_code, partition.high_watermark), (0, 1), "{version}");
        fetch.topics[0].topic_id = Uuid(0x4711 << 64 | 0x815);
        let unknown = client.call(version, &fetch).responses[0].partitions[0].error_code;
        assert_eq!(error(unknown), ErrorCode::UnknownTopicId, "{version}");
    }
    node.stop();
}

#[test]
fn a_deleted_topic_is_gone_and_its_name_begins_anew() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("phoenix", 2, &[]);
    client.produce("phoenix", 0, batch(&["old"]));
    let topic = DeleteTopicState { name: Some("phoenix".into()), ..Default::default() };
    let request = DeleteTopicsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
    assert_eq!(client.call(6, &request).responses[0].error_code, 0);
    until("the partition is gone", || client.list_offset("phoenix", 0, -1).error_code != 0);
    let folders = || -> Vec<String> {
        let entries = std::fs::read_dir(home.folder.path().join("data")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let renamed = || folders().iter().filter(|name| name.starts_with("phoenix-") && name.ends_with("-delete")).count();
    until("both folders are renamed", || renamed() == 2);
    client.create_topic("phoenix", 1, &[]);
    assert_eq!(client.list_offset("phoenix", 0, -1).offset, 0);
    assert_eq!(client.produce("phoenix", 0, batch(&["new"])).base_offset, 0);
    node.stop();
}

#[test]
fn a_partition_takes_records_as_soon_as_clients_are_told_of_it() {
    const PARTITIONS: i32 = 50;
    let home = Home::new();
    let node = home.start();
    let mut client = node.client();
    for round in 0..10 {
        let topic = format!("new-{round}");
        client.ask_for_topic(&topic, PARTITIONS, &[]);
        let named = MetadataRequestTopic { name: Some(topic.as_str().into()), ..Default::default() };
        let request = MetadataRequest { topics: Some(vec![named]), ..Default::default() };
        until("clients are told of the topic", || client.call(12, &request).topics[0].error_code == 0);
        // The last of them, which is made last.
        let produced = client.produce(&topic, PARTITIONS - 1, batch(&["at once"]));
        assert_eq!(error(produced.error_code), ErrorCode::None, "round {round}");
    }
    node.stop();
}

#[test]
fn a_changed_configuration_takes_effect_at_once() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("tuned", 1, &[("flush.messages", "1")]);
    let value = "x".repeat(500);
    assert_eq!(client.produce("tuned", 0, batch(&[&value])).error_code, 0);
    let config = |name: &str, value: &str| AlterableConfig {
        name: name.into(),
        value: Some(value.into()),
        ..Default::default()
    };
    let resource = AlterConfigsResource {
        resource_type: 2,
        resource_name: "tuned".into(),
        configs: vec![config("max.message.bytes", "300"), config("flush.messages", "1000000")],
        ..Default::default()
    };
    let request = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
    assert_eq!(client.call(1, &request).responses[0].error_code, 0);
    until("the limit counts", || {
        error(client.produce("tuned", 0, batch(&[&value])).error_code) == ErrorCode::MessageTooLarge
    });
    let small = client.produce("tuned", 0, batch(&["small"]));
    assert_eq!(small.error_code, 0, "no acknowledgement waits for a sync any more");
    node.stop();
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + support::DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn health_and_metrics_tell_how_the_node_is() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("counted", 2, &[]);
    client.produce("counted", 0, batch(&["a", "b"]));
    assert!(node.http("/livez").starts_with("HTTP/1.1 200"));
    assert!(node.http("/readyz").starts_with("HTTP/1.1 200"));
    let page = node.http("/metrics");
    for line in [
        "kafka_server_brokertopicmetrics_messagesin_total 2",
        "kafka_server_brokertopicmetrics_messagesin_total{topic=\"counted\"} 2",
        "kafka_server_replicamanager_partitioncount 2",
        "kafka_controller_kafkacontroller_activecontrollercount 1",
        "kafka_server_kafkaserver_brokerstate 3",
        "kafka_server_replicamanager_underreplicatedpartitions 0",
        "kafka_server_replicamanager_underminisrpartitioncount 0",
        "kafka_server_replicamanager_isrexpands_total 0",
        "kafka_server_replicamanager_isrshrinks_total 0",
        "kafka_server_brokertopicmetrics_replicationbytesin_total 0",
        "kafka_server_brokertopicmetrics_replicationbytesout_total 0",
        "kafka_server_replicafetchermanager_maxlag{clientid=\"Replica\"} 0",
        "kafka_network_requestmetrics_requests_total{request=\"Produce\"} 1",
        "kafka_log_log_logendoffset{topic=\"counted\",partition=\"0\"} 2",
    ] {
        assert!(page.contains(line), "no {line:?} in:\n{page}");
    }
    node.stop();
}

#[test]
fn many_partitions_are_closed_at_the_same_time_and_start_cleanly() {
    const PARTITIONS: i32 = 100;
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("t", PARTITIONS, &[]);
    for partition in 0..PARTITIONS {
        assert_eq!(client.produce("t", partition, batch(&["kept"])).error_code, 0);
    }
    node.stop();
    let data = home.folder.path().join("data");
    assert!(data.join(".kafka_cleanshutdown").exists());
    let recovered = std::fs::read_to_string(data.join("recovery-point-offset-checkpoint")).unwrap();
    for partition in 0..PARTITIONS {
        assert!(recovered.contains(&format!("\nt {partition} 1\n")), "all of it is on the disk: {recovered}");
    }
    let node = home.start();
    let mut client = node.client();
    for partition in 0..PARTITIONS {
        assert_eq!(client.end_offset("t", partition), 1);
    }
    node.stop();
}
