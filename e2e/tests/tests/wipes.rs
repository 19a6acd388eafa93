//! Disks that are wiped while a cluster of three nodes begins on a real Kubernetes. The plan's own tests wipe every disk at every step;
//! three steps are played here with real disks, kubelets and nodes: the first disk is formatted and the operator has not seen it;
//! the first node answers and nobody has joined; others run on recorded disks and do not vote.
//!
//! No step is hit by luck. Each pod is made with a scheduling gate, which holds it until the test takes the gate away, so that a
//! cluster stands still between two steps; where the operator must not see what comes, it is stopped first.
//!
//! The tests tell one story in order. They need a Kubernetes and images on its nodes, so `cargo xtask test e2e` runs them, which
//! prepares both and sets `GREGOR_E2E`; elsewhere they are skipped.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use gregor_e2e::{
    disks,
    install::{self, OPERATOR_NAMESPACE, Release},
    story::{self, Story},
};
use gregor_kubernetes::{Cluster, Helm, process};
use serde_json::{Value, json};

const NAMESPACE: &str = "wipes";
const MINUTES: Duration = Duration::from_mins(3);
/// The cluster that comes to its end, whatever is wiped.
const YOUNG: &str = "young";
/// The cluster whose first disk is lost before anybody else has its metadata.
const LOST: &str = "lost";

fn main() -> ExitCode {
    let mut story = Story::new(&[NAMESPACE, OPERATOR_NAMESPACE]);
    story.tell("the_first_disk_wiped_before_it_is_recorded_is_formatted_again", first_disk_before_it_is_recorded);
    story.tell("the_first_disk_wiped_when_nobody_has_joined_is_lost_and_starts_no_second_quorum", first_disk_alone);
    story.tell("a_disk_wiped_before_its_node_votes_is_lost_and_joins_on_a_word", disk_before_its_node_votes);
    story.end(|cluster| {
        let _ = cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"]);
    })
}

fn manifest(name: &str) -> Value {
    json!({
        "apiVersion": "gregor.dev/v1beta1", "kind": "KafkaCluster",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodePools": [{"name": "combined", "nodeIds": ["0-2"]}],
            "storage": {"volumes": [{"name": "data", "size": "1Gi"}]},
            "config": {"auto.create.topics.enable": false},
            "podTemplate": {"spec": {"schedulingGates": [{"name": "wipes.gregor.test/held"}]}},
        },
    })
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    cluster.kubectl(&[&["-n", NAMESPACE], arguments].concat())
}

fn get(cluster: &Cluster, object: &str) -> Result<Value> {
    cluster.kubectl_json(&["-n", NAMESPACE, "get", object])
}

/// A node's pod, if there is one that stays.
fn pod(cluster: &Cluster, name: &str, id: u32) -> Result<Option<Value>> {
    let selector = format!("gregor.dev/cluster={name},gregor.dev/node-id={id}");
    let pods = cluster.kubectl_json(&["-n", NAMESPACE, "get", "pods", "-l", &selector])?;
    let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    Ok(pods["items"].as_array().into_iter().flatten().find(stays).cloned())
}

/// Waits for a node's pod that is so.
fn wait_for_pod(cluster: &Cluster, name: &str, id: u32, what: &str, is_so: fn(&Value) -> bool) -> Result<()> {
    process::wait_until(&format!("the pod of {name}-{id} {what}"), MINUTES, || {
        Ok(pod(cluster, name, id)?.as_ref().is_some_and(is_so))
    })
}

/// Waits for a pod that its gate holds.
fn wait_until_held(cluster: &Cluster, name: &str, id: u32) -> Result<()> {
    wait_for_pod(cluster, name, id, "is held", |pod| pod["spec"]["schedulingGates"][0].is_object())
}

/// Lets a pod go that is held.
fn release(cluster: &Cluster, name: &str, id: u32) -> Result<()> {
    wait_until_held(cluster, name, id)?;
    let patch = json!([{"op": "remove", "path": "/spec/schedulingGates"}]).to_string();
    kubectl(cluster, &["patch", "pod", &format!("{name}-{id}-0"), "--type=json", "-p", &patch]).map(drop)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Whether the node's process runs, whatever it can do.
fn runs(pod: &Value) -> bool {
    pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
}

/// The code with which the container that looks at the disk ended last.
fn disk_verdict(pod: &Value) -> Option<i64> {
    let status = &pod["status"]["initContainerStatuses"][0];
    let ends = [&status["state"], &status["lastState"]];
    ends.into_iter().find_map(|state| state["terminated"]["exitCode"].as_i64())
}

/// Whether the disk is formatted and the node waits for the operator to have seen it.
fn waits_to_be_recorded(pod: &Value) -> bool {
    disk_verdict(pod) == Some(4)
}

/// Empties a node's disk on which nothing runs any more; its next pod is held.
fn wipe(cluster: &Cluster, name: &str, id: u32) -> Result<()> {
    let pod = format!("{name}-{id}-0");
    let node = kubectl(cluster, &["get", "pod", &pod, "-o", "jsonpath={.spec.nodeName}"])?;
    kubectl(cluster, &["delete", "pod", &pod, "--now"])?;
    wait_until_held(cluster, name, id)?;
    disks::wipe(cluster, NAMESPACE, &format!("{name}-{id}-data"), &node)
}

/// Who the cluster is, as the operator has written it down.
fn identity(cluster: &Cluster, name: &str) -> Result<Value> {
    let config_map = get(cluster, &format!("configmap/{name}-identity"))?;
    let text = config_map["data"]["identity.json"].as_str().context("the identity has no text")?;
    Ok(serde_json::from_str(text)?)
}

/// What a node may do with an empty disk.
fn grants(cluster: &Cluster, name: &str, id: u32) -> Result<Vec<String>> {
    let config_map = get(cluster, &format!("configmap/{name}-{id}-grant"))?;
    let words = config_map["data"].as_object().into_iter().flatten();
    Ok(words.filter_map(|(_, word)| word.as_str().map(str::to_owned)).collect())
}

/// Waits until the cluster says this of what its manifest says now, with these words in its sentence.
fn wait_until_it_says(cluster: &Cluster, name: &str, reason: &str, words: &str) -> Result<()> {
    let mut seen = Value::Null;
    let waited = process::wait_until(&format!("{name} says {reason}"), MINUTES, || {
        let value = get(cluster, &format!("gk/{name}"))?;
        seen = value["status"]["conditions"].clone();
        let says = |condition: &Value| {
            condition["type"] == "Ready"
                && condition["reason"] == reason
                && condition["message"].as_str().is_some_and(|message| message.contains(words))
        };
        let current = value["status"]["observedGeneration"] == value["metadata"]["generation"];
        Ok(current && seen.as_array().into_iter().flatten().any(says))
    });
    waited.with_context(|| format!("the conditions of {name} are {seen}"))
}

fn accept_loss(cluster: &Cluster, name: &str, id: u32) -> Result<()> {
    let patch = json!({"spec": {"acceptDataLoss": [id]}}).to_string();
    kubectl(cluster, &["patch", "gk", name, "--type=merge", "-p", &patch]).map(drop)
}

fn scale_operator(cluster: &Cluster, replicas: u32) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    cluster.kubectl(&["-n", OPERATOR_NAMESPACE, "scale", "deployment", "--all", &replicas]).map(drop)
}

/// Runs `unseen` while there is no operator.
fn without_operator(cluster: &Cluster, unseen: impl FnOnce() -> Result<()>) -> Result<()> {
    scale_operator(cluster, 0)?;
    let gone = process::wait_until("the operator is gone", MINUTES, || {
        Ok(cluster.kubectl(&["-n", OPERATOR_NAMESPACE, "get", "pods", "-o", "name"])?.is_empty())
    });
    let outcome = gone.and_then(|()| unseen());
    scale_operator(cluster, 1)?;
    outcome
}

fn first_disk_before_it_is_recorded(cluster: &Cluster) -> Result<()> {
    // What an earlier run left.
    kubectl(cluster, &["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"])?;
    Release::crds().apply(cluster, Helm::V4)?;
    Release::operator().apply(cluster, Helm::V4)?;
    install::create_namespace(cluster, NAMESPACE)?;
    let topic = json!({
        "apiVersion": "gregor.dev/v1beta1", "kind": "KafkaTopic",
        "metadata": {"name": "probe", "namespace": NAMESPACE},
        "spec": {"clusterRef": {"name": YOUNG}, "partitions": 3, "replicas": 3},
    });
    let items = [manifest(YOUNG), manifest(LOST), topic];
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    for name in [YOUNG, LOST] {
        wait_until_held(cluster, name, 0)?;
    }
    let before = identity(cluster, YOUNG)?;
    without_operator(cluster, || {
        release(cluster, YOUNG, 0)?;
        wait_for_pod(cluster, YOUNG, 0, "has formatted its disk", waits_to_be_recorded)?;
        let unseen = identity(cluster, YOUNG)?;
        ensure!(
            unseen["standaloneGrant"]["nodeId"] == 0 && unseen["nodes"]["0"]["formatted"] == false,
            "the disk is recorded already: {unseen}"
        );
        wipe(cluster, YOUNG, 0)
    })?;
    release(cluster, YOUNG, 0)?;
    wait_for_pod(cluster, YOUNG, 0, "is ready", is_ready)?;
    let after = identity(cluster, YOUNG)?;
    ensure!(after["clusterId"] == before["clusterId"], "another cluster: {after}");
    let directory = |identity: &Value| identity["nodes"]["0"]["directoryId"].clone();
    ensure!(directory(&after) == directory(&before), "another directory: {after}");
    ensure!(after["standaloneGrant"].is_null(), "a quorum could still be started: {after}");
    Ok(())
}

fn first_disk_alone(cluster: &Cluster) -> Result<()> {
    release(cluster, LOST, 0)?;
    wait_for_pod(cluster, LOST, 0, "is ready", is_ready)?;
    for id in [1, 2] {
        wait_until_held(cluster, LOST, id)?;
    }
    let before = identity(cluster, LOST)?;
    wipe(cluster, LOST, 0)?;
    release(cluster, LOST, 0)?;
    wait_until_it_says(cluster, LOST, "DiskLost", "node 0")?;
    for id in [1, 2] {
        release(cluster, LOST, id)?;
        wait_for_pod(cluster, LOST, id, "has formatted its disk", waits_to_be_recorded)?;
    }
    // Nobody else has the metadata: no word brings it back, and none begins it anew.
    accept_loss(cluster, LOST, 0)?;
    wait_until_it_says(cluster, LOST, "DiskLost", "its loss is accepted, but it may hold the metadata")?;
    let after = identity(cluster, LOST)?;
    ensure!(after["clusterId"] == before["clusterId"] && after["standaloneGrant"].is_null(), "{before} became {after}");
    for id in 0..3 {
        let granted = grants(cluster, LOST, id)?;
        ensure!(!granted.iter().any(|word| word == "standalone"), "node {id} may start a quorum: {granted:?}");
    }
    let pod = pod(cluster, LOST, 0)?.context("the first node's pod is gone")?;
    ensure!(disk_verdict(&pod) == Some(3), "the lost disk was touched: {}", pod["status"]);
    kubectl(cluster, &["delete", "gk", LOST, "--timeout=120s"]).map(drop)
}

fn disk_before_its_node_votes(cluster: &Cluster) -> Result<()> {
    for id in [1, 2] {
        wait_until_held(cluster, YOUNG, id)?;
    }
    let before = identity(cluster, YOUNG)?;
    // Without the first node there is no quorum that could make anybody a voter.
    kubectl(cluster, &["delete", "pod", &format!("{YOUNG}-0-0"), "--now"])?;
    wait_until_held(cluster, YOUNG, 0)?;
    for id in [1, 2] {
        release(cluster, YOUNG, id)?;
    }
    for id in [1, 2] {
        wait_for_pod(cluster, YOUNG, id, "runs on a recorded disk", runs)?;
    }
    wipe(cluster, YOUNG, 1)?;
    release(cluster, YOUNG, 1)?;
    wait_until_it_says(cluster, YOUNG, "DiskLost", "node 1")?;
    release(cluster, YOUNG, 0)?;
    wait_for_pod(cluster, YOUNG, 0, "is ready", is_ready)?;
    accept_loss(cluster, YOUNG, 1)?;
    release(cluster, YOUNG, 1)?;
    for object in ["gk/young", "gkt/probe"] {
        story::wait_until_ready(cluster, NAMESPACE, object)?;
    }
    let after = identity(cluster, YOUNG)?;
    ensure!(after["clusterId"] == before["clusterId"] && after["standaloneGrant"].is_null(), "{before} became {after}");
    for id in ["0", "1", "2"] {
        let directory = |identity: &Value| identity["nodes"][id]["directoryId"].clone();
        ensure!((directory(&after) == directory(&before)) == (id != "1"), "node {id}: {before} became {after}");
    }
    let status = get(cluster, "gk/young")?["status"].clone();
    ensure!(status["quorumLeader"].is_i64() && status["nodeCount"] == 3, "{status}");
    Ok(())
}
