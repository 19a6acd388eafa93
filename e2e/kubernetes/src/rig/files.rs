//! The configuration files of the rig's programs, and the objects that every cluster is born with.
//!
//! Called by [`super::Rig`]; pure text, but for the writing of it.

use std::{fs, path::Path};

use anyhow::Result;
use serde_json::{Value, json};

use super::ADDRESS;

/// The address of the service through which pods ask for names.
const DNS_SERVICE: &str = "10.96.0.10";

/// The files that the control plane's script reads.
pub fn write_control_plane(state: &Path) -> Result<()> {
    fs::write(
        state.join("resolv.conf"),
        format!("nameserver {ADDRESS}\nsearch svc.cluster.local cluster.local\noptions ndots:5\n"),
    )?;
    write_json(
        &state.join("audit.yaml"),
        &json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
            "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}],
        }),
    )?;
    write_json(&state.join("proxy.yaml"), &proxy(state, "rig0"))?;
    fs::write(state.join("Corefile"), corefile(state))?;
    Ok(())
}

/// The files that a node's script reads.
pub fn write_node(state: &Path, node: u32, cgroup: &str) -> Result<()> {
    let name = format!("n{node}");
    let folder = state.join(&name);
    fs::create_dir_all(folder.join("cni.d"))?;
    write_json(&folder.join("kubelet.yaml"), &kubelet(state, node, cgroup))?;
    write_json(&folder.join("proxy.yaml"), &proxy(state, &name))?;
    write_json(&folder.join("cni.d/10-rig.conflist"), &pod_network(node))?;
    fs::write(folder.join("containerd.toml"), containerd(&folder))?;
    Ok(())
}

/// The service and rights of the cluster's names, and the default class of volumes.
pub fn cluster_objects() -> String {
    let ports =
        json!([{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]);
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": DNS_SERVICE, "ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns-rig", "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": true}}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "rig:coredns"},
            "rules": [
                {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "rig:coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "rig:coredns"},
            "subjects": [{"kind": "User", "name": "rig:coredns", "apiGroup": "rbac.authorization.k8s.io"}],
        },
        {
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": "rig.gregor.dev/local",
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Delete",
        },
    ]});
    objects.to_string()
}

fn corefile(state: &Path) -> String {
    format!(
        ".:53 {{
  bind {ADDRESS}
  errors
  health 127.0.0.1:8081
  ready 127.0.0.1:8181
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {}/pki/coredns.conf
    pods insecure
    ttl 2
  }}
  cache 2
  loadbalance
}}
",
        state.display()
    )
}

fn proxy(state: &Path, host: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "hostnameOverride": host,
        "detectLocalMode": "BridgeInterface",
        "detectLocal": {"bridgeInterface": "cni0"},
        "oomScoreAdj": 0,
        // Zero leaves the machine's settings alone.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "clientConnection": {"kubeconfig": state.join("pki/proxy.conf")},
    })
}

fn kubelet(state: &Path, node: u32, cgroup: &str) -> Value {
    let pki = state.join("pki");
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "failSwapOn": false,
        // Without CAP_SYS_RESOURCE neither may be what kubelet would choose.
        "oomScoreAdj": 0,
        "maxOpenFiles": 20_000,
        "address": format!("{ADDRESS}{node}"),
        "tlsCertFile": pki.join(format!("n{node}.crt")),
        "tlsPrivateKeyFile": pki.join(format!("n{node}.key")),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki.join("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE],
        "resolvConf": "",
        "nodeStatusUpdateFrequency": "2s",
        "nodeLeaseDurationSeconds": 8,
        // The disk is the machine's: how full it is says nothing about the node.
        "evictionHard": {
            "memory.available": "100Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "systemReserved": {"cpu": "200m", "memory": "1Gi"},
        "maxPods": 60,
        "serializeImagePulls": false,
        "crashLoopBackOff": {"maxContainerRestartPeriod": "10s"},
    })
}

fn pod_network(node: u32) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "rig",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": false, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": "/var/lib/cni/networks",
                    "ranges": [[{"subnet": format!("10.197.{node}.0/24")}]],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

fn containerd(folder: &Path) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "rig.local/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{}/cni.d"
"#,
        folder.display()
    )
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    // JSON is YAML, and needs no care with indentation.
    fs::write(path, serde_json::to_vec_pretty(value)?)?;
    Ok(())
}
