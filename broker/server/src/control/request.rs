//! The requests that the control thread answers: what the controller listener serves, and what a broker asks of the active
//! controller or of the quorum's leader. In process now, the same over the network between nodes.

use gregor_messages::{
    AddRaftVoterRequest, AddRaftVoterResponse, AllocateProducerIdsRequest, AlterClientQuotasRequest,
    AlterConfigsRequest, AlterPartitionReassignmentsRequest, AlterPartitionRequest, AlterUserScramCredentialsRequest,
    AssignReplicasToDirsRequest, BeginQuorumEpochRequest, BeginQuorumEpochResponse, BrokerHeartbeatRequest,
    BrokerRegistrationRequest, ControllerRegistrationRequest, CreatePartitionsRequest, CreateTopicsRequest,
    DeleteTopicsRequest, DescribeQuorumRequest, DescribeQuorumResponse, ElectLeadersRequest, EndQuorumEpochRequest,
    EndQuorumEpochResponse, FetchRequest, FetchResponse, FetchSnapshotRequest, FetchSnapshotResponse,
    IncrementalAlterConfigsRequest, ListPartitionReassignmentsRequest, RemoveRaftVoterRequest, RemoveRaftVoterResponse,
    Request, UnregisterBrokerRequest, UnregisterControllerRequest, UpdateFeaturesRequest, UpdateRaftVoterRequest,
    UpdateRaftVoterResponse, VoteRequest, VoteResponse,
};

/// A request to the active controller or to the quorum's leader.
#[derive(Debug, Clone, PartialEq)]
pub enum ControllerRequest {
    /// Something that the controller decides.
    Controller(gregor_controller::ControllerRequest),
    /// Something that the quorum answers.
    Quorum(gregor_raft::Request),
}

/// The answer to a [`ControllerRequest`] of the same kind.
#[derive(Debug, Clone, PartialEq)]
pub enum ControllerResponse {
    /// What the controller decided, committed.
    Controller(gregor_controller::ControllerResponse),
    /// Records of the metadata log.
    Fetch(FetchResponse),
    /// A piece of a metadata snapshot.
    FetchSnapshot(FetchSnapshotResponse),
    /// A vote.
    Vote(VoteResponse),
    /// Whether this node follows.
    BeginQuorumEpoch(BeginQuorumEpochResponse),
    /// Whether this node has heard.
    EndQuorumEpoch(EndQuorumEpochResponse),
    /// The quorum's leader, voters and observers.
    DescribeQuorum(DescribeQuorumResponse),
    /// Whether the replica will vote.
    AddRaftVoter(AddRaftVoterResponse),
    /// Whether the replica votes no more.
    RemoveRaftVoter(RemoveRaftVoterResponse),
    /// Whether the leader has taken note.
    UpdateRaftVoter(UpdateRaftVoterResponse),
}

/// A request that the control thread answers, with the way into and out of the enums above.
pub trait Answered: Request {
    /// The request as the control thread takes it.
    fn into_request(self) -> ControllerRequest;
    /// The response in what the control thread answered; `None` if it is one to another request.
    fn from_response(response: ControllerResponse) -> Option<Self::Response>;
}

macro_rules! decided {
    ($($request:ident),*) => {
        $(impl Answered for $request {
            fn into_request(self) -> ControllerRequest {
                ControllerRequest::Controller(self.into())
            }

            fn from_response(response: ControllerResponse) -> Option<Self::Response> {
                match response {
                    ControllerResponse::Controller(response) => response.try_into().ok(),
                    _ => None,
                }
            }
        })*
    };
}

macro_rules! answered_by_the_quorum {
    ($($request:ident $variant:ident),*) => {
        $(impl Answered for $request {
            fn into_request(self) -> ControllerRequest {
                ControllerRequest::Quorum(gregor_raft::Request::$variant(self))
            }

            fn from_response(response: ControllerResponse) -> Option<Self::Response> {
                match response {
                    ControllerResponse::$variant(response) => Some(response),
                    _ => None,
                }
            }
        })*
    };
}

decided!(
    AllocateProducerIdsRequest,
    AlterClientQuotasRequest,
    AlterConfigsRequest,
    AlterPartitionReassignmentsRequest,
    AlterPartitionRequest,
    AlterUserScramCredentialsRequest,
    AssignReplicasToDirsRequest,
    BrokerHeartbeatRequest,
    BrokerRegistrationRequest,
    ControllerRegistrationRequest,
    CreatePartitionsRequest,
    CreateTopicsRequest,
    DeleteTopicsRequest,
    ElectLeadersRequest,
    IncrementalAlterConfigsRequest,
    ListPartitionReassignmentsRequest,
    UnregisterBrokerRequest,
    UnregisterControllerRequest,
    UpdateFeaturesRequest
);
answered_by_the_quorum!(
    FetchRequest Fetch, FetchSnapshotRequest FetchSnapshot, VoteRequest Vote, BeginQuorumEpochRequest BeginQuorumEpoch,
    EndQuorumEpochRequest EndQuorumEpoch, DescribeQuorumRequest DescribeQuorum, AddRaftVoterRequest AddRaftVoter,
    RemoveRaftVoterRequest RemoveRaftVoter, UpdateRaftVoterRequest UpdateRaftVoter
);
