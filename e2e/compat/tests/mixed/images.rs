//! The metadata of all nodes, as Apache reads it: the same log, and at the same offset the same image.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use gregor_apache::{Jars, compile, java_program, java_tool};

use crate::{cluster::Cluster, replicas};

/// How long it may take until all nodes have a snapshot of the same offset: each makes one of every change, but for changes that come
/// while it makes one.
const DEADLINE: Duration = Duration::from_mins(1);

/// Compares what all nodes know of the cluster. `jars` are those of Apache's nodes, whose own image is the measure; `tools` are there
/// where Apache has released tools that know the cluster's metadata.version.
pub fn are_the_same(cluster: &Cluster, jars: &Jars, tools: Option<&Jars>) -> Result<()> {
    let name = common_snapshot(cluster)?;
    let metadata: Vec<_> = cluster.ids().into_iter().map(|id| cluster.data(id).join("__cluster_metadata-0")).collect();
    let snapshots: Vec<_> = metadata.iter().map(|folder| folder.join(&name)).collect();

    let classes = cluster.path().join("image-classes");
    compile(jars, &Path::new(env!("CARGO_MANIFEST_DIR")).join("mixed/MetadataImages.java"), &classes)?;
    let output = java_program(jars, &classes, "MetadataImages", &texts(&snapshots)?)?.output()?;
    let (said, also) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "at {name} the nodes have images that differ:\n{said}{also}");
    println!("  at {name}: {}", said.trim_end());

    let end = name.split('-').next().context("a snapshot's name begins with its offset")?.parse()?;
    replicas::have_the_same_metadata(cluster, end)?;
    match tools {
        Some(tools) => check_dumps(tools, &metadata, &snapshots),
        None => Ok(()),
    }
}

/// Apache's own tool understands every record of every log, and sees the same in every snapshot.
fn check_dumps(tools: &Jars, metadata: &[PathBuf], snapshots: &[PathBuf]) -> Result<()> {
    for folder in metadata {
        for log in files_of(folder, "log")? {
            dump(tools, &log)?;
        }
    }
    let mut first: Option<(&PathBuf, BTreeSet<String>)> = None;
    for snapshot in snapshots {
        let dumped = dump(tools, snapshot)?;
        // The order of topics, and of what a record lists, is each one's own.
        let records = dumped.lines().filter_map(|line| line.split_once(" payload: "));
        let records = records.map(|(_, payload)| Ok(in_order(&serde_json::from_str(payload)?).to_string()));
        let records = records.collect::<Result<BTreeSet<_>>>()?;
        ensure!(!records.is_empty(), "no record in {}:\n{dumped}", snapshot.display());
        let Some((other, expected)) = &first else {
            first = Some((snapshot, records));
            continue;
        };
        let differ: Vec<_> = expected.symmetric_difference(&records).collect();
        ensure!(
            differ.is_empty(),
            "records that are only in one of {} and {}: {differ:#?}",
            other.display(),
            snapshot.display()
        );
    }
    Ok(())
}

/// The same with lists of objects sorted. Lists of ids stay as they are: replicas have an order.
fn in_order(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Array(items) => {
            let mut items: Vec<_> = items.iter().map(in_order).collect();
            if items.iter().all(serde_json::Value::is_object) {
                items.sort_by_key(ToString::to_string);
            }
            items.into()
        }
        serde_json::Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), in_order(value)));
            serde_json::Value::Object(fields.collect())
        }
        other => other.clone(),
    }
}

fn dump(tools: &Jars, file: &Path) -> Result<String> {
    let path = file.to_str().context("a path that is text")?;
    let arguments = ["--cluster-metadata-decoder", "--deep-iteration", "--files", path];
    let output = java_tool(tools, "org.apache.kafka.tools.DumpLogSegments", &arguments)?.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "DumpLogSegments: {said}{}", String::from_utf8_lossy(&output.stderr));
    for line in said.lines().filter(|line| line.starts_with("baseOffset")) {
        ensure!(line.ends_with("isvalid: true"), "a batch that Apache finds invalid, in {path}: {line}");
    }
    let is_whole = !said.contains("Could not") && !said.contains("Exception");
    ensure!(is_whole, "Apache cannot read all of {path}:\n{said}");
    Ok(said)
}

/// The newest snapshot that all nodes have, no older than any that is there now.
fn common_snapshot(cluster: &Cluster) -> Result<String> {
    let deadline = Instant::now() + DEADLINE;
    let newest = snapshots(cluster)?.into_iter().flatten().max().context("a snapshot")?;
    loop {
        let mut all = snapshots(cluster)?.into_iter();
        let first = all.next().context("a node")?;
        let common = all.fold(first, |common, names| common.intersection(&names).cloned().collect());
        if let Some(name) = common.last().filter(|name| **name >= newest) {
            return Ok(name.clone());
        }
        ensure!(
            Instant::now() < deadline,
            "no snapshot from {newest} on that all nodes have; the newest of each: {:?}",
            snapshots(cluster)?.iter().map(|names| names.last().cloned()).collect::<Vec<_>>()
        );
        sleep(Duration::from_millis(50));
    }
}

/// The names of the snapshots of each node, which sort by offset.
fn snapshots(cluster: &Cluster) -> Result<Vec<BTreeSet<String>>> {
    let of = |id: u8| {
        let files = files_of(&cluster.data(id).join("__cluster_metadata-0"), "checkpoint")?;
        Ok(files.iter().filter_map(|file| Some(file.file_name()?.to_str()?.to_owned())).collect())
    };
    cluster.ids().into_iter().map(of).collect()
}

fn files_of(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|is| is == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn texts(paths: &[PathBuf]) -> Result<Vec<&str>> {
    paths.iter().map(|path| path.to_str().context("a path that is text")).collect()
}
