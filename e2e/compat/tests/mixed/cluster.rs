//! Nodes of both kinds that are one cluster: formatted, started, stopped, killed, and started as the other kind on the same directory.
//!
//! Every node has a loopback address and a folder of its own, and keeps both. Dropped, all of it is killed and removed.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use gregor_apache::{Broker, Jars, Loopback, java_tool};
use gregor_compat::{FEATURES_BEYOND_US, Gregor, program};

/// The id of all of them.
pub const CLUSTER_ID: &str = "4L6g3nShT-eMCtK--X86sw";
const CLIENT_PORT: u16 = 9_092;
const CONTROLLER_PORT: u16 = 9_093;
/// How long a node of ours may take until it serves, on a machine that starts Java beside it.
const START_LIMIT: Duration = Duration::from_mins(2);
/// Sessions that end soon, so that a kill is noticed, and not so soon that a busy machine looks like a dead one. A snapshot of each
/// change of the metadata, so that all nodes have some of the same offsets. Files that are cleaned and checkpointed often.
const COMMON: &str = "controller.listener.names=CONTROLLER\n\
     listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
     auto.create.topics.enable=false\nlog.retention.ms=-1\ndefault.replication.factor=3\nmin.insync.replicas=2\n\
     offsets.topic.num.partitions=3\ngroup.initial.rebalance.delay.ms=0\n\
     transaction.state.log.replication.factor=3\ntransaction.state.log.min.isr=2\ntransaction.state.log.num.partitions=3\n\
     broker.session.timeout.ms=5000\nbroker.heartbeat.interval.ms=500\ncontroller.quorum.fetch.timeout.ms=3000\n\
     metadata.log.max.record.bytes.between.snapshots=1\nlog.cleaner.backoff.ms=200\n\
     replica.high.watermark.checkpoint.interval.ms=200\nlog.flush.start.offset.checkpoint.interval.ms=200\n";
/// An Apache broker begins to write its checkpoints 30 s after its start, unless told so.
const OF_APACHE: &str = "log.initial.task.delay.ms=100\n";

/// Whose program a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The real one.
    Apache,
    /// Ours.
    Gregor,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It votes, and nothing else.
    Controller,
    /// It has partitions, and nothing else.
    Broker,
    /// Both.
    Both,
}

/// How the quorum comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quorum {
    /// Its voters stand in everybody's configuration.
    Static,
    /// Its voters stand in the log, all of them from the beginning (KIP-853).
    Dynamic,
    /// So do they, but the first controller begins alone, and the others make themselves voters.
    Joined,
}

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The nodes, from number 1 on; three of them vote at most.
    pub nodes: Vec<(Role, Kind)>,
    /// Their quorum.
    pub quorum: Quorum,
    /// Apache's nodes.
    pub jars: Jars,
    /// What all are formatted for.
    pub release: &'static str,
}

/// A node.
struct Node {
    role: Role,
    kind: Kind,
    running: Option<Running>,
}

enum Running {
    Apache(Broker),
    Gregor(Gregor),
}

/// The cluster.
pub struct Cluster {
    // Dropped before the folder: they would write into it while it is removed.
    nodes: Vec<Node>,
    folder: tempfile::TempDir,
    network: Loopback,
    jars: Jars,
    quorum: Quorum,
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Apache => "Apache",
            Self::Gregor => "Gregor",
        })
    }
}

impl Kind {
    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Apache => Self::Gregor,
            Self::Gregor => Self::Apache,
        }
    }
}

impl Role {
    const fn votes(self) -> bool {
        matches!(self, Self::Controller | Self::Both)
    }

    const fn has_partitions(self) -> bool {
        matches!(self, Self::Broker | Self::Both)
    }
}

impl Cluster {
    /// Formats every node by the tool of its own kind; none of them runs.
    pub fn new(plan: Plan) -> Result<Self> {
        let mut folder = tempfile::Builder::new().prefix("gregor-mixed-").tempdir()?;
        if std::env::var_os("GREGOR_COMPAT_KEEP").is_some() {
            folder.disable_cleanup(true);
            println!("everything stays in {}", folder.path().display());
        }
        let node = |(role, kind)| Node { role, kind, running: None };
        let nodes = plan.nodes.into_iter().map(node).collect();
        let cluster = Self { nodes, folder, network: Loopback::new(), jars: plan.jars, quorum: plan.quorum };
        for id in cluster.ids() {
            fs::create_dir_all(cluster.home(id))?;
            let properties = cluster.properties(id);
            fs::write(cluster.file(id, Kind::Gregor), &properties)?;
            fs::write(cluster.file(id, Kind::Apache), format!("{properties}{OF_APACHE}"))?;
            cluster.format(id, plan.release)?;
        }
        Ok(cluster)
    }

    /// All nodes' numbers.
    pub fn ids(&self) -> Vec<u8> {
        (1..=self.nodes.len() as u8).collect()
    }

    /// Those of the nodes that vote, or are to.
    pub fn voters(&self) -> Vec<u8> {
        self.ids().into_iter().filter(|id| self.node(*id).role.votes()).collect()
    }

    /// Those of the nodes that have partitions.
    pub fn brokers(&self) -> Vec<u8> {
        self.ids().into_iter().filter(|id| self.node(*id).role.has_partitions()).collect()
    }

    /// Whose program a node runs.
    pub fn kind(&self, id: u8) -> Kind {
        self.node(id).kind
    }

    /// Where everything lies.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A node's log directory.
    pub fn data(&self, id: u8) -> PathBuf {
        self.home(id).join("data")
    }

    /// Where clients connect.
    pub fn bootstrap(&self) -> String {
        let addresses = self.brokers().into_iter().map(|id| self.address(id, CLIENT_PORT));
        addresses.collect::<Vec<_>>().join(",")
    }

    /// Where controllers are asked.
    pub fn controllers(&self) -> String {
        let addresses = self.voters().into_iter().map(|id| self.address(id, CONTROLLER_PORT));
        addresses.collect::<Vec<_>>().join(",")
    }

    /// Starts these nodes at the same time, as they may need each other, and waits for all of them.
    pub fn start(&mut self, ids: &[u8]) -> Result<()> {
        for id in ids {
            let running = self.launch(*id)?;
            self.node_mut(*id).running = Some(running);
        }
        for id in ids {
            match self.node_mut(*id).running.as_mut().context("launched above")? {
                Running::Apache(broker) => broker.wait_until_it_answers()?,
                Running::Gregor(broker) => broker.wait_until_it_listens(START_LIMIT)?,
            }
        }
        Ok(())
    }

    /// Asks a node to stop, and waits until it has.
    pub fn stop(&mut self, id: u8) -> Result<()> {
        match self.take(id)? {
            Running::Apache(broker) => broker.stop(),
            Running::Gregor(broker) => broker.stop(),
        }
    }

    /// Holds a node as it is: it keeps its connections and says nothing, until it is told to go on.
    pub fn hold(&self, id: u8) -> Result<()> {
        self.signal(id, "STOP")
    }

    /// Has a node go on that was held.
    pub fn release(&self, id: u8) -> Result<()> {
        self.signal(id, "CONT")
    }

    fn signal(&self, id: u8, signal: &str) -> Result<()> {
        let process = match self.node(id).running.as_ref().with_context(|| format!("node {id} does not run"))? {
            Running::Apache(broker) => broker.pid(),
            Running::Gregor(broker) => broker.process_id(),
        };
        let status = Command::new("kill").args([&format!("-{signal}"), &process.to_string()]).status()?;
        ensure!(status.success(), "could not signal node {id}");
        Ok(())
    }

    /// Ends a node as a crash would.
    pub fn kill(&mut self, id: u8) -> Result<()> {
        match self.take(id)? {
            Running::Apache(broker) => broker.kill(),
            Running::Gregor(broker) => broker.kill(),
        }
    }

    /// Has a node that does not run be of the other kind from now on.
    pub fn turn(&mut self, id: u8) {
        let node = self.node_mut(id);
        assert!(node.running.is_none(), "node {id} runs");
        node.kind = node.kind.other();
    }

    /// Fails if a node has ended by itself: what one kind of controller writes, the other kind has to understand.
    pub fn check_that_all_run(&mut self) -> Result<()> {
        for id in self.ids() {
            let runs = match &mut self.node_mut(id).running {
                Some(Running::Apache(broker)) => broker.is_running()?,
                Some(Running::Gregor(broker)) => broker.is_running()?,
                None => true,
            };
            ensure!(runs, "node {id}, {}, has ended by itself:\n{}", self.kind(id), self.story());
        }
        Ok(())
    }

    /// The ends of the logs of all nodes.
    pub fn story(&self) -> String {
        let of = |id: u8| {
            let node = self.node(id);
            let what = format!("is node {id}, {:?}", node.role);
            match &node.running {
                Some(Running::Apache(broker)) => broker.story(&what),
                Some(Running::Gregor(broker)) => broker.story(&what),
                None => format!("{} {what}, and does not run", node.kind),
            }
        };
        self.ids().into_iter().map(of).collect::<Vec<_>>().join("\n\n")
    }

    fn launch(&self, id: u8) -> Result<Running> {
        let (kind, home) = (self.kind(id), self.home(id));
        let properties = self.file(id, kind);
        Ok(match kind {
            Kind::Gregor => Running::Gregor(Gregor::launch_with(&properties, &home.join("gregor"))?),
            Kind::Apache => {
                let controller = self.address(id, CONTROLLER_PORT);
                let has_partitions = self.node(id).role.has_partitions();
                let first = if has_partitions { self.address(id, CLIENT_PORT) } else { controller.clone() };
                Running::Apache(Broker::launch_on(
                    &self.jars,
                    &properties,
                    &first,
                    &controller,
                    home.join("apache.log"),
                )?)
            }
        })
    }

    fn take(&mut self, id: u8) -> Result<Running> {
        self.node_mut(id).running.take().with_context(|| format!("node {id} does not run"))
    }

    fn node(&self, id: u8) -> &Node {
        &self.nodes[usize::from(id) - 1]
    }

    fn node_mut(&mut self, id: u8) -> &mut Node {
        &mut self.nodes[usize::from(id) - 1]
    }

    fn home(&self, id: u8) -> PathBuf {
        self.folder.path().join(format!("node-{id}"))
    }

    fn file(&self, id: u8, kind: Kind) -> PathBuf {
        self.home(id).join(format!("{kind}.properties"))
    }

    fn address(&self, id: u8, port: u16) -> String {
        format!("{}:{port}", self.network.host(id))
    }

    fn properties(&self, id: u8) -> String {
        let client = format!("PLAINTEXT://{}", self.address(id, CLIENT_PORT));
        let controller = format!("CONTROLLER://{}", self.address(id, CONTROLLER_PORT));
        let (roles, listeners) = match self.node(id).role {
            Role::Controller => ("controller", controller),
            Role::Broker => ("broker", client),
            Role::Both => ("broker,controller", format!("{client},{controller}")),
        };
        let joins = self.quorum == Quorum::Joined && self.node(id).role.votes() && id != self.voters()[0];
        let joins = if joins { "controller.quorum.auto.join.enable=true\n" } else { "" };
        format!(
            "process.roles={roles}\nnode.id={id}\nlisteners={listeners}\nlog.dirs={}\n{}\n{joins}\
             offsets.topic.replication.factor={}\n{COMMON}",
            self.data(id).display(),
            self.quorum_properties(),
            self.brokers().len()
        )
    }

    fn quorum_properties(&self) -> String {
        let voters = self.voters().into_iter().map(|id| (id, self.address(id, CONTROLLER_PORT)));
        let (key, voters): (_, Vec<_>) = match self.quorum {
            Quorum::Static => ("voters", voters.map(|(id, address)| format!("{id}@{address}")).collect()),
            Quorum::Dynamic | Quorum::Joined => ("bootstrap.servers", voters.map(|(_, address)| address).collect()),
        };
        format!("controller.quorum.{key}={}", voters.join(","))
    }

    fn format(&self, id: u8, release: &str) -> Result<()> {
        let node = self.node(id);
        let properties = self.file(id, node.kind);
        let properties = properties.to_str().context("a path that is text")?;
        let initial = self.initial_controllers();
        let is_first = id == self.voters()[0];
        let quorum: Vec<&str> = match self.quorum {
            Quorum::Static => Vec::new(),
            Quorum::Dynamic if node.role.votes() => vec!["--initial-controllers", initial.as_str()],
            Quorum::Joined if is_first => vec!["--standalone"],
            Quorum::Dynamic | Quorum::Joined => vec!["--no-initial-controllers"],
        };
        let mut command = match node.kind {
            Kind::Gregor => {
                let mut command = Command::new(program()?);
                command.args(["storage", "format", "--cluster-id", CLUSTER_ID, "--config", properties]);
                command
            }
            Kind::Apache => {
                let format = ["format", "-t", CLUSTER_ID, "-c", properties];
                let mut command = java_tool(&self.jars, "kafka.tools.StorageTool", &format)?;
                let features = FEATURES_BEYOND_US.iter().map(|feature| format!("{feature}=0"));
                command.args(features.flat_map(|feature| ["--feature".to_owned(), feature]));
                command
            }
        };
        let output = command.args(["--release-version", release]).args(quorum).output()?;
        let (said, also) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        ensure!(output.status.success(), "formatting node {id} for {}: {said}{also}", node.kind);
        Ok(())
    }

    /// The first voters, each with the id of the directory that it is to be formatted with.
    fn initial_controllers(&self) -> String {
        let voter = |id: u8| {
            let letter = char::from(b'a' + id);
            format!("{id}@{}:{letter}J1wnXWNSda2GQ5ekap1FA", self.address(id, CONTROLLER_PORT))
        };
        self.voters().into_iter().map(voter).collect::<Vec<_>>().join(",")
    }
}
