//! The frame of the tests of whole clusters: tests that tell one story in order on one Kubernetes.
//!
//! Called by the test programs' `main`. Without `GREGOR_E2E` every test is skipped and the reason is said. After a failure the
//! evidence is collected once, and the later tests still run: each says on its own what it needs.

use std::{
    env,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result};
use gregor_kubernetes::{Cluster, Provider, process};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::{evidence, images::Name, target};

/// The name of the rig that the tests use, so that one that a person works with stays as it is.
pub const RIG: &str = "e2e";

/// Tests in the making.
pub struct Story {
    namespaces: Vec<String>,
    skipped: bool,
    trials: Vec<Trial>,
    cluster: Arc<OnceLock<Option<Cluster>>>,
}

impl Story {
    /// A story that plays in these namespaces; evidence is collected from them.
    pub fn new(namespaces: &[&str]) -> Self {
        Self {
            namespaces: namespaces.iter().map(ToString::to_string).collect(),
            skipped: env::var_os("GREGOR_E2E").is_none(),
            trials: Vec::new(),
            cluster: Arc::default(),
        }
    }

    /// Adds a test.
    pub fn tell(&mut self, name: &str, test: fn(&Cluster) -> Result<()>) {
        let (cluster, namespaces) = (Arc::clone(&self.cluster), self.namespaces.clone());
        let title = name.to_owned();
        let trial = Trial::test(name, move || {
            let Some(cluster) = cluster.get_or_init(find_cluster) else {
                return Err(Failed::from("no Kubernetes is up; `cargo xtask test e2e` prepares one"));
            };
            test(cluster).map_err(|error| {
                let namespaces: Vec<&str> = namespaces.iter().map(String::as_str).collect();
                evidence::collect(cluster, &namespaces, &evidence_folder().join(&title));
                Failed::from(format!("{error:#}"))
            })
        });
        self.trials.push(trial.with_ignored_flag(self.skipped));
    }

    /// Runs the tests and then `tidy_up`, if a cluster was there.
    pub fn end(self, tidy_up: impl FnOnce(&Cluster)) -> ExitCode {
        let mut arguments = Arguments::from_args();
        arguments.test_threads = Some(1);
        if self.skipped && !arguments.list {
            eprintln!(
                "skipped: these tests need a Kubernetes with our images; `cargo xtask test e2e` prepares it and runs them"
            );
        }
        let conclusion = libtest_mimic::run(&arguments, self.trials);
        let kept = env::var_os("GREGOR_E2E_KEEP").is_some();
        if let (Some(Some(cluster)), false) = (self.cluster.get(), kept) {
            tidy_up(cluster);
        }
        conclusion.exit_code()
    }
}

fn find_cluster() -> Option<Cluster> {
    let found = Provider::choose_with_rig(RIG).and_then(|provider| provider.running());
    found.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        None
    })
}

fn evidence_folder() -> PathBuf {
    env::var_os("GREGOR_E2E_EVIDENCE").map_or_else(|| target().join("test/evidence"), PathBuf::from)
}

/// Waits for the condition Ready of what the manifest says now; the error shows the conditions.
pub fn wait_until_ready(cluster: &Cluster, namespace: &str, object: &str) -> Result<()> {
    let mut seen = serde_json::Value::Null;
    let waited = process::wait_until(&format!("{object} is ready"), Duration::from_mins(4), || {
        let value = cluster.kubectl_json(&["-n", namespace, "get", object])?;
        let observed = value["status"]["observedGeneration"] == value["metadata"]["generation"];
        let conditions = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
        seen = value["status"].clone();
        Ok(observed && conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True"))
    });
    waited.with_context(|| format!("the status of {object} is {seen}"))
}

/// The static program that `cargo xtask images` built for an image.
pub fn program_of(name: Name) -> Result<PathBuf> {
    let folder = target().join(format!("{}-unknown-linux-musl", env::consts::ARCH)).join("release");
    let program = folder.join(name.as_str());
    program
        .is_file()
        .then_some(())
        .with_context(|| format!("{} is not there; `cargo xtask images` builds it", program.display()))?;
    Ok(program)
}

/// This machine's architecture in OCI's words.
pub fn architecture() -> &'static str {
    if env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" }
}
