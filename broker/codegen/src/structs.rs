//! Rust for one message: its structs, their codecs and their JSON.
//!
//! What can be said once stands in `gregor-wire`; a field costs about one line per direction here.

use std::{collections::BTreeMap, fmt::Write};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    names::{camel, field as rust_field},
    schema::{Field, Message},
    versions::{Condition, Versions},
};

/// The structs of one message by name, and what is true for all of them.
pub struct Generator<'a> {
    message: &'a Message,
    structs: BTreeMap<&'a str, (Versions, &'a [Field])>,
    order: Vec<&'a str>,
}

impl<'a> Generator<'a> {
    /// Collects the structs that a message defines.
    pub fn new(message: &'a Message) -> Self {
        let mut generator = Self { message, structs: BTreeMap::new(), order: Vec::new() };
        generator.define(&message.name, message.versions, &message.fields);
        for common in &message.structs {
            generator.define(&common.name, message.versions.and(common.versions), &common.fields);
        }
        generator
    }

    fn define(&mut self, name: &'a str, range: Versions, fields: &'a [Field]) {
        self.structs.insert(name, (range, fields));
        self.order.push(name);
        for field in fields.iter().filter(|field| !field.fields.is_empty()) {
            self.define(field.element().0, range.and(field.versions), &field.fields);
        }
    }

    /// All structs and their `Struct` implementations.
    pub fn code(&self) -> Result<String> {
        let mut code = String::new();
        for name in &self.order {
            let (range, fields) = self.structs[name];
            if range.is_none() {
                continue;
            }
            let text = self.code_of(name, range, fields).with_context(|| format!("{}.{name}", self.message.name))?;
            code.push_str(&text);
        }
        Ok(code)
    }

    fn code_of(&self, name: &str, range: Versions, fields: &[Field]) -> Result<String> {
        let fields: Vec<Shape<'_>> = fields
            .iter()
            .filter(|field| !field.versions.and(range).is_none())
            .map(|field| self.shape(name, range, field))
            .collect::<Result<_>>()?;
        let eq = if self.has_float(name) { "" } else { ", Eq" };
        let plain = fields.iter().all(|field| field.default.is_none());
        let default = if plain { ", Default" } else { "" };
        let mut code = format!("#[derive(Debug, Clone, PartialEq{eq}{default})]\npub struct {name} {{\n");
        for field in &fields {
            let _ = writeln!(code, "pub {}: {},", field.name, field.rust_type);
        }
        code.push_str("pub unknown_tagged_fields: RawTags,\n}\n\n");
        if !plain {
            let _ = writeln!(code, "impl Default for {name} {{ fn default() -> Self {{ Self {{");
            for field in &fields {
                let default = field.default.as_deref().unwrap_or("Default::default()");
                let _ = writeln!(code, "{}: {default},", field.name);
            }
            code.push_str("unknown_tagged_fields: RawTags::NONE,\n} } }\n\n");
        }
        let min_size = (range.low..=range.high).map(|v| self.min_size(name, v)).min().unwrap_or(0);
        let flexible = self.message.flexible.condition(range);
        let (read, write, show) = (self.read(&fields, &flexible), write_body(name, &fields, &flexible), show(&fields));
        let flag = |body: &str| match &flexible {
            Condition::If(expression) if uses(body, "f") => format!("let f = {expression};\n"),
            _ => String::new(),
        };
        let version = |body: &str| if uses(body, "v") { "v" } else { "_v" };
        let (read, write) = (flag(&read) + &read, flag(&write) + &write);
        let _ = write!(
            code,
            "impl Struct for {name} {{\nconst MIN_SIZE: usize = {min_size};\n\
             fn read({}: &mut Reader, {}: i16) -> Result<Self, DecodeError> {{ {read} }}\n\
             fn write(&self, {}: &mut Writer, {}: i16) -> Result<(), EncodeError> {{ {write} Ok(()) }}\n\
             fn show(&self, {}: &mut JsonObject, {}: i16) {{ {show} }}\n}}\n\n",
            if uses(&read, "r") { "r" } else { "_r" },
            version(&read),
            if uses(&write, "w") { "w" } else { "_w" },
            version(&write),
            if show.is_empty() { "_j" } else { "j" },
            version(&show),
        );
        Ok(code)
    }

    fn has_float(&self, name: &str) -> bool {
        self.structs.get(name).is_some_and(|(_, fields)| {
            fields.iter().any(|field| field.element().0 == "float64" || self.has_float(field.element().0))
        })
    }

    fn min_size(&self, name: &str, version: i16) -> usize {
        let flexible = self.message.flexible.contains(version);
        let (_, fields) = self.structs[name];
        let here = fields.iter().filter(|field| field.versions.contains(version) && !field.tagged.contains(version));
        let prefix = |plain| if flexible { 1 } else { plain };
        let size = |field: &Field| match (field.element(), field.nullable.contains(version)) {
            ((_, true) | ("bytes" | "records", _), _) => prefix(4),
            (("string", _), _) => prefix(2),
            (("int16" | "uint16", _), _) => 2,
            (("int32" | "uint32", _), _) => 4,
            (("int64" | "float64", _), _) => 8,
            (("uuid", _), _) => 16,
            (("bool" | "int8", _), _) | (_, true) => 1,
            ((inner, _), false) => self.min_size(inner, version),
        };
        here.map(size).sum::<usize>() + usize::from(flexible)
    }

    fn read(&self, fields: &[Shape<'_>], flexible: &Condition) -> String {
        let mut code = String::new();
        let mut tags = String::new();
        for field in fields {
            let name = &field.name;
            if !field.inline.is_none() {
                let line = format!("m.{name} = {};\n", field.read);
                code.push_str(&field.inline.condition(field.range).guard(&line, ""));
            }
            if let Some(tag) = field.field.tag {
                let test = match field.tagged.condition(self.message.flexible.and(field.range)) {
                    Condition::If(expression) => format!(" if {expression}"),
                    _ => String::new(),
                };
                let read = as_tagged(&field.read);
                let _ = writeln!(tags, "{tag}{test} => m.{name} = {read},");
            }
        }
        let tags = if tags.is_empty() {
            "m.unknown_tagged_fields = r.raw_tags()?;\n".to_owned()
        } else {
            format!(
                "m.unknown_tagged_fields = r.tags(|r, tag| {{ match tag {{ {tags} _ => return Ok(false), }} Ok(true) }})?;\n"
            )
        };
        code.push_str(&flexible.guard(&tags, ""));
        let code = fix_flag(&code, flexible);
        if code.is_empty() {
            "Ok(Self::default())".to_owned()
        } else {
            format!("let mut m = Self::default();\n{code}Ok(m)\n")
        }
    }

    fn shape<'f>(&self, owner: &str, range: Versions, field: &'f Field) -> Result<Shape<'f>> {
        let versions = field.versions.and(range);
        let (element, array) = field.element();
        let nullable = !field.nullable.and(versions).is_none();
        let may_be_null = field.nullable.condition(versions);
        let null = may_be_null.expression();
        let rust = match element {
            "bool" => "bool",
            "int8" => "i8",
            "int16" => "i16",
            "int32" => "i32",
            "int64" => "i64",
            "uint16" => "u16",
            "uint32" => "u32",
            "float64" => "f64",
            "uuid" => "Uuid",
            "string" => "KString",
            "bytes" | "records" => "Bytes",
            other if self.structs.contains_key(other) => other,
            other => bail!("{}: unknown type {other}", field.name),
        };
        let is_struct = self.structs.contains_key(element);
        ensure!(
            field.tagged.is_none() || field.tagged.and(versions) == versions,
            "{}: tagged in some of its versions only",
            field.name
        );
        let name = rust_field(&field.name);
        let path = format!("\"{owner}.{name}\"");
        let place = format!("self.{name}");
        let base = if array { format!("Vec<{rust}>") } else { rust.to_owned() };
        let (read, write) = match (element, array, nullable) {
            (_, true, false) if is_struct => ("r.structs(f, v)?".into(), format!("w.structs(f, v, &{place})")),
            (_, true, true) if is_struct => (
                format!("r.nullable_structs(f, {null}, v)?"),
                format!("w.nullable_structs(f, {null}, {path}, v, {place}.as_ref())"),
            ),
            (_, true, false) => ("r.list(f)?".into(), format!("w.list(f, &{place})")),
            (_, true, true) => (
                format!("r.nullable_list(f, {null})?"),
                format!("w.nullable_list(f, {null}, {path}, {place}.as_ref())"),
            ),
            (_, false, false) if is_struct => (format!("{rust}::read(r, v)?"), format!("{place}.write(w, v)")),
            (_, false, true) if is_struct => (
                format!("r.nullable_struct({null}, v)?"),
                format!("w.nullable_struct({null}, {path}, v, {place}.as_ref())"),
            ),
            ("string" | "bytes" | "records", ..) => {
                let method = if element == "string" { "string" } else { "bytes" };
                if nullable {
                    (
                        format!("r.nullable_{method}(f, {null})?"),
                        format!("w.nullable_{method}(f, {null}, {path}, {place}.as_ref())"),
                    )
                } else {
                    (format!("r.{method}(f)?"), format!("w.{method}(f, &{place})"))
                }
            }
            (_, _, true) => bail!("{}: a {element} cannot be null", field.name),
            _ => {
                let method = rust.to_ascii_lowercase();
                (format!("r.{method}()?"), format!("w.{method}({place})"))
            }
        };
        let fallible = array || is_struct || matches!(element, "string" | "bytes" | "records");
        let put = match (is_struct, array, nullable, element) {
            (true, true, false, _) => format!("j.put_structs({{}}, Some(&{place}), v);\n"),
            (true, true, true, _) => format!("j.put_structs({{}}, {place}.as_ref(), v);\n"),
            (true, false, false, _) => format!("j.put_struct({{}}, Some(&{place}), v);\n"),
            (true, false, true, _) => format!("j.put_struct({{}}, {place}.as_ref(), v);\n"),
            (_, _, true, "records") => format!("j.put_records({{}}, {place}.as_ref());\n"),
            (_, _, false, "records") => format!("j.put_records({{}}, Some(&{place}));\n"),
            _ => format!("j.put({{}}, &{place});\n"),
        };
        let (default, is_set) = default_of(field, element, array, is_struct, nullable, rust, &place)?;
        Ok(Shape {
            field,
            show: put.replace("{}", &format!("{:?}", camel(&field.name))),
            name,
            rust_type: if nullable { format!("Option<{base}>") } else { base },
            default,
            is_set,
            read,
            write,
            fallible,
            path,
            range,
            inline: if field.tagged.and(versions) == versions { Versions::NONE } else { versions },
            tagged: field.tagged.and(versions),
            versions,
        })
    }
}

/// A field, with the Rust that codes it.
struct Shape<'a> {
    field: &'a Field,
    name: String,
    rust_type: String,
    default: Option<String>,
    is_set: String,
    read: String,
    write: String,
    fallible: bool,
    show: String,
    path: String,
    range: Versions,
    versions: Versions,
    inline: Versions,
    tagged: Versions,
}

/// The default as an expression, if it is not the type's own, and the test for a value that differs from it.
fn default_of(
    field: &Field,
    element: &str,
    array: bool,
    is_struct: bool,
    nullable: bool,
    rust: &str,
    place: &str,
) -> Result<(Option<String>, String)> {
    let null_default = field.default.as_deref() == Some("null") || element == "records";
    if nullable && null_default {
        return Ok((None, format!("{place}.is_some()")));
    }
    if array || matches!(element, "string" | "bytes" | "records") {
        return Ok(if nullable {
            (Some("Some(Default::default())".into()), format!("{place}.as_ref().is_none_or(|x| !x.is_empty())"))
        } else {
            (None, format!("!{place}.is_empty()"))
        });
    }
    if is_struct {
        return Ok(if nullable {
            (Some("Some(Default::default())".into()), format!("{place}.as_ref() != Some(&{rust}::default())"))
        } else {
            (None, format!("{place} != {rust}::default()"))
        });
    }
    let default = field.default.as_deref();
    Ok(match (element, default) {
        ("uuid", None) => (None, format!("{place} != Uuid::ZERO")),
        ("bool", Some("true")) => (Some("true".into()), format!("!{place}")),
        ("bool", None | Some("false")) => (None, place.into()),
        ("float64", None) => (None, format!("{place} != 0.0")),
        (_, None | Some("0")) => (None, format!("{place} != 0")),
        (_, Some(number)) => {
            let value = match number.strip_prefix("0x") {
                Some(hex) => i64::from_str_radix(hex, 16)?,
                None => number.parse::<i64>().with_context(|| format!("{}: default {number:?}", field.name))?,
            };
            (Some(value.to_string()), format!("{place} != {value}"))
        }
    })
}

fn write_body(owner: &str, fields: &[Shape<'_>], flexible: &Condition) -> String {
    let mut code = String::new();
    let mut tags = Vec::new();
    for field in fields {
        let Shape { is_set, path, range, .. } = field;
        let absent =
            if field.field.ignorable { String::new() } else { format!("Writer::absent({is_set}, {path}, v)?;\n") };
        let write = format!("{}{};\n", field.write, if field.fallible { "?" } else { "" });
        if field.tagged.is_none() {
            code.push_str(&field.versions.condition(*range).guard(&write, &absent));
            continue;
        }
        code.push_str(&field.versions.condition(*range).guard("", &absent));
        let body = as_tagged(&field.write);
        let body = if field.fallible { format!("|w| {body}") } else { format!("|w| {{ {body}; Ok(()) }}") };
        let test = match field.tagged.condition(*range) {
            Condition::If(expression) => format!("{expression} && {is_set}"),
            _ => is_set.clone(),
        };
        let tag = field.field.tag.unwrap_or_default();
        tags.push((tag, format!("if {test} {{ t.field({tag}, {body})?; }}\n")));
    }
    tags.sort_by_key(|(tag, _)| *tag);
    let tags: Vec<String> = tags.into_iter().map(|(_, code)| code).collect();
    let finish = if tags.is_empty() {
        "w.raw_tags(&self.unknown_tagged_fields)?;\n".to_owned()
    } else {
        format!("let mut t = w.tags(&self.unknown_tagged_fields);\n{}t.finish()?;\n", tags.concat())
    };
    let no_tags =
        format!("Writer::absent(!self.unknown_tagged_fields.is_empty(), \"{owner}.unknown_tagged_fields\", v)?;\n");
    code.push_str(&flexible.guard(&finish, &no_tags));
    fix_flag(&code, flexible)
}

fn show(fields: &[Shape<'_>]) -> String {
    let mut code = String::new();
    for field in fields {
        let inline = field.inline.condition(field.range).guard(&field.show, "");
        let tagged = format!("if {} {{ {} }}\n", field.is_set, field.show);
        code.push_str(&if field.tagged.is_none() {
            inline
        } else {
            field.tagged.condition(field.range).guard(&tagged, &inline)
        });
    }
    code
}

/// Where the flag is known, its value stands in its place.
fn fix_flag(code: &str, flexible: &Condition) -> String {
    match flexible {
        Condition::If(expression) => code.replace(&format!("if {expression} {{"), "if f {"),
        known => replace_flag(code, known.expression()),
    }
}

/// The codec of a field, for its place among the tagged fields: always compact, and null structs have another marker.
fn as_tagged(code: &str) -> String {
    replace_flag(code, "true").replace("nullable_struct(", "nullable_tagged_struct(")
}

fn replace_flag(code: &str, value: &str) -> String {
    code.replace("(f)", &format!("({value})")).replace("(f, ", &format!("({value}, "))
}

/// Whether a word occurs in code, as a name of its own.
fn uses(code: &str, word: &str) -> bool {
    let letter = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].ends_with(|before| letter(before) || before == '.' || before == '"')
            && !code[at + word.len()..].starts_with(letter)
    })
}
