//! `cargo xtask`: the commands a developer of Gregor types.
//!
//! A table of commands and nothing else: each is one module beside this file.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod codegen;
mod crds;
mod docs;
mod images;
mod paths;
mod progress;
mod rig;
mod sim;
mod soak;
mod test;
mod tidy;
mod up;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The commands a developer of Gregor types.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure Gregor against the real Apache Kafka; `--list` shows the workloads.
    Bench(bench::Arguments),
    /// Write the generated messages and records; --import renews the schema from a Kafka release, --check only compares.
    Codegen(codegen::Arguments),
    /// Write the custom resource definitions into crds/ and the chart; --check only compares.
    Crds(crds::Arguments),
    /// Write docs/configuration.md from the table of keys; --check only compares.
    Docs(docs::Arguments),
    /// Bring up Kubernetes, the operator and a cluster, and send a gigabyte through it.
    Up(up::Arguments),
    /// End and remove what up and the tests started.
    Down,
    /// Build the container images into target/images/, without a container engine.
    Images(images::Arguments),
    /// Play simulated worlds from seeds: many, or one with its story.
    Sim(sim::Arguments),
    /// Harm three real nodes under load for hours, in rounds, and see what they promised kept.
    Soak(soak::Arguments),
    /// Run the tests: all parts, or the ones named.
    Test(test::Arguments),
    /// Check the rules of the house that no compiler knows.
    Tidy,
    /// The rig of namespaces by itself: up, down, exec, load, fault, cut.
    Rig(rig::Arguments),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Arguments::parse().command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Codegen(arguments) => codegen::run(&arguments),
        Command::Crds(arguments) => crds::run(&arguments),
        Command::Docs(arguments) => docs::run(&arguments),
        Command::Up(arguments) => up::run(&arguments),
        Command::Down => up::down(),
        Command::Images(arguments) => images::run(&arguments),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Tidy => tidy::run(),
        Command::Rig(arguments) => rig::run(&arguments),
    }
}
