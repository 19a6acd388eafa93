//! An idempotent producer: several batches in flight, the same again until each is answered, in order.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use gregor_types::{ErrorCode, ProducerEpoch, ProducerId, Timestamp};
use gregor_wire::batch::{BatchOptions, ProducerStamp, RecordBatchBuilder};

use super::{Client, View, is_retriable};
use crate::{
    network::{Batches, Place, Request, Response},
    promises::{MADE_BY, Value},
};

const IN_FLIGHT_MAX: usize = 3;
const TIMESTAMP: Timestamp = Timestamp(1_700_000_000_000);

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Producer {
    session: Option<Session>,
    asking_for_id: Option<u64>,
    next_number: u64,
}

/// One producer id, writing to one partition.
#[derive(Debug)]
struct Session {
    id: ProducerId,
    place: Place,
    /// How often power had been lost when the session began.
    power_losses: u64,
    next_sequence: i32,
    in_flight: VecDeque<Batch>,
    /// The batches that requests under way carry, by their first sequence.
    calls: BTreeMap<u64, i32>,
    /// Whether the batches in flight are to be sent again.
    resend: bool,
}

#[derive(Debug)]
struct Batch {
    sequence: i32,
    values: Vec<Value>,
    bytes: Bytes,
    acks_all: bool,
    /// How often the node had stopped cleanly when the batch was first sent.
    clean_stops: u64,
}

/// A batch whose records say who made them.
pub(super) fn batch(values: &[Value], producer: ProducerStamp, transactional: bool, compacted: bool) -> Bytes {
    let options = BatchOptions { producer: Some(producer), transactional, ..BatchOptions::default() };
    let mut builder = RecordBatchBuilder::new(options);
    for value in values {
        let text = value.to_string();
        if compacted {
            let content = (!value.deletes()).then_some(text.as_bytes());
            let headers = [(MADE_BY, Some(text.as_bytes()))];
            builder.append(TIMESTAMP, Some(&value.key().to_be_bytes()), content, &headers);
        } else {
            builder.append(TIMESTAMP, None, Some(text.as_bytes()), &[]);
        }
    }
    builder.build()
}

/// A few new values of a client.
pub(super) fn new_values(next_number: &mut u64, world: &mut View<'_>) -> Vec<Value> {
    (0..world.random.between(1, 4))
        .map(|_| {
            *next_number += 1;
            Value { client: world.me, number: *next_number }
        })
        .collect()
}

impl Client for Producer {
    fn wake(&mut self, world: &mut View<'_>) {
        world.wake_in(60);
        let Some(session) = &mut self.session else {
            if !world.winding_down && self.asking_for_id.is_none() {
                self.asking_for_id = Some(world.ask(Request::ProducerId));
            }
            return;
        };
        if !world.promises.is_there(&session.place.topic) {
            self.session = None;
            return;
        }
        if std::mem::take(&mut session.resend) {
            session.calls.clear();
            (0..session.in_flight.len()).for_each(|index| session.send(index, world));
        }
        if session.in_flight.len() < IN_FLIGHT_MAX && !world.winding_down {
            let values = new_values(&mut self.next_number, world);
            let sequence = session.next_sequence;
            session.next_sequence += values.len() as i32;
            let producer = ProducerStamp { id: session.id, epoch: ProducerEpoch(0), base_sequence: sequence };
            let bytes = batch(&values, producer, false, world.promises.is_compacted(&session.place.topic));
            world.promises.sent(&session.place, &values);
            let (acks_all, clean_stops) = (world.random.chance(70), world.promises.clean_stops);
            session.in_flight.push_back(Batch { sequence, values, bytes, acks_all, clean_stops });
            session.send(session.in_flight.len() - 1, world);
        }
        if session.in_flight.is_empty() && world.random.chance(5) {
            self.session = None;
        }
    }

    fn hear(&mut self, number: u64, response: Response, world: &mut View<'_>) {
        if self.asking_for_id.take_if(|asking| *asking == number).is_some() {
            let places = world.promises.places_for_data(false);
            if let (Response::ProducerId(id), false) = (response, places.is_empty()) {
                let place = world.random.pick(&places).clone();
                self.session = Some(Session::new(id, place, world.promises.power_losses));
            }
            return;
        }
        let Some(session) = &mut self.session else { return };
        let Some(sequence) = session.calls.remove(&number) else { return };
        let Some(index) = session.in_flight.iter().position(|batch| batch.sequence == sequence) else { return };
        match response {
            Response::Produced(base) => {
                let batch = session.in_flight.remove(index).expect("it was just found");
                world.promises.acknowledged(&session.place, base, &batch.values);
            }
            Response::Refused(ErrorCode::OutOfOrderSequenceNumber) if index > 0 => session.resend = true,
            Response::Refused(error) if !is_retriable(error) => {
                // Only a record that was lost can make a gap before the oldest batch in flight. But a clean stop leaves a snapshot of
                // the producers, and by its format that has the last batch of each: those before it are no longer known as sent again.
                let synced = world.promises.is_synced(&session.place.topic);
                let there = world.promises.is_there(&session.place.topic);
                let snapshot = error == ErrorCode::OutOfOrderSequenceNumber
                    && session.in_flight[index].clean_stops < world.promises.clean_stops;
                // Nor does a start know those that the cleaner has taken: of them it keeps the last of each producer.
                let cleaned =
                    error == ErrorCode::OutOfOrderSequenceNumber && world.promises.is_compacted(&session.place.topic);
                let rotten = world.promises.rotten_from(&session.place).is_some();
                // Of a producer that a partition does not know, any sequence may be the first: one in flight behind it was taken when the
                // partition began to be served in between. Kafka's brokers do the same.
                let unknown = sequence == 0;
                if there
                    && !snapshot
                    && !cleaned
                    && !rotten
                    && !unknown
                    && (synced || session.power_losses == world.promises.power_losses)
                {
                    let (place, id) = (&session.place, session.id);
                    let what = format!("{place} refuses sequence {sequence} of producer {id}: {error}");
                    world.promises.violated(what);
                }
                self.session = None;
            }
            _ => session.resend = true,
        }
    }
}

impl Session {
    fn new(id: ProducerId, place: Place, power_losses: u64) -> Self {
        let (in_flight, calls) = (VecDeque::new(), BTreeMap::new());
        Self { id, place, power_losses, next_sequence: 0, in_flight, calls, resend: false }
    }

    fn send(&mut self, index: usize, world: &mut View<'_>) {
        let batch = &self.in_flight[index];
        let (place, bytes, acks_all) = (self.place.clone(), batch.bytes.clone(), batch.acks_all);
        let call = world.ask(Request::Produce { place, batch: Batches(bytes), acks_all });
        self.calls.insert(call, batch.sequence);
    }
}
