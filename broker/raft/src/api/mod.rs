//! The requests of KRaft that a node answers, each with the checks and in the order of Apache's `KafkaRaftClient`.

mod describe;
mod epoch;
mod fetch;
mod fetch_snapshot;
mod leader_node;
mod vote;
mod voters;

use gregor_messages::{
    AddRaftVoterRequest, AddRaftVoterResponse, BeginQuorumEpochRequest, BeginQuorumEpochResponse,
    DescribeQuorumRequest, DescribeQuorumResponse, EndQuorumEpochRequest, EndQuorumEpochResponse, FetchRequest,
    FetchResponse, FetchSnapshotRequest, FetchSnapshotResponse, RemoveRaftVoterRequest, RemoveRaftVoterResponse,
    UpdateRaftVoterRequest, UpdateRaftVoterResponse, VoteRequest, VoteResponse,
};
use gregor_types::{BrokerId, ErrorCode, KString, LeaderEpoch, Offset, Uuid};

use crate::{Effects, Endpoint, LogView, METADATA_TOPIC, Now, Quorum, RequestId, Rng, Role, SnapshotId};

pub(crate) use fetch::FetchPlan;
pub use leader_node::Origin;

/// From this version on an answer says where the leader listens that it names; Fetch has one of its own.
const VERSION_OF_ENDPOINTS: i16 = 1;

/// A request of another node or of a tool, decoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Records of the metadata log.
    Fetch(FetchRequest),
    /// A piece of a snapshot.
    FetchSnapshot(FetchSnapshotRequest),
    /// A vote, or whether one would be given.
    Vote(VoteRequest),
    /// A leader says that it leads.
    BeginQuorumEpoch(BeginQuorumEpochRequest),
    /// A leader says that it leads no more.
    EndQuorumEpoch(EndQuorumEpochRequest),
    /// Who leads, who votes, who watches, and how far each is.
    DescribeQuorum(DescribeQuorumRequest),
    /// A replica shall vote.
    AddRaftVoter(AddRaftVoterRequest),
    /// A replica shall not vote any more.
    RemoveRaftVoter(RemoveRaftVoterRequest),
    /// A voter says where it listens and which versions it runs.
    UpdateRaftVoter(UpdateRaftVoterRequest),
}

/// A request to another voter; its answer is a [`Response`](crate::Response).
#[derive(Debug, Clone, PartialEq)]
pub enum Outgoing {
    /// See [`Request::Vote`].
    Vote(VoteRequest),
    /// See [`Request::BeginQuorumEpoch`].
    BeginQuorumEpoch(BeginQuorumEpochRequest),
    /// See [`Request::EndQuorumEpoch`].
    EndQuorumEpoch(EndQuorumEpochRequest),
    /// See [`Request::Fetch`].
    Fetch(FetchRequest),
    /// See [`Request::FetchSnapshot`].
    FetchSnapshot(FetchSnapshotRequest),
    /// Which versions the node runs, at this address: it is not among the voters yet.
    ApiVersions(Endpoint),
    /// See [`Request::AddRaftVoter`].
    AddRaftVoter(AddRaftVoterRequest),
    /// See [`Request::RemoveRaftVoter`].
    RemoveRaftVoter(RemoveRaftVoterRequest),
    /// See [`Request::UpdateRaftVoter`].
    UpdateRaftVoter(UpdateRaftVoterRequest),
}

/// The answer to the request of the same name.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Its records, if any, are still to be read: see [`Effect::Reply`](crate::Effect::Reply).
    Fetch(FetchResponse),
    /// Its bytes are still to be read from the snapshot.
    FetchSnapshot(FetchSnapshotResponse, Option<SnapshotRead>),
    /// See [`Request::Vote`].
    Vote(VoteResponse),
    /// See [`Request::BeginQuorumEpoch`].
    BeginQuorumEpoch(BeginQuorumEpochResponse),
    /// See [`Request::EndQuorumEpoch`].
    EndQuorumEpoch(EndQuorumEpochResponse),
    /// See [`Request::DescribeQuorum`].
    DescribeQuorum(DescribeQuorumResponse),
    /// See [`Request::AddRaftVoter`].
    AddRaftVoter(AddRaftVoterResponse),
    /// See [`Request::RemoveRaftVoter`].
    RemoveRaftVoter(RemoveRaftVoterResponse),
    /// See [`Request::UpdateRaftVoter`].
    UpdateRaftVoter(UpdateRaftVoterResponse),
}

/// Records to read for an answer: whole batches from `from` on, the first one whatever its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogRead {
    /// The first offset.
    pub from: Offset,
    /// The most bytes.
    pub max_bytes: u32,
}

/// A piece of a snapshot to read for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SnapshotRead {
    /// Which snapshot.
    pub id: SnapshotId,
    /// From which byte.
    pub position: u64,
    /// The most bytes.
    pub max_bytes: u32,
}

impl Quorum {
    #[allow(clippy::too_many_arguments, reason = "the context of a step, passed on once")]
    pub(crate) fn on_request(
        &mut self,
        id: RequestId,
        origin: &Origin,
        request: Request,
        log: &dyn LogView,
        now: Now,
        rng: &mut dyn Rng,
        effects: &mut Effects,
    ) {
        match request {
            Request::Fetch(request) => self.on_fetch(id, origin, &request, log, now, effects),
            Request::FetchSnapshot(request) => {
                let (response, read) = self.on_fetch_snapshot(origin, &request, log);
                effects.reply(None, id, Reply::FetchSnapshot(response, read));
            }
            Request::Vote(request) => {
                let (response, after) = self.on_vote(origin, &request, log, now, rng, effects);
                effects.reply(after, id, Reply::Vote(response));
            }
            Request::BeginQuorumEpoch(request) => {
                let (response, after) = self.on_begin_epoch(origin, &request, now, rng, effects);
                effects.reply(after, id, Reply::BeginQuorumEpoch(response));
            }
            Request::EndQuorumEpoch(request) => {
                let (response, after) = self.on_end_epoch(origin, &request, now, rng, effects);
                effects.reply(after, id, Reply::EndQuorumEpoch(response));
            }
            Request::DescribeQuorum(request) => {
                let response = self.on_describe(&request, now);
                effects.reply(None, id, Reply::DescribeQuorum(response));
            }
            Request::AddRaftVoter(request) => self.on_add_voter(id, &request, effects),
            Request::RemoveRaftVoter(request) => self.on_remove_voter(id, &request, now, effects),
            Request::UpdateRaftVoter(request) => {
                let response = self.on_update_voter(origin, &request, now, effects);
                effects.reply(None, id, Reply::UpdateRaftVoter(response));
            }
        }
    }

    /// Kafka accepts a request that names no cluster.
    fn is_our_cluster(&self, cluster_id: Option<&KString>) -> bool {
        cluster_id.is_none_or(|id| *id == self.config.cluster_id)
    }

    /// Whether this node can answer what only a leader of that epoch can.
    fn check_leader(&self, epoch: LeaderEpoch) -> Result<(), ErrorCode> {
        match epoch.cmp(&self.epoch()) {
            std::cmp::Ordering::Less => Err(ErrorCode::FencedLeaderEpoch),
            std::cmp::Ordering::Greater => Err(ErrorCode::UnknownLeaderEpoch),
            std::cmp::Ordering::Equal if matches!(self.role, Role::Leader(_)) => Ok(()),
            std::cmp::Ordering::Equal => Err(ErrorCode::NotLeaderOrFollower),
        }
    }

    /// Whether a request is meant for this voter, where it says for which it is: a node on another disk is another one (KIP-853).
    fn check_addressee(&self, node: BrokerId, directory: Uuid) -> Result<(), ErrorCode> {
        let local = self.config.local.key;
        let other_node = node.value() >= 0 && node != local.id;
        let other_directory = directory != Uuid::ZERO && Some(directory) != local.directory;
        if other_node || other_directory { Err(ErrorCode::InvalidVoterKey) } else { Ok(()) }
    }

    /// The leader as it stands on the wire. Naming oneself without leading would stop an Apache node for good.
    fn leader_or_none(&self) -> i32 {
        self.leader_id().map_or(-1, i32::from)
    }
}

/// Whether a request means the metadata, the only partition of the quorum.
fn is_metadata(topic: &KString, partition: i32) -> bool {
    *topic == METADATA_TOPIC && partition == 0
}
