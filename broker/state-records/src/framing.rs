//! How records say what they are.
//!
//! Metadata and remote-log records stand behind a frame version, their type and their version, all variable-length. Keys of the
//! coordinators' records stand behind their type, values behind their version, as plain `i16`. The macros here make the enums
//! over the generated lists.

use bytes::Bytes;
use gregor_wire::{DecodeError, DecodeErrorKind, EncodeError, Reader, Writer};
use thiserror::Error;

/// A record that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecordError {
    /// A record of a type that this release does not know. It is skipped and kept, never changed.
    #[error("a record of the unknown type {0}")]
    UnknownType(i16),
    /// Bytes that are not the record that they claim to be.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
}

/// The frame version that Kafka writes; it reads 0 as well.
const FRAME_VERSION: u32 = 1;

/// Writes what stands in front of a framed record.
pub(crate) fn write_frame(writer: &mut Writer, api_key: i16, version: i16) {
    writer.uvarint(FRAME_VERSION);
    writer.uvarint(u32::from(api_key.unsigned_abs()));
    writer.uvarint(u32::from(version.unsigned_abs()));
}

/// Reads what stands in front of a framed record: its type and version.
pub(crate) fn read_frame(reader: &mut Reader) -> Result<(i16, i16), DecodeError> {
    let frame = reader.uvarint()?;
    if frame > FRAME_VERSION {
        return Err(reader.error(DecodeErrorKind::Unknown { what: "frame version", value: i64::from(frame) }));
    }
    let mut number = |what| {
        let value = reader.uvarint()?;
        i16::try_from(value).map_err(|_| reader.error(DecodeErrorKind::Unknown { what, value: i64::from(value) }))
    };
    Ok((number("record type")?, number("record version")?))
}

/// A value of a coordinator's record: its version, then its fields.
pub(crate) fn value_bytes<M: gregor_wire::Message>(message: &M, version: i16) -> Result<Bytes, EncodeError> {
    let mut writer = Writer::new();
    writer.i16(version);
    message.encode(&mut writer, version)?;
    Ok(writer.into_bytes())
}

/// An enum over records that are framed.
macro_rules! framed_records {
    ($name:ident: $($key:literal => $variant:ident($record:ident),)*) => {
        /// A record of this topic.
        #[derive(Debug, Clone, PartialEq)]
        pub enum $name {
            $($variant($record),)*
        }

        impl $name {
            /// The number of the record's type.
            pub const fn api_key(&self) -> i16 {
                match self {
                    $(Self::$variant(_) => $key,)*
                }
            }

            /// Kafka's name of the record's type.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => stringify!($record),)*
                }
            }

            /// The versions in which the record can be written.
            pub const fn versions(&self) -> std::ops::RangeInclusive<i16> {
                match self {
                    $(Self::$variant(_) => <$record as gregor_wire::Message>::VERSIONS,)*
                }
            }

            /// The record with its frame, as it stands in the log.
            pub fn encode_framed(&self, version: i16) -> Result<bytes::Bytes, gregor_wire::EncodeError> {
                let mut writer = gregor_wire::Writer::new();
                crate::framing::write_frame(&mut writer, self.api_key(), version);
                match self {
                    $(Self::$variant(record) => gregor_wire::Message::encode(record, &mut writer, version)?,)*
                }
                Ok(writer.into_bytes())
            }

            /// Reads a record with its frame.
            pub fn decode_framed(bytes: bytes::Bytes) -> Result<Self, crate::RecordError> {
                Self::decode_versioned(bytes).map(|(record, _)| record)
            }

            /// Reads a record with its frame, and says which version it was written in.
            pub fn decode_versioned(bytes: bytes::Bytes) -> Result<(Self, i16), crate::RecordError> {
                let mut reader = gregor_wire::Reader::new(bytes);
                let (api_key, version) = crate::framing::read_frame(&mut reader)?;
                let record = match api_key {
                    $($key => Self::$variant(gregor_wire::Message::decode(&mut reader, version)?),)*
                    unknown => return Err(crate::RecordError::UnknownType(unknown)),
                };
                reader.finish()?;
                Ok((record, version))
            }

            /// The record as Kafka's own converters show it.
            pub fn to_json(&self, version: i16) -> serde_json::Value {
                match self {
                    $(Self::$variant(record) => gregor_wire::Message::to_json(record, version),)*
                }
            }
        }

        $(impl From<$record> for $name {
            fn from(record: $record) -> Self {
                Self::$variant(record)
            }
        })*
    };
}

/// Enums over the keys and the values of a coordinator's records.
macro_rules! coordinator_records {
    ($key_name:ident, $value_name:ident: $($type:literal => $variant:ident($key:ident, $value:ident),)*) => {
        /// The key of a record of this topic.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $key_name {
            $($variant($key),)*
        }

        /// The value of a record of this topic.
        #[derive(Debug, Clone, PartialEq)]
        pub enum $value_name {
            $($variant($value),)*
        }

        impl $key_name {
            /// The number of the record's type.
            pub const fn record_type(&self) -> i16 {
                match self {
                    $(Self::$variant(_) => $type,)*
                }
            }

            /// Kafka's name of the record's type, without `Key`.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => stringify!($variant),)*
                }
            }

            /// The key as it stands in the log: its type, then its fields.
            pub fn encode(&self) -> Result<bytes::Bytes, gregor_wire::EncodeError> {
                let mut writer = gregor_wire::Writer::new();
                writer.i16(self.record_type());
                match self {
                    $(Self::$variant(key) => gregor_wire::Message::encode(key, &mut writer, 0)?,)*
                }
                Ok(writer.into_bytes())
            }

            /// Reads a key.
            pub fn decode(bytes: bytes::Bytes) -> Result<Self, crate::RecordError> {
                let mut reader = gregor_wire::Reader::new(bytes);
                let key = match reader.i16()? {
                    $($type => Self::$variant(gregor_wire::Message::decode(&mut reader, 0)?),)*
                    unknown => return Err(crate::RecordError::UnknownType(unknown)),
                };
                reader.finish()?;
                Ok(key)
            }

            /// The key as Kafka's own converters show it.
            pub fn to_json(&self) -> serde_json::Value {
                match self {
                    $(Self::$variant(key) => gregor_wire::Message::to_json(key, 0),)*
                }
            }
        }

        impl $value_name {
            /// The number of the record's type, which stands in the key.
            pub const fn record_type(&self) -> i16 {
                match self {
                    $(Self::$variant(_) => $type,)*
                }
            }

            /// The versions in which the value can be written.
            pub const fn versions(&self) -> std::ops::RangeInclusive<i16> {
                match self {
                    $(Self::$variant(_) => <$value as gregor_wire::Message>::VERSIONS,)*
                }
            }

            /// The value as it stands in the log: its version, then its fields.
            pub fn encode(&self, version: i16) -> Result<bytes::Bytes, gregor_wire::EncodeError> {
                match self {
                    $(Self::$variant(value) => crate::framing::value_bytes(value, version),)*
                }
            }

            /// Reads the value that belongs to a key of this type.
            pub fn decode(record_type: i16, bytes: bytes::Bytes) -> Result<Self, crate::RecordError> {
                Self::decode_versioned(record_type, bytes).map(|(value, _)| value)
            }

            /// Reads the value that belongs to a key of this type, and says which version it was written in.
            pub fn decode_versioned(record_type: i16, bytes: bytes::Bytes) -> Result<(Self, i16), crate::RecordError> {
                let mut reader = gregor_wire::Reader::new(bytes);
                let version = reader.i16()?;
                let value = match record_type {
                    $($type => Self::$variant(gregor_wire::Message::decode(&mut reader, version)?),)*
                    unknown => return Err(crate::RecordError::UnknownType(unknown)),
                };
                reader.finish()?;
                Ok((value, version))
            }

            /// The value as Kafka's own converters show it.
            pub fn to_json(&self, version: i16) -> serde_json::Value {
                match self {
                    $(Self::$variant(value) => gregor_wire::Message::to_json(value, version),)*
                }
            }
        }
    };
}

pub(crate) use coordinator_records;
pub(crate) use framed_records;
