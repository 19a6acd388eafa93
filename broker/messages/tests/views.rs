//! The hand-written views of Produce and Fetch say the same as the generated structs, on good bytes and on bad ones.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use bytes::Bytes;
use gregor_messages::{
    FetchRequest, FetchResponse, ProduceRequest, fetch_request, fetch_response,
    produce_request::{PartitionProduceData, TopicProduceData},
};
use gregor_types::{KString, Uuid};
use gregor_wire::{
    Message, RawTags, ResponseHeader,
    fetch::{self, FetchResponseWriter, FetchView, FetchedPartition, NodeEndpoint, ResponsePlan, Segment},
    produce::{self, ProduceView},
};
use proptest::{collection::vec, option, prelude::*};

fn text() -> impl Strategy<Value = KString> {
    "[a-z.é]{0,12}".prop_map(KString::from)
}

fn blob() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn produce_request(version: i16) -> impl Strategy<Value = ProduceRequest> {
    let partition = (any::<i32>(), option::of(blob())).prop_map(|(index, records)| PartitionProduceData {
        index,
        records,
        ..Default::default()
    });
    let topic =
        (text(), any::<u128>(), vec(partition, 0..4)).prop_map(move |(name, id, partition_data)| TopicProduceData {
            name: if version >= 13 { KString::default() } else { name },
            topic_id: Uuid(if version >= 13 { id } else { 0 }),
            partition_data,
            ..Default::default()
        });
    (option::of(text()), any::<i16>(), any::<i32>(), vec(topic, 0..4)).prop_map(
        |(transactional_id, acks, timeout_ms, topic_data)| ProduceRequest {
            transactional_id,
            acks,
            timeout_ms,
            topic_data,
            ..Default::default()
        },
    )
}

/// The view as the struct that it stands for. Unknown tagged fields are not shown by a view.
fn struct_of_produce(view: &ProduceView<'_>, body: &[u8]) -> ProduceRequest {
    ProduceRequest {
        transactional_id: view.transactional_id.map(KString::from),
        acks: view.acks,
        timeout_ms: view.timeout_ms,
        topic_data: view
            .topics()
            .map(|topic| TopicProduceData {
                name: topic.name.into(),
                topic_id: topic.topic_id,
                partition_data: topic
                    .partitions()
                    .map(|partition| {
                        assert_eq!(&body[partition.records_range()], partition.records.unwrap_or_default());
                        PartitionProduceData {
                            index: partition.index,
                            records: partition.records.map(Bytes::copy_from_slice),
                            ..Default::default()
                        }
                    })
                    .collect(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn without_tags(mut request: ProduceRequest) -> ProduceRequest {
    request.unknown_tagged_fields = RawTags::NONE;
    for topic in &mut request.topic_data {
        topic.unknown_tagged_fields = RawTags::NONE;
        topic.partition_data.iter_mut().for_each(|partition| partition.unknown_tagged_fields = RawTags::NONE);
    }
    request
}

fn fetch_request(version: i16) -> impl Strategy<Value = FetchRequest> {
    let since = move |first: i16| version >= first;
    let partition = (any::<i32>(), any::<i32>(), any::<i64>(), any::<i32>(), any::<i64>(), any::<i32>(), any::<u128>())
        .prop_map(move |(partition, epoch, offset, last_epoch, start, max_bytes, directory)| {
            fetch_request::FetchPartition {
                partition,
                current_leader_epoch: if since(9) { epoch } else { -1 },
                fetch_offset: offset,
                last_fetched_epoch: if since(12) { last_epoch } else { -1 },
                log_start_offset: if since(5) { start } else { -1 },
                partition_max_bytes: max_bytes,
                replica_directory_id: Uuid(if since(17) { directory } else { 0 }),
                high_watermark: if since(18) { start } else { i64::MAX },
                ..Default::default()
            }
        });
    let topic = (text(), any::<u128>(), vec(partition, 0..4)).prop_map(move |(topic, id, partitions)| {
        fetch_request::FetchTopic {
            topic: if since(13) { KString::default() } else { topic },
            topic_id: Uuid(if since(13) { id } else { 0 }),
            partitions,
            ..Default::default()
        }
    });
    let forgotten = (text(), any::<u128>(), vec(any::<i32>(), 0..4)).prop_map(move |(topic, id, partitions)| {
        fetch_request::ForgottenTopic {
            topic: if since(13) { KString::default() } else { topic },
            topic_id: Uuid(if since(13) { id } else { 0 }),
            partitions,
            ..Default::default()
        }
    });
    let numbers = (any::<i32>(), any::<i64>(), any::<i32>(), any::<i32>(), any::<i32>(), any::<i8>(), any::<i32>());
    (numbers, option::of(text()), text(), vec(topic, 0..4), vec(forgotten, 0..4)).prop_map(
        move |((replica, epoch, wait, min, max, isolation, session), cluster, rack, topics, forgotten)| FetchRequest {
            cluster_id: cluster.filter(|_| since(12)),
            replica_id: if since(15) { -1 } else { replica },
            replica_state: if since(15) {
                fetch_request::ReplicaState { replica_id: replica, replica_epoch: epoch, ..Default::default() }
            } else {
                fetch_request::ReplicaState::default()
            },
            max_wait_ms: wait,
            min_bytes: min,
            max_bytes: max,
            isolation_level: isolation,
            session_id: if since(7) { session } else { 0 },
            session_epoch: if since(7) { wait } else { -1 },
            topics,
            forgotten_topics_data: if since(7) { forgotten } else { Vec::new() },
            rack_id: if since(11) { rack } else { KString::default() },
            ..Default::default()
        },
    )
}

fn struct_of_fetch(view: &FetchView<'_>, version: i16) -> FetchRequest {
    let mut request = FetchRequest {
        cluster_id: view.cluster_id.map(KString::from),
        max_wait_ms: view.max_wait_ms,
        min_bytes: view.min_bytes,
        max_bytes: view.max_bytes,
        isolation_level: view.isolation_level,
        session_id: view.session_id,
        session_epoch: view.session_epoch,
        topics: view
            .topics()
            .map(|topic| fetch_request::FetchTopic {
                topic: topic.topic.into(),
                topic_id: topic.topic_id,
                partitions: topic
                    .partitions()
                    .map(|partition| fetch_request::FetchPartition {
                        partition: partition.partition,
                        current_leader_epoch: partition.current_leader_epoch,
                        fetch_offset: partition.fetch_offset,
                        last_fetched_epoch: partition.last_fetched_epoch,
                        log_start_offset: partition.log_start_offset,
                        partition_max_bytes: partition.partition_max_bytes,
                        replica_directory_id: partition.replica_directory_id,
                        high_watermark: partition.high_watermark,
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            })
            .collect(),
        forgotten_topics_data: view
            .forgotten_topics()
            .map(|topic| fetch_request::ForgottenTopic {
                topic: topic.topic.into(),
                topic_id: topic.topic_id,
                partitions: topic.partitions().collect(),
                ..Default::default()
            })
            .collect(),
        rack_id: view.rack_id.into(),
        ..Default::default()
    };
    if version >= 15 {
        request.replica_state.replica_id = view.replica_id;
        request.replica_state.replica_epoch = view.replica_epoch;
    } else {
        request.replica_id = view.replica_id;
    }
    request
}

fn without_fetch_tags(mut request: FetchRequest) -> FetchRequest {
    request.unknown_tagged_fields = RawTags::NONE;
    request.replica_state.unknown_tagged_fields = RawTags::NONE;
    for topic in &mut request.topics {
        topic.unknown_tagged_fields = RawTags::NONE;
        topic.partitions.iter_mut().for_each(|partition| partition.unknown_tagged_fields = RawTags::NONE);
    }
    request.forgotten_topics_data.iter_mut().for_each(|topic| topic.unknown_tagged_fields = RawTags::NONE);
    request
}

/// Good bytes with some of them changed, and sometimes cut.
fn spoil(bytes: &Bytes, changes: &[(prop::sample::Index, u8)], cut: Option<prop::sample::Index>) -> Bytes {
    let mut spoiled = bytes.to_vec();
    for (at, value) in changes.iter().filter(|_| !bytes.is_empty()) {
        spoiled[at.index(bytes.len())] = *value;
    }
    if let Some(cut) = cut.filter(|_| !bytes.is_empty()) {
        spoiled.truncate(cut.index(bytes.len()));
    }
    spoiled.into()
}

fn changes() -> impl Strategy<Value = (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>)> {
    (
        vec((any::<prop::sample::Index>(), prop_oneof![Just(0), Just(1), Just(0xff), any::<u8>()]), 0..4),
        option::of(any::<prop::sample::Index>()),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_produce_view_says_what_the_struct_says(
        (version, request) in produce::VERSIONS.prop_flat_map(|version| (Just(version), produce_request(version))),
    ) {
        let bytes = request.to_bytes(version).unwrap();
        let view = ProduceView::parse(&bytes, version).unwrap();
        prop_assert_eq!(struct_of_produce(&view, &bytes), request);
    }

    #[test]
    fn a_produce_view_refuses_exactly_what_the_struct_refuses(
        (version, request) in produce::VERSIONS.prop_flat_map(|version| (Just(version), produce_request(version))),
        (changes, cut) in changes(),
    ) {
        let bytes = spoil(&request.to_bytes(version).unwrap(), &changes, cut);
        match (ProduceView::parse(&bytes, version), ProduceRequest::from_bytes(bytes.clone(), version)) {
            (Ok(view), Ok(expected)) => prop_assert_eq!(struct_of_produce(&view, &bytes), without_tags(expected)),
            (Err(_), Err(_)) => {}
            (view, expected) => prop_assert!(false, "view: {view:?}\nstruct: {expected:?}\nbytes: {bytes:?}"),
        }
    }

    #[test]
    fn a_fetch_view_says_what_the_struct_says(
        (version, request) in fetch::VERSIONS.prop_flat_map(|version| (Just(version), fetch_request(version))),
    ) {
        let bytes = request.to_bytes(version).unwrap();
        let view = FetchView::parse(&bytes, version).unwrap();
        prop_assert_eq!(struct_of_fetch(&view, version), request);
    }

    #[test]
    fn a_fetch_view_refuses_exactly_what_the_struct_refuses(
        (version, request) in fetch::VERSIONS.prop_flat_map(|version| (Just(version), fetch_request(version))),
        (changes, cut) in changes(),
    ) {
        let bytes = spoil(&request.to_bytes(version).unwrap(), &changes, cut);
        match (FetchView::parse(&bytes, version), FetchRequest::from_bytes(bytes.clone(), version)) {
            (Ok(view), Ok(expected)) => prop_assert_eq!(struct_of_fetch(&view, version), without_fetch_tags(expected)),
            (Err(_), Err(_)) => {}
            (view, expected) => prop_assert!(false, "view: {view:?}\nstruct: {expected:?}\nbytes: {bytes:?}"),
        }
    }

    #[test]
    fn a_fetch_response_in_segments_is_the_struct_s_encoding(
        version in fetch::VERSIONS,
        topics in vec((text(), any::<u128>(), vec(fetched(), 0..4)), 0..4),
        endpoints in vec((any::<i32>(), text(), any::<i32>(), option::of(text())), 0..3),
    ) {
        let plan = plan_of(version, &topics, &endpoints);
        let sent: Vec<u8> = plan.segments().flat_map(|segment| match segment {
            Segment::Inline(bytes) => bytes,
            Segment::Records(bytes) => bytes,
        }).copied().collect();
        prop_assert_eq!(sent.len(), plan.size());
        prop_assert!(plan.segments().all(|segment| !matches!(segment, Segment::Inline([]))));

        let mut expected = ResponseHeader { correlation_id: 7, ..Default::default() }
            .to_bytes(i16::from(version >= 12)).unwrap().to_vec();
        expected.extend(response_of(version, &topics, &endpoints).to_bytes(version).unwrap());
        prop_assert_eq!(&sent[..4], (expected.len() as u32).to_be_bytes());
        prop_assert_eq!(&sent[4..], &expected);
    }
}

/// A partition of a response, in numbers.
type Fetched = (i32, i64, Option<Vec<(i64, i64)>>, (Option<(i32, i64)>, Option<(i32, i32)>, Option<(i64, i32)>), Bytes);
type Topics = [(KString, u128, Vec<Fetched>)];
type Endpoints = [(i32, KString, i32, Option<KString>)];

fn fetched() -> impl Strategy<Value = Fetched> {
    // A tagged struct with default values is left out by the generated code, so that -1 stays out of this test.
    let id = || 0..i32::MAX;
    let offset = || 0..i64::MAX;
    let tagged = (option::of((id(), offset())), option::of((id(), id())), option::of((offset(), id())));
    (any::<i32>(), any::<i64>(), option::of(vec(any::<(i64, i64)>(), 0..3)), tagged, blob())
}

fn plan_of(version: i16, topics: &Topics, endpoints: &Endpoints) -> ResponsePlan<Bytes> {
    // In the memory of another response, of which nothing may be left.
    let mut used =
        FetchResponseWriter::new(ResponsePlan::default(), 1, version, 0, 0, 0, 0).unwrap().finish(&[]).unwrap();
    used.clear(64);
    let mut writer =
        FetchResponseWriter::new(used, 7, version, 11, 0, if version >= 7 { 12 } else { 0 }, topics.len()).unwrap();
    for (topic, id, partitions) in topics {
        writer.topic(topic, Uuid(*id), partitions.len()).unwrap();
        for (index, offset, aborted, (diverging, leader, snapshot), records) in partitions {
            let tags = version >= 12;
            let partition = FetchedPartition {
                partition_index: *index,
                error_code: 3,
                high_watermark: *offset,
                last_stable_offset: 5,
                log_start_offset: 6,
                diverging_epoch: diverging.filter(|_| tags),
                current_leader: leader.filter(|_| tags),
                snapshot_id: snapshot.filter(|_| tags),
                aborted_transactions: aborted.as_deref(),
                preferred_read_replica: if version >= 11 { *index } else { -1 },
            };
            writer.partition(&partition, Some((records.clone(), records.len()))).unwrap();
        }
    }
    let endpoints: Vec<NodeEndpoint<'_>> = endpoints
        .iter()
        .map(|(node_id, host, port, rack)| NodeEndpoint { node_id: *node_id, host, port: *port, rack: rack.as_deref() })
        .collect();
    writer.finish(&endpoints).unwrap()
}

fn response_of(version: i16, topics: &Topics, endpoints: &Endpoints) -> FetchResponse {
    use fetch_response::{AbortedTransaction, EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch};
    let partition = |(index, offset, aborted, (diverging, leader, snapshot), records): &Fetched| {
        let mut data = fetch_response::PartitionData {
            partition_index: *index,
            error_code: 3,
            high_watermark: *offset,
            last_stable_offset: 5,
            log_start_offset: 6,
            aborted_transactions: aborted.as_ref().map(|list| {
                let one = |&(producer_id, first_offset): &(i64, i64)| AbortedTransaction {
                    producer_id,
                    first_offset,
                    ..Default::default()
                };
                list.iter().map(one).collect()
            }),
            preferred_read_replica: if version >= 11 { *index } else { -1 },
            records: Some(records.clone()),
            ..Default::default()
        };
        if version >= 12 {
            if let Some((epoch, end_offset)) = *diverging {
                data.diverging_epoch = EpochEndOffset { epoch, end_offset, ..Default::default() };
            }
            if let Some((leader_id, leader_epoch)) = *leader {
                data.current_leader = LeaderIdAndEpoch { leader_id, leader_epoch, ..Default::default() };
            }
            if let Some((end_offset, epoch)) = *snapshot {
                data.snapshot_id = fetch_response::SnapshotId { end_offset, epoch, ..Default::default() };
            }
        }
        data
    };
    FetchResponse {
        throttle_time_ms: 11,
        session_id: if version >= 7 { 12 } else { 0 },
        responses: topics
            .iter()
            .map(|(topic, id, partitions)| FetchableTopicResponse {
                topic: topic.clone(),
                topic_id: Uuid(*id),
                partitions: partitions.iter().map(partition).collect(),
                ..Default::default()
            })
            .collect(),
        node_endpoints: endpoints
            .iter()
            .filter(|_| version >= 16)
            .map(|(node_id, host, port, rack)| fetch_response::NodeEndpoint {
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
