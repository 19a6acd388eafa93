//! New partitions lie over the racks that brokers registered with (KIP-36, `StripedReplicaPlacer`): topics that are created, partitions that are
//! added, and brokers that moved or are away.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Rig, SECOND, topic};
use gregor_messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, create_partitions_request::CreatePartitionsTopic,
};
use gregor_types::{BrokerId, ErrorCode};

/// Brokers, from 1 on, in these racks, all unfenced.
fn cluster(racks: &[&str]) -> Rig {
    let mut rig = Rig::at(30);
    for (id, rack) in (1..).zip(racks) {
        register(&mut rig, id, Some(*rack));
        assert!(!rig.heartbeat(id, |_| ()).is_fenced);
    }
    rig
}

fn register(rig: &mut Rig, id: i32, rack: Option<&str>) {
    let incarnation = rig.log.len() as u128;
    let response = rig.register_with(id, incarnation, |request| request.rack = rack.map(Into::into));
    assert_eq!(response.error_code, 0);
}

fn create(rig: &mut Rig, name: &str, partitions: i32, replication_factor: i16) {
    let response = rig.create(vec![topic(name, partitions, replication_factor)]);
    assert_eq!(response.topics[0].error_code, 0, "{:?}", response.topics[0].error_message);
}

fn replicas(rig: &Rig, name: &str) -> Vec<Vec<i32>> {
    let topic = rig.image.topics().by_name(name).unwrap();
    let numbers = |brokers: &[BrokerId]| brokers.iter().map(|broker| broker.value()).collect();
    topic.partitions().map(|(_, partition)| numbers(&partition.replicas)).collect()
}

/// Each partition has its replicas on that many brokers in that many racks, as they are registered.
#[track_caller]
fn assert_spread(rig: &Rig, name: &str, brokers: usize, racks: usize) {
    for placed in replicas(rig, name) {
        let rack = |id: &i32| rig.image.cluster().broker(BrokerId(*id)).unwrap().rack.clone();
        assert_eq!(placed.iter().collect::<BTreeSet<_>>().len(), brokers, "{placed:?}");
        assert_eq!(placed.iter().map(rack).collect::<BTreeSet<_>>().len(), racks, "{placed:?}");
    }
}

/// How many partitions each broker is the first replica of.
fn firsts(rig: &Rig, name: &str) -> BTreeMap<i32, usize> {
    let mut firsts = BTreeMap::new();
    for placed in replicas(rig, name) {
        *firsts.entry(placed[0]).or_default() += 1;
    }
    firsts
}

#[test]
fn a_topics_partitions_lie_over_all_racks_and_begin_on_each_broker_alike() {
    let mut rig = cluster(&["a", "a", "b", "b", "c", "c"]);
    create(&mut rig, "t", 12, 3);
    assert_spread(&rig, "t", 3, 3);
    assert_eq!(firsts(&rig, "t"), (1..=6).map(|id| (id, 2)).collect());
    for (index, placed) in (0..).zip(replicas(&rig, "t")) {
        assert_eq!(rig.partition("t", index).leader, Some(BrokerId(placed[0])), "the first replica leads");
    }
    create(&mut rig, "pairs", 12, 2);
    assert_spread(&rig, "pairs", 2, 2);
    create(&mut rig, "five", 6, 5);
    assert_spread(&rig, "five", 5, 3);
}

#[test]
fn partitions_that_are_added_lie_over_the_racks_too() {
    let mut rig = cluster(&["a", "a", "b", "c"]);
    create(&mut rig, "t", 1, 3);
    let more = CreatePartitionsTopic { name: "t".into(), count: 13, assignments: None, ..Default::default() };
    let request = CreatePartitionsRequest { topics: vec![more], ..Default::default() };
    let response: CreatePartitionsResponse = rig.ask(3, request);
    assert_eq!(response.results[0].error_code, 0, "{:?}", response.results[0].error_message);
    assert_eq!(replicas(&rig, "t").len(), 13);
    assert_spread(&rig, "t", 3, 3);
}

#[test]
fn a_broker_counts_for_the_rack_that_it_registered_with_last() {
    let mut rig = cluster(&["a", "a", "a"]);
    create(&mut rig, "before", 6, 2);
    assert_spread(&rig, "before", 2, 1);
    rig.heartbeat(3, |request| request.want_fence = true);
    // Its earlier life is not waited for any more.
    rig.now += 10 * SECOND;
    register(&mut rig, 3, Some("b"));
    assert!(!rig.heartbeat(3, |_| ()).is_fenced);
    create(&mut rig, "after", 6, 2);
    assert_spread(&rig, "after", 2, 2);
    assert!(replicas(&rig, "after").iter().all(|placed| placed.contains(&3)), "nobody else is in its rack");
}

#[test]
fn brokers_without_a_rack_are_one_together() {
    let mut rig = cluster(&["a"]);
    for id in [2, 3] {
        register(&mut rig, id, None);
        assert!(!rig.heartbeat(id, |_| ()).is_fenced);
    }
    create(&mut rig, "t", 6, 2);
    assert_spread(&rig, "t", 2, 2);
    assert!(replicas(&rig, "t").iter().all(|placed| placed.contains(&1)));
}

#[test]
fn a_rack_whose_only_broker_is_fenced_holds_replicas_and_leads_none() {
    let mut rig = cluster(&["a", "b", "b"]);
    rig.heartbeat(1, |request| request.want_fence = true);
    create(&mut rig, "t", 6, 2);
    assert_spread(&rig, "t", 2, 2);
    assert_eq!(firsts(&rig, "t"), BTreeMap::from([(2, 3), (3, 3)]));
    for index in 0..6 {
        let partition = rig.partition("t", index);
        assert!(partition.replicas.contains(&BrokerId(1)) && !partition.isr.contains(&BrokerId(1)), "{partition:?}");
    }
    let response = rig.create(vec![topic("four", 1, 4)]);
    assert_eq!(ErrorCode::from(response.topics[0].error_code), ErrorCode::InvalidReplicationFactor);
}
