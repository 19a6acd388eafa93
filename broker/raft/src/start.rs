//! How a node begins: what it refuses to begin with, and the role that its election state leaves it.

use gregor_types::{BrokerId, Offset};

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
    /// More than one voter.
    #[error("the quorum has {0} voters; this version of Gregor runs a quorum of one voter")]
    SeveralVoters(usize),
    /// Another node is the voter.
    #[error(
        "the only voter is node {voter}, but this node has node.id {local}; joining a quorum as an observer is not served yet"
    )]
    NotTheVoter {
        /// The voter.
        voter: BrokerId,
        /// This node.
        local: BrokerId,
    },
    /// This node on another disk is the voter.
    #[error("the voter is node {} in the directory with id {}, but the metadata directory here has directory.id {}",
        voter.id, voter.directory_or_zero(), local.directory_or_zero())]
    OtherDirectory {
        /// The voter.
        voter: ReplicaKey,
        /// This replica.
        local: ReplicaKey,
    },
    /// The log's head is gone, and nothing stands for it.
    #[error(
        "the metadata log starts at offset {start}, but no snapshot covers what was before it (newest: {newest:?})"
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

/// Whether this replica is the only voter, which is all that the server serves yet.
pub fn check_sole_voter(voters: &VoterSet, local: ReplicaKey) -> Result<(), StartError> {
    let Some(voter) = voters.iter().next() else { return Err(StartError::NoVoters) };
    if voters.len() > 1 {
        return Err(StartError::SeveralVoters(voters.len()));
    }
    if voter.key.id != local.id {
        return Err(StartError::NotTheVoter { voter: voter.key.id, local: local.id });
    }
    if !voters.contains(local) {
        return Err(StartError::OtherDirectory { voter: voter.key, local });
    }
    Ok(())
}

/// Whether what is on the disk can be begun with.
pub(crate) fn check_log(history: &VoterHistory, log: &dyn LogView) -> Result<(), StartError> {
    let (start, newest) = (log.start(), log.latest_snapshot());
    if start > Offset::ZERO && newest.is_none_or(|newest| newest.offset < start) {
        return Err(StartError::MissingSnapshot { start, newest });
    }
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
