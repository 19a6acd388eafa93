//! How a partition stands: the figures that the metrics and DescribeLogDirs show. Asking opens no log.

use gregor_types::Offset;

use super::{Partition, Role};

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
    /// Requests that wait here.
    pub(crate) waiting: usize,
}

impl Partition {
    /// How the partition stands.
    pub(crate) fn standing(&self) -> Standing {
        let state = self.lock();
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
            waiting: state.waiters.len(),
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
