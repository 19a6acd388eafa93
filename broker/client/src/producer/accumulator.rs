//! Records that wait for their batch to be sent: one queue per partition, no I/O, no clock of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use gregor_types::{KString, ProducerEpoch, ProducerId, Timestamp, TopicPartition};
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
