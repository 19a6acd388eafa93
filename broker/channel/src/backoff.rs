//! Pauses that grow, with jitter, so that clients that lost a broker together do not come back together.
//!
//! Used by the channel between connections, and by the client between tries of a request. It only computes; the caller sleeps.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// A row of pauses: each twice the one before up to a maximum, each moved by up to a fifth either way.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    random: u64,
}

impl Backoff {
    /// Pauses from `min` to `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), failures: 0, random: RandomState::new().build_hasher().finish() | 1 }
    }

    /// The pause before the next try.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.min.saturating_mul(1 << self.failures.min(16)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        // xorshift: no more than spread is asked of it.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        pause.saturating_mul(80 + (self.random % 41) as u32) / 100
    }

    /// After a success: the next pause is the shortest again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum_and_stay_within_a_fifth() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for expected_ms in [100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.next_pause().as_millis();
            assert!((expected_ms * 8 / 10..=expected_ms * 12 / 10).contains(&pause), "{pause} for {expected_ms}");
        }
        backoff.reset();
        assert!(backoff.next_pause().as_millis() <= 120);
    }

    #[test]
    fn two_clients_do_not_pause_alike() {
        let mut pauses = |_| Backoff::new(Duration::from_secs(1), Duration::from_mins(1)).next_pause();
        let different: std::collections::HashSet<_> = (0..20).map(&mut pauses).collect();
        assert!(different.len() > 1);
    }
}
