//! An idempotent producer with acks=all: one batch at a time, the same again until it is answered. Once nothing goes wrong any more it writes
//! to what has taken nothing since, and then no more.

use bytes::Bytes;
use gregor_replication::FollowedPartition;
use gregor_types::{LeaderEpoch, ProducerEpoch, ProducerId, Timestamp};
use gregor_wire::batch::{BatchOptions, ProducerStamp, RecordBatchBuilder};

use super::{Client, View};
use crate::{
    cluster::letters::{Answer, CallId, Question},
    network::Batches,
    promises::Value,
};

const TIMESTAMP: Timestamp = Timestamp(1_700_000_000_000);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Producer {
    session: Option<Session>,
    sessions: i64,
    next_number: u64,
}

/// One producer id, writing to one partition.
#[derive(Debug)]
struct Session {
    id: ProducerId,
    place: FollowedPartition,
    next_sequence: i32,
    in_flight: Option<Batch>,
    /// The newest leadership that has acknowledged one of its batches.
    acknowledged_in: LeaderEpoch,
}

#[derive(Debug)]
struct Batch {
    sequence: i32,
    values: Vec<Value>,
    /// Whether nothing went wrong any more when it was made.
    is_late: bool,
    bytes: Bytes,
    call: Option<CallId>,
}

impl Session {
    fn batch(&mut self, values: Vec<Value>, is_late: bool) -> Batch {
        let sequence = self.next_sequence;
        self.next_sequence += values.len() as i32;
        let producer = ProducerStamp { id: self.id, epoch: ProducerEpoch(0), base_sequence: sequence };
        let options = BatchOptions { producer: Some(producer), ..BatchOptions::default() };
        let mut builder = RecordBatchBuilder::new(options);
        for value in &values {
            builder.append(TIMESTAMP, None, Some(value.to_string().as_bytes()), &[]);
        }
        Batch { sequence, values, is_late, bytes: builder.build(), call: None }
    }
}

impl Client for Producer {
    fn wake(&mut self, view: &mut View<'_>) {
        view.wake_in(150);
        let Some(image) = view.image.clone() else { return };
        if self.session.as_ref().is_some_and(|session| view.ledger.may_be_gone(session.place.topic_id)) {
            self.session = None;
        }
        let Some(session) = &mut self.session else {
            let partitions = image.topics().iter().flat_map(|topic| {
                topic.partitions().map(move |(partition, _)| FollowedPartition { topic_id: topic.id, partition })
            });
            let is_wanted = |place: &FollowedPartition| {
                let has_taken = view.healing && view.ledger.is_alive(*place);
                !has_taken && !view.ledger.may_be_gone(place.topic_id)
            };
            let places: Vec<_> = partitions.filter(is_wanted).collect();
            if !places.is_empty() {
                self.sessions += 1;
                self.session = Some(Session {
                    id: ProducerId(view.me as i64 * 10_000 + self.sessions),
                    place: *view.random.pick(&places),
                    next_sequence: 0,
                    in_flight: None,
                    acknowledged_in: LeaderEpoch::NONE,
                });
            }
            return;
        };
        if session.in_flight.is_none() {
            let is_done = if view.healing { view.ledger.is_alive(session.place) } else { view.random.chance(3) };
            if is_done {
                self.session = None;
                return;
            }
            let values = (0..view.random.between(1, 4)).map(|_| {
                self.next_number += 1;
                Value { client: view.me, number: self.next_number }
            });
            let values = values.collect();
            session.in_flight = Some(session.batch(values, view.healing));
        }
        let place = session.place;
        let leader = image.topics().partition(place.topic_id, place.partition).and_then(|partition| partition.leader);
        let (Some(batch), Some(leader)) = (&mut session.in_flight, leader) else { return };
        if batch.call.is_none() {
            batch.call = Some(view.ask(leader, Question::Produce(place, Batches(batch.bytes.clone()))));
        }
    }

    fn hear(&mut self, call: CallId, answer: Option<Answer>, view: &mut View<'_>) {
        let Some(session) = &mut self.session else { return };
        let Some(batch) = session.in_flight.as_mut().filter(|batch| batch.call == Some(call)) else { return };
        batch.call = None;
        match answer {
            Some(Answer::Produced(base, epoch)) => {
                view.ledger.acknowledged(session.place, base, &batch.values);
                if batch.is_late {
                    view.ledger.lives(session.place);
                }
                session.in_flight = None;
                session.acknowledged_in = epoch;
            }
            // What came before it is gone.
            Some(Answer::Wrong(..)) if view.ledger.is_unclean(session.place) => self.session = None,
            // Of one batch at a time, sent until it is acknowledged, every later one finds the one before it; a gap is a loss. Only a
            // partition that knows nothing of the producer takes any sequence for the first, and who does not know yet that it leads
            // no more has not seen what was acknowledged since.
            Some(Answer::Wrong(error, epoch)) if epoch >= session.acknowledged_in => {
                let (name, sequence) = (view.ledger.name(session.place), batch.sequence);
                let what =
                    format!("{name} in epoch {epoch} refuses sequence {sequence} of producer {}: {error}", session.id);
                view.ledger.violated(what);
            }
            _ => {}
        }
    }
}
