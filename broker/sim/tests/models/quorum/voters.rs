//! What must hold while the voters of a quorum change (KIP-853).

use gregor_raft::Role;
use gregor_types::BrokerId;

use super::{Action, Event, NODES, World};

impl World {
    /// The same, after a node that had got no answer has asked again.
    pub fn with_retry(mut self, id: BrokerId) -> Self {
        self.left.retries += 1;
        self.happen(Action { event: Event::Retry(id), crashes: false });
        self.settled()
    }

    /// Any two sets of voters that follow each other in a log are one voter apart at most, so their majorities share one.
    pub fn majorities_meet(&self) -> bool {
        self.members.iter().all(|member| {
            let first = NODES[..self.first_voters].to_vec();
            let later = member.log.batches.iter().flat_map(|batch| batch.voters.clone());
            let sets: Vec<Vec<BrokerId>> = [first].into_iter().chain(later).collect();
            sets.windows(2).all(|pair| {
                let differs = |id: &&BrokerId| pair[0].contains(id) != pair[1].contains(id);
                NODES.iter().filter(differs).count() <= 1
            })
        })
    }

    /// No log has two changes of the voters that are not committed.
    pub fn changes_come_one_by_one(&self) -> bool {
        let committed = self.past.committed.last().map_or(0, |batch| batch.end);
        self.members.iter().all(|member| {
            let open = member.log.batches.iter().filter(|batch| batch.base >= committed);
            open.map(|batch| batch.voters.len()).sum::<usize>() <= 1
        })
    }

    /// Whether a node gives way that is no voter any more.
    pub fn has_left(&self) -> bool {
        NODES.iter().zip(&self.members).any(|(id, member)| {
            matches!(member.quorum.role(), Role::Resigned(_)) && member.quorum.history().voters().voter(*id).is_none()
        })
    }

    /// Whether a set of voters is committed in which this node is, or is not.
    pub fn has_committed_voter(&self, id: BrokerId, votes: bool) -> bool {
        let mut sets = self.past.committed.iter().flat_map(|batch| &batch.voters);
        sets.any(|voters| voters.contains(&id) == votes)
    }
}
