//! Model tests: random operations on a disk of which any call may fail, which is full at times, and which loses bits.
//!
//! After an error the log is as if the call had not been made; what a sync that failed was to write is never called durable;
//! damaged bytes are given to nobody.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use common::*;
use gregor_log::{
    AbortedTransaction, ActiveProducer, AppendError, Appended, LogConfig, LogError, OpenOptions, PartitionLog,
    ReadError, ReadRequest,
    disk::{Crash, FaultyDisk, Operation},
};
use gregor_types::{ErrorCode, LeaderEpoch, Offset, ProducerEpoch, ProducerId};
use gregor_wire::batch::{EndTransactionMarker, RecordBatchBuilder, split_batches};

const PRODUCERS: i64 = 4;

fn config() -> LogConfig {
    LogConfig { segment_bytes: 700, index_interval_bytes: 100, retention_ms: -1, ..LogConfig::default() }
}

/// Fails calls at random, with one kind of error.
#[derive(Clone)]
struct Faults(Arc<Mutex<(Random, u64)>>);

impl Faults {
    fn on(disk: &FaultyDisk, seed: u64, errno: i32, hits: fn(Operation) -> bool) -> Self {
        let this = Self(Arc::new(Mutex::new((Random(seed), 0))));
        let faults = this.clone();
        disk.set_fault(move |operation, _: &Path| {
            let (random, in_hundred) = &mut *faults.0.lock().unwrap();
            (hits(operation) && random.below(100) < *in_hundred).then(|| io::Error::from_raw_os_error(errno))
        });
        this
    }

    fn set(&self, in_hundred: u64) {
        self.0.lock().unwrap().1 = in_hundred;
    }
}

/// What the log is to hold.
#[derive(Default)]
struct Model {
    records: Vec<(i64, String)>,
    sequences: [i32; PRODUCERS as usize],
    open: [bool; PRODUCERS as usize],
    count: i64,
}

/// A batch or marker that may be appended next.
struct Next {
    bytes: Bytes,
    values: Vec<String>,
    producer: usize,
    transactional: bool,
    marker: bool,
}

impl Model {
    /// Producers 0 and 1 are idempotent, 2 and 3 transactional.
    fn next(&mut self, random: &mut Random) -> Next {
        let producer = random.below(PRODUCERS as u64) as usize;
        let id = 100 + producer as i64;
        let transactional = producer >= 2;
        if transactional && self.open[producer] && random.below(3) == 0 {
            let marker = EndTransactionMarker { commit: random.below(2) == 0, coordinator_epoch: 0 };
            let bytes = RecordBatchBuilder::end_transaction_marker(marker, ProducerId(id), ProducerEpoch(0), NOW);
            return Next { bytes, values: Vec::new(), producer, transactional, marker: true };
        }
        self.count += 1;
        let values: Vec<String> = (0..=random.below(3)).map(|i| format!("value {}.{i}", self.count)).collect();
        let refs: Vec<&str> = values.iter().map(String::as_str).collect();
        let bytes = produced(id, 0, self.sequences[producer], transactional, &refs);
        Next { bytes, values, producer, transactional, marker: false }
    }

    fn appended(&mut self, next: Next, base: i64) {
        self.sequences[next.producer] += next.values.len() as i32;
        self.open[next.producer] = next.transactional && !next.marker;
        self.records.extend(next.values.into_iter().enumerate().map(|(i, value)| (base + i as i64, value)));
    }
}

/// All that a log knows and that a recovery must come to again.
struct Knowledge {
    end: Offset,
    records: Vec<(i64, String)>,
    producers: Vec<ActiveProducer>,
    aborted: Vec<AbortedTransaction>,
    epochs: Vec<(LeaderEpoch, Offset)>,
}

fn knowledge(log: &mut PartitionLog) -> Knowledge {
    let mut producers: Vec<_> = log.active_producers().collect();
    producers.sort_by_key(|producer| producer.producer_id);
    let end = log.end_offset();
    Knowledge {
        end,
        records: data(log),
        producers,
        aborted: log.aborted_transactions(Offset(0), end).unwrap(),
        epochs: log.epochs().to_vec(),
    }
}

/// The records but for markers.
fn data(log: &mut PartitionLog) -> Vec<(i64, String)> {
    read_all(log).into_iter().filter(|(_, value)| value.starts_with("value")).collect()
}

fn append_next(log: &mut PartitionLog, next: &Next) -> Result<i64, AppendError> {
    match try_append(log, log.last_epoch().0.max(0), &next.bytes)? {
        Appended::New(info) => Ok(info.base_offset.0),
        Appended::Duplicate(info) => panic!("a duplicate of {info:?}"),
    }
}

fn try_flush(log: &mut PartitionLog) -> Result<(), LogError> {
    if let Some(token) = log.flush()? {
        let flushed = token.complete()?;
        log.flushed(flushed);
    }
    Ok(())
}

fn open_again(disk: &FaultyDisk, recovery_point: Offset) -> PartitionLog {
    let options = OpenOptions { recovery_point, ..options(config(), Offset(0), false) };
    PartitionLog::open(Arc::new(disk.clone()), folder(), options).unwrap()
}

fn new_log(disk: &FaultyDisk) -> PartitionLog {
    let mut log = create(disk, config());
    disk.sync_file_system();
    flush(&mut log);
    log
}

trait SyncAll {
    fn sync_file_system(&self);
}

impl SyncAll for FaultyDisk {
    fn sync_file_system(&self) {
        gregor_log::Disk::sync_file_system(self, Path::new("/")).complete().unwrap();
    }
}

#[test]
fn a_full_disk_refuses_loses_nothing_and_takes_the_same_batch_once_there_is_room() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let disk = FaultyDisk::new();
        let mut log = new_log(&disk);
        let mut model = Model::default();
        let grows = |operation| matches!(operation, Operation::Write | Operation::Create);
        let faults = Faults::on(&disk, seed, 28, grows);
        let mut refused = 0;
        for _ in 0..120 {
            faults.set(if random.below(3) == 0 { 60 } else { 0 });
            match random.below(12) {
                0..8 => {
                    let next = model.next(&mut random);
                    let end = log.end_offset();
                    let mut base = append_next(&mut log, &next);
                    while let Err(error) = base {
                        assert!(
                            matches!(&error, AppendError::Log(error) if error.is_disk_full()),
                            "seed {seed}: {error}"
                        );
                        assert_eq!(error.error_code(), ErrorCode::KafkaStorageError);
                        assert_eq!((log.end_offset(), data(&mut log)), (end, model.records.clone()), "seed {seed}");
                        refused += 1;
                        faults.set(if random.below(2) == 0 { 60 } else { 0 });
                        base = append_next(&mut log, &next);
                    }
                    model.appended(next, base.unwrap());
                }
                8 => {
                    if let Err(error) = try_flush(&mut log) {
                        assert!(error.is_disk_full(), "seed {seed}: {error}");
                    }
                }
                9 => {
                    if let Err(error) = log.roll(NOW) {
                        assert!(error.is_disk_full(), "seed {seed}: {error}");
                    }
                }
                10 => log.assign_epoch_start(LeaderEpoch(log.last_epoch().0.max(0) + 1), log.end_offset()),
                _ => log.release_files(),
            }
        }
        faults.set(0);
        assert!(refused > 3, "seed {seed}: the disk was hardly full");
        let before = knowledge(&mut log);
        assert_eq!(before.records, model.records, "seed {seed}");
        let recovery_point = log.recovery_checkpoint();
        let mut log = if seed % 2 == 0 {
            drop(log);
            disk.crash(Crash::KeepAll);
            open_again(&disk, recovery_point)
        } else {
            close_and_reopen(&disk, log)
        };
        // A start forgets epochs in which nothing was appended, as Kafka's does.
        let mut before = before;
        before.epochs.retain(|(_, start)| *start < before.end);
        let after = knowledge(&mut log);
        assert_eq!(after.records, before.records, "seed {seed}");
        assert_eq!(after.producers, before.producers, "seed {seed}");
        assert_eq!(after.aborted, before.aborted, "seed {seed}");
        assert_eq!(after.epochs, before.epochs, "seed {seed}");
        assert_eq!(after.end, before.end, "seed {seed}");
    }
}

#[test]
fn what_a_new_producer_has_in_flight_is_not_taken_before_its_first_batch_that_found_no_room() {
    let disk = FaultyDisk::new();
    let mut log = new_log(&disk);
    let (large, small) = (produced(100, 0, 0, false, &["a", "b", "c"]), produced(100, 0, 3, false, &["d"]));
    disk.set_capacity(Some(disk.used() + small.len() as u64 + 1));
    let refused = try_append(&mut log, 0, &large).unwrap_err();
    assert_eq!(refused.error_code(), ErrorCode::KafkaStorageError);
    let refused = try_append(&mut log, 0, &small).unwrap_err();
    assert_eq!(refused.error_code(), ErrorCode::OutOfOrderSequenceNumber, "there would be room for it");
    append(&mut log, &produced(101, 0, 3, false, &["e"]));
    disk.set_capacity(None);
    append(&mut log, &large);
    append(&mut log, &small);
    let values: Vec<_> = read_all(&mut log).into_iter().map(|(_, value)| value).collect();
    assert_eq!(values, ["e", "a", "b", "c", "d"], "of a producer that nobody refused, any sequence may be the first");
}

#[test]
fn a_disk_with_a_real_bound_fills_up_and_goes_on_when_files_go() {
    let disk = FaultyDisk::new();
    let mut log = new_log(&disk);
    disk.set_capacity(Some(5_000));
    let mut appended = 0;
    let error = loop {
        match try_append(&mut log, 0, &batch(&[&format!("record {appended}")])) {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, AppendError::Log(error) if error.is_disk_full()), "{error}");
    assert!(appended > 20, "{appended}");
    let held = read_all(&mut log);
    assert_eq!(held.len(), appended);
    disk.set_capacity(Some(6_000));
    append(&mut log, &batch(&["there is room again"]));
    let log = kill_and_reopen(&disk, log);
    assert_eq!(read_all(&mut { log })[..appended], held);
}

#[test]
fn whatever_fails_nothing_acknowledged_is_lost_and_nothing_is_called_durable_that_is_not() {
    let mut failed_syncs = 0;
    for seed in 0..400 {
        let mut random = Random(seed);
        let disk = FaultyDisk::new();
        let mut log = new_log(&disk);
        let mut model = Model::default();
        let faults = Faults::on(&disk, seed, 5, |_| true);
        let (mut durable, mut checkpoint) = (Offset(0), Offset(0));
        let mut sync_failed = false;
        // A disk that fails is not used again; until then all is well.
        faults.set(1);
        let mut error = None;
        for _ in 0..200 {
            let result = match random.below(12) {
                0..8 => {
                    let next = model.next(&mut random);
                    append_next(&mut log, &next).map(|base| model.appended(next, base)).map_err(|error| match error {
                        AppendError::Log(error) => error,
                        error => panic!("seed {seed}: {error}"),
                    })
                }
                8..11 => try_flush(&mut log).map(|()| {
                    durable = log.recovery_point();
                    checkpoint = log.recovery_checkpoint();
                }),
                _ => log.roll(NOW),
            };
            if let Err(failure) = result {
                sync_failed = matches!(failure, LogError::SyncFailed { .. });
                error = Some(failure);
                break;
            }
        }
        disk.clear_fault();
        if sync_failed {
            failed_syncs += 1;
            // The disk is well again, and its next sync says that all is written: it is not.
            assert!(matches!(try_flush(&mut log), Err(LogError::SyncFailed { .. })), "seed {seed}");
            let late = model.next(&mut random);
            assert!(append_next(&mut log, &late).is_err(), "seed {seed}: an append that can never be durable");
            assert_eq!(log.recovery_point(), durable, "seed {seed}");
            assert!(log.close().is_err(), "seed {seed}: such a log is not closed cleanly");
        }
        drop(log);
        let crash = [Crash::KeepAll, Crash::LoseUnsynced, Crash::Tear(seed)][random.below(3) as usize];
        disk.crash(crash);
        let mut log = open_again(&disk, checkpoint);
        let place = format!("seed {seed}, {crash:?}, after {error:?}");
        let found = data(&mut log);
        assert!(log.end_offset() >= durable, "{place}: {durable} were flushed, {} are there", log.end_offset());
        let common = found.len().min(model.records.len());
        assert_eq!(found[..common], model.records[..common], "{place}");
        if crash == Crash::KeepAll {
            assert_eq!(found[..model.records.len()], model.records, "{place}: a process crash lost something");
        }
        append(&mut log, &batch(&["it goes on"]));
    }
    assert!(failed_syncs > 20, "only {failed_syncs} syncs failed");
}

#[test]
fn what_a_process_was_to_sync_when_it_died_is_there_for_the_next_one_to_sync() {
    let disk = FaultyDisk::new();
    let mut log = new_log(&disk);
    append(&mut log, &batch(&["first"]));
    disk.stop_at(|operation, _| operation == Operation::Sync);
    try_flush(&mut log).unwrap_err();
    assert!(disk.is_off() && !disk.has_lost_writes(), "no disk has failed");
    drop(log);
    disk.crash(Crash::KeepAll);
    let mut log = open_again(&disk, Offset(0));
    try_flush(&mut log).unwrap();
    drop(log);
    disk.crash(Crash::LoseUnsynced);
    assert_eq!(open_again(&disk, Offset(0)).end_offset(), Offset(1));
}

#[test]
fn a_flush_that_ran_beside_one_that_failed_claims_nothing() {
    let disk = FaultyDisk::new();
    let mut log = new_log(&disk);
    append(&mut log, &batch(&["first"]));
    let fails = log.flush().unwrap().unwrap();
    append(&mut log, &batch(&["second"]));
    let succeeds = log.flush().unwrap().unwrap();
    disk.set_fault(|operation, _| (operation == Operation::Sync).then(|| io::Error::from_raw_os_error(5)));
    fails.complete().unwrap_err();
    disk.clear_fault();
    let flushed = succeeds.complete().unwrap();
    log.flushed(flushed);
    assert_eq!(log.recovery_point(), Offset(0), "the second sync wrote nothing of what the first one lost");
    drop(log);
    disk.crash(Crash::LoseUnsynced);
    assert_eq!(open_again(&disk, Offset(0)).end_offset(), Offset(0), "and so it is on the disk");
}

fn files(disk: &FaultyDisk, ending: &str) -> Vec<(std::path::PathBuf, u64)> {
    let entries = gregor_log::Disk::list(disk, &folder()).unwrap();
    let logs = entries.into_iter().filter(|entry| entry.name.ends_with(ending) && entry.len > 0);
    logs.map(|entry| (folder().join(entry.name), entry.len)).collect()
}

/// What a consumer gets that reads all of the log: records, and the error at which it stops.
fn consume(log: &mut PartitionLog, from: Offset) -> (Vec<(i64, String)>, Option<ReadError>) {
    let mut records = Vec::new();
    let mut next = from;
    while next < log.end_offset() {
        let request = ReadRequest { from: next, upper_bound: log.end_offset(), max_bytes: 400, min_one_batch: true };
        let plan = match log.read(&request).and_then(gregor_log::ReadPlan::check) {
            Ok(plan) => plan,
            Err(error) => return (records, Some(error)),
        };
        let bytes = plan.read_all().unwrap();
        for batch in split_batches(&bytes) {
            let batch = batch.unwrap();
            // No check here: the consumer takes what it is given.
            for record in &batch.records(1 << 20).unwrap() {
                let record = record.unwrap();
                let value = String::from_utf8_lossy(record.value.unwrap_or_default()).into_owned();
                records.push((record.offset.0, value));
            }
            next = batch.next_offset();
        }
    }
    (records, None)
}

/// Forty records in several segments, closed cleanly, then one byte of the data flipped.
fn rotten(seed: u64) -> (FaultyDisk, PartitionLog, Vec<(i64, String)>) {
    let mut random = Random(seed);
    let disk = FaultyDisk::new();
    let mut log = new_log(&disk);
    for i in 0..40 {
        append(&mut log, &batch(&[&format!("record {i}")]));
    }
    let written = read_all(&mut log);
    let flushed = log.close().unwrap().complete().unwrap();
    log.flushed(flushed);
    let end = log.end_offset();
    drop(log);
    flip_a_bit(&disk, &mut random);
    let log = reopen(&disk, options(config(), end, true));
    (disk, log, written)
}

/// Flips a bit of some batch.
fn flip_a_bit(disk: &FaultyDisk, random: &mut Random) {
    let logs = files(disk, ".log");
    let (path, len) = &logs[random.below(logs.len() as u64) as usize];
    let mut content = vec![0; *len as usize];
    gregor_log::Disk::open(disk, path).unwrap().read_exact_at(&mut content, 0).unwrap();
    let mut starts = Vec::new();
    let mut at = 0;
    for batch in split_batches(&content) {
        starts.push(at);
        at += u64::from(batch.unwrap().size);
    }
    // The offset and the epoch of a batch are outside of its checksum: a leader stamps them on.
    let position = loop {
        let position = random.below(*len);
        let in_batch = position - starts[starts.partition_point(|start| *start <= position) - 1];
        if (8..12).contains(&in_batch) || in_batch >= 16 {
            break position;
        }
    };
    disk.corrupt(path, position, 1 << random.below(8));
}

#[test]
fn a_closed_log_whose_producers_have_to_be_read_anew_opens_whatever_the_disk_has_damaged() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let disk = FaultyDisk::new();
        let mut log = new_log(&disk);
        for i in 0..40 {
            append(&mut log, &produced(100, 0, i, false, &[&format!("record {i}")]));
        }
        let written = read_all(&mut log);
        let flushed = log.close().unwrap().complete().unwrap();
        log.flushed(flushed);
        let end = log.end_offset();
        drop(log);
        for (path, _) in files(&disk, ".snapshot") {
            gregor_log::Disk::remove_file(&disk, &path).unwrap();
        }
        flip_a_bit(&disk, &mut random);
        let opened = PartitionLog::open(Arc::new(disk.clone()), folder(), options(config(), end, true));
        let mut log = opened.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let (got, _) = consume(&mut log, Offset(0));
        assert_eq!(got, written[..got.len()], "seed {seed}: a reader got what nobody wrote");
        append(&mut log, &batch(&["producers are served"]));
        let last = log.end_offset().plus(-1);
        let (behind, _) = consume(&mut log, last);
        assert_eq!(behind.len(), 1, "seed {seed}");
    }
}

#[test]
fn bits_that_the_disk_lost_are_never_given_to_a_reader() {
    let mut noticed = 0;
    for seed in 0..300 {
        let (_disk, mut log, written) = rotten(seed);
        let (got, error) = consume(&mut log, Offset(0));
        assert_eq!(got, written[..got.len()], "seed {seed}: a reader got what nobody wrote");
        if let Some(error) = error {
            noticed += 1;
            assert_eq!(error.error_code(), ErrorCode::CorruptMessage, "seed {seed}: {error}");
            let (again, _) = consume(&mut log, Offset(0));
            assert_eq!(again, got, "seed {seed}: what is good is read on, what is not stays refused");
            append(&mut log, &batch(&["producers are served"]));
            let last = log.end_offset().plus(-1);
            let (behind, _) = consume(&mut log, last);
            assert_eq!(behind.len(), 1, "seed {seed}");
        }
    }
    assert!(noticed > 250, "{noticed} of 300 were noticed by a reader; the rest was found at the start");
}

#[test]
fn a_follower_takes_no_batch_that_the_leaders_disk_has_damaged() {
    let bytes = batch(&["a record that is copied"]);
    for position in 17..bytes.len() {
        for bit in 0..8 {
            let disk = FaultyDisk::new();
            let mut log = new_log(&disk);
            let mut damaged = bytes.to_vec();
            damaged[position] ^= 1 << bit;
            let refused = log.append_as_follower(&damaged, NOW);
            assert!(refused.is_err(), "bit {bit} of byte {position}");
            assert_eq!((log.end_offset(), log.size()), (Offset(0), 0));
        }
    }
}

#[test]
fn what_this_program_appended_or_recovered_itself_is_not_checked_again() {
    let disk = FaultyDisk::new();
    let mut log = new_log(&disk);
    for i in 0..40 {
        append(&mut log, &batch(&[&format!("record {i}")]));
    }
    let whole =
        |from| ReadRequest { from: Offset(from), upper_bound: Offset(40), max_bytes: 1 << 20, min_one_batch: true };
    assert!((0..40).all(|from| !log.read(&whole(from)).unwrap().needs_check()));
    let mut log = kill_and_reopen(&disk, log);
    assert!((0..40).all(|from| !log.read(&whole(from)).unwrap().needs_check()), "a recovery has looked at all of it");
    let mut log = {
        close_and_reopen(&disk, {
            append(&mut log, &batch(&["the last"]));
            log
        })
    };
    assert!((0..40).all(|from| log.read(&whole(from)).unwrap().needs_check()), "a clean start has looked at nothing");
    assert_eq!(consume(&mut log, Offset(0)).0.len(), 41);
    let request = whole(log.active_segment_base().0);
    assert!(!log.read(&request).unwrap().needs_check(), "a reader has looked at it");
}

#[test]
fn a_segment_that_comes_back_because_power_was_lost_as_it_was_deleted_has_its_aborted_transactions() {
    let mut came_back = 0;
    for seed in 0..200 {
        let disk = FaultyDisk::new();
        let mut log = new_log(&disk);
        for i in 0..20 {
            append(&mut log, &produced(100, 0, i * 2, true, &["value of it", "value of it too"]));
            let marker = EndTransactionMarker { commit: false, coordinator_epoch: 0 };
            append(
                &mut log,
                &RecordBatchBuilder::end_transaction_marker(marker, ProducerId(100), ProducerEpoch(0), NOW),
            );
        }
        try_flush(&mut log).unwrap();
        let end = log.end_offset();
        log.advance_start(Offset(30)).unwrap();
        log.retain(end, NOW, 100).unwrap();
        drop(log);
        disk.crash(Crash::Tear(seed));
        let mut log = open_again(&disk, end);
        came_back += usize::from(log.start_offset() < Offset(30));
        let aborted = log.aborted_transactions(log.start_offset(), end).unwrap();
        for (offset, _) in data(&mut log) {
            let is_listed =
                |aborted: &AbortedTransaction| (aborted.first_offset.0..aborted.last_offset.0).contains(&offset);
            assert!(aborted.iter().any(is_listed), "seed {seed}: {offset} is shown as committed");
        }
    }
    assert!(came_back > 20, "no segment came back in most of the worlds");
}
