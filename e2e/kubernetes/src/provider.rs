//! Where a Kubernetes comes from on this machine.
//!
//! Called by `cargo xtask up|down` and by the tests. The first of these that is there: a given cluster (`KUBECONFIG` or
//! `E2E_KUBECONFIG`), kind, k3d or minikube with a container engine that answers, the rig of namespaces. A given cluster is
//! never created, changed in its size, or removed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    Cluster, NodeFault, Rig,
    cluster::enclosing_rig,
    process::{installed, output, output_with_input},
    programs,
};

/// The name of what is made with kind, k3d or minikube.
const NAME: &str = "gregor";
/// The environment variable with the registry that a given cluster pulls from, such as `registry.example.com/team`.
const REGISTRY_VARIABLE: &str = "E2E_IMAGE_REGISTRY";

/// Who provides the cluster.
#[derive(Debug, Clone)]
pub enum Provider {
    /// One that is there already, named by a kubeconfig.
    Given {
        /// The kubeconfig's file.
        kubeconfig: PathBuf,
    },
    /// kind: nodes are containers.
    Kind,
    /// k3d: nodes are containers with k3s.
    K3d,
    /// minikube.
    Minikube,
    /// Namespaces of this machine.
    Rig(Rig),
}

impl Provider {
    /// The first one that works here; an error says what is missing for each.
    pub fn choose() -> Result<Self> {
        Self::choose_with_rig("default")
    }

    /// The same, with another name for the rig, so that it runs beside the default one.
    pub fn choose_with_rig(rig: &str) -> Result<Self> {
        for variable in ["E2E_KUBECONFIG", "KUBECONFIG"] {
            if let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) {
                let kubeconfig = PathBuf::from(path);
                if !kubeconfig.is_file() {
                    bail!("{variable} names {}, which is no file; unset it or correct it", kubeconfig.display());
                }
                return Ok(Self::Given { kubeconfig });
            }
        }
        let engine = container_engine_answers();
        for (program, provider) in [("kind", Self::Kind), ("k3d", Self::K3d), ("minikube", Self::Minikube)] {
            if engine && installed(program) {
                return Ok(provider);
            }
        }
        match Rig::obstacle() {
            None => Ok(Self::Rig(Rig::named(rig))),
            Some(obstacle) => bail!(
                "no Kubernetes to use. Give one with KUBECONFIG=FILE; or install kind, k3d or minikube beside a running \
                 Docker engine ({}); or run as root on Linux ({obstacle})",
                if engine {
                    "an engine answers here, none of the three is installed"
                } else {
                    "no engine answers here"
                },
            ),
        }
    }

    /// For people to read.
    pub fn name(&self) -> String {
        match self {
            Self::Given { kubeconfig } => format!("the cluster of {}", kubeconfig.display()),
            Self::Kind => "kind".to_owned(),
            Self::K3d => "k3d".to_owned(),
            Self::Minikube => "minikube".to_owned(),
            Self::Rig(rig) => format!("a rig of namespaces in {}", rig.state().display()),
        }
    }

    /// A cluster with at least `nodes` nodes where we say how many; one that runs already is used again.
    pub fn up(&self, nodes: u32, report: &dyn Fn(&str)) -> Result<Cluster> {
        match self {
            Self::Given { .. } => {}
            Self::Kind => {
                if !output(Command::new("kind").args(["get", "clusters"]))?.lines().any(|line| line == NAME) {
                    report("creating a kind cluster");
                    let workers = "- role: worker\n".repeat(nodes.saturating_sub(1) as usize);
                    let config = format!(
                        "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n- role: control-plane\n{workers}"
                    );
                    let mut command = Command::new("kind");
                    command.args([
                        "create",
                        "cluster",
                        "--name",
                        NAME,
                        "--wait",
                        "180s",
                        "--config",
                        "-",
                        "--kubeconfig",
                    ]);
                    output_with_input(command.arg(own_kubeconfig()?), config.as_bytes())?;
                }
            }
            Self::K3d => {
                if output(Command::new("k3d").args(["cluster", "get", NAME])).is_err() {
                    report("creating a k3d cluster");
                    let mut command = Command::new("k3d");
                    command.args(["cluster", "create", NAME, "--wait", "--kubeconfig-update-default=false"]);
                    output(command.arg("--agents").arg(nodes.saturating_sub(1).to_string()))?;
                }
                let kubeconfig = output(Command::new("k3d").args(["kubeconfig", "get", NAME]))?;
                fs::write(own_kubeconfig()?, kubeconfig)?;
            }
            Self::Minikube => {
                report("starting minikube");
                let mut command = Command::new("minikube");
                command.args(["start", "--profile", NAME, "--nodes"]).arg(nodes.max(1).to_string());
                output(command.env("KUBECONFIG", own_kubeconfig()?))?;
            }
            Self::Rig(rig) => rig.up(nodes, report)?,
        }
        let cluster = Cluster::new(self.clone(), report)?;
        cluster.kubectl(&["get", "--raw", "/readyz"]).with_context(|| format!("{} does not answer", self.name()))?;
        Ok(cluster)
    }

    /// Whether something that [`Provider::up`] made, or was given, answers.
    pub fn running(&self) -> Result<Option<Cluster>> {
        if matches!(self, Self::Rig(rig) if !rig.is_up()) {
            return Ok(None);
        }
        let cluster = Cluster::new(self.clone(), &|_| ())?;
        Ok(cluster.kubectl(&["get", "--raw", "/readyz"]).is_ok().then_some(cluster))
    }

    /// Removes what [`Provider::up`] made; a given cluster stays.
    pub fn down(&self, report: &dyn Fn(&str)) -> Result<()> {
        let removed = match self {
            Self::Given { .. } => return Ok(()),
            Self::Rig(rig) => return rig.down(report),
            Self::Kind => output(Command::new("kind").args(["delete", "cluster", "--name", NAME])),
            Self::K3d => output(Command::new("k3d").args(["cluster", "delete", NAME])),
            Self::Minikube => output(Command::new("minikube").args(["delete", "--profile", NAME])),
        };
        removed?;
        let _ = fs::remove_file(own_kubeconfig()?);
        report(&format!("{} cluster {NAME} is gone", self.name()));
        Ok(())
    }

    /// The kubeconfig, where the cluster is reached over the machine's own network.
    pub(crate) fn kubeconfig(&self) -> Option<PathBuf> {
        match self {
            Self::Given { kubeconfig } => Some(kubeconfig.clone()),
            Self::Kind | Self::K3d | Self::Minikube => own_kubeconfig().ok(),
            Self::Rig(_) => None,
        }
    }

    pub(crate) fn load_image(&self, archive: &Path, reference: &str) -> Result<()> {
        let mut command = match self {
            Self::Given { .. } => return load_into_given(archive, reference),
            Self::Rig(rig) => return rig.load_image(archive),
            Self::Kind => {
                let mut command = Command::new("kind");
                command.args(["load", "image-archive", "--name", NAME]).arg(archive);
                command
            }
            Self::K3d => {
                let mut command = Command::new("k3d");
                command.args(["image", "import", "--cluster", NAME]).arg(archive);
                command
            }
            Self::Minikube => {
                let mut command = Command::new("minikube");
                command.args(["image", "load", "--profile", NAME]).arg(archive);
                command
            }
        };
        output(&mut command).map(drop)
    }

    pub(crate) fn fault(&self, node: &str, fault: NodeFault) -> Result<()> {
        match self {
            Self::Rig(rig) => rig.fault(rig_node(node)?, fault),
            // Their nodes are containers of the same name.
            Self::Kind | Self::K3d => {
                let network = if matches!(self, Self::Kind) { "kind".to_owned() } else { format!("k3d-{NAME}") };
                let arguments = match fault {
                    NodeFault::Kill => vec!["kill", node],
                    NodeFault::Restart => vec!["restart", node],
                    NodeFault::Freeze => vec!["pause", node],
                    NodeFault::Thaw => vec!["unpause", node],
                    NodeFault::Disconnect => vec!["network", "disconnect", &network, node],
                    NodeFault::Reconnect => vec!["network", "connect", &network, node],
                };
                output(Command::new("docker").args(arguments)).map(drop)
            }
            Self::Given { .. } | Self::Minikube => bail!("nodes of {} cannot be harmed from here", self.name()),
        }
    }

    /// Two nodes with a link that can be cut.
    pub(crate) fn link(&self, from: &str, to: &str) -> Result<(&Rig, u32, u32)> {
        let Self::Rig(rig) = self else { bail!("links between nodes of {} cannot be cut from here", self.name()) };
        Ok((rig, rig_node(from)?, rig_node(to)?))
    }
}

/// The number of a rig's node.
fn rig_node(name: &str) -> Result<u32> {
    let number = name.strip_prefix('n').and_then(|number| number.parse().ok());
    number.with_context(|| format!("{name:?} is no node of a rig; those are n1, n2, ..."))
}

/// A given cluster may be the rig around us, one of the known kinds on this machine, or one that pulls from a registry.
fn load_into_given(archive: &Path, reference: &str) -> Result<()> {
    if let Some(rig) = enclosing_rig() {
        return rig.load_image(archive);
    }
    let Some(registry) = env::var(REGISTRY_VARIABLE).ok().filter(|registry| !registry.is_empty()) else {
        bail!(
            "{reference} cannot be put on the nodes of a given cluster from here. Set {REGISTRY_VARIABLE} to a registry that \
             the cluster pulls from and that you may push to, or load {} on every node yourself",
            archive.display()
        );
    };
    let name = reference.rsplit('/').next().unwrap_or(reference);
    let from = format!("oci-archive:{}", archive.display());
    let to = format!("docker://{registry}/{name}");
    if installed("skopeo") {
        output(Command::new("skopeo").args(["copy", &from, &to])).map(drop)
    } else if installed("buildah") {
        let image = output(Command::new("buildah").args(["pull", "--quiet", &from]))?;
        output(Command::new("buildah").args(["push", image.trim(), &to])).map(drop)
    } else {
        bail!("pushing {name} to {registry} needs skopeo or buildah; `apt-get install skopeo`")
    }
}

fn container_engine_answers() -> bool {
    installed("docker") && output(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"])).is_ok()
}

fn own_kubeconfig() -> Result<PathBuf> {
    let folder = programs::cache();
    fs::create_dir_all(&folder)?;
    Ok(folder.join("kubeconfig"))
}
