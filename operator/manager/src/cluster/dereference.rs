//! The only reads of a cluster's reconcile: the KafkaCluster, its identity, and everything that carries its label. They go
//! to the API server and not to a cache, because the plan decides about data.

use std::collections::BTreeMap;

use gregor_operator_api::{KafkaCluster, names};
use gregor_operator_plan::{ClusterObserved, Kind};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt as _;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::ApiResource;
use serde_json::Value;

use crate::context::Context;
use crate::error::Error;

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
    Ok(Some(ClusterObserved { cluster, identity, objects, pods, settled }))
}
