//! The operator and KafkaClusters against a real API server without nodes.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod lab;

use std::collections::BTreeMap;

use gregor_operator::context::FIELD_MANAGER;
use gregor_operator_api::KafkaCluster;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, DeleteParams, ListParams};
use kube::{Resource as _, ResourceExt as _};
use lab::{CLUSTER, Lab, wait_until};
use serde_json::{Value, json};

#[tokio::test]
async fn a_cluster_becomes_ready_and_is_readable() {
    let Some(lab) = Lab::start("ready").await else { return };
    let _operator = lab.operator();
    lab.create::<KafkaCluster>(CLUSTER).await;
    let cluster = lab.cluster_says("demo", "Ready").await;
    let status = cluster.status.unwrap();
    let bootstrap = format!("demo-bootstrap.{}.svc.cluster.local:9092", lab.namespace);
    assert_eq!(status.bootstrap_servers.as_deref(), Some(bootstrap.as_str()));
    assert_eq!((status.phase.as_deref(), status.node_count), (Some("Running"), 1));
    assert_eq!(status.cluster_id.unwrap(), lab.identity().await["clusterId"]);
    assert_eq!(lab.formats(), 1);
    let stateful_set = lab.api::<StatefulSet>().get("demo-0").await.unwrap();
    assert_eq!(stateful_set.spec.unwrap().update_strategy.unwrap().type_.as_deref(), Some("OnDelete"));
    let claim = lab.api::<PersistentVolumeClaim>().get("demo-0-data").await.unwrap();
    assert_eq!(claim.metadata.owner_references, None);
    let events = wait_until("an event is told", async || {
        let events = lab.api::<Event>().list(&ListParams::default()).await.unwrap().items;
        events.iter().any(|event| event.reason.as_deref() == Some("Ready")).then_some(events)
    })
    .await;
    assert!(events.len() < 20, "{} events for one cluster", events.len());
}

/// What is written in every object of the namespace, but for what Kubernetes' own programs write at any time: status, and
/// events that the operator did not tell.
async fn written(lab: &Lab) -> BTreeMap<String, Value> {
    macro_rules! list {
        ($($kind:ty),*) => {{
            let mut all = BTreeMap::new();
            $(for mut object in lab.api::<$kind>().list(&ListParams::default()).await.unwrap() {
                object.meta_mut().resource_version = None;
                object.meta_mut().managed_fields = None;
                let mut value = serde_json::to_value(&object).unwrap();
                value.as_object_mut().unwrap().remove("status");
                all.insert(format!("{} {}", stringify!($kind), object.name_any()), value);
            })*
            all
        }};
    }
    let mut all = list!(
        ConfigMap,
        Event,
        KafkaCluster,
        PersistentVolumeClaim,
        Pod,
        PodDisruptionBudget,
        Secret,
        Service,
        ServiceAccount,
        StatefulSet
    );
    all.retain(|name, value| !name.starts_with("Event ") || value["reportingController"] == FIELD_MANAGER);
    assert!(all.keys().any(|name| name.starts_with("Event ")), "the operator told nothing in {all:?}");
    all
}

#[tokio::test]
async fn at_rest_nothing_is_written() {
    let Some(lab) = Lab::start("quiet").await else { return };
    let first = lab.operator();
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    // Let what follows the readiness come to its end, such as the last event.
    let mut before = written(&lab).await;
    wait_until("everything rests", async || {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let now = written(&lab).await;
        let rests = now == before;
        before = now;
        rests.then_some(())
    })
    .await;
    first.stop().await;

    // A new operator remembers nothing and looks at everything.
    let second = lab.operator();
    wait_until("the new operator has looked", async || {
        (second.count("reconciles_total{kind=\"KafkaCluster\",outcome=\"Ready\"}") >= 1).then_some(())
    })
    .await;
    lab.patch::<KafkaCluster>("demo", json!({"metadata": {"labels": {"touched": "yes"}}})).await;
    wait_until("it has looked again", async || {
        (second.count("reconciles_total{kind=\"KafkaCluster\",outcome=\"Ready\"}") >= 2).then_some(())
    })
    .await;
    let mut after = written(&lab).await;
    let mut expected = before;
    // The touch was ours.
    expected.remove("KafkaCluster demo");
    after.remove("KafkaCluster demo");
    assert_eq!(after, expected);
    assert_eq!((second.count("steps_total"), second.count("status_writes_total")), (0, 0));
    second.stop().await;
}

#[tokio::test]
async fn a_wiped_status_is_derived_again_and_changes_nothing() {
    let Some(lab) = Lab::start("wiped").await else { return };
    let _operator = lab.operator();
    lab.create::<KafkaCluster>(CLUSTER).await;
    let before = lab.cluster_says("demo", "Ready").await;
    let (identity, pod) = (lab.identity().await, lab.pod_uid().await);
    let clusters = lab.api::<KafkaCluster>();
    let wipe = kube::api::Patch::Merge(json!({"status": null}));
    clusters.patch_status("demo", &kube::api::PatchParams::default(), &wipe).await.unwrap();
    let after = lab.cluster_says("demo", "Ready").await;
    assert_eq!(before.status.unwrap().cluster_id, after.status.unwrap().cluster_id);
    assert_eq!((identity, pod), (lab.identity().await, lab.pod_uid().await));
    assert_eq!(lab.formats(), 1);
}

#[tokio::test]
async fn a_deleted_cluster_comes_back_on_its_disk_and_starts_no_second_one() {
    let Some(lab) = Lab::start("again").await else { return };
    let _operator = lab.operator();
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    let identity = lab.identity().await;
    let claim = lab.api::<PersistentVolumeClaim>().get("demo-0-data").await.unwrap().uid();
    lab.delete::<KafkaCluster>("demo").await;
    lab.gone::<StatefulSet>("demo-0").await;
    lab.gone::<Pod>("demo-0-0").await;
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    assert_eq!(lab.identity().await, identity);
    assert_eq!(lab.api::<PersistentVolumeClaim>().get("demo-0-data").await.unwrap().uid(), claim);
    assert_eq!(lab.formats(), 1);
}

#[tokio::test]
async fn under_delete_the_data_goes_with_the_cluster() {
    let Some(lab) = Lab::start("delete").await else { return };
    let _operator = lab.operator();
    lab.create::<KafkaCluster>(&CLUSTER.replace("spec:\n", "spec:\n  deletionPolicy: Delete\n")).await;
    lab.cluster_says("demo", "Ready").await;
    let identity = lab.identity().await;
    lab.delete::<KafkaCluster>("demo").await;
    lab.gone::<ConfigMap>("demo-identity").await;
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    assert_ne!(lab.identity().await["clusterId"], identity["clusterId"]);
    assert_eq!(lab.formats(), 2);
}

#[tokio::test]
async fn a_wiped_disk_is_lost_until_a_person_accepts_it() {
    let Some(lab) = Lab::start("lost").await else { return };
    let _operator = lab.operator();
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    lab.wipe_disks();
    lab.delete::<Pod>("demo-0-0").await;
    let cluster = lab.cluster_says("demo", "DiskLost").await;
    let conditions = cluster.status.unwrap().conditions;
    let stalled = gregor_operator_api::condition::find(&conditions, "Stalled").unwrap();
    assert_eq!(stalled.status, gregor_operator_api::ConditionStatus::True);
    assert!(stalled.message.contains("spec.acceptDataLoss"), "{}", stalled.message);
    // Another pod and another operator change nothing.
    lab.delete::<Pod>("demo-0-0").await;
    lab.patch::<KafkaCluster>("demo", json!({"spec": {"restartedAt": "now"}})).await;
    lab.cluster_says("demo", "DiskLost").await;
    assert_eq!(lab.formats(), 1);
    lab.patch::<KafkaCluster>("demo", json!({"spec": {"acceptDataLoss": [0]}})).await;
    lab.cluster_says("demo", "Ready").await;
    assert_eq!(lab.formats(), 2);
}

#[tokio::test]
async fn a_deleted_claim_is_a_lost_disk() {
    let Some(lab) = Lab::start("claim").await else { return };
    let _operator = lab.operator();
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    lab.delete::<PersistentVolumeClaim>("demo-0-data").await;
    lab.delete::<Pod>("demo-0-0").await;
    lab.cluster_says("demo", "DiskLost").await;
    assert_eq!(lab.formats(), 1);
    lab.patch::<KafkaCluster>("demo", json!({"spec": {"acceptDataLoss": [0]}})).await;
    lab.cluster_says("demo", "Ready").await;
    assert_eq!(lab.formats(), 2);
}

#[tokio::test]
async fn a_configuration_change_restarts_the_node_once_and_leaves_one_file() {
    let Some(lab) = Lab::start("config").await else { return };
    let operator = lab.operator();
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    let pod = lab.pod_uid().await;
    lab.patch::<KafkaCluster>(
        "demo",
        json!({"spec": {"config": {"log.retention.hours": 24, "log.preallocate": false}}}),
    )
    .await;
    lab.cluster_says("demo", "Ready").await;
    assert_ne!(lab.pod_uid().await, pod);
    assert_eq!(operator.count("steps_total{step=\"delete_pod\"}"), 1);
    let files = wait_until("the old file is gone", async || {
        let all = lab.api::<ConfigMap>().list(&ListParams::default()).await.unwrap();
        let files: Vec<ConfigMap> = all.into_iter().filter(|map| map.immutable == Some(true)).collect();
        (files.len() == 1).then_some(files)
    })
    .await;
    let text = &files[0].data.as_ref().unwrap()["server.properties"];
    assert!(text.contains("\nlog.retention.hours=24\n") && text.contains("\nlog.preallocate=false\n"), "{text}");
}

#[tokio::test]
async fn what_the_manifest_takes_out_goes() {
    let Some(lab) = Lab::start("out").await else { return };
    let _operator = lab.operator();
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    let ports = async || lab.api::<Service>().get("demo-bootstrap").await.unwrap().spec.unwrap().ports.unwrap().len();
    let owners = async || {
        let claim = lab.api::<PersistentVolumeClaim>().get("demo-0-data").await.unwrap();
        claim.metadata.owner_references.map_or(0, |owners| owners.len())
    };
    let environment = async || {
        let pod = lab.api::<Pod>().get("demo-0-0").await.unwrap();
        pod.spec.unwrap().containers[0].env.as_ref().map_or(0, Vec::len)
    };
    let listener = json!([{"name": "local", "port": 19092, "advertised": {"hostTemplate": "localhost"}}]);
    let template = json!({"spec": {"containers": [{"name": "gregor", "env": [{"name": "A", "value": "b"}]}]}});
    let more = json!({"spec": {"listeners": listener, "podTemplate": template, "deletionPolicy": "Delete"}});
    lab.patch::<KafkaCluster>("demo", more).await;
    lab.cluster_says("demo", "Ready").await;
    assert_eq!((ports().await, owners().await, environment().await), (2, 1, 1));
    let less = json!({"spec": {"listeners": null, "podTemplate": null, "deletionPolicy": "Retain"}});
    lab.patch::<KafkaCluster>("demo", less).await;
    lab.cluster_says("demo", "Ready").await;
    assert_eq!((ports().await, owners().await, environment().await), (1, 0, 0));
}

#[tokio::test]
async fn a_disk_that_cannot_grow_holds_nothing_else_up() {
    let Some(lab) = Lab::start("grow").await else { return };
    let _operator = lab.operator();
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    // The claim is not bound, so Kubernetes refuses to resize it.
    let patch = json!({"spec": {"storage": {"volumes": [{"name": "data", "size": "2Gi"}]}, "config": {"log.retention.hours": 1}, "deletionPolicy": "Delete"}});
    let pod = lab.pod_uid().await;
    lab.patch::<KafkaCluster>("demo", patch).await;
    lab.cluster_says("demo", "Ready").await;
    assert_ne!(lab.pod_uid().await, pod, "the configuration came through");
    let claim = lab.api::<PersistentVolumeClaim>().get("demo-0-data").await.unwrap();
    assert_eq!(claim.metadata.owner_references.map_or(0, |owners| owners.len()), 1, "and so did the rest of the claim");
    wait_until("an event says why", async || {
        let events = lab.api::<Event>().list(&ListParams::default()).await.unwrap();
        events.into_iter().any(|event| event.reason.as_deref() == Some("VolumeUnchanged")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_belongs_to_somebody_else_is_never_overwritten() {
    let Some(lab) = Lab::start("taken").await else { return };
    let _operator = lab.operator();
    let manifest = "{apiVersion: v1, kind: Service, metadata: {name: demo-bootstrap}, spec: {ports: [{port: 80}]}}";
    let before = lab.create::<Service>(manifest).await;
    lab.create::<KafkaCluster>(CLUSTER).await;
    let cluster = lab.cluster_says("demo", "NameTaken").await;
    assert!(cluster.status.unwrap().phase.unwrap().contains("demo-bootstrap"));
    let after = lab.api::<Service>().get("demo-bootstrap").await.unwrap();
    assert_eq!(before.resource_version(), after.resource_version());
    lab.delete::<Service>("demo-bootstrap").await;
    lab.cluster_says("demo", "Ready").await;
}

#[tokio::test]
async fn one_bad_object_stops_no_other() {
    let Some(lab) = Lab::start("bad").await else { return };
    let _operator = lab.operator();
    let bad = CLUSTER.replace("{name: demo}", "{name: bad}");
    lab.create::<KafkaCluster>(&format!("{bad}  config: {{node.id: 5}}\n")).await;
    lab.create::<KafkaCluster>(
        &bad.replace("name: bad", "name: worse")
            .replace("spec:\n", "spec:\n  podTemplate: {spec: {restartPolicy: Never}}\n"),
    )
    .await;
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    let bad = lab.cluster_says("bad", "InvalidConfig").await;
    assert!(bad.status.unwrap().phase.unwrap().contains("node.id"));
    lab.cluster_says("worse", "InvalidPodTemplate").await;
    lab.patch::<KafkaCluster>("worse", json!({"spec": {"podTemplate": null}})).await;
    lab.cluster_says("worse", "Ready").await;
}

#[tokio::test]
async fn a_deleted_namespace_ends() {
    let Some(lab) = Lab::start("ending").await else { return };
    let _operator = lab.operator();
    lab.create::<KafkaCluster>(CLUSTER).await;
    let topic = "{apiVersion: gregor.dev/v1beta1, kind: KafkaTopic, metadata: {name: events}, spec: {clusterRef: {name: demo}, deletionPolicy: Delete}}";
    lab.create::<gregor_operator_api::KafkaTopic>(topic).await;
    lab.topic_says("events", "Ready").await;
    let namespaces: Api<Namespace> = Api::all(lab.client.clone());
    namespaces.delete(&lab.namespace, &DeleteParams::default()).await.unwrap();
    wait_until("the namespace is gone", async || {
        namespaces.get_opt(&lab.namespace).await.unwrap().is_none().then_some(())
    })
    .await;
}

const POOLS: &str = "
apiVersion: gregor.dev/v1beta1
kind: KafkaCluster
metadata: {name: demo}
spec:
  nodePools:
    - {name: controllers, replicas: 3, roles: [controller]}
    - {name: brokers, nodeIds: ['10-11'], roles: [broker]}
  storage: {volumes: [{name: data, size: 1Gi}]}
";

#[tokio::test]
async fn pools_become_one_cluster_that_is_restarted_one_node_at_a_time() {
    let Some(lab) = Lab::start("pools").await else { return };
    let first = lab.operator();
    lab.create::<KafkaCluster>(POOLS).await;
    let status = lab.cluster_says("demo", "Ready").await.status.unwrap();
    assert_eq!((status.node_count, status.quorum_leader, lab.formats()), (5, Some(0), 1));
    let voters: Vec<i32> = lab.brokers.voters.lock().unwrap().iter().map(|(id, _)| *id).collect();
    assert_eq!(voters, [0, 1, 2]);
    let budget = async || {
        let budget = lab.api::<PodDisruptionBudget>().get("demo").await.unwrap();
        serde_json::to_value(budget).unwrap()["spec"]["minAvailable"].clone()
    };
    wait_until("one pod may be evicted", async || (budget().await == 4).then_some(())).await;
    let uids = async || {
        let pods = lab.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
        pods.into_iter().map(|pod| (pod.name_any(), pod.uid().unwrap())).collect::<BTreeMap<_, _>>()
    };
    let before = uids().await;
    assert_eq!(before.len(), 5);
    lab.patch::<KafkaCluster>("demo", json!({"spec": {"config": {"log.retention.hours": 24}}})).await;
    wait_until("a node is restarted", async || (uids().await != before).then_some(())).await;
    // Whoever follows an operator that ends in the middle goes on where it was.
    first.stop().await;
    let _second = lab.operator();
    lab.cluster_says("demo", "Ready").await;
    let after = uids().await;
    assert_eq!(after.len(), 5);
    assert!(before.iter().all(|(name, uid)| after[name] != *uid), "every node was restarted: {after:?}");
    assert_eq!(lab.formats(), 1);
}

const THREE: &str = "
apiVersion: gregor.dev/v1beta1
kind: KafkaCluster
metadata: {name: demo}
spec:
  nodePools: [{name: combined, replicas: 3}]
  storage: {volumes: [{name: data, size: 1Gi}]}
";

/// The serial numbers that the pods show.
fn serials(lab: &Lab) -> BTreeMap<String, String> {
    lab.brokers.shown.lock().unwrap().iter().map(|(pod, shown)| (pod.clone(), shown.serial.clone())).collect()
}

/// Everything that anybody may read who may not read Secrets.
async fn readable(lab: &Lab) -> String {
    macro_rules! list {
        ($($kind:ty),*) => {{
            let mut all = String::new();
            $(for object in lab.api::<$kind>().list(&ListParams::default()).await.unwrap() {
                all.push_str(&serde_json::to_string(&object).unwrap());
            })*
            all
        }};
    }
    list!(ConfigMap, Event, KafkaCluster, Pod, StatefulSet)
}

#[tokio::test]
async fn certificates_are_renewed_without_a_restart_and_keys_stay_in_their_secrets() {
    let Some(lab) = Lab::start("certificates").await else { return };
    let operator = lab.operator();
    lab.create::<KafkaCluster>(THREE).await;
    let status = lab.cluster_says("demo", "Ready").await.status.unwrap();
    let connections = status.node_connections.unwrap();
    assert_eq!(connections.encryption, gregor_operator_api::cluster::Encryption::Tls);
    assert!(operator.metrics.text().contains("certificate_end_seconds{holder=\"node\"}"));
    let uids = async || {
        let pods = lab.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
        pods.into_iter().map(|pod| (pod.name_any(), pod.uid().unwrap())).collect::<BTreeMap<_, _>>()
    };
    let (pods, before) = (uids().await, serials(&lab));
    assert_eq!(before.len(), 3);

    let renewed = |before: &BTreeMap<String, String>| {
        let now = serials(&lab);
        now.iter().all(|(pod, serial)| before[pod] != *serial).then_some(now)
    };
    let patch = json!({"spec": {"nodeConnections": {"certificatesRenewedAt": "once"}}});
    lab.patch::<KafkaCluster>("demo", patch).await;
    let before = wait_until("every node shows a new certificate", async || renewed(&before)).await;

    let trusted = || {
        let shown = lab.brokers.shown.lock().unwrap();
        let all: std::collections::BTreeSet<String> =
            shown.values().flat_map(|shown| shown.trusted.iter().cloned()).collect();
        all
    };
    let old = trusted();
    assert_eq!(old.len(), 1);
    lab.patch::<KafkaCluster>("demo", json!({"spec": {"nodeConnections": {"authorityRenewedAt": "once"}}})).await;
    wait_until("every node trusts a new authority alone", async || {
        let now = trusted();
        (now.len() == 1 && now != old && renewed(&before).is_some()).then_some(())
    })
    .await;
    assert_eq!(uids().await, pods, "no pod was restarted");
    wait_until("an event says so", async || {
        let events = lab.api::<Event>().list(&ListParams::default()).await.unwrap();
        events.into_iter().any(|event| event.reason.as_deref() == Some("CertificatesRenewed")).then_some(())
    })
    .await;

    let secrets = lab.api::<Secret>().list(&ListParams::default()).await.unwrap().items;
    let readable = readable(&lab).await;
    let texts = secrets.iter().flat_map(|secret| secret.data.iter().flatten()).filter(|(key, _)| *key != "ca.crt");
    let mut keys = 0;
    for (key, value) in texts {
        let text = std::str::from_utf8(&value.0).unwrap();
        let Some((_, private)) = text.split_once("-----BEGIN PRIVATE KEY-----") else { continue };
        keys += 1;
        let line = private.trim_start().lines().next().unwrap();
        assert!(line.len() > 40 && !readable.contains(line), "a private key in {key} is told elsewhere");
    }
    assert_eq!(keys, 4, "one of the authority, one of each node, and none of what was before");
}

#[tokio::test]
async fn a_deleted_secret_is_made_again_and_all_go_with_their_cluster() {
    let Some(lab) = Lab::start("secrets").await else { return };
    let _operator = lab.operator();
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    let before = lab.api::<Secret>().get("demo-0-tls").await.unwrap();
    lab.delete::<Secret>("demo-0-tls").await;
    lab.patch::<KafkaCluster>("demo", json!({"metadata": {"labels": {"looked": "at"}}})).await;
    let after =
        wait_until("it is there again", async || lab.api::<Secret>().get_opt("demo-0-tls").await.unwrap()).await;
    assert_ne!((after.uid(), &after.data), (before.uid(), &before.data));
    lab.cluster_says("demo", "Ready").await;
    lab.delete::<KafkaCluster>("demo").await;
    lab.gone::<Secret>("demo-0-tls").await;
    lab.gone::<Secret>("demo-authority").await;
    lab.create::<KafkaCluster>(CLUSTER).await;
    lab.cluster_says("demo", "Ready").await;
    assert_eq!(lab.api::<Secret>().list(&ListParams::default()).await.unwrap().items.len(), 2);
}
