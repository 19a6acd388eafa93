//! The answers of other voters to what this node asked them.

use gregor_messages::{
    AddRaftVoterResponse, ApiVersionsResponse, BeginQuorumEpochResponse, EndQuorumEpochResponse, FetchResponse,
    FetchSnapshotResponse, RemoveRaftVoterResponse, UpdateRaftVoterResponse, VoteResponse,
};
use gregor_types::{BrokerId, ErrorCode, KString, LeaderEpoch};

use crate::{
    Effects, Endpoint, LogView, Now, Quorum, Rng, Role, candidate::Prospective, follower::Follower, peers::Asked,
    quorum::Unattached, time::Countdown,
};

/// The answer to the [`Outgoing`](crate::Outgoing) request of the same name.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// A vote, or whether one would be given; `UNSUPPORTED_VERSION` where the voter cannot be asked the latter.
    Vote(VoteResponse),
    /// Whether the voter follows.
    BeginQuorumEpoch(BeginQuorumEpochResponse),
    /// Whether the voter has heard.
    EndQuorumEpoch(EndQuorumEpochResponse),
    /// Records.
    Fetch(FetchResponse),
    /// A piece of a snapshot.
    FetchSnapshot(FetchSnapshotResponse),
    /// What the node runs.
    ApiVersions(ApiVersionsResponse),
    /// Whether the replica will vote.
    AddRaftVoter(AddRaftVoterResponse),
    /// Whether the replica votes no more.
    RemoveRaftVoter(RemoveRaftVoterResponse),
    /// Whether the leader has taken note.
    UpdateRaftVoter(UpdateRaftVoterResponse),
}

/// What every answer says: whether it went well, and who leads as far as the other knows.
struct Common {
    error: ErrorCode,
    leader: Option<BrokerId>,
    epoch: LeaderEpoch,
    /// Where that leader listens, where the answer says so.
    endpoint: Option<Endpoint>,
}

impl Response {
    fn common(&self) -> Option<Common> {
        let at = |id: i32, host: &KString, port: i32| (id, host.clone(), port);
        let mut address = None;
        let (whole, of_partition) = match self {
            Self::Vote(response) => {
                let data = response.topics.first().and_then(|topic| topic.partitions.first());
                address = response.node_endpoints.first().map(|node| at(node.node_id, &node.host, node.port.into()));
                (response.error_code, data.map(|data| (data.error_code, data.leader_id, data.leader_epoch)))
            }
            Self::BeginQuorumEpoch(response) => {
                let data = response.topics.first().and_then(|topic| topic.partitions.first());
                address = response.node_endpoints.first().map(|node| at(node.node_id, &node.host, node.port.into()));
                (response.error_code, data.map(|data| (data.error_code, data.leader_id, data.leader_epoch)))
            }
            Self::EndQuorumEpoch(response) => {
                let data = response.topics.first().and_then(|topic| topic.partitions.first());
                address = response.node_endpoints.first().map(|node| at(node.node_id, &node.host, node.port.into()));
                (response.error_code, data.map(|data| (data.error_code, data.leader_id, data.leader_epoch)))
            }
            Self::Fetch(response) => {
                let data = response.responses.first().and_then(|topic| topic.partitions.first());
                let said =
                    data.map(|data| (data.error_code, data.current_leader.leader_id, data.current_leader.leader_epoch));
                address = response.node_endpoints.first().map(|node| at(node.node_id, &node.host, node.port));
                (response.error_code, said)
            }
            Self::UpdateRaftVoter(response) => {
                let leader = &response.current_leader;
                (0, Some((response.error_code, leader.leader_id, leader.leader_epoch)))
            }
            // These say nothing of the leader.
            Self::ApiVersions(_) | Self::AddRaftVoter(_) | Self::RemoveRaftVoter(_) => (0, None),
            Self::FetchSnapshot(response) => {
                let data = response.topics.first().and_then(|topic| topic.partitions.first());
                let said =
                    data.map(|data| (data.error_code, data.current_leader.leader_id, data.current_leader.leader_epoch));
                address = response.node_endpoints.first().map(|node| at(node.node_id, &node.host, node.port.into()));
                (response.error_code, said)
            }
        };
        if whole != 0 {
            return None;
        }
        let (error, leader, epoch) = of_partition?;
        let endpoint = address.filter(|(id, ..)| *id == leader).and_then(|(_, host, port)| {
            // The name of the listener is not said: it is that of the quorum, whatever this node calls it.
            Some(Endpoint { name: KString::default(), host, port: u16::try_from(port).ok()? })
        });
        let leader = (leader >= 0).then_some(BrokerId(leader));
        Some(Common { error: ErrorCode::from_code(error)?, leader, epoch: LeaderEpoch(epoch), endpoint })
    }
}

impl Quorum {
    /// An answer, or `None` where none came.
    pub(crate) fn on_response(
        &mut self,
        from: BrokerId,
        response: Option<&Response>,
        log: &dyn LogView,
        now: Now,
        rng: &mut dyn Rng,
        effects: &mut Effects,
    ) {
        let Some(asked) = self.peers.end(from) else { return };
        match asked {
            Asked::ApiVersions(epoch) => return self.on_versions(from, epoch, response, now, effects),
            Asked::ChangeVoters(_) => {
                if !Self::on_change_answered(response) {
                    self.peers.pause(from, self.config.retry_backoff);
                }
                return;
            }
            Asked::PreVote(epoch) if response.is_some_and(knows_no_pre_vote) => {
                // KIP-996: it would never say whether it would vote, so it is asked for its vote, as before there were such questions.
                if matches!(self.role, Role::Prospective(_)) && epoch == self.epoch() {
                    self.become_candidate(log, now, rng, effects);
                }
                return;
            }
            _ => {}
        }
        let understood = response.and_then(|response| Some((response, response.common()?)));
        let Some((response, common)) = understood else {
            self.peers.pause(from, self.config.retry_backoff);
            return;
        };
        self.learn(&common, now, rng, effects);
        if common.error != ErrorCode::None && matches!(asked, Asked::FetchSnapshot(_)) {
            self.give_up_download();
        }
        // A leader of an earlier Kafka does not know an update in kraft.version 0: it is not told again.
        let is_ok = common.error == ErrorCode::None
            || (common.error == ErrorCode::UnsupportedVersion && matches!(asked, Asked::UpdateVoter(_)));
        let fails = !is_ok || !self.take_answer(from, asked, response, log, effects);
        if fails {
            self.peers.pause(from, self.config.retry_backoff);
        }
    }

    /// Learns of a newer epoch, or of who leads the present one.
    fn learn(&mut self, common: &Common, now: Now, rng: &mut dyn Rng, effects: &mut Effects) {
        let Common { leader, epoch, .. } = *common;
        let endpoints = common.endpoint.iter().cloned().collect();
        let leader = leader.filter(|leader| *leader != self.config.local.key.id);
        if epoch > self.epoch() || (epoch == self.epoch() && leader.is_some() && self.may_follow()) {
            self.transition(epoch, leader, endpoints, now, rng, effects);
        } else if epoch == self.epoch() && leader.is_some() && leader == self.leader_id() {
            self.find_leader(endpoints);
        }
    }

    /// Somebody says where the present leader listens. A node that was started anew knows only who it is, and may have lost, or never had, the
    /// records by which it became a voter.
    fn find_leader(&mut self, endpoints: Vec<Endpoint>) {
        if endpoints.is_empty() {
            return;
        }
        match &mut self.role {
            Role::Follower(Follower { endpoints: known, .. })
            | Role::Prospective(Prospective { endpoints: known, .. })
                if known.is_empty() =>
            {
                *known = endpoints;
            }
            Role::Unattached(Unattached { election, .. }) => {
                let election = *election;
                if let Some(leader) = election.leader {
                    self.follow(election, leader, endpoints);
                }
            }
            _ => {}
        }
    }

    /// Whether the present epoch's leader is unknown to this node, and could be another. Who lost sight of a leader goes on to find out
    /// whether the others have, too, whatever they say of it.
    pub(crate) fn may_follow(&self) -> bool {
        let is_open = matches!(&self.role, Role::Unattached(_) | Role::Prospective(_) | Role::Candidate(_));
        is_open && self.leader_id().is_none()
    }

    /// Takes an answer for what was asked, in the role and epoch in which it was. Returns whether it was of use.
    fn take_answer(
        &mut self,
        from: BrokerId,
        asked: Asked,
        response: &Response,
        log: &dyn LogView,
        effects: &mut Effects,
    ) -> bool {
        let (present, silence_max) = (self.epoch(), self.silence_max());
        match (asked, response, &mut self.role) {
            (Asked::PreVote(epoch), Response::Vote(vote), Role::Prospective(role)) if epoch == present => {
                role.votes.count(from, is_granted(vote));
            }
            (Asked::Vote(epoch), Response::Vote(vote), Role::Candidate(role)) if epoch == present => {
                role.votes.count(from, is_granted(vote));
            }
            (Asked::Begin(epoch), _, Role::Leader(leader)) if epoch == present => {
                leader.followed_by.insert(from);
            }
            (Asked::End(epoch), _, Role::Resigned(role)) if epoch == present => {
                role.told.insert(from);
            }
            (Asked::Fetch(epoch), Response::Fetch(fetched), Role::Follower(role))
                if epoch == present && role.leader == from =>
            {
                role.timeout = Countdown::new(silence_max);
                return self.on_fetched(fetched, log, effects);
            }
            (Asked::FetchSnapshot(epoch), Response::FetchSnapshot(piece), Role::Follower(role))
                if epoch == present && role.leader == from =>
            {
                role.timeout = Countdown::new(silence_max);
                return self.on_piece(piece, effects);
            }
            (Asked::UpdateVoter(epoch), _, Role::Follower(role)) if epoch == present && role.leader == from => {
                role.timeout = Countdown::new(silence_max);
                role.has_told_leader = true;
            }
            // What was asked in another role or epoch.
            _ => {}
        }
        true
    }
}

/// A voter of before KIP-996; the driver says so in its stead.
fn knows_no_pre_vote(response: &Response) -> bool {
    matches!(response, Response::Vote(vote) if ErrorCode::from(vote.error_code) == ErrorCode::UnsupportedVersion)
}

fn is_granted(vote: &VoteResponse) -> bool {
    vote.topics.first().and_then(|topic| topic.partitions.first()).is_some_and(|data| data.vote_granted)
}
