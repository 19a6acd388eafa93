//! A transactional producer with its coordinator in one: it writes a few batches, then ends the transaction one way or the other.
//!
//! It writes to topics that sync before they acknowledge: a marker that a power loss takes would have to be written again by a
//! coordinator that remembers it, which comes with transactions themselves.

use gregor_types::{ProducerEpoch, ProducerId};
use gregor_wire::batch::ProducerStamp;

use super::{
    Client, View, is_retriable,
    producer::{batch, new_values},
};
use crate::{
    network::{Batches, Place, Request, Response},
    promises::{Transaction, Value},
};

const BATCHES_MAX: usize = 5;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct TransactionalProducer {
    session: Option<Session>,
    asking: Option<u64>,
    next_number: u64,
}

#[derive(Debug)]
struct Session {
    id: ProducerId,
    place: Place,
    sequence: i32,
    /// What the transaction at hand has written.
    written: Vec<Value>,
    /// What is under way until it is answered.
    step: Step,
}

#[derive(Debug, Clone)]
enum Step {
    Idle,
    Write { values: Vec<Value>, sequence: i32 },
    End { commit: bool },
}

impl TransactionalProducer {
    /// What to do next: to write or to end; `None` if there is nothing left to do.
    fn next_step(&mut self, world: &mut View<'_>) -> Option<Step> {
        let session = self.session.as_mut()?;
        let ends = world.winding_down || session.written.len() > BATCHES_MAX || world.random.chance(30);
        if ends && !session.written.is_empty() {
            let commit = world.random.chance(50);
            let state = if commit { Transaction::Committed } else { Transaction::Aborted };
            world.promises.transactions.extend(session.written.drain(..).map(|value| (value, state)));
            return Some(Step::End { commit });
        }
        if world.winding_down {
            return None;
        }
        let values = new_values(&mut self.next_number, world);
        world.promises.transactions.extend(values.iter().map(|value| (*value, Transaction::Open)));
        session.written.extend(&values);
        let sequence = session.sequence;
        session.sequence += values.len() as i32;
        Some(Step::Write { values, sequence })
    }
}

impl Client for TransactionalProducer {
    fn wake(&mut self, world: &mut View<'_>) {
        world.wake_in(80);
        if self.asking.is_some() {
            return;
        }
        let Some(session) = &self.session else {
            if !world.winding_down {
                self.asking = Some(world.ask(Request::ProducerId));
            }
            return;
        };
        if !world.promises.is_there(&session.place.topic) {
            self.session = None;
            return;
        }
        let step = match &session.step {
            Step::Idle => self.next_step(world),
            again => Some(again.clone()),
        };
        let (Some(step), Some(session)) = (step, &mut self.session) else { return };
        session.step = step;
        let (place, producer, epoch) = (session.place.clone(), session.id, ProducerEpoch(0));
        self.asking = match &session.step {
            Step::Idle => None,
            Step::Write { values, sequence } => {
                let stamp = ProducerStamp { id: producer, epoch, base_sequence: *sequence };
                let compacted = world.promises.is_compacted(&place.topic);
                world.promises.sent(&place, values);
                let batch = Batches(batch(values, stamp, true, compacted));
                Some(world.ask(Request::Produce { place, batch, acks_all: true }))
            }
            Step::End { commit } => {
                Some(world.ask(Request::EndTransaction { place, producer, epoch, commit: *commit }))
            }
        };
    }

    fn hear(&mut self, number: u64, response: Response, world: &mut View<'_>) {
        if self.asking.take_if(|asking| *asking == number).is_none() {
            return;
        }
        let Some(session) = &mut self.session else {
            let synced = world.promises.places_for_data(true);
            if let (Response::ProducerId(id), false) = (response, synced.is_empty()) {
                let place = world.random.pick(&synced).clone();
                self.session = Some(Session { id, place, sequence: 0, written: Vec::new(), step: Step::Idle });
            }
            return;
        };
        match (response, &session.step) {
            (Response::Produced(base), Step::Write { values, .. }) => {
                world.promises.acknowledged(&session.place, base, values);
                session.step = Step::Idle;
            }
            (Response::TransactionEnded, Step::End { .. }) => {
                session.step = Step::Idle;
                if world.random.chance(10) {
                    self.session = None;
                }
            }
            (Response::Refused(error), _) if !is_retriable(error) => {
                let rotten = world.promises.rotten_from(&session.place).is_some();
                if world.promises.is_there(&session.place.topic) && !rotten {
                    let what = format!("{} refuses transactional producer {}: {error}", session.place, session.id);
                    world.promises.violated(what);
                }
                self.session = None;
            }
            _ => {}
        }
    }
}
