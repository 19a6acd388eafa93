//! Client programs in their own languages, installed by their own package managers, and what they print.
//!
//! A journey prints `ok STEP` after each step that succeeded and ends with code 0 when all did.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use gregor_apache::Release;

use crate::TlsStores;

/// Both Python clients live in one environment; tests run side by side.
static INSTALLING: Mutex<()> = Mutex::new(());

/// A client that is ready to run.
pub struct Journey {
    name: &'static str,
    command: Command,
}

impl Journey {
    /// Apache's own Java client, of a release.
    pub fn java(release: &Release) -> Result<Self> {
        let jars = gregor_apache::jars(release)?;
        let classes = cache().join(format!("java-{}", release.version));
        gregor_apache::compile(&jars, &clients().join("java/Journey.java"), &classes)?;
        let class_path = jars.class_path();
        let mut command = Command::new("java");
        command.arg("-cp").arg(format!("{}:{class_path}", classes.display())).args(["-Xmx256m", "Journey"]);
        Ok(Self { name: "java", command })
    }

    /// franz-go.
    pub fn franz_go() -> Result<Self> {
        let program = cache().join("franz-go-journey");
        fs::create_dir_all(cache())?;
        run(
            "go build",
            Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(clients().join("go")),
        )?;
        Ok(Self { name: "franz-go", command: Command::new(program) })
    }

    /// kafkajs.
    pub fn kafkajs() -> Result<Self> {
        let folder = cache().join("node");
        fs::create_dir_all(&folder)?;
        fs::copy(clients().join("node/package.json"), folder.join("package.json"))?;
        if !folder.join("node_modules/kafkajs").exists() {
            let install = ["install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"];
            run("npm install", Command::new("npm").args(install).current_dir(&folder))?;
        }
        let mut command = Command::new("node");
        command.arg(clients().join("node/journey.js")).env("NODE_PATH", folder.join("node_modules"));
        Ok(Self { name: "kafkajs", command })
    }

    /// librdkafka, through confluent-kafka for Python.
    pub fn librdkafka() -> Result<Self> {
        Self::python("librdkafka", "librdkafka_journey.py")
    }

    /// kafka-python.
    pub fn kafka_python() -> Result<Self> {
        Self::python("kafka-python", "kafka_python_journey.py")
    }

    fn python(name: &'static str, script: &str) -> Result<Self> {
        let folder = cache().join("python");
        let python = folder.join("bin/python");
        let requirements = clients().join("python/requirements.txt");
        let installed = folder.join("installed-requirements.txt");
        let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        if fs::read(&installed).ok() != fs::read(&requirements).ok() {
            run("python3 -m venv", Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
            run("pip install", Command::new(&python).args(pip).arg(&requirements))?;
            fs::copy(&requirements, &installed)?;
        }
        let mut command = Command::new(python);
        command.arg(clients().join("python").join(script));
        Ok(Self { name, command })
    }

    /// Any other program, such as kcat.
    pub fn program(name: &'static str, command: Command) -> Self {
        Self { name, command }
    }

    /// Gives the program further arguments.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    /// Has it go over TLS, with a certificate of its own.
    #[must_use]
    pub fn over_tls(mut self, stores: &TlsStores) -> Self {
        self.command.env("JOURNEY_TLS", format!("{}:{}", stores.trusted().display(), stores.identity().display()));
        self
    }

    /// Runs it and returns the steps that it said were ok. A failure shows all that it printed.
    pub fn steps(self, deadline: Duration) -> Result<Vec<String>> {
        let printed = self.output(deadline)?;
        Ok(printed.lines().filter_map(|line| line.strip_prefix("ok ")).map(str::to_owned).collect())
    }

    /// Runs it and returns what it wrote to standard output.
    pub fn output(mut self, deadline: Duration) -> Result<String> {
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.name))?;
        let drain = |mut pipe: Box<dyn Read + Send>| {
            thread::spawn(move || {
                let mut text = Vec::new();
                let _ = pipe.read_to_end(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            })
        };
        let out = drain(Box::new(child.stdout.take().context("piped")?));
        let err = drain(Box::new(child.stderr.take().context("piped")?));
        let end = Instant::now() + deadline;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if Instant::now() > end {
                child.kill()?;
                child.wait()?;
                break None;
            }
            thread::park_timeout(Duration::from_millis(20));
        };
        let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        match status {
            Some(status) if status.success() => Ok(out),
            Some(status) => bail!("{} ended with {status}\n--- printed\n{out}\n--- errors\n{err}", self.name),
            None => bail!("{} took more than {deadline:?}\n--- printed\n{out}\n--- errors\n{err}", self.name),
        }
    }
}

fn run(what: &str, command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{what}: is it installed?"))?;
    ensure!(
        output.status.success(),
        "{what} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// What package managers install is kept from run to run, beside what cargo builds.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/compat")
}
