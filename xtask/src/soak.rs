//! `cargo xtask soak`: the chaos test for as long as somebody wants, in rounds with seeds of their own, and what came of it.
//!
//! The test is `broker/gregor/tests/chaos.rs`: three real nodes that are killed, held, stopped and cut off under load, and are held to
//! what they promised. This only runs it, shows how far it is, and sums up what it told.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use gregor_kubernetes::process;

use crate::{paths, progress::Progress, test};

/// How the lines begin that the test tells its story with.
const TELLS: &str = "chaos: ";
/// What a round may take beyond its chaos: starts, the comparison of all replicas, reading all that was written.
const ROUND_END: Duration = Duration::from_mins(20);
/// Whatever fails so often fails whatever the seed.
const FAILURES_MAX: u64 = 5;
const SECONDS_MAX: f64 = 365.0 * 24.0 * 3600.0;

/// How long, and from which seed on.
#[derive(Args)]
#[command(after_help = "\
Three nodes with three partitions are killed, held (SIGSTOP), stopped, cut off from each other and from clients (which takes root), and
lose their disks, alone, by twos and all at once, while two idempotent producers write with acks=all, a consumer reads, topics are made and offsets committed. Each
round is a new cluster with a new seed. It passes if all that was acknowledged or read is there, records at their offsets, once, and in
the order of their producer; if all replicas have the same bytes; and if the nodes' metadata logs and answers agree.

  cargo xtask soak 8                        a night
  cargo xtask soak --minutes 30 --round 5   six rounds
  cargo xtask soak --minutes 10 --seed 42   the round that printed `seed 42`, as far as a machine repeats itself

While it runs, a line a minute (or a line that moves, on a terminal) tells the second of the round, the records that are acknowledged,
memory and open files of each node, and what happens next. The whole story of each round is in target/soak/. A round that fails is
told, with the folder where its nodes' files are kept, and does not end the soak, unless there are five; the exit code tells.")]
pub struct Arguments {
    /// Go on for so many hours; 0.5 is half of one.
    #[arg(value_name = "HOURS", required_unless_present = "minutes", conflicts_with = "minutes")]
    hours: Option<f64>,
    /// Go on for so many minutes.
    #[arg(long, value_name = "N")]
    minutes: Option<f64>,
    /// How many minutes of chaos a round has.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    round: u64,
    /// The seed of the first round; those that follow count on from it.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Build with optimization: later ready, more happens, and the memory is what users see.
    #[arg(long)]
    release: bool,
}

/// What the rounds came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    rounds: u64,
    failed: u64,
    disturbances: u64,
    acknowledged: u64,
    /// The most that any node took.
    memory_mib: u64,
    files: u64,
}

impl Sum {
    /// What a round told at its end; none where it did not come so far.
    fn of_round(story: &str) -> Option<Self> {
        let told = story.lines().filter_map(|line| line.strip_prefix(TELLS));
        let (counts, most) = told.filter_map(|line| line.split_once("; at most ")).next_back()?;
        let mut counts = counts.split(", ").map(number);
        let mut most = most.split(" MiB ").map(number);
        Some(Self {
            rounds: 1,
            failed: 0,
            disturbances: counts.next()??,
            acknowledged: counts.next()??,
            memory_mib: most.next()??,
            files: most.next()??,
        })
    }

    fn add(&mut self, other: Self) {
        self.rounds += other.rounds;
        self.failed += other.failed;
        self.disturbances += other.disturbances;
        self.acknowledged += other.acknowledged;
        self.memory_mib = self.memory_mib.max(other.memory_mib);
        self.files = self.files.max(other.files);
    }
}

/// The number at a text's beginning.
fn number(text: &str) -> Option<u64> {
    text.split(' ').next()?.parse().ok()
}

/// Fails if a round did.
pub fn run(arguments: &Arguments) -> Result<()> {
    let seconds = arguments.hours.map_or(0.0, |hours| hours * 3600.0) + arguments.minutes.unwrap_or(0.0) * 60.0;
    let lasting = seconds > 0.0 && seconds <= SECONDS_MAX;
    if !lasting {
        bail!("a soak of {seconds} seconds is none; say how many hours, or --minutes");
    }
    let lasts = Duration::from_secs_f64(seconds);
    let logs = paths::target().join("soak");
    fs::create_dir_all(&logs).with_context(|| format!("could not make {}", logs.display()))?;
    let progress = Progress::new();
    build(arguments, &logs.join("build.log"), &progress)?;
    let random = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    let first = arguments.seed.unwrap_or_else(random);
    let (began, mut sum) = (Instant::now(), Sum::default());
    while began.elapsed() < lasts && sum.failed < FAILURES_MAX {
        let seed = first.wrapping_add(sum.rounds);
        let left = lasts.saturating_sub(began.elapsed());
        let chaos = left.min(Duration::from_mins(arguments.round));
        sum.add(round(arguments, sum.rounds + 1, seed, chaos, &logs, &progress));
    }
    progress.line(&format!(
        "{} rounds, {} failed; {} disturbances, {} records acknowledged; \
         a node took at most {} MiB and {} files; all of it is in {}",
        sum.rounds,
        sum.failed,
        sum.disturbances,
        sum.acknowledged,
        sum.memory_mib,
        sum.files,
        logs.display()
    ));
    if sum.failed > 0 {
        bail!("{} of {} rounds failed", sum.failed, sum.rounds);
    }
    Ok(())
}

/// A cargo command for the test, which takes the features that the other commands build with.
fn cargo_test(arguments: &Arguments) -> std::process::Command {
    let mut command = paths::cargo();
    command.args(["test", "--workspace", "--exclude", "gregor-e2e", "--exclude", "gregor-compat", "--test", "chaos"]);
    if arguments.release {
        command.arg("--release");
    }
    command
}

fn build(arguments: &Arguments, log: &Path, progress: &Progress) -> Result<()> {
    let _ = fs::remove_file(log);
    let mut command = cargo_test(arguments);
    let status = process::run_logged(command.arg("--no-run"), log, Duration::from_hours(1), || {
        progress.now(&format!("building: {}", test::last_line(log)));
    })?;
    if !status.success() {
        bail!("the test could not be built:\n{}", test::what_failed(log));
    }
    Ok(())
}

/// Plays one round and tells what came of it.
fn round(arguments: &Arguments, count: u64, seed: u64, chaos: Duration, logs: &Path, progress: &Progress) -> Sum {
    progress.line(&format!("round {count}: seed {seed}, {} s of chaos", chaos.as_secs()));
    let log = logs.join(format!("round-{count}.log"));
    let _ = fs::remove_file(&log);
    let mut command = cargo_test(arguments);
    command.args(["--", "--nocapture"]);
    command.env("GREGOR_CHAOS_SEED", seed.to_string()).env("GREGOR_CHAOS_SECONDS", chaos.as_secs().to_string());
    // Without cuts it would be another test; whoever may make no network is told so.
    command.env("GREGOR_CHAOS_KEEP", "1").env("GREGOR_CHAOS_CUTS", "required");
    let mut shown = Instant::now();
    let ended = process::run_logged(&mut command, &log, chaos + ROUND_END, || {
        if shown.elapsed() > Duration::from_secs(1) {
            shown = Instant::now();
            progress.now(&format!("round {count}: {}", test::last_line(&log)));
        }
    });
    let story = fs::read_to_string(&log).unwrap_or_default();
    let sum = Sum::of_round(&story);
    let why = match ended {
        Ok(status) if !status.success() => Some(failure(&story)),
        Ok(_) if sum.is_none() => Some("the test did not tell what it did".to_owned()),
        Ok(_) => None,
        Err(error) => Some(format!("{error:#}")),
    };
    if let Some(line) = story.lines().filter_map(|line| line.strip_prefix(TELLS)).next_back() {
        progress.line(&format!("round {count}: {line}"));
    }
    let failed = u64::from(why.is_some());
    if let Some(why) = why {
        let log = log.display();
        progress.line(&format!("round {count}: FAILED with seed {seed}; all that it said is in {log}\n{why}"));
    }
    Sum { rounds: 1, failed, ..sum.unwrap_or_default() }
}

/// What a test that failed said of it: what it panicked with and what came then, else its last lines.
fn failure(story: &str) -> String {
    const LINES_MAX: usize = 60;
    let lines: Vec<&str> = story.lines().collect();
    let first = lines.iter().position(|line| line.contains(" panicked at "));
    let from = first.unwrap_or(lines.len().saturating_sub(LINES_MAX));
    lines[from..].iter().take(LINES_MAX).map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn a_soak_takes_hours_or_minutes_and_all_else_with_them() {
        let round = |line: &str| Line::try_parse_from(line.split(' ')).map(|line| line.arguments.round).ok();
        assert_eq!(round("soak 8 --release"), Some(10));
        assert_eq!(round("soak --minutes 30 --round 5 --seed 7"), Some(5));
        for wrong in ["soak", "soak 8 --minutes 30", "soak 8 --round 0"] {
            assert_eq!(round(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn rounds_are_summed_and_failures_shown_as_the_test_tells_them() {
        let story = "chaos: GREGOR_CHAOS_SEED=7\nchaos: 3 s, 120 records; 20 MiB 60 files, -, 21 MiB 61 files; Kill, calm: true\n\
                     chaos: 16 disturbances, 5120 records acknowledged, 5000 read meanwhile, 5121 there, 40 topics, 81 offsets; \
                     at the end 30 MiB 60 files, 31 MiB 61 files, 29 MiB 60 files; at most 33 MiB 80 files\ntest result: ok.\n";
        let round = Sum::of_round(story).unwrap();
        let wanted = Sum { rounds: 1, failed: 0, disturbances: 16, acknowledged: 5120, memory_mib: 33, files: 80 };
        assert_eq!(round, wanted);
        let mut sum = Sum { rounds: 1, failed: 1, disturbances: 1, acknowledged: 1, memory_mib: 40, files: 1 };
        sum.add(round);
        let wanted = Sum { rounds: 2, failed: 1, disturbances: 17, acknowledged: 5121, memory_mib: 40, files: 80 };
        assert_eq!(sum, wanted);
        let broken = "chaos: GREGOR_CHAOS_SEED=7\nthread 'a' panicked at b:\nwhy\n";
        assert_eq!(Sum::of_round(broken), None);
        assert_eq!(failure(broken), "    thread 'a' panicked at b:\n    why");
    }
}
