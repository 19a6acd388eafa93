//! Dynamic configuration and client quotas: what records set, before any default is looked at.

use gregor_state_records::metadata::{
    ClientQuotaRecord, ConfigRecord, MetadataRecord, client_quota_record::EntityData,
};
use gregor_types::KString;
use rpds::RedBlackTreeMapSync;

use crate::ApplyError;

/// What a configuration belongs to (`ConfigResource.Type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// A topic.
    Topic,
    /// A broker by its id, or all brokers by the empty name.
    Broker,
    /// A broker's loggers; never stored.
    BrokerLogger,
    /// A client metrics subscription.
    ClientMetrics,
    /// A consumer, share or streams group.
    Group,
    /// A number that Kafka has not given out yet; kept as it came.
    Other(i8),
}

/// A thing that has a configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfigResource {
    /// What it is.
    pub resource_type: ResourceType,
    /// Which one; empty for the default of all brokers.
    pub name: KString,
}

/// Every stored configuration value, by resource and key.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Configs {
    resources: RedBlackTreeMapSync<ConfigResource, RedBlackTreeMapSync<KString, KString>>,
}

/// To whom a quota applies: pairs of entity type and name, `None` for the default entity; ordered by type.
pub type QuotaEntity = Vec<(KString, Option<KString>)>;

/// Every client quota, by entity and key. Values are compared bit by bit.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClientQuotas {
    entities: RedBlackTreeMapSync<QuotaEntity, RedBlackTreeMapSync<KString, u64>>,
}

impl ResourceType {
    /// The type of a number on the wire.
    pub const fn from_code(code: i8) -> Self {
        match code {
            2 => Self::Topic,
            4 => Self::Broker,
            8 => Self::BrokerLogger,
            16 => Self::ClientMetrics,
            32 => Self::Group,
            other => Self::Other(other),
        }
    }

    /// The number on the wire.
    pub const fn code(self) -> i8 {
        match self {
            Self::Topic => 2,
            Self::Broker => 4,
            Self::BrokerLogger => 8,
            Self::ClientMetrics => 16,
            Self::Group => 32,
            Self::Other(other) => other,
        }
    }
}

impl ConfigResource {
    /// A resource by type and name.
    pub fn new(resource_type: ResourceType, name: impl Into<KString>) -> Self {
        Self { resource_type, name: name.into() }
    }

    /// A topic.
    pub fn topic(name: impl Into<KString>) -> Self {
        Self::new(ResourceType::Topic, name)
    }

    /// The default of all brokers.
    pub const fn all_brokers() -> Self {
        Self { resource_type: ResourceType::Broker, name: KString::from_static("") }
    }
}

impl Configs {
    /// The value that a record set.
    pub fn get(&self, resource: &ConfigResource, key: &str) -> Option<&KString> {
        self.resources.get(resource)?.get(key)
    }

    /// All values of a resource, by key.
    pub fn of(&self, resource: &ConfigResource) -> impl Iterator<Item = (&KString, &KString)> {
        self.resources.get(resource).into_iter().flat_map(RedBlackTreeMapSync::iter)
    }

    /// Every resource that has a value.
    pub fn resources(&self) -> impl Iterator<Item = &ConfigResource> {
        self.resources.keys()
    }

    pub(crate) fn apply(&mut self, record: &ConfigRecord) -> ConfigResource {
        let resource =
            ConfigResource::new(ResourceType::from_code(record.resource_type), record.resource_name.compact());
        let mut values = self.resources.get(&resource).cloned().unwrap_or_default();
        match &record.value {
            Some(value) => values.insert_mut(record.name.compact(), value.compact()),
            None => {
                values.remove_mut(record.name.as_str());
            }
        }
        if values.is_empty() {
            self.resources.remove_mut(&resource);
        } else {
            self.resources.insert_mut(resource.clone(), values);
        }
        resource
    }

    pub(crate) fn remove(&mut self, resource: &ConfigResource) {
        self.resources.remove_mut(resource);
    }

    pub(crate) fn write(&self, emit: &mut impl FnMut(MetadataRecord)) {
        for (resource, values) in &self.resources {
            for (name, value) in values {
                emit(MetadataRecord::Config(ConfigRecord {
                    resource_type: resource.resource_type.code(),
                    resource_name: resource.name.clone(),
                    name: name.clone(),
                    value: Some(value.clone()),
                    ..Default::default()
                }));
            }
        }
    }
}

impl ClientQuotas {
    /// The quota of an entity for a key such as `producer_byte_rate`.
    pub fn get(&self, entity: &QuotaEntity, key: &str) -> Option<f64> {
        self.entities.get(entity)?.get(key).map(|bits| f64::from_bits(*bits))
    }

    /// All quotas: entity, key, value.
    pub fn iter(&self) -> impl Iterator<Item = (&QuotaEntity, &KString, f64)> {
        self.entities
            .iter()
            .flat_map(|(entity, values)| values.iter().map(move |(key, bits)| (entity, key, f64::from_bits(*bits))))
    }

    pub(crate) fn apply(&mut self, record: &ClientQuotaRecord) -> Result<QuotaEntity, ApplyError> {
        let parts = record.entity.iter();
        let mut entity: QuotaEntity =
            parts.map(|part| (part.entity_type.compact(), part.entity_name.as_ref().map(KString::compact))).collect();
        entity.sort();
        if entity.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(ApplyError::AmbiguousQuotaEntity);
        }
        let mut values = self.entities.get(&entity).cloned().unwrap_or_default();
        if record.remove {
            values.remove_mut(record.key.as_str());
        } else {
            values.insert_mut(record.key.compact(), record.value.to_bits());
        }
        if values.is_empty() {
            self.entities.remove_mut(&entity);
        } else {
            self.entities.insert_mut(entity.clone(), values);
        }
        Ok(entity)
    }

    pub(crate) fn write(&self, emit: &mut impl FnMut(MetadataRecord)) {
        for (entity, key, value) in self.iter() {
            let part = |(entity_type, entity_name): &(KString, Option<KString>)| EntityData {
                entity_type: entity_type.clone(),
                entity_name: entity_name.clone(),
                ..Default::default()
            };
            emit(MetadataRecord::ClientQuota(ClientQuotaRecord {
                entity: entity.iter().map(part).collect(),
                key: key.clone(),
                value,
                remove: false,
                ..Default::default()
            }));
        }
    }
}
