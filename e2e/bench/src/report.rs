//! Results: medians of the ratios of each round, with their range, as JSON for machines and Markdown for people.

use std::{fmt::Write as _, fs, path::Path, time::SystemTime};

use anyhow::Result;
use serde::Serialize;

use crate::{brokers::Kind, workloads::Workload};

/// All that was measured in a run.
#[derive(Serialize)]
pub struct Results {
    machine: Machine,
    rounds: usize,
    /// Seconds since 1970, UTC.
    at: u64,
    figures: Vec<Figure>,
}

#[derive(Serialize)]
struct Machine {
    processors: usize,
    memory_mib: u64,
    kernel: String,
    model: String,
}

#[derive(Serialize)]
struct Figure {
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    gregor: Vec<f64>,
    apache: Vec<f64>,
}

impl Results {
    /// Nothing measured yet.
    pub fn new(workloads: &[&'static Workload], rounds: usize) -> Self {
        let figure = |workload: &&'static Workload| Figure {
            name: workload.name,
            what: workload.what,
            unit: workload.unit,
            gregor: Vec::new(),
            apache: Vec::new(),
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { machine: Machine::this(), rounds, at: now.as_secs(), figures: workloads.iter().map(figure).collect() }
    }

    /// Adds one measured figure.
    pub fn add(&mut self, workload: &Workload, kind: Kind, value: f64) {
        if let Some(figure) = self.figures.iter_mut().find(|figure| figure.name == workload.name) {
            match kind {
                Kind::Gregor => figure.gregor.push(value),
                Kind::Apache => figure.apache.push(value),
            }
        }
    }

    /// Writes `latest.json` and `latest.md` into the folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("latest.json"), serde_json::to_string_pretty(self)? + "\n")?;
        fs::write(folder.join("latest.md"), self.table())?;
        Ok(())
    }

    /// A Markdown table of medians and ratios.
    pub fn table(&self) -> String {
        let mut table = format!(
            "{} rounds, each on both brokers in turn; {} x {}, {} MiB, Linux {}.\n\n\
             | what | unit | Gregor | Apache Kafka 4.4.0 | ratio | worst and best round |\n|---|---|---|---|---|---|\n",
            self.rounds, self.machine.processors, self.machine.model, self.machine.memory_mib, self.machine.kernel
        );
        for figure in &self.figures {
            let ratios = figure.ratios();
            let _ = writeln!(
                table,
                "| {} | {} | {} | {} | **1/{}** | 1/{} to 1/{} |",
                figure.what,
                figure.unit,
                rounded(median(&figure.gregor)),
                rounded(median(&figure.apache)),
                rounded(median(&ratios)),
                rounded(ratios.iter().copied().fold(f64::INFINITY, f64::min)),
                rounded(ratios.iter().copied().fold(0.0, f64::max)),
            );
        }
        table
    }
}

impl Figure {
    /// How many times less ours is, round by round.
    fn ratios(&self) -> Vec<f64> {
        self.gregor.iter().zip(&self.apache).map(|(ours, theirs)| theirs / ours.max(f64::MIN_POSITIVE)).collect()
    }
}

impl Machine {
    fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        Self {
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            model: field(&read("/proc/cpuinfo"), "model name"),
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

/// Three significant digits or so.
fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_and_not_of_the_figures() {
        let mut results = Results {
            machine: Machine::this(),
            rounds: 3,
            at: 0,
            figures: vec![Figure {
                name: "x",
                what: "x",
                unit: "s",
                gregor: vec![1.0, 10.0, 2.0],
                apache: vec![4.0, 20.0, 10.0],
            }],
        };
        assert_eq!(results.figures[0].ratios(), [4.0, 2.0, 5.0]);
        assert!(results.table().contains("**1/4.00** | 1/2.00 to 1/5.00"), "{}", results.table());
        results.figures[0].gregor.clear();
        assert!(results.table().contains("NaN"));
    }
}
