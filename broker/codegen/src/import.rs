//! Reads the message JSON that lies inside Kafka's released jars and makes our schema of it: facts only, no prose.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    schema::{self, CommonStruct, Field, Message},
    versions::Versions,
};

/// The jars that have messages.
const MODULES: [&str; 7] = [
    "kafka-clients",
    "kafka-metadata",
    "kafka-group-coordinator",
    "kafka-transaction-coordinator",
    "kafka-share-coordinator",
    "kafka-raft",
    "kafka-storage",
];

/// Replaces the schema files in `schema` by what a release's jars say. `scratch` is an empty folder to unpack into.
pub fn import(jars: &Path, release: &str, scratch: &Path, schema: &Path) -> Result<usize> {
    let mut files: BTreeMap<String, Vec<Message>> = BTreeMap::new();
    let mut count = 0;
    for module in MODULES {
        let jar = jars.join(format!("{module}-{release}.jar"));
        for json in unpack(&jar, &scratch.join(module))? {
            let text = fs::read_to_string(&json)?;
            let Some(message) = message(&text).with_context(|| format!("{}", json.display()))? else { continue };
            files.entry(file_of(module, &message)).or_default().push(message);
            count += 1;
        }
    }
    if schema.exists() {
        fs::remove_dir_all(schema)?;
    }
    for (file, mut messages) in files {
        messages.sort_by(|a, b| (a.key, &a.name).cmp(&(b.key, &b.name)));
        let path = schema.join(file);
        fs::create_dir_all(path.parent().context("a schema file is in a folder")?)?;
        fs::write(path, schema::print(&messages.iter().collect::<Vec<_>>()))?;
    }
    Ok(count)
}

/// Which of our files a message belongs to.
fn file_of(module: &str, message: &Message) -> String {
    if matches!(message.kind.as_str(), "request" | "response") {
        let name = message.name.trim_end_matches("Request").trim_end_matches("Response");
        return format!("rpc/{name}.txt");
    }
    let area = match module {
        "kafka-metadata" => "metadata",
        "kafka-group-coordinator" => "group",
        "kafka-transaction-coordinator" => "transaction",
        "kafka-share-coordinator" => "share",
        "kafka-raft" => "raft",
        "kafka-storage" if message.kind == "record" => "remote_log",
        "kafka-storage" => "log",
        _ => match message.name.as_str() {
            "AbortedTxn" => "log",
            "ConsumerProtocolAssignment" | "ConsumerProtocolSubscription" | "DefaultPrincipalData" => "rpc/embedded",
            _ => "control",
        },
    };
    format!("{area}.txt")
}

/// Unpacks a jar and finds the message files in it.
fn unpack(jar: &Path, into: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(into)?;
    let jar = fs::canonicalize(jar).with_context(|| format!("{} is missing", jar.display()))?;
    let status =
        Command::new("jar").arg("xf").arg(&jar).current_dir(into).status().context("running `jar` of a JDK")?;
    ensure!(status.success(), "`jar xf {}` failed", jar.display());
    let mut found = Vec::new();
    for folder in ["common/message", "common/metadata", "message"] {
        let Ok(entries) = fs::read_dir(into.join(folder)) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                found.push(path);
            }
        }
    }
    ensure!(!found.is_empty(), "{} has no message files", jar.display());
    found.sort();
    Ok(found)
}

/// One message, or none if its API was removed or it is one of the headers, which are written by hand.
fn message(text: &str) -> Result<Option<Message>> {
    let without_comments: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let json: Value = serde_json::from_str(&without_comments)?;
    let kind = match text_of(&json, "type")? {
        "header" => return Ok(None),
        "metadata" => "record",
        "coordinator-key" => "key",
        "coordinator-value" => "value",
        kind @ ("request" | "response" | "data") => kind,
        kind => bail!("unknown type of message {kind:?}"),
    };
    let versions = versions(&json, "validVersions")?;
    if versions.is_none() {
        return Ok(None);
    }
    Ok(Some(Message {
        kind: kind.to_owned(),
        name: text_of(&json, "name")?.to_owned(),
        key: json["apiKey"].as_i64().map(i16::try_from).transpose()?,
        versions,
        flexible: self::versions(&json, "flexibleVersions")?,
        listeners: array(&json, "listeners").iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        latest_unstable: json["latestVersionUnstable"].as_bool().unwrap_or(false),
        structs: array(&json, "commonStructs")
            .iter()
            .map(|common| {
                Ok(CommonStruct {
                    name: text_of(common, "name")?.to_owned(),
                    versions: self::versions(common, "versions")?,
                    fields: fields(common)?,
                })
            })
            .collect::<Result<_>>()?,
        fields: fields(&json)?,
    }))
}

fn fields(parent: &Value) -> Result<Vec<Field>> {
    array(parent, "fields").iter().map(field).collect()
}

fn field(json: &Value) -> Result<Field> {
    let name = text_of(json, "name")?;
    let tagged = versions(json, "taggedVersions")?;
    let default = match &json["default"] {
        // An explicit JSON null is no default for Kafka's generator; only the text "null" is.
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(text.to_ascii_lowercase()),
        other => Some(other.to_string()),
    };
    let field = Field {
        name: name.to_owned(),
        kind: text_of(json, "type")?.to_owned(),
        versions: if json["versions"].is_null() { tagged } else { versions(json, "versions")? },
        nullable: versions(json, "nullableVersions")?,
        tagged,
        tag: json["tag"].as_u64().map(u32::try_from).transpose()?,
        default,
        ignorable: json["ignorable"].as_bool().unwrap_or(false),
        entity: json["entityType"].as_str().map(str::to_owned),
        map_key: json["mapKey"].as_bool().unwrap_or(false),
        fields: fields(json)?,
    };
    ensure!(!field.versions.is_none(), "field {name} has no version");
    ensure!(field.tag.is_some() != field.tagged.is_none(), "field {name} has a tag or tagged versions, not both");
    Ok(field)
}

fn text_of<'a>(json: &'a Value, key: &str) -> Result<&'a str> {
    json[key].as_str().with_context(|| format!("no text {key:?} in {json}"))
}

fn versions(json: &Value, key: &str) -> Result<Versions> {
    json[key].as_str().map_or(Ok(Versions::NONE), Versions::parse)
}

fn array<'a>(json: &'a Value, key: &str) -> &'a [Value] {
    json[key].as_array().map_or(&[], Vec::as_slice)
}
