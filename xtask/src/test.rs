//! `cargo xtask test`: every kind of test, from cheap to dear, with one line per step and one sum at the end.
//!
//! A part is a list of steps, and a step is one program. Whoever adds a kind of test adds a step to the table in
//! `parts.rs`; this module only runs them. Their output goes to files in `target/test/`, and is shown where it failed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use gregor_kubernetes::process;

use crate::{paths, progress::Progress};

mod parts;

use parts::Step;

/// The arguments of `cargo xtask test`.
#[derive(Args)]
pub struct Arguments {
    /// The parts to run, in this order; all of them when none is named.
    parts: Vec<Part>,
    /// Run everything: all suites, more seeds, Helm 3 beside 4, other architectures, licences.
    #[arg(long)]
    full: bool,
}

/// A kind of test.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Format, lints, tidiness, and the tests of every crate.
    Unit,
    /// Faulty disks and networks, with many seeds.
    Sim,
    /// Real clients, and the real Apache Kafka's tools.
    Compat,
    /// The operator and the charts against an API server without nodes.
    Operator,
    /// Whole clusters on a real Kubernetes.
    E2e,
}

impl Part {
    const ALL: [Self; 5] = [Self::Unit, Self::Sim, Self::Compat, Self::Operator, Self::E2e];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Sim => "sim",
            Self::Compat => "compat",
            Self::Operator => "operator",
            Self::E2e => "e2e",
        }
    }
}

/// How many tests a step ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Sums the lines with which cargo's test programs end; `None` when there is none.
    fn of_cargo(output: &str) -> Option<Self> {
        let mut counts = Self::default();
        let mut any = false;
        for line in output.lines().filter_map(|line| line.trim().strip_prefix("test result: ")) {
            any = true;
            let numbers = line.split(['.', ';']).filter_map(|part| part.trim().split_once(' '));
            for (number, word) in numbers {
                let number = number.parse().unwrap_or(0);
                match word {
                    "passed" => counts.passed += number,
                    "failed" => counts.failed += number,
                    "ignored" => counts.skipped += number,
                    _ => {}
                }
            }
        }
        any.then_some(counts)
    }
}

/// Runs the parts; the program's exit code says whether all passed.
pub fn run(arguments: &Arguments) -> Result<()> {
    let chosen = if arguments.parts.is_empty() { Part::ALL.to_vec() } else { arguments.parts.clone() };
    let logs = paths::target().join("test");
    fs::create_dir_all(&logs).with_context(|| format!("could not make {}", logs.display()))?;
    let progress = Progress::new();
    let mut total = Counts::default();
    let mut failed_logs = Vec::new();
    for part in chosen {
        let began = Instant::now();
        let mut counts = Counts::default();
        for step in parts::steps(part, arguments.full) {
            let log = logs.join(format!("{}-{}.log", part.name(), step.name.replace(' ', "-")));
            let outcome = run_step(&step, &log, &progress);
            if outcome.failed > 0 {
                progress.line(&format!("{} {}: FAILED\n{}", part.name(), step.name, what_failed(&log)));
                failed_logs.push(log);
            }
            counts.add(outcome);
        }
        progress.line(&format!(
            "{}: {} passed, {} failed, {} skipped in {} s",
            part.name(),
            counts.passed,
            counts.failed,
            counts.skipped,
            began.elapsed().as_secs()
        ));
        total.add(counts);
    }
    drop(progress);
    for log in &failed_logs {
        println!("the whole output of what failed: {}", log.display());
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    std::process::exit(i32::from(total.failed > 0 || total.passed == 0));
}

fn run_step(step: &Step, log: &Path, progress: &Progress) -> Counts {
    let began = Instant::now();
    let _ = fs::remove_file(log);
    let mut shown = Instant::now();
    let result = step.command(&|text| progress.line(text)).and_then(|mut command| {
        process::run_logged(&mut command, log, step.limit, || {
            if shown.elapsed() > Duration::from_millis(500) {
                shown = Instant::now();
                progress.now(&format!("{} ({} s): {}", step.name, began.elapsed().as_secs(), last_line(log)));
            }
        })
    });
    let output = fs::read_to_string(log).unwrap_or_default();
    let mut counts = if step.counts_tests { Counts::of_cargo(&output) } else { None }.unwrap_or_default();
    match result {
        Ok(status) if status.success() => {
            if !step.counts_tests {
                counts.passed = 1;
            }
        }
        Ok(_) => counts.failed = counts.failed.max(1),
        Err(error) => {
            let _ = fs::write(log, format!("{output}\n{error:#}\n"));
            counts.failed = counts.failed.max(1);
        }
    }
    progress.line(&format!("  {}: {} s", step.name, began.elapsed().as_secs()));
    counts
}

/// The part of a log that says what went wrong: from the first failure's own words on, else the end.
pub fn what_failed(log: &Path) -> String {
    const LINES_MAX: usize = 60;
    const CHARACTERS_MAX: usize = 400;
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let names = lines.iter().filter(|line| line.starts_with("test ") && line.ends_with("FAILED"));
    let first = lines.iter().position(|line| line.starts_with("failures:") || line.starts_with("error"));
    let from = first.unwrap_or(lines.len().saturating_sub(LINES_MAX));
    let excerpt = lines.iter().skip(from).take(LINES_MAX);
    let shown = |line: &&str| format!("    {}", line.chars().take(CHARACTERS_MAX).collect::<String>());
    names.chain(excerpt).map(shown).collect::<Vec<_>>().join("\n")
}

/// The last line of a log that says something, cut to what fits a line of progress.
pub fn last_line(log: &Path) -> String {
    let tail = process::tail_of_file(log);
    let line = tail.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    line.chars().take(160).collect()
}

/// The file with what a step prints besides its verdict, such as collected evidence.
pub fn evidence_folder() -> PathBuf {
    paths::target().join("test/evidence")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_several_test_programs_are_summed() {
        let output = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                      test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.03s\n";
        assert_eq!(Counts::of_cargo(output), Some(Counts { passed: 5, failed: 1, skipped: 1 }));
    }

    #[test]
    fn an_output_without_a_test_result_has_no_counts() {
        assert_eq!(Counts::of_cargo("error: could not compile `gregor-log`"), None);
    }
}
