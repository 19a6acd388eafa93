//! Configurations of topics, brokers and groups: describe and change.

use std::collections::BTreeMap;

use gregor_messages::{
    DescribeConfigsRequest, IncrementalAlterConfigsRequest,
    describe_configs_request::DescribeConfigsResource,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
};
use gregor_types::{BrokerId, KString};

use super::{Admin, Outcomes, outcome};
use crate::{ClientError, route::Purpose};

/// What a configuration belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfigResource {
    /// The kind of thing.
    pub kind: ResourceKind,
    /// Its name: a topic, a broker's id (empty for the default of all brokers), a group.
    pub name: KString,
}

/// The kinds of things that have configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKind {
    /// A topic.
    Topic,
    /// A broker, or the default of all.
    Broker,
    /// A broker's loggers.
    BrokerLogger,
    /// A subscription to client metrics.
    ClientMetrics,
    /// A consumer group.
    Group,
    /// A kind that this client does not know, by its number.
    Other(i8),
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigSource {
    /// Set on this topic.
    Topic,
    /// Set on this broker while it runs.
    DynamicBroker,
    /// Set on all brokers while they run.
    DynamicDefaultBroker,
    /// In the broker's file.
    StaticBroker,
    /// Kafka's default.
    Default,
    /// Any other, by its number.
    Other(i8),
}

/// One key of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigEntry {
    /// The value; none if it is secret.
    pub value: Option<KString>,
    /// Where it comes from.
    pub source: ConfigSource,
    /// Whether it cannot be changed.
    pub read_only: bool,
    /// Whether its value is never shown.
    pub sensitive: bool,
}

/// What to do with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlterOp {
    /// Set it.
    Set,
    /// Back to the default.
    Delete,
    /// Add to a list.
    Append,
    /// Take from a list.
    Subtract,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigChange {
    /// The key.
    pub key: KString,
    /// What to do.
    pub op: AlterOp,
    /// The value; none with [`AlterOp::Delete`].
    pub value: Option<KString>,
}

impl ConfigResource {
    /// A topic.
    pub fn topic(name: impl Into<KString>) -> Self {
        Self { kind: ResourceKind::Topic, name: name.into() }
    }

    /// A broker.
    pub fn broker(id: BrokerId) -> Self {
        Self { kind: ResourceKind::Broker, name: id.to_string().into() }
    }

    /// The broker that must answer for it, if not any.
    fn broker_id(&self) -> Option<BrokerId> {
        match self.kind {
            ResourceKind::Broker | ResourceKind::BrokerLogger => self.name.parse().ok().map(BrokerId),
            _ => None,
        }
    }

    fn what(&self) -> String {
        let kind = match self.kind {
            ResourceKind::Topic => "topic",
            ResourceKind::Broker => "broker",
            ResourceKind::BrokerLogger => "loggers of broker",
            ResourceKind::ClientMetrics => "client metrics",
            ResourceKind::Group => "group",
            ResourceKind::Other(_) => "resource",
        };
        format!("{kind} {}", self.name)
    }
}

impl ConfigChange {
    /// Sets a key.
    pub fn set(key: impl Into<KString>, value: impl Into<KString>) -> Self {
        Self { key: key.into(), op: AlterOp::Set, value: Some(value.into()) }
    }

    /// Brings a key back to its default.
    pub fn delete(key: impl Into<KString>) -> Self {
        Self { key: key.into(), op: AlterOp::Delete, value: None }
    }
}

impl ResourceKind {
    const fn wire(self) -> i8 {
        match self {
            Self::Topic => 2,
            Self::Broker => 4,
            Self::BrokerLogger => 8,
            Self::ClientMetrics => 16,
            Self::Group => 32,
            Self::Other(number) => number,
        }
    }

    const fn from_wire(number: i8) -> Self {
        match number {
            2 => Self::Topic,
            4 => Self::Broker,
            8 => Self::BrokerLogger,
            16 => Self::ClientMetrics,
            32 => Self::Group,
            other => Self::Other(other),
        }
    }
}

impl ConfigSource {
    const fn from_wire(number: i8) -> Self {
        match number {
            1 => Self::Topic,
            2 => Self::DynamicBroker,
            3 => Self::DynamicDefaultBroker,
            4 => Self::StaticBroker,
            5 => Self::Default,
            other => Self::Other(other),
        }
    }
}

impl Admin {
    /// The configurations of some resources, all keys of each.
    pub async fn describe_configs(
        &self,
        resources: &[ConfigResource],
    ) -> Result<Outcomes<ConfigResource, BTreeMap<KString, ConfigEntry>>, ClientError> {
        let mut outcomes = BTreeMap::new();
        for (broker, resources) in by_broker(resources.iter().cloned().map(|resource| (resource, ()))) {
            let rows = resources.iter().map(|(resource, ())| DescribeConfigsResource {
                resource_type: resource.kind.wire(),
                resource_name: resource.name.clone(),
                configuration_keys: None,
                ..Default::default()
            });
            let request = DescribeConfigsRequest { resources: rows.collect(), ..Default::default() };
            let response = self.client.retry(|| async { self.call_for(broker, &request).await }).await?;
            for row in response.results {
                let resource = ConfigResource {
                    kind: ResourceKind::from_wire(row.resource_type),
                    name: row.resource_name.compact(),
                };
                let entries = row.configs.iter().map(|config| {
                    let entry = ConfigEntry {
                        value: config.value.as_ref().map(KString::compact),
                        source: ConfigSource::from_wire(config.config_source),
                        read_only: config.read_only,
                        sensitive: config.is_sensitive,
                    };
                    (config.name.compact(), entry)
                });
                let result = outcome(resource.what(), row.error_code, row.error_message.as_ref(), entries.collect());
                outcomes.insert(resource, result);
            }
        }
        Ok(outcomes)
    }

    /// Changes single keys and leaves the others as they are; with `validate_only` it says whether that would work.
    pub async fn incremental_alter_configs(
        &self,
        changes: &[(ConfigResource, Vec<ConfigChange>)],
        validate_only: bool,
    ) -> Result<Outcomes<ConfigResource, ()>, ClientError> {
        let mut outcomes = BTreeMap::new();
        for (broker, changes) in by_broker(changes.iter().cloned()) {
            let resources = changes.iter().map(|(resource, changes)| AlterConfigsResource {
                resource_type: resource.kind.wire(),
                resource_name: resource.name.clone(),
                configs: changes
                    .iter()
                    .map(|change| AlterableConfig {
                        name: change.key.clone(),
                        config_operation: change.op as i8,
                        value: change.value.clone(),
                        ..Default::default()
                    })
                    .collect(),
                ..Default::default()
            });
            let request =
                IncrementalAlterConfigsRequest { resources: resources.collect(), validate_only, ..Default::default() };
            let response = self.client.retry(|| async { self.call_for(broker, &request).await }).await?;
            for row in response.responses {
                let resource = ConfigResource {
                    kind: ResourceKind::from_wire(row.resource_type),
                    name: row.resource_name.compact(),
                };
                let result = outcome(resource.what(), row.error_code, row.error_message.as_ref(), ());
                outcomes.insert(resource, result);
            }
        }
        Ok(outcomes)
    }

    async fn call_for<R: gregor_messages::Request + Clone>(
        &self,
        broker: Option<BrokerId>,
        request: &R,
    ) -> Result<R::Response, ClientError> {
        match broker {
            Some(broker) => Ok(self.client.broker(broker, Purpose::General)?.call(request).await?),
            None => self.client.call(request).await,
        }
    }
}

/// A broker answers for its own configuration only; everything else can go to any.
fn by_broker<T>(
    resources: impl Iterator<Item = (ConfigResource, T)>,
) -> BTreeMap<Option<BrokerId>, Vec<(ConfigResource, T)>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (resource, rest) in resources {
        groups.entry(resource.broker_id()).or_default().push((resource, rest));
    }
    groups
}
