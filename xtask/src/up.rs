//! `cargo xtask up`: from nothing to records read back from a cluster on Kubernetes; and `cargo xtask down`.
//!
//! Each step can be repeated: what is there already is used again.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use gregor_e2e::{
    clients::Clients,
    evidence,
    images::Name,
    install::{self, Release},
    story,
};
use gregor_kubernetes::{Cluster, Helm, Provider, Rig, process};

use crate::{images, paths, progress::Progress};

/// The namespace of what `up` shows.
const NAMESPACE: &str = "demo";
const CLUSTER_LIMIT: Duration = Duration::from_mins(4);

/// The arguments of `cargo xtask up`.
#[derive(Args)]
pub struct Arguments {
    /// How many megabytes of generated events are produced and read back.
    #[arg(long, default_value_t = 1000)]
    megabytes: u64,
    /// How many nodes, where we say how many.
    #[arg(long, default_value_t = 3)]
    nodes: u32,
    /// Stop when a Kubernetes runs and the images are on its nodes.
    #[arg(long)]
    prepare: bool,
    /// Take the images in target/images as they are.
    #[arg(long)]
    reuse_images: bool,
    /// The same for the rig that the tests use.
    #[arg(long, hide = true)]
    for_tests: bool,
}

/// Brings everything up.
pub fn run(arguments: &Arguments) -> Result<()> {
    let progress = Progress::new();
    let cluster = prepare(arguments, &progress)?;
    if arguments.prepare || arguments.for_tests {
        return Ok(());
    }
    let shown = show(&cluster, arguments, &progress);
    if shown.is_err() {
        evidence::collect(&cluster, &[NAMESPACE, install::OPERATOR_NAMESPACE], &paths::target().join("up-evidence"));
    }
    shown?;
    drop(progress);
    say_what_next(&cluster);
    Ok(())
}

/// Ends what `up` and the tests started.
pub fn down() -> Result<()> {
    let progress = Progress::new();
    let report = |text: &str| progress.line(text);
    match Provider::choose() {
        Ok(given @ Provider::Given { .. }) => remove_from_given(&given, &progress)?,
        Ok(provider) => provider.down(&report)?,
        Err(_) => {}
    }
    if Rig::obstacle().is_none() {
        Rig::down_all(&report)?;
    }
    progress.line("nothing is left; `target/` and the cache with the built programs stay");
    Ok(())
}

/// A given cluster keeps running; what `up` put into it goes.
fn remove_from_given(provider: &Provider, progress: &Progress) -> Result<()> {
    let Some(cluster) = provider.running()? else { return Ok(()) };
    progress.line("removing the demo, the operator and its definitions from the given cluster");
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=180s"])?;
    for release in [Release::operator(), Release::crds()] {
        let _ = release.remove(&cluster, Helm::V4);
    }
    cluster.kubectl(&["delete", "namespace", install::OPERATOR_NAMESPACE, "--ignore-not-found", "--timeout=180s"])?;
    Ok(())
}

fn prepare(arguments: &Arguments, progress: &Progress) -> Result<Cluster> {
    let report = |text: &str| progress.line(text);
    let provider = if arguments.for_tests { Provider::choose_with_rig(story::RIG)? } else { Provider::choose()? };
    progress.line(&format!("Kubernetes: {}", provider.name()));
    let cluster = provider.up(arguments.nodes, &report)?;
    if !arguments.reuse_images {
        images::build(progress, gregor_e2e::images::TAG)?;
        images::build_clients(progress)?;
    }
    for name in Name::ALL {
        progress.now(&format!("loading {}", name.reference()));
        cluster.load_image(&name.archive(), &name.reference())?;
    }
    progress.line("the images are on every node");
    Ok(cluster)
}

/// Installs, creates, produces and reads back.
fn show(cluster: &Cluster, arguments: &Arguments, progress: &Progress) -> Result<()> {
    progress.now("installing the operator with Helm");
    Release::crds().apply(cluster, Helm::V4)?;
    Release::operator().apply(cluster, Helm::V4)?;
    progress.line("the operator runs");

    install::create_namespace(cluster, NAMESPACE)?;
    for example in ["kafkacluster.yaml", "kafkatopics.yaml"] {
        let path = paths::root().join("crds/examples").join(example);
        cluster.kubectl(&[
            "-n",
            NAMESPACE,
            "apply",
            "-f",
            path.to_str().context("the checkout's path is not UTF-8")?,
        ])?;
    }
    progress.line("applied crds/examples/kafkacluster.yaml and kafkatopics.yaml");
    wait_until_ready(cluster, &["kafkacluster/demo", "kafkatopic/git-log", "kafkatopic/events"], progress)?;
    let bootstrap =
        cluster.kubectl(&["-n", NAMESPACE, "get", "gk", "demo", "-o", "jsonpath={.status.bootstrapServers}"])?;
    progress.line(&format!("cluster and topics are ready; clients in this Kubernetes use {bootstrap}"));

    progress.now("starting pods with kcat and Kafka's own console tools");
    let clients = Clients::start(cluster, NAMESPACE, &bootstrap, &["writer", "reader"])?;
    for (topic, partitions) in [("git-log", 1), ("events", 4)] {
        empty_topic(&clients, topic, partitions, progress)?;
    }
    git_log_there_and_back(&clients, progress)?;
    events_there_and_back(&clients, arguments.megabytes * 1_000_000, progress)
}

fn wait_until_ready(cluster: &Cluster, objects: &[&str], progress: &Progress) -> Result<()> {
    let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status} {.status.phase} \
                {.status.conditions[?(@.type==\"Ready\")].message}";
    for object in objects {
        let mut seen = String::new();
        let waited = process::wait_until(&format!("{object} is ready"), CLUSTER_LIMIT, || {
            seen = cluster.kubectl(&["-n", NAMESPACE, "get", object, "-o", path])?;
            progress.now(&format!("{object}: {seen}"));
            Ok(seen.starts_with("True"))
        });
        waited.with_context(|| format!("{object} says: {seen}"))?;
    }
    Ok(())
}

/// An earlier `up` left its records; what is read back shall be this one's.
fn empty_topic(clients: &Clients, topic: &str, partitions: u32, progress: &Progress) -> Result<()> {
    if clients.end_offsets("writer", topic, partitions)? == 0 {
        return Ok(());
    }
    progress.line(&format!("removing the records of an earlier run from {topic}"));
    let entries: Vec<_> = (0..partitions)
        .map(|partition| serde_json::json!({"topic": topic, "partition": partition, "offset": -1}))
        .collect();
    let offsets = serde_json::json!({"version": 1, "partitions": entries});
    clients.output("writer", &format!("echo '{offsets}' > /tmp/offsets.json"))?;
    process::output(&mut clients.java_tool(
        "writer",
        "DeleteRecordsCommand",
        "--offset-json-file /tmp/offsets.json",
    )?)?;
    Ok(())
}

fn git_log_there_and_back(clients: &Clients, progress: &Progress) -> Result<()> {
    let folder = paths::target().join("up");
    fs::create_dir_all(&folder)?;
    let (written, read) = (folder.join("git-log.txt"), folder.join("git-log-read.txt"));
    let log = folder.join("git-log.err");
    let mut git = Command::new("git");
    git.current_dir(paths::root()).args(["-c", "core.quotepath=off", "log", "--stat", "--no-color"]);
    let output = File::create(&written)?;
    let status = process::run_piped(&mut git, Stdio::null(), output.into(), &log, Duration::from_mins(2), || ())?;
    ensure!(status.success(), "`git log` failed: {}", process::tail_of_file(&log));

    let mut now = |said: &str| progress.now(&format!("git log: {said}"));
    clients.produce_file("writer", "git-log", &written, &mut now)?;
    clients.read_file("reader", "git-log", &read, &mut now)?;
    let bytes = ensure_same(&written, &read)?;
    progress.line(&format!(
        "{bytes} bytes of `git log`: written by the Java console producer, read by kcat in another pod, byte for byte the same"
    ));
    Ok(())
}

fn events_there_and_back(clients: &Clients, bytes: u64, progress: &Progress) -> Result<()> {
    let megabytes = bytes / 1_000_000;
    let began = std::time::Instant::now();
    let mut now = |said: &str| progress.now(&format!("producing {megabytes} MB of events with kcat: {said}"));
    clients.produce_events("writer", "events", bytes, &mut now)?;
    progress.line(&format!("{megabytes} MB of JSON events produced with kcat in {} s", began.elapsed().as_secs()));
    let began = std::time::Instant::now();
    let mut now = |said: &str| progress.now(&format!("reading {megabytes} MB back: {said}"));
    clients.check_events("reader", "events", bytes, &mut now)?;
    progress.line(&format!(
        "read back by kcat in another pod in {} s: every event is there once, byte for byte the same",
        began.elapsed().as_secs()
    ));
    Ok(())
}

/// Compares two files and returns their length.
fn ensure_same(written: &Path, read: &Path) -> Result<u64> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    File::open(written)?.read_to_end(&mut first)?;
    File::open(read)?.read_to_end(&mut second)?;
    if let Some(at) = first.iter().zip(&second).position(|(one, other)| one != other) {
        bail!("{} and {} differ at byte {at}", written.display(), read.display());
    }
    ensure!(first.len() == second.len(), "{} bytes were written, {} read", first.len(), second.len());
    Ok(first.len() as u64)
}

fn say_what_next(cluster: &Cluster) {
    let run = if matches!(cluster.provider(), Provider::Rig(_)) { "cargo xtask rig exec " } else { "" };
    println!(
        "
Gregor is up. To try next:
  {run}kubectl -n {NAMESPACE} get gk,gkt,pods
  {run}kubectl -n {NAMESPACE} describe gk demo
  {run}kubectl -n {NAMESPACE} exec reader -- kcat -C -b demo-bootstrap:9092 -t git-log -c 10
  {run}kubectl -n {NAMESPACE} delete pod demo-0-0    # it comes back with its data
  {run}kubectl -n {NAMESPACE} apply -f crds/examples/kafkatopics.yaml   # after a change to it
  cargo xtask test                              # every test, on what was built just now
  cargo xtask down                              # nothing is left"
    );
}
