//! `gregor-sim --seed S` tells the story of one seed; `gregor-sim --seeds N [--from S]` plays many and says which breaks a promise.

use std::process::ExitCode;

use gregor_sim::{Options, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<u64>().ok()
    };
    let (seeds, told) = match (number("--seed"), number("--seeds")) {
        (Some(seed), _) => (seed..seed + 1, true),
        (None, Some(count)) => {
            let from = number("--from").unwrap_or(0);
            (from..from + count, false)
        }
        (None, None) => {
            eprintln!("usage: gregor-sim --seed S | --seeds N [--from S]");
            return ExitCode::from(2);
        }
    };
    let (mut events, mut crashes, mut acknowledged, mut trace) = (0, 0, 0, 0_u64);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        match run(seed, Options { told, sabotage: None }) {
            Ok(outcome) => {
                events += outcome.events;
                crashes += outcome.crashes;
                acknowledged += outcome.acknowledged;
                trace = trace.rotate_left(1) ^ outcome.trace;
            }
            Err(finding) => {
                eprintln!("{finding}\nits story: gregor-sim --seed {seed}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!(
        "{count} worlds: {events} events, {crashes} crashes, {acknowledged} records acknowledged, every promise kept; trace {trace:016x}"
    );
    ExitCode::SUCCESS
}
