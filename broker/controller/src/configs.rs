//! Dynamic configuration of topics, brokers, groups and client metrics (`ConfigurationControlManager`, `ControllerConfigurationValidator`).
//!
//! A resource is changed as a whole or not at all; several resources in one request do not depend on each other.

use std::collections::{BTreeMap, BTreeSet};

use gregor_config::{
    ConfigKey, Kind, Support, Update, changes_per_listener_only, client_metrics_key, cordoned, group_key,
    prefixed_broker_key, topic_key, validate_topic_config,
};
use gregor_messages::{
    AlterConfigsRequest, AlterConfigsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
    alter_configs_response, incremental_alter_configs_request, incremental_alter_configs_response,
};
use gregor_metadata::{ConfigResource, Image, ResourceType, VersionedRecord};
use gregor_state_records::metadata::{ClearElrRecord, ConfigRecord, MetadataRecord};
use gregor_types::{BrokerId, ErrorCode, KString};

use crate::{
    Refusal, client_metrics, elections,
    plan::Plan,
    refusal::{code_of, text_of},
};

/// What a record can hold.
const MAX_VALUE_BYTES: usize = 32_767;

const CORDONED_LOG_DIRS: &str = "cordoned.log.dirs";
const MIN_IN_SYNC_REPLICAS: &str = "min.insync.replicas";
pub(crate) const UNCLEAN_ELECTION: &str = "unclean.leader.election.enable";

type Values = BTreeMap<KString, KString>;

pub(crate) fn change(plan: &mut Plan<'_>, request: &IncrementalAlterConfigsRequest) -> IncrementalAlterConfigsResponse {
    let start = plan.mark();
    let resources: Vec<_> =
        request.resources.iter().map(|resource| (resource.resource_type, resource.resource_name.clone())).collect();
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in &request.resources {
        let mark = plan.mark();
        let named =
            ConfigResource::new(ResourceType::from_code(resource.resource_type), resource.resource_name.clone());
        let result = check_once(&resources, resource.resource_type, &resource.resource_name)
            .and_then(|()| values_after(&plan.image, &named, &resource.configs))
            .and_then(|values| put(plan, &named, &values, resource.configs.iter().map(|config| &config.name)));
        let result = plan.keep(mark, result);
        responses.push(incremental_alter_configs_response::AlterConfigsResourceResponse {
            error_code: code_of(&result),
            error_message: text_of(&result),
            resource_type: resource.resource_type,
            resource_name: resource.resource_name.clone(),
            ..Default::default()
        });
    }
    if request.validate_only {
        plan.undo(start);
    }
    IncrementalAlterConfigsResponse { responses, ..Default::default() }
}

/// AlterConfigs: what is not named is removed.
pub(crate) fn replace(plan: &mut Plan<'_>, request: &AlterConfigsRequest) -> AlterConfigsResponse {
    let start = plan.mark();
    let resources: Vec<_> =
        request.resources.iter().map(|resource| (resource.resource_type, resource.resource_name.clone())).collect();
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in &request.resources {
        let mark = plan.mark();
        let named =
            ConfigResource::new(ResourceType::from_code(resource.resource_type), resource.resource_name.clone());
        let values = resource.configs.iter().map(|config| match &config.value {
            Some(value) => Ok((config.name.clone(), value.clone())),
            None => {
                Err(Refusal::new(ErrorCode::InvalidRequest, format!("Null value not supported for : {}", config.name)))
            }
        });
        let result = check_once(&resources, resource.resource_type, &resource.resource_name)
            .and_then(|()| check_unique(resource.configs.iter().map(|config| &config.name)))
            .and_then(|()| values.collect())
            .and_then(|values| put(plan, &named, &values, resource.configs.iter().map(|config| &config.name)));
        let result = plan.keep(mark, result);
        responses.push(alter_configs_response::AlterConfigsResourceResponse {
            error_code: code_of(&result),
            error_message: text_of(&result),
            resource_type: resource.resource_type,
            resource_name: resource.resource_name.clone(),
            ..Default::default()
        });
    }
    if request.validate_only {
        plan.undo(start);
    }
    AlterConfigsResponse { responses, ..Default::default() }
}

/// Whether records may let replicas lead that were not in sync: by a value of a topic, a node or all nodes, or by one that is gone and
/// stood before another. Then what has no leader is looked at again at once; Apache Kafka lets it wait for up to five minutes.
pub(crate) fn may_allow_unclean(records: &[VersionedRecord]) -> bool {
    let allows = |record: &VersionedRecord| match &record.record {
        MetadataRecord::Config(config) => {
            config.name == UNCLEAN_ELECTION
                && config.value.as_deref().is_none_or(|value| !value.eq_ignore_ascii_case("false"))
        }
        _ => false,
    };
    records.iter().any(allows)
}

/// Whether a topic may have these values, each by itself and all together.
pub(crate) fn check_topic_configs<'a>(
    configs: impl Iterator<Item = (&'a KString, Option<&'a KString>)>,
) -> Result<(), Refusal> {
    let mut values = Values::new();
    for (name, value) in configs {
        let Some(value) = value else {
            let message = format!("Null value not supported for topic configs: {name}");
            return Err(Refusal::new(ErrorCode::InvalidConfig, message));
        };
        if values.insert(name.clone(), value.clone()).is_some() {
            return Err(Refusal::new(ErrorCode::InvalidConfig, format!("The key {name} is given twice.")));
        }
    }
    check_topic(&Values::new(), &values)
}

fn check_once(resources: &[(i8, KString)], resource_type: i8, name: &KString) -> Result<(), Refusal> {
    let times = resources.iter().filter(|(other, named)| *other == resource_type && named == name).count();
    if times > 1 {
        return Err(Refusal::new(ErrorCode::InvalidRequest, "Each resource must appear at most once."));
    }
    Ok(())
}

fn check_unique<'a>(names: impl Iterator<Item = &'a KString>) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Refusal::new(ErrorCode::InvalidRequest, "Error due to duplicate config keys"));
        }
    }
    Ok(())
}

/// The values of a resource after the operations of an incremental change. Whether they may be its values is checked apart.
pub fn values_after(
    image: &Image,
    resource: &ConfigResource,
    operations: &[incremental_alter_configs_request::AlterableConfig],
) -> Result<BTreeMap<KString, KString>, Refusal> {
    check_unique(operations.iter().map(|operation| &operation.name))?;
    let mut values: Values = image.configs().of(resource).map(|(name, value)| (name.clone(), value.clone())).collect();
    for operation in operations {
        let name = operation.name.compact();
        if operation.config_operation == 1 {
            values.remove(&name);
            continue;
        }
        let Some(value) = &operation.value else {
            return Err(Refusal::new(ErrorCode::InvalidRequest, format!("Null value not supported for : {name}")));
        };
        match operation.config_operation {
            0 => {
                values.insert(name, value.compact());
            }
            2 | 3 => {
                let append = operation.config_operation == 2;
                let word = if append { "APPEND" } else { "SUBTRACT" };
                let key =
                    key_of(resource.resource_type, &name).filter(|key| key.kind == Kind::List).ok_or_else(|| {
                        let message = format!("Can't {word} to key {name} because its type is not LIST.");
                        Refusal::new(ErrorCode::InvalidConfig, message)
                    })?;
                let before = values.get(&name).map_or(key.default.unwrap_or_default(), KString::as_str);
                let list = edited(before, value, append);
                values.insert(name, list.into());
            }
            other => {
                let message = format!("Unknown operations type {other}");
                return Err(Refusal::new(ErrorCode::InvalidRequest, message));
            }
        }
    }
    Ok(values)
}

/// A list with items added that it has not, or without items.
fn edited(list: &str, items: &str, append: bool) -> String {
    let split = |text| str::split(text, ',').map(str::trim).filter(|item| !item.is_empty());
    let mut result: Vec<&str> = split(list).collect();
    for item in split(items) {
        if !append {
            result.retain(|present| *present != item);
        } else if !result.contains(&item) {
            result.push(item);
        }
    }
    result.join(",")
}

fn key_of(resource_type: ResourceType, name: &str) -> Option<&'static ConfigKey> {
    match resource_type {
        ResourceType::Topic => topic_key(name),
        ResourceType::Broker => prefixed_broker_key(name),
        ResourceType::Group => group_key(name),
        ResourceType::ClientMetrics => client_metrics_key(name),
        ResourceType::BrokerLogger | ResourceType::Other(_) => None,
    }
}

/// Makes `values` the whole configuration of a resource: checks it, then writes what differs. Of a broker what the request named is written
/// in any case: brokers look again at files whose places they are told once more, such as key stores (KAFKA-14136).
fn put<'a>(
    plan: &mut Plan<'_>,
    resource: &ConfigResource,
    values: &Values,
    named: impl Iterator<Item = &'a KString>,
) -> Result<(), Refusal> {
    let before: Values = plan.image.configs().of(resource).map(|(name, value)| (name.clone(), value.clone())).collect();
    if values.values().any(|value| value.len() > MAX_VALUE_BYTES) {
        return Err(Refusal::new(
            ErrorCode::InvalidConfig,
            format!(
                "The configuration value cannot be added because it exceeds the maximum value size of {MAX_VALUE_BYTES} bytes."
            ),
        ));
    }
    check_resource(plan, resource)?;
    let clears_elr = plan.image.features().has_eligible_leader_replicas()
        && before.get(MIN_IN_SYNC_REPLICAS) != values.get(MIN_IN_SYNC_REPLICAS);
    if clears_elr {
        check_min_in_sync(resource, values)?;
    }
    match resource.resource_type {
        ResourceType::Topic => check_topic(&before, values)?,
        ResourceType::Broker => check_broker(plan, resource, &before, values)?,
        ResourceType::ClientMetrics => {
            altered(&before, values).try_for_each(|(name, value)| client_metrics::check(name, value))?;
        }
        _ => check_group(&before, values)?,
    }
    let record = |name: &KString, value: Option<&KString>| {
        MetadataRecord::Config(ConfigRecord {
            resource_type: resource.resource_type.code(),
            resource_name: resource.name.compact(),
            name: name.clone(),
            value: value.cloned(),
            ..Default::default()
        })
    };
    let is_of_broker = resource.resource_type == ResourceType::Broker;
    let told_again: BTreeSet<_> = if is_of_broker { named.collect() } else { BTreeSet::new() };
    for (name, value) in values {
        if before.get(name) != Some(value) || told_again.contains(name) {
            plan.push(record(name, Some(value)));
        }
    }
    for name in before.keys().filter(|name| !values.contains_key(*name)) {
        plan.push(record(name, None));
    }
    if clears_elr {
        let topic_name = match resource.resource_type {
            ResourceType::Topic => resource.name.compact(),
            _ => KString::default(),
        };
        let before = plan.image.clone();
        plan.push(MetadataRecord::ClearElr(ClearElrRecord { topic_name: topic_name.clone(), ..Default::default() }));
        elections::restore_eligible(plan, &before, &topic_name);
    }
    Ok(())
}

/// KIP-966: who is eligible follows from how many have to be in sync, so all nodes must see the same number.
fn check_min_in_sync(resource: &ConfigResource, values: &Values) -> Result<(), Refusal> {
    let refused = |message: &str| Err(Refusal::new(ErrorCode::InvalidConfig, message));
    match resource.resource_type {
        ResourceType::Broker if !resource.name.is_empty() => {
            refused("Broker-level min.insync.replicas cannot be altered while ELR is enabled.")
        }
        ResourceType::Broker if !values.contains_key(MIN_IN_SYNC_REPLICAS) => {
            refused("Cluster-level min.insync.replicas cannot be removed while ELR is enabled.")
        }
        _ => Ok(()),
    }
}

fn check_resource(plan: &Plan<'_>, resource: &ConfigResource) -> Result<(), Refusal> {
    let invalid = |message: String| Err(Refusal::new(ErrorCode::InvalidRequest, message));
    match resource.resource_type {
        ResourceType::Topic if resource.name.is_empty() => {
            invalid("Default topic resources are not allowed.".to_owned())
        }
        ResourceType::Topic if plan.image.topics().by_name(&resource.name).is_none() => Err(Refusal::new(
            ErrorCode::UnknownTopicOrPartition,
            format!("The topic '{}' does not exist.", resource.name),
        )),
        ResourceType::Broker if resource.name.is_empty() => Ok(()),
        ResourceType::Broker => match resource.name.parse::<i32>() {
            Err(_) => invalid("Unable to parse broker name as a base 10 number.".to_owned()),
            Ok(..0) => invalid("Invalid negative broker ID.".to_owned()),
            Ok(id) if !is_node(&plan.image, BrokerId(id)) => {
                Err(Refusal::new(ErrorCode::BrokerIdNotRegistered, format!("No node with id {id} found.")))
            }
            Ok(_) => Ok(()),
        },
        ResourceType::Group if resource.name.is_empty() => {
            invalid("Default group resources are not allowed.".to_owned())
        }
        ResourceType::Topic | ResourceType::Group => Ok(()),
        ResourceType::ClientMetrics => client_metrics::check_name(&resource.name),
        ResourceType::BrokerLogger => invalid(
            "The levels of loggers, BROKER_LOGGER, cannot be changed while a broker runs; start it with --log or GREGOR_LOG instead."
                .to_owned(),
        ),
        ResourceType::Other(code) => invalid(format!("Unknown resource type {code}.")),
    }
}

/// Whether a broker, or a controller, has this id: either has a configuration of its own (`ConfigResourceExistenceChecker`).
fn is_node(image: &Image, id: BrokerId) -> bool {
    image.cluster().broker(id).is_some() || image.cluster().controller(id).is_some()
}

/// Only what changes is judged: a value that an older or other version stored does not stand in the way of others.
fn altered<'a>(before: &'a Values, values: &'a Values) -> impl Iterator<Item = (&'a KString, &'a KString)> {
    values.iter().filter(|(name, value)| before.get(*name) != Some(*value))
}

fn check_topic(before: &Values, values: &Values) -> Result<(), Refusal> {
    for (name, value) in altered(before, values) {
        validate_topic_config(name, value)
            .map_err(|error| Refusal::new(ErrorCode::InvalidConfig, error.to_string()))?;
    }
    let lag = |key: &str| values.get(key).and_then(|value| value.trim().parse::<i64>().ok());
    if let (Some(min), Some(max)) = (lag("min.compaction.lag.ms"), lag("max.compaction.lag.ms"))
        && min > max
    {
        return Err(Refusal::new(
            ErrorCode::InvalidConfig,
            format!("conflict topic config setting min.compaction.lag.ms ({min}) > max.compaction.lag.ms ({max})"),
        ));
    }
    Ok(())
}

fn check_broker(plan: &Plan<'_>, resource: &ConfigResource, before: &Values, values: &Values) -> Result<(), Refusal> {
    for (name, value) in altered(before, values) {
        // As in Apache Kafka, a key that it does not know is stored: plug-ins of other nodes may read it.
        let Some(key) = prefixed_broker_key(name) else {
            check_dynamic_only(name, value)?;
            continue;
        };
        if key.update == Update::ReadOnly {
            let message = format!("Cannot update these configs dynamically: [{name}]");
            return Err(Refusal::new(ErrorCode::InvalidRequest, message));
        }
        if key.update == Update::PerBroker && resource.name.is_empty() {
            let message = format!("Cannot update these configs at default cluster level: [{name}]");
            return Err(Refusal::new(ErrorCode::InvalidRequest, message));
        }
        let invalid = |message: String| Refusal::new(ErrorCode::InvalidRequest, message);
        if changes_per_listener_only(key) && key.name == name.as_str() {
            return Err(invalid(format!(
                "These security configs can be dynamically updated only per-listener using the listener prefix: [{name}]"
            )));
        }
        key.check(value).map_err(|error| invalid(error.to_string()))?;
        if key.support == Support::Refused && key.default != Some(value.trim()) {
            return Err(invalid(format!("{name} cannot be set: {}", key.documentation)));
        }
        if name == CORDONED_LOG_DIRS {
            check_cordoned(plan, resource, value)?;
        }
    }
    Ok(())
}

/// Keys of brokers that are in no `server.properties` (`DynamicConfig.Broker`).
fn check_dynamic_only(name: &str, value: &str) -> Result<(), Refusal> {
    const RATES: [&str; 3] = [
        "follower.replication.throttled.rate",
        "leader.replication.throttled.rate",
        "replica.alter.log.dirs.io.max.bytes.per.second",
    ];
    if !RATES.contains(&name) {
        return Ok(());
    }
    let why = match value.trim().parse::<i64>() {
        Ok(0..) => return Ok(()),
        Ok(_) => "Value must be at least 0",
        Err(_) => "Not a number of type LONG",
    };
    Err(Refusal::new(ErrorCode::InvalidRequest, format!("Invalid value {value} for configuration {name}: {why}")))
}

/// KIP-1066: only directories that there are can be cordoned, as far as this node can tell: it knows its own.
fn check_cordoned(plan: &Plan<'_>, resource: &ConfigResource, value: &str) -> Result<(), Refusal> {
    if !plan.version().has_cordoned_directories() {
        return Err(Refusal::new(
            ErrorCode::InvalidConfig,
            "The cordoned.log.dirs configuration value cannot be set because it requires metadata.version >= 4.3-IV0",
        ));
    }
    if resource.name != plan.config.broker.node_id.to_string().as_str() {
        return Ok(());
    }
    let known = cordoned(&plan.config.broker.log_dirs, value);
    known.map(drop).map_err(|error| Refusal::new(ErrorCode::InvalidRequest, error.to_string()))
}

fn check_group(before: &Values, values: &Values) -> Result<(), Refusal> {
    for (name, value) in altered(before, values) {
        let invalid = |message: String| Refusal::new(ErrorCode::InvalidConfig, message);
        let key = group_key(name).ok_or_else(|| invalid(format!("Unknown group config name: {name}")))?;
        key.check(value).map_err(|error| invalid(error.to_string()))?;
    }
    Ok(())
}
