//! DescribeQuorum (KIP-595): who leads the metadata quorum, who votes, and how far each has read. The quorum answers; a broker forwards.

use gregor_messages::{DescribeQuorumRequest, DescribeQuorumResponse};
use gregor_types::{ErrorCode, Uuid};

use super::{
    Context,
    forward::{PATIENCE, client_of},
};

/// The first version that tells directories and where the voters listen (KIP-853).
const WITH_NODES: i16 = 2;

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
    let answer = answer.unwrap_or_else(|(error, message)| DescribeQuorumResponse {
        error_code: error.code(),
        error_message: Some(message.into()),
        ..Default::default()
    });
    if version < WITH_NODES { without_nodes(answer) } else { answer }
}

/// Without what an older version cannot hold: it would not be written at all.
fn without_nodes(mut answer: DescribeQuorumResponse) -> DescribeQuorumResponse {
    answer.nodes.clear();
    for partition in answer.topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
        for replica in partition.current_voters.iter_mut().chain(&mut partition.observers) {
            replica.replica_directory_id = Uuid::ZERO;
        }
    }
    answer
}
