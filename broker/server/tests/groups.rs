//! Groups on a whole node: our own client as the members, and raw frames for every version.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Mutex,
    time::{Duration, Instant},
};

use gregor_client::{
    Client, ClientError, ClientOptions, CommittedOffset, Compression, CompressionType, Consumer, ConsumerOptions,
    NewTopic, OffsetReset, OffsetSpec, ProducerOptions, ProducerRecord, StartOffset,
};
use gregor_messages::{
    DeleteGroupsRequest, DescribeGroupsRequest, FindCoordinatorRequest, HeartbeatRequest, InitProducerIdRequest,
    JoinGroupRequest, LeaveGroupRequest, ListGroupsRequest, OffsetCommitRequest, OffsetDeleteRequest,
    OffsetFetchRequest, SyncGroupRequest,
    join_group_request::JoinGroupRequestProtocol,
    leave_group_request::MemberIdentity,
    offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
    offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics},
    sync_group_request::SyncGroupRequestAssignment,
};
use gregor_types::{ErrorCode, KString, Offset, TopicId, TopicPartition};
use support::{DEADLINE, Home, Running};

fn home() -> Home {
    Home::new()
        .with("offsets.topic.replication.factor", "1")
        .with("offsets.topic.num.partitions", "4")
        .with("group.initial.rebalance.delay.ms", "50")
}

/// Runs a story of clients against a node.
fn tell<T>(node: &Running, story: impl AsyncFnOnce(Client) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bootstrap = node.address.to_string();
    runtime.block_on(async {
        let client = Client::connect(&bootstrap, ClientOptions::default()).await.unwrap();
        story(client).await
    })
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

fn member(client: &Client, group: &str) -> Consumer {
    client.consumer(ConsumerOptions {
        group_id: Some(group.into()),
        offset_reset: OffsetReset::Earliest,
        session_timeout: Duration::from_secs(6),
        heartbeat_interval: Duration::from_millis(50),
        // Only before a rebalance, and at the end.
        auto_commit: Some(Duration::from_hours(1)),
        ..ConsumerOptions::default()
    })
}

async fn produce(client: &Client, topic: &str, values: std::ops::Range<usize>) {
    let producer = client.producer(ProducerOptions::default()).unwrap();
    let mut deliveries = Vec::new();
    for value in values {
        let record = ProducerRecord::new(topic, format!("value {value}")).key(format!("key {value}"));
        deliveries.push(producer.send(record).await.unwrap());
    }
    for delivery in deliveries {
        within("an acknowledgement", delivery).await.unwrap();
    }
}

#[test]
fn two_consumers_share_a_topic_and_what_they_committed_survives_a_restart() {
    let home = home();
    let node = home.start();
    tell(&node, async |client| {
        client.admin().create_topic(NewTopic::new("orders").partitions(4).replication_factor(1)).await.unwrap();
        produce(&client, "orders", 0..400).await;
        let seen = Mutex::new(Seen::default());
        let [one, two] = [0, 1].map(|me| Box::pin(read_its_share(&client, me, &seen)));
        within("sharing the topic", async { tokio::join!(one, two) }).await;
    });
    node.stop();

    let node = home.start();
    tell(&node, async |client| {
        let committed = client.admin().list_group_offsets("readers").await.unwrap();
        assert_eq!(committed.values().map(|committed| committed.offset.value()).sum::<i64>(), 400, "{committed:?}");
        produce(&client, "orders", 400..410).await;
        let mut again = member(&client, "readers");
        again.subscribe(["orders".into()]).await.unwrap();
        let mut seen = BTreeSet::new();
        let started = Instant::now();
        while seen.len() < 10 {
            assert!(started.elapsed() < DEADLINE, "{seen:?}");
            seen.extend(
                again.poll(Duration::from_millis(200)).await.unwrap().into_iter().map(|record| record.value.unwrap()),
            );
        }
        let new: BTreeSet<_> = (400..410).map(|value| bytes::Bytes::from(format!("value {value}"))).collect();
        assert_eq!(seen, new, "it goes on where the others stopped");
        again.close().await.unwrap();
    });
    node.stop();
}

/// What two members have seen together, and what each of them reads.
#[derive(Default)]
struct Seen {
    values: BTreeSet<bytes::Bytes>,
    shares: [BTreeSet<TopicPartition>; 2],
    /// Whether they have everything and half of the partitions each; stays so when one of them leaves.
    done: bool,
}

/// Reads as a member until the two have everything and half of the partitions each, then commits and leaves.
async fn read_its_share(client: &Client, me: usize, seen: &Mutex<Seen>) {
    let mut member = member(client, "readers");
    member.subscribe(["orders".into()]).await.unwrap();
    loop {
        let records = member.poll(Duration::from_millis(100)).await.unwrap();
        let mut seen = seen.lock().unwrap();
        seen.values.extend(records.into_iter().map(|record| record.value.unwrap()));
        seen.shares[me] = member.assignment();
        let [one, two] = &seen.shares;
        seen.done |= seen.values.len() == 400 && one.len() == 2 && two.len() == 2 && one.is_disjoint(two);
        if seen.done {
            break;
        }
    }
    member.close().await.unwrap();
}

#[test]
fn a_group_is_described_its_offsets_are_changed_and_it_is_deleted() {
    let home = home();
    let node = home.start();
    tell(&node, async |client| {
        let admin = client.admin();
        admin.create_topic(NewTopic::new("orders").partitions(2).replication_factor(1)).await.unwrap();
        produce(&client, "orders", 0..20).await;
        let mut reader = member(&client, "readers");
        reader.subscribe(["orders".into()]).await.unwrap();
        let started = Instant::now();
        while reader.assignment().is_empty() {
            assert!(started.elapsed() < DEADLINE);
            reader.poll(Duration::from_millis(50)).await.unwrap();
        }
        let described = admin.describe_group("readers").await.unwrap();
        assert_eq!((&*described.state, &*described.protocol, described.members.len()), ("Stable", "range", 1));
        assert_eq!(described.members[0].client_host, "/127.0.0.1");
        let listed = admin.list_groups().await.unwrap();
        assert_eq!(listed.iter().map(|group| &*group.state).collect::<Vec<_>>(), ["Stable"]);
        let metrics = node.http("/metrics");
        for line in ["numgroups 1", "numgroupsstable 1", "numgroupsempty 0", "numoffsets 0"] {
            let line = format!("kafka_coordinator_group_groupmetadatamanager_{line}");
            assert!(metrics.contains(&line), "{line} is missing: {metrics}");
        }
        let refused = admin.delete_groups(&["readers".into()]).await.unwrap();
        assert_eq!(refused["readers"].as_ref().unwrap_err().code, ErrorCode::NonEmptyGroup);
        reader.close().await.unwrap();

        let first = TopicPartition::new("orders", 0);
        let offsets = BTreeMap::from([(first.clone(), CommittedOffset::new(7))]);
        assert_eq!(admin.alter_group_offsets("readers", &offsets).await.unwrap()[&first], Ok(()));
        assert_eq!(admin.list_group_offsets("readers").await.unwrap()[&first].offset, Offset(7));
        assert_eq!(admin.delete_group_offsets("readers", std::slice::from_ref(&first)).await.unwrap()[&first], Ok(()));
        assert_eq!(admin.list_group_offsets("readers").await.unwrap().get(&first), None);
        assert_eq!(admin.delete_groups(&["readers".into()]).await.unwrap()["readers"], Ok(()));
        assert_eq!(admin.describe_group("readers").await.unwrap_err().code(), Some(ErrorCode::GroupIdNotFound));
    });
    node.stop();
}

#[test]
fn offsets_of_a_deleted_topic_go_with_it() {
    let home = home();
    let node = home.start();
    tell(&node, async |client| {
        let admin = client.admin();
        let at = TopicPartition::new("orders", 0);
        for _ in 0..2 {
            admin.create_topic(NewTopic::new("orders").partitions(1).replication_factor(1)).await.unwrap();
            assert_eq!(admin.list_group_offsets("readers").await.unwrap().get(&at), None);
            let offsets = BTreeMap::from([(at.clone(), CommittedOffset::new(7))]);
            admin.alter_group_offsets("readers", &offsets).await.unwrap()[&at].as_ref().unwrap();
            admin.delete_topic("orders").await.unwrap();
            let started = Instant::now();
            while !admin.list_group_offsets("readers").await.unwrap().is_empty() {
                assert!(started.elapsed() < DEADLINE, "the offsets stay");
            }
        }
    });
    node.stop();
}

#[test]
fn every_codec_and_an_idempotent_producer_pass_through_our_own_client() {
    let home = home();
    let node = home.start();
    tell(&node, async |client| {
        client.admin().create_topic(NewTopic::new("codecs").partitions(1).replication_factor(1)).await.unwrap();
        let codecs = [
            CompressionType::None,
            CompressionType::Gzip,
            CompressionType::Snappy,
            CompressionType::Lz4,
            CompressionType::Zstd,
        ];
        for kind in codecs {
            let compression = Compression { kind, level: None };
            let options = ProducerOptions { compression, ..ProducerOptions::default() };
            let producer = client.producer(options).unwrap();
            let mut record = ProducerRecord::new("codecs", kind.name().repeat(100));
            record.headers = vec![("codec".into(), Some(kind.name().into())), ("empty".into(), None)];
            let stored = within("an acknowledgement", producer.send(record).await.unwrap()).await.unwrap();
            assert_eq!(stored.partition, TopicPartition::new("codecs", 0));
            producer.close().await;
        }
        let mut reader = client.consumer(ConsumerOptions::default());
        reader.assign([(TopicPartition::new("codecs", 0), StartOffset::Earliest)]).await.unwrap();
        let mut records = Vec::new();
        let started = Instant::now();
        while records.len() < codecs.len() {
            assert!(started.elapsed() < DEADLINE, "{records:?}");
            records.extend(reader.poll(Duration::from_millis(200)).await.unwrap());
        }
        for (kind, record) in codecs.iter().zip(&records) {
            assert_eq!(record.value.as_ref().unwrap(), kind.name().repeat(100).as_bytes());
            assert_eq!(record.headers[0], ("codec".into(), Some(kind.name().into())));
            assert_eq!(record.headers[1], ("empty".into(), None));
        }
        let partition = TopicPartition::new("codecs", 0);
        let latest = client.admin().list_offsets(&[(partition.clone(), OffsetSpec::Latest)], false).await.unwrap();
        assert_eq!(latest[&partition].as_ref().unwrap().offset, Offset(5));
    });
    node.stop();
}

#[test]
fn producer_ids_are_never_given_twice_not_even_after_a_restart() {
    let home = home();
    let mut ids = BTreeSet::new();
    for _ in 0..2 {
        let node = home.start();
        let mut client = node.client();
        for _ in 0..1_500 {
            let response = client.call(4, &InitProducerIdRequest { transaction_timeout_ms: 1, ..producer() });
            assert_eq!((ErrorCode::from(response.error_code), response.producer_epoch), (ErrorCode::None, 0));
            assert!(ids.insert(response.producer_id), "{} was given before", response.producer_id);
        }
        node.stop();
    }
}

fn producer() -> InitProducerIdRequest {
    InitProducerIdRequest { transactional_id: None, ..Default::default() }
}

#[test]
fn transactional_producers_are_sent_away_for_good_and_told_why() {
    let home = home();
    let node = home.start();
    let mut client = node.client();
    for version in 1..=6 {
        let key: KString = "payments".into();
        let request = if version < 4 {
            FindCoordinatorRequest { key, key_type: 1, ..Default::default() }
        } else {
            FindCoordinatorRequest { coordinator_keys: vec![key], key_type: 1, ..Default::default() }
        };
        let response = client.call(version, &request);
        let (code, message) = match response.coordinators.first() {
            Some(row) => (row.error_code, row.error_message.clone()),
            None => (response.error_code, response.error_message),
        };
        assert!(!ErrorCode::from(code).is_retriable());
        assert!(message.unwrap().contains("transactions"));
    }
    let request = InitProducerIdRequest { transactional_id: Some("payments".into()), ..Default::default() };
    let code = ErrorCode::from(client.call(5, &request).error_code);
    assert!(code != ErrorCode::None && !code.is_retriable(), "{code}");
    node.stop();
}

#[test]
fn clients_go_on_over_a_restart_and_nothing_is_lost_or_doubled() {
    let mut home = home();
    let mut node = home.start();
    let port = node.address.port();
    home = home.with("listeners", format!("PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:0"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = runtime.block_on(Client::connect(&node.address.to_string(), ClientOptions::default())).unwrap();
    let create = NewTopic::new("orders").partitions(2).replication_factor(1);
    runtime.block_on(client.admin().create_topic(create)).unwrap();
    let reading = runtime.spawn(read_everything(client.clone(), 300));
    for round in 0..3 {
        let values = round * 100..(round + 1) * 100;
        // Half of them are on their way while the node is down.
        let writing = runtime.spawn({
            let client = client.clone();
            async move { produce(&client, "orders", values).await }
        });
        node.stop();
        node = home.start();
        runtime.block_on(within("the writer", writing)).unwrap();
    }
    let seen = runtime.block_on(within("the reader", reading)).unwrap();
    let unique: BTreeSet<_> = seen.iter().cloned().collect();
    assert_eq!((seen.len(), unique.len()), (300, 300));
    node.stop();
}

/// As a member of a group that commits as it goes.
async fn read_everything(client: Client, count: usize) -> Vec<bytes::Bytes> {
    let mut reader = member(&client, "readers");
    reader.subscribe(["orders".into()]).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < count {
        let records = reader.poll(Duration::from_millis(100)).await.unwrap();
        seen.extend(records.into_iter().map(|record| record.value.unwrap()));
        // A commit that meets the restart is made up for by the next one.
        let _ = reader.commit().await;
    }
    seen
}

#[test]
fn a_consumer_alone_needs_no_group_and_cannot_commit() {
    let home = home();
    let node = home.start();
    tell(&node, async |client| {
        let mut alone = client.consumer(ConsumerOptions::default());
        let refused = alone.subscribe(["orders".into()]).await;
        assert!(matches!(refused, Err(ClientError::InvalidArgument(_))), "{refused:?}");
        let missing = alone.assign([(TopicPartition::new("nowhere", 0), StartOffset::Earliest)]).await.unwrap_err();
        assert!(missing.to_string().contains("nowhere"), "{missing}");
    });
    node.stop();
}

/// A member of one: joins, syncs, commits and so on, each request in the version that is asked for or the newest below it.
#[test]
fn every_version_of_the_group_protocol_is_served() {
    let home = home();
    let node = home.start();
    let mut client = node.with_topic("orders", 1, &[]);
    let topic_id = topic_id(&node);
    for version in 0..=10_i16 {
        let group: KString = format!("group-{version}").into();
        find_coordinator(&mut client, &group, version.min(6));
        let (member, generation) = join(&mut client, &group, version.min(9));
        let sync = SyncGroupRequest {
            group_id: group.clone(),
            generation_id: generation,
            member_id: member.clone(),
            protocol_type: (version >= 5).then(|| "consumer".into()),
            protocol_name: (version >= 5).then(|| "range".into()),
            assignments: vec![SyncGroupRequestAssignment {
                member_id: member.clone(),
                assignment: "part".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let synced = client.call(version.min(5), &sync);
        assert_eq!((ErrorCode::from(synced.error_code), &*synced.assignment), (ErrorCode::None, &b"part"[..]));
        let beat = HeartbeatRequest {
            group_id: group.clone(),
            generation_id: generation,
            member_id: member.clone(),
            ..Default::default()
        };
        assert_eq!(ErrorCode::from(client.call(version.min(4), &beat).error_code), ErrorCode::None);
        commit_and_fetch(&mut client, (&group, &member, generation), topic_id, version);

        let describe = DescribeGroupsRequest { groups: vec![group.clone()], ..Default::default() };
        let described = client.call(version.min(6), &describe);
        assert_eq!((&*described.groups[0].group_state, described.groups[0].members.len()), ("Stable", 1));
        let listed = client.call(version.min(5), &ListGroupsRequest::default());
        assert!(listed.groups.iter().any(|row| row.group_id == group));
        let leave = if version < 3 {
            LeaveGroupRequest { group_id: group.clone(), member_id: member.clone(), ..Default::default() }
        } else {
            let members = vec![MemberIdentity { member_id: member.clone(), ..Default::default() }];
            LeaveGroupRequest { group_id: group.clone(), members, ..Default::default() }
        };
        assert_eq!(ErrorCode::from(client.call(version.min(5), &leave).error_code), ErrorCode::None);
        let delete_offsets = OffsetDeleteRequest { group_id: group.clone(), ..Default::default() };
        assert_eq!(ErrorCode::from(client.call(0, &delete_offsets).error_code), ErrorCode::None);
        let delete = DeleteGroupsRequest { groups_names: vec![group.clone()], ..Default::default() };
        assert_eq!(ErrorCode::from(client.call(version.min(3), &delete).results[0].error_code), ErrorCode::None);
    }
    node.stop();
}

fn topic_id(node: &Running) -> TopicId {
    tell(node, async |client| client.admin().describe_topic("orders").await.unwrap().id)
}

fn find_coordinator(client: &mut support::Client, group: &KString, version: i16) {
    let request = if version < 4 {
        FindCoordinatorRequest { key: group.clone(), ..Default::default() }
    } else {
        FindCoordinatorRequest { coordinator_keys: vec![group.clone()], ..Default::default() }
    };
    let response = client.call(version, &request);
    let (code, node) = match response.coordinators.first() {
        Some(row) => (row.error_code, row.node_id),
        None => (response.error_code, response.node_id),
    };
    assert_eq!((ErrorCode::from(code), node), (ErrorCode::None, 1));
}

fn join(client: &mut support::Client, group: &KString, version: i16) -> (KString, i32) {
    let mut request = JoinGroupRequest {
        group_id: group.clone(),
        session_timeout_ms: 6_000,
        rebalance_timeout_ms: if version == 0 { -1 } else { 6_000 },
        protocol_type: "consumer".into(),
        protocols: vec![JoinGroupRequestProtocol { name: "range".into(), ..Default::default() }],
        ..Default::default()
    };
    let started = Instant::now();
    loop {
        let joined = client.call(version, &request);
        match ErrorCode::from(joined.error_code) {
            ErrorCode::None => {
                assert_eq!(joined.leader, joined.member_id);
                assert_eq!(joined.protocol_name.as_deref(), Some("range"));
                return (joined.member_id, joined.generation_id);
            }
            ErrorCode::MemberIdRequired => request.member_id = joined.member_id,
            // The shard's partition was created a moment ago.
            ErrorCode::CoordinatorLoadInProgress | ErrorCode::NotCoordinator if started.elapsed() < DEADLINE => {}
            error => panic!("{error}"),
        }
    }
}

fn commit_and_fetch(
    client: &mut support::Client,
    (group, member, generation): (&KString, &KString, i32),
    topic_id: TopicId,
    version: i16,
) {
    let by_id = version >= 10;
    let name = |by_id: bool| if by_id { KString::default() } else { "orders".into() };
    let id = |by_id: bool| if by_id { topic_id } else { TopicId::ZERO };
    let row = OffsetCommitRequestPartition {
        committed_offset: 5,
        committed_metadata: Some("note".into()),
        ..Default::default()
    };
    let commit = OffsetCommitRequest {
        group_id: group.clone(),
        generation_id_or_member_epoch: generation,
        member_id: member.clone(),
        topics: vec![OffsetCommitRequestTopic {
            name: name(by_id),
            topic_id: id(by_id),
            partitions: vec![row],
            ..Default::default()
        }],
        ..Default::default()
    };
    let committed = client.call(version.max(2), &commit);
    assert_eq!(ErrorCode::from(committed.topics[0].partitions[0].error_code), ErrorCode::None);
    assert_eq!(committed.topics[0].topic_id, id(by_id));

    for all in [false, true] {
        let version = version.max(if all { 2 } else { 1 });
        let request = if version < 8 {
            let topic =
                OffsetFetchRequestTopic { name: "orders".into(), partition_indexes: vec![0], ..Default::default() };
            OffsetFetchRequest { group_id: group.clone(), topics: (!all).then(|| vec![topic]), ..Default::default() }
        } else {
            let topic = OffsetFetchRequestTopics {
                name: name(by_id),
                topic_id: id(by_id),
                partition_indexes: vec![0],
                ..Default::default()
            };
            let group = OffsetFetchRequestGroup {
                group_id: group.clone(),
                topics: (!all).then(|| vec![topic]),
                ..Default::default()
            };
            OffsetFetchRequest { groups: vec![group], ..Default::default() }
        };
        let response = client.call(version, &request);
        let (offset, metadata) = if let Some(group) = response.groups.first() {
            assert_eq!(group.topics[0].topic_id, id(by_id));
            let row = &group.topics[0].partitions[0];
            (row.committed_offset, row.metadata.clone())
        } else {
            let row = &response.topics[0].partitions[0];
            (row.committed_offset, row.metadata.clone())
        };
        assert_eq!((offset, metadata.as_deref()), (5, Some("note")), "version {version}, all: {all}");
    }
}
