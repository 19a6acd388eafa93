//! What is inside of an Envelope (KIP-590): a client's request with its header, who the client is and where; and the answer to it.
//!
//! `controller_link.rs` seals requests and opens answers, `api/envelope.rs` opens requests and seals answers. Pure functions of bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use gregor_messages::{DefaultPrincipalData, EnvelopeRequest, EnvelopeResponse, Request};
use gregor_types::{ErrorCode, KString};
use gregor_wire::{EncodeError, Message, RawTags, Reader, RequestHeader, ResponseHeader, Struct, Writer};

use crate::controller_link::ForwardedFor;

/// What Kafka calls the type of every principal of its own.
const USER: KString = KString::from_static("User");

/// Puts a client's request into an envelope.
pub(crate) fn seal<R: Request>(
    request: &R,
    version: i16,
    client: &ForwardedFor,
) -> Result<EnvelopeRequest, EncodeError> {
    let header = RequestHeader {
        request_api_key: R::KEY.code(),
        request_api_version: version,
        correlation_id: client.correlation_id,
        client_id: client.client_id.clone(),
        unknown_tagged_fields: RawTags::NONE,
    };
    let mut data = Writer::new();
    header.write(&mut data, R::KEY.request_header_version(version))?;
    request.encode(&mut data, version)?;
    let principal = DefaultPrincipalData { r#type: USER, name: client.principal.clone(), ..Default::default() };
    let principal_version = *DefaultPrincipalData::VERSIONS.end();
    let mut who = Writer::new();
    who.i16(principal_version);
    principal.encode(&mut who, principal_version)?;
    let address = match client.address {
        IpAddr::V4(address) => Bytes::copy_from_slice(&address.octets()),
        IpAddr::V6(address) => Bytes::copy_from_slice(&address.octets()),
    };
    Ok(EnvelopeRequest {
        request_data: data.into_inner().freeze(),
        request_principal: Some(who.into_inner().freeze()),
        client_host_address: address,
        ..Default::default()
    })
}

/// The answer to the request in an envelope; `None` if it is none to that request.
pub(crate) fn open_answer<R: Request>(
    answer: EnvelopeResponse,
    version: i16,
    correlation_id: i32,
) -> Option<R::Response> {
    let mut reader = Reader::new(answer.response_data?);
    let header = ResponseHeader::read(&mut reader, R::KEY.response_header_version(version)).ok()?;
    let response = R::Response::decode(&mut reader, version).ok()?;
    reader.finish().ok()?;
    (header.correlation_id == correlation_id).then_some(response)
}

/// Who an envelope says its client is. An error is what the broker that forwarded is told.
pub(crate) fn principal_of(envelope: &EnvelopeRequest) -> Result<KString, ErrorCode> {
    const UNREADABLE: ErrorCode = ErrorCode::PrincipalDeserializationFailure;
    let mut reader = Reader::new(envelope.request_principal.clone().ok_or(UNREADABLE)?);
    let version = reader.i16().map_err(|_| UNREADABLE)?;
    if !DefaultPrincipalData::VERSIONS.contains(&version) {
        return Err(UNREADABLE);
    }
    let principal = DefaultPrincipalData::decode(&mut reader, version).map_err(|_| UNREADABLE)?;
    Ok(principal.name)
}

/// Where an envelope says its client is.
pub(crate) fn address_of(envelope: &EnvelopeRequest) -> Result<IpAddr, ErrorCode> {
    let bytes = &envelope.client_host_address[..];
    let v4 = <[u8; 4]>::try_from(bytes).map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|octets| IpAddr::V6(Ipv6Addr::from(octets))))
        .map_err(|_| ErrorCode::InvalidRequest)
}
