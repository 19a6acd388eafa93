//! Three real processes that are killed without a word, all at once, while they take records and topics: whatever was acknowledged is there
//! when they are back, where it was said to be, and once.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gregor_client::{
    Client, ClientError, ClientOptions, ConsumerOptions, NewTopic, OffsetSpec, Producer, ProducerOptions,
    ProducerRecord, StartOffset, Stored,
    types::{ErrorCode, KString, Offset, PartitionIndex, TopicPartition},
};
use support::fleet::{DEADLINE, Fleet};

const PARTITIONS: i32 = 3;
const TOPIC: &str = "records";
/// Records on their way at a time; then comes a topic.
const RECORDS_PER_TOPIC: usize = 20;
/// What is acknowledged before each kill.
const RECORDS_PER_ROUND: usize = 200;
const ROUNDS: usize = 3;

/// What the cluster has acknowledged.
#[derive(Default)]
struct Promised {
    records: Vec<(String, Stored)>,
    topics: BTreeSet<KString>,
}

/// Produces with acks=all and creates topics, in turn, until told to stop; notes what was acknowledged.
async fn load(client: Client, producer: Producer, promised: Arc<Mutex<Promised>>, stop: Arc<AtomicBool>) {
    let admin = client.admin();
    let (mut next_record, mut next_topic) = (0_usize, 0_usize);
    while !stop.load(Ordering::Relaxed) {
        let mut sent = Vec::new();
        for _ in 0..RECORDS_PER_TOPIC {
            let value = next_record.to_string();
            let partition = Some(PartitionIndex(next_record as i32 % PARTITIONS));
            next_record += 1;
            let record = ProducerRecord { partition, ..ProducerRecord::new(TOPIC, value.clone()) };
            // What could not be sent was promised to nobody.
            if let Ok(delivery) = producer.send(record).await {
                sent.push((value, delivery));
            }
        }
        for (value, delivery) in sent {
            if let Ok(stored) = delivery.await {
                promised.lock().unwrap().records.push((value, stored));
            }
        }
        let name = KString::from(format!("topic-{next_topic}"));
        let exists = match admin.create_topic(NewTopic::new(name.clone()).partitions(1).replication_factor(3)).await {
            Ok(_) => true,
            // An earlier try was decided, and its answer lost.
            Err(ClientError::Broker(error)) => error.code == ErrorCode::TopicAlreadyExists,
            Err(_) => false,
        };
        if exists {
            promised.lock().unwrap().topics.insert(name);
            next_topic += 1;
        }
    }
    producer.close().await;
}

/// All records, by where they are.
async fn read_all(client: &Client) -> BTreeMap<(PartitionIndex, Offset), String> {
    let partitions: Vec<_> =
        (0..PARTITIONS).map(|index| TopicPartition::new(KString::from_static(TOPIC), PartitionIndex(index))).collect();
    let wanted: Vec<_> = partitions.iter().map(|one| (one.clone(), OffsetSpec::Latest)).collect();
    let mut ends = Vec::new();
    for (partition, listed) in client.admin().list_offsets(&wanted, false).await.unwrap() {
        ends.push((partition, listed.unwrap().offset));
    }
    let mut consumer = client.consumer(ConsumerOptions { auto_commit: None, ..ConsumerOptions::default() });
    consumer.assign(partitions.into_iter().map(|one| (one, StartOffset::Earliest))).await.unwrap();
    let mut found = BTreeMap::new();
    let deadline = Instant::now() + DEADLINE;
    while !ends.iter().all(|(partition, end)| consumer.position(partition).is_some_and(|at| at >= *end)) {
        assert!(Instant::now() < deadline, "the records are not read in time: {} of {ends:?}", found.len());
        for record in consumer.poll(Duration::from_millis(200)).await.unwrap() {
            let value = String::from_utf8(record.value.unwrap_or_default().to_vec()).unwrap();
            found.insert((record.partition.partition, record.offset), value);
        }
    }
    consumer.close().await.unwrap();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_doubled_when_all_nodes_are_killed_again_and_again() {
    let mut fleet = Fleet::format();
    fleet.start_all().await;
    let client = fleet.client(ClientOptions::default().with_timeout(Duration::from_secs(30))).await;
    let topic = NewTopic::new(TOPIC).partitions(PARTITIONS).replication_factor(3);
    client.admin().create_topic(topic).await.unwrap();
    let promised = Arc::new(Mutex::new(Promised::default()));
    let stop = Arc::new(AtomicBool::new(false));
    // One producer for all of it: it sends again what it heard nothing of.
    let producer = client.producer(ProducerOptions::default()).unwrap();
    let loading = tokio::spawn(load(client.clone(), producer, Arc::clone(&promised), Arc::clone(&stop)));
    for round in 0..=ROUNDS {
        let wanted = promised.lock().unwrap().records.len() + RECORDS_PER_ROUND;
        let deadline = Instant::now() + DEADLINE;
        while promised.lock().unwrap().records.len() < wanted {
            let count = promised.lock().unwrap().records.len();
            assert!(Instant::now() < deadline, "round {round}: {count} of {wanted} acknowledged\n{}", fleet.story());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if round < ROUNDS {
            fleet.kill_all();
            fleet.start_all().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    loading.await.unwrap();
    // What counts is what is there after a start, not what a process still has in its memory.
    fleet.kill_all();
    fleet.start_all().await;
    let client = fleet.client(ClientOptions::default().with_timeout(Duration::from_secs(30))).await;
    let found = read_all(&client).await;
    let Promised { records, topics } = std::mem::take(&mut *promised.lock().unwrap());
    let values: BTreeSet<&str> = found.values().map(String::as_str).collect();
    for (value, stored) in &records {
        if stored.offset == Offset::NONE {
            assert!(values.contains(value.as_str()), "record {value} is lost");
        } else {
            let at = found.get(&(stored.partition.partition, stored.offset));
            assert_eq!(at, Some(value), "what was acknowledged at {stored:?}");
        }
    }
    assert_eq!(values.len(), found.len(), "a record is there twice");
    let listed = client.admin().list_topics().await.unwrap();
    let listed: BTreeSet<KString> = listed.into_iter().map(|topic| topic.name).collect();
    let lost: Vec<_> = topics.iter().filter(|topic| !listed.contains(*topic)).collect();
    assert!(lost.is_empty() && topics.len() > ROUNDS, "of {} topics these are lost: {lost:?}", topics.len());
}
