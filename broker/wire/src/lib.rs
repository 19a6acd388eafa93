//! Bytes on the wire: primitives, limits, headers, hot views, record batches, compression.
//!
//! Everything that turns frames or files into values and back stands on this crate. It holds no connection and no file, and it
//! never allocates from a length that the peer claims.

pub mod batch;
pub mod compression;
mod cursor;
mod error;
pub mod fetch;
mod header;
mod json;
mod message;
pub mod produce;
mod reader;
mod tags;
mod writer;

pub use error::{DecodeError, DecodeErrorKind, EncodeError};
pub use header::{RequestHeader, ResponseHeader};
pub use json::{JsonObject, Show};
pub use message::{Codec, Message, RoundTrip, Struct};
pub use reader::{Element, MAX_ARRAY_LENGTH, MAX_STRING_LENGTH, MAX_TAGS, Reader};
pub use tags::{RawTag, RawTags, TagWriter};
pub use writer::Writer;
