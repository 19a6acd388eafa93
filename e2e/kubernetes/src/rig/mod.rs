//! A real Kubernetes of several nodes on one Linux machine, without a container engine: every process of it lives in
//! namespaces of its own.
//!
//! Used through [`crate::Provider`] and by `cargo xtask rig`. The bridge and the control plane live in network, mount and
//! pid namespaces that are the parents of the nodes': one kill ends everything, and no address of the rig exists on the
//! machine. It never listens on, routes through or changes an interface of the machine.
//!
//! The fabric is 10.198.0.0/24 (control plane .1, node N .1N), pods are 10.197.N.0/24, services 10.96.0.0/16.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    NodeFault,
    packages::{self, Need},
    process,
    programs::{self, Program},
};

mod cgroups;
mod files;
mod pki;
mod sysctls;

use cgroups::Cgroups;

/// The control plane's address on the fabric.
const ADDRESS: &str = "10.198.0.1";
/// A hardware address that nothing on the fabric has.
const NOBODY: &str = "02:00:00:00:00:ff";
/// Node addresses and pod networks have one digit for the node.
pub const NODES_MAX: u32 = 9;

/// In the rig's folder: the boot of the machine and the network namespace that the rig belongs to.
const NAMESPACE_FILE: &str = "network-namespace";

const CONTROL_PLANE_DEADLINE: Duration = Duration::from_mins(3);
/// How often nodes that end while they start are started again.
const NODE_STARTS: u32 = 3;
const NODES_DEADLINE: Duration = Duration::from_mins(4);

const NEEDS: &[Need] = &[
    Need::new("containerd", "containerd"),
    Need::new("ctr", "containerd"),
    Need::new("runc", "runc"),
    Need::new("/usr/lib/cni/bridge", "containernetworking-plugins"),
    Need::new("iptables", "iptables"),
    Need::new("conntrack", "conntrack"),
    Need::new("ip", "iproute2"),
    Need::new("nsenter", "util-linux"),
    Need::new("unshare", "util-linux"),
    Need::new("mount", "mount"),
    Need::new("sysctl", "procps"),
    Need::new("openssl", "openssl"),
];

/// The names under which the rig starts its one Kubernetes program.
const KUBERNETES_PROGRAMS: &[&str] = &[
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
    "provisioner",
];

/// One rig, which runs or does not; several with different names can run at once.
#[derive(Debug, Clone)]
pub struct Rig {
    name: String,
    state: PathBuf,
}

impl Rig {
    /// The rig of this name; `default` is the one that `cargo xtask up` uses.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), state: programs::cache().join("rig").join(name) }
    }

    /// Ends every rig of this user, whatever its name.
    pub fn down_all(report: &dyn Fn(&str)) -> Result<()> {
        let Ok(rigs) = fs::read_dir(programs::cache().join("rig")) else { return Ok(()) };
        for rig in rigs {
            let rig = rig?;
            if let (true, Some(name)) = (rig.path().is_dir(), rig.file_name().to_str()) {
                Self::named(name).down(report)?;
            }
        }
        Ok(())
    }

    /// Why this machine cannot run a rig, if it cannot.
    pub fn obstacle() -> Option<&'static str> {
        if !cfg!(target_os = "linux") {
            Some("the rig of namespaces needs Linux")
        } else if !rustix::process::geteuid().is_root() {
            Some("the rig of namespaces needs root")
        } else {
            None
        }
    }

    /// The rig's folder: certificates, logs, the nodes' disks.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The administrator's kubeconfig; its server is reachable only by what [`Rig::command`] starts.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("pki/admin.conf")
    }

    /// Every request that the API server answered, one JSON object per line.
    pub fn audit_log(&self) -> PathBuf {
        self.state.join("log/audit.log")
    }

    /// Whether the control plane's namespaces exist.
    pub fn is_up(&self) -> bool {
        self.control_plane().is_ok()
    }

    /// The numbers of the nodes that were started, dead ones included.
    pub fn nodes(&self) -> Vec<u32> {
        (1..=NODES_MAX).filter(|node| self.node_folder(*node).is_dir()).collect()
    }

    /// Starts what is missing for a control plane and `nodes` nodes, and returns when all of it is ready. With no node
    /// there are an API server, controllers and names, and no pod runs.
    pub fn up(&self, nodes: u32, report: &dyn Fn(&str)) -> Result<()> {
        if nodes > NODES_MAX {
            bail!("{nodes} nodes are more than the {NODES_MAX} that the rig's addresses have room for");
        }
        if let Some(obstacle) = Self::obstacle() {
            bail!("{obstacle}");
        }
        packages::ensure(NEEDS, report)?;
        if !self.is_up() {
            // What a crash or a restart of the machine left behind.
            self.down(&|_| ())?;
            self.start_control_plane(report)?;
        }
        let began = Instant::now();
        let missing: Vec<u32> = (1..=nodes).filter(|node| !self.node_runs(*node)).collect();
        for node in &missing {
            self.start_node(*node)?;
        }
        if !missing.is_empty() {
            self.wait_for_nodes(&missing)?;
            report(&format!("{} nodes ready after {} s", self.nodes().len(), began.elapsed().as_secs()));
        }
        Ok(())
    }

    /// Ends every process of the rig and removes all that it made: cgroups, files, the changed kernel settings.
    pub fn down(&self, report: &dyn Fn(&str)) -> Result<()> {
        if !self.state.exists() {
            return Ok(());
        }
        if let Ok(namespace) = self.recorded_namespace() {
            if fs::read_link("/proc/self/ns/net").is_ok_and(|own| own == namespace) {
                bail!("rig {:?} cannot be ended from inside of it; leave `cargo xtask rig exec` first", self.name);
            }
            for pid in processes_in_network(&namespace) {
                process::kill(pid);
            }
            process::wait_until("the rig's processes are gone", Duration::from_secs(20), || {
                Ok(processes_in_network(&namespace).is_empty())
            })?;
        }
        for node in self.nodes() {
            Cgroups::of_node(&self.name, node).remove()?;
        }
        Cgroups::of_rig(&self.name).remove()?;
        fs::remove_dir_all(&self.state).with_context(|| format!("could not remove {}", self.state.display()))?;
        sysctls::restore_after_last(&programs::cache().join("rig"))?;
        report(&format!("rig {:?} is gone", self.name));
        Ok(())
    }

    /// A command inside the rig's network, with cluster names and `KUBECONFIG` set; it sees the machine's files and
    /// processes, and finds `kubectl` first.
    pub fn command(&self, program: &str) -> Result<Command> {
        let pid = self.control_plane()?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{pid}/ns/net")).arg(format!("--uts=/proc/{pid}/ns/uts"));
        // Only the file with the name servers differs from the machine's, so a mount namespace of the command's own does.
        command.args([
            "--",
            "unshare",
            "--mount",
            "--",
            "sh",
            "-c",
            "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"",
        ]);
        command.arg(self.state.join("resolv.conf")).arg(program);
        command.env("KUBECONFIG", self.kubeconfig()).env("GREGOR_RIG", &self.name).env("PATH", self.path());
        Ok(command)
    }

    /// Makes an image known to every node, and to those that come later.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        self.control_plane()?;
        let name = archive.file_name().context("an image's archive is a file")?;
        let kept = self.state.join("images").join(name);
        if fs::canonicalize(archive)? != kept {
            fs::copy(archive, &kept).with_context(|| format!("could not copy {}", archive.display()))?;
        }
        for node in self.nodes() {
            if let Ok(init) = self.node_init(node) {
                process::output(
                    Command::new("nsenter")
                        .arg(format!("--mount=/proc/{init}/ns/mnt"))
                        .args(["--", "ctr", "--namespace", "k8s.io", "images", "import"])
                        .arg(&kept),
                )?;
            }
        }
        Ok(())
    }

    /// Does a node harm, or ends it.
    pub fn fault(&self, node: u32, fault: NodeFault) -> Result<()> {
        let interface = |state| {
            let pid = self.control_plane()?;
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/proc/{pid}/ns/net"));
            process::output(command.args(["--", "ip", "link", "set", &format!("v{node}"), state])).map(drop)
        };
        match fault {
            NodeFault::Kill => {
                let init = self.node_init(node)?;
                process::kill(init);
                process::wait_until("the node's processes are gone", Duration::from_secs(20), || {
                    Ok(!process::runs(init))
                })
            }
            NodeFault::Restart => {
                if self.node_runs(node) {
                    self.fault(node, NodeFault::Kill)?;
                }
                self.start_node(node)?;
                self.wait_for_nodes(&[node])
            }
            NodeFault::Freeze => Cgroups::of_node(&self.name, node).freeze(true),
            NodeFault::Thaw => Cgroups::of_node(&self.name, node).freeze(false),
            NodeFault::Disconnect => interface("down"),
            NodeFault::Reconnect => interface("up"),
        }
    }

    /// Has all that a node sends to another, its pods' packets too, be lost without a word. What the other sends arrives, and
    /// so does what either sends elsewhere. A node that starts again sends everywhere.
    pub fn cut(&self, from: u32, to: u32) -> Result<()> {
        // Packets to the other node and its pods all go to its hardware address.
        self.neighbour(from, to, &["lladdr", NOBODY, "dev", "eth0", "nud", "permanent"])
    }

    /// Ends what [`Rig::cut`] did, if it did.
    pub fn mend(&self, from: u32, to: u32) -> Result<()> {
        // Whose address is not known is asked for it.
        self.neighbour(from, to, &["dev", "eth0", "nud", "failed"])
    }

    fn neighbour(&self, of: u32, node: u32, entry: &[&str]) -> Result<()> {
        if of == node || !self.nodes().contains(&node) {
            bail!("node n{of} has no neighbour n{node}; the rig's nodes are {:?}", self.nodes());
        }
        let init = self.node_init(of)?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{init}/ns/net")).args(["--", "ip", "neigh", "replace"]);
        process::output(command.arg(format!("{ADDRESS}{node}")).args(entry)).map(drop)
    }

    fn start_control_plane(&self, report: &dyn Fn(&str)) -> Result<()> {
        let kubernetes = Program::Kubernetes.ensure(report)?;
        let coredns = Program::CoreDns.ensure(report)?;
        let toolbox = Program::Toolbox.ensure(report)?;
        let images = ["pause", "toolbox"].map(|name| programs::toolbox_image(name, report));

        let began = Instant::now();
        report("starting the control plane");
        for folder in ["bin", "etcd", "images", "log", "pki"] {
            fs::create_dir_all(self.state.join(folder))?;
        }
        fs::set_permissions(&self.state, fs::Permissions::from_mode(0o711))?;
        let bin = self.state.join("bin");
        for name in KUBERNETES_PROGRAMS {
            symlink(&kubernetes, bin.join(name))?;
        }
        symlink(&coredns, bin.join("coredns"))?;
        symlink(&toolbox, bin.join("pause"))?;
        symlink(&toolbox, bin.join("toolbox"))?;
        for image in images {
            let image = image?;
            fs::copy(&image, self.state.join("images").join(image.file_name().expect("an image is a file")))?;
        }
        sysctls::save_and_set(&programs::cache().join("rig"))?;
        pki::write_control_plane(&self.state.join("pki"))?;
        files::write_control_plane(&self.state)?;

        let script = self.write_script("control-plane.sh", include_str!("../../rig/control-plane.sh"))?;
        let log = fs::File::create(self.state.join("log/rig0.log"))?;
        let mut command = Command::new("setsid");
        command.args([
            "unshare",
            "--net",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]);
        command.arg("bash").arg(script).env("RIG_STATE", &self.state).env("RIG_ADDRESS", ADDRESS);
        let outer = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?.id();
        let init = first_child(outer)?;
        let namespace = fs::read_link(format!("/proc/{init}/ns/net"))?;
        fs::write(self.state.join(NAMESPACE_FILE), format!("{}\n{}", boot_id()?, namespace.display()))?;
        fs::write(self.state.join("pid"), init.to_string())?;

        let ready = process::wait_until("the control plane works", CONTROL_PLANE_DEADLINE, || {
            if !process::runs(init) {
                bail!("the rig's first process has ended: {}", process::tail_of_file(&self.state.join("log/rig0.log")));
            }
            // The controller manager makes it, so both work.
            let mut kubectl = self.command("kubectl")?;
            process::output(kubectl.args(["--namespace", "default", "get", "serviceaccount", "default"]))?;
            Ok(true)
        });
        ready.with_context(|| format!("the logs are in {}", self.state.join("log").display()))?;
        let mut kubectl = self.command("kubectl")?;
        process::output_with_input(kubectl.args(["apply", "-f", "-"]), files::cluster_objects().as_bytes())?;
        report(&format!("control plane ready after {} s", began.elapsed().as_secs()));
        Ok(())
    }

    fn start_node(&self, node: u32) -> Result<()> {
        let name = format!("n{node}");
        let folder = self.node_folder(node);
        let pid = self.control_plane()?;
        fs::create_dir_all(folder.join("log"))?;
        // A crashed node's pods hold no address any more.
        let _ = fs::remove_dir_all(folder.join("cni"));
        pki::write_node(&self.state.join("pki"), node)?;
        let cgroups = Cgroups::of_node(&self.name, node);
        // A crashed node's: cadvisor would spend seconds on each container in them.
        cgroups.remove()?;
        let procs = cgroups.create()?;
        files::write_node(&self.state, node, &cgroups.path_for_kubelet())?;

        let script = self.write_script("node.sh", include_str!("../../rig/node.sh"))?;
        let log = fs::File::create(folder.join("init.log"))?;
        let mut command = Command::new("setsid");
        command.arg("nsenter").arg(format!("--pid=/proc/{pid}/ns/pid")).args(["--", "unshare"]);
        command.args(["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.arg("bash").arg(script).env("RIG_STATE", &self.state).env("RIG_ADDRESS", ADDRESS);
        command.env("RIG_NODE", node.to_string()).env("RIG_CGROUPS", procs);
        let outer = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?.id();
        let init = first_child(first_child(outer)?)?;
        fs::write(folder.join("pid"), init.to_string())?;

        let link = format!(
            "ip link del v{node} 2>/dev/null; ip link add v{node} type veth peer name eth0 netns {init} && \
             ip link set v{node} master fabric up && ip route replace 10.197.{node}.0/24 via {ADDRESS}{node}"
        );
        process::output(
            Command::new("nsenter").arg(format!("--net=/proc/{pid}/ns/net")).args(["--", "sh", "-c", &link]),
        )
        .with_context(|| format!("node {name} has no network"))?;
        Ok(())
    }

    /// Waits until nodes are ready. One that ends while it starts is started again, a few times.
    fn wait_for_nodes(&self, nodes: &[u32]) -> Result<()> {
        let names: Vec<String> = nodes.iter().map(|node| format!("n{node}")).collect();
        let mut starts_left = NODE_STARTS;
        process::wait_until("the nodes are ready", NODES_DEADLINE, || {
            for node in nodes.iter().filter(|node| !self.node_runs(**node)) {
                let why = process::tail_of_file(&self.node_folder(*node).join("init.log"));
                if starts_left == 0 {
                    bail!("node n{node} has ended: {why}");
                }
                starts_left -= 1;
                self.start_node(*node).with_context(|| format!("node n{node} has ended: {why}"))?;
            }
            let mut kubectl = self.command("kubectl")?;
            let conditions = process::output(kubectl.args([
                "get",
                "nodes",
                "-o",
                "jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type==\"Ready\")].status} {end}",
            ]))?;
            Ok(names.iter().all(|name| conditions.split(' ').any(|word| word == format!("{name}=True"))))
        })
        .with_context(|| format!("the logs are in {}/n*/log", self.state.display()))
    }

    fn write_script(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.state.join(name);
        fs::write(&path, content)?;
        Ok(path)
    }

    fn node_folder(&self, node: u32) -> PathBuf {
        self.state.join(format!("n{node}"))
    }

    fn node_runs(&self, node: u32) -> bool {
        self.node_init(node).is_ok_and(process::runs)
    }

    fn node_init(&self, node: u32) -> Result<u32> {
        let pid = fs::read_to_string(self.node_folder(node).join("pid"))
            .with_context(|| format!("the rig has no node n{node}; its nodes are {:?}", self.nodes()))?;
        Ok(pid.parse()?)
    }

    /// The pid of the rig's first process, if it runs and is not another process with a pid used again.
    fn control_plane(&self) -> Result<u32> {
        let down = || format!("rig {:?} is not up; start it with `cargo xtask rig up`", self.name);
        let pid: u32 = fs::read_to_string(self.state.join("pid")).with_context(down)?.parse()?;
        let namespace = fs::read_link(format!("/proc/{pid}/ns/net")).with_context(down)?;
        if namespace != self.recorded_namespace().with_context(down)? {
            bail!(down());
        }
        Ok(pid)
    }

    /// The rig's network namespace, unless the machine was started anew since: its number may be another's by now.
    fn recorded_namespace(&self) -> Result<PathBuf> {
        let recorded = fs::read_to_string(self.state.join(NAMESPACE_FILE))?;
        match recorded.split_once('\n') {
            Some((boot, namespace)) if boot == boot_id()? => Ok(namespace.into()),
            _ => bail!("the machine was started anew since the rig"),
        }
    }

    fn path(&self) -> std::ffi::OsString {
        let old = env::var_os("PATH").unwrap_or_default();
        let mut folders = vec![self.state.join("bin")];
        folders.extend(env::split_paths(&old));
        env::join_paths(folders).expect("the folders come from a PATH")
    }
}

fn boot_id() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The first child that `pid` starts.
fn first_child(pid: u32) -> Result<u32> {
    let mut child = None;
    process::wait_until("a namespace's first process has started", Duration::from_secs(10), || {
        child = process::descendants(pid).first().copied();
        Ok(child.is_some())
    })?;
    child.context("the loop above ends with a child")
}

/// The machine's processes in a network namespace, and their descendants in namespaces of their own.
fn processes_in_network(namespace: &Path) -> Vec<u32> {
    let Ok(folder) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<u32> = folder
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link == namespace))
        .collect();
    let below: Vec<u32> = found.iter().flat_map(|pid| process::descendants(*pid)).collect();
    found.extend(below);
    found
}
