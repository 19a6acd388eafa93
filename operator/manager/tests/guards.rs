//! What the operator does not do, against a real API server without nodes: follow another DNS domain, or
//! keep silent about what it cannot read.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod lab;

use std::collections::BTreeMap;

use gregor_operator_api::{KafkaCluster, condition};
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt as _;
use kube::api::ListParams;
use lab::{Lab, wait_until};
use serde_json::json;

const THREE: &str = "
apiVersion: gregor.dev/v1beta1
kind: KafkaCluster
metadata: {name: demo}
spec:
  nodePools: [{name: combined, replicas: 3}]
  storage: {volumes: [{name: data, size: 1Gi}]}
";

fn said(cluster: &KafkaCluster) -> String {
    let conditions = &cluster.status.as_ref().unwrap().conditions;
    condition::find(conditions, condition::READY).unwrap().message.clone()
}

async fn uids(lab: &Lab) -> BTreeMap<String, String> {
    let pods = lab.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
    pods.into_iter().map(|pod| (pod.name_any(), pod.uid().unwrap())).collect()
}

#[tokio::test]
async fn another_domain_is_refused_and_touches_nothing() {
    let Some(lab) = Lab::start("domain").await else { return };
    let first = lab.operator();
    lab.create::<KafkaCluster>(THREE).await;
    lab.cluster_says("demo", "Ready").await;
    first.stop().await;
    let secrets = async || {
        let secrets = lab.api::<Secret>().list(&ListParams::default()).await.unwrap().items;
        secrets.into_iter().map(|secret| (secret.name_any(), secret.resource_version())).collect::<Vec<_>>()
    };
    let before = (uids(&lab).await, secrets().await, lab.identity().await);

    let second = lab.operator_with(lab.context("example.com"));
    let cluster = lab.cluster_says("demo", "DomainChangeRefused").await;
    assert!(said(&cluster).contains("clusterDomain to cluster.local"), "{}", said(&cluster));
    wait_until("a warning tells it", async || {
        let events = lab.api::<Event>().list(&ListParams::default()).await.unwrap();
        let refused = |event: Event| {
            event.reason.as_deref() == Some("DomainChangeRefused") && event.type_.as_deref() == Some("Warning")
        };
        events.into_iter().any(refused).then_some(())
    })
    .await;
    assert_eq!(second.count("steps_total"), 0);
    assert_eq!((uids(&lab).await, secrets().await, lab.identity().await), before);
    second.stop().await;

    let _third = lab.operator();
    lab.cluster_says("demo", "Ready").await;
    assert_eq!((uids(&lab).await, secrets().await, lab.identity().await), before);
}

#[tokio::test]
async fn a_status_says_what_could_not_be_read_and_why() {
    let Some(lab) = Lab::start("unseen").await else { return };
    let _operator = lab.operator();
    lab.create::<KafkaCluster>(THREE).await;
    lab.cluster_says("demo", "Ready").await;
    *lab.brokers.silent.lock().unwrap() = Some("no broker answers: connection refused".to_owned());
    lab.patch::<KafkaCluster>("demo", json!({"metadata": {"labels": {"look": "again"}}})).await;
    let cluster = lab.cluster_says("demo", "ClusterUnreachable").await;
    assert!(said(&cluster).contains("no broker answers: connection refused"), "{}", said(&cluster));
    let status = cluster.status.unwrap();
    assert_eq!((status.quorum_leader, status.under_replicated_partitions), (None, None), "nothing of before is shown");
    *lab.brokers.silent.lock().unwrap() = None;
    lab.cluster_says("demo", "Ready").await;
}
