//! A Produce request read in place.
//!
//! The server's produce path is the only caller. The whole body is checked once by [`ProduceView::parse`]; after that topics
//! and partitions are walked without an error and without an allocation, and record batches are slices of the frame. What is
//! inside of the batches is not looked at here: see [`batch`](crate::batch).

use std::ops::Range;

use gregor_types::Uuid;

use crate::{DecodeError, DecodeErrorKind, cursor::Cursor};

/// The versions that Kafka still reads. It advertises 0 to 2 as well, but refuses them.
pub const VERSIONS: std::ops::RangeInclusive<i16> = 3..=13;
/// The first version with compact lengths and tagged fields.
const FLEXIBLE: i16 = 9;
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
