//! The leader's books: how far its log is on disk, how far others have fetched, what is committed, who waits for more.

use std::collections::{BTreeMap, BTreeSet};

use gregor_messages::{
    BeginQuorumEpochRequest,
    begin_quorum_epoch_request::{LeaderEndpoint, PartitionData, TopicData},
};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Offset, planted::planted};

use crate::{
    Effect, Effects, LogView, METADATA_TOPIC, Nanos, Now, Outgoing, Quorum, ReplicaKey, RequestId, Rng, Role, Token,
    VoterSet,
    api::{FetchPlan, LogRead},
    change::Change,
    effects::Write,
    peers::Asked,
    time::{Age, Countdown},
};

/// The most observers that a leader remembers; the one that has been silent longest gives way.
const OBSERVERS_MAX: usize = 1_000;
/// The most fetches that wait for new records; the oldest is answered early.
const WAITING_MAX: usize = 1_000;

/// See [`Role::Leader`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Leader {
    pub(crate) epoch: LeaderEpoch,
    /// The offset of the epoch's first record.
    pub(crate) start: Offset,
    /// Where the next record lands.
    pub(crate) end: Offset,
    /// How far the log is on this node's disk.
    durable: Offset,
    replicas: BTreeMap<ReplicaKey, Progress>,
    waiting: Vec<Waiting>,
    /// Voters that fetched, or said that they follow, since the others were last told who leads.
    pub(crate) followed_by: BTreeSet<BrokerId>,
    /// How much is left of the time in which voters need not have fetched yet.
    grace: Countdown,
    /// When the voters that are silent are told again.
    announce: Countdown,
    /// The change of voters that is under way.
    pub(crate) change: Option<Change>,
    /// What the voters of a quorum of `kraft.version` 0 say of themselves; none once the voters are in the log.
    pub(crate) volatile_voters: Option<VoterSet>,
}

/// How far another replica has fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Progress {
    /// It has everything before, and its disk too if it votes.
    pub(crate) end: Offset,
    pub(crate) fetched: Age,
    pub(crate) caught_up: Age,
    /// Where the leader's log ended when it asked.
    leader_end: Offset,
}

/// A fetch that waits for new records.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Waiting {
    pub(crate) id: RequestId,
    pub(crate) plan: FetchPlan,
    pub(crate) timeout: Countdown,
}

impl Leader {
    /// `grace` is how long voters may take to fetch for the first time.
    pub(crate) fn new(epoch: LeaderEpoch, start: Offset, grace: Nanos, volatile_voters: Option<VoterSet>) -> Self {
        Self {
            epoch,
            start,
            end: start,
            durable: Offset::ZERO,
            replicas: BTreeMap::new(),
            waiting: Vec::new(),
            followed_by: BTreeSet::new(),
            grace: Countdown::new(grace),
            announce: Countdown::new(0),
            change: None,
            volatile_voters,
        }
    }

    pub(crate) fn pass(&mut self, elapsed: Nanos) {
        for progress in self.replicas.values_mut() {
            progress.fetched.pass(elapsed);
            progress.caught_up.pass(elapsed);
        }
        self.replicas.retain(|_, progress| !progress.fetched.is_forgotten());
        self.waiting.iter_mut().for_each(|waiting| waiting.timeout.pass(elapsed));
        self.announce.pass(elapsed);
        self.grace.pass(elapsed);
        self.change.iter_mut().for_each(|change| change.pass(elapsed));
    }

    /// How long a majority may be silent yet: as long as the voter that completes it with this node may.
    fn majority_patience(&self, voters: &VoterSet, local: ReplicaKey, patience: Nanos) -> Nanos {
        let others = voters.iter().filter(|voter| voter.key.id != local.id);
        let mut left: Vec<Nanos> = others
            .map(|voter| {
                let fetched =
                    self.replicas.get(&voter.key).map(|progress| patience.saturating_sub(progress.fetched.nanos()));
                fetched.unwrap_or_default().max(self.grace.remaining())
            })
            .collect();
        left.sort_unstable_by(|left, right| right.cmp(left));
        let needed = voters.len() / 2 + usize::from(!voters.contains(local));
        needed.checked_sub(1).map_or(patience, |last| left.get(last).copied().unwrap_or(0))
    }

    pub(crate) fn next_due(&self) -> Option<Nanos> {
        let waiting = self.waiting.iter().map(|waiting| waiting.timeout.remaining());
        waiting.chain(self.change.as_ref().map(Change::remaining)).min()
    }

    /// When a leader of several voters has something to do: say again that it leads, or see that nobody follows.
    pub(crate) fn next_duty(&self, voters: &VoterSet, local: ReplicaKey, patience: Nanos) -> Option<Nanos> {
        let alone = voters.iter().all(|voter| voter.key.id == local.id);
        (!alone).then(|| self.announce.remaining().min(self.majority_patience(voters, local, patience)))
    }

    pub(crate) fn replicas(&self) -> impl Iterator<Item = (ReplicaKey, Progress)> + '_ {
        self.replicas.iter().map(|(key, progress)| (*key, *progress))
    }

    /// A replica that has everything before `end` asks for more. Of too many, the observer that is silent for longest is forgotten, and
    /// never a voter: whoever invents observers must not bring the leader down.
    pub(crate) fn on_fetched(&mut self, replica: ReplicaKey, end: Offset, voters: &VoterSet) {
        if !self.replicas.contains_key(&replica) && self.replicas.len() >= OBSERVERS_MAX {
            let observers = self.replicas.iter().filter(|(key, _)| voters.iter().all(|voter| voter.key != **key));
            let silent = observers.max_by_key(|(_, progress)| progress.fetched.nanos()).map(|(key, _)| *key);
            silent.map(|key| self.replicas.remove(&key));
        }
        let before = self.replicas.get(&replica).copied();
        let caught_up = match before {
            _ if end >= self.end => Age::NOW,
            // It has all that was there when it asked before.
            Some(before) if end >= before.leader_end => before.fetched,
            Some(before) => before.caught_up,
            None => Age::NEVER,
        };
        self.replicas.insert(replica, Progress { end, fetched: Age::NOW, caught_up, leader_end: self.end });
    }

    /// Whether a replica had all of the log not long ago.
    pub(crate) fn is_caught_up(&self, replica: ReplicaKey) -> bool {
        self.replicas.get(&replica).is_some_and(|progress| !progress.caught_up.is_forgotten())
    }

    /// The voters have directories now: what is known of each is of the replica in it.
    pub(crate) fn know_directories(&mut self, voters: &VoterSet) {
        for voter in voters.iter() {
            let unnamed = ReplicaKey { id: voter.key.id, directory: None };
            if voter.key != unnamed
                && let Some(progress) = self.replicas.remove(&unnamed)
            {
                self.replicas.entry(voter.key).or_insert(progress);
            }
        }
    }

    /// A voter takes a snapshot: it is there, whatever it has.
    pub(crate) fn on_snapshot_fetched(&mut self, voter: ReplicaKey) {
        let never = Offset(i64::MAX);
        let unknown = Progress { end: Offset::ZERO, fetched: Age::NOW, caught_up: Age::NEVER, leader_end: never };
        self.replicas.entry(voter).or_insert(unknown).fetched = Age::NOW;
    }

    /// What a majority of voters has on disk, this node among them: the offset at which, sorted from the most, half of the voters
    /// stand before it.
    fn majority_end(&self, quorum_voters: &VoterSet, local: ReplicaKey) -> Offset {
        let mut ends: Vec<Offset> = quorum_voters
            .iter()
            .map(|voter| {
                if voter.key.id == local.id {
                    return self.durable;
                }
                self.replicas.get(&voter.key).map_or(Offset::ZERO, |progress| progress.end)
            })
            .collect();
        ends.sort_unstable_by(|left, right| right.cmp(left));
        let before = if planted("majority-not-awaited") { 0 } else { ends.len() / 2 };
        ends.get(before).copied().unwrap_or(Offset::ZERO)
    }
}

impl Quorum {
    /// How long a leader goes on without hearing from a majority (`LeaderState.CHECK_QUORUM_TIMEOUT_FACTOR`).
    pub(crate) fn patience(&self) -> Nanos {
        self.config.fetch_timeout + self.config.fetch_timeout / 2
    }

    /// Says to the voters that do not follow that it leads; gives way once a majority has been silent for too long, as another may lead by
    /// then.
    pub(crate) fn pursue_leadership(&mut self, now: Now, rng: &mut dyn Rng, effects: &mut Effects) {
        self.answer_overdue_fetches(now, effects);
        if self.pursue_change(now, rng, effects) {
            self.pursue_resignation(now, rng, effects);
            return;
        }
        let (local, patience) = (self.config.local.key, self.patience());
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.majority_patience(self.history.voters(), local, patience) == 0 {
            self.resign(false, now, rng, effects);
            self.pursue_resignation(now, rng, effects);
            return;
        }
        if leader.announce.is_due() {
            leader.announce = Countdown::new(self.config.fetch_timeout / 2);
            leader.followed_by.clear();
        }
        self.announce_leadership(effects);
    }

    fn announce_leadership(&mut self, effects: &mut Effects) {
        let Role::Leader(leader) = &self.role else { return };
        let local = &self.config.local;
        for voter in self.history.voters().iter().map(|voter| voter.key) {
            if voter.id == local.key.id || leader.followed_by.contains(&voter.id) || !self.peers.is_free(voter.id) {
                continue;
            }
            self.peers.ask(voter.id, Asked::Begin(leader.epoch));
            let partition = PartitionData {
                voter_directory_id: voter.directory_or_zero(),
                leader_id: local.key.id.value(),
                leader_epoch: leader.epoch.value(),
                ..Default::default()
            };
            let topic =
                TopicData { topic_name: METADATA_TOPIC.into(), partitions: vec![partition], ..Default::default() };
            let endpoints = local.endpoints.iter().map(|endpoint| LeaderEndpoint {
                name: endpoint.name.clone(),
                host: endpoint.host.clone(),
                port: endpoint.port,
                ..Default::default()
            });
            let request = Outgoing::BeginQuorumEpoch(BeginQuorumEpochRequest {
                cluster_id: Some(self.config.cluster_id.clone()),
                voter_id: voter.id.value(),
                topics: vec![topic],
                leader_endpoints: endpoints.collect(),
                ..Default::default()
            });
            effects.push(Effect::Send { to: voter.id, request });
        }
    }

    pub(crate) fn on_appended(&mut self, token: Token, log: &dyn LogView, now: Now, effects: &mut Effects) {
        if let Some(Write::Batch(_)) = self.writes.end(token) {
            self.answer_fetches_with_records(log, now, effects);
        }
    }

    /// A write of an earlier epoch says nothing of this log: it may have been cut off and written anew since.
    pub(crate) fn on_log_durable(&mut self, epoch: LeaderEpoch, end: Offset, now: Now, effects: &mut Effects) {
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.epoch != epoch {
            return;
        }
        leader.durable = leader.durable.max(end);
        if self.update_high_watermark(effects) {
            self.answer_fetches_with_high_watermark(now, effects);
        }
    }

    /// Moves the high watermark to what a majority has. Not before a record of this epoch is among it: an older one could still be
    /// replaced by another leader (Raft 5.4.2). Never back, also when the voter set grows (KIP-853).
    pub(crate) fn update_high_watermark(&mut self, effects: &mut Effects) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let end = leader.majority_end(self.history.voters(), self.config.local.key);
        let is_own = end > leader.start || planted("earlier-epoch-committed");
        let moves = is_own && self.high_watermark.is_none_or(|before| end > before);
        if moves {
            self.high_watermark = Some(end);
            effects.push(Effect::HighWatermark(end));
        }
        moves
    }

    pub(crate) fn wait_for_records(&mut self, waiting: Waiting, now: Now, effects: &mut Effects) {
        let Role::Leader(leader) = &mut self.role else { unreachable!("only a leader lets a fetch wait") };
        let oldest = (leader.waiting.len() >= WAITING_MAX).then(|| leader.waiting.remove(0));
        leader.waiting.push(waiting);
        if let Some(oldest) = oldest {
            self.answer_fetch_empty(&oldest, now, effects);
        }
    }

    /// New records can be read: whoever waits gets them, before this node's own disk has them.
    fn answer_fetches_with_records(&mut self, log: &dyn LogView, now: Now, effects: &mut Effects) {
        let end = log.end();
        for waiting in self.take_waiting(|waiting| waiting.plan.from < end.offset) {
            let read = Some(LogRead { from: waiting.plan.from, max_bytes: waiting.plan.max_bytes });
            self.answer_fetch(&waiting, ErrorCode::None, read, log.start(), now, effects);
        }
    }

    /// The high watermark moved: whoever says in its fetch that it knows a lower one hears of it at once (KIP-1166).
    fn answer_fetches_with_high_watermark(&mut self, now: Now, effects: &mut Effects) {
        let Some(high_watermark) = self.high_watermark else { return };
        for waiting in self.take_waiting(|waiting| waiting.plan.known_high_watermark < high_watermark) {
            self.answer_fetch_empty(&waiting, now, effects);
        }
    }

    pub(crate) fn answer_overdue_fetches(&mut self, now: Now, effects: &mut Effects) {
        for waiting in self.take_waiting(|waiting| waiting.timeout.is_due()) {
            self.answer_fetch_empty(&waiting, now, effects);
        }
    }

    pub(crate) fn fail_waiting_fetches(&mut self, now: Now, effects: &mut Effects) {
        for waiting in self.take_waiting(|_| true) {
            self.answer_fetch(&waiting, ErrorCode::NotLeaderOrFollower, None, waiting.plan.log_start, now, effects);
        }
    }

    fn answer_fetch_empty(&mut self, waiting: &Waiting, now: Now, effects: &mut Effects) {
        self.answer_fetch(waiting, ErrorCode::None, None, waiting.plan.log_start, now, effects);
    }

    fn take_waiting(&mut self, ready: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        let Role::Leader(leader) = &mut self.role else { return Vec::new() };
        if leader.waiting.is_empty() {
            return Vec::new();
        }
        let (answer, keep) = leader.waiting.drain(..).partition(|waiting| ready(waiting));
        leader.waiting = keep;
        answer
    }
}
