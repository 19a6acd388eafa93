//! How often an object's status may be written: often after its manifest has changed, then once a minute, and seldom for words
//! that pass by.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Writes of one object's status that may follow each other quickly: enough for a start from nothing to ready.
const BURST: u32 = 10;
/// So many of them are not for words that pass by, but for what these come to.
const KEPT: u32 = 4;
/// In the long run one write in this time.
const INTERVAL: Duration = Duration::from_mins(1);
/// How long a status that only says another word for "working" waits after the last write: most such words pass by.
const PASSING: Duration = Duration::from_secs(5);
/// Objects that are remembered; the oldest memory is worth the least.
const REMEMBERED_MAX: usize = 100_000;

/// Keeps statuses from being written too often: each object has a few writes at hand and gets another each minute. Whoever changes
/// a manifest waits for what comes of it, so that each generation has all of them at hand.
#[derive(Default)]
pub struct StatusGate {
    objects: Mutex<HashMap<String, Allowance>>,
}

struct Allowance {
    generation: i64,
    at_hand: u32,
    since: Instant,
    last: Option<Instant>,
}

impl StatusGate {
    /// Takes one write for this object, or says how long to wait for it. A `passing` one waits for a while after the last, and
    /// leaves some for others.
    pub fn take(&self, uid: &str, generation: i64, passing: bool, now: Instant) -> Result<(), Duration> {
        let mut objects = self.objects.lock().expect("nothing panics while it holds this lock");
        if objects.len() >= REMEMBERED_MAX {
            objects.retain(|_, allowance| now.duration_since(allowance.since) < INTERVAL * BURST);
        }
        let fresh = || Allowance { generation, at_hand: BURST, since: now, last: None };
        let allowance = objects.entry(uid.to_owned()).or_insert_with(fresh);
        if generation > allowance.generation {
            *allowance = Allowance { last: allowance.last, ..fresh() };
        }
        while allowance.at_hand < BURST && now.duration_since(allowance.since) >= INTERVAL {
            allowance.at_hand += 1;
            allowance.since += INTERVAL;
        }
        if allowance.at_hand == BURST {
            allowance.since = now;
        }
        if allowance.at_hand <= if passing { KEPT } else { 0 } {
            return Err(INTERVAL.saturating_sub(now.duration_since(allowance.since)));
        }
        let quiet = allowance.last.map_or(PASSING, |last| now.duration_since(last));
        if passing && quiet < PASSING {
            return Err(PASSING.saturating_sub(quiet));
        }
        allowance.at_hand -= 1;
        allowance.last = Some(now);
        Ok(())
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, uid: &str) {
        self.objects.lock().expect("nothing panics while it holds this lock").remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_start_is_told_at_once_and_a_flapping_object_once_a_minute() {
        let gate = StatusGate::default();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(gate.take("a", 1, false, start), Ok(()));
        }
        assert_eq!(gate.take("a", 1, false, start), Err(INTERVAL));
        assert_eq!(gate.take("b", 1, false, start), Ok(()), "objects have nothing to do with each other");
        let mut written = 0;
        for second in 1..=600 {
            written += u32::from(gate.take("a", 1, false, start + SECOND * second).is_ok());
        }
        assert_eq!(written, 10);
    }

    #[test]
    fn words_that_pass_by_are_not_told() {
        let gate = StatusGate::default();
        let start = Instant::now();
        assert_eq!(gate.take("a", 1, true, start), Ok(()));
        assert_eq!(gate.take("a", 1, true, start + SECOND), Err(SECOND * 4));
        assert_eq!(gate.take("a", 1, false, start + SECOND * 2), Ok(()), "the end is told at once");
        assert_eq!(gate.take("a", 1, true, start + SECOND * 8), Ok(()));
    }

    #[test]
    fn what_many_words_that_pass_by_come_to_is_told_at_once() {
        let gate = StatusGate::default();
        let start = Instant::now();
        for second in 0..300 {
            let _ = gate.take("a", 1, true, start + SECOND * second);
        }
        for _ in 0..KEPT {
            assert_eq!(gate.take("a", 1, false, start + SECOND * 300), Ok(()));
        }
    }

    #[test]
    fn whoever_changes_the_manifest_is_answered_at_once_however_much_was_said_before() {
        let gate = StatusGate::default();
        let start = Instant::now();
        for generation in 1..=3 {
            for _ in 0..BURST {
                assert_eq!(gate.take("a", generation, false, start), Ok(()));
            }
            assert_eq!(gate.take("a", generation, false, start), Err(INTERVAL));
        }
        assert_eq!(gate.take("a", 2, false, start), Err(INTERVAL), "an old one is no change");
    }
}
