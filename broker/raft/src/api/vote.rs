//! Vote: whether this node votes for a candidate, and whether it would (`PreVote`, KIP-996).

use gregor_messages::{
    VoteRequest, VoteResponse,
    vote_request::PartitionData as Ballot,
    vote_response::{PartitionData, TopicData},
};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Offset, planted::planted};

use super::{Origin, VERSION_OF_ENDPOINTS, is_metadata};
use crate::{
    Effect, Effects, ElectionState, LogView, Now, OffsetAndEpoch, Quorum, ReplicaKey, Rng, Role, Token, effects::Write,
};

impl Quorum {
    pub(crate) fn on_vote(
        &mut self,
        origin: &Origin,
        request: &VoteRequest,
        log: &dyn LogView,
        now: Now,
        rng: &mut dyn Rng,
        effects: &mut Effects,
    ) -> (VoteResponse, Option<Token>) {
        let failed = |error: ErrorCode| (VoteResponse { error_code: error.code(), ..Default::default() }, None);
        if !self.is_our_cluster(request.cluster_id.as_ref()) {
            return failed(ErrorCode::InconsistentClusterId);
        }
        let [topic] = request.topics.as_slice() else { return failed(ErrorCode::InvalidRequest) };
        let [ballot] = topic.partitions.as_slice() else { return failed(ErrorCode::InvalidRequest) };
        if !is_metadata(&topic.topic_name, ballot.partition_index) {
            return failed(ErrorCode::InvalidRequest);
        }
        let mut after = None;
        let verdict = self.vote(BrokerId(request.voter_id), ballot, log, now, rng, effects, &mut after);
        let data = PartitionData {
            partition_index: ballot.partition_index,
            error_code: verdict.err().unwrap_or(ErrorCode::None).code(),
            leader_id: self.leader_or_none(),
            leader_epoch: self.epoch().value(),
            vote_granted: verdict.unwrap_or(false),
            ..Default::default()
        };
        let topic = TopicData { topic_name: topic.topic_name.clone(), partitions: vec![data], ..Default::default() };
        let node_endpoints = self.leader_nodes(origin, VERSION_OF_ENDPOINTS);
        (VoteResponse { topics: vec![topic], node_endpoints, ..Default::default() }, after)
    }

    #[allow(clippy::too_many_arguments, reason = "the context of a step, passed on once")]
    fn vote(
        &mut self,
        addressee: BrokerId,
        ballot: &Ballot,
        log: &dyn LogView,
        now: Now,
        rng: &mut dyn Rng,
        effects: &mut Effects,
        after: &mut Option<Token>,
    ) -> Result<bool, ErrorCode> {
        let epoch = LeaderEpoch(ballot.replica_epoch);
        let theirs = OffsetAndEpoch::new(Offset(ballot.last_offset), LeaderEpoch(ballot.last_offset_epoch));
        // A pre-vote comes in the candidate's present epoch, a vote in the next one.
        let impossible = if ballot.pre_vote { theirs.epoch > epoch } else { theirs.epoch >= epoch };
        if impossible || theirs.offset < Offset::ZERO || theirs.epoch < LeaderEpoch(0) || ballot.replica_id < 0 {
            return Err(ErrorCode::InvalidRequest);
        }
        if epoch < self.epoch() {
            return Err(ErrorCode::FencedLeaderEpoch);
        }
        if epoch > self.epoch() {
            *after = Some(self.become_unattached(ElectionState::unknown_leader(epoch), now, rng, effects));
        }
        self.check_addressee(addressee, ballot.voter_directory_id)?;
        // The candidate need not be in our voter set: we may not have read yet that it was added (KIP-853).
        let candidate = ReplicaKey::new(BrokerId(ballot.replica_id), ballot.replica_directory_id);
        let up_to_date = theirs >= log.end() || planted("shorter-log-elected");
        let granted = self.would_vote(candidate, ballot.pre_vote, up_to_date);
        if granted && !ballot.pre_vote {
            self.give_vote(candidate, rng, effects, after);
        }
        Ok(granted)
    }

    fn would_vote(&self, candidate: ReplicaKey, pre_vote: bool, up_to_date: bool) -> bool {
        let election = match &self.role {
            Role::Leader(_) => return false,
            // A leader that answers is as good as any (KIP-996): who cannot reach it must not bring it down.
            Role::Follower(role) => return pre_vote && up_to_date && !role.has_fetched,
            _ if pre_vote => return up_to_date,
            Role::Candidate(_) | Role::Resigned(_) => return false,
            Role::Unattached(role) => role.election,
            Role::Prospective(role) => role.election,
        };
        match (election.voted, election.leader) {
            (Some(voted), _) => {
                let is_same = voted.directory.is_none() || voted.directory == candidate.directory;
                (voted.id == candidate.id && is_same) || planted("two-votes-in-an-epoch")
            }
            (None, Some(_)) => false,
            (None, None) => up_to_date,
        }
    }

    /// A vote leaves only once it is on disk; also the answer to a repeated request waits for it. Whom it is given to has at least as good a
    /// chance as this node, and gets the time for it (`QuorumState.unattachedAddVotedState`).
    fn give_vote(
        &mut self,
        candidate: ReplicaKey,
        rng: &mut dyn Rng,
        effects: &mut Effects,
        after: &mut Option<Token>,
    ) {
        let time = self.new_election_time(rng);
        let (election, timeout) = match &mut self.role {
            Role::Unattached(role) => (&mut role.election, &mut role.timeout),
            Role::Prospective(role) => (&mut role.election, &mut role.timeout),
            _ => unreachable!("only a node that knows no leader votes"),
        };
        if election.voted.is_none() {
            *election = ElectionState::voted(election.epoch, candidate);
            *timeout = time;
        }
        let token = self.writes.begin(Write::Election);
        effects.push(Effect::Persist { token, state: *election });
        *after = (!planted("vote-before-persist")).then_some(token);
    }
}
