//! Results: medians of the ratios of each round, with their range, as JSON for machines, Markdown and plots for people.

use std::{fmt::Write as _, fs, path::Path, time::SystemTime};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    brokers::Kind,
    machine::{Machine, Probe},
    plot::{self, Bar},
    workloads::{Row, Workload},
};

/// What stands before the table of one node in the page, before that of clusters, and before that of the simulator.
const BEGIN: &str = "<!-- figures: written by `cargo xtask bench -- --docs` -->";
const BEGIN_OF_CLUSTERS: &str = "<!-- figures of clusters: written by `cargo xtask bench -- --cluster --docs` -->";
const BEGIN_OF_SIMULATOR: &str = "<!-- figures of the simulator: written by `cargo xtask bench -- --sim --docs` -->";
const END: &str = "<!-- end of figures -->";

/// All that was measured in a run.
#[derive(Serialize)]
pub struct Results {
    machine: Machine,
    rounds: usize,
    /// Seconds since 1970, UTC.
    at: u64,
    /// How the run was set up, in words.
    notes: Vec<String>,
    /// One for each round.
    probes: Vec<Probe>,
    figures: Vec<Figure>,
}

#[derive(Serialize)]
struct Figure {
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    target: Option<f64>,
    gregor: Vec<f64>,
    apache: Vec<f64>,
}

impl Results {
    /// Nothing measured yet.
    pub fn new(workloads: &[&'static Workload], rounds: usize) -> Self {
        let figure = |row: &'static Row| Figure {
            name: row.name,
            what: row.what,
            unit: row.unit,
            target: row.target,
            gregor: Vec::new(),
            apache: Vec::new(),
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            machine: Machine::this(),
            rounds,
            at: now.as_secs(),
            notes: Vec::new(),
            probes: Vec::new(),
            figures: workloads.iter().flat_map(|workload| workload.figures).map(figure).collect(),
        }
    }

    /// Says how the run was set up.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// What the machine's fixed jobs cost at the beginning of a round.
    pub fn probe(&mut self, probe: Probe) {
        self.probes.push(probe);
    }

    /// Adds what one workload gave.
    pub fn add(&mut self, workload: &Workload, kind: Kind, values: &[f64]) {
        for (row, value) in workload.figures.iter().zip(values) {
            if let Some(figure) = self.figures.iter_mut().find(|figure| figure.name == row.name) {
                match kind {
                    Kind::Gregor => figure.gregor.push(*value),
                    Kind::Apache => figure.apache.push(*value),
                }
            }
        }
    }

    /// Writes JSON, Markdown and the plots into the folder: `latest.json` and so on for a run of one node, `cluster.json` and so on
    /// for one of clusters.
    pub fn write(&self, folder: &Path, of_clusters: bool) -> Result<()> {
        let (stem, prefix) = if of_clusters { ("cluster", "cluster-") } else { ("latest", "") };
        fs::create_dir_all(folder)?;
        fs::write(folder.join(format!("{stem}.json")), serde_json::to_string_pretty(self)? + "\n")?;
        fs::write(folder.join(format!("{stem}.md")), self.table())?;
        self.write_plots(folder, prefix)
    }

    /// Puts table and plots of one node, or of clusters, into `docs/performance.md`, in place of those that are there.
    pub fn write_docs(&self, docs: &Path, of_clusters: bool) -> Result<()> {
        let (begin, prefix) =
            if of_clusters { (BEGIN_OF_CLUSTERS, "performance-cluster-") } else { (BEGIN, "performance-") };
        self.write_plots(docs, prefix)?;
        let plots = format!(
            "![How many times less Gregor takes than Apache Kafka.]({prefix}ratios.svg)\n\n\
             ![Latency of both brokers.]({prefix}latency.svg)\n"
        );
        replace(docs, begin, &format!("{}\n{plots}", self.table()))
    }

    fn write_plots(&self, folder: &Path, prefix: &str) -> Result<()> {
        let ratios: Vec<_> = self
            .figures
            .iter()
            .filter(|figure| figure.is_measured())
            .map(|figure| {
                let (low, middle, high) = figure.range();
                Bar { name: figure.name, low, value: middle, high, mark: figure.target }
            })
            .collect();
        fs::write(folder.join(format!("{prefix}ratios.svg")), plot::ratios(&ratios))?;
        let latencies: Vec<_> = self
            .figures
            .iter()
            .filter(|figure| figure.unit == "ms" && figure.is_measured())
            .map(|figure| (figure.name, median(&figure.gregor), median(&figure.apache)))
            .collect();
        fs::write(folder.join(format!("{prefix}latency.svg")), plot::pairs(&latencies))?;
        Ok(())
    }

    /// How many rounds the figures are of: a run that was cut off has fewer than it was to have.
    fn rounds_measured(&self) -> String {
        let measured =
            self.figures.iter().map(|figure| figure.gregor.len().min(figure.apache.len())).max().unwrap_or(0);
        match self.rounds.saturating_sub(measured) {
            0 => format!("{measured} rounds"),
            _ => format!("{measured} of {} rounds (the run was cut off)", self.rounds),
        }
    }

    /// A Markdown table of medians and ratios.
    pub fn table(&self) -> String {
        let mut table = format!(
            "{}, each on both brokers in turn; {} x {}, {} MiB, Linux {}.",
            self.rounds_measured(),
            self.machine.processors,
            self.machine.model,
            self.machine.memory_mib,
            self.machine.kernel
        );
        for note in &self.notes {
            let _ = write!(table, " {note}");
        }
        if !self.probes.is_empty() {
            let of = |pick: fn(&Probe) -> f64| median(&self.probes.iter().map(pick).collect::<Vec<_>>());
            let _ = write!(
                table,
                " The kernel's own part, median of the rounds: {} us for a 16 KiB write into the page cache, {} us for 128 bytes \
                 there and back over loopback.",
                rounded(of(|probe| probe.write_us)),
                rounded(of(|probe| probe.ping_pong_us))
            );
        }
        table.push_str(
            "\n\n| | what | unit | Gregor | Apache Kafka 4.4.0 | ratio | worst and best round | rounds | to reach |\n|---|---|---|---|---|---|---|---|---|\n",
        );
        for figure in self.figures.iter().filter(|figure| figure.is_measured()) {
            let (low, middle, high) = figure.range();
            let _ = writeln!(
                table,
                "| {} | {} | {} | {} | {} | **1/{}** | 1/{} to 1/{} | {} | {} |",
                figure.name,
                figure.what,
                figure.unit,
                rounded(median(&figure.gregor)),
                rounded(median(&figure.apache)),
                rounded(middle),
                rounded(low),
                rounded(high),
                figure.gregor.len(),
                figure.target.map_or_else(String::new, |target| format!("1/{target:.0}")),
            );
        }
        table
    }
}

impl Figure {
    fn is_measured(&self) -> bool {
        !self.gregor.is_empty() && self.gregor.len() == self.apache.len()
    }

    /// How many times less ours is: the worst round, the median, the best round.
    fn range(&self) -> (f64, f64, f64) {
        let ratios: Vec<_> =
            self.gregor.iter().zip(&self.apache).map(|(ours, theirs)| theirs / ours.max(f64::MIN_POSITIVE)).collect();
        let (low, high) =
            (ratios.iter().copied().fold(f64::INFINITY, f64::min), ratios.iter().copied().fold(0.0, f64::max));
        (low, median(&ratios), high)
    }
}

/// Puts what the simulator gave into `docs/performance.md`, in place of what is there.
pub fn write_simulator(docs: &Path, table: &str) -> Result<()> {
    replace(docs, BEGIN_OF_SIMULATOR, table)
}

/// Puts figures into the page, behind what stands before them.
fn replace(docs: &Path, begin: &str, figures: &str) -> Result<()> {
    let page = docs.join("performance.md");
    let text = fs::read_to_string(&page)?;
    let (before, rest) = text.split_once(begin).with_context(|| format!("{} has no {begin}", page.display()))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{} has no {END}", page.display()))?;
    fs::write(&page, format!("{before}{begin}\n{figures}{END}{after}"))?;
    Ok(())
}

/// The value in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

/// Three significant digits or so.
pub fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let figure = Figure {
            name: "x",
            what: "a thing",
            unit: "ms",
            target: Some(4.0),
            gregor: vec![1.0, 10.0, 2.0],
            apache: vec![4.0, 20.0, 10.0],
        };
        let (machine, notes, probes) = (Machine::this(), Vec::new(), Vec::new());
        Results { machine, rounds: 3, at: 0, notes, probes, figures: vec![figure] }
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_and_not_of_the_figures() {
        let mut results = results();
        assert!(results.table().contains("**1/4.00** | 1/2.00 to 1/5.00 | 3 | 1/4 |"), "{}", results.table());
        results.figures[0].gregor.clear();
        assert!(!results.table().contains("a thing"), "what was not measured is not shown");
    }

    #[test]
    fn a_run_that_was_cut_off_tells_the_rounds_that_were_measured() {
        let mut results = results();
        assert!(results.table().starts_with("3 rounds, each"), "{}", results.table());
        results.rounds = 7;
        assert!(results.table().starts_with("3 of 7 rounds (the run was cut off), each"), "{}", results.table());
    }

    #[test]
    fn the_page_keeps_what_stands_around_the_figures() {
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("performance.md");
        let both = format!("before\n{BEGIN}\nold\n{END}\nbetween\n{BEGIN_OF_CLUSTERS}\nolder\n{END}\n");
        fs::write(&page, format!("{both}next\n{BEGIN_OF_SIMULATOR}\noldest\n{END}\nafter\n")).unwrap();
        for _ in 0..2 {
            results().write_docs(folder.path(), false).unwrap();
        }
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.starts_with("before\n") && text.ends_with("\nafter\n") && !text.contains("old\n"), "{text}");
        assert!(text.contains("**1/4.00**") && folder.path().join("performance-ratios.svg").exists());
        assert!(text.contains("\nbetween\n") && text.contains("\nolder\n"), "{text}");
        results().write_docs(folder.path(), true).unwrap();
        let text = fs::read_to_string(&page).unwrap();
        assert!(!text.contains("older") && text.matches("**1/4.00**").count() == 2, "{text}");
        assert!(folder.path().join("performance-cluster-ratios.svg").exists());
        assert!(text.contains("oldest"), "{text}");
        for _ in 0..2 {
            write_simulator(folder.path(), "as fast\n").unwrap();
        }
        let text = fs::read_to_string(&page).unwrap();
        assert!(text.ends_with(&format!("next\n{BEGIN_OF_SIMULATOR}\nas fast\n{END}\nafter\n")), "{text}");
    }
}
