//! Three nodes of a cluster, each a process of its own that tests start, kill, hold and stop.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use gregor_client::{Client, ClientOptions};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::oneshot;

use super::network::{self, Network};

/// Nodes 1 to 3, each a broker and a voter.
pub const NODES: usize = 3;
/// Longer than anything here takes on a busy machine.
pub const DEADLINE: Duration = Duration::from_mins(2);

/// Has the files of a test that fails be kept.
const KEEP: &str = "GREGOR_CHAOS_KEEP";
const GREGOR: &str = env!("CARGO_BIN_EXE_gregor");

/// The processes, killed when the test ends, however it does.
pub struct Fleet {
    folder: tempfile::TempDir,
    cluster: String,
    hosts: [String; NODES],
    nodes: [Option<Process>; NODES],
    /// What lies between them, if that is a test's own.
    network: Option<Network>,
}

struct Process {
    child: Child,
    /// The first line that it wrote, which it does once it serves.
    first: Option<oneshot::Receiver<String>>,
}

/// What a process takes at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory that is resident, in KiB.
    pub memory_kib: u64,
    /// Open files, sockets among them.
    pub files: usize,
}

/// Loopback has many addresses: nobody else uses these while this process runs.
fn loopback(node: usize) -> String {
    let process = std::process::id() as usize;
    format!("127.{}.250.{}", 1 + process % 250, 10 * (process / 250 % 20) + node)
}

fn gregor(arguments: &[&str]) -> String {
    let done = Command::new(GREGOR).args(arguments).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

fn properties(folder: &Path, hosts: &[String; NODES], node: usize) -> String {
    let servers: Vec<_> = hosts.iter().map(|host| format!("{host}:19093")).collect();
    let (host, data) = (&hosts[node - 1], folder.join(format!("node-{node}")));
    format!(
        "node.id={node}\nprocess.roles=broker,controller\ncontroller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://{host}:19092,CONTROLLER://{host}:19093\nlog.dirs={}\n\
         controller.quorum.bootstrap.servers={}\ncontroller.quorum.election.timeout.ms=500\n\
         controller.quorum.fetch.timeout.ms=1000\nbroker.session.timeout.ms=2000\nbroker.heartbeat.interval.ms=300\n\
         replica.socket.timeout.ms=5000\nreplica.lag.time.max.ms=4000\noffsets.topic.num.partitions=3\n\
         default.replication.factor=3\nmin.insync.replicas=2\ncontroller.quorum.auto.join.enable=true\n",
        data.display(),
        servers.join(",")
    )
}

impl Fleet {
    /// A formatted cluster, of which nothing runs, on addresses of loopback.
    pub fn format() -> Self {
        Self::format_on(None)
    }

    /// The same, on a network of its own where one is given.
    pub fn format_on(network: Option<Network>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = |node| if network.is_some() { network::address(node) } else { loopback(node) };
        let hosts = [host(1), host(2), host(3)];
        let cluster = gregor(&["storage", "random-uuid"]);
        let voter = |node: usize| format!("{node}@{}:19093:{}", hosts[node - 1], gregor(&["storage", "random-uuid"]));
        let voters: Vec<_> = (1..=NODES).map(voter).collect();
        let voters = voters.join(",");
        for node in 1..=NODES {
            let path = folder.path().join(format!("node-{node}.properties"));
            fs::write(&path, properties(folder.path(), &hosts, node)).unwrap();
            let path = path.to_str().unwrap();
            gregor(&["storage", "format", "-c", path, "-t", &cluster, "--initial-controllers", &voters]);
        }
        Self { folder, cluster, hosts, nodes: [const { None }; NODES], network }
    }

    /// Gives a node that does not run an empty disk in place of its own. It joins the voters anew by itself when it is started.
    pub fn wipe(&self, node: usize) {
        fs::remove_dir_all(self.directory(node)).unwrap();
        let path = self.folder.path().join(format!("node-{node}.properties"));
        let path = path.to_str().unwrap();
        gregor(&["storage", "format", "-c", path, "-t", &self.cluster, "--no-initial-controllers"]);
    }

    /// Waits until a node votes with the disk that it has now.
    pub async fn votes(&self, node: usize, client: &Client) {
        let meta = fs::read_to_string(self.directory(node).join("meta.properties")).unwrap();
        let disk = meta.lines().find_map(|line| line.strip_prefix("directory.id=")).unwrap();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let seen = client.admin().describe_quorum().await;
            if let Ok(quorum) = &seen
                && quorum.voters.len() == NODES
                && quorum.voters.iter().any(|voter| voter.directory.to_string() == disk)
            {
                return;
            }
            let late = Instant::now() > deadline;
            assert!(!late, "node {node} does not vote with its disk {disk}: {seen:?}\n{}", self.story());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts a node that does not run, and does not wait until it serves.
    pub fn start(&mut self, node: usize) {
        let path = |end: &str| self.folder.path().join(format!("node-{node}.{end}"));
        let log = fs::OpenOptions::new().create(true).append(true).open(path("log")).unwrap();
        let mut command = Command::new(GREGOR);
        command.args(["broker", "--config"]).arg(path("properties"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = match &self.network {
            Some(network) => network.at(node, || command.spawn().unwrap()),
            None => command.spawn().unwrap(),
        };
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let (said, first) = oneshot::channel();
        // Ends with the process.
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = output.read_line(&mut line);
            let _ = said.send(line);
            let _ = output.read_to_end(&mut Vec::new());
        });
        let process = Process { child, first: Some(first) };
        assert!(self.nodes[node - 1].replace(process).is_none(), "node {node} runs already");
    }

    /// Waits until each node that was started serves.
    pub async fn serving(&mut self) {
        for node in 1..=NODES {
            let Some(first) = self.nodes[node - 1].as_mut().and_then(|process| process.first.take()) else { continue };
            let line = tokio::time::timeout(DEADLINE, first).await.ok().and_then(Result::ok).unwrap_or_default();
            assert!(line.starts_with("Listening: "), "node {node} does not serve: {line:?}\n{}", self.story());
        }
    }

    /// Starts all nodes that do not run, and waits until each serves.
    pub async fn start_all(&mut self) {
        self.start_missing();
        self.serving().await;
    }

    /// Starts all nodes that do not run, and does not wait until they serve.
    pub fn start_missing(&mut self) {
        for node in 1..=NODES {
            if self.nodes[node - 1].is_none() {
                self.start(node);
            }
        }
    }

    /// Ends a node without a chance to write anything more.
    pub fn kill(&mut self, node: usize) {
        self.signal(node, Signal::KILL);
        self.reap(node);
    }

    /// Ends all nodes that run like that, at once.
    pub fn kill_all(&mut self) {
        let running: Vec<_> = (1..=NODES).filter(|node| self.nodes[node - 1].is_some()).collect();
        for node in &running {
            self.signal(*node, Signal::KILL);
        }
        for node in running {
            self.reap(node);
        }
    }

    /// Has a node do nothing until it is resumed: it neither reads nor answers, and its connections stay.
    pub fn hold(&mut self, node: usize) {
        self.signal(node, Signal::STOP);
    }

    /// Lets a node that is held go on.
    pub fn resume(&mut self, node: usize) {
        self.signal(node, Signal::CONT);
    }

    /// Has a node stop as it should, and waits until it has.
    pub async fn stop(&mut self, node: usize) {
        self.signal(node, Signal::TERM);
        self.stopped(node).await;
    }

    /// Has all nodes stop as they should, at once. The last of them finds no majority to leave properly.
    pub async fn stop_all(&mut self) {
        for node in 1..=NODES {
            self.signal(node, Signal::TERM);
        }
        for node in 1..=NODES {
            self.stopped(node).await;
        }
    }

    async fn stopped(&mut self, node: usize) {
        let deadline = Instant::now() + DEADLINE;
        let mut process = self.nodes[node - 1].take().unwrap();
        let status = loop {
            match process.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(10)).await,
                None => {
                    process.child.kill().unwrap();
                    panic!("node {node} does not stop\n{}", self.story());
                }
            }
        };
        assert!(status.success(), "node {node} stopped with {status}\n{}", self.story());
    }

    /// A client that may ask any of the nodes first.
    pub async fn client(&self, options: ClientOptions) -> Client {
        let servers: Vec<_> = self.hosts.iter().map(|host| format!("{host}:19092")).collect();
        Client::connect(&servers.join(","), options).await.unwrap()
    }

    /// The network between the nodes, if it is the test's own.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// What each node takes that runs.
    pub fn usage(&self) -> [Option<Usage>; NODES] {
        std::array::from_fn(|at| {
            let process = format!("/proc/{}", self.nodes[at].as_ref()?.child.id());
            let status = fs::read_to_string(format!("{process}/status")).ok()?;
            let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            let memory_kib = memory.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(Usage { memory_kib, files: fs::read_dir(format!("{process}/fd")).ok()?.count() })
        })
    }

    /// Where a node has its logs.
    pub fn directory(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("node-{node}"))
    }

    /// The ends of what the nodes wrote.
    pub fn story(&self) -> String {
        let end = |node: usize| {
            let log = fs::read_to_string(self.folder.path().join(format!("node-{node}.log"))).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            format!("node {node}:\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        (1..=NODES).map(end).collect()
    }

    /// A node that has ended by itself is a failure of the test, whatever comes next.
    fn signal(&mut self, node: usize, signal: Signal) {
        let process = self.nodes[node - 1].as_mut().unwrap_or_else(|| panic!("node {node} does not run"));
        if let Some(status) = process.child.try_wait().unwrap() {
            panic!("node {node} has ended: {status}\n{}", self.story());
        }
        kill_process(Pid::from_child(&process.child), signal).unwrap();
    }

    fn reap(&mut self, node: usize) {
        if let Some(mut process) = self.nodes[node - 1].take() {
            process.child.wait().unwrap();
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for process in self.nodes.iter_mut().flatten() {
            // Also one that is held; one that has ended is what the test told of.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
        if std::thread::panicking() && std::env::var_os(KEEP).is_some() {
            self.folder.disable_cleanup(true);
            eprintln!("the nodes' files and logs are kept in {}", self.folder.path().display());
        }
    }
}
