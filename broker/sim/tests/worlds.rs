//! Worlds from seeds: each keeps its promises, and a seed replays.

use gregor_sim::{Options, run};

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
fn a_compacted_log_may_end_with_offsets_that_nothing_stands_at() {
    // The power took the end of a compacted log's last segment but one, and left the name of the empty one behind it: its
    // groups are there all the same.
    run(77_001_164, Options::default()).unwrap_or_else(|finding| panic!("{finding}"));
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
