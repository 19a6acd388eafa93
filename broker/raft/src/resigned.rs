//! Giving way: a leader that stops, that has lost sight of the majority, or that starts again and finds that it led.

use std::{cmp::Reverse, collections::BTreeSet};

use gregor_messages::{
    EndQuorumEpochRequest,
    end_quorum_epoch_request::{LeaderEndpoint, PartitionData, ReplicaInfo, TopicData},
};
use gregor_types::{BrokerId, LeaderEpoch};

use crate::{
    Effect, Effects, METADATA_TOPIC, Now, Outgoing, Quorum, ReplicaKey, Rng, Role, peers::Asked, time::Countdown,
};

/// See [`Role::Resigned`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resigned {
    pub(crate) epoch: LeaderEpoch,
    /// Voters in the order in which they should try to lead, best first; known to a leader only.
    pub(crate) successors: Vec<ReplicaKey>,
    /// Those who have heard of it.
    pub(crate) told: BTreeSet<BrokerId>,
    /// Whether this node led in the epoch, so that others are to be told.
    pub(crate) led: bool,
    /// When it takes part again; never once it stops.
    pub(crate) timeout: Option<Countdown>,
}

impl Quorum {
    /// Leads no more in this epoch, and votes in none but a later one. `stops` says that it never takes part again.
    pub(crate) fn resign(&mut self, stops: bool, now: Now, rng: &mut dyn Rng, effects: &mut Effects) {
        let epoch = self.epoch();
        let mut by_progress: Vec<_> = match &self.role {
            Role::Leader(leader) => leader.replicas().filter(|(key, _)| self.voters().contains(*key)).collect(),
            _ => Vec::new(),
        };
        by_progress.sort_by_key(|(_, progress)| Reverse(progress.end));
        let successors = by_progress.into_iter().map(|(key, _)| key).collect();
        let led = matches!(self.role, Role::Leader(_));
        self.leave_leadership(now, effects);
        let timeout = (!stops).then(|| Countdown::new(rng.spread(self.config.election_timeout)));
        self.role = Role::Resigned(Resigned { epoch, successors, told: BTreeSet::new(), led, timeout });
    }

    pub(crate) fn pursue_resignation(&mut self, now: Now, rng: &mut dyn Rng, effects: &mut Effects) {
        let Role::Resigned(role) = &self.role else { return };
        if role.timeout.is_some_and(Countdown::is_due) {
            // It may not lead or vote in this epoch again, as it cannot know what it promised in it.
            let next = crate::ElectionState::unknown_leader(role.epoch.next());
            self.become_unattached(next, now, rng, effects);
            return;
        }
        if role.led {
            self.tell_voters_of_resignation(effects);
        }
    }

    fn tell_voters_of_resignation(&mut self, effects: &mut Effects) {
        let Role::Resigned(role) = &self.role else { return };
        let local = &self.config.local;
        let candidates = role.successors.iter().map(|key| ReplicaInfo {
            candidate_id: key.id.value(),
            candidate_directory_id: key.directory_or_zero(),
            ..Default::default()
        });
        let partition = PartitionData {
            leader_id: local.key.id.value(),
            leader_epoch: role.epoch.value(),
            preferred_successors: role.successors.iter().map(|key| key.id.value()).collect(),
            preferred_candidates: candidates.collect(),
            ..Default::default()
        };
        let endpoints = local.endpoints.iter().map(|endpoint| LeaderEndpoint {
            name: endpoint.name.clone(),
            host: endpoint.host.clone(),
            port: endpoint.port,
            ..Default::default()
        });
        let topic = TopicData { topic_name: METADATA_TOPIC.into(), partitions: vec![partition], ..Default::default() };
        let request = EndQuorumEpochRequest {
            cluster_id: Some(self.config.cluster_id.clone()),
            topics: vec![topic],
            leader_endpoints: endpoints.collect(),
            ..Default::default()
        };
        for voter in self.history.voters().iter().map(|voter| voter.key.id) {
            if voter != local.key.id && !role.told.contains(&voter) && self.peers.is_free(voter) {
                self.peers.ask(voter, Asked::End(role.epoch));
                effects.push(Effect::Send { to: voter, request: Outgoing::EndQuorumEpoch(request.clone()) });
            }
        }
    }
}
