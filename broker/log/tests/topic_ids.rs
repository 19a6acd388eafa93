//! `partition.metadata`: written by the first append or, in steps, before it; on the disk before any record either way.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::{path::Path, sync::Arc};

use common::*;
use gregor_log::{
    LogError, PartitionLog,
    disk::{Crash, FaultyDisk, Operation, SyncToken},
};
use gregor_types::{Offset, Uuid};

const TOPIC: Uuid = Uuid(42 << 90);

fn create_with_id(disk: &FaultyDisk) -> PartitionLog {
    let log = PartitionLog::create(Arc::new(disk.clone()), folder(), partition(), Some(TOPIC), Arc::new(config()), NOW);
    for parent in ["/", "/logs"] {
        disk.sync_directory_now(parent);
    }
    log.unwrap()
}

fn config() -> gregor_log::LogConfig {
    gregor_log::LogConfig::default()
}

trait SyncNow {
    fn sync_directory_now(&self, path: &str);
}

impl SyncNow for FaultyDisk {
    fn sync_directory_now(&self, path: &str) {
        gregor_log::Disk::sync_directory(self, Path::new(path)).complete().unwrap();
    }
}

/// What the server does, with `between` called before each call.
fn in_steps(log: &mut PartitionLog, mut between: impl FnMut(usize, &mut PartitionLog)) -> Result<(), LogError> {
    let complete = |sync: Option<SyncToken>| sync.is_none_or(|sync| sync.complete().is_ok());
    between(0, log);
    let prepared = log.prepare_topic_id()?;
    between(1, log);
    if !complete(prepared) {
        log.topic_id_synced(false);
        return Ok(());
    }
    between(2, log);
    let named = log.name_topic_id()?;
    between(3, log);
    let is_durable = complete(named);
    between(4, log);
    log.topic_id_synced(is_durable);
    between(5, log);
    Ok(())
}

/// After a loss of power: whether a record or the id is there.
fn after(disk: &FaultyDisk, crash: Crash) -> (bool, Option<Uuid>) {
    disk.crash(crash);
    let log = reopen(disk, options(config(), Offset(0), false));
    (log.end_offset() > Offset(0), log.topic_id())
}

#[test]
fn the_id_is_on_the_disk_before_the_first_record_wherever_that_comes_in_between() {
    for place in 0..6 {
        let disk = FaultyDisk::new();
        let mut log = create_with_id(&disk);
        let append_at = |at, log: &mut PartitionLog| {
            if at == place {
                append(log, &batch(&["x"]));
                assert_eq!(after(&disk.fork(), Crash::LoseUnsynced).1, Some(TOPIC), "an append at {place}");
            }
        };
        in_steps(&mut log, append_at).unwrap();
        flush(&mut log);
        assert_eq!(after(&disk, Crash::LoseUnsynced), (true, Some(TOPIC)), "an append at {place}");
    }
}

#[test]
fn what_power_lost_at_any_change_leaves_is_no_id_or_all_of_it() {
    let steps = 12;
    for (stop, place) in (0..steps).flat_map(|stop| (0..6).map(move |place| (stop, place))) {
        for seed in 0..20 {
            let disk = FaultyDisk::new();
            let mut log = create_with_id(&disk);
            disk.stop_after(disk.mutations() + stop);
            let mut is_promised = false;
            let append_and_flush = |at, log: &mut PartitionLog| {
                if at == place && try_append(log, 0, &batch(&["x"])).is_ok() {
                    let flushed = log.flush().ok().flatten().map(gregor_log::FlushToken::complete);
                    is_promised = flushed.is_some_and(|flushed| flushed.is_ok());
                }
            };
            let _ = in_steps(&mut log, append_and_flush);
            let (has_record, id) = after(&disk, Crash::Tear(seed));
            assert!(id.is_none_or(|id| id == TOPIC));
            assert!(!has_record || id.is_some(), "a record without an id: stop {stop}, append at {place}, seed {seed}");
            assert!(has_record || !is_promised, "a lost record: stop {stop}, append at {place}, seed {seed}");
        }
    }
}

#[test]
fn a_failed_sync_is_made_good_by_the_append() {
    for failing in [Operation::Sync, Operation::SyncDirectory] {
        let disk = FaultyDisk::new();
        let mut log = create_with_id(&disk);
        disk.set_fault(move |operation, _| (operation == failing).then(|| std::io::Error::other("no room")));
        in_steps(&mut log, |_, _| {}).unwrap();
        assert!(try_append(&mut log, 0, &batch(&["x"])).is_err(), "{failing:?}: nothing is stored without an id");
        disk.clear_fault();
        append(&mut log, &batch(&["x"]));
        flush(&mut log);
        assert_eq!(after(&disk, Crash::LoseUnsynced), (true, Some(TOPIC)), "{failing:?}");
    }
}
