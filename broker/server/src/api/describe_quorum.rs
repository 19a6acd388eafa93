//! DescribeQuorum (KIP-595): who leads the metadata quorum, who votes, and how far each has read. The quorum answers.

use gregor_messages::{DescribeQuorumRequest, DescribeQuorumResponse};
use gregor_types::ErrorCode;

use super::Context;

/// Answers what the quorum's leader says.
pub(crate) async fn handle(context: &Context, request: DescribeQuorumRequest, version: i16) -> DescribeQuorumResponse {
    match context.broker.control.ask(version, request).await {
        Ok(response) => response,
        Err(closed) => DescribeQuorumResponse {
            error_code: ErrorCode::NotLeaderOrFollower.code(),
            error_message: Some(closed.to_string().into()),
            ..Default::default()
        },
    }
}
