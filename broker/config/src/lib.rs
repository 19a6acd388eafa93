//! The table of configuration keys, and the typed configurations read through it.
//!
//! One table says of every key of Apache Kafka what its type, default and bounds are, how it changes at run time, and what
//! Gregor does with it. `server.properties`, topic configurations, `DescribeConfigs` and `docs/configuration.md` all come from it.
//! This crate reads texts; opening files is its callers' business.

mod broker;
mod broker_keys;
mod cleaner;
mod client_metrics_keys;
mod cordons;
mod document;
mod group_keys;
mod key;
mod listener;
mod listener_keys;
mod properties;
mod quorum;
mod reader;
mod replication;
mod tables;
mod topic;
mod topic_keys;
mod value;

pub use broker::{BrokerConfig, ProcessRoles, QuorumVoter, Warning};
pub use cleaner::CleanerConfig;
pub use cordons::cordoned;
pub use document::configuration_page;
pub use key::{ConfigKey, Importance, Kind, Support, Update, Valid};
pub use listener::{Endpoint, Listener, SecurityProtocol};
pub use listener_keys::{changes_per_listener_only, prefixed_broker_key};
pub use properties::{Properties, PropertiesError};
pub use replication::{ReplicaSelector, ReplicationConfig};
pub use tables::{broker_key, client_metrics_key, group_key, topic_key};
pub use topic::{CleanupPolicy, CompressionType, TimestampType, TopicConfig, synonyms, validate_topic_config};
pub use value::ConfigError;

pub use {
    broker_keys::BROKER_KEYS, broker_keys::INTERNAL_KEYS, client_metrics_keys::CLIENT_METRICS_KEYS,
    group_keys::GROUP_KEYS, topic_keys::TOPIC_KEYS,
};
