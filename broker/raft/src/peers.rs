//! The requests that are under way to other voters: one for each node, and a pause after one that failed.

use std::collections::BTreeMap;

use gregor_types::{BrokerId, LeaderEpoch};

use crate::{Nanos, time::Countdown};

/// What a node was asked, so that its answer is taken for nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Asked {
    /// Whether it would vote for this node, in this node's epoch.
    PreVote(LeaderEpoch),
    /// Its vote in an epoch.
    Vote(LeaderEpoch),
    /// To follow this node in an epoch.
    Begin(LeaderEpoch),
    /// To look for another leader than this node.
    End(LeaderEpoch),
    /// Records of the leader of an epoch.
    Fetch(LeaderEpoch),
    /// A piece of a snapshot of the leader of an epoch.
    FetchSnapshot(LeaderEpoch),
    /// What it runs, by the leader of an epoch.
    ApiVersions(LeaderEpoch),
    /// To add this node to the voters, or to remove it with an old directory; of the leader of an epoch.
    ChangeVoters(LeaderEpoch),
    /// To take note of where this voter listens; of the leader of an epoch.
    UpdateVoter(LeaderEpoch),
}

/// See the module. A node that is not in it may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Peers(BTreeMap<BrokerId, Peer>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Peer {
    InFlight(Asked),
    Pause(Countdown),
}

impl Peers {
    pub(crate) fn pass(&mut self, elapsed: Nanos) {
        self.0.retain(|_, peer| match peer {
            Peer::InFlight(_) => true,
            Peer::Pause(pause) => {
                pause.pass(elapsed);
                !pause.is_due()
            }
        });
    }

    pub(crate) fn is_free(&self, node: BrokerId) -> bool {
        !self.0.contains_key(&node)
    }

    /// Whether anybody but this node is being asked for records.
    pub(crate) fn fetches_from_other_than(&self, leader: Option<BrokerId>) -> bool {
        let is_fetch = |peer: &Peer| matches!(peer, Peer::InFlight(Asked::Fetch(_)));
        self.0.iter().any(|(node, peer)| is_fetch(peer) && Some(*node) != leader)
    }

    /// When the next pause ends. Only of use to whoever has something to send.
    pub(crate) fn next_due(&self) -> Option<Nanos> {
        let pauses = self.0.values().filter_map(|peer| match peer {
            Peer::Pause(pause) => Some(pause.remaining()),
            Peer::InFlight(_) => None,
        });
        pauses.min()
    }

    pub(crate) fn ask(&mut self, node: BrokerId, asked: Asked) {
        self.0.insert(node, Peer::InFlight(asked));
    }

    /// The answer has come, or will not: what was asked, if anything was.
    pub(crate) fn end(&mut self, node: BrokerId) -> Option<Asked> {
        match self.0.get(&node).copied() {
            Some(Peer::InFlight(asked)) => {
                self.0.remove(&node);
                Some(asked)
            }
            _ => None,
        }
    }

    pub(crate) fn pause(&mut self, node: BrokerId, pause: Nanos) {
        self.0.insert(node, Peer::Pause(Countdown::new(pause)));
    }
}
