//! Requests to frames and frames to responses: length, header, body.
//!
//! Called by the connection only. It knows which header goes with which version, and nothing of sockets.

use bytes::Bytes;
use gregor_messages::Request;
use gregor_types::KString;
use gregor_wire::{DecodeError, EncodeError, Message, RawTags, Reader, RequestHeader, ResponseHeader, Struct, Writer};

/// A whole request frame, its length first.
pub(crate) fn encode_request<R: Request>(
    request: &R,
    version: i16,
    correlation: i32,
    client_id: &KString,
) -> Result<Bytes, EncodeError> {
    let header = RequestHeader {
        request_api_key: R::KEY as i16,
        request_api_version: version,
        correlation_id: correlation,
        client_id: Some(client_id.clone()),
        unknown_tagged_fields: RawTags::NONE,
    };
    let mut writer = Writer::new();
    writer.i32(0);
    header.encode(&mut writer, R::KEY.request_header_version(version))?;
    request.encode(&mut writer, version)?;
    let mut frame = writer.into_inner();
    let length = frame.len() - size_of::<i32>();
    let limit = i32::MAX as usize;
    let prefix = i32::try_from(length).map_err(|_| EncodeError::TooLong { length, limit })?;
    frame[..size_of::<i32>()].copy_from_slice(&prefix.to_be_bytes());
    Ok(frame.freeze())
}

/// The correlation id of a response frame.
pub(crate) fn correlation_of(frame: &[u8]) -> i32 {
    let head: [u8; 4] = frame[..4].try_into().expect("a frame shorter than that is refused when it is read");
    i32::from_be_bytes(head)
}

/// A response's body, from its frame behind the length.
pub(crate) fn decode_response<R: Request>(frame: Bytes, version: i16) -> Result<R::Response, DecodeError> {
    let mut reader = Reader::new(frame);
    ResponseHeader::read(&mut reader, R::KEY.response_header_version(version))?;
    let response = R::Response::decode(&mut reader, version)?;
    reader.finish()?;
    Ok(response)
}
