//! The headers in front of every request and response.
//!
//! Which header version a request's version has is the business of `gregor_messages::ApiKey`. The one peculiarity stands here:
//! a request header's client id keeps its two-byte length even where everything else is compact, so that a server can read it
//! before it knows the version.

use std::ops::RangeInclusive;

use gregor_types::KString;

use crate::{DecodeError, EncodeError, JsonObject, Message, RawTags, Reader, Struct, Writer};

/// What stands in front of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestHeader {
    /// The API key.
    pub request_api_key: i16,
    /// The version of the body.
    pub request_api_version: i16,
    /// Returned with the response.
    pub correlation_id: i32,
    /// What the client calls itself.
    pub client_id: Option<KString>,
    /// Kept as they came.
    pub unknown_tagged_fields: RawTags,
}

/// What stands in front of a response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResponseHeader {
    /// The one of the request.
    pub correlation_id: i32,
    /// Kept as they came.
    pub unknown_tagged_fields: RawTags,
}

impl Struct for RequestHeader {
    const MIN_SIZE: usize = 8;

    fn read(reader: &mut Reader, version: i16) -> Result<Self, DecodeError> {
        let mut header = Self {
            request_api_key: reader.i16()?,
            request_api_version: reader.i16()?,
            correlation_id: reader.i32()?,
            ..Self::default()
        };
        if version >= 1 {
            header.client_id = reader.nullable_string(false, true)?;
        }
        if version >= 2 {
            header.unknown_tagged_fields = reader.raw_tags()?;
        }
        Ok(header)
    }

    fn write(&self, writer: &mut Writer, version: i16) -> Result<(), EncodeError> {
        writer.i16(self.request_api_key);
        writer.i16(self.request_api_version);
        writer.i32(self.correlation_id);
        if version >= 1 {
            writer.nullable_string(false, true, "RequestHeader.client_id", self.client_id.as_ref())?;
        }
        if version >= 2 {
            writer.raw_tags(&self.unknown_tagged_fields)?;
        }
        Ok(())
    }

    fn show(&self, json: &mut JsonObject, version: i16) {
        json.put("requestApiKey", &self.request_api_key);
        json.put("requestApiVersion", &self.request_api_version);
        json.put("correlationId", &self.correlation_id);
        if version >= 1 {
            json.put("clientId", &self.client_id);
        }
    }
}

impl Message for RequestHeader {
    const NAME: &'static str = "RequestHeader";
    /// Version 0 has no client id; only the removed ControlledShutdown v0 used it.
    const VERSIONS: RangeInclusive<i16> = 0..=2;

    fn is_flexible(version: i16) -> bool {
        version >= 2
    }
}

impl Struct for ResponseHeader {
    const MIN_SIZE: usize = 4;

    fn read(reader: &mut Reader, version: i16) -> Result<Self, DecodeError> {
        let correlation_id = reader.i32()?;
        let unknown_tagged_fields = if version >= 1 { reader.raw_tags()? } else { RawTags::NONE };
        Ok(Self { correlation_id, unknown_tagged_fields })
    }

    fn write(&self, writer: &mut Writer, version: i16) -> Result<(), EncodeError> {
        writer.i32(self.correlation_id);
        if version >= 1 {
            writer.raw_tags(&self.unknown_tagged_fields)?;
        }
        Ok(())
    }

    fn show(&self, json: &mut JsonObject, _version: i16) {
        json.put("correlationId", &self.correlation_id);
    }
}

impl Message for ResponseHeader {
    const NAME: &'static str = "ResponseHeader";
    const VERSIONS: RangeInclusive<i16> = 0..=1;

    fn is_flexible(version: i16) -> bool {
        version >= 1
    }
}
