//! Prints the files of a partition as Apache's `DumpLogSegments` does, for `gregor log dump` and `gregor log verify`.
//!
//! Reads only, and goes on as far as it can: a damaged file is what it is often asked to look at.

use std::{
    io::{self, Write},
    path::Path,
};

use gregor_types::{Offset, Timestamp};
use gregor_wire::batch::{BatchHeader, BatchView, ControlRecordType, EndTransactionMarker, RecordView, TimestampType};

use crate::{
    Disk,
    disk::read_file,
    file_names::{LOG, OFFSET_INDEX, PRODUCER_SNAPSHOT, TIME_INDEX, TRANSACTION_INDEX, offset_of},
    producer_snapshot,
    scanner::{BatchScanner, SWEEP_BUFFER_BYTES, Scan},
    sparse_index::{Entry, OffsetEntry, TimeEntry},
    transaction_index::TransactionIndex,
};

const SIDE_FILE_BYTES_MAX: usize = 1 << 30;
const DECOMPRESSED_BYTES_MAX: usize = 1 << 30;
/// A snapshot of the metadata quorum has batches too.
const QUORUM_SNAPSHOT: &str = ".checkpoint";

/// Turns a record into text, in place of its key and value as they are; `None` leaves that to the dump.
pub type Decode<'a> = &'a dyn Fn(&RecordView<'_>) -> Option<String>;

/// How much is printed.
#[derive(Clone, Copy, Default)]
pub struct DumpOptions<'a> {
    /// Every record, not only every batch.
    pub deep: bool,
    /// Keys and values too.
    pub print_data: bool,
    /// How to show records of a topic that has a schema.
    pub decode: Option<Decode<'a>>,
}

/// What a dump has seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DumpSummary {
    /// Batches, or entries of an index.
    pub entries: u64,
    /// Records, where they were looked at.
    pub records: u64,
    /// What is wrong, in words; empty for a file that is whole.
    pub problems: Vec<String>,
}

/// Prints one file: `.log`, `.checkpoint`, `.index`, `.timeindex`, `.txnindex` or `.snapshot`, by its name.
pub fn dump_file(
    disk: &dyn Disk,
    path: &Path,
    options: &DumpOptions<'_>,
    output: &mut dyn Write,
) -> io::Result<DumpSummary> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let base = |suffix| offset_of(&name, suffix);
    writeln!(output, "Dumping {}", path.display())?;
    if name.ends_with(LOG) || name.ends_with(QUORUM_SNAPSHOT) {
        dump_batches(disk, path, base(LOG), options, output)
    } else if let Some(base) = base(OFFSET_INDEX) {
        dump_entries(disk, path, output, |entry: &OffsetEntry| {
            format!("offset: {} position: {}", base.plus(entry.relative_offset.into()), entry.position)
        })
    } else if let Some(base) = base(TIME_INDEX) {
        dump_entries(disk, path, output, |entry: &TimeEntry| {
            format!("timestamp: {} offset: {}", entry.timestamp, base.plus(entry.relative_offset.into()))
        })
    } else if base(TRANSACTION_INDEX).is_some() {
        dump_transactions(disk, path, output)
    } else if base(PRODUCER_SNAPSHOT).is_some() {
        dump_producers(disk, path, output)
    } else {
        let reason = format!("{name} is none of .log, .checkpoint, .index, .timeindex, .txnindex, .snapshot");
        Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
    }
}

fn dump_batches(
    disk: &dyn Disk,
    path: &Path,
    base: Option<Offset>,
    options: &DumpOptions<'_>,
    output: &mut dyn Write,
) -> io::Result<DumpSummary> {
    let mut summary = DumpSummary::default();
    if let Some(base) = base {
        writeln!(output, "Log starting offset: {base}")?;
    }
    let file = disk.open(path)?;
    let len = file.len()?;
    let mut scanner = BatchScanner::new(file.clone(), 0, len, SWEEP_BUFFER_BYTES);
    let mut next_offset = base.unwrap_or(Offset::ZERO);
    loop {
        let (position, header) = match scanner.next()? {
            Scan::End => return Ok(summary),
            Scan::Damage(error) => {
                let rest = len - scanner.position();
                summary.problems.push(format!("{rest} bytes from position {} on: {error}", scanner.position()));
                writeln!(output, "Found {rest} invalid bytes at the end of {}", path.display())?;
                return Ok(summary);
            }
            Scan::Batch { position, header } => (position, header),
        };
        let mut bytes = vec![0; header.size as usize];
        file.read_exact_at(&mut bytes, position)?;
        let batch = BatchView::parse(&bytes).map_err(io::Error::other)?;
        let valid = match batch.check_crc() {
            Ok(()) => true,
            Err(error) => {
                summary.problems.push(format!("position {position}: {error}"));
                false
            }
        };
        if header.magic >= 2 && header.base_offset < next_offset {
            summary.problems.push(format!("position {position}: offset {} comes again", header.base_offset));
        }
        next_offset = header.next_offset();
        summary.entries += 1;
        print_batch(&header, position, valid, output)?;
        if options.deep && valid {
            dump_records(&batch, options, output, &mut summary)?;
        }
    }
}

fn print_batch(header: &BatchHeader, position: u64, valid: bool, output: &mut dyn Write) -> io::Result<()> {
    let horizon = header.delete_horizon().map_or_else(|| "OptionalLong.empty".to_owned(), optional_long);
    let codec = header.compression().map_or_else(|error| error.to_string(), |codec| codec.to_string());
    if header.magic >= 2 {
        write!(
            output,
            "baseOffset: {} lastOffset: {} count: {} baseSequence: {} lastSequence: {} producerId: {} \
             producerEpoch: {} partitionLeaderEpoch: {} isTransactional: {} isControl: {} deleteHorizonMs: {horizon}",
            header.base_offset,
            header.last_offset(),
            header.records_count,
            header.base_sequence,
            header.last_sequence(),
            header.producer_id,
            header.producer_epoch,
            header.leader_epoch,
            header.is_transactional(),
            header.is_control(),
        )?;
    } else {
        write!(output, "offset: {}", header.base_offset)?;
    }
    writeln!(
        output,
        " position: {position} {}: {} size: {} magic: {} compresscodec: {codec} crc: {} isvalid: {valid}",
        timestamp_name(header),
        header.max_timestamp,
        header.size,
        header.magic,
        header.crc,
    )
}

fn dump_records(
    batch: &BatchView<'_>,
    options: &DumpOptions<'_>,
    output: &mut dyn Write,
    summary: &mut DumpSummary,
) -> io::Result<()> {
    let records = match batch.records(DECOMPRESSED_BYTES_MAX) {
        Ok(records) => records,
        Err(error) => {
            summary.problems.push(format!("offset {}: {error}", batch.base_offset));
            return Ok(());
        }
    };
    let mut sequence = batch.base_sequence;
    for record in &records {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                summary.problems.push(format!("offset {}: {error}", batch.base_offset));
                return Ok(());
            }
        };
        summary.records += 1;
        write!(
            output,
            "| offset: {} {}: {} keySize: {} valueSize: {}",
            record.offset,
            timestamp_name(batch),
            record.timestamp,
            size(record.key),
            size(record.value),
        )?;
        if batch.magic >= 2 {
            let keys: Vec<_> = record.headers.iter().map(|header| String::from_utf8_lossy(header.key)).collect();
            write!(output, " sequence: {sequence} headerKeys: [{}]", keys.join(","))?;
            if sequence >= 0 {
                sequence = if sequence == i32::MAX { 0 } else { sequence + 1 };
            }
        }
        if batch.is_control() {
            write!(output, " {}", control_text(&record))?;
        } else if options.print_data {
            print_data(&record, options, output)?;
        }
        writeln!(output)?;
    }
    Ok(())
}

fn print_data(record: &RecordView<'_>, options: &DumpOptions<'_>, output: &mut dyn Write) -> io::Result<()> {
    if let Some(text) = options.decode.and_then(|decode| decode(record)) {
        return write!(output, " {text}");
    }
    if let Some(key) = record.key {
        write!(output, " key: {}", String::from_utf8_lossy(key))?;
    }
    if let Some(value) = record.value {
        write!(output, " payload: {}", String::from_utf8_lossy(value))?;
    }
    Ok(())
}

fn control_text(record: &RecordView<'_>) -> String {
    let (key, value) = (record.key.unwrap_or_default(), record.value.unwrap_or_default());
    if let Some(marker) = EndTransactionMarker::parse(key, value) {
        let end = if marker.commit { "COMMIT" } else { "ABORT" };
        return format!("endTxnMarker: {end} coordinatorEpoch: {}", marker.coordinator_epoch);
    }
    match ControlRecordType::from_key(key) {
        Some(kind) => format!("controlType: {kind:?}({})", kind.id()),
        None => "controlType: malformed".to_owned(),
    }
}

fn dump_entries<E: Entry>(
    disk: &dyn Disk,
    path: &Path,
    output: &mut dyn Write,
    text: impl Fn(&E) -> String,
) -> io::Result<DumpSummary> {
    let content = read_file(disk, path, SIDE_FILE_BYTES_MAX)?;
    let mut summary = DumpSummary::default();
    for entry in content.chunks_exact(E::BYTES) {
        // An index that its writer had allocated ahead ends in zeros.
        if summary.entries > 0 && entry.iter().all(|byte| *byte == 0) {
            break;
        }
        summary.entries += 1;
        writeln!(output, "{}", text(&E::decode(entry)))?;
    }
    if !content.len().is_multiple_of(E::BYTES) {
        summary.problems.push(format!("its length, {}, is no multiple of {}", content.len(), E::BYTES));
    }
    Ok(summary)
}

fn dump_transactions(disk: &dyn Disk, path: &Path, output: &mut dyn Write) -> io::Result<DumpSummary> {
    let len = disk.open(path)?.len()?;
    let mut summary = DumpSummary::default();
    for aborted in TransactionIndex::new(path.to_owned(), Some(len)).read(disk)? {
        summary.entries += 1;
        writeln!(
            output,
            "version: 0 producerId: {} firstOffset: {} lastOffset: {} lastStableOffset: {}",
            aborted.producer_id, aborted.first_offset, aborted.last_offset, aborted.last_stable_offset
        )?;
    }
    if !TransactionIndex::is_whole(len) {
        summary.problems.push(format!("its length, {len}, is not that of whole entries"));
    }
    Ok(summary)
}

fn dump_producers(disk: &dyn Disk, path: &Path, output: &mut dyn Write) -> io::Result<DumpSummary> {
    let mut summary = DumpSummary::default();
    let Some(state) = producer_snapshot::decode(&read_file(disk, path, SIDE_FILE_BYTES_MAX)?) else {
        summary.problems.push("it is damaged, or of a later version".to_owned());
        return Ok(summary);
    };
    let mut producers: Vec<_> = state.iter().collect();
    producers.sort_by_key(|(id, _)| *id);
    for (id, entry) in producers {
        summary.entries += 1;
        let start = entry.current_transaction_start;
        write!(
            output,
            "producerId: {id} producerEpoch: {} coordinatorEpoch: {} currentTxnFirstOffset: {} lastTimestamp: {}",
            entry.epoch,
            entry.coordinator_epoch,
            start.map_or_else(|| "OptionalLong.empty".to_owned(), |start| format!("OptionalLong[{start}]")),
            entry.last_timestamp,
        )?;
        if let Some(batch) = entry.last_batch() {
            write!(
                output,
                " lastSequence: {} lastOffset: {} offsetDelta: {} timestamp: {}",
                batch.last_sequence, batch.last_offset, batch.offset_delta, batch.timestamp
            )?;
        }
        writeln!(output)?;
    }
    Ok(summary)
}

fn size(bytes: Option<&[u8]>) -> i64 {
    bytes.map_or(-1, |bytes| bytes.len() as i64)
}

fn optional_long(timestamp: Timestamp) -> String {
    format!("OptionalLong[{timestamp}]")
}

const fn timestamp_name(header: &BatchHeader) -> &'static str {
    match (header.magic, header.timestamp_type()) {
        (0, _) => "NoTimestampType",
        (_, TimestampType::CreateTime) => "CreateTime",
        (_, TimestampType::LogAppendTime) => "LogAppendTime",
    }
}
