//! A fetch session as its client keeps it (KIP-227, `FetchSessionHandler`).
//!
//! Only the fetcher uses it. What the session has of each partition stands with the partition.

use std::collections::BTreeSet;

use gregor_types::ErrorCode;

use super::{FetchPlan, FetchPosition, FollowedPartition};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    id: i32,
    epoch: i32,
    /// How many of the partitions that are followed it has.
    size: usize,
    /// Partitions that are followed no more, and that the leader has not been told to forget.
    forgotten: BTreeSet<FollowedPartition>,
    /// The request under way, and how many partitions it named.
    under_way: Option<(u64, usize)>,
    requests: u64,
}

/// What an answer means for the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its partitions are to be gone through.
    Good,
    /// The session is over.
    Bad,
    /// It is not of the request under way.
    Stale,
}

impl Session {
    pub(super) const fn new() -> Self {
        Self { id: 0, epoch: 0, size: 0, forgotten: BTreeSet::new(), under_way: None, requests: 0 }
    }

    /// Whether the next request begins a session, and so names every partition. The plan for it is made at once.
    pub(super) fn begins(&mut self) -> bool {
        let begins = self.epoch == 0;
        if begins {
            self.size = 0;
            self.forgotten.clear();
        }
        begins
    }

    pub(super) fn has_more(&mut self, partitions: usize) {
        self.size += partitions;
    }

    pub(super) fn has_less(&mut self) {
        self.size -= 1;
    }

    /// It is followed no more.
    pub(super) fn forgets(&mut self, partition: FollowedPartition) {
        self.forgotten.insert(partition);
        self.size -= 1;
    }

    /// It is followed again.
    pub(super) fn remembers(&mut self, partition: FollowedPartition) {
        self.forgotten.remove(&partition);
    }

    /// The next request, unless there is nothing to ask for and nothing to tell.
    pub(super) fn plan(
        &mut self,
        wanted: Vec<(FollowedPartition, FetchPosition)>,
        mut forgotten: Vec<FollowedPartition>,
    ) -> Option<FetchPlan> {
        forgotten.extend(std::mem::take(&mut self.forgotten));
        if self.size == 0 && forgotten.is_empty() {
            return None;
        }
        self.requests += 1;
        self.under_way = Some((self.requests, wanted.len()));
        let (number, session_id, session_epoch) = (self.requests, self.id, self.epoch);
        Some(FetchPlan { number, session_id, session_epoch, wanted, forgotten })
    }

    /// The request got no answer. Whether it was the one under way.
    pub(super) fn fails(&mut self, number: u64) -> bool {
        let is_it = self.under_way.is_some_and(|(under_way, _)| under_way == number);
        if is_it {
            self.under_way = None;
            // The leader may have a session that is ahead or behind: it closes that one and begins another.
            self.epoch = 0;
        }
        is_it
    }

    pub(super) fn answered(
        &mut self,
        number: u64,
        error: ErrorCode,
        session_id: i32,
        answered: impl Iterator<Item = FollowedPartition>,
        is_in_session: impl Fn(FollowedPartition) -> bool,
    ) -> Verdict {
        let Some((_, wanted)) = self.under_way.take_if(|(under_way, _)| *under_way == number) else {
            return Verdict::Stale;
        };
        let mut count = 0;
        let all_known = answered
            .inspect(|_| count += 1)
            .all(|partition| is_in_session(partition) || self.forgotten.contains(&partition));
        let is_whole = self.epoch != 0 || count == wanted;
        if error != ErrorCode::None || !all_known || !is_whole {
            if error == ErrorCode::FetchSessionIdNotFound {
                self.id = 0;
            }
            self.epoch = 0;
            return Verdict::Bad;
        }
        if session_id == 0 {
            // The leader has no room for a session, or gave ours up.
            (self.id, self.epoch) = (0, 0);
        } else {
            self.id = session_id;
            self.epoch = if self.epoch == i32::MAX { 1 } else { self.epoch + 1 };
        }
        Verdict::Good
    }
}
