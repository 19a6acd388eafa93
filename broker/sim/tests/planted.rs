//! The simulator finds bugs: every one that is planted breaks a promise within a few worlds, wherever the seeds begin, and the world that
//! shows it is well without it.
//!
//! `cargo xtask test sim` builds this with `--cfg gregor_planted`, in a target folder of its own; any other build has no bugs
//! to find.
#![cfg(gregor_planted)]

use std::{
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

/// Whether a world breaks a promise with this bug in it, or panics.
fn shows(play: Play, bug: &'static str, seed: u64) -> bool {
    let played = catch_unwind(|| play(seed, Options { planted: Some(bug), ..Options::default() }));
    !matches!(played, Ok(Ok(())))
}

/// The seed that shows a bug, of those from `from` on.
fn seed_that_shows(play: Play, bug: &'static str, from: u64) -> Option<u64> {
    (0..WORLDS_TO_FIND_IT).map(|index| from.wrapping_add(index)).find(|seed| shows(play, bug, *seed))
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
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((bug, from)) = tries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = seed_that_shows(play, bug, *from);
                    let healthy = found.map(|seed| play(seed, Options::default()));
                    let verdict = match (found, healthy) {
                        (Some(seed), Some(Ok(()))) => {
                            println!("{bug}: seed {seed}, world {}", seed.wrapping_sub(*from) + 1);
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
    let wrong = wrong.into_inner().expect("no thread panicked");
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
