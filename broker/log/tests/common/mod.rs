//! A log on a disk in memory, and batches to put into it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use gregor_log::{
    AppendError, AppendInfo, Appended, CleaningOptions, CleaningStep, Disk, LogConfig, LogError, OpenOptions,
    PartitionLog, ReadRequest,
    disk::{Crash, FaultyDisk},
};
use gregor_types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp, TopicPartition};
use gregor_wire::{
    batch::{BatchChecksum, BatchOptions, ProducerStamp, RecordBatchBuilder, ValidatedBatch, split_batches},
    compression::CompressionType,
};

pub const NOW: Timestamp = Timestamp(1_700_000_000_000);

/// Chance that a seed replays.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

pub fn partition() -> TopicPartition {
    TopicPartition::new("t", 0)
}

pub fn folder() -> PathBuf {
    PathBuf::from("/logs/t-0")
}

pub fn create(disk: &FaultyDisk, config: LogConfig) -> PartitionLog {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    PartitionLog::create(disk, folder(), partition(), None, Arc::new(config), NOW).unwrap()
}

pub fn options(config: LogConfig, recovery_point: Offset, clean: bool) -> OpenOptions {
    OpenOptions {
        topic_partition: partition(),
        config: Arc::new(config),
        recovery_point,
        log_start_offset: Offset(0),
        cleaned_to: Offset(0),
        clean,
        now: NOW,
    }
}

pub fn reopen(disk: &FaultyDisk, options: OpenOptions) -> PartitionLog {
    PartitionLog::open(Arc::new(disk.clone()), folder(), options).unwrap()
}

/// The process dies: what was written stays, what was only in memory goes.
pub fn kill_and_reopen(disk: &FaultyDisk, log: PartitionLog) -> PartitionLog {
    let (config, recovery_point) = (LogConfig::clone(log.config()), log.recovery_point());
    drop(log);
    disk.crash(Crash::KeepAll);
    reopen(disk, options(config, recovery_point, false))
}

pub fn close_and_reopen(disk: &FaultyDisk, mut log: PartitionLog) -> PartitionLog {
    let flushed = log.close().unwrap().complete().unwrap();
    log.flushed(flushed);
    let (config, recovery_point) = (LogConfig::clone(log.config()), log.recovery_point());
    drop(log);
    disk.crash(Crash::LoseUnsynced);
    reopen(disk, options(config, recovery_point, true))
}

pub fn batch_at(timestamp: Timestamp, values: &[&str]) -> Bytes {
    let mut builder = RecordBatchBuilder::new(BatchOptions::default());
    for value in values {
        builder.append(timestamp, None, Some(value.as_bytes()), &[]);
    }
    builder.build()
}

pub fn batch(values: &[&str]) -> Bytes {
    batch_at(NOW, values)
}

pub fn produced(id: i64, epoch: i16, base_sequence: i32, transactional: bool, values: &[&str]) -> Bytes {
    let producer = ProducerStamp { id: ProducerId(id), epoch: ProducerEpoch(epoch), base_sequence };
    let mut builder =
        RecordBatchBuilder::new(BatchOptions { producer: Some(producer), transactional, ..BatchOptions::default() });
    for value in values {
        builder.append(NOW, None, Some(value.as_bytes()), &[]);
    }
    builder.build()
}

pub fn try_append(log: &mut PartitionLog, epoch: i32, batch: &Bytes) -> Result<Appended, AppendError> {
    log.append_as_leader(&ValidatedBatch::trusted(batch).unwrap(), LeaderEpoch(epoch), NOW)
}

pub fn append(log: &mut PartitionLog, batch: &Bytes) -> AppendInfo {
    match try_append(log, 0, batch).unwrap() {
        Appended::New(info) => info,
        Appended::Duplicate(info) => panic!("a duplicate of {info:?}"),
    }
}

pub fn flush(log: &mut PartitionLog) {
    if let Some(token) = log.flush().unwrap() {
        let flushed = token.complete().unwrap();
        log.flushed(flushed);
    }
}

/// All records from an offset to the end, as offset and value.
pub fn read_from(log: &mut PartitionLog, from: Offset) -> Vec<(i64, String)> {
    let mut records = Vec::new();
    let mut next = from;
    while next < log.end_offset() {
        let request =
            ReadRequest { from: next, upper_bound: log.end_offset(), max_bytes: 1 << 20, min_one_batch: true };
        let bytes = log.read(&request).unwrap().read_all().unwrap();
        assert!(!bytes.is_empty(), "nothing to read at {next} of {}", log.end_offset());
        for batch in split_batches(&bytes) {
            let batch = batch.unwrap();
            batch.check_crc().unwrap();
            for record in &batch.records(1 << 20).unwrap() {
                let record = record.unwrap();
                if record.offset >= from {
                    let value = String::from_utf8_lossy(record.value.unwrap_or_default()).into_owned();
                    records.push((record.offset.0, value));
                }
            }
            next = batch.next_offset();
        }
    }
    records
}

pub fn read_all(log: &mut PartitionLog) -> Vec<(i64, String)> {
    let start = log.start_offset();
    read_from(log, start)
}

/// The first offset of each batch.
pub fn batch_bases(log: &mut PartitionLog) -> Vec<i64> {
    let mut bases = Vec::new();
    let mut next = log.start_offset();
    while next < log.end_offset() {
        let request =
            ReadRequest { from: next, upper_bound: log.end_offset(), max_bytes: 1 << 20, min_one_batch: true };
        let bytes = log.read(&request).unwrap().read_all().unwrap();
        for batch in split_batches(&bytes) {
            let batch = batch.unwrap();
            bases.push(batch.base_offset.0);
            next = batch.next_offset();
        }
    }
    bases
}

pub fn names(disk: &FaultyDisk, folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = disk.list(folder).unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    names
}

/// A message as Kafka before 0.11 wrote it, of magic 0 or 1.
pub fn message(magic: u8, offset: i64, codec: CompressionType, key: Option<&str>, value: Option<&[u8]>) -> Vec<u8> {
    let field = |bytes: Option<&[u8]>| {
        let mut field = bytes.map_or(-1, |bytes| bytes.len() as i32).to_be_bytes().to_vec();
        field.extend(bytes.unwrap_or_default());
        field
    };
    let mut content = vec![magic, codec.id() as u8];
    if magic == 1 {
        content.extend(NOW.0.to_be_bytes());
    }
    content.extend(field(key.map(str::as_bytes)));
    content.extend(field(value));
    let mut checksum = BatchChecksum::new(magic as i8);
    checksum.update(&content);
    let mut bytes = offset.to_be_bytes().to_vec();
    bytes.extend((content.len() as i32 + 4).to_be_bytes());
    bytes.extend(checksum.finish().to_be_bytes());
    bytes.extend(content);
    bytes
}

/// One round where all is committed.
pub fn clean(log: &mut PartitionLog, now: Timestamp, memory_bytes: usize, budget: u64) -> Result<Offset, LogError> {
    let end = log.end_offset();
    clean_stable(log, end, now, memory_bytes, budget)
}

/// One round; each swap as the shell does it. The offset up to which the log is clean.
pub fn clean_stable(
    log: &mut PartitionLog,
    high_watermark: Offset,
    now: Timestamp,
    memory_bytes: usize,
    budget: u64,
) -> Result<Offset, LogError> {
    let cleanable = log.cleanable(high_watermark, now)?;
    let mut cleaning = log.begin_cleaning(&cleanable, &CleaningOptions { memory_bytes, load_factor: 0.9, now });
    loop {
        match cleaning.step(budget)? {
            CleaningStep::More => {}
            CleaningStep::Swap(cleaned) => {
                let token = log.begin_swap(&cleaned)?.expect("nobody else changes the log");
                token.complete().map_err(|source| LogError::Io { path: folder(), source })?;
                assert!(log.complete_swap(&cleaned, now)?);
            }
            CleaningStep::Done(to) => {
                assert!(log.note_cleaned(&cleaning, to));
                return Ok(to);
            }
        }
    }
}
