//! The controller: one pure step function that decides about topics, partitions, brokers and configuration.
//!
//! [`Controller::step`] takes a request, a commit, a change of leadership or the passing of time, and says what to append to the
//! metadata log and what to answer. It decides on a speculative [`Image`](gregor_metadata::Image), which holds what it appended and is
//! not committed yet; an answer leaves when what it rests on is committed. When leadership is lost the speculative image is dropped
//! and everything unanswered is refused.
//! The driver (the server's control thread, or a simulator) carries the effects out. This crate knows no log, no socket, no clock and
//! no randomness of its own.

mod brokers;
mod client_metrics;
mod configs;
mod controller;
mod credentials;
mod effective;
mod elections;
mod features;
mod isr;
mod partition_change;
mod partitions;
mod placement;
mod plan;
mod quotas;
mod reassignments;
mod refusal;
mod request;
mod sessions;
mod topics;

pub use configs::values_after;
pub use controller::{Controller, ControllerConfig, Effect, Effects, Input, Nanos, RequestId};
pub use effective::{
    ConfigSource, EffectiveConfig, Synonym, broker_configs, client_metrics_configs, group_configs, listener_configs,
    topic_config, topic_configs,
};
pub use refusal::Refusal;
pub use request::{ControllerRequest, ControllerResponse};

/// How many producer ids a broker gets at once (`ProducerIdsBlock`).
pub const PRODUCER_ID_BLOCK: i32 = 1_000;
/// No request creates more partitions than this (`ReplicationControlManager.MAX_PARTITIONS_PER_BATCH`).
pub const MAX_PARTITIONS_PER_REQUEST: usize = 10_000;
/// No batch has more records than this; what a user asks for lands in one batch or not at all.
pub const MAX_RECORDS_PER_BATCH: usize = 10_000;
/// No batch has more bytes of records than this, which leaves room for their framing below the quorum's 8 MiB.
pub const MAX_BYTES_PER_BATCH: usize = 7 << 20;
