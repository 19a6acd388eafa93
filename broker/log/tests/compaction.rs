//! Compaction against a model: whatever is cleaned, and wherever the machine stops, a reader ends with the same state.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;
mod compaction_model;

use std::{collections::BTreeSet, sync::Arc};

use common::*;
use compaction_model::*;
use gregor_log::{
    CleaningOptions, CleaningStep, Disk, LogConfig, OpenOptions, PartitionLog,
    disk::{Crash, FaultyDisk},
};
use gregor_types::{Offset, ProducerId, Timestamp};
use gregor_wire::{
    batch::{BatchOptions, EndTransactionMarker, RecordBatchBuilder},
    compression::{CompressionType, compress},
};

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 900,
        index_interval_bytes: 150,
        compact: true,
        delete: false,
        delete_retention_ms: 1_000,
        min_cleanable_dirty_ratio: 0.0,
        ..LogConfig::default()
    }
}

/// One log through rounds of writing, deleting, cleaning and restarting.
struct Life {
    seed: u64,
    random: Random,
    disk: FaultyDisk,
    log: PartitionLog,
    model: Model,
    cleaned_to: Option<Offset>,
    /// Never goes back.
    high_watermark: Offset,
    min_lag_ms: i64,
    now: Timestamp,
}

impl Life {
    fn new(seed: u64) -> Self {
        let (mut random, disk, mut model) = (Random(seed), FaultyDisk::new(), Model::default());
        let min_lag_ms = [0, 400, 3_000][random.below(3) as usize];
        let config = || LogConfig { min_compaction_lag_ms: min_lag_ms, ..config() };
        let mut log = create(&disk, config());
        if random.below(3) == 0 {
            drop(log);
            let bytes = old_messages(&mut model, &mut random);
            let file = disk.open(&folder().join(format!("{:020}.log", 0))).unwrap();
            file.write_all_at(&mut [std::io::IoSlice::new(&bytes)], 0).unwrap();
            log = reopen(&disk, options(config(), Offset(0), false));
            assert_eq!(log.end_offset().0 as usize, model.records.len());
        }
        let high_watermark = log.end_offset();
        Self { seed, random, disk, log, model, cleaned_to: None, high_watermark, min_lag_ms, now: NOW }
    }

    fn write(&mut self) {
        let Self { random, log, model, now, .. } = self;
        for _ in 0..random.below(40) {
            *now = now.plus_ms(random.below(50) as i64);
            match random.below(10) {
                0..4 => model.append(log, random, *now, None),
                4 | 5 => model.append(log, random, *now, Some(7)),
                6 | 7 => {
                    let producer = 100 + random.below(2) as i64;
                    model.append(log, random, *now, Some(producer));
                }
                8 => {
                    let (producer, commit) = (100 + random.below(2) as i64, random.below(2) == 0);
                    model.end_transaction(log, *now, producer, commit);
                }
                _ => log.roll(*now).unwrap(),
            }
        }
        self.commit();
    }

    /// All is committed, or a part of what was not.
    fn commit(&mut self) {
        let uncommitted = (self.log.end_offset().0 - self.high_watermark.0) as u64;
        let more = if self.random.below(2) == 0 { uncommitted } else { self.random.below(uncommitted + 1) };
        self.high_watermark = self.high_watermark.plus(more as i64);
    }

    /// Records are deleted by request, up to some offset that is stable.
    fn delete(&mut self) {
        let Self { random, log, model, high_watermark, now, .. } = self;
        let room = log.last_stable_offset(*high_watermark).0 - log.start_offset().0;
        let start = log.start_offset().plus(random.below(room as u64 + 1) as i64);
        log.advance_start(start).unwrap();
        log.retain(*high_watermark, *now, 1 + random.below(3) as usize).unwrap();
        model.start = log.start_offset().0;
        assert_eq!(model.start, start.0, "seed {}: no more was deleted than was asked for", self.seed);
    }

    fn clean(&mut self, round: u32) {
        let Self { seed, random, log, model, high_watermark, min_lag_ms, now, .. } = self;
        let end = log.end_offset();
        if random.below(4) > 0 {
            flush(log);
        }
        let active = last_segment(&self.disk);
        let synced = log.recovery_point().0;
        let uncleanable = model.uncleanable(*high_watermark, *now, *min_lag_ms).min(active).min(synced);
        let cleanable = log.cleanable(*high_watermark, *now).unwrap();
        let memory = [24 * 5, 1 << 20][random.below(2) as usize];
        let to = clean_stable(log, *high_watermark, *now, memory, 1 + random.below(2_000)).unwrap();
        let before = self.cleaned_to.replace(to);
        assert!(before.is_none_or(|before| to >= before), "seed {seed}, round {round}: cleaning goes back");
        let place = format!("seed {seed}, round {round}, clean to {to}, {uncleanable} uncleanable of {cleanable:?}");
        let known = before.unwrap_or(Offset(0)).max(log.start_offset());
        assert!(to.0 <= uncleanable.max(known.0), "{place}: too much");
        assert_eq!(committed_state(log, *high_watermark), model.state(*high_watermark), "{place}");
        let start = log.start_offset();
        let found = read(log, start);
        let mut seen = BTreeSet::new();
        for (offset, key, value, _) in &found {
            assert_eq!(model.records.get(offset), Some(&(key.clone(), value.clone())), "{place}: offset {offset}");
            let is_new = seen.insert(key) || *offset >= to.0;
            assert!(is_new, "{place}: {key} is there twice below what is clean, again at {offset}");
        }
        let kept: BTreeSet<_> = found.iter().map(|(offset, ..)| *offset).collect();
        let untouched =
            model.records.range(uncleanable.max(start.0).max(known.0)..).find(|(offset, _)| !kept.contains(offset));
        assert_eq!(untouched, None, "{place}: what may not be cleaned is as it was");
        let ends_batch = |base: Offset| model.batches.range(start.0..).any(|(_, (_, end))| *end == base.0);
        if to == cleanable.first_uncleanable && to > cleanable.first_dirty && ends_batch(to) {
            assert!(batch_ends(log, to), "{place}: where it ends is still known");
        }
        let from = start.plus(random.below((end.0 - start.0) as u64 + 1) as i64);
        let suffix: Vec<_> = found.iter().filter(|(offset, ..)| *offset >= from.0).cloned().collect();
        assert_eq!(read(log, from), suffix, "{place}: read from {from}");
    }

    /// What is known of each producer whose last record was not deleted.
    fn producers(&self) -> Vec<impl PartialEq + std::fmt::Debug + use<>> {
        let is_there = |id: ProducerId| self.model.last.get(&id.0).is_some_and(|last| *last >= self.model.start);
        let active = self.log.active_producers().filter(|producer| is_there(producer.producer_id));
        let mut active: Vec<_> =
            active.map(|p| (p.producer_id, p.producer_epoch, p.last_sequence, p.current_transaction_start)).collect();
        active.sort_by_key(|(id, ..)| *id);
        active
    }

    /// Everything is read anew, as after the loss of all checkpoints but two.
    fn restart(&mut self, round: u32) {
        let place = format!("seed {}, round {round}, after a restart", self.seed);
        let (end, start, before) = (self.log.end_offset(), self.log.start_offset(), self.producers());
        let cleaned_to = self.cleaned_to.unwrap_or(Offset(0));
        self.disk.crash(Crash::KeepAll);
        let config = LogConfig { min_compaction_lag_ms: self.min_lag_ms, ..config() };
        let options = OpenOptions { cleaned_to, log_start_offset: start, ..options(config, Offset(0), false) };
        self.log = reopen(&self.disk, options);
        // With nobody else, all that is there is committed.
        self.high_watermark = end;
        assert_eq!((self.log.start_offset(), self.log.end_offset()), (start, end), "{place}");
        assert_eq!(self.producers(), before, "{place}");
        assert_eq!(self.log.cleaned_to(), Some(cleaned_to).filter(|to| to.0 > 0), "{place}: nothing is dirty anew");
        assert_eq!(committed_state(&mut self.log, end), self.model.state(end), "{place}");
    }
}

#[test]
fn a_reader_ends_with_the_same_state_whatever_is_cleaned() {
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let (first, seeds) = (number("GREGOR_CRASH_FROM").unwrap_or(0), number("GREGOR_CRASH_SEEDS").unwrap_or(60));
    for seed in first..first + seeds {
        let mut life = Life::new(seed);
        for round in 0..8 {
            life.write();
            if life.random.below(4) == 0 {
                life.delete();
            }
            life.clean(round);
            if life.random.below(3) == 0 {
                life.restart(round);
            }
        }
    }
}

#[test]
fn tombstones_and_markers_go_when_their_time_is_over() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, config());
    let keyed = |key: &str, value: Option<&str>| {
        let mut builder = RecordBatchBuilder::new(BatchOptions::default());
        builder.append(NOW, Some(key.as_bytes()), value.map(str::as_bytes), &[]);
        builder.build()
    };
    append(&mut log, &keyed("a", Some("old")));
    append(&mut log, &keyed("a", None));
    append(&mut log, &keyed("b", Some("stays")));
    append(&mut log, &produced(9, 0, 0, true, &["aborted"]));
    append(&mut log, &marker_batch(EndTransactionMarker { commit: false, coordinator_epoch: 0 }, 9, NOW));
    // A newer epoch's marker is what is known of the producer then, so that the older one may go.
    append(&mut log, &keyed("c", Some("last of the segment")));
    log.roll(NOW).unwrap();
    append(&mut log, &keyed("d", Some("active")));
    flush(&mut log);

    let offsets = |log: &mut PartitionLog| read(log, Offset(0)).iter().map(|(offset, ..)| *offset).collect::<Vec<_>>();
    let to = clean(&mut log, NOW, 1 << 20, u64::MAX).unwrap();
    assert_eq!(
        (to, offsets(&mut log)),
        (Offset(6), vec![1, 2, 5, 6]),
        "the tombstone stays for readers who are behind"
    );
    let again = |log: &mut PartitionLog, key: &str, now: Timestamp| {
        append(log, &keyed(key, Some("more")));
        log.roll(now).unwrap();
        flush(log);
        clean(log, now, 1 << 20, u64::MAX).unwrap();
        offsets(log)
    };
    assert!(again(&mut log, "e", NOW.plus_ms(999)).contains(&1), "its horizon is not over");
    assert!(!again(&mut log, "f", NOW.plus_ms(1_001)).contains(&1), "now it is");
    assert_eq!(read(&mut log, Offset(0))[0].1, "b");
}

#[test]
fn a_machine_that_stops_anywhere_in_a_round_leaves_the_same_state() {
    let mut stopped = 0;
    for seed in 0..12 {
        for stop in 0..70 {
            for crash in [Crash::KeepAll, Crash::LoseUnsynced, Crash::Tear(stop * 31 + seed)] {
                let mut random = Random(seed);
                let disk = FaultyDisk::new();
                let mut log = create(&disk, config());
                let mut model = Model::default();
                for i in 0..40 {
                    let producer = [None, Some(7), Some(100)][i % 3];
                    model.append(&mut log, &mut random, NOW, producer);
                    if i % 9 == 8 {
                        model.end_transaction(&mut log, NOW, 100, i % 2 == 0);
                    }
                }
                model.end_transaction(&mut log, NOW, 100, true);
                flush(&mut log);
                disk.sync_file_system("/".as_ref()).complete().unwrap();
                let end = log.end_offset();
                let expected = model.state(end);
                disk.stop_after(disk.mutations() + stop);
                // The second round is where tombstones go, so that a segment left over would bring a value back.
                let first = clean(&mut log, NOW, 1 << 20, u64::MAX);
                let second = first.and_then(|_| clean(&mut log, NOW.plus_ms(5_000), 1 << 20, u64::MAX));
                stopped += u64::from(second.is_err());
                let recovery_point = log.recovery_checkpoint();
                drop(log);
                disk.crash(crash);
                let options = OpenOptions { cleaned_to: end, ..options(config(), recovery_point, false) };
                let mut log = PartitionLog::open(Arc::new(disk.clone()), folder(), options).unwrap();
                let place = format!("seed {seed}, stopped at {stop}, {crash:?}");
                assert_eq!(log.end_offset(), end, "{place}");
                assert_eq!(committed_state(&mut log, end), expected, "{place}");
                assert_eq!(leftovers(&disk, &[".cleaned", ".swap", ".deleted"]), [""; 0], "{place}");
            }
        }
    }
    assert!(stopped > 500, "only {stopped} rounds were cut short");
}

#[test]
fn a_log_that_is_cut_off_or_retained_meanwhile_keeps_what_it_has() {
    let swap_after = |change: &dyn Fn(&mut PartitionLog)| {
        let disk = FaultyDisk::new();
        let mut log = create(&disk, config());
        let (mut model, mut random) = (Model::default(), Random(5));
        for _ in 0..30 {
            model.append(&mut log, &mut random, NOW, None);
        }
        flush(&mut log);
        let end = log.end_offset();
        let cleanable = log.cleanable(end, NOW).unwrap();
        let options = CleaningOptions { memory_bytes: 1 << 20, load_factor: 0.9, now: NOW };
        let mut cleaning = log.begin_cleaning(&cleanable, &options);
        let CleaningStep::Swap(cleaned) = cleaning.step(u64::MAX).unwrap() else { panic!("a segment is cleaned") };
        assert!(log.has_sources_of(&cleaning));
        change(&mut log);
        assert!(!log.has_sources_of(&cleaning), "a file that is missing now was not lost");
        assert!(log.begin_swap(&cleaned).unwrap().is_none());
        assert_eq!(leftovers(&disk, &[".cleaned", ".swap"]), [""; 0]);
        let start = log.start_offset();
        for (offset, key, value, _) in read(&mut log, start) {
            assert_eq!(model.records[&offset], (key, value));
        }
    };
    swap_after(&|log| log.truncate_to(Offset(3), NOW).unwrap());
    swap_after(&|log| log.truncate_fully_and_start_at(Offset(0), NOW).unwrap());
    swap_after(&|log| {
        log.advance_start(log.active_segment_base()).unwrap();
        log.retain(log.end_offset(), NOW, 100).unwrap();
    });
}

#[test]
fn damage_is_found_and_not_copied() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, config());
    let (mut model, mut random) = (Model::default(), Random(9));
    for _ in 0..30 {
        model.append(&mut log, &mut random, NOW, None);
    }
    flush(&mut log);
    let file = disk.open(&folder().join(format!("{:020}.log", 0))).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 70).unwrap();
    file.write_all_at(&mut [std::io::IoSlice::new(&[byte[0] ^ 0x10])], 70).unwrap();
    let error = clean(&mut log, NOW, 1 << 20, u64::MAX).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn young_records_wait_and_old_ones_are_overdue() {
    let disk = FaultyDisk::new();
    let settings = LogConfig { min_compaction_lag_ms: 100, max_compaction_lag_ms: 1_000, ..config() };
    let mut log = create(&disk, settings.clone());
    let (mut model, mut random) = (Model::default(), Random(3));
    for i in 0..30 {
        model.append(&mut log, &mut random, NOW.plus_ms(i * 10), None);
    }
    flush(&mut log);
    let end = log.end_offset();
    let at = |log: &mut PartitionLog, ms: i64| log.cleanable(end, NOW.plus_ms(ms)).unwrap();
    assert_eq!(at(&mut log, 50).cleanable_bytes, 0);
    assert!(!at(&mut log, 50).is_due(&settings));
    let later = at(&mut log, 5_000);
    assert!(later.overdue_ms > 0 && later.is_due(&LogConfig { min_cleanable_dirty_ratio: 1.0, ..settings }));
    assert_eq!(later.first_uncleanable, log.active_segment_base());
    assert!(at(&mut log, 200).first_uncleanable < later.first_uncleanable);
}

#[test]
fn a_key_that_was_deleted_does_not_come_back_from_among_old_compressed_messages() {
    let disk = FaultyDisk::new();
    drop(create(&disk, config()));
    let inner = [
        message(1, 0, CompressionType::None, Some("deleted later"), Some(b"old")),
        message(1, 1, CompressionType::None, Some("stays"), Some(b"kept")),
    ];
    let mut packed = Vec::new();
    compress(CompressionType::Gzip.into(), &inner.concat(), &mut packed).unwrap();
    let wrapper = message(1, 1, CompressionType::Gzip, None, Some(&packed));
    let file = disk.open(&folder().join(format!("{:020}.log", 0))).unwrap();
    file.write_all_at(&mut [std::io::IoSlice::new(&wrapper)], 0).unwrap();
    let mut log = reopen(&disk, options(config(), Offset(0), false));
    assert_eq!(log.end_offset(), Offset(2));
    log.roll(NOW).unwrap();
    let keyed = |key: &str, value: Option<&str>| {
        let mut builder = RecordBatchBuilder::new(BatchOptions::default());
        builder.append(NOW, Some(key.as_bytes()), value.map(str::as_bytes), &[]);
        builder.build()
    };
    append(&mut log, &keyed("deleted later", None));
    for (key, now) in [("a", NOW), ("b", NOW.plus_ms(5_000)), ("c", NOW.plus_ms(10_000))] {
        append(&mut log, &keyed(key, Some("more")));
        log.roll(now).unwrap();
        flush(&mut log);
        clean(&mut log, now, 1 << 20, u64::MAX).unwrap();
    }
    let end = log.end_offset();
    let state = committed_state(&mut log, end);
    assert_eq!(state.keys().collect::<Vec<_>>(), ["a", "b", "c", "stays"]);
    let stays = read(&mut log, Offset(0)).remove(0);
    assert_eq!(stays, (1, "stays".to_owned(), Some("kept".to_owned()), None));
}

#[test]
fn a_round_that_finds_the_disk_full_gives_back_what_it_took() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, config());
    let (mut model, mut random) = (Model::default(), Random(5));
    for _ in 0..30 {
        model.append(&mut log, &mut random, NOW, None);
    }
    flush(&mut log);
    let used = disk.used();
    for room in [0, 100, 400] {
        disk.set_capacity(Some(used + room));
        let error = clean(&mut log, NOW, 1 << 20, u64::MAX).unwrap_err();
        assert!(error.is_disk_full(), "{error}");
        assert_eq!((leftovers(&disk, &[".cleaned", ".swap"]), disk.used()), (Vec::new(), used), "{room} bytes of room");
    }
    disk.set_capacity(None);
    let end = log.end_offset();
    clean(&mut log, NOW, 1 << 20, u64::MAX).unwrap();
    assert_eq!(committed_state(&mut log, end), model.state(end));
}

#[test]
fn what_is_written_after_the_log_was_cut_off_under_a_round_is_not_taken_for_clean() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, config());
    let (mut model, mut random) = (Model::default(), Random(5));
    for _ in 0..30 {
        model.append(&mut log, &mut random, NOW, None);
    }
    flush(&mut log);
    let end = log.end_offset();
    let cleanable = log.cleanable(end, NOW).unwrap();
    let options = CleaningOptions { memory_bytes: 1 << 20, load_factor: 0.9, now: NOW };
    let mut cleaning = log.begin_cleaning(&cleanable, &options);
    let to = loop {
        match cleaning.step(u64::MAX).unwrap() {
            CleaningStep::More => {}
            CleaningStep::Swap(cleaned) => {
                log.begin_swap(&cleaned).unwrap().unwrap().complete().unwrap();
                assert!(log.complete_swap(&cleaned, NOW).unwrap());
            }
            CleaningStep::Done(to) => break to,
        }
    };
    log.truncate_to(Offset(3), NOW).unwrap();
    assert!(!log.note_cleaned(&cleaning, to));
    while log.end_offset() < to.plus(5) {
        append(&mut log, &batch(&["more"]));
    }
    assert!(log.cleanable(end, NOW).unwrap().first_dirty <= Offset(3));
}

#[test]
fn no_record_goes_for_a_newer_one_that_a_crash_can_still_take() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, config());
    let keyed = |value: &str| {
        let mut builder = RecordBatchBuilder::new(BatchOptions::default());
        builder.append(NOW, Some(b"key"), Some(value.as_bytes()), &[]);
        builder.build()
    };
    // Too large to be cleaned into one segment, which would be on the disk with both.
    let (older, newer) = ("o".repeat(600), "n".repeat(600));
    append(&mut log, &keyed(&older));
    log.roll(NOW).unwrap();
    flush(&mut log);
    disk.sync_file_system("/".as_ref()).complete().unwrap();
    append(&mut log, &keyed(&newer));
    log.roll(NOW).unwrap();
    let end = log.end_offset();
    let cleanable = log.cleanable(end, NOW).unwrap();
    let options = CleaningOptions { memory_bytes: 1 << 20, load_factor: 0.9, now: NOW };
    let mut cleaning = log.begin_cleaning(&cleanable, &options);
    if let CleaningStep::Swap(cleaned) = cleaning.step(u64::MAX).unwrap() {
        log.begin_swap(&cleaned).unwrap().unwrap().complete().unwrap();
        assert!(log.complete_swap(&cleaned, NOW).unwrap());
    }
    let recovery_point = log.recovery_checkpoint();
    drop(log);
    disk.crash(Crash::LoseUnsynced);
    let mut log = reopen(&disk, common::options(config(), recovery_point, false));
    assert_eq!(read(&mut log, Offset(0)).first().and_then(|record| record.2.clone()), Some(older));

    append(&mut log, &keyed(&newer));
    log.roll(NOW).unwrap();
    flush(&mut log);
    clean(&mut log, NOW, 1 << 20, u64::MAX).unwrap();
    assert_eq!(read(&mut log, Offset(0)).first().and_then(|record| record.2.clone()), Some(newer));
}
