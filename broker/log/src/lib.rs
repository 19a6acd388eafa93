//! A partition's log in Kafka's files: append, read plan, recovery, retention, checkpoints.
//!
//! The server keeps one [`PartitionLog`] per partition behind that partition's lock, and one [`LogDirectory`] per entry of
//! `log.dirs`; the metadata quorum keeps one more for `__cluster_metadata`. The files are Kafka's, byte for byte, so that
//! a directory can be taken over from Apache Kafka and given back.
//!
//! Architecture Invariant: this crate starts no thread, knows no clock and maps no file. Long work (recovery, retention)
//! is `step(budget)`; time comes in as `now`; every access to a file goes through [`Disk`]; a sync is a token that the
//! caller completes where it may block.

mod append;
mod config;
pub mod disk;
mod error;
mod log;
mod read;

pub use append::{AppendInfo, Appended};
pub use config::LogConfig;
pub use disk::Disk;
pub use error::{AppendError, LogError, ReadError};
pub use log::*;
pub use read::{ReadPlan, ReadRequest, Region, TimestampAndOffset};
