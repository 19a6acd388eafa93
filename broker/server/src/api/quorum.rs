//! The requests of the metadata quorum, from other nodes (KIP-595, KIP-630) on the controller's listeners alone, and from tools (KIP-853), which a
//! broker forwards. The quorum answers; a fetch may wait there for new records, and a change of the voters until it is committed.

use gregor_messages::{
    AddRaftVoterRequest, AddRaftVoterResponse, BeginQuorumEpochRequest, BeginQuorumEpochResponse,
    EndQuorumEpochRequest, EndQuorumEpochResponse, FetchRequest, FetchResponse, FetchSnapshotRequest,
    FetchSnapshotResponse, RemoveRaftVoterRequest, RemoveRaftVoterResponse, UpdateRaftVoterRequest,
    UpdateRaftVoterResponse, VoteRequest, VoteResponse,
};
use gregor_raft::Origin;
use gregor_types::ErrorCode;

use super::{
    Context,
    forward::{PATIENCE, client_of, patience},
};

/// A node that stops answers nothing about its log any more; others look for a new leader.
const STOPPING: i16 = ErrorCode::BrokerNotAvailable.code();

/// How a request came, for the quorum.
fn origin(context: &Context, version: i16) -> Origin {
    Origin { version, listener: context.connection.listener.name.as_str().into() }
}

/// Records of the metadata log.
pub(crate) async fn fetch(context: &Context, request: FetchRequest, version: i16) -> FetchResponse {
    let answer = context.broker.control.ask_from(origin(context, version), request).await;
    answer.unwrap_or_else(|_| FetchResponse { error_code: STOPPING, ..Default::default() })
}

/// A piece of a snapshot of it.
pub(crate) async fn fetch_snapshot(
    context: &Context,
    request: FetchSnapshotRequest,
    version: i16,
) -> FetchSnapshotResponse {
    let answer = context.broker.control.ask_from(origin(context, version), request).await;
    answer.unwrap_or_else(|_| FetchSnapshotResponse { error_code: STOPPING, ..Default::default() })
}

/// A vote.
pub(crate) async fn vote(context: &Context, request: VoteRequest, version: i16) -> VoteResponse {
    let answer = context.broker.control.ask_from(origin(context, version), request).await;
    answer.unwrap_or_else(|_| VoteResponse { error_code: STOPPING, ..Default::default() })
}

/// A leader says that it leads.
pub(crate) async fn begin_epoch(
    context: &Context,
    request: BeginQuorumEpochRequest,
    version: i16,
) -> BeginQuorumEpochResponse {
    let answer = context.broker.control.ask_from(origin(context, version), request).await;
    answer.unwrap_or_else(|_| BeginQuorumEpochResponse { error_code: STOPPING, ..Default::default() })
}

/// A leader says that it leads no more.
pub(crate) async fn end_epoch(
    context: &Context,
    request: EndQuorumEpochRequest,
    version: i16,
) -> EndQuorumEpochResponse {
    let answer = context.broker.control.ask_from(origin(context, version), request).await;
    answer.unwrap_or_else(|_| EndQuorumEpochResponse { error_code: STOPPING, ..Default::default() })
}

/// A replica shall vote.
pub(crate) async fn add_voter(context: &Context, request: AddRaftVoterRequest, version: i16) -> AddRaftVoterResponse {
    let broker = &context.broker;
    if context.connection.listener.controller {
        let answer = broker.control.ask_from(origin(context, version), request).await;
        return answer.unwrap_or_else(|_| AddRaftVoterResponse { error_code: STOPPING, ..Default::default() });
    }
    let wait = patience(request.timeout_ms);
    let answer = broker.forwarding.forward(request, version, &client_of(context), wait).await;
    answer.unwrap_or_else(|error| AddRaftVoterResponse {
        error_code: error.code().code(),
        error_message: Some(error.to_string().into()),
        ..Default::default()
    })
}

/// A replica shall not vote any more.
pub(crate) async fn remove_voter(
    context: &Context,
    request: RemoveRaftVoterRequest,
    version: i16,
) -> RemoveRaftVoterResponse {
    let broker = &context.broker;
    if context.connection.listener.controller {
        let answer = broker.control.ask_from(origin(context, version), request).await;
        return answer.unwrap_or_else(|_| RemoveRaftVoterResponse { error_code: STOPPING, ..Default::default() });
    }
    let answer = broker.forwarding.forward(request, version, &client_of(context), PATIENCE).await;
    answer.unwrap_or_else(|error| RemoveRaftVoterResponse {
        error_code: error.code().code(),
        error_message: Some(error.to_string().into()),
        ..Default::default()
    })
}

/// A voter says where it listens and which versions it runs.
pub(crate) async fn update_voter(
    context: &Context,
    request: UpdateRaftVoterRequest,
    version: i16,
) -> UpdateRaftVoterResponse {
    let answer = context.broker.control.ask_from(origin(context, version), request).await;
    answer.unwrap_or_else(|_| UpdateRaftVoterResponse { error_code: STOPPING, ..Default::default() })
}
