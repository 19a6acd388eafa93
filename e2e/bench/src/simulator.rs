//! How fast the simulator plays clusters: simulated seconds of five nodes in a second of one core's time. Apache has nothing to set beside it.

use std::{
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    account::Account,
    machine::Machine,
    report::{median, rounded},
};

/// Simulated seconds in a second of processor time: as many are to be reached.
const TO_REACH: f64 = 1_000.0;
/// What is played: the same worlds each time.
const NODES: &str = "5";
/// See `NODES`.
const SEEDS: &str = "40";
/// See `NODES`; enough to see that it works.
const SEEDS_QUICK: &str = "2";
/// What stands before the number's unit in what the simulator says.
const SAYS: &str = " simulated seconds of ";

/// What several rounds gave.
pub struct Speed {
    machine: Machine,
    seeds: &'static str,
    simulated: f64,
    /// Simulated seconds in a second of processor time, one for each round.
    ratios: Vec<f64>,
}

/// For `--list`.
pub fn list() -> String {
    format!(
        "--sim (about 30 s, without any broker)\n    simulator: worlds of {NODES} nodes played by one job (simulated seconds in a \
         second of processor time; to reach: {TO_REACH:.0})"
    )
}

/// Plays the same worlds once in each round.
pub fn measure(program: &Path, rounds: usize, quick: bool) -> Result<Speed> {
    let seeds = if quick { SEEDS_QUICK } else { SEEDS };
    let mut speed = Speed { machine: Machine::this(), seeds, simulated: 0.0, ratios: Vec::new() };
    for round in 1..=rounds {
        eprintln!("round {round}/{rounds}  simulator: {seeds} worlds of {NODES} nodes");
        let (simulated, processor) = play(program, seeds)?;
        speed.simulated = simulated;
        speed.ratios.push(simulated / processor.max(f64::MIN_POSITIVE));
        eprintln!("    {} simulated seconds in {} s of processor time", rounded(simulated), rounded(processor));
    }
    Ok(speed)
}

/// Simulated seconds, and those of processor time that they took.
fn play(program: &Path, seeds: &str) -> Result<(f64, f64)> {
    let mut command = Command::new(program);
    command.args(["cluster", "--nodes", NODES, "--seeds", seeds, "--jobs", "1"]).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let account = Account::open(child.id());
    let mut said = String::new();
    let read = child.stdout.take().context("its output is a pipe")?.read_to_string(&mut said);
    // It has said all, and is not waited for yet: its account is still there.
    let processor = account.cpu();
    let status = child.wait()?;
    account.close();
    read?;
    ensure!(status.success(), "the simulator ended with {status}: what it said stands above");
    Ok((simulated(&said)?, processor?.as_secs_f64()))
}

fn simulated(said: &str) -> Result<f64> {
    let seconds = said.lines().find_map(|line| line.split_once(SAYS)).map(|(seconds, _)| seconds.parse());
    seconds.and_then(Result::ok).with_context(|| format!("the simulator did not say how long it played: {said}"))
}

impl Speed {
    /// For people.
    pub fn table(&self) -> String {
        let Machine { processors, model, memory_mib, kernel } = &self.machine;
        let (low, high) =
            self.ratios.iter().fold((f64::INFINITY, 0.0_f64), |(low, high), ratio| (low.min(*ratio), high.max(*ratio)));
        format!(
            "{} rounds; {processors} x {model}, {memory_mib} MiB, Linux {kernel}. {} worlds of {NODES} nodes, {} simulated seconds.\n\n\
             | | what | unit | Gregor | worst and best round | rounds | to reach |\n|---|---|---|---|---|---|---|\n\
             | simulator | worlds of {NODES} nodes played by one job | simulated seconds in a second of processor time | **{}** | {} to {} | {} | {TO_REACH:.0} |\n",
            self.ratios.len(),
            self.seeds,
            rounded(self.simulated),
            rounded(median(&self.ratios)),
            rounded(low),
            rounded(high),
            self.ratios.len(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_simulator_says_last_is_understood() {
        let said = "40 worlds: 5 events, every promise kept; trace 00\n           3 killed\n6120 simulated seconds of 5.0 nodes\n";
        assert!((simulated(said).unwrap() - 6120.0).abs() < f64::EPSILON);
        assert!(simulated("40 worlds: 5 events").unwrap_err().to_string().contains("did not say"));
    }

    #[test]
    fn the_median_of_the_rounds_is_what_counts() {
        let ratios = vec![900.0, 1_500.0, 1_100.0];
        let speed = Speed { machine: Machine::this(), seeds: "40", simulated: 6_120.0, ratios };
        assert!(speed.table().contains("**1100** | 900 to 1500 | 3 | 1000 |"), "{}", speed.table());
    }
}
