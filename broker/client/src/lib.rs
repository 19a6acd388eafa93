//! An asynchronous Kafka client: metadata, produce, fetch, administration, groups.
//!
//! The operator, the command line and the mirror stand on it; it speaks to any Kafka broker, as every version is negotiated.
//! Start at [`Client::connect`]; from a client come an [`Admin`], a [`Producer`] and a [`Consumer`]. It writes no file and reads no
//! configuration of its own.

mod admin;
mod cluster;
mod consumer;
mod coordinator;
mod error;
mod options;
mod producer;
mod records;
mod retry;
mod route;

pub use gregor_channel::{ChannelError, ChannelOptions, Security, TlsFailure};
pub use gregor_messages as messages;
pub use gregor_types as types;

pub use admin::{
    Admin, AlterOp, ClusterDescription, ConfigChange, ConfigEntry, ConfigResource, ConfigSource, CreatedTopic,
    GroupDescription, GroupListing, GroupMember, ListedOffset, NewPartitions, NewTopic, NewVoter, NodeDescription,
    OffsetSpec, Outcomes, QuorumDescription, QuorumReplica, ResourceKind, TopicDescription,
};
pub use cluster::{Client, Cluster, Endpoint, Partition, Topic};
pub use consumer::{Assignment, CommittedOffset, Consumer, FetchedRecord, OffsetReset, StartOffset};
pub use error::{BrokerError, ClientError};
pub use options::{Acks, ClientOptions, Compression, CompressionType, ConsumerOptions, ProducerOptions};
pub use producer::{Delivery, Producer, ProducerRecord, Stored, murmur2};
