//! What a broker forwards for a client (KIP-590), as bytes that no code of the server has made.

use bytes::Bytes;
use gregor_messages::{DefaultPrincipalData, EnvelopeRequest, Request};
use gregor_wire::{Message, RawTags, RequestHeader, Struct, Writer};

/// A request of alice's, who is at 10.1.2.3, with her number 77.
pub fn envelope_of<R: Request>(version: i16, request: &R) -> EnvelopeRequest {
    let header = RequestHeader {
        request_api_key: R::KEY.code(),
        request_api_version: version,
        correlation_id: 77,
        client_id: Some("her-client".into()),
        unknown_tagged_fields: RawTags::NONE,
    };
    let mut data = Writer::new();
    header.write(&mut data, R::KEY.request_header_version(version)).unwrap();
    request.encode(&mut data, version).unwrap();
    let principal = DefaultPrincipalData { r#type: "User".into(), name: "alice".into(), ..Default::default() };
    let mut who = Writer::new();
    who.i16(0);
    principal.encode(&mut who, 0).unwrap();
    EnvelopeRequest {
        request_data: data.into_inner().freeze(),
        request_principal: Some(who.into_inner().freeze()),
        client_host_address: Bytes::from_static(&[10, 1, 2, 3]),
        ..Default::default()
    }
}
