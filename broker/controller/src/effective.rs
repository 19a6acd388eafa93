//! Which value of a configuration is in effect, where it comes from, and what it would fall back to.
//!
//! CreateTopics and DescribeConfigs answer from here. What is set at run time for one broker counts before what is set for all,
//! that before the node's file, and that before the default.

use std::collections::BTreeSet;

use gregor_config::{
    BROKER_KEYS, BrokerConfig, CLIENT_METRICS_KEYS, ConfigKey, GROUP_KEYS, INTERNAL_KEYS, Kind, TOPIC_KEYS, broker_key,
    prefixed_broker_key, synonyms, topic_key,
};
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
    pub name: KString,
    /// Its value there, as it was set.
    pub value: String,
    /// Which place it is.
    pub source: ConfigSource,
}

/// A configuration value in effect.
#[derive(Debug, Clone)]
pub struct EffectiveConfig {
    /// Its name: the key's, which a listener's prefix may stand before.
    pub name: KString,
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

/// Every key of a broker in effect on it; an internal one where it is set.
pub fn broker_configs<'a>(image: &'a Image, broker: &'a BrokerConfig) -> impl Iterator<Item = EffectiveConfig> + 'a {
    let internal = INTERNAL_KEYS.iter().filter(|key| broker.set_value(key.name).is_some());
    BROKER_KEYS.iter().chain(internal).map(move |key| {
        let own = broker_places(image, broker, &[key.name]);
        let value = own.first().map(|first| first.value.clone());
        let mut names = stand_ins(key.name);
        names.sort_by_key(|name| *name != key.name);
        let places = broker_places(image, broker, &stand_ins(key.name));
        let synonyms: Vec<_> = known_by_first(places, &names).collect();
        EffectiveConfig { value, ..finish(key, synonyms) }
    })
}

/// Every key that is set for one listener of a broker, under its prefix. It stands before the common key at each place
/// (`DynamicBrokerConfig.brokerConfigSynonyms`).
pub fn listener_configs<'a>(image: &'a Image, broker: &'a BrokerConfig) -> impl Iterator<Item = EffectiveConfig> + 'a {
    let of = |resource: &ConfigResource| image.configs().of(resource).map(|(name, _)| name.as_str()).collect();
    let dynamic: [Vec<&str>; 2] = [of(&own_resource(broker)), of(&ConfigResource::all_brokers())];
    let names: BTreeSet<&str> = broker.set_keys().chain(dynamic.into_iter().flatten()).collect();
    names.into_iter().filter(|name| broker_key(name).is_none()).filter_map(move |name| {
        let key = prefixed_broker_key(name)?;
        let names = [name, key.name];
        let synonyms = known_by_first(broker_places(image, broker, &names), &names).collect();
        Some(EffectiveConfig { name: name.into(), ..finish(key, synonyms) })
    })
}

/// One key of a group in effect: its own value, else what the broker's key of that name says (`group.` in front).
pub fn group_configs<'a>(
    image: &'a Image,
    broker: &'a BrokerConfig,
    group: &'a str,
) -> impl Iterator<Item = EffectiveConfig> + 'a {
    GROUP_KEYS.iter().map(move |key| {
        let resource = ConfigResource::new(ResourceType::Group, group);
        let own = image.configs().get(&resource, key.name).filter(|value| key.check(value).is_ok());
        let own = own.map(|value| Synonym {
            name: KString::from_static(key.name),
            value: value.to_string(),
            source: ConfigSource::GroupConfig,
        });
        let name = match key.name {
            "streams.assignor.name" => "group.streams.assignors".to_owned(),
            name => format!("group.{name}"),
        };
        let mut inherited = match broker_key(&name) {
            Some(broker_key) => broker_places(image, broker, &[broker_key.name]),
            None => Vec::new(),
        };
        if inherited.is_empty() {
            inherited.extend(key.default.map(|value| default_of(key.name, value)));
        }
        finish(key, own.into_iter().chain(inherited).collect())
    })
}

/// One key of a client metrics subscription (KIP-714): its own value or the default.
pub fn client_metrics_configs<'a>(
    image: &'a Image,
    subscription: &'a str,
) -> impl Iterator<Item = EffectiveConfig> + 'a {
    CLIENT_METRICS_KEYS.iter().map(move |key| {
        let resource = ConfigResource::new(ResourceType::ClientMetrics, subscription);
        let own = image.configs().get(&resource, key.name).map(|value| Synonym {
            name: KString::from_static(key.name),
            value: value.to_string(),
            source: ConfigSource::ClientMetricsConfig,
        });
        finish(key, own.into_iter().collect())
    })
}

fn resolve_topic(image: &Image, broker: &BrokerConfig, topic: &str, key: &'static ConfigKey) -> EffectiveConfig {
    let own = image.configs().get(&ConfigResource::topic(topic), key.name);
    let own = own.filter(|value| key.check(value).is_ok()).map(|value| Synonym {
        name: KString::from_static(key.name),
        value: value.to_string(),
        source: ConfigSource::TopicConfig,
    });
    let factors = synonyms(key.name);
    let names: Vec<_> = factors.iter().filter_map(|(name, _)| Some(broker_key(name)?.name)).collect();
    let places = broker_places(image, broker, &names);
    let inherited = places.iter().find(|place| place.source != ConfigSource::DefaultConfig);
    let converted = inherited.and_then(|place| {
        let (_, factor) = factors.iter().find(|(name, _)| place.name == *name)?;
        converted(key, &place.value, *factor)
    });
    let source = own.as_ref().or(inherited).map_or(ConfigSource::DefaultConfig, |place| place.source);
    let value = own.as_ref().map(|own| own.value.clone()).or(converted).or_else(|| key.default.map(str::to_owned));
    let name = KString::from_static(key.name);
    EffectiveConfig {
        name,
        key,
        value,
        source,
        synonyms: own.into_iter().chain(known_by_first(places, &names)).collect(),
    }
}

/// Where a broker key and those that stand in for it are set: by place first, and at each place in the order of the names.
fn broker_places(image: &Image, broker: &BrokerConfig, names: &[&str]) -> Vec<Synonym> {
    let own = own_resource(broker);
    let dynamic = |resource: &ConfigResource, name: &str, source| {
        let value = image.configs().get(resource, name)?;
        Some(Synonym { name: name.into(), value: value.to_string(), source })
    };
    let fixed = |name: &str| {
        // `broker.id` is what `node.id` was called; either is both.
        let other = match name {
            "broker.id" => "node.id",
            "node.id" => "broker.id",
            name => name,
        };
        let value = broker.set_value(name).or_else(|| broker.set_value(other))?;
        Some(Synonym { name: name.into(), value: value.to_owned(), source: ConfigSource::StaticBrokerConfig })
    };
    let names = || names.iter().copied();
    let default = |name: &str| Some(default_of(name, broker_key(name)?.default?));
    names()
        .filter_map(|name| dynamic(&own, name, ConfigSource::DynamicBrokerConfig))
        .chain(
            names().filter_map(|name| {
                dynamic(&ConfigResource::all_brokers(), name, ConfigSource::DynamicDefaultBrokerConfig)
            }),
        )
        .chain(names().filter_map(fixed))
        .chain(names().filter_map(default))
        .collect()
}

/// As Apache Kafka tells it: places that come before the first one of the first name are left out, so that a key whose stand-in alone
/// is set has no synonyms.
fn known_by_first<'a>(places: Vec<Synonym>, names: &[&'a str]) -> impl Iterator<Item = Synonym> + use<'a> {
    let first = names.first().copied();
    places.into_iter().skip_while(move |place| Some(place.name.as_str()) != first)
}

fn own_resource(broker: &BrokerConfig) -> ConfigResource {
    ConfigResource::new(ResourceType::Broker, KString::from(broker.node_id.to_string()))
}

/// The broker keys that stand in for a broker key, itself first (`DynamicBrokerConfig.brokerConfigSynonyms`).
fn stand_ins(name: &'static str) -> Vec<&'static str> {
    let families: [&[&'static str]; 4] = [
        &["log.roll.ms", "log.roll.hours"],
        &["log.roll.jitter.ms", "log.roll.jitter.hours"],
        &["log.retention.ms", "log.retention.minutes", "log.retention.hours"],
        &["log.flush.interval.ms", "log.flush.scheduler.interval.ms"],
    ];
    let in_family = |family: &&[&'static str]| match name {
        // The scheduler's interval is a key of its own, too.
        "log.flush.scheduler.interval.ms" => false,
        name => family.contains(&name),
    };
    families.into_iter().find(in_family).map_or_else(|| vec![name], <[_]>::to_vec)
}

fn default_of(name: &str, value: &str) -> Synonym {
    Synonym { name: name.into(), value: value.to_owned(), source: ConfigSource::DefaultConfig }
}

fn finish(key: &'static ConfigKey, synonyms: Vec<Synonym>) -> EffectiveConfig {
    let first = synonyms.first();
    let source = first.map_or(ConfigSource::DefaultConfig, |first| first.source);
    let value = first.map(|first| first.value.clone()).or_else(|| key.default.map(str::to_owned));
    EffectiveConfig { name: KString::from_static(key.name), key, value, source, synonyms }
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
