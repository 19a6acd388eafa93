//! The control thread: quorum, controller, this broker's registration and heartbeats, on a thread and runtime of their own, so that
//! a slow disk or a busy data path starves no heartbeat.
//!
//! `node.rs` starts it with [`start`] and hands out the [`ControlHandle`]; handlers ask it for the metadata image and send it what
//! only the active controller can do. Committed metadata goes raft -> image -> [`MetadataListener`]. It never touches a partition
//! other than the metadata log's own, and it never serves a socket: requests of
//! other nodes reach it decoded. Its own requests to other controllers leave by `peers.rs`.

mod answers;
mod broker;
mod download;
mod driver;
mod format;
mod handle;
mod metadata_log;
mod open;
mod peers;
mod quorum_state;
mod replay;
mod request;
mod snapshots;
mod start;
mod stepped;
mod surroundings;

pub use format::{FormatError, FormatOptions, Formatted, InitialVoters, format_storage};
pub use handle::{BrokerState, ControlClosed, ControlHandle, ImageUpdate, MetadataListener, QuorumLeader};
pub use metadata_log::MetadataLogError;
pub use open::{ControlError, ControlOptions};
pub use peers::{Heard, NodeRequest, OfBroker, Posted};
pub use quorum_state::QuorumStateError;
pub use replay::ReplayError;
pub use request::{Answered, ControllerRequest, ControllerResponse};
pub use start::{ControlThread, start};
pub use stepped::SteppedControl;
pub use surroundings::Surroundings;
