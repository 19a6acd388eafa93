//! What a broker decides from images, requests and time.
//!
//! [`BrokerLifecycle`] takes a broker from its registration over heartbeats to its controlled shutdown. [`partition_actions`] says which
//! partitions to lead, follow and delete as the metadata changes, [`choose_directory`] where a new one goes, [`is_stray`] which ones on
//! disk are not this broker's any more, [`settle_folders`] which of several is the replica, and [`DirectoryReports`] tells the controller
//! where replicas really are, [`is_to_be_reported`] which of them. [`IsrChanges`] asks it for in-sync replicas.
//! The server's shell and a simulator drive all of it alike. This crate opens no file and no connection and knows no clock.

mod directories;
mod isr_changes;
mod lifecycle;
mod moves;
mod partitions;

pub use directories::{DirectoryReports, LocalDirectory, choose_directory, is_to_be_reported};
pub use isr_changes::{IsrAnswers, IsrChanges, Proposed, alter_partition, alter_partition_answers};
pub use lifecycle::{
    BrokerLifecycle, BrokerPhase, LifecycleConfig, LifecycleEffect, LifecycleError, LifecycleInput, Nanos,
};
pub use moves::{FolderFate, FoundFolder, MoveQuota, settle_folders};
pub use partitions::{PartitionAction, ReplicaRole, is_stray, partition_actions};
