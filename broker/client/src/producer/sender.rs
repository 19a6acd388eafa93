//! The task that sends batches: to each leader at most one request at a time, with at most one batch of each partition.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use gregor_messages::{
    InitProducerIdRequest, ProduceRequest, ProduceResponse,
    produce_request::{PartitionProduceData, TopicProduceData},
};
use gregor_types::{BrokerId, ErrorCode, KString, Offset, ProducerEpoch, ProducerId, TopicPartition};
use gregor_wire::Message;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{ByTopic, Shared, Stored, accumulator::Batch};
use crate::{Acks, BrokerError, ClientError, route::Purpose};

/// The newest version of Produce that names topics rather than giving their ids.
const PRODUCE_BY_NAME_MAX: i16 = 12;
/// How many bytes of batches go into one request.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// How often the task looks at deadlines when nothing else wakes it.
const EXPIRY_CHECK: Duration = Duration::from_millis(500);

type Sent = (BrokerId, Vec<(TopicPartition, Batch)>, Result<Option<ProduceResponse>, ClientError>);

/// The sender's own state, beside what it shares with `send`.
struct Sender {
    shared: Arc<Shared>,
    identity: Option<(ProducerId, ProducerEpoch)>,
    busy: BTreeSet<BrokerId>,
    requests: JoinSet<Sent>,
    /// Whether leaders have to be asked for again.
    stale: bool,
}

/// Sends until the producer is closed and everything is delivered.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut sender = Sender { shared, identity: None, busy: BTreeSet::new(), requests: JoinSet::new(), stale: false };
    loop {
        let next = sender.round().await;
        {
            let state = sender.shared.lock();
            if state.closed && state.accumulator.is_idle() {
                return;
            }
        }
        let idle = Instant::now() + EXPIRY_CHECK;
        let until = next.map_or(idle, |next| next.min(idle));
        let nothing_waits = next.is_none() && sender.requests.is_empty();
        let waiting = nothing_waits && sender.shared.lock().accumulator.is_idle();
        tokio::select! {
            () = sender.shared.work.notified() => {}
            Some(Ok(sent)) = sender.requests.join_next(), if !sender.requests.is_empty() => sender.finish(sent),
            () = sleep_until(until), if !waiting => {}
        }
    }
}

impl Sender {
    /// Expires, refreshes and sends what is ready; returns when to look again.
    async fn round(&mut self) -> Option<Instant> {
        self.expire();
        let waiting = self.shared.lock().accumulator.topics();
        if waiting.is_empty() {
            return None;
        }
        if self.stale || self.missing_leader(&waiting) || self.shared.client.outdated(waiting.iter()) {
            if self.stale {
                self.shared.client.ask_another();
            }
            self.stale = false;
            if let Err(error) = self.shared.client.refresh_topics(&waiting, true).await {
                tracing::debug!(%error, "metadata for produce");
                self.stale = true;
                return Some(Instant::now() + self.shared.client.options().retry_backoff);
            }
        }
        if self.shared.options.idempotent && self.identity.is_none() {
            match self.init_producer_id().await {
                Ok(identity) => self.identity = Some(identity),
                Err(error) if error.is_retriable() => {
                    tracing::debug!(%error, "producer id");
                    self.shared.client.ask_another();
                    return Some(Instant::now() + self.shared.client.options().retry_backoff);
                }
                Err(error) => {
                    self.fail_everything(&error);
                    return None;
                }
            }
        }
        self.send_ready()
    }

    fn missing_leader(&self, topics: &[KString]) -> bool {
        let cluster = self.shared.client.cluster();
        topics.iter().any(|name| {
            let topic = cluster.topics.get(name);
            topic.is_none_or(|topic| topic.partitions.values().any(|partition| partition.leader.is_none()))
        })
    }

    fn send_ready(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let client = self.shared.client.clone();
        let mut loads: BTreeMap<BrokerId, (usize, Vec<(TopicPartition, Batch)>)> = BTreeMap::new();
        let mut sizes: BTreeMap<BrokerId, usize> = BTreeMap::new();
        let mut leaderless = false;
        let mut state = self.shared.lock();
        let flushing = state.flushing > 0 || state.closed;
        let (drained, next) =
            state.accumulator.drain(now, flushing, |partition, batch| match client.leader(partition) {
                Ok((leader, _)) if !self.busy.contains(&leader) => {
                    let size = sizes.entry(leader).or_default();
                    let fits = *size == 0 || *size + batch.bytes <= REQUEST_BYTES_MAX;
                    *size += if fits { batch.bytes } else { 0 };
                    fits
                }
                Ok(_) => false,
                Err(_) => {
                    leaderless = true;
                    false
                }
            });
        for (partition, mut batch) in drained {
            if let (Some((id, epoch)), None) = (self.identity, batch.identity) {
                state.accumulator.number(&partition, &mut batch, id, epoch);
            }
            match client.leader(&partition) {
                Ok((leader, _)) => loads.entry(leader).or_default().1.push((partition, batch)),
                Err(_) => state.accumulator.again(&partition, batch, now, Duration::ZERO),
            }
        }
        drop(state);
        for (leader, (_, batches)) in loads {
            self.busy.insert(leader);
            self.requests.spawn(send(Arc::clone(&self.shared), leader, batches));
        }
        if leaderless {
            let soon = now + client.options().retry_backoff;
            return Some(next.map_or(soon, |next| next.min(soon)));
        }
        next
    }

    /// Completes, or queues again, what a request carried.
    fn finish(&mut self, (leader, batches, outcome): Sent) {
        self.busy.remove(&leader);
        match outcome {
            Ok(None) => {
                for (partition, batch) in batches {
                    self.succeed(&partition, batch, Offset::NONE);
                }
            }
            Ok(Some(response)) => {
                let mut rows = BTreeMap::new();
                for topic in &response.responses {
                    for row in &topic.partition_responses {
                        rows.insert((topic.name.clone(), row.index), row);
                    }
                }
                for (partition, batch) in batches {
                    let Some(row) = rows.get(&(partition.topic.clone(), partition.partition.0)) else {
                        let missing = BrokerError::new(format!("partition {partition}"), ErrorCode::UnknownServerError);
                        self.fail(&partition, batch, &missing.into());
                        continue;
                    };
                    match ErrorCode::from(row.error_code) {
                        ErrorCode::None => self.succeed(&partition, batch, Offset(row.base_offset)),
                        // It was stored by an earlier try, so long ago that the broker forgot where.
                        ErrorCode::DuplicateSequenceNumber => self.succeed(&partition, batch, Offset::NONE),
                        code => {
                            let error = BrokerError::new(format!("partition {partition}"), code)
                                .with_message(row.error_message.as_deref());
                            self.failed_try(&partition, batch, &error.into());
                        }
                    }
                }
            }
            Err(error) => {
                let text = error.to_string();
                let retriable = error.is_retriable();
                for (partition, batch) in batches {
                    let error = BrokerError::new(format!("partition {partition}"), ErrorCode::NetworkException)
                        .with_message(Some(&text));
                    if retriable {
                        self.failed_try(&partition, batch, &error.into());
                    } else {
                        self.fail(&partition, batch, &error.into());
                    }
                }
            }
        }
    }

    fn succeed(&self, partition: &TopicPartition, batch: Batch, base: Offset) {
        self.shared.lock().accumulator.finished(partition);
        self.shared.complete(batch.records, |at| {
            let offset = if base.0 < 0 { Offset::NONE } else { base.plus(at as i64) };
            Ok(Stored { partition: partition.clone(), offset })
        });
    }

    fn failed_try(&mut self, partition: &TopicPartition, mut batch: Batch, error: &ClientError) {
        let now = Instant::now();
        if !error.is_retriable() || batch.deadline <= now {
            self.fail(partition, batch, error);
            return;
        }
        tracing::debug!(%partition, %error, "a batch is sent again");
        self.stale = true;
        batch.last_error = Some(error.to_string());
        let pause = self.shared.client.options().retry_backoff;
        self.shared.lock().accumulator.again(partition, batch, now, pause);
    }

    fn fail(&mut self, partition: &TopicPartition, batch: Batch, error: &ClientError) {
        // The sequence numbers of this batch will be missing at the broker: start counting afresh under a new id.
        if batch.identity.is_some_and(|identity| self.identity == Some((identity.id, identity.epoch))) {
            self.identity = None;
        }
        self.shared.lock().accumulator.finished(partition);
        self.shared.complete(batch.records, |_| Err(again(error, partition)));
    }

    fn expire(&mut self) {
        let expired = self.shared.lock().accumulator.expire(Instant::now());
        for (partition, batch) in expired {
            let reason = batch.last_error.clone().unwrap_or_else(|| "it could not be sent".to_owned());
            self.fail(&partition, batch, &ClientError::DeliveryTimedOut(partition.clone(), reason));
        }
    }

    fn fail_everything(&mut self, error: &ClientError) {
        let (drained, _) = self.shared.lock().accumulator.drain(Instant::now(), true, |_, _| true);
        for (partition, batch) in drained {
            self.fail(&partition, batch, error);
        }
    }

    async fn init_producer_id(&self) -> Result<(ProducerId, ProducerEpoch), ClientError> {
        let build = |_| InitProducerIdRequest {
            transactional_id: None,
            transaction_timeout_ms: i32::MAX,
            ..Default::default()
        };
        let client = &self.shared.client;
        let wait = client.options().request_timeout;
        let (_, response) =
            client.call_any::<InitProducerIdRequest>(InitProducerIdRequest::VERSIONS, wait, build).await?;
        ErrorCode::from(response.error_code).ok().map_err(|code| BrokerError::new("producer id", code))?;
        Ok((ProducerId(response.producer_id), ProducerEpoch(response.producer_epoch)))
    }
}

/// The same error for one more record.
fn again(error: &ClientError, partition: &TopicPartition) -> ClientError {
    match error {
        ClientError::Broker(error) => error.clone().into(),
        other => ClientError::DeliveryTimedOut(partition.clone(), other.to_string()),
    }
}

async fn send(shared: Arc<Shared>, leader: BrokerId, mut batches: Vec<(TopicPartition, Batch)>) -> Sent {
    let outcome = request(&shared, leader, &mut batches).await;
    (leader, batches, outcome)
}

async fn request(
    shared: &Shared,
    leader: BrokerId,
    batches: &mut [(TopicPartition, Batch)],
) -> Result<Option<ProduceResponse>, ClientError> {
    let options = &shared.options;
    let mut topics: ByTopic<bytes::Bytes> = BTreeMap::new();
    for (partition, batch) in batches {
        let encoded = match &batch.encoded {
            Some(encoded) => encoded.clone(),
            None => batch.encode(options.compression)?,
        };
        batch.encoded = Some(encoded.clone());
        topics.entry(partition.topic.clone()).or_default().push((partition.partition, encoded));
    }
    let wait = shared.client.options().request_timeout;
    let request = ProduceRequest {
        acks: options.acks.wire(),
        timeout_ms: i32::try_from(wait.as_millis()).unwrap_or(i32::MAX),
        topic_data: topics
            .into_iter()
            .map(|(name, partitions)| TopicProduceData {
                name,
                partition_data: partitions
                    .into_iter()
                    .map(|(index, records)| PartitionProduceData {
                        index: index.0,
                        records: Some(records),
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    let channel = shared.client.broker(leader, Purpose::Produce)?;
    if options.acks == Acks::None {
        channel.send(3..=PRODUCE_BY_NAME_MAX, |_| request).await?;
        return Ok(None);
    }
    let (_, response) = channel.call_with(3..=PRODUCE_BY_NAME_MAX, wait, |_| request).await?;
    Ok(Some(response))
}
