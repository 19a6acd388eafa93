//! Partitions move between brokers: new replicas come, and the old ones go once the new ones are in sync (KIP-455).

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Rig, assert_error, assigned, ids};
use gregor_messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, AlterPartitionRequest,
    AlterPartitionResponse, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
    alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic},
    alter_partition_reassignments_response::ReassignablePartitionResponse,
    alter_partition_request::{BrokerState, PartitionData, TopicData},
};
use gregor_types::{BrokerId, ErrorCode, Uuid};

fn reassign_in(
    rig: &mut Rig,
    (topic, index): (&str, i32),
    replicas: Option<&[i32]>,
    may_change_count: bool,
) -> ReassignablePartitionResponse {
    let partition =
        ReassignablePartition { partition_index: index, replicas: replicas.map(<[_]>::to_vec), ..Default::default() };
    let topic = ReassignableTopic { name: topic.into(), partitions: vec![partition], ..Default::default() };
    let request = AlterPartitionReassignmentsRequest {
        topics: vec![topic],
        allow_replication_factor_change: may_change_count,
        ..Default::default()
    };
    let response: AlterPartitionReassignmentsResponse = rig.ask(1, request);
    assert_eq!(response.allow_replication_factor_change, may_change_count);
    response.responses[0].partitions[0].clone()
}

fn reassign(rig: &mut Rig, replicas: Option<&[i32]>) -> ErrorCode {
    ErrorCode::from(reassign_in(rig, ("t", 0), replicas, true).error_code)
}

/// The leader says who is in sync.
fn in_sync(rig: &mut Rig, members: &[i32]) {
    let partition = rig.partition("t", 0);
    let leader = partition.leader.unwrap().value();
    let state = |id: &i32| BrokerState { broker_id: *id, broker_epoch: rig.epoch(*id), ..Default::default() };
    let data = PartitionData {
        leader_epoch: partition.leader_epoch.value(),
        partition_epoch: partition.partition_epoch,
        new_isr_with_epochs: members.iter().map(state).collect(),
        ..Default::default()
    };
    let topic_id = rig.image.topics().by_name("t").unwrap().id;
    let topic = TopicData { topic_id, partitions: vec![data], ..Default::default() };
    let request = AlterPartitionRequest {
        broker_id: leader,
        broker_epoch: rig.epoch(leader),
        topics: vec![topic],
        ..Default::default()
    };
    let response: AlterPartitionResponse = rig.ask(3, request);
    let code = ErrorCode::from(response.topics[0].partitions[0].error_code);
    assert!(matches!(code, ErrorCode::None | ErrorCode::NewLeaderElected), "{code:?}");
}

/// What is under way: replicas, those that come, those that go.
fn under_way(rig: &mut Rig) -> Vec<[Vec<i32>; 3]> {
    let request = ListPartitionReassignmentsRequest { topics: None, ..Default::default() };
    let response: ListPartitionReassignmentsResponse = rig.ask(0, request);
    let partitions = response.topics.into_iter().flat_map(|topic| topic.partitions);
    partitions.map(|one| [one.replicas, one.adding_replicas, one.removing_replicas]).collect()
}

#[test]
fn old_replicas_go_once_the_new_ones_are_in_sync() {
    let mut rig = Rig::at(30).brokers(4);
    rig.create(vec![assigned("t", &[(0, &[1, 2])])]);
    assert_eq!(reassign(&mut rig, Some(&[3, 4])), ErrorCode::None);
    let partition = rig.partition("t", 0);
    assert_eq!((partition.replicas, partition.isr), (ids(&[3, 4, 1, 2]), ids(&[1, 2])));
    assert_eq!(partition.directories, [1003, 1004, 1001, 1002].map(Uuid));
    assert_eq!(under_way(&mut rig), [[vec![3, 4, 1, 2], vec![3, 4], vec![1, 2]]]);
    in_sync(&mut rig, &[1, 2, 3]);
    assert_eq!(rig.partition("t", 0).replicas.len(), 4, "one is missing yet");
    let before = rig.partition("t", 0).leader_epoch;
    in_sync(&mut rig, &[1, 2, 3, 4]);
    let partition = rig.partition("t", 0);
    assert_eq!((&partition.replicas, &partition.isr), (&ids(&[3, 4]), &ids(&[3, 4])));
    assert_eq!((partition.leader, partition.directories), (Some(BrokerId(3)), vec![Uuid(1003), Uuid(1004)]));
    assert!(partition.leader_epoch > before);
    assert!(under_way(&mut rig).is_empty());
}

#[test]
fn what_needs_no_copy_is_done_at_once() {
    let mut rig = Rig::at(30).brokers(3);
    rig.create(vec![assigned("t", &[(0, &[1, 2, 3])])]);
    let before = rig.log.len();
    assert_eq!(reassign(&mut rig, Some(&[1, 2, 3])), ErrorCode::None);
    assert_eq!(rig.log.len(), before, "it is as it was");
    assert_eq!(reassign(&mut rig, Some(&[3, 1, 2])), ErrorCode::None);
    assert_eq!((rig.partition("t", 0).replicas, rig.partition("t", 0).leader), (ids(&[3, 1, 2]), Some(BrokerId(1))));
    let epoch = rig.partition("t", 0).leader_epoch;
    assert_eq!(reassign(&mut rig, Some(&[1, 2])), ErrorCode::None);
    let partition = rig.partition("t", 0);
    assert_eq!(
        (&partition.replicas, &partition.isr, partition.leader),
        (&ids(&[1, 2]), &ids(&[1, 2]), Some(BrokerId(1)))
    );
    assert!(partition.leader_epoch > epoch, "the leader is not to count on the one that goes");
    assert!(under_way(&mut rig).is_empty());
}

#[test]
fn a_reassignment_can_be_taken_back_and_changed_on_the_way() {
    let mut rig = Rig::at(30).brokers(4);
    rig.create(vec![assigned("t", &[(0, &[1, 2])])]);
    assert_eq!(reassign(&mut rig, None), ErrorCode::NoReassignmentInProgress);
    reassign(&mut rig, Some(&[3, 4]));
    in_sync(&mut rig, &[1, 2, 3]);
    assert_eq!(reassign(&mut rig, None), ErrorCode::None);
    let partition = rig.partition("t", 0);
    assert_eq!((partition.replicas, partition.isr), (ids(&[1, 2]), ids(&[1, 2])));

    reassign(&mut rig, Some(&[3, 4]));
    assert_eq!(reassign(&mut rig, Some(&[1, 4])), ErrorCode::None);
    assert_eq!(under_way(&mut rig), [[vec![1, 4, 2, 3], vec![3, 4], vec![2, 3]]]);
    assert_eq!(reassign(&mut rig, None), ErrorCode::None);
    assert_eq!(rig.partition("t", 0).replicas, ids(&[1, 2]), "back to where it was before the first of the two");

    reassign(&mut rig, Some(&[3, 4]));
    assert_eq!(reassign(&mut rig, Some(&[1, 2, 3, 4])), ErrorCode::None);
    assert_eq!(under_way(&mut rig), [[vec![1, 2, 3, 4], vec![3, 4], vec![]]], "it is not done before all are in sync");
    assert_eq!(reassign(&mut rig, Some(&[1, 4])), ErrorCode::None);
    in_sync(&mut rig, &[1, 2, 4]);
    assert_eq!(rig.partition("t", 0).replicas, ids(&[1, 4]));
    // All that is in sync is new: there is nothing clean to go back to.
    reassign(&mut rig, Some(&[2]));
    in_sync(&mut rig, &[1, 4]);
    assert_eq!(rig.partition("t", 0).replicas, ids(&[2, 1, 4]));
    assert_eq!(reassign(&mut rig, None), ErrorCode::None);
}

#[test]
fn what_cannot_be_is_refused_in_kafkas_words() {
    let mut rig = Rig::at(30).brokers(3);
    rig.create(vec![assigned("t", &[(0, &[1, 2])])]);
    let mut refused = |place: (&str, i32), replicas: &[i32], code: ErrorCode, words: &str| {
        let answer = reassign_in(&mut rig, place, Some(replicas), false);
        assert_error(answer.error_code, answer.error_message.as_ref(), code, words);
    };
    refused(("u", 0), &[1], ErrorCode::UnknownTopicOrPartition, "Unable to find a topic named u.");
    refused(("t", 7), &[1], ErrorCode::UnknownTopicOrPartition, "Unable to find partition t:7.");
    refused(
        ("t", 0),
        &[1, 9],
        ErrorCode::InvalidReplicaAssignment,
        "includes broker 9, but no such broker is registered",
    );
    refused(("t", 0), &[1, 1], ErrorCode::InvalidReplicaAssignment, "includes the broker 1 more than once");
    refused(("t", 0), &[], ErrorCode::InvalidReplicaAssignment, "includes an empty replica list");
    refused(("t", 0), &[1, 2, 3], ErrorCode::InvalidReplicationFactor, "The replication factor is changed from 2 to 3");
    assert_eq!(reassign(&mut rig, Some(&[1, 2, 3])), ErrorCode::None, "unless that is meant");
}
