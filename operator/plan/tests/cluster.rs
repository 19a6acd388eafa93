//! A cluster from its first manifest through restarts, losses and re-creation.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod world;

use gregor_operator_api::cluster::{Advertised, Listener, ListenerType};
use gregor_operator_api::value::ConfigValue;
use gregor_operator_api::{DeletionPolicy, condition, names};
use gregor_operator_plan::{Kind, Progress, Reason, Step};
use proptest::prelude::*;
use serde_json::{Value, json};
use world::World;

fn settled() -> World {
    let mut world = World::new();
    world.settle();
    assert_eq!(world.reason(), Some(Reason::Ready), "{:?}", world.last);
    world
}

fn template(world: &World) -> &Value {
    &world.object(Kind::StatefulSet, "demo-0").unwrap()["spec"]["template"]
}

#[test]
fn a_new_cluster_gets_its_identity_first_and_formats_once() {
    let mut world = World::new();
    assert!(world.reconcile());
    assert!(world.identity.is_some() && world.objects.is_empty(), "the identity comes before anything else");
    world.settle();
    assert_eq!(world.formats, 1);
    let identity = world.identity().unwrap();
    assert_eq!(identity.standalone_grant, None);
    let claim = world.object(Kind::PersistentVolumeClaim, "demo-0-data").unwrap();
    assert_eq!(claim["metadata"]["uid"].as_str(), identity.nodes[&0].claim_uid.as_deref());
    assert_eq!(claim["metadata"]["annotations"][names::CLUSTER_ID], identity.cluster_id);
    assert_eq!(claim["metadata"]["annotations"][names::FORMATTED], "true");
    assert_eq!(
        world.object(Kind::ConfigMap, "demo-0-grant").unwrap()["data"][&identity.nodes[&0].directory_id],
        "none"
    );
}

#[test]
fn a_cluster_at_rest_is_left_alone() {
    let mut world = settled();
    let writes = world.writes;
    for _ in 0..5 {
        assert!(!world.reconcile());
    }
    assert_eq!(world.writes, writes);
}

#[test]
fn data_belongs_to_nobody_under_retain_and_to_the_cluster_under_delete() {
    let mut world = settled();
    let owners = |world: &World| {
        let claim = world.object(Kind::PersistentVolumeClaim, "demo-0-data").unwrap();
        let count = |object: &Value| object["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len);
        (count(claim), count(world.identity.as_ref().unwrap()))
    };
    assert_eq!(owners(&world), (0, 0));
    world.spec(|cluster| cluster.spec.deletion_policy = DeletionPolicy::Delete);
    world.settle();
    assert_eq!(owners(&world), (1, 1));
    world.spec(|cluster| cluster.spec.deletion_policy = DeletionPolicy::Retain);
    world.settle();
    assert_eq!(owners(&world), (0, 0));
}

#[test]
fn a_recreated_cluster_finds_its_disk_and_its_identity() {
    let mut world = settled();
    let (identity, disks) = (world.identity(), world.disks.clone());
    world.delete_cluster();
    assert!(world.object(Kind::StatefulSet, "demo-0").is_none());
    world.create_cluster();
    world.settle();
    assert_eq!(world.reason(), Some(Reason::Ready));
    assert_eq!((world.identity(), world.disks.clone(), world.formats), (identity, disks, 1));
}

#[test]
fn a_wiped_disk_is_never_formatted_until_its_loss_is_accepted() {
    let mut world = settled();
    let before = world.identity().unwrap();
    world.wipe_disk();
    world.settle();
    assert_eq!(world.reason(), Some(Reason::DiskLost));
    assert!(matches!(world.last.as_ref().unwrap().progress, Progress::Stalled { .. }));
    assert_eq!(world.formats, 1);
    world.accept(true);
    world.settle();
    assert_eq!(world.reason(), Some(Reason::Ready), "{:?}", world.last);
    assert_eq!(world.formats, 2);
    assert_ne!(world.identity().unwrap().nodes[&0].directory_id, before.nodes[&0].directory_id);

    // The word counts once: it stays in the manifest, and the next loss waits again.
    world.wipe_disk();
    world.settle();
    assert_eq!((world.reason(), world.formats), (Some(Reason::DiskLost), 2));
    world.accept(false);
    world.settle();
    assert_eq!((world.reason(), world.formats), (Some(Reason::DiskLost), 2));
    world.accept(true);
    world.settle();
    assert_eq!((world.reason(), world.formats), (Some(Reason::Ready), 3));
}

#[test]
fn a_word_given_before_the_loss_does_not_count() {
    let mut world = settled();
    world.accept(true);
    world.settle();
    world.wipe_disk();
    world.settle();
    assert_eq!((world.reason(), world.formats), (Some(Reason::DiskLost), 1));
}

#[test]
fn a_claim_that_is_gone_is_a_lost_disk() {
    let mut world = settled();
    world.delete_claim();
    world.settle();
    assert_eq!((world.reason(), world.formats), (Some(Reason::DiskLost), 1));
    assert!(
        world.object(Kind::PersistentVolumeClaim, "demo-0-data").is_none(),
        "no empty claim stands in the way of the old one"
    );
    world.accept(true);
    world.settle();
    assert_eq!((world.reason(), world.formats), (Some(Reason::Ready), 2));
}

#[test]
fn an_empty_claim_in_the_place_of_the_recorded_one_is_not_formatted() {
    let mut world = settled();
    world.swap_claim();
    world.settle();
    assert_eq!((world.reason(), world.formats), (Some(Reason::DiskLost), 1));
}

#[test]
fn a_volume_with_another_name_is_refused_and_its_disk_is_not_lost() {
    let mut world = settled();
    let rename = |world: &mut World, name: &str| {
        world.spec(|cluster| name.clone_into(&mut cluster.spec.storage.as_mut().unwrap().volumes[0].name));
        world.settle();
    };
    let writes = world.writes;
    rename(&mut world, "disk");
    let message = world.last.as_ref().unwrap().progress.message().to_owned();
    assert_eq!((world.reason(), world.writes), (Some(Reason::InvalidSpec), writes), "{message}");
    assert!(message.contains("demo-0-data") && message.contains("write name: data"), "{message}");
    // Nor is it given up on a word.
    world.accept(true);
    world.settle();
    assert_eq!((world.reason(), world.writes), (Some(Reason::InvalidSpec), writes));
    world.accept(false);
    rename(&mut world, "data");
    assert_eq!((world.reason(), world.formats), (Some(Reason::Ready), 1));
}

#[test]
fn a_restored_claim_with_the_data_is_taken_back() {
    let mut world = settled();
    let data = world.disks.values().next().unwrap().clone();
    world.swap_claim();
    let uid = world.object(Kind::PersistentVolumeClaim, "demo-0-data").unwrap()["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    world.disks.insert(uid.clone(), data);
    world.settle();
    assert_eq!((world.reason(), world.formats), (Some(Reason::Ready), 1));
    assert_eq!(world.identity().unwrap().nodes[&0].claim_uid, Some(uid));
}

#[test]
fn a_disk_of_somebody_else_is_left_alone_even_with_a_word() {
    let mut world = settled();
    for disk in world.disks.values_mut() {
        disk.as_mut().unwrap().cluster_id = "another".to_owned();
    }
    world.kill_pod();
    world.settle();
    assert_eq!(world.reason(), Some(Reason::ForeignDisk));
    world.accept(true);
    world.settle();
    assert_eq!((world.reason(), world.formats), (Some(Reason::ForeignDisk), 1));
}

#[test]
fn a_lost_identity_is_put_together_from_the_claims() {
    let mut world = settled();
    let before = world.identity().unwrap();
    world.identity = None;
    world.settle();
    assert_eq!(world.reason(), Some(Reason::Ready));
    assert_eq!(world.identity().unwrap(), before);
}

#[test]
fn an_identity_that_cannot_be_read_stops_everything() {
    let mut world = settled();
    world.identity.as_mut().unwrap()["data"] = json!({"identity.json": "{\"version\": 1"});
    world.kill_pod();
    let writes = world.writes;
    world.spec(|cluster| cluster.spec.restarted_at = Some("now".to_owned()));
    world.settle();
    assert_eq!((world.reason(), world.writes), (Some(Reason::IdentityUnreadable), writes));
    world.identity.as_mut().unwrap()["data"] = json!({"identity.json": "{\"version\": 2}"});
    world.settle();
    let message = world.last.unwrap().progress.message().to_owned();
    assert!(message.contains("version 2"), "{message}");
}

#[test]
fn a_claim_that_says_nothing_is_not_taken_for_a_new_disk() {
    let mut world = settled();
    world.identity = None;
    world.object(Kind::StatefulSet, "demo-0").unwrap();
    let claim = world.objects.get_mut(&(Kind::PersistentVolumeClaim, "demo-0-data".to_owned())).unwrap();
    claim["metadata"]["annotations"] = json!({});
    world.settle();
    assert_eq!((world.reason(), world.formats), (Some(Reason::ForeignVolume), 1));
}

#[test]
fn a_configuration_change_restarts_the_node_once_and_cleans_up() {
    let mut world = settled();
    let started = world.pods_started;
    world.spec(|cluster| {
        cluster.spec.config.insert("log.retention.hours".to_owned(), ConfigValue::Integer(24));
    });
    world.settle();
    assert_eq!(world.pods_started, started + 1);
    let files: Vec<&Value> = world.objects.values().filter(|object| object["immutable"] == true).collect();
    assert_eq!(files.len(), 1, "the old configuration is gone");
    assert!(files[0]["data"]["server.properties"].as_str().unwrap().contains("\nlog.retention.hours=24\n"));
}

#[test]
fn the_nonce_restarts_and_a_pool_s_new_name_too_but_nothing_is_formatted() {
    let mut world = settled();
    let started = world.pods_started;
    world.spec(|cluster| cluster.spec.restarted_at = Some("2026-01-01".to_owned()));
    world.settle();
    assert_eq!((world.pods_started, world.formats), (started + 1, 1));
    world.spec(|cluster| cluster.spec.node_pools[0].name = "renamed".to_owned());
    world.settle();
    assert_eq!((world.reason(), world.formats), (Some(Reason::Ready), 1));
}

#[test]
fn another_operator_release_restarts_nothing_until_the_manifest_says_so() {
    let mut world = settled();
    let started = world.pods_started;
    world.environment.image_tag = "9.9.9".to_owned();
    world.settle();
    assert_eq!(world.pods_started, started);
    world.spec(|cluster| cluster.spec.version = Some("9.9.9".to_owned()));
    world.settle();
    assert_eq!(world.pods_started, started + 1);
    assert_eq!(world.last.unwrap().status.image.as_deref(), Some("gregor:9.9.9"));
}

#[test]
fn what_somebody_changes_by_hand_is_put_right() {
    let mut world = settled();
    let service = world.objects.get_mut(&(Kind::Service, "demo-bootstrap".to_owned())).unwrap();
    service["spec"]["ports"][0]["port"] = json!(1);
    world.settle();
    assert_eq!(world.object(Kind::Service, "demo-bootstrap").unwrap()["spec"]["ports"][0]["port"], 9092);
}

#[test]
fn a_disk_grows_and_never_shrinks() {
    let mut world = settled();
    let size = |world: &World| {
        world.object(Kind::PersistentVolumeClaim, "demo-0-data").unwrap()["spec"]["resources"]["requests"]["storage"]
            .clone()
    };
    world.spec(|cluster| cluster.spec.storage.as_mut().unwrap().volumes[0].size = "20Gi".to_owned());
    world.settle();
    assert_eq!(size(&world), "20Gi");
    world.spec(|cluster| cluster.spec.storage.as_mut().unwrap().volumes[0].size = "5Gi".to_owned());
    world.settle();
    assert_eq!((size(&world), world.reason()), (json!("20Gi"), Some(Reason::Ready)));
}

#[test]
fn a_node_port_listener_gets_its_service_and_its_address() {
    let mut world = settled();
    world.spec(|cluster| {
        cluster.spec.listeners.push(Listener {
            name: "outside".to_owned(),
            port: 9094,
            type_: ListenerType::NodePort,
            tls: None,
            advertised: Some(Advertised {
                host_template: Some("{cluster}-{nodeId}.example.com".to_owned()),
                port_template: Some("3009{nodeId}".to_owned()),
            }),
            nodes: Vec::new(),
        });
    });
    world.settle();
    let service = world.object(Kind::Service, "demo-0-outside").unwrap();
    assert_eq!(service["spec"]["ports"][0]["nodePort"], 30090);
    let status = world.last.as_ref().unwrap().status.clone();
    assert_eq!(status.listeners[1].bootstrap_servers, "demo-0.example.com:30090");
    let properties =
        world.objects.values().find(|object| object["immutable"] == true).unwrap()["data"]["server.properties"].clone();
    assert!(properties.as_str().unwrap().contains("OUTSIDE://demo-0.example.com:30090"), "{properties}");
    world.spec(|cluster| cluster.spec.listeners.clear());
    world.settle();
    assert!(world.object(Kind::Service, "demo-0-outside").is_none());
}

#[test]
fn pods_are_restricted_and_templates_are_merged_by_name() {
    let mut world = World::new();
    world.spec(|cluster| {
        cluster.spec.pod_template = Some(json!({
            "metadata": {"labels": {"team": "red", names::CLUSTER_LABEL: "stolen"}},
            "spec": {"containers": [{"name": "gregor", "env": [{"name": "RUST_LOG", "value": "debug"}]}], "priorityClassName": "high"},
        }));
    });
    world.settle();
    let pod = template(&world);
    let container = &pod["spec"]["containers"][0];
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
    assert_eq!(container["env"][0]["name"], "RUST_LOG");
    assert_eq!(container["args"][0], "broker", "what the template does not name stays");
    assert_eq!(pod["spec"]["priorityClassName"], "high");
    assert_eq!(pod["metadata"]["labels"]["team"], "red");
    assert_eq!(pod["metadata"]["labels"][names::CLUSTER_LABEL], "demo");
    assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
    assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
    for container in [container, &pod["spec"]["initContainers"][0]] {
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
        assert!(container["resources"]["requests"]["memory"].is_string());
    }
    assert!(pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap() >= 120);
    assert!(container["startupProbe"].is_null(), "recovery may take as long as it takes");
}

#[test]
fn a_manifest_that_cannot_work_is_refused_in_words_and_touches_nothing() {
    let mut world = settled();
    let writes = world.writes;
    let mut refused = |change: &dyn Fn(&mut gregor_operator_api::KafkaCluster), reason: Reason, words: &str| {
        let before = world.cluster.clone();
        world.spec(change);
        world.reconcile();
        let progress = world.last.as_ref().unwrap().progress.clone();
        assert_eq!(progress.reason(), reason, "{}", progress.message());
        assert!(progress.message().contains(words), "{}", progress.message());
        world.cluster = before;
    };
    let config = |key: &str, value: ConfigValue| {
        let key = key.to_owned();
        move |cluster: &mut gregor_operator_api::KafkaCluster| {
            cluster.spec.config.insert(key.clone(), value.clone());
        }
    };
    refused(&config("node.id", ConfigValue::Integer(3)), Reason::InvalidConfig, "node.id");
    // Who votes is the operator's to say: controllers that join by themselves would pass by its order.
    refused(
        &config("controller.quorum.auto.join.enable", ConfigValue::Boolean(true)),
        Reason::InvalidConfig,
        "auto.join",
    );
    refused(&config("ssl.keystore.location", "x".into()), Reason::InvalidConfig, "plaintext");
    refused(&config("a", "x\ny".into()), Reason::InvalidConfig, "line break");
    refused(&config("a", ConfigValue::Unsupported(json!({}))), Reason::InvalidConfig, "not text");
    refused(
        &|cluster| cluster.spec.pod_template = Some(json!({"spec": {"tolerationz": []}})),
        Reason::InvalidPodTemplate,
        "spec.podTemplate.spec.tolerationz",
    );
    refused(
        &|cluster| {
            cluster.spec.node_pools[0].replicas = None;
            cluster.spec.node_pools[0].node_ids = Some(vec!["7".to_owned()]);
        },
        Reason::NodeIdChanged,
        "nodeIds: [\"0\"]",
    );
    assert_eq!(world.writes, writes);
}

#[test]
fn conditions_are_readable_by_kstatus() {
    let mut world = World::new();
    world.reconcile();
    let status = world.last.as_ref().unwrap().status.clone();
    let find = |type_: &str| condition::find(&status.conditions, type_).unwrap().clone();
    assert_eq!(find(condition::READY).status, condition::ConditionStatus::False);
    assert_eq!(find(condition::RECONCILING).status, condition::ConditionStatus::True);
    assert_eq!(find(condition::STALLED).status, condition::ConditionStatus::False);
    assert_eq!((status.observed_generation, find(condition::READY).observed_generation), (1, 1));
}

#[test]
fn pods_are_replaced_by_uid_only() {
    let mut world = settled();
    world.spec(|cluster| cluster.spec.restarted_at = Some("x".to_owned()));
    let uid = world.pod.as_ref().unwrap().metadata.uid.clone().unwrap();
    while !matches!(world.last.as_ref().unwrap().step, Some(Step::DeletePod { .. })) {
        assert!(world.reconcile());
    }
    assert!(matches!(&world.last.as_ref().unwrap().step, Some(Step::DeletePod { uid: named, .. }) if *named == uid));
}

/// What can happen to a cluster.
#[derive(Debug, Clone, Copy)]
enum Event {
    Reconcile,
    Kubelet,
    KillPod,
    WipeStatus,
    WipeDisk,
    DeleteClaim,
    SwapClaim,
    DeleteIdentity,
    DeleteCluster,
    CreateCluster,
    DeletePolicy(bool),
    Accept(bool),
    Restart(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => Just(Event::Reconcile),
        6 => Just(Event::Kubelet),
        1 => Just(Event::KillPod),
        1 => Just(Event::WipeStatus),
        1 => Just(Event::WipeDisk),
        1 => Just(Event::DeleteClaim),
        1 => Just(Event::SwapClaim),
        1 => Just(Event::DeleteIdentity),
        1 => Just(Event::DeleteCluster),
        3 => Just(Event::CreateCluster),
        1 => any::<bool>().prop_map(Event::DeletePolicy),
        2 => any::<bool>().prop_map(Event::Accept),
        1 => any::<u8>().prop_map(Event::Restart),
    ]
}

fn happen(world: &mut World, event: Event) {
    match event {
        Event::Reconcile => drop(world.reconcile()),
        Event::Kubelet => drop(world.kubelet()),
        Event::KillPod => world.kill_pod(),
        Event::WipeStatus => world.wipe_status(),
        Event::WipeDisk => world.wipe_disk(),
        Event::DeleteClaim => world.delete_claim(),
        Event::SwapClaim => world.swap_claim(),
        Event::DeleteIdentity => world.identity = None,
        Event::DeleteCluster => world.delete_cluster(),
        Event::CreateCluster => world.create_cluster(),
        Event::DeletePolicy(delete) => world.spec(|cluster| {
            cluster.spec.deletion_policy = if delete { DeletionPolicy::Delete } else { DeletionPolicy::Retain };
        }),
        Event::Accept(named) => world.accept(named),
        Event::Restart(nonce) => world.spec(|cluster| cluster.spec.restarted_at = Some(nonce.to_string())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    // The world itself asserts what must never happen; see `World::ensure` and `World::reconcile`.
    #[test]
    fn whatever_happens_no_record_is_lost_without_a_word_and_all_comes_to_rest(events in prop::collection::vec(event(), 1..120)) {
        let mut world = World::new();
        for event in events {
            happen(&mut world, event);
        }
        world.create_cluster();
        world.settle();
        let writes = world.writes;
        prop_assert!(!world.reconcile());
        prop_assert_eq!(world.writes, writes);
        let reason = world.reason().unwrap();
        prop_assert!(
            [Reason::Ready, Reason::DiskLost, Reason::ForeignDisk, Reason::ForeignVolume].contains(&reason),
            "it rests with {:?}", world.last
        );
    }

    #[test]
    fn a_wiped_status_changes_no_outcome(wipes in prop::collection::vec(any::<bool>(), 40)) {
        let mut with = World::new();
        let mut without = World::new();
        for wipe in wipes {
            if wipe {
                with.wipe_status();
            }
            prop_assert_eq!(with.reconcile(), without.reconcile());
            prop_assert_eq!(with.kubelet(), without.kubelet());
        }
        prop_assert_eq!(with.objects, without.objects);
        prop_assert_eq!(with.identity, without.identity);
    }
}
