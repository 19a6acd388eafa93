//! The leader's books: how far its log is on disk, how far others have fetched, what is committed, who waits for more.

use std::collections::BTreeMap;

use gregor_types::{ErrorCode, LeaderEpoch, Offset};

use crate::{
    Effect, Effects, LogView, Nanos, Now, Quorum, ReplicaKey, RequestId, Role, Token,
    api::{FetchPlan, LogRead},
    effects::Write,
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
}

/// How far another replica has fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Progress {
    /// It has everything before, and its disk too if it votes.
    pub(crate) end: Offset,
    pub(crate) fetched: Age,
    pub(crate) caught_up: Age,
}

/// A fetch that waits for new records.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Waiting {
    pub(crate) id: RequestId,
    pub(crate) plan: FetchPlan,
    pub(crate) timeout: Countdown,
}

impl Leader {
    pub(crate) fn new(epoch: LeaderEpoch, start: Offset) -> Self {
        Self { epoch, start, end: start, durable: Offset::ZERO, replicas: BTreeMap::new(), waiting: Vec::new() }
    }

    pub(crate) fn pass(&mut self, elapsed: Nanos) {
        for progress in self.replicas.values_mut() {
            progress.fetched.pass(elapsed);
            progress.caught_up.pass(elapsed);
        }
        self.replicas.retain(|_, progress| !progress.fetched.is_forgotten());
        self.waiting.iter_mut().for_each(|waiting| waiting.timeout.pass(elapsed));
    }

    pub(crate) fn next_due(&self) -> Option<Nanos> {
        self.waiting.iter().map(|waiting| waiting.timeout.remaining()).min()
    }

    pub(crate) fn replicas(&self) -> impl Iterator<Item = (ReplicaKey, Progress)> + '_ {
        self.replicas.iter().map(|(key, progress)| (*key, *progress))
    }

    /// A replica that has everything before `end` asks for more.
    pub(crate) fn on_fetched(&mut self, replica: ReplicaKey, end: Offset) {
        if !self.replicas.contains_key(&replica) && self.replicas.len() >= OBSERVERS_MAX {
            let silent = self.replicas.iter().max_by_key(|(_, progress)| progress.fetched.nanos()).map(|(key, _)| *key);
            silent.map(|key| self.replicas.remove(&key));
        }
        let before = self.replicas.get(&replica).copied();
        let caught_up = if end >= self.end { Age::NOW } else { before.map_or(Age::NEVER, |before| before.caught_up) };
        self.replicas.insert(replica, Progress { end, fetched: Age::NOW, caught_up });
    }

    /// What a majority of voters has on disk, this node among them: the offset at which, sorted from the most, half of the voters
    /// stand before it.
    fn majority_end(&self, quorum_voters: &crate::VoterSet, local: ReplicaKey) -> Offset {
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
        ends.get(ends.len() / 2).copied().unwrap_or(Offset::ZERO)
    }
}

impl Quorum {
    pub(crate) fn on_appended(&mut self, token: Token, log: &dyn LogView, now: Now, effects: &mut Effects) {
        if let Some(Write::Batch(_)) = self.writes.end(token) {
            self.answer_fetches_with_records(log, now, effects);
        }
    }

    pub(crate) fn on_log_durable(&mut self, end: Offset, now: Now, effects: &mut Effects) {
        let Role::Leader(leader) = &mut self.role else { return };
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
        let moves = end > leader.start && self.high_watermark.is_none_or(|before| end > before);
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
