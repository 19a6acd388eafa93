//! Produce: takes record batches into partitions this broker leads.
//!
//! In two stages. [`begin`] checks each batch before any lock and appends it under its partition's lock; then the connection
//! reads on. [`Pending`] is the second stage: with `acks=all` the response leaves once every append is committed, or has
//! failed, or `timeout_ms` has passed. With `acks=0` there is no response, and closing the connection is the only way to fail.

mod lost_leaders;

use std::{cell::RefCell, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use gregor_metadata::MetadataImage;
use gregor_types::{ErrorCode, KString, LeaderEpoch, Timestamp, is_internal_topic};
use gregor_wire::{
    EncodeError,
    batch::{ProduceError, ProduceRules, validate_produced},
    fetch::NodeEndpoint,
    produce::{ProducePartition, ProduceResponseWriter, ProduceTopic, ProduceView, ProducedPartition, set_error_code},
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    api::{Broker, Context, leader_of},
    append_mode::AppendMode,
    close::Close,
    partition::{Awaits, Partition, Produced},
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
    /// Written when the batches were appended; a wait that fails changes an error code in it.
    response: BytesMut,
    received_at: Instant,
    deadline: Instant,
    /// `None` where nothing was waited for from the beginning on.
    waiting: Option<Waiting>,
}

/// What a request waits for.
struct Waiting {
    broker: Arc<Broker>,
    /// The version of the request: its connection may have taken others since.
    version: i16,
    waits: Vec<Wait>,
    waiter: Arc<Waiter>,
}

/// One partition that is waited for.
struct Wait {
    of: Arc<Partition>,
    awaits: Awaits,
    /// Where its error code lies in the response.
    error_code_at: usize,
}

/// Why a partition's batch was not taken.
struct Refusal {
    error: ErrorCode,
    message: Option<String>,
    records: Vec<(i32, String)>,
}

/// A broker that refusals name, with its address.
struct Leader {
    id: i32,
    host: KString,
    port: u16,
    rack: Option<KString>,
}

/// A request of which a part goes to a directory whose appends are slow: begun on that directory's thread, so that nobody else
/// waits for the disk. The connection awaits it, which keeps its appends in their order.
pub(crate) fn begin_slow(
    context: &Context,
    body: Bytes,
    reused: BytesMut,
    slow: &AppendMode,
) -> impl Future<Output = Result<Option<Pending>, Close>> + use<> {
    let (sender, begun) = oneshot::channel();
    let context = context.clone();
    let job = Box::new(move || {
        // Whoever asked may be gone.
        let _ = sender.send(begin(&context, &body, reused));
    });
    if let Err(job) = slow.submit(job) {
        job();
    }
    async { begun.await.map_err(|_| Close::Io(std::io::Error::other("an append panicked")))? }
}

/// The first directory among those that a request appends to whose appends are slow.
pub(crate) fn slow_directory(context: &Context, body: &[u8]) -> Option<Arc<AppendMode>> {
    find_map(context, body, |of| {
        let directory = of.directory();
        directory.appends.is_slow().then(|| Arc::clone(&directory.appends))
    })
}

/// Whether something that a request appends to is not ready for it yet.
pub(crate) fn has_to_wait(context: &Context, body: &[u8]) -> bool {
    let partitions = &context.broker.partitions;
    partitions.is_behind() && is_any_yet_to_be_led(context, body)
        || partitions.are_topic_ids_awaited() && is_any_topic_id_awaited(context, body)
}

/// Waits until everything that a request appends to is ready for it.
pub(crate) async fn ready(context: &Context, body: &[u8]) {
    let partitions = &context.broker.partitions;
    // Partitions that clients are told this broker leads, for as long as the request may take: refused and sent again, its batches could end up
    // behind later ones.
    let wait = ProduceView::parse(body, context.api_version).map_or(Duration::ZERO, |request| timeout(&request));
    let led = partitions.wait_while_behind(|| is_any_yet_to_be_led(context, body));
    // Whoever waits in vain is refused as ever.
    let _ = tokio::time::timeout_at(context.received_at + wait, led).await;
    // The topics' ids of new partitions: many written at once are faster than each by its first append, which would hold up this thread besides.
    partitions.wait_for_topic_ids_while(|| is_any_topic_id_awaited(context, body)).await;
}

fn is_any_yet_to_be_led(context: &Context, body: &[u8]) -> bool {
    let Ok(request) = ProduceView::parse(body, context.api_version) else { return false };
    let image = context.broker.image();
    request
        .topics()
        .any(|topic| topic.partitions().any(|partition| is_yet_to_be_led(context, &image, topic, partition.index)))
}

fn is_yet_to_be_led(context: &Context, image: &MetadataImage, topic: ProduceTopic<'_>, index: i32) -> bool {
    let me = context.broker.partitions.node_id();
    let Some((leader, epoch)) = leader_of(image, topic.name, topic.topic_id, index) else { return false };
    leader == me && find(context, topic, index).is_none_or(|of| of.is_led_before(epoch))
}

fn is_any_topic_id_awaited(context: &Context, body: &[u8]) -> bool {
    find_map(context, body, |of| of.is_topic_id_awaited().then_some(())).is_some()
}

/// What is found first of the partitions here that a request appends to.
fn find_map<T>(context: &Context, body: &[u8], look: impl Fn(&Partition) -> Option<T>) -> Option<T> {
    let request = ProduceView::parse(body, context.api_version).ok()?;
    request
        .topics()
        .find_map(|topic| topic.partitions().find_map(|partition| look(&*find(context, topic, partition.index)?)))
}

/// A partition that is here.
fn find(context: &Context, topic: ProduceTopic<'_>, index: i32) -> Option<Arc<Partition>> {
    let partitions = &context.broker.partitions;
    if context.api_version >= FIRST_VERSION_BY_ID {
        partitions.get_by_id(topic.topic_id, index)
    } else {
        partitions.get(topic.name, index)
    }
}

/// How long a request may wait.
fn timeout(request: &ProduceView<'_>) -> Duration {
    Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0))
}

/// Appends what the request carries. The response lies in the memory of `reused`; `None` where none is due.
pub(crate) fn begin(context: &Context, body: &[u8], reused: BytesMut) -> Result<Option<Pending>, Close> {
    let version = context.api_version;
    let request = ProduceView::parse(body, version)?;
    let acks = request.acks;
    let mut response = ProduceResponseWriter::new(reused, context.correlation_id, version, request.topic_count())?;
    let mut waits = Vec::new();
    let mut leaders = Vec::new();
    let mut failure = None;
    for topic in request.topics() {
        response.topic(topic.name, topic.topic_id, topic.partition_count())?;
        for partition in topic.partitions() {
            let outcome = refuse_whole(&request).map_or_else(
                || append(context, topic, partition, acks),
                |(error, why)| Err(Refusal::because(error, why)),
            );
            match outcome {
                Ok((of, produced)) => {
                    let error_code_at = response.partition(&accepted(partition.index, &produced))?;
                    if let Some(awaits) = produced.awaits {
                        waits.push(Wait { of, awaits, error_code_at });
                    }
                }
                Err(refusal) => {
                    failure = Some(refusal.error);
                    context.broker.metrics.on_error("Produce", refusal.error);
                    context.broker.metrics.all_topics().failed_produce.inc();
                    let leader = leader_hint(context, topic, partition.index, refusal.error, &mut leaders);
                    refuse(&mut response, partition.index, &refusal, leader)?;
                }
            }
        }
    }
    context.broker.metrics.all_topics().produce_requests.inc();
    if acks == 0 {
        return failure.map_or(Ok(None), |error| Err(Close::UnacknowledgedProduce(error)));
    }
    Ok(Some(Pending {
        response: finish(response, &leaders)?,
        received_at: context.received_at,
        deadline: context.received_at + timeout(&request),
        waiting: (!waits.is_empty()).then(|| Waiting::begin(Arc::clone(&context.broker), version, waits)),
    }))
}

impl Pending {
    /// When the request had arrived.
    pub(crate) fn received_at(&self) -> Instant {
        self.received_at
    }

    /// Whether nothing is waited for.
    pub(crate) fn is_committed(&self) -> bool {
        self.waiting.as_ref().is_none_or(|waiting| waiting.waiter.is_done())
    }

    /// Until nothing is waited for any more, or for too long.
    pub(crate) async fn committed(&self) {
        let Some(waiting) = &self.waiting else { return };
        match waiting.waiter.wait_until(self.deadline).await {
            Waited::Woken | Waited::TimedOut => {}
        }
    }

    /// The response, whatever the state of the commits is.
    pub(crate) fn finish(mut self, context: &Context) -> Result<BytesMut, Close> {
        let Some(waiting) = &self.waiting else { return Ok(self.response) };
        let lost_leaders = waiting.note_failures(&mut self.response);
        if lost_leaders && waiting.version >= FIRST_VERSION_WITH_LEADER {
            return lost_leaders::name_leaders(context, waiting.version, self.response);
        }
        Ok(self.response)
    }
}

impl Waiting {
    fn begin(broker: Arc<Broker>, version: i16, waits: Vec<Wait>) -> Self {
        let waiter = Waiter::new(waits.len() as u32);
        for wait in &waits {
            wait.of.wait_for(wait.awaits, &waiter);
        }
        Self { broker, version, waits, waiter }
    }

    /// Returns whether this broker has stopped leading anything of it.
    fn note_failures(&self, response: &mut [u8]) -> bool {
        let mut lost_leaders = false;
        for wait in &self.waits {
            let error = match wait.of.check(wait.awaits) {
                Ok(true) => continue,
                Ok(false) => ErrorCode::RequestTimedOut,
                Err(error) => error,
            };
            self.broker.metrics.on_error("Produce", error);
            set_error_code(response, wait.error_code_at, error.code());
            lost_leaders |= error == ErrorCode::NotLeaderOrFollower;
        }
        lost_leaders
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.waiter.is_done() {
            self.waits.iter().for_each(|wait| wait.of.lock_waiters().remove(&self.waiter));
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
        let records = error.record_errors().iter().map(|record| (record.batch_index, record.message.clone()));
        Self { error: error.error_code(), message: Some(error.to_string()), records: records.collect() }
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
    topic: ProduceTopic<'_>,
    partition: ProducePartition<'_>,
    acks: i16,
) -> Result<(Arc<Partition>, Produced), Refusal> {
    let (partitions, index) = (&context.broker.partitions, partition.index);
    // Only who asks in vain needs the image.
    let image = || context.broker.image();
    let of = if context.api_version >= FIRST_VERSION_BY_ID {
        let id = topic.topic_id;
        partitions.get_by_id(id, index).map_or_else(|| partitions.find_by_id(id, index, &image()), Ok)?
    } else {
        partitions.get(topic.name, index).map_or_else(|| partitions.find(topic.name, index, &image()), Ok)?
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

fn accepted(index: i32, produced: &Produced) -> ProducedPartition<'static> {
    ProducedPartition {
        index,
        error_code: ErrorCode::None.code(),
        base_offset: produced.info.base_offset.value(),
        log_append_time_ms: produced.info.log_append_time.value(),
        log_start_offset: produced.info.log_start_offset.value(),
        record_errors: &[],
        error_message: None,
        current_leader: None,
    }
}

fn refuse(
    response: &mut ProduceResponseWriter,
    index: i32,
    refusal: &Refusal,
    leader: Option<(i32, i32)>,
) -> Result<usize, EncodeError> {
    response.partition(&ProducedPartition {
        index,
        error_code: refusal.error.code(),
        base_offset: -1,
        log_append_time_ms: Timestamp::NONE.value(),
        log_start_offset: -1,
        record_errors: &refusal.records,
        error_message: refusal.message.as_deref(),
        current_leader: leader,
    })
}

/// KIP-951: who asked the wrong broker is told the right one, and where it is.
fn leader_hint(
    context: &Context,
    topic: ProduceTopic<'_>,
    index: i32,
    error: ErrorCode,
    leaders: &mut Vec<Leader>,
) -> Option<(i32, i32)> {
    if error != ErrorCode::NotLeaderOrFollower || context.api_version < FIRST_VERSION_WITH_LEADER {
        return None;
    }
    let image: Arc<MetadataImage> = context.broker.image();
    let (leader, LeaderEpoch(leader_epoch)) = leader_of(&image, topic.name, topic.topic_id, index)?;
    let id = leader.value();
    if let Some((host, port, rack)) = context.endpoint_of(&image, leader)
        && leaders.iter().all(|known| known.id != id)
    {
        leaders.push(Leader { id, host, port, rack });
    }
    Some((id, leader_epoch))
}

fn finish(response: ProduceResponseWriter, leaders: &[Leader]) -> Result<BytesMut, EncodeError> {
    let endpoints: Vec<_> = leaders
        .iter()
        .map(|Leader { id, host, port, rack }| NodeEndpoint {
            node_id: *id,
            host,
            port: i32::from(*port),
            rack: rack.as_deref(),
        })
        .collect();
    response.finish(0, &endpoints)
}
