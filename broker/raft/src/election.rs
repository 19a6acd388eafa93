//! What a node must remember of elections across a crash: the content of `quorum-state`.

use gregor_types::{BrokerId, LeaderEpoch};

use crate::ReplicaKey;

/// The durable part of an election. Losing it could let a node vote twice in one epoch, so it is on disk before a vote leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ElectionState {
    /// The newest epoch that was seen.
    pub epoch: LeaderEpoch,
    /// The epoch's leader, if known.
    pub leader: Option<BrokerId>,
    /// Whom this node voted for in the epoch.
    pub voted: Option<ReplicaKey>,
}

impl ElectionState {
    /// A node that has seen no election.
    pub const INITIAL: Self = Self { epoch: LeaderEpoch(0), leader: None, voted: None };

    /// An epoch that this node has heard of, without a leader or a vote.
    pub const fn unknown_leader(epoch: LeaderEpoch) -> Self {
        Self { epoch, leader: None, voted: None }
    }

    /// A vote given in an epoch.
    pub const fn voted(epoch: LeaderEpoch, candidate: ReplicaKey) -> Self {
        Self { epoch, leader: None, voted: Some(candidate) }
    }

    /// An epoch with a leader.
    pub const fn elected(epoch: LeaderEpoch, leader: BrokerId) -> Self {
        Self { epoch, leader: Some(leader), voted: None }
    }

    /// The same epoch with its leader, now that it is known; whom this node voted for stays on record.
    #[must_use]
    pub const fn led_by(self, leader: BrokerId) -> Self {
        Self { leader: Some(leader), ..self }
    }
}
