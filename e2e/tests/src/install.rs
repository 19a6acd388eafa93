//! The charts, installed with Helm as a user does it.
//!
//! Called by `cargo xtask up` and by the tests.

use std::env;

use anyhow::{Context, Result};
use gregor_kubernetes::{Cluster, Helm};

use crate::{images, root};

/// Where the operator lives.
pub const OPERATOR_NAMESPACE: &str = "gregor-system";
/// The release of the chart `gregor-crds`.
pub const CRDS_RELEASE: &str = "gregor-crds";
/// The release of the chart `gregor-operator`.
pub const OPERATOR_RELEASE: &str = "gregor-operator";

/// A release of one of our charts.
#[derive(Debug, Clone)]
pub struct Release {
    chart: &'static str,
    name: String,
    namespace: String,
    /// Options of Helm, each with its assignment.
    values: Vec<(&'static str, String)>,
}

impl Release {
    /// The custom resource definitions.
    pub fn crds() -> Self {
        Self::of_chart("gregor-crds", CRDS_RELEASE)
    }

    /// The operator, with the images that are on the nodes.
    pub fn operator() -> Self {
        Self::of_chart("gregor-operator", OPERATOR_RELEASE)
            .value(&format!("image.registry={}", registry()))
            .value(&format!("image.tag={}", images::TAG))
    }

    fn of_chart(chart: &'static str, name: &str) -> Self {
        Self { chart, name: name.to_owned(), namespace: OPERATOR_NAMESPACE.to_owned(), values: Vec::new() }
    }

    /// Under another name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// In another namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// With a text for a value, `path=value`.
    #[must_use]
    pub fn value(mut self, assignment: &str) -> Self {
        self.values.push(("--set-string", assignment.to_owned()));
        self
    }

    /// With what a value turns on.
    #[must_use]
    pub fn enable(mut self, path: &str) -> Self {
        self.values.push(("--set", format!("{path}=true")));
        self
    }

    /// Installs or upgrades, and waits until what it holds works.
    pub fn apply(&self, cluster: &Cluster, helm: Helm) -> Result<String> {
        let chart = root().join("helm").join(self.chart).display().to_string();
        let mut command = cluster.helm_command(helm)?;
        command.args([
            "upgrade",
            "--install",
            &self.name,
            &chart,
            "--namespace",
            &self.namespace,
            "--create-namespace",
        ]);
        command.args(["--wait", "--timeout", "180s"]);
        for (option, value) in &self.values {
            command.args([option, value.as_str()]);
        }
        gregor_kubernetes::process::output(&mut command)
            .with_context(|| format!("release {} of {}", self.name, self.chart))
    }

    /// Uninstalls.
    pub fn remove(&self, cluster: &Cluster, helm: Helm) -> Result<String> {
        cluster.helm(helm, &["uninstall", &self.name, "--namespace", &self.namespace, "--wait", "--timeout", "120s"])
    }
}

/// Where the nodes find our images: the place of local ones, unless a given cluster pulls from a registry.
pub fn registry() -> String {
    env::var("E2E_IMAGE_REGISTRY").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| images::REGISTRY.to_owned())
}

/// A namespace in which only restricted pods run.
pub fn create_namespace(cluster: &Cluster, name: &str) -> Result<()> {
    let manifest = serde_json::json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    });
    cluster.apply(&manifest.to_string()).map(drop)
}
