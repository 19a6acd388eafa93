//! New partitions: placed by us or by hand, of a new topic or added to one (`ReplicationControlManager`).

use gregor_messages::{
    CreatePartitionsRequest, CreatePartitionsResponse,
    create_partitions_request::{CreatePartitionsAssignment, CreatePartitionsTopic},
    create_partitions_response::CreatePartitionsTopicResult,
};
use gregor_metadata::{Image, LeaderRecoveryState, Partition};
use gregor_state_records::metadata::MetadataRecord;
use gregor_types::{BrokerId, ErrorCode, LeaderEpoch, PartitionIndex, TopicId, Uuid};

use crate::{
    MAX_PARTITIONS_PER_REQUEST, Refusal, placement,
    plan::Plan,
    refusal::{code_of, text_of},
};

pub(crate) fn create(plan: &mut Plan<'_>, request: &CreatePartitionsRequest) -> CreatePartitionsResponse {
    let start = plan.mark();
    let mut results = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mark = plan.mark();
        let twice = request.topics.iter().filter(|other| other.name == topic.name).count() > 1;
        let result = if twice {
            Err(Refusal::new(ErrorCode::InvalidRequest, "Duplicate topic name."))
        } else {
            create_for(plan, topic)
        };
        let result = plan.keep(mark, result);
        let result = CreatePartitionsTopicResult {
            name: topic.name.clone(),
            error_code: code_of(&result),
            error_message: text_of(&result),
            ..Default::default()
        };
        // A topic that is named twice is answered once.
        if !twice || !results.contains(&result) {
            results.push(result);
        }
    }
    if request.validate_only {
        plan.undo(start);
    }
    CreatePartitionsResponse { results, ..Default::default() }
}

fn create_for(plan: &mut Plan<'_>, request: &CreatePartitionsTopic) -> Result<(), Refusal> {
    let image = plan.image.clone();
    let Some(topic) = image.topics().by_name(&request.name) else {
        return Err(Refusal::new(
            ErrorCode::UnknownTopicOrPartition,
            "This server does not host this topic-partition.",
        ));
    };
    let invalid = |message: String| Err(Refusal::new(ErrorCode::InvalidPartitions, message));
    let current = topic.partition_count();
    let wanted = usize::try_from(request.count).unwrap_or(0);
    if wanted == current {
        return invalid(format!("Topic already has {current} partition(s)."));
    }
    if wanted < current {
        return invalid(format!(
            "The topic {} currently has {current} partition(s); {} would not be an increase.",
            topic.name, request.count
        ));
    }
    let additional = wanted - current;
    if additional > MAX_PARTITIONS_PER_REQUEST {
        return Err(Refusal::new(
            ErrorCode::PolicyViolation,
            "Excessively large number of additional partitions per request.",
        ));
    }
    let replication_factor =
        topic.partition(PartitionIndex(0)).map(|partition| partition.replicas.len()).ok_or_else(|| {
            let message = format!("Invalid state: topic {} appears to have no partitions.", topic.name);
            Refusal::new(ErrorCode::UnknownServerError, message)
        })?;
    let placed = match &request.assignments {
        Some(assignments) => manual(&image, assignments, additional, current, replication_factor)?,
        None => placement::place(&image, plan.random, additional, replication_factor)?,
    };
    for (offset, replicas) in placed.into_iter().enumerate() {
        push_partition(plan, topic.id, PartitionIndex((current + offset) as i32), replicas)?;
    }
    Ok(())
}

fn manual(
    image: &Image,
    assignments: &[CreatePartitionsAssignment],
    additional: usize,
    first: usize,
    replication_factor: usize,
) -> Result<Vec<Vec<BrokerId>>, Refusal> {
    if assignments.len() != additional {
        return Err(Refusal::new(
            ErrorCode::InvalidReplicaAssignment,
            format!(
                "Attempted to add {additional} additional partition(s), but only {} assignment(s) were specified.",
                assignments.len()
            ),
        ));
    }
    let check = |(offset, assignment): (usize, &CreatePartitionsAssignment)| {
        let index = PartitionIndex((first + offset) as i32);
        check_assignment(image, index, &assignment.broker_ids, Some(replication_factor))
    };
    assignments.iter().enumerate().map(check).collect()
}

/// Whether the replicas that a user chose can be: registered brokers, each once, as many as the others have, one of them up.
pub(crate) fn check_assignment(
    image: &Image,
    index: PartitionIndex,
    brokers: &[i32],
    replication_factor: Option<usize>,
) -> Result<Vec<BrokerId>, Refusal> {
    let brokers = check_brokers(image, brokers, replication_factor)?;
    if !brokers.iter().any(|broker| image.cluster().is_active(*broker)) {
        return Err(Refusal::new(
            ErrorCode::InvalidReplicaAssignment,
            format!(
                "All brokers specified in the manual partition assignment for partition {index} are fenced or in controlled \
                 shutdown."
            ),
        ));
    }
    Ok(brokers)
}

/// The same, without asking whether one of them is up.
pub(crate) fn check_brokers(
    image: &Image,
    brokers: &[i32],
    replication_factor: Option<usize>,
) -> Result<Vec<BrokerId>, Refusal> {
    let invalid = |message: String| Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, message));
    if brokers.is_empty() {
        return invalid("The manual partition assignment includes an empty replica list.".to_owned());
    }
    let mut seen = std::collections::BTreeSet::new();
    for broker in brokers {
        let Some(registered) = image.cluster().broker(BrokerId(*broker)) else {
            return invalid(format!(
                "The manual partition assignment includes broker {broker}, but no such broker is registered."
            ));
        };
        if registered.is_cordoned() {
            return invalid(format!(
                "The manual partition assignment includes broker {broker}, but all its log directories are cordoned."
            ));
        }
        if !seen.insert(*broker) {
            return invalid(format!("The manual partition assignment includes the broker {broker} more than once."));
        }
    }
    if let Some(expected) = replication_factor.filter(|expected| *expected != brokers.len()) {
        return invalid(format!(
            "The manual partition assignment includes a partition with {} replica(s), but this is not consistent with \
             previous partitions, which have {expected} replica(s).",
            brokers.len()
        ));
    }
    Ok(brokers.iter().copied().map(BrokerId).collect())
}

/// Adds the record of a new partition: led by its first replica that is up, in sync with all that are.
pub(crate) fn push_partition(
    plan: &mut Plan<'_>,
    topic: TopicId,
    index: PartitionIndex,
    replicas: Vec<BrokerId>,
) -> Result<(), Refusal> {
    let cluster = plan.image.cluster();
    let isr: Vec<_> = replicas.iter().copied().filter(|replica| cluster.is_active(*replica)).collect();
    let Some(leader) = isr.first().copied() else {
        return Err(Refusal::new(
            ErrorCode::InvalidReplicationFactor,
            format!(
                "Unable to replicate the partition {} time(s): All brokers are currently fenced or in controlled shutdown.",
                replicas.len()
            ),
        ));
    };
    let directory = |replica: &BrokerId| {
        cluster.broker(*replica).map_or(Uuid::DIRECTORY_UNASSIGNED, |broker| broker.default_directory())
    };
    let partition = Partition {
        directories: replicas.iter().map(directory).collect(),
        replicas,
        isr,
        removing: Vec::new(),
        adding: Vec::new(),
        elr: Vec::new(),
        last_known_elr: Vec::new(),
        leader: Some(leader),
        leader_recovery: LeaderRecoveryState::Recovered,
        leader_epoch: LeaderEpoch(0),
        partition_epoch: 0,
    };
    let record = partition.to_record(topic, index, plan.version());
    plan.push(MetadataRecord::Partition(record));
    Ok(())
}
