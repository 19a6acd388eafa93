//! The fetch sessions of a simulated leader's followers (KIP-227): what the server's `fetch_sessions/` keeps, for worlds with few partitions.
//!
//! A request names what has changed, and is answered with what has. A follower that has all of a partition is taken not to ask for it until there
//! is more: then its leader hears when the session was used last, at which the follower had everything.

use std::collections::BTreeMap;

use gregor_replication::{FetchPosition, FollowedPartition, LeaderMarks, PartitionAnswer};
use gregor_types::{BrokerId, ErrorCode, Timestamp};

use super::letters::{FollowerQuestion, Parts};
use crate::Random;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Sessions {
    open: BTreeMap<i32, Session>,
    last_id: i32,
}

#[derive(Debug)]
struct Session {
    follower: BrokerId,
    /// The epoch of the request that was taken last.
    epoch: i32,
    /// When that was.
    used_at: Timestamp,
    members: BTreeMap<FollowedPartition, Member>,
}

#[derive(Debug)]
struct Member {
    position: FetchPosition,
    /// What its follower was told last.
    told: Option<LeaderMarks>,
    /// Whether only a change of the partition can give it more, or have its leader think otherwise of its follower.
    is_exhausted: bool,
    /// The request by which the leader has taken note of the follower last.
    noted_in: Option<i32>,
}

/// A request in its session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) session: i32,
    epoch: i32,
    /// Whether all that it names is answered.
    pub(super) is_full: bool,
}

impl Member {
    const fn at(position: FetchPosition) -> Self {
        Self { position, told: None, is_exhausted: false, noted_in: None }
    }
}

impl Sessions {
    /// None. No follower takes one of an earlier run for one of this: ids are random, as in the server.
    pub(super) fn new(random: &mut Random) -> Self {
        Self { open: BTreeMap::new(), last_id: (random.bits() & 0x3fff_ffff) as i32 }
    }

    /// Takes a request, if its session is known and this is its turn.
    pub(super) fn begin(&mut self, asked: &FollowerQuestion, now: Timestamp) -> Result<Turn, ErrorCode> {
        let plan = &asked.plan;
        let wanted = plan.wanted.iter().map(|(id, position)| (*id, Member::at(*position)));
        if plan.session_epoch == 0 {
            self.open.remove(&plan.session_id);
            self.last_id += 1;
            let session = Session { follower: asked.replica, epoch: 0, used_at: now, members: wanted.collect() };
            self.open.insert(self.last_id, session);
            return Ok(Turn { session: self.last_id, epoch: 0, is_full: true });
        }
        let session = self.open.get_mut(&plan.session_id).ok_or(ErrorCode::FetchSessionIdNotFound)?;
        if plan.session_epoch != session.epoch + 1 {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        (session.epoch, session.used_at) = (plan.session_epoch, now);
        session.members.retain(|id, _| !plan.forgotten.contains(id));
        session.members.extend(wanted);
        Ok(Turn { session: plan.session_id, epoch: plan.session_epoch, is_full: false })
    }

    /// What of a request may have something to tell, and whether its leader is to take note of it; `None` where a later one has taken its turn.
    pub(super) fn visit(&mut self, turn: Turn) -> Option<Vec<(FollowedPartition, FetchPosition, bool)>> {
        let session = self.open.get_mut(&turn.session).filter(|session| session.epoch == turn.epoch)?;
        let visited = session.members.iter_mut().filter(|(_, member)| !member.is_exhausted);
        let noted = visited.map(|(id, member)| {
            // A change after that is for the next request, too.
            member.is_exhausted = member.noted_in.replace(turn.epoch) != Some(turn.epoch);
            (*id, member.position, member.is_exhausted)
        });
        Some(noted.collect())
    }

    /// What was found of what was visited: keeps what is told, and takes out what is no news.
    pub(super) fn settle(&mut self, turn: Turn, found: &mut Parts) {
        let Some(session) = self.open.get_mut(&turn.session) else { return };
        found.retain(|(id, PartitionAnswer { error, leader, diverging }, records)| {
            let Some(member) = session.members.get_mut(id) else { return false };
            let is_remarkable = *error != ErrorCode::None || diverging.is_some();
            let is_told = member.told == Some(*leader);
            member.is_exhausted &= records.is_empty() && !is_remarkable;
            member.told = (!is_remarkable).then_some(*leader);
            turn.is_full || is_remarkable || !records.is_empty() || !is_told
        });
    }

    /// A partition is not what it was: whoever waits for that is visited.
    pub(super) fn changed(&mut self, id: FollowedPartition) {
        for session in self.open.values_mut() {
            if let Some(member) = session.members.get_mut(&id) {
                member.is_exhausted = false;
            }
        }
    }

    /// The followers that had all of a partition when they asked last, and when that was.
    pub(super) fn quiet(&self, id: FollowedPartition) -> impl Iterator<Item = (BrokerId, Timestamp)> {
        let quiet =
            self.open.values().filter(move |session| session.members.get(&id).is_some_and(|one| one.is_exhausted));
        quiet.map(|session| (session.follower, session.used_at))
    }

    /// Forgets the session that was begun first, as one does that has no room for more.
    pub(super) fn forget_one(&mut self) {
        self.open.pop_first();
    }
}
