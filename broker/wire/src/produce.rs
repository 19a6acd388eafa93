//! A Produce request read in place, and its response written straight into a buffer that is used again.
//!
//! The server's produce path is the only caller. The whole body is checked once by [`ProduceView::parse`]; after that topics
//! and partitions are walked without an error and without an allocation, and record batches are slices of the frame. What is
//! inside of the batches is not looked at here: see [`batch`](crate::batch).

use std::ops::Range;

use bytes::BytesMut;
use gregor_types::Uuid;

use crate::{
    DecodeError, DecodeErrorKind, EncodeError, RawTags, Writer,
    cursor::Cursor,
    fetch::{NodeEndpoint, write_endpoints},
};

/// The versions that Kafka still reads. It advertises 0 to 2 as well, but refuses them.
pub const VERSIONS: std::ops::RangeInclusive<i16> = 3..=13;
/// The first version with compact lengths and tagged fields.
const FLEXIBLE: i16 = 9;
/// The first version that names the right leader with an error (KIP-951).
const LEADERS: i16 = 10;
/// The first version that names topics by their ids.
const TOPIC_IDS: i16 = 13;

/// A Produce request's body.
#[derive(Debug, Clone, Copy)]
pub struct ProduceView<'a> {
    /// The transaction's id, if the batches belong to one.
    pub transactional_id: Option<&'a str>,
    /// How many replicas must have the records: 0, 1, or -1 for all in sync.
    pub acks: i16,
    /// How long the request may wait for them, in milliseconds.
    pub timeout_ms: i32,
    version: i16,
    topics: Cursor<'a>,
    topic_count: usize,
}

impl<'a> ProduceView<'a> {
    /// Checks a body, which must fill the whole slice.
    pub fn parse(body: &'a [u8], version: i16) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(body, version >= FLEXIBLE);
        if !VERSIONS.contains(&version) {
            return Err(cursor.error(DecodeErrorKind::UnsupportedVersion { message: "ProduceRequest", version }));
        }
        let transactional_id = cursor.nullable_string()?;
        let acks = cursor.i16()?;
        let timeout_ms = cursor.i32()?;
        let topic_count = cursor.array_length(topic_min_size(version))?;
        let topics = cursor;
        for _ in 0..topic_count {
            let topic = read_topic(&mut cursor, version)?;
            for _ in 0..topic.partition_count {
                read_partition(&mut cursor)?;
            }
            cursor.skip_tags()?;
        }
        cursor.skip_tags()?;
        cursor.finish()?;
        Ok(Self { transactional_id, acks, timeout_ms, version, topics, topic_count })
    }

    /// How many topics there are.
    pub fn topic_count(&self) -> usize {
        self.topic_count
    }

    /// The topics in the order of the request.
    pub fn topics(&self) -> impl Iterator<Item = ProduceTopic<'a>> + use<'a> {
        let (mut cursor, version) = (self.topics, self.version);
        (0..self.topic_count).map(move |_| {
            let topic = read_topic(&mut cursor, version).expect(CHECKED);
            for _ in 0..topic.partition_count {
                read_partition(&mut cursor).expect(CHECKED);
            }
            cursor.skip_tags().expect(CHECKED);
            topic
        })
    }
}

const CHECKED: &str = "parse walked over the same bytes";

/// One topic of the request.
#[derive(Debug, Clone, Copy)]
pub struct ProduceTopic<'a> {
    /// Its name; empty in versions that use ids.
    pub name: &'a str,
    /// Its id; zero in versions that use names.
    pub topic_id: Uuid,
    partitions: Cursor<'a>,
    partition_count: usize,
}

impl<'a> ProduceTopic<'a> {
    /// How many partitions there are.
    pub fn partition_count(&self) -> usize {
        self.partition_count
    }

    /// The partitions in the order of the request.
    pub fn partitions(&self) -> impl Iterator<Item = ProducePartition<'a>> + use<'a> {
        let mut cursor = self.partitions;
        (0..self.partition_count).map(move |_| read_partition(&mut cursor).expect(CHECKED))
    }
}

/// One partition of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducePartition<'a> {
    /// The partition's number.
    pub index: i32,
    /// The record batches, or null.
    pub records: Option<&'a [u8]>,
    /// Where the record batches end in the body.
    end: usize,
}

impl ProducePartition<'_> {
    /// Where the record batches are in the body that was parsed: for a caller that owns it and wants to share or change them.
    pub fn records_range(&self) -> Range<usize> {
        self.end - self.records.map_or(0, <[u8]>::len)..self.end
    }
}

fn topic_min_size(version: i16) -> usize {
    match version {
        TOPIC_IDS.. => 18,
        FLEXIBLE.. => 3,
        _ => 6,
    }
}

fn read_topic<'a>(cursor: &mut Cursor<'a>, version: i16) -> Result<ProduceTopic<'a>, DecodeError> {
    let by_id = version >= TOPIC_IDS;
    let name = if by_id { "" } else { cursor.string()? };
    let topic_id = if by_id { cursor.uuid()? } else { Uuid::ZERO };
    let partition_count = cursor.array_length(if version >= FLEXIBLE { 6 } else { 8 })?;
    Ok(ProduceTopic { name, topic_id, partitions: *cursor, partition_count })
}

fn read_partition<'a>(cursor: &mut Cursor<'a>) -> Result<ProducePartition<'a>, DecodeError> {
    let index = cursor.i32()?;
    let records = cursor.nullable_bytes()?;
    let end = cursor.position();
    cursor.skip_tags()?;
    Ok(ProducePartition { index, records, end })
}

/// What the answer says about one partition.
#[derive(Debug, Clone, Copy)]
pub struct ProducedPartition<'a> {
    /// The partition's number.
    pub index: i32,
    /// The error, 0 for none.
    pub error_code: i16,
    /// The first record's offset, -1 where nothing was taken.
    pub base_offset: i64,
    /// The time that the broker gave, -1 where the producer's stands.
    pub log_append_time_ms: i64,
    /// The log start offset, -1 if unknown.
    pub log_start_offset: i64,
    /// The refused records by their place in the batch, with what is wrong with each (KIP-467).
    pub record_errors: &'a [(i32, String)],
    /// What is wrong with the whole batch.
    pub error_message: Option<&'a str>,
    /// The leader's id and epoch, if the sender asked the wrong broker (KIP-951).
    pub current_leader: Option<(i32, i32)>,
}

/// Writes a Produce response, topic by topic and partition by partition.
///
/// As with a Fetch, the numbers of topics and partitions are said before they are written, and writing more or fewer panics.
/// What an older version cannot carry of an error is left out.
#[derive(Debug)]
pub struct ProduceResponseWriter {
    writer: Writer,
    version: i16,
    topics_left: usize,
    partitions_left: usize,
    in_topic: bool,
}

impl ProduceResponseWriter {
    /// Starts a response in the memory of an earlier one: length prefix, response header and the number of topics.
    pub fn new(mut reused: BytesMut, correlation_id: i32, version: i16, topics: usize) -> Result<Self, EncodeError> {
        if !VERSIONS.contains(&version) {
            return Err(EncodeError::UnsupportedVersion { message: "ProduceResponse", version });
        }
        reused.clear();
        let mut writer = Writer::append_to(reused);
        writer.i32(0);
        writer.i32(correlation_id);
        if version >= FLEXIBLE {
            writer.i8(0);
        }
        writer.length(version >= FLEXIBLE, topics)?;
        Ok(Self { writer, version, topics_left: topics, partitions_left: 0, in_topic: false })
    }

    /// Starts the next topic. Its name goes out in versions up to 12, its id from 13 on.
    pub fn topic(&mut self, name: &str, topic_id: Uuid, partitions: usize) -> Result<(), EncodeError> {
        self.end_topic();
        self.topics_left = self.topics_left.checked_sub(1).expect("no more topics than were announced");
        self.partitions_left = partitions;
        self.in_topic = true;
        let flexible = self.version >= FLEXIBLE;
        if self.version >= TOPIC_IDS {
            self.writer.uuid(topic_id);
        } else {
            self.writer.string(flexible, name)?;
        }
        self.writer.length(flexible, partitions)
    }

    /// Writes the next partition of the topic. Returns where its error code lies in the finished response, for
    /// [`set_error_code`].
    pub fn partition(&mut self, partition: &ProducedPartition<'_>) -> Result<usize, EncodeError> {
        self.partitions_left = self.partitions_left.checked_sub(1).expect("no more partitions than were announced");
        let (writer, version, flexible) = (&mut self.writer, self.version, self.version >= FLEXIBLE);
        writer.i32(partition.index);
        let error_code_at = writer.len();
        writer.i16(partition.error_code);
        writer.i64(partition.base_offset);
        writer.i64(partition.log_append_time_ms);
        if version >= 5 {
            writer.i64(partition.log_start_offset);
        }
        if version >= 8 {
            writer.length(flexible, partition.record_errors.len())?;
            for (batch_index, message) in partition.record_errors {
                writer.i32(*batch_index);
                writer.string(flexible, message)?;
                if flexible {
                    writer.i8(0);
                }
            }
            match partition.error_message {
                Some(message) => writer.string(flexible, message)?,
                None if flexible => writer.uvarint(0),
                None => writer.i16(-1),
            }
        }
        match partition.current_leader {
            Some((leader_id, leader_epoch)) if version >= LEADERS => {
                let mut tags = writer.tags(&RawTags::NONE);
                tags.field(0, |writer| {
                    writer.i32(leader_id);
                    writer.i32(leader_epoch);
                    writer.raw_tags(&RawTags::NONE)
                })?;
                tags.finish()?;
            }
            _ if flexible => writer.i8(0),
            _ => {}
        }
        Ok(error_code_at)
    }

    /// Ends the response. Endpoints go out from version 10 on, for the leaders that partitions name.
    pub fn finish(mut self, throttle_time_ms: i32, endpoints: &[NodeEndpoint<'_>]) -> Result<BytesMut, EncodeError> {
        self.end_topic();
        assert_eq!(self.topics_left, 0, "as many topics as were announced");
        self.writer.i32(throttle_time_ms);
        if self.version >= LEADERS && !endpoints.is_empty() {
            let mut tags = self.writer.tags(&RawTags::NONE);
            tags.field(0, |writer| write_endpoints(writer, endpoints))?;
            tags.finish()?;
        } else if self.version >= FLEXIBLE {
            self.writer.i8(0);
        }
        let mut bytes = self.writer.into_inner();
        let (length, limit) = (bytes.len() - 4, i32::MAX as usize);
        let prefix = i32::try_from(length).map_err(|_| EncodeError::TooLong { length, limit })?;
        bytes[..4].copy_from_slice(&prefix.to_be_bytes());
        Ok(bytes)
    }

    fn end_topic(&mut self) {
        if self.in_topic {
            assert_eq!(self.partitions_left, 0, "as many partitions as were announced");
            self.in_topic = false;
            if self.version >= FLEXIBLE {
                self.writer.i8(0);
            }
        }
    }
}

/// Puts an error into a finished response, where [`ProduceResponseWriter::partition`] said that its code lies.
pub fn set_error_code(response: &mut [u8], at: usize, error_code: i16) {
    response[at..at + 2].copy_from_slice(&error_code.to_be_bytes());
}
