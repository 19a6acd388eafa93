//! A real Apache broker: one combined node, formatted, started and stopped.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{Jars, java_tool};

/// How long a node may take until its listener answers.
const START_LIMIT: Duration = Duration::from_mins(2);
/// How long a node may take to stop when asked.
const STOP_LIMIT: Duration = Duration::from_mins(1);

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// The folder for `server.properties`, data and output; it is the caller's to delete.
    pub folder: PathBuf,
    /// The cluster's id, as 22 characters of URL-safe Base64.
    pub cluster_id: String,
    /// The JVM's heap, such as `512M`.
    pub heap: String,
    /// Further lines of `server.properties`; they win over the ones that are set here.
    pub properties: Vec<(String, String)>,
    /// The release version to format for, such as `4.3`; none means the jars' own.
    pub release_version: Option<String>,
    /// A data directory that exists already: it is not formatted.
    pub keep_data: bool,
}

impl BrokerConfig {
    /// A node with everything below one folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            cluster_id: "4L6g3nShT-eMCtK--X86sw".to_owned(),
            heap: "512M".to_owned(),
            properties: Vec::new(),
            release_version: None,
            keep_data: false,
        }
    }

    /// The log directory.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }
}

/// A running node; dropped, it is killed.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    /// Where clients connect.
    pub bootstrap: String,
    /// Where controllers connect.
    pub controller: String,
    output: PathBuf,
}

impl Broker {
    /// Formats the data directory, starts the node and waits until its listener answers.
    pub fn start(jars: &Jars, config: &BrokerConfig) -> Result<Self> {
        fs::create_dir_all(&config.folder)?;
        let (client_port, controller_port) = free_ports()?;
        let properties = config.folder.join("server.properties");
        fs::write(&properties, server_properties(config, client_port, controller_port))?;
        if !config.keep_data {
            format(jars, config, &properties)?;
        }
        let heap = &config.heap;
        let flags = [&*format!("-Xmx{heap}"), &*format!("-Xms{heap}"), "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"]
            .map(str::to_owned);
        let bootstrap = format!("127.0.0.1:{client_port}");
        let controller = format!("127.0.0.1:{controller_port}");
        let output = config.folder.join("output.log");
        let mut broker = Self::launch(jars, &properties, &flags, bootstrap, controller, output)?;
        broker.wait_until_it_answers()?;
        Ok(broker)
    }

    /// Starts a node on a `server.properties` and on data that are there already, and waits until its listener answers. The
    /// JVM is told to start fast rather than to run fast.
    pub fn start_on(
        jars: &Jars,
        properties: &Path,
        bootstrap: &str,
        controller: &str,
        output: PathBuf,
    ) -> Result<Self> {
        let mut broker = Self::launch_on(jars, properties, bootstrap, controller, output)?;
        broker.wait_until_it_answers()?;
        Ok(broker)
    }

    /// The same without waiting: one node of several may need the others before it answers at `bootstrap`, which for a node
    /// that is a controller only is where its controller listens. What it says is added to the output.
    pub fn launch_on(
        jars: &Jars,
        properties: &Path,
        bootstrap: &str,
        controller: &str,
        output: PathBuf,
    ) -> Result<Self> {
        let flags = ["-Xmx512M", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"].map(str::to_owned);
        Self::launch(jars, properties, &flags, bootstrap.to_owned(), controller.to_owned(), output)
    }

    fn launch(
        jars: &Jars,
        properties: &Path,
        flags: &[String],
        bootstrap: String,
        controller: String,
        output: PathBuf,
    ) -> Result<Self> {
        let log = fs::File::options().create(true).append(true).open(&output)?;
        let child = Command::new("java")
            .args(flags)
            .arg("-Djava.awt.headless=true")
            .arg(format!("-Dlog4j2.configurationFile={}", jars.log_configuration()?.display()))
            .arg("-cp")
            .arg(jars.class_path())
            .arg("kafka.Kafka")
            .arg(properties)
            .current_dir(properties.parent().context("a server.properties in a folder")?)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("running `java`")?;
        Ok(Self { child, bootstrap, controller, output })
    }

    /// What happened, with the end of the node's log: for a failing test to print.
    pub fn story(&self, what: &str) -> String {
        format!("Apache Kafka {what}; the end of its log:\n{}", tail(&self.output))
    }

    /// Whether it has not ended by itself: a controller that meets what it does not understand halts.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// The JVM's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the node to stop as an operator would, and waits until it has: a clean shutdown.
    pub fn stop(mut self) -> Result<()> {
        let status = Command::new("kill").arg(self.pid().to_string()).status()?;
        ensure!(status.success(), "the node with process id {} is gone already", self.pid());
        let deadline = Instant::now() + STOP_LIMIT;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the Apache node did not stop within {STOP_LIMIT:?}");
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends the node as a crash would.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until its listener answers.
    pub fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the Apache node ended with {status}:\n{}", tail(&self.output));
            }
            if TcpStream::connect(&self.bootstrap).is_ok() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "no answer within {START_LIMIT:?}:\n{}", tail(&self.output));
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Already stopped, or about to be: there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn format(jars: &Jars, config: &BrokerConfig, properties: &Path) -> Result<()> {
    let properties = properties.to_string_lossy();
    let mut arguments = vec!["format", "-t", &config.cluster_id, "-c", &properties];
    if let Some(release) = &config.release_version {
        arguments.extend(["--release-version", release]);
    }
    let output = java_tool(jars, "kafka.tools.StorageTool", &arguments)?.output()?;
    ensure!(output.status.success(), "StorageTool format failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn server_properties(config: &BrokerConfig, client_port: u16, controller_port: u16) -> String {
    let mut lines = vec![
        ("process.roles", "broker,controller".to_owned()),
        ("node.id", "1".to_owned()),
        ("controller.quorum.voters", format!("1@127.0.0.1:{controller_port}")),
        ("listeners", format!("PLAINTEXT://127.0.0.1:{client_port},CONTROLLER://127.0.0.1:{controller_port}")),
        ("advertised.listeners", format!("PLAINTEXT://127.0.0.1:{client_port}")),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned()),
        ("controller.listener.names", "CONTROLLER".to_owned()),
        ("log.dirs", config.data().display().to_string()),
        ("offsets.topic.replication.factor", "1".to_owned()),
        ("offsets.topic.num.partitions", "5".to_owned()),
        ("transaction.state.log.replication.factor", "1".to_owned()),
        ("transaction.state.log.min.isr", "1".to_owned()),
        ("transaction.state.log.num.partitions", "5".to_owned()),
        ("share.coordinator.state.topic.replication.factor", "1".to_owned()),
        ("share.coordinator.state.topic.min.isr", "1".to_owned()),
        ("share.coordinator.state.topic.num.partitions", "5".to_owned()),
        ("group.initial.rebalance.delay.ms", "0".to_owned()),
    ];
    lines.retain(|(key, _)| !config.properties.iter().any(|(own, _)| own == key));
    let own = config.properties.iter().map(|(key, value)| (key.as_str(), value.clone()));
    let lines: Vec<String> = lines.into_iter().chain(own).map(|(key, value)| format!("{key}={value}")).collect();
    lines.join("\n") + "\n"
}

/// Two ports that nobody has at the moment.
fn free_ports() -> Result<(u16, u16)> {
    let (first, second) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok((first.local_addr()?.port(), second.local_addr()?.port()))
}

fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
