//! What a leader knows of its partition: its own log end, how far each follower is, and what that commits.
//!
//! Every method is one step: numbers in, a decision out. The caller holds the partition's lock, does the I/O, sends
//! what is proposed to the controller and hands its answer back in; nothing here waits or retries.

use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, Timestamp, planted::planted};

use crate::{EpochError, check_leader_epoch};

/// What the metadata log says about a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionAssignment {
    /// Counts leaderships.
    pub leader_epoch: LeaderEpoch,
    /// Counts changes of the partition's record; the controller refuses a proposal made on an older one.
    pub partition_epoch: i32,
    /// Where the partition lives, preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// The committed in-sync replicas, the leader among them.
    pub isr: Vec<BrokerId>,
}

/// The two settings that decide what is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicationLimits {
    /// `min.insync.replicas`. Kafka takes the number of replicas where that is smaller.
    pub min_isr: usize,
    /// `replica.lag.time.max.ms`.
    pub max_lag_ms: i64,
}

/// A follower's fetch, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowerFetch {
    /// Who fetches.
    pub replica: BrokerId,
    /// The fetcher's broker epoch, -1 where an old protocol does not carry it.
    pub broker_epoch: BrokerEpoch,
    /// The first offset that it does not have: everything before is on its disk or in its page cache.
    pub offset: Offset,
    /// Where its own log starts.
    pub log_start: Offset,
    /// KIP-903: registered under this epoch, not fenced, not shutting down.
    pub eligible: bool,
}

/// What a follower's fetch changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FollowerProgress {
    /// The high watermark, where it moved.
    pub high_watermark: Option<Offset>,
    /// A new set of in-sync replicas to ask the controller for.
    pub proposal: Option<IsrProposal>,
}

/// An `AlterPartition` to send. At most one is under way for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsrProposal {
    /// The wanted in-sync replicas with the broker epoch each was seen under (KIP-903).
    pub isr: Vec<(BrokerId, BrokerEpoch)>,
    /// The leadership that asks.
    pub leader_epoch: LeaderEpoch,
    /// The state that the proposal was made on.
    pub partition_epoch: i32,
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

/// A fetch as a follower by a broker that holds no replica of the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("broker {0} is not a replica of this partition")]
pub struct NotAReplica(pub BrokerId);

impl From<NotEnoughReplicas> for ErrorCode {
    fn from(_: NotEnoughReplicas) -> Self {
        Self::NotEnoughReplicas
    }
}

impl From<NotAReplica> for ErrorCode {
    fn from(_: NotAReplica) -> Self {
        Self::UnknownLeaderEpoch
    }
}

/// How far a follower is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Follower {
    id: BrokerId,
    broker_epoch: BrokerEpoch,
    /// Nothing is known before its first fetch in this leadership.
    log_end: Option<Offset>,
    log_start: Offset,
    eligible: bool,
    last_fetch_at: Timestamp,
    leader_end_at_last_fetch: Offset,
    caught_up_at: Timestamp,
}

/// A partition that this broker leads.
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
    followers: Vec<Follower>,
    proposed: Option<Vec<BrokerId>>,
    min_isr: usize,
    max_lag_ms: i64,
}

impl LeaderState {
    /// Takes over the partition. `high_watermark` is what the checkpoint remembers; it moves as far as this leader alone allows.
    pub fn new(
        me: BrokerId,
        assignment: &PartitionAssignment,
        limits: ReplicationLimits,
        log_start: Offset,
        log_end: Offset,
        high_watermark: Offset,
        now: Timestamp,
    ) -> Self {
        let follower = |id: &BrokerId| Follower {
            id: *id,
            broker_epoch: BrokerEpoch::NONE,
            log_end: None,
            log_start: Offset::ZERO,
            eligible: false,
            last_fetch_at: now,
            leader_end_at_last_fetch: log_end,
            caught_up_at: now,
        };
        let mut leader = Self {
            me,
            my_broker_epoch: BrokerEpoch::NONE,
            leader_epoch: assignment.leader_epoch,
            partition_epoch: assignment.partition_epoch,
            epoch_start: log_end,
            log_end,
            durable_end: None,
            log_start,
            high_watermark: high_watermark.clamp(log_start, log_end),
            isr: assignment.isr.clone(),
            followers: assignment.replicas.iter().filter(|id| **id != me).map(follower).collect(),
            proposed: None,
            min_isr: limits.min_isr,
            max_lag_ms: limits.max_lag_ms,
        };
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

    /// Whether fewer replicas are in sync than the partition has.
    pub fn is_under_replicated(&self) -> bool {
        self.isr.len() < self.followers.len() + 1
    }

    /// Whether fewer replicas are in sync than `min.insync.replicas` asks for.
    pub fn is_under_min_isr(&self) -> bool {
        self.isr.len() < self.effective_min_isr()
    }

    /// Whether exactly as many replicas are in sync as `min.insync.replicas` asks for.
    pub fn is_at_min_isr(&self) -> bool {
        self.isr.len() == self.effective_min_isr()
    }

    /// KIP-320: whether a request means this leadership.
    pub fn check_epoch(&self, requested: LeaderEpoch) -> Result<(), EpochError> {
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
    pub fn on_fetch(&mut self, fetch: FollowerFetch, now: Timestamp) -> Result<FollowerProgress, NotAReplica> {
        let log_end = self.log_end;
        let follower = self.followers.iter_mut().find(|follower| follower.id == fetch.replica);
        let follower = follower.ok_or(NotAReplica(fetch.replica))?;
        // Kafka's rule: a follower that has now what we had at its previous fetch was caught up then, not now.
        if fetch.offset >= log_end {
            follower.caught_up_at = now;
        } else if fetch.offset >= follower.leader_end_at_last_fetch {
            follower.caught_up_at = follower.caught_up_at.max(follower.last_fetch_at);
        }
        follower.broker_epoch = fetch.broker_epoch;
        follower.log_end = Some(fetch.offset);
        follower.log_start = fetch.log_start;
        follower.eligible = fetch.eligible;
        follower.last_fetch_at = now;
        follower.leader_end_at_last_fetch = log_end;

        let joins = fetch.eligible
            && self.proposed.is_none()
            && !self.isr.contains(&fetch.replica)
            && fetch.offset >= self.high_watermark
            && fetch.offset >= self.epoch_start;
        let proposal = joins.then(|| {
            let wanted = self.isr.iter().copied().chain([fetch.replica]).collect();
            self.propose(wanted)
        });
        Ok(FollowerProgress { high_watermark: self.advance_high_watermark(now), proposal })
    }

    /// Drops followers that have been behind for longer than `replica.lag.time.max.ms`. The caller asks now and then.
    pub fn on_tick(&mut self, now: Timestamp) -> Option<IsrProposal> {
        if self.proposed.is_some() {
            return None;
        }
        let lags = |follower: &&Follower| {
            self.isr.contains(&follower.id)
                && follower.log_end != Some(self.log_end)
                && now.since(follower.caught_up_at) > self.max_lag_ms
        };
        let late: Vec<BrokerId> = self.followers.iter().filter(lags).map(|follower| follower.id).collect();
        if late.is_empty() {
            return None;
        }
        let wanted = self.isr.iter().copied().filter(|id| !late.contains(id)).collect();
        Some(self.propose(wanted))
    }

    /// The metadata log has a new state of this leadership: the answer to a proposal, or somebody else's change.
    /// Returns the high watermark where it moved.
    pub fn on_isr_change(&mut self, isr: &[BrokerId], partition_epoch: i32, now: Timestamp) -> Option<Offset> {
        if partition_epoch <= self.partition_epoch {
            return None;
        }
        self.partition_epoch = partition_epoch;
        self.isr = isr.to_vec();
        self.proposed = None;
        self.advance_high_watermark(now)
    }

    /// The controller refused the proposal; the next fetch or tick may propose anew.
    pub fn on_proposal_refused(&mut self) {
        self.proposed = None;
    }

    /// `min.insync.replicas` or the lag limit was changed. Returns the high watermark where it moved.
    pub fn on_limits(&mut self, limits: ReplicationLimits, now: Timestamp) -> Option<Offset> {
        self.min_isr = limits.min_isr;
        self.max_lag_ms = limits.max_lag_ms;
        self.advance_high_watermark(now)
    }

    /// This broker's own epoch, which its proposals carry.
    pub fn on_registered(&mut self, broker_epoch: BrokerEpoch) {
        self.my_broker_epoch = broker_epoch;
    }

    /// Everything before it is deleted on every live replica: what a `DeleteRecords` waits for.
    pub fn low_watermark(&self) -> Offset {
        let followers = self.followers.iter().filter(|follower| self.isr.contains(&follower.id));
        followers.map(|follower| follower.log_start).fold(self.log_start, Offset::min)
    }

    fn effective_min_isr(&self) -> usize {
        self.min_isr.clamp(1, self.followers.len() + 1)
    }

    fn propose(&mut self, wanted: Vec<BrokerId>) -> IsrProposal {
        let epoch_of = |id: BrokerId| {
            let follower = self.followers.iter().find(|follower| follower.id == id);
            follower.map_or(self.my_broker_epoch, |follower| follower.broker_epoch)
        };
        let isr = wanted.iter().map(|id| (*id, epoch_of(*id))).collect();
        self.proposed = Some(wanted);
        IsrProposal { isr, leader_epoch: self.leader_epoch, partition_epoch: self.partition_epoch }
    }

    /// KIP-966, "strict min ISR": nothing is committed while fewer replicas are in sync than asked for. What counts is the
    /// maximal set: the committed one, who is proposed to join it, and who is caught up and could.
    fn advance_high_watermark(&mut self, now: Timestamp) -> Option<Offset> {
        if self.is_under_min_isr() {
            return None;
        }
        let counts = |follower: &&Follower| {
            self.isr.contains(&follower.id)
                || self.proposed.as_ref().is_some_and(|proposed| proposed.contains(&follower.id))
                || (follower.eligible
                    && follower.log_end.is_some()
                    && now.since(follower.caught_up_at) <= self.max_lag_ms)
        };
        let durable_end = self.durable_end.filter(|_| !planted("ack-before-fsync"));
        let own_end = durable_end.map_or(self.log_end, |durable| durable.min(self.log_end));
        let ends = self.followers.iter().filter(counts).map(|follower| follower.log_end.unwrap_or(Offset::ZERO));
        let committed = ends.fold(own_end, Offset::min);
        if committed <= self.high_watermark {
            return None;
        }
        self.high_watermark = committed;
        Some(committed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ReplicationLimits = ReplicationLimits { min_isr: 2, max_lag_ms: 30_000 };
    const START: Timestamp = Timestamp(1_000_000);

    fn leader(replicas: &[i32], isr: &[i32], limits: ReplicationLimits) -> LeaderState {
        let ids = |ids: &[i32]| ids.iter().map(|id| BrokerId(*id)).collect();
        let assignment = PartitionAssignment {
            leader_epoch: LeaderEpoch(3),
            partition_epoch: 7,
            replicas: ids(replicas),
            isr: ids(isr),
        };
        LeaderState::new(BrokerId(1), &assignment, limits, Offset(0), Offset(100), Offset(90), START)
    }

    fn fetch(replica: i32, offset: i64) -> FollowerFetch {
        FollowerFetch {
            replica: BrokerId(replica),
            broker_epoch: BrokerEpoch(11),
            offset: Offset(offset),
            log_start: Offset(0),
            eligible: true,
        }
    }

    #[test]
    fn a_leader_alone_commits_what_it_appends() {
        let mut leader = leader(&[1], &[1], LIMITS);
        assert_eq!(leader.high_watermark(), Offset(100));
        assert_eq!(leader.on_append(Offset(110), START), Some(Offset(110)));
        assert_eq!(leader.check_min_isr(), Ok(()));
    }

    #[test]
    fn only_synced_offsets_count_where_the_partition_asks_for_syncs() {
        let mut leader = leader(&[1], &[1], LIMITS);
        leader.on_durable(Offset(100), START);
        assert_eq!(leader.on_append(Offset(110), START), None);
        assert_eq!(leader.on_durable(Offset(105), START), Some(Offset(105)));
        assert_eq!(leader.on_durable(Offset(110), START), Some(Offset(110)));
    }

    #[test]
    fn syncs_can_be_asked_for_and_no_more() {
        let mut leader = leader(&[1], &[1], LIMITS);
        assert_eq!(leader.on_durability(Some(Offset(100)), START), None);
        assert_eq!(leader.on_append(Offset(110), START), None);
        assert_eq!(leader.on_durability(None, START), Some(Offset(110)), "nothing waits for a sync that nobody begins");
    }

    #[test]
    fn the_slowest_in_sync_replica_decides_what_is_committed() {
        let mut leader = leader(&[1, 2, 3], &[1, 2, 3], LIMITS);
        assert_eq!(leader.high_watermark(), Offset(90));
        assert_eq!(leader.on_fetch(fetch(2, 100), START).unwrap().high_watermark, None);
        assert_eq!(leader.on_fetch(fetch(3, 95), START).unwrap().high_watermark, Some(Offset(95)));
        assert_eq!(leader.on_fetch(fetch(4, 95), START), Err(NotAReplica(BrokerId(4))));
    }

    #[test]
    fn nothing_is_committed_below_min_insync_replicas() {
        let mut leader = leader(&[1, 2], &[1], LIMITS);
        assert_eq!(leader.check_min_isr(), Err(NotEnoughReplicas { in_sync: 1, min_isr: 2 }));
        assert_eq!(leader.on_append(Offset(110), START), None);
        let progress = leader.on_fetch(fetch(2, 110), START).unwrap();
        assert_eq!(progress.high_watermark, None, "the proposed replica is not committed yet");
        assert_eq!(progress.proposal.unwrap().isr, [(BrokerId(1), BrokerEpoch::NONE), (BrokerId(2), BrokerEpoch(11))]);
        assert_eq!(leader.on_isr_change(&[BrokerId(1), BrokerId(2)], 8, START), Some(Offset(110)));
    }

    #[test]
    fn a_follower_that_stays_behind_is_dropped_and_then_commits_go_on() {
        let limits = ReplicationLimits { min_isr: 1, max_lag_ms: 30_000 };
        let mut leader = leader(&[1, 2], &[1, 2], limits);
        leader.on_append(Offset(110), START);
        assert_eq!(leader.on_tick(START.plus_ms(30_000)), None);
        let proposal = leader.on_tick(START.plus_ms(30_001)).unwrap();
        assert_eq!((proposal.isr.len(), proposal.partition_epoch), (1, 7));
        assert_eq!(leader.on_tick(START.plus_ms(40_000)), None, "one proposal at a time");
        assert_eq!(leader.high_watermark(), Offset(90), "it still counts until the controller agrees");
        assert_eq!(leader.on_isr_change(&[BrokerId(1)], 8, START.plus_ms(40_000)), Some(Offset(110)));
    }

    #[test]
    fn a_follower_is_caught_up_as_of_its_previous_fetch() {
        let limits = ReplicationLimits { min_isr: 1, max_lag_ms: 1_000 };
        let mut leader = leader(&[1, 2], &[1, 2], limits);
        leader.on_append(Offset(110), START);
        leader.on_fetch(fetch(2, 100), START.plus_ms(500)).unwrap();
        leader.on_append(Offset(120), START.plus_ms(600));
        // It has all that we had at +500, so it was caught up at +500 and may lag until +1500.
        leader.on_fetch(fetch(2, 110), START.plus_ms(1_400)).unwrap();
        assert_eq!(leader.on_tick(START.plus_ms(1_500)), None);
        assert!(leader.on_tick(START.plus_ms(1_501)).is_some());
    }

    #[test]
    fn an_unregistered_follower_never_joins() {
        let mut leader = leader(&[1, 2], &[1], ReplicationLimits { min_isr: 1, max_lag_ms: 1_000 });
        let stale = FollowerFetch { eligible: false, ..fetch(2, 100) };
        assert_eq!(leader.on_fetch(stale, START).unwrap().proposal, None);
    }

    #[test]
    fn an_old_answer_of_the_controller_changes_nothing() {
        let mut leader = leader(&[1, 2], &[1, 2], LIMITS);
        assert_eq!(leader.on_isr_change(&[BrokerId(1)], 7, START), None);
        assert_eq!(leader.isr(), [BrokerId(1), BrokerId(2)]);
    }
}
