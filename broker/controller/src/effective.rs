//! Which value of a configuration is in effect, where it comes from, and what it would fall back to.
//!
//! CreateTopics and DescribeConfigs answer from here. What is set at run time for one broker counts before what is set for all,
//! that before the node's file, and that before the default.

use gregor_config::{BROKER_KEYS, BrokerConfig, ConfigKey, Kind, TOPIC_KEYS, broker_key, synonyms, topic_key};
use gregor_metadata::{ConfigResource, Image, ResourceType};
use gregor_types::KString;

/// Where a value comes from (`DescribeConfigsResponse.ConfigSource`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "Kafka's own names")]
pub enum ConfigSource {
    TopicConfig = 1,
    DynamicBrokerConfig = 2,
    DynamicDefaultBrokerConfig = 3,
    StaticBrokerConfig = 4,
    DefaultConfig = 5,
    DynamicBrokerLoggerConfig = 6,
    ClientMetricsConfig = 7,
    GroupConfig = 8,
}

/// One of the places that a value can come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synonym {
    /// The key there.
    pub name: &'static str,
    /// Its value there, as it was set.
    pub value: String,
    /// Which place it is.
    pub source: ConfigSource,
}

/// A configuration value in effect.
#[derive(Debug, Clone)]
pub struct EffectiveConfig {
    /// The key's row of the table.
    pub key: &'static ConfigKey,
    /// The value; `None` for a key that is not set and has no default.
    pub value: Option<String>,
    /// Where it comes from.
    pub source: ConfigSource,
    /// Every place that has a value, in the order in which they count.
    pub synonyms: Vec<Synonym>,
}

/// Every key of a topic in effect on this broker.
pub fn topic_configs<'a>(
    image: &'a Image,
    broker: &'a BrokerConfig,
    topic: &'a str,
) -> impl Iterator<Item = EffectiveConfig> + 'a {
    TOPIC_KEYS.iter().map(move |key| resolve_topic(image, broker, topic, key))
}

/// One key of a topic in effect on this broker; `None` for a key that Kafka does not have.
pub fn topic_config(image: &Image, broker: &BrokerConfig, topic: &str, key: &str) -> Option<EffectiveConfig> {
    Some(resolve_topic(image, broker, topic, topic_key(key)?))
}

/// Every key of a broker in effect on it.
pub fn broker_configs<'a>(image: &'a Image, broker: &'a BrokerConfig) -> impl Iterator<Item = EffectiveConfig> + 'a {
    BROKER_KEYS.iter().map(move |key| {
        let synonyms = broker_synonyms(image, broker, key.name);
        finish(key, synonyms, key.default)
    })
}

fn resolve_topic(image: &Image, broker: &BrokerConfig, topic: &str, key: &'static ConfigKey) -> EffectiveConfig {
    let own = image.configs().get(&ConfigResource::topic(topic), key.name);
    let own = own.filter(|value| key.check(value).is_ok());
    let mut all = Vec::new();
    if let Some(value) = own {
        all.push(Synonym { name: key.name, value: value.to_string(), source: ConfigSource::TopicConfig });
    }
    let mut value = own.map(ToString::to_string);
    let mut default = None;
    for &(synonym, factor) in synonyms(key.name) {
        for found in broker_synonyms(image, broker, synonym) {
            if found.source == ConfigSource::DefaultConfig {
                default = default.or(Some(found));
                continue;
            }
            value = value.or_else(|| converted(key, &found.value, factor));
            all.push(found);
        }
    }
    let source = all.first().map_or(ConfigSource::DefaultConfig, |first| first.source);
    match (default, key.default) {
        (Some(default), _) => all.push(default),
        (None, Some(default)) => {
            all.push(Synonym { name: key.name, value: default.to_owned(), source: ConfigSource::DefaultConfig });
        }
        (None, None) => {}
    }
    let value = value.or_else(|| key.default.map(str::to_owned));
    EffectiveConfig { key, value, source, synonyms: all }
}

/// The places where a broker key is set, its default last.
fn broker_synonyms(image: &Image, broker: &BrokerConfig, name: &str) -> Vec<Synonym> {
    let Some(key) = broker_key(name) else { return Vec::new() };
    let own = ConfigResource::new(ResourceType::Broker, KString::from(broker.node_id.to_string()));
    let dynamic = |resource: &ConfigResource, source| {
        let value = image.configs().get(resource, key.name)?;
        Some(Synonym { name: key.name, value: value.to_string(), source })
    };
    let fixed = broker.set_value(key.name).map(|value| Synonym {
        name: key.name,
        value: value.to_owned(),
        source: ConfigSource::StaticBrokerConfig,
    });
    let default = key.default.map(|value| Synonym {
        name: key.name,
        value: value.to_owned(),
        source: ConfigSource::DefaultConfig,
    });
    [
        dynamic(&own, ConfigSource::DynamicBrokerConfig),
        dynamic(&ConfigResource::all_brokers(), ConfigSource::DynamicDefaultBrokerConfig),
        fixed,
        default,
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn finish(key: &'static ConfigKey, synonyms: Vec<Synonym>, default: Option<&str>) -> EffectiveConfig {
    let first = synonyms.first();
    let source = first.map_or(ConfigSource::DefaultConfig, |first| first.source);
    let value = first.map(|first| first.value.clone()).or_else(|| default.map(str::to_owned));
    EffectiveConfig { key, value, source, synonyms }
}

/// A broker's value in the unit of the topic key: hours and minutes as milliseconds, where -1 stays -1.
fn converted(key: &ConfigKey, value: &str, factor: i64) -> Option<String> {
    match (key.kind, factor) {
        (Kind::Long | Kind::Int, 2..) => {
            let number: i64 = value.trim().parse().ok()?;
            Some(if number < 0 { number } else { number.saturating_mul(factor) }.to_string())
        }
        _ => Some(value.to_owned()),
    }
}
