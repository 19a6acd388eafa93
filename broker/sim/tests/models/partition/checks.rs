//! What must hold of a partition whatever happens, and what has to happen for that to mean anything.

use std::collections::BTreeMap;

use gregor_types::{BrokerId, LeaderEpoch, Offset};

use super::{BROKERS, World, broker::Role, desk::View, index, log::Record};

/// What has happened, as nobody in the world knows all of it.
#[derive(Debug, Clone, Default, PartialEq, Hash)]
pub struct Past {
    /// What some leader knew to be committed.
    committed: Vec<Record>,
    /// What producers were told that it is kept, with the offset behind each.
    acknowledged: Vec<(Offset, Record)>,
    /// The high watermark that each broker has shown in its process and leader epoch of now.
    shown: BTreeMap<BrokerId, (u8, LeaderEpoch, Offset)>,
    pub broken: Broken,
    pub seen: Seen,
}

/// What must never come to pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Broken {
    /// A broker takes something else for committed than another.
    pub committed_differs: bool,
    /// A follower cuts off what it knew to be committed.
    pub committed_cut: bool,
    /// A broker's high watermark goes back while nothing is cut.
    pub went_back: bool,
    /// A follower takes more for committed than any leader did.
    pub ahead_of_leaders: bool,
}

/// What comes to pass now and then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Seen {
    /// A follower cut its log.
    pub cut: bool,
    /// A replica left those in sync.
    pub shrank: bool,
    /// One joined them again.
    pub grew: bool,
    /// Another replica leads.
    pub moved: bool,
    /// One leads that was not in sync, but eligible.
    pub eligible_led: bool,
}

impl Past {
    pub fn has_acknowledged(&self) -> bool {
        !self.acknowledged.is_empty()
    }
}

impl World {
    /// The metadata changes to this.
    pub(super) fn note_change(&mut self, next: &View) {
        let before = self.newest();
        let left = before.isr.iter().any(|id| !next.isr.contains(id));
        let joined = next.isr.iter().any(|id| !before.isr.contains(id));
        let moved = next.leader.is_some() && next.leader != before.leader;
        let was_eligible = next.leader.is_some_and(|leader| before.elr.contains(&leader) && moved);
        let seen = &mut self.past.seen;
        seen.shrank |= left;
        seen.grew |= joined;
        seen.moved |= moved;
        seen.eligible_led |= was_eligible;
    }

    pub(super) fn note_acknowledged(&mut self, acknowledged: &[(Offset, Record)]) {
        self.past.acknowledged.extend_from_slice(acknowledged);
        self.past.acknowledged.sort_unstable_by_key(|(offset, record)| (*offset, record.value));
    }

    /// Looks at what a broker takes for committed.
    pub(super) fn look_at(&mut self, id: BrokerId) {
        let broker = &self.brokers[index(id)];
        let Some(process) = &broker.process else {
            self.past.shown.remove(&id);
            return;
        };
        let high_watermark = process.high_watermark();
        let known = &broker.log.records[..high_watermark.value() as usize];
        let past = &mut self.past;
        let shared = known.len().min(past.committed.len());
        past.broken.committed_differs |= known[..shared] != past.committed[..shared];
        let epoch = match &process.role {
            Role::Leader(leader) => {
                past.committed.extend_from_slice(&known[shared..]);
                leader.leader_epoch()
            }
            Role::Follower(follower) => {
                past.broken.ahead_of_leaders |= known.len() > past.committed.len();
                follower.leader_epoch()
            }
        };
        if let Some((life, before, shown)) = past.shown.insert(id, (broker.life, epoch, high_watermark)) {
            let goes_on = life == broker.life && before <= epoch;
            past.broken.went_back |= goes_on && high_watermark < shown;
        }
    }

    /// Every replica that the controller takes to be in sync has all that is committed, but for one that has lost what it had and was not
    /// back to say so.
    pub fn in_sync_have_what_is_committed(&self) -> bool {
        self.newest().isr.iter().all(|id| {
            let broker = &self.brokers[index(*id)];
            broker.has_lost || broker.log.records.starts_with(&self.past.committed)
        })
    }

    /// Whoever leads by the newest metadata has all that was acknowledged, but for one that has lost what it had and was not back.
    pub fn leader_has_what_was_acknowledged(&self) -> bool {
        let Some(leader) = self.newest().leader else { return true };
        let broker = &self.brokers[index(leader)];
        let has = |(end, record): &(Offset, Record)| broker.log.records.get(end.value() as usize - 1) == Some(record);
        broker.has_lost || self.past.acknowledged.iter().all(has)
    }

    /// No two brokers take themselves for the leader of one epoch.
    pub fn one_leads_an_epoch(&self) -> bool {
        let leading = self.brokers.iter().filter_map(|broker| Some(broker.leading()?.leader_epoch()));
        let epochs: Vec<LeaderEpoch> = leading.collect();
        let distinct = |(place, epoch): (usize, &LeaderEpoch)| !epochs[..place].contains(epoch);
        epochs.iter().enumerate().all(distinct)
    }

    /// A replica leads that the controller has replaced.
    pub fn has_deposed_leader(&self) -> bool {
        BROKERS.iter().any(|id| self.brokers[index(*id)].leading().is_some() && self.newest().leader != Some(*id))
    }

    /// Nobody leads, though somebody has everything.
    pub fn is_leaderless(&self) -> bool {
        self.newest().leader.is_none()
    }
}
