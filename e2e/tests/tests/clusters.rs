//! One cluster's life on a real Kubernetes, from its manifest to its operator's uninstallation, with unmodified clients.
//!
//! The tests tell one story in order, on one cluster. They need a Kubernetes and images on its nodes, so `cargo xtask test
//! e2e` runs them, which prepares both and sets `GREGOR_E2E`; elsewhere they are skipped.

use std::{fs, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use gregor_e2e::{
    clients::Clients,
    images::Name,
    install::{self, Release},
    story::{self, Story},
    target,
};
use gregor_kubernetes::{Cluster, Helm, NodeFault, process};

const NAMESPACE: &str = "story";
const MINUTES: Duration = Duration::from_mins(3);
const EVENT_BYTES: u64 = 50_000_000;

const MANIFESTS: &str = "
apiVersion: gregor.dev/v1beta1
kind: KafkaCluster
metadata: {name: story}
spec:
  nodePools: [{name: combined, replicas: 1}]
  storage: {volumes: [{name: data, size: 2Gi}]}
  config: {auto.create.topics.enable: false}
---
apiVersion: gregor.dev/v1beta1
kind: KafkaTopic
metadata: {name: events}
spec: {clusterRef: {name: story}, partitions: 3}
---
apiVersion: gregor.dev/v1beta1
kind: KafkaTopic
metadata: {name: text}
spec: {clusterRef: {name: story}, partitions: 1}
---
apiVersion: gregor.dev/v1beta1
kind: KafkaTopic
metadata: {name: during-the-kill}
spec: {clusterRef: {name: story}, partitions: 2}
";

fn main() -> ExitCode {
    let mut story = Story::new(&[NAMESPACE, install::OPERATOR_NAMESPACE]);
    story.tell("a_cluster_and_its_topics_become_ready", become_ready);
    story.tell("events_of_kcat_are_read_back_whole_in_another_pod", events_are_read_back);
    story.tell("text_of_the_java_producer_is_read_back_byte_for_byte", text_is_read_back);
    story.tell("a_killed_pod_loses_nothing_and_its_clients_go_on", a_killed_pod_loses_nothing);
    story.tell("a_killed_node_brings_its_broker_back_with_its_data", a_killed_node_brings_its_broker_back);
    story.tell("a_topic_follows_its_manifest", a_topic_follows_its_manifest);
    story.tell("a_wiped_status_is_derived_again_and_restarts_nothing", a_wiped_status_is_derived_again);
    story.tell("a_deleted_cluster_comes_back_on_its_kept_volumes", a_deleted_cluster_comes_back);
    story.tell("an_upgraded_chart_restarts_no_broker", an_upgraded_chart_restarts_no_broker);
    story.tell("an_uninstalled_operator_leaves_clusters_and_data", an_uninstalled_operator_leaves_clusters);
    story.end(|cluster| {
        let _ = cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"]);
    })
}

fn clients(cluster: &Cluster) -> Result<Clients> {
    let bootstrap = kubectl(cluster, &["get", "gk", "story", "-o", "jsonpath={.status.bootstrapServers}"])?;
    ensure!(!bootstrap.is_empty(), "the status names no bootstrap servers");
    Clients::start(cluster, NAMESPACE, &bootstrap, &["writer", "reader"])
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    cluster.kubectl(&[&["-n", NAMESPACE], arguments].concat())
}

fn broker_uid(cluster: &Cluster) -> Result<String> {
    kubectl(cluster, &["get", "pod", "story-0-0", "-o", "jsonpath={.metadata.uid}"])
}

fn become_ready(cluster: &Cluster) -> Result<()> {
    // What an earlier run left.
    kubectl(cluster, &["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"])?;
    Release::crds().apply(cluster, Helm::V4)?;
    Release::operator().apply(cluster, Helm::V4)?;
    install::create_namespace(cluster, NAMESPACE)?;
    process::output_with_input(
        cluster.kubectl_command()?.args(["-n", NAMESPACE, "apply", "-f", "-"]),
        MANIFESTS.as_bytes(),
    )?;
    for object in ["gk/story", "gkt/events", "gkt/text", "gkt/during-the-kill"] {
        story::wait_until_ready(cluster, NAMESPACE, object)?;
    }
    Ok(())
}

fn events_are_read_back(cluster: &Cluster) -> Result<()> {
    let clients = clients(cluster)?;
    clients.produce_events("writer", "events", EVENT_BYTES, &mut |_| ())?;
    clients.check_events("reader", "events", EVENT_BYTES, &mut |_| ())
}

fn text_is_read_back(cluster: &Cluster) -> Result<()> {
    let clients = clients(cluster)?;
    let (written, read) = (target().join("test/text.txt"), target().join("test/text-read.txt"));
    let lines: Vec<String> =
        (0..20_000).map(|number| format!("line {number}: ground, greens, \u{e9}t\u{e9}\n\n")).collect();
    fs::write(&written, lines.concat())?;
    clients.produce_file("writer", "text", &written, &mut |_| ())?;
    clients.read_file("reader", "text", &read, &mut |_| ())?;
    ensure!(fs::read(&written)? == fs::read(&read)?, "{} and {} differ", written.display(), read.display());
    Ok(())
}

/// The producer is idempotent, so that an event that it sends again is there once.
fn a_killed_pod_loses_nothing(cluster: &Cluster) -> Result<()> {
    const BYTES: u64 = 200_000_000;
    let clients = clients(cluster)?;
    let (mut producer, log) = clients.start_producing_events("writer", "during-the-kill", BYTES)?;
    process::wait_until("a part of the events is there", MINUTES, || {
        Ok(clients.end_offsets("reader", "during-the-kill", 2)? > 50_000)
    })?;
    let before = broker_uid(cluster)?;
    kubectl(cluster, &["delete", "pod", "story-0-0", "--grace-period=0", "--force"])?;
    process::wait_until("another pod has taken its place", MINUTES, || Ok(broker_uid(cluster)? != before))?;
    let ended = process::wait_until("the producer has ended", MINUTES, || Ok(producer.try_wait()?.is_some()));
    if ended.is_err() {
        process::kill_tree(producer.id());
    }
    ended?;
    let status = producer.wait()?;
    ensure!(status.success(), "the producer ended with {status}: {}", process::tail_of_file(&log));
    clients.check_events("reader", "during-the-kill", BYTES, &mut |_| ())?;
    clients.check_events("reader", "events", EVENT_BYTES, &mut |_| ()).context("what was there before the kill")
}

/// The volume is on the node's disk, so the broker waits for the node.
fn a_killed_node_brings_its_broker_back(cluster: &Cluster) -> Result<()> {
    if !cluster.capabilities()?.node_faults {
        eprintln!("skipped: nodes of {} cannot be killed from here", cluster.provider().name());
        return Ok(());
    }
    let node = kubectl(cluster, &["get", "pod", "story-0-0", "-o", "jsonpath={.spec.nodeName}"])?;
    cluster.fault(&node, NodeFault::Kill)?;
    process::wait_until("the node is seen to be gone", MINUTES, || {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        Ok(cluster.kubectl(&["get", "node", &node, "-o", path])? == "Unknown")
    })?;
    cluster.fault(&node, NodeFault::Restart)?;
    story::wait_until_ready(cluster, NAMESPACE, "gk/story")?;
    // A node's death may have taken the clients' pods with it; pods by themselves do not come back.
    kubectl(cluster, &["delete", "pod", "writer", "reader", "--now", "--ignore-not-found"])?;
    let clients = clients(cluster)?;
    // The operator may have been on that node as well: until it is back, what the status says is of before.
    let whole = || clients.check_events("reader", "events", EVENT_BYTES, &mut |_| ());
    if process::wait_until("the broker is back with its data", MINUTES, || Ok(whole().is_ok())).is_err() {
        whole()?;
    }
    Ok(())
}

fn a_topic_follows_its_manifest(cluster: &Cluster) -> Result<()> {
    let clients = clients(cluster)?;
    let patch = r#"{"spec": {"partitions": 5, "config": {"retention.ms": 86400000}}}"#;
    kubectl(cluster, &["patch", "gkt", "events", "--type=merge", "-p", patch])?;
    process::wait_until("the topic has five partitions and the retention", MINUTES, || {
        let topic = process::output(&mut clients.java_tool("reader", "TopicCommand", "--describe --topic events")?)?;
        Ok(topic.contains("PartitionCount: 5") && topic.contains("retention.ms=86400000"))
    })?;
    // More partitions must not have touched a record.
    clients.check_events("reader", "events", EVENT_BYTES, &mut |_| ())
}

fn a_wiped_status_is_derived_again(cluster: &Cluster) -> Result<()> {
    let before = broker_uid(cluster)?;
    let id = kubectl(cluster, &["get", "gk", "story", "-o", "jsonpath={.status.clusterId}"])?;
    kubectl(cluster, &["patch", "gk", "story", "--subresource=status", "--type=merge", "-p", r#"{"status": null}"#])?;
    story::wait_until_ready(cluster, NAMESPACE, "gk/story")?;
    let after = kubectl(cluster, &["get", "gk", "story", "-o", "jsonpath={.status.clusterId}"])?;
    ensure!(id == after, "the cluster id was {id:?} and is {after:?}");
    ensure!(before == broker_uid(cluster)?, "the pod was restarted");
    Ok(())
}

fn a_deleted_cluster_comes_back(cluster: &Cluster) -> Result<()> {
    let id = kubectl(cluster, &["get", "gk", "story", "-o", "jsonpath={.status.clusterId}"])?;
    let claims = kubectl(cluster, &["get", "pvc", "-o", "jsonpath={.items[*].metadata.uid}"])?;
    kubectl(cluster, &["delete", "gk", "story", "--timeout=120s"])?;
    process::wait_until("the broker's pod is gone", MINUTES, || {
        Ok(kubectl(cluster, &["get", "pods", "-l", "gregor.dev/cluster=story", "-o", "name"])?.is_empty())
    })?;
    let kept = kubectl(cluster, &["get", "pvc", "-o", "jsonpath={.items[*].metadata.uid}"])?;
    ensure!(!claims.is_empty() && claims == kept, "the claims were {claims:?} and are {kept:?}");
    process::output_with_input(
        cluster.kubectl_command()?.args(["-n", NAMESPACE, "apply", "-f", "-"]),
        MANIFESTS.replace("partitions: 3", "partitions: 5").as_bytes(),
    )?;
    story::wait_until_ready(cluster, NAMESPACE, "gk/story")?;
    let after = kubectl(cluster, &["get", "gk", "story", "-o", "jsonpath={.status.clusterId}"])?;
    ensure!(id == after, "the cluster id was {id:?} and is {after:?}");
    clients(cluster)?.check_events("reader", "events", EVENT_BYTES, &mut |_| ())
}

/// The new chart's operator comes with another default for the nodes' image; a cluster that names no version keeps its own.
fn an_upgraded_chart_restarts_no_broker(cluster: &Cluster) -> Result<()> {
    let before = broker_uid(cluster)?;
    let next = format!("{}-next", gregor_e2e::images::TAG);
    for name in [Name::Gregor, Name::Operator] {
        let program = story::program_of(name)?;
        let archive = target().join("test").join(format!("{}-next.tar", name.as_str()));
        gregor_e2e::images::pack_program(name, &next, story::architecture(), &program, &archive)?;
        cluster.load_image(&archive, &name.reference_with(&next))?;
    }
    Release::crds().apply(cluster, Helm::V4)?;
    Release::operator().value(&format!("image.tag={next}")).apply(cluster, Helm::V4)?;
    // The new operator looks after the same objects.
    kubectl(
        cluster,
        &["patch", "gkt", "text", "--type=merge", "-p", r#"{"spec": {"config": {"retention.ms": 90000000}}}"#],
    )?;
    for object in ["gkt/text", "gk/story"] {
        story::wait_until_ready(cluster, NAMESPACE, object)?;
    }
    ensure!(before == broker_uid(cluster)?, "the upgrade of the operator restarted the broker");
    Ok(())
}

fn an_uninstalled_operator_leaves_clusters(cluster: &Cluster) -> Result<()> {
    let before = broker_uid(cluster)?;
    Release::operator().remove(cluster, Helm::V4)?;
    Release::crds().remove(cluster, Helm::V4)?;
    let objects = kubectl(cluster, &["get", "gk,gkt", "-o", "name"])?;
    ensure!(objects.lines().count() == 4, "after the uninstallation there are {objects:?}");
    ensure!(before == broker_uid(cluster)?, "the uninstallation restarted the broker");
    clients(cluster)?.check_events("reader", "events", EVENT_BYTES, &mut |_| ())
}
