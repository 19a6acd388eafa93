//! Golden bytes: what the real Kafka encodes, Gregor decodes to the same values and encodes again to the same bytes.
//!
//! `golden/Golden.java`, compiled against the released jars, writes every message of every jar in every version: with
//! defaults, with every field set, and with every nullable field null. Nothing is checked in: the jars are the oracle.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use gregor_apache::{Release, compile, jars, java_program};
use gregor_wire::{Codec, RequestHeader, ResponseHeader};
use serde_json::Value;

/// One line of the oracle.
struct Vector {
    name: String,
    version: i16,
    filling: String,
    fields_set: usize,
    bytes: Bytes,
    json: Value,
}

fn vectors() -> Vec<Vector> {
    let jars = jars(&Release::broker(Release::NEWEST)).unwrap();
    let folder = scratch();
    let output = folder.join("vectors.tsv");
    compile(&jars, &Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/Golden.java"), &folder).unwrap();
    let mut command = java_program(&jars, &folder, "Golden", &[]).unwrap();
    let run = command.arg(&jars.folder).arg(&output).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let text = fs::read_to_string(&output).unwrap();
    fs::remove_dir_all(folder).unwrap();
    text.lines().map(parse).collect()
}

fn scratch() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("golden-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn parse(line: &str) -> Vector {
    let mut columns = line.splitn(6, '\t');
    let mut next = || columns.next().unwrap_or_else(|| panic!("a vector has six columns: {line}"));
    Vector {
        name: next().to_owned(),
        version: next().parse().unwrap(),
        filling: next().to_owned(),
        fields_set: next().parse().unwrap(),
        bytes: bytes_of(next()),
        json: serde_json::from_str(next()).unwrap(),
    }
}

fn bytes_of(hexadecimal: &str) -> Bytes {
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
    hexadecimal.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn codecs() -> BTreeMap<&'static str, Codec> {
    let headers = [Codec::of::<RequestHeader>(), Codec::of::<ResponseHeader>()];
    let records = gregor_state_records::CODECS.iter().copied().flatten();
    let all = gregor_messages::CODECS.iter().chain(records).cloned().chain(headers);
    all.map(|codec| (codec.name, codec)).collect()
}

#[test]
fn every_message_of_kafka_is_decoded_shown_and_encoded_as_kafka_does() {
    let codecs = codecs();
    let mut covered: BTreeMap<&str, BTreeSet<i16>> = BTreeMap::new();
    let (mut vectors_seen, mut fields_set, mut wrong) = (0, 0, Vec::new());
    for vector in vectors() {
        // Kafka's classes of RPCs end in `Data`, its schema's names do not.
        let name = vector.name.as_str();
        let codec = codecs.get(name).or_else(|| codecs.get(name.trim_end_matches("Data")));
        let codec = codec.unwrap_or_else(|| panic!("Kafka has a message {name} that we have not"));
        let place = format!("{} v{} {}", codec.name, vector.version, vector.filling);
        match (codec.round_trip)(vector.bytes.clone(), vector.version) {
            Err(error) => wrong.push(format!("{place}: not decoded: {error}\n  {:02x?}", &vector.bytes[..])),
            Ok((json, _)) if json != vector.json => {
                wrong.push(format!("{place}: shown as\n  {json}\nby Kafka as\n  {}", vector.json));
            }
            Ok((_, Err(error))) => wrong.push(format!("{place}: not encoded: {error}")),
            Ok((_, Ok(bytes))) if bytes != vector.bytes => {
                wrong.push(format!(
                    "{place}: encoded as\n  {:02x?}\nby Kafka as\n  {:02x?}",
                    &bytes[..],
                    &vector.bytes[..]
                ));
            }
            Ok(_) => {}
        }
        covered.entry(codec.name).or_default().insert(vector.version);
        vectors_seen += 1;
        fields_set += vector.fields_set;
    }
    assert!(
        wrong.is_empty(),
        "{} of {vectors_seen} differ; the first ones:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(8)].join("\n")
    );

    for codec in codecs.values() {
        // Version 0 of the request header belonged to a removed API: Kafka's own class no longer has it.
        let versions = codec.versions.clone().filter(|version| (codec.name, *version) != ("RequestHeader", 0));
        let missing: Vec<i16> =
            versions.filter(|version| !covered.get(codec.name).is_some_and(|seen| seen.contains(version))).collect();
        assert!(missing.is_empty(), "no golden bytes for {} in versions {missing:?}", codec.name);
    }
    assert_eq!(covered.len(), codecs.len(), "every message, and none that only one side has");
    // What Kafka 4.4.0 has. Renewed with the schema; a smaller number means that the oracle tests less than it did.
    assert_eq!((vectors_seen, fields_set), (2_232, 26_197));
}
