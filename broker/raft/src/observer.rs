//! What a node does beside fetching: who does not vote looks for a leader, and asks to become a voter where it may (KIP-853, `auto.join`);
//! a voter tells the leader where it listens and which versions it runs.

use gregor_messages::{
    AddRaftVoterRequest, RemoveRaftVoterRequest, UpdateRaftVoterRequest, add_raft_voter_request,
    update_raft_voter_request::{self, KRaftVersionFeature},
};
use gregor_types::{BrokerId, ErrorCode};

use crate::{Effect, Effects, LogView, Outgoing, Quorum, Response, Rng, Role, peers::Asked, time::Countdown};

impl Quorum {
    /// The node that stands for a bootstrap server, by its place in the list. Nodes have ids from 0 on; -1 means none.
    pub fn bootstrap_node(index: u16) -> BrokerId {
        BrokerId(-2 - i32::from(index))
    }

    /// Nobody tells who does not vote who leads, so it asks one node after the other for records; each answers who leads.
    pub(crate) fn look_for_leader(&mut self, log: &dyn LogView, rng: &mut dyn Rng, effects: &mut Effects) {
        let leader = self.leader_id();
        if !self.writes.log_is_durable() || self.peers.fetches_from_other_than(leader) {
            return;
        }
        let bootstrap = (0..self.config.bootstrap_servers).map(Self::bootstrap_node);
        let voters = self.history.voters().iter().map(|voter| voter.key.id);
        let local = self.config.local.key.id;
        let candidates: Vec<BrokerId> = bootstrap
            .chain(voters)
            .filter(|id| *id != local && Some(*id) != leader && self.peers.is_free(*id))
            .collect();
        if !candidates.is_empty() {
            let chosen = candidates[(rng.next_u64() % candidates.len() as u64) as usize];
            self.send_fetch(chosen, log, effects);
        }
    }

    /// Asks the leader for what is not records, when it is time to. Returns whether it did.
    pub(crate) fn ask_for_change(&mut self, effects: &mut Effects) -> bool {
        let Role::Follower(role) = &self.role else { return false };
        if !role.update_voter.is_due() {
            return false;
        }
        let (leader, epoch, has_told) = (role.leader, role.election.epoch, role.has_told_leader);
        let version = self.history.kraft_version();
        let local = &self.config.local;
        let known = self.voters().voter(local.key.id);
        let (asked, request) = if self.is_voter() {
            let is_needed = if version >= 1 { known.is_some_and(|known| !known.is_same_as(local)) } else { !has_told };
            if !is_needed || local.endpoints.is_empty() && version >= 1 {
                self.put_off_change();
                return false;
            }
            (Asked::UpdateVoter(epoch), Outgoing::UpdateRaftVoter(self.update_request(epoch.value())))
        } else if version >= 1 && self.config.auto_join {
            match known {
                // This node on an old disk votes: that one has to go first.
                Some(old) => (
                    Asked::ChangeVoters(epoch),
                    Outgoing::RemoveRaftVoter(RemoveRaftVoterRequest {
                        cluster_id: Some(self.config.cluster_id.clone()),
                        voter_id: old.key.id.value(),
                        voter_directory_id: old.key.directory_or_zero(),
                        ..Default::default()
                    }),
                ),
                None => (Asked::ChangeVoters(epoch), Outgoing::AddRaftVoter(self.add_request())),
            }
        } else {
            self.put_off_change();
            return false;
        };
        self.put_off_change();
        self.peers.ask(leader, asked);
        effects.push(Effect::Send { to: leader, request });
        true
    }

    fn put_off_change(&mut self) {
        let period = self.config.fetch_timeout;
        if let Role::Follower(role) = &mut self.role {
            role.update_voter = Countdown::new(period);
        }
    }

    fn update_request(&self, epoch: i32) -> UpdateRaftVoterRequest {
        let local = &self.config.local;
        let listener = |endpoint: &crate::Endpoint| update_raft_voter_request::Listener {
            name: endpoint.name.clone(),
            host: endpoint.host.clone(),
            port: endpoint.port,
            ..Default::default()
        };
        UpdateRaftVoterRequest {
            cluster_id: Some(self.config.cluster_id.clone()),
            current_leader_epoch: epoch,
            voter_id: local.key.id.value(),
            voter_directory_id: local.key.directory_or_zero(),
            listeners: local.endpoints.iter().map(listener).collect(),
            k_raft_version_feature: KRaftVersionFeature {
                min_supported_version: local.kraft_versions.0,
                max_supported_version: local.kraft_versions.1,
                ..Default::default()
            },
            ..Default::default()
        }
    }

    /// This node does not wait until it is committed: it would not fetch meanwhile, and so hinder just that (KIP-1186).
    fn add_request(&self) -> AddRaftVoterRequest {
        let local = &self.config.local;
        let listener = |endpoint: &crate::Endpoint| add_raft_voter_request::Listener {
            name: endpoint.name.clone(),
            host: endpoint.host.clone(),
            port: endpoint.port,
            ..Default::default()
        };
        AddRaftVoterRequest {
            cluster_id: Some(self.config.cluster_id.clone()),
            timeout_ms: (self.config.request_timeout / 1_000_000).min(i32::MAX as u64) as i32,
            voter_id: local.key.id.value(),
            voter_directory_id: local.key.directory_or_zero(),
            listeners: local.endpoints.iter().map(listener).collect(),
            ack_when_committed: false,
            ..Default::default()
        }
    }

    /// The leader has answered whether it changes the voters. Returns whether it could say anything; it is asked again in a while either way.
    pub(crate) fn on_change_answered(response: Option<&Response>) -> bool {
        let error = match response {
            Some(Response::AddRaftVoter(response)) => response.error_code,
            Some(Response::RemoveRaftVoter(response)) => response.error_code,
            _ => return false,
        };
        matches!(
            ErrorCode::from(error),
            ErrorCode::None | ErrorCode::RequestTimedOut | ErrorCode::DuplicateVoter | ErrorCode::VoterNotFound
        )
    }
}
