//! `gregor-sim --seed S` tells the story of one seed; `gregor-sim --seeds N [--from S]` plays many on all cores and says which
//! breaks a promise. With `cluster` before that, the worlds have several nodes: as many as the seed says, or `--nodes`. `cargo xtask sim`
//! builds it in release and hands its arguments over.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use gregor_sim::{Finding, Options, cluster};

const USAGE: &str = "usage: gregor-sim [cluster [--nodes N]] --seed S | --seeds N [--from S] [--jobs J]";
/// So many worlds of a cluster have everything in them that can go wrong.
const WORLDS_WITH_ALL_FAULTS: u64 = 200;
/// So many nodes a cluster may be asked to have.
const NODES: std::ops::RangeInclusive<u64> = 3..=9;
/// So often it says how far it is.
const REPORT_EVERY: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_cluster = arguments.first().is_some_and(|first| first == "cluster");
    let play: Play = if is_cluster { play_cluster } else { play_node };
    let Some(numbers) = parse(&arguments[usize::from(is_cluster)..]) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let number = |name: &str| numbers.get(name).copied();
    let nodes = number("--nodes");
    if nodes.is_some_and(|nodes| !is_cluster || !NODES.contains(&nodes)) {
        eprintln!("{USAGE}; a cluster has {} to {} nodes", NODES.start(), NODES.end());
        return ExitCode::from(2);
    }
    match (number("--seed"), number("--seeds")) {
        (Some(seed), None) => play_one(play, seed, nodes),
        (None, Some(count)) => {
            let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
            let worlds = Worlds { play, is_cluster, nodes, from: number("--from").unwrap_or(0), count };
            play_many(&worlds, number("--jobs").unwrap_or(cores).max(1))
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// The options and their numbers; `None` if there is anything else.
fn parse(arguments: &[String]) -> Option<BTreeMap<&str, u64>> {
    let known = ["--seed", "--seeds", "--from", "--jobs", "--nodes"];
    arguments
        .chunks(2)
        .map(|pair| match pair {
            [name, number] if known.contains(&name.as_str()) => Some((name.as_str(), number.parse().ok()?)),
            _ => None,
        })
        .collect()
}

/// What a world came to.
#[derive(Debug)]
struct Played {
    trace: u64,
    events: u64,
    acknowledged: u64,
    crashes: u64,
    nanos: u64,
    nodes: u64,
    counts: BTreeMap<&'static str, u64>,
}

type Play = fn(u64, Options) -> Result<Played, Finding>;

/// Which worlds are to be played.
struct Worlds {
    play: Play,
    is_cluster: bool,
    nodes: Option<u64>,
    from: u64,
    count: u64,
}

fn play_node(seed: u64, options: Options) -> Result<Played, Finding> {
    let outcome = gregor_sim::run(seed, options)?;
    let gregor_sim::Outcome { trace, events, acknowledged, crashes, nanos, .. } = outcome;
    Ok(Played { trace, events, acknowledged, crashes, nanos, nodes: 1, counts: BTreeMap::new() })
}

fn play_cluster(seed: u64, options: Options) -> Result<Played, Finding> {
    let cluster::Outcome { trace, events, acknowledged, nanos, nodes, counts, .. } = cluster::run(seed, options)?;
    let ends = ["killed", "power lost", "write torn", "stopped cleanly"];
    let crashes = ends.iter().filter_map(|end| counts.get(end)).sum();
    Ok(Played { trace, events, acknowledged, crashes, nanos, nodes, counts })
}

fn play_one(play: Play, seed: u64, nodes: Option<u64>) -> ExitCode {
    match play(seed, Options { told: true, nodes, ..Options::default() }) {
        Ok(outcome) => {
            println!("{outcome:?}");
            ExitCode::SUCCESS
        }
        Err(finding) => {
            eprintln!("{finding}");
            ExitCode::FAILURE
        }
    }
}

fn play_many(worlds: &Worlds, jobs: u64) -> ExitCode {
    let Worlds { play, is_cluster, nodes: nodes_asked, from, count } = *worlds;
    let began = Instant::now();
    let (next, played) = (AtomicU64::new(0), AtomicU64::new(0));
    let (total, findings) = (Mutex::new(Total::default()), Mutex::new(Vec::<Finding>::new()));
    let said = Mutex::new(began);
    std::thread::scope(|threads| {
        for _ in 0..jobs.min(count) {
            threads.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let seed = from.wrapping_add(index);
                    match play(seed, Options { nodes: nodes_asked, ..Options::default() }) {
                        Ok(outcome) => lock(&total).add(seed, outcome),
                        Err(finding) => {
                            eprintln!("{finding}");
                            lock(&findings).push(finding);
                            // Those that have begun come to their end; no more begin.
                            next.fetch_max(count, Ordering::Relaxed);
                        }
                    }
                    let played = played.fetch_add(1, Ordering::Relaxed) + 1;
                    let mut said = lock(&said);
                    if said.elapsed() >= REPORT_EVERY {
                        *said = Instant::now();
                        eprintln!("[{:>4} s] {played} of {count} worlds", began.elapsed().as_secs());
                    }
                }
            });
        }
    });
    let findings = findings.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(first) = findings.iter().map(|finding| finding.seed).min() {
        let kind = if is_cluster { "" } else { "--one-node " };
        let nodes = nodes_asked.map_or_else(String::new, |nodes| format!("--nodes {nodes} "));
        eprintln!("its story: cargo xtask sim {kind}{nodes}--seed {first}");
        return ExitCode::FAILURE;
    }
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    let Total { events, crashes, acknowledged, nanos, nodes, trace, counts } = total;
    println!(
        "{count} worlds: {events} events, {crashes} crashes, {acknowledged} records acknowledged, every promise kept; trace {trace:016x}"
    );
    for (what, times) in &counts {
        println!("{times:>12} {what}");
    }
    let missing: Vec<_> = cluster::FAULTS.iter().filter(|fault| !counts.contains_key(**fault)).collect();
    let is_mixed = is_cluster && nodes_asked.is_none();
    if is_mixed && count >= WORLDS_WITH_ALL_FAULTS && !missing.is_empty() {
        eprintln!("these never happened: {missing:?}");
        return ExitCode::FAILURE;
    }
    let (simulated, tenths) = (Duration::from_nanos(nanos), nodes * 10 / count.max(1));
    println!("{} simulated seconds of {}.{} nodes", simulated.as_secs(), tenths / 10, tenths % 10);
    let (ratio, jobs) = (simulated.as_secs_f64() / began.elapsed().as_secs_f64(), jobs.min(count));
    eprintln!("{ratio:.0} simulated seconds in a second of {jobs} cores");
    ExitCode::SUCCESS
}

#[derive(Debug, Default)]
struct Total {
    events: u64,
    crashes: u64,
    acknowledged: u64,
    nanos: u64,
    nodes: u64,
    trace: u64,
    counts: BTreeMap<&'static str, u64>,
}

impl Total {
    /// Adds a world, whichever ends first.
    fn add(&mut self, seed: u64, outcome: Played) {
        self.events += outcome.events;
        self.crashes += outcome.crashes;
        self.acknowledged += outcome.acknowledged;
        self.nanos += outcome.nanos;
        self.nodes += outcome.nodes;
        self.trace ^= outcome.trace.rotate_left((seed % 64) as u32);
        for (what, times) in outcome.counts {
            *self.counts.entry(what).or_default() += times;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
