//! From a static quorum to a dynamic one: finalizing `kraft.version` 1 (KIP-853) puts the voters into the log, with their directories.
//!
//! A static quorum knows its voters by configuration alone, and not their directories, so each voter tells every leader anew which replica it is
//! (`UpdateRaftVoter`). Version and voters are one batch: no log has the one without the other.

use gregor_state_records::control::{KRaftVersionRecord, VotersRecord};
use gregor_types::LeaderEpoch;

use crate::{ControlRecord, Effect, Effects, Now, Quorum, RequestId, Role, Voter, start::KRAFT_VERSION_MAX};

/// Why `kraft.version` cannot be finalized so. All but the first are `INVALID_UPDATE_VERSION` on the wire.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// Another node leads, or this one does in another epoch.
    #[error("this node does not lead epoch {0} of the quorum")]
    NotLeader(LeaderEpoch),
    /// What is in the log stays there.
    #[error("kraft.version is {present}: it cannot be lowered to {wanted}")]
    Downgrade {
        /// The finalized version.
        present: i16,
        /// The one that was asked for.
        wanted: i16,
    },
    /// This program does not run it.
    #[error("kraft.version {0} is not known; the highest is {KRAFT_VERSION_MAX}")]
    Unknown(i16),
    /// A change of the voters, or of the version, comes first.
    #[error("a change of the quorum is not committed yet; try again")]
    Busy,
    /// Voters that were not heard of in this epoch yet, or run an older version.
    #[error(
        "these voters have not told the leader yet that they run kraft.version {wanted}: {voters:?}; try again once they run"
    )]
    Voters {
        /// The one that was asked for.
        wanted: i16,
        /// Their ids.
        voters: Vec<i32>,
    },
}

impl Quorum {
    /// Finalizes a version, if this node leads the epoch, or only says whether it would.
    pub(crate) fn on_upgrade(
        &mut self,
        to: RequestId,
        epoch: LeaderEpoch,
        wanted: i16,
        validate_only: bool,
        now: Now,
        effects: &mut Effects,
    ) {
        let result = self.check_upgrade(epoch, wanted).map(|records| {
            if !validate_only && !records.is_empty() {
                self.append_control(records, now, effects);
                if let Role::Leader(leader) = &mut self.role {
                    leader.volatile_voters = None;
                }
            }
        });
        effects.push(Effect::Upgraded { to, result });
    }

    /// The records that finalize a version; none where it is finalized.
    fn check_upgrade(&self, epoch: LeaderEpoch, wanted: i16) -> Result<Vec<ControlRecord>, UpgradeError> {
        let Role::Leader(leader) = &self.role else { return Err(UpgradeError::NotLeader(epoch)) };
        if leader.epoch != epoch {
            return Err(UpgradeError::NotLeader(epoch));
        }
        let present = self.history.kraft_version();
        if wanted == present {
            return Ok(Vec::new());
        }
        if wanted < present {
            return Err(UpgradeError::Downgrade { present, wanted });
        }
        if wanted > KRAFT_VERSION_MAX {
            return Err(UpgradeError::Unknown(wanted));
        }
        // Who leads without a committed record of its own epoch may have an earlier leader's upgrade against it.
        let Some(told) = leader.volatile_voters.as_ref().filter(|_| self.check_no_change().is_ok()) else {
            return Err(UpgradeError::Busy);
        };
        let lacks = |voter: &&Voter| {
            let (min, max) = voter.kraft_versions;
            voter.key.directory.is_none() || !(min..=max).contains(&wanted)
        };
        let voters: Vec<i32> = told.iter().filter(lacks).map(|voter| voter.key.id.value()).collect();
        if !voters.is_empty() {
            return Err(UpgradeError::Voters { wanted, voters });
        }
        let version = KRaftVersionRecord { k_raft_version: wanted, ..Default::default() };
        Ok(vec![ControlRecord::KRaftVersion(version), ControlRecord::Voters(VotersRecord::from(told))])
    }
}
