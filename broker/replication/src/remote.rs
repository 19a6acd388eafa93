//! How far another replica is, as its leader learns it from the replica's fetches (`kafka.cluster.Replica`).
//!
//! The leader's state calls it; it decides neither what is committed nor who is in sync.

use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, Timestamp};

use crate::{EpochError, Registration};

/// A follower's fetch, in numbers.
///
/// The caller has compared histories first ([`crate::compare_history`]): a fetch that diverges or asks for what the leader
/// does not have says nothing of what its replica holds, and never comes here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowerFetch {
    /// Who fetches.
    pub replica: BrokerId,
    /// The fetcher's broker epoch, -1 where an old protocol does not carry it.
    pub broker_epoch: BrokerEpoch,
    /// The leadership that it means to fetch from, -1 where an old protocol does not carry it.
    pub leader_epoch: LeaderEpoch,
    /// The first offset that it does not have: everything before is on its disk or in its page cache.
    pub offset: Offset,
    /// Where its own log starts.
    pub log_start: Offset,
    /// How the metadata knows the fetcher now.
    pub registration: Option<Registration>,
}

/// A fetch as a follower by a broker that holds no replica of the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("broker {0} is not a replica of this partition")]
pub struct NotAReplica(pub BrokerId);

/// Why a follower's fetch tells the leader nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FetchRefused {
    /// The leader's metadata does not know the replica, or not yet.
    #[error(transparent)]
    NotAReplica(#[from] NotAReplica),
    /// It means another leadership (KIP-320).
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// It was sent by an earlier life of a broker that has registered again since (KIP-903).
    #[error("the fetch is of broker epoch {fetched_as}, and the broker is registered under {registered}")]
    StaleBroker {
        /// The epoch in the fetch.
        fetched_as: BrokerEpoch,
        /// The epoch in the metadata.
        registered: BrokerEpoch,
    },
    /// It has more than the leader: its log has to be cut back first.
    #[error("the follower is at offset {offset}, and the leader's log ends at {log_end}")]
    BeyondTheEnd {
        /// Where the follower is.
        offset: Offset,
        /// Where the leader's log ends.
        log_end: Offset,
    },
}

/// What the leader knows of another replica.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RemoteReplica {
    pub(crate) id: BrokerId,
    /// Nothing is known before its first fetch in this leadership.
    pub(crate) log_end: Option<Offset>,
    pub(crate) log_start: Offset,
    /// The epoch that it fetched under last, which a proposal carries.
    pub(crate) broker_epoch: BrokerEpoch,
    registration: Option<Registration>,
    last_fetch_at: Timestamp,
    leader_end_at_last_fetch: Offset,
    pub(crate) caught_up_at: Timestamp,
}

impl From<NotAReplica> for ErrorCode {
    fn from(_: NotAReplica) -> Self {
        // A follower that knows of a newer assignment than the leader asks again.
        Self::UnknownLeaderEpoch
    }
}

impl From<FetchRefused> for ErrorCode {
    fn from(error: FetchRefused) -> Self {
        match error {
            FetchRefused::NotAReplica(error) => error.into(),
            FetchRefused::Epoch(error) => error.into(),
            FetchRefused::StaleBroker { .. } => Self::NotLeaderOrFollower,
            FetchRefused::BeyondTheEnd { .. } => Self::OffsetOutOfRange,
        }
    }
}

impl RemoteReplica {
    /// A replica at the start of a leadership. One that is in sync has its whole lag before it; any other has never been
    /// caught up, or commits would wait for it as if it were about to join.
    pub(crate) fn new(id: BrokerId, in_sync: bool, now: Timestamp) -> Self {
        Self {
            id,
            log_end: None,
            log_start: Offset::ZERO,
            broker_epoch: BrokerEpoch::NONE,
            registration: None,
            last_fetch_at: Timestamp(0),
            leader_end_at_last_fetch: Offset::NONE,
            caught_up_at: if in_sync { now } else { Timestamp(0) },
        }
    }

    pub(crate) fn fetched(
        &mut self,
        fetch: &FollowerFetch,
        leader_end: Offset,
        now: Timestamp,
    ) -> Result<(), FetchRefused> {
        if let Some(registered) = fetch.registration
            && fetch.broker_epoch != BrokerEpoch::NONE
            && registered.epoch > fetch.broker_epoch
        {
            return Err(FetchRefused::StaleBroker { fetched_as: fetch.broker_epoch, registered: registered.epoch });
        }
        if fetch.offset > leader_end {
            return Err(FetchRefused::BeyondTheEnd { offset: fetch.offset, log_end: leader_end });
        }
        // Kafka's rule: a follower that has now what we had at its previous fetch was caught up then, not now.
        if fetch.offset == leader_end {
            self.caught_up_at = self.caught_up_at.max(now);
        } else if fetch.offset >= self.leader_end_at_last_fetch {
            self.caught_up_at = self.caught_up_at.max(self.last_fetch_at);
        }
        self.broker_epoch = fetch.broker_epoch;
        self.registration = fetch.registration;
        self.log_end = Some(fetch.offset);
        self.log_start = fetch.log_start;
        self.last_fetch_at = now;
        self.leader_end_at_last_fetch = self.leader_end_at_last_fetch.max(leader_end);
        Ok(())
    }

    /// It was at `at` where it had been, and the leader's log ended at `leader_end` then.
    pub(crate) fn fetched_quietly(&mut self, leader_end: Offset, at: Timestamp) {
        if self.log_end == Some(leader_end) {
            self.caught_up_at = self.caught_up_at.max(at);
            self.last_fetch_at = self.last_fetch_at.max(at);
        }
    }

    pub(crate) fn registered(&mut self, registration: Option<Registration>) {
        self.registration = registration;
    }

    pub(crate) fn is_active(&self) -> bool {
        self.registration.is_some_and(|registration| registration.active)
    }

    /// Whether it is the broker that the metadata knows, in the life that fetched last (KIP-903).
    pub(crate) fn may_join(&self) -> bool {
        self.registration.is_some_and(|registration| registration.lets_join(self.broker_epoch))
    }

    pub(crate) fn is_caught_up(&self, leader_end: Offset, max_lag_ms: i64, now: Timestamp) -> bool {
        self.log_end == Some(leader_end) || now.since(self.caught_up_at) <= max_lag_ms
    }
}
