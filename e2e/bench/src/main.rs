//! `cargo xtask bench`: Gregor and Apache Kafka side by side, measured in one run.
//!
//! Rounds alternate between the two brokers, the same raw client drives both, CPU is the broker's cgroup's own account, and what
//! counts is the median of the ratios of each round. docs/performance.md says what is measured, how, and what is not.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

mod account;
mod brokers;
mod load;
mod report;
mod workloads;

use brokers::Kind;
use report::Results;

/// Measure Gregor against the real Apache Kafka on this machine.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// Only the workloads with these names (see --list).
    workloads: Vec<String>,
    /// Rounds; each runs every workload on both brokers.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// A quick look: one round with less data. Its figures say little.
    #[arg(long)]
    quick: bool,
    /// List the workloads and end.
    #[arg(long)]
    list: bool,
    /// The gregor program; built by `cargo xtask bench`.
    #[arg(long, env = "GREGOR_PROGRAM", default_value = "target/release/gregor")]
    gregor: PathBuf,
    /// Where results are written, as JSON and as a Markdown table.
    #[arg(long, default_value = "e2e/bench/results")]
    results: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.list {
        for workload in workloads::ALL {
            println!("{:22} {} ({})", workload.name, workload.what, workload.unit);
        }
        return Ok(());
    }
    let chosen = workloads::choose(&arguments.workloads)?;
    let scale = if arguments.quick { workloads::Scale::QUICK } else { workloads::Scale::FULL };
    let rounds = if arguments.quick { 1 } else { arguments.rounds.max(1) };
    let mut results = Results::new(&chosen, rounds);
    for round in 1..=rounds {
        for kind in [Kind::Gregor, Kind::Apache] {
            let mut broker =
                kind.prepare(&arguments.gregor).with_context(|| format!("preparing {kind} for round {round}"))?;
            for workload in &chosen {
                eprint!("round {round}/{rounds}  {kind:7}  {:22} ", workload.name);
                let value = (workload.measure)(&mut broker, &scale)
                    .with_context(|| format!("{} on {kind}, round {round}", workload.name))?;
                eprintln!("{value:10.3} {}", workload.unit);
                results.add(workload, kind, value);
            }
            broker.stop()?;
        }
    }
    results.write(&arguments.results)?;
    println!("{}", results.table());
    Ok(())
}
