//! Syncs of a partition's log: when one is due, and what follows from one that is done.

use std::sync::atomic::Ordering;

use gregor_types::Timestamp;

use super::{Partition, Role, State};
use crate::storage::Flush;

impl Flush for Partition {
    fn flush(&self, now: Timestamp) {
        self.flush_queued.store(false, Ordering::Release);
        let (token, generation) = {
            let mut state = self.lock();
            state.unflushed = None;
            let generation = state.generation;
            let Some(log) = state.log.opened_mut() else { return };
            match log.flush() {
                Ok(Some(token)) => (token, generation),
                Ok(None) => return,
                Err(error) => {
                    drop(state);
                    self.on_log_error(&error);
                    return;
                }
            }
        };
        let outcome = token.complete();
        let mut state = self.lock();
        if state.generation != generation {
            // The log is another one now, or deleted: neither the sync nor its failure says anything of it.
            return;
        }
        match outcome {
            Ok(flushed) => {
                let State { log, role, settings, .. } = &mut *state;
                let Some(log) = log.opened_mut() else { return };
                log.flushed(flushed);
                let durable = log.recovery_point();
                self.lock_waiters().on_durable(durable);
                if let (Role::Leader(leader), true) = (role, settings.syncs_before_acknowledging()) {
                    let moved = leader.on_durable(durable, now);
                    state.on_high_watermark(moved, &self.waiters);
                }
            }
            Err(error) => {
                self.on_log_error(&error);
                // Who waits for this sync looks at once whether it can still come.
                self.lock_waiters().wake_all();
            }
        }
    }

    fn mark_flush_queued(&self) -> bool {
        !self.flush_queued.swap(true, Ordering::AcqRel)
    }
}

impl Partition {
    /// Whether `flush.ms` has passed since the first unsynced record.
    pub(crate) fn is_flush_due(&self, now: Timestamp) -> bool {
        let state = self.lock();
        state.unflushed.is_some_and(|(_, since)| now.since(since) >= state.settings.flush_ms)
    }

    /// Whether `flush.ms` asks for syncs at all; Kafka's default is never.
    pub(crate) fn has_timed_flush(&self) -> bool {
        self.lock().settings.flush_ms < i64::MAX
    }
}
