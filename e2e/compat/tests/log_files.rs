//! Log files, both ways: Apache's tools and broker read what Gregor's log wrote, and Gregor's log what a real broker wrote.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use gregor_apache::{Broker, BrokerConfig, Jars, Release, compile, jars, java_program, java_tool};
use gregor_log::{
    CheckpointKind, DumpOptions, LogConfig, LogDirectory, PartitionLog, ReadRequest, disk::RealDisk, dump_file,
};
use gregor_types::{BrokerEpoch, LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp, TopicPartition, Uuid};
use gregor_wire::{
    batch::{
        BatchOptions, EndTransactionMarker, ProduceRules, ProducerStamp, RecordBatchBuilder, ValidatedBatch,
        split_batches, validate_produced,
    },
    compression::CompressionType,
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const CODECS: [CompressionType; 5] = [
    CompressionType::None,
    CompressionType::Gzip,
    CompressionType::Snappy,
    CompressionType::Lz4,
    CompressionType::Zstd,
];
/// As many as `LogFiles.java` writes into each topic of a codec.
const RECORDS: usize = 2000;

fn apache() -> Jars {
    jars(&Release::complete(Release::COMPLETE)).unwrap()
}

fn batch(codec: CompressionType, producer: Option<ProducerStamp>, transactional: bool, first: usize) -> Bytes {
    let mut builder = RecordBatchBuilder::new(BatchOptions {
        compression: codec.into(),
        producer,
        transactional,
        ..BatchOptions::default()
    });
    for i in first..first + 10 {
        let value = format!("value {i} {}", "z".repeat(i % 200));
        builder.append(NOW.plus_ms(i as i64), Some(format!("k{i}").as_bytes()), Some(value.as_bytes()), &[("h", None)]);
    }
    builder.build()
}

/// Values by offset, control records left out.
fn read_all(log: &mut PartitionLog) -> Vec<(i64, String)> {
    let (mut next, end) = (log.start_offset(), log.end_offset());
    let mut records = Vec::new();
    while next < end {
        let request = ReadRequest { from: next, upper_bound: end, max_bytes: 1 << 20, min_one_batch: true };
        let bytes = log.read(&request).unwrap().read_all().unwrap();
        for batch in split_batches(&bytes) {
            let batch = batch.unwrap();
            batch.check_crc().unwrap();
            next = batch.next_offset();
            for record in &batch.records(1 << 24).unwrap() {
                let record = record.unwrap();
                if !batch.is_control() {
                    let value = String::from_utf8(record.value.unwrap_or_default().to_vec()).unwrap();
                    records.push((record.offset.0, value));
                }
            }
        }
    }
    records
}

fn dump(jars: &Jars, files: &[PathBuf], more: &[&str]) -> String {
    let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    let mut arguments = vec!["--files".to_owned(), files.join(",")];
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let output = java_tool(jars, "org.apache.kafka.tools.DumpLogSegments", &arguments).unwrap().output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn files_of(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.to_string_lossy().ends_with(suffix));
    files.sort();
    files
}

#[test]
fn dump_log_segments_reads_what_gregor_wrote() {
    let jars = apache();
    let folder = tempfile::tempdir().unwrap();
    let directory = LogDirectory::open(Arc::new(RealDisk), folder.path().to_owned()).unwrap();
    let config = Arc::new(LogConfig { segment_bytes: 20_000, ..LogConfig::default() });
    let mut log = directory.create_partition(TopicPartition::new("t", 0), Some(Uuid(5 << 100)), config, NOW).unwrap();
    let mut scratch = Vec::new();
    let mut records = 0;
    for i in 0..150 {
        let epoch = ProducerEpoch(0);
        let producer = |id, base_sequence| Some(ProducerStamp { id: ProducerId(id), epoch, base_sequence });
        let (stamp, transactional) = match i % 3 {
            0 => (None, false),
            1 => (producer(1, i / 3 * 10), false),
            _ => (producer(2, i / 3 * 10), true),
        };
        let bytes = batch(CODECS[i as usize % 5], stamp, transactional, records);
        let validated = validate_produced(&bytes, &ProduceRules::default(), NOW, &mut scratch).unwrap();
        log.append_as_leader(&validated, LeaderEpoch(i / 50), NOW).unwrap();
        records += 10;
        if i % 30 == 29 {
            let marker = EndTransactionMarker { commit: i % 60 == 59, coordinator_epoch: 0 };
            let marker = RecordBatchBuilder::end_transaction_marker(marker, ProducerId(2), epoch, NOW);
            log.append_as_leader(&ValidatedBatch::trusted(&marker).unwrap(), LeaderEpoch(i / 50), NOW).unwrap();
        }
    }
    let flushed = log.close().unwrap().complete().unwrap();
    log.flushed(flushed);
    let partition = folder.path().join("t-0");

    let logs = files_of(&partition, ".log");
    assert!(logs.len() > 2, "{logs:?}");
    let text = dump(&jars, &logs, &["--deep-iteration", "--print-data-log"]);
    assert_eq!(text.matches("isvalid: true").count(), 155, "{text}");
    assert_eq!(text.matches("isvalid: false").count() + text.matches("invalid bytes").count(), 0, "{text}");
    let payloads = text.lines().filter(|line| line.contains(" payload: value ")).count();
    assert_eq!(payloads, records);
    assert_eq!(text.matches("endTxnMarker: ABORT").count(), 3, "{text}");
    for (suffix, more) in
        [(".index", "--verify-index-only"), (".timeindex", "--verify-index-only"), (".index", "--index-sanity-check")]
    {
        let text = dump(&jars, &files_of(&partition, suffix), &[more]);
        let wrong =
            ["ismatch", "Found", "out of order", "failed", "Exception"].iter().find(|word| text.contains(**word));
        assert_eq!(wrong, None, "{suffix} {more}:\n{text}");
    }
    let index = dump(&jars, &files_of(&partition, ".index")[..1], &[]);
    assert!(index.matches("offset: ").count() > 2, "{index}");
    let text = dump(&jars, &files_of(&partition, ".txnindex"), &[]);
    assert_eq!(text.matches("producerId: 2").count(), 3, "{text}");
    let text = dump(&jars, &files_of(&partition, ".snapshot")[logs.len() - 1..], &[]);
    assert!(text.contains("producerId: 1 ") && text.contains("producerId: 2 "), "{text}");

    // Our own dump of the same files shows the same batches and records.
    let mut ours = Vec::new();
    let options = DumpOptions { deep: true, print_data: true, decode: None };
    for file in &logs {
        let summary = dump_file(&RealDisk, file, &options, &mut ours).unwrap();
        assert!(summary.problems.is_empty(), "{summary:?}");
    }
    let theirs = dump(&jars, &logs, &["--deep-iteration", "--print-data-log"]);
    let lines = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| line.starts_with("baseOffset") || line.starts_with("| "))
            .map(str::to_owned)
            .collect()
    };
    for (ours, theirs) in lines(&String::from_utf8(ours).unwrap()).iter().zip(lines(&theirs)) {
        assert_eq!(*ours, theirs);
    }
}

/// Opens every partition of a directory as a broker would.
fn open_all(directory: &LogDirectory) -> Vec<PartitionLog> {
    let found = directory.find_partitions().unwrap();
    let data = found.iter().filter(|found| &*found.topic_partition.topic != "__cluster_metadata");
    data.map(|found| {
        let config = Arc::new(LogConfig { segment_bytes: 1 << 20, ..LogConfig::default() });
        let mut opening = directory.opening(found, config, NOW).unwrap();
        while !opening.step(64 << 10).unwrap().done {}
        opening.finish().unwrap()
    })
    .collect()
}

fn log_of<'a>(logs: &'a mut [PartitionLog], topic: &str) -> &'a mut PartitionLog {
    logs.iter_mut().find(|log| &*log.topic_partition().topic == topic).unwrap()
}

fn expected_value(i: usize) -> String {
    format!("value {i} {}", "abcdefghij".repeat(i % 150))
}

fn check(logs: &mut [PartitionLog], appended: usize) {
    for codec in CODECS {
        let log = log_of(logs, &format!("codec-{codec}"));
        let records = read_all(log);
        let mut expected: Vec<_> = (0..RECORDS).map(|i| (i as i64, expected_value(i))).collect();
        if codec == CompressionType::None {
            expected.extend((RECORDS..RECORDS + appended).map(|i| (i as i64, format!("of Gregor {i}"))));
            assert!(log.segments_count() > 1);
        }
        assert!(records == expected, "{codec}: {} records", records.len());
        let found = log.offset_for_timestamp(Timestamp(1_000_000_000_777)).unwrap().unwrap();
        assert_eq!(found.offset, Offset(777), "{codec}");
        assert!(log.topic_id().is_some());
    }
    let log = log_of(logs, "transactions");
    let records = read_all(log);
    let count = |prefix: &str| records.iter().filter(|(_, value)| value.starts_with(prefix)).count();
    assert_eq!((count("committed"), count("aborted"), count("left open")), (50, 50, 1));
    let end = log.end_offset();
    assert_eq!(log.aborted_transactions(Offset(0), end).unwrap().len(), 5);
    let open = records.iter().find(|(_, value)| value == "left open").unwrap().0;
    assert_eq!(log.last_stable_offset(end), Offset(open), "a transaction left open holds the stable offset");
}

fn leave_cleanly(directory: LogDirectory, logs: Vec<PartitionLog>) {
    let (mut recovery, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for mut log in logs {
        let flushed = log.close().unwrap().complete().unwrap();
        log.flushed(flushed);
        let name = log.topic_partition().clone();
        recovery.push((name.clone(), log.recovery_point()));
        starts.push((name.clone(), log.start_offset()));
        ends.push((name, log.end_offset()));
    }
    directory.write_checkpoint(CheckpointKind::RecoveryPoint, recovery).unwrap();
    directory.write_checkpoint(CheckpointKind::LogStart, starts).unwrap();
    directory.write_checkpoint(CheckpointKind::HighWatermark, ends).unwrap();
    directory.finish_clean_shutdown(BrokerEpoch(-1)).unwrap();
}

fn java(jars: &Jars, classes: &Path, arguments: &[&str]) -> String {
    let output = java_program(jars, classes, "LogFiles", arguments).unwrap().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_directory_of_a_killed_apache_broker_is_taken_over_and_given_back() {
    let jars = apache();
    let folder = tempfile::tempdir().unwrap();
    let classes = folder.path().join("classes");
    compile(&jars, &Path::new(env!("CARGO_MANIFEST_DIR")).join("log_files/LogFiles.java"), &classes).unwrap();
    let mut config = BrokerConfig::new(folder.path().join("node"));
    config.properties.push(("log.segment.bytes".into(), (1 << 20).to_string()));
    config.properties.push(("log.retention.ms".into(), "-1".into()));
    let broker = Broker::start(&jars, &config).unwrap();
    java(&jars, &classes, &["write", &broker.bootstrap]);
    broker.kill().unwrap();

    let data = config.data();
    let open = || LogDirectory::open(Arc::new(RealDisk), data.clone()).unwrap();
    let directory = open();
    assert!(!directory.was_clean());
    assert!(directory.meta_properties().is_some_and(|properties| *properties.cluster_id == *config.cluster_id));
    let mut logs = open_all(&directory);
    check(&mut logs, 0);
    let log = log_of(&mut logs, "codec-none");
    assert!(log.active_producers().count() > 0, "batches that are read anew tell their producers");
    for i in RECORDS..RECORDS + 100 {
        let mut builder = RecordBatchBuilder::new(BatchOptions::default());
        builder.append(Timestamp(1_000_000_010_000 + i as i64), None, Some(format!("of Gregor {i}").as_bytes()), &[]);
        let bytes = builder.build();
        let epoch = log.last_epoch();
        log.append_as_leader(&ValidatedBatch::trusted(&bytes).unwrap(), epoch, NOW).unwrap();
    }
    leave_cleanly(directory, logs);

    config.keep_data = true;
    let broker = Broker::start(&jars, &config).unwrap();
    let seen = java(&jars, &classes, &["read", &broker.bootstrap, "codec-none", "2100", "read_committed"]);
    let seen: Vec<_> = seen.lines().collect();
    assert_eq!(seen.len(), RECORDS + 100);
    for (i, line) in seen.iter().enumerate() {
        let value = if i < RECORDS { expected_value(i) } else { format!("of Gregor {i}") };
        assert_eq!(*line, format!("{i}\t{value}"));
    }
    let committed = java(&jars, &classes, &["read", &broker.bootstrap, "transactions", "50", "read_committed"]);
    assert_eq!(committed.lines().filter(|line| line.contains("\tcommitted ")).count(), 50, "{committed}");
    assert_eq!(committed.lines().count(), 50, "nothing aborted or open: {committed}");
    broker.stop().unwrap();

    let directory = open();
    assert!(directory.was_clean(), "Apache left it cleanly");
    assert!(directory.previous_broker_epoch().is_some_and(|epoch| epoch >= BrokerEpoch(0)));
    let mut logs = open_all(&directory);
    check(&mut logs, 100);
    // As with Apache Kafka, whose records these are of: 2001.
    let producers = log_of(&mut logs, "codec-none").active_producers().count();
    assert_eq!(producers, 0, "a snapshot tells no producer that was silent for longer than producer.id.expiration.ms");
}
