//! The producer: records in, acknowledgements out.
//!
//! `send` puts a record into its partition's batch and returns at once; one task per producer sends what is full or has waited
//! long enough, and completes each record's [`Delivery`]. At most one batch per partition is on its way, so order holds through
//! every retry.

mod accumulator;
mod partitioner;
mod sender;

use std::{
    collections::BTreeMap,
    future::Future,
    hash::{BuildHasher, Hasher, RandomState},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use gregor_types::{KString, Offset, PartitionIndex, Timestamp, TopicPartition};
use tokio::{
    sync::{Notify, Semaphore, oneshot, watch},
    time::Instant,
};

use accumulator::{Accumulator, Pending};
pub use partitioner::murmur2;

use crate::{Acks, Client, ClientError, ProducerOptions, producer::partitioner::Partitioner};

/// A record to produce.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProducerRecord {
    /// Where to.
    pub topic: KString,
    /// Which partition; none to let key or chance decide.
    pub partition: Option<PartitionIndex>,
    /// Decides the partition, and what compaction keeps.
    pub key: Option<Bytes>,
    /// The content; none deletes the key in a compacted topic.
    pub value: Option<Bytes>,
    /// Names with values, in order.
    pub headers: Vec<(KString, Option<Bytes>)>,
    /// When it happened; none for now.
    pub timestamp: Option<Timestamp>,
}

impl ProducerRecord {
    /// A record with a value and no key.
    pub fn new(topic: impl Into<KString>, value: impl Into<Bytes>) -> Self {
        Self { topic: topic.into(), value: Some(value.into()), ..Self::default() }
    }

    /// The same with a key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    fn bytes(&self) -> usize {
        let part = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + part(value) + 4).sum();
        // The rest is an upper bound of what a record takes around its parts.
        part(&self.key) + part(&self.value) + headers + 21
    }
}

/// Where a record was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The partition.
    pub partition: TopicPartition,
    /// The offset; [`Offset::NONE`] with [`Acks::None`], or where the broker knew the record already.
    pub offset: Offset,
}

/// Becomes ready when a record is acknowledged, or has failed for good. Dropping it changes nothing for the record.
#[derive(Debug)]
pub struct Delivery(oneshot::Receiver<Result<Stored, ClientError>>);

impl Future for Delivery {
    type Output = Result<Stored, ClientError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|outcome| outcome.unwrap_or(Err(ClientError::Closed("producer"))))
    }
}

/// A producer. A clone is the same producer; when the last one is dropped, what was sent is still delivered.
#[derive(Clone)]
pub struct Producer {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    options: ProducerOptions,
    state: Mutex<State>,
    /// Bytes that may still be buffered.
    room: Arc<Semaphore>,
    /// Wakes the sender.
    work: Notify,
    /// How many records are not completed.
    outstanding: watch::Sender<usize>,
}

struct State {
    accumulator: Accumulator,
    partitioner: Partitioner,
    /// How many callers wait for everything to be sent: then nothing lingers.
    flushing: usize,
    closed: bool,
}

impl Producer {
    pub(crate) fn new(client: Client, options: ProducerOptions) -> Result<Self, ClientError> {
        if options.idempotent && options.acks != Acks::All {
            return Err(ClientError::InvalidArgument(
                "an idempotent producer needs acks=all: set acks to All, or idempotent to false".to_owned(),
            ));
        }
        if options.batch_bytes == 0 || options.buffer_bytes < options.batch_bytes {
            return Err(ClientError::InvalidArgument(format!(
                "buffer_bytes ({}) must be at least batch_bytes ({}), and that above 0",
                options.buffer_bytes, options.batch_bytes
            )));
        }
        let room = options.buffer_bytes.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        let state = State {
            accumulator: Accumulator::new(options.batch_bytes, options.linger),
            partitioner: Partitioner::new(RandomState::new().build_hasher().finish()),
            flushing: 0,
            closed: false,
        };
        let shared = Arc::new(Shared {
            client,
            room: Arc::new(Semaphore::new(room)),
            options,
            state: Mutex::new(state),
            work: Notify::new(),
            outstanding: watch::Sender::new(0),
        });
        tokio::spawn(sender::run(Arc::clone(&shared)));
        Ok(Self { handle: Arc::new(Handle { shared }) })
    }

    /// Queues a record. It waits only for the topic's metadata and for room in the buffer.
    pub async fn send(&self, record: ProducerRecord) -> Result<Delivery, ClientError> {
        let shared = &self.handle.shared;
        let topic = shared.client.topic(&record.topic, true).await?;
        if let Some(partition) = record.partition.filter(|partition| !topic.partitions.contains_key(partition)) {
            return Err(ClientError::InvalidArgument(format!(
                "topic {} has {} partitions, so there is no partition {partition}",
                record.topic,
                topic.partitions.len()
            )));
        }
        let bytes = record.bytes();
        // A record larger than the whole buffer may pass alone; the broker has the last word on it.
        let asked = bytes.min(shared.options.buffer_bytes) as u32;
        let room =
            Arc::clone(&shared.room).acquire_many_owned(asked).await.map_err(|_| ClientError::Closed("producer"))?;
        let (done, delivery) = oneshot::channel();
        let timestamp = record.timestamp.unwrap_or_else(wall_clock);
        let mut state = shared.lock();
        if state.closed {
            return Err(ClientError::Closed("producer"));
        }
        let partition = record.partition.unwrap_or_else(|| {
            let key = record.key.as_deref();
            state.partitioner.choose(&record.topic, &topic, key, bytes, shared.options.batch_bytes)
        });
        let partition = TopicPartition { topic: record.topic, partition };
        let pending =
            Pending { key: record.key, value: record.value, headers: record.headers, timestamp, done, _room: room };
        let now = Instant::now();
        let ready = state.accumulator.append(partition, pending, bytes, now, now + shared.options.delivery_timeout);
        drop(state);
        shared.outstanding.send_modify(|count| *count += 1);
        if ready {
            shared.work.notify_one();
        }
        Ok(Delivery(delivery))
    }

    /// Sends everything that waits and returns once all of it is acknowledged or has failed.
    pub async fn flush(&self) {
        let shared = &self.handle.shared;
        shared.lock().flushing += 1;
        shared.work.notify_one();
        let mut outstanding = shared.outstanding.subscribe();
        // The sender of this channel is in `shared`, so it cannot be closed here.
        let _ = outstanding.wait_for(|count| *count == 0).await;
        shared.lock().flushing -= 1;
    }

    /// Delivers what was sent, then takes no more.
    pub async fn close(self) {
        self.flush().await;
        self.handle.shared.lock().closed = true;
        self.handle.shared.work.notify_one();
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Producer({:?})", self.handle.shared.client)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }

    /// Completes the records of a batch.
    fn complete(&self, records: Vec<Pending>, mut outcome: impl FnMut(usize) -> Result<Stored, ClientError>) {
        let count = records.len();
        for (at, record) in records.into_iter().enumerate() {
            // Whoever dropped the delivery does not want to know.
            let _ = record.done.send(outcome(at));
        }
        self.outstanding.send_modify(|outstanding| *outstanding -= count);
    }
}

fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Batches by topic, as a request wants them.
type ByTopic<T> = BTreeMap<KString, Vec<(PartitionIndex, T)>>;
