//! `AddRaftVoter`, `RemoveRaftVoter` and `UpdateRaftVoter`: the checks of the requests that change who votes (KIP-853).

use gregor_messages::{
    AddRaftVoterRequest, AddRaftVoterResponse, RemoveRaftVoterRequest, RemoveRaftVoterResponse, UpdateRaftVoterRequest,
    UpdateRaftVoterResponse, update_raft_voter_response::CurrentLeader,
};
use gregor_types::{BrokerId, ErrorCode, KString, LeaderEpoch, Uuid};

use crate::{
    Effects, Endpoint, Now, Origin, Quorum, ReplicaKey, Reply, RequestId, Role, Voter,
    change::{Refusal, refusal},
};

impl Quorum {
    /// Answers at once only where the change cannot be begun.
    pub(crate) fn on_add_voter(&mut self, id: RequestId, request: &AddRaftVoterRequest, effects: &mut Effects) {
        let endpoints = request.listeners.iter().map(|listener| Endpoint {
            name: listener.name.clone(),
            host: listener.host.clone(),
            port: listener.port,
        });
        let key = (request.voter_id, request.voter_directory_id);
        let begun = self
            .check_change_request(request.cluster_id.as_ref(), self.epoch(), key)
            .and_then(|key| Ok(Voter { key, endpoints: self.default_first(endpoints)?, kraft_versions: (0, 0) }))
            .and_then(|voter| self.begin_adding(id, voter, request.ack_when_committed, effects));
        if let Err(Refusal { error, message }) = begun {
            let error_message = Some(message.into());
            let answer = AddRaftVoterResponse { error_code: error.code(), error_message, ..Default::default() };
            effects.reply(None, id, Reply::AddRaftVoter(answer));
        }
    }

    /// Answers at once only where the change cannot be begun.
    pub(crate) fn on_remove_voter(
        &mut self,
        id: RequestId,
        request: &RemoveRaftVoterRequest,
        now: Now,
        effects: &mut Effects,
    ) {
        let key = (request.voter_id, request.voter_directory_id);
        let begun = self
            .check_change_request(request.cluster_id.as_ref(), self.epoch(), key)
            .and_then(|key| self.begin_removing(id, key, now, effects));
        if let Err(Refusal { error, message }) = begun {
            let error_message = Some(message.into());
            let answer = RemoveRaftVoterResponse { error_code: error.code(), error_message, ..Default::default() };
            effects.reply(None, id, Reply::RemoveRaftVoter(answer));
        }
    }

    /// A voter says where it listens and which versions it runs. It is not made to wait until that is committed.
    pub(crate) fn on_update_voter(
        &mut self,
        origin: &Origin,
        request: &UpdateRaftVoterRequest,
        now: Now,
        effects: &mut Effects,
    ) -> UpdateRaftVoterResponse {
        let error = self.update_voter(request, now, effects).err().map_or(ErrorCode::None, |refusal| refusal.error);
        let mut current_leader = CurrentLeader {
            leader_id: self.leader_or_none(),
            leader_epoch: self.epoch().value(),
            ..Default::default()
        };
        if let Some((_, endpoint)) = self.leader_endpoint(&origin.listener) {
            (current_leader.host, current_leader.port) = (endpoint.host, i32::from(endpoint.port));
        }
        UpdateRaftVoterResponse { error_code: error.code(), current_leader, ..Default::default() }
    }

    fn update_voter(
        &mut self,
        request: &UpdateRaftVoterRequest,
        now: Now,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let epoch = LeaderEpoch(request.current_leader_epoch);
        let key = (request.voter_id, request.voter_directory_id);
        let key = self.check_change_request(request.cluster_id.as_ref(), epoch, key)?;
        let endpoints = request.listeners.iter().map(|listener| Endpoint {
            name: listener.name.clone(),
            host: listener.host.clone(),
            port: listener.port,
        });
        let endpoints = self.default_first(endpoints)?;
        let feature = &request.k_raft_version_feature;
        let (min, max) = (feature.min_supported_version, feature.max_supported_version);
        if min < 0 || max < min {
            return Err(refusal(ErrorCode::InvalidRequest, "a range of versions has a lowest and a highest"));
        }
        let version = self.history.kraft_version();
        self.check_no_change()?;
        if version >= 1 {
            self.check_voters_committed()?;
        }
        if !(min..=max).contains(&version) {
            return Err(refusal(ErrorCode::InvalidRequest, "the voter does not run the finalized kraft.version"));
        }
        let voter = Voter { key, endpoints, kraft_versions: (min, max) };
        if version == 0 {
            return self.note_voter(voter);
        }
        if self.voters().voter(key.id).is_none_or(|known| known.key != key) {
            return Err(refusal(ErrorCode::VoterNotFound, "there is no such voter"));
        }
        let voters = self.voters().with(voter);
        self.append_voters(&voters, now, effects);
        self.note_update(key);
        Ok(())
    }

    /// Who asks for a change, in the order of Kafka's checks: the cluster, whether this node leads, the voter.
    fn check_change_request(
        &self,
        cluster_id: Option<&KString>,
        epoch: LeaderEpoch,
        (id, directory): (i32, Uuid),
    ) -> Result<ReplicaKey, Refusal> {
        if !self.is_our_cluster(cluster_id) {
            return Err(refusal(ErrorCode::InconsistentClusterId, "the request is meant for another cluster"));
        }
        self.check_leader(epoch).map_err(|error| refusal(error, "this node does not lead that epoch of the quorum"))?;
        if id < 0 || directory == Uuid::ZERO {
            return Err(refusal(ErrorCode::InvalidRequest, "a voter is named by its id and its directory's id"));
        }
        Ok(ReplicaKey::new(BrokerId(id), directory))
    }

    /// A voter's endpoints with that of the quorum's own listener first, by which it is reached.
    fn default_first(&self, endpoints: impl Iterator<Item = Endpoint>) -> Result<Vec<Endpoint>, Refusal> {
        let mut endpoints: Vec<Endpoint> = endpoints.collect();
        // Without listeners of its own (in a test) a node knows no name that others should have.
        let Some(default) = self.config.local.endpoints.first() else { return Ok(endpoints) };
        let Some(place) = endpoints.iter().position(|endpoint| endpoint.name == default.name) else {
            return Err(refusal(ErrorCode::InvalidRequest, "the voter has no endpoint of the quorum's listener"));
        };
        endpoints.swap(0, place);
        Ok(endpoints)
    }

    /// An update shows that the voter follows (`UpdateVoterHandler.storeUpdatedVoters`).
    fn note_update(&mut self, key: ReplicaKey) {
        let voter = self.voters().voter(key.id).filter(|_| self.voters().contains(key)).map(|voter| voter.key);
        if let (Role::Leader(leader), Some(voter)) = (&mut self.role, voter) {
            leader.on_snapshot_fetched(voter);
        }
    }

    /// With `kraft.version` 0 the voters stay as configured; what they say of themselves is kept for an upgrade, which needs it.
    fn note_voter(&mut self, voter: Voter) -> Result<(), Refusal> {
        let key = voter.key;
        let Role::Leader(leader) = &mut self.role else { unreachable!("the caller checked") };
        let Some(known) = &leader.volatile_voters else {
            return Err(refusal(ErrorCode::RequestTimedOut, "kraft.version is being upgraded"));
        };
        if known.voter(key.id).is_none() {
            return Err(refusal(ErrorCode::VoterNotFound, "there is no such voter"));
        }
        leader.volatile_voters = Some(known.with(voter));
        self.note_update(key);
        Ok(())
    }
}
