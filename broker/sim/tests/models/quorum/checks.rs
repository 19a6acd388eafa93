//! What must hold of a quorum whatever happens, and what has to happen for that to mean anything.

use std::collections::BTreeMap;

use gregor_raft::Role;
use gregor_types::{BrokerId, LeaderEpoch, Offset};

use super::{
    NODES, World,
    log::{Log, Stored},
    member::index,
    network::Ballot,
};

/// What has happened, as nobody in the world knows all of it.
#[derive(Debug, Clone, Default, PartialEq, Hash)]
pub struct Past {
    /// Who was elected.
    leaders: BTreeMap<LeaderEpoch, BrokerId>,
    /// For whom each node was heard to vote, itself included.
    votes: BTreeMap<(BrokerId, LeaderEpoch), BrokerId>,
    /// What some node knew to be committed.
    pub(super) committed: Vec<Stored>,
    /// The epoch in which each of that was known first.
    known_in: Vec<LeaderEpoch>,
    pub broken: Broken,
    pub seen: Seen,
}

/// What must never come to pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Broken {
    pub two_leaders: bool,
    pub two_votes: bool,
    /// A node takes something else for committed than another, or than it has.
    pub committed_differs: bool,
    /// A node cuts off what it knows to be committed.
    pub committed_cut: bool,
    pub commit_went_back: bool,
    /// A leader is elected without what is committed.
    pub leader_lacks: bool,
}

/// What comes to pass now and then, and leaves no trace elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Seen {
    /// A node cut its log.
    pub cut: bool,
    /// A change of the voters was in what was cut.
    pub change_cut: bool,
}

impl Past {
    pub fn vote(&mut self, voter: BrokerId, ballot: Ballot) {
        let vote = self.votes.entry((voter, ballot.epoch)).or_insert(ballot.candidate);
        self.broken.two_votes |= *vote != ballot.candidate;
    }

    /// In how many epochs somebody led.
    pub fn epochs_led(&self) -> usize {
        self.leaders.len()
    }

    /// Whether a node has voted for itself in an epoch in which another has, too.
    pub fn rivals(&self) -> bool {
        let stands = |id: BrokerId, epoch| self.votes.get(&(id, epoch)) == Some(&id);
        self.votes.keys().any(|(_, epoch)| NODES.iter().filter(|id| stands(**id, *epoch)).count() > 1)
    }

    /// In how many epochs what is committed was appended.
    pub fn epochs_committed(&self) -> usize {
        let mut epochs: Vec<LeaderEpoch> = self.committed.iter().map(|batch| batch.epoch).collect();
        epochs.dedup();
        epochs.len()
    }
}

impl World {
    pub(super) fn crown(&mut self, id: BrokerId, epoch: LeaderEpoch) {
        let past = &mut self.past;
        past.broken.two_leaders |= past.leaders.insert(epoch, id).is_some();
        // Who wins an election of an epoch that is over, as the last vote was late, knows nothing of what was committed since.
        let known = past.known_in.iter().rposition(|known_in| *known_in < epoch).map_or(0, |last| last + 1);
        past.broken.leader_lacks |= !self.members[index(id)].log.batches.starts_with(&past.committed[..known]);
    }

    /// A node knows that everything before `end` is committed.
    pub(super) fn commit(&mut self, id: BrokerId, end: Offset) {
        let member = &self.members[index(id)];
        let batches = &member.log.batches;
        let known = &batches[..batches.partition_point(|batch| batch.end <= end.value())];
        let past = &mut self.past;
        let shared = known.len().min(past.committed.len());
        let agrees = known[..shared] == past.committed[..shared];
        let has_it = known.last().map_or(0, |batch| batch.end) == end.value();
        past.broken.committed_differs |= !agrees || !has_it;
        past.committed.extend_from_slice(&known[shared..]);
        past.known_in.resize(past.committed.len(), member.quorum.epoch());
    }

    /// A node is about to cut its log.
    pub(super) fn note_cut(&mut self, id: BrokerId, end: Offset) {
        let member = &self.members[index(id)];
        let cuts_change = member.log.batches.iter().any(|batch| batch.base >= end.value() && !batch.voters.is_empty());
        let cuts_committed = member.quorum.high_watermark().is_some_and(|committed| committed > end);
        self.past.seen.cut = true;
        self.past.seen.change_cut |= cuts_change;
        self.past.broken.committed_cut |= cuts_committed;
    }

    /// Whom a node was heard to vote for its disk remembers, until a later epoch.
    pub fn votes_are_kept(&self) -> bool {
        self.past.votes.iter().all(|((voter, epoch), candidate)| {
            let kept = &self.members[index(*voter)].election;
            let names = kept.voted.map(|voted| voted.id) == Some(*candidate) || kept.leader == Some(*candidate);
            kept.epoch > *epoch || (kept.epoch == *epoch && names)
        })
    }

    /// What is committed is on the disks of more than half of the voters, who are those of the beginning.
    pub fn committed_is_on_a_majority(&self) -> bool {
        let voters = &self.members[..self.first_voters];
        let with = voters.iter().filter(|member| member.log.has_durably(&self.past.committed)).count();
        with > voters.len() / 2
    }

    /// Two logs that have the same epoch at an offset are the same up to there.
    pub fn logs_match(&self) -> bool {
        let matches = |one: &Log, other: &Log| {
            let is_in_both = |(place, batch): &(usize, &Stored)| {
                let there = other.batches.get(*place);
                there.is_some_and(|there| there.base == batch.base && there.epoch == batch.epoch)
            };
            let last = one.batches.iter().enumerate().rev().find(is_in_both);
            last.is_none_or(|(place, _)| one.batches[..=place] == other.batches[..=place])
        };
        let [one, other, third] = &self.members;
        matches(&one.log, &other.log) && matches(&one.log, &third.log) && matches(&other.log, &third.log)
    }

    pub fn leaders(&self) -> usize {
        self.members.iter().filter(|member| matches!(member.quorum.role(), Role::Leader(_))).count()
    }

    /// Whether a node gives way.
    pub fn has_resigned(&self) -> bool {
        self.members.iter().any(|member| matches!(member.quorum.role(), Role::Resigned(_)))
    }

    /// Whether all nodes have the same log, and know all of it to be committed.
    pub fn is_level(&self) -> bool {
        let end = self.members[0].log.end_offset();
        self.members.iter().all(|member| {
            member.log.end_offset() == end && member.quorum.high_watermark() == Some(Offset(end)) && end > 0
        })
    }
}
