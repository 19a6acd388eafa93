//! What every generated struct and message can do; implemented by generated code and by the headers.

use std::ops::RangeInclusive;

use bytes::Bytes;
use serde_json::Value;

use crate::{DecodeError, DecodeErrorKind, EncodeError, JsonObject, Reader, Writer};

/// A struct inside a message, or a message's body. Versions are those of the message and are checked there, not here.
pub trait Struct: Sized + Default {
    /// The fewest bytes that one value takes, in any version.
    const MIN_SIZE: usize;
    /// Reads the fields that the version has; the others keep their defaults.
    fn read(reader: &mut Reader, version: i16) -> Result<Self, DecodeError>;
    /// Writes the fields that the version has; fails on a field that is set, that the version lacks and that may not be dropped.
    fn write(&self, writer: &mut Writer, version: i16) -> Result<(), EncodeError>;
    /// Shows the fields that the version has as Kafka's own converters do.
    fn show(&self, json: &mut JsonObject, version: i16);
}

/// A message that stands on its own: a request, a response, a record's key or value.
pub trait Message: Struct {
    /// Kafka's name of it.
    const NAME: &'static str;
    /// The versions that exist, unstable ones included.
    const VERSIONS: RangeInclusive<i16>;

    /// Whether this version has compact lengths and tagged fields (KIP-482).
    fn is_flexible(version: i16) -> bool;

    /// Reads a message. Bytes behind it are left to the caller: see [`Reader::finish`].
    fn decode(reader: &mut Reader, version: i16) -> Result<Self, DecodeError> {
        if !Self::VERSIONS.contains(&version) {
            return Err(reader.error(DecodeErrorKind::UnsupportedVersion { message: Self::NAME, version }));
        }
        Self::read(reader, version)
    }

    /// Writes a message.
    fn encode(&self, writer: &mut Writer, version: i16) -> Result<(), EncodeError> {
        if !Self::VERSIONS.contains(&version) {
            return Err(EncodeError::UnsupportedVersion { message: Self::NAME, version });
        }
        self.write(writer, version)
    }

    /// Reads a message that must fill the whole buffer.
    fn from_bytes(bytes: Bytes, version: i16) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let message = Self::decode(&mut reader, version)?;
        reader.finish()?;
        Ok(message)
    }

    /// The message in a buffer of its own.
    fn to_bytes(&self, version: i16) -> Result<Bytes, EncodeError> {
        let mut writer = Writer::new();
        self.encode(&mut writer, version)?;
        Ok(writer.into_bytes())
    }

    /// The message as Kafka's own JSON converters show it: for dumps and comparisons, not for storage.
    fn to_json(&self, version: i16) -> Value {
        let mut json = JsonObject::default();
        self.show(&mut json, version);
        json.into_value()
    }
}

/// What bytes say, and how the message they are is encoded again.
pub type RoundTrip = Result<(Value, Result<Bytes, EncodeError>), DecodeError>;

/// A message type as a value, for what works on all of them: golden bytes, hostile input, dumps.
#[derive(Debug, Clone)]
pub struct Codec {
    /// Kafka's name of the message.
    pub name: &'static str,
    /// The versions that exist.
    pub versions: RangeInclusive<i16>,
    /// Decodes bytes that must be one whole message; returns what they say and how they are encoded again.
    pub round_trip: fn(Bytes, i16) -> RoundTrip,
    /// Decodes and drops: the cheapest way to feed a decoder with anything.
    pub decode: fn(Bytes, i16) -> Result<(), DecodeError>,
}

impl Codec {
    /// The codec of a message type.
    pub const fn of<M: Message>() -> Self {
        Self { name: M::NAME, versions: M::VERSIONS, round_trip: round_trip::<M>, decode: decode::<M> }
    }
}

fn round_trip<M: Message>(bytes: Bytes, version: i16) -> RoundTrip {
    let message = M::from_bytes(bytes, version)?;
    Ok((message.to_json(version), message.to_bytes(version)))
}

fn decode<M: Message>(bytes: Bytes, version: i16) -> Result<(), DecodeError> {
    M::from_bytes(bytes, version).map(drop)
}
