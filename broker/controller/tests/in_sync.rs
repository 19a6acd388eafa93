//! AlterPartition by its versions: since version 3 a leader says in which life each replica caught up (KIP-903); version 2 cannot.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Rig, SECOND, assigned, ids};
use gregor_messages::{
    AlterPartitionRequest, AlterPartitionResponse,
    alter_partition_request::{BrokerState, PartitionData, TopicData},
};
use gregor_types::{BrokerId, ErrorCode};

/// Broker 1 leads alone; broker 2 started anew since it was last seen. Returns the epoch of its earlier life, too.
fn restarted() -> (Rig, i64) {
    let mut rig = Rig::at(30).brokers(2);
    rig.create(vec![assigned("t", &[(0, &[1, 2])])]);
    rig.heartbeat(2, |request| request.want_fence = true);
    let earlier = rig.epoch(2);
    // Its earlier life is not waited for any more.
    rig.now += 10 * SECOND;
    assert_eq!(rig.register(2, 22).error_code, 0);
    assert!(!rig.heartbeat(2, |_| ()).is_fenced);
    assert_ne!(rig.epoch(2), earlier);
    assert_eq!(rig.partition("t", 0).isr, ids(&[1]));
    (rig, earlier)
}

fn member(broker_id: i32, broker_epoch: i64) -> BrokerState {
    BrokerState { broker_id, broker_epoch, ..Default::default() }
}

/// What the leader is answered that says who is in sync.
fn alter(rig: &mut Rig, version: i16, new_isr: &[i32], new_isr_with_epochs: &[BrokerState]) -> ErrorCode {
    let partition = rig.partition("t", 0);
    let data = PartitionData {
        leader_epoch: partition.leader_epoch.value(),
        partition_epoch: partition.partition_epoch,
        new_isr: new_isr.to_vec(),
        new_isr_with_epochs: new_isr_with_epochs.to_vec(),
        ..Default::default()
    };
    let topic_id = rig.image.topics().by_name("t").unwrap().id;
    let request = AlterPartitionRequest {
        broker_id: 1,
        broker_epoch: rig.epoch(1),
        topics: vec![TopicData { topic_id, partitions: vec![data], ..Default::default() }],
        ..Default::default()
    };
    let response: AlterPartitionResponse = rig.ask(version, request);
    assert_eq!(response.error_code, 0);
    ErrorCode::from_code(response.topics[0].partitions[0].error_code).unwrap()
}

#[test]
fn since_version_3_a_replica_of_an_earlier_life_does_not_join_those_in_sync() {
    let (mut rig, earlier) = restarted();
    let leader = member(1, rig.epoch(1));
    let refused = alter(&mut rig, 3, &[], &[leader.clone(), member(2, earlier)]);
    assert_eq!((refused, rig.partition("t", 0).isr), (ErrorCode::IneligibleReplica, ids(&[1])));
    let now = rig.epoch(2);
    assert_eq!(alter(&mut rig, 3, &[], &[leader, member(2, now)]), ErrorCode::None);
    assert_eq!(rig.partition("t", 0).isr, ids(&[1, 2]));
}

#[test]
fn a_leader_that_knows_no_epoch_of_a_replica_is_believed() {
    let (mut rig, _) = restarted();
    let leader = member(1, rig.epoch(1));
    assert_eq!(alter(&mut rig, 3, &[], &[leader, member(2, -1)]), ErrorCode::None);
    assert_eq!(rig.partition("t", 0).isr, ids(&[1, 2]));
}

#[test]
fn version_2_names_brokers_without_epochs() {
    let (mut rig, _) = restarted();
    assert_eq!(alter(&mut rig, 2, &[1, 2], &[]), ErrorCode::None);
    assert_eq!(rig.partition("t", 0).isr, ids(&[1, 2]));
    assert_eq!(alter(&mut rig, 2, &[1], &[]), ErrorCode::None);
    assert_eq!((rig.partition("t", 0).isr, rig.partition("t", 0).leader), (ids(&[1]), Some(BrokerId(1))));
}

#[test]
fn in_either_version_a_fenced_broker_and_a_stranger_are_not_in_sync() {
    let (mut rig, _) = restarted();
    rig.heartbeat(2, |request| request.want_fence = true);
    let states = [1, 2].map(|id| member(id, rig.epoch(id)));
    assert_eq!(alter(&mut rig, 2, &[1, 2], &[]), ErrorCode::IneligibleReplica);
    assert_eq!(alter(&mut rig, 3, &[], &states), ErrorCode::IneligibleReplica);
    assert_eq!(alter(&mut rig, 2, &[1, 3], &[]), ErrorCode::InvalidRequest);
    assert_eq!(alter(&mut rig, 3, &[], &[states[0].clone(), member(3, 1)]), ErrorCode::InvalidRequest);
    assert_eq!(alter(&mut rig, 2, &[], &[]), ErrorCode::InvalidRequest, "a leader is always in sync");
    assert_eq!(rig.partition("t", 0).isr, ids(&[1]));
}
