//! One runtime for coordinators, and the group coordinator on it.
//!
//! A coordinator's state is sharded as its internal topic is: one [`Shard`] per partition of which this broker is the leader. A
//! shard is loaded by replaying the partition's records, decides about requests and timers, appends what must outlive it through a
//! [`Journal`], and holds back each response until what it says is committed. The [`group`] coordinator
//! (`__consumer_offsets`) is such a state machine.
//!
//! Pure: no socket, file, clock or randomness; the server's `groups.rs` is the shell around it.

pub mod group;
mod placement;
mod runtime;
mod timers;

pub use placement::{java_hash, partition_for};
pub use runtime::{
    Answer, Environment, Journal, LoggedRecord, Moment, Record, ReplayError, Scope, Shard, StateMachine, Token,
};
