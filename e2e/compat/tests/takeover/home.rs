//! One node's data directories, and the brokers that take turns on them.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use gregor_apache::{Broker, Jars, java_tool};
use gregor_compat::{FEATURES_BEYOND_US, Gregor, program};

const CLUSTER_ID: &str = "4L6g3nShT-eMCtK--X86sw";
const RELEASE_VERSION: &str = "4.3-IV0";
/// A controller takes a killed broker back once its session is over.
const SESSION_MS: u32 = 2_000;
/// A broker forgets a producer at a start, or some minutes later, once its records are so old. The driver's are days old.
const PRODUCER_EXPIRATION_MS: i64 = 20 * 24 * 3_600_000;
/// An Apache broker begins to write its checkpoints 30 s after its start, unless told so, and looks every 10 s for transactions
/// whose time is over.
const OF_APACHE: &str =
    "log.initial.task.delay.ms=100\ntransaction.abort.timed.out.transaction.cleanup.interval.ms=3000\n";
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(30);

/// How a home is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Whether voters live in the log (KIP-853), or in the configuration as before.
    pub dynamic_quorum: bool,
    /// Whether the metadata log lies in the second directory.
    pub metadata_in_second: bool,
    /// Whether Gregor formats it, or Apache's StorageTool.
    pub formatted_by_gregor: bool,
}

/// Two log directories and the files that start a broker on them. Removed when dropped.
pub struct Home {
    folder: tempfile::TempDir,
    client_port: u16,
    controller_port: u16,
}

/// A broker that runs.
pub enum Running {
    /// The real one.
    Apache(Broker),
    /// Ours.
    Gregor(Gregor),
}

impl Home {
    /// Picks ports, which stay the same, and formats the directories.
    pub fn new(jars: &Jars, layout: Layout) -> Result<Self> {
        let mut folder = tempfile::Builder::new().prefix("gregor-takeover-").tempdir()?;
        if std::env::var_os("GREGOR_COMPAT_KEEP").is_some() {
            folder.disable_cleanup(true);
            println!("everything stays in {}", folder.path().display());
        }
        let listener = || TcpListener::bind("127.0.0.1:0");
        let (client, controller) = (listener()?, listener()?);
        let (client_port, controller_port) = (client.local_addr()?.port(), controller.local_addr()?.port());
        let home = Self { folder, client_port, controller_port };
        let quorum = if layout.dynamic_quorum { "bootstrap.servers=" } else { "voters=1@" };
        let [first, second] = home.directories();
        let metadata = if layout.metadata_in_second { &second } else { &first };
        let common = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.{quorum}127.0.0.1:{controller_port}\n\
             listeners=PLAINTEXT://127.0.0.1:{client_port},CONTROLLER://127.0.0.1:{controller_port}\n\
             controller.listener.names=CONTROLLER\nlog.dirs={},{}\nmetadata.log.dir={}\n\
             auto.create.topics.enable=false\nlog.retention.ms=-1\ngroup.initial.rebalance.delay.ms=0\n\
             offsets.topic.replication.factor=1\noffsets.topic.num.partitions=3\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=3\nlog.cleaner.backoff.ms=50\n\
             broker.session.timeout.ms={SESSION_MS}\nbroker.heartbeat.interval.ms=200\nproducer.id.expiration.ms={PRODUCER_EXPIRATION_MS}\n\
             log.flush.start.offset.checkpoint.interval.ms=100\n",
            first.display(),
            second.display(),
            metadata.display()
        );
        fs::write(home.properties("gregor"), &common)?;
        fs::write(home.properties("apache"), format!("{common}{OF_APACHE}"))?;
        home.format(jars, layout)?;
        Ok(home)
    }

    fn format(&self, jars: &Jars, layout: Layout) -> Result<()> {
        let standalone: &[&str] = if layout.dynamic_quorum { &["--standalone"] } else { &[] };
        let mut command = if layout.formatted_by_gregor {
            let mut command = Command::new(program()?);
            command.args(["storage", "format", "--cluster-id", CLUSTER_ID, "--config"]).arg(self.properties("gregor"));
            command
        } else {
            let properties = self.properties("apache");
            let properties = properties.to_str().context("a path that is text")?;
            let mut command =
                java_tool(jars, "kafka.tools.StorageTool", &["format", "-t", CLUSTER_ID, "-c", properties])?;
            command.args(["--release-version", RELEASE_VERSION]);
            command
                .args(FEATURES_BEYOND_US.iter().flat_map(|feature| ["--feature".to_owned(), format!("{feature}=0")]));
            command
        };
        let output = command.args(standalone).output()?;
        ensure!(output.status.success(), "formatting failed:\n{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The folder of everything.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where clients connect, whoever serves.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// The log directories.
    pub fn directories(&self) -> [PathBuf; 2] {
        ["first", "second"].map(|name| self.path().join(name))
    }

    fn properties(&self, of: &str) -> PathBuf {
        self.path().join(format!("{of}.properties"))
    }

    /// Starts an Apache broker of a release.
    pub fn start_apache(&self, jars: &Jars) -> Result<Running> {
        let controller = format!("127.0.0.1:{}", self.controller_port);
        let output = self.path().join("apache.log");
        Ok(Running::Apache(Broker::start_on(jars, &self.properties("apache"), &self.bootstrap(), &controller, output)?))
    }

    /// Starts ours.
    pub fn start_gregor(&self) -> Result<Running> {
        Ok(Running::Gregor(Gregor::start_with(&self.properties("gregor"), &self.path().join("gregor"))?))
    }

    /// The folders of partitions, by name.
    pub fn partitions(&self) -> Result<BTreeMap<String, PathBuf>> {
        let mut found = BTreeMap::new();
        for directory in self.directories() {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let is_partition = !name.ends_with("-delete") && !name.ends_with("-stray");
                if entry.file_type()?.is_dir() && is_partition {
                    found.insert(name, entry.path());
                }
            }
        }
        Ok(found)
    }

    /// Waits until a kill would not undo a deletion of records: their start is in a checkpoint, or is where a segment begins.
    pub fn wait_for_start_offsets(&self, starts: &BTreeMap<String, i64>) -> Result<()> {
        let deadline = Instant::now() + CHECKPOINT_DEADLINE;
        loop {
            let mut written = BTreeMap::new();
            for directory in self.directories() {
                let text = fs::read_to_string(directory.join("log-start-offset-checkpoint")).unwrap_or_default();
                for line in text.lines().skip(2) {
                    if let [topic, partition, offset] = line.split(' ').collect::<Vec<_>>()[..] {
                        written.insert(format!("{topic}-{partition}"), offset.parse::<i64>()?);
                    }
                }
            }
            let folders = self.partitions()?;
            let missing = starts.iter().find(|(name, start)| {
                let first = folders.get(*name).and_then(|folder| first_segment(folder));
                first != Some(**start) && written.get(*name) != Some(start)
            });
            let Some((name, start)) = missing else { return Ok(()) };
            ensure!(Instant::now() < deadline, "no checkpoint says that {name} begins at {start}: {written:?}");
            sleep(Duration::from_millis(20));
        }
    }
}

impl Running {
    /// What the driver calls it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Apache(_) => "apache",
            Self::Gregor(_) => "gregor",
        }
    }

    /// Asks it to stop, and waits.
    pub fn stop(self) -> Result<()> {
        match self {
            Self::Apache(broker) => broker.stop(),
            Self::Gregor(broker) => broker.stop(),
        }
    }

    /// Ends it as a crash would.
    pub fn kill(self) -> Result<()> {
        match self {
            Self::Apache(broker) => broker.kill(),
            Self::Gregor(broker) => broker.kill(),
        }
    }

    /// The end of its log.
    pub fn story(&self, what: &str) -> String {
        match self {
            Self::Apache(broker) => broker.story(what),
            Self::Gregor(broker) => broker.story(what),
        }
    }
}

fn first_segment(folder: &Path) -> Option<i64> {
    let names = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.strip_suffix(".log")?.parse().ok()).min()
}
