//! How a node begins: what it refuses to begin with, and the role that its election state leaves it.

use gregor_types::Offset;

use crate::{
    Effects, LogView, Now, OffsetAndEpoch, Quorum, ReplicaKey, Rng, Role, VoterHistory, VoterSet, time::Countdown,
};

/// The highest `kraft.version` that we run.
pub(crate) const KRAFT_VERSION_MAX: i16 = 1;

/// Why a node cannot take part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Nobody votes.
    #[error(
        "the quorum has no voters: format the directory with `gregor storage format --standalone`, or set controller.quorum.voters"
    )]
    NoVoters,
    /// This node on another disk is the only voter: nobody can ever lead.
    #[error("the only voter is node {} in the directory with id {}, but the metadata directory here has directory.id {}",
        voter.id, voter.directory_or_zero(), local.directory_or_zero())]
    OtherDirectory {
        /// The voter.
        voter: ReplicaKey,
        /// This replica.
        local: ReplicaKey,
    },
    /// The log's head is gone, and nothing stands for it.
    #[error(
        "the metadata log starts at offset {start}, and no snapshot stands for what was before it (newest: {}): put back the .checkpoint file \
         of that offset or of a later one or, where other controllers have the metadata, format this node's metadata directory anew",
        newest.map_or_else(|| "none".to_owned(), |newest| format!("offset {}", newest.offset))
    )]
    MissingSnapshot {
        /// The first offset that the log has.
        start: Offset,
        /// The newest snapshot.
        newest: Option<OffsetAndEpoch>,
    },
    /// A `kraft.version` that we do not run.
    #[error("the quorum runs kraft.version {0}; this version of Gregor runs 0 and 1")]
    KRaftVersion(i16),
}

/// Whether there can be a leader as far as is known: who votes is known or, where other nodes can be asked, to be found out, and this node on
/// another disk is not all there is.
pub fn check_voters(voters: &VoterSet, local: ReplicaKey, finds_others: bool) -> Result<(), StartError> {
    if voters.is_empty() && !finds_others {
        return Err(StartError::NoVoters);
    }
    match voters.voter(local.id) {
        Some(voter) if voters.len() == 1 && !voters.contains(local) && !finds_others => {
            Err(StartError::OtherDirectory { voter: voter.key, local })
        }
        _ => Ok(()),
    }
}

/// Whether a snapshot stands for what the log does not have any more. Asked before anything of the log is replayed: its records change what only
/// that snapshot knows.
pub fn check_log(log: &dyn LogView) -> Result<(), StartError> {
    let (start, newest) = (log.start(), log.latest_snapshot());
    if start > Offset::ZERO && newest.is_none_or(|newest| newest.offset < start) {
        return Err(StartError::MissingSnapshot { start, newest });
    }
    Ok(())
}

/// Whether this version can run what the log and its snapshot say.
pub(crate) fn check_version(history: &VoterHistory) -> Result<(), StartError> {
    if history.kraft_version() > KRAFT_VERSION_MAX {
        return Err(StartError::KRaftVersion(history.kraft_version()));
    }
    Ok(())
}

impl Quorum {
    /// Takes the role that the election state on the disk leaves this node (`QuorumState.initialize`).
    pub(crate) fn begin(&mut self, log: &dyn LogView, now: Now, rng: &mut dyn Rng, effects: &mut Effects) {
        let local = self.config.local.key;
        let election = self.election();
        if self.is_voter() && self.voters().len() == 1 {
            // There is nobody to ask, and nobody else who leads.
            self.become_candidate(log, now, rng, effects);
        } else if election.leader == Some(local.id) {
            // It led, and cannot know what it appended and told others.
            self.resign(false, now, rng, effects);
            if let Role::Resigned(role) = &mut self.role {
                role.led = true;
            }
        } else if let Some(leader) = election.leader {
            self.follow(election, leader, Vec::new());
        } else if let Role::Unattached(role) = &mut self.role {
            // If it voted for itself it may have won, and have had records fetched that its own disk lost: it never stands in that epoch again.
            role.timeout = Countdown::new(rng.spread(self.config.election_timeout));
        }
    }
}
