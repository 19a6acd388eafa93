//! Fetch, FetchSnapshot and Vote of the metadata quorum, from other nodes (KIP-595, KIP-630): on the controller's listeners alone. The
//! quorum answers; a fetch may wait there for new records.

use gregor_messages::{
    FetchRequest, FetchResponse, FetchSnapshotRequest, FetchSnapshotResponse, VoteRequest, VoteResponse,
};
use gregor_types::ErrorCode;

use super::Context;

/// A node that stops answers nothing about its log any more; others look for a new leader.
const STOPPING: i16 = ErrorCode::BrokerNotAvailable.code();

/// Records of the metadata log.
pub(crate) async fn fetch(context: &Context, request: FetchRequest, version: i16) -> FetchResponse {
    let answer = context.broker.control.ask(version, request).await;
    answer.unwrap_or_else(|_| FetchResponse { error_code: STOPPING, ..Default::default() })
}

/// A piece of a snapshot of it.
pub(crate) async fn fetch_snapshot(
    context: &Context,
    request: FetchSnapshotRequest,
    version: i16,
) -> FetchSnapshotResponse {
    let answer = context.broker.control.ask(version, request).await;
    answer.unwrap_or_else(|_| FetchSnapshotResponse { error_code: STOPPING, ..Default::default() })
}

/// A vote.
pub(crate) async fn vote(context: &Context, request: VoteRequest, version: i16) -> VoteResponse {
    let answer = context.broker.control.ask(version, request).await;
    answer.unwrap_or_else(|_| VoteResponse { error_code: STOPPING, ..Default::default() })
}
