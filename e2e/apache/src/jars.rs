//! The released jars, fetched once per release and set.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// What is fetched: a version, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Such as `4.4.0`.
    pub version: String,
    /// Whether tools, the shell, Streams, Connect and Trogdor are fetched as well as the broker.
    pub complete: bool,
}

impl Release {
    /// The newest release that is whole, tools included.
    pub const COMPLETE: &str = "4.3.1";
    /// The newest broker.
    pub const NEWEST: &str = "4.4.0";

    /// The broker and what it needs.
    pub fn broker(version: &str) -> Self {
        Self { version: version.to_owned(), complete: false }
    }

    /// Everything, as far as the release has it.
    pub fn complete(version: &str) -> Self {
        Self { version: version.to_owned(), complete: true }
    }

    fn artifacts(&self) -> Vec<(&'static str, &'static str, &str)> {
        const KAFKA: &str = "org.apache.kafka";
        const LOG4J: &str = "org.apache.logging.log4j";
        let mut artifacts = vec![
            (KAFKA, "kafka_2.13", self.version.as_str()),
            (LOG4J, "log4j-slf4j-impl", "2.25.3"),
            (LOG4J, "log4j-core", "2.25.3"),
            (LOG4J, "log4j-1.2-api", "2.25.3"),
        ];
        if self.complete {
            let more = [
                "kafka-tools",
                "kafka-shell",
                "trogdor",
                "kafka-streams",
                "kafka-streams-examples",
                "connect-runtime",
                "connect-file",
                "connect-mirror",
            ];
            artifacts.extend(more.map(|artifact| (KAFKA, artifact, self.version.as_str())));
        }
        artifacts
    }

    fn folder_name(&self) -> String {
        format!("{}{}", self.version, if self.complete { "-complete" } else { "" })
    }
}

/// Jars on disk.
#[derive(Debug, Clone)]
pub struct Jars {
    /// What they are.
    pub release: Release,
    /// Where they are.
    pub folder: PathBuf,
}

impl Jars {
    /// The class path of all of them.
    pub fn class_path(&self) -> String {
        format!("{}/*", self.folder.display())
    }

    /// A configuration for the JVM's log: warnings, to standard error.
    pub fn log_configuration(&self) -> Result<PathBuf> {
        let path = self.folder.with_file_name("log4j2.properties");
        if !path.exists() {
            let text = "appender.stderr.type=Console\nappender.stderr.name=stderr\nappender.stderr.target=SYSTEM_ERR\n\
                        appender.stderr.layout.type=PatternLayout\nappender.stderr.layout.pattern=%d %p %m (%c)%n\n\
                        rootLogger.level=warn\nrootLogger.appenderRef.stderr.ref=stderr\n";
            write_whole(&path, text)?;
        }
        Ok(path)
    }
}

/// The jars of a release, fetched by Maven unless they are here. They are kept below `target/apache`, or where
/// `GREGOR_APACHE_HOME` says.
pub fn jars(release: &Release) -> Result<Jars> {
    let home = home().join(release.folder_name());
    let folder = home.join("libs");
    let done = home.join("complete");
    let jars = Jars { release: release.clone(), folder };
    if done.exists() {
        return Ok(jars);
    }
    fs::create_dir_all(&home)?;
    // Two test programs may want the same release at once: the second one waits for the first.
    let lock = fs::File::create(home.join("lock"))?;
    lock.lock()?;
    if !done.exists() {
        fetch(release, &home, &jars.folder)?;
        fs::write(&done, "")?;
    }
    Ok(jars)
}

fn home() -> PathBuf {
    if let Some(home) = std::env::var_os("GREGOR_APACHE_HOME") {
        return PathBuf::from(home);
    }
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the crate is two folders below the root");
    root.join("target/apache")
}

fn fetch(release: &Release, home: &Path, into: &Path) -> Result<()> {
    let mut dependencies = Vec::new();
    for (group, artifact, version) in release.artifacts() {
        dependencies.push(format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>"
        ));
    }
    let dependencies = dependencies.join("\n");
    let pom = format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>dev.gregor</groupId><artifactId>apache-kafka</artifactId><version>1</version>\n\
         <dependencies>\n{dependencies}\n</dependencies></project>\n"
    );
    fs::write(home.join("pom.xml"), pom)?;
    let output = Command::new("mvn")
        .args(["-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime"])
        .arg(format!("-DoutputDirectory={}", into.display()))
        .current_dir(home)
        .output()
        .context("running `mvn`: Maven is needed to fetch Apache Kafka")?;
    ensure!(
        output.status.success(),
        "Maven could not fetch Apache Kafka {}:\n{}{}",
        release.version,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Writes a file that others may look for at the same time: they see all of it or none.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let scratch = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&scratch, text)?;
    fs::rename(scratch, path)?;
    Ok(())
}
