//! Every record that Kafka keeps in its own topics, generated from our own schema, and their framing.
//!
//! One module per topic or file: [`metadata`] (`__cluster_metadata`), [`group`] (`__consumer_offsets`), [`transaction`]
//! (`__transaction_state`), [`share`] (`__share_group_state`), [`remote_log`] (`__remote_log_metadata`), [`control`] (control
//! records), [`raft`] (`quorum-state`), [`log`] (files of a partition). Which version of a record may be written depends on the
//! finalized metadata.version and is the writer's business.

mod framing;
mod generated;

pub use framing::RecordError;
pub use generated::*;
