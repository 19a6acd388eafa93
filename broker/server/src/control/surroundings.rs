//! What the control thread takes from outside of itself: time, chance, and a place for long work. In a node that is the machine, in
//! a simulation it is the seed.

use std::{
    io,
    thread::{self, JoinHandle},
    time::Instant,
};

use gregor_raft::{Nanos, Now, Rng};

/// See the module's documentation.
pub trait Surroundings: Send {
    /// The present.
    fn now(&self) -> Now;
    /// 64 random bits.
    fn random(&mut self) -> u64;
    /// Does long work beside the control thread: at once and whole, or on the thread that is returned.
    fn beside(&mut self, name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<Option<JoinHandle<()>>>;
}

/// The machine that a node runs on.
pub(super) struct Machine(Instant);

impl Machine {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }
}

impl Surroundings for Machine {
    fn now(&self) -> Now {
        Now { monotonic: self.0.elapsed().as_nanos() as Nanos, wall: crate::clock::now() }
    }

    fn random(&mut self) -> u64 {
        crate::random::u64()
    }

    fn beside(&mut self, name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<Option<JoinHandle<()>>> {
        thread::Builder::new().name(name.to_owned()).spawn(work).map(Some)
    }
}

/// Chance as the quorum takes it.
pub(super) struct Chance<'s>(pub(super) &'s mut dyn Surroundings);

impl Rng for Chance<'_> {
    fn next_u64(&mut self) -> u64 {
        self.0.random()
    }
}
