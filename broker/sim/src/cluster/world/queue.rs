//! What happens next, and the questions that wait for an answer.
//!
//! Most questions are answered long before who asked would give up. So giving up is kept apart from what else is to happen, in the order in
//! which it falls due, and is nothing but a look at the front once the answer is there.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, VecDeque},
};

use gregor_raft::Nanos;
use gregor_types::BrokerId;

use super::Event;
use crate::cluster::letters::{CallId, Party, Purpose};

/// All that is to happen; what is due at the same time happens in the order in which it was put in.
#[derive(Debug, Default)]
pub(super) struct Queue {
    events: BinaryHeap<Due>,
    /// Who gives up when, by how long it waits: later questions are given up later.
    patience: Vec<(Nanos, VecDeque<Patience>)>,
    next: u64,
}

/// Boxed, as the heap moves what stands in it.
#[derive(Debug)]
struct Due {
    at: Nanos,
    order: u64,
    event: Box<Event>,
}

#[derive(Debug, Clone, Copy)]
struct Patience {
    at: Nanos,
    order: u64,
    call: CallId,
}

/// A question that was neither answered nor given up.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) from: Party,
    pub(super) boot: u64,
    pub(super) to: BrokerId,
    /// Why, where a node asks.
    pub(super) purpose: Option<Purpose>,
}

/// The questions that wait. Their numbers only grow, and none waits for long.
#[derive(Debug, Default)]
pub(super) struct Calls {
    first: CallId,
    waiting: VecDeque<Option<Box<Call>>>,
}

impl Queue {
    /// Something is to happen.
    pub(super) fn push(&mut self, at: Nanos, event: Event) {
        self.next += 1;
        self.events.push(Due { at, order: self.next, event: Box::new(event) });
    }

    /// From now on a question waits so long for an answer.
    pub(super) fn wait(&mut self, now: Nanos, patience: Nanos, call: CallId) {
        self.next += 1;
        let waits = Patience { at: now + patience, order: self.next, call };
        match self.patience.iter_mut().find(|(known, _)| *known == patience) {
            Some((_, waiting)) => waiting.push_back(waits),
            None => self.patience.push((patience, VecDeque::from([waits]))),
        }
    }

    /// What happens next, and when.
    pub(super) fn pop(&mut self, calls: &Calls) -> Option<(Nanos, Event)> {
        let mut first: Option<(usize, Patience)> = None;
        for (index, (_, waiting)) in self.patience.iter_mut().enumerate() {
            while waiting.pop_front_if(|waits| calls.get(waits.call).is_none()).is_some() {}
            if let Some(waits) = waiting.front()
                && first.is_none_or(|(_, first)| (waits.at, waits.order) < (first.at, first.order))
            {
                first = Some((index, *waits));
            }
        }
        if let Some((index, waits)) = first
            && self.events.peek().is_none_or(|due| (waits.at, waits.order) < (due.at, due.order))
        {
            self.patience[index].1.pop_front();
            return Some((waits.at, Event::NoAnswer(waits.call)));
        }
        self.events.pop().map(|due| (due.at, *due.event))
    }
}

impl Ord for Due {
    /// The heap gives its greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Due {}

impl Calls {
    /// A question is asked; no number of an earlier one is as large.
    pub(super) fn insert(&mut self, id: CallId, call: Call) {
        if self.waiting.is_empty() {
            self.first = id;
        }
        let index = (id - self.first) as usize;
        self.waiting.resize_with(index, || None);
        self.waiting.push_back(Some(Box::new(call)));
    }

    pub(super) fn get(&self, id: CallId) -> Option<&Call> {
        self.waiting.get(self.index(id)?)?.as_deref()
    }

    pub(super) fn remove(&mut self, id: CallId) -> Option<Call> {
        let index = self.index(id)?;
        let call = self.waiting.get_mut(index)?.take();
        while self.waiting.pop_front_if(|call| call.is_none()).is_some() {
            self.first += 1;
        }
        call.map(|call| *call)
    }

    /// Forgets what this one asks.
    pub(super) fn forget(&mut self, from: Party) {
        for call in &mut self.waiting {
            call.take_if(|call| call.from == from);
        }
    }

    /// What a node is asked, and by whom.
    pub(super) fn asked(&self, to: BrokerId) -> Vec<(CallId, Party)> {
        let waiting = (self.first..).zip(&self.waiting).filter_map(|(id, call)| Some((id, call.as_deref()?)));
        waiting.filter(|(_, call)| call.to == to).map(|(id, call)| (id, call.from)).collect()
    }

    fn index(&self, id: CallId) -> Option<usize> {
        id.checked_sub(self.first).map(|index| index as usize)
    }
}
