//! Controllers and brokers in pools of their own, whose racks are the labels of the Kubernetes nodes that they are on.
//!
//! The tests need a Kubernetes and images on its nodes, so `cargo xtask test e2e --full` runs them, which prepares both and sets
//! `GREGOR_E2E`; elsewhere they are skipped.

use std::{collections::BTreeMap, env, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use gregor_e2e::{
    clients::Clients,
    install::{self, Release},
    story::{self, Story},
};
use gregor_kubernetes::{Cluster, Helm, process};

const NAMESPACE: &str = "racks";
const MINUTES: Duration = Duration::from_mins(3);
const EVENT_BYTES: u64 = 5_000_000;
/// A label of the test's own: what a cluster's zones are called is not touched.
const LABEL: &str = "racks.gregor.test/rack";

const MANIFESTS: &str = "
apiVersion: gregor.dev/v1beta1
kind: KafkaCluster
metadata: {name: racks}
spec:
  nodePools:
    - {name: controllers, roles: [controller], nodeIds: ['100']}
    - {name: brokers, roles: [broker], replicas: 2, rack: {topologyKey: racks.gregor.test/rack}}
  storage: {volumes: [{name: data, size: 1Gi}]}
  config: {auto.create.topics.enable: false}
---
apiVersion: gregor.dev/v1beta1
kind: KafkaTopic
metadata: {name: events}
spec: {clusterRef: {name: racks}, partitions: 4, replicas: 2}
";

fn main() -> ExitCode {
    if env::var("GREGOR_E2E").is_ok_and(|value| value != "full") {
        eprintln!("skipped: `cargo xtask test e2e --full` plays it");
        return ExitCode::SUCCESS;
    }
    let mut story = Story::new(&[NAMESPACE, install::OPERATOR_NAMESPACE]);
    story.tell("brokers_apart_from_their_controllers_have_the_racks_of_their_kubernetes_nodes", have_racks);
    story.tell("brokers_serve_while_their_only_controller_is_away", serve_without_controller);
    story.end(|cluster| {
        let _ = cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"]);
        let _ = cluster.kubectl(&["label", "nodes", "--all", &format!("{LABEL}-")]);
    })
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    cluster.kubectl(&[&["-n", NAMESPACE], arguments].concat())
}

/// Lines of two words.
fn pairs(text: &str) -> BTreeMap<String, String> {
    text.lines().filter_map(|line| line.split_once(' ')).map(|(one, two)| (one.to_owned(), two.to_owned())).collect()
}

/// The Kubernetes node of each pod of the cluster.
fn places(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName}{\"\\n\"}{end}";
    Ok(pairs(&kubectl(cluster, &["get", "pods", "-l", "gregor.dev/cluster=racks", "-o", path])?))
}

fn clients(cluster: &Cluster) -> Result<Clients> {
    let path = "jsonpath={.status.bootstrapServers}";
    Clients::start(cluster, NAMESPACE, &kubectl(cluster, &["get", "gk", "racks", "-o", path])?, &["client"])
}

fn have_racks(cluster: &Cluster) -> Result<()> {
    // What an earlier run left.
    kubectl(cluster, &["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"])?;
    let path = "jsonpath={range .items[*]}{.metadata.name}{\"\\n\"}{end}";
    for node in cluster.kubectl(&["get", "nodes", "-o", path])?.lines() {
        cluster.kubectl(&["label", "node", node, &format!("{LABEL}=rack-of-{node}"), "--overwrite"])?;
    }
    Release::crds().apply(cluster, Helm::V4)?;
    Release::operator().enable("rbac.nodes").apply(cluster, Helm::V4)?;
    install::create_namespace(cluster, NAMESPACE)?;
    process::output_with_input(
        cluster.kubectl_command()?.args(["-n", NAMESPACE, "apply", "-f", "-"]),
        MANIFESTS.as_bytes(),
    )?;
    for object in ["gk/racks", "gkt/events"] {
        story::wait_until_ready(cluster, NAMESPACE, object)?;
    }
    let places = places(cluster)?;
    let racks = clients(cluster)?.racks("client")?;
    let pods: Vec<&str> = places.keys().map(String::as_str).collect();
    ensure!(pods == ["racks-0-0", "racks-1-0", "racks-100-0"], "the pods are {pods:?}");
    // A controller is no broker, and so no client hears of it.
    let wanted: BTreeMap<String, String> = ["0", "1"]
        .map(|id| (id.to_owned(), format!("rack-of-{}", places[&format!("racks-{id}-0")])))
        .into_iter()
        .collect();
    ensure!(racks == wanted, "clients see the racks {racks:?}, the pods are on {places:?}");
    Ok(())
}

fn serve_without_controller(cluster: &Cluster) -> Result<()> {
    story::wait_until_ready(cluster, NAMESPACE, "gk/racks")?;
    let clients = clients(cluster)?;
    let uid = ["get", "pod", "racks-100-0", "-o", "jsonpath={.metadata.uid}"];
    let before = kubectl(cluster, &uid)?;
    kubectl(cluster, &["delete", "pod", "racks-100-0", "--grace-period=0", "--force"])?;
    clients.produce_events("client", "events", EVENT_BYTES, &mut |_| ())?;
    clients.check_events("client", "events", EVENT_BYTES, &mut |_| ())?;
    process::wait_until("another pod is the controller", MINUTES, || {
        Ok(kubectl(cluster, &uid).is_ok_and(|now| now != before))
    })?;
    story::wait_until_ready(cluster, NAMESPACE, "gk/racks").context("after its controller was gone")
}
