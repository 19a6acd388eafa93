//! What nodes ask of each other and clients of nodes, what they answer, and how the quorum's part of it reads on either side.
//!
//! The world carries it (`wire.rs`); nothing here knows of time or of whether anything arrives.

use bytes::Bytes;
use gregor_controller::{ControllerRequest as Decided, ControllerResponse as Decision};
use gregor_messages::{
    AlterPartitionRequest, ApiVersionsResponse, VoteRequest, api_versions_response::SupportedFeatureKey,
};
use gregor_metadata::{KRAFT_VERSION_FEATURE, ServedFeature};
use gregor_node::{LifecycleInput, Proposed};
use gregor_raft::{Outgoing, Request, Response};
use gregor_replication::{FetchPlan, FetcherId, FollowedPartition, OffsetLookUp, PartitionAnswer};
use gregor_server::control::{ControllerRequest, ControllerResponse, Heard, NodeRequest, OfBroker};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset};

use crate::network::{Batches, ClientId};

/// Names a question until it is answered or given up.
pub(super) type CallId = u64;

/// Who sends or receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Party {
    Node(BrokerId),
    Client(ClientId),
}

impl Party {
    /// Another number than anybody else's.
    pub(super) const fn number(self) -> u64 {
        match self {
            Self::Node(id) => id.value() as u64,
            Self::Client(client) => 1 << 32 | client as u64,
        }
    }
}

/// Where an answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Return {
    pub(super) call: CallId,
    pub(super) to: Party,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(super) enum Question {
    /// By another node's control thread.
    Control(NodeRequest),
    /// By a follower.
    Fetch(FollowerQuestion),
    /// By a follower: where the leader's logs begin or end.
    LookUp(Vec<OffsetLookUp>),
    /// By a leader, of the active controller.
    AlterPartition(AlterPartitionRequest),
    /// By a client or a broker, of the active controller.
    Decide(Decided),
    /// By a client, of the quorum's leader.
    Quorum(Request),
    /// By a client, of a partition's leader; with acks=all.
    Produce(FollowedPartition, Batches),
    /// By a client, of a partition's leader: what is committed from an offset on.
    Read(FollowedPartition, Offset),
    /// By a client, of a partition's leader: everything before an offset is to go.
    Delete(FollowedPartition, Offset),
}

/// A follower's fetch.
#[derive(Debug, Clone)]
pub(super) struct FollowerQuestion {
    pub(super) replica: BrokerId,
    pub(super) broker_epoch: BrokerEpoch,
    pub(super) plan: FetchPlan,
}

/// Each partition's part of an answer to a follower, with its records.
pub(super) type Parts = Vec<(FollowedPartition, PartitionAnswer, Bytes)>;

/// What is answered.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// Of a control thread.
    Control(ControllerResponse),
    /// Which versions a node runs.
    Versions,
    /// To a follower: what is wrong with its session, if anything is, or which that is, and what is new in it.
    Fetched(Result<(i32, Parts), ErrorCode>),
    /// In the order of the question.
    LookedUp(Vec<Result<Offset, ErrorCode>>),
    /// Where the batch lies, and in which leadership it was committed.
    Produced(Offset, LeaderEpoch),
    /// A leader finds something wrong with a batch or its place in its producer's order.
    Wrong(ErrorCode, LeaderEpoch),
    /// Batches, and the high watermark.
    Read(Batches, Offset),
    /// The leader's log begins where it was asked to, or later.
    Deleted,
    /// No.
    Refused(ErrorCode),
}

/// Why a node asks: what it does with the answer.
#[derive(Debug, Clone)]
pub(super) enum Purpose {
    /// For its control thread, which calls the other node so.
    Control(BrokerId, Wanted),
    /// For a fetcher.
    Fetch(FetcherId, u64),
    /// For a fetcher.
    LookUp(FetcherId, Vec<OffsetLookUp>),
    /// For partitions that it leads.
    Isr(Vec<Proposed<()>>),
    /// For the replicas of which the controller is to know on which disk they are.
    Directories,
}

/// The partition of a proposal.
pub(super) fn partition_of(proposed: &Proposed<()>) -> FollowedPartition {
    FollowedPartition { topic_id: proposed.id.0, partition: proposed.id.1 }
}

/// What a control thread wants of another node, as far as the answer's way depends on it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    Quorum,
    /// A vote. None if it only asks whether it would get one.
    Vote(Option<Ballot>),
    Controller,
    Registration,
    Heartbeat,
}

/// A vote that a candidate asks for: in which epoch, and for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ballot {
    pub(super) epoch: LeaderEpoch,
    pub(super) candidate: BrokerId,
}

impl Ballot {
    pub(super) fn of(request: &VoteRequest) -> Option<Self> {
        let ballot = request.topics.first()?.partitions.first().filter(|ballot| !ballot.pre_vote)?;
        Some(Self { epoch: LeaderEpoch(ballot.replica_epoch), candidate: BrokerId(ballot.replica_id) })
    }
}

impl Wanted {
    pub(super) fn by(request: &NodeRequest) -> Self {
        match request {
            NodeRequest::Quorum(Outgoing::Vote(request)) => Self::Vote(Ballot::of(request)),
            NodeRequest::Quorum(_) => Self::Quorum,
            NodeRequest::Controller(_) => Self::Controller,
            NodeRequest::Broker(OfBroker::Registration(_)) => Self::Registration,
            NodeRequest::Broker(OfBroker::Heartbeat(_)) => Self::Heartbeat,
        }
    }

    /// What is heard where nobody answers, or with something else.
    const fn unanswered(self, asked: BrokerId) -> Heard {
        match self {
            Self::Quorum | Self::Vote(_) => Heard::Response { from: asked, response: None },
            Self::Controller => Heard::Registered(None),
            Self::Registration => Heard::Broker(LifecycleInput::RegistrationAnswered(None)),
            Self::Heartbeat => Heard::Broker(LifecycleInput::HeartbeatAnswered(None)),
        }
    }
}

impl Question {
    /// What it is, in a word.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Control(NodeRequest::Quorum(request)) => match request {
                Outgoing::Vote(_) => "Vote",
                Outgoing::BeginQuorumEpoch(_) => "BeginQuorumEpoch",
                Outgoing::EndQuorumEpoch(_) => "EndQuorumEpoch",
                Outgoing::Fetch(_) => "Fetch of metadata",
                Outgoing::FetchSnapshot(_) => "FetchSnapshot",
                Outgoing::ApiVersions(_) => "ApiVersions",
                Outgoing::AddRaftVoter(_) => "AddRaftVoter",
                Outgoing::RemoveRaftVoter(_) => "RemoveRaftVoter",
                Outgoing::UpdateRaftVoter(_) => "UpdateRaftVoter",
            },
            Self::Control(NodeRequest::Controller(_)) => "ControllerRegistration",
            Self::Control(NodeRequest::Broker(OfBroker::Registration(_))) => "BrokerRegistration",
            Self::Control(NodeRequest::Broker(OfBroker::Heartbeat(_))) => "BrokerHeartbeat",
            Self::Fetch(_) => "Fetch",
            Self::LookUp(_) => "ListOffsets",
            Self::AlterPartition(_) => "AlterPartition",
            Self::Decide(_) => "a decision",
            Self::Quorum(_) => "a change of voters",
            Self::Produce(..) => "Produce",
            Self::Read(..) => "a read",
            Self::Delete(..) => "DeleteRecords",
        }
    }

    /// Whether it asks for a vote.
    pub(super) const fn is_vote(&self) -> bool {
        matches!(self, Self::Control(NodeRequest::Quorum(Outgoing::Vote(_))))
    }

    /// Whether it goes to a broker's listener, which opens once the broker may serve, and not to a controller's.
    pub(super) const fn is_for_brokers(&self) -> bool {
        matches!(self, Self::Fetch(_) | Self::LookUp(_) | Self::Produce(..) | Self::Read(..) | Self::Delete(..))
    }

    /// Whether a second copy may arrive later than the first. A connection hands over what it carries once; of what the protocol lets
    /// a sender send again unasked, and of what it numbers, a copy does no harm. A registration makes a broker anew.
    pub(super) const fn may_be_doubled(&self) -> bool {
        match self {
            Self::Control(NodeRequest::Quorum(request)) => {
                !matches!(request, Outgoing::AddRaftVoter(_) | Outgoing::RemoveRaftVoter(_))
            }
            Self::Control(NodeRequest::Broker(OfBroker::Heartbeat(_)))
            | Self::AlterPartition(_)
            | Self::Produce(..)
            | Self::Delete(..) => true,
            Self::Control(NodeRequest::Controller(_) | NodeRequest::Broker(OfBroker::Registration(_)))
            | Self::Fetch(_)
            | Self::LookUp(_)
            | Self::Decide(_)
            | Self::Quorum(_)
            | Self::Read(..) => false,
        }
    }
}

/// What another node's control thread asks, as this one takes it; `None` where any node answers without looking at itself.
pub(super) fn as_request(request: NodeRequest) -> Option<ControllerRequest> {
    let request = match request {
        NodeRequest::Controller(request) => return Some(ControllerRequest::Controller(request.into())),
        NodeRequest::Broker(OfBroker::Registration(request)) => {
            return Some(ControllerRequest::Controller(request.into()));
        }
        NodeRequest::Broker(OfBroker::Heartbeat(request)) => {
            return Some(ControllerRequest::Controller(request.into()));
        }
        NodeRequest::Quorum(request) => request,
    };
    Some(ControllerRequest::Quorum(match request {
        Outgoing::ApiVersions(_) => return None,
        Outgoing::Vote(request) => Request::Vote(request),
        Outgoing::BeginQuorumEpoch(request) => Request::BeginQuorumEpoch(request),
        Outgoing::EndQuorumEpoch(request) => Request::EndQuorumEpoch(request),
        Outgoing::Fetch(request) => Request::Fetch(request),
        Outgoing::FetchSnapshot(request) => Request::FetchSnapshot(request),
        Outgoing::AddRaftVoter(request) => Request::AddRaftVoter(request),
        Outgoing::RemoveRaftVoter(request) => Request::RemoveRaftVoter(request),
        Outgoing::UpdateRaftVoter(request) => Request::UpdateRaftVoter(request),
    }))
}

/// What a control thread hears of its request to the node that it calls so.
pub(super) fn as_heard(asked: BrokerId, wanted: Wanted, answer: Option<Answer>) -> Heard {
    let decision = match (wanted, answer) {
        (Wanted::Quorum | Wanted::Vote(_), Some(Answer::Versions)) => {
            return Heard::Response { from: asked, response: Some(Response::ApiVersions(versions())) };
        }
        (Wanted::Quorum | Wanted::Vote(_), Some(Answer::Control(response))) => {
            return Heard::Response { from: asked, response: as_response(response) };
        }
        (_, Some(Answer::Control(ControllerResponse::Controller(decision)))) => decision,
        _ => return wanted.unanswered(asked),
    };
    match (wanted, decision) {
        (Wanted::Controller, Decision::ControllerRegistration(response)) => {
            Heard::Registered(Some(ErrorCode::from(response.error_code)))
        }
        (Wanted::Registration, Decision::BrokerRegistration(response)) => {
            Heard::Broker(LifecycleInput::RegistrationAnswered(Some(response)))
        }
        (Wanted::Heartbeat, Decision::BrokerHeartbeat(response)) => {
            Heard::Broker(LifecycleInput::HeartbeatAnswered(Some(response)))
        }
        _ => wanted.unanswered(asked),
    }
}

fn as_response(response: ControllerResponse) -> Option<Response> {
    Some(match response {
        ControllerResponse::Fetch(response) => Response::Fetch(response),
        ControllerResponse::FetchSnapshot(response) => Response::FetchSnapshot(response),
        ControllerResponse::Vote(response) => Response::Vote(response),
        ControllerResponse::BeginQuorumEpoch(response) => Response::BeginQuorumEpoch(response),
        ControllerResponse::EndQuorumEpoch(response) => Response::EndQuorumEpoch(response),
        ControllerResponse::AddRaftVoter(response) => Response::AddRaftVoter(response),
        ControllerResponse::RemoveRaftVoter(response) => Response::RemoveRaftVoter(response),
        ControllerResponse::UpdateRaftVoter(response) => Response::UpdateRaftVoter(response),
        ControllerResponse::Controller(_) | ControllerResponse::DescribeQuorum(_) => return None,
    })
}

/// What every node says of the versions that it runs, as far as a quorum looks at it.
fn versions() -> ApiVersionsResponse {
    let served = ServedFeature::of(KRAFT_VERSION_FEATURE);
    let feature = SupportedFeatureKey {
        name: KRAFT_VERSION_FEATURE.into(),
        min_version: served.min,
        max_version: served.max,
        ..Default::default()
    };
    ApiVersionsResponse { supported_features: vec![feature], ..Default::default() }
}
