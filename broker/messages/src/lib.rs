//! Every RPC of Kafka's protocol as a Rust struct, generated from our own schema.
//!
//! One module per message: `metadata_request::{MetadataRequest, MetadataRequestTopic}`; top-level structs are also here at the
//! root. A struct is made with `..Default::default()`, whose values are the schema's defaults. Encoding fails on a field that is
//! set, that the version does not have and that Kafka does not allow to drop. Produce and Fetch have hand-written views in
//! `gregor-wire` for the hot path; the structs here are what those are tested against.

mod api_key;
mod generated;

pub use api_key::Listener;
pub use generated::*;

use gregor_wire::Message;

/// A request, with what it asks for and what answers it.
pub trait Request: Message {
    /// The API.
    const KEY: ApiKey;
    /// The answer.
    type Response: Message;
}
