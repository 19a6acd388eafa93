//! A model test: random operations, a crash at any change of the disk, and what must be true after the restart.
//!
//! What was flushed is there with the same bytes; what is there is a prefix of what was appended; the log goes on.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::{panic::AssertUnwindSafe, sync::Arc};

use common::*;
use gregor_log::{
    Disk, LogConfig, OpenOptions, PartitionLog,
    disk::{Crash, FaultyDisk},
};
use gregor_types::{LeaderEpoch, Offset};

/// What a user may rely on.
#[derive(Default)]
struct Model {
    /// Every record in the log, in order; a failed append may or may not be there.
    records: Vec<(i64, String)>,
    /// Everything before this offset was flushed.
    durable: i64,
    /// What the checkpoint file says.
    checkpoint: i64,
    /// From here on, a crash may bring back what a truncation since the last flush, or the last recovery, has cut off.
    truncated_to: Option<i64>,
    /// A truncation in which the machine went off.
    cut_short: Option<i64>,
    start: i64,
}

fn config() -> LogConfig {
    LogConfig { segment_bytes: 600, index_interval_bytes: 150, retention_ms: -1, ..LogConfig::default() }
}

/// One operation; an error means that the machine went off.
fn operate(log: &mut PartitionLog, model: &mut Model, random: &mut Random, count: &mut i64) -> Result<(), ()> {
    match random.below(20) {
        0..12 => {
            let values: Vec<String> = (0..=random.below(3)).map(|_| next_value(count)).collect();
            let refs: Vec<&str> = values.iter().map(String::as_str).collect();
            let base = log.end_offset().0;
            let bytes = batch_at(NOW.plus_ms(base), &refs);
            try_append(log, log.last_epoch().0.max(0), &bytes).map_err(|_| ())?;
            model.records.extend(values.into_iter().enumerate().map(|(i, value)| (base + i as i64, value)));
        }
        12..15 => {
            if let Some(token) = log.flush().map_err(|_| ())? {
                let flushed = token.complete().map_err(|_| ())?;
                log.flushed(flushed);
            }
            model.durable = log.recovery_point().0;
            model.checkpoint = log.recovery_checkpoint().0;
            model.truncated_to = None;
        }
        15 => {
            let epoch = LeaderEpoch(log.last_epoch().0.max(0) + 1);
            log.assign_epoch_start(epoch, log.end_offset());
        }
        16 => {
            let (start, end) = (log.start_offset().0, log.end_offset().0);
            if end > start {
                let to = start + random.below((end - start) as u64) as i64;
                let result = log.truncate_to(Offset(to), NOW);
                model.truncated_to = Some(model.truncated_to.unwrap_or(i64::MAX).min(to - 2));
                // The batch that holds the offset goes as a whole, and it has up to three records.
                model.durable = model.durable.min(to - 2).max(0);
                result.map_err(|_| model.cut_short = Some(to - 2))?;
                model.checkpoint = log.recovery_checkpoint().0;
                let end = log.end_offset().0;
                model.durable = model.durable.min(end);
                model.truncated_to = model.truncated_to.map(|to| to.min(end));
                model.records.retain(|(offset, _)| *offset < end);
            }
        }
        17 => {
            let end = log.end_offset().0;
            let to = log.start_offset().0 + random.below((end - log.start_offset().0 + 1) as u64) as i64;
            model.start = model.start.max(to);
            log.advance_start(Offset(to.min(end))).map_err(|_| ())?;
            log.retain(Offset(end), NOW, 3).map_err(|_| ())?;
        }
        18 => log.roll(NOW).map_err(|_| ())?,
        _ => log.release_files(),
    }
    Ok(())
}

fn next_value(count: &mut i64) -> String {
    *count += 1;
    format!("value {count} {}", "x".repeat((*count % 40) as usize))
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let disk = FaultyDisk::new();
    let mut log = create(&disk, config());
    disk.sync_directory("/logs".as_ref()).complete().unwrap();
    disk.sync_directory("/".as_ref()).complete().unwrap();
    flush(&mut log);
    let mut model = Model::default();
    let mut count = 0;
    for round in 0..6 {
        disk.stop_after(disk.mutations() + random.below(80));
        for _ in 0..60 {
            if operate(&mut log, &mut model, &mut random, &mut count).is_err() {
                break;
            }
        }
        drop(log);
        let crash = match random.below(4) {
            0 => Crash::KeepAll,
            1 => Crash::LoseUnsynced,
            _ => Crash::Tear(random.below(1 << 32)),
        };
        disk.crash(crash);
        log = recover(&disk, &model, crash, &mut random);
        check(&mut log, &mut model, crash, round);
    }
}

fn recover(disk: &FaultyDisk, model: &Model, crash: Crash, random: &mut Random) -> PartitionLog {
    let options = OpenOptions { recovery_point: Offset(model.checkpoint), ..options(config(), Offset(0), false) };
    if crash != Crash::KeepAll && random.below(3) == 0 {
        // The machine goes off again in the middle of the recovery.
        disk.stop_after(disk.mutations() + random.below(6));
        let _ = PartitionLog::open(Arc::new(disk.clone()), folder(), options.clone());
        disk.crash(Crash::Tear(random.below(1 << 32)));
    }
    PartitionLog::open(Arc::new(disk.clone()), folder(), options).unwrap()
}

fn check(log: &mut PartitionLog, model: &mut Model, crash: Crash, round: i32) {
    let place = format!("round {round}, {crash:?}");
    let (start, end) = (log.start_offset().0, log.end_offset().0);
    assert!(end >= model.durable, "{place}: {} were flushed, the log ends at {end}", model.durable);
    assert!(start <= model.start.max(start.min(end)), "{place}: starts at {start}");
    let found = read_all(log);
    // What a truncation took, and what an append that failed left, may be there or not.
    let certain = model.truncated_to.unwrap_or(i64::MAX);
    for (offset, value) in &found {
        let known = model.records.iter().find(|(known, _)| known == offset);
        if let Some((_, known)) = known
            && *offset < certain
        {
            assert_eq!(known, value, "{place}: offset {offset}");
        }
    }
    let missing = model.records.iter().find(|(offset, _)| {
        *offset >= start.max(model.start) && *offset < model.durable && !found.iter().any(|(found, _)| found == offset)
    });
    assert_eq!(missing, None, "{place}: flushed and gone");
    for pair in found.windows(2) {
        assert_eq!(pair[0].0 + 1, pair[1].0, "{place}: a hole");
    }
    if crash == Crash::KeepAll {
        let cut = model.cut_short.unwrap_or(i64::MAX);
        let last = model.records.iter().rfind(|(offset, _)| *offset < cut).map_or(-1, |(offset, _)| *offset);
        assert!(end > last, "{place}: a process crash lost {last}, the log ends at {end}");
    }
    check_times(log, &place);
    model.records = found;
    model.start = model.start.max(start);
    // The next start of a process that died may be one after a power loss: what was cut off before is not cut off on the disk.
    let earlier = model.truncated_to.filter(|_| crash == Crash::KeepAll);
    model.truncated_to = Some(earlier.map_or(end, |to| to.min(end)));
    model.cut_short = None;
    model.checkpoint = model.checkpoint.min(log.recovery_checkpoint().0);
    let epochs: Vec<_> = log.epochs().iter().map(|(_, start)| start.0).collect();
    assert!(epochs.iter().all(|epoch| *epoch <= end), "{place}: epochs {epochs:?} behind {end}");
}

/// Every batch has its first offset as its time.
fn check_times(log: &mut PartitionLog, place: &str) {
    let bases = batch_bases(log);
    for offset in log.start_offset().0..=log.end_offset().0 {
        let found = log.offset_for_timestamp(NOW.plus_ms(offset)).unwrap().map(|found| found.offset.0);
        let expected = bases.iter().copied().find(|base| *base >= offset);
        assert_eq!(found, expected, "{place}: the first record at {offset} ms or later");
    }
}

#[test]
fn nothing_that_was_flushed_is_lost_wherever_the_machine_stops() {
    // More, on demand: GREGOR_CRASH_SEEDS=100000.
    let seeds = std::env::var("GREGOR_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(300);
    for seed in 0..seeds {
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| run(seed)));
        assert!(result.is_ok(), "seed {seed}");
    }
}

#[test]
fn an_append_at_every_single_change_of_the_disk_leaves_a_log_that_opens() {
    for stop in 0..60 {
        let disk = FaultyDisk::new();
        let mut log = create(&disk, config());
        disk.sync_file_system("/".as_ref()).complete().unwrap();
        disk.stop_after(disk.mutations() + stop);
        let mut appended = 0;
        while appended < 30 && try_append(&mut log, 0, &batch(&["some record of a producer"])).is_ok() {
            appended += 1;
        }
        drop(log);
        disk.crash(Crash::KeepAll);
        let mut log = reopen(&disk, options(config(), Offset(0), false));
        let found = read_all(&mut log).len();
        assert!(found == appended || found == appended + 1, "stopped at {stop}: {appended} appended, {found} found");
        append(&mut log, &batch(&["it goes on"]));
    }
}

#[test]
fn a_log_that_is_cut_over_several_segments_has_no_hole_wherever_the_power_fails() {
    for (stop, seed) in (0..60).flat_map(|stop| (0..20).map(move |seed| (stop, seed))) {
        let disk = FaultyDisk::new();
        let mut log = create(&disk, config());
        disk.sync_file_system("/".as_ref()).complete().unwrap();
        for i in 0..40 {
            append(&mut log, &batch(&[&format!("record {i}")]));
        }
        flush(&mut log);
        let synced = log.recovery_checkpoint();
        disk.stop_after(disk.mutations() + stop);
        let _ = log.truncate_to(Offset(3), NOW);
        drop(log);
        disk.crash(Crash::Tear(seed));
        // Nobody came to write the new recovery point down.
        let mut log = reopen(&disk, options(config(), synced, false));
        let offsets: Vec<_> = read_all(&mut log).into_iter().map(|(offset, _)| offset).collect();
        assert!(offsets.iter().copied().eq(0..offsets.len() as i64), "stopped at {stop}, {seed}: {offsets:?}");
        assert_eq!(log.end_offset(), Offset(offsets.len() as i64), "stopped at {stop}, {seed}");
    }
}

#[test]
fn damage_behind_the_recovery_point_ends_the_log_there_and_later_segments_go() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, config());
    for i in 0..40 {
        append(&mut log, &batch(&[&format!("record {i}")]));
    }
    let path = folder().join(format!("{:020}.log", log.active_segment_base().0 - 7));
    let size = log.size();
    drop(log);
    disk.crash(Crash::KeepAll);
    let path = if disk.open(&path).is_ok() { path } else { folder().join("00000000000000000000.log") };
    disk.corrupt(&path, 100, 4);
    let mut log = reopen(&disk, options(config(), Offset(0), false));
    assert!(log.size() < size);
    let found = read_all(&mut log);
    assert!(found.len() < 40);
    assert!(
        found.iter().enumerate().all(|(i, (offset, value))| *offset == i as i64 && *value == format!("record {i}"))
    );
    let names = names(&disk, &folder());
    assert!(names.iter().all(|name| !name.ends_with(".deleted")), "{names:?}");
}

#[test]
fn a_recovery_in_small_steps_ends_where_one_in_one_step_does() {
    let disk = FaultyDisk::new();
    let mut log = create(&disk, config());
    for i in 0..100 {
        append(&mut log, &batch(&[&format!("record {i}")]));
    }
    drop(log);
    disk.crash(Crash::KeepAll);
    let mut opening =
        gregor_log::LogOpening::new(Arc::new(disk.clone()), folder(), options(config(), Offset(0), false)).unwrap();
    let mut steps = 0;
    let mut remaining = u64::MAX;
    loop {
        let progress = opening.step(100).unwrap();
        assert!(progress.remaining_bytes <= remaining, "the work that is left does not grow");
        remaining = progress.remaining_bytes;
        steps += 1;
        if progress.done {
            break;
        }
    }
    assert!(steps > 50, "{steps}");
    assert_eq!(read_all(&mut opening.finish().unwrap()).len(), 100);
}
