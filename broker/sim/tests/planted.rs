//! The simulator finds bugs: every one that is planted breaks a promise within a few worlds, wherever the seeds begin, and the world that
//! shows it is well without it.
//!
//! `cargo xtask test sim` builds this with `--cfg gregor_planted`, in a target folder of its own; any other build has no bugs
//! to find.
#![cfg(gregor_planted)]

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::catch_unwind,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use gregor_sim::{Finding, Options, Random, cluster, run};
use gregor_types::planted::{BUGS, CLUSTER_BUGS};

/// So many worlds may a bug hide in.
const WORLDS_TO_FIND_IT: u64 = 200;

type Bugs = &'static [(&'static str, &'static str)];
type Play = fn(u64, Options) -> Result<(), Finding>;

/// How a world shows a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// It breaks a promise, and the simulator says so.
    Finding,
    /// The code itself noticed, or nobody meant this to be said: users would have had nothing but what it did before.
    Panic,
}

/// How a world shows a bug that is in it, if it does.
fn shows(play: Play, bug: &'static str, seed: u64) -> Option<Shown> {
    match catch_unwind(|| play(seed, Options { planted: Some(bug), ..Options::default() })) {
        Ok(Ok(())) => None,
        Ok(Err(_)) => Some(Shown::Finding),
        Err(_) => Some(Shown::Panic),
    }
}

/// The first seed that shows a bug, of those from `from` on, and how.
fn seed_that_shows(play: Play, bug: &'static str, from: u64) -> Option<(u64, Shown)> {
    seeds(from).find_map(|seed| Some((seed, shows(play, bug, seed)?)))
}

fn seeds(from: u64) -> impl Iterator<Item = u64> {
    (0..WORLDS_TO_FIND_IT).map(move |index| from.wrapping_add(index))
}

/// Whether a bug that panics first also breaks a promise that is looked at, in one of the worlds from one of these seeds on.
fn is_found(play: Play, bug: &'static str, ranges: &[u64]) -> bool {
    ranges.iter().flat_map(|from| seeds(*from)).any(|seed| shows(play, bug, seed) == Some(Shown::Finding))
}

fn find_each(bugs: Bugs, play: Play) {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    // Another beginning each time: what is found from a chosen one only is luck.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_nanos() as u64;
    let chosen = variable("GREGOR_PLANTED_SEED").unwrap_or(now);
    println!("GREGOR_PLANTED_SEED={chosen}");
    let mut random = Random::new(chosen);
    let ranges: Vec<u64> = (0..variable("GREGOR_PLANTED_RANGES").unwrap_or(1)).map(|_| random.bits()).collect();
    let only = std::env::var("GREGOR_PLANTED_BUG").ok();
    let bugs: Vec<_> = bugs.iter().filter(|(bug, _)| only.as_deref().is_none_or(|only| only == *bug)).collect();
    let tries: Vec<_> = ranges.iter().flat_map(|from| bugs.iter().map(move |(bug, _)| (*bug, *from))).collect();
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let (found_at_once, panicked) = (Mutex::new(BTreeSet::new()), Mutex::new(BTreeMap::<_, usize>::new()));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((bug, from)) = tries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = seed_that_shows(play, bug, *from);
                    let healthy = found.map(|(seed, _)| play(seed, Options::default()));
                    let verdict = match (found, healthy) {
                        (Some((seed, how)), Some(Ok(()))) => {
                            println!("{bug}: seed {seed}, world {}, {how:?}", seed.wrapping_sub(*from) + 1);
                            if how == Shown::Finding {
                                found_at_once.lock().expect("no thread panics with it").insert(*bug);
                            } else {
                                *panicked.lock().expect("no thread panics with it").entry(*bug).or_default() += 1;
                            }
                            continue;
                        }
                        (_, Some(Err(finding))) => format!("without {bug}: {finding}"),
                        _ => format!("{bug} hides in {WORLDS_TO_FIND_IT} worlds from seed {from} on"),
                    };
                    wrong.lock().expect("no thread panics with it").push(verdict);
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().expect("no thread panicked");
    let found_at_once = found_at_once.into_inner().expect("no thread panicked");
    for (bug, times) in panicked.into_inner().expect("no thread panicked") {
        println!("{bug}: shown by a panic in {times} of {} ranges", ranges.len());
        if !found_at_once.contains(bug) && !is_found(play, bug, &ranges) {
            wrong.push(format!("{bug} only panics in {WORLDS_TO_FIND_IT} worlds from each of {ranges:?} on"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_planted_bug_is_found_wherever_the_seeds_begin() {
    find_each(&BUGS, |seed, options| run(seed, options).map(drop));
}

#[test]
fn every_planted_bug_of_clusters_is_found_wherever_the_seeds_begin() {
    find_each(&CLUSTER_BUGS, |seed, options| cluster::run(seed, options).map(drop));
}
