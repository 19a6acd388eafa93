//! Records that wait for their batch to be sent: one queue per partition, no I/O, no clock of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use gregor_types::{KString, ProducerEpoch, ProducerId, Timestamp, TopicPartition};
use gregor_wire::{
    batch::{BatchOptions, ProducerStamp, RecordBatchBuilder},
    compression::Compression,
};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use super::Stored;
use crate::ClientError;

/// A record that waits, and who waits for it.
pub(crate) struct Pending {
    pub(crate) key: Option<Bytes>,
    pub(crate) value: Option<Bytes>,
    pub(crate) headers: Vec<(KString, Option<Bytes>)>,
    pub(crate) timestamp: Timestamp,
    pub(super) done: oneshot::Sender<Result<Stored, ClientError>>,
    pub(super) _room: OwnedSemaphorePermit,
}

/// Who produced a batch and which of its batches it is; kept through every retry, so that the broker can tell one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: ProducerId,
    pub(crate) epoch: ProducerEpoch,
    pub(crate) base_sequence: i32,
}

/// Records that travel together.
pub(crate) struct Batch {
    pub(crate) records: Vec<Pending>,
    pub(super) bytes: usize,
    pub(super) deadline: Instant,
    /// The bytes as they were first sent.
    pub(super) encoded: Option<Bytes>,
    pub(crate) identity: Option<Identity>,
    /// What the last try failed with.
    pub(super) last_error: Option<String>,
    created: Instant,
    not_before: Option<Instant>,
    tries: u32,
}

impl Batch {
    /// The batch in the form in which it is sent.
    pub(super) fn encode(&self, compression: Compression) -> Result<Bytes, ClientError> {
        let producer = self.identity.map(|identity| ProducerStamp {
            id: identity.id,
            epoch: identity.epoch,
            base_sequence: identity.base_sequence,
        });
        let mut builder = RecordBatchBuilder::new(BatchOptions { compression, producer, ..BatchOptions::default() });
        for record in &self.records {
            let headers: Vec<_> =
                record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
            builder.append(record.timestamp, record.key.as_deref(), record.value.as_deref(), &headers);
        }
        let unpressed = |error| ClientError::InvalidArgument(format!("records cannot be compressed: {error}"));
        builder.try_build().map_err(unpressed)
    }
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    /// Whether the batch before these is on its way.
    in_flight: bool,
    /// The sequence number of the next batch, under the identity that the number was counted for.
    sequence: i32,
    counted_for: Option<(ProducerId, ProducerEpoch)>,
}

/// What waits, by partition.
pub(super) struct Accumulator {
    batch_bytes: usize,
    linger: Duration,
    queues: BTreeMap<TopicPartition, Queue>,
}

impl Accumulator {
    pub(super) fn new(batch_bytes: usize, linger: Duration) -> Self {
        Self { batch_bytes, linger, queues: BTreeMap::new() }
    }

    /// Adds a record; returns whether the sender has something to look at that it does not know of.
    pub(super) fn append(
        &mut self,
        partition: TopicPartition,
        record: Pending,
        bytes: usize,
        now: Instant,
        deadline: Instant,
    ) -> bool {
        let queue = self.queues.entry(partition).or_default();
        if let Some(last) = queue.batches.back_mut()
            && last.encoded.is_none()
            && last.bytes + bytes <= self.batch_bytes
        {
            last.bytes += bytes;
            last.records.push(record);
            return last.bytes >= self.batch_bytes;
        }
        queue.batches.push_back(Batch {
            records: vec![record],
            bytes,
            deadline,
            encoded: None,
            identity: None,
            last_error: None,
            created: now,
            not_before: None,
            tries: 0,
        });
        true
    }

    /// Takes the first batch of each partition that is ready, if `choose` wants it; says when the next one will be ready.
    pub(super) fn drain(
        &mut self,
        now: Instant,
        flushing: bool,
        mut choose: impl FnMut(&TopicPartition, &Batch) -> bool,
    ) -> (Vec<(TopicPartition, Batch)>, Option<Instant>) {
        let mut drained = Vec::new();
        let mut next: Option<Instant> = None;
        for (partition, queue) in &mut self.queues {
            if queue.in_flight {
                continue;
            }
            let Some(first) = queue.batches.front() else { continue };
            let full = queue.batches.len() > 1 || first.bytes >= self.batch_bytes || flushing || first.tries > 0;
            let ready_at = first.not_before.unwrap_or(if full { now } else { first.created + self.linger });
            if ready_at > now {
                next = Some(next.map_or(ready_at, |next| next.min(ready_at)));
            } else if choose(partition, first)
                && let Some(batch) = queue.batches.pop_front()
            {
                queue.in_flight = true;
                drained.push((partition.clone(), batch));
            }
        }
        (drained, next)
    }

    /// Takes every batch whose time is up and that is not on its way.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<(TopicPartition, Batch)> {
        let mut expired = Vec::new();
        for (partition, queue) in &mut self.queues {
            while !queue.in_flight && queue.batches.front().is_some_and(|batch| batch.deadline <= now) {
                expired.extend(queue.batches.pop_front().map(|batch| (partition.clone(), batch)));
            }
        }
        expired
    }

    /// Numbers a batch for a producer identity, once.
    pub(super) fn number(
        &mut self,
        partition: &TopicPartition,
        batch: &mut Batch,
        id: ProducerId,
        epoch: ProducerEpoch,
    ) {
        let queue = self.queues.entry(partition.clone()).or_default();
        if queue.counted_for != Some((id, epoch)) {
            queue.counted_for = Some((id, epoch));
            queue.sequence = 0;
        }
        batch.identity = Some(Identity { id, epoch, base_sequence: queue.sequence });
        // Kafka's sequence numbers go from i32::MAX back to 0.
        queue.sequence = ((i64::from(queue.sequence) + batch.records.len() as i64) % (1 << 31)) as i32;
    }

    /// A batch came to its end, well or not: the next of its partition may go.
    pub(super) fn finished(&mut self, partition: &TopicPartition) {
        let Some(queue) = self.queues.get_mut(partition) else { return };
        queue.in_flight = false;
    }

    /// A batch that is to be sent again stands first in its partition.
    pub(super) fn again(&mut self, partition: &TopicPartition, mut batch: Batch, now: Instant, pause: Duration) {
        let queue = self.queues.entry(partition.clone()).or_default();
        batch.tries = batch.tries.saturating_add(1);
        batch.not_before = Some(now + pause.saturating_mul(1 << batch.tries.min(5)) / 2);
        queue.batches.push_front(batch);
        queue.in_flight = false;
    }

    /// Whether nothing waits and nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.queues.values().all(|queue| !queue.in_flight && queue.batches.is_empty())
    }

    /// The topics that have something to send.
    pub(super) fn topics(&self) -> Vec<KString> {
        let waiting = self.queues.iter().filter(|(_, queue)| !queue.batches.is_empty());
        let mut topics: Vec<_> = waiting.map(|(partition, _)| partition.topic.clone()).collect();
        topics.dedup();
        topics
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    const LINGER: Duration = Duration::from_secs(5);

    struct Bench {
        accumulator: Accumulator,
        start: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self { accumulator: Accumulator::new(100, LINGER), start: Instant::now() }
        }

        /// Appends a record of 40 bytes; whether the sender is woken.
        fn append(&mut self, value: &'static str) -> bool {
            let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
            let record = Pending {
                key: None,
                value: Some(Bytes::from_static(value.as_bytes())),
                headers: Vec::new(),
                timestamp: Timestamp(0),
                done: oneshot::channel().0,
                _room: room,
            };
            let deadline = self.start + Duration::from_mins(2);
            self.accumulator.append(TopicPartition::new("orders", 0), record, 40, self.start, deadline)
        }

        fn drain(&mut self, after: Duration) -> Vec<(TopicPartition, Batch)> {
            self.accumulator.drain(self.start + after, false, |_, _| true).0
        }
    }

    fn values(batch: &Batch) -> Vec<&str> {
        batch.records.iter().map(|record| std::str::from_utf8(record.value.as_ref().unwrap()).unwrap()).collect()
    }

    #[test]
    fn a_batch_leaves_when_it_is_full_or_has_lingered() {
        let mut bench = Bench::new();
        assert!(bench.append("a"), "the sender has to know of the linger");
        assert!(!bench.append("b"));
        assert!(bench.drain(Duration::ZERO).is_empty());
        let (_, next) = bench.accumulator.drain(bench.start, false, |_, _| true);
        assert_eq!(next, Some(bench.start + LINGER));
        assert!(bench.append("c"), "the first batch is full");
        assert_eq!(values(&bench.drain(Duration::ZERO)[0].1), ["a", "b"]);
    }

    #[test]
    fn one_batch_of_a_partition_is_on_its_way_and_a_retry_comes_before_what_follows() {
        let mut bench = Bench::new();
        for value in ["a", "b", "c", "d"] {
            bench.append(value);
        }
        let (partition, batch) = bench.drain(LINGER).remove(0);
        assert!(bench.drain(LINGER).is_empty(), "the second waits for the first");
        bench.accumulator.again(&partition, batch, bench.start, Duration::from_secs(1));
        let drained = bench.drain(Duration::from_mins(1));
        assert_eq!(values(&drained[0].1), ["a", "b"]);
        bench.accumulator.finished(&partition);
        assert_eq!(values(&bench.drain(LINGER)[0].1), ["c", "d"]);
    }

    #[test]
    fn sequence_numbers_go_on_and_start_again_with_a_new_producer_id() {
        let mut bench = Bench::new();
        let mut sequence = |id: i64| {
            bench.append("a");
            bench.append("b");
            let (partition, mut batch) = bench.drain(LINGER).remove(0);
            bench.accumulator.number(&partition, &mut batch, ProducerId(id), ProducerEpoch(0));
            bench.accumulator.finished(&partition);
            batch.identity.unwrap().base_sequence
        };
        assert_eq!([sequence(7), sequence(7), sequence(8), sequence(8)], [0, 2, 0, 2]);
    }

    #[test]
    fn what_waits_past_its_deadline_is_given_up() {
        let mut bench = Bench::new();
        bench.append("a");
        assert!(bench.accumulator.expire(bench.start + LINGER).is_empty());
        assert_eq!(bench.accumulator.expire(bench.start + Duration::from_mins(3)).len(), 1);
        assert!(bench.accumulator.is_idle());
    }
}
