//! Fetch: gives followers the records of partitions that this broker leads, and consumers those of any that it holds (KIP-392).
//!
//! The read is planned under each partition's lock; the bytes leave later, by the kernel. What would have to wait, for the
//! disk or for an append that holds the lock, is planned and read ahead on a thread that may.
//! Where there is too little the connection's task sleeps on a waiter that every partition looked at knows, until enough is
//! committed, the request's time is over, or the node stops. Of a session's partitions only those are looked at that may have
//! something to tell; the others wake the task once they do, and join. What one fetch of a connection used the next one uses again, so
//! that a warm fetch allocates nothing.

mod answer;

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use gregor_config::ReplicaSelector;
use gregor_log::{EpochEndOffset, ReadPlan};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, KString, LeaderEpoch, Offset, TopicId};
use gregor_wire::fetch::{FetchResponseWriter, FetchView, ResponsePlan};
use tokio::time::Instant;

use crate::{
    api::{Broker, Context, nodes::reachable},
    close::Close,
    fetch_sessions::{Opened, SessionRequest, Shown, TopicRef, WantedPartition},
    partition::{FollowerReader, Isolation, Partition, Query, Read, Supply, Traffic},
    waiters::{Changes, Waited, Waiter},
};

/// From this version on a topic is named by its id (KIP-516).
const FIRST_VERSION_BY_ID: i16 = 13;
/// From this version on a consumer may say where it is, and is content with a replica that does not lead (KIP-392).
const FIRST_VERSION_WITH_RACK: i16 = 11;
/// A request never asks to sleep for longer than this.
const WAIT_MAX: Duration = Duration::from_mins(10);

/// What a connection keeps at most of each of its buffers between two fetches.
const RETAINED_BYTES: usize = 4 << 10;

/// What is found for one partition.
struct Found {
    /// What its session calls it, if there is one, and its turn among the others.
    slot: u32,
    order: u64,
    wanted: WantedPartition,
    partition: Option<Arc<Partition>>,
    /// Whether it could not be read without waiting when that was tried last.
    is_blocked: bool,
    /// Who asks, where that is a follower.
    follower: Option<Arc<Follower>>,
    /// Whether the leader knows how far it is.
    is_noted: bool,
    /// What the leader has for it beyond this answer, and as what its bytes count.
    supply: Supply,
    traffic: Traffic,
    error: ErrorCode,
    high_watermark: i64,
    last_stable_offset: i64,
    log_start: i64,
    diverging: Option<EpochEndOffset>,
    /// From where the consumer is to read instead.
    preferred: Option<BrokerId>,
    aborted: Option<Vec<(i64, i64)>>,
    plan: ReadPlan,
}

/// What a whole request asks for, besides its partitions.
#[derive(Clone)]
struct Limits {
    max_bytes: u32,
    min_bytes: u64,
    isolation: Isolation,
    is_follower: bool,
    /// Whether a replica that does not lead may answer.
    of_any_replica: bool,
    /// The brokers in the consumer's rack, where leaders send it to them.
    near: Option<Arc<Vec<BrokerId>>>,
}

/// The broker that fetches as a follower.
struct Follower {
    id: BrokerId,
    epoch: BrokerEpoch,
    /// Who knows how it is registered.
    broker: Arc<Broker>,
    /// Whether throttled leaders here have given all that they may for now.
    is_over_quota: bool,
}

/// A request that is understood, and what it still needs.
struct Begun {
    opened: Opened,
    session: SessionRequest,
    limits: Limits,
    follower: Option<Arc<Follower>>,
    deadline: Instant,
}

/// What a connection's fetches keep from one to the next.
#[derive(Default)]
pub(crate) struct Fetching {
    found: Vec<Found>,
    response: ResponsePlan<ReadPlan>,
    waiter: Option<Arc<Waiter>>,
}

impl Fetching {
    /// Answers a request; the response is ready then.
    pub(crate) async fn answer(&mut self, context: &Context, body: Bytes) -> Result<(), Close> {
        match self.begin(context, &body)? {
            Ok(begun) => {
                self.find(context, &begun).await?;
                self.finish(context, begun)
            }
            Err(error) => self.refuse(context, 0, error),
        }
    }

    /// What is to be sent.
    pub(crate) fn response(&self) -> &ResponsePlan<ReadPlan> {
        &self.response
    }

    /// The response has left: what it held is let go, and memory that only a large one needs.
    pub(crate) fn end(&mut self) {
        self.response.clear(RETAINED_BYTES);
        self.found.clear();
        if self.found.capacity() * size_of::<Found>() > RETAINED_BYTES {
            self.found = Vec::new();
        }
    }

    fn begin(&mut self, context: &Context, body: &Bytes) -> Result<Result<Begun, ErrorCode>, Close> {
        let request = FetchView::parse(body, context.api_version)?;
        let by_id = context.api_version >= FIRST_VERSION_BY_ID;
        let session = SessionRequest {
            id: request.session_id,
            epoch: request.session_epoch,
            uses_topic_ids: by_id,
            follower: (request.replica_id >= 0).then_some(BrokerId(request.replica_id)),
            reads_committed: request.isolation_level == 1,
        };
        let sessions = &context.broker.fetch_sessions;
        let opened = if session.is_incremental() {
            let (changed, forgotten) = (wanted(&request, body, by_id), forgotten(&request, body, by_id));
            match sessions.open(session, changed, forgotten, context.now()) {
                Ok(opened) => opened,
                Err(error) => return Ok(Err(error)),
            }
        } else {
            sessions.open_full(session)
        };
        let follower = (request.replica_id >= 0).then(|| {
            let id = BrokerId(request.replica_id);
            let broker = Arc::clone(&context.broker);
            let leaders = &context.broker.partitions.throttles().leader;
            let is_over_quota = leaders.exceeded_until(context.now()).is_some();
            Arc::new(Follower { id, epoch: BrokerEpoch(request.replica_epoch), broker, is_over_quota })
        });
        self.found.clear();
        match &opened {
            Opened::Incremental(..) => {
                self.join(context, &opened, follower.as_ref());
            }
            Opened::Full | Opened::Sessionless => {
                self.found
                    .extend(wanted(&request, body, by_id).map(|wanted| look_up(context, wanted, follower.as_ref())));
            }
        }
        let max_bytes = request.max_bytes.clamp(0, context.broker.config.fetch_max_bytes) as u32;
        let limits = Limits {
            max_bytes,
            min_bytes: u64::from(u32::try_from(request.min_bytes).unwrap_or(0).min(max_bytes)),
            isolation: match (&follower, session.reads_committed) {
                (Some(_), _) => Isolation::LogEnd,
                (None, true) => Isolation::ReadCommitted,
                (None, false) => Isolation::ReadUncommitted,
            },
            is_follower: follower.is_some(),
            of_any_replica: follower.is_none() && context.api_version >= FIRST_VERSION_WITH_RACK,
            near: if follower.is_none() { near(context, request.rack_id) } else { None },
        };
        let max_wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(WAIT_MAX);
        Ok(Ok(Begun { opened, session, limits, follower, deadline: context.received_at + max_wait }))
    }

    /// Looks at what else of a session may have something to tell by now. False where a later request has taken it over.
    fn join(&mut self, context: &Context, opened: &Opened, follower: Option<&Arc<Follower>>) -> bool {
        let Opened::Incremental(session, epoch) = opened else { return true };
        let before = self.found.len();
        let found = &mut self.found;
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = session.visit(*epoch, |visited| {
            let looked_up = look_up(context, visited.wanted.clone(), follower);
            let waiters = looked_up.partition.as_ref().map(|partition| Arc::clone(partition.waiters()));
            found.push(Found { slot: visited.slot, order: visited.order, ..looked_up });
            waiters
        });
        if found.len() > before {
            found.sort_unstable_by_key(|found| found.order);
        }
        is_ours
    }

    /// Reads, and where there is too little sleeps and reads again.
    async fn find(&mut self, context: &Context, begun: &Begun) -> Result<(), Close> {
        let Begun { opened, limits, follower, deadline, .. } = begun;
        let mut bytes = self.read(context, limits).await?;
        while bytes < limits.min_bytes
            && *deadline > Instant::now()
            && self.found.iter().all(Found::can_wait)
            && (opened.is_incremental() || !self.found.is_empty())
        {
            let missing = u32::try_from(limits.min_bytes - bytes).unwrap_or(u32::MAX);
            let waiter = Waiter::again(&mut self.waiter, missing);
            let mut registered = Registered::new(waiter, &mut self.found, limits.is_follower);
            if !registered.hear_of_changes(opened) {
                drop(registered);
                if !self.join(context, opened, follower.as_ref()) {
                    break;
                }
                bytes = self.read(context, limits).await?;
                continue;
            }
            // What came between the read and the registration is seen by this second read, and by no other.
            let Some(found) = read_now(context, registered.found, limits) else {
                drop(registered);
                bytes = self.read(context, limits).await?;
                continue;
            };
            let before = std::mem::replace(&mut bytes, found);
            registered.waiter.count_down(u32::try_from(bytes.saturating_sub(before)).unwrap_or(u32::MAX));
            if bytes >= limits.min_bytes || !registered.found.iter().all(Found::can_wait) {
                break;
            }
            let woken = tokio::select! {
                waited = registered.waiter.wait_until(*deadline) => waited == Waited::Woken,
                () = context.broker.drained() => false,
            };
            drop(registered);
            let is_ours = self.join(context, opened, follower.as_ref());
            bytes = self.read(context, limits).await?;
            if !woken || !is_ours {
                break;
            }
        }
        Ok(())
    }

    /// Plans the reads of all partitions; returns how many bytes there are, in memory if there is room for them.
    async fn read(&mut self, context: &Context, limits: &Limits) -> Result<u64, Close> {
        if let Some(bytes) = read_now(context, &mut self.found, limits) {
            return Ok(bytes);
        }
        context.broker.metrics.fetch_offloads.inc();
        Box::pin(self.read_elsewhere(limits.clone())).await
    }

    /// Has a thread that may wait for the disk do it, so that this one serves others. Of those only a few wait for one directory.
    async fn read_elsewhere(&mut self, limits: Limits) -> Result<u64, Close> {
        let blocked = self.found.iter().find(|found| found.is_blocked).and_then(|found| found.partition.as_ref());
        let readers = blocked.map(|partition| Arc::clone(&partition.directory().readers));
        let turn = match readers {
            Some(readers) => Some(readers.acquire_owned().await.map_err(std::io::Error::other)?),
            None => None,
        };
        let mut found = std::mem::take(&mut self.found);
        let read = tokio::task::spawn_blocking(move || {
            let bytes = read_all(&mut found, &limits);
            // Whoever asked may be gone: the turn is over when the read is.
            drop(turn);
            (found, bytes)
        });
        let (found, bytes) = read.await.map_err(std::io::Error::other)?;
        self.found = found;
        Ok(bytes)
    }

    fn finish(&mut self, context: &Context, begun: Begun) -> Result<(), Close> {
        context.broker.metrics.all_topics().fetch_requests.inc();
        let session_id = match begun.opened {
            Opened::Sessionless => 0,
            Opened::Full => {
                let answered = self.found.iter().map(|found| (found.wanted.clone(), found.shown(&begun.limits)));
                context.broker.fetch_sessions.begin(begun.session, answered, context.now(), crate::random::u32)
            }
            Opened::Incremental(session, epoch) => {
                let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
                let (id, found) = (session.id(), &mut self.found);
                let is_ours = session.settle(epoch, |settling| {
                    found.retain(|found| settling.must_show(found.slot, found.shown(&begun.limits)));
                });
                drop(session);
                if !is_ours {
                    // As Kafka says it where a duplicate was faster.
                    return self.refuse(context, id, ErrorCode::InvalidFetchSessionEpoch);
                }
                id
            }
        };
        answer::count(context, &self.found, &begun.limits);
        self.response = answer::write(context, std::mem::take(&mut self.response), session_id, &self.found)?;
        Ok(())
    }

    fn refuse(&mut self, context: &Context, session_id: i32, error: ErrorCode) -> Result<(), Close> {
        context.broker.metrics.on_error("Fetch", error);
        let (id, version) = (context.correlation_id, context.api_version);
        let reused = std::mem::take(&mut self.response);
        self.response = FetchResponseWriter::new(reused, id, version, 0, error.code(), session_id, 0)?.finish(&[])?;
        Ok(())
    }
}

/// The brokers in a consumer's rack that it can reach, where it says which that is and `replica.selector.class` asks for it.
fn near(context: &Context, rack: &str) -> Option<Arc<Vec<BrokerId>>> {
    if rack.is_empty() || context.broker.replication.selector == ReplicaSelector::Leader {
        return None;
    }
    let image = context.broker.image();
    let reachable = reachable(&image, context.listener_name());
    let in_rack = reachable.filter(|(broker, _)| broker.rack.as_deref() == Some(rack));
    Some(Arc::new(in_rack.map(|(broker, _)| broker.id).collect()))
}

/// What the request names. Names of topics share its memory.
fn wanted<'a>(
    request: &FetchView<'a>,
    body: &'a Bytes,
    by_id: bool,
) -> impl Iterator<Item = WantedPartition> + use<'a> {
    request.topics().flat_map(move |topic| {
        let topic_ref = topic_ref(body, topic.topic, topic.topic_id, by_id);
        topic.partitions().map(move |partition| WantedPartition {
            topic: topic_ref.clone(),
            partition: partition.partition,
            fetch_offset: partition.fetch_offset,
            current_leader_epoch: partition.current_leader_epoch,
            last_fetched_epoch: partition.last_fetched_epoch,
            log_start_offset: partition.log_start_offset,
            max_bytes: partition.partition_max_bytes,
        })
    })
}

/// What the request takes out of its session.
fn forgotten<'a>(
    request: &FetchView<'a>,
    body: &'a Bytes,
    by_id: bool,
) -> impl Iterator<Item = (TopicRef, i32)> + use<'a> {
    request.forgotten_topics().flat_map(move |topic| {
        let topic_ref = topic_ref(body, topic.topic, topic.topic_id, by_id);
        topic.partitions().map(move |partition| (topic_ref.clone(), partition))
    })
}

fn topic_ref(body: &Bytes, name: &str, id: TopicId, by_id: bool) -> TopicRef {
    if by_id {
        return TopicRef::Id(id);
    }
    TopicRef::Name(KString::from_utf8(body.slice_ref(name.as_bytes())).expect("the view has checked it"))
}

/// A waiter on the lists of every partition that is looked at; takes itself off them.
struct Registered<'a> {
    waiter: Arc<Waiter>,
    found: &'a mut Vec<Found>,
    /// The session whose other partitions wake it as well.
    session: Option<Arc<Changes>>,
}

impl<'a> Registered<'a> {
    fn new(waiter: Arc<Waiter>, found: &'a mut Vec<Found>, is_follower: bool) -> Self {
        // More of what a throttle holds back would wake in vain.
        let heard = found.iter().filter(|found| found.supply != Supply::HeldBack);
        for partition in heard.filter_map(|found| found.partition.as_ref()) {
            let mut waiters = partition.lock_waiters();
            if is_follower {
                waiters.add_follower(&waiter);
            } else {
                waiters.add_fetch(&waiter);
            }
        }
        Self { waiter, found, session: None }
    }

    /// Lets the partitions of a session that are not looked at wake the waiter; false where there is something new to look at.
    fn hear_of_changes(&mut self, opened: &Opened) -> bool {
        let Opened::Incremental(session, epoch) = opened else { return true };
        let session = session.lock().unwrap_or_else(PoisonError::into_inner);
        self.session = session.wake_on_change(*epoch, &self.waiter);
        self.session.is_some()
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if let Some(changes) = &self.session {
            changes.forget(&self.waiter);
        }
        for partition in self.found.iter().filter_map(|found| found.partition.as_ref()) {
            partition.lock_waiters().remove(&self.waiter);
        }
    }
}

fn look_up(context: &Context, wanted: WantedPartition, follower: Option<&Arc<Follower>>) -> Found {
    let (partitions, index) = (&context.broker.partitions, wanted.partition);
    // Only who asks in vain needs the image.
    let image = || context.broker.image();
    let partition = match &wanted.topic {
        TopicRef::Name(name) => partitions.get(name, index).map_or_else(|| partitions.find(name, index, &image()), Ok),
        TopicRef::Id(id) => {
            partitions.get_by_id(*id, index).map_or_else(|| partitions.find_by_id(*id, index, &image()), Ok)
        }
    };
    let (partition, error) = match partition {
        Ok(partition) => (Some(partition), ErrorCode::None),
        Err(error) => (None, error),
    };
    Found {
        slot: 0,
        order: 0,
        wanted,
        partition,
        is_blocked: false,
        follower: follower.cloned(),
        is_noted: false,
        supply: Supply::default(),
        traffic: Traffic::default(),
        error,
        high_watermark: -1,
        last_stable_offset: -1,
        log_start: -1,
        diverging: None,
        preferred: None,
        aborted: None,
        plan: ReadPlan::default(),
    }
}

/// Plans the reads of all partitions within the request's bytes, and has the bytes in memory; returns how many there are.
fn read_all(found: &mut [Found], limits: &Limits) -> u64 {
    let mut bytes = 0;
    for found in found {
        let Some(partition) = &found.partition else { continue };
        let query = found.query(limits, bytes);
        let read = partition.read(&query).and_then(|read| {
            if !read.plan.is_cached() {
                partition.read_ahead(&read.plan)?;
            }
            Ok(read)
        });
        found.take(read);
        bytes += found.plan.len();
    }
    bytes
}

/// The same of what is in memory already; nothing where a partition would have to wait.
fn read_now(context: &Context, found: &mut [Found], limits: &Limits) -> Option<u64> {
    context.broker.metrics.fetch_reads.inc_by(found.len() as u64);
    let mut bytes = 0;
    for found in found {
        let Some(partition) = &found.partition else { continue };
        let read = partition.read_now(&found.query(limits, bytes));
        found.is_blocked = read.is_none();
        found.take(read?);
        bytes += found.plan.len();
    }
    Some(bytes)
}

impl Found {
    /// KIP-74: the first batch of the first partition that has any is given whole, however large it is.
    fn query<'l>(&'l self, limits: &'l Limits, bytes_before: u64) -> Query<'l> {
        let wanted = &self.wanted;
        let bytes_left = u64::from(limits.max_bytes).saturating_sub(bytes_before) as u32;
        Query {
            from: Offset(wanted.fetch_offset),
            current_leader_epoch: LeaderEpoch(wanted.current_leader_epoch),
            last_fetched_epoch: LeaderEpoch(wanted.last_fetched_epoch),
            max_bytes: bytes_left.min(u32::try_from(wanted.max_bytes).unwrap_or(0)),
            min_one_batch: bytes_before == 0,
            isolation: limits.isolation,
            of_any_replica: limits.of_any_replica,
            near: limits.near.as_deref().map(Vec::as_slice).unwrap_or_default(),
            follower: self.follower.as_deref().map(|follower| FollowerReader {
                replica: follower.id,
                broker_epoch: follower.epoch,
                log_start: Offset(wanted.log_start_offset),
                registrations: &*follower.broker,
                is_noted: self.is_noted,
                is_over_quota: follower.is_over_quota,
            }),
        }
    }

    fn take(&mut self, read: Result<Read, ErrorCode>) {
        match read {
            Ok(read) => {
                self.error = ErrorCode::None;
                self.is_noted = true;
                (self.supply, self.traffic) = (read.supply, read.traffic);
                self.high_watermark = read.marks.high_watermark.value();
                self.last_stable_offset = read.marks.last_stable_offset.value();
                self.log_start = read.marks.log_start.value();
                self.diverging = read.diverging;
                self.preferred = read.preferred;
                self.aborted = read.aborted.map(|aborted| {
                    aborted.iter().map(|one| (one.producer_id.value(), one.first_offset.value())).collect()
                });
                self.plan = read.plan;
            }
            Err(error) => {
                self.error = error;
                (self.high_watermark, self.last_stable_offset, self.log_start) = (-1, -1, -1);
                (self.diverging, self.preferred, self.aborted) = (None, None, None);
                self.plan = ReadPlan::default();
            }
        }
    }

    /// An error, a log that parts from the reader's, or another replica to read from is told at once.
    fn can_wait(&self) -> bool {
        self.error == ErrorCode::None && self.diverging.is_none() && self.preferred.is_none()
    }

    /// Whether only a change of the partition can give the reader more.
    fn is_exhausted(&self, limits: &Limits) -> bool {
        let has_all = match limits.isolation {
            Isolation::ReadCommitted => self.wanted.fetch_offset >= self.last_stable_offset,
            Isolation::ReadUncommitted => self.wanted.fetch_offset >= self.high_watermark,
            // One that is not in sync may be with any fetch: the leader looks each time.
            Isolation::LogEnd => self.supply == Supply::Complete,
        };
        has_all && self.can_wait() && self.plan.is_empty()
    }

    fn shown(&self, limits: &Limits) -> Shown {
        Shown {
            high_watermark: self.high_watermark,
            log_start: self.log_start,
            has_records: !self.plan.is_empty(),
            is_remarkable: !self.can_wait(),
            is_exhausted: self.is_exhausted(limits),
        }
    }

    fn same_topic(&self, other: &Self) -> bool {
        self.wanted.topic == other.wanted.topic
    }
}
