//! An administrator of the quorum: takes voters out, has the disk of some of them replaced, and puts controllers in.
//!
//! Where the quorum is static (`kraft.version` 0) it has that changed first. Each change is asked for until it is known to be made. Now and
//! then a voter is to be put in while another is to be taken out; never are two to be taken out, so that never more than one voter is less
//! than there seem to be.

use gregor_controller::ControllerResponse as Decision;
use gregor_messages::{AddRaftVoterRequest, RemoveRaftVoterRequest, add_raft_voter_request::Listener as AddedListener};
use gregor_metadata::KRAFT_VERSION_FEATURE;
use gregor_raft::Request;
use gregor_server::control::ControllerResponse;
use gregor_types::{BrokerId, DirectoryId, ErrorCode};

use super::{Client, UPGRADE, View, finalize};
use crate::cluster::{
    letters::{Answer, CallId, Question},
    machine::{CLUSTER, Identity},
};

/// Fewer voters than this stay for no time at all.
const VOTERS_MIN: usize = 2;
/// How likely a static quorum is made dynamic each time it is thought of.
const UPGRADES_IN_HUNDRED: u64 = 15;

/// See the module's documentation.
#[derive(Debug)]
pub(in crate::cluster) struct VoterAdmin {
    /// Who votes, as far as it knows.
    voters: Vec<BrokerId>,
    /// Whether they cannot be changed yet.
    is_static: bool,
    /// Whether the first ones stand in every node's configuration.
    is_configured: bool,
    /// What is to be made.
    changes: Vec<Pursued>,
}

#[derive(Debug)]
struct Pursued {
    change: Change,
    asking: Option<CallId>,
}

#[derive(Debug, Clone)]
enum Change {
    /// To `kraft.version` 1.
    Upgrade,
    Add(Identity),
    Remove(BrokerId, DirectoryId),
}

impl VoterAdmin {
    /// Knows the first voters, and whether the quorum is static.
    pub(in crate::cluster) const fn new(voters: Vec<BrokerId>, is_static: bool) -> Self {
        Self { voters, is_static, is_configured: is_static, changes: Vec::new() }
    }

    fn next(&self, view: &mut View<'_>) -> Option<Change> {
        if self.is_static {
            return (self.changes.is_empty() && view.random.chance(UPGRADES_IN_HUNDRED)).then_some(Change::Upgrade);
        }
        let running = view.machines.values().filter(|machine| machine.process.is_some());
        let others: Vec<Identity> = running
            .map(|machine| &machine.identity)
            .filter(|identity| identity.roles.is_controller() && !self.voters.contains(&identity.id))
            .filter(|identity| self.changes.iter().all(|pursued| pursued.change.id() != Some(identity.id)))
            .cloned()
            .collect();
        let adds = !others.is_empty() && (view.random.chance(60) || self.voters.len() <= VOTERS_MIN);
        if adds {
            return Some(Change::Add(view.random.pick(&others).clone()));
        }
        let removes = self.changes.iter().any(|pursued| matches!(pursued.change, Change::Remove(..)));
        if view.healing || self.voters.len() <= VOTERS_MIN || removes {
            return None;
        }
        let id = *view.random.pick(&self.voters);
        Some(Change::Remove(id, view.machines.get(&id)?.identity.directory))
    }

    fn made(&mut self, change: &Change, view: &mut View<'_>) {
        match change {
            Change::Upgrade => {
                view.ledger.count("quorum made dynamic");
                self.is_static = false;
            }
            Change::Add(identity) => {
                view.ledger.count("voter added");
                self.voters.push(identity.id);
            }
            Change::Remove(id, _) => {
                view.ledger.count("voter removed");
                self.voters.retain(|voter| voter != id);
                // Only what votes no more may lose what it has voted. Where the first voters stand in every configuration, an empty disk makes one of
                // them.
                if !self.is_configured && !view.healing && view.random.chance(60) {
                    view.replaces = Some(*id);
                }
            }
        }
    }
}

impl Change {
    const fn id(&self) -> Option<BrokerId> {
        match self {
            Self::Upgrade => None,
            Self::Add(identity) => Some(identity.id),
            Self::Remove(id, _) => Some(*id),
        }
    }

    fn question(&self) -> Question {
        let request = match self {
            Self::Upgrade => return Question::Decide(finalize(KRAFT_VERSION_FEATURE, 1, UPGRADE)),
            Self::Add(identity) => {
                let listeners = identity.controller_endpoints().into_iter().map(|endpoint| AddedListener {
                    name: endpoint.name,
                    host: endpoint.host,
                    port: endpoint.port,
                    ..Default::default()
                });
                Request::AddRaftVoter(AddRaftVoterRequest {
                    cluster_id: Some(CLUSTER.into()),
                    timeout_ms: 3_000,
                    voter_id: identity.id.value(),
                    voter_directory_id: identity.directory,
                    listeners: listeners.collect(),
                    ack_when_committed: true,
                    ..Default::default()
                })
            }
            Self::Remove(id, directory) => Request::RemoveRaftVoter(RemoveRaftVoterRequest {
                cluster_id: Some(CLUSTER.into()),
                voter_id: id.value(),
                voter_directory_id: *directory,
                ..Default::default()
            }),
        };
        Question::Quorum(request)
    }
}

impl Client for VoterAdmin {
    fn wake(&mut self, view: &mut View<'_>) {
        view.wake_in(4_000);
        let Some(controller) = view.controller else { return };
        let wanted = match self.changes.len() {
            0 if view.random.chance(30) => 2,
            0 => 1,
            _ => 0,
        };
        for _ in 0..wanted {
            let change = self.next(view);
            self.changes.extend(change.map(|change| Pursued { change, asking: None }));
        }
        for pursued in self.changes.iter_mut().filter(|pursued| pursued.asking.is_none()) {
            pursued.asking = Some(view.ask(controller, pursued.change.question()));
        }
    }

    fn hear(&mut self, call: CallId, answer: Option<Answer>, view: &mut View<'_>) {
        let Some(place) = self.changes.iter().position(|pursued| pursued.asking == Some(call)) else { return };
        let code = match &answer {
            Some(Answer::Control(ControllerResponse::Controller(Decision::UpdateFeatures(response)))) => {
                Some(response.error_code)
            }
            Some(Answer::Control(ControllerResponse::AddRaftVoter(response))) => Some(response.error_code),
            Some(Answer::Control(ControllerResponse::RemoveRaftVoter(response))) => Some(response.error_code),
            _ => None,
        };
        let pursued = self.changes.remove(place);
        match (&pursued.change, code.map(ErrorCode::from)) {
            (_, Some(ErrorCode::None))
            | (Change::Add(_), Some(ErrorCode::DuplicateVoter))
            | (Change::Remove(..), Some(ErrorCode::VoterNotFound)) => self.made(&pursued.change, view),
            _ => self.changes.push(Pursued { asking: None, ..pursued }),
        }
    }
}
