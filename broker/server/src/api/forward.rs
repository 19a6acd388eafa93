//! Requests that only the active controller decides: what a broker passes on for a client (Kafka's Envelope, in process), and what the
//! controller listener takes from other nodes.

use std::time::Duration;

use gregor_controller::Refusal;
use gregor_messages::{
    AllocateProducerIdsRequest, AlterConfigsRequest, AlterPartitionReassignmentsRequest, AlterPartitionRequest,
    AssignReplicasToDirsRequest, BrokerHeartbeatRequest, BrokerRegistrationRequest, ControllerRegistrationRequest,
    CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, ElectLeadersRequest,
    IncrementalAlterConfigsRequest, ListPartitionReassignmentsRequest, UnregisterBrokerRequest,
};
use gregor_types::ErrorCode;
use tokio::time::timeout;

use super::Context;
use crate::control::{Answered, ControllerResponse};

/// How long a client waits that does not say how long it would (`request.timeout.ms`).
const PATIENCE: Duration = Duration::from_secs(30);
/// Nobody is told that a request timed out before the controller had a chance.
const PATIENCE_MIN: Duration = Duration::from_secs(1);

/// A request that the controller decides.
pub(crate) trait Forwarded: Answered + Clone + Into<gregor_controller::ControllerRequest> {
    /// How long the client will wait.
    fn patience(&self) -> Duration {
        PATIENCE
    }
}

macro_rules! forwarded {
    ($($request:ident),*; timed $($timed:ident),*) => {
        $(impl Forwarded for $request {})*
        $(impl Forwarded for $timed {
            fn patience(&self) -> Duration {
                Duration::from_millis(u64::try_from(self.timeout_ms).unwrap_or(0)).max(PATIENCE_MIN)
            }
        })*
    };
}

forwarded!(
    AllocateProducerIdsRequest, AlterConfigsRequest, AlterPartitionRequest, AssignReplicasToDirsRequest,
    BrokerHeartbeatRequest, BrokerRegistrationRequest, ControllerRegistrationRequest, IncrementalAlterConfigsRequest,
    UnregisterBrokerRequest;
    timed AlterPartitionReassignmentsRequest, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest,
    ElectLeadersRequest, ListPartitionReassignmentsRequest
);

/// Answers what the controller decided, once that is committed.
pub(crate) async fn handle<R: Forwarded>(context: &Context, request: R, version: i16) -> R::Response {
    let asked = request.clone();
    let refusal = match timeout(request.patience(), context.broker.control.ask(version, request)).await {
        Ok(Ok(response)) => return response,
        // It may be decided all the same; the client has to look.
        Err(_) => Refusal::new(ErrorCode::RequestTimedOut, "The controller did not answer in time."),
        Ok(Err(_)) => Refusal::not_controller(),
    };
    let refused: gregor_controller::ControllerRequest = asked.into();
    R::from_response(ControllerResponse::Controller(refused.refused(&refusal)))
        .expect("a request's refusal is a response to that request")
}
