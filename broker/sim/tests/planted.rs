//! The simulator finds bugs: every one that is planted breaks a promise within a few worlds, wherever the seeds begin.
//!
//! `cargo xtask test sim` builds this with `--cfg gregor_planted`, in a target folder of its own; any other build has no bugs
//! to find.
#![cfg(gregor_planted)]

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use gregor_sim::{Options, Random, run};
use gregor_types::planted::BUGS;

/// So many worlds may a bug hide in.
const WORLDS_TO_FIND_IT: u64 = 200;

/// The seed that shows a bug, of those from `from` on.
fn seed_that_shows(bug: &'static str, from: u64) -> Option<u64> {
    let shows = |seed: &u64| run(*seed, Options { planted: Some(bug), ..Options::default() }).is_err();
    (0..WORLDS_TO_FIND_IT).map(|index| from.wrapping_add(index)).find(shows)
}

#[test]
fn every_planted_bug_is_found_wherever_the_seeds_begin() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    // Another beginning each time: what is found from a chosen one only is luck.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_nanos() as u64;
    let mut random = Random::new(variable("GREGOR_PLANTED_SEED").unwrap_or(now));
    let ranges: Vec<u64> = (0..variable("GREGOR_PLANTED_RANGES").unwrap_or(1)).map(|_| random.bits()).collect();
    let tries: Vec<_> = ranges.iter().flat_map(|from| BUGS.iter().map(move |(bug, _)| (*bug, *from))).collect();
    let (next, hidden) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((bug, from)) = tries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match seed_that_shows(bug, *from) {
                        Some(seed) => println!("{bug}: seed {seed}, world {}", seed.wrapping_sub(*from) + 1),
                        None => hidden.lock().expect("no thread panics with it").push((*bug, *from)),
                    }
                }
            });
        }
    });
    let hidden = hidden.into_inner().expect("no thread panicked");
    assert!(hidden.is_empty(), "these hide from {WORLDS_TO_FIND_IT} worlds, from these seeds on: {hidden:?}");
}
