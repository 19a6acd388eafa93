//! A Kubernetes cluster that answers, whoever provides it.
//!
//! Made by [`Provider::up`]; used by `cargo xtask up` and by the tests.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    Provider, Rig,
    process::{self, output, output_with_input},
    programs::Program,
};

/// What a test may want to happen to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeFault {
    /// The node loses its power; its disk stays.
    Kill,
    /// A killed node comes back with its disk. Returns when the node is ready.
    Restart,
    /// Everything on the node stops, and its connections stay open.
    Freeze,
    /// The end of [`NodeFault::Freeze`].
    Thaw,
    /// The node's cable is pulled.
    Disconnect,
    /// The end of [`NodeFault::Disconnect`].
    Reconnect,
}

/// What a cluster can do beyond running pods; a test that needs more says so and is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// How many nodes are ready to run pods.
    pub nodes: usize,
    /// [`Cluster::fault`] works.
    pub node_faults: bool,
    /// [`Cluster::cut`] works.
    pub cuts: bool,
    /// The default storage class grows volumes.
    pub expandable_storage: bool,
    /// [`Cluster::audit_log`] has the API server's audit log.
    pub audit_log: bool,
}

/// Which Helm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helm {
    /// The current one.
    V4,
    /// The one before, which many people have.
    V3,
}

/// A cluster that answers.
#[derive(Debug, Clone)]
pub struct Cluster {
    provider: Provider,
    kubectl: PathBuf,
}

impl Cluster {
    pub(crate) fn new(provider: Provider, report: &dyn Fn(&str)) -> Result<Self> {
        Ok(Self { provider, kubectl: Program::Kubernetes.ensure(report)? })
    }

    /// Who provides it, for people to read.
    pub fn provider(&self) -> &Provider {
        &self.provider
    }

    /// A command that reaches the cluster: `KUBECONFIG` is set, and where the cluster's network is not the machine's,
    /// it runs inside of it.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let program = program.as_ref().to_str().context("a program's name is not UTF-8")?;
        match &self.provider {
            Provider::Rig(rig) => rig.command(program),
            provider => {
                let mut command = Command::new(program);
                if let Some(kubeconfig) = provider.kubeconfig() {
                    command.env("KUBECONFIG", kubeconfig);
                }
                Ok(command)
            }
        }
    }

    /// kubectl, ready for its arguments.
    pub fn kubectl_command(&self) -> Result<Command> {
        let mut command = self.command(&self.kubectl)?;
        // The program is several in one, and this is its name for the one that is wanted.
        command.arg("kubectl");
        Ok(command)
    }

    /// Runs kubectl and returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        output(self.kubectl_command()?.args(arguments))
    }

    /// Runs kubectl and reads what it printed as JSON; `-o json` is added.
    pub fn kubectl_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = output(self.kubectl_command()?.args(arguments).args(["-o", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("`kubectl {}` did not print JSON", arguments.join(" ")))
    }

    /// Applies manifests, YAML or JSON, as somebody who types `kubectl apply` does.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        output_with_input(self.kubectl_command()?.args(["apply", "-f", "-"]), manifests.as_bytes())
    }

    /// Helm, ready for its arguments.
    pub fn helm_command(&self, helm: Helm) -> Result<Command> {
        let program = match helm {
            Helm::V4 => Program::Helm4,
            Helm::V3 => Program::Helm3,
        };
        self.command(program.ensure(&|_| ())?)
    }

    /// Runs Helm and returns what it printed.
    pub fn helm(&self, helm: Helm, arguments: &[&str]) -> Result<String> {
        output(self.helm_command(helm)?.args(arguments))
    }

    /// Makes the image of an archive that [`crate::oci`] wrote known to the nodes under its reference.
    pub fn load_image(&self, archive: &Path, reference: &str) -> Result<()> {
        self.provider.load_image(archive, reference)
    }

    /// Does a node harm, or ends it; where [`Capabilities::node_faults`] says so.
    pub fn fault(&self, node: &str, fault: NodeFault) -> Result<()> {
        self.provider.fault(node, fault)
    }

    /// Has all that a node and its pods send to another one and its pods be lost without a word, one way; where
    /// [`Capabilities::cuts`] says so.
    pub fn cut(&self, from: &str, to: &str) -> Result<()> {
        let (rig, from, to) = self.provider.link(from, to)?;
        rig.cut(from, to)
    }

    /// The end of [`Cluster::cut`].
    pub fn mend(&self, from: &str, to: &str) -> Result<()> {
        let (rig, from, to) = self.provider.link(from, to)?;
        rig.mend(from, to)
    }

    /// What the cluster can do.
    pub fn capabilities(&self) -> Result<Capabilities> {
        let nodes = self.kubectl_json(&["get", "nodes"])?;
        let ready = |node: &&Value| {
            let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        };
        let classes = self.kubectl_json(&["get", "storageclasses"])?;
        let expandable = |class: &Value| {
            class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
                && class["allowVolumeExpansion"] == true
        };
        Ok(Capabilities {
            nodes: nodes["items"].as_array().into_iter().flatten().filter(ready).count(),
            node_faults: matches!(self.provider, Provider::Rig(_) | Provider::Kind | Provider::K3d),
            cuts: matches!(self.provider, Provider::Rig(_)),
            expandable_storage: classes["items"].as_array().into_iter().flatten().any(expandable),
            audit_log: self.audit_log().is_some(),
        })
    }

    /// The API server's audit log, one JSON object per line, where there is one.
    pub fn audit_log(&self) -> Option<PathBuf> {
        match &self.provider {
            Provider::Rig(rig) => Some(rig.audit_log()).filter(|path| path.exists()),
            _ => None,
        }
    }

    /// Polls an object's field until it has one of the values; the error shows the value that it has.
    pub fn wait_for_field(
        &self,
        arguments: &[&str],
        json_path: &str,
        wanted: &dyn Fn(&str) -> bool,
        deadline: std::time::Duration,
    ) -> Result<String> {
        let mut value = String::new();
        let what = format!("{} {json_path}", arguments.join(" "));
        let output_format = format!("jsonpath={json_path}");
        let waited = process::wait_until(&what, deadline, || {
            let mut all = vec!["get"];
            all.extend_from_slice(arguments);
            all.extend(["-o", output_format.as_str()]);
            value = self.kubectl(&all)?;
            Ok(wanted(&value))
        });
        match waited {
            Ok(()) => Ok(value),
            Err(error) => bail!("{error:#}; the value was {value:?}"),
        }
    }
}

/// The rig that a command runs inside of, if it does (`cargo xtask rig exec`).
pub(crate) fn enclosing_rig() -> Option<Rig> {
    std::env::var("GREGOR_RIG").ok().map(|name| Rig::named(&name)).filter(Rig::is_up)
}
