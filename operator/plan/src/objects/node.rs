//! A node: its immutable ConfigMap, named by the hash of its content, and its StatefulSet.
//!
//! The pod's init container runs
//! `gregor storage ensure --config FILE --cluster-id ID --directory-id ID --grant standalone|join|none --termination-log FILE`:
//! it formats a disk that is empty and granted, checks the ids of one that is formatted (exit 0 in both cases), and else
//! exits with 3 and one JSON line `{"reason":"DiskLost"|"ForeignDisk","message":...}` in the termination log.
//! In a cluster of several nodes the grant may be `join`, and `--until-recorded` has it exit with 4, to be run again, until
//! the permission is withdrawn: no node ever runs on a disk that could still be formatted.
//! The node itself runs `gregor broker --config FILE --health-listen ADDRESS`.

use gregor_operator_api::names;
use k8s_openapi::DeepMerge as _;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Map, Value, json};

use super::{node_labels, owner, storage, wanted};
use crate::certificates;
use crate::compare::{hash, hash_text};
use crate::identity::Identity;
use crate::placement::Layout;
use crate::pods::{FORMAT_CONTAINER, NODE_CONTAINER};
use crate::properties::{self, CERTIFICATES_FOLDER, CONTROLLER_PORT, HEALTH_PORT, INTERNAL_PORT, REPLICATION_PORT};
use crate::validate::{Node, RackSource, ValidCluster};
use crate::{Environment, Kind, Wanted};

/// The folder of the configuration in the pod.
const CONFIG_FOLDER: &str = "/etc/gregor";
/// The user and group of the image; `restricted` pod security wants a number.
const USER: i64 = 65532;
/// Seconds that a node has to hand over its partitions and mark a clean shutdown.
const GRACE_SECONDS: i64 = 120;

/// The volume with the node's certificate; longer than the name of any disk may be.
const CERTIFICATES_VOLUME: &str = "node-certificates";

/// The variable with the rack that the operator wrote to the pod.
const RACK_VARIABLE: &str = "GREGOR_RACK";

/// The ConfigMap with `server.properties`.
pub fn config_map(cluster: &ValidCluster, layout: &Layout, node: &Node, identity: &Identity) -> Wanted {
    let text = properties::render(cluster, layout, node, identity.connections);
    let name = format!("{}-{}", node.name, hash_text(&text));
    let body = json!({
        "metadata": {"labels": node_labels(&cluster.name, node.id, &node.pool), "ownerReferences": owner(cluster)},
        "immutable": true,
        "data": {"server.properties": text},
    });
    wanted(Kind::ConfigMap, &name, body)
}

/// The StatefulSet, and the revision of its template.
pub fn stateful_set(
    cluster: &ValidCluster,
    layout: &Layout,
    node: &Node,
    identity: &Identity,
    environment: &Environment,
    image: &str,
    config_map: &str,
) -> (Wanted, String) {
    let mut template = merged_template(cluster, layout, node, identity, environment, image, config_map);
    let revision = hash(&template);
    template["metadata"]["annotations"][names::REVISION] = json!(revision);
    let directory_id = identity.nodes.get(&node.id).map(|node| node.directory_id.clone());
    let mut annotations = json!({names::CLUSTER_ID: identity.cluster_id, names::DIRECTORY_ID: directory_id});
    storage::repeat_identity(&mut annotations, identity, node);
    let body = json!({
        "metadata": {
            "labels": node_labels(&cluster.name, node.id, &node.pool),
            "annotations": annotations,
            "ownerReferences": owner(cluster),
        },
        "spec": {
            "replicas": 1,
            "serviceName": cluster.headless_service(),
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": selector(cluster, node)},
            "template": template,
        },
    });
    (wanted(Kind::StatefulSet, &node.name, body), revision)
}

/// The revision of a StatefulSet's template.
pub fn revision(stateful_set: &Value) -> &str {
    stateful_set["spec"]["template"]["metadata"]["annotations"][names::REVISION].as_str().unwrap_or_default()
}

/// The image that a StatefulSet's node runs.
pub fn image(stateful_set: &Value) -> Option<&str> {
    let containers = stateful_set["spec"]["template"]["spec"]["containers"].as_array()?;
    containers.iter().find(|container| container["name"] == NODE_CONTAINER)?["image"].as_str()
}

fn selector(cluster: &ValidCluster, node: &Node) -> Value {
    json!({names::CLUSTER_LABEL: cluster.name, names::NODE_ID_LABEL: node.id.to_string()})
}

/// A pod that serves no clients says so, as the Service that clients begin at selects by it.
fn pod_labels(cluster: &ValidCluster, node: &Node) -> Map<String, Value> {
    let mut labels = node_labels(&cluster.name, node.id, &node.pool);
    if !node.is_broker() {
        labels.insert(names::NAME_LABEL.to_owned(), json!(names::CONTROLLER_NAME));
    }
    labels
}

fn merged_template(
    cluster: &ValidCluster,
    layout: &Layout,
    node: &Node,
    identity: &Identity,
    environment: &Environment,
    image: &str,
    config_map: &str,
) -> Value {
    let base = template(cluster, layout, node, identity, environment, image, config_map);
    let mut typed: PodTemplateSpec = serde_json::from_value(base).expect("the template above is a pod template");
    for template in &node.templates {
        typed.merge_from(template.clone());
    }
    // What selects and identifies the pod is not the manifest's to change.
    let metadata = typed.metadata.get_or_insert_default();
    let labels = metadata.labels.get_or_insert_default();
    for (key, value) in pod_labels(cluster, node) {
        if let Value::String(value) = value {
            labels.insert(key, value);
        }
    }
    serde_json::to_value(typed).expect("a pod template is JSON")
}

fn template(
    cluster: &ValidCluster,
    layout: &Layout,
    node: &Node,
    identity: &Identity,
    environment: &Environment,
    image: &str,
    config_map: &str,
) -> Value {
    let directory_id = identity.nodes.get(&node.id).map(|node| node.directory_id.clone()).unwrap_or_default();
    let file = format!("{CONFIG_FOLDER}/server.properties");
    let mut ports = Vec::new();
    if node.is_broker() {
        ports.push(port("internal", INTERNAL_PORT));
    }
    let is_tls = identity.connections.are_tls();
    if node.is_broker() && is_tls {
        ports.push(port("replication", REPLICATION_PORT));
    }
    if node.is_controller() {
        ports.push(port("controller", CONTROLLER_PORT));
    }
    ports.push(port("health", HEALTH_PORT));
    ports.extend(node.listeners.iter().map(|listener| port(&listener.name, listener.port)));
    let container_security = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    });
    let mounts = json!([
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": true},
        {"name": node.volume.name, "mountPath": properties::mount_path(&node.volume.name)},
        {"name": "tmp", "mountPath": "/tmp"},
    ]);
    let mut node_mounts = mounts.clone();
    let mut volumes = json!([
        {"name": "config", "configMap": {"name": config_map}},
        {"name": node.volume.name, "persistentVolumeClaim": {"claimName": storage::claim_name(node)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
    ]);
    if let (true, Value::Array(mounts), Value::Array(volumes)) = (is_tls, &mut node_mounts, &mut volumes) {
        // The node's own key and no other; the container that looks at the disk has no use for it.
        mounts.push(json!({"name": CERTIFICATES_VOLUME, "mountPath": CERTIFICATES_FOLDER, "readOnly": true}));
        let secret = json!({"secretName": certificates::node_secret(&cluster.name, node.id), "defaultMode": 0o440});
        volumes.push(json!({"name": CERTIFICATES_VOLUME, "secret": secret}));
    }
    let grant = json!({"configMapKeyRef": {"name": storage::grant_name(node), "key": directory_id}});
    let mut format_env = vec![json!({"name": "GREGOR_FORMAT_GRANT", "valueFrom": grant})];
    let mut format_args = vec![
        json!("storage"),
        json!("ensure"),
        json!("--config"),
        json!(file),
        json!("--cluster-id"),
        json!(identity.cluster_id),
        json!("--directory-id"),
        json!(directory_id),
        json!("--grant"),
        json!("$(GREGOR_FORMAT_GRANT)"),
        json!("--termination-log"),
        json!("/dev/termination-log"),
    ];
    let mut args = vec![
        json!("broker"),
        json!("--config"),
        json!(file),
        json!("--health-listen"),
        json!(format!("0.0.0.0:{HEALTH_PORT}")),
    ];
    let mut env = Value::Null;
    if !layout.is_single() {
        format_args.push(json!("--until-recorded"));
    }
    if node.is_broker() && matches!(node.rack, Some(RackSource::Label(_))) {
        // Written to the pod when it has a Kubernetes node; empty until then.
        let path = format!("metadata.annotations['{}']", names::RACK);
        let rack = json!({"name": RACK_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        format_args.push(json!(format!("--rack=$({RACK_VARIABLE})")));
        args.push(json!("--override"));
        args.push(json!(format!("broker.rack=$({RACK_VARIABLE})")));
        format_env.push(rack.clone());
        env = json!([rack]);
    }
    let mut annotations = json!({names::CLUSTER_ID: identity.cluster_id, names::DIRECTORY_ID: directory_id});
    if let Some(nonce) = &cluster.restarted_at {
        annotations[names::RESTARTED_AT] = json!(nonce);
    }
    json!({
        "metadata": {"labels": pod_labels(cluster, node), "annotations": annotations},
        "spec": {
            "serviceAccountName": cluster.name,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "imagePullSecrets": environment.image_pull_secrets.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
            "topologySpreadConstraints": spread(cluster),
            "initContainers": [{
                "name": FORMAT_CONTAINER,
                "image": image,
                "imagePullPolicy": environment.image_pull_policy,
                "args": format_args,
                "env": format_env,
                "resources": node.resources,
                "securityContext": container_security,
                "volumeMounts": mounts,
                "terminationMessagePolicy": "File",
            }],
            "containers": [{
                "name": NODE_CONTAINER,
                "image": image,
                "imagePullPolicy": environment.image_pull_policy,
                "args": args,
                "env": env,
                "ports": ports,
                "resources": node.resources,
                "securityContext": container_security,
                "volumeMounts": node_mounts,
                "terminationMessagePolicy": "FallbackToLogsOnError",
                // Alive is the process; recovery may take as long as it takes, so nothing finite waits for its end.
                "livenessProbe": {
                    "httpGet": {"path": "/livez", "port": "health"},
                    "initialDelaySeconds": 10,
                    "periodSeconds": 10,
                    "timeoutSeconds": 5,
                    "failureThreshold": 6,
                },
                "readinessProbe": {
                    "httpGet": {"path": "/readyz", "port": "health"},
                    "periodSeconds": 2,
                    "timeoutSeconds": 2,
                    "failureThreshold": 3,
                },
            }],
            "volumes": volumes,
        },
    })
}

fn port(name: &str, number: i32) -> Value {
    json!({"name": name, "containerPort": number, "protocol": "TCP"})
}

/// Nodes of one cluster keep apart where they can.
fn spread(cluster: &ValidCluster) -> Value {
    let constraint = |key: &str| {
        json!({
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {names::CLUSTER_LABEL: cluster.name}},
        })
    };
    json!([constraint("topology.kubernetes.io/zone"), constraint("kubernetes.io/hostname")])
}
