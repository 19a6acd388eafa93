//! Every configuration of a topic that touches its log, changed while the node runs: what a client and the folder see of it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use gregor_messages::{
    IncrementalAlterConfigsRequest,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
};
use gregor_types::{ErrorCode, Timestamp};
use gregor_wire::batch::{BatchOptions, RecordBatchBuilder};
use support::{Client, DEADLINE, Home, Running, batch, error, now};

const TOPIC: &str = "tuned";

fn alter(client: &mut Client, values: &[(&str, &str)]) {
    let config = |(name, value): &(&str, &str)| AlterableConfig {
        name: (*name).into(),
        value: Some((*value).into()),
        ..Default::default()
    };
    let resource = AlterConfigsResource {
        resource_type: 2,
        resource_name: TOPIC.into(),
        configs: values.iter().map(config).collect(),
        ..Default::default()
    };
    let request = IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() };
    assert_eq!(error(client.call(1, &request).responses[0].error_code), ErrorCode::None, "{values:?}");
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A node whose topic has one partition and nothing set.
fn tuned(home: &Home) -> (Running, Client) {
    let node = home.start();
    let client = node.with_topic(TOPIC, 1, &[]);
    (node, client)
}

/// The names of the topic's files with this ending.
fn files(home: &Home, ending: &str) -> Vec<String> {
    let folder = home.folder.path().join("data").join(format!("{TOPIC}-0"));
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(ending)).collect();
    names.sort();
    names
}

/// A batch with a record for each time.
fn of_times(times: &[i64]) -> bytes::Bytes {
    let mut builder = RecordBatchBuilder::new(BatchOptions::default());
    for time in times {
        builder.append(Timestamp(*time), None, Some(b"value"), &[]);
    }
    builder.build()
}

/// The codec in the attributes of what the log has at an offset.
fn codec_at(client: &mut Client, offset: i64) -> u8 {
    client.fetch(TOPIC, 0, offset, 0).records.unwrap()[22] & 7
}

#[test]
fn records_are_compressed_as_the_topic_says_from_the_change_on() {
    let home = Home::new();
    let (node, mut client) = tuned(&home);
    let value = "the same again ".repeat(50);
    assert_eq!(client.produce(TOPIC, 0, batch(&[&value])).error_code, 0);
    assert_eq!(codec_at(&mut client, 0), 0, "as the producer sent it");
    for (name, codec) in [("gzip", 1), ("snappy", 2), ("lz4", 3), ("zstd", 4), ("uncompressed", 0)] {
        alter(&mut client, &[("compression.type", name)]);
        until(name, || {
            let produced = client.produce(TOPIC, 0, batch(&[&value]));
            assert_eq!(produced.error_code, 0);
            codec_at(&mut client, produced.base_offset) == codec
        });
    }
    node.stop();
}

#[test]
fn each_record_with_a_time_that_the_topic_does_not_allow_is_named() {
    let home = Home::new();
    let (node, mut client) = tuned(&home);
    let hour = 3_600_000;
    let now = now().0;
    assert_eq!(client.produce(TOPIC, 0, of_times(&[now - 2 * hour])).error_code, 0, "old records are taken by default");
    alter(&mut client, &[("message.timestamp.before.max.ms", "3600000"), ("message.timestamp.after.max.ms", "60000")]);
    until("the bounds count", || client.produce(TOPIC, 0, of_times(&[now - 2 * hour])).error_code != 0);
    let end = client.end_offset(TOPIC, 0);
    let refused = client.produce(TOPIC, 0, of_times(&[now, now - 2 * hour, now, now + hour]));
    assert_eq!(error(refused.error_code), ErrorCode::InvalidTimestamp);
    let named: Vec<_> = refused.record_errors.iter().map(|one| one.batch_index).collect();
    assert_eq!(named, [1, 3]);
    assert!(refused.record_errors.iter().all(|one| one.batch_index_error_message.is_some()));
    assert!(refused.error_message.is_some());
    assert_eq!(client.end_offset(TOPIC, 0), end, "nothing of a refused batch is kept");
    assert_eq!(client.produce(TOPIC, 0, of_times(&[now, now - hour / 2])).error_code, 0);

    alter(&mut client, &[("message.timestamp.type", "LogAppendTime")]);
    until("the broker's time counts", || {
        let produced = client.produce(TOPIC, 0, of_times(&[now]));
        produced.error_code == 0 && produced.log_append_time_ms >= now
    });
    let late = client.produce(TOPIC, 0, of_times(&[now - 2 * hour]));
    assert_eq!(late.error_code, 0, "the producer's time is of no account then");
    node.stop();
}

#[test]
fn compacted_topics_name_the_records_without_a_key() {
    let home = Home::new();
    let (node, mut client) = tuned(&home);
    assert_eq!(client.produce(TOPIC, 0, of_times(&[now().0])).error_code, 0);
    alter(&mut client, &[("cleanup.policy", "compact")]);
    until("keys are needed", || client.produce(TOPIC, 0, of_times(&[now().0])).error_code != 0);
    let refused = client.produce(TOPIC, 0, of_times(&[now().0, now().0]));
    assert_eq!(error(refused.error_code), ErrorCode::InvalidRecord);
    let named: Vec<_> = refused.record_errors.iter().map(|one| one.batch_index).collect();
    assert_eq!(named, [0, 1]);
    assert_eq!(client.produce(TOPIC, 0, batch(&["with a key"])).error_code, 0);
    node.stop();
}

#[test]
fn segments_are_as_large_and_as_old_as_the_topic_says() {
    let home = Home::new();
    let (node, mut client) = tuned(&home);
    alter(&mut client, &[("max.message.bytes", "2000000")]);
    let large = "x".repeat(700_000);
    for _ in 0..3 {
        assert_eq!(client.produce(TOPIC, 0, batch(&[&large])).error_code, 0);
    }
    assert_eq!(files(&home, ".log").len(), 1);
    alter(&mut client, &[("segment.bytes", "1048576")]);
    until("a segment takes no more than a MiB", || {
        assert_eq!(client.produce(TOPIC, 0, batch(&[&large])).error_code, 0);
        files(&home, ".log").len() == 2
    });
    assert_eq!(client.produce(TOPIC, 0, batch(&[&large])).error_code, 0);
    assert_eq!(files(&home, ".log").len(), 3);

    alter(&mut client, &[("segment.ms", "1000")]);
    until("a segment takes no more than a second", || {
        let before = files(&home, ".log").len();
        let now = now().0;
        // Of the small ones none is a segment's worth of bytes: these are the times of the records.
        for time in [now, now + 1, now + 2_000] {
            assert_eq!(client.produce(TOPIC, 0, of_times(&[time])).error_code, 0);
        }
        files(&home, ".log").len() > before
    });
    node.stop();
}

#[test]
fn what_is_too_old_or_too_much_goes_and_the_log_starts_later() {
    let home = Home::new().with("log.retention.check.interval.ms", "50");
    let (node, mut client) = tuned(&home);
    let start = |client: &mut Client| client.list_offset(TOPIC, 0, -2).offset;
    let hour = 3_600_000;
    for _ in 0..5 {
        assert_eq!(client.produce(TOPIC, 0, of_times(&[now().0 - 2 * hour])).error_code, 0);
    }
    alter(&mut client, &[("file.delete.delay.ms", "0")]);
    assert_eq!(start(&mut client), 0, "a week is kept by default");
    alter(&mut client, &[("retention.ms", "3600000")]);
    until("what is older than an hour is gone", || start(&mut client) == 5);
    until("its files are gone", || {
        files(&home, ".log") == ["00000000000000000005.log"] && files(&home, ".deleted").is_empty()
    });
    let gone = client.fetch(TOPIC, 0, 4, 0);
    assert_eq!(error(gone.error_code), ErrorCode::OffsetOutOfRange);

    assert_eq!(client.produce(TOPIC, 0, batch(&["new"])).error_code, 0);
    alter(&mut client, &[("max.message.bytes", "2000000"), ("segment.bytes", "1048576")]);
    let large = "x".repeat(700_000);
    until("there are several segments", || {
        assert_eq!(client.produce(TOPIC, 0, batch(&[&large])).error_code, 0);
        files(&home, ".log").len() >= 3
    });
    let (before, end) = (start(&mut client), client.end_offset(TOPIC, 0));
    assert_eq!(before, 5);
    alter(&mut client, &[("retention.bytes", "1")]);
    until("only the newest segment is left", || start(&mut client) > before && files(&home, ".log").len() == 1);
    assert!(start(&mut client) < end, "the segment that is written to stays");
    assert_eq!(client.end_offset(TOPIC, 0), end);
    node.stop();
}

#[test]
fn a_segment_ends_sooner_by_the_share_of_the_jitter_that_its_log_has() {
    let home = Home::new();
    let (node, mut client) = tuned(&home);
    let minute = 60_000;
    alter(&mut client, &[("segment.ms", "3600000")]);
    let half_an_hour_apart = |client: &mut Client| {
        let now = now().0;
        for time in [now - 30 * minute, now] {
            assert_eq!(client.produce(TOPIC, 0, of_times(&[time])).error_code, 0);
        }
    };
    half_an_hour_apart(&mut client);
    assert_eq!(files(&home, ".log").len(), 1, "an hour is not over");
    // By its name this partition's share is two thirds.
    alter(&mut client, &[("segment.jitter.ms", "3600000")]);
    until("the segment is too old", || {
        half_an_hour_apart(&mut client);
        files(&home, ".log").len() > 1
    });
    node.stop();
}

#[test]
fn indexes_are_as_dense_and_as_large_as_the_topic_says() {
    let home = Home::new();
    let (node, mut client) = tuned(&home);
    let bytes = || -> u64 {
        let folder = home.folder.path().join("data").join(format!("{TOPIC}-0"));
        files(&home, ".index").iter().map(|name| fs::metadata(folder.join(name)).unwrap().len()).sum()
    };
    let mut produce = || assert_eq!(client.produce(TOPIC, 0, batch(&["small"])).error_code, 0);
    // Entries are written by dozens: so many batches of less than 100 bytes have two at most.
    (0..100).for_each(|_| produce());
    assert_eq!((files(&home, ".log").len(), bytes()), (1, 0));
    let mut other = node.client();
    alter(&mut other, &[("index.interval.bytes", "0")]);
    until("each batch has an entry", || {
        produce();
        bytes() > 0
    });
    assert_eq!(files(&home, ".log").len(), 1);
    alter(&mut other, &[("segment.index.bytes", "120")]);
    until("a segment ends where its index is full", || {
        produce();
        files(&home, ".log").len() == 4
    });
    let bases: Vec<i64> = files(&home, ".log").iter().map(|name| name[..20].parse().unwrap()).collect();
    // The first has what came before the change was seen.
    let records: Vec<_> = bases.windows(2).map(|pair| pair[1] - pair[0]).skip(1).collect();
    assert!(records.iter().all(|count| (8..=15).contains(count)), "{bases:?}");
    node.stop();
}

#[test]
fn records_are_synced_when_they_have_waited_as_long_as_the_topic_says() {
    let home = Home::new()
        .with("log.flush.interval.ms", "3600000")
        .with("log.flush.scheduler.interval.ms", "10")
        .with("log.flush.offset.checkpoint.interval.ms", "20");
    let (node, mut client) = tuned(&home);
    let checkpoint = home.folder.path().join("data/recovery-point-offset-checkpoint");
    // The checkpoint stays one behind, so that a recovery goes over the indexes of the segment that is written to.
    let synced = || -> Option<i64> {
        let text = fs::read_to_string(&checkpoint).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{TOPIC} 0 ")))?;
        Some(line.parse().unwrap())
    };
    assert_eq!(client.produce(TOPIC, 0, batch(&["a", "b", "c"])).error_code, 0);
    until("the checkpoint names the topic", || synced().is_some());
    assert_eq!(synced(), Some(0), "nothing asks for a sync within the hour");
    alter(&mut client, &[("flush.ms", "50")]);
    until("all is synced", || synced() == Some(2));
    assert_eq!(client.produce(TOPIC, 0, batch(&["d"])).error_code, 0);
    until("what is appended then is too", || synced() == Some(3));
    node.stop();
}

#[test]
fn records_are_compressed_as_hard_as_the_topic_says() {
    let home = Home::new();
    let (node, mut client) = tuned(&home);
    // Words that come again far apart, in an order that does not: what a codec finds depends on how long it looks.
    let word = |index: u64| format!("{:x} ", (index * index * 7_919 % 701) * 104_729);
    let value: String = (0..6_000).map(word).collect();
    for (name, [fast, hard]) in [("gzip", ["1", "9"]), ("zstd", ["1", "19"])] {
        let level = format!("compression.{name}.level");
        alter(&mut client, &[("compression.type", name), (&level, fast)]);
        let size = |client: &mut Client| {
            let produced = client.produce(TOPIC, 0, batch(&[&value]));
            assert_eq!(produced.error_code, 0);
            client.fetch(TOPIC, 0, produced.base_offset, 0).records.unwrap().len()
        };
        // Of the fast level once two changes have been seen: the codec's, and this level.
        let codec = if name == "gzip" { 1 } else { 4 };
        until(name, || {
            size(&mut client);
            let end = client.end_offset(TOPIC, 0);
            codec_at(&mut client, end - 1) == codec
        });
        let by_fast = size(&mut client);
        alter(&mut client, &[(&level, hard)]);
        until("it is compressed harder", || size(&mut client) < by_fast);
    }
    node.stop();
}
