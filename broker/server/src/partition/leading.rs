//! A partition as its leader sees its followers: their fetches, their registrations, and changes of the in-sync replicas.
//!
//! `reading.rs` calls it for each follower's fetch, `housekeeper.rs` looks for laggards, `isr_changes.rs` brings the controller's
//! answers. What follows from them is decided in `gregor_replication`.

use std::sync::Arc;

use gregor_replication::{
    FetchRefused, FollowerFetch, IsrProposal, LeaderState, NotAReplica, ProposalAnswer, ProposalOutcome, Registration,
};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, Timestamp};

use super::{Partition, Query, Role, State};
use crate::{clock::now, waiters::Waiter};

/// How the metadata knows brokers.
pub(crate) trait Registrations: Sync {
    /// What it says of one now.
    fn registration(&self, broker: BrokerId) -> Option<Registration>;
}

/// Who fetches as a follower.
#[derive(Clone, Copy)]
pub(crate) struct FollowerReader<'a> {
    /// Who.
    pub(crate) replica: BrokerId,
    /// In which life; -1 where an old protocol does not say.
    pub(crate) broker_epoch: BrokerEpoch,
    /// Where its own log starts.
    pub(crate) log_start: Offset,
    /// Whom to ask how the metadata knows it.
    pub(crate) registrations: &'a dyn Registrations,
    /// Whether the leader knows of this fetch already: it is read again after a wait, and says nothing new then.
    pub(crate) is_noted: bool,
    /// Whether throttled leaders here have given all that they may for now.
    pub(crate) is_over_quota: bool,
}

/// A deletion that waits; takes itself off the list.
struct Deletion<'p> {
    partition: &'p Partition,
    waiter: Arc<Waiter>,
}

impl Drop for Deletion<'_> {
    fn drop(&mut self) {
        self.partition.lock_waiters().remove(&self.waiter);
    }
}

impl Partition {
    /// Takes in how far a follower is. Its history was compared with this log before.
    pub(super) fn note_fetch(
        self: &Arc<Self>,
        state: &mut State,
        query: &Query<'_>,
        follower: &FollowerReader<'_>,
    ) -> Result<(), ErrorCode> {
        let Role::Leader(leader) = &mut state.role else { return Err(ErrorCode::NotLeaderOrFollower) };
        if follower.is_noted {
            return Ok(());
        }
        if leader.is_alone() {
            return Err(FetchRefused::from(NotAReplica(follower.replica)).into());
        }
        let fetch = FollowerFetch {
            replica: follower.replica,
            broker_epoch: follower.broker_epoch,
            leader_epoch: query.current_leader_epoch,
            offset: query.from,
            log_start: follower.log_start,
            // Asked under the lock: what is older than what the partition was told would take its place.
            registration: follower.registrations.registration(follower.replica),
        };
        let progress = self.waking_deletions(leader, |leader| leader.on_fetch(fetch, now()))?;
        if let Some(proposal) = progress.proposal {
            self.isr_changes.propose(self, proposal);
        }
        state.on_high_watermark(progress.high_watermark, &self.waiters);
        Ok(())
    }

    /// Waits until every live replica's log begins at `until` or later; says where all begin at the earliest.
    pub(crate) async fn deleted_everywhere(&self, until: Offset) -> Result<Offset, ErrorCode> {
        loop {
            let waiting = Deletion { partition: self, waiter: Waiter::new(1) };
            self.lock_waiters().add_deletion(&waiting.waiter);
            let low_watermark = self.with_leader(LeaderEpoch::NONE, |_, leader| Ok(leader.low_watermark()))?;
            if low_watermark >= until {
                return Ok(low_watermark);
            }
            waiting.waiter.wait().await;
        }
    }

    /// Runs something that may move where the live replicas' logs begin, and wakes the deletions that wait for that.
    pub(super) fn waking_deletions<T>(&self, leader: &mut LeaderState, act: impl FnOnce(&mut LeaderState) -> T) -> T {
        let before = leader.low_watermark();
        let acted = act(leader);
        if leader.low_watermark() != before {
            self.lock_waiters().on_low_watermark();
        }
        acted
    }

    /// Proposes to go on without the followers that have been behind for too long.
    pub(crate) fn drop_laggards(self: &Arc<Self>, now: Timestamp) {
        let mut state = self.lock();
        if let Role::Leader(leader) = &mut state.role
            && let Some(proposal) = leader.on_tick(now)
        {
            let isr: Vec<_> = proposal.isr.iter().map(|(member, _)| member.value()).collect();
            tracing::info!(partition = %self.name(), ?isr, "in-sync replicas are to shrink: a follower is too far behind");
            self.isr_changes.propose(self, proposal);
        }
    }

    /// The metadata says something new of brokers.
    pub(crate) fn on_registrations(&self, brokers: &[(BrokerId, Option<Registration>)], now: Timestamp) {
        let mut state = self.lock();
        let Role::Leader(leader) = &mut state.role else { return };
        let moved = self.waking_deletions(leader, |leader| {
            let tell = |moved, (broker, registration): &(BrokerId, Option<Registration>)| {
                leader.on_registration(*broker, *registration, now).or(moved)
            };
            brokers.iter().fold(None, tell)
        });
        if !leader.is_alone() {
            // A follower that can join now is to be looked at with its next fetch.
            self.lock_waiters().tell_sessions();
        }
        state.on_high_watermark(moved, &self.waiters);
    }

    /// The controller answered a proposal.
    pub(crate) fn on_proposal_answered(
        &self,
        asked: &IsrProposal,
        answer: &ProposalAnswer,
        now: Timestamp,
    ) -> ProposalOutcome {
        let mut state = self.lock();
        let Role::Leader(leader) = &mut state.role else { return ProposalOutcome::Ignored };
        let before = leader.isr().to_vec();
        let outcome = self.waking_deletions(leader, |leader| leader.on_proposal_answered(asked, answer, now));
        self.count_isr_change(&before, leader);
        if let ProposalOutcome::Settled(moved) = outcome {
            self.lock_waiters().tell_sessions();
            state.on_high_watermark(moved, &self.waiters);
        }
        outcome
    }

    /// Counts what became of in-sync replicas within one leadership.
    pub(super) fn count_isr_change(&self, before: &[BrokerId], leader: &LeaderState) {
        let (after, metrics) = (leader.isr(), &self.isr_changes.metrics);
        if after.iter().any(|member| !before.contains(member)) {
            metrics.isr_expands.inc();
        }
        if before.iter().any(|member| !after.contains(member)) {
            metrics.isr_shrinks.inc();
        }
    }

    /// The committed in-sync replicas, where this broker leads.
    #[cfg(test)]
    pub(crate) fn in_sync(&self) -> Option<Vec<BrokerId>> {
        match &self.lock().role {
            Role::Leader(leader) => Some(leader.isr().to_vec()),
            Role::Follower(_) => None,
        }
    }

    /// Whether a proposal is still what the leader wants.
    pub(crate) fn stands(&self, proposal: &IsrProposal) -> bool {
        match &self.lock().role {
            Role::Leader(leader) => leader.has_proposed(proposal),
            Role::Follower(_) => false,
        }
    }
}
