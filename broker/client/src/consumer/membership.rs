//! Membership in a classic consumer group: join, sync, heartbeat, commit, leave.
//!
//! Joining happens in the consumer's own task; heartbeats are sent by a task of their own, which only tells what it was told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use gregor_channel::Channel;
use gregor_messages::{
    ConsumerProtocolAssignment, ConsumerProtocolSubscription, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse,
    LeaveGroupRequest, SyncGroupRequest, consumer_protocol_assignment, join_group_request::JoinGroupRequestProtocol,
    leave_group_request::MemberIdentity, sync_group_request::SyncGroupRequestAssignment,
};
use gregor_types::{BrokerId, ErrorCode, KString, TopicPartition};
use gregor_wire::{Message, Reader};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{CommittedOffset, assignor};
use crate::{BrokerError, Client, ClientError, ConsumerOptions, admin::commit_request, retry::Pauses, route::Purpose};

const PROTOCOL_TYPE: KString = KString::from_static("consumer");
const ASSIGNOR: KString = KString::from_static("range");
/// Version 1 of the embedded protocol adds what is owned, which the range assignor does not look at.
const SUBSCRIPTION_VERSION: i16 = 0;
/// The newest version of OffsetCommit that names topics rather than giving their ids.
const COMMIT_BY_NAME_MAX: i16 = 9;
/// The first version of LeaveGroup that can name several members.
const BATCHED_LEAVE: i16 = 3;

pub(super) struct Membership {
    client: Client,
    options: ConsumerOptions,
    group: KString,
    topics: BTreeSet<KString>,
    number: u64,
    shared: Arc<Shared>,
    heartbeats: Option<JoinHandle<()>>,
}

/// What the heartbeat task and the consumer tell each other.
struct Shared {
    live: Mutex<Live>,
    rebalance: Notify,
}

struct Live {
    member: KString,
    generation: i32,
    /// Whether the group is to be joined (again).
    must_join: bool,
    polled: Instant,
    /// Why this member can never go on.
    fenced: Option<BrokerError>,
}

impl Membership {
    pub(super) fn new(
        client: Client,
        options: ConsumerOptions,
        group: KString,
        topics: BTreeSet<KString>,
        number: u64,
    ) -> Self {
        let live =
            Live { member: KString::default(), generation: -1, must_join: true, polled: Instant::now(), fenced: None };
        let shared = Arc::new(Shared { live: Mutex::new(live), rebalance: Notify::new() });
        Self { client, options, group, topics, number, shared, heartbeats: None }
    }

    /// Whether the next thing to do is to join.
    pub(super) fn must_join(&self) -> bool {
        let live = self.shared.lock();
        live.must_join || live.fenced.is_some()
    }

    /// The consumer is alive, not only its heartbeats.
    pub(super) fn polled(&self) {
        self.shared.lock().polled = Instant::now();
    }

    /// Returns when the group rebalances.
    pub(super) async fn wait_for_rebalance(&self) {
        while !self.must_join() {
            self.shared.rebalance.notified().await;
        }
    }

    /// Joins the group and returns what this member is assigned.
    pub(super) async fn join(&mut self) -> Result<Vec<TopicPartition>, ClientError> {
        self.stop_heartbeats();
        let mut pauses = Pauses::new(&self.client);
        loop {
            if let Some(fenced) = &self.shared.lock().fenced {
                return Err(fenced.clone().into());
            }
            match self.join_once().await {
                Ok(Some(assigned)) => {
                    self.shared.lock().must_join = false;
                    self.start_heartbeats();
                    return Ok(assigned);
                }
                Ok(None) => {}
                Err(error) if error.is_retriable() => {
                    self.client.forget_coordinator_on(&self.group, &error);
                    pauses.wait_or(error).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Commits as a member of the generation that this one is in.
    pub(super) async fn commit(&self, offsets: &BTreeMap<TopicPartition, CommittedOffset>) -> Result<(), ClientError> {
        let mut request = commit_request(&self.group, offsets);
        {
            let live = self.shared.lock();
            request.generation_id_or_member_epoch = live.generation;
            request.member_id = live.member.clone();
        }
        request.group_instance_id.clone_from(&self.options.group_instance_id);
        let request = &request;
        self.client
            .with_coordinator(&self.group, |coordinator| async move {
                let channel = self.channel(coordinator)?;
                let wait = self.client.options().request_timeout;
                let (_, response) = channel.call_with(2..=COMMIT_BY_NAME_MAX, wait, |_| request.clone()).await?;
                let rows =
                    response.topics.iter().flat_map(|topic| topic.partitions.iter().map(move |row| (topic, row)));
                for (topic, row) in rows {
                    let code = ErrorCode::from(row.error_code);
                    self.shared.heed(code, &self.group);
                    let what = || format!("offset of {}-{} in group {}", topic.name, row.partition_index, self.group);
                    code.ok().map_err(|code| BrokerError::new(what(), code))?;
                }
                Ok(())
            })
            .await
    }

    /// Leaves, so that the others need not wait until the session expires. A static member stays: it means to come back.
    pub(super) async fn leave(mut self) {
        self.stop_heartbeats();
        let member = self.shared.lock().member.clone();
        if member.is_empty() || self.options.group_instance_id.is_some() {
            return;
        }
        let left = async {
            let coordinator = self.client.coordinator(&self.group).await?;
            let build = |version| {
                if version < BATCHED_LEAVE {
                    let member_id = member.clone();
                    return LeaveGroupRequest { group_id: self.group.clone(), member_id, ..Default::default() };
                }
                let identity = MemberIdentity { member_id: member.clone(), ..Default::default() };
                LeaveGroupRequest { group_id: self.group.clone(), members: vec![identity], ..Default::default() }
            };
            let wait = self.client.options().request_timeout;
            self.channel(coordinator)?.call_with(LeaveGroupRequest::VERSIONS, wait, build).await?;
            Ok::<(), ClientError>(())
        };
        if let Err(error) = left.await {
            tracing::debug!(%error, "leaving the group; its session will expire instead");
        }
    }

    /// One try: `None` to try again at once.
    async fn join_once(&mut self) -> Result<Option<Vec<TopicPartition>>, ClientError> {
        let coordinator = self.client.coordinator(&self.group).await?;
        let channel = self.channel(coordinator)?;
        let Some(joined) = self.join_group(&channel).await? else { return Ok(None) };
        let leads = joined.leader == joined.member_id && !joined.skip_assignment;
        let assignments = if leads { self.assign(&joined).await? } else { Vec::new() };
        let request = SyncGroupRequest {
            group_id: self.group.clone(),
            generation_id: joined.generation_id,
            member_id: joined.member_id.clone(),
            group_instance_id: self.options.group_instance_id.clone(),
            protocol_type: Some(PROTOCOL_TYPE),
            protocol_name: joined.protocol_name.clone(),
            assignments,
            ..Default::default()
        };
        let (_, synced) = channel.call_with(SyncGroupRequest::VERSIONS, self.join_wait(), |_| request).await?;
        match ErrorCode::from(synced.error_code) {
            ErrorCode::None => Ok(Some(decode_assignment(synced.assignment)?)),
            code => self.again_or_error(code, "syncing"),
        }
    }

    async fn join_group(&mut self, channel: &Channel) -> Result<Option<JoinGroupResponse>, ClientError> {
        let milliseconds = |duration: Duration| i32::try_from(duration.as_millis()).unwrap_or(i32::MAX);
        let request = JoinGroupRequest {
            group_id: self.group.clone(),
            session_timeout_ms: milliseconds(self.options.session_timeout),
            rebalance_timeout_ms: milliseconds(self.options.rebalance_timeout),
            member_id: self.shared.lock().member.clone(),
            group_instance_id: self.options.group_instance_id.clone(),
            protocol_type: PROTOCOL_TYPE,
            protocols: vec![JoinGroupRequestProtocol {
                name: ASSIGNOR,
                metadata: encode_subscription(&self.topics)?,
                ..Default::default()
            }],
            ..Default::default()
        };
        let (_, joined) = channel.call_with(JoinGroupRequest::VERSIONS, self.join_wait(), |_| request).await?;
        match ErrorCode::from(joined.error_code) {
            ErrorCode::None => {
                let mut live = self.shared.lock();
                live.member = joined.member_id.compact();
                live.generation = joined.generation_id;
                drop(live);
                Ok(Some(joined))
            }
            // KIP-394: the coordinator wants to hear the id that it gave before it counts on the member.
            ErrorCode::MemberIdRequired => {
                self.shared.lock().member = joined.member_id.compact();
                Ok(None)
            }
            code => self.again_or_error(code, "joining"),
        }
    }

    fn again_or_error<T>(&self, code: ErrorCode, doing: &str) -> Result<Option<T>, ClientError> {
        self.shared.heed(code, &self.group);
        match code {
            ErrorCode::RebalanceInProgress | ErrorCode::UnknownMemberId | ErrorCode::IllegalGeneration => Ok(None),
            code => Err(BrokerError::new(format!("{doing} group {}", self.group), code).into()),
        }
    }

    /// As the group's leader: who gets what.
    async fn assign(&self, joined: &JoinGroupResponse) -> Result<Vec<SyncGroupRequestAssignment>, ClientError> {
        let mut members = Vec::new();
        for member in &joined.members {
            members.push(assignor::Member {
                id: member.member_id.clone(),
                instance: member.group_instance_id.clone(),
                topics: decode_subscription(member.metadata.clone())?,
            });
        }
        let names: BTreeSet<KString> = members.iter().flat_map(|member| member.topics.iter().cloned()).collect();
        let names: Vec<_> = names.into_iter().collect();
        let cluster = self.client.retry(|| async { self.client.refresh_topics(&names, true).await }).await?;
        let mut topics = BTreeMap::new();
        for name in names {
            // A topic that does not exist is assigned to nobody.
            if let Some(topic) = cluster.topics.get(&name) {
                topics.insert(name, topic.partitions.keys().copied().collect());
            }
        }
        let assignment = assignor::assign(&members, &topics);
        assignment
            .into_iter()
            .map(|(member_id, partitions)| {
                let assignment = encode_assignment(&partitions)?;
                Ok(SyncGroupRequestAssignment { member_id, assignment, ..Default::default() })
            })
            .collect()
    }

    fn channel(&self, coordinator: BrokerId) -> Result<Channel, ClientError> {
        self.client.broker(coordinator, Purpose::Group(self.number))
    }

    /// The coordinator answers when every member has joined, which may take a whole rebalance.
    fn join_wait(&self) -> Duration {
        self.options.rebalance_timeout + Duration::from_secs(5)
    }

    fn start_heartbeats(&mut self) {
        let task = Heartbeats {
            client: self.client.clone(),
            group: self.group.clone(),
            instance: self.options.group_instance_id.clone(),
            interval: self.options.heartbeat_interval,
            poll_interval_max: self.options.rebalance_timeout,
            purpose: Purpose::Group(self.number),
            shared: Arc::clone(&self.shared),
        };
        self.heartbeats = Some(tokio::spawn(task.run()));
    }

    fn stop_heartbeats(&mut self) {
        if let Some(task) = self.heartbeats.take() {
            task.abort();
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.stop_heartbeats();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().expect("nothing panics while it holds this lock")
    }

    /// Does what an error of the coordinator asks for.
    fn heed(&self, code: ErrorCode, group: &KString) {
        let mut live = self.lock();
        match code {
            ErrorCode::RebalanceInProgress => live.must_join = true,
            ErrorCode::UnknownMemberId => {
                live.member = KString::default();
                live.generation = -1;
                live.must_join = true;
            }
            ErrorCode::IllegalGeneration => {
                live.generation = -1;
                live.must_join = true;
            }
            ErrorCode::FencedInstanceId => live.fenced = Some(BrokerError::new(format!("group {group}"), code)),
            _ => return,
        }
        drop(live);
        self.rebalance.notify_one();
    }
}

struct Heartbeats {
    client: Client,
    group: KString,
    instance: Option<KString>,
    interval: Duration,
    /// A consumer that does not poll for so long gives its partitions up to the others.
    poll_interval_max: Duration,
    purpose: Purpose,
    shared: Arc<Shared>,
}

impl Heartbeats {
    async fn run(self) {
        loop {
            sleep(self.interval).await;
            let (member, generation, polled) = {
                let live = self.shared.lock();
                (live.member.clone(), live.generation, live.polled)
            };
            if polled.elapsed() > self.poll_interval_max {
                tracing::warn!(group = %self.group, "the consumer has not polled for too long; it leaves the group");
                self.shared.lock().must_join = true;
                return;
            }
            let beat = async {
                let coordinator = self.client.coordinator(&self.group).await?;
                let request = HeartbeatRequest {
                    group_id: self.group.clone(),
                    generation_id: generation,
                    member_id: member,
                    group_instance_id: self.instance.clone(),
                    ..Default::default()
                };
                let response = self.client.broker(coordinator, self.purpose)?.call(&request).await?;
                let code = ErrorCode::from(response.error_code);
                code.ok().map_err(|code| BrokerError::new(format!("group {}", self.group), code))?;
                Ok::<(), ClientError>(())
            };
            if let Err(error) = beat.await {
                tracing::debug!(%error, "heartbeat");
                self.client.forget_coordinator_on(&self.group, &error);
                if let Some(code) = error.code() {
                    self.shared.heed(code, &self.group);
                }
                // While the others are waited for, the member still lives; once it is none any more, there is nothing to say.
                let live = self.shared.lock();
                if live.generation < 0 || live.fenced.is_some() {
                    return;
                }
            }
        }
    }
}

/// The consumer protocol's messages stand behind their version.
fn encode_versioned<M: Message>(message: &M, version: i16) -> Result<Bytes, ClientError> {
    let wrong = |error: gregor_wire::EncodeError| ClientError::InvalidArgument(format!("{}: {error}", M::NAME));
    let body = message.to_bytes(version).map_err(wrong)?;
    let mut bytes = BytesMut::with_capacity(body.len() + size_of::<i16>());
    bytes.put_i16(version);
    bytes.put_slice(&body);
    Ok(bytes.freeze())
}

/// Reads a message behind its version. A newer version only adds fields behind those that we know.
fn decode_versioned<M: Message>(bytes: Bytes) -> Result<M, ClientError> {
    let wrong = |error: gregor_wire::DecodeError| ClientError::InvalidArgument(format!("{}: {error}", M::NAME));
    let mut reader = Reader::new(bytes);
    let version = reader.i16().map_err(wrong)?;
    M::decode(&mut reader, version.clamp(*M::VERSIONS.start(), *M::VERSIONS.end())).map_err(wrong)
}

fn encode_subscription(topics: &BTreeSet<KString>) -> Result<Bytes, ClientError> {
    let subscription = ConsumerProtocolSubscription { topics: topics.iter().cloned().collect(), ..Default::default() };
    encode_versioned(&subscription, SUBSCRIPTION_VERSION)
}

fn decode_subscription(bytes: Bytes) -> Result<BTreeSet<KString>, ClientError> {
    Ok(decode_versioned::<ConsumerProtocolSubscription>(bytes)?.topics.into_iter().collect())
}

fn encode_assignment(partitions: &[TopicPartition]) -> Result<Bytes, ClientError> {
    let mut topics: BTreeMap<KString, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        topics.entry(partition.topic.clone()).or_default().push(partition.partition.0);
    }
    let rows = topics.into_iter().map(|(topic, partitions)| consumer_protocol_assignment::TopicPartition {
        topic,
        partitions,
        ..Default::default()
    });
    let assignment = ConsumerProtocolAssignment { assigned_partitions: rows.collect(), ..Default::default() };
    encode_versioned(&assignment, SUBSCRIPTION_VERSION)
}

fn decode_assignment(bytes: Bytes) -> Result<Vec<TopicPartition>, ClientError> {
    // A member that the leader did not know of gets nothing.
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let assignment: ConsumerProtocolAssignment = decode_versioned(bytes)?;
    let rows = assignment
        .assigned_partitions
        .iter()
        .flat_map(|row| row.partitions.iter().map(|partition| TopicPartition::new(row.topic.compact(), *partition)));
    Ok(rows.collect())
}
