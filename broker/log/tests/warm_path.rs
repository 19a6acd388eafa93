//! What the warm path asks of the disk: one write for each append, and nothing for a read at the log's end.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use common::*;
use gregor_log::{LogConfig, ReadRequest, disk::FaultyDisk, disk::Operation};
use gregor_types::Offset;

type Counts = Arc<Mutex<BTreeMap<String, usize>>>;

fn count(disk: &FaultyDisk) -> Counts {
    let counts = Counts::default();
    let counted = counts.clone();
    disk.set_fault(move |operation, path| {
        let kind = path.extension().unwrap_or_default().to_string_lossy();
        *counted.lock().unwrap().entry(format!("{operation:?} {kind}")).or_default() += 1;
        None
    });
    counts
}

fn taken(counts: &Counts) -> Vec<(String, usize)> {
    std::mem::take(&mut *counts.lock().unwrap()).into_iter().collect()
}

#[test]
fn an_append_is_one_write_and_a_read_at_the_end_is_nothing() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, LogConfig::default());
    append(&mut log, &batch(&["first"]));
    let bytes = produced(1, 0, 0, false, &["x"]);
    append(&mut log, &bytes);
    let counts = count(&disk);
    for sequence in 1..=20 {
        append(&mut log, &produced(1, 0, sequence, false, &["x"]));
    }
    assert_eq!(taken(&counts), [("Write log".to_owned(), 20)]);
    for from in [5, 20, 21] {
        for upper_bound in [21, 22] {
            let request = ReadRequest {
                from: Offset(from),
                upper_bound: Offset(upper_bound),
                max_bytes: 1 << 20,
                min_one_batch: true,
            };
            let plan = log.read(&request).unwrap();
            assert_eq!(plan.is_empty(), from >= upper_bound);
        }
    }
    assert_eq!(taken(&counts), []);
}

#[test]
fn indexes_are_written_once_in_a_while() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, LogConfig::default());
    append(&mut log, &batch(&["first"]));
    let counts = count(&disk);
    let value = "x".repeat(5000);
    for i in 0..200 {
        append(&mut log, &batch_at(NOW.plus_ms(i), &[&value]));
    }
    let counts: BTreeMap<_, _> = taken(&counts).into_iter().collect();
    assert_eq!(counts["Write log"], 200);
    assert!(counts["Write index"] <= 6, "{counts:?}");
    assert!(counts["Write timeindex"] <= 6, "{counts:?}");
}

/// A log of several segments that was closed, its settings and its end.
fn closed(disk: &FaultyDisk) -> (LogConfig, Offset) {
    let mut log = create(disk, LogConfig { segment_bytes: 100_000, ..LogConfig::default() });
    let value = "x".repeat(1000);
    for _ in 0..1000 {
        append(&mut log, &batch(&[&value]));
    }
    log.close().unwrap().complete().unwrap();
    (LogConfig::clone(log.config()), log.end_offset())
}

#[test]
fn a_clean_start_opens_no_file_with_data() {
    let disk = FaultyDisk::new();
    let (config, end) = closed(&disk);
    let counts = count(&disk);
    let log = reopen(&disk, options(config, end, true));
    assert_eq!(log.end_offset(), end);
    let counts: BTreeMap<_, _> = taken(&counts).into_iter().collect();
    assert!(counts.keys().all(|kind| !kind.ends_with(" log")), "{counts:?}");
    assert_eq!(counts.keys().filter(|kind| kind.starts_with(&format!("{:?}", Operation::Write))).count(), 0);
}

#[test]
fn a_clean_start_without_a_trace_of_the_end_reads_no_more_than_the_end() {
    let disk = FaultyDisk::new();
    let (config, end) = closed(&disk);
    let counts = count(&disk);
    let log = reopen(&disk, options(config, end.plus(-1), true));
    assert_eq!(log.end_offset(), end);
    let counts: BTreeMap<_, _> = taken(&counts).into_iter().collect();
    assert!(counts["Read log"] <= 4, "{counts:?}");
    assert_eq!(counts["Open log"], 1, "sealed segments are not opened: {counts:?}");
    assert_eq!(counts.keys().filter(|kind| kind.starts_with(&format!("{:?}", Operation::Write))).count(), 0);
}
