//! Topics come and go (`ReplicationControlManager.createTopics`, `deleteTopics`, and `ControllerApis` in front of them).

use std::collections::{BTreeMap, BTreeSet};

use gregor_messages::{
    CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest, DeleteTopicsResponse,
    create_topics_request::CreatableTopic,
    create_topics_response::{CreatableTopicConfigs, CreatableTopicResult},
    delete_topics_response::DeletableTopicResult,
};
use gregor_metadata::ConfigResource;
use gregor_state_records::metadata::{ConfigRecord, MetadataRecord, RemoveTopicRecord, TopicRecord};
use gregor_types::{BrokerId, ErrorCode, KString, PartitionIndex, TopicId, Uuid, check_topic_name};

use crate::{
    MAX_PARTITIONS_PER_REQUEST, Refusal,
    configs::check_topic_configs,
    effective,
    partitions::{check_assignment, push_partition},
    placement,
    plan::Plan,
};

/// The topic of the quorum itself.
const METADATA_TOPIC: &str = "__cluster_metadata";

pub(crate) fn create(plan: &mut Plan<'_>, request: &CreateTopicsRequest) -> CreateTopicsResponse {
    let start = plan.mark();
    let mut seen = BTreeMap::new();
    for topic in &request.topics {
        *seen.entry(&topic.name).or_insert(0) += 1;
    }
    let once = || request.topics.iter().filter(|topic| seen[&topic.name] == 1);
    let is_too_large = once().map(|topic| partitions_wanted(plan, topic)).sum::<usize>() > MAX_PARTITIONS_PER_REQUEST;
    let mut answered = BTreeSet::new();
    let mut topics = Vec::with_capacity(seen.len());
    for topic in &request.topics {
        if !answered.insert(&topic.name) {
            continue;
        }
        let result = if is_too_large {
            Err(too_many())
        } else if seen[&topic.name] > 1 {
            Err(Refusal::new(ErrorCode::InvalidRequest, "Duplicate topic name."))
        } else {
            let mark = plan.mark();
            let result = create_one(plan, topic);
            plan.keep(mark, result)
        };
        topics.push(match result {
            Ok(result) => result,
            Err(refusal) => CreatableTopicResult {
                name: topic.name.clone(),
                error_code: refusal.number(),
                error_message: refusal.text(),
                ..Default::default()
            },
        });
    }
    if request.validate_only {
        plan.undo(start);
        for topic in &mut topics {
            // It does not exist, so it has no id.
            topic.topic_id = Uuid::ZERO;
        }
    }
    CreateTopicsResponse { topics, ..Default::default() }
}

/// How many partitions a topic is to have, whether or not it can be had; all of a request are refused for their sum
/// (`ReplicationControlManager.validateTotalNumberOfPartitions`).
fn partitions_wanted(plan: &Plan<'_>, topic: &CreatableTopic) -> usize {
    let wanted = match topic.num_partitions {
        _ if !topic.assignments.is_empty() => return topic.assignments.len(),
        -1 => plan.config.broker.num_partitions,
        given => given,
    };
    usize::try_from(wanted).unwrap_or(0)
}

fn create_one(plan: &mut Plan<'_>, topic: &CreatableTopic) -> Result<CreatableTopicResult, Refusal> {
    check_name(plan, &topic.name)?;
    check_topic_configs(topic.configs.iter().map(|config| (&config.name, config.value.as_ref())))?;
    let placed = if topic.assignments.is_empty() { placed_by_us(plan, topic)? } else { placed_by_hand(plan, topic)? };
    let random = &mut *plan.random;
    let topic_id = Uuid::from_random(|| u128::from(random()) << 64 | u128::from(random()));
    plan.push(MetadataRecord::Topic(TopicRecord { name: topic.name.clone(), topic_id, ..Default::default() }));
    for config in &topic.configs {
        plan.push(MetadataRecord::Config(ConfigRecord {
            resource_type: ConfigResource::topic("").resource_type.code(),
            resource_name: topic.name.clone(),
            name: config.name.clone(),
            value: config.value.clone(),
            ..Default::default()
        }));
    }
    let num_partitions = placed.len() as i32;
    let replication_factor = placed.first().map_or(0, Vec::len) as i16;
    for (index, replicas) in placed.into_iter().enumerate() {
        push_partition(plan, topic_id, PartitionIndex(index as i32), replicas)?;
    }
    let configs = effective::topic_configs(&plan.image, &plan.config.broker, &topic.name);
    let configs = configs.map(|config| CreatableTopicConfigs {
        name: KString::from_static(config.key.name),
        value: config.value.map(KString::from),
        read_only: false,
        config_source: config.source as i8,
        is_sensitive: false,
        ..Default::default()
    });
    Ok(CreatableTopicResult {
        name: topic.name.clone(),
        topic_id,
        num_partitions,
        replication_factor,
        configs: Some(configs.collect()),
        ..Default::default()
    })
}

fn check_name(plan: &Plan<'_>, name: &KString) -> Result<(), Refusal> {
    if name == METADATA_TOPIC {
        return Err(Refusal::new(
            ErrorCode::InvalidRequest,
            "Creation of internal topic __cluster_metadata is prohibited.",
        ));
    }
    check_topic_name(name).map_err(|error| Refusal::new(ErrorCode::InvalidTopicException, error.to_string()))?;
    let topics = plan.image.topics();
    if topics.by_name(name).is_some() {
        return Err(Refusal::new(ErrorCode::TopicAlreadyExists, format!("Topic '{name}' already exists.")));
    }
    // Metric names turn dots into underscores, so two names that differ in them only are one metric.
    let Some(special) = name.find(['.', '_']) else { return Ok(()) };
    let prefix = &name[..special];
    let unified = |name: &str| name.replace('.', "_");
    let neighbours = topics.iter_from(prefix).take_while(|topic| topic.name.starts_with(prefix));
    match neighbours.into_iter().find(|topic| unified(&topic.name) == unified(name)) {
        Some(other) => Err(Refusal::new(
            ErrorCode::InvalidTopicException,
            format!("Topic '{name}' collides with existing topic: {}", other.name),
        )),
        None => Ok(()),
    }
}

fn too_many() -> Refusal {
    Refusal::new(ErrorCode::PolicyViolation, "Excessively large number of partitions per request.")
}

fn placed_by_us(plan: &mut Plan<'_>, topic: &CreatableTopic) -> Result<Vec<Vec<BrokerId>>, Refusal> {
    let replication_factor = match topic.replication_factor {
        -1 => plan.config.broker.default_replication_factor,
        given => given,
    };
    let replication_factor =
        usize::try_from(replication_factor).ok().filter(|factor| *factor > 0).ok_or_else(|| {
            Refusal::new(
                ErrorCode::InvalidReplicationFactor,
                "Replication factor must be larger than 0, or -1 to use the default value.",
            )
        })?;
    let partitions = match topic.num_partitions {
        -1 => plan.config.broker.num_partitions,
        given => given,
    };
    let partitions = usize::try_from(partitions).ok().filter(|partitions| *partitions > 0).ok_or_else(|| {
        Refusal::new(ErrorCode::InvalidPartitions, "Number of partitions was set to an invalid non-positive value.")
    })?;
    placement::place(&plan.image, plan.random, partitions, replication_factor)
}

fn placed_by_hand(plan: &Plan<'_>, topic: &CreatableTopic) -> Result<Vec<Vec<BrokerId>>, Refusal> {
    let invalid = |message: &str| Err(Refusal::new(ErrorCode::InvalidRequest, message));
    if topic.replication_factor != -1 {
        return invalid("A manual partition assignment was specified, but replication factor was not set to -1.");
    }
    if topic.num_partitions != -1 {
        return invalid("A manual partition assignment was specified, but numPartitions was not set to -1.");
    }
    let mut placed: BTreeMap<i32, Vec<BrokerId>> = BTreeMap::new();
    let mut replication_factor = None;
    for assignment in &topic.assignments {
        let index = PartitionIndex(assignment.partition_index);
        if placed.contains_key(&index.value()) {
            return Err(Refusal::new(
                ErrorCode::InvalidReplicaAssignment,
                format!("Found multiple manual partition assignments for partition {index}"),
            ));
        }
        let replicas = check_assignment(&plan.image, index, &assignment.broker_ids, replication_factor)?;
        replication_factor = Some(replicas.len());
        placed.insert(index.value(), replicas);
    }
    if placed.keys().enumerate().any(|(expected, index)| *index != expected as i32) {
        return Err(Refusal::new(
            ErrorCode::InvalidReplicaAssignment,
            "partitions should be a consecutive 0-based integer sequence",
        ));
    }
    Ok(placed.into_values().collect())
}

pub(crate) fn delete(plan: &mut Plan<'_>, request: &DeleteTopicsRequest, version: i16) -> DeleteTopicsResponse {
    // Up to version 5 topics are named; from 6 on each is named or given by id.
    let by_name = request.topic_names.iter().map(|name| (Some(name.clone()), Uuid::ZERO));
    let by_state = request.topics.iter().map(|topic| (topic.name.clone(), topic.topic_id));
    let wanted: Vec<_> = by_name.chain(by_state).collect();
    let enabled = plan.config.broker.delete_topic_enable;
    let mut resolved = Vec::with_capacity(wanted.len());
    for (name, id) in wanted {
        let target = if enabled { find(plan, name.as_ref(), id) } else { Err(deletion_disabled(version)) };
        resolved.push((name, id, target));
    }
    let mut times: BTreeMap<TopicId, usize> = BTreeMap::new();
    for (_, _, target) in &resolved {
        if let Ok(target) = target {
            *times.entry(*target).or_default() += 1;
        }
    }
    let mut responses = Vec::with_capacity(resolved.len());
    for (name, id, target) in resolved {
        let result = target.and_then(|target| {
            if times[&target] > 1 {
                return Err(Refusal::new(ErrorCode::InvalidRequest, "Duplicate topic name."));
            }
            let name = plan.image.topics().by_id(target).map(|topic| topic.name.clone());
            let mark = plan.mark();
            plan.push(MetadataRecord::RemoveTopic(RemoveTopicRecord { topic_id: target, ..Default::default() }));
            plan.keep(mark, Ok((name, target)))
        });
        responses.push(match result {
            Ok((name, topic_id)) => DeletableTopicResult { name, topic_id, ..Default::default() },
            Err(refusal) => DeletableTopicResult {
                name,
                topic_id: id,
                error_code: refusal.number(),
                error_message: refusal.text(),
                ..Default::default()
            },
        });
    }
    DeleteTopicsResponse { responses, ..Default::default() }
}

fn find(plan: &Plan<'_>, name: Option<&KString>, id: TopicId) -> Result<TopicId, Refusal> {
    let topics = plan.image.topics();
    match name {
        None if id == Uuid::ZERO => {
            Err(Refusal::new(ErrorCode::InvalidRequest, "Neither topic name nor id were specified."))
        }
        Some(_) if id != Uuid::ZERO => {
            Err(Refusal::new(ErrorCode::InvalidRequest, "You may not specify both topic name and topic id."))
        }
        None => match topics.by_id(id) {
            Some(topic) => Ok(topic.id),
            None => Err(Refusal::new(ErrorCode::UnknownTopicId, "This server does not host this topic ID.")),
        },
        Some(name) => match topics.by_name(name) {
            Some(topic) => Ok(topic.id),
            None => {
                Err(Refusal::new(ErrorCode::UnknownTopicOrPartition, "This server does not host this topic-partition."))
            }
        },
    }
}

fn deletion_disabled(version: i16) -> Refusal {
    if version < 3 {
        Refusal::new(ErrorCode::InvalidRequest, "This version does not support topic deletion.")
    } else {
        Refusal::new(ErrorCode::TopicDeletionDisabled, "Topic deletion is disabled.")
    }
}
