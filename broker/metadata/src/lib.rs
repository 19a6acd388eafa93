//! The image of a cluster: what the metadata records say, and what changed.
//!
//! Controllers and brokers build the same [`Image`] from the same records; [`Image::apply`] is the only thing that changes one.
//! An image is made of persistent maps: a clone costs a few reference counts, so that a controller keeps a committed and a
//! speculative one, and a broker publishes one per batch. Whoever listens gets the [`Changes`] beside it.
//! This crate reads no log, knows no time and decides nothing; deciding is the controller's and the node's part.

mod changes;
mod cluster;
mod configs;
mod features;
mod image;
mod security;
mod snapshot;
mod topics;
mod version;

pub use changes::{Change, Changes};
pub use cluster::{BrokerRegistration, Cluster, ControllerRegistration, Endpoint, SecurityProtocol, VersionRange};
pub use configs::{ClientQuotas, ConfigResource, Configs, QuotaEntity, ResourceType};
pub use features::{Features, SERVED_FEATURES, ServedFeature, UnservedFeature};
pub use image::{ApplyError, Image, MetadataImage, MetadataPosition};
pub use security::{Acls, DelegationTokens, ScramCredentials};
pub use snapshot::VersionedRecord;
pub use topics::{LeaderRecoveryState, Partition, Topic, Topics};
pub use version::MetadataVersion;

/// The finalized feature whose level says which metadata records may be written.
pub const METADATA_VERSION_FEATURE: &str = "metadata.version";
/// The feature that a control record of the quorum finalizes, never a metadata record.
pub const KRAFT_VERSION_FEATURE: &str = "kraft.version";
/// KIP-966: the feature whose level 1 keeps eligible leader replicas.
pub const ELIGIBLE_LEADER_REPLICAS_FEATURE: &str = "eligible.leader.replicas.version";
