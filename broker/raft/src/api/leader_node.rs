//! The leader as answers name it: to each who asks the endpoint of the listener on which it asked, as that is one it can reach.

use gregor_messages::{
    begin_quorum_epoch_response, end_quorum_epoch_response, fetch_response, fetch_snapshot_response, vote_response,
};
use gregor_types::{BrokerId, KString};

use crate::{Endpoint, Quorum};

/// How a request came, as far as its answer depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The version that it came in.
    pub version: i16,
    /// The name of the listener that it came to; empty where this node itself asks.
    pub listener: KString,
}

impl Origin {
    /// A request of this node to itself.
    pub fn here(version: i16) -> Self {
        Self { version, listener: KString::default() }
    }
}

/// The leader in the list of nodes that goes with an answer.
pub(super) struct LeaderNode {
    id: BrokerId,
    endpoint: Endpoint,
}

impl Quorum {
    /// The nodes of an answer that can name any from version `since` on: the leader, if this node knows it and where it listens.
    pub(super) fn leader_nodes<N: From<LeaderNode>>(&self, origin: &Origin, since: i16) -> Vec<N> {
        let endpoint = self.leader_endpoint(&origin.listener).filter(|_| origin.version >= since);
        endpoint.map(|(id, endpoint)| LeaderNode { id, endpoint }.into()).into_iter().collect()
    }

    /// The leader and where it listens, as far as this node knows: on the listener of this name (`Endpoints.address`), else on the one by which
    /// this node would reach it. Apache leaves it out then, and its nodes end that hear of a leader and not of where it is.
    pub(super) fn leader_endpoint(&self, listener: &str) -> Option<(BrokerId, Endpoint)> {
        let leader = self.leader_id()?;
        let local = &self.config.local;
        let in_set = self.voters().voter(leader).map_or(&[][..], |voter| &voter.endpoints[..]);
        let said = if leader == local.key.id { &local.endpoints[..] } else { self.leader_endpoints() };
        let known = || in_set.iter().chain(said);
        let default = local.endpoints.first().map_or("", |endpoint| endpoint.name.as_str());
        let named = |name: &str| known().find(|endpoint| endpoint.name == name);
        let endpoint = named(listener).or_else(|| named(default)).or_else(|| known().next());
        Some((leader, endpoint?.clone()))
    }
}

/// Each answer has a type of its own for the same.
macro_rules! names_the_leader {
    ($($answer:ident),*) => {
        $(impl From<LeaderNode> for $answer::NodeEndpoint {
            fn from(LeaderNode { id, endpoint }: LeaderNode) -> Self {
                Self { node_id: id.value(), host: endpoint.host, port: endpoint.port.into(), ..Default::default() }
            }
        })*
    };
}

names_the_leader!(
    begin_quorum_epoch_response,
    end_quorum_epoch_response,
    fetch_response,
    fetch_snapshot_response,
    vote_response
);
