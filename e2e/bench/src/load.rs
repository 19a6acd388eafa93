//! A raw client: frames built once, sent again and again over blocking sockets, so that the broker has the machine.

use std::{
    fmt::{self, Write as _},
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use gregor_messages::{
    CreateTopicsRequest, CreateTopicsResponse, FetchRequest, FetchResponse, MetadataRequest, MetadataResponse,
    ProduceRequest, ProduceResponse, Request,
    create_topics_request::{CreatableTopic, CreatableTopicConfig},
    fetch_request::{FetchPartition, FetchTopic},
    metadata_request::MetadataRequestTopic,
    produce_request::{PartitionProduceData, TopicProduceData},
};
use gregor_types::{ErrorCode, KString, Timestamp};
use gregor_wire::{
    Message, RequestHeader, Struct, Writer,
    batch::{BatchOptions, RecordBatchBuilder, split_batches},
    compression::CompressionType,
};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

/// Versions that both brokers speak, with topics by name.
const PRODUCE_VERSION: i16 = 9;
const FETCH_VERSION: i16 = 12;
const CREATE_TOPICS_VERSION: i16 = 7;
const METADATA_VERSION: i16 = 12;
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Where a broker listens, and how it is spoken to there.
#[derive(Debug, Clone)]
pub struct Address {
    socket: String,
    tls: Option<Arc<ClientConfig>>,
}

/// One connection with requests in flight.
pub struct Connection {
    stream: Stream,
    answer: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Address {
    /// A plaintext listener.
    pub fn plain(socket: String) -> Self {
        Self { socket, tls: None }
    }

    /// A TLS listener.
    pub fn tls(socket: String, config: Arc<ClientConfig>) -> Self {
        Self { socket, tls: Some(config) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.socket)
    }
}

impl Stream {
    fn reads(&mut self) -> &mut dyn Read {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream,
        }
    }

    fn writes(&mut self) -> &mut dyn Write {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream,
        }
    }
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

/// What a batch is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Records of a batch.
    pub records: usize,
    /// Bytes of a record's value.
    pub size: usize,
    /// The client's codec.
    pub codec: CompressionType,
}

impl Shape {
    /// Records that are not compressed.
    pub const fn plain(records: usize, size: usize) -> Self {
        Self { records, size, codec: CompressionType::None }
    }

    /// The batch, and the bytes that its values have before compression.
    pub fn batch(self) -> Result<(Bytes, usize)> {
        let options = BatchOptions { compression: self.codec.into(), ..BatchOptions::default() };
        let mut batch = RecordBatchBuilder::new(options);
        let now = Timestamp(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?);
        for record in 0..self.records {
            batch.append(now, None, Some(&self.value(record)), &[]);
        }
        Ok((batch.build(), self.records * self.size))
    }

    /// Bytes that do not compress into nothing, or, for a codec, text that compresses as events do; the same in every run.
    fn value(self, record: usize) -> Vec<u8> {
        if self.codec == CompressionType::None {
            return (0..self.size).map(|index| (index.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        }
        let mut text = String::new();
        for field in 0.. {
            if text.len() >= self.size {
                break;
            }
            let number = (record * 31 + field).wrapping_mul(2_654_435_761) % 100_000;
            let article = number % 97;
            let _ = write!(text, "{{\"order\":{number},\"item\":\"article {article}\",\"paid\":true}} ");
        }
        text.truncate(self.size);
        text.into_bytes()
    }
}

/// A Produce of one batch with acks=all to each of some partitions.
pub fn produce_frame(topic: &str, partitions: impl IntoIterator<Item = i32>, batch: &Bytes) -> Result<Bytes> {
    let data = partitions.into_iter().map(|index| PartitionProduceData {
        index,
        records: Some(batch.clone()),
        ..PartitionProduceData::default()
    });
    let topic = TopicProduceData { name: topic.into(), partition_data: data.collect(), ..TopicProduceData::default() };
    let request = ProduceRequest { acks: -1, timeout_ms: 30_000, topic_data: vec![topic], ..ProduceRequest::default() };
    frame(&request, PRODUCE_VERSION)
}

/// A Metadata request for one topic.
pub fn metadata_frame(topic: &str) -> Result<Bytes> {
    let topic = MetadataRequestTopic { name: Some(topic.into()), ..MetadataRequestTopic::default() };
    frame(&MetadataRequest { topics: Some(vec![topic]), ..MetadataRequest::default() }, METADATA_VERSION)
}

/// A Fetch of one partition from an offset.
pub fn fetch_frame(topic: &str, partition: i32, offset: i64) -> Result<Bytes> {
    let wanted =
        FetchPartition { partition, fetch_offset: offset, partition_max_bytes: 1 << 20, ..FetchPartition::default() };
    let request = FetchRequest {
        replica_id: -1,
        max_wait_ms: 500,
        min_bytes: 1,
        max_bytes: 50 << 20,
        session_epoch: -1,
        topics: vec![FetchTopic { topic: topic.into(), partitions: vec![wanted], ..FetchTopic::default() }],
        ..FetchRequest::default()
    };
    frame(&request, FETCH_VERSION)
}

impl Connection {
    /// Connects; a TLS handshake is made with what is sent first.
    pub fn open(address: &Address) -> Result<Self> {
        let stream = TcpStream::connect(&address.socket)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        let stream = match &address.tls {
            None => Stream::Plain(stream),
            Some(config) => {
                let name = ServerName::from(stream.peer_addr()?.ip());
                Stream::Tls(Box::new(StreamOwned::new(ClientConnection::new(Arc::clone(config), name)?, stream)))
            }
        };
        Ok(Self { stream, answer: Vec::new() })
    }

    /// Sends a whole frame.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        let stream = self.stream.writes();
        stream.write_all(frame)?;
        Ok(stream.flush()?)
    }

    /// Reads the next answer: everything behind its length.
    pub fn receive(&mut self) -> Result<&[u8]> {
        let mut length = [0; 4];
        let stream = self.stream.reads();
        stream.read_exact(&mut length)?;
        self.answer.resize(u32::from_be_bytes(length) as usize, 0);
        stream.read_exact(&mut self.answer)?;
        Ok(&self.answer)
    }

    /// Reads and throws away so many bytes of answers, or what has come.
    pub fn trickle(&mut self, bytes: &mut [u8]) -> Result<usize> {
        Ok(self.stream.reads().read(bytes)?)
    }

    /// One request and its answer.
    pub fn ask<R: Request>(&mut self, request: &R, version: i16) -> Result<R::Response> {
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

    /// Creates a topic with one replica of each partition; they may not be led yet.
    pub fn create_topic(&mut self, name: &str, partitions: i32, configs: &[(&str, &str)]) -> Result<()> {
        self.create_replicated_topic(name, partitions, 1, configs)
    }

    /// The same with so many replicas of each.
    pub fn create_replicated_topic(
        &mut self,
        name: &str,
        partitions: i32,
        replication_factor: i16,
        configs: &[(&str, &str)],
    ) -> Result<()> {
        let config = |(name, value): &(&str, &str)| CreatableTopicConfig {
            name: (*name).into(),
            value: Some((*value).into()),
            ..CreatableTopicConfig::default()
        };
        let topic = CreatableTopic {
            name: name.into(),
            num_partitions: partitions,
            replication_factor,
            configs: configs.iter().map(config).collect(),
            ..CreatableTopic::default()
        };
        let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 30_000, ..CreateTopicsRequest::default() };
        let answer: CreateTopicsResponse = self.ask(&request, CREATE_TOPICS_VERSION)?;
        let code = ErrorCode::from(answer.topics[0].error_code);
        ensure!(code == ErrorCode::None, "creating {name}: {code}");
        Ok(())
    }

    /// Whether the answer to a Produce, as received, says that every batch is stored.
    pub fn is_stored(answer: &[u8]) -> Result<bool> {
        let answer = ProduceResponse::from_bytes(Bytes::copy_from_slice(&answer[5..]), PRODUCE_VERSION)?;
        let mut partitions = answer.responses.iter().flat_map(|topic| &topic.partition_responses);
        Ok(!answer.responses.is_empty() && partitions.all(|partition| partition.error_code == 0))
    }

    /// Fetches from an offset; returns the bytes of records and the next offset.
    pub fn fetch(&mut self, topic: &str, partition: i32, offset: i64) -> Result<(usize, i64)> {
        self.send(&fetch_frame(topic, partition, offset)?)?;
        let body = Bytes::copy_from_slice(&self.receive()?[5..]);
        let answer = FetchResponse::from_bytes(body, FETCH_VERSION)?;
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
