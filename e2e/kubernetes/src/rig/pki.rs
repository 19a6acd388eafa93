//! The rig's certificates and kubeconfigs, made with `openssl` for a month.
//!
//! Called by [`super::Rig`] before it starts what uses them. They guard an API server that nothing outside of the rig can
//! reach, and are gone with it.

use std::{fs, path::Path, process::Command};

use anyhow::Result;

use super::ADDRESS;
use crate::process::output;

const DAYS: &str = "30";
const API_SERVER_NAMES: &str = "IP:127.0.0.1,IP:10.198.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,\
                                DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local";

/// Who has a certificate: file name, common name, organization (a group, in Kubernetes' eyes).
const CLIENTS: &[(&str, &str, &str)] = &[
    ("admin", "admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", "rig"),
    ("scheduler", "system:kube-scheduler", "rig"),
    ("proxy", "system:kube-proxy", "rig"),
    ("front-proxy", "front-proxy", "rig"),
    ("coredns", "rig:coredns", "rig"),
];

/// Everything but the nodes' own.
pub fn write_control_plane(folder: &Path) -> Result<()> {
    let at = |name: &str| folder.join(name);
    output(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", DAYS])
            .args(["-subj", "/CN=gregor-rig-ca", "-keyout"])
            .arg(at("ca.key"))
            .arg("-out")
            .arg(at("ca.crt")),
    )?;
    certificate(folder, "apiserver", "kube-apiserver", "system:masters", API_SERVER_NAMES)?;
    for (name, common_name, organization) in CLIENTS {
        certificate(folder, name, common_name, organization, &format!("DNS:{name}"))?;
        kubeconfig(folder, name)?;
    }
    output(Command::new("openssl").args(["genrsa", "-out"]).arg(at("sa.key")).arg("2048"))?;
    output(Command::new("openssl").args(["rsa", "-pubout", "-in"]).arg(at("sa.key")).arg("-out").arg(at("sa.pub")))?;
    Ok(())
}

/// What node `n<node>` shows to the API server, and its kubelet to the API server's calls.
pub fn write_node(folder: &Path, node: u32) -> Result<()> {
    let name = format!("n{node}");
    certificate(
        folder,
        &name,
        &format!("system:node:{name}"),
        "system:nodes",
        &format!("IP:{ADDRESS}{node},DNS:{name}"),
    )?;
    kubeconfig(folder, &name)
}

fn certificate(
    folder: &Path,
    name: &str,
    common_name: &str,
    organization: &str,
    alternative_names: &str,
) -> Result<()> {
    let at = |extension: &str| folder.join(format!("{name}.{extension}"));
    output(
        Command::new("openssl")
            .args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
            .args(["-subj", &format!("/O={organization}/CN={common_name}"), "-keyout"])
            .arg(at("key"))
            .arg("-out")
            .arg(at("csr")),
    )?;
    fs::write(at("ext"), format!("subjectAltName={alternative_names}\nextendedKeyUsage=clientAuth,serverAuth\n"))?;
    output(
        Command::new("openssl")
            .args(["x509", "-req", "-days", DAYS, "-CAcreateserial", "-in"])
            .arg(at("csr"))
            .arg("-CA")
            .arg(folder.join("ca.crt"))
            .arg("-CAkey")
            .arg(folder.join("ca.key"))
            .arg("-extfile")
            .arg(at("ext"))
            .arg("-out")
            .arg(at("crt")),
    )?;
    Ok(())
}

/// A kubeconfig that names its certificates as files beside it.
fn kubeconfig(folder: &Path, name: &str) -> Result<()> {
    let at = |file: &str| folder.join(file).display().to_string();
    let content = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "rig",
        "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": name}}],
        "clusters": [{"name": "rig", "cluster": {
            "server": format!("https://{ADDRESS}:6443"), "certificate-authority": at("ca.crt"),
        }}],
        "users": [{"name": name, "user": {
            "client-certificate": at(&format!("{name}.crt")), "client-key": at(&format!("{name}.key")),
        }}],
    });
    fs::write(folder.join(format!("{name}.conf")), serde_json::to_vec_pretty(&content)?)?;
    Ok(())
}
