//! A cluster of three nodes on a real Kubernetes: its restarts, new certificates, a drain and the death of a Kubernetes node, under
//! producers that wait for all replicas and consumers that check every byte.
//!
//! The tests tell one story in order, on one cluster. They need a Kubernetes and images on its nodes, so `cargo xtask test
//! e2e` runs them, which prepares both and sets `GREGOR_E2E`; elsewhere they are skipped.

mod handshake;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::{Child, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use gregor_e2e::{
    clients::Clients,
    disks,
    install::{self, Release},
    story::{self, Story},
};
use gregor_kubernetes::{Cluster, Helm, NodeFault, Provider, process};
use handshake::{Shown, look};
use serde_json::json;

const NAMESPACE: &str = "pools";
const MINUTES: Duration = Duration::from_mins(5);
const EVENT_BYTES: u64 = 50_000_000;

const MANIFESTS: &str = "
apiVersion: gregor.dev/v1beta1
kind: KafkaCluster
metadata: {name: pools}
spec:
  nodePools: [{name: combined, nodeIds: ['0-2']}]
  storage: {volumes: [{name: data, size: 2Gi}]}
  config: {auto.create.topics.enable: false}
---
apiVersion: gregor.dev/v1beta1
kind: KafkaTopic
metadata: {name: restarts}
spec: {clusterRef: {name: pools}, partitions: 3}
---
apiVersion: gregor.dev/v1beta1
kind: KafkaTopic
metadata: {name: renewal}
spec: {clusterRef: {name: pools}, partitions: 3}
---
apiVersion: gregor.dev/v1beta1
kind: KafkaTopic
metadata: {name: drain}
spec: {clusterRef: {name: pools}, partitions: 3}
---
apiVersion: gregor.dev/v1beta1
kind: KafkaTopic
metadata: {name: death}
spec: {clusterRef: {name: pools}, partitions: 3}
";

fn main() -> ExitCode {
    if let Some(outcome) = handshake::asked() {
        return outcome;
    }
    let mut story = Story::new(&[NAMESPACE, install::OPERATOR_NAMESPACE]);
    story.tell("three_nodes_become_one_cluster", become_one_cluster);
    story.tell("who_shows_no_certificate_reaches_no_node_as_nodes_do", strangers_reach_nobody);
    story.tell("a_new_authority_and_new_certificates_restart_nobody", certificates_are_renewed);
    story.tell("a_changed_manifest_restarts_one_node_at_a_time_though_the_operator_is_killed", restarts_one_at_a_time);
    story.tell("a_drained_kubernetes_node_gives_its_broker_up_and_nobody_else", a_drain_takes_one);
    story.tell("a_wiped_disk_is_reported_lost_and_joins_again_on_a_word", wiped_disks_join_on_a_word);
    story.tell("the_cluster_serves_on_when_a_kubernetes_node_dies", serves_on_when_a_node_dies);
    story.end(|cluster| {
        let _ = cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"]);
    })
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    cluster.kubectl(&[&["-n", NAMESPACE], arguments].concat())
}

fn clients(cluster: &Cluster) -> Result<Clients> {
    let bootstrap = status(cluster, "bootstrapServers")?;
    ensure!(!bootstrap.is_empty(), "the status names no bootstrap servers");
    Clients::start(cluster, NAMESPACE, &bootstrap, &["writer", "reader"])
}

fn status(cluster: &Cluster, field: &str) -> Result<String> {
    kubectl(cluster, &["get", "gk", "pools", "-o", &format!("jsonpath={{.status.{field}}}")])
}

/// The pods of the cluster by name, each with its uid, and whether it is ready.
fn pods(cluster: &Cluster) -> Result<BTreeMap<String, (String, bool)>> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}";
    let text = kubectl(cluster, &["get", "pods", "-l", "gregor.dev/cluster=pools", "-o", path])?;
    let pod = |line: &str| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), (words.next()?.to_owned(), words.next() == Some("True"))))
    };
    Ok(text.lines().filter_map(pod).collect())
}

/// Every replica in sync, every voter level: nothing of what was done before is in the way.
fn whole(cluster: &Cluster) -> Result<()> {
    story::wait_until_ready(cluster, NAMESPACE, "gk/pools")?;
    process::wait_until("all replicas are in sync and all voters level", MINUTES, || {
        Ok(status(cluster, "underReplicatedPartitions")? == "0" && status(cluster, "laggingVoters")?.is_empty())
    })
}

fn become_one_cluster(cluster: &Cluster) -> Result<()> {
    // What an earlier run left.
    kubectl(cluster, &["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"])?;
    Release::crds().apply(cluster, Helm::V4)?;
    Release::operator().apply(cluster, Helm::V4)?;
    install::create_namespace(cluster, NAMESPACE)?;
    process::output_with_input(
        cluster.kubectl_command()?.args(["-n", NAMESPACE, "apply", "-f", "-"]),
        MANIFESTS.as_bytes(),
    )?;
    for object in ["gk/pools", "gkt/restarts", "gkt/renewal", "gkt/drain", "gkt/death"] {
        story::wait_until_ready(cluster, NAMESPACE, object)?;
    }
    whole(cluster)?;
    let (pods, nodes) = (pods(cluster)?, status(cluster, "nodeCount")?);
    ensure!(pods.len() == 3 && nodes == "3", "{pods:?}, {nodes} nodes");
    let leader = status(cluster, "quorumLeader")?;
    ensure!(["0", "1", "2"].contains(&leader.as_str()), "the quorum's leader is {leader:?}");
    Ok(())
}

/// A client that works in the background; it goes with the test.
struct Running {
    what: &'static str,
    child: Child,
    log: PathBuf,
}

impl Running {
    fn of(what: &'static str, (child, log): (Child, PathBuf)) -> Self {
        Self { what, child, log }
    }

    /// Waits until it has said something, or has ended, which [`end`](Self::end) then tells.
    fn begun(&mut self) -> Result<()> {
        process::wait_until(&format!("{} has begun", self.what), MINUTES, || {
            Ok(self.child.try_wait()?.is_some() || std::fs::metadata(&self.log)?.len() > 0)
        })
    }

    fn end(&mut self) -> Result<()> {
        process::wait_until(&format!("{} has ended", self.what), MINUTES, || Ok(self.child.try_wait()?.is_some()))
            .with_context(|| process::tail_of_file(&self.log))?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}: {}", self.what, process::tail_of_file(&self.log));
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            process::kill_tree(self.child.id());
        }
    }
}

/// Runs `disturb` while events are produced, and read and checked as they come. It waits for the first event: a client that
/// comes when a node has just died may be led to its broker still, until Kubernetes knows, and kcat gives up on its first question.
fn under_load(cluster: &Cluster, topic: &str, disturb: impl FnOnce() -> Result<()>) -> Result<()> {
    let clients = clients(cluster)?;
    let mut producer = Running::of("the producer", clients.start_producing_slowly("writer", topic, EVENT_BYTES)?);
    let mut consumer = Running::of("the consumer", clients.start_checking_events("reader", topic, EVENT_BYTES)?);
    consumer.begun()?;
    let disturbed = disturb();
    clients.hurry("writer", topic)?;
    let ended = producer.end().and_then(|()| consumer.end());
    disturbed?;
    ended.with_context(|| format!("topic {topic}"))
}

/// What the nodes show each other, at the controllers' port and at that of the brokers.
fn shown(cluster: &Cluster) -> Result<BTreeMap<(u32, u16), Shown>> {
    let ports = (0..3).flat_map(|id| [(id, 9090), (id, 9091)]);
    ports.map(|(id, port)| Ok(((id, port), look(cluster, NAMESPACE, &format!("pools-{id}-0"), port)?))).collect()
}

fn strangers_reach_nobody(cluster: &Cluster) -> Result<()> {
    whole(cluster)?;
    for ((id, port), shown) in shown(cluster)? {
        ensure!(!shown.answers, "port {port} of node {id} answers whoever comes");
        ensure!(
            shown.authorities.len() == 1,
            "port {port} of node {id} asks for certificates of {:?}",
            shown.authorities
        );
    }
    let clients = clients(cluster)?;
    let dial = |port: u16| {
        let script = format!("exec timeout 20 kcat -L -m 5 -b pools-0-0.pools-nodes:{port}");
        clients.output("reader", &script)
    };
    ensure!(dial(9092)?.contains("broker 0"), "a client reaches the listener for clients");
    for port in [9090, 9091] {
        ensure!(dial(port).is_err(), "port {port} takes plaintext");
    }
    Ok(())
}

/// A new authority: everybody trusts it, then one node after the other shows a certificate of it, then the old one is forgotten.
fn certificates_are_renewed(cluster: &Cluster) -> Result<()> {
    whole(cluster)?;
    let (pods_before, before) = (pods(cluster)?, shown(cluster)?);
    let restarts = || {
        kubectl(
            cluster,
            &[
                "get",
                "pods",
                "-l",
                "gregor.dev/cluster=pools",
                "-o",
                "jsonpath={.items[*].status.containerStatuses[*].restartCount}",
            ],
        )
    };
    let restarts_before = restarts()?;
    under_load(cluster, "renewal", || {
        let patch = json!({"spec": {"nodeConnections": {"authorityRenewedAt": "once"}}}).to_string();
        kubectl(cluster, &["patch", "gk", "pools", "--type=merge", "-p", &patch])?;
        let mut touches = 0;
        process::wait_until("every node shows a certificate of the new authority, and trusts no other", MINUTES, || {
            // A kubelet comes to the Secrets of a pod at once when the pod has changed, and else within a minute or two.
            touches += 1;
            let touch = format!("gregor.dev/touched={touches}");
            kubectl(cluster, &["annotate", "pods", "-l", "gregor.dev/cluster=pools", "--overwrite", &touch])?;
            let now = shown(cluster)?;
            let authorities: BTreeSet<&String> = now.values().flat_map(|shown| &shown.authorities).collect();
            let renewed = now.iter().all(|(place, shown)| {
                shown.serial != before[place].serial && shown.authorities != before[place].authorities
            });
            Ok(renewed && authorities.len() == 1)
        })
    })?;
    ensure!(pods(cluster)? == pods_before && restarts()? == restarts_before, "somebody was restarted");
    let end = status(cluster, "nodeConnections.certificatesNotAfter")?;
    ensure!(!end.is_empty(), "the status says when the certificates end");
    whole(cluster)
}

fn restarts_one_at_a_time(cluster: &Cluster) -> Result<()> {
    whole(cluster)?;
    let before = pods(cluster)?;
    under_load(cluster, "restarts", || {
        let patch = r#"{"spec": {"config": {"log.retention.hours": 48}}}"#;
        kubectl(cluster, &["patch", "gk", "pools", "--type=merge", "-p", patch])?;
        process::wait_until("the first node is restarted", MINUTES, || Ok(pods(cluster)? != before))?;
        // Its successor goes on in the middle.
        cluster.kubectl(&[
            "-n",
            install::OPERATOR_NAMESPACE,
            "delete",
            "pods",
            "--all",
            "--grace-period=0",
            "--force",
        ])?;
        let mut away_most = 0;
        process::wait_until("every node is restarted", MINUTES, || {
            let now = pods(cluster)?;
            away_most = away_most.max(3 - now.values().filter(|(_, ready)| *ready).count().min(3));
            Ok(now.len() == 3 && now.iter().all(|(name, (uid, ready))| *ready && before[name].0 != *uid))
        })?;
        ensure!(away_most <= 1, "{away_most} nodes were away at the same time");
        Ok(())
    })?;
    whole(cluster)
}

/// While somebody is away Kubernetes refuses to evict anybody else, as HTTP's status 429.
fn nobody_else_is_evicted(cluster: &Cluster, away: &str) -> Result<()> {
    let others: Vec<String> =
        pods(cluster)?.into_keys().filter(|name| !away.split(' ').any(|gone| gone == name)).collect();
    ensure!(!others.is_empty(), "every node was on the one that was drained: {away}");
    for pod in others {
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE},
        });
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction");
        let mut command = cluster.kubectl_command()?;
        command.args(["create", "--raw", &path, "-f", "-"]);
        let evicted = process::output_with_input(&mut command, eviction.to_string().as_bytes());
        let Err(error) = evicted else { bail!("{pod} is evicted while {away} is away") };
        let said = format!("{error:#}");
        ensure!(said.contains("TooManyRequests") && said.contains("disruption budget"), "evicting {pod}: {said}");
    }
    Ok(())
}

fn a_drain_takes_one(cluster: &Cluster) -> Result<()> {
    whole(cluster)?;
    let node = kubectl(cluster, &["get", "pod", "pools-1-0", "-o", "jsonpath={.spec.nodeName}"])?;
    let before = pods(cluster)?;
    let field = format!("spec.nodeName={node}");
    let path = "jsonpath={.items[*].metadata.name}";
    let there =
        kubectl(cluster, &["get", "pods", "-l", "gregor.dev/cluster=pools", "--field-selector", &field, "-o", path])?;
    under_load(cluster, "drain", || {
        let selector = "--pod-selector=gregor.dev/cluster=pools";
        // The pods' temporary files go with them.
        let drained = cluster.kubectl(&["drain", &node, selector, "--delete-emptydir-data", "--timeout=180s"]);
        // Who was evicted waits for the node, where its volume is: that is one who is away.
        let refused = drained.and_then(|_| nobody_else_is_evicted(cluster, &there));
        cluster.kubectl(&["uncordon", &node])?;
        refused?;
        process::wait_until("three nodes are ready again", MINUTES, || {
            Ok(pods(cluster)?.values().filter(|(_, ready)| *ready).count() == 3)
        })
    })?;
    let after = pods(cluster)?;
    let moved: BTreeSet<&str> =
        after.iter().filter(|(name, (uid, _))| before[*name].0 != *uid).map(|(name, _)| name.as_str()).collect();
    let there: BTreeSet<&str> = there.split(' ').collect();
    ensure!(moved == there, "the drain of {node}, where {there:?} were, moved {moved:?}");
    whole(cluster)
}

/// Empties a node's disk while the node runs, and has it start again.
fn wipe(cluster: &Cluster, id: u32) -> Result<()> {
    let pod = format!("pools-{id}-0");
    let node = kubectl(cluster, &["get", "pod", &pod, "-o", "jsonpath={.spec.nodeName}"])?;
    disks::wipe(cluster, NAMESPACE, &format!("pools-{id}-data"), &node)?;
    // What holds the files of a disk that is gone has nothing to end well: it is gone before its successor begins.
    kubectl(cluster, &["delete", "pod", &pod, "--now"])?;
    Ok(())
}

/// Every node's disk once, that of the node which started the quorum among them.
fn wiped_disks_join_on_a_word(cluster: &Cluster) -> Result<()> {
    let id = status(cluster, "clusterId")?;
    for node in [2, 0, 1] {
        whole(cluster)?;
        wipe(cluster, node)?;
        process::wait_until("the disk is reported as lost", MINUTES, || {
            let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}";
            Ok(kubectl(cluster, &["get", "gk", "pools", "-o", path])? == "DiskLost")
        })?;
        let patch = json!({"spec": {"acceptDataLoss": [node]}}).to_string();
        kubectl(cluster, &["patch", "gk", "pools", "--type=merge", "-p", &patch])?;
        whole(cluster).with_context(|| format!("node {node} with a new disk"))?;
        // A word counts for one loss.
        let patch = json!({"spec": {"acceptDataLoss": null}}).to_string();
        kubectl(cluster, &["patch", "gk", "pools", "--type=merge", "-p", &patch])?;
    }
    ensure!(status(cluster, "clusterId")? == id, "the cluster has another id");
    clients(cluster)?.check_events("reader", "restarts", EVENT_BYTES, &mut |_| ())
}

/// The Kubernetes nodes with one broker: all others are elsewhere.
fn nodes_with_one_broker(cluster: &Cluster) -> Result<Vec<String>> {
    let path = "jsonpath={range .items[*]}{.spec.nodeName}{\"\\n\"}{end}";
    let text = kubectl(cluster, &["get", "pods", "-l", "gregor.dev/cluster=pools", "-o", path])?;
    let mut brokers: BTreeMap<String, usize> = BTreeMap::new();
    for node in text.lines() {
        *brokers.entry(node.to_owned()).or_default() += 1;
    }
    Ok(brokers.into_iter().filter(|(_, count)| *count == 1).map(|(node, _)| node).collect())
}

fn serves_on_when_a_node_dies(cluster: &Cluster) -> Result<()> {
    if !cluster.capabilities()?.node_faults {
        ensure!(!matches!(cluster.provider(), Provider::Rig(_)), "every node of a rig can be killed");
        eprintln!("skipped: nodes of {} cannot be killed from here", cluster.provider().name());
        return Ok(());
    }
    whole(cluster)?;
    let Some(node) = nodes_with_one_broker(cluster)?.pop() else {
        bail!("no Kubernetes node holds exactly one of three brokers, so none can die without a majority")
    };
    // The clients live on: they are placed anew while that node takes nobody.
    kubectl(cluster, &["delete", "pod", "writer", "reader", "--now", "--ignore-not-found"])?;
    cluster.kubectl(&["cordon", &node])?;
    let placed = clients(cluster);
    cluster.kubectl(&["uncordon", &node])?;
    placed?;
    under_load(cluster, "death", || cluster.fault(&node, NodeFault::Kill))?;
    cluster.fault(&node, NodeFault::Restart)?;
    whole(cluster)
}
