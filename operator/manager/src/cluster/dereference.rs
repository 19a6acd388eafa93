//! The only reads of a cluster's reconcile: the KafkaCluster, its identity, everything that carries its label, the labels of
//! Kubernetes' nodes where racks come from them, certificates with what nodes show of them, and last what the brokers say. They
//! go to the API server and not to a cache, because the plan decides about data.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use gregor_operator_api::{KafkaCluster, names};
use gregor_operator_plan::certificates::{CertificatesSeen, Port};
use gregor_operator_plan::properties::INTERNAL_PORT;
use gregor_operator_plan::topic::BrokerError;
use gregor_operator_plan::{ClusterObserved, KafkaSeen, Kind, Unseen};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt as _;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::ApiResource;
use serde_json::Value;
use tokio::time::Instant;

use crate::certificates;
use crate::context::Context;
use crate::error::Error;

/// How long the brokers have to say how their cluster is. What they do not say in time is not known, and nothing is taken away
/// from a cluster of which it is not known.
const BROKERS_TIMEOUT: Duration = Duration::from_secs(5);
/// Nodes whose Secrets are read, or whose ports are looked at, at the same time.
const AT_ONCE: usize = 16;

/// The API of a kind.
pub fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
        Kind::PersistentVolumeClaim => ApiResource::erase::<PersistentVolumeClaim>(&()),
        Kind::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
        Kind::Service => ApiResource::erase::<Service>(&()),
        Kind::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
        Kind::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
    }
}

/// An object as the plan compares it: with its kind, without the managers of its fields.
fn plain(mut object: DynamicObject, kind: Kind) -> Result<Value, Error> {
    object.metadata.managed_fields = None;
    let name = object.name_any();
    let mut value = serde_json::to_value(object).map_err(Error::shape(format!("reading {} {name}", kind.as_str())))?;
    // Items of a list come without them.
    let resource = resource(kind);
    value["apiVersion"] = Value::String(resource.api_version);
    value["kind"] = Value::String(resource.kind);
    Ok(value)
}

/// Reads a cluster; `None` if it is gone.
pub async fn read(context: &Context, namespace: &str, name: &str) -> Result<Option<ClusterObserved>, Error> {
    let client = &context.client;
    let clusters: Api<KafkaCluster> = Api::namespaced(client.clone(), namespace);
    let Some(cluster) =
        clusters.get_opt(name).await.map_err(Error::kubernetes(format!("reading KafkaCluster {name}")))?
    else {
        return Ok(None);
    };
    // By its name and not by its label: an identity whose label somebody took off must not look like none.
    let config_maps: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource(Kind::ConfigMap));
    let identity_name = format!("{name}-identity");
    let identity = config_maps
        .get_opt(&identity_name)
        .await
        .map_err(Error::kubernetes(format!("reading ConfigMap {identity_name}")))?
        .map(|object| plain(object, Kind::ConfigMap))
        .transpose()?;
    let labelled = ListParams::default().labels(&format!("{}={name}", names::CLUSTER_LABEL));
    let mut objects = BTreeMap::new();
    for kind in Kind::ALL {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource(kind));
        let list =
            api.list(&labelled).await.map_err(Error::kubernetes(format!("listing {}s of {name}", kind.as_str())))?;
        for object in list {
            let object_name = object.name_any();
            if kind != Kind::ConfigMap || object_name != identity_name {
                objects.insert((kind, object_name), plain(object, kind)?);
            }
        }
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods = pods.list(&labelled).await.map_err(Error::kubernetes(format!("listing pods of {name}")))?.items;
    let settled = context.settled(objects.values().filter_map(|object: &Value| object["metadata"]["uid"].as_str()));
    let mut observed = ClusterObserved {
        cluster,
        identity,
        objects,
        pods,
        settled,
        kubernetes_nodes: BTreeMap::new(),
        certificates: CertificatesSeen::default(),
        kafka: None,
        unseen: Unseen::default(),
    };
    for node in observed.asks_kubernetes_nodes() {
        if let Some(labels) = kubernetes_node(context, &node).await? {
            observed.kubernetes_nodes.insert(node, labels);
        }
    }
    let names = observed.asks_secrets();
    if !names.is_empty() {
        observed.certificates = certificates::seen(secrets(context, namespace, &names).await?, name);
        let ports = observed.asks_ports(&observed.domain(&context.environment));
        look_at(context, &ports, &mut observed).await;
    }
    if observed.asks_brokers() {
        let bootstrap = bootstrap(&observed.domain(&context.environment), namespace, name);
        match ask_brokers(context, &bootstrap).await {
            Ok(seen) => observed.kafka = Some(seen),
            Err(error) => {
                tracing::debug!(cluster = name, namespace, "the brokers cannot be asked: {error}");
                observed.unseen.brokers = Some(error.to_string());
            }
        }
    }
    Ok(Some(observed))
}

/// The Secrets of these names that are there. Each is read by its name: the operator need not see what other Secrets there are.
async fn secrets(context: &Context, namespace: &str, names: &[String]) -> Result<Vec<Secret>, Error> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let mut found = Vec::new();
    for some in names.chunks(AT_ONCE) {
        let read = join_all(some.iter().map(|name| api.get_opt(name))).await;
        for (name, secret) in some.iter().zip(read) {
            found.extend(secret.map_err(Error::kubernetes(format!("reading Secret {name}")))?);
        }
    }
    Ok(found)
}

/// What nodes show at their ports. What is not seen in time is not known; what was seen once is not looked at again.
async fn look_at(context: &Context, ports: &[Port], observed: &mut ClusterObserved) {
    let mut unknown = Vec::new();
    for port in ports {
        match context.last_shown(&port.pod_uid) {
            Some(shown) if port.expected.as_ref() == Some(&shown) => {
                observed.certificates.served.insert(port.node_id, shown);
            }
            _ => unknown.push(port),
        }
    }
    let end = Instant::now() + BROKERS_TIMEOUT;
    for some in unknown.chunks(AT_ONCE) {
        let looks = some.iter().map(|port| async move {
            let look = tokio::time::timeout_at(end, context.admin.shown(&port.host, port.port)).await;
            look.unwrap_or_else(|_| Err(late(&format!("{}:{}", port.host, port.port))))
        });
        for (port, shown) in some.iter().zip(join_all(looks).await) {
            match shown {
                Ok(shown) => {
                    context.has_shown(&port.pod_uid, shown.clone());
                    observed.certificates.served.insert(port.node_id, shown);
                }
                Err(error) => {
                    tracing::debug!("node {} does not show its certificate: {error}", port.node_id);
                    observed.unseen.nodes.insert(port.node_id, error.to_string());
                }
            }
        }
    }
}

fn late(address: &str) -> BrokerError {
    BrokerError::Unavailable(format!("{address} does not answer within {} s", BROKERS_TIMEOUT.as_secs()))
}

/// The labels of a Kubernetes node; `None` if it is gone or the operator has no right to read it, which the plan says.
async fn kubernetes_node(context: &Context, name: &str) -> Result<Option<BTreeMap<String, String>>, Error> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    match nodes.get_metadata_opt(name).await {
        Ok(node) => Ok(node.map(|node| node.metadata.labels.unwrap_or_default())),
        Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(None),
        Err(error) => Err(Error::kubernetes(format!("reading Kubernetes' node {name}"))(error)),
    }
}

/// Where the operator begins to talk with the brokers of a cluster.
pub fn bootstrap(domain: &str, namespace: &str, name: &str) -> String {
    format!("{name}-bootstrap.{namespace}.svc.{domain}:{INTERNAL_PORT}")
}

/// What the brokers say, if they do in time.
async fn ask_brokers(context: &Context, bootstrap: &str) -> Result<KafkaSeen, BrokerError> {
    let answer = tokio::time::timeout(BROKERS_TIMEOUT, context.admin.describe_cluster(bootstrap)).await;
    answer.unwrap_or_else(|_| Err(late(bootstrap)))
}
