//! Envelope (KIP-590): what a broker forwards for a client. The request inside is answered as the client's own, by the same row of the table;
//! an error of the envelope itself is the forwarding broker's business (Kafka's `EnvelopeUtils`).

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
};

use bytes::Bytes;
use gregor_authentication::Principal;
use gregor_messages::{ApiKey, EnvelopeRequest, EnvelopeResponse};
use gregor_types::ErrorCode;

use super::{ConnectionInfo, Context};
use crate::{
    close::Close,
    dispatch::{self, Handler},
    envelope::{address_of, principal_of},
};

/// Whether a broker may forward this: what a client asks of the controller.
fn is_forwardable(key: i16) -> bool {
    const FORWARDABLE: &[ApiKey] = &[
        ApiKey::CreateTopics,
        ApiKey::DeleteTopics,
        ApiKey::CreateAcls,
        ApiKey::DeleteAcls,
        ApiKey::AlterConfigs,
        ApiKey::CreatePartitions,
        ApiKey::CreateDelegationToken,
        ApiKey::RenewDelegationToken,
        ApiKey::ExpireDelegationToken,
        ApiKey::ElectLeaders,
        ApiKey::IncrementalAlterConfigs,
        ApiKey::AlterPartitionReassignments,
        ApiKey::ListPartitionReassignments,
        ApiKey::AlterClientQuotas,
        ApiKey::AlterUserScramCredentials,
        ApiKey::DescribeQuorum,
        ApiKey::UpdateFeatures,
        ApiKey::UnregisterBroker,
        ApiKey::UnregisterController,
        ApiKey::AllocateProducerIds,
        ApiKey::AddRaftVoter,
        ApiKey::RemoveRaftVoter,
    ];
    FORWARDABLE.iter().any(|api| api.code() == key)
}

/// Answers what is inside, as its client.
pub(crate) async fn handle(context: &Context, request: EnvelopeRequest, _version: i16) -> EnvelopeResponse {
    match answer(context, request).await {
        Ok(response) => EnvelopeResponse { response_data: Some(response), ..Default::default() },
        Err(error) => EnvelopeResponse { error_code: error.code(), response_data: None, ..Default::default() },
    }
}

async fn answer(context: &Context, envelope: EnvelopeRequest) -> Result<Bytes, ErrorCode> {
    let principal = Principal::forwarded(&principal_of(&envelope)?);
    let peer = SocketAddr::new(address_of(&envelope)?, 0);
    let key = envelope.request_data.first_chunk().map(|key| i16::from_be_bytes(*key));
    // What cannot be read is told apart from an envelope that is wrong in itself.
    let key = key.ok_or(ErrorCode::UnsupportedVersion)?;
    if ApiKey::from_code(key).is_some() && !is_forwardable(key) {
        return Err(ErrorCode::InvalidRequest);
    }
    let listener = Arc::clone(&context.connection.listener);
    let wrong = Arc::new(AtomicBool::new(false));
    let mut inner = context.clone();
    inner.connection = Arc::new(ConnectionInfo { peer, listener, principal, not_controller: Some(Arc::clone(&wrong)) });
    let parsed = dispatch::parse(&mut inner, envelope.request_data, context.received_at);
    let (row, body) = parsed.map_err(|_| ErrorCode::UnsupportedVersion)?;
    let Handler::Barrier(handler) = row.handler else { return Err(ErrorCode::InvalidRequest) };
    let reply = handler(&inner, body).await.map_err(|close| match close {
        Close::Malformed(_) => ErrorCode::UnsupportedVersion,
        _ => ErrorCode::UnknownServerError,
    })?;
    if wrong.load(Ordering::Relaxed) {
        return Err(ErrorCode::NotController);
    }
    Ok(reply.into_body())
}
