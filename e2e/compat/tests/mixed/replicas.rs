//! What the replicas of a partition have in their files: the same batches, byte for byte, or where a topic is compacted the same newest
//! record of each key.

use std::{
    collections::{BTreeMap, BTreeSet},
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
const COMPACTED: [&str; 2] = [CLEANED, "__consumer_offsets-"];
/// Of those, the one whose segments end soon.
const CLEANED: &str = "compacted-";

/// A batch, in place.
struct Batch {
    base: i64,
    next: i64,
    bytes: Vec<u8>,
}

/// An offset, a key and a value.
type Record = (i64, Vec<u8>, Option<Vec<u8>>);

/// The newest value of each key, with its offset.
type Newest = BTreeMap<Vec<u8>, (i64, Vec<u8>)>;

/// Waits until each broker's own cleaner has come so far with compacted partitions, each named with an offset: before where it was, no key is
/// there twice.
pub fn are_cleaned(cluster: &Cluster, offsets: &BTreeMap<String, i64>) -> Result<()> {
    for (partition, offset) in offsets.iter().filter(|(partition, _)| partition.starts_with(CLEANED)) {
        for id in cluster.brokers() {
            come_to(|| is_cleaned(&cluster.data(id), partition, *offset))
                .with_context(|| format!("node {id}, {}, cleans {partition}", cluster.kind(id)))?;
        }
    }
    Ok(())
}

/// Where a cleaner ended is a record that it left as it was.
fn is_cleaned(folder: &Path, partition: &str, least: i64) -> Result<()> {
    let clean = checkpoint(folder, "cleaner-offset-checkpoint", partition)?.unwrap_or(0);
    ensure!(clean > least, "it came to {clean}, and {least} was written when it was asked");
    let mut keys = BTreeSet::new();
    for (offset, key, _) in records(&folder.join(partition), clean)? {
        let key = String::from_utf8_lossy(&key).into_owned();
        ensure!(!keys.contains(&key), "{key} is there again at {offset}, though cleaned up to {clean}");
        keys.insert(key);
    }
    Ok(())
}

/// Waits until every replica of partitions begins where its records were deleted.
pub fn begin_at(cluster: &Cluster, starts: &BTreeMap<String, i64>) -> Result<()> {
    for (partition, start) in starts {
        ensure!(*start > 0, "no record of {partition} was deleted");
        for id in cluster.brokers() {
            let folder = cluster.data(id);
            come_to(|| {
                let begins = start_of(&folder, partition, &batches(&folder.join(partition))?)?;
                ensure!(begins == Some(*start), "{partition} begins at {begins:?} on node {id}, not at {start}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Compares the replicas of every partition, each named with the offset at which it ends, once all of them know that all of it is
/// committed. Nothing may be written meanwhile.
pub fn are_the_same(cluster: &Cluster, ends: &BTreeMap<String, i64>) -> Result<()> {
    for (partition, end) in ends.iter().filter(|(_, end)| **end > 0) {
        let folders: Vec<_> = cluster.brokers().into_iter().map(|id| cluster.data(id)).collect();
        for folder in &folders {
            wait_for_high_watermark(folder, partition, *end)?;
        }
        if COMPACTED.iter().any(|name| partition.starts_with(name)) {
            come_to(|| have_the_same_newest(&folders, partition, *end))?;
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

/// From the batch on in which the highest start of any of them lies. Where a segment ends is each broker's own business.
fn have_the_same_batches(folders: &[PathBuf], partition: &str, end: i64) -> Result<()> {
    let mut replicas = Vec::new();
    for folder in folders {
        let batches = batches(&folder.join(partition))?;
        let start = start_of(folder, partition, &batches)?.unwrap_or(end);
        replicas.push((folder, start, batches));
    }
    let start = replicas.iter().map(|(_, start, _)| *start).max().context("a replica")?;
    let mut first: Option<(&PathBuf, Vec<&Batch>)> = None;
    for (folder, _, batches) in &replicas {
        let shared: Vec<_> = batches.iter().filter(|batch| batch.next > start && batch.next <= end).collect();
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

/// Nowhere without batches and a checkpoint.
fn start_of(folder: &Path, partition: &str, batches: &[Batch]) -> Result<Option<i64>> {
    let first = batches.first().map(|batch| batch.base);
    Ok(checkpoint(folder, "log-start-offset-checkpoint", partition)?.max(first))
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

/// A cleaner may put files in each other's place while they are read, and brokers write checkpoints now and then. What really differs,
/// differs for ever.
fn come_to(look: impl Fn() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match look() {
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
    let newest: BTreeMap<_, _> =
        records(folder, end)?.into_iter().map(|(offset, key, value)| (key, (offset, value))).collect();
    Ok(newest.into_iter().filter_map(|(key, (offset, value))| Some((key, (offset, value?)))).collect())
}

/// The records of batches that end before an offset, or there.
fn records(folder: &Path, end: i64) -> Result<Vec<Record>> {
    let mut found = Vec::new();
    for stored in batches(folder)?.iter().filter(|batch| batch.next <= end) {
        for batch in split_batches(&stored.bytes) {
            let records = batch?.records(BATCH_BYTES_MAX)?;
            for record in &records {
                let record = record?;
                let key = record.key.unwrap_or_default().to_vec();
                found.push((record.offset.value(), key, record.value.map(<[u8]>::to_vec)));
            }
        }
    }
    Ok(found)
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
    #[test]
    fn what_no_cleaner_went_over_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let one = directory(folder.path(), "one", &["a", "b", "c"]);
        let cleaned = |up_to: i64| {
            fs::write(one.join("cleaner-offset-checkpoint"), format!("0\n1\nordered 0 {up_to}\n")).unwrap();
            is_cleaned(&one, "ordered-0", 0)
        };
        assert!(is_cleaned(&one, "ordered-0", 0).unwrap_err().to_string().contains("came to 0"));
        cleaned(1).unwrap();
        assert!(cleaned(3).unwrap_err().to_string().contains("key is there again at 1"));
    }
}
