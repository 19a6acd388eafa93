//! Whether a request talks about the same leadership as we do (KIP-320), and a fetch about the same history (KIP-595).
//!
//! Called before any read or look-up of offsets; it never decides who leads.

use gregor_types::{ErrorCode, LeaderEpoch, Offset};

/// A request's leader epoch is not the partition's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    /// The requester still believes in an older leadership.
    #[error("the request's leader epoch {requested} is older than the partition's, {current}")]
    Fenced {
        /// The epoch in the request.
        requested: LeaderEpoch,
        /// The partition's epoch.
        current: LeaderEpoch,
    },
    /// The requester knows of a leadership that we have not heard of yet.
    #[error("the request's leader epoch {requested} is newer than the partition's, {current}")]
    Unknown {
        /// The epoch in the request.
        requested: LeaderEpoch,
        /// The partition's epoch.
        current: LeaderEpoch,
    },
}

impl From<EpochError> for ErrorCode {
    fn from(error: EpochError) -> Self {
        match error {
            EpochError::Fenced { .. } => Self::FencedLeaderEpoch,
            EpochError::Unknown { .. } => Self::UnknownLeaderEpoch,
        }
    }
}

/// KIP-320: a request that names a leader epoch must name the current one; -1 names none.
pub fn check_leader_epoch(requested: LeaderEpoch, current: LeaderEpoch) -> Result<(), EpochError> {
    if requested == LeaderEpoch::NONE || requested == current {
        Ok(())
    } else if requested < current {
        Err(EpochError::Fenced { requested, current })
    } else {
        Err(EpochError::Unknown { requested, current })
    }
}

/// Where an epoch ends in a log: the answer to "where does this epoch, or the last one before it, end?".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EpochEnd {
    /// The largest epoch of the log that is not above the one asked for.
    pub epoch: LeaderEpoch,
    /// The offset that follows its last record.
    pub end: Offset,
}

/// How a fetch's log relates to the log that it fetches from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// All that the fetch has is in this log.
    Same,
    /// The fetch's log has to be cut back first.
    Diverged(EpochEnd),
    /// This log does not reach far enough to tell.
    OutOfRange,
}

/// Whether what a fetch has is in this log, which starts at `log_start` (`Partition.readRecords`). `from` is the offset that
/// the fetch wants next, `last_fetched` the epoch of the record before it (-1 for none), `here` where that epoch ends here.
pub fn compare_history(from: Offset, last_fetched: LeaderEpoch, log_start: Offset, here: Option<EpochEnd>) -> History {
    if last_fetched == LeaderEpoch::NONE {
        return History::Same;
    }
    match here {
        // Serving such a fetch would append one history behind another.
        None => History::OutOfRange,
        Some(_) if from < log_start => History::OutOfRange,
        Some(here) if here.epoch < last_fetched || here.end < from => History::Diverged(here),
        Some(_) => History::Same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_epoch_is_fenced_and_a_newer_one_is_unknown() {
        let current = LeaderEpoch(5);
        assert_eq!(check_leader_epoch(LeaderEpoch::NONE, current), Ok(()));
        assert_eq!(check_leader_epoch(LeaderEpoch(5), current), Ok(()));
        assert_eq!(
            check_leader_epoch(LeaderEpoch(4), current).map_err(ErrorCode::from),
            Err(ErrorCode::FencedLeaderEpoch)
        );
        assert_eq!(
            check_leader_epoch(LeaderEpoch(6), current).map_err(ErrorCode::from),
            Err(ErrorCode::UnknownLeaderEpoch)
        );
    }

    #[test]
    fn a_fetch_that_ends_elsewhere_than_this_log_has_to_be_cut_back_first() {
        let compare = |from, epoch, here: Option<(i32, i64)>| {
            let here = here.map(|(epoch, end)| EpochEnd { epoch: LeaderEpoch(epoch), end: Offset(end) });
            compare_history(Offset(from), LeaderEpoch(epoch), Offset(10), here)
        };
        let end = |epoch, end| EpochEnd { epoch: LeaderEpoch(epoch), end: Offset(end) };
        assert_eq!(compare(50, 3, Some((3, 50))), History::Same);
        assert_eq!(compare(50, 3, Some((3, 70))), History::Same);
        assert_eq!(compare(50, 3, Some((3, 40))), History::Diverged(end(3, 40)), "it has more of the epoch than we");
        assert_eq!(compare(50, 3, Some((2, 50))), History::Diverged(end(2, 50)), "we never saw its epoch");
        assert_eq!(compare(50, 3, None), History::OutOfRange, "nothing is known of the epoch");
        assert_eq!(compare(5, 3, Some((3, 50))), History::OutOfRange, "it is behind our start");
        assert_eq!(compare(5, -1, None), History::Same, "a log without epochs has no history to compare");
    }
}
