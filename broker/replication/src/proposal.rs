//! Changes of the in-sync replicas that a leader asks the controller for (`AlterPartition`), and what answers mean.
//!
//! The leader's state makes proposals; the server sends them, at most one at a time for a partition, and brings back answers.

use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset};

/// An `AlterPartition` to send. At most one is under way for a partition.
///
/// A leader has nothing left to recover once it leads, so it is sent as recovered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IsrProposal {
    /// The wanted in-sync replicas with the broker epoch each was seen under (KIP-903); -1 where it has not fetched yet.
    pub isr: Vec<(BrokerId, BrokerEpoch)>,
    /// The leadership that asks.
    pub leader_epoch: LeaderEpoch,
    /// The state that the proposal was made on.
    pub partition_epoch: i32,
}

/// What the controller said of a proposal. An answer that never came is none: the proposal is sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProposalAnswer {
    /// The partition is in this state now.
    Accepted {
        /// The committed in-sync replicas.
        isr: Vec<BrokerId>,
        /// The leadership that it belongs to.
        leader_epoch: LeaderEpoch,
        /// Counts changes of the partition's record.
        partition_epoch: i32,
    },
    /// The partition's error.
    Refused(ErrorCode),
}

/// What follows from an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProposalOutcome {
    /// There is a committed state again; the high watermark, where it moved.
    Settled(Option<Offset>),
    /// The partition has changed meanwhile, or has fewer members now: the metadata will say how, and until then the proposal may be
    /// true.
    AwaitsMetadata,
    /// Send it again after a pause: it may or may not have been done.
    Retry,
    /// The answer is of a proposal or a leadership that is over.
    Ignored,
}

impl IsrProposal {
    pub(crate) fn contains(&self, id: BrokerId) -> bool {
        self.isr.iter().any(|(member, _)| *member == id)
    }
}

/// What an error means (`Partition.handleAlterPartitionError`).
pub(crate) enum Refusal {
    /// The controller has not done it, and nothing else has changed.
    Withdraw,
    /// The controller's state is newer than the leader's.
    AwaitMetadata,
    /// Nobody knows whether it was done.
    Retry,
}

impl From<ErrorCode> for Refusal {
    fn from(error: ErrorCode) -> Self {
        match error {
            ErrorCode::OperationNotAttempted | ErrorCode::IneligibleReplica => Self::Withdraw,
            ErrorCode::UnknownTopicOrPartition
            | ErrorCode::UnknownTopicId
            | ErrorCode::FencedLeaderEpoch
            | ErrorCode::InvalidUpdateVersion
            | ErrorCode::InvalidRequest
            | ErrorCode::NewLeaderElected => Self::AwaitMetadata,
            _ => Self::Retry,
        }
    }
}
