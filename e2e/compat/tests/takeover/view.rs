//! Everything that a client can see of a broker, as lines that can be compared whoever serves them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{Display, Write as _},
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use gregor_compat::Connection;
use gregor_messages::{
    DescribeConfigsRequest, DescribeGroupsRequest, DescribeLogDirsRequest, DescribeProducersRequest, FetchRequest,
    ListGroupsRequest, ListOffsetsRequest, MetadataRequest, OffsetFetchRequest, OffsetForLeaderEpochRequest,
    describe_configs_request::DescribeConfigsResource,
    describe_producers_request::TopicRequest,
    fetch_request::{FetchPartition, FetchTopic},
    fetch_response::PartitionData,
    list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    list_offsets_response::ListOffsetsPartitionResponse,
    metadata_response::MetadataResponse,
    offset_fetch_request::OffsetFetchRequestGroup,
    offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic},
};
use gregor_types::ErrorCode;
use gregor_wire::batch::{EndTransactionMarker, crc32c, split_batches};

use crate::home::Home;

/// How long a broker may take until it serves everything that it has.
const DEADLINE: Duration = Duration::from_secs(90);
const FETCH_BYTES: i32 = 256 << 20;
const TOPIC_RESOURCE: i8 = 2;
/// What is said of a time that no record has.
const FOUND_NOTHING: &str = "-1 at -1, epoch -1";
/// Topics that are written to while a broker goes; the driver checks them.
const WRITTEN_MEANWHILE: [&str; 2] = ["hammered", "undecided"];
/// Where the coordinator of those transactions writes meanwhile: the hash of `undecided` says which partition.
const COORDINATED_MEANWHILE: &str = "__transaction_state-2";
/// Partitions whose records are deleted by request.
const DELETED_FROM: [&str; 2] = ["cut-0", "transactions-0"];
/// What is said of a key that nobody has set.
const BY_DEFAULT: &str = "source 5";
/// Batches of a partition whose times and offsets are looked up, at most.
const PROBES: usize = 6;

/// What is seen, by what it is about.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct View {
    lines: BTreeMap<String, String>,
    /// Where each partition begins.
    pub starts: BTreeMap<String, i64>,
}

/// A batch as it was fetched.
struct Seen {
    base_offset: i64,
    last_offset: i64,
    max_timestamp: i64,
    leader_epoch: i32,
    producer_id: i64,
    is_transactional: bool,
    /// What a marker says of its transaction.
    ends_committed: Option<bool>,
    bytes: Bytes,
}

impl View {
    /// Looks at a broker, as soon as it serves everything.
    pub fn of(home: &Home) -> Result<Self> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match Self::look(home) {
                Ok(view) => return Ok(view),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("the broker does not serve it all"));
                }
                Err(_) => sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Adds what an unmodified client has read.
    pub fn add_read(&mut self, said: &[String]) {
        for line in said {
            let (about, what) = line.split_once('=').unwrap_or((line, ""));
            if !about.ends_with(COORDINATED_MEANWHILE) {
                self.put(about, what);
            }
        }
    }

    /// What another view says otherwise, as text; empty if nothing.
    pub fn differences(&self, other: &Self) -> String {
        let mut text = String::new();
        let mut keys: Vec<_> = self.lines.keys().chain(other.lines.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let (before, after) = (self.lines.get(key), other.lines.get(key));
            if before != after && !is_excused(key, before, after) {
                let shown = |value: Option<&String>| value.map_or("nothing".to_owned(), String::clone);
                let _ = writeln!(text, "  {key}:\n    before {}\n    after  {}", shown(before), shown(after));
            }
        }
        text
    }

    /// How many things were looked at.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    fn put(&mut self, about: impl Display, what: impl Display) {
        self.lines.insert(about.to_string(), what.to_string());
    }

    fn look(home: &Home) -> Result<Self> {
        let mut view = Self::default();
        let mut connection = Connection::open(&home.bootstrap())?;
        let metadata = connection.call(12, &MetadataRequest { topics: None, ..Default::default() })?;
        for topic in metadata.topics.iter().filter(|topic| is_at_rest(topic.name.as_deref())) {
            let name = topic.name.as_deref().context("a topic with a name")?;
            succeeded(topic.error_code, name)?;
            view.put(
                format!("topic {name}"),
                format!("{:?}, internal {}, {}", topic.topic_id, topic.is_internal, topic.partitions.len()),
            );
            for partition in &topic.partitions {
                succeeded(partition.error_code, name)?;
                let (replicas, isr, offline) =
                    (&partition.replica_nodes, &partition.isr_nodes, &partition.offline_replicas);
                view.put(
                    format!("replicas {name}-{}", partition.partition_index),
                    format!("{replicas:?}, in sync {isr:?}, offline {offline:?}"),
                );
                view.partition(&mut connection, name, partition.partition_index)?;
            }
            view.configs(&mut connection, name)?;
        }
        view.directories(&mut connection, home, &metadata)?;
        view.groups(&mut connection)?;
        Ok(view)
    }

    fn partition(&mut self, connection: &mut Connection, topic: &str, index: i32) -> Result<()> {
        let name = format!("{topic}-{index}");
        if name == COORDINATED_MEANWHILE {
            return Ok(());
        }
        let mut offset = |timestamp: i64, isolation: i8| list_offset(connection, topic, index, timestamp, isolation);
        let (start, end, stable) = (offset(-2, 0)?, offset(-1, 0)?, offset(-1, 1)?);
        let newest = offset(-3, 0)?;
        self.starts.insert(name.clone(), start.offset);
        self.put(format!("start {name}"), start.offset);
        // Where a transaction began before the start, Apache names the first offset of the batch that holds the start.
        let within = |stable: i64| stable.max(start.offset);
        self.put(format!("end {name}"), format!("{}, stable {}", end.offset, within(stable.offset)));
        self.put(
            format!("newest {name}"),
            format!("{} at {}, epoch {}", newest.timestamp, newest.offset, newest.leader_epoch),
        );
        let batches = fetch_all(connection, topic, index, start.offset, end.offset, 0)?;
        let committed = fetch_all(connection, topic, index, start.offset, stable.offset, 1)?;
        for batch in &batches {
            self.put(
                format!("batch {name} {:>9}", batch.base_offset),
                format!("to {}, {} bytes, {:08x}", batch.last_offset, batch.bytes.len(), crc32c(&batch.bytes)),
            );
        }
        let whole: Vec<u8> = committed.iter().flat_map(|batch| batch.bytes.iter().copied()).collect();
        self.put(format!("committed {name}"), format!("{} batches, {:08x}", committed.len(), crc32c(&whole)));
        let step = (batches.len() / PROBES).max(1);
        for batch in batches.iter().step_by(step) {
            for timestamp in [batch.max_timestamp - 1, batch.max_timestamp] {
                for isolation in [0, 1] {
                    let found = list_offset(connection, topic, index, timestamp, isolation)?;
                    self.put(
                        format!("time {name} {timestamp} {isolation}"),
                        format!("{} at {}, epoch {}", found.timestamp, found.offset, found.leader_epoch),
                    );
                }
            }
            let from = batch.last_offset.max(start.offset);
            let aborted = fetch(connection, topic, index, from, 1)?;
            let fetched = batches_of(&aborted)?;
            let until = fetched.last().map_or(from, |batch| batch.last_offset);
            // A broker may name more than touch what it sends.
            let mut list: Vec<_> = aborted.aborted_transactions.unwrap_or_default();
            list.retain(|one| one.first_offset <= until);
            let mut list: Vec<_> = list.iter().map(|one| (one.first_offset, one.producer_id)).collect();
            list.sort_unstable();
            let stable = within(aborted.last_stable_offset);
            let seen = if topic.starts_with("compact") || DELETED_FROM.contains(&&*name) {
                // Of a transaction whose first records were cleaned or deleted, a recovery knows only where it begins now.
                format!("{:?}, stable {stable}", not_aborted(&fetched, &list))
            } else {
                format!("{list:?}, stable {stable}")
            };
            self.put(format!("aborted {name} from {from}"), seen);
            self.epoch(connection, topic, index, batch.leader_epoch)?;
        }
        self.producers(connection, topic, index)
    }

    fn epoch(&mut self, connection: &mut Connection, topic: &str, partition: i32, leader_epoch: i32) -> Result<()> {
        let partitions =
            vec![OffsetForLeaderPartition { partition, current_leader_epoch: -1, leader_epoch, ..Default::default() }];
        let request = OffsetForLeaderEpochRequest {
            replica_id: -1,
            topics: vec![OffsetForLeaderTopic { topic: topic.into(), partitions, ..Default::default() }],
            ..Default::default()
        };
        let response = connection.call(4, &request)?;
        let found = &response.topics[0].partitions[0];
        succeeded(found.error_code, topic)?;
        self.put(
            format!("epoch {topic}-{partition} {leader_epoch}"),
            format!("{} ends at {}", found.leader_epoch, found.end_offset),
        );
        Ok(())
    }

    fn producers(&mut self, connection: &mut Connection, topic: &str, index: i32) -> Result<()> {
        let topics = vec![TopicRequest { name: topic.into(), partition_indexes: vec![index], ..Default::default() }];
        let response = connection.call(0, &DescribeProducersRequest { topics, ..Default::default() })?;
        let partition = &response.topics[0].partitions[0];
        succeeded(partition.error_code, topic)?;
        for one in &partition.active_producers {
            self.put(
                format!("producer {topic}-{index} {}", one.producer_id),
                format!(
                    "epoch {}, sequence {}, at {}, coordinator {}, since {}",
                    one.producer_epoch,
                    one.last_sequence,
                    one.last_timestamp,
                    one.coordinator_epoch,
                    one.current_txn_start_offset
                ),
            );
        }
        Ok(())
    }

    fn configs(&mut self, connection: &mut Connection, topic: &str) -> Result<()> {
        let resource = DescribeConfigsResource {
            resource_type: TOPIC_RESOURCE,
            resource_name: topic.into(),
            configuration_keys: None,
            ..Default::default()
        };
        let response =
            connection.call(4, &DescribeConfigsRequest { resources: vec![resource], ..Default::default() })?;
        succeeded(response.results[0].error_code, topic)?;
        for config in &response.results[0].configs {
            let value = config.value.as_deref().unwrap_or("none");
            self.put(format!("config {topic} {}", config.name), format!("{value}, source {}", config.config_source));
        }
        Ok(())
    }

    fn directories(&mut self, connection: &mut Connection, home: &Home, metadata: &MetadataResponse) -> Result<()> {
        let response = connection.call(4, &DescribeLogDirsRequest { topics: None, ..Default::default() })?;
        succeeded(response.error_code, "log directories")?;
        let mut seen = 0;
        for directory in &response.results {
            succeeded(directory.error_code, &directory.log_dir)?;
            for topic in directory.topics.iter().filter(|topic| is_at_rest(Some(&topic.name))) {
                for partition in &topic.partitions {
                    let name = format!("{}-{}", topic.name, partition.partition_index);
                    let folder = Path::new(&*directory.log_dir).join(&name);
                    let size = size_on_disk(&folder).with_context(|| format!("looking at {}", folder.display()))?;
                    ensure!(
                        size == partition.partition_size,
                        "{name} has {size} bytes, not {}",
                        partition.partition_size
                    );
                    self.put(
                        format!("directory {name}"),
                        format!(
                            "{}, lag {}, future {}",
                            directory.log_dir, partition.offset_lag, partition.is_future_key
                        ),
                    );
                    seen += 1;
                }
            }
        }
        let expected = metadata.topics.iter().filter(|topic| is_at_rest(topic.name.as_deref()));
        let all: usize = expected.map(|topic| topic.partitions.len()).sum();
        ensure!(seen == all, "{seen} of {all} partitions lie in {} directories", home.directories().len());
        Ok(())
    }

    fn groups(&mut self, connection: &mut Connection) -> Result<()> {
        let listed = connection.call(4, &ListGroupsRequest::default())?;
        succeeded(listed.error_code, "groups")?;
        let ids: Vec<_> = listed.groups.iter().map(|group| group.group_id.clone()).collect();
        let request = DescribeGroupsRequest { groups: ids.clone(), ..Default::default() };
        for group in connection.call(5, &request)?.groups {
            succeeded(group.error_code, &group.group_id)?;
            let mut members: Vec<_> = group
                .members
                .iter()
                .map(|member| format!("{} of {}, {:?}", member.member_id, member.client_id, member.member_assignment))
                .collect();
            members.sort();
            self.put(
                format!("group {}", group.group_id),
                format!("{}, {}, {members:?}", group.group_state, group.protocol_data),
            );
        }
        for require_stable in [false, true] {
            let group =
                |id| OffsetFetchRequestGroup { group_id: id, topics: None, member_epoch: -1, ..Default::default() };
            let groups = ids.iter().cloned().map(group).collect();
            let request = OffsetFetchRequest { groups, require_stable, ..Default::default() };
            for group in connection.call(8, &request)?.groups {
                succeeded(group.error_code, &group.group_id)?;
                for topic in &group.topics {
                    for one in &topic.partitions {
                        self.put(
                            format!(
                                "offset {} {}-{} stable {require_stable}",
                                group.group_id, topic.name, one.partition_index
                            ),
                            format!(
                                "{}, epoch {}, {:?}, {:?}",
                                one.committed_offset,
                                one.committed_leader_epoch,
                                one.metadata,
                                ErrorCode::from(one.error_code)
                            ),
                        );
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether nothing is written to a topic while a broker goes.
fn is_at_rest(topic: Option<&str>) -> bool {
    topic.is_none_or(|topic| !WRITTEN_MEANWHILE.contains(&topic))
}

/// Where brokers may differ.
fn is_excused(key: &str, before: Option<&String>, after: Option<&String>) -> bool {
    let says = |what: &str| [before, after].iter().flatten().any(|value| value.ends_with(what));
    let mentions = |what: &str| [before, after].iter().flatten().any(|value| value.contains(what));
    let is_about = |what: &str| DELETED_FROM.iter().any(|name| key.starts_with(&format!("{what} {name} ")));
    // Apache looks for a time in one segment, the first whose records or file are young enough, and finds nothing if what it
    // looks for there was cleaned or deleted. Ours looks on.
    ((key.starts_with("time compact") || is_about("time")) && says(FOUND_NOTHING))
        // And it names the newest record though it was deleted.
        || (key.starts_with("newest ") && says(FOUND_NOTHING))
        // Apache removes the snapshots of what lies before the log's start, so that a start may know nothing of a producer any
        // more, or only of its marker, or nothing of markers. Ours remembers as long as the files do.
        || (is_about("producer")
            && (before.is_none() || after.is_none() || mentions(", sequence -1,") || mentions(", coordinator -1,")))
        // A release may know a key that another does not.
        || (key.starts_with("config ") && (before.is_none() || after.is_none()) && says(BY_DEFAULT))
}

fn succeeded(error_code: i16, what: &str) -> Result<()> {
    let error = ErrorCode::from(error_code);
    ensure!(error == ErrorCode::None, "{what}: {error:?}");
    Ok(())
}

fn size_on_disk(folder: &Path) -> Result<i64> {
    let mut size = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "log") {
            size += entry.metadata()?.len() as i64;
        }
    }
    Ok(size)
}

fn list_offset(
    connection: &mut Connection,
    topic: &str,
    partition_index: i32,
    timestamp: i64,
    isolation_level: i8,
) -> Result<ListOffsetsPartitionResponse> {
    let partition = ListOffsetsPartition { partition_index, timestamp, current_leader_epoch: -1, ..Default::default() };
    let request = ListOffsetsRequest {
        replica_id: -1,
        isolation_level,
        topics: vec![ListOffsetsTopic { name: topic.into(), partitions: vec![partition], ..Default::default() }],
        ..Default::default()
    };
    let mut response = connection.call(7, &request)?;
    let found = response.topics.swap_remove(0).partitions.swap_remove(0);
    succeeded(found.error_code, topic)?;
    Ok(found)
}

fn fetch(
    connection: &mut Connection,
    topic: &str,
    partition: i32,
    fetch_offset: i64,
    isolation_level: i8,
) -> Result<PartitionData> {
    let partition = FetchPartition {
        partition,
        current_leader_epoch: -1,
        last_fetched_epoch: -1,
        log_start_offset: -1,
        fetch_offset,
        partition_max_bytes: FETCH_BYTES,
        ..Default::default()
    };
    let request = FetchRequest {
        replica_id: -1,
        max_wait_ms: 0,
        max_bytes: FETCH_BYTES,
        isolation_level,
        session_epoch: -1,
        topics: vec![FetchTopic { topic: topic.into(), partitions: vec![partition], ..Default::default() }],
        ..Default::default()
    };
    let mut response = connection.call(12, &request)?;
    succeeded(response.error_code, topic)?;
    let found = response.responses.swap_remove(0).partitions.swap_remove(0);
    succeeded(found.error_code, topic)?;
    Ok(found)
}

/// The whole batches of a response.
fn batches_of(data: &PartitionData) -> Result<Vec<Seen>> {
    let records = data.records.clone().unwrap_or_default();
    let mut seen = Vec::new();
    let mut at = 0;
    for batch in split_batches(&records) {
        let Ok(batch) = batch else { break };
        batch.check_crc()?;
        let size = batch.size as usize;
        seen.push(Seen {
            base_offset: batch.base_offset.value(),
            last_offset: batch.last_offset().value(),
            max_timestamp: batch.max_timestamp.value(),
            leader_epoch: batch.leader_epoch.value(),
            producer_id: batch.producer_id.value(),
            is_transactional: batch.is_transactional(),
            ends_committed: EndTransactionMarker::in_batch(&batch, batch.body()).map(|marker| marker.commit),
            bytes: records.slice(at..at + size),
        });
        at += size;
    }
    Ok(seen)
}

/// The batches that a consumer of committed records shows, by their first offsets. `aborted` are first offsets and producers.
fn not_aborted(batches: &[Seen], aborted: &[(i64, i64)]) -> Vec<i64> {
    let mut later = aborted.iter().peekable();
    let mut producers = BTreeSet::new();
    let mut shown = Vec::new();
    for batch in batches {
        while let Some((_, producer)) = later.next_if(|(first, _)| *first <= batch.last_offset) {
            producers.insert(*producer);
        }
        match batch.ends_committed {
            Some(false) => drop(producers.remove(&batch.producer_id)),
            Some(true) => {}
            None if batch.is_transactional && producers.contains(&batch.producer_id) => {}
            None => shown.push(batch.base_offset),
        }
    }
    shown
}

fn fetch_all(
    connection: &mut Connection,
    topic: &str,
    index: i32,
    start: i64,
    end: i64,
    isolation: i8,
) -> Result<Vec<Seen>> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut next = start;
    while next < end {
        let data = fetch(connection, topic, index, next, isolation)?;
        let batches = batches_of(&data)?;
        match batches.last() {
            Some(last) => next = last.last_offset + 1,
            // Where the cleaner has taken the last records before the end, there is nothing more.
            None if seen.is_empty() || isolation == 1 => break,
            None => bail!("{topic}-{index} gives nothing at {next}, and ends at {end}"),
        }
        seen.extend(batches);
    }
    Ok(seen)
}
