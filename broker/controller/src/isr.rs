//! What a partition's leader and a replica's broker tell the controller: the in-sync replicas (KIP-497, KIP-903) and the log
//! directories (KIP-858).

use std::collections::BTreeSet;

use gregor_messages::{
    AlterPartitionRequest, AlterPartitionResponse, AssignReplicasToDirsRequest, AssignReplicasToDirsResponse,
    alter_partition_request, alter_partition_response, assign_replicas_to_dirs_response,
};
use gregor_metadata::{LeaderRecoveryState, Partition};
use gregor_state_records::metadata::{MetadataRecord, PartitionChangeRecord};
use gregor_types::{BrokerEpoch, BrokerId, DirectoryId, ErrorCode, PartitionIndex, TopicId, Uuid, planted::planted};

use crate::{
    Refusal, elections,
    partition_change::{Election, PartitionChange},
    plan::Plan,
};

pub(crate) fn alter(plan: &mut Plan<'_>, request: &AlterPartitionRequest, version: i16) -> AlterPartitionResponse {
    let leader = BrokerId(request.broker_id);
    if let Err(refusal) = plan.registered(leader, BrokerEpoch(request.broker_epoch)) {
        return AlterPartitionResponse { error_code: refusal.number(), ..Default::default() };
    }
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for partition in &topic.partitions {
            partitions.push(alter_one(plan, leader, topic.topic_id, partition, version));
        }
        topics.push(alter_partition_response::TopicData { topic_id: topic.topic_id, partitions, ..Default::default() });
    }
    AlterPartitionResponse { topics, ..Default::default() }
}

fn alter_one(
    plan: &mut Plan<'_>,
    leader: BrokerId,
    topic: TopicId,
    request: &alter_partition_request::PartitionData,
    version: i16,
) -> alter_partition_response::PartitionData {
    let index = PartitionIndex(request.partition_index);
    let answer = |error: ErrorCode| alter_partition_response::PartitionData {
        partition_index: request.partition_index,
        error_code: error as i16,
        ..Default::default()
    };
    let image = plan.image.clone();
    if image.topics().by_id(topic).is_none() {
        return answer(ErrorCode::UnknownTopicId);
    }
    let Some(partition) = image.topics().partition(topic, index) else {
        return answer(ErrorCode::UnknownTopicOrPartition);
    };
    let new_isr: Vec<(BrokerId, BrokerEpoch)> = if version >= 3 {
        let members = request.new_isr_with_epochs.iter();
        members.map(|member| (BrokerId(member.broker_id), BrokerEpoch(member.broker_epoch))).collect()
    } else {
        request.new_isr.iter().map(|member| (BrokerId(*member), BrokerEpoch::NONE)).collect()
    };
    let recovery = match check(plan, leader, partition, request, &new_isr) {
        Ok(recovery) => recovery,
        Err(error) => return answer(error),
    };
    let may_lead = elections::acceptable(&image, partition);
    let rules = elections::rules_of(plan, topic);
    let mut change = PartitionChange::new(partition, &may_lead, rules);
    change.isr = new_isr.iter().map(|(member, _)| *member).collect();
    change.recovery = recovery;
    if rules.unclean {
        change.election = Election::Unclean;
    }
    if let Some(record) = change.build(topic, index, image.cluster()) {
        let mark = plan.mark();
        plan.push(MetadataRecord::PartitionChange(record));
        if plan.keep(mark, Ok(())).is_err() {
            return answer(ErrorCode::OperationNotAttempted);
        }
    }
    let Some(partition) = plan.image.topics().partition(topic, index) else {
        return answer(ErrorCode::UnknownTopicOrPartition);
    };
    if partition.leader != Some(leader) {
        // The change is done, and the sender leads no more: it is told to read the metadata instead.
        return answer(ErrorCode::NewLeaderElected);
    }
    alter_partition_response::PartitionData {
        leader_id: leader.value(),
        leader_epoch: partition.leader_epoch.value(),
        isr: partition.isr.iter().map(|member| member.value()).collect(),
        leader_recovery_state: partition.leader_recovery.code(),
        partition_epoch: partition.partition_epoch,
        ..answer(ErrorCode::None)
    }
}

fn check(
    plan: &Plan<'_>,
    leader: BrokerId,
    partition: &Partition,
    request: &alter_partition_request::PartitionData,
    new_isr: &[(BrokerId, BrokerEpoch)],
) -> Result<LeaderRecoveryState, ErrorCode> {
    // A leader that knows more than we do has heard of a newer controller.
    if request.leader_epoch > partition.leader_epoch.value() || request.partition_epoch > partition.partition_epoch {
        return Err(ErrorCode::NotController);
    }
    if request.leader_epoch < partition.leader_epoch.value() {
        return Err(ErrorCode::FencedLeaderEpoch);
    }
    if partition.leader != Some(leader) {
        return Err(ErrorCode::InvalidRequest);
    }
    if request.partition_epoch < partition.partition_epoch {
        return Err(ErrorCode::InvalidUpdateVersion);
    }
    let known = |member: &(BrokerId, BrokerEpoch)| partition.replicas.contains(&member.0);
    let distinct: BTreeSet<_> = new_isr.iter().map(|(member, _)| *member).collect();
    if !new_isr.iter().all(known) || distinct.len() != new_isr.len() || !distinct.contains(&leader) {
        return Err(ErrorCode::InvalidRequest);
    }
    let recovery = LeaderRecoveryState::from_code(request.leader_recovery_state).ok_or(ErrorCode::InvalidRequest)?;
    if recovery == LeaderRecoveryState::Recovering
        && (new_isr.len() > 1 || partition.leader_recovery == LeaderRecoveryState::Recovered)
    {
        return Err(ErrorCode::InvalidRequest);
    }
    let eligible = |(member, epoch): &(BrokerId, BrokerEpoch)| {
        let broker = plan.image.cluster().broker(*member).filter(|broker| broker.is_active());
        // KIP-903: a broker that restarted since the leader saw it may have lost what made it in sync.
        broker.is_some_and(|broker| {
            *epoch == BrokerEpoch::NONE || *epoch == broker.epoch || planted("earlier-life-joins")
        })
    };
    if new_isr.iter().all(eligible) { Ok(recovery) } else { Err(ErrorCode::IneligibleReplica) }
}

pub(crate) fn assign_directories(
    plan: &mut Plan<'_>,
    request: &AssignReplicasToDirsRequest,
) -> AssignReplicasToDirsResponse {
    let refused =
        |refusal: &Refusal| AssignReplicasToDirsResponse { error_code: refusal.number(), ..Default::default() };
    if !plan.version().has_directory_assignment() {
        return refused(&Refusal::new(ErrorCode::UnsupportedVersion, "Directory assignment is not supported yet."));
    }
    let broker = match plan.registered(BrokerId(request.broker_id), BrokerEpoch(request.broker_epoch)) {
        Ok(broker) => broker,
        Err(refusal) => return refused(&refusal),
    };
    let (mut online, mut offline) = (Vec::new(), Vec::new());
    let mut directories = Vec::with_capacity(request.directories.len());
    for directory in &request.directories {
        let mut topics = Vec::with_capacity(directory.topics.len());
        for topic in &directory.topics {
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for partition in &topic.partitions {
                let index = PartitionIndex(partition.partition_index);
                let result = assign(plan, broker.id, directory.id, topic.topic_id, index);
                if result.is_ok() {
                    let is_online = broker.has_online_directory(directory.id);
                    if is_online { &mut online } else { &mut offline }.push((topic.topic_id, index));
                }
                partitions.push(assign_replicas_to_dirs_response::PartitionData {
                    partition_index: partition.partition_index,
                    error_code: result.err().map_or(0, |error| error as i16),
                    ..Default::default()
                });
            }
            topics.push(assign_replicas_to_dirs_response::TopicData {
                topic_id: topic.topic_id,
                partitions,
                ..Default::default()
            });
        }
        directories.push(assign_replicas_to_dirs_response::DirectoryData {
            id: directory.id,
            topics,
            ..Default::default()
        });
    }
    // A replica in a directory that is gone leads nothing, whatever else the broker can do.
    if !offline.is_empty() {
        elections::leave(plan, broker.id, |topic, index, _| offline.contains(&(topic, index)));
    }
    // A broker whose disk was replaced may be the only one in sync before it has told that its replicas are on the new one.
    elections::lead(plan, &online);
    AssignReplicasToDirsResponse { directories, ..Default::default() }
}

fn assign(
    plan: &mut Plan<'_>,
    broker: BrokerId,
    directory: DirectoryId,
    topic: TopicId,
    index: PartitionIndex,
) -> Result<(), ErrorCode> {
    let image = plan.image.clone();
    let topics = image.topics();
    topics.by_id(topic).ok_or(ErrorCode::UnknownTopicId)?;
    let partition = topics.partition(topic, index).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    let position =
        partition.replicas.iter().position(|replica| *replica == broker).ok_or(ErrorCode::NotLeaderOrFollower)?;
    let mut directories = partition.directories.clone();
    directories.resize(partition.replicas.len(), Uuid::DIRECTORY_UNASSIGNED);
    if directories[position] == directory {
        return Ok(());
    }
    directories[position] = directory;
    let mark = plan.mark();
    plan.push(MetadataRecord::PartitionChange(PartitionChangeRecord {
        partition_id: index.value(),
        topic_id: topic,
        directories: Some(directories),
        leader: -2,
        leader_recovery_state: -1,
        ..Default::default()
    }));
    plan.keep(mark, Ok(())).map_err(|_: Refusal| ErrorCode::OperationNotAttempted)
}
