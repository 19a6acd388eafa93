//! The shell of a node: listeners, connections, dispatch, and the threads around the pure crates.
//!
//! A newcomer reads `node.rs` (what is started, in which order), `connection.rs` (one request after the other), `dispatch.rs`
//! (who answers it), `api/produce.rs` and `api/fetch.rs` (the data path), `partition.rs` (one partition behind its lock).
//! The shell moves bytes and asks; what can be decided from numbers alone is decided in the crates below it.

mod api;
mod append_mode;
mod append_watch;
mod cleaner;
mod clock;
mod close;
mod connection;
pub mod control;
pub mod controller_link;
mod directory_reports;
mod dispatch;
mod doors;
mod envelope;
mod fetch_sessions;
mod fetchers;
mod frame;
mod groups;
mod health;
mod held_log;
mod histogram;
mod housekeeper;
mod isr_changes;
mod listener;
mod memory;
mod metrics;
mod moves;
mod node;
mod partition;
mod partitions;
mod producer_ids;
mod pulse;
mod random;
mod recovery;
mod reply;
mod sample;
mod storage;
mod sync;
mod throttles;
mod tls;
mod tls_dialing;
mod tls_listener;
mod topic_settings;
mod transport;
mod waiters;

pub use node::{Failures, Node, NodeOptions, ShutdownError, StartError};
pub use storage::StorageError;
pub use topic_settings::{Throttled, TopicSettings};
