//! What is appended to a compacted log, as a simple model, and what a reader finds in the log.
#![allow(dead_code, clippy::unwrap_used, reason = "helpers of a test")]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use gregor_log::{PartitionLog, ReadRequest, disk::FaultyDisk};
use gregor_types::{Offset, ProducerEpoch, ProducerId, Timestamp};
use gregor_wire::{
    batch::{BatchOptions, EndTransactionMarker, ProducerStamp, RecordBatchBuilder, split_batches},
    compression::{CompressionType, compress},
};

use super::common::*;

/// What was appended: by offset, the key, the value (none for a tombstone) and the transaction's producer.
#[derive(Default)]
pub struct Model {
    pub records: BTreeMap<i64, (String, Option<String>)>,
    /// The offsets of open transactions, by producer.
    pub open: HashMap<i64, Vec<i64>>,
    /// Transactions that are over: their first offsets and their markers'.
    pub ended: Vec<(i64, i64)>,
    /// When the records of each batch were made, and where it ends, by its first offset.
    pub batches: BTreeMap<i64, (Timestamp, i64)>,
    pub aborted: BTreeSet<i64>,
    pub sequences: HashMap<i64, i32>,
    /// The last record of each producer.
    pub last: HashMap<i64, i64>,
    /// Where the log begins.
    pub start: i64,
}

impl Model {
    /// Where the oldest transaction begins whose end is not committed, or the high watermark.
    pub fn stable(&self, high_watermark: Offset) -> i64 {
        let ended = self.ended.iter().filter(|(_, marker)| *marker >= high_watermark.0).map(|(first, _)| *first);
        let firsts = self.open.values().filter_map(|offsets| offsets.first().copied());
        ended.chain(firsts).fold(high_watermark.0, i64::min)
    }

    /// From here on nothing may be cleaned: it is not stable, or was written a short time ago.
    pub fn uncleanable(&self, high_watermark: Offset, now: Timestamp, min_lag_ms: i64) -> i64 {
        let is_young = |made: Timestamp| min_lag_ms > 0 && made > now.plus_ms(-min_lag_ms);
        let young = self.batches.iter().find(|(_, (made, _))| is_young(*made)).map(|(first, _)| *first);
        young.map_or(i64::MAX, |young| young).min(self.stable(high_watermark))
    }

    /// The newest committed value of each key, before the oldest transaction whose end is not committed.
    pub fn state(&self, high_watermark: Offset) -> BTreeMap<String, String> {
        let mut state = BTreeMap::new();
        for (offset, (key, value)) in self.records.range(self.start..self.stable(high_watermark).max(self.start)) {
            if !self.aborted.contains(offset) {
                update(&mut state, key, value.clone());
            }
        }
        state
    }

    pub fn append(&mut self, log: &mut PartitionLog, random: &mut Random, now: Timestamp, producer: Option<i64>) {
        let transactional = producer.is_some_and(|id| id >= 100);
        let count = 1 + random.below(4) as i32;
        let codec = [CompressionType::None, CompressionType::Lz4, CompressionType::Zstd][random.below(3) as usize];
        let stamp = producer.map(|id| {
            let next = self.sequences.entry(id).or_insert(0);
            let base_sequence = *next;
            *next += count;
            ProducerStamp { id: ProducerId(id), epoch: ProducerEpoch(0), base_sequence }
        });
        let mut builder = RecordBatchBuilder::new(BatchOptions {
            producer: stamp,
            transactional,
            compression: codec.into(),
            ..BatchOptions::default()
        });
        let base = log.end_offset().0;
        for i in 0..i64::from(count) {
            let key = format!("key {}", random.below(7));
            let value = (random.below(4) > 0).then(|| format!("value {} {}", base + i, "x".repeat(base as usize % 30)));
            builder.append(now, Some(key.as_bytes()), value.as_deref().map(str::as_bytes), &[]);
            self.records.insert(base + i, (key, value));
            if transactional {
                self.open.entry(producer.unwrap()).or_default().push(base + i);
            }
            self.last.extend(producer.map(|id| (id, base + i)));
        }
        self.batches.insert(base, (now, base + i64::from(count)));
        append(log, &builder.build());
    }

    pub fn end_transaction(&mut self, log: &mut PartitionLog, now: Timestamp, producer: i64, commit: bool) {
        let Some(offsets) = self.open.remove(&producer) else { return };
        let end = log.end_offset().0;
        self.ended.push((offsets[0], end));
        self.batches.insert(end, (now, end + 1));
        if !commit {
            self.aborted.extend(offsets);
        }
        let marker = EndTransactionMarker { commit, coordinator_epoch: 0 };
        append(log, &marker_batch(marker, producer, now));
    }
}

pub fn marker_batch(marker: EndTransactionMarker, producer: i64, now: Timestamp) -> Bytes {
    RecordBatchBuilder::end_transaction_marker(marker, ProducerId(producer), ProducerEpoch(0), now)
}

pub fn update(state: &mut BTreeMap<String, String>, key: &str, value: Option<String>) {
    match value {
        Some(value) => state.insert(key.to_owned(), value),
        None => state.remove(key),
    };
}

/// A record as it stands in the log: offset, key, value, whether it is transactional and whose.
pub type Found = (i64, String, Option<String>, Option<i64>);

pub fn read(log: &mut PartitionLog, from: Offset) -> Vec<Found> {
    let mut found = Vec::new();
    let mut next = from;
    while next < log.end_offset() {
        let request = ReadRequest { from: next, upper_bound: log.end_offset(), max_bytes: 400, min_one_batch: true };
        let bytes = log.read(&request).unwrap().read_all().unwrap();
        if bytes.is_empty() {
            break;
        }
        for batch in split_batches(&bytes) {
            let batch = batch.unwrap();
            batch.check_crc().unwrap();
            next = batch.next_offset();
            if batch.is_control() {
                continue;
            }
            for record in &batch.records(1 << 20).unwrap() {
                let record = record.unwrap();
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let producer = batch.is_transactional().then_some(batch.producer_id.0);
                if record.offset >= from {
                    found.push((record.offset.0, text(record.key.unwrap()), record.value.map(text), producer));
                }
            }
        }
    }
    found
}

/// What a read-committed reader ends with.
pub fn committed_state(log: &mut PartitionLog, high_watermark: Offset) -> BTreeMap<String, String> {
    let stable = log.last_stable_offset(high_watermark);
    let aborted = log.aborted_transactions(log.start_offset(), stable).unwrap();
    let mut state = BTreeMap::new();
    let start = log.start_offset();
    for (offset, key, value, producer) in read(log, start) {
        let is_aborted = producer.is_some_and(|producer| {
            aborted.iter().any(|a| a.producer_id.0 == producer && (a.first_offset.0..a.last_offset.0).contains(&offset))
        });
        if offset < stable.0 && !is_aborted {
            update(&mut state, &key, value);
        }
    }
    state
}

/// Whether a batch, of whatever is left of it, ends there.
pub fn batch_ends(log: &mut PartitionLog, offset: Offset) -> bool {
    let request = ReadRequest { from: offset.plus(-1), upper_bound: offset, max_bytes: 1, min_one_batch: true };
    let bytes = log.read(&request).unwrap().read_all().unwrap();
    split_batches(&bytes).next().is_some_and(|batch| batch.unwrap().next_offset() == offset)
}

/// Where the segment begins that is written to, as its file says.
pub fn last_segment(disk: &FaultyDisk) -> i64 {
    let names = names(disk, &folder()).into_iter();
    names.filter_map(|name| name.strip_suffix(".log")?.parse().ok()).max().unwrap()
}

/// Files that bear one of these marks.
pub fn leftovers(disk: &FaultyDisk, marks: &[&str]) -> Vec<String> {
    names(disk, &folder()).into_iter().filter(|name| marks.iter().any(|mark| name.ends_with(mark))).collect()
}

/// Messages of magic 0 and 1, alone or several in a wrapper, where a log is to begin.
pub fn old_messages(model: &mut Model, random: &mut Random) -> Vec<u8> {
    let (mut bytes, mut next) = (Vec::new(), 0);
    for i in 0..random.below(20) {
        let magic = u8::from(i >= 8);
        let codec = [CompressionType::None, CompressionType::Gzip, CompressionType::Snappy][random.below(3) as usize];
        let is_packed = codec != CompressionType::None;
        let (first, count) = (next, if is_packed { 1 + random.below(4) as i64 } else { 1 });
        let mut messages = Vec::new();
        for offset in first..first + count {
            let key = format!("key {}", random.below(9));
            let value = (random.below(4) > 0).then(|| format!("old {offset}"));
            let within = if is_packed && magic == 1 { offset - first } else { offset };
            let value_bytes = value.as_deref().map(str::as_bytes);
            messages.extend(message(magic, within, CompressionType::None, Some(&key), value_bytes));
            model.records.insert(offset, (key, value));
        }
        next = first + count;
        if is_packed {
            let mut packed = Vec::new();
            compress(codec.into(), &messages, &mut packed).unwrap();
            messages = message(magic, next - 1, codec, None, Some(&packed));
        }
        bytes.extend(messages);
    }
    bytes
}
