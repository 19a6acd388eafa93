//! A warm connection allocates nothing: ten thousand produces and as many fetches at the tail, over a real socket. Under TLS it
//! allocates what rustls does for a record, which takes no buffer of ours.
//!
//! Only what the node's own threads allocate is counted. Indexes grow with the log, so they are let grow in one test alone.

#![allow(unsafe_code, reason = "a global allocator that counts; the test's own, nothing ships with it")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use gregor_messages::{FetchRequest, FetchResponse, ProduceRequest, Request};
use gregor_wire::{Message, RequestHeader, Struct, Writer};
use rustls::version::TLS13;
use support::{
    Client, Home, Running, batch,
    certificates::{Authority, TlsClient, connect},
    fetch_request, produce_request,
};

const WARM_UP: usize = 300;
const REQUESTS: usize = 10_000;
/// Each is encrypted by itself, so fewer say the same.
const TLS_REQUESTS: usize = 2_000;
/// One for what rustls decrypts of a request's record, one for the record that it makes of the response: it hands both over
/// as memory of their own.
const TLS_ALLOCATIONS: u64 = 2;
const RUNS_MAX: usize = 6;
/// So long runs are made that do not count.
const PATIENCE: Duration = Duration::from_mins(3);
const PRODUCE_VERSION: i16 = 9;
const FETCH_VERSION: i16 = 12;

/// Counts what the node's threads allocate.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if IS_COUNTED.get() {
        ALLOCATIONS.fetch_add(1, Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged; the flag is a plain thread-local value without a
// destructor, the counter an atomic, and neither allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises about the layout are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from the same allocator with the same layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises about pointer, layout and size are passed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The counter is the whole process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(home: &Home) -> Running {
    home.start_with(|| IS_COUNTED.set(true))
}

/// The fewest allocations of a few runs: a job that the node does now and then on the same threads may fall into one of them,
/// what a request allocates is in all. On a busy machine appends may look slow, or reads have to wait, and are made on other
/// threads for a while, which allocates: a run in which that began does not count.
fn allocations_of(node: &Running, expected: u64, mut act: impl FnMut()) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    let mut fewest = None;
    let mut runs = 0;
    while runs < RUNS_MAX && fewest.is_none_or(|fewest| fewest > expected) {
        assert!(Instant::now() < deadline, "appends or reads were made elsewhere in every run, {fewest:?} were fewest");
        let elsewhere = Elsewhere::of(node);
        if elsewhere.is_under_way {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        let before = ALLOCATIONS.load(Relaxed);
        act();
        let allocations = ALLOCATIONS.load(Relaxed) - before;
        if Elsewhere::of(node) == elsewhere {
            runs += 1;
            fewest = Some(fewest.map_or(allocations, |fewest: u64| fewest.min(allocations)));
        }
    }
    fewest.expect("there is a run")
}

/// What the node makes on other threads than those of connections, and how often that began.
#[derive(PartialEq, Eq)]
struct Elsewhere {
    is_under_way: bool,
    begun: Vec<String>,
}

impl Elsewhere {
    fn of(node: &Running) -> Self {
        let page = node.http("/metrics");
        let is_under_way = |line: &str| line.starts_with("gregor_log_append_offloaded{") && !line.ends_with(" 0");
        let begun = ["gregor_log_append_offloads_total", "gregor_fetch_offloads_total"];
        let begun = page.lines().filter(|line| begun.iter().any(|name| line.starts_with(name)));
        let begun: Vec<_> = begun.map(str::to_owned).collect();
        assert!(begun.len() >= 2, "the node counts both in {page}");
        Self { is_under_way: page.lines().any(is_under_way), begun }
    }
}

/// A connection that sends the same bytes again and again.
struct Wire<S = TcpStream> {
    stream: S,
    answer: Vec<u8>,
}

impl<S: Read + Write> Wire<S> {
    fn of(client: Client<S>) -> Self {
        Self { stream: client.stream, answer: Vec::new() }
    }

    fn send(&mut self, frame: &[u8]) {
        self.stream.write_all(frame).unwrap();
    }

    fn receive(&mut self) -> &[u8] {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).unwrap();
        self.answer.resize(u32::from_be_bytes(length) as usize, 0);
        self.stream.read_exact(&mut self.answer).unwrap();
        &self.answer
    }
}

fn frame<R: Request>(request: &R, version: i16) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.i32(0);
    let header = RequestHeader {
        request_api_key: R::KEY.code(),
        request_api_version: version,
        correlation_id: 7,
        client_id: Some("test".into()),
        ..RequestHeader::default()
    };
    header.write(&mut writer, R::KEY.request_header_version(version)).unwrap();
    request.encode(&mut writer, version).unwrap();
    let mut bytes = writer.into_inner().to_vec();
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn produce_frame(topic: &str) -> Vec<u8> {
    frame::<ProduceRequest>(&produce_request(topic, 0, -1, batch(&[&"x".repeat(100)])), PRODUCE_VERSION)
}

/// An index entry for every so many bytes would be an allocation now and then.
const NO_INDEX: [(&str, &str); 1] = [("index.interval.bytes", "2147483647")];

#[test]
fn a_warm_produce_allocates_nothing() {
    let _alone = alone();
    let home = Home::new();
    let node = start(&home);
    let mut wire = Wire::of(node.with_topic("events", 1, &NO_INDEX));
    let frame = produce_frame("events");
    let mut produce = |times| {
        for _ in 0..times {
            wire.send(&frame);
            wire.receive();
        }
    };
    produce(WARM_UP);
    assert_eq!(allocations_of(&node, 0, || produce(REQUESTS)), 0);
    node.stop();
}

#[test]
fn a_warm_produce_allocates_for_the_growth_of_indexes_alone() {
    let _alone = alone();
    let home = Home::new();
    let node = start(&home);
    let mut wire = Wire::of(node.with_topic("events", 1, &[]));
    let frame = produce_frame("events");
    let mut produce = |times| {
        for _ in 0..times {
            wire.send(&frame);
            wire.receive();
        }
    };
    produce(WARM_UP);
    let entries = (REQUESTS * frame.len() / 4096) as u64;
    let allocations = allocations_of(&node, 0, || produce(REQUESTS));
    assert!(allocations < entries / 4, "{allocations} allocations for {entries} index entries");
    node.stop();
}

/// Fetches at the tail, each of which sleeps until a produce wakes it.
struct Follower<S> {
    producer: Wire,
    consumer: Wire<S>,
    produced: Vec<u8>,
    offset: i64,
    /// The session and its epoch, where it fetches in one.
    session: Option<(i32, i32)>,
}

impl<S: Read + Write> Follower<S> {
    fn new(producer: Client, mut consumer: Client<S>, partitions_of_session: i32) -> Self {
        let session = (partitions_of_session > 0).then(|| {
            let partitions: Vec<_> = (0..partitions_of_session).map(|partition| (partition, 0)).collect();
            let mut request = fetch_request("events", &partitions, 0);
            request.session_epoch = 0;
            (consumer.call(FETCH_VERSION, &request).session_id, 1)
        });
        let produced = produce_frame("events");
        Self { producer: Wire::of(producer), consumer: Wire::of(consumer), produced, offset: 0, session }
    }

    fn frame(&mut self) -> Vec<u8> {
        let mut request = fetch_request("events", &[(0, self.offset)], 30_000);
        if let Some((id, epoch)) = &mut self.session {
            (request.session_id, request.session_epoch) = (*id, *epoch);
            *epoch += 1;
        }
        frame::<FetchRequest>(&request, FETCH_VERSION)
    }

    fn follow(&mut self, times: usize) {
        for _ in 0..times {
            let fetch = self.frame();
            self.consumer.send(&fetch);
            self.producer.send(&self.produced);
            self.producer.receive();
            let answer = Bytes::copy_from_slice(&self.consumer.receive()[5..]);
            let fetched = FetchResponse::from_bytes(answer, FETCH_VERSION).unwrap();
            let partition = &fetched.responses[0].partitions[0];
            assert_eq!(partition.high_watermark, self.offset + 1);
            assert!(!partition.records.as_ref().unwrap().is_empty());
            self.offset += 1;
        }
    }
}

#[test]
fn a_warm_fetch_at_the_tail_allocates_nothing() {
    let _alone = alone();
    let home = Home::new();
    let node = start(&home);
    let mut follower = Follower::new(node.with_topic("events", 1, &NO_INDEX), node.client(), 0);
    follower.follow(WARM_UP);
    assert_eq!(allocations_of(&node, 0, || follower.follow(REQUESTS)), 0);
    node.stop();
}

#[test]
fn a_warm_fetch_of_a_session_allocates_nothing() {
    let _alone = alone();
    let home = Home::new();
    let node = start(&home);
    let mut follower = Follower::new(node.with_topic("events", 50, &NO_INDEX), node.client(), 50);
    follower.follow(WARM_UP);
    assert_eq!(allocations_of(&node, 0, || follower.follow(REQUESTS)), 0);
    node.stop();
}

/// A node with a TLS listener, and connections to it.
fn start_tls(authority: &Authority) -> (Home, Running) {
    let home = Home::new();
    let store = home.folder.path().join("store.pem");
    std::fs::write(&store, authority.sign("node").store()).unwrap();
    let home = home
        .with("listeners", "PLAINTEXT://127.0.0.1:0,SSL://127.0.0.1:0,CONTROLLER://127.0.0.1:0")
        .with("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,SSL:SSL,CONTROLLER:PLAINTEXT")
        .with("ssl.keystore.type", "PEM")
        .with("ssl.keystore.location", store.to_str().unwrap());
    let node = start(&home);
    (home, node)
}

fn tls_client(node: &Running, authority: &Authority) -> TlsClient {
    connect(node.address_of("SSL"), authority.client(&[&TLS13], None)).unwrap()
}

#[test]
fn a_warm_produce_under_tls_allocates_what_rustls_does_for_its_records() {
    let _alone = alone();
    let authority = Authority::new("authority");
    let (_home, node) = start_tls(&authority);
    let _ = node.with_topic("events", 1, &NO_INDEX);
    let mut wire = Wire::of(tls_client(&node, &authority));
    let frame = produce_frame("events");
    let mut produce = |times| {
        for _ in 0..times {
            wire.send(&frame);
            wire.receive();
        }
    };
    produce(WARM_UP);
    let expected = TLS_REQUESTS as u64 * TLS_ALLOCATIONS;
    assert_eq!(allocations_of(&node, expected, || produce(TLS_REQUESTS)), expected);
    node.stop();
}

#[test]
fn a_warm_fetch_under_tls_allocates_what_rustls_does_for_its_records() {
    let _alone = alone();
    let authority = Authority::new("authority");
    let (_home, node) = start_tls(&authority);
    let producer = node.with_topic("events", 1, &NO_INDEX);
    let mut follower = Follower::new(producer, tls_client(&node, &authority), 0);
    follower.follow(WARM_UP);
    let expected = TLS_REQUESTS as u64 * TLS_ALLOCATIONS;
    assert_eq!(allocations_of(&node, expected, || follower.follow(TLS_REQUESTS)), expected);
    node.stop();
}
