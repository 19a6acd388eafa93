//! Apache Kafka and Gregor take turns on one data directory: each serves what the other wrote, byte for byte, and writes on.
//! Producers write while a broker goes; the transactions of one of them do too, as long as it is the broker that serves them.
//!
//! `GREGOR_COMPAT=full` runs 20 turns instead of 5, each time others; every run prints its seed, and `GREGOR_COMPAT_SEED`
//! repeats it; `GREGOR_COMPAT_KEEP=1` leaves the directories where they are.

mod home;
mod view;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use gregor_apache::{Jars, Release, jars};
use gregor_compat::{Chance, Driver, program};

use crate::{
    home::{Home, Layout, Running},
    view::View,
};

const TURNS: usize = 5;
const TURNS_IN_FULL: usize = 20;
/// What the driver does in a turn.
const STEPS: u32 = 12;
/// How long a command of its may take.
const COMMAND_LIMIT: Duration = Duration::from_mins(3);

/// The run: a home, who writes to it, and what it looked like when it was looked at last.
struct Turns {
    home: Home,
    driver: Driver,
    chance: Chance,
    /// Whether a turn may end with a kill.
    may_kill: bool,
    last: Option<View>,
}

impl Turns {
    /// Starts a broker, compares, writes, looks, ends it.
    fn turn(&mut self, name: &str, start: impl FnOnce(&Home) -> Result<Running>, steps: u32) -> Result<()> {
        let began = Instant::now();
        let running = start(&self.home)?;
        let outcome = self.serve(name, &running, steps);
        if let Err(error) = outcome {
            let text = running.story("did not go on");
            drop(running);
            return Err(error.context(text));
        }
        let (kill, mut view) = (self.may_kill && self.chance.one_in(2), outcome?);
        self.home.wait_for_start_offsets(&view.starts)?;
        view.add_read(&self.driver.run("read")?);
        println!(
            "{name}: {} things seen, {} after {:?}",
            view.len(),
            if kill { "killed" } else { "stopped" },
            began.elapsed()
        );
        self.last = Some(view);
        if self.may_kill {
            self.driver.run(&format!("hammer {}", running.kind()))?;
        }
        if kill {
            running.kill()?;
        } else {
            running.stop()?;
        }
        self.driver.run("gone").map(drop)
    }

    fn serve(&mut self, name: &str, running: &Running, steps: u32) -> Result<View> {
        if let Some(before) = &self.last {
            self.driver.run(&format!("settle {}", running.kind()))?;
            let mut view = View::of(&self.home)?;
            view.add_read(&self.driver.run("read")?);
            let differences = before.differences(&view);
            ensure!(differences.is_empty(), "{name} serves other than what the last broker served:\n{differences}");
        }
        let seed = self.chance.draw();
        for line in self.driver.run(&format!("write {} {seed} {steps}", running.kind()))? {
            println!("  {line}");
        }
        View::of(&self.home)
    }

    /// Apache's DumpLogSegments finds nothing wrong with any file.
    fn dump(&mut self) -> Result<()> {
        let mut of_kind: Vec<(&str, Vec<PathBuf>)> = vec![
            ("--deep-iteration", Vec::new()),
            ("--deep-iteration --offsets-decoder", Vec::new()),
            ("--deep-iteration --transaction-log-decoder", Vec::new()),
            ("--deep-iteration --cluster-metadata-decoder", Vec::new()),
            ("--index-sanity-check", Vec::new()),
            ("--verify-index-only", Vec::new()),
        ];
        for (name, folder) in self.home.partitions()? {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                if path.ends_with("leader-epoch-checkpoint") {
                    check_epochs(&path)?;
                }
                let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
                let decoder = match &*name {
                    "__cluster_metadata-0" => 3,
                    name if name.starts_with("__consumer_offsets-") => 1,
                    name if name.starts_with("__transaction_state-") => 2,
                    _ => 0,
                };
                match extension {
                    "log" | "checkpoint" => of_kind[decoder].1.push(path),
                    "txnindex" | "snapshot" => of_kind[0].1.push(path),
                    "index" => {
                        of_kind[4].1.push(path.clone());
                        of_kind[5].1.push(path);
                    }
                    "timeindex" => of_kind[5].1.push(path),
                    _ => {}
                }
            }
        }
        for (options, files) in of_kind {
            let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
            if files.is_empty() {
                continue;
            }
            let said = self.driver.run(&format!("dump {options} --files {}", files.join(",")))?;
            let complaints =
                ["ismatch", "Found ", "out of order", "failed", "Exception", "isvalid: false", "invalid", "Could not"];
            let wrong = said.iter().find(|line| complaints.iter().any(|word| line.contains(word)));
            ensure!(
                wrong.is_none(),
                "DumpLogSegments {options}: {}\n{}",
                wrong.map_or("", |line| line),
                said.join("\n")
            );
        }
        Ok(())
    }
}

/// Apache has no tool for this file: version 0, a count, and that many epochs and offsets which both grow.
fn check_epochs(path: &Path) -> Result<()> {
    let text = std::fs::read_to_string(path)?;
    let lines: Vec<&str> = text.lines().collect();
    let [version, count, entries @ ..] = &lines[..] else { anyhow::bail!("{} is too short", path.display()) };
    let entries = entries.iter().map(|line| {
        let (epoch, start) = line.split_once(' ').context("an epoch and an offset")?;
        Ok((epoch.parse::<i32>()?, start.parse::<i64>()?))
    });
    let entries = entries.collect::<Result<Vec<_>>>()?;
    let grow = entries.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1);
    ensure!(*version == "0" && *count == entries.len().to_string() && grow, "{} says\n{text}", path.display());
    Ok(())
}

#[test]
fn apache_and_gregor_take_turns_on_one_directory_and_each_serves_what_the_other_wrote() -> Result<()> {
    // Built before anything waits for it: a build in the midst of the turns would outlast the patience of the producers.
    program()?;
    let tools = jars(&Release::complete(Release::COMPLETE))?;
    let brokers: Vec<Jars> = vec![tools.clone(), jars(&Release::broker(Release::NEWEST))?];
    let full = std::env::var("GREGOR_COMPAT").is_ok_and(|kind| kind == "full");
    let mut chance = Chance::from_environment(full)?;
    let layout = Layout {
        dynamic_quorum: chance.one_in(2),
        metadata_in_second: chance.one_in(2),
        formatted_by_gregor: chance.one_in(2),
    };
    println!("{layout:?}");
    let home = Home::new(&tools, layout)?;
    let bootstrap = home.bootstrap();
    let directories = home.directories();
    let [first, second] = directories.each_ref().map(|path| path.to_str().context("a path that is text"));
    let arguments = [bootstrap.as_str(), first?, second?];
    let driver = Driver::start(&tools, home.path(), "takeover/Takeover.java", &arguments, COMMAND_LIMIT)?;
    let mut turns = Turns { home, driver, chance, may_kill: true, last: None };
    let all = if full { TURNS_IN_FULL } else { TURNS };
    for turn in 1..=all {
        let release = &brokers[usize::from(turns.chance.one_in(2))];
        let name = format!("turn {turn} of {all}, Apache {}", release.release.version);
        turns.turn(&name, |home| home.start_apache(release), STEPS)?;
        turns.turn(&format!("turn {turn} of {all}, Gregor"), Home::start_gregor, STEPS)?;
        turns.dump()?;
    }
    // Apache takes back what ours wrote last. Killed, it would leave indexes that its own tool complains about.
    turns.may_kill = false;
    turns.turn("Apache at last", |home| home.start_apache(&brokers[1]), 1)?;
    turns.dump()
}
