//! A raw client: frames built once, sent again and again over blocking sockets, so that the broker has the machine.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use gregor_messages::{
    CreateTopicsRequest, CreateTopicsResponse, FetchRequest, FetchResponse, MetadataRequest, MetadataResponse,
    ProduceRequest, ProduceResponse, Request,
    create_topics_request::CreatableTopic,
    fetch_request::{FetchPartition, FetchTopic},
    produce_request::{PartitionProduceData, TopicProduceData},
};
use gregor_types::{ErrorCode, KString, Timestamp};
use gregor_wire::{
    Message, RequestHeader, Struct, Writer,
    batch::{BatchOptions, RecordBatchBuilder, split_batches},
};

/// Versions that both brokers speak, with topics by name.
const PRODUCE_VERSION: i16 = 9;
const FETCH_VERSION: i16 = 12;
const CREATE_TOPICS_VERSION: i16 = 7;
const METADATA_VERSION: i16 = 12;
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// One connection with requests in flight.
pub struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

/// A whole request, length in front.
pub fn frame<R: Request>(request: &R, version: i16) -> Result<Bytes> {
    let mut writer = Writer::new();
    writer.i32(0);
    let header = RequestHeader {
        request_api_key: R::KEY as i16,
        request_api_version: version,
        correlation_id: 7,
        client_id: Some(KString::from_static("bench")),
        ..RequestHeader::default()
    };
    header.write(&mut writer, R::KEY.request_header_version(version))?;
    request.encode(&mut writer, version)?;
    let mut bytes = writer.into_inner();
    let length = u32::try_from(bytes.len() - 4)?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(bytes.freeze())
}

/// A Produce of one batch with acks=all: `records` records of `size` bytes each.
pub fn produce_frame(topic: &str, partition: i32, records: usize, size: usize) -> Result<Bytes> {
    let mut batch = RecordBatchBuilder::new(BatchOptions::default());
    // Bytes that do not compress into nothing; the same in every run.
    let value: Vec<u8> = (0..size).map(|index| (index.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let now = Timestamp(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?);
    for _ in 0..records {
        batch.append(now, None, Some(&value), &[]);
    }
    let data =
        PartitionProduceData { index: partition, records: Some(batch.build()), ..PartitionProduceData::default() };
    let topic = TopicProduceData { name: topic.into(), partition_data: vec![data], ..TopicProduceData::default() };
    let request = ProduceRequest { acks: -1, timeout_ms: 30_000, topic_data: vec![topic], ..ProduceRequest::default() };
    frame(&request, PRODUCE_VERSION)
}

impl Connection {
    /// Connects.
    pub fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        Ok(Self { stream, answer: Vec::new() })
    }

    /// Sends a whole frame.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(frame)?)
    }

    /// Reads the next answer: everything behind its length.
    pub fn receive(&mut self) -> Result<&[u8]> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        self.answer.resize(u32::from_be_bytes(length) as usize, 0);
        self.stream.read_exact(&mut self.answer)?;
        Ok(&self.answer)
    }

    fn ask<R: Request>(&mut self, request: &R, version: i16) -> Result<R::Response> {
        self.send(&frame(request, version)?)?;
        let header = if R::KEY.response_header_version(version) >= 1 { 5 } else { 4 };
        let body = Bytes::copy_from_slice(&self.receive()?[header..]);
        Ok(R::Response::from_bytes(body, version)?)
    }

    /// Whether the broker serves: it knows itself as the controller's choice to lead partitions.
    pub fn is_ready(&mut self) -> Result<bool> {
        let answer: MetadataResponse = self.ask(&MetadataRequest::default(), METADATA_VERSION)?;
        Ok(!answer.brokers.is_empty())
    }

    /// Creates a topic; its partitions may not be led yet.
    pub fn create_topic(&mut self, name: &str, partitions: i32) -> Result<()> {
        let topic = CreatableTopic {
            name: name.into(),
            num_partitions: partitions,
            replication_factor: 1,
            ..CreatableTopic::default()
        };
        let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 30_000, ..CreateTopicsRequest::default() };
        let answer: CreateTopicsResponse = self.ask(&request, CREATE_TOPICS_VERSION)?;
        let code = ErrorCode::from(answer.topics[0].error_code);
        ensure!(code == ErrorCode::None, "creating {name}: {code}");
        Ok(())
    }

    /// Whether the answer to a Produce, as received, says that the batch is stored.
    pub fn is_stored(answer: &[u8]) -> Result<bool> {
        let answer = ProduceResponse::from_bytes(Bytes::copy_from_slice(&answer[5..]), PRODUCE_VERSION)?;
        let partition = answer.responses.first().and_then(|topic| topic.partition_responses.first());
        Ok(partition.is_some_and(|partition| partition.error_code == 0))
    }

    /// Fetches from an offset; returns the bytes of records and the next offset.
    pub fn fetch(&mut self, topic: &str, partition: i32, offset: i64) -> Result<(usize, i64)> {
        let wanted = FetchPartition {
            partition,
            fetch_offset: offset,
            partition_max_bytes: 1 << 20,
            ..FetchPartition::default()
        };
        let request = FetchRequest {
            replica_id: -1,
            max_wait_ms: 500,
            min_bytes: 1,
            max_bytes: 50 << 20,
            session_epoch: -1,
            topics: vec![FetchTopic { topic: topic.into(), partitions: vec![wanted], ..FetchTopic::default() }],
            ..FetchRequest::default()
        };
        let answer: FetchResponse = self.ask(&request, FETCH_VERSION)?;
        let partition = &answer.responses[0].partitions[0];
        let code = ErrorCode::from(partition.error_code);
        ensure!(code == ErrorCode::None, "fetching {topic} from {offset}: {code}");
        let records = partition.records.clone().unwrap_or_default();
        let mut next = offset;
        for batch in split_batches(&records) {
            next = batch?.last_offset().value() + 1;
        }
        Ok((records.len(), next))
    }
}
