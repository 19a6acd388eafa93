//! What a fetcher and the server say to each other: requests to send, what answers say, steps to do to a log.
//!
//! Plain values; the rules are in the fetcher.

use gregor_types::{ErrorCode, LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId};

use crate::{EpochEnd, LeaderMarks};

/// A partition that is followed. Its topic's name and its log are the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FollowedPartition {
    /// The topic.
    pub topic_id: TopicId,
    /// The partition in it.
    pub partition: PartitionIndex,
}

/// Settings of a fetcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetcherConfig {
    /// The longest pause after an error of a partition or of a request: `replica.fetch.backoff.ms`.
    pub backoff_ms: i64,
    /// The first such pause; each further one is twice as long. A leader that is new often answers with errors for a moment
    /// only, and producers wait for its followers.
    pub first_backoff_ms: i64,
}

/// What a follower asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FetchPosition {
    /// The first offset that it does not have: its log's end.
    pub offset: Offset,
    /// Where its log starts.
    pub log_start: Offset,
    /// The leadership that it means.
    pub leader_epoch: LeaderEpoch,
    /// The epoch of its last record, by which the leader finds whether histories part; -1 where it has no epochs.
    pub last_fetched_epoch: LeaderEpoch,
}

/// A Fetch to send. Limits and waits are the server's: `replica.fetch.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchPlan {
    /// Which request of this fetcher it is, for its answer.
    pub number: u64,
    /// KIP-227: the session that it belongs to, 0 for none yet.
    pub session_id: i32,
    /// 0 asks for a session, and names every partition; later requests name what changed.
    pub session_epoch: i32,
    /// What to ask for, those first that had to wait longest.
    pub wanted: Vec<(FollowedPartition, FetchPosition)>,
    /// What the session is to forget.
    pub forgotten: Vec<FollowedPartition>,
}

/// A ListOffsets to send to the leader as this replica, so that its log's end is told and not the high watermark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetLookUp {
    /// The partition.
    pub partition: FollowedPartition,
    /// The leadership that is meant.
    pub leader_epoch: LeaderEpoch,
    /// Which end of the leader's log.
    pub end: LogSide,
}

/// One of the two ends of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogSide {
    /// Where it ends: timestamp -1 of ListOffsets.
    Latest,
    /// Where it starts: timestamp -2.
    Earliest,
}

/// What the server is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextRequest {
    /// Ask the leader where its logs start or end; these go before any fetch.
    LookUp(Vec<OffsetLookUp>),
    /// Fetch.
    Fetch(FetchPlan),
    /// Nothing until this time, or until a partition is added or changed.
    Wait(Option<Timestamp>),
}

/// What a partition's part of a Fetch response says, its records apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionAnswer {
    /// The partition's error.
    pub error: ErrorCode,
    /// The leader's high watermark and log start.
    pub leader: LeaderMarks,
    /// KIP-595: where to cut first.
    pub diverging: Option<EpochEnd>,
}

/// Where a follower's log starts and ends, and what its epochs say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition {
    /// Its first offset.
    pub start: Offset,
    /// The offset that follows its last record.
    pub end: Offset,
    /// The latest epoch in its epoch cache, -1 for none.
    pub last_epoch: LeaderEpoch,
}

/// What to do to a partition's log. All but [`FollowerStep::Nothing`] ask for [`crate::Fetcher::on_log_changed`] or
/// [`crate::Fetcher::on_step_failed`] afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowerStep {
    /// Nothing.
    Nothing,
    /// Append the answer's records, which may be none, and take over what the leader says of its log. Batches from the first on
    /// that is of a later epoch than `leader_epoch` are left out: they are for a leadership that this broker has not
    /// heard of yet.
    Append {
        /// The leadership that the records come from.
        leader_epoch: LeaderEpoch,
        /// Where the log ends, and the records begin.
        from: Offset,
        /// What the leader says of its log.
        leader: LeaderMarks,
    },
    /// Cut the log and its epochs back to this offset.
    Truncate {
        /// The leadership that asks for it.
        leader_epoch: LeaderEpoch,
        /// The log's new end.
        to: Offset,
    },
    /// Empty the log; it begins at this offset, where the leader's does.
    StartOver {
        /// The leadership that asks for it.
        leader_epoch: LeaderEpoch,
        /// The log's new start and end.
        at: Offset,
    },
}

/// Why a step was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepFailure {
    /// The records were damaged, or the disk is full: fetched again after a pause.
    Transient,
    /// The log takes nothing more. The partition stands still until it is followed anew.
    Permanent,
}

/// Where the logs of a partition part, from the follower's epoch cache: what [`crate::Fetcher::on_answer`] asks it.
pub trait FollowerLog {
    /// Where the log starts and ends now.
    fn position(&self) -> LogPosition;
    /// Where this epoch, or the last one before it, ends; `None` where the cache has none.
    fn end_of_epoch(&self, epoch: LeaderEpoch) -> Option<EpochEnd>;
}

impl FetcherConfig {
    /// The pause after so many failures in a row before this one.
    pub(super) fn backoff(&self, failures: u32) -> i64 {
        let first = self.first_backoff_ms.max(1);
        first.saturating_mul(1 << failures.min(20)).min(self.backoff_ms.max(1))
    }
}
