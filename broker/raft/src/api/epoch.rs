//! BeginQuorumEpoch and EndQuorumEpoch: a leader says that it leads, or that it does not any more (KIP-595, KIP-853).

use gregor_messages::{
    BeginQuorumEpochRequest, BeginQuorumEpochResponse, EndQuorumEpochRequest, EndQuorumEpochResponse,
    begin_quorum_epoch_response, end_quorum_epoch_response,
};
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, Uuid};

use super::{Origin, VERSION_OF_ENDPOINTS, is_metadata};
use crate::{
    Effects, Endpoint, Nanos, Now, Quorum, ReplicaKey, Rng, Role, Token, candidate::Prospective, quorum::Unattached,
    time::Countdown,
};

impl Quorum {
    pub(crate) fn on_begin_epoch(
        &mut self,
        origin: &Origin,
        request: &BeginQuorumEpochRequest,
        now: Now,
        rng: &mut dyn Rng,
        effects: &mut Effects,
    ) -> (BeginQuorumEpochResponse, Option<Token>) {
        let failed =
            |error: ErrorCode| (BeginQuorumEpochResponse { error_code: error.code(), ..Default::default() }, None);
        if !self.is_our_cluster(request.cluster_id.as_ref()) {
            return failed(ErrorCode::InconsistentClusterId);
        }
        let [topic] = request.topics.as_slice() else { return failed(ErrorCode::InvalidRequest) };
        let [partition] = topic.partitions.as_slice() else { return failed(ErrorCode::InvalidRequest) };
        if !is_metadata(&topic.topic_name, partition.partition_index) {
            return failed(ErrorCode::InvalidRequest);
        }
        let mut after = None;
        let endpoints = request.leader_endpoints.iter().map(|endpoint| Endpoint {
            name: endpoint.name.clone(),
            host: endpoint.host.clone(),
            port: endpoint.port,
        });
        let (leader, epoch) = (BrokerId(partition.leader_id), LeaderEpoch(partition.leader_epoch));
        let error = match self.hear_of_leader(leader, epoch, endpoints.collect(), now, rng, effects) {
            Err(error) => error,
            Ok(token) => {
                after = token;
                let addressee = self.check_addressee(BrokerId(request.voter_id), partition.voter_directory_id);
                addressee.err().unwrap_or(ErrorCode::None)
            }
        };
        let data = begin_quorum_epoch_response::PartitionData {
            partition_index: partition.partition_index,
            error_code: error.code(),
            leader_id: self.leader_or_none(),
            leader_epoch: self.epoch().value(),
            ..Default::default()
        };
        let topic = begin_quorum_epoch_response::TopicData {
            topic_name: topic.topic_name.clone(),
            partitions: vec![data],
            ..Default::default()
        };
        let node_endpoints = self.leader_nodes(origin, VERSION_OF_ENDPOINTS);
        (BeginQuorumEpochResponse { topics: vec![topic], node_endpoints, ..Default::default() }, after)
    }

    pub(crate) fn on_end_epoch(
        &mut self,
        origin: &Origin,
        request: &EndQuorumEpochRequest,
        now: Now,
        rng: &mut dyn Rng,
        effects: &mut Effects,
    ) -> (EndQuorumEpochResponse, Option<Token>) {
        let failed =
            |error: ErrorCode| (EndQuorumEpochResponse { error_code: error.code(), ..Default::default() }, None);
        if !self.is_our_cluster(request.cluster_id.as_ref()) {
            return failed(ErrorCode::InconsistentClusterId);
        }
        let [topic] = request.topics.as_slice() else { return failed(ErrorCode::InvalidRequest) };
        let [partition] = topic.partitions.as_slice() else { return failed(ErrorCode::InvalidRequest) };
        if !is_metadata(&topic.topic_name, partition.partition_index) {
            return failed(ErrorCode::InvalidRequest);
        }
        let mut after = None;
        let (leader, epoch) = (BrokerId(partition.leader_id), LeaderEpoch(partition.leader_epoch));
        let error = match self.hear_of_leader(leader, epoch, Vec::new(), now, rng, effects) {
            Err(error) => error,
            Ok(token) => {
                after = token;
                let by_key: Vec<_> = partition
                    .preferred_candidates
                    .iter()
                    .map(|info| ReplicaKey::new(BrokerId(info.candidate_id), info.candidate_directory_id))
                    .collect();
                let by_id = partition.preferred_successors.iter().map(|id| ReplicaKey::new(BrokerId(*id), Uuid::ZERO));
                let candidates = if by_key.is_empty() { by_id.collect() } else { by_key };
                self.look_for_another_leader(leader, &candidates);
                ErrorCode::None
            }
        };
        let data = end_quorum_epoch_response::PartitionData {
            partition_index: partition.partition_index,
            error_code: error.code(),
            leader_id: self.leader_or_none(),
            leader_epoch: self.epoch().value(),
            ..Default::default()
        };
        let topic = end_quorum_epoch_response::TopicData {
            topic_name: topic.topic_name.clone(),
            partitions: vec![data],
            ..Default::default()
        };
        let node_endpoints = self.leader_nodes(origin, VERSION_OF_ENDPOINTS);
        (EndQuorumEpochResponse { topics: vec![topic], node_endpoints, ..Default::default() }, after)
    }

    /// Follows whoever says that it leads, or led, an epoch. Two leaders of one epoch there cannot be: then nothing changes.
    fn hear_of_leader(
        &mut self,
        leader: BrokerId,
        epoch: LeaderEpoch,
        endpoints: Vec<Endpoint>,
        now: Now,
        rng: &mut dyn Rng,
        effects: &mut Effects,
    ) -> Result<Option<Token>, ErrorCode> {
        if epoch < self.epoch() {
            return Err(ErrorCode::FencedLeaderEpoch);
        }
        if leader.value() < 0 || leader == self.config.local.key.id {
            return Err(ErrorCode::InvalidRequest);
        }
        if epoch > self.epoch() || self.may_follow() {
            return Ok(Some(self.transition(epoch, Some(leader), endpoints, now, rng, effects)));
        }
        match &mut self.role {
            Role::Follower(role) if role.leader == leader => {
                if !endpoints.is_empty() {
                    role.endpoints = endpoints;
                }
                Ok(None)
            }
            // It had lost sight of this leader.
            Role::Unattached(Unattached { election, .. }) | Role::Prospective(Prospective { election, .. })
                if election.leader == Some(leader) =>
            {
                let election = *election;
                self.follow(election, leader, endpoints);
                Ok(None)
            }
            _ => Err(ErrorCode::InvalidRequest),
        }
    }

    /// The leader gives way: the one that it would have first stands at once, the others leave it time. Nobody keeps its vote back for that leader
    /// any more.
    fn look_for_another_leader(&mut self, leader: BrokerId, candidates: &[ReplicaKey]) {
        let local = self.config.local.key;
        let place = candidates.iter().position(|key| {
            key.id == local.id && key.directory.is_none_or(|directory| local.directory == Some(directory))
        });
        let wait = place.map_or(self.config.election_backoff_max, |place| self.backoff(place, candidates.len()));
        if let Role::Follower(role) = &mut self.role
            && role.leader == leader
        {
            role.timeout = Countdown::new(wait);
            role.has_fetched = false;
        }
    }

    /// Twice as long for each further place, up to half of the longest for the last (`KafkaRaftClient.strictExponentialElectionBackoffMs`).
    fn backoff(&self, place: usize, successors: usize) -> Nanos {
        let halvings = match place {
            0 => return 0,
            place => u32::try_from(successors - place).unwrap_or(u32::MAX),
        };
        self.config.election_backoff_max.checked_shr(halvings).unwrap_or(0)
    }
}
