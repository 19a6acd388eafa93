//! The two brokers as processes: the same properties, a folder of their own, stopped by process id.

use std::{
    fmt,
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use gregor_apache::Release;
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};
use tempfile::TempDir;

use crate::{
    account::Account,
    attic::{Attic, sync_disk},
    certificate::Certificate,
    load::{Address, Connection},
};

/// How long a start may take.
const START_DEADLINE: Duration = Duration::from_mins(1);

/// Which broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Ours.
    Gregor,
    /// The real Apache Kafka.
    Apache,
}

/// A broker that can be started and stopped on the same data.
pub struct Broker {
    kind: Kind,
    program: PathBuf,
    folder: TempDir,
    address: Address,
    /// The properties that it had before it was given a TLS listener, while it has one.
    without_tls: Option<String>,
    /// The one processor that it may use.
    processor: Option<usize>,
    running: Option<(Child, Account)>,
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Gregor => "gregor",
            Self::Apache => "apache",
        })
    }
}

impl Kind {
    /// A formatted, running broker with a new folder.
    pub fn prepare(self, gregor: &Path, processor: Option<usize>) -> Result<Broker> {
        let (port, controller) = (free_port()?, free_port()?);
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.listener.names=CONTROLLER\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\nauto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\n",
        );
        let mut broker = self.format(gregor, processor, &properties, Address::plain(format!("127.0.0.1:{port}")))?;
        broker.start()?;
        broker.wait_until_it_answers(START_DEADLINE)?;
        Ok(broker)
    }

    /// A formatted broker with a new folder that does not run yet: all properties but where its logs lie are given.
    pub fn format(self, gregor: &Path, processor: Option<usize>, properties: &str, address: Address) -> Result<Broker> {
        let folder = tempfile::Builder::new().prefix("gregor-bench-").tempdir()?;
        let broker = Broker {
            kind: self,
            program: gregor.to_owned(),
            folder,
            address,
            without_tls: None,
            processor,
            running: None,
        };
        fs::write(broker.properties(), format!("{properties}log.dirs={}\n", broker.data().display()))?;
        broker.format()?;
        Ok(broker)
    }
}

impl Broker {
    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Starts anew with a TLS listener beside the plaintext one, and says where it is.
    pub fn restart_with_tls(&mut self, certificate: &Certificate) -> Result<Address> {
        self.stop()?;
        let before = fs::read_to_string(self.properties())?;
        let socket = format!("127.0.0.1:{}", free_port()?);
        let store = self.folder.path().join("keystore.pem");
        fs::write(&store, certificate.key_store())?;
        let listeners = format!("listeners=SSL://{socket},");
        let properties = before.replacen("listeners=", &listeners, 1)
            + &format!(
                "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SSL:SSL,CONTROLLER:PLAINTEXT\n\
                 inter.broker.listener.name=PLAINTEXT\nssl.keystore.type=PEM\nssl.keystore.location={}\n",
                store.display()
            );
        fs::write(self.properties(), properties)?;
        self.without_tls = Some(before);
        self.start()?;
        self.wait_until_it_answers(START_DEADLINE)?;
        Ok(Address::tls(socket, certificate.trusted()?))
    }

    /// Starts anew without it.
    pub fn restart_without_tls(&mut self) -> Result<()> {
        let Some(properties) = self.without_tls.take() else { return Ok(()) };
        self.stop()?;
        fs::write(self.properties(), properties)?;
        self.start()?;
        self.wait_until_it_answers(START_DEADLINE)
    }

    /// Its log directory.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Whether a process of it is there.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// What the running process costs.
    pub fn account(&self) -> Result<&Account> {
        self.running.as_ref().map(|(_, account)| account).context("the broker is not running")
    }

    /// Starts the process; it may not answer yet.
    pub fn start(&mut self) -> Result<()> {
        let log = File::create(self.folder.path().join("log"))?;
        let mut command = self.command("broker", "kafka.Kafka")?;
        match self.kind {
            Kind::Gregor => command.arg("--config").arg(self.properties()),
            Kind::Apache => command.arg(self.properties()),
        };
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        if let Some(processor) = self.processor {
            pin(Some(child.id()), processor)?;
        }
        let account = Account::open(child.id());
        self.running = Some((child, account));
        Ok(())
    }

    /// Stops the process with SIGTERM and waits for its end.
    pub fn stop(&mut self) -> Result<()> {
        let Some((mut child, account)) = self.running.take() else { return Ok(()) };
        ensure!(Command::new("kill").arg(child.id().to_string()).status()?.success(), "could not signal the broker");
        let deadline = Instant::now() + Duration::from_mins(1);
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("{} did not stop within a minute", self.kind);
            }
            thread::park_timeout(Duration::from_millis(2));
        }
        account.close();
        Ok(())
    }

    /// Stops it for good; what it wrote goes to the attic.
    pub fn retire(mut self, attic: &Attic) -> Result<()> {
        self.stop()?;
        self.put_away(attic)
    }

    /// What a broker that has ended wrote goes to the attic; it is not started again.
    pub fn put_away(&self, attic: &Attic) -> Result<()> {
        attic.keep(self.folder.path())
    }

    /// Waits until the disk has what was written so far: its way there is no part of what is measured next.
    pub fn settle_disk(&self) -> Result<()> {
        sync_disk(self.folder.path())
    }

    /// Ends the process at once, as a crash does.
    pub fn kill(&mut self) -> Result<()> {
        let Some((mut child, account)) = self.running.take() else { return Ok(()) };
        child.kill()?;
        child.wait()?;
        account.close();
        Ok(())
    }

    /// The running process's id.
    pub fn process(&self) -> Result<u32> {
        self.running.as_ref().map(|(child, _)| child.id()).context("the broker is not running")
    }

    /// Waits until it serves.
    pub fn wait_until_it_answers(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while Connection::open(&self.address).and_then(|mut connection| connection.is_ready()).ok() != Some(true) {
            let (child, _) = self.running.as_mut().context("started above")?;
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                bail!("{} does not answer; its log:\n{log}", self.kind);
            }
            thread::park_timeout(Duration::from_millis(5));
        }
        Ok(())
    }

    fn format(&self) -> Result<()> {
        let mut command = match self.kind {
            Kind::Gregor => {
                let mut command = Command::new(&self.program);
                command.args(["storage", "format", "--config"]).arg(self.properties()).arg("--cluster-id");
                command
            }
            Kind::Apache => {
                let mut command = self.command("", "kafka.tools.StorageTool")?;
                command.args(["format", "-c"]).arg(self.properties()).arg("-t");
                command
            }
        };
        let output = command.arg("uZ9tHTWSR9SSAv6t2EZdKw").output()?;
        ensure!(output.status.success(), "formatting failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Apache runs with the heap and the collector of its own start script.
    fn command(&self, ours: &str, main_class: &str) -> Result<Command> {
        match self.kind {
            Kind::Gregor => {
                let mut command = Command::new(&self.program);
                command.arg(ours);
                Ok(command)
            }
            Kind::Apache => {
                let options = "-Xmx1G -Xms1G -server -XX:+UseG1GC -XX:MaxGCPauseMillis=20 \
                               -XX:InitiatingHeapOccupancyPercent=35 -XX:+ExplicitGCInvokesConcurrent -Djava.awt.headless=true";
                let mut command = Command::new("java");
                command
                    .args(options.split_whitespace())
                    .arg("-cp")
                    .arg(gregor_apache::jars(&Release::broker(Release::NEWEST))?.class_path());
                command.arg(main_class);
                Ok(command)
            }
        }
    }

    fn properties(&self) -> PathBuf {
        self.folder.path().join("server.properties")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some((mut child, account)) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
            account.close();
        }
    }
}

/// Lets a process, or this thread and those that it starts, run on one processor only.
pub fn pin(process: Option<u32>, processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    let process = process.and_then(|process| Pid::from_raw(process.cast_signed()));
    Ok(sched_setaffinity(process, &set)?)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
