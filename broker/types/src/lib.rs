//! Newtypes, identifiers and error codes that every other crate speaks in.
//!
//! A number that Kafka gives a meaning (an offset, an epoch, a broker's id) has a type here, so that
//! two of them cannot be swapped by accident. This crate does no I/O and depends on none of our own.

mod error_code;
mod ids;
mod kstring;
pub mod planted;
mod topic;
mod uuid;

pub use error_code::ErrorCode;
pub use ids::{
    BrokerEpoch, BrokerId, GenerationId, LeaderEpoch, Offset, PartitionIndex, ProducerEpoch, ProducerId, Timestamp,
};
pub use kstring::{KString, NotUtf8};
pub use topic::{TopicNameError, TopicPartition, check_topic_name, is_internal_topic};
pub use uuid::{ParseUuidError, Uuid};

/// The id of a topic.
pub type TopicId = Uuid;
/// The id of a log directory: `directory.id` of its `meta.properties`.
pub type DirectoryId = Uuid;
/// The id of a cluster. Kafka treats it as text, though tools write a [`Uuid`].
pub type ClusterId = KString;
