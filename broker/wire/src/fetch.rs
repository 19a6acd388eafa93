//! A Fetch request read in place, and a Fetch response whose records are never copied.
//!
//! The server's fetch path is the only caller. The response comes as segments: bytes to send as they are, and the caller's own
//! handles of record sets (a slice in memory, a region of a file) at the places where the records belong. Its buffers are
//! used again for the next response, so that a warm one allocates nothing.

use std::ops::RangeInclusive;

use bytes::BytesMut;
use gregor_types::Uuid;

use crate::{DecodeError, DecodeErrorKind, EncodeError, RawTags, Writer, cursor::Cursor};

/// The versions of Fetch.
pub const VERSIONS: RangeInclusive<i16> = 4..=18;
const FLEXIBLE: i16 = 12;
const TOPIC_IDS: i16 = 13;
const CHECKED: &str = "parse walked over the same bytes";

/// A Fetch request's body.
#[derive(Debug, Clone, Copy)]
pub struct FetchView<'a> {
    /// The cluster that the sender believes to be in.
    pub cluster_id: Option<&'a str>,
    /// The follower that asks, -1 for a consumer.
    pub replica_id: i32,
    /// The follower's broker epoch, -1 if it does not say.
    pub replica_epoch: i64,
    /// How long to wait for [`min_bytes`](Self::min_bytes), in milliseconds.
    pub max_wait_ms: i32,
    /// How many bytes are worth an answer before that.
    pub min_bytes: i32,
    /// How many bytes the answer may have; the first batch is sent even if it is larger.
    pub max_bytes: i32,
    /// 0: all records below the high watermark; 1: only committed ones.
    pub isolation_level: i8,
    /// The fetch session, 0 for none (KIP-227).
    pub session_id: i32,
    /// The session's epoch; -1 ends it, 0 starts one.
    pub session_epoch: i32,
    /// Where the consumer is; empty if it does not say (KIP-392).
    pub rack_id: &'a str,
    version: i16,
    topics: Cursor<'a>,
    topic_count: usize,
    forgotten: Cursor<'a>,
    forgotten_count: usize,
}

impl<'a> FetchView<'a> {
    /// Checks a body, which must fill the whole slice.
    pub fn parse(body: &'a [u8], version: i16) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(body, version >= FLEXIBLE);
        if !VERSIONS.contains(&version) {
            return Err(cursor.error(DecodeErrorKind::UnsupportedVersion { message: "FetchRequest", version }));
        }
        let mut view = Self {
            cluster_id: None,
            replica_id: if version <= 14 { cursor.i32()? } else { -1 },
            replica_epoch: -1,
            max_wait_ms: cursor.i32()?,
            min_bytes: cursor.i32()?,
            max_bytes: cursor.i32()?,
            isolation_level: cursor.i8()?,
            session_id: if version >= 7 { cursor.i32()? } else { 0 },
            session_epoch: if version >= 7 { cursor.i32()? } else { -1 },
            rack_id: "",
            version,
            topics: cursor,
            topic_count: 0,
            forgotten: cursor,
            forgotten_count: 0,
        };
        view.topic_count = cursor.array_length(topic_min_size(version))?;
        view.topics = cursor;
        for _ in 0..view.topic_count {
            skip_topic(&mut cursor, version)?;
        }
        if version >= 7 {
            view.forgotten_count = cursor.array_length(topic_min_size(version))?;
            view.forgotten = cursor;
            for _ in 0..view.forgotten_count {
                read_forgotten(&mut cursor, version)?;
            }
        }
        if version >= 11 {
            view.rack_id = cursor.string()?;
        }
        cursor.tags(|tag, value| {
            match tag {
                0 => view.cluster_id = value.nullable_string()?,
                1 if version >= 15 => {
                    view.replica_id = value.i32()?;
                    view.replica_epoch = value.i64()?;
                    value.skip_tags()?;
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        cursor.finish()?;
        Ok(view)
    }

    /// How many topics there are.
    pub fn topic_count(&self) -> usize {
        self.topic_count
    }

    /// The topics to fetch, in the order of the request.
    pub fn topics(&self) -> impl Iterator<Item = FetchTopic<'a>> + use<'a> {
        let (mut cursor, version) = (self.topics, self.version);
        (0..self.topic_count).map(move |_| skip_topic(&mut cursor, version).expect(CHECKED))
    }

    /// The topics with partitions that leave the session.
    pub fn forgotten_topics(&self) -> impl Iterator<Item = ForgottenTopic<'a>> + use<'a> {
        let (mut cursor, version) = (self.forgotten, self.version);
        (0..self.forgotten_count).map(move |_| read_forgotten(&mut cursor, version).expect(CHECKED))
    }
}

/// One topic of the request.
#[derive(Debug, Clone, Copy)]
pub struct FetchTopic<'a> {
    /// Its name; empty in versions that use ids.
    pub topic: &'a str,
    /// Its id; zero in versions that use names.
    pub topic_id: Uuid,
    version: i16,
    partitions: Cursor<'a>,
    partition_count: usize,
}

impl<'a> FetchTopic<'a> {
    /// How many partitions there are.
    pub fn partition_count(&self) -> usize {
        self.partition_count
    }

    /// The partitions in the order of the request.
    pub fn partitions(&self) -> impl Iterator<Item = FetchPartition> + use<'a> {
        let (mut cursor, version) = (self.partitions, self.version);
        (0..self.partition_count).map(move |_| read_partition(&mut cursor, version).expect(CHECKED))
    }
}

/// What is fetched of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchPartition {
    /// The partition's number.
    pub partition: i32,
    /// The leader epoch that the sender knows, -1 if none.
    pub current_leader_epoch: i32,
    /// The first offset that is wanted.
    pub fetch_offset: i64,
    /// The epoch of the last record that the sender has, -1 if it does not say.
    pub last_fetched_epoch: i32,
    /// The follower's log start offset, -1 for a consumer.
    pub log_start_offset: i64,
    /// How many bytes may be of this partition.
    pub partition_max_bytes: i32,
    /// The follower's log directory, for KRaft voters.
    pub replica_directory_id: Uuid,
    /// The high watermark that the follower knows; `i64::MAX` if it does not say.
    pub high_watermark: i64,
}

/// Partitions of one topic that leave the session.
#[derive(Debug, Clone, Copy)]
pub struct ForgottenTopic<'a> {
    /// The topic's name; empty in versions that use ids.
    pub topic: &'a str,
    /// The topic's id; zero in versions that use names.
    pub topic_id: Uuid,
    partitions: Cursor<'a>,
    partition_count: usize,
}

impl<'a> ForgottenTopic<'a> {
    /// The partitions' numbers.
    pub fn partitions(&self) -> impl Iterator<Item = i32> + use<'a> {
        let mut cursor = self.partitions;
        (0..self.partition_count).map(move |_| cursor.i32().expect(CHECKED))
    }
}

fn topic_min_size(version: i16) -> usize {
    match version {
        TOPIC_IDS.. => 18,
        FLEXIBLE.. => 3,
        _ => 6,
    }
}

fn read_topic_key<'a>(cursor: &mut Cursor<'a>, version: i16) -> Result<(&'a str, Uuid), DecodeError> {
    if version >= TOPIC_IDS { Ok(("", cursor.uuid()?)) } else { Ok((cursor.string()?, Uuid::ZERO)) }
}

/// Reads a topic and moves behind its partitions.
fn skip_topic<'a>(cursor: &mut Cursor<'a>, version: i16) -> Result<FetchTopic<'a>, DecodeError> {
    let (topic, topic_id) = read_topic_key(cursor, version)?;
    let min_size = match version {
        FLEXIBLE.. => 33,
        9.. => 28,
        5.. => 24,
        _ => 16,
    };
    let partition_count = cursor.array_length(min_size)?;
    let partitions = *cursor;
    for _ in 0..partition_count {
        read_partition(cursor, version)?;
    }
    cursor.skip_tags()?;
    Ok(FetchTopic { topic, topic_id, version, partitions, partition_count })
}

fn read_partition(cursor: &mut Cursor<'_>, version: i16) -> Result<FetchPartition, DecodeError> {
    let mut partition = FetchPartition {
        partition: cursor.i32()?,
        current_leader_epoch: if version >= 9 { cursor.i32()? } else { -1 },
        fetch_offset: cursor.i64()?,
        last_fetched_epoch: if version >= 12 { cursor.i32()? } else { -1 },
        log_start_offset: if version >= 5 { cursor.i64()? } else { -1 },
        partition_max_bytes: cursor.i32()?,
        replica_directory_id: Uuid::ZERO,
        high_watermark: i64::MAX,
    };
    cursor.tags(|tag, value| {
        match tag {
            0 if version >= 17 => partition.replica_directory_id = value.uuid()?,
            1 if version >= 18 => partition.high_watermark = value.i64()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(partition)
}

fn read_forgotten<'a>(cursor: &mut Cursor<'a>, version: i16) -> Result<ForgottenTopic<'a>, DecodeError> {
    let (topic, topic_id) = read_topic_key(cursor, version)?;
    let partition_count = cursor.array_length(4)?;
    let partitions = *cursor;
    for _ in 0..partition_count {
        cursor.i32()?;
    }
    cursor.skip_tags()?;
    Ok(ForgottenTopic { topic, topic_id, partitions, partition_count })
}

/// A part of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a, R> {
    /// Bytes to send as they are.
    Inline(&'a [u8]),
    /// The caller's records.
    Records(&'a R),
}

/// A whole response, its length prefix included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponsePlan<R> {
    inline: BytesMut,
    /// Where records belong: the position among the inline bytes, ascending, and the caller's handle.
    cuts: Vec<(usize, R)>,
    size: usize,
}

impl<R> Default for ResponsePlan<R> {
    fn default() -> Self {
        Self { inline: BytesMut::new(), cuts: Vec::new(), size: 0 }
    }
}

impl<R> ResponsePlan<R> {
    /// How many bytes all segments have.
    pub fn size(&self) -> usize {
        self.size
    }

    /// What to send, in order; no segment of bytes is empty.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_, R>> {
        let mut sent = 0;
        let before = self.cuts.iter().flat_map(move |(cut, records)| {
            let inline = &self.inline[sent..*cut];
            sent = *cut;
            [Segment::Inline(inline), Segment::Records(records)]
        });
        let last = self.cuts.last().map_or(0, |(cut, _)| *cut);
        let segments = before.chain([Segment::Inline(&self.inline[last..])]);
        segments.filter(|segment| !matches!(segment, Segment::Inline(bytes) if bytes.is_empty()))
    }

    /// Lets go of the records, and of room beyond so many bytes; what is left is for the next response.
    pub fn clear(&mut self, retained_bytes: usize) {
        self.cuts.clear();
        self.inline.clear();
        self.size = 0;
        if self.inline.capacity() > retained_bytes {
            self.inline = BytesMut::new();
        }
        if self.cuts.capacity() * size_of::<(usize, R)>() > retained_bytes {
            self.cuts = Vec::new();
        }
    }
}

/// What the answer says about one partition, besides its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchedPartition<'a> {
    /// The partition's number.
    pub partition_index: i32,
    /// The error, 0 for none.
    pub error_code: i16,
    /// The high watermark.
    pub high_watermark: i64,
    /// The last stable offset, -1 if unknown.
    pub last_stable_offset: i64,
    /// The log start offset, -1 if unknown.
    pub log_start_offset: i64,
    /// Where the follower's log parts from ours: the epoch and its end offset.
    pub diverging_epoch: Option<(i32, i64)>,
    /// The leader's id and epoch, if the sender asked the wrong broker.
    pub current_leader: Option<(i32, i32)>,
    /// The snapshot to fetch first: its end offset and epoch.
    pub snapshot_id: Option<(i64, i32)>,
    /// Producer ids and first offsets of aborted transactions; null if the reader did not ask for committed records only.
    pub aborted_transactions: Option<&'a [(i64, i64)]>,
    /// The replica to read from instead, -1 for this one.
    pub preferred_read_replica: i32,
}

impl Default for FetchedPartition<'_> {
    fn default() -> Self {
        Self {
            partition_index: 0,
            error_code: 0,
            high_watermark: 0,
            last_stable_offset: -1,
            log_start_offset: -1,
            diverging_epoch: None,
            current_leader: None,
            snapshot_id: None,
            aborted_transactions: None,
            preferred_read_replica: -1,
        }
    }
}

/// The address of a broker that the answer names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeEndpoint<'a> {
    /// The broker's id.
    pub node_id: i32,
    /// Where to connect.
    pub host: &'a str,
    /// The port.
    pub port: i32,
    /// The broker's rack.
    pub rack: Option<&'a str>,
}

/// Writes a Fetch response, topic by topic and partition by partition.
///
/// The numbers of topics and partitions are said before they are written, as the wire has them in front; writing more or fewer
/// is a bug of the caller and panics in [`finish`](Self::finish).
#[derive(Debug)]
pub struct FetchResponseWriter<R> {
    writer: Writer,
    /// Where records belong: the position among the inline bytes, and the caller's handle.
    cuts: Vec<(usize, R)>,
    records_size: usize,
    version: i16,
    flexible: bool,
    topics_left: usize,
    partitions_left: usize,
    in_topic: bool,
}

impl<R> FetchResponseWriter<R> {
    /// Starts a response in the memory of an earlier one: length prefix, response header and the fields before the topics.
    pub fn new(
        mut reused: ResponsePlan<R>,
        correlation_id: i32,
        version: i16,
        throttle_time_ms: i32,
        error_code: i16,
        session_id: i32,
        topics: usize,
    ) -> Result<Self, EncodeError> {
        if !VERSIONS.contains(&version) {
            return Err(EncodeError::UnsupportedVersion { message: "FetchResponse", version });
        }
        let flexible = version >= FLEXIBLE;
        reused.inline.clear();
        reused.cuts.clear();
        let mut writer = Writer::append_to(reused.inline);
        writer.i32(0);
        writer.i32(correlation_id);
        if flexible {
            writer.i8(0);
        }
        writer.i32(throttle_time_ms);
        if version >= 7 {
            writer.i16(error_code);
            writer.i32(session_id);
        } else {
            Writer::absent(session_id != 0, "FetchResponse.session_id", version)?;
        }
        writer.length(flexible, topics)?;
        Ok(Self {
            writer,
            cuts: reused.cuts,
            records_size: 0,
            version,
            flexible,
            topics_left: topics,
            partitions_left: 0,
            in_topic: false,
        })
    }

    /// Starts the next topic. Its name goes out in versions up to 12, its id from 13 on.
    pub fn topic(&mut self, topic: &str, topic_id: Uuid, partitions: usize) -> Result<(), EncodeError> {
        self.end_topic()?;
        self.topics_left = self.topics_left.checked_sub(1).expect("no more topics than were announced");
        self.partitions_left = partitions;
        self.in_topic = true;
        if self.version >= TOPIC_IDS {
            self.writer.uuid(topic_id);
        } else {
            self.writer.string(self.flexible, topic)?;
        }
        self.writer.length(self.flexible, partitions)
    }

    /// Writes the next partition of the topic. `records` is the caller's handle and how many bytes it stands for; none is
    /// an empty set, which Kafka sends even on an error.
    pub fn partition(
        &mut self,
        partition: &FetchedPartition<'_>,
        records: Option<(R, usize)>,
    ) -> Result<(), EncodeError> {
        self.partitions_left = self.partitions_left.checked_sub(1).expect("no more partitions than were announced");
        let (writer, version, flexible) = (&mut self.writer, self.version, self.flexible);
        writer.i32(partition.partition_index);
        writer.i16(partition.error_code);
        writer.i64(partition.high_watermark);
        writer.i64(partition.last_stable_offset);
        if version >= 5 {
            writer.i64(partition.log_start_offset);
        }
        match partition.aborted_transactions {
            None if flexible => writer.uvarint(0),
            None => writer.i32(-1),
            Some(aborted) => {
                writer.length(flexible, aborted.len())?;
                for (producer_id, first_offset) in aborted {
                    writer.i64(*producer_id);
                    writer.i64(*first_offset);
                    if flexible {
                        writer.i8(0);
                    }
                }
            }
        }
        if version >= 11 {
            writer.i32(partition.preferred_read_replica);
        } else {
            let set = partition.preferred_read_replica != -1;
            Writer::absent(set, "FetchResponse.preferred_read_replica", version)?;
        }
        match records {
            Some((records, size)) if size > 0 => {
                writer.length(flexible, size)?;
                self.records_size += size;
                self.cuts.push((writer.len(), records));
            }
            _ => writer.length(flexible, 0)?,
        }
        if !flexible {
            return Writer::absent(
                partition.diverging_epoch.is_some()
                    || partition.snapshot_id.is_some()
                    || partition.current_leader.is_some(),
                "FetchResponse.diverging_epoch, current_leader or snapshot_id",
                version,
            );
        }
        let mut tags = writer.tags(&RawTags::NONE);
        if let Some((epoch, end_offset)) = partition.diverging_epoch {
            tags.field(0, |writer| {
                writer.i32(epoch);
                writer.i64(end_offset);
                writer.raw_tags(&RawTags::NONE)
            })?;
        }
        if let Some((leader_id, leader_epoch)) = partition.current_leader {
            tags.field(1, |writer| {
                writer.i32(leader_id);
                writer.i32(leader_epoch);
                writer.raw_tags(&RawTags::NONE)
            })?;
        }
        if let Some((end_offset, epoch)) = partition.snapshot_id {
            tags.field(2, |writer| {
                writer.i64(end_offset);
                writer.i32(epoch);
                writer.raw_tags(&RawTags::NONE)
            })?;
        }
        tags.finish()
    }

    /// Ends the response. Endpoints go out from version 16 on, for the leaders that partitions name.
    pub fn finish(mut self, node_endpoints: &[NodeEndpoint<'_>]) -> Result<ResponsePlan<R>, EncodeError> {
        self.end_topic()?;
        assert_eq!(self.topics_left, 0, "as many topics as were announced");
        let Self { mut writer, cuts, records_size, version, flexible, .. } = self;
        if flexible {
            let mut tags = writer.tags(&RawTags::NONE);
            if version >= 16 && !node_endpoints.is_empty() {
                tags.field(0, |writer| write_endpoints(writer, node_endpoints))?;
            }
            tags.finish()?;
        }
        let mut inline = writer.into_inner();
        let size = inline.len() + records_size;
        let body =
            i32::try_from(size - 4).map_err(|_| EncodeError::TooLong { length: size, limit: i32::MAX as usize })?;
        inline[..4].copy_from_slice(&body.to_be_bytes());
        Ok(ResponsePlan { inline, cuts, size })
    }

    fn end_topic(&mut self) -> Result<(), EncodeError> {
        if self.in_topic {
            assert_eq!(self.partitions_left, 0, "as many partitions as were announced");
            self.in_topic = false;
            if self.flexible {
                self.writer.raw_tags(&RawTags::NONE)?;
            }
        }
        Ok(())
    }
}

/// The value of the tagged field that carries them, the same in Fetch and Produce.
pub(crate) fn write_endpoints(writer: &mut Writer, node_endpoints: &[NodeEndpoint<'_>]) -> Result<(), EncodeError> {
    writer.length(true, node_endpoints.len())?;
    for endpoint in node_endpoints {
        writer.i32(endpoint.node_id);
        writer.string(true, endpoint.host)?;
        writer.i32(endpoint.port);
        match endpoint.rack {
            Some(rack) => writer.string(true, rack)?,
            None => writer.uvarint(0),
        }
        writer.raw_tags(&RawTags::NONE)?;
    }
    Ok(())
}
