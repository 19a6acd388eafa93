//! The clients of a world: each acts when its time comes, asks nodes, and writes down what it was promised.

mod admin;
mod committer;
mod consumer;
mod member;
mod producer;
mod transactional;

use gregor_raft::Nanos;
use gregor_types::ErrorCode;

pub use admin::Admin;
pub use committer::Committer;
pub use consumer::Consumer;
pub use member::Member;
pub use producer::Producer;
pub use transactional::TransactionalProducer;

use crate::{
    Random,
    clock::MILLISECOND,
    network::{Request, Response},
    promises::Promises,
};

/// Somebody who uses the cluster.
pub trait Client: std::fmt::Debug {
    /// It is time: the client may ask, and says by [`View::wake_in`] when to come again.
    fn wake(&mut self, world: &mut View<'_>);
    /// An answer to one of its requests, or the news that there will be none.
    fn hear(&mut self, number: u64, response: Response, world: &mut View<'_>);
}

/// The world as a client sees it.
#[derive(Debug)]
pub struct View<'a> {
    /// Which client it is.
    pub me: usize,
    /// The time.
    pub now: Nanos,
    /// Whether it is time to come to an end: nothing new is begun.
    pub winding_down: bool,
    /// Chance.
    pub random: &'a mut Random,
    /// What was promised to all clients.
    pub promises: &'a mut Promises,
    pub(crate) next_call: &'a mut u64,
    pub(crate) outbox: Vec<(u64, Request)>,
    pub(crate) wake_at: Option<Nanos>,
}

impl View<'_> {
    /// Sends a request; the number names it.
    pub fn ask(&mut self, request: Request) -> u64 {
        *self.next_call += 1;
        self.outbox.push((*self.next_call, request));
        *self.next_call
    }

    /// Wants to be woken after so many milliseconds, more or less.
    pub fn wake_in(&mut self, milliseconds: u64) {
        let middle = milliseconds * MILLISECOND;
        self.wake_at = Some(self.now + self.random.between(middle / 2, middle * 3 / 2));
    }
}

/// Whether the same request may succeed later.
pub(crate) fn is_retriable(error: ErrorCode) -> bool {
    use ErrorCode::{
        CoordinatorLoadInProgress, CoordinatorNotAvailable, KafkaStorageError, NotController, NotCoordinator,
        NotEnoughReplicas, NotLeaderOrFollower, RequestTimedOut, UnknownTopicOrPartition,
    };
    matches!(
        error,
        CoordinatorLoadInProgress
            | CoordinatorNotAvailable
            | KafkaStorageError
            | NotController
            | NotCoordinator
            | NotEnoughReplicas
            | NotLeaderOrFollower
            | RequestTimedOut
            | UnknownTopicOrPartition
    )
}
