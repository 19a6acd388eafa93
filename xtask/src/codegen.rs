//! `cargo xtask codegen`: the generated messages and records, from the schema; `--import` renews the schema from a Kafka release.

use std::fs;

use anyhow::{Result, bail};
use clap::Args;

use crate::paths;

/// Write the generated messages and records.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Fetch this Kafka release first and renew the schema from the message files in its jars.
    #[arg(long, value_name = "RELEASE")]
    import: Option<String>,
    /// Write no Rust; fail if a file differs from what the schema says.
    #[arg(long)]
    check: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let root = paths::root();
    if let Some(version) = &arguments.import {
        println!("fetching Apache Kafka {version} by Maven");
        let jars = gregor_apache::jars(&gregor_apache::Release::broker(version))?;
        let scratch = root.join("target/codegen/import");
        if scratch.exists() {
            fs::remove_dir_all(&scratch)?;
        }
        let count = gregor_codegen::import(&jars.folder, version, &scratch, &root.join(gregor_codegen::SCHEMA))?;
        fs::remove_dir_all(&scratch)?;
        println!("{count} messages imported into {}", gregor_codegen::SCHEMA);
    }
    if arguments.check {
        let wrong = gregor_codegen::check(&root)?;
        if !wrong.is_empty() {
            bail!("generated files differ from the schema, run `cargo xtask codegen`: {wrong:#?}");
        }
        println!("the generated code is what the schema says");
    } else {
        println!("{} lines of Rust written", gregor_codegen::write(&root)?);
    }
    Ok(())
}
