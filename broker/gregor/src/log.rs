//! `gregor log`: looks into the files of a log directory, as Apache's DumpLogSegments does.

use std::{
    io::{BufWriter, ErrorKind, Write},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use gregor_log::{DumpOptions, disk::RealDisk, dump_file};
use gregor_state_records::{
    group::{GroupRecordKey, GroupRecordValue},
    metadata::MetadataRecord,
    transaction::{TransactionRecordKey, TransactionRecordValue},
};
use gregor_wire::batch::RecordView;

/// What to look at.
#[derive(Subcommand)]
pub enum Command {
    /// Print segments, checkpoints, indexes and producer snapshots. The broker may run meanwhile.
    Dump(Options),
}

/// `gregor log dump`.
#[derive(Args)]
pub struct Options {
    /// Files ending in .log, .checkpoint, .index, .timeindex, .txnindex or .snapshot.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Every record, not only every batch.
    #[arg(long)]
    deep: bool,
    /// Keys and values too; implies --deep.
    #[arg(long)]
    print_data: bool,
    /// Show records by the schema of this topic; chosen by the folder's name when left out. Implies --deep.
    #[arg(long, value_enum, value_name = "TOPIC")]
    decode: Option<Schema>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Schema {
    /// Plain keys and values.
    None,
    /// `__cluster_metadata`.
    Metadata,
    /// `__consumer_offsets`.
    Groups,
    /// `__transaction_state`.
    Transactions,
}

/// Runs it.
pub fn run(command: &Command) -> Result<()> {
    let Command::Dump(options) = command;
    let mut output = BufWriter::new(std::io::stdout().lock());
    let mut problems = 0;
    for file in &options.files {
        let schema = options.decode.unwrap_or_else(|| schema_of(file));
        let decode = |record: &RecordView<'_>| decode(schema, record);
        let decodes = schema != Schema::None;
        let dump = DumpOptions {
            deep: options.deep || options.print_data || decodes,
            print_data: options.print_data || decodes,
            decode: decodes.then_some(&decode),
        };
        let summary = match dump_file(&RealDisk, file, &dump, &mut output) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            summary => summary.with_context(|| format!("reading {}", file.display()))?,
        };
        for problem in &summary.problems {
            writeln!(output, "PROBLEM: {problem}")?;
            problems += 1;
        }
    }
    output.flush()?;
    if problems > 0 {
        bail!("{problems} problem(s) found");
    }
    Ok(())
}

fn schema_of(file: &std::path::Path) -> Schema {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let folder = absolute.parent().and_then(|folder| folder.file_name()).unwrap_or_default().to_string_lossy();
    match folder.rsplit_once('-').map_or("", |(topic, _)| topic) {
        "__cluster_metadata" => Schema::Metadata,
        "__consumer_offsets" => Schema::Groups,
        "__transaction_state" => Schema::Transactions,
        _ if file.file_name().is_some_and(|name| name == "bootstrap.checkpoint") => Schema::Metadata,
        _ => Schema::None,
    }
}

/// A record by its topic's schema; `None` leaves one that is none of them to the plain form.
fn decode(schema: Schema, record: &RecordView<'_>) -> Option<String> {
    let bytes = |part: Option<&[u8]>| part.map(Bytes::copy_from_slice);
    match schema {
        Schema::None => None,
        Schema::Metadata => {
            let (metadata, version) = MetadataRecord::decode_versioned(bytes(record.value)?).ok()?;
            let mut shown = format!("{metadata:?}");
            shown.truncate(shown.find('(').unwrap_or(shown.len()));
            Some(format!("{shown} v{version} {}", metadata.to_json(version)))
        }
        Schema::Groups => {
            let key = GroupRecordKey::decode(bytes(record.key)?).ok()?;
            let value = bytes(record.value).map(|value| GroupRecordValue::decode_versioned(key.record_type(), value));
            let shown = match value {
                None => "null".to_owned(),
                Some(Ok((value, version))) => value.to_json(version).to_string(),
                Some(Err(error)) => error.to_string(),
            };
            Some(format!("key: {} value: {shown}", key.to_json()))
        }
        Schema::Transactions => {
            let key = TransactionRecordKey::decode(bytes(record.key)?).ok()?;
            let value =
                bytes(record.value).map(|value| TransactionRecordValue::decode_versioned(key.record_type(), value));
            let shown = match value {
                None => "null".to_owned(),
                Some(Ok((value, version))) => value.to_json(version).to_string(),
                Some(Err(error)) => error.to_string(),
            };
            Some(format!("key: {} value: {shown}", key.to_json()))
        }
    }
}
