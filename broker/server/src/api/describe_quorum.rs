//! DescribeQuorum (KIP-595): who leads the metadata quorum, who votes, and how far each has read. The quorum answers; a broker forwards.

use gregor_messages::{DescribeQuorumRequest, DescribeQuorumResponse};
use gregor_types::ErrorCode;

use super::{
    Context,
    forward::{PATIENCE, client_of},
};

/// Answers what the quorum's leader says.
pub(crate) async fn handle(context: &Context, request: DescribeQuorumRequest, version: i16) -> DescribeQuorumResponse {
    let broker = &context.broker;
    let answer = if context.connection.listener.controller {
        let answer = broker.control.ask(version, request).await;
        answer.map_err(|closed| (ErrorCode::NotLeaderOrFollower, closed.to_string()))
    } else {
        let answer = broker.forwarding.forward(request, version, &client_of(context), PATIENCE).await;
        answer.map_err(|error| (error.code(), error.to_string()))
    };
    answer.unwrap_or_else(|(error, message)| DescribeQuorumResponse {
        error_code: error.code(),
        error_message: Some(message.into()),
        ..Default::default()
    })
}
