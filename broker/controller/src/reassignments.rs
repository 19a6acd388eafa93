//! Moving partitions between brokers as a user asks (KIP-455): which replicas are to come and to go, until the new ones are in
//! sync (`PartitionReassignmentReplicas`, `PartitionReassignmentRevert`).
//!
//! A reassignment that names the replicas that there are changes nothing: the tools send one with every move between the log
//! directories of a broker.

use std::collections::BTreeSet;

use gregor_messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, ListPartitionReassignmentsRequest,
    ListPartitionReassignmentsResponse,
    alter_partition_reassignments_request::ReassignablePartition,
    alter_partition_reassignments_response::{ReassignablePartitionResponse, ReassignableTopicResponse},
    list_partition_reassignments_response::{OngoingPartitionReassignment, OngoingTopicReassignment},
};
use gregor_metadata::{Image, Partition, Topic};
use gregor_state_records::metadata::MetadataRecord;
use gregor_types::{BrokerId, ErrorCode, PartitionIndex};

use crate::{
    Refusal, elections,
    partition_change::{Election, PartitionChange},
    partitions::check_brokers,
    plan::Plan,
    refusal::{code_of, text_of},
};

pub(crate) fn alter(
    plan: &mut Plan<'_>,
    request: &AlterPartitionReassignmentsRequest,
) -> AlterPartitionReassignmentsResponse {
    let mut responses = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in &topic.partitions {
            let mark = plan.mark();
            let result = alter_one(plan, &topic.name, partition, request.allow_replication_factor_change);
            let result = plan.keep(mark, result);
            partitions.push(ReassignablePartitionResponse {
                partition_index: partition.partition_index,
                error_code: code_of(&result),
                error_message: text_of(&result),
                ..Default::default()
            });
        }
        responses.push(ReassignableTopicResponse { name: topic.name.clone(), partitions, ..Default::default() });
    }
    AlterPartitionReassignmentsResponse {
        allow_replication_factor_change: request.allow_replication_factor_change,
        responses,
        ..Default::default()
    }
}

fn alter_one(
    plan: &mut Plan<'_>,
    name: &str,
    request: &ReassignablePartition,
    may_change_count: bool,
) -> Result<(), Refusal> {
    let image = plan.image.clone();
    let unknown = |message: String| Refusal::new(ErrorCode::UnknownTopicOrPartition, message);
    let topic = image.topics().by_name(name).ok_or_else(|| unknown(format!("Unable to find a topic named {name}.")))?;
    let index = PartitionIndex(request.partition_index);
    let partition =
        topic.partition(index).ok_or_else(|| unknown(format!("Unable to find partition {name}:{index}.")))?;
    let may_lead = elections::acceptable(&image, partition);
    let mut change = PartitionChange::new(partition, &may_lead, elections::rules_of(plan, topic.id));
    match &request.replicas {
        None => revert(&mut change, topic, index)?,
        Some(target) => {
            let target = check_brokers(&image, target, None)?;
            if !may_change_count {
                check_count(partition, &target)?;
            }
            change.removing = missing(&partition.replicas, &target);
            // What an earlier reassignment added is not where the partition was: to take this one back leads there still.
            change.adding.extend(missing(&target, &partition.replicas));
            change.adding.sort_unstable();
            change.replicas = target.into_iter().chain(change.removing.iter().copied()).collect();
        }
    }
    if let Some(record) = change.build(topic.id, index, image.cluster()) {
        plan.push(MetadataRecord::PartitionChange(record));
    }
    Ok(())
}

/// Back to the replicas from before the reassignment.
fn revert(change: &mut PartitionChange<'_>, topic: &Topic, index: PartitionIndex) -> Result<(), Refusal> {
    if change.removing.is_empty() && change.adding.is_empty() {
        return Err(Refusal::new(ErrorCode::NoReassignmentInProgress, "No partition reassignment is in progress."));
    }
    let adding = std::mem::take(&mut change.adding);
    change.removing.clear();
    change.replicas.retain(|replica| !adding.contains(replica));
    change.isr.retain(|replica| !adding.contains(replica));
    let refused = |why: &str| {
        Err(Refusal::new(
            ErrorCode::InvalidReplicaAssignment,
            format!("Unable to revert partition assignment for {}:{index} because {why}.", topic.name),
        ))
    };
    if change.isr.is_empty() && !change.allows_unclean() {
        return refused("it would require an unclean leader election");
    }
    if change.isr.is_empty() && !change.replicas.iter().any(|replica| (change.may_lead)(*replica)) {
        return refused("no replica from before it is up");
    }
    if change.allows_unclean() {
        change.election = Election::Unclean;
    }
    Ok(())
}

/// Whether the partition will have as many replicas as it has, not counting those of a reassignment under way.
fn check_count(partition: &Partition, target: &[BrokerId]) -> Result<(), Refusal> {
    let mut current: BTreeSet<_> = partition.replicas.iter().chain(&partition.adding).collect();
    partition.removing.iter().for_each(|replica| {
        current.remove(replica);
    });
    if current.len() == target.len() {
        return Ok(());
    }
    let message = format!("The replication factor is changed from {} to {}", current.len(), target.len());
    Err(Refusal::new(ErrorCode::InvalidReplicationFactor, message))
}

/// What is in `of` and not in `others`, ascending.
fn missing(of: &[BrokerId], others: &[BrokerId]) -> Vec<BrokerId> {
    let missing: BTreeSet<_> = of.iter().copied().filter(|replica| !others.contains(replica)).collect();
    missing.into_iter().collect()
}

pub(crate) fn list(image: &Image, request: &ListPartitionReassignmentsRequest) -> ListPartitionReassignmentsResponse {
    let ongoing = |topic: &Topic, wanted: &dyn Fn(PartitionIndex) -> bool| {
        let numbers = |brokers: &[BrokerId]| brokers.iter().map(|broker| broker.value()).collect();
        let under_way = topic.partitions().filter(|(index, partition)| {
            wanted(*index) && !(partition.adding.is_empty() && partition.removing.is_empty())
        });
        let partitions: Vec<_> = under_way
            .map(|(index, partition)| OngoingPartitionReassignment {
                partition_index: index.value(),
                replicas: numbers(&partition.replicas),
                adding_replicas: numbers(&partition.adding),
                removing_replicas: numbers(&partition.removing),
                ..Default::default()
            })
            .collect();
        let name = topic.name.clone();
        (!partitions.is_empty()).then(|| OngoingTopicReassignment { name, partitions, ..Default::default() })
    };
    let topics = match &request.topics {
        None => image.topics().iter().filter_map(|topic| ongoing(topic, &|_| true)).collect(),
        Some(topics) => topics
            .iter()
            .filter_map(|asked| {
                let topic = image.topics().by_name(&asked.name)?;
                ongoing(topic, &|index| asked.partition_indexes.contains(&index.value()))
            })
            .collect(),
    };
    ListPartitionReassignmentsResponse { topics, ..Default::default() }
}
