//! Time and chance, as arguments. Remaining times are state, deadlines are not: two states that behave alike compare equal.

use gregor_types::Timestamp;

/// Nanoseconds on a clock that never goes back.
pub type Nanos = u64;

/// The present, as the shell or the simulator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Now {
    /// For timeouts: never goes back, means nothing across restarts.
    pub monotonic: Nanos,
    /// For what is written down: may jump.
    pub wall: Timestamp,
}

/// A source of randomness.
pub trait Rng {
    /// 64 random bits.
    fn next_u64(&mut self) -> u64;

    /// A number in `base..2 * base`, which is how KRaft spreads election timeouts.
    fn spread(&mut self, base: Nanos) -> Nanos {
        base + self.next_u64() % base.max(1)
    }
}

/// How long until something is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Countdown(Nanos);

impl Countdown {
    pub(crate) fn new(remaining: Nanos) -> Self {
        Self(remaining)
    }

    pub(crate) fn pass(&mut self, elapsed: Nanos) {
        self.0 = self.0.saturating_sub(elapsed);
    }

    pub(crate) fn is_due(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn remaining(self) -> Nanos {
        self.0
    }
}

/// How long ago something was, up to a bound after which nobody cares: so states stay finitely many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Age(Nanos);

impl Age {
    /// KRaft forgets an observer that has not fetched for so long (`LeaderState.OBSERVER_SESSION_TIMEOUT_MS`).
    pub(crate) const MAX: Nanos = 300_000_000_000;

    pub(crate) const NOW: Self = Self(0);
    pub(crate) const NEVER: Self = Self(Self::MAX);

    pub(crate) fn pass(&mut self, elapsed: Nanos) {
        self.0 = self.0.saturating_add(elapsed).min(Self::MAX);
    }

    pub(crate) fn nanos(self) -> Nanos {
        self.0
    }

    pub(crate) fn is_forgotten(self) -> bool {
        self.0 >= Self::MAX
    }

    /// The wall clock's time then, or -1 if it was too long ago to say.
    pub(crate) fn at(self, now: Now) -> Timestamp {
        if self.is_forgotten() { Timestamp::NONE } else { now.wall.plus_ms(-((self.0 / 1_000_000) as i64)) }
    }
}
