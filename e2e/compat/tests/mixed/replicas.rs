//! What the replicas of a partition have in their files: the same batches, byte for byte, or where a topic is compacted the same newest
//! record of each key.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use gregor_wire::batch::{crc32c, split_batches};

use crate::cluster::Cluster;

/// How long a follower may take to hear of the last high watermark and to write it down.
const DEADLINE: Duration = Duration::from_mins(1);
/// A batch of the load is far smaller.
const BATCH_BYTES_MAX: usize = 1 << 24;
/// Names of compacted topics, see `Mixed.java`.
const COMPACTED: [&str; 2] = ["compacted-", "__consumer_offsets-"];

/// A batch, in place.
struct Batch {
    base: i64,
    next: i64,
    bytes: Vec<u8>,
}

/// The newest value of each key, with its offset.
type Newest = BTreeMap<Vec<u8>, (i64, Vec<u8>)>;

/// Compares the replicas of every partition, each named with the offset at which it ends, once all of them know that all of it is
/// committed. Nothing may be written meanwhile.
pub fn are_the_same(cluster: &Cluster, ends: &BTreeMap<String, i64>) -> Result<()> {
    for (partition, end) in ends.iter().filter(|(_, end)| **end > 0) {
        let folders: Vec<_> = cluster.brokers().into_iter().map(|id| cluster.data(id)).collect();
        for folder in &folders {
            wait_for_high_watermark(folder, partition, *end)?;
        }
        if COMPACTED.iter().any(|name| partition.starts_with(name)) {
            come_to_the_same_newest(&folders, partition, *end)?;
        } else {
            have_the_same_batches(&folders, partition, *end)?;
        }
    }
    Ok(())
}

/// The metadata logs of all nodes have the same batches before an offset.
pub fn have_the_same_metadata(cluster: &Cluster, end: i64) -> Result<()> {
    let folders: Vec<_> = cluster.ids().into_iter().map(|id| cluster.data(id)).collect();
    have_the_same_batches(&folders, "__cluster_metadata-0", end)
}

/// From the highest start of any of them on. Where a segment ends is each broker's own business.
fn have_the_same_batches(folders: &[PathBuf], partition: &str, end: i64) -> Result<()> {
    let mut replicas = Vec::new();
    for folder in folders {
        let batches = batches(&folder.join(partition))?;
        let first = batches.first().map_or(end, |batch| batch.base);
        let start = checkpoint(folder, "log-start-offset-checkpoint", partition)?.unwrap_or(0).max(first);
        replicas.push((folder, start, batches));
    }
    let start = replicas.iter().map(|(_, start, _)| *start).max().context("a replica")?;
    let mut first: Option<(&PathBuf, Vec<&Batch>)> = None;
    for (folder, _, batches) in &replicas {
        let shared: Vec<_> = batches.iter().filter(|batch| batch.base >= start && batch.next <= end).collect();
        let last = shared.last().map_or(start, |batch| batch.next);
        ensure!(last == end, "{partition} in {} ends at {last}, and {end} is committed", folder.display());
        let Some((other, expected)) = &first else {
            first = Some((*folder, shared));
            continue;
        };
        let differs = expected.iter().zip(&shared).find(|(one, two)| one.bytes != two.bytes);
        ensure!(
            differs.is_none() && expected.len() == shared.len(),
            "{partition} differs: {} in {}, {} in {}",
            picture(differs.map(|(one, _)| *one)),
            other.display(),
            picture(differs.map(|(_, two)| *two)),
            folder.display()
        );
    }
    Ok(())
}

fn picture(batch: Option<&Batch>) -> String {
    batch.map_or_else(
        || "another number of batches".to_owned(),
        |batch| {
            let (base, last, size) = (batch.base, batch.next - 1, batch.bytes.len());
            format!("{base} to {last}, {size} bytes, {:08x}", crc32c(&batch.bytes))
        },
    )
}

/// A cleaner may put files in each other's place while they are read. What really differs, differs for ever.
fn come_to_the_same_newest(folders: &[PathBuf], partition: &str, end: i64) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match have_the_same_newest(folders, partition, end) {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(200)),
            outcome => return outcome,
        }
    }
}

fn have_the_same_newest(folders: &[PathBuf], partition: &str, end: i64) -> Result<()> {
    let mut first: Option<(&PathBuf, Newest)> = None;
    for folder in folders {
        let newest = newest(&folder.join(partition), end)?;
        ensure!(!newest.is_empty(), "{partition} in {} has no key", folder.display());
        let Some((other, expected)) = &first else {
            first = Some((folder, newest));
            continue;
        };
        let differs = expected.iter().find(|(key, value)| newest.get(*key) != Some(*value));
        ensure!(
            differs.is_none() && expected.len() == newest.len(),
            "{partition} has {} keys in {} and {} in {}; the first that differs: {differs:?}",
            expected.len(),
            other.display(),
            newest.len(),
            folder.display()
        );
    }
    Ok(())
}

/// A tombstone may be gone in one replica and be there in another.
fn newest(folder: &Path, end: i64) -> Result<Newest> {
    let mut newest: BTreeMap<Vec<u8>, (i64, Option<Vec<u8>>)> = BTreeMap::new();
    for stored in batches(folder)?.iter().filter(|batch| batch.next <= end) {
        for batch in split_batches(&stored.bytes) {
            let records = batch?.records(BATCH_BYTES_MAX)?;
            for record in &records {
                let record = record?;
                let key = record.key.unwrap_or_default().to_vec();
                newest.insert(key, (record.offset.value(), record.value.map(<[u8]>::to_vec)));
            }
        }
    }
    Ok(newest.into_iter().filter_map(|(key, (offset, value))| Some((key, (offset, value?)))).collect())
}

/// All batches of a partition's folder, each checked by its checksum.
fn batches(folder: &Path) -> Result<Vec<Batch>> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            files.push(path);
        }
    }
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        for batch in split_batches(&bytes) {
            let batch = batch.with_context(|| format!("in {}", file.display()))?;
            batch.check_crc().with_context(|| format!("in {}", file.display()))?;
            all.push(Batch {
                base: batch.base_offset.value(),
                next: batch.next_offset().value(),
                bytes: batch.bytes().to_vec(),
            });
        }
    }
    Ok(all)
}

fn wait_for_high_watermark(folder: &Path, partition: &str, end: i64) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let written = checkpoint(folder, "replication-offset-checkpoint", partition)?;
        if written == Some(end) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{} says of {partition} that the high watermark is {written:?}, not {end}",
            folder.display()
        );
        sleep(Duration::from_millis(20));
    }
}

/// What a checkpoint of a log directory says of a partition: a version, a count, then a topic, a number and an offset in each line.
fn checkpoint(folder: &Path, file: &str, partition: &str) -> Result<Option<i64>> {
    let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
    for line in text.lines().skip(2) {
        if let [topic, index, offset] = line.split(' ').collect::<Vec<_>>()[..]
            && format!("{topic}-{index}") == partition
        {
            return Ok(Some(offset.parse()?));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use gregor_types::{Offset, Timestamp};
    use gregor_wire::batch::{BatchOptions, RecordBatchBuilder};

    use super::*;

    /// A log directory with one partition of one segment, whose records have these values.
    fn directory(of: &Path, name: &str, values: &[&str]) -> PathBuf {
        let folder = of.join(name);
        fs::create_dir_all(folder.join("ordered-0")).unwrap();
        let mut log = Vec::new();
        for (offset, value) in (0..).zip(values) {
            let options = BatchOptions { base_offset: Offset(offset), ..BatchOptions::default() };
            let mut batch = RecordBatchBuilder::new(options);
            batch.append(Timestamp(1), Some(b"key"), Some(value.as_bytes()), &[]);
            log.extend_from_slice(&batch.build());
        }
        fs::write(folder.join("ordered-0/00000000000000000000.log"), log).unwrap();
        folder
    }

    #[test]
    fn replicas_that_differ_below_the_high_watermark_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let one = directory(folder.path(), "one", &["a", "b", "c"]);
        let same_so_far = directory(folder.path(), "same-so-far", &["a", "b", "x"]);
        let other = directory(folder.path(), "other", &["a", "x", "c"]);
        let short = directory(folder.path(), "short", &["a"]);
        let compare = |second: &PathBuf| have_the_same_batches(&[one.clone(), second.clone()], "ordered-0", 2);
        compare(&same_so_far).unwrap();
        assert!(compare(&other).unwrap_err().to_string().contains("ordered-0 differs: 1 to 1"));
        assert!(compare(&short).unwrap_err().to_string().contains("ends at 1"));
        let newest = |second: &PathBuf, end| have_the_same_newest(&[one.clone(), second.clone()], "ordered-0", end);
        newest(&same_so_far, 2).unwrap();
        newest(&other, 3).unwrap();
        assert!(newest(&same_so_far, 3).is_err());
        // What is before the start of one of them is not asked for.
        fs::write(other.join("log-start-offset-checkpoint"), "0\n1\nordered 0 2\n").unwrap();
        have_the_same_batches(&[one.clone(), other], "ordered-0", 3).unwrap();
    }
}
