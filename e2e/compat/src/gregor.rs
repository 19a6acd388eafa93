//! A broker process of ours: built once, started on a port of its own, stopped by its process id.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

const START_DEADLINE: Duration = Duration::from_secs(30);
/// A node gives a controller half a minute to let it go.
const STOP_DEADLINE: Duration = Duration::from_mins(1);

/// A running broker. Dropping it kills the process and, unless the folder was given, removes its data.
pub struct Gregor {
    child: Child,
    bootstrap: String,
    /// What it says of its listeners, once it has said it.
    listeners: String,
    /// Where that comes from; nothing comes twice.
    first_line: mpsc::Receiver<String>,
    folder: PathBuf,
    owned: Option<tempfile::TempDir>,
}

impl Gregor {
    /// A broker as `gregor dev` starts it, on a free port, with a new folder.
    pub fn start() -> Result<Self> {
        let owned = tempfile::Builder::new().prefix("gregor-").tempdir()?;
        let mut broker = Self::start_in(owned.path())?;
        broker.owned = Some(owned);
        Ok(broker)
    }

    /// The same on a folder that stays: a restart finds its data.
    pub fn start_in(folder: &Path) -> Result<Self> {
        Self::spawn(Command::new(program()?).args(["dev", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder), folder)
    }

    /// A broker as `gregor broker` starts it. The first line that it prints says where it listens.
    pub fn start_with(properties: &Path, folder: &Path) -> Result<Self> {
        Self::spawn(Command::new(program()?).args(["broker", "--config"]).arg(properties), folder)
    }

    /// The same without waiting: one node of several may need the others before it serves. What it says is added to its log.
    pub fn launch_with(properties: &Path, folder: &Path) -> Result<Self> {
        Self::launch(Command::new(program()?).args(["broker", "--config"]).arg(properties), folder)
    }

    fn spawn(command: &mut Command, folder: &Path) -> Result<Self> {
        let mut broker = Self::launch(command, folder)?;
        broker.wait_until_it_listens(START_DEADLINE)?;
        broker.bootstrap = broker.listener("PLAINTEXT")?;
        Ok(broker)
    }

    fn launch(command: &mut Command, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut log = File::options();
        let errors = log.create(true).append(true).open(folder.with_extension("log"));
        let errors = errors.context("opening the broker's log")?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        let (send, receive) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout);
            let mut first = String::new();
            let _ = lines.read_line(&mut first);
            let _ = send.send(first);
            let _ = lines.read_to_end(&mut Vec::new());
        });
        let (bootstrap, listeners) = (String::new(), String::new());
        Ok(Self { child, bootstrap, listeners, first_line: receive, folder: folder.to_owned(), owned: None })
    }

    /// Waits until clients are let in, or, where there is only a controller, until that listens.
    pub fn wait_until_it_listens(&mut self, limit: Duration) -> Result<()> {
        let first = self.first_line.recv_timeout(limit).with_context(|| self.story("said nothing in time"))?;
        ensure!(!first.is_empty(), "{}", self.story("ended without a word"));
        self.listeners = first;
        Ok(())
    }

    /// Whether it has not ended by itself.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Where a listener of this name is, as `host:port`.
    pub fn listener(&self, name: &str) -> Result<String> {
        // `gregor broker` names each listener, that of the controller too; `gregor dev` tells of one.
        let on = self.listeners.split(&format!("{name} on ")).last().unwrap_or_default();
        let address = on.split_whitespace().find(|word| word.starts_with("127.0.0.1:"));
        let address = address.with_context(|| self.story(&format!("did not say where {name} listens")))?;
        Ok(address.trim_end_matches([',', '.']).to_owned())
    }

    /// Where clients connect, as `host:port`.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Its data directory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Stops it as an operating system does, with SIGTERM, and waits until it has gone.
    pub fn stop(mut self) -> Result<()> {
        let status = Command::new("kill").arg(self.child.id().to_string()).status()?;
        ensure!(status.success(), "could not signal the broker");
        let deadline = Instant::now() + STOP_DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "{}", self.story(&format!("ended with {status}")));
                return Ok(());
            }
            thread::park_timeout(Duration::from_millis(5));
        }
        bail!("{}", self.story("did not stop in time"))
    }

    /// Ends it without a chance to write anything more.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// What happened, with the end of the broker's log: for a failing test to print.
    pub fn story(&self, what: &str) -> String {
        let log = std::fs::read_to_string(self.folder.with_extension("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("gregor {what}; the end of its log:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"))
    }
}

impl Drop for Gregor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.owned.is_some() {
            let _ = std::fs::remove_file(self.folder.with_extension("log"));
        }
    }
}

/// The program, built once in a run: `GREGOR_PROGRAM` if it is set, else what cargo builds now.
pub fn program() -> Result<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || -> Result<PathBuf> {
        if let Some(program) = std::env::var_os("GREGOR_PROGRAM") {
            return Ok(program.into());
        }
        let output = Command::new(env!("CARGO"))
            .args(["build", "--package", "gregor", "--message-format", "json"])
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "the gregor program does not build");
        let messages = String::from_utf8(output.stdout)?;
        let executable = messages.lines().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            (message["target"]["name"] == "gregor").then(|| message["executable"].as_str().map(PathBuf::from))?
        });
        executable.context("cargo named no program")
    };
    match PROGRAM.get_or_init(|| build().map_err(|error| format!("{error:#}"))) {
        Ok(program) => Ok(program),
        Err(error) => bail!("{error}"),
    }
}
