//! A quorum that is known by a name alone, whose address changes: whoever asks it looks the name up anew for each connection.
//!
//! The name stands in a file of hosts that only the programs of this test see, in a mount namespace of their own. That needs root;
//! elsewhere the test says that it was skipped.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use gregor_client::{Client, ClientError, ClientOptions, NewTopic, types::ErrorCode};
use support::fleet::DEADLINE;

const GREGOR: &str = env!("CARGO_BIN_EXE_gregor");
const CLUSTER: &str = "4L6g3nShT-eMCtK--X86sw";
const NAME: &str = "quorum.gregor.test";

/// Addresses of loopback that nobody else uses while this process runs.
fn address(last: u8) -> Ipv4Addr {
    let process = std::process::id();
    let (second, third) = (1 + process % 250, process / 250 % 250);
    Ipv4Addr::new(127, second as u8, third as u8, last)
}

struct Node {
    folder: PathBuf,
    child: Child,
}

impl Node {
    /// Starts a node that sees `hosts` in place of the machine's own.
    fn start(folder: &Path, hosts: &Path) -> Self {
        let log = File::options().create(true).append(true).open(folder.join("log")).unwrap();
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .args(["mount --bind \"$0\" /etc/hosts && exec \"$1\" broker --config \"$2\""])
            .arg(hosts)
            .arg(GREGOR)
            .arg(folder.join("properties"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { folder: folder.to_owned(), child }
    }

    /// Waits until the node says that it serves, or ends.
    fn serves(&mut self) {
        let mut line = String::new();
        BufReader::new(self.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("Listening: "), "{line:?}\n{}", self.story());
    }

    fn story(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn format(folder: &Path, properties: &str, beginning: &str) {
    fs::create_dir_all(folder).unwrap();
    let path = folder.join("properties");
    fs::write(&path, format!("{properties}log.dirs={}\n", folder.join("data").display())).unwrap();
    let done =
        Command::new(GREGOR).args(["storage", "format", "-t", CLUSTER, beginning, "-c"]).arg(path).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// A controller that listens at one address, and is known by the name.
fn controller(at: Ipv4Addr) -> String {
    format!(
        "node.id=1\nprocess.roles=controller\ncontroller.listener.names=CONTROLLER\nlisteners=CONTROLLER://{at}:19093\n\
         advertised.listeners=CONTROLLER://{NAME}:19093\ncontroller.quorum.bootstrap.servers={NAME}:19093\n"
    )
}

/// Writes the file in place: what is mounted elsewhere is this file, not its name.
fn name_is_at(hosts: &Path, at: Ipv4Addr) {
    fs::write(hosts, format!("{at} {NAME}\n")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quorum_is_found_again_by_its_name_when_the_address_behind_it_changes() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mount namespaces need root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (hosts, one, two) = (folder.path().join("hosts"), folder.path().join("one"), folder.path().join("two"));
    let (nobody, first, second, broker) = (address(1), address(2), address(3), address(4));
    format(&one, &controller(first), "--standalone");
    let properties = format!(
        "node.id=2\nprocess.roles=broker\ncontroller.listener.names=CONTROLLER\nlisteners=PLAINTEXT://{broker}:19092\n\
         controller.quorum.bootstrap.servers={NAME}:19093\ncontroller.quorum.fetch.timeout.ms=1000\n"
    );
    format(&two, &properties, "--no-initial-controllers");

    // The broker asks first where no controller is.
    name_is_at(&hosts, nobody);
    let wrong = TcpListener::bind((nobody, 19093)).unwrap();
    let quorum = Node::start(&one, &hosts);
    let mut node = Node::start(&two, &hosts);
    let asked = tokio::task::spawn_blocking(move || wrong.accept().map(drop));
    tokio::time::timeout(DEADLINE, asked).await.unwrap().unwrap().unwrap();
    name_is_at(&hosts, first);
    let node = tokio::task::spawn_blocking(move || {
        node.serves();
        node
    });
    let node = tokio::time::timeout(DEADLINE, node).await.unwrap().unwrap();

    // The controller moves while the broker runs.
    drop(quorum);
    fs::write(one.join("properties"), format!("{}log.dirs={}\n", controller(second), one.join("data").display()))
        .unwrap();
    name_is_at(&hosts, second);
    let _quorum = Node::start(&one, &hosts);
    let options = ClientOptions::default().with_timeout(Duration::from_secs(5));
    let client = Client::connect(&format!("{broker}:19092"), options).await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = client.admin().create_topic(NewTopic::new("moved").partitions(1).replication_factor(1)).await
    {
        // An earlier try was decided, and its answer lost.
        if matches!(&error, ClientError::Broker(broker) if broker.code == ErrorCode::TopicAlreadyExists) {
            break;
        }
        assert!(Instant::now() < deadline, "the broker does not find the controller: {error}\n{}", node.story());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
