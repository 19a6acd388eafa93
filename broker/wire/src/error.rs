//! What can be wrong with bytes, and with a message that is to become bytes.
//!
//! Made by [`Reader`](crate::Reader) and [`Writer`](crate::Writer); the server maps them to Kafka's error codes, never by their text.

use thiserror::Error;

/// Bytes that are not what they should be, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind} (at byte {offset})")]
pub struct DecodeError {
    /// The position in the buffer that was being read.
    pub offset: usize,
    /// What is wrong there.
    pub kind: DecodeErrorKind,
}

/// The ways in which bytes can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeErrorKind {
    /// The buffer ends before the value does.
    #[error("{needed} bytes are needed, {remaining} are left")]
    Truncated {
        /// How many bytes the value takes.
        needed: usize,
        /// How many there are.
        remaining: usize,
    },
    /// Bytes are left after the last value.
    #[error("{0} bytes are left after the last field")]
    Trailing(usize),
    /// A variable-length number is longer than its value needs or than its type allows.
    #[error("a variable-length number is over-long")]
    OverlongVarint,
    /// A length below zero where null is not allowed.
    #[error("null where a value is required")]
    Null,
    /// An array that claims more elements than are allowed or than the rest of the buffer can hold.
    #[error("an array claims {length} elements, at most {limit} are possible here")]
    ArrayTooLong {
        /// The claimed length.
        length: u64,
        /// What the limit and the rest of the buffer allow.
        limit: u64,
    },
    /// A string above Kafka's limit of 32,767 bytes.
    #[error("a string claims {0} bytes, at most 32767 are allowed")]
    StringTooLong(usize),
    /// Text that is not UTF-8.
    #[error("text is not UTF-8: {0}")]
    NotUtf8(#[from] gregor_types::NotUtf8),
    /// More tagged fields than anybody sends.
    #[error("{0} tagged fields, at most 10000 are allowed")]
    TooManyTags(u32),
    /// A tagged field whose value is shorter than its stated size.
    #[error("tagged field {tag} leaves {unread} of its bytes unread")]
    TagSize {
        /// The tag.
        tag: u32,
        /// What its decoder left.
        unread: usize,
    },
    /// A version that this message does not have.
    #[error("{message} has no version {version}")]
    UnsupportedVersion {
        /// The message's name.
        message: &'static str,
        /// The version that was asked for.
        version: i16,
    },
    /// A frame, type or key whose number is not known.
    #[error("unknown {what} {value}")]
    Unknown {
        /// What kind of number it is.
        what: &'static str,
        /// The number.
        value: i64,
    },
}

/// A message that cannot be written in the version that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// The message does not have this version.
    #[error("{message} has no version {version}")]
    UnsupportedVersion {
        /// The message's name.
        message: &'static str,
        /// The version that was asked for.
        version: i16,
    },
    /// A field is set that this version cannot carry and that must not be dropped silently.
    #[error("{field} is set, but version {version} has no such field")]
    FieldNotInVersion {
        /// Message and field.
        field: &'static str,
        /// The version that was asked for.
        version: i16,
    },
    /// A field is null where this version needs a value.
    #[error("{field} is null, but this version needs a value")]
    Null {
        /// Message and field.
        field: &'static str,
    },
    /// A string, blob or array that its length prefix cannot express.
    #[error("a value of {length} bytes or elements is longer than {limit}")]
    TooLong {
        /// How long it is.
        length: usize,
        /// How long it may be.
        limit: usize,
    },
    /// Unknown tagged fields that are not in ascending order, or that use the tag of a known field.
    #[error("unknown tagged field {0} is out of order or uses the tag of a known field")]
    TagOrder(u32),
}
