//! Standing for election: asking whether one would win (`PreVote`, KIP-996), and asking for votes.

use std::collections::BTreeSet;

use gregor_messages::{
    VoteRequest,
    vote_request::{PartitionData, TopicData},
};
use gregor_types::{BrokerId, LeaderEpoch, planted::planted};

use crate::{
    Effect, Effects, ElectionState, Endpoint, LogView, METADATA_TOPIC, Now, Outgoing, Quorum, ReplicaKey, Rng, Role,
    VoterSet, effects::Write, peers::Asked, time::Countdown,
};

/// See [`Role::Prospective`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Prospective {
    /// What this node knew of its epoch before; a leader that it lost sight of may still be one.
    pub(crate) election: ElectionState,
    /// Where that leader listens, if it said so itself.
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) votes: Votes,
    pub(crate) timeout: Countdown,
}

/// See [`Role::Candidate`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Candidate {
    pub(crate) epoch: LeaderEpoch,
    /// Whether the vote for itself is on disk, so that it counts, and others may be asked.
    pub(crate) own_vote: bool,
    pub(crate) votes: Votes,
    pub(crate) timeout: Countdown,
}

/// The answers of the other voters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Votes {
    granted: BTreeSet<BrokerId>,
    refused: BTreeSet<BrokerId>,
}

impl Votes {
    pub(crate) fn count(&mut self, voter: BrokerId, granted: bool) {
        // A vote that was given is not taken back.
        if granted {
            self.refused.remove(&voter);
            self.granted.insert(voter);
        } else if !self.granted.contains(&voter) {
            self.refused.insert(voter);
        }
    }

    fn has_answered(&self, voter: BrokerId) -> bool {
        self.granted.contains(&voter) || self.refused.contains(&voter)
    }

    /// Those who gave theirs.
    pub(crate) fn granted(&self) -> impl Iterator<Item = BrokerId> + '_ {
        self.granted.iter().copied()
    }

    /// Whether a majority is won with this node's own vote.
    fn is_won(&self, voters: &VoterSet, local: ReplicaKey) -> bool {
        let of_voters = |votes: &BTreeSet<BrokerId>| votes.iter().filter(|id| voters.voter(**id).is_some()).count();
        let needed = voters.len() / 2 + usize::from(!planted("half-elects"));
        of_voters(&self.granted) + usize::from(voters.contains(local)) >= needed
    }

    /// Whether those who refused leave no majority to be won.
    pub(crate) fn is_lost(&self, voters: &VoterSet) -> bool {
        let refused = self.refused.iter().filter(|id| voters.voter(**id).is_some()).count();
        voters.len() - refused <= voters.len() / 2
    }
}

impl Quorum {
    /// Asks the other voters whether they would vote for this node, without an epoch being raised.
    pub(crate) fn become_prospective(&mut self, now: Now, rng: &mut dyn Rng, effects: &mut Effects) {
        let election = self.election();
        let endpoints = self.leader_endpoints().to_vec();
        self.leave_leadership(now, effects);
        let timeout = Countdown::new(rng.spread(self.config.election_timeout));
        self.role = Role::Prospective(Prospective { election, endpoints, votes: Votes::default(), timeout });
    }

    /// Stands for election in the next epoch. A vote counts, also one's own, once it is on disk.
    pub(crate) fn become_candidate(&mut self, log: &dyn LogView, now: Now, rng: &mut dyn Rng, effects: &mut Effects) {
        let epoch = self.epoch().max(log.end().epoch).next();
        self.leave_leadership(now, effects);
        let timeout = Countdown::new(rng.spread(self.config.election_timeout));
        self.role = Role::Candidate(Candidate { epoch, own_vote: false, votes: Votes::default(), timeout });
        let token = self.writes.begin(Write::OwnVote(epoch));
        effects.push(Effect::Persist { token, state: ElectionState::voted(epoch, self.config.local.key) });
    }

    /// What a prospective node or a candidate does as time passes and answers come.
    pub(crate) fn pursue_election(&mut self, log: &dyn LogView, now: Now, rng: &mut dyn Rng, effects: &mut Effects) {
        let local = self.config.local.key;
        if let Role::Prospective(role) = &self.role {
            if role.votes.is_won(self.history.voters(), local) {
                self.become_candidate(log, now, rng, effects);
            } else if role.votes.is_lost(self.history.voters()) || role.timeout.is_due() {
                self.give_way(rng);
            } else {
                self.ask_for_votes(true, log, effects);
            }
        }
        if let Role::Candidate(role) = &mut self.role {
            if role.own_vote && role.votes.is_won(self.history.voters(), local) {
                let epoch = role.epoch;
                self.lead(epoch, log, now, rng, effects);
            } else if !role.own_vote && role.timeout.is_due() {
                // The vote is still on its way to the disk: there is nobody to ask yet.
                role.timeout = Countdown::new(rng.spread(self.config.election_timeout));
            } else if role.timeout.is_due() {
                self.become_prospective(now, rng, effects);
                self.ask_for_votes(true, log, effects);
            } else if role.own_vote && !role.votes.is_lost(self.history.voters()) {
                // Who has lost waits for the rest of its time, so that others may try.
                self.ask_for_votes(false, log, effects);
            }
        }
    }

    /// An election that would not be won: back to the leader that was known, or to waiting for one. One of which nobody has said where it
    /// listens cannot be followed: it may be a voter since after what this node has of the log.
    fn give_way(&mut self, rng: &mut dyn Rng) {
        let Role::Prospective(role) = &mut self.role else { return };
        let (election, endpoints) = (role.election, std::mem::take(&mut role.endpoints));
        let is_found = |leader| !endpoints.is_empty() || self.history.voters().voter(leader).is_some();
        match election.leader {
            Some(leader) if leader != self.config.local.key.id && is_found(leader) => {
                self.follow(election, leader, endpoints);
            }
            _ => {
                let timeout = self.election_time_left().unwrap_or_else(|| self.new_election_time(rng));
                self.role = Role::Unattached(crate::quorum::Unattached { election, timeout });
            }
        }
    }

    fn ask_for_votes(&mut self, pre_vote: bool, log: &dyn LogView, effects: &mut Effects) {
        let epoch = self.epoch();
        let local = self.config.local.key;
        let (Role::Prospective(Prospective { votes, .. }) | Role::Candidate(Candidate { votes, .. })) = &self.role
        else {
            return;
        };
        let asked = if pre_vote { Asked::PreVote(epoch) } else { Asked::Vote(epoch) };
        for voter in self.history.voters().iter().map(|voter| voter.key) {
            if voter.id == local.id || votes.has_answered(voter.id) || !self.peers.is_free(voter.id) {
                continue;
            }
            self.peers.ask(voter.id, asked);
            let end = log.end();
            let ballot = PartitionData {
                replica_epoch: epoch.value(),
                replica_id: local.id.value(),
                replica_directory_id: local.directory_or_zero(),
                voter_directory_id: voter.directory_or_zero(),
                last_offset_epoch: end.epoch.value(),
                last_offset: end.offset.value(),
                pre_vote,
                ..Default::default()
            };
            let topic = TopicData { topic_name: METADATA_TOPIC.into(), partitions: vec![ballot], ..Default::default() };
            let request = Outgoing::Vote(VoteRequest {
                cluster_id: Some(self.config.cluster_id.clone()),
                voter_id: voter.id.value(),
                topics: vec![topic],
                ..Default::default()
            });
            effects.push(Effect::Send { to: voter.id, request });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Voter;

    fn voters(ids: std::ops::RangeInclusive<i32>) -> VoterSet {
        VoterSet::new(ids.map(|id| Voter {
            key: ReplicaKey { id: BrokerId(id), directory: None },
            endpoints: Vec::new(),
            kraft_versions: (0, 1),
        }))
    }

    fn votes(granted: &[i32], refused: &[i32]) -> Votes {
        let mut votes = Votes::default();
        for (ids, given) in [(refused, false), (granted, true)] {
            for id in ids {
                votes.count(BrokerId(*id), given);
            }
        }
        votes
    }

    #[test]
    fn a_majority_is_more_than_half_of_the_voters_and_only_voters_count() {
        let local = ReplicaKey { id: BrokerId(1), directory: None };
        for (set, granted, won) in [
            (voters(1..=1), &[][..], true),
            (voters(1..=2), &[][..], false),
            (voters(1..=2), &[2][..], true),
            (voters(1..=3), &[3][..], true),
            (voters(1..=4), &[2][..], false),
            (voters(1..=5), &[2, 9][..], false),
            (voters(2..=4), &[2][..], false),
            (voters(2..=4), &[2, 3][..], true),
        ] {
            assert_eq!(votes(granted, &[]).is_won(&set, local), won, "{granted:?} of {}", set.len());
        }
    }

    #[test]
    fn an_election_is_lost_once_no_majority_is_left() {
        for (set, refused, lost) in [
            (voters(1..=3), &[2][..], false),
            (voters(1..=3), &[2, 3][..], true),
            (voters(1..=4), &[2][..], false),
            (voters(1..=4), &[2, 3][..], true),
            (voters(1..=5), &[2, 3][..], false),
        ] {
            assert_eq!(votes(&[], refused).is_lost(&set), lost, "{refused:?} of {}", set.len());
        }
        assert!(!votes(&[2], &[2, 3]).is_lost(&voters(1..=3)), "a vote that was given stays given");
    }
}
