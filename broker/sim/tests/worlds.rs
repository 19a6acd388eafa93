//! Worlds from seeds: each keeps its promises, a seed replays, and a fault that is put in is found.

use gregor_sim::{Options, Sabotage, run};

/// So many worlds may a fault hide in.
const WORLDS_TO_FIND_IT: u64 = 10;

#[test]
fn every_world_keeps_what_it_promises() {
    // More, on demand: GREGOR_SIM_SEEDS=1000.
    let seeds = std::env::var("GREGOR_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(3);
    for seed in 0..seeds {
        let outcome = run(seed, Options::default()).unwrap_or_else(|finding| panic!("{finding}"));
        assert!(
            outcome.acknowledged > 100 && outcome.crashes > 0,
            "seed {seed}: hardly anything happened: {outcome:?}"
        );
    }
}

#[test]
fn a_seed_gives_the_same_world_in_another_process() {
    let trace = || {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_gregor-sim")).args(["--seeds", "1"]).output();
        String::from_utf8(output.expect("the program runs").stdout).expect("it prints text")
    };
    let first = trace();
    assert!(first.contains("trace"), "{first}");
    assert_eq!(first, trace());
}

#[test]
fn faults_that_are_put_in_are_found() {
    for sabotage in [Sabotage::AcknowledgesBeforeSync, Sabotage::TrustsEveryStop, Sabotage::ForgetsProducers] {
        let options = Options { sabotage: Some(sabotage), ..Options::default() };
        let found = (0..WORLDS_TO_FIND_IT).any(|seed| run(seed, options).is_err());
        assert!(found, "{sabotage:?} hides from {WORLDS_TO_FIND_IT} worlds");
    }
}
