//! Simulated time, and a node's surroundings made of it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use gregor_coordinators::Moment;
use gregor_raft::{Nanos, Now};
use gregor_server::control::Surroundings;
use gregor_types::Timestamp;

use crate::Random;

/// A millisecond.
pub const MILLISECOND: Nanos = 1_000_000;
/// A second.
pub const SECOND: Nanos = 1_000 * MILLISECOND;
/// The wall clock when the world begins: some day in November 2023.
const BEGINNING_MS: i64 = 1_700_000_000_000;

/// The world's time as one node sees it; clones are the same clock.
#[derive(Debug, Clone, Default)]
pub struct Clock(Arc<Times>);

#[derive(Debug, Default)]
struct Times {
    nanos: AtomicU64,
    wall_offset_ms: AtomicI64,
}

impl Clock {
    /// The time since the world began.
    pub fn nanos(&self) -> Nanos {
        self.0.nanos.load(Ordering::Relaxed)
    }

    /// The wall clock's time.
    pub fn wall(&self) -> Timestamp {
        let since = (self.nanos() / MILLISECOND) as i64;
        Timestamp(BEGINNING_MS + since + self.0.wall_offset_ms.load(Ordering::Relaxed))
    }

    /// The time as the coordinators take it.
    pub fn moment(&self) -> Moment {
        Moment(self.nanos() / MILLISECOND)
    }

    /// Time passes.
    pub fn set(&self, nanos: Nanos) {
        self.0.nanos.fetch_max(nanos, Ordering::Relaxed);
    }

    /// Somebody sets the wall clock.
    pub fn jump_wall(&self, by_ms: i64) {
        self.0.wall_offset_ms.fetch_add(by_ms, Ordering::Relaxed);
    }
}

/// What a simulated node's control thread takes from outside.
#[derive(Debug)]
pub struct SimulatedMachine {
    /// Its clock.
    pub clock: Clock,
    /// Its chance.
    pub random: Random,
}

impl Surroundings for SimulatedMachine {
    fn now(&self) -> Now {
        Now { monotonic: self.clock.nanos(), wall: self.clock.wall() }
    }

    fn random(&mut self) -> u64 {
        self.random.bits()
    }

    fn beside(&mut self, _name: &str, work: Box<dyn FnOnce() + Send>) -> io::Result<Option<JoinHandle<()>>> {
        work();
        Ok(None)
    }
}
