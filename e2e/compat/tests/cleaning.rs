//! Apache's log cleaner and Gregor's are given the same directory, and leave the same batches and records.
//!
//! Logs are made up by a seed: keys, tombstones, transactions of any end, producers, codecs, old formats; half of each was cleaned
//! before. Some have transactions that stay open, some are of a topic that leaves alone what is young, some end with a batch of
//! which nothing stays. Both brokers start on a copy, clean by themselves, and what they leave is compared file by file.
//! `GREGOR_COMPAT_SEED` makes others.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use gregor_apache::{Broker, Release, jars};
use gregor_compat::{Gregor, program};
use gregor_log::{
    CheckpointKind, CleaningOptions, CleaningStep, DumpOptions, LogConfig, LogDirectory, PartitionLog, disk::RealDisk,
    dump_file,
};
use gregor_types::{BrokerEpoch, LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp, TopicPartition};
use gregor_wire::{
    batch::{
        BatchChecksum, BatchOptions, BatchView, EndTransactionMarker, ProducerStamp, RecordBatchBuilder,
        ValidatedBatch, split_batches,
    },
    compression::{CompressionType, compress},
};

const DEADLINE: Duration = Duration::from_mins(1);
const CLUSTER_ID: &str = "4L6g3nShT-eMCtK--X86sw";
const CODECS: [CompressionType; 5] = [
    CompressionType::None,
    CompressionType::Gzip,
    CompressionType::Snappy,
    CompressionType::Lz4,
    CompressionType::Zstd,
];
const DAY_MS: i64 = 24 * 3_600_000;
/// A producer that was silent for longer is forgotten by a start, and its last batch with it.
const PRODUCER_EXPIRATION_MS: i64 = 20 * DAY_MS;
const SEGMENT_BYTES: u32 = 1 << 20;
/// Topics: what stays of the deleted is for a day, or goes at once; and for how long what is written is left alone: for longer
/// than since the second half was written. And how many partitions each.
const TOPICS: [(&str, i64, i64); 3] = [("kept", DAY_MS, 0), ("gone", 0, 0), ("young", DAY_MS, DAY_MS * 9 / 2)];
const PARTITIONS: u64 = 10;
/// The first of these is not cleaned before.
const WITH_OLD_MESSAGES: [u64; 2] = [4, 6];

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Fills one log.
struct Writer {
    log: PartitionLog,
    random: Random,
    time: Timestamp,
    /// Of each producer, its epoch and its next sequence.
    producers: HashMap<i64, (i16, i32)>,
    /// Bytes of a value, at most.
    value_bytes: u64,
}

impl Writer {
    fn append(&mut self, batch: &[u8]) {
        let epoch = self.log.last_epoch().max(LeaderEpoch(0));
        let epoch = LeaderEpoch(epoch.0 + i32::from(self.random.below(40) == 0));
        self.log.append_as_leader(&ValidatedBatch::trusted(batch).unwrap(), epoch, self.time).unwrap();
    }

    fn batch(&mut self, producer: Option<i64>) {
        let count = 1 + self.random.below(4) as i32;
        let is_new_epoch = self.random.below(12) == 0;
        let stamp = producer.map(|id| {
            let (epoch, next) = self.producers.entry(id).or_default();
            // The epoch of a transactional producer changes when it ends a transaction.
            if is_new_epoch && id < 100 {
                (*epoch, *next) = (*epoch + 1, 0);
            }
            let base_sequence = *next;
            *next += count;
            ProducerStamp { id: ProducerId(id), epoch: ProducerEpoch(*epoch), base_sequence }
        });
        let mut builder = RecordBatchBuilder::new(BatchOptions {
            compression: CODECS[self.random.below(5) as usize].into(),
            producer: stamp,
            transactional: producer.is_some_and(|id| id >= 100),
            log_append_time: (self.random.below(9) == 0).then_some(self.time),
            ..BatchOptions::default()
        });
        for _ in 0..count {
            let key = match self.random.below(14) {
                0 => Some(String::new()),
                1 => None,
                key => Some(format!("key {key}")),
            };
            let value = match self.random.below(9) {
                0 | 1 => None,
                2 => Some(Vec::new()),
                _ => {
                    let size = self.random.below(self.value_bytes);
                    Some((0..size).map(|_| self.random.below(256) as u8).collect())
                }
            };
            let headers = [("header", Some(&b"value"[..])), ("", None)];
            let headers = &headers[..self.random.below(3) as usize];
            let late = self.time.plus_ms(-(self.random.below(3_000) as i64));
            builder.append(late, key.as_deref().map(str::as_bytes), value.as_deref(), headers);
        }
        self.append(&builder.build());
    }

    fn end_transaction(&mut self, producer: i64) {
        let Some((epoch, next)) = self.producers.get_mut(&producer) else { return };
        // A newer epoch fences whoever has the transaction open.
        if self.random.below(3) == 0 {
            (*epoch, *next) = (*epoch + 1, 0);
        }
        let epoch = ProducerEpoch(*epoch);
        let marker = EndTransactionMarker { commit: self.random.below(2) == 0, coordinator_epoch: 0 };
        self.append(&RecordBatchBuilder::end_transaction_marker(marker, ProducerId(producer), epoch, self.time));
    }

    /// A batch of which nothing stays: kept empty, it says where what was cleaned ends.
    fn without_keys(&mut self) {
        let mut builder = RecordBatchBuilder::new(BatchOptions::default());
        builder.append(self.time, None, Some(b"no key"), &[]);
        self.append(&builder.build());
    }

    /// A control record of a type that nobody knows.
    fn unknown_control(&mut self) {
        let mut builder = RecordBatchBuilder::new(BatchOptions { control: true, ..BatchOptions::default() });
        builder.append(self.time, Some(&[0, 0, 0, 77]), Some(b"of tomorrow"), &[]);
        self.append(&builder.build());
    }

    fn write(&mut self, batches: usize) {
        for _ in 0..batches {
            self.time = self.time.plus_ms(self.random.below(2_000) as i64);
            match self.random.below(24) {
                0..8 => self.batch(None),
                8..12 => {
                    let producer = self.random.below(3) as i64;
                    self.batch(Some(producer));
                }
                12..18 => {
                    let producer = 100 + self.random.below(3) as i64;
                    self.batch(Some(producer));
                }
                18..21 => {
                    let producer = 100 + self.random.below(3) as i64;
                    self.end_transaction(producer);
                }
                21 => self.unknown_control(),
                _ => self.log.roll(self.time).unwrap(),
            }
        }
    }

    /// What is not synced is not cleaned.
    fn sync(&mut self) {
        if let Some(token) = self.log.flush().unwrap() {
            let flushed = token.complete().unwrap();
            self.log.flushed(flushed);
        }
    }

    /// A round of ours, as it would have been at that time.
    fn clean(&mut self, now: Timestamp) -> Option<Offset> {
        self.sync();
        let end = self.log.end_offset();
        let cleanable = self.log.cleanable(end, now).unwrap();
        let options = CleaningOptions { memory_bytes: 1 << 20, load_factor: 0.9, now };
        let mut cleaning = self.log.begin_cleaning(&cleanable, &options);
        loop {
            match cleaning.step(u64::MAX).unwrap() {
                CleaningStep::More => {}
                CleaningStep::Swap(cleaned) => {
                    self.log.begin_swap(&cleaned).unwrap().unwrap().complete().unwrap();
                    assert!(self.log.complete_swap(&cleaned, now).unwrap());
                }
                CleaningStep::Done(to) => {
                    self.log.note_cleaned(&cleaning, to);
                    return self.log.cleaned_to().filter(|to| *to > Offset(0));
                }
            }
        }
    }
}

/// A message as Kafka before 0.11 wrote it, of magic 0 or 1.
fn message(magic: u8, offset: i64, time: Timestamp, codec: CompressionType, fields: [Option<&[u8]>; 2]) -> Vec<u8> {
    let mut content = vec![magic, codec.id() as u8];
    if magic == 1 {
        content.extend(time.0.to_be_bytes());
    }
    for field in fields {
        content.extend(field.map_or(-1, |bytes| bytes.len() as i32).to_be_bytes());
        content.extend(field.unwrap_or_default());
    }
    let mut checksum = BatchChecksum::new(magic as i8);
    checksum.update(&content);
    let mut bytes = offset.to_be_bytes().to_vec();
    bytes.extend((content.len() as i32 + 4).to_be_bytes());
    bytes.extend(checksum.finish().to_be_bytes());
    bytes.extend(content);
    bytes
}

/// Messages of old formats, alone and compressed together, for the first segment of a log.
fn old_messages(random: &mut Random, time: Timestamp) -> Vec<u8> {
    let (mut bytes, mut next) = (Vec::new(), 0);
    for i in 0..30 {
        // Lz4 in messages of magic 0 has a checksum that is wrong by design.
        let (magic, codecs) = if i < 15 { (0, 3) } else { (1, 4) };
        let codec = CODECS[random.below(codecs) as usize];
        let count = if codec == CompressionType::None { 1 } else { 1 + random.below(4) as i64 };
        let time = time.plus_ms(i * 10);
        let inner = (0..count).flat_map(|delta| {
            let key = format!("{} {}", ["key", "old key"][random.below(2) as usize], 2 + random.below(12));
            let value = format!("old {}", next + delta);
            let value = (random.below(4) > 0).then_some(value.as_bytes());
            // Within a wrapper of magic 1, offsets are relative.
            let offset = if magic == 1 && codec != CompressionType::None { delta } else { next + delta };
            message(magic, offset, time.plus_ms(delta), CompressionType::None, [Some(key.as_bytes()), value])
        });
        let inner: Vec<u8> = inner.collect();
        next += count;
        if codec == CompressionType::None {
            bytes.extend(inner);
        } else {
            let mut packed = Vec::new();
            compress(codec.into(), &inner, &mut packed).unwrap();
            bytes.extend(message(magic, next - 1, time.plus_ms(count - 1), codec, [None, Some(&packed)]));
        }
    }
    bytes
}

/// Fills every partition of a directory; returns up to where each is to be cleaned.
fn fill(data: &Path, now: Timestamp, seed: u64) -> BTreeMap<String, i64> {
    // Old messages are put where the logs' files are: the logs are to be looked at.
    fs::remove_file(data.join(".kafka_cleanshutdown")).unwrap();
    for (topic, partition) in
        TOPICS.iter().flat_map(|(topic, ..)| WITH_OLD_MESSAGES.map(|partition| (topic, partition)))
    {
        let bytes = old_messages(&mut Random(seed + partition), now.plus_ms(-6 * DAY_MS));
        fs::write(data.join(format!("{topic}-{partition}/00000000000000000000.log")), bytes).unwrap();
    }
    let directory = LogDirectory::open(Arc::new(RealDisk), data.to_owned()).unwrap();
    let (mut logs, mut cleaned, mut expected) = (Vec::new(), Vec::new(), BTreeMap::new());
    for found in directory.find_partitions().unwrap() {
        let name = found.topic_partition.clone();
        let partition = name.partition.0 as u64;
        let topic = TOPICS.iter().position(|(topic, ..)| *topic == &*name.topic);
        let settings = LogConfig {
            segment_bytes: SEGMENT_BYTES,
            index_interval_bytes: 300,
            compact: true,
            delete: false,
            // What an earlier round left is due by now in some of them.
            delete_retention_ms: if partition.is_multiple_of(2) { 1_000 } else { 10 * DAY_MS },
            min_compaction_lag_ms: topic.map_or(0, |topic| TOPICS[topic].2),
            producer_id_expiration_ms: i64::MAX,
            ..LogConfig::default()
        };
        let mut opening = directory.opening(&found, Arc::new(settings), now).unwrap();
        while !opening.step(u64::MAX).unwrap().done {}
        let log = opening.finish().unwrap();
        // The metadata log.
        let Some(topic) = topic else {
            logs.push(log);
            continue;
        };
        let seed = seed * 1_000 + partition * TOPICS.len() as u64 + topic as u64;
        let age = if partition == 3 { PRODUCER_EXPIRATION_MS + 5 * DAY_MS } else { 5 * DAY_MS };
        // The values of some do not fit one segment after cleaning either.
        let value_bytes = if partition == 5 { 150_000 } else { 60 };
        let (random, time) = (Random(seed), now.plus_ms(-age));
        let mut writer = Writer { log, random, time, producers: HashMap::new(), value_bytes };
        if partition != WITH_OLD_MESSAGES[0] {
            writer.write(60);
            writer.log.roll(writer.time).unwrap();
            let to = writer.clean(writer.time.plus_ms(60_000));
            cleaned.extend(to.map(|to| (name.clone(), to)));
            writer.time = writer.time.plus_ms(DAY_MS);
        }
        writer.write(30);
        if partition < 8 {
            writer.write(30);
            (100..103).for_each(|producer| writer.end_transaction(producer));
        } else {
            // Nobody ends this one.
            writer.batch(Some(103));
            writer.write(30);
        }
        if partition % 3 == 1 {
            writer.without_keys();
        }
        writer.log.roll(writer.time).unwrap();
        writer.batch(None);
        writer.sync();
        let end = writer.log.end_offset();
        let cleanable = writer.log.cleanable(end, now).unwrap();
        if cleanable.cleanable_bytes > 0 {
            expected.insert(name.to_string(), cleanable.first_uncleanable.0);
        }
        logs.push(writer.log);
    }
    leave_cleanly(directory, logs, cleaned);
    age_files(data, now);
    expected
}

/// Segments get older from the newest to the first: in old formats, when a tombstone goes depends on that.
fn age_files(data: &Path, now: Timestamp) {
    for topic in TOPICS {
        for partition in 0..PARTITIONS {
            let files = fs::read_dir(data.join(format!("{}-{partition}", topic.0))).unwrap();
            let mut logs: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
            logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
            logs.sort();
            for (age, path) in (1..).zip(logs.iter().rev()) {
                let time = UNIX_EPOCH + Duration::from_millis(now.plus_ms(-age * DAY_MS / 4).0 as u64);
                fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
            }
        }
    }
}

fn leave_cleanly(directory: LogDirectory, logs: Vec<PartitionLog>, cleaned: Vec<(TopicPartition, Offset)>) {
    let (mut recovery, mut ends) = (Vec::new(), Vec::new());
    for mut log in logs {
        let flushed = log.close().unwrap().complete().unwrap();
        log.flushed(flushed);
        recovery.push((log.topic_partition().clone(), log.recovery_point()));
        ends.push((log.topic_partition().clone(), log.end_offset()));
    }
    directory.write_checkpoint(CheckpointKind::RecoveryPoint, recovery).unwrap();
    directory.write_checkpoint(CheckpointKind::HighWatermark, ends).unwrap();
    directory.write_checkpoint(CheckpointKind::Cleaner, cleaned).unwrap();
    directory.finish_clean_shutdown(BrokerEpoch(-1)).unwrap();
}

/// Where a broker lies and listens.
struct Home {
    folder: PathBuf,
    client_port: u16,
    controller_port: u16,
}

impl Home {
    fn new(folder: PathBuf) -> Self {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [client_port, controller_port] = listeners.each_ref().map(|one| one.local_addr().unwrap().port());
        fs::create_dir_all(&folder).unwrap();
        let home = Self { folder, client_port, controller_port };
        let text = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller_port}\n\
             listeners=PLAINTEXT://127.0.0.1:{client_port},CONTROLLER://127.0.0.1:{controller_port}\n\
             controller.listener.names=CONTROLLER\nlog.dirs={}\nlog.cleaner.backoff.ms=50\n\
             producer.id.expiration.ms={PRODUCER_EXPIRATION_MS}\n",
            home.data().display(),
        );
        fs::write(home.properties(), text).unwrap();
        home
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn properties(&self) -> PathBuf {
        self.folder.join("server.properties")
    }

    /// Waits until every log is clean up to where it is to be.
    fn wait_until_clean(&self, expected: &BTreeMap<String, i64>, story: impl Fn(&str) -> String) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let text = fs::read_to_string(self.data().join("cleaner-offset-checkpoint")).unwrap_or_default();
            let clean: BTreeMap<_, _> = text.lines().skip(2).filter_map(checkpoint_line).collect();
            let missing = expected.iter().find(|(name, to)| clean.get(*name).is_none_or(|offset| offset < to));
            let Some((name, to)) = missing else { return };
            let late = || story(&format!("has not cleaned {name} to {to}: {clean:?}"));
            assert!(Instant::now() < deadline, "{}", late());
            sleep(Duration::from_millis(20));
        }
    }
}

fn checkpoint_line(line: &str) -> Option<(String, i64)> {
    let [topic, partition, offset] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
    Some((format!("{topic}-{partition}"), offset.parse().ok()?))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
            // Old formats have no delete horizon: the file's time is what counts.
            let modified = entry.metadata().unwrap().modified().unwrap();
            fs::File::options().write(true).open(&to).unwrap().set_modified(modified).unwrap();
        }
    }
}

/// What is in the segments of a partition, as text: everything but what depends on the time of the round and on the codec's
/// implementation.
fn survivors(folder: &Path) -> String {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut text = String::new();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is = |kind: &str| path.extension().is_some_and(|extension| extension == kind);
        if is("txnindex") && fs::metadata(&path).unwrap().len() > 0 {
            let mut dump = Vec::new();
            dump_file(&RealDisk, &path, &DumpOptions::default(), &mut dump).unwrap();
            let dump = String::from_utf8(dump).unwrap();
            let lines: Vec<_> = dump.lines().filter(|line| !line.starts_with("Dumping")).collect();
            let _ = writeln!(text, "{name}\n{}", lines.join("\n"));
        } else if is("log") {
            let _ = writeln!(text, "{name}");
            for batch in split_batches(&fs::read(&path).unwrap()) {
                describe(&batch.unwrap(), &mut text);
            }
        }
    }
    text
}

fn describe(batch: &BatchView<'_>, text: &mut String) {
    batch.check_crc().unwrap();
    let header = *batch.header();
    let _ = writeln!(
        text,
        "  {}..{} epoch {}, magic {}, attributes {:#x}, largest {}, producer {} {} {}, {} records{}",
        header.base_offset,
        header.last_offset(),
        header.leader_epoch,
        header.magic,
        header.attributes,
        header.max_timestamp,
        header.producer_id,
        header.producer_epoch,
        header.base_sequence,
        header.records_count,
        // It is the horizon where there is one.
        header.delete_horizon().map_or(format!(", from {}", header.base_timestamp), |_| ", horizon".to_owned()),
    );
    for record in &batch.records(16 << 20).unwrap() {
        let record = record.unwrap();
        let headers: Vec<_> = record.headers.iter().collect();
        let shown = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let (key, value) = (shown(record.key), shown(record.value));
        let _ = writeln!(text, "    {} at {}: {key:?}={value:?} {headers:?}", record.offset, record.timestamp);
    }
}

/// Where two texts part, with some lines before and after.
fn first_difference(ours: &str, theirs: &str) -> Option<String> {
    let (ours, theirs): (Vec<_>, Vec<_>) = (ours.lines().collect(), theirs.lines().collect());
    let at = (0..ours.len().max(theirs.len())).find(|at| ours.get(*at) != theirs.get(*at))?;
    let around = |lines: &[&str]| lines[at.saturating_sub(12).min(lines.len())..(at + 4).min(lines.len())].join("\n");
    Some(format!("Gregor leaves\n{}\nand Apache Kafka\n{}", around(&ours), around(&theirs)))
}

#[test]
fn both_cleaners_leave_the_same_records() {
    let tools = jars(&Release::complete(Release::COMPLETE)).unwrap();
    let folder = tempfile::Builder::new().prefix("gregor-cleaning-").tempdir().unwrap();
    let [base, ours, theirs] = ["base", "ours", "theirs"].map(|name| Home::new(folder.path().join(name)));
    let gregor = |arguments: &[&str]| {
        let output = Command::new(program().unwrap()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let properties = base.properties();
    gregor(&["storage", "format", "--cluster-id", CLUSTER_ID, "--config", properties.to_str().unwrap()]);
    let broker = Gregor::start_with(&properties, &base.folder.join("gregor")).unwrap();
    for (topic, delete_retention_ms, min_lag_ms) in TOPICS {
        let (partitions, retention) = (PARTITIONS.to_string(), format!("delete.retention.ms={delete_retention_ms}"));
        let lag = format!("min.compaction.lag.ms={min_lag_ms}");
        let segment = format!("segment.bytes={SEGMENT_BYTES}");
        let mut arguments = vec!["topic", "create", topic, "-b", broker.bootstrap(), "-p", &partitions];
        for config in ["cleanup.policy=compact", "min.cleanable.dirty.ratio=0", &retention, &lag, &segment] {
            arguments.extend(["-c", config]);
        }
        gregor(&arguments);
    }
    broker.stop().unwrap();
    let now = Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64);
    let seed = std::env::var("GREGOR_COMPAT_SEED").map_or(1, |seed| seed.parse().unwrap());
    let expected = fill(&base.data(), now, seed);
    assert!(expected.len() as u64 > PARTITIONS * 3 / 2, "most have something to clean: {expected:?}");
    copy(&base.data(), &ours.data());
    copy(&base.data(), &theirs.data());

    let broker = Gregor::start_with(&ours.properties(), &ours.folder.join("gregor")).unwrap();
    ours.wait_until_clean(&expected, |what| broker.story(what));
    broker.stop().unwrap();
    let [bootstrap, controller] = [theirs.client_port, theirs.controller_port].map(|port| format!("127.0.0.1:{port}"));
    let output = theirs.folder.join("output.log");
    let broker = Broker::start_on(&tools, &theirs.properties(), &bootstrap, &controller, output).unwrap();
    theirs.wait_until_clean(&expected, |what| broker.story(what));

    let (mut differences, mut all) = (String::new(), String::new());
    for name in expected.keys() {
        let before = survivors(&base.data().join(name));
        let [ours, theirs] = [&ours, &theirs].map(|home| survivors(&home.data().join(name)));
        assert_ne!(ours, before, "{name} was cleaned");
        if let Some(difference) = first_difference(&ours, &theirs) {
            let _ = writeln!(differences, "of {name}, {difference}");
        }
        all += &theirs;
    }
    assert_eq!(differences, "");
    // Emptied batches, old formats, delete horizons, markers with and without one, aborted transactions, what nobody knows.
    for what in
        [", 0 records", "epoch -1, magic 2", "largest -1,", "horizon", " 0x30", " 0x70", ".txnindex", "of tomorrow"]
    {
        assert!(all.contains(what), "nothing says `{what}` in\n{all}");
    }
    broker.stop().unwrap();
}
