//! A node on a folder and ports of its own, and a client of raw frames: what the tests of this crate stand on.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "a panic is how a test fails")]

pub mod certificates;
pub mod controllers;
pub mod directories;
pub mod envelope;
pub mod network;

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use gregor_config::{BrokerConfig, Properties};
use gregor_log::{Disk, disk::RealDisk};
use gregor_messages::{
    CreateTopicsRequest, FetchRequest, FetchResponse, ListOffsetsRequest, ProduceRequest, ProduceResponse, Request,
    create_topics_request::{CreatableTopic, CreatableTopicConfig},
    fetch_request::{FetchPartition, FetchTopic},
    fetch_response::PartitionData,
    list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    list_offsets_response::ListOffsetsPartitionResponse,
    produce_request::{PartitionProduceData, TopicProduceData},
    produce_response::PartitionProduceResponse,
};
use gregor_raft::{Endpoint, ReplicaKey, Voter};
use gregor_server::{
    Node, NodeOptions,
    control::{FormatOptions, InitialVoters, format_storage},
};
use gregor_types::{BrokerId, ErrorCode, Offset, ProducerEpoch, ProducerId, Timestamp, Uuid};
use gregor_wire::{
    Message, RequestHeader, ResponseHeader, Struct, Writer,
    batch::{BatchOptions, ProducerStamp, RecordBatchBuilder},
    compression::{Compression, CompressionType},
};

pub const DEADLINE: Duration = Duration::from_secs(30);
const DIRECTORY: Uuid = Uuid(0x1111_2222_3333_4444_8555_6666_7777_8888);

/// A folder with a formatted node in it, and what its `server.properties` says beyond the usual.
pub struct Home {
    pub folder: tempfile::TempDir,
    disk: Arc<dyn Disk>,
    properties: Vec<(&'static str, String)>,
}

/// A node that runs, on a runtime of its own.
pub struct Running {
    runtime: tokio::runtime::Runtime,
    node: Option<Node>,
    pub address: SocketAddr,
    pub health: SocketAddr,
}

/// A connection that speaks frames.
pub struct Client<S = TcpStream> {
    pub stream: S,
    next_correlation_id: i32,
}

impl Home {
    pub fn new() -> Self {
        Self::on(Arc::new(RealDisk))
    }

    pub fn on(disk: Arc<dyn Disk>) -> Self {
        Self::of(disk, tempfile::tempdir().unwrap())
    }

    pub fn of(disk: Arc<dyn Disk>, folder: tempfile::TempDir) -> Self {
        let home = Self { folder, disk, properties: Vec::new() };
        let directory = home.folder.path().join("data");
        let voter = Voter {
            key: ReplicaKey::new(BrokerId(1), DIRECTORY),
            endpoints: vec![Endpoint { name: "CONTROLLER".into(), host: "127.0.0.1".into(), port: 9093 }],
            kraft_versions: (0, 1),
        };
        let options = FormatOptions {
            cluster_id: "test-cluster".into(),
            node_id: BrokerId(1),
            directories: vec![(directory.clone(), DIRECTORY)],
            metadata_directory: directory,
            voters: InitialVoters::Dynamic(vec![voter]),
            metadata_version: 30,
            features: Vec::new(),
            ignore_formatted: false,
            now: Timestamp(1_700_000_000_000),
        };
        format_storage(&*home.disk, &options).unwrap();
        home
    }

    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.properties.push((key, value.into()));
        self
    }

    pub fn config(&self) -> BrokerConfig {
        let mut properties = Properties::default();
        properties.set("node.id", "1");
        properties.set("process.roles", "broker,controller");
        properties.set("listeners", "PLAINTEXT://127.0.0.1:0,CONTROLLER://127.0.0.1:0");
        properties.set("controller.listener.names", "CONTROLLER");
        properties.set("controller.quorum.bootstrap.servers", "127.0.0.1:9093");
        properties.set("log.dirs", self.folder.path().join("data").to_str().unwrap());
        for (key, value) in &self.properties {
            properties.set(*key, value);
        }
        BrokerConfig::from_properties(&properties).unwrap().0
    }

    pub fn start(&self) -> Running {
        self.start_with(|| {})
    }

    /// The same, with something that every thread of the node's runtime does first.
    pub fn start_with(&self, on_thread: impl Fn() + Send + Sync + 'static) -> Running {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).on_thread_start(on_thread).enable_all().build().unwrap();
        let options = NodeOptions { health_listen: Some("127.0.0.1:0".to_owned()) };
        let node = runtime.block_on(Node::start_on(Arc::clone(&self.disk), self.config(), options)).unwrap();
        let address = node.addresses().iter().find(|(name, _)| name == "PLAINTEXT").unwrap().1;
        let health = node.health_address().unwrap();
        Running { runtime, node: Some(node), address, health }
    }
}

impl Home {
    /// What the node says that refuses to start, with the causes.
    pub fn refusal(&self) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let started = Node::start_on(Arc::clone(&self.disk), self.config(), NodeOptions { health_listen: None });
        let Err(error) = runtime.block_on(started) else { panic!("the node starts") };
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }
}

impl Running {
    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// A client, and a topic of that many partitions that can be written.
    pub fn with_topic(&self, topic: &str, partitions: i32, configs: &[(&str, &str)]) -> Client {
        let mut client = self.client();
        client.create_topic(topic, partitions, configs);
        client
    }

    /// Where the listener of this name is.
    pub fn address_of(&self, listener: &str) -> SocketAddr {
        self.node.as_ref().unwrap().addresses().iter().find(|(name, _)| name == listener).unwrap().1
    }

    pub fn stop(mut self) {
        let node = self.node.take().unwrap();
        let stopped = self.runtime.block_on(async { tokio::time::timeout(DEADLINE, node.shutdown()).await });
        // A thread that hangs must not hold up the test that tells of it.
        self.runtime.shutdown_background();
        stopped.expect("the node stops in time").unwrap();
    }

    /// Why the node cannot go on, once it says so.
    pub fn failure(&self) -> String {
        let mut failures = self.node.as_ref().unwrap().failures();
        let failure = async { tokio::time::timeout(DEADLINE, failures.recv()).await };
        self.runtime.block_on(failure).expect("the node says that it cannot go on")
    }

    /// Leaves the node where it stands, as a crash does: nothing is answered, synced or closed any more.
    pub fn abandon(self) {
        self.runtime.shutdown_background();
    }

    /// The answer of the health listener: its status line and body.
    pub fn http(&self, path: &str) -> String {
        http(self.health, path)
    }
}

/// What the health listener at this address answers.
pub fn http(health: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(health).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }
}

impl<S: Read + Write> Client<S> {
    pub fn over(stream: S) -> Self {
        Self { stream, next_correlation_id: 1 }
    }

    /// Sends a request; returns its correlation id.
    pub fn send<R: Request>(&mut self, version: i16, request: &R) -> i32 {
        let correlation_id = self.next_correlation_id;
        self.next_correlation_id += 1;
        let header = RequestHeader {
            request_api_key: R::KEY.code(),
            request_api_version: version,
            correlation_id,
            client_id: Some("test".into()),
            ..RequestHeader::default()
        };
        let mut writer = Writer::new();
        header.write(&mut writer, R::KEY.request_header_version(version)).unwrap();
        request.encode(&mut writer, version).unwrap();
        self.send_frame(&writer.into_bytes());
        correlation_id
    }

    pub fn send_frame(&mut self, frame: &[u8]) {
        let mut bytes = BytesMut::from(&(frame.len() as u32).to_be_bytes()[..]);
        bytes.extend_from_slice(frame);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next frame without its length.
    pub fn read_frame(&mut self) -> Bytes {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut frame).unwrap();
        frame.into()
    }

    pub fn receive<R: Request>(&mut self, version: i16, correlation_id: i32) -> R::Response {
        let mut reader = gregor_wire::Reader::new(self.read_frame());
        let header = ResponseHeader::read(&mut reader, R::KEY.response_header_version(version)).unwrap();
        assert_eq!(header.correlation_id, correlation_id);
        let response = R::Response::decode(&mut reader, version).unwrap();
        reader.finish().unwrap();
        response
    }

    pub fn call<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        let correlation_id = self.send(version, request);
        self.receive::<R>(version, correlation_id)
    }

    /// Whether the node closes the connection, and sends nothing before.
    pub fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        }
    }

    pub fn create_topic(&mut self, topic: &str, partitions: i32, configs: &[(&str, &str)]) {
        self.ask_for_topic(topic, partitions, configs);
        // The partition is created by a thread of its own, soon after the topic is committed.
        let deadline = Instant::now() + DEADLINE;
        for partition in 0..partitions {
            while self.list_offset(topic, partition, -1).error_code != 0 {
                assert!(Instant::now() < deadline, "{topic}-{partition} never had a leader");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// The same without waiting for its partitions.
    pub fn ask_for_topic(&mut self, topic: &str, partitions: i32, configs: &[(&str, &str)]) {
        let config = |(name, value): &(&str, &str)| CreatableTopicConfig {
            name: (*name).into(),
            value: Some((*value).into()),
            ..Default::default()
        };
        let request = CreateTopicsRequest {
            topics: vec![CreatableTopic {
                name: topic.into(),
                num_partitions: partitions,
                replication_factor: 1,
                configs: configs.iter().map(config).collect(),
                ..Default::default()
            }],
            timeout_ms: 10_000,
            ..Default::default()
        };
        let response = self.call(7, &request);
        assert_eq!(ErrorCode::from(response.topics[0].error_code), ErrorCode::None, "{response:?}");
    }

    pub fn produce(&mut self, topic: &str, partition: i32, records: Bytes) -> PartitionProduceResponse {
        let response = self.call(9, &produce_request(topic, partition, -1, records));
        only(response)
    }

    /// Fetches from one partition at an offset, waiting up to `max_wait_ms` for one byte.
    pub fn fetch(&mut self, topic: &str, partition: i32, offset: i64, max_wait_ms: i32) -> PartitionData {
        let response: FetchResponse = self.call(12, &fetch_request(topic, &[(partition, offset)], max_wait_ms));
        assert_eq!(response.error_code, 0);
        response.responses[0].partitions[0].clone()
    }

    /// The log's end, once the partition is served: after a crash its log is checked first.
    pub fn end_offset(&mut self, topic: &str, partition: i32) -> i64 {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let listed = self.list_offset(topic, partition, -1);
            if listed.error_code == 0 {
                return listed.offset;
            }
            assert!(Instant::now() < deadline, "{topic}-{partition} is not served: {}", error(listed.error_code));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn list_offset(&mut self, topic: &str, partition: i32, timestamp: i64) -> ListOffsetsPartitionResponse {
        let partition = ListOffsetsPartition {
            partition_index: partition,
            timestamp,
            current_leader_epoch: -1,
            ..Default::default()
        };
        let request = ListOffsetsRequest {
            replica_id: -1,
            topics: vec![ListOffsetsTopic { name: topic.into(), partitions: vec![partition], ..Default::default() }],
            ..Default::default()
        };
        self.call(7, &request).topics[0].partitions[0].clone()
    }
}

pub fn only(response: ProduceResponse) -> PartitionProduceResponse {
    response.responses[0].partition_responses[0].clone()
}

pub fn produce_request(topic: &str, partition: i32, acks: i16, records: Bytes) -> ProduceRequest {
    ProduceRequest {
        acks,
        timeout_ms: 10_000,
        topic_data: vec![TopicProduceData {
            name: topic.into(),
            partition_data: vec![PartitionProduceData {
                index: partition,
                records: Some(records),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub fn fetch_request(topic: &str, partitions: &[(i32, i64)], max_wait_ms: i32) -> FetchRequest {
    let partition = |(partition, fetch_offset): &(i32, i64)| FetchPartition {
        partition: *partition,
        current_leader_epoch: -1,
        fetch_offset: *fetch_offset,
        last_fetched_epoch: -1,
        log_start_offset: -1,
        partition_max_bytes: 1 << 20,
        ..Default::default()
    };
    FetchRequest {
        replica_id: -1,
        max_wait_ms,
        min_bytes: 1,
        max_bytes: 50 << 20,
        session_epoch: -1,
        topics: vec![FetchTopic {
            topic: topic.into(),
            partitions: partitions.iter().map(partition).collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// One batch with these values, uncompressed and without a producer.
pub fn batch(values: &[&str]) -> Bytes {
    batch_with(BatchOptions::default(), values)
}

pub fn compressed(kind: CompressionType, values: &[&str]) -> Bytes {
    batch_with(BatchOptions { compression: Compression { kind, level: None }, ..Default::default() }, values)
}

pub fn idempotent(id: i64, base_sequence: i32, values: &[&str]) -> Bytes {
    let producer = ProducerStamp { id: ProducerId(id), epoch: ProducerEpoch(0), base_sequence };
    batch_with(BatchOptions { producer: Some(producer), ..Default::default() }, values)
}

pub fn batch_with(options: BatchOptions, values: &[&str]) -> Bytes {
    let mut builder = RecordBatchBuilder::new(options);
    for value in values {
        builder.append(now(), Some(b"key"), Some(value.as_bytes()), &[]);
    }
    builder.build()
}

/// What the log holds of a batch: the same bytes with the leader's offset and epoch.
pub fn stamped(records: &[u8], base_offset: i64, leader_epoch: i32) -> Vec<u8> {
    let mut bytes = records.to_vec();
    bytes[..8].copy_from_slice(&Offset(base_offset).0.to_be_bytes());
    bytes[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
    bytes
}

pub fn now() -> Timestamp {
    Timestamp(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64)
}

pub fn error(code: i16) -> ErrorCode {
    ErrorCode::from(code)
}
