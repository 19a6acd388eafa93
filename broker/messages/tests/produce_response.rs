//! A Produce response written straight into a buffer is the generated struct's encoding, in every version.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use bytes::BytesMut;
use gregor_messages::{
    ProduceResponse,
    produce_response::{
        self, BatchIndexAndErrorMessage, LeaderIdAndEpoch, PartitionProduceResponse, TopicProduceResponse,
    },
};
use gregor_types::{KString, Uuid};
use gregor_wire::{
    Message, ResponseHeader,
    fetch::NodeEndpoint,
    produce::{self, ProduceResponseWriter, ProducedPartition, set_error_code},
};
use proptest::{collection::vec, option, prelude::*};

type Produced = (i32, (i64, i64, i64), Vec<(i32, String)>, Option<String>, Option<(i32, i32)>);
type Topics = [(KString, u128, Vec<Produced>)];
type Endpoints = [(i32, KString, i32, Option<KString>)];

const ERROR_CODE: i16 = 19;

fn text() -> impl Strategy<Value = KString> {
    "[a-z.é]{0,12}".prop_map(KString::from)
}

fn produced() -> impl Strategy<Value = Produced> {
    // The generated code leaves a tagged struct with default values out, so -1 stays out of this test.
    let leader = option::of((0..i32::MAX, 0..i32::MAX));
    (
        any::<i32>(),
        any::<(i64, i64, i64)>(),
        vec((any::<i32>(), "[a-z]{0,9}"), 0..3),
        option::of("[a-z]{0,200}"),
        leader,
    )
}

fn written(version: i16, topics: &Topics, endpoints: &Endpoints) -> BytesMut {
    // In the memory of another response, of which nothing may be left.
    let used = ProduceResponseWriter::new(BytesMut::new(), 1, version, 0).unwrap().finish(9, &[]).unwrap();
    let mut writer = ProduceResponseWriter::new(used, 7, version, topics.len()).unwrap();
    let mut codes = Vec::new();
    for (name, id, partitions) in topics {
        writer.topic(name, Uuid(*id), partitions.len()).unwrap();
        for (index, (base, time, start), errors, message, leader) in partitions {
            let partition = ProducedPartition {
                index: *index,
                error_code: 0,
                base_offset: *base,
                log_append_time_ms: *time,
                log_start_offset: *start,
                record_errors: errors,
                error_message: message.as_deref(),
                current_leader: *leader,
            };
            codes.push(writer.partition(&partition).unwrap());
        }
    }
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(node_id, host, port, rack)| NodeEndpoint { node_id: *node_id, host, port: *port, rack: rack.as_deref() })
        .collect();
    let mut response = writer.finish(11, &endpoints).unwrap();
    for at in codes {
        set_error_code(&mut response, at, ERROR_CODE);
    }
    response
}

fn generated(version: i16, topics: &Topics, endpoints: &Endpoints) -> ProduceResponse {
    let since = |first: i16| version >= first;
    let record_error = |(batch_index, message): &(i32, String)| BatchIndexAndErrorMessage {
        batch_index: *batch_index,
        batch_index_error_message: Some(message.as_str().into()),
        ..Default::default()
    };
    let partition = |(index, (base, time, start), errors, message, leader): &Produced| PartitionProduceResponse {
        index: *index,
        error_code: ERROR_CODE,
        base_offset: *base,
        log_append_time_ms: *time,
        log_start_offset: *start,
        record_errors: errors.iter().map(record_error).collect(),
        error_message: message.as_deref().map(KString::from),
        current_leader: leader.filter(|_| since(10)).map_or_else(
            LeaderIdAndEpoch::default,
            |(leader_id, leader_epoch)| LeaderIdAndEpoch { leader_id, leader_epoch, ..Default::default() },
        ),
        ..Default::default()
    };
    ProduceResponse {
        responses: topics
            .iter()
            .map(|(name, id, partitions)| TopicProduceResponse {
                name: name.clone(),
                topic_id: Uuid(*id),
                partition_responses: partitions.iter().map(partition).collect(),
                ..Default::default()
            })
            .collect(),
        throttle_time_ms: 11,
        node_endpoints: endpoints
            .iter()
            .filter(|_| since(10))
            .map(|(node_id, host, port, rack)| produce_response::NodeEndpoint {
                node_id: *node_id,
                host: host.clone(),
                port: *port,
                rack: rack.clone(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_produce_response_is_the_struct_s_encoding(
        version in produce::VERSIONS,
        topics in vec((text(), any::<u128>(), vec(produced(), 0..4)), 0..4),
        endpoints in vec((any::<i32>(), text(), any::<i32>(), option::of(text())), 0..3),
    ) {
        let sent = written(version, &topics, &endpoints);
        let mut expected = ResponseHeader { correlation_id: 7, ..Default::default() }
            .to_bytes(i16::from(version >= 9)).unwrap().to_vec();
        expected.extend(generated(version, &topics, &endpoints).to_bytes(version).unwrap());
        prop_assert_eq!(&sent[..4], (expected.len() as u32).to_be_bytes());
        prop_assert_eq!(&sent[4..], &expected);
    }
}
