//! KRaft, the consensus under the metadata log (KIP-500, KIP-595, KIP-853), as a machine of values.
//!
//! [`Quorum::step`] takes an input and the present time and says what must happen: write a vote, append a control batch, flush,
//! answer, wake at a time. It is driven by the control thread of the server, and by the simulator. What must not leave before
//! something is on disk carries the [`Token`] of that write, so the order is part of the type and not of somebody's memory.
//!
//! [`snapshot`] writes and reads `.checkpoint` files as bytes, [`control`] the control records of the metadata log.
//!
//! Architecture invariant: nothing here opens a file or a socket, reads a clock or rolls dice. It never holds record bytes longer
//! than one step, and it knows no metadata record: a record is opaque bytes with an offset.
//!
//! Here so far: elections and replication among the voters of a static (`kraft.version` 0) or dynamic (1) quorum, with any number of
//! observers; a follower that is too far behind takes the leader's snapshot. Voters of a dynamic quorum are added, removed and updated,
//! and a static quorum becomes a dynamic one.

mod answers;
mod api;
mod candidate;
mod change;
pub mod control;
mod download;
mod effects;
mod election;
mod follower;
mod leader;
mod log_view;
mod observer;
mod peers;
mod quorum;
mod resigned;
pub mod snapshot;
mod start;
mod time;
mod upgrade;
mod voters;

pub use answers::Response;
pub use api::{LogRead, Origin, Outgoing, Reply, Request, SnapshotRead};
pub use control::ControlRecord;
pub use effects::{AppendError, Batch, Effect, Effects, RequestId, RoleChange, Token};
pub use election::ElectionState;
pub use log_view::{LogView, OffsetAndEpoch, SnapshotId};
pub use quorum::{Config, Input, Quorum, Role};
pub use start::{StartError, check_log, check_voters};
pub use time::{Nanos, Now, Rng};
pub use upgrade::UpgradeError;
pub use voters::{Endpoint, ReplicaKey, Voter, VoterHistory, VoterSet};

/// The name of the metadata log's topic.
pub const METADATA_TOPIC: &str = "__cluster_metadata";
/// The most bytes of one batch that a leader appends (`KafkaRaftClient.MAX_BATCH_SIZE_BYTES`).
pub const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How many bytes of a snapshot one request asks for, unless told otherwise (`controller.quorum.fetch.snapshot.max.bytes`, KIP-1219).
pub const SNAPSHOT_PIECE_BYTES: u32 = 1024 * 1024;
/// The most records of one atomic append (`QuorumController.DEFAULT_MAX_RECORDS_PER_BATCH`).
pub const MAX_BATCH_RECORDS: usize = 10_000;
