//! A partition as its leader and as its followers see it: in-sync replicas, leader epochs, high watermarks, where logs part.
//!
//! The server calls [`LeaderState`] and [`FollowerState`] under the partition's lock, and has a task for each [`Fetcher`]. They
//! get numbers: log ends, fetch offsets, epochs, the time. Nothing here sees a byte of a record, a socket or a clock, so the
//! simulator runs the same code.

mod assignment;
mod epoch;
mod fetcher;
mod follower;
mod leader;
mod proposal;
mod remote;
mod throttle;

pub use assignment::{PartitionAssignment, Registration, ReplicationLimits};
pub use epoch::{EpochEnd, EpochError, History, check_leader_epoch, compare_history};
pub use fetcher::{
    FetchPlan, FetchPosition, Fetcher, FetcherConfig, FetcherId, FollowedPartition, FollowerLog, FollowerStep,
    LogPosition, LogSide, NextRequest, OffsetLookUp, PartitionAnswer, StepFailure, fetcher_index,
};
pub use follower::{FollowerState, LeaderMarks, MovedMarks};
pub use leader::{FollowerProgress, LeaderState, LeadersLog, NotEnoughReplicas};
pub use proposal::{IsrProposal, ProposalAnswer, ProposalOutcome};
pub use remote::{FetchRefused, FollowerFetch, NotAReplica};
pub use throttle::{ReplicationQuota, ThrottledReplicas};
