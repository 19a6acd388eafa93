//! What a leader knows of its partition: its own log end, how far each follower is, and what that commits.
//!
//! Every method is one step: numbers in, a decision out. The caller holds the partition's lock, does the I/O, sends
//! what is proposed to the controller and hands its answer back in; nothing here waits or retries.

#[cfg(test)]
mod tests;

use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, Timestamp, planted::planted};

use crate::{
    EpochError, FetchRefused, FollowerFetch, IsrProposal, NotAReplica, PartitionAssignment, ProposalAnswer,
    ProposalOutcome, Registration, ReplicationLimits, check_leader_epoch, proposal::Refusal, remote::RemoteReplica,
};

/// What a follower's fetch changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FollowerProgress {
    /// The high watermark, where it moved.
    pub high_watermark: Option<Offset>,
    /// A new set of in-sync replicas to ask the controller for.
    pub proposal: Option<IsrProposal>,
}

/// Too few in-sync replicas for `acks=all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{in_sync} replicas are in sync, and min.insync.replicas asks for {min_isr}")]
pub struct NotEnoughReplicas {
    /// How many are in sync.
    pub in_sync: usize,
    /// How many there must be.
    pub min_isr: usize,
}

impl From<NotEnoughReplicas> for ErrorCode {
    fn from(_: NotEnoughReplicas) -> Self {
        Self::NotEnoughReplicas
    }
}

/// The log that a leadership begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeadersLog {
    /// Where it starts.
    pub start: Offset,
    /// Where it ends.
    pub end: Offset,
    /// Where what is synced ends, if only synced offsets count (`flush.messages=1`).
    pub durable_end: Option<Offset>,
    /// What its checkpoint, or an earlier role, remembers of the high watermark.
    pub high_watermark: Offset,
}

/// A partition that this broker leads, in one leader epoch.
///
/// Each epoch begins with a new state, also where the leader stays: another replica may have led in between, unseen by this
/// one, and have had followers cut back, so what they had says nothing of what they have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeaderState {
    me: BrokerId,
    my_broker_epoch: BrokerEpoch,
    leader_epoch: LeaderEpoch,
    partition_epoch: i32,
    epoch_start: Offset,
    log_end: Offset,
    durable_end: Option<Offset>,
    log_start: Offset,
    high_watermark: Offset,
    isr: Vec<BrokerId>,
    adding: Vec<BrokerId>,
    others: Vec<RemoteReplica>,
    proposed: Option<IsrProposal>,
    min_isr: usize,
    max_lag_ms: i64,
}

impl LeaderState {
    /// Takes over the partition. The high watermark moves as far as this leader alone allows.
    pub fn new(
        me: BrokerId,
        assignment: &PartitionAssignment,
        limits: ReplicationLimits,
        log: LeadersLog,
        now: Timestamp,
    ) -> Self {
        let mut leader = Self {
            me,
            my_broker_epoch: BrokerEpoch::NONE,
            leader_epoch: assignment.leader_epoch,
            partition_epoch: assignment.partition_epoch,
            epoch_start: log.end,
            log_end: log.end,
            durable_end: log.durable_end,
            log_start: log.start,
            high_watermark: log.high_watermark.clamp(log.start, log.end),
            isr: Vec::new(),
            adding: Vec::new(),
            others: Vec::new(),
            proposed: None,
            min_isr: limits.min_isr,
            max_lag_ms: limits.max_lag_ms,
        };
        leader.take_over(assignment, now);
        leader.advance_high_watermark(now);
        leader
    }

    /// The leadership's epoch.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    /// Counts changes of the partition's record.
    pub fn partition_epoch(&self) -> i32 {
        self.partition_epoch
    }

    /// The committed in-sync replicas.
    pub fn isr(&self) -> &[BrokerId] {
        &self.isr
    }

    /// Everything before it is committed.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// The end of the leader's log when it took over. A high watermark before it may lie behind what the last leader
    /// told its consumers (KIP-207).
    pub fn epoch_start(&self) -> Offset {
        self.epoch_start
    }

    /// Whether the partition has no other replica.
    pub fn is_alone(&self) -> bool {
        self.others.is_empty()
    }

    /// Whether this proposal is the one that is under way.
    pub fn has_proposed(&self, proposal: &IsrProposal) -> bool {
        self.proposed.as_ref() == Some(proposal)
    }

    /// Whether fewer replicas are in sync than the partition has, those apart that a reassignment brings.
    pub fn is_under_replicated(&self) -> bool {
        self.isr.len() < (self.others.len() + 1).saturating_sub(self.adding.len())
    }

    /// Whether fewer replicas are in sync than `min.insync.replicas` asks for.
    pub fn is_under_min_isr(&self) -> bool {
        self.isr.len() < self.effective_min_isr()
    }

    /// Whether exactly as many replicas are in sync as `min.insync.replicas` asks for.
    pub fn is_at_min_isr(&self) -> bool {
        self.isr.len() == self.effective_min_isr()
    }

    /// Whether a replica is in sync: a throttle lets its fetches pass.
    pub fn is_in_sync(&self, replica: BrokerId) -> bool {
        self.isr.contains(&replica)
    }

    /// Whether a reassignment brings this replica.
    pub fn is_adding(&self, replica: BrokerId) -> bool {
        self.adding.contains(&replica)
    }

    /// KIP-392: the replica that a consumer at `offset` is to read from instead of this leader, if it has one near. `near` are the
    /// brokers in the consumer's rack. Only who is in sync and has the offset is taken, as Kafka's `ReplicaManager` offers
    /// them, and of several the one that has most, as its `RackAwareReplicaSelector` chooses.
    pub fn preferred_read_replica(&self, offset: Offset, near: &[BrokerId]) -> Option<BrokerId> {
        if near.contains(&self.me) {
            return None;
        }
        let has_it = |other: &&RemoteReplica| {
            let end = other.log_end.filter(|end| *end >= offset && other.log_start <= offset);
            end.is_some() && near.contains(&other.id) && self.isr.contains(&other.id)
        };
        let candidates = self.others.iter().filter(has_it);
        candidates.max_by_key(|other| (other.log_end, other.caught_up_at, other.id)).map(|other| other.id)
    }

    /// KIP-320: whether a request means this leadership.
    pub fn check_epoch(&self, requested: LeaderEpoch) -> Result<(), EpochError> {
        if planted("leader-epoch-unchecked") {
            return Ok(());
        }
        check_leader_epoch(requested, self.leader_epoch)
    }

    /// Whether an append with `acks=all` may begin, and, asked again when it is committed, whether it may be acknowledged.
    pub fn check_min_isr(&self) -> Result<(), NotEnoughReplicas> {
        if self.is_under_min_isr() {
            return Err(NotEnoughReplicas { in_sync: self.isr.len(), min_isr: self.effective_min_isr() });
        }
        Ok(())
    }

    /// The leader's log now ends at `log_end`. Returns the high watermark where it moved.
    pub fn on_append(&mut self, log_end: Offset, now: Timestamp) -> Option<Offset> {
        assert!(log_end >= self.log_end, "an append moves the log's end from {} back to {log_end}", self.log_end);
        self.log_end = log_end;
        self.advance_high_watermark(now)
    }

    /// The partition counts only synced offsets (`flush.messages=1`), and these are synced now.
    pub fn on_durable(&mut self, durable_end: Offset, now: Timestamp) -> Option<Offset> {
        self.durable_end = Some(self.durable_end.map_or(durable_end, |known| known.max(durable_end)));
        self.advance_high_watermark(now)
    }

    /// Whether only synced offsets count was changed: from now on they do, up to `durable_end`, or they do not (`None`).
    pub fn on_durability(&mut self, durable_end: Option<Offset>, now: Timestamp) -> Option<Offset> {
        self.durable_end = durable_end;
        self.advance_high_watermark(now)
    }

    /// The log's start moved by retention or by `DeleteRecords`; what is deleted was committed.
    pub fn on_log_start(&mut self, log_start: Offset) {
        self.log_start = self.log_start.max(log_start);
        self.high_watermark = self.high_watermark.max(self.log_start);
    }

    /// A follower asks for what comes after `fetch.offset`: it has everything before.
    pub fn on_fetch(&mut self, fetch: FollowerFetch, now: Timestamp) -> Result<FollowerProgress, FetchRefused> {
        self.check_epoch(fetch.leader_epoch)?;
        let log_end = self.log_end;
        let follower = self.others.iter_mut().find(|other| other.id == fetch.replica);
        let follower = follower.ok_or(NotAReplica(fetch.replica))?;
        follower.fetched(&fetch, log_end, now)?;
        // It has what is committed, and all that was in the log when this leadership began, so that nobody can tell its log
        // from one that was in sync all along.
        let has_all = fetch.offset >= self.high_watermark && fetch.offset >= self.epoch_start;
        let joins = self.proposed.is_none()
            && !self.isr.contains(&fetch.replica)
            && follower.may_join()
            && (has_all || planted("joins-while-behind"));
        let proposal = joins.then(|| {
            let wanted = self.isr.iter().copied().chain([fetch.replica]).collect::<Vec<_>>();
            self.propose(&wanted)
        });
        Ok(FollowerProgress { high_watermark: self.advance_high_watermark(now), proposal })
    }

    /// A follower that had everything has fetched at `at` without a word of this partition: its session (KIP-227) is told when
    /// there is more. To be called before there is, or it would seem to have been away for as long as nothing was written.
    pub fn on_quiet_fetch(&mut self, replica: BrokerId, at: Timestamp) {
        let log_end = self.log_end;
        if let Some(follower) = self.others.iter_mut().find(|other| other.id == replica) {
            follower.fetched_quietly(log_end, at);
        }
    }

    /// Drops followers that have been behind for longer than `replica.lag.time.max.ms`. The caller asks now and then, at
    /// least every half of that time.
    pub fn on_tick(&mut self, now: Timestamp) -> Option<IsrProposal> {
        if self.proposed.is_some() {
            return None;
        }
        let stays = |id: &BrokerId| {
            let other = || self.others.iter().find(|other| other.id == *id);
            *id == self.me || other().is_some_and(|other| other.is_caught_up(self.log_end, self.max_lag_ms, now))
        };
        let wanted: Vec<BrokerId> = self.isr.iter().copied().filter(stays).collect();
        let proposal = (wanted.len() < self.isr.len()).then(|| self.propose(&wanted));
        if planted("shrinks-by-itself") {
            self.isr = wanted;
        }
        proposal
    }

    /// The controller answered `asked`.
    pub fn on_proposal_answered(
        &mut self,
        asked: &IsrProposal,
        answer: &ProposalAnswer,
        now: Timestamp,
    ) -> ProposalOutcome {
        if self.proposed.as_ref() != Some(asked) {
            return ProposalOutcome::Ignored;
        }
        match answer {
            ProposalAnswer::Accepted { isr, leader_epoch, partition_epoch } => {
                if *leader_epoch != self.leader_epoch || *partition_epoch < self.partition_epoch {
                    return ProposalOutcome::Ignored;
                }
                // The controller may know of a higher min.insync.replicas by now, with which who leaves stays eligible to lead
                // (KIP-966): nothing is committed without them until this leader has read as much of the metadata.
                if *partition_epoch > self.partition_epoch && self.isr.iter().any(|member| !isr.contains(member)) {
                    return ProposalOutcome::AwaitsMetadata;
                }
                self.partition_epoch = *partition_epoch;
                self.isr.clone_from(isr);
            }
            ProposalAnswer::Refused(error) => match Refusal::from(*error) {
                Refusal::Withdraw => {}
                // Whoever was to join may be in sync by now, so it goes on to count.
                Refusal::AwaitMetadata => return ProposalOutcome::AwaitsMetadata,
                Refusal::Retry => return ProposalOutcome::Retry,
            },
        }
        self.proposed = None;
        ProposalOutcome::Settled(self.advance_high_watermark(now))
    }

    /// The metadata log has a new state of this leadership: what a proposal came to, or somebody else's change of in-sync
    /// replicas or of the assignment. Returns the high watermark where it moved.
    pub fn on_assignment(&mut self, assignment: &PartitionAssignment, now: Timestamp) -> Option<Offset> {
        if assignment.leader_epoch != self.leader_epoch || assignment.partition_epoch < self.partition_epoch {
            return None;
        }
        if assignment.partition_epoch == self.partition_epoch {
            // The controller's answer, by which the state may be known already, does not say that a reassignment has come to its end.
            self.adding.clone_from(&assignment.adding);
            return None;
        }
        self.partition_epoch = assignment.partition_epoch;
        // A proposal was made on a state that is gone, so the controller refuses it from now on.
        self.proposed = None;
        self.take_over(assignment, now);
        self.advance_high_watermark(now)
    }

    /// A broker registered, was fenced or unfenced, began to shut down or is gone (`None`). Commits do not wait for a replica
    /// that cannot join. Returns the high watermark where it moved.
    pub fn on_registration(
        &mut self,
        broker: BrokerId,
        registration: Option<Registration>,
        now: Timestamp,
    ) -> Option<Offset> {
        if broker == self.me {
            self.my_broker_epoch = registration.map_or(BrokerEpoch::NONE, |registration| registration.epoch);
            return None;
        }
        self.others.iter_mut().find(|other| other.id == broker)?.registered(registration);
        self.advance_high_watermark(now)
    }

    /// `min.insync.replicas` or the lag limit was changed. Returns the high watermark where it moved.
    pub fn on_limits(&mut self, limits: ReplicationLimits, now: Timestamp) -> Option<Offset> {
        self.min_isr = limits.min_isr;
        self.max_lag_ms = limits.max_lag_ms;
        self.advance_high_watermark(now)
    }

    /// More have to be in sync by metadata whose assignment is still to come: with fewer members than this leader knows of, nothing may be
    /// committed by a lower number. That fewer have to be counts with [`on_limits`](Self::on_limits) only, after the assignment, which
    /// may say that this leadership was over by then.
    pub fn raise_min_isr(&mut self, min_isr: usize) {
        self.min_isr = self.min_isr.max(min_isr);
    }

    /// Everything before it is deleted on every live replica: what a `DeleteRecords` waits for.
    pub fn low_watermark(&self) -> Offset {
        let live = self.others.iter().filter(|other| self.isr.contains(&other.id) || other.is_active());
        live.map(|other| other.log_start).fold(self.log_start, Offset::min)
    }

    fn take_over(&mut self, assignment: &PartitionAssignment, now: Timestamp) {
        self.isr.clone_from(&assignment.isr);
        self.adding.clone_from(&assignment.adding);
        self.others.retain(|other| assignment.replicas.contains(&other.id));
        for id in assignment.replicas.iter().filter(|id| **id != self.me) {
            if !self.others.iter().any(|other| other.id == *id) {
                self.others.push(RemoteReplica::new(*id, assignment.isr.contains(id), now));
            }
        }
    }

    fn effective_min_isr(&self) -> usize {
        self.min_isr.clamp(1, self.others.len() + 1)
    }

    fn propose(&mut self, wanted: &[BrokerId]) -> IsrProposal {
        let epoch_of = |id: BrokerId| {
            let other = self.others.iter().find(|other| other.id == id);
            other.map_or(self.my_broker_epoch, |other| other.broker_epoch)
        };
        let proposal = IsrProposal {
            isr: wanted.iter().map(|id| (*id, epoch_of(*id))).collect(),
            leader_epoch: self.leader_epoch,
            partition_epoch: self.partition_epoch,
        };
        self.proposed = Some(proposal.clone());
        proposal
    }

    /// KIP-966, "strict min ISR": nothing is committed while fewer replicas are in sync than asked for. What counts is the
    /// maximal set: the committed one, who is proposed to join it, and who is caught up and could.
    fn advance_high_watermark(&mut self, now: Timestamp) -> Option<Offset> {
        if self.is_under_min_isr() && !planted("committed-by-too-few") {
            return None;
        }
        let counts = |other: &&RemoteReplica| {
            if planted("followers-not-awaited") {
                return false;
            }
            self.isr.contains(&other.id)
                || self.proposed.as_ref().is_some_and(|proposal| proposal.contains(other.id))
                || (other.log_end.is_some()
                    && other.may_join()
                    && other.is_caught_up(self.log_end, self.max_lag_ms, now))
        };
        let durable_end = self.durable_end.filter(|_| !planted("ack-before-fsync"));
        let own_end = durable_end.map_or(self.log_end, |durable| durable.min(self.log_end));
        let ends = self.others.iter().filter(counts).map(|other| other.log_end.unwrap_or(Offset::ZERO));
        let committed = ends.fold(own_end, Offset::min);
        if committed <= self.high_watermark {
            return None;
        }
        self.high_watermark = committed;
        Some(committed)
    }
}
