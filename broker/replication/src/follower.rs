//! A partition as a follower's own broker sees it: whom it follows, and what it may tell readers.
//!
//! The server keeps it under the partition's lock and calls it with what its log and its leader say; fetching is the
//! [`crate::Fetcher`]'s.

use gregor_types::{BrokerId, LeaderEpoch, Offset, planted::planted};

/// A partition that another broker leads, or nobody.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FollowerState {
    leader: Option<BrokerId>,
    leader_epoch: LeaderEpoch,
    high_watermark: Offset,
}

/// What a leader said of its log beside the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderMarks {
    /// The leader's high watermark.
    pub high_watermark: Offset,
    /// Where the leader's log starts.
    pub log_start: Offset,
}

/// What to move at the follower after it has appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MovedMarks {
    /// The high watermark, where it moved.
    pub high_watermark: Option<Offset>,
    /// Where the log is to start from now on, where that moved: what is before was deleted at the leader.
    pub log_start: Option<Offset>,
}

impl FollowerState {
    /// Follows `leader` in this epoch. `high_watermark` is what was known before.
    pub const fn new(leader: Option<BrokerId>, leader_epoch: LeaderEpoch, high_watermark: Offset) -> Self {
        Self { leader, leader_epoch, high_watermark }
    }

    /// Whom it follows.
    pub const fn leader(&self) -> Option<BrokerId> {
        self.leader
    }

    /// The leadership that it follows.
    pub const fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    /// Everything before it is committed.
    pub const fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Whether what a fetcher decided under `leader_epoch` may still be done to the log. Looked at under the lock under which
    /// the log is changed: the metadata may have made this broker follow another meanwhile, or lead.
    pub fn admits(&self, leader_epoch: LeaderEpoch) -> bool {
        self.leader.is_some() && self.leader_epoch == leader_epoch
    }

    /// The log now starts and ends here, and the leader said this of its own.
    ///
    /// A high watermark that was learned once stays true whoever leads, so a new leader that does not know yet how far its
    /// predecessor had committed moves nobody's back. Only a log that is cut loses it.
    pub fn on_appended(&mut self, log_start: Offset, log_end: Offset, leader: LeaderMarks) -> MovedMarks {
        let mut moved = MovedMarks::default();
        let here = leader.high_watermark.min(log_end);
        let committed = if planted("committed-behind-the-end") { leader.high_watermark } else { here };
        if committed > self.high_watermark {
            self.high_watermark = committed;
            moved.high_watermark = Some(committed);
        }
        let start = leader.log_start.min(self.high_watermark);
        moved.log_start = (start > log_start).then_some(start);
        moved
    }

    /// The log was cut and starts and ends here: nothing behind its end is known to be committed, all before its start is.
    pub fn on_cut(&mut self, log_start: Offset, log_end: Offset) {
        self.high_watermark = self.high_watermark.clamp(log_start, log_end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follower(high_watermark: i64) -> FollowerState {
        FollowerState::new(Some(BrokerId(1)), LeaderEpoch(3), Offset(high_watermark))
    }

    fn marks(high_watermark: i64, log_start: i64) -> LeaderMarks {
        LeaderMarks { high_watermark: Offset(high_watermark), log_start: Offset(log_start) }
    }

    #[test]
    fn a_follower_knows_as_much_to_be_committed_as_it_has() {
        let mut follower = follower(10);
        let moved = follower.on_appended(Offset(0), Offset(50), marks(80, 0));
        assert_eq!(moved, MovedMarks { high_watermark: Some(Offset(50)), log_start: None });
        assert_eq!(follower.on_appended(Offset(0), Offset(90), marks(80, 0)).high_watermark, Some(Offset(80)));
    }

    #[test]
    fn a_new_leader_that_knows_less_moves_no_high_watermark_back() {
        let mut follower = follower(80);
        assert_eq!(follower.on_appended(Offset(0), Offset(90), marks(60, 0)), MovedMarks::default());
        assert_eq!(follower.high_watermark(), Offset(80));
    }

    #[test]
    fn a_log_that_is_cut_takes_the_high_watermark_along() {
        let mut follower = follower(80);
        follower.on_cut(Offset(0), Offset(70));
        assert_eq!(follower.high_watermark(), Offset(70));
        follower.on_cut(Offset(300), Offset(300));
        assert_eq!(follower.high_watermark(), Offset(300), "what is before the start of a log was committed");
    }

    #[test]
    fn what_the_leader_deleted_is_deleted() {
        let mut follower = follower(0);
        assert_eq!(follower.on_appended(Offset(0), Offset(50), marks(50, 20)).log_start, Some(Offset(20)));
        assert_eq!(follower.on_appended(Offset(20), Offset(50), marks(50, 20)).log_start, None);
    }

    #[test]
    fn what_a_fetcher_decided_under_another_leadership_is_not_done() {
        assert!(follower(0).admits(LeaderEpoch(3)));
        assert!(!follower(0).admits(LeaderEpoch(2)));
        assert!(!FollowerState::new(None, LeaderEpoch(3), Offset(0)).admits(LeaderEpoch(3)));
    }
}
