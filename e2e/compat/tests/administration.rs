//! Java's admin client is answered by Gregor as by Apache Kafka: results, configurations with their sources, errors and their words.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use gregor_apache::{Broker, BrokerConfig, Jars, Release, compile, jars, java_program, java_tool};
use gregor_compat::Gregor;

/// Keys that depend on where a node runs, and one that no table has.
const OWN_KEYS: [&str; 3] = ["advertised.listeners", "custom.key", "log.dir"];

fn administer(jars: &Jars, classes: &Path, bootstrap: &str) -> Vec<String> {
    let output = java_program(jars, classes, "Administration", &[bootstrap]).unwrap().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // A log line of the client is no answer.
    let answers = text.lines().filter(|line| !line.contains("adminclient-"));
    answers.map(comparable).collect()
}

/// The key of a line about a configuration value.
fn key(line: &str) -> Option<&str> {
    line.strip_prefix("  ")?.split_once('=').map(|(key, _)| key)
}

/// What a line means, where the words may differ: what a value should have been, and what is wrong with a topic's name, is told in
/// words of our own; and where Apache Kafka has no words, ours do no harm.
fn comparable(line: &str) -> String {
    if let Some((start, _)) = line.split_once(" for configuration ") {
        return start.to_owned();
    }
    for wordless in ["InvalidTopicException", "configs of no topic"] {
        if let Some(end) = line.find(wordless).filter(|_| !line.contains("collides")) {
            return line[..end + wordless.len()].to_owned();
        }
    }
    line.to_owned()
}

/// The lowest and the highest version of each API that a node advertises, from ApiVersions version 0.
fn advertised(bootstrap: &str) -> BTreeMap<i16, (i16, i16)> {
    const REQUEST: [u8; 14] = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff];
    let mut stream = TcpStream::connect(bootstrap).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&REQUEST).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame).unwrap();
    let number = |bytes: &[u8]| i16::from_be_bytes([bytes[0], bytes[1]]);
    let (correlation, body) = frame.split_at(4);
    assert_eq!((correlation, number(body)), (&[0, 0, 0, 1][..], 0));
    body[6..].chunks_exact(6).map(|api| (number(api), (number(&api[2..]), number(&api[4..])))).collect()
}

#[test]
fn every_api_is_advertised_in_the_versions_of_apache_kafka() {
    let jars = jars(&Release::broker(Release::NEWEST)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let gregor = Gregor::start().unwrap();
    let ours = advertised(gregor.bootstrap());
    gregor.stop().unwrap();
    let apache = Broker::start(&jars, &BrokerConfig::new(folder.path())).unwrap();
    let theirs = advertised(&apache.bootstrap);
    apache.stop().unwrap();
    assert!(ours.len() > 30, "{ours:?}");
    let different: Vec<_> = ours.iter().filter(|(key, versions)| theirs.get(key) != Some(versions)).collect();
    assert!(different.is_empty(), "advertised otherwise than by Apache Kafka: {different:?}\nApache: {theirs:?}");
}

#[test]
fn the_admin_client_is_answered_as_by_apache_kafka() {
    let jars = jars(&Release::broker(Release::NEWEST)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let classes = folder.path().join("classes");
    compile(&jars, &Path::new(env!("CARGO_MANIFEST_DIR")).join("admin/Administration.java"), &classes).unwrap();

    let gregor = Gregor::start().unwrap();
    let ours = administer(&jars, &classes, gregor.bootstrap());
    gregor.stop().unwrap();

    let config =
        BrokerConfig { release_version: Some("4.3".to_owned()), ..BrokerConfig::new(folder.path().join("apache")) };
    let apache = Broker::start(&jars, &config).unwrap();
    let theirs = administer(&jars, &classes, &apache.bootstrap);
    apache.stop().unwrap();

    // What either node's file sets is its own.
    let set: BTreeSet<_> = theirs
        .iter()
        .chain(&ours)
        .filter(|line| line.contains("STATIC_BROKER_CONFIG"))
        .filter_map(|line| key(line))
        .collect();
    let is_shared = |line: &&String| key(line).is_none_or(|key| !set.contains(key) && !OWN_KEYS.contains(&key));
    let shared = |lines: &[String]| lines.iter().filter(is_shared).cloned().collect::<Vec<_>>();
    let (theirs, ours) = (shared(&theirs), shared(&ours));

    assert!(theirs.len() > 400, "the program says far more than {} lines", theirs.len());
    let only = |here: &[String], there: &[String]| -> String {
        let lines: Vec<_> = here.iter().filter(|line| !there.contains(line)).map(String::as_str).collect();
        lines.join("\n")
    };
    assert!(ours == theirs, "Apache:\n{}\nGregor:\n{}", only(&theirs, &ours), only(&ours, &theirs));
}

/// What `kafka-features` says and how it ends, for each of these in turn. The epoch of what is finalized is each cluster's own, and features that
/// Gregor does not serve are left out.
fn raise_and_lower(jars: &Jars, bootstrap: &str) -> Vec<(String, bool)> {
    const STEPS: [&[&str]; 10] = [
        &["describe"],
        &["upgrade", "--feature", "metadata.version=31", "--dry-run"],
        &["upgrade", "--feature", "metadata.version=31"],
        &["downgrade", "--feature", "metadata.version=30"],
        &["upgrade", "--feature", "metadata.version=33"],
        &["downgrade", "--feature", "metadata.version=31"],
        &["downgrade", "--unsafe", "--feature", "metadata.version=31"],
        &["downgrade", "--feature", "eligible.leader.replicas.version=0"],
        &["upgrade", "--feature", "eligible.leader.replicas.version=1"],
        &["describe"],
    ];
    let said = |step: &&[&str]| {
        let arguments = [&["--bootstrap-server", bootstrap][..], *step].concat();
        let output = java_tool(jars, "org.apache.kafka.tools.FeatureCommand", &arguments).unwrap().output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let served = ["Feature: metadata.version", "Feature: eligible.leader.replicas.version"];
        let is_shared =
            |line: &&str| !line.starts_with("Feature: ") || served.iter().any(|name| line.starts_with(name));
        let without_epoch = |line: &str| line.split("Epoch:").next().unwrap_or_default().trim_end().to_owned();
        let lines: Vec<_> = text.lines().filter(is_shared).map(without_epoch).collect();
        (lines.join("\n"), output.status.success())
    };
    STEPS.iter().map(said).collect()
}

#[test]
fn feature_levels_go_up_and_down_as_with_apache_kafka() {
    // The newest release is here without its tools, which have not changed in this.
    let tools = jars(&Release::complete(Release::COMPLETE)).unwrap();
    let jars = jars(&Release::broker(Release::NEWEST)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let gregor = Gregor::start().unwrap();
    let ours = raise_and_lower(&tools, gregor.bootstrap());
    let kraft = ["--bootstrap-server", gregor.bootstrap(), "upgrade", "--feature", "kraft.version=1"];
    let again = java_tool(&tools, "org.apache.kafka.tools.FeatureCommand", &kraft).unwrap().output().unwrap();
    assert!(again.status.success(), "a dynamic quorum is one already: {again:?}");
    gregor.stop().unwrap();
    let config =
        BrokerConfig { release_version: Some("4.3".to_owned()), ..BrokerConfig::new(folder.path().join("apache")) };
    let apache = Broker::start(&jars, &config).unwrap();
    let theirs = raise_and_lower(&tools, &apache.bootstrap);
    apache.stop().unwrap();
    assert!(theirs[2].1 && theirs[4].1, "the tool raises levels: {theirs:?}");
    assert_eq!(ours, theirs);
}
