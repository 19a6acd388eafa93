//! Nodes' disks, emptied as by somebody who has the same rights on them as the node.
//!
//! Called by the tests, which say whether the node runs meanwhile.

use anyhow::Result;
use gregor_kubernetes::Cluster;
use serde_json::json;

use crate::{images::Name, install::registry};

/// Empties the claim of a node's disk, from a pod on the Kubernetes node that the disk is on. It fails where the disk was not
/// formatted.
pub fn wipe(cluster: &Cluster, namespace: &str, claim: &str, kubernetes_node: &str) -> Result<()> {
    let reference = Name::Clients.reference();
    let image = format!("{}/{}", registry(), reference.rsplit('/').next().unwrap_or(&reference));
    let user = 65_532;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "wiper", "namespace": namespace},
        "spec": {
            "nodeName": kubernetes_node,
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": user, "runAsGroup": user, "fsGroup": user,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "wiper",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c", "cat /disk/logs/meta.properties && rm -rf /disk/logs"],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "disk", "mountPath": "/disk"}],
            }],
            "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": claim}}],
        },
    });
    cluster.apply(&pod.to_string())?;
    let phase = ["-n", namespace, "wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s", "pod/wiper"];
    let wiped = cluster.kubectl(&phase);
    cluster.kubectl(&["-n", namespace, "delete", "pod", "wiper", "--now"])?;
    wiped.map(drop)
}
