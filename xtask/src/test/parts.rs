//! What each part of `cargo xtask test` runs. The table to extend when a kind of test is added.

use std::{path::Path, process::Command, time::Duration};

use anyhow::Result;
use gregor_kubernetes::{
    Rig,
    packages::{self, Need},
};

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
}

/// The steps of a part, in order.
pub fn steps(part: Part, full: bool) -> Vec<Step> {
    match part {
        Part::Unit => unit(full),
        Part::Sim => sim(full),
        Part::Compat => {
            vec![
                Step::new("program", 20, false, |_| Ok(workspace("build", &["--bin", "gregor"]))),
                Step::new("compat", if full { 180 } else { 30 }, true, move |report| {
                    packages::ensure(&[Need::new("kcat", "kcat"), Need::new("mvn", "maven")], report)?;
                    let mut command = cargo(&["test", "-p", "gregor-compat", "--no-fail-fast"]);
                    command.env("GREGOR_PROGRAM", paths::target().join("debug/gregor"));
                    command.env("GREGOR_COMPAT", if full { "full" } else { "1" });
                    Ok(command)
                }),
                // That the bench works with both brokers, and with clusters of them; its figures are thrown away.
                Step::new("bench", 8, false, |_| {
                    let mut command = cargo(&["run", "--quiet", "-p", "gregor-bench", "--", "--quick", "--gregor"]);
                    command.arg(paths::target().join("debug/gregor")).arg("--results");
                    command.arg(paths::target().join("test/bench")).args(["start", "small", "bulk", "latency"]);
                    command.args(["cluster-failover", "cluster-move"]);
                    Ok(command)
                }),
            ]
        }
        Part::Operator => operator(),
        Part::E2e => e2e(full),
    }
}

fn unit(full: bool) -> Vec<Step> {
    let mut steps = vec![
        Step::check("format", 2, &["fmt", "--all", "--check"]),
        Step::check("tidy", 2, &["xtask", "tidy"]),
        Step::check("docs", 2, &["xtask", "docs", "--check"]),
        Step::check("clippy", 30, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        Step::new("tests", 40, true, |report| {
            // A test counts the system calls of a request, and one cuts a network of its own.
            packages::ensure(&[Need::new("strace", "strace"), Need::new("ip", "iproute2")], report)?;
            let mut command = workspace("test", &["--no-fail-fast"]);
            command.env("GREGOR_CHAOS_SECONDS", "120");
            Ok(command)
        }),
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

/// The tests that try worlds made from seeds: more of them than part `unit` does.
fn sim(full: bool) -> Vec<Step> {
    let with = |name, test: &'static str, variable, value: &'static str| {
        Step::new(name, if full { 60 } else { 10 }, true, move |_| {
            let mut command = workspace("test", &["--test", test]);
            command.env(variable, value);
            Ok(command)
        })
    };
    // The one test of that name that reads how many seeds there are to be.
    let seeds = |name, test: &'static str, filter: &'static str, value: &'static str| {
        Step::new(name, if full { 60 } else { 10 }, true, move |_| {
            let mut command = workspace("test", &["--test", test, "--", filter]);
            command.env("GREGOR_SEEDS", value);
            Ok(command)
        })
    };
    let (crashes, cases, rounds) = if full { ("100000", "20000", "200000") } else { ("1500", "1000", "500") };
    let (worlds, clusters) = if full { ("1000", "5000") } else { ("40", "200") };
    let of = |usual: &'static str, many: &'static str| if full { many } else { usual };
    let mut steps = vec![
        with("simulated worlds", "worlds", "GREGOR_SIM_SEEDS", worlds),
        optimized("simulated clusters", "clusters", &[("GREGOR_SIM_CLUSTERS", clusters), ("GREGOR_SIM_FROM", "0")]),
        optimized("models", "models", &[("GREGOR_MODELS", of("1", "full"))]),
        optimized("planted bugs", "planted", &[("GREGOR_PLANTED_RANGES", of("3", "10"))]),
        seeds("voters", "several_voters", "whatever_goes_wrong", of("80", "3000")),
        seeds("voters that change", "voter_changes", "voters_come_and_go", of("60", "2000")),
        seeds("quorums that become dynamic", "upgrade", "whatever_goes_wrong", of("150", "5000")),
        seeds("replicas", "replicas", "whatever_goes_wrong", of("60", "2000")),
        seeds("controllers and brokers", "several_brokers", "whatever_happens", of("150", "5000")),
        with("crashes of the log", "crashes", "GREGOR_CRASH_SEEDS", crashes),
        with("crashes of the control thread", "control_crashes", "GREGOR_CRASH_SEEDS", crashes),
        with("images of records in any order", "image", "PROPTEST_CASES", cases),
        with("brokers that come and go", "brokers", "PROPTEST_CASES", cases),
        with("hostile bytes", "hostile", "GREGOR_FUZZ_ROUNDS", rounds),
    ];
    if full {
        // Beside those that are always the same.
        let others = &[("GREGOR_SIM_CLUSTERS", "1000"), ("GREGOR_SIM_FROM", "random")];
        steps.insert(2, optimized("other simulated clusters", "clusters", others));
        // Part `unit` has two minutes of it.
        steps.push(Step::new("chaos among real nodes", 60, true, |_| {
            let mut command = workspace("test", &["--test", "chaos"]);
            command.env("GREGOR_CHAOS_SECONDS", "1200").env("GREGOR_CHAOS_CUTS", "required");
            Ok(command)
        }));
    }
    steps
}

/// Tests of the simulator that play many worlds: in release, and in the one build in which bugs can be planted for it to find.
fn optimized(name: &'static str, test: &'static str, variables: &[(&'static str, &'static str)]) -> Step {
    let variables = variables.to_vec();
    Step::new(name, 60, true, move |_| {
        let mut command = cargo(&["test", "--release", "-p", "gregor-sim", "--test", test]);
        command.env("RUSTFLAGS", "--cfg gregor_planted").env("CARGO_TARGET_DIR", paths::target().join("planted"));
        // Nobody keeps this program: what it would gain by them, linking would lose.
        command.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
        command.envs(variables.iter().copied());
        Ok(command)
    })
}

/// The operator's tests that need an API server read `KUBECONFIG`, which is set here, and are skipped without it.
fn operator() -> Vec<Step> {
    vec![
        Step::new("operator", 20, true, |report| {
            let mut tests = Vec::new();
            for name in test_files("operator/manager/tests")? {
                tests.extend(["--test".to_owned(), name]);
            }
            let plain = workspace("test", &["--no-fail-fast"]);
            if std::env::var_os("KUBECONFIG").is_some() {
                let mut command = plain;
                command.args(tests);
                return Ok(command);
            }
            let rig = Rig::named(OPERATOR_RIG);
            rig.up(0, report)?;
            let mut command = rig.command(&plain.get_program().to_string_lossy())?;
            command.args(plain.get_args()).args(tests).current_dir(paths::root());
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
            if full {
                command.env("GREGOR_CHAOS_CUTS", "required");
            }
            Ok(command)
        }),
        Step::check("clusters down", 2, &["xtask", "rig", "--name", gregor_e2e::story::RIG, "down"]),
    ]
}

/// A cargo command over the whole workspace. Choosing a package instead would choose other features of the crates that
/// they share, and build those once more.
fn workspace(verb: &str, arguments: &[&str]) -> Command {
    let mut command = cargo(&[verb, "--workspace", "--exclude", "gregor-e2e", "--exclude", "gregor-compat"]);
    command.args(arguments);
    command
}

/// The names of the test programs in a crate's folder.
fn test_files(folder: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(paths::root().join(folder))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = paths::cargo();
    command.args(arguments);
    command
}

fn remove(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
}
