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
mod checked_bytes;
mod checkpoint;
mod cleaner;
mod config;
mod directory;
pub mod disk;
mod dump;
mod epoch_cache;
mod error;
mod file_names;
mod folder;
mod log;
mod meta_properties;
mod moving;
mod producer_snapshot;
mod producer_state;
mod read;
mod recovery;
mod resting;
mod retention;
mod scanner;
mod segment;
mod segment_check;
mod sparse_index;
mod topic_id_file;
mod transaction_index;
mod truncate;

pub use append::{AppendInfo, Appended, MarkerEpoch, Origin};
pub use checkpoint::CheckpointKind;
pub use cleaner::{Cleanable, CleanedSegment, Cleaning, CleaningOptions, CleaningStep};
pub use config::LogConfig;
pub use directory::{DeletedPartition, DirectoryError, FoundPartition, LogDirectory};
pub use disk::Disk;
pub use dump::{Decode, DumpOptions, DumpSummary, dump_file};
pub use epoch_cache::EpochEndOffset;
pub use error::{AppendError, LogError, ReadError};
pub use file_names::PartitionDirectoryKind;
pub use log::{FlushToken, Flushed, PartitionLog};
pub use meta_properties::MetaProperties;
pub use moving::{CopySource, can_have_future};
pub use producer_state::ActiveProducer;
pub use read::{ReadPlan, ReadRequest, Region, TimestampAndOffset};
pub use recovery::{LogOpening, OpenOptions, OpeningProgress};
pub use resting::{RestingLog, Unchecked};
pub use retention::RetentionProgress;
pub use segment_check::SegmentCheck;
pub use transaction_index::AbortedTransaction;
