//! Who votes in the metadata quorum: the next single change on the way from the voters that are to the controllers of the
//! manifest, and whether a controller may go away. Called by the cluster's plan.
//!
//! Brokers and controllers never make themselves voters: the operator adds whose disk is recorded, one at a time, and removes
//! only what is known to be gone. Every change leaves a majority that is level with the leader.

use crate::identity::Identity;
use crate::kafka::{QuorumSeen, ReplicaSeen};
use crate::placement::Layout;
use crate::properties::CONTROLLER_PORT;

/// One change of the voters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VoterChange {
    /// A controller whose disk is recorded and which has read the metadata votes from now on.
    Add {
        /// The node.
        id: i32,
        /// Its directory.
        directory_id: String,
        /// Where its controller listener is reached.
        host: String,
        /// The port.
        port: u16,
    },
    /// A directory that a node no longer has votes no more.
    Remove {
        /// The node.
        id: i32,
        /// The directory.
        directory_id: String,
    },
}

/// What is to be done about the voters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// They are as the manifest says.
    Done,
    /// One change.
    Change(VoterChange),
    /// Nothing yet, because of this.
    Wait(String),
}

/// How many of so many voters decide.
fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

fn level<'a>(voters: impl Iterator<Item = &'a ReplicaSeen>) -> usize {
    voters.filter(|voter| voter.is_caught_up()).count()
}

/// The next change. Voters that the cluster knows nothing of are counted and left alone: another operator, or a migration, may
/// have brought them.
pub fn next(layout: &Layout, identity: &Identity, seen: &QuorumSeen) -> Next {
    let Some(leader) = seen.leader else { return Next::Wait("the metadata quorum has no leader".to_owned()) };
    for voter in seen.voters.iter().filter(|voter| voter.has_directory()) {
        let Some(recorded) = identity.nodes.get(&voter.id) else { continue };
        if recorded.directory_id == voter.directory_id {
            continue;
        }
        let rest = || seen.voters.iter().filter(move |other| *other != voter);
        if voter.is_caught_up() || voter.id == leader {
            return Next::Wait(format!(
                "node {} votes with directory {}, and {} is recorded for it",
                voter.id, voter.directory_id, recorded.directory_id
            ));
        }
        if rest().count() == 0
            || level(rest()) < majority(rest().count())
            || level(rest()) < majority(seen.voters.len())
        {
            return Next::Wait(format!(
                "the lost disk of node {} votes until more voters are level with the leader",
                voter.id
            ));
        }
        return Next::Change(VoterChange::Remove { id: voter.id, directory_id: voter.directory_id.clone() });
    }
    for node in layout.controllers() {
        let Some(recorded) = identity.nodes.get(&node.id).filter(|recorded| recorded.formatted) else { continue };
        if seen.voters.iter().any(|voter| voter.id == node.id) {
            continue;
        }
        let reads = seen.observers.iter().any(|observer| {
            observer.id == node.id && observer.directory_id == recorded.directory_id && observer.is_caught_up()
        });
        if !reads {
            return Next::Wait(format!("controller {} reads the metadata before it votes", node.id));
        }
        // The new one is level: it counts for the majority of which it becomes a part.
        if level(seen.voters.iter()) + 1 < majority(seen.voters.len() + 1)
            || level(seen.voters.iter()) < majority(seen.voters.len())
        {
            return Next::Wait(format!("controller {} votes when more voters are level with the leader", node.id));
        }
        let port = u16::try_from(CONTROLLER_PORT).unwrap_or_default();
        return Next::Change(VoterChange::Add {
            id: node.id,
            directory_id: recorded.directory_id.clone(),
            host: node.host.clone(),
            port,
        });
    }
    Next::Done
}

/// Whether the quorum goes on deciding for ever without this node: what has to be so before its disk is given up.
pub fn survives_without(seen: &QuorumSeen, id: i32) -> bool {
    let others = || seen.voters.iter().filter(move |voter| voter.id != id);
    seen.leader.is_some_and(|leader| leader != id)
        && others().count() > 0
        && level(others()) >= majority(seen.voters.len())
}

/// Whether a node may be restarted as far as the quorum goes. One of one or of two voters cannot be without a pause; then all
/// others have to be level at least.
pub fn may_restart(seen: &QuorumSeen, id: i32) -> bool {
    if !seen.voters.iter().any(|voter| voter.id == id) {
        return true;
    }
    let voters = seen.voters.len();
    let others = seen.voters.iter().filter(|voter| voter.id != id);
    seen.leader.is_some() && level(others) >= majority(voters).min(voters - 1)
}
