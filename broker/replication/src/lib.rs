//! A partition as its leader sees it: in-sync replicas, leader epoch, high watermark.
//!
//! The server calls it under the partition's lock with numbers: log ends, fetch offsets, epochs, the time. It never sees
//! a byte of a record, a socket or a clock, so the simulator runs the same code.
//!
//! Followers stand beside [`LeaderState`] when several nodes replicate; a node alone only leads.

mod epoch;
mod leader;

pub use epoch::{EpochError, check_leader_epoch};
pub use leader::{
    FollowerFetch, FollowerProgress, IsrProposal, LeaderState, NotAReplica, NotEnoughReplicas, PartitionAssignment,
    ReplicationLimits,
};
