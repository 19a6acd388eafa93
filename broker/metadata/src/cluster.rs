//! The nodes of a cluster as they registered: brokers and controllers.

use std::sync::Arc;

use gregor_state_records::metadata::{
    BrokerRegistrationChangeRecord, MetadataRecord, RegisterBrokerRecord, RegisterControllerRecord,
    UnregisterBrokerRecord,
    register_broker_record::{BrokerEndpoint, BrokerFeature},
    register_controller_record::{ControllerEndpoint, ControllerFeature},
};
use gregor_types::{BrokerEpoch, BrokerId, DirectoryId, KString, Uuid};
use rpds::RedBlackTreeMapSync;

use crate::{ApplyError, MetadataVersion};

/// How a listener is secured (`org.apache.kafka.common.security.auth.SecurityProtocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "Kafka's own names")]
pub enum SecurityProtocol {
    Plaintext,
    Ssl,
    SaslPlaintext,
    SaslSsl,
    /// A number that Kafka has not given out yet; kept as it came.
    Other(i16),
}

/// Where a listener of a node is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The listener's name.
    pub listener: KString,
    /// The advertised host.
    pub host: KString,
    /// The advertised port.
    pub port: u16,
    /// How the listener is secured.
    pub security_protocol: SecurityProtocol,
}

/// The levels of a feature that a node supports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRange {
    /// The feature.
    pub feature: KString,
    /// The lowest level supported.
    pub min: i16,
    /// The highest level supported.
    pub max: i16,
}

/// A broker as it registered, and what became of it since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerRegistration {
    /// Its `node.id`.
    pub id: BrokerId,
    /// The offset of the registration's record: a later incarnation has a higher one.
    pub epoch: BrokerEpoch,
    /// The process that registered.
    pub incarnation: Uuid,
    /// Where it is reached, in its own order.
    pub endpoints: Vec<Endpoint>,
    /// The features that it supports.
    pub features: Vec<VersionRange>,
    /// Its `broker.rack`.
    pub rack: Option<KString>,
    /// Fenced brokers lead nothing and are shown to no client.
    pub fenced: bool,
    /// Whether it is on its way down: it leads nothing new.
    pub in_controlled_shutdown: bool,
    /// The ids of its log directories that are online.
    pub directories: Vec<DirectoryId>,
    /// Directories that get no new replica (KIP-1066); `None` where the broker is too old to say.
    pub cordoned_directories: Option<Vec<DirectoryId>>,
}

/// A controller as it registered (KIP-919).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerRegistration {
    /// Its `node.id`.
    pub id: BrokerId,
    /// The process that registered.
    pub incarnation: Uuid,
    /// Left from the migration away from ZooKeeper; kept so that a snapshot loses nothing.
    pub zk_migration_ready: bool,
    /// Where it is reached.
    pub endpoints: Vec<Endpoint>,
    /// The features that it supports.
    pub features: Vec<VersionRange>,
}

/// All registered nodes, by id.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cluster {
    brokers: RedBlackTreeMapSync<BrokerId, Arc<BrokerRegistration>>,
    controllers: RedBlackTreeMapSync<BrokerId, Arc<ControllerRegistration>>,
}

impl SecurityProtocol {
    /// The protocol of a number on the wire.
    pub const fn from_code(code: i16) -> Self {
        match code {
            0 => Self::Plaintext,
            1 => Self::Ssl,
            2 => Self::SaslPlaintext,
            3 => Self::SaslSsl,
            other => Self::Other(other),
        }
    }

    /// The number on the wire.
    pub const fn code(self) -> i16 {
        match self {
            Self::Plaintext => 0,
            Self::Ssl => 1,
            Self::SaslPlaintext => 2,
            Self::SaslSsl => 3,
            Self::Other(other) => other,
        }
    }
}

impl BrokerRegistration {
    /// Whether this broker may lead and join in-sync replicas: unfenced, and not on its way down.
    pub const fn is_active(&self) -> bool {
        !self.fenced && !self.in_controlled_shutdown
    }

    /// Where the broker is reached by this listener.
    pub fn endpoint(&self, listener: &str) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.listener == listener)
    }

    /// Where the controller puts a new replica on this broker: its only directory, or "unassigned" if the broker is to choose,
    /// or "migrating" if it registered before directories had ids (KIP-858).
    pub fn default_directory(&self) -> DirectoryId {
        match self.directories[..] {
            [] => Uuid::DIRECTORY_MIGRATING,
            [only] => only,
            _ => Uuid::DIRECTORY_UNASSIGNED,
        }
    }

    /// Whether every log directory is cordoned: the broker gets no new replicas (KIP-1066).
    pub fn is_cordoned(&self) -> bool {
        let cordoned = self.cordoned_directories.as_deref().unwrap_or_default();
        !self.directories.is_empty() && self.directories.iter().all(|directory| cordoned.contains(directory))
    }

    /// Whether a replica in this directory is, or may be, online. The reserved ids say nothing against it.
    pub fn has_online_directory(&self, directory: DirectoryId) -> bool {
        self.directories.is_empty()
            || directory == Uuid::DIRECTORY_UNASSIGNED
            || directory == Uuid::DIRECTORY_MIGRATING
            || self.directories.contains(&directory)
    }
}

impl Cluster {
    /// A broker's registration.
    pub fn broker(&self, id: BrokerId) -> Option<&Arc<BrokerRegistration>> {
        self.brokers.get(&id)
    }

    /// All registered brokers, fenced ones too, by id.
    pub fn brokers(&self) -> impl Iterator<Item = &Arc<BrokerRegistration>> {
        self.brokers.values()
    }

    /// A controller's registration.
    pub fn controller(&self, id: BrokerId) -> Option<&Arc<ControllerRegistration>> {
        self.controllers.get(&id)
    }

    /// All registered controllers, by id.
    pub fn controllers(&self) -> impl Iterator<Item = &Arc<ControllerRegistration>> {
        self.controllers.values()
    }

    /// Whether the broker is registered, unfenced and not on its way down.
    pub fn is_active(&self, id: BrokerId) -> bool {
        self.brokers.get(&id).is_some_and(|broker| broker.is_active())
    }

    /// Whether the broker is registered and unfenced: clients are told of it.
    pub fn is_unfenced(&self, id: BrokerId) -> bool {
        self.brokers.get(&id).is_some_and(|broker| !broker.fenced)
    }

    pub(crate) fn register_broker(&mut self, record: &RegisterBrokerRecord) {
        let endpoints = record.end_points.iter().map(|endpoint| Endpoint {
            listener: endpoint.name.compact(),
            host: endpoint.host.compact(),
            port: endpoint.port,
            security_protocol: SecurityProtocol::from_code(endpoint.security_protocol),
        });
        let features = record.features.iter().map(|feature| VersionRange {
            feature: feature.name.compact(),
            min: feature.min_supported_version,
            max: feature.max_supported_version,
        });
        let id = BrokerId(record.broker_id);
        let registration = BrokerRegistration {
            id,
            epoch: BrokerEpoch(record.broker_epoch),
            incarnation: record.incarnation_id,
            endpoints: endpoints.collect(),
            features: features.collect(),
            rack: record.rack.as_ref().map(KString::compact),
            fenced: record.fenced,
            in_controlled_shutdown: record.in_controlled_shutdown,
            directories: record.log_dirs.clone(),
            cordoned_directories: record.cordoned_log_dirs.clone(),
        };
        self.brokers.insert_mut(id, Arc::new(registration));
    }

    pub(crate) fn unregister_broker(&mut self, record: &UnregisterBrokerRecord) -> Result<(), ApplyError> {
        let id = BrokerId(record.broker_id);
        self.registered(id, BrokerEpoch(record.broker_epoch))?;
        self.brokers.remove_mut(&id);
        Ok(())
    }

    pub(crate) fn change_broker(&mut self, record: &BrokerRegistrationChangeRecord) -> Result<(), ApplyError> {
        let id = BrokerId(record.broker_id);
        let mut broker = self.registered(id, BrokerEpoch(record.broker_epoch))?;
        match record.fenced {
            -1 => broker.fenced = false,
            0 => {}
            1 => broker.fenced = true,
            value => return Err(ApplyError::UnknownChange { field: "fenced", value }),
        }
        match record.in_controlled_shutdown {
            0 => {}
            1 => broker.in_controlled_shutdown = true,
            value => return Err(ApplyError::UnknownChange { field: "inControlledShutdown", value }),
        }
        if !record.log_dirs.is_empty() {
            broker.directories.clone_from(&record.log_dirs);
        }
        if record.cordoned_log_dirs.is_some() {
            broker.cordoned_directories.clone_from(&record.cordoned_log_dirs);
        }
        self.brokers.insert_mut(id, Arc::new(broker));
        Ok(())
    }

    pub(crate) fn set_fenced(&mut self, id: BrokerId, epoch: BrokerEpoch, fenced: bool) -> Result<(), ApplyError> {
        let broker = BrokerRegistration { fenced, ..self.registered(id, epoch)? };
        self.brokers.insert_mut(id, Arc::new(broker));
        Ok(())
    }

    pub(crate) fn register_controller(&mut self, record: &RegisterControllerRecord) {
        let endpoints = record.end_points.iter().map(|endpoint| Endpoint {
            listener: endpoint.name.compact(),
            host: endpoint.host.compact(),
            port: endpoint.port,
            security_protocol: SecurityProtocol::from_code(endpoint.security_protocol),
        });
        let features = record.features.iter().map(|feature| VersionRange {
            feature: feature.name.compact(),
            min: feature.min_supported_version,
            max: feature.max_supported_version,
        });
        let id = BrokerId(record.controller_id);
        let registration = ControllerRegistration {
            id,
            incarnation: record.incarnation_id,
            zk_migration_ready: record.zk_migration_ready,
            endpoints: endpoints.collect(),
            features: features.collect(),
        };
        self.controllers.insert_mut(id, Arc::new(registration));
    }

    pub(crate) fn unregister_controller(&mut self, id: BrokerId) -> Result<(), ApplyError> {
        if self.controllers.remove_mut(&id) { Ok(()) } else { Err(ApplyError::UnknownController(id)) }
    }

    pub(crate) fn write(&self, version: MetadataVersion, emit: &mut impl FnMut(MetadataRecord)) {
        for broker in self.brokers.values() {
            emit(MetadataRecord::RegisterBroker(broker.to_record(version)));
        }
        if version.has_controller_registration() {
            for controller in self.controllers.values() {
                emit(MetadataRecord::RegisterController(controller.to_record()));
            }
        }
    }

    fn registered(&self, id: BrokerId, epoch: BrokerEpoch) -> Result<BrokerRegistration, ApplyError> {
        let broker = self.brokers.get(&id).ok_or(ApplyError::UnknownBroker(id))?;
        if broker.epoch != epoch {
            return Err(ApplyError::OtherBrokerEpoch { id, registered: broker.epoch, record: epoch });
        }
        Ok(BrokerRegistration::clone(broker))
    }
}

impl BrokerRegistration {
    /// The record that registers this broker as it stands now, with what `version` can hold.
    pub fn to_record(&self, version: MetadataVersion) -> RegisterBrokerRecord {
        let endpoint = |endpoint: &Endpoint| BrokerEndpoint {
            name: endpoint.listener.clone(),
            host: endpoint.host.clone(),
            port: endpoint.port,
            security_protocol: endpoint.security_protocol.code(),
            ..Default::default()
        };
        let feature = |range: &VersionRange| BrokerFeature {
            name: range.feature.clone(),
            min_supported_version: range.min,
            max_supported_version: range.max,
            ..Default::default()
        };
        RegisterBrokerRecord {
            broker_id: self.id.value(),
            incarnation_id: self.incarnation,
            broker_epoch: self.epoch.value(),
            end_points: self.endpoints.iter().map(endpoint).collect(),
            features: self.features.iter().map(feature).collect(),
            rack: self.rack.clone(),
            fenced: self.fenced,
            in_controlled_shutdown: self.in_controlled_shutdown,
            log_dirs: if version.has_directory_assignment() { self.directories.clone() } else { Vec::new() },
            cordoned_log_dirs: self.cordoned_directories.clone().filter(|_| version.has_cordoned_directories()),
            ..Default::default()
        }
    }
}

impl ControllerRegistration {
    /// The record that registers this controller as it stands now.
    pub fn to_record(&self) -> RegisterControllerRecord {
        let endpoint = |endpoint: &Endpoint| ControllerEndpoint {
            name: endpoint.listener.clone(),
            host: endpoint.host.clone(),
            port: endpoint.port,
            security_protocol: endpoint.security_protocol.code(),
            ..Default::default()
        };
        let feature = |range: &VersionRange| ControllerFeature {
            name: range.feature.clone(),
            min_supported_version: range.min,
            max_supported_version: range.max,
            ..Default::default()
        };
        RegisterControllerRecord {
            controller_id: self.id.value(),
            incarnation_id: self.incarnation,
            zk_migration_ready: self.zk_migration_ready,
            end_points: self.endpoints.iter().map(endpoint).collect(),
            features: self.features.iter().map(feature).collect(),
            ..Default::default()
        }
    }
}
