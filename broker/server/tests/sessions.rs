//! Fetch sessions over real sockets: what a session of many partitions costs, and what its client is told.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::time::{Duration, Instant};

use gregor_messages::{
    DeleteRecordsRequest, DeleteTopicsRequest, FetchRequest, FetchResponse,
    delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic},
    fetch_request::ForgottenTopic,
};
use gregor_types::ErrorCode;
use support::{Client, DEADLINE, Home, Running, batch, error, fetch_request};

const PARTITIONS: i32 = 1_000;
const VERSION: i16 = 12;

/// A client's end of a session.
struct Session {
    client: Client,
    topic: &'static str,
    id: i32,
    epoch: i32,
}

/// What a client is told of a partition: its number, whether there are records, and its error.
type Told = (i32, bool, ErrorCode);

impl Session {
    /// Opens one of the first partitions of a topic, each from its beginning.
    fn open(node: &Running, topic: &'static str, partitions: i32) -> Self {
        let mut client = node.client();
        let wanted: Vec<_> = (0..partitions).map(|partition| (partition, 0)).collect();
        let mut request = fetch_request(topic, &wanted, 0);
        request.session_epoch = 0;
        let opened: FetchResponse = client.call(VERSION, &request);
        assert_ne!(opened.session_id, 0);
        assert_eq!(opened.responses[0].partitions.len(), partitions as usize);
        Self { client, topic, id: opened.session_id, epoch: 1 }
    }

    fn request(&mut self, changed: &[(i32, i64)], max_wait_ms: i32) -> FetchRequest {
        let mut request = fetch_request(self.topic, changed, max_wait_ms);
        request.topics.retain(|topic| !topic.partitions.is_empty());
        (request.session_id, request.session_epoch) = (self.id, self.epoch);
        self.epoch += 1;
        request
    }

    fn send(&mut self, changed: &[(i32, i64)], max_wait_ms: i32) -> i32 {
        let request = self.request(changed, max_wait_ms);
        self.client.send(VERSION, &request)
    }

    fn receive(&mut self, correlation_id: i32) -> Vec<Told> {
        told(&self.client.receive::<FetchRequest>(VERSION, correlation_id))
    }

    fn fetch(&mut self, changed: &[(i32, i64)]) -> Vec<Told> {
        let id = self.send(changed, 0);
        self.receive(id)
    }
}

fn told(response: &FetchResponse) -> Vec<Told> {
    assert_eq!(error(response.error_code), ErrorCode::None);
    let partitions = response.responses.iter().flat_map(|topic| &topic.partitions);
    partitions
        .map(|one| {
            let has_records = one.records.as_ref().is_some_and(|records| !records.is_empty());
            (one.partition_index, has_records, error(one.error_code))
        })
        .collect()
}

fn metric(node: &Running, name: &str) -> u64 {
    let page = node.http("/metrics");
    let line = page.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
    line[name.len() + 1..].parse().unwrap()
}

/// How often a partition was looked at for a fetch.
fn looks(node: &Running) -> u64 {
    metric(node, "gregor_fetch_partition_reads_total")
}

/// Until a fetch sleeps.
fn asleep(node: &Running) {
    let deadline = Instant::now() + DEADLINE;
    while metric(node, "gregor_waiting_requests") == 0 {
        assert!(Instant::now() < deadline, "the fetch never slept");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn delete_records(client: &mut Client, topic: &str, partition: i32, offset: i64) {
    let partition = DeleteRecordsPartition { partition_index: partition, offset, ..Default::default() };
    let topic = DeleteRecordsTopic { name: topic.into(), partitions: vec![partition], ..Default::default() };
    let request = DeleteRecordsRequest { topics: vec![topic], timeout_ms: 10_000, ..Default::default() };
    let deleted = client.call(2, &request);
    assert_eq!(error(deleted.topics[0].partitions[0].error_code), ErrorCode::None);
}

fn delete_topic(client: &mut Client, topic: &str) {
    let request = DeleteTopicsRequest { topic_names: vec![topic.into()], timeout_ms: 10_000, ..Default::default() };
    let deleted = client.call(5, &request);
    assert_eq!(error(deleted.responses[0].error_code), ErrorCode::None);
}

/// A client asks again and again until something is told.
fn news(session: &mut Session) -> Vec<Told> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let told = session.fetch(&[]);
        if !told.is_empty() {
            return told;
        }
        assert!(Instant::now() < deadline, "nothing is ever told");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_fetch_of_a_large_session_looks_at_nothing_but_what_changed() {
    let home = Home::new();
    let node = home.start();
    let mut writer = node.with_topic("wide", PARTITIONS, &[]);
    let mut session = Session::open(&node, "wide", PARTITIONS);
    assert_eq!(session.fetch(&[]), [], "each is looked at once more, and watched from then on");

    let before = looks(&node);
    assert_eq!(session.fetch(&[]), []);
    assert_eq!(looks(&node) - before, 0);

    writer.produce("wide", 471, batch(&["news"]));
    assert_eq!(session.fetch(&[]), [(471, true, ErrorCode::None)]);
    assert_eq!(session.fetch(&[(471, 1)]), []);
    assert_eq!(looks(&node) - before, 2);

    // One that sleeps is woken by a partition that it did not look at, by more than one where one has too little.
    let mut request = session.request(&[(17, 0)], 30_000);
    request.min_bytes = 100;
    let sleeping = session.client.send(VERSION, &request);
    asleep(&node);
    writer.produce("wide", 472, batch(&["short"]));
    writer.produce("wide", 17, batch(&[&"long".repeat(50)]));
    assert_eq!(session.receive(sleeping), [(17, true, ErrorCode::None), (472, true, ErrorCode::None)]);
    assert!(looks(&node) - before < 30, "{} looks", looks(&node) - before);

    delete_records(&mut writer, "wide", 471, 1);
    assert_eq!(session.fetch(&[(17, 1), (472, 1)]), [(471, false, ErrorCode::None)], "its start moved");
    assert_eq!(session.fetch(&[]), []);
    assert!(looks(&node) - before < 40, "{} looks", looks(&node) - before);
    node.stop();
}

#[test]
fn a_sleeping_fetch_of_a_session_ends_at_its_time_and_hears_what_came_too_little() {
    let home = Home::new();
    let node = home.start();
    let mut writer = node.with_topic("slow", 3, &[]);
    let mut session = Session::open(&node, "slow", 3);
    session.fetch(&[]);
    let sleeping = session.send(&[], 50);
    assert_eq!(session.receive(sleeping), []);
    let mut request = session.request(&[], 500);
    request.min_bytes = 100_000;
    let sleeping = session.client.send(VERSION, &request);
    asleep(&node);
    writer.produce("slow", 2, batch(&["little"]));
    assert_eq!(session.receive(sleeping), [(2, true, ErrorCode::None)]);
    assert_eq!(metric(&node, "gregor_waiting_requests"), 0, "nothing stays behind");
    node.stop();
}

#[test]
fn a_session_hears_of_a_topic_that_is_deleted_and_made_anew() {
    let home = Home::new();
    let node = home.start();
    let mut writer = node.with_topic("mortal", 2, &[]);
    let mut session = Session::open(&node, "mortal", 2);
    session.fetch(&[]);
    let sleeping = session.send(&[], 30_000);
    asleep(&node);
    delete_topic(&mut writer, "mortal");
    let first = session.receive(sleeping);
    assert!(!first.is_empty() && first.iter().all(|(_, has_records, error)| !has_records && *error != ErrorCode::None));
    let deadline = Instant::now() + DEADLINE;
    let gone = [0, 1].map(|partition| (partition, false, ErrorCode::UnknownTopicOrPartition));
    while session.fetch(&[]) != gone {
        assert!(Instant::now() < deadline, "the partitions are never unknown");
    }
    assert_eq!(session.fetch(&[]), gone, "an error is told again and again");
    writer.create_topic("mortal", 2, &[]);
    let back = [0, 1].map(|partition| (partition, false, ErrorCode::None));
    assert_eq!(session.fetch(&[]), back);
    assert_eq!(session.fetch(&[]), []);
    writer.produce("mortal", 1, batch(&["again"]));
    assert_eq!(session.fetch(&[]), [(1, true, ErrorCode::None)]);
    node.stop();
}

#[test]
fn a_session_goes_on_where_a_connection_broke_and_ends_where_it_has_no_partitions() {
    let home = Home::new();
    let node = home.start();
    let mut writer = node.with_topic("broken", 2, &[]);
    let mut session = Session::open(&node, "broken", 2);
    session.fetch(&[]);
    let _ = session.send(&[], 30_000);
    asleep(&node);
    let former = std::mem::replace(&mut session.client, node.client());
    drop(former);
    writer.produce("broken", 1, batch(&["kept"]));
    assert_eq!(news(&mut session), [(1, true, ErrorCode::None)]);

    let mut last = session.request(&[], 0);
    last.forgotten_topics_data =
        vec![ForgottenTopic { topic: "broken".into(), partitions: vec![0, 1], ..Default::default() }];
    let ended = session.client.call(VERSION, &last);
    assert_eq!((ended.session_id, told(&ended)), (0, vec![]));
    assert_eq!(metric(&node, "kafka_server_fetchsessioncache_numincrementalfetchsessions"), 0);
    node.stop();
}
