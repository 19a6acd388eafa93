//! The schema: what a message is made of, and the text files that say so.
//!
//! One line per message, struct or field; what is inside is indented. The files are facts about Kafka's protocol, read by
//! people in a diff when a new release is imported, and by [`crate::rust`].

use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};

use crate::versions::Versions;

/// A message.
#[derive(Debug, Clone)]
pub struct Message {
    /// `request`, `response`, `record`, `key`, `value` or `data`.
    pub kind: String,
    /// Kafka's name.
    pub name: String,
    /// The number of the API or of the record type.
    pub key: Option<i16>,
    /// The versions that exist.
    pub versions: Versions,
    /// Those that have compact lengths and tagged fields.
    pub flexible: Versions,
    /// Where a request is served: `broker`, `controller`.
    pub listeners: Vec<String>,
    /// Whether the last version may still change.
    pub latest_unstable: bool,
    /// Structs that several fields use.
    pub structs: Vec<CommonStruct>,
    /// The body.
    pub fields: Vec<Field>,
}

/// A struct with a name of its own.
#[derive(Debug, Clone)]
pub struct CommonStruct {
    /// Its name.
    pub name: String,
    /// The message's versions that have it.
    pub versions: Versions,
    /// What is in it.
    pub fields: Vec<Field>,
}

/// A field.
#[derive(Debug, Clone)]
pub struct Field {
    /// Kafka's name.
    pub name: String,
    /// A primitive's or struct's name, `[]` in front for an array.
    pub kind: String,
    /// The message's versions that have it.
    pub versions: Versions,
    /// Those in which it may be null.
    pub nullable: Versions,
    /// Those in which it is a tagged field.
    pub tagged: Versions,
    /// Its tag there.
    pub tag: Option<u32>,
    /// Its value where it is not sent, if not the type's zero.
    pub default: Option<String>,
    /// Whether a version without it may be written though it is set.
    pub ignorable: bool,
    /// What the value identifies, such as `topicName`.
    pub entity: Option<String>,
    /// Whether it is the key of the array it is in.
    pub map_key: bool,
    /// The fields of the struct that is defined here.
    pub fields: Vec<Field>,
}

impl Field {
    /// The element's type and true for an array, else the type and false.
    pub fn element(&self) -> (&str, bool) {
        match self.kind.strip_prefix("[]") {
            Some(element) => (element, true),
            None => (&self.kind, false),
        }
    }
}

/// The text of a schema file.
pub fn print(messages: &[&Message]) -> String {
    let mut text = String::new();
    for message in messages {
        let _ = write!(text, "{} {}", message.kind, message.name);
        if let Some(key) = message.key {
            let _ = write!(text, " key={key}");
        }
        let _ = write!(text, " versions={} flexible={}", message.versions, message.flexible);
        if !message.listeners.is_empty() {
            let _ = write!(text, " listeners={}", message.listeners.join(","));
        }
        if message.latest_unstable {
            text.push_str(" latest-unstable");
        }
        text.push('\n');
        for common in &message.structs {
            let _ = writeln!(text, "  struct {} versions={}", common.name, common.versions);
            print_fields(&mut text, &common.fields, 2);
        }
        print_fields(&mut text, &message.fields, 1);
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn print_fields(text: &mut String, fields: &[Field], depth: usize) {
    for field in fields {
        let _ = write!(text, "{:width$}{} {} {}", "", field.name, field.kind, field.versions, width = depth * 2);
        if !field.nullable.is_none() {
            let _ = write!(text, " nullable={}", field.nullable);
        }
        if let Some(tag) = field.tag {
            let _ = write!(text, " tag={tag}@{}", field.tagged);
        }
        if let Some(default) = &field.default {
            let _ = write!(text, " default={default}");
        }
        if let Some(entity) = &field.entity {
            let _ = write!(text, " entity={entity}");
        }
        if field.ignorable {
            text.push_str(" ignorable");
        }
        if field.map_key {
            text.push_str(" map-key");
        }
        text.push('\n');
        print_fields(text, &field.fields, depth + 1);
    }
}

/// Reads a schema file.
pub fn parse(text: &str) -> Result<Vec<Message>> {
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let content = line.trim_start();
        if !content.is_empty() && !content.starts_with('#') {
            lines.push(Line { number: index + 1, depth: (line.len() - content.len()) / 2, content });
        }
    }
    let mut rest = lines.as_slice();
    let mut messages = Vec::new();
    while let Some((line, after)) = rest.split_first() {
        ensure!(line.depth == 0, "line {}: a message is not indented", line.number);
        rest = after;
        let message = parse_message(line, &mut rest).with_context(|| format!("line {}", line.number))?;
        messages.push(message);
    }
    Ok(messages)
}

struct Line<'a> {
    number: usize,
    depth: usize,
    content: &'a str,
}

fn parse_message(line: &Line<'_>, rest: &mut &[Line<'_>]) -> Result<Message> {
    let mut words = line.content.split(' ');
    let mut message = Message {
        kind: words.next().unwrap_or_default().to_owned(),
        name: words.next().context("a message needs a name")?.to_owned(),
        key: None,
        versions: Versions::NONE,
        flexible: Versions::NONE,
        listeners: Vec::new(),
        latest_unstable: false,
        structs: Vec::new(),
        fields: Vec::new(),
    };
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("key", value) => message.key = Some(value.parse()?),
            ("versions", value) => message.versions = Versions::parse(value)?,
            ("flexible", value) => message.flexible = Versions::parse(value)?,
            ("listeners", value) => message.listeners = value.split(',').map(str::to_owned).collect(),
            ("latest-unstable", _) => message.latest_unstable = true,
            _ => bail!("unknown word {word:?}"),
        }
    }
    while let Some(line) = rest.first().filter(|line| line.depth == 1) {
        let Some(words) = line.content.strip_prefix("struct ") else { break };
        let (name, versions) = words.split_once(" versions=").context("a struct needs versions")?;
        let common = CommonStruct { name: name.to_owned(), versions: Versions::parse(versions)?, fields: Vec::new() };
        *rest = &rest[1..];
        message.structs.push(CommonStruct { fields: parse_fields(rest, 2)?, ..common });
    }
    message.fields = parse_fields(rest, 1)?;
    Ok(message)
}

fn parse_fields(rest: &mut &[Line<'_>], depth: usize) -> Result<Vec<Field>> {
    let mut fields = Vec::new();
    while let Some(line) = rest.first().filter(|line| line.depth == depth) {
        let mut field = parse_field(line.content).with_context(|| format!("line {}", line.number))?;
        *rest = &rest[1..];
        field.fields = parse_fields(rest, depth + 1)?;
        fields.push(field);
    }
    Ok(fields)
}

fn parse_field(content: &str) -> Result<Field> {
    let mut words = content.split(' ');
    let mut field = Field {
        name: words.next().unwrap_or_default().to_owned(),
        kind: words.next().context("a field needs a type")?.to_owned(),
        versions: Versions::parse(words.next().context("a field needs versions")?)?,
        nullable: Versions::NONE,
        tagged: Versions::NONE,
        tag: None,
        default: None,
        ignorable: false,
        entity: None,
        map_key: false,
        fields: Vec::new(),
    };
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("nullable", value) => field.nullable = Versions::parse(value)?,
            ("tag", value) => {
                let (tag, versions) = value.split_once('@').context("a tag needs versions")?;
                field.tag = Some(tag.parse()?);
                field.tagged = Versions::parse(versions)?;
            }
            ("default", value) => field.default = Some(value.to_owned()),
            ("entity", value) => field.entity = Some(value.to_owned()),
            ("ignorable", _) => field.ignorable = true,
            ("map-key", _) => field.map_key = true,
            _ => bail!("unknown word {word:?}"),
        }
    }
    Ok(field)
}
