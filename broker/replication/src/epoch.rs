//! Whether a request talks about the same leadership as we do (KIP-320).
//!
//! Called before any read or look-up of offsets; it never decides who leads.

use gregor_types::{ErrorCode, LeaderEpoch};

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
}
