//! How a partition stands: the figures that the metrics and DescribeLogDirs show. Asking opens no log.

use std::{sync::atomic::Ordering, thread, time::Duration};

use gregor_types::Offset;

use super::{Partition, Role, State};

/// A lock that is held for longer than these pauses together is held by an append that is stuck.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// What a leader's numbers are, for the metrics.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    /// Whether this node leads.
    pub(crate) leads: bool,
    /// Whether replicas are out of sync.
    pub(crate) under_replicated: bool,
    /// Whether fewer are in sync than asked for.
    pub(crate) under_min_isr: bool,
    /// Whether exactly as many are in sync as asked for.
    pub(crate) at_min_isr: bool,
    /// Whether the directory failed.
    pub(crate) offline: bool,
    /// Bytes of log.
    pub(crate) size: u64,
    /// The log's first offset.
    pub(crate) start: Offset,
    /// The log's end.
    pub(crate) end: Offset,
    /// Everything before it is committed, as far as this node knows.
    pub(crate) high_watermark: Offset,
    /// Records that it is behind its leader; 0 where it leads.
    pub(crate) lag: i64,
    /// Requests that wait here.
    pub(crate) waiting: usize,
}

impl Partition {
    /// How the partition stands.
    pub(crate) fn standing(&self) -> Standing {
        self.standing_in(&self.lock())
    }

    /// The same for a thread that may not wait for a slow disk: nothing where an append holds the lock.
    pub(crate) fn standing_unless_stuck(&self) -> Option<Standing> {
        for _ in 0..LOCK_TRIES {
            if let Some(state) = self.try_lock() {
                return Some(self.standing_in(&state));
            }
            thread::sleep(LOCK_PAUSE);
        }
        None
    }

    fn standing_in(&self, state: &State) -> Standing {
        let mut standing = Standing {
            leads: false,
            under_replicated: false,
            under_min_isr: false,
            at_min_isr: false,
            offline: state.log.is_gone() || self.is_offline(),
            size: state.log.size(),
            start: state.log.start_offset(),
            end: state.log.end_offset(),
            high_watermark: state.high_watermark(),
            lag: self.lag.load(Ordering::Relaxed),
            waiting: self.lock_waiters().len(),
        };
        if let Role::Leader(leader) = &state.role {
            standing.leads = true;
            standing.under_replicated = leader.is_under_replicated();
            standing.under_min_isr = leader.is_under_min_isr();
            standing.at_min_isr = leader.is_at_min_isr();
        }
        standing
    }
}
