//! One mishap beside another: what is refused, crashes or was lost elsewhere neither gives a permission again, nor spreads a change, nor
//! erases what others still have.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod fleet;

use fleet::pods::container;
use fleet::{COMBINED, Fleet, Harm, ONE, POOLS};
use gregor_operator_api::cluster::KafkaCluster;
use gregor_operator_api::value::ConfigValue;
use gregor_operator_api::{DeletionPolicy, names};
use gregor_operator_plan::kafka::PartitionSeen;
use gregor_operator_plan::pods::{PodSeen, PodState};
use gregor_operator_plan::{Kind, Progress, Reason};
use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};

/// A pod whose disk is checked, and whose node has ended before and is not ready.
fn status(restarts: i32, state: &Value) -> PodStatus {
    let mut node = container("gregor", restarts, state);
    node["lastState"] = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    let status = json!({
        "initContainerStatuses": [container("format", 0, &json!({"terminated": {"exitCode": 0}}))],
        "containerStatuses": [node],
        "conditions": [{"type": "Ready", "status": "False"}],
    });
    serde_json::from_value(status).unwrap()
}

/// It waits for its next start.
fn crashed() -> PodStatus {
    status(1, &json!({"waiting": {"reason": "CrashLoopBackOff"}}))
}

#[test]
fn a_node_that_crashes_while_a_change_fails_elsewhere_keeps_what_it_ran_with() {
    let mut fleet = Fleet::settled(COMBINED);
    fleet.poison = Some("log.retention.hours=-7".to_owned());
    let bad = |cluster: &mut KafkaCluster| {
        cluster.spec.config.insert("log.retention.hours".to_owned(), ConfigValue::Integer(-7));
    };
    fleet.spec(bad);
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::NodeCrashing), "{}", fleet.message());
    let spared: Vec<i32> = (0..3).filter(|id| fleet.is_ready(*id)).collect();
    assert_eq!(spared.len(), 2);
    let unlucky = spared[0];
    fleet.pods.get_mut(&unlucky).unwrap().status = Some(crashed());
    for _ in 0..10 {
        fleet.reconcile();
    }
    assert!(fleet.pods.contains_key(&unlucky), "it comes back by itself");
    assert!(!fleet.properties(unlucky).contains("log.retention.hours=-7"), "and with what it ran with");
    // The correction reaches both.
    fleet.spec(|cluster| drop(cluster.spec.config.remove("log.retention.hours")));
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
}

#[test]
fn a_process_that_runs_is_running_however_often_it_has_ended_before() {
    let mut fleet = Fleet::settled(COMBINED);
    let pod = fleet.pods.get_mut(&1).unwrap();
    pod.status = Some(status(5, &json!({"running": {}})));
    assert_eq!(PodSeen::of(pod).state, PodState::Running);
    pod.status = Some(crashed());
    assert!(matches!(PodSeen::of(pod).state, PodState::Crashing(_)));
}

#[test]
fn a_permission_to_format_is_withdrawn_though_something_else_cannot_be_made() {
    let mut fleet = Fleet::new(ONE);
    // Its pod is there, and has not run yet.
    while fleet.pods.is_empty() {
        fleet.reconcile();
        fleet.kubelet();
    }
    let grant = |fleet: &Fleet| fleet.object(Kind::ConfigMap, "demo-0-grant").unwrap()["data"].to_string();
    assert!(grant(&fleet).contains("standalone"), "{}", grant(&fleet));
    fleet.refuses = Some(Kind::Service);
    let outside = serde_json::from_value(json!({"name": "outside", "port": 9094})).unwrap();
    fleet.spec(|cluster| cluster.spec.listeners.push(outside));
    for _ in 0..50 {
        fleet.kubelet();
        fleet.reconcile();
    }
    assert!(grant(&fleet).contains("none"), "{}", grant(&fleet));
    fleet.wipe(0);
    for _ in 0..10 {
        fleet.kubelet();
        fleet.reconcile();
    }
    assert_eq!(fleet.disk(0), None, "an empty disk that held data is not formatted");
    assert_eq!(fleet.reason(), Some(Reason::DiskLost), "{}", fleet.message());
}

#[test]
fn the_loss_of_the_last_disk_in_sync_waits_until_another_is_elected() {
    let mut fleet = Fleet::settled(POOLS);
    fleet.wipe(11);
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::DiskLost), "{}", fleet.message());
    let before = fleet.identity().unwrap().nodes[&11].directory_id.clone();
    let replicas = vec![10, 11, 20];
    let partition =
        |in_sync| PartitionSeen { topic: "t".to_owned(), partition: 3, replicas: replicas.clone(), in_sync };
    fleet.under_replicated = vec![partition(vec![11])];
    fleet.spec(|cluster| cluster.spec.accept_data_loss = vec![11]);
    for _ in 0..10 {
        fleet.reconcile();
        fleet.kubelet();
    }
    assert_eq!(fleet.reason(), Some(Reason::DiskLost));
    let message = fleet.message();
    assert!(message.contains("t-3") && message.contains("[10, 20]") && message.contains("elected"), "{message}");
    assert_eq!(fleet.identity().unwrap().nodes[&11].directory_id, before);
    // Nobody can say who was last in sync.
    fleet.blind = true;
    for _ in 0..10 {
        fleet.reconcile();
    }
    assert_eq!(fleet.identity().unwrap().nodes[&11].directory_id, before, "{}", fleet.message());
    // Somebody has had another elected.
    fleet.blind = false;
    fleet.under_replicated = vec![partition(vec![10])];
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
    assert_ne!(fleet.identity().unwrap().nodes[&11].directory_id, before);
}

#[test]
fn an_identity_that_is_gone_before_a_new_directory_has_its_turn_follows_the_claim() {
    let mut fleet = Fleet::settled(COMBINED);
    let before = fleet.identity().unwrap().nodes[&1].directory_id.clone();
    fleet.wipe(1);
    fleet.settle();
    fleet.spec(|cluster| cluster.spec.accept_data_loss = vec![1]);
    let said = |fleet: &Fleet, kind: Kind, name: &str| {
        let object = fleet.object(kind, name).unwrap();
        object["metadata"]["annotations"][names::DIRECTORY_ID].as_str().unwrap().to_owned()
    };
    let claim = |fleet: &Fleet| said(fleet, Kind::PersistentVolumeClaim, "demo-1-data");
    while claim(&fleet) == before {
        fleet.reconcile();
    }
    let after = claim(&fleet);
    assert_eq!(said(&fleet, Kind::StatefulSet, "demo-1"), before, "its turn has not come");
    fleet.identity = None;
    fleet.settle();
    assert_eq!(fleet.identity().unwrap().nodes[&1].directory_id, after, "{}", fleet.message());
    // Nobody knows any more that the disk may be formatted, and a person says so once more.
    assert_eq!(fleet.reason(), Some(Reason::DiskLost), "{}", fleet.message());
    for named in [vec![], vec![1]] {
        fleet.spec(|cluster| cluster.spec.accept_data_loss = named);
        fleet.settle();
    }
    assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
}

/// The claims and the identity, with what they belong to.
fn owners(fleet: &Fleet) -> Vec<usize> {
    let claims = fleet.objects.iter().filter(|((kind, _), _)| *kind == Kind::PersistentVolumeClaim);
    let all = claims.map(|(_, claim)| claim).chain(&fleet.identity);
    all.map(|object| object["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len)).collect()
}

/// What a cluster is refused for, or waits for, and how it comes to that.
type Stall<'a> = (Reason, &'a dyn Fn(&mut Fleet));

#[test]
fn data_that_is_to_stay_is_released_whatever_the_cluster_is_refused_for() {
    let mut deleting = Fleet::new(COMBINED);
    deleting.spec(|cluster| cluster.spec.deletion_policy = DeletionPolicy::Delete);
    deleting.settle();
    assert_eq!(owners(&deleting), [1, 1, 1, 1]);
    let listener = |name: &str| serde_json::from_value(json!({"name": name, "port": 9094})).unwrap();
    let stalls: [Stall<'_>; 4] = [
        (Reason::NodeRemovalRefused, &|fleet| fleet.spec(|cluster| cluster.spec.node_pools[0].replicas = Some(2))),
        (Reason::InvalidConfig, &|fleet| {
            let bad = ("node.id".to_owned(), ConfigValue::Integer(7));
            fleet.spec(|cluster| drop(cluster.spec.config.insert(bad.0, bad.1)));
        }),
        (Reason::DiskLost, &|fleet| fleet.wipe(1)),
        (Reason::Creating, &|fleet| {
            fleet.refuses = Some(Kind::Service);
            fleet.spec(|cluster| cluster.spec.listeners.push(listener("outside")));
        }),
    ];
    for (reason, stall) in stalls {
        let mut fleet = deleting.clone();
        stall(&mut fleet);
        for _ in 0..10 {
            fleet.reconcile();
            fleet.kubelet();
        }
        assert_eq!(fleet.reason(), Some(reason), "{}", fleet.message());
        assert_eq!(owners(&fleet), [1, 1, 1, 1], "nothing is asked for yet");
        fleet.spec(|cluster| cluster.spec.deletion_policy = DeletionPolicy::Retain);
        fleet.reconcile();
        assert_eq!(owners(&fleet), [0, 0, 0, 0], "{}", fleet.message());
    }
}

#[test]
fn nodes_that_never_became_ready_do_not_wait_for_each_other() {
    let bad = ("log.retention.hours".to_owned(), ConfigValue::Integer(-7));
    for harm in [Harm::IsNotMade, Harm::IsNotReady] {
        let mut fleet = Fleet::settled(POOLS);
        (fleet.poison, fleet.harm) = (Some("log.retention.hours=-7".to_owned()), harm);
        let (key, value) = bad.clone();
        fleet.spec(|cluster| {
            cluster.spec.node_pools[1].node_ids = Some(vec!["10-13".to_owned(), "20".to_owned()]);
            cluster.spec.config.insert(key, value);
        });
        fleet.settle();
        assert!((12..=13).all(|id| fleet.pods.contains_key(&id) && !fleet.is_ready(id)), "{harm:?}");
        let before = fleet.restarts.len();
        fleet.spec(|cluster| drop(cluster.spec.config.remove(&bad.0)));
        fleet.settle();
        assert_eq!(fleet.reason(), Some(Reason::Ready), "{harm:?}: {}", fleet.message());
        assert_eq!(fleet.restarts.len(), before, "those that are there had no turn");
    }
}

#[test]
fn a_cluster_none_of_whose_nodes_became_ready_is_corrected() {
    for harm in [Harm::Ends, Harm::IsNotMade, Harm::IsNotReady] {
        let mut fleet = Fleet::settled(COMBINED);
        let hours = |hours: i64| {
            move |cluster: &mut KafkaCluster| {
                drop(cluster.spec.config.insert("log.retention.hours".to_owned(), ConfigValue::Integer(hours)));
            }
        };
        fleet.spec(hours(7));
        fleet.settle();
        // What all have is no good from now on, and all are started anew.
        (fleet.poison, fleet.harm) = (Some("log.retention.hours=7".to_owned()), harm);
        (0..3).for_each(|id| fleet.kill(id));
        fleet.settle();
        assert!((0..3).all(|id| !fleet.is_ready(id)), "{harm:?}");
        fleet.spec(hours(8));
        fleet.settle();
        assert_eq!(fleet.reason(), Some(Reason::Ready), "{harm:?}: {}", fleet.message());
    }
}

#[test]
fn evictions_are_held_up_whatever_the_cluster_is_refused_for() {
    let refused = |cluster: &mut KafkaCluster| cluster.spec.node_pools[0].replicas = Some(2);
    let invalid = |cluster: &mut KafkaCluster| {
        cluster.spec.config.insert("node.id".to_owned(), ConfigValue::Integer(7));
    };
    let changes: [fn(&mut KafkaCluster); 2] = [refused, invalid];
    for (change, reason) in changes.into_iter().zip([Reason::NodeRemovalRefused, Reason::InvalidConfig]) {
        let mut fleet = Fleet::settled(COMBINED);
        fleet.spec(change);
        fleet.reconcile();
        assert_eq!((fleet.reason(), fleet.budget()), (Some(reason), 2), "{}", fleet.message());
        fleet.under_replicated =
            vec![PartitionSeen { topic: "t".to_owned(), partition: 0, replicas: vec![0, 1], in_sync: vec![1] }];
        fleet.reconcile();
        assert_eq!((fleet.reason(), fleet.budget()), (Some(reason), 3), "{}", fleet.message());
        fleet.under_replicated.clear();
        fleet.reconcile();
        assert_eq!(fleet.budget(), 2);
        fleet.kill(2);
        fleet.reconcile();
        assert_eq!(fleet.budget(), 3, "one is away");
        fleet.kubelet();
        fleet.kubelet();
        fleet.catch_up();
        fleet.blind = true;
        fleet.reconcile();
        assert_eq!(fleet.budget(), 3, "nobody knows");
    }
}

#[test]
fn a_disk_that_goes_with_its_pod_holds_up_evictions_and_is_told() {
    for (manifest, nodes) in [(COMBINED, 3), (ONE, 1)] {
        let mut fleet = Fleet::settled(manifest);
        assert_eq!(fleet.budget(), nodes - 1);
        let claim = fleet.objects.get_mut(&(Kind::PersistentVolumeClaim, "demo-0-data".to_owned())).unwrap();
        claim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        fleet.reconcile();
        assert_eq!(fleet.budget(), nodes);
        let plan = fleet.last.as_ref().unwrap();
        assert!(matches!(plan.progress, Progress::Stalled { .. }), "{plan:?}");
        assert!(plan.progress.message().contains("demo-0-data"), "{}", fleet.message());
    }
}

#[test]
fn a_lost_disk_does_not_stop_the_repair_of_other_nodes_and_can_be_given_up_after_it() {
    let mut fleet = Fleet::settled(COMBINED);
    let hours = |hours: i64| {
        move |cluster: &mut KafkaCluster| {
            drop(cluster.spec.config.insert("log.retention.hours".to_owned(), ConfigValue::Integer(hours)));
        }
    };
    fleet.spec(hours(7));
    fleet.settle();
    // What all have is no good from now on; node 2 has no disk any more, and node 1 is started anew.
    fleet.poison = Some("log.retention.hours=7".to_owned());
    fleet.wipe(2);
    fleet.kill(1);
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::DiskLost), "{}", fleet.message());
    fleet.spec(|cluster| cluster.spec.accept_data_loss = vec![2]);
    fleet.settle();
    assert!(fleet.message().contains("majority") && !fleet.is_ready(1), "{}", fleet.message());
    let before = fleet.restarts.len();
    fleet.spec(|cluster| {
        hours(8)(cluster);
        cluster.spec.accept_data_loss.clear();
    });
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::DiskLost), "{}", fleet.message());
    assert!(fleet.is_ready(1), "it is corrected");
    assert!(fleet.is_ready(0) && fleet.restarts.len() == before, "who runs has no turn while a disk is lost");
    fleet.spec(|cluster| cluster.spec.accept_data_loss = vec![2]);
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
}

#[test]
fn what_other_nodes_need_is_made_again_while_a_disk_is_lost() {
    let mut fleet = Fleet::settled(COMBINED);
    let claim = (Kind::PersistentVolumeClaim, "demo-2-data".to_owned());
    fleet.kill(2);
    fleet.objects.remove(&claim).unwrap();
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::DiskLost), "{}", fleet.message());
    let needed = [(Kind::StatefulSet, "demo-1"), (Kind::ConfigMap, "demo-1-grant"), (Kind::Service, "demo-bootstrap")];
    for (kind, name) in needed {
        fleet.objects.remove(&(kind, name.to_owned())).unwrap();
    }
    fleet.settle();
    assert_eq!(fleet.reason(), Some(Reason::DiskLost), "{}", fleet.message());
    for (kind, name) in needed {
        assert!(fleet.object(kind, name).is_some(), "{name}");
    }
    assert!(!fleet.objects.contains_key(&claim), "whoever brings the disk back makes its claim");
}

#[test]
fn node_ports_change_places() {
    let moves: [&[(i32, i32)]; 4] = [
        &[(0, 30091), (1, 30090)],
        &[(0, 30091), (1, 30092), (2, 30090)],
        &[(0, 30091), (1, 30092), (2, 30093)],
        &[(1, 30090), (0, 30095)],
    ];
    let mut outside = Fleet::new(COMBINED);
    let listener = |nodes: Value| {
        let advertised = json!({"hostTemplate": "{nodeId}.example.com", "portTemplate": "3009{nodeId}"});
        let listener =
            json!({"name": "outside", "port": 9094, "type": "NodePort", "advertised": advertised, "nodes": nodes});
        serde_json::from_value(listener).unwrap()
    };
    outside.spec(|cluster| cluster.spec.listeners = vec![listener(json!([]))]);
    outside.settle();
    for ports in moves {
        let mut fleet = outside.clone();
        let nodes: Vec<Value> = ports.iter().map(|(id, port)| json!({"nodeId": id, "port": port})).collect();
        fleet.spec(|cluster| cluster.spec.listeners = vec![listener(json!(nodes))]);
        fleet.settle();
        assert_eq!(fleet.reason(), Some(Reason::Ready), "{}", fleet.message());
        for (id, port) in ports {
            let service = fleet.object(Kind::Service, &format!("demo-{id}-outside")).unwrap();
            assert_eq!(service["spec"]["ports"][0]["nodePort"], *port, "{ports:?}");
            assert_eq!(service["spec"]["type"], "NodePort");
        }
    }
}
