//! What the operator does not do, against a real API server without nodes: go on without the Lease, delete what it has not looked at,
//! follow another DNS domain, or keep silent about what it cannot read.
#![allow(clippy::unwrap_used)] // a test that cannot go on may say so by panicking

mod lab;

use std::collections::BTreeMap;

use gregor_operator::cluster::apply;
use gregor_operator::fence::Fence;
use gregor_operator_api::{KafkaCluster, condition};
use gregor_operator_plan::{Kind, Seen, Step, Wanted};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::ListParams;
use lab::{CLUSTER, Lab, wait_until};
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
async fn who_does_not_hold_the_lease_changes_nothing() {
    let Some(lab) = Lab::start("fence").await else { return };
    let lease = format!(
        "{{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {{name: leader}}, spec: {{holderIdentity: another, leaseDurationSeconds: 3600, renewTime: \"{:.6}\"}}}}",
        Timestamp::now()
    );
    lab.create::<Lease>(&lease).await;
    let fence = Fence::new(&lab.client, &lab.namespace, "leader", "lab");
    let operator = lab.operator_with(lab.context("cluster.local").fenced(fence));
    lab.create::<KafkaCluster>(CLUSTER).await;
    wait_until("the operator has tried", async || {
        (operator.count("reconciles_total{kind=\"KafkaCluster\",outcome=\"not_leading\"}") >= 2).then_some(())
    })
    .await;
    assert_eq!(operator.count("steps_total"), 0);
    assert!(lab.api::<ConfigMap>().get_opt("demo-identity").await.unwrap().is_none());

    lab.patch::<Lease>("leader", json!({"spec": {"holderIdentity": "lab"}})).await;
    lab.cluster_says("demo", "Ready").await;
    let pods = uids(&lab).await;

    // A Lease that was not renewed may be another's by now.
    lab.patch::<Lease>("leader", json!({"spec": {"leaseDurationSeconds": 1}})).await;
    let fence = Fence::new(&lab.client, &lab.namespace, "leader", "lab");
    wait_until("the Lease is over", async || fence.check().await.is_err().then_some(())).await;
    let before = operator.count("steps_total");
    lab.patch::<KafkaCluster>("demo", json!({"spec": {"restartedAt": "now"}})).await;
    let failed = operator.count("reconciles_total{kind=\"KafkaCluster\",outcome=\"not_leading\"}");
    wait_until("the operator has tried again", async || {
        let now = operator.count("reconciles_total{kind=\"KafkaCluster\",outcome=\"not_leading\"}");
        (now >= failed + 2).then_some(())
    })
    .await;
    assert_eq!((operator.count("steps_total"), uids(&lab).await), (before, pods));
}

#[tokio::test]
async fn only_what_was_looked_at_is_deleted() {
    let Some(lab) = Lab::start("looked").await else { return };
    let operator = lab.operator();
    lab.create::<KafkaCluster>(CLUSTER).await;
    let cluster = lab.cluster_says("demo", "Ready").await;
    operator.stop().await;
    let context = lab.context("cluster.local");
    let pod = lab.api::<Pod>().get("demo-0-0").await.unwrap();
    let service = lab.api::<Service>().get("demo-bootstrap").await.unwrap();
    lab.patch::<Pod>("demo-0-0", json!({"metadata": {"annotations": {"changed": "since"}}})).await;
    lab.patch::<Service>("demo-bootstrap", json!({"metadata": {"annotations": {"changed": "since"}}})).await;

    let of_pod = |version: String| Step::DeletePod { name: pod.name_any(), uid: pod.uid().unwrap(), version };
    let of_service = |version: String| Step::Delete {
        kind: Kind::Service,
        name: service.name_any(),
        uid: service.uid().unwrap(),
        version,
    };
    let read = [of_pod(pod.resource_version().unwrap()), of_service(service.resource_version().unwrap())];
    for step in read {
        let error = apply::carry_out(&context, &cluster, &step).await.unwrap_err();
        assert!(error.is_outdated(), "{error}");
    }
    assert_eq!(lab.pod_uid().await, pod.uid());

    let pod_now = lab.api::<Pod>().get("demo-0-0").await.unwrap().resource_version().unwrap();
    let service_now = lab.api::<Service>().get("demo-bootstrap").await.unwrap().resource_version().unwrap();
    for step in [of_pod(pod_now), of_service(service_now)] {
        apply::carry_out(&context, &cluster, &step).await.unwrap();
    }
    lab.gone::<Service>("demo-bootstrap").await;
    wait_until("the pod is another", async || (lab.pod_uid().await? != pod.uid()?).then_some(())).await;
}

#[tokio::test]
async fn a_step_that_was_held_up_puts_nothing_back() {
    let Some(lab) = Lab::start("held").await else { return };
    let operator = lab.operator();
    let cluster = lab.create::<KafkaCluster>(CLUSTER).await;
    let name = "demo-0-grant";
    let first = wait_until("the permission is there", async || {
        let grant = lab.api::<ConfigMap>().get_opt(name).await.unwrap()?;
        grant.data.is_some().then_some(grant)
    })
    .await;
    lab.cluster_says("demo", "Ready").await;
    operator.stop().await;
    let now = lab.api::<ConfigMap>().get(name).await.unwrap();
    let body = |data: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"held": data}});
    let seen = |grant: &ConfigMap| Some(Seen { uid: grant.uid().unwrap(), version: grant.resource_version().unwrap() });
    let wanted = |seen| vec![Wanted { kind: Kind::ConfigMap, name: name.to_owned(), body: body("standalone"), seen }];
    let context = lab.context("cluster.local");
    let error = apply::carry_out(&context, &cluster, &Step::Create(wanted(None))).await.unwrap_err();
    assert!(error.is_already_exists(), "{error}");
    let old = Some(Seen { version: "1".to_owned(), ..seen(&first).unwrap() });
    let error = apply::carry_out(&context, &cluster, &Step::Apply(wanted(old))).await.unwrap_err();
    assert!(error.is_outdated(), "{error}");
    assert_eq!(lab.api::<ConfigMap>().get(name).await.unwrap().data, now.data);
    apply::carry_out(&context, &cluster, &Step::Apply(wanted(seen(&now)))).await.unwrap();
}

#[tokio::test]
async fn what_is_refused_hides_nothing_else_of_a_step() {
    let Some(lab) = Lab::start("hidden").await else { return };
    let cluster = lab.create::<KafkaCluster>(CLUSTER).await;
    let context = lab.context("cluster.local");
    let service = |name: &str, port: i32| {
        let body = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": port}]}});
        Wanted { kind: Kind::Service, name: name.to_owned(), body, seen: None }
    };
    let error = apply::carry_out(&context, &cluster, &Step::Create(vec![service("bad", 0), service("good", 1)])).await;
    assert!(error.unwrap_err().is_invalid());
    let port = async || {
        let service = lab.api::<Service>().get_opt("good").await.unwrap()?;
        Some(service.spec?.ports?.first()?.port)
    };
    assert_eq!(port().await, Some(1));
    let error = apply::carry_out(&context, &cluster, &Step::Apply(vec![service("bad", 0), service("good", 2)])).await;
    assert!(error.unwrap_err().is_invalid());
    assert_eq!(port().await, Some(2));
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
