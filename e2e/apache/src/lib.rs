//! The real Apache Kafka from its released jars: fetched, started, its tools run.
//!
//! Tests and benchmarks compare Gregor with it, and `cargo xtask codegen --import` reads its messages. Jars come from Maven
//! Central by `mvn` and stay in `target/apache/RELEASE`. It downloads nothing by itself and ends only what it started.

mod broker;
mod jars;
mod loopback;

pub use broker::{Broker, BrokerConfig};
pub use jars::{Jars, Release, jars};
pub use loopback::Loopback;

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};

/// A command that runs a class of the jars, such as `org.apache.kafka.tools.TopicCommand`. Its log goes to standard error
/// from the level WARN on, so that standard output is the tool's alone.
pub fn java_tool(jars: &Jars, main_class: &str, arguments: &[&str]) -> Result<Command> {
    java(jars, &jars.class_path(), main_class, arguments)
}

/// A command that runs a class of ours, [compiled](compile) into a folder, against the jars.
pub fn java_program(jars: &Jars, classes: &Path, main_class: &str, arguments: &[&str]) -> Result<Command> {
    java(jars, &format!("{}:{}", classes.display(), jars.class_path()), main_class, arguments)
}

fn java(jars: &Jars, class_path: &str, main_class: &str, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new("java");
    command.args(["-Xms64M", "-Xmx512M", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    command.arg(format!("-Dlog4j2.configurationFile={}", jars.log_configuration()?.display()));
    command.arg("-cp").arg(class_path).arg(main_class).args(arguments);
    Ok(command)
}

/// Compiles one Java source file against the jars into a folder.
pub fn compile(jars: &Jars, source: &Path, into: &Path) -> Result<()> {
    std::fs::create_dir_all(into)?;
    let output = Command::new("javac")
        .args(["-nowarn", "-d"])
        .arg(into)
        .arg("-cp")
        .arg(jars.class_path())
        .arg(source)
        .output()
        .context("running `javac`: a JDK 17 is needed")?;
    ensure!(
        output.status.success(),
        "{} does not compile against Kafka {}:\n{}",
        source.display(),
        jars.release.version,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
