//! Clusters of several nodes: how they begin, whatever disk is wiped on the way, how they grow, restart and heal.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod fleet;

use std::collections::{BTreeMap, BTreeSet};

use fleet::{COMBINED, Fleet, ONE, POOLS};
use gregor_operator_api::cluster::Rack;
use gregor_operator_api::names;
use gregor_operator_api::value::ConfigValue;
use gregor_operator_plan::kafka::PartitionSeen;
use gregor_operator_plan::{Kind, Progress, Reason, Stage, Step};
use proptest::prelude::*;

fn voters(fleet: &Fleet) -> Vec<i32> {
    let mut ids: Vec<i32> = fleet.quorum.iter().flat_map(|quorum| &quorum.voters).map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids
}

fn set_config(fleet: &mut Fleet, key: &str, value: i64) {
    let key = key.to_owned();
    fleet.spec(|cluster| drop(cluster.spec.config.insert(key, ConfigValue::Integer(value))));
}

#[test]
fn one_disk_starts_the_quorum_and_everybody_else_joins() {
    for (manifest, nodes, controllers) in
        [(COMBINED, vec![0, 1, 2], vec![0, 1, 2]), (POOLS, vec![0, 1, 2, 10, 11, 20], vec![0, 1, 2])]
    {
        let mut fleet = Fleet::new(manifest);
        assert!(fleet.reconcile());
        assert_eq!(fleet.identity().unwrap().nodes.len(), 1, "a second node comes when the permission is gone");
        fleet.settle();
        assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
        let identity = fleet.identity().unwrap();
        assert_eq!(identity.standalone_grant, None);
        assert_eq!(identity.nodes.keys().copied().collect::<Vec<_>>(), nodes);
        assert_eq!(voters(&fleet), controllers);
        let started: Vec<bool> = fleet.disks.values().flatten().map(|disk| disk.standalone).collect();
        assert_eq!(started.iter().filter(|standalone| **standalone).count(), 1);
        assert_eq!(fleet.quorums, 1);
        let directories: BTreeSet<&String> = identity.nodes.values().map(|node| &node.directory_id).collect();
        assert_eq!(directories.len(), nodes.len(), "each disk has an id of its own");
        let status = fleet.last.as_ref().unwrap().status.clone();
        assert_eq!((status.quorum_leader, status.under_replicated_partitions), (Some(0), Some(0)));
        assert_eq!(status.node_count, i32::try_from(nodes.len()).unwrap());
        assert_eq!(fleet.budget(), i64::try_from(nodes.len()).unwrap() - 1, "at rest one pod may be evicted");
        let writes = fleet.writes;
        assert!(!fleet.reconcile());
        assert_eq!(fleet.writes, writes, "at rest nothing is written");
    }
}

#[test]
fn a_disk_that_is_wiped_at_any_step_of_the_beginning_joins_or_is_lost_and_there_is_one_quorum() {
    // A node that is on its way waits for its rack first, and each time that it is looked at.
    let with_racks = Stage::BOOTSTRAP.map(|stage| if stage == Stage::Start { Stage::Racks } else { stage });
    let beginnings = [
        (Fleet::new(COMBINED), &Stage::BOOTSTRAP[..]),
        (Fleet::new(POOLS), &Stage::BOOTSTRAP),
        (in_racks(), &with_racks),
    ];
    for (mut young, beginning) in beginnings {
        let beginning: BTreeSet<Stage> = beginning.iter().copied().collect();
        let mut whole = young.clone();
        whole.settle();
        assert_eq!(whole.reason(), Some(Reason::Ready), "{}", whole.message());
        // A stage that the plan goes through and that is not listed, or the other way round, is one that nobody thought of here.
        assert_eq!(whole.stages, beginning, "the stages of a beginning");
        let all: Vec<i32> = whole.identity().unwrap().nodes.keys().copied().collect();
        let mut tried = BTreeSet::new();
        let mut outcomes = BTreeSet::new();
        let mut reconciles = true;
        while young.last.as_ref().is_none_or(|plan| plan.stage != Stage::Rest) {
            if reconciles {
                young.reconcile();
            } else {
                young.kubelet();
            }
            reconciles = !reconciles;
            let stage = young.last.as_ref().unwrap().stage;
            for id in &all {
                let recorded =
                    young.identity().is_some_and(|identity| identity.nodes.get(id).is_some_and(|node| node.formatted));
                // One that differs in nothing that matters was wiped already.
                if !tried.insert((stage, *id, recorded, young.disk(*id).is_some(), young.is_ready(*id))) {
                    continue;
                }
                let mut fleet = young.clone();
                fleet.wipe(*id);
                fleet.settle();
                let reason = fleet.reason().unwrap();
                let context = format!("node {id} at {stage:?}: {}", fleet.message());
                assert!([Reason::Ready, Reason::DiskLost].contains(&reason), "{context}");
                assert!(fleet.quorums <= 1, "{context}");
                assert_eq!(
                    reason == Reason::DiskLost,
                    recorded,
                    "what is recorded is lost, what is not joins: {context}"
                );
                outcomes.insert(reason);
            }
        }
        let stages: BTreeSet<Stage> = tried.iter().map(|(stage, ..)| *stage).collect();
        assert_eq!(stages, beginning, "each stage had its disks wiped");
        assert_eq!(outcomes, BTreeSet::from([Reason::Ready, Reason::DiskLost]), "both ends were seen");
    }
}

#[test]
fn a_lost_disk_is_given_up_on_a_word_and_its_node_joins_with_a_new_one() {
    for (manifest, id) in [(COMBINED, 0), (COMBINED, 2), (POOLS, 1), (POOLS, 11)] {
        let mut fleet = Fleet::settled(manifest);
        let before = fleet.identity().unwrap().nodes[&id].directory_id.clone();
        fleet.wipe(id);
        fleet.settle();
        assert_eq!(fleet.reason(), Some(Reason::DiskLost), "{}", fleet.message());
        fleet.spec(|cluster| cluster.spec.accept_data_loss = vec![id]);
        fleet.settle();
        assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
        let after = fleet.identity().unwrap().nodes[&id].directory_id.clone();
        assert_ne!(before, after);
        assert_eq!(fleet.quorums, 1);
        assert_eq!(voters(&fleet), [0, 1, 2]);
        let quorum = fleet.quorum.clone().unwrap();
        assert!(quorum.voters.iter().all(|(_, directory)| *directory != before), "the lost disk votes no more");
    }
}

#[test]
fn the_metadata_is_never_given_up_with_a_word_about_disks() {
    let mut fleet = Fleet::settled(COMBINED);
    fleet.wipe(0);
    fleet.wipe(1);
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::DiskLost));
    assert!(fleet.message().contains("node 0") && fleet.message().contains("node 1"), "{}", fleet.message());
    let before = fleet.identity().unwrap();
    fleet.spec(|cluster| cluster.spec.accept_data_loss = vec![0, 1]);
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::DiskLost));
    assert!(fleet.message().contains("majority"), "{}", fleet.message());
    let directories = |identity: &gregor_operator_plan::Identity| {
        identity.nodes.values().map(|node| node.directory_id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(directories(&fleet.identity().unwrap()), directories(&before));
    assert_eq!(fleet.quorums, 1);
}

#[test]
fn a_changed_configuration_restarts_every_node_once_and_the_leader_last() {
    for manifest in [COMBINED, POOLS] {
        let mut fleet = Fleet::settled(manifest);
        let nodes: Vec<i32> = fleet.identity().unwrap().nodes.keys().copied().collect();
        set_config(&mut fleet, "log.retention.hours", 24);
        fleet.settle();
        assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
        let mut restarted = fleet.restarts.clone();
        restarted.sort_unstable();
        assert_eq!(restarted, nodes, "each once");
        // The fleet's leader is the first voter that is up, so that it moves to 1 when 0 goes: 0 is last among voters.
        let order: Vec<i32> = fleet.restarts.iter().copied().filter(|id| *id < 3).collect();
        assert_eq!(order, [1, 2, 0], "the active controller last");
        assert!(nodes.iter().all(|id| fleet.properties(*id).contains("\nlog.retention.hours=24\n")));
    }
}

#[test]
fn a_restart_waits_for_replicas_for_the_quorum_and_for_an_answer() {
    let missing = PartitionSeen { topic: "t".to_owned(), partition: 3, replicas: vec![0, 1, 2], in_sync: vec![0, 1] };
    let mut fleet = Fleet::settled(COMBINED);
    set_config(&mut fleet, "log.retention.hours", 24);
    fleet.under_replicated.push(missing);
    while fleet.reconcile() {}
    assert_eq!(fleet.reason(), Some(Reason::WaitingForReplicas), "{}", fleet.message());
    assert!(fleet.message().contains("t-3"), "{}", fleet.message());
    assert_eq!(fleet.budget(), 3, "nothing is evicted while a replica is missing");
    assert_eq!(fleet.last.as_ref().unwrap().status.under_replicated_partitions, Some(1));
    fleet.under_replicated.clear();
    fleet.blind = true;
    while fleet.reconcile() {}
    assert_eq!(fleet.reason(), Some(Reason::ClusterUnreachable), "{}", fleet.message());
    assert_eq!(fleet.restarts, [0; 0]);
    fleet.blind = false;
    fleet.settle();
    assert_eq!((fleet.reason(), fleet.restarts.len()), (Some(Reason::Ready), 3));
}

#[test]
fn nobody_is_restarted_while_another_is_away() {
    let mut fleet = Fleet::settled(POOLS);
    set_config(&mut fleet, "log.retention.hours", 24);
    fleet.kill(10);
    fleet.catch_up();
    // Its pod is not there: its own turn may be used, nobody else's.
    while fleet.reconcile() {}
    assert_eq!(fleet.restarts, [0; 0], "{}", fleet.message());
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
}

#[test]
fn a_configuration_with_which_no_node_runs_stops_at_the_first_and_its_correction_heals_it() {
    let mut fleet = Fleet::settled(COMBINED);
    fleet.poison = Some("log.retention.hours=-7".to_owned());
    set_config(&mut fleet, "log.retention.hours", -7);
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::NodeCrashing), "{}", fleet.message());
    assert_eq!(fleet.restarts.len(), 1, "no second node is touched");
    set_config(&mut fleet, "log.retention.hours", 7);
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
    assert_eq!(fleet.quorums, 1);
}

#[test]
fn a_cluster_grows_from_one_node_to_three_and_keeps_what_it_had() {
    let mut fleet = Fleet::settled(ONE);
    let before = fleet.identity().unwrap();
    assert_eq!(before.nodes[&0].placement, None, "the only node needs no note of where it belongs");
    let disk = fleet.disks.clone();
    fleet.spec(|cluster| cluster.spec.node_pools[0].replicas = Some(3));
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
    let after = fleet.identity().unwrap();
    assert_eq!(after.cluster_id, before.cluster_id);
    assert_eq!(after.nodes[&0].directory_id, before.nodes[&0].directory_id);
    assert!(disk.iter().all(|(uid, disk)| fleet.disks[uid] == *disk));
    assert_eq!((voters(&fleet), fleet.quorums), (vec![0, 1, 2], 1));
    assert_eq!(fleet.restarts, [0], "it is restarted when two others vote");
    assert!(fleet.properties(0).contains("default.replication.factor=3"));
}

#[test]
fn ids_stay_whatever_becomes_of_pools() {
    let mut fleet = Fleet::settled(POOLS);
    let ids: Vec<i32> = fleet.identity().unwrap().nodes.keys().copied().collect();
    fleet.spec(|cluster| cluster.spec.node_pools[0].name = "voters".to_owned());
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
    let identity = fleet.identity().unwrap();
    assert_eq!(identity.nodes.keys().copied().collect::<Vec<_>>(), ids);
    assert_eq!(identity.nodes[&0].placement.as_ref().unwrap().pool, "voters");
    // A pool in the middle grows: it gets ids that are free, and nobody moves.
    fleet.spec(|cluster| cluster.spec.node_pools[0].replicas = Some(5));
    fleet.settle();
    assert_eq!(voters(&fleet), [0, 1, 2, 3, 4]);
    assert_eq!(fleet.quorums, 1);
}

#[test]
fn what_would_take_nodes_away_is_refused_in_words() {
    let mut fleet = Fleet::settled(POOLS);
    let writes = fleet.writes;
    let before = fleet.cluster.clone();
    let mut refused = |change: &dyn Fn(&mut gregor_operator_api::KafkaCluster), reason: Reason, words: &str| {
        fleet.spec(change);
        assert!(!fleet.reconcile());
        assert_eq!(fleet.reason(), Some(reason), "{}", fleet.message());
        assert!(fleet.message().contains(words), "{}", fleet.message());
        assert!(matches!(fleet.last.as_ref().unwrap().progress, Progress::Stalled { .. }));
        fleet.cluster = before.clone();
    };
    refused(&|cluster| cluster.spec.node_pools[0].replicas = Some(1), Reason::NodeRemovalRefused, "the nodes 1, 2");
    refused(
        &|cluster| cluster.spec.node_pools[1].node_ids = Some(vec!["10".to_owned(), "20".to_owned()]),
        Reason::NodeRemovalRefused,
        "the nodes 11",
    );
    refused(
        &|cluster| cluster.spec.node_pools[1].roles.push(gregor_operator_api::cluster::Role::Controller),
        Reason::RolesChangeRefused,
        "node 10 has the roles broker",
    );
    refused(&|cluster| drop(cluster.spec.node_pools.remove(1)), Reason::InvalidSpec, "serve clients");
    refused(
        &|cluster| cluster.spec.node_pools[1].node_ids = Some(vec!["20-10".to_owned()]),
        Reason::InvalidSpec,
        "20-10 is no node id",
    );
    assert_eq!(fleet.writes, writes);
}

#[test]
fn a_lost_identity_of_several_nodes_is_put_together_again() {
    let mut fleet = Fleet::settled(POOLS);
    let before = fleet.identity().unwrap();
    fleet.identity = None;
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
    assert_eq!(fleet.identity().unwrap(), before);
    assert_eq!((fleet.restarts.len(), fleet.quorums), (0, 1));
}

#[test]
fn each_role_gets_what_it_needs_and_no_client_is_sent_to_a_controller() {
    let fleet = Fleet::settled(POOLS);
    let controllers = "demo-0-0.demo-nodes.team.svc.cluster.local:9090,demo-1-0.demo-nodes.team.svc.cluster.local:9090,demo-2-0.demo-nodes.team.svc.cluster.local:9090";
    for id in [0, 1, 2, 10, 11, 20] {
        let text = fleet.properties(id);
        assert!(text.contains(&format!("\ncontroller.quorum.bootstrap.servers={controllers}\n")), "{text}");
        assert!(text.contains("\nmin.insync.replicas=2\n"), "{text}");
        // One that gave up waiting for a quorum would be started again, and later each time.
        let waits = text.contains("\ninitial.broker.registration.timeout.ms=2147483647\n");
        assert_eq!(waits, text.contains("\nprocess.roles=broker"), "{text}");
    }
    let controller = fleet.properties(0);
    assert!(
        controller.contains("\nprocess.roles=controller\n") && controller.contains("\nlisteners=CONTROLLER://:9090\n")
    );
    assert!(!controller.contains("inter.broker"), "{controller}");
    let broker = fleet.properties(10);
    assert!(
        broker.contains("\nprocess.roles=broker\n")
            && broker.contains("\nlisteners=INTERNAL://:9092,REPLICATION://:9091\n"),
        "{broker}"
    );
    let selector = fleet.object(Kind::Service, "demo-bootstrap").unwrap()["spec"]["selector"].clone();
    let selects = |id: i32| {
        let labels = fleet.pods[&id].metadata.labels.clone().unwrap();
        selector.as_object().unwrap().iter().all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str())
    };
    assert!(!selects(0) && !selects(2) && selects(10) && selects(20));
}

#[test]
fn racks_come_from_kubernetes_nodes_before_a_broker_starts() {
    let mut fleet = Fleet::new(COMBINED);
    fleet.spec(|cluster| {
        cluster.spec.node_pools[0].rack =
            Some(Rack { name: None, topology_key: Some("topology.kubernetes.io/zone".to_owned()) });
    });
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::RackUnknown));
    assert!(fleet.message().contains("rbac.nodes"), "{}", fleet.message());
    assert_eq!(fleet.quorum, None, "nobody runs without its rack");
    fleet.kubernetes_labels = Some(BTreeMap::new());
    fleet.settle();
    assert!(fleet.message().contains("has no label topology.kubernetes.io/zone"), "{}", fleet.message());
    fleet.kubernetes_labels = Some(BTreeMap::from([("topology.kubernetes.io/zone".to_owned(), "a".to_owned())]));
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
    let pod = serde_json::to_value(&fleet.pods[&2]).unwrap();
    assert_eq!(pod["metadata"]["annotations"][names::RACK], "a");
    let arguments = pod["spec"]["containers"][0]["args"].as_array().unwrap();
    assert!(arguments.iter().any(|argument| argument == "broker.rack=$(GREGOR_RACK)"), "{arguments:?}");
    assert!(!fleet.properties(2).contains("broker.rack"), "the argument is its only source");
    let nodes = &fleet.last.as_ref().unwrap().status.nodes;
    assert!(nodes.iter().all(|node| node.rack.as_deref() == Some("a")), "{nodes:?}");
}

#[test]
fn a_rack_that_a_pool_names_is_its_brokers_and_is_shown() {
    let mut fleet = Fleet::new(POOLS);
    for pool in &mut fleet.cluster.spec.node_pools {
        pool.rack = Some(Rack { name: Some("cellar".to_owned()), topology_key: None });
    }
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
    for node in &fleet.last.as_ref().unwrap().status.nodes {
        let is_broker = node.node_id >= 10;
        assert_eq!(node.rack.as_deref(), is_broker.then_some("cellar"), "node {}", node.node_id);
        let text = fleet.properties(node.node_id);
        assert_eq!(text.contains("\nbroker.rack=cellar\n"), is_broker, "{text}");
    }
}

#[test]
fn the_status_names_who_is_behind() {
    let mut fleet = Fleet::settled(COMBINED);
    fleet.kill(2);
    fleet.reconcile();
    let status = fleet.last.as_ref().unwrap().status.clone();
    assert_eq!((status.quorum_leader, status.lagging_voters), (Some(0), vec![2]));
    assert_eq!(status.under_replicated_partitions, Some(1));
    fleet.settle();
    let status = fleet.last.as_ref().unwrap().status.clone();
    assert_eq!((status.lagging_voters, status.under_replicated_partitions), (vec![], Some(0)));
}

/// Combined nodes whose racks come from Kubernetes' nodes.
fn in_racks() -> Fleet {
    let mut fleet = Fleet::new(COMBINED);
    let key = "topology.kubernetes.io/zone".to_owned();
    fleet.kubernetes_labels = Some(BTreeMap::from([(key.clone(), "a".to_owned())]));
    fleet.cluster.spec.node_pools[0].rack = Some(Rack { name: None, topology_key: Some(key) });
    fleet
}

#[test]
fn a_pod_gets_its_rack_while_another_disk_is_lost_or_the_manifest_is_refused() {
    type Change = fn(&mut gregor_operator_api::KafkaCluster);
    let mut fleet = in_racks();
    fleet.settle();
    fleet.wipe(1);
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::DiskLost), "{}", fleet.message());
    fleet.kill(2);
    fleet.settle();
    assert!(fleet.is_ready(2), "it waits for its rack: {}", fleet.message());
    fleet.spec(|cluster| cluster.spec.accept_data_loss = vec![1]);
    fleet.settle();
    assert_eq!((fleet.reason(), voters(&fleet)), (Some(Reason::Ready), vec![0, 1, 2]), "{}", fleet.message());

    let refusals: [(Reason, Change); 2] = [
        (Reason::InvalidConfig, |cluster| drop(cluster.spec.config.insert("node.id".to_owned(), "7".into()))),
        (Reason::NodeRemovalRefused, |cluster| cluster.spec.node_pools[0].replicas = Some(2)),
    ];
    for (reason, change) in refusals {
        let manifest = fleet.cluster.clone();
        fleet.spec(change);
        fleet.kill(2);
        fleet.settle();
        assert_eq!((fleet.reason(), fleet.is_ready(2)), (Some(reason), true), "{}", fleet.message());
        fleet.cluster = manifest;
    }
    // Nor does a step that Kubernetes keeps refusing keep it from its rack.
    fleet.refuses = Some(Kind::StatefulSet);
    fleet.objects.get_mut(&(Kind::StatefulSet, "demo-0".to_owned())).unwrap()["spec"]["replicas"] = 0.into();
    fleet.kill(2);
    fleet.settle();
    assert!(fleet.last.as_ref().unwrap().step.is_some() && fleet.is_ready(2), "{}", fleet.message());
}

#[test]
fn a_cluster_of_one_node_that_an_older_release_made_is_left_as_it_is_letter_for_letter() {
    let fleet = Fleet::of_an_older_release(ONE);
    assert_eq!(
        fleet.properties(0),
        "# Written by gregor-operator; a change here is overwritten.
process.roles=broker,controller
node.id=0
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=demo-0-0.demo-nodes.team.svc.cluster.local:9090
inter.broker.listener.name=INTERNAL
listener.security.protocol.map=INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT
listeners=INTERNAL://:9092,CONTROLLER://:9090
advertised.listeners=INTERNAL://demo-0-0.demo-nodes.team.svc.cluster.local:9092,CONTROLLER://demo-0-0.demo-nodes.team.svc.cluster.local:9090
log.dirs=/var/lib/gregor/data/logs
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.replication.factor=1
"
    );
    assert_eq!(fleet.budget(), 0);
    assert!(
        fleet.message().contains("plaintext for ever") && fleet.message().contains("move to it"),
        "{}",
        fleet.message()
    );
    let set = fleet.object(Kind::StatefulSet, "demo-0").unwrap();
    let pod = &set["spec"]["template"]["spec"];
    let arguments: Vec<&str> =
        pod["initContainers"][0]["args"].as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect();
    assert_eq!(arguments.len(), 12, "{arguments:?}");
    assert!(pod["containers"][0]["env"].is_null());
    assert!(set["metadata"]["annotations"][names::ROLES].is_null());
    let selector = &fleet.object(Kind::Service, "demo-bootstrap").unwrap()["spec"]["selector"];
    assert_eq!(selector.as_object().unwrap().len(), 1);
    let identity = fleet.identity.as_ref().unwrap()["data"]["identity.json"].as_str().unwrap();
    assert!(!identity.contains("placement") && !identity.contains("connections"), "{identity}");
}

/// What can happen to a cluster.
#[derive(Debug, Clone, Copy)]
enum Event {
    Reconcile,
    Kubelet,
    CatchUp,
    Kill(usize),
    WipeStatus,
    Blind(bool),
    Restart(u8),
    LoseIdentity,
    Grow,
    Rename(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => Just(Event::Reconcile),
        6 => Just(Event::Kubelet),
        3 => Just(Event::CatchUp),
        2 => any::<usize>().prop_map(Event::Kill),
        1 => Just(Event::WipeStatus),
        1 => any::<bool>().prop_map(Event::Blind),
        2 => any::<u8>().prop_map(Event::Restart),
        1 => Just(Event::LoseIdentity),
        1 => Just(Event::Grow),
        1 => any::<bool>().prop_map(Event::Rename),
    ]
}

fn happen(fleet: &mut Fleet, event: Event) {
    match event {
        Event::Reconcile => drop(fleet.reconcile()),
        Event::Kubelet => drop(fleet.kubelet()),
        Event::CatchUp => drop(fleet.catch_up()),
        Event::Kill(which) => {
            let ids: Vec<i32> = fleet.pods.keys().copied().collect();
            if let Some(id) = ids.get(which % ids.len().max(1)) {
                fleet.kill(*id);
            }
        }
        Event::WipeStatus => fleet.cluster.status = None,
        Event::Blind(blind) => fleet.blind = blind,
        Event::Restart(nonce) => fleet.spec(|cluster| cluster.spec.restarted_at = Some(nonce.to_string())),
        // What is put together again counts as formatted, all of it: an empty disk would be a lost one, as it should be.
        Event::LoseIdentity => {
            let whole = fleet.identity().is_some_and(|identity| identity.nodes.values().all(|node| node.formatted));
            if whole && fleet.quorum.is_some() {
                fleet.identity = None;
            }
        }
        Event::Grow => fleet.spec(|cluster| {
            let replicas = cluster.spec.node_pools[0].replicas.unwrap_or_default();
            cluster.spec.node_pools[0].replicas = Some((replicas + 2).min(7));
        }),
        Event::Rename(first) => fleet.spec(|cluster| {
            if first { "one" } else { "other" }.clone_into(&mut cluster.spec.node_pools[0].name);
        }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    // The fleet itself asserts what must never happen: see `Fleet::carry_out`. That the operator is killed at any moment is in
    // it too, as a plan remembers nothing.
    #[test]
    fn whatever_happens_there_is_one_quorum_and_all_comes_to_rest(pools in any::<bool>(), events in prop::collection::vec(event(), 1..150)) {
        let mut fleet = Fleet::new(if pools { POOLS } else { COMBINED });
        for event in events {
            happen(&mut fleet, event);
        }
        fleet.blind = false;
        fleet.settle();
        prop_assert_eq!(fleet.reason(), Some(Reason::Ready), "it rests with {}", fleet.message());
        prop_assert_eq!(fleet.quorums, 1);
        let controllers = fleet.identity().unwrap().nodes.values()
            .filter(|node| node.roles().contains(&gregor_operator_api::cluster::Role::Controller)).count();
        prop_assert_eq!(voters(&fleet).len(), controllers);
        let writes = fleet.writes;
        prop_assert!(!fleet.reconcile());
        prop_assert_eq!(fleet.writes, writes);
    }
}

#[test]
fn pods_of_several_nodes_are_replaced_by_uid_and_one_at_a_time() {
    let mut fleet = Fleet::settled(COMBINED);
    fleet.spec(|cluster| cluster.spec.restarted_at = Some("x".to_owned()));
    let uids: BTreeMap<i32, String> =
        fleet.pods.iter().map(|(id, pod)| (*id, pod.metadata.uid.clone().unwrap())).collect();
    while !matches!(fleet.last.as_ref().unwrap().step, Some(Step::DeletePod { .. })) {
        assert!(fleet.reconcile());
    }
    let Some(Step::DeletePod { uid, .. }) = fleet.last.as_ref().unwrap().step.clone() else { unreachable!() };
    assert_eq!(uid, uids[&1]);
    // The others' templates are the old ones still: what happens to them meanwhile spreads nothing.
    let old = |id: i32| {
        let set = fleet.object(Kind::StatefulSet, &format!("demo-{id}")).unwrap();
        set["spec"]["template"]["metadata"]["annotations"][names::RESTARTED_AT].is_null()
    };
    assert!(old(0) && !old(1) && old(2));
}
