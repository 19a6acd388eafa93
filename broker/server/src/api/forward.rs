//! Requests that only the active controller decides: what a broker passes on for a client, to wherever that controller is, and what the
//! controller listener takes from other nodes, of which this node decides or says that it is not the controller.

use std::{sync::atomic::Ordering, time::Duration};

use gregor_controller::Refusal;
use gregor_messages::{
    AllocateProducerIdsRequest, AlterClientQuotasRequest, AlterConfigsRequest, AlterPartitionReassignmentsRequest,
    AlterPartitionRequest, AlterUserScramCredentialsRequest, AssignReplicasToDirsRequest, BrokerHeartbeatRequest,
    BrokerRegistrationRequest, ControllerRegistrationRequest, CreatePartitionsRequest, CreateTopicsRequest,
    DeleteTopicsRequest, ElectLeadersRequest, IncrementalAlterConfigsRequest, ListPartitionReassignmentsRequest,
    UnregisterBrokerRequest, UnregisterControllerRequest, UpdateFeaturesRequest,
};
use gregor_types::ErrorCode;
use tokio::time::timeout;

use super::Context;
use crate::{
    control::ControllerResponse,
    controller_link::{ForwardedFor, LinkError, ToController},
};

/// How long a client waits that does not say how long it would (`request.timeout.ms`).
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Nobody is told that a request timed out before the controller had a chance.
const PATIENCE_MIN: Duration = Duration::from_secs(1);

/// A request that the controller decides.
pub(crate) trait Forwarded: ToController + Into<gregor_controller::ControllerRequest> {
    /// How long the client will wait.
    fn patience(&self) -> Duration {
        PATIENCE
    }
}

/// How long a client waits that says how long.
pub(super) fn patience(timeout_ms: i32) -> Duration {
    Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(0)).max(PATIENCE_MIN)
}

macro_rules! forwarded {
    ($($request:ident),*; timed $($timed:ident),*) => {
        $(impl Forwarded for $request {})*
        $(impl Forwarded for $timed {
            fn patience(&self) -> Duration {
                patience(self.timeout_ms)
            }
        })*
    };
}

forwarded!(
    AllocateProducerIdsRequest, AlterClientQuotasRequest, AlterConfigsRequest, AlterPartitionRequest,
    AlterUserScramCredentialsRequest, AssignReplicasToDirsRequest, BrokerHeartbeatRequest, BrokerRegistrationRequest, ControllerRegistrationRequest, IncrementalAlterConfigsRequest,
    UnregisterBrokerRequest, UnregisterControllerRequest;
    timed AlterPartitionReassignmentsRequest, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest,
    ElectLeadersRequest, ListPartitionReassignmentsRequest, UpdateFeaturesRequest
);

/// Answers what the controller decided, once that is committed.
pub(crate) async fn handle<R: Forwarded>(context: &Context, request: R, version: i16) -> R::Response {
    let asked = request.clone();
    let answer = if context.connection.listener.controller {
        decide_here(context, request, version).await
    } else {
        context.broker.forwarding.forward(request, version, &client_of(context), asked.patience()).await
    };
    let refusal = match answer {
        Ok(response) => return response,
        Err(LinkError::Closed) => Refusal::not_controller(),
        Err(error) => {
            let code = error.code();
            if code == ErrorCode::UnknownServerError {
                tracing::error!(%error, "a client's request could not be forwarded");
            }
            let message = match code {
                // It may be decided all the same; the client has to look.
                ErrorCode::RequestTimedOut => "The controller did not answer in time.",
                ErrorCode::UnsupportedVersion => "The active controller does not serve this request.",
                _ => "The request could not be forwarded to the active controller; the broker's log says why.",
            };
            Refusal::new(code, message)
        }
    };
    let refused: gregor_controller::ControllerRequest = asked.into();
    R::from_response(ControllerResponse::Controller(refused.refused(&refusal)))
        .expect("a request's refusal is a response to that request")
}

async fn decide_here<R: Forwarded>(context: &Context, request: R, version: i16) -> Result<R::Response, LinkError> {
    let decided = timeout(request.patience(), context.broker.control.ask(version, request)).await;
    let response = decided.map_err(|_| LinkError::TimedOut(None))?.map_err(|_| LinkError::Closed)?;
    if let Some(not_controller) = context.connection.not_controller.as_ref().filter(|_| R::is_not_controller(&response))
    {
        not_controller.store(true, Ordering::Relaxed);
    }
    Ok(response)
}

/// Whom a request is forwarded for.
pub(super) fn client_of(context: &Context) -> ForwardedFor {
    ForwardedFor {
        principal: context.connection.principal.name().into(),
        address: context.connection.peer.ip().to_canonical(),
        client_id: context.client_id.clone(),
        correlation_id: context.correlation_id,
    }
}
