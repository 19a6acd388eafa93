//! What each part of `cargo xtask test` runs. The table to extend when a kind of test is added.

use std::{path::Path, process::Command, time::Duration};

use anyhow::Result;
use gregor_kubernetes::Rig;

use super::{Part, evidence_folder};
use crate::paths;

/// The rig whose API server the operator's tests use; it has no nodes.
const OPERATOR_RIG: &str = "operator-tests";

/// One program to run.
pub struct Step {
    /// What it is called in the output and in its log's name.
    pub name: &'static str,
    /// It is ended after this long.
    pub limit: Duration,
    /// Whether its output ends with cargo's test results; else it counts as one test.
    pub counts_tests: bool,
    make: Make,
}

type Make = Box<dyn Fn(&dyn Fn(&str)) -> Result<Command>>;

impl Step {
    /// Prepares what the step needs and returns its command.
    pub fn command(&self, report: &dyn Fn(&str)) -> Result<Command> {
        (self.make)(report)
    }

    fn new(
        name: &'static str,
        minutes: u64,
        counts_tests: bool,
        make: impl Fn(&dyn Fn(&str)) -> Result<Command> + 'static,
    ) -> Self {
        Self { name, limit: Duration::from_mins(minutes), counts_tests, make: Box::new(make) }
    }

    /// A cargo command that counts as one test.
    fn check(name: &'static str, minutes: u64, arguments: &'static [&'static str]) -> Self {
        Self::new(name, minutes, false, move |_| Ok(cargo(arguments)))
    }

    /// A cargo command that runs tests.
    fn tests(name: &'static str, minutes: u64, arguments: &'static [&'static str]) -> Self {
        Self::new(name, minutes, true, move |_| Ok(cargo(arguments)))
    }
}

/// The steps of a part, in order.
pub fn steps(part: Part, full: bool) -> Vec<Step> {
    match part {
        Part::Unit => unit(full),
        Part::Sim => vec![sim(full)],
        Part::Compat => {
            vec![Step::new("compat", if full { 90 } else { 25 }, true, move |_| {
                let mut command = cargo(&["test", "-p", "gregor-compat", "--no-fail-fast"]);
                command.env("GREGOR_COMPAT", if full { "full" } else { "1" });
                Ok(command)
            })]
        }
        Part::Operator => operator(),
        Part::E2e => e2e(full),
    }
}

fn unit(full: bool) -> Vec<Step> {
    let mut steps = vec![
        Step::check("format", 2, &["fmt", "--all", "--check"]),
        Step::check("tidy", 2, &["xtask", "tidy"]),
        Step::check("clippy", 30, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        Step::tests(
            "tests",
            40,
            &["test", "--workspace", "--no-fail-fast", "--exclude", "gregor-e2e", "--exclude", "gregor-compat"],
        ),
    ];
    if full {
        steps.push(Step::check("aarch64", 30, &["xtask", "images", "--check-aarch64"]));
        steps.push(Step::new("licences", 20, false, |_| {
            if !gregor_kubernetes::process::installed("cargo-deny") {
                gregor_kubernetes::process::output(cargo(&["install", "--locked", "cargo-deny"]).arg("--quiet"))?;
            }
            Ok(cargo(&["deny", "check", "licenses", "bans", "sources"]))
        }));
    }
    steps
}

/// Tests that turn a seed into a world have `seeds` in their names and read `GREGOR_SEEDS`, how many to try; without it
/// they try a few, as in part `unit`.
fn sim(full: bool) -> Step {
    Step::new("seeds", if full { 90 } else { 10 }, true, move |_| {
        let mut command = cargo(&["test", "--workspace", "--exclude", "gregor-e2e", "--exclude", "gregor-compat"]);
        command.args(["--no-fail-fast", "--", "seeds"]).env("GREGOR_SEEDS", if full { "5000" } else { "300" });
        Ok(command)
    })
}

/// The operator's tests that need an API server read `KUBECONFIG`, which is set here, and are skipped without it.
fn operator() -> Vec<Step> {
    vec![
        Step::new("operator", 20, true, |report| {
            if std::env::var_os("KUBECONFIG").is_some() {
                return Ok(cargo(&["test", "-p", "gregor-operator", "--no-fail-fast"]));
            }
            let rig = Rig::named(OPERATOR_RIG);
            rig.up(0, report)?;
            let mut command = rig.command("cargo")?;
            command.args(["test", "-p", "gregor-operator", "--no-fail-fast"]).current_dir(paths::root());
            Ok(command)
        }),
        Step::check("operator down", 2, &["xtask", "rig", "--name", OPERATOR_RIG, "down"]),
    ]
}

fn e2e(full: bool) -> Vec<Step> {
    vec![
        Step::new("rig", 15, true, |_| {
            let mut command = cargo(&["test", "-p", "gregor-kubernetes", "--test", "rig"]);
            command.env("GREGOR_RIG_TESTS", "1");
            Ok(command)
        }),
        Step::check("prepare", 40, &["xtask", "up", "--for-tests"]),
        Step::new("clusters", if full { 60 } else { 35 }, true, move |_| {
            let evidence = evidence_folder();
            remove(&evidence);
            let mut command = cargo(&["test", "-p", "gregor-e2e", "--no-fail-fast"]);
            command.env("GREGOR_E2E", if full { "full" } else { "1" }).env("GREGOR_E2E_EVIDENCE", evidence);
            Ok(command)
        }),
        Step::check("clusters down", 2, &["xtask", "rig", "--name", gregor_e2e::story::RIG, "down"]),
    ]
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = paths::cargo();
    command.args(arguments);
    command
}

fn remove(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
}
