//! What a fetcher knows of one partition, and how far to cut its log where the leader's differs.
//!
//! Only the fetcher uses it.

use gregor_types::{LeaderEpoch, Offset, Timestamp};

use super::{FetchPosition, FollowerLog, LogPosition, LogSide};
use crate::EpochEnd;

/// What a partition is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// It is in the next request, unless it pauses.
    Fetching,
    /// The server does a step to its log.
    Working,
    /// Its position is not in the leader's log: where does that end, and where does it start?
    LookingUp(LogSide),
    /// The leader has a newer epoch; the metadata will tell.
    Fenced,
    /// Its log takes nothing more.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) position: FetchPosition,
    pub(super) phase: Phase,
    pub(super) paused_until: Option<Timestamp>,
    /// Errors in a row.
    pub(super) failures: u32,
    /// What the leader's session has of it.
    pub(super) in_session: Option<FetchPosition>,
    /// The turn at which it got records last.
    pub(super) served: u64,
    pub(super) lag: Option<i64>,
    /// What the answer said that is being appended; -1 for none.
    pub(super) leader_high_watermark: Offset,
}

impl Entry {
    pub(super) const fn new(
        position: FetchPosition,
        phase: Phase,
        in_session: Option<FetchPosition>,
        served: u64,
    ) -> Self {
        Self {
            position,
            phase,
            paused_until: None,
            failures: 0,
            in_session,
            served,
            lag: None,
            leader_high_watermark: Offset::NONE,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.phase == Phase::Fetching && self.paused_until.is_none()
    }

    /// Whether a throttle holds it back. One whose lag is unknown counts as behind.
    pub(super) fn is_behind(&self) -> bool {
        self.lag.is_none_or(|lag| lag > 0)
    }
}

impl FetchPosition {
    pub(super) const fn at(log: LogPosition, leader_epoch: LeaderEpoch) -> Self {
        Self { offset: log.end, log_start: log.start, leader_epoch, last_fetched_epoch: log.last_epoch }
    }

    /// Whether an answer to a request from here is one for `other`. Where the log starts matters to the leader only.
    pub(super) fn matches(&self, other: &Self) -> bool {
        Self { log_start: other.log_start, ..*self } == *other
    }
}

/// How far to cut the log where the leader says that the last fetched epoch, or the last one before it that it has, ends there
/// (`AbstractFetcherThread.getOffsetTruncationState`). Where the follower has nothing of that epoch the cut goes to the end of
/// what it has before, and the next answer says more. It is never the high watermark: what is behind that may be committed
/// (KIP-101), and what is before it may be of another history (KIP-279).
pub(super) fn cut_for(leaders: EpochEnd, log: &dyn FollowerLog) -> Offset {
    let end = log.position().end;
    if leaders.end == Offset::NONE {
        return end;
    }
    if leaders.epoch == LeaderEpoch::NONE {
        return leaders.end.min(end);
    }
    match log.end_of_epoch(leaders.epoch) {
        Some(ours) if ours.epoch == leaders.epoch => ours.end.min(leaders.end).min(end),
        Some(ours) => ours.end.min(end),
        None => leaders.end.min(end),
    }
}
