//! Clusters from seeds: each keeps what it promises and comes to rest, everything that may happen does, and a seed replays.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use gregor_sim::{
    Options,
    cluster::{FAULTS, Outcome, run},
};

/// How long things go wrong in each world.
const NANOS_MIN: u64 = 120_000_000_000;
/// So many worlds have everything in them that can happen.
const WORLDS_WITH_ALL_FAULTS: u64 = 200;

#[test]
fn every_cluster_loses_nothing_and_comes_to_rest_when_all_is_well_again() {
    // More, on demand, in a release build: GREGOR_SIM_CLUSTERS=5000. Others, too: GREGOR_SIM_FROM.
    let seeds = std::env::var("GREGOR_SIM_CLUSTERS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(3);
    let from = first_seed();
    println!("GREGOR_SIM_FROM={from}");
    let (next, counts) = (AtomicU64::new(0), Mutex::new(BTreeMap::<&str, u64>::new()));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= seeds {
                        return;
                    }
                    let seed = from.wrapping_add(index);
                    let outcome = run(seed, Options::default()).unwrap_or_else(|finding| panic!("{finding}"));
                    look_at(seed, &outcome);
                    let mut counts = counts.lock().expect("no thread panics with it");
                    for (what, times) in outcome.counts {
                        *counts.entry(what).or_default() += times;
                    }
                }
            });
        }
    });
    let counts = counts.into_inner().expect("no thread panicked");
    let missing: Vec<_> = FAULTS.iter().filter(|fault| !counts.contains_key(**fault)).collect();
    assert!(missing.is_empty() || seeds < WORLDS_WITH_ALL_FAULTS, "these never happened: {missing:?}");
}

/// The first seed: `GREGOR_SIM_FROM`, by default always the same; `random` has others played each time.
fn first_seed() -> u64 {
    match std::env::var("GREGOR_SIM_FROM").as_deref() {
        Err(_) => 0,
        Ok("random") => SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_nanos() as u64,
        Ok(from) => {
            from.parse().unwrap_or_else(|error| panic!("GREGOR_SIM_FROM={from}, not a seed nor random: {error}"))
        }
    }
}

fn look_at(seed: u64, outcome: &Outcome) {
    let elected = outcome.counts.get("controller elected").copied().unwrap_or(0);
    assert!(
        outcome.nanos >= NANOS_MIN && outcome.acknowledged >= 1_000 && elected > 1,
        "seed {seed}: hardly anything happened: {outcome:?}"
    );
}

#[test]
fn a_seed_gives_the_same_cluster_in_another_process() {
    // Static and dynamic quorums, every kind of power, with and without eligible leader replicas: all are among so many.
    let trace = || {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_gregor-sim")).args(["cluster", "--seeds", "6"]).output();
        String::from_utf8(output.expect("the program runs").stdout).expect("it prints text")
    };
    let first = trace();
    assert!(first.contains("trace"), "{first}");
    assert_eq!(first, trace());
}
