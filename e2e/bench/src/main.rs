//! `cargo xtask bench`: Gregor and Apache Kafka side by side, measured in one run.
//!
//! Rounds alternate between the two brokers, the same client drives both, CPU is the broker's cgroup's own account, and what
//! counts is the median of the ratios of each round. docs/performance.md says what is measured, how, and what is not.

#![allow(clippy::cast_precision_loss, reason = "figures of a bench have a handful of digits")]

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

mod account;
mod attic;
mod brokers;
mod certificate;
mod closed_loop;
mod cluster;
mod flame;
mod load;
mod machine;
mod open_loop;
mod plot;
mod report;
mod simulator;
mod workloads;

use attic::Attic;
use brokers::{Broker, Kind};
use cluster::{Cluster, Session};
use flame::Recording;
use machine::{Ballast, Probe, Ticks};
use report::{Results, rounded};
use workloads::{Measure, Scale, Workload};

/// With more of its time taken by the host, a measurement is made again.
const STOLEN_MAX: f64 = 0.05;
/// How often at most.
const TRIES: u32 = 3;
/// See --rounds.
const ROUNDS: usize = 7;
const ROUNDS_OF_CLUSTERS: usize = 1;
const ROUNDS_OF_SIMULATOR: usize = 3;

/// Measure Gregor against the real Apache Kafka on this machine.
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// Only the workloads with these names (see --list).
    workloads: Vec<String>,
    /// Rounds; each runs on both brokers every workload that has a goal or is named, and each fourth one, from the first on, all the
    /// others. Seven when left out, one with --cluster: its workloads repeat by themselves what they measure.
    #[arg(long)]
    rounds: Option<usize>,
    /// The workloads of three nodes of each kind, which are left out of a run of all; they take about an hour.
    #[arg(long)]
    cluster: bool,
    /// Measure the simulator instead: how many seconds of a cluster of five nodes it plays in a second of one core's time. Three rounds when
    /// --rounds is left out; no broker is started.
    #[arg(long, conflicts_with_all = ["workloads", "cluster", "only", "flame", "pin"])]
    sim: bool,
    /// Measure this broker alone, as one does while changing it: no ratios, and nothing is written.
    #[arg(long, value_enum, conflicts_with = "docs")]
    only: Option<Kind>,
    /// A quick look: one round with less of everything, and no ballast. Its figures say little.
    #[arg(long)]
    quick: bool,
    /// List the workloads, what each measures and how long it takes, and end.
    #[arg(long)]
    list: bool,
    /// Draw a flame graph of Gregor under each workload into the results folder, instead of measuring both brokers.
    #[arg(long)]
    flame: bool,
    /// Give the brokers the first processor and the client the second, instead of letting all run where they like.
    #[arg(long)]
    pin: bool,
    /// Do not fill the page cache with a ballast file first.
    #[arg(long)]
    no_ballast: bool,
    /// Put the table, and the plots where there are any, into docs/performance.md too.
    #[arg(long)]
    docs: bool,
    /// The gregor program; built by `cargo xtask bench`.
    #[arg(long, env = "GREGOR_PROGRAM", default_value = "target/release/gregor")]
    gregor: PathBuf,
    /// The simulator; built by `cargo xtask bench -- --sim`.
    #[arg(long, env = "GREGOR_SIM_PROGRAM", default_value = "target/release/gregor-sim")]
    simulator: PathBuf,
    /// Where results are written: JSON, a Markdown table, plots, flame graphs.
    #[arg(long, default_value = "e2e/bench/results")]
    results: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.list {
        list();
        return Ok(());
    }
    if arguments.sim {
        return measure_simulator(&arguments);
    }
    let chosen = workloads::choose(&arguments.workloads, arguments.cluster)?;
    let scale = if arguments.quick { Scale::QUICK } else { Scale::FULL };
    if arguments.pin {
        brokers::pin(None, 1)?;
    }
    if arguments.flame {
        return flames(&arguments, &chosen, &scale);
    }
    measure(&arguments, &chosen, scale)
}

fn list() {
    for workload in workloads::every() {
        let place = if workload.is_of_clusters() { "three nodes of each kind; --cluster" } else { "each broker" };
        println!("{} (about {} s on {place})", workload.name, workload.seconds);
        for row in workload.figures {
            let target = row.target.map_or_else(String::new, |target| format!("; to reach: 1/{target:.0}"));
            println!("    {}: {} ({}{target})", row.name, row.what, row.unit);
        }
    }
    println!("{}", simulator::list());
}

fn measure_simulator(arguments: &Arguments) -> Result<()> {
    let rounds = if arguments.quick { 1 } else { arguments.rounds.unwrap_or(ROUNDS_OF_SIMULATOR).max(1) };
    let table = simulator::measure(&arguments.simulator, rounds, arguments.quick)?.table();
    if arguments.docs {
        report::write_simulator(Path::new("docs"), &table)?;
    }
    println!("{table}");
    Ok(())
}

fn measure(arguments: &Arguments, chosen: &[&'static Workload], mut scale: Scale) -> Result<()> {
    let of_clusters = chosen.iter().any(|workload| workload.is_of_clusters());
    ensure!(
        !arguments.docs || chosen.iter().all(|workload| workload.is_of_clusters() == of_clusters),
        "--docs writes one table: that of one node, or that of clusters"
    );
    let rounds = arguments.rounds.unwrap_or(if of_clusters { ROUNDS_OF_CLUSTERS } else { ROUNDS });
    let rounds = if arguments.quick { 1 } else { rounds.max(1) };
    let mut results = Results::new(chosen, rounds);
    let is_named = !arguments.workloads.is_empty() || arguments.cluster;
    let due = |round| chosen.iter().filter(move |workload| is_named || workload.is_due_in(round));
    if !arguments.quick {
        let seconds = (1..=rounds).flat_map(due).map(|workload| (workload.seconds + 2) * 2).sum::<u64>();
        eprintln!(
            "{rounds} rounds of {} workloads on both brokers: about {} minutes",
            chosen.len(),
            seconds.div_ceil(60)
        );
    }
    let ballast = if arguments.quick || arguments.no_ballast { None } else { Some(fill_ballast()?) };
    results.note(match &ballast {
        Some(ballast) => format!("Page cache filled with {} MiB of ballast.", ballast.mib),
        None => "No ballast in the page cache.".to_owned(),
    });
    if of_clusters {
        results.note("Three nodes of each kind, each a controller and a broker.".to_owned());
    }
    let attic = Attic::new()?;
    results.note(if arguments.pin {
        "Brokers on the first processor, client on the second.".to_owned()
    } else {
        "Brokers and client on all processors.".to_owned()
    });
    if !arguments.quick && chosen.iter().any(|workload| workload.name == "latency" || workload.name == "first-minute") {
        scale.rate = half_of_apaches_knee(arguments, &scale, &attic)?;
        results.note(format!("Open loops at {:.0} requests per second, half of Apache's knee.", scale.rate));
    }
    let begun = Instant::now();
    for round in 1..=rounds {
        results.probe(Probe::take()?);
        for kind in
            [Kind::Gregor, Kind::Apache].into_iter().filter(|kind| arguments.only.is_none_or(|only| only == *kind))
        {
            let mut broker: Option<Broker> = None;
            for workload in due(round) {
                eprint!("{:>6.0?} round {round}/{rounds}  {kind:7}  {:18}", begun.elapsed(), workload.name);
                let values = match workload.measure {
                    Measure::Node(measure) => {
                        let broker = match &mut broker {
                            Some(broker) => broker,
                            None => broker.insert(prepare(kind, arguments)?),
                        };
                        measure_calmly(broker, workload.name, measure, &scale)
                    }
                    Measure::Cluster(session, measure) => {
                        // They would share the machine.
                        broker.take().map_or(Ok(()), |broker| broker.retire(&attic))?;
                        on_a_cluster(kind, arguments, session, measure, &scale, &attic)
                    }
                };
                let values = values.with_context(|| format!("{} on {kind}, round {round}", workload.name))?;
                for (row, value) in workload.figures.iter().zip(&values) {
                    eprint!("  {} {} {}", row.name, rounded(*value), row.unit);
                }
                eprintln!();
                results.add(workload, kind, &values);
                if arguments.only.is_none() && kind == Kind::Apache {
                    // What is there is kept, should the run be cut off.
                    results.write(&arguments.results, of_clusters)?;
                }
            }
            broker.map_or(Ok(()), |broker| broker.retire(&attic))?;
        }
        if arguments.docs {
            results.write_docs(Path::new("docs"), of_clusters)?;
        }
    }
    if arguments.only.is_none() {
        println!("{}", results.table());
    }
    Ok(())
}

fn prepare(kind: Kind, arguments: &Arguments) -> Result<Broker> {
    let processor = arguments.pin.then_some(0);
    kind.prepare(&arguments.gregor, processor).with_context(|| format!("preparing {kind}"))
}

/// New nodes for each workload: what the last one left would be part of what is measured.
fn on_a_cluster(
    kind: Kind,
    arguments: &Arguments,
    session: Session,
    measure: fn(&mut Cluster, &Scale) -> Result<Vec<f64>>,
    scale: &Scale,
    attic: &Attic,
) -> Result<Vec<f64>> {
    let processor = arguments.pin.then_some(0);
    let mut cluster = kind.prepare_cluster(&arguments.gregor, processor, session).context("preparing three nodes")?;
    let values = measure(&mut cluster, scale)?;
    cluster.end(attic)?;
    Ok(values)
}

/// Measures again where the host took too much of the time; the last try counts as it is.
fn measure_calmly(
    broker: &mut Broker,
    name: &str,
    measure: fn(&mut Broker, &Scale) -> Result<Vec<f64>>,
    scale: &Scale,
) -> Result<Vec<f64>> {
    let mut tries = 0;
    loop {
        tries += 1;
        // What the one before wrote is on its way to the disk still, and in the broker's memory limit.
        broker.settle_disk()?;
        let before = Ticks::now();
        let values = measure(broker, scale)?;
        let stolen = Ticks::now().stolen_since(before);
        if stolen <= STOLEN_MAX || tries == TRIES || name == "partitions" {
            return Ok(values);
        }
        eprint!("  (the host took {:.0} % of the time: again)", stolen * 100.0);
    }
}

fn fill_ballast() -> Result<Ballast> {
    let ballast = Ballast::fill(|written, all| eprint!("\rfilling the page cache: {written} of {all} MiB "))?;
    eprintln!("\rfilled the page cache with {} MiB           ", ballast.mib);
    Ok(ballast)
}

fn half_of_apaches_knee(arguments: &Arguments, scale: &Scale, attic: &Attic) -> Result<f64> {
    eprint!("looking for Apache's knee ... ");
    let broker = prepare(Kind::Apache, arguments)?;
    let knee = workloads::knee(&broker, scale)?;
    broker.retire(attic)?;
    eprintln!("{knee:.0} requests per second");
    Ok((knee / 2.0).max(100.0))
}

fn flames(arguments: &Arguments, chosen: &[&'static Workload], scale: &Scale) -> Result<()> {
    let mut broker = prepare(Kind::Gregor, arguments)?;
    for workload in chosen {
        let Measure::Node(measure) = workload.measure else {
            bail!("a flame graph is drawn of one node: leave out {}", workload.name);
        };
        eprintln!("sampling {}", workload.name);
        let recording = Recording::begin(broker.process()?, &arguments.results)?;
        measure(&mut broker, scale)?;
        let svg = arguments.results.join(format!("flame-{}.svg", workload.name));
        recording.end(&format!("gregor under {}", workload.name), &svg)?;
        println!("{}", svg.display());
    }
    broker.stop()
}
