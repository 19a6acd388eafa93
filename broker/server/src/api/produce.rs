//! Produce: takes record batches into partitions this broker leads.
//!
//! In two stages. [`begin`] checks each batch before any lock and appends it under its partition's lock; then the connection
//! reads on. [`Pending`] is the second stage: with `acks=all` the response leaves once every append is committed, or has
//! failed, or `timeout_ms` has passed. With `acks=0` there is no response, and closing the connection is the only way to fail.

use std::{cell::RefCell, sync::Arc, time::Duration};

use bytes::Bytes;
use gregor_messages::{
    ProduceResponse,
    produce_response::{
        BatchIndexAndErrorMessage, LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
    },
};
use gregor_metadata::MetadataImage;
use gregor_types::{ErrorCode, KString, LeaderEpoch, Timestamp, is_internal_topic};
use gregor_wire::{
    batch::{ProduceError, ProduceRules, validate_produced},
    produce::{ProducePartition, ProduceTopic, ProduceView},
};
use tokio::time::Instant;

use crate::{
    api::{Context, leader_of},
    connection::Close,
    partition::{Awaits, Partition, Produced},
    reply::Reply,
    waiters::{Waited, Waiter},
};

/// From this version on a topic is named by its id (KIP-516).
const FIRST_VERSION_BY_ID: i16 = 13;
/// From this version on a batch may be compressed with zstd (KIP-110).
const FIRST_VERSION_WITH_ZSTD: i16 = 7;
/// From this version on an error names the right leader (KIP-951).
const FIRST_VERSION_WITH_LEADER: i16 = 10;
/// What decompressed records may keep allocated between two requests of a thread.
const SCRATCH_BYTES_MAX: usize = 1 << 20;
/// The client that may write to internal topics, as Kafka has it.
const ADMIN_CLIENT_ID: &str = "__admin_client";

thread_local! {
    /// Decompressed records, for the time of a check.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A request whose batches are appended, and which may wait for their commit.
pub(crate) struct Pending {
    context: Context,
    response: ProduceResponse,
    waits: Vec<Wait>,
    waiter: Arc<Waiter>,
    deadline: Instant,
}

/// One partition that is waited for, by its place in the response.
struct Wait {
    topic: usize,
    partition: usize,
    of: Arc<Partition>,
    awaits: Awaits,
}

/// Why a partition's batch was not taken.
struct Refusal {
    error: ErrorCode,
    message: Option<String>,
    records: Vec<BatchIndexAndErrorMessage>,
}

/// Appends what the request carries. `None` where no response is due.
pub(crate) fn begin(context: Context, body: &Bytes) -> Result<Option<Pending>, Close> {
    let version = context.api_version;
    let request = ProduceView::parse(body, version)?;
    let image = context.broker.image();
    let acks = request.acks;
    let mut response = ProduceResponse { responses: Vec::with_capacity(request.topic_count()), ..Default::default() };
    let mut waits = Vec::new();
    let mut failure = None;
    for topic in request.topics() {
        let mut partitions = Vec::with_capacity(topic.partition_count());
        for partition in topic.partitions() {
            let outcome = refuse_whole(&request).map_or_else(
                || append(&context, &image, topic, partition, acks),
                |(error, why)| Err(Refusal::because(error, why)),
            );
            partitions.push(match outcome {
                Ok((of, produced)) => {
                    if let Some(awaits) = produced.awaits {
                        let (topic, partition) = (response.responses.len(), partitions.len());
                        waits.push(Wait { topic, partition, of, awaits });
                    }
                    accepted(partition.index, &produced)
                }
                Err(refusal) => {
                    failure = Some(refusal.error);
                    context.broker.metrics.on_error("Produce", refusal.error);
                    context.broker.metrics.all_topics().failed_produce.inc();
                    let leader = leader_hint(&context, &image, topic, partition.index, refusal.error, &mut response);
                    refused(partition.index, refusal, leader)
                }
            });
        }
        response.responses.push(TopicProduceResponse {
            name: KString::from(topic.name),
            topic_id: topic.topic_id,
            partition_responses: partitions,
            ..Default::default()
        });
    }
    context.broker.metrics.all_topics().produce_requests.inc();
    if acks == 0 {
        return failure.map_or(Ok(None), |error| Err(Close::UnacknowledgedProduce(error)));
    }
    let timeout = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let waiter = Waiter::new(waits.len() as u32);
    for wait in &waits {
        wait.of.wait_for(wait.awaits, &waiter);
    }
    let deadline = context.received_at + timeout;
    // The client's id would keep the whole frame alive for as long as the request waits.
    let context = Context { client_id: None, ..context };
    Ok(Some(Pending { context, response, waits, waiter, deadline }))
}

impl Pending {
    /// When the request had arrived.
    pub(crate) fn received_at(&self) -> Instant {
        self.context.received_at
    }

    /// Whether nothing is waited for.
    pub(crate) fn is_committed(&self) -> bool {
        self.waiter.is_done()
    }

    /// Until nothing is waited for any more, or for too long.
    pub(crate) async fn committed(&self) {
        match self.waiter.wait_until(self.deadline).await {
            Waited::Woken | Waited::TimedOut => {}
        }
    }

    /// The response, whatever the state of the commits is.
    pub(crate) fn finish(mut self) -> Result<Reply, Close> {
        for wait in &self.waits {
            let error = match wait.of.check(wait.awaits) {
                Ok(true) => continue,
                Ok(false) => {
                    wait.of.lock().waiters.remove(&self.waiter);
                    ErrorCode::RequestTimedOut
                }
                Err(error) => error,
            };
            self.context.broker.metrics.on_error("Produce", error);
            self.response.responses[wait.topic].partition_responses[wait.partition].error_code = error.code();
        }
        self.context.reply(&self.response)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.waiter.is_done() {
            self.waits.iter().for_each(|wait| wait.of.lock().waiters.remove(&self.waiter));
        }
    }
}

impl Refusal {
    fn because(error: ErrorCode, why: impl Into<String>) -> Self {
        Self { error, message: Some(why.into()), records: Vec::new() }
    }
}

impl From<ErrorCode> for Refusal {
    fn from(error: ErrorCode) -> Self {
        Self { error, message: None, records: Vec::new() }
    }
}

impl From<ProduceError> for Refusal {
    fn from(error: ProduceError) -> Self {
        let message = |record: &gregor_wire::batch::RecordError| BatchIndexAndErrorMessage {
            batch_index: record.batch_index,
            batch_index_error_message: Some(record.message.clone().into()),
            ..Default::default()
        };
        Self {
            error: error.error_code(),
            message: Some(error.to_string()),
            records: error.record_errors().iter().map(message).collect(),
        }
    }
}

/// What is wrong with all of a request. A transactional client is told so with an error that its library takes as final.
fn refuse_whole(request: &ProduceView<'_>) -> Option<(ErrorCode, &'static str)> {
    if request.transactional_id.is_some() {
        return Some((ErrorCode::TransactionalIdAuthorizationFailed, NO_TRANSACTIONS));
    }
    if !(-1..=1).contains(&request.acks) {
        return Some((ErrorCode::InvalidRequiredAcks, "acks must be 0, 1 or -1"));
    }
    None
}

/// Said to whoever tries.
const NO_TRANSACTIONS: &str =
    "this broker does not serve transactions: use an idempotent producer without transactional.id";

fn append(
    context: &Context,
    image: &MetadataImage,
    topic: ProduceTopic<'_>,
    partition: ProducePartition<'_>,
    acks: i16,
) -> Result<(Arc<Partition>, Produced), Refusal> {
    let partitions = &context.broker.partitions;
    let of = if context.api_version >= FIRST_VERSION_BY_ID {
        partitions.find_by_id(topic.topic_id, partition.index, image)?
    } else {
        partitions.find(topic.name, partition.index, image)?
    };
    of.metrics.produce_requests.inc();
    let taken = take(context, &of, partition.records.unwrap_or_default(), acks);
    if taken.is_err() {
        of.metrics.failed_produce.inc();
    }
    Ok((of, taken?))
}

fn take(context: &Context, of: &Arc<Partition>, records: &[u8], acks: i16) -> Result<Produced, Refusal> {
    if is_internal_topic(&of.topic) && context.client_id() != ADMIN_CLIENT_ID {
        return Err(Refusal::because(
            ErrorCode::InvalidTopicException,
            "internal topics are written by the broker alone",
        ));
    }
    let settings = Arc::clone(&of.lock().settings);
    let zstd_allowed = context.api_version >= FIRST_VERSION_WITH_ZSTD;
    let narrowed;
    let rules = if zstd_allowed {
        &settings.rules
    } else {
        narrowed = ProduceRules { zstd_allowed, ..settings.rules.clone() };
        &narrowed
    };
    SCRATCH.with_borrow_mut(|scratch| {
        let now = context.now();
        let batch = validate_produced(records, rules, now, scratch)?;
        if batch.header().is_transactional() {
            return Err(Refusal::because(ErrorCode::TransactionalIdAuthorizationFailed, NO_TRANSACTIONS));
        }
        let produced = of.append(&batch, acks == -1, now)?;
        let counters = context.broker.metrics.all_topics();
        counters.messages_in.inc_by(batch.offsets_count() as u64);
        counters.bytes_in.inc_by(batch.size() as u64);
        drop(batch);
        if scratch.capacity() > SCRATCH_BYTES_MAX {
            *scratch = Vec::new();
        }
        Ok(produced)
    })
}

fn accepted(index: i32, produced: &Produced) -> PartitionProduceResponse {
    PartitionProduceResponse {
        index,
        base_offset: produced.info.base_offset.value(),
        log_append_time_ms: produced.info.log_append_time.value(),
        log_start_offset: produced.info.log_start_offset.value(),
        ..Default::default()
    }
}

fn refused(index: i32, refusal: Refusal, leader: Option<LeaderIdAndEpoch>) -> PartitionProduceResponse {
    PartitionProduceResponse {
        index,
        error_code: refusal.error.code(),
        base_offset: -1,
        log_append_time_ms: Timestamp::NONE.value(),
        log_start_offset: -1,
        record_errors: refusal.records,
        error_message: refusal.message.map(KString::from),
        current_leader: leader.unwrap_or_default(),
        ..Default::default()
    }
}

/// KIP-951: who asked the wrong broker is told the right one, and where it is.
fn leader_hint(
    context: &Context,
    image: &MetadataImage,
    topic: ProduceTopic<'_>,
    index: i32,
    error: ErrorCode,
    response: &mut ProduceResponse,
) -> Option<LeaderIdAndEpoch> {
    if error != ErrorCode::NotLeaderOrFollower || context.api_version < FIRST_VERSION_WITH_LEADER {
        return None;
    }
    let (leader_id, leader_epoch) = leader_of(image, topic.name, topic.topic_id, index)?;
    if let Some((host, port, rack)) = context.endpoint_of(image, leader_id)
        && response.node_endpoints.iter().all(|known| known.node_id != leader_id.value())
    {
        let port = i32::from(port);
        response.node_endpoints.push(NodeEndpoint {
            node_id: leader_id.value(),
            host,
            port,
            rack,
            ..Default::default()
        });
    }
    let LeaderEpoch(leader_epoch) = leader_epoch;
    Some(LeaderIdAndEpoch { leader_id: leader_id.value(), leader_epoch, ..Default::default() })
}
