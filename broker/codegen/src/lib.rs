//! Schema in, Rust out; imports the schema of a new Kafka release. Development only.
//!
//! `cargo xtask codegen --import RELEASE` fills `broker/codegen/schema` from the released jars, `cargo xtask codegen` writes
//! `broker/messages/src/generated` and `broker/state-records/src/generated`, and `--check` (also a test) fails where they
//! differ from what the schema says. Nothing that ships depends on this crate.

mod import;
mod names;
mod rust;
pub mod schema;
mod structs;
pub mod versions;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

pub use import::import;

/// Where the schema files are, below the repository's root.
pub const SCHEMA: &str = "broker/codegen/schema";
/// The folders that hold nothing but generated files, below `broker`.
const GENERATED: [&str; 2] = ["messages/src/generated", "state-records/src/generated"];

/// Reads all schema files of a checkout; the keys are their paths below [`SCHEMA`].
pub fn read_schema(root: &Path) -> Result<BTreeMap<String, Vec<schema::Message>>> {
    let folder = root.join(SCHEMA);
    let mut files = BTreeMap::new();
    for path in files_below(&folder)? {
        let name = path.strip_prefix(&folder)?.to_string_lossy().replace('\\', "/");
        let messages = schema::parse(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
        files.insert(name, messages);
    }
    ensure!(!files.is_empty(), "{} holds no schema: run `cargo xtask codegen --import RELEASE`", folder.display());
    Ok(files)
}

/// Writes the generated files of a checkout; returns how many lines they have.
pub fn write(root: &Path) -> Result<usize> {
    let files = formatted(root)?;
    for folder in GENERATED {
        let folder = root.join("broker").join(folder);
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    for (path, text) in &files {
        let path = root.join("broker").join(path);
        fs::create_dir_all(path.parent().context("a generated file is in a folder")?)?;
        fs::write(path, text)?;
    }
    Ok(files.values().map(|text| text.lines().count()).sum())
}

/// The generated files of a checkout that are not what the schema says: missing, different or left over.
pub fn check(root: &Path) -> Result<Vec<PathBuf>> {
    let expected = formatted(root)?;
    let broker = root.join("broker");
    let mut wrong = Vec::new();
    for (path, text) in &expected {
        if fs::read_to_string(broker.join(path)).ok().as_ref() != Some(text) {
            wrong.push(path.clone());
        }
    }
    for folder in GENERATED {
        for path in files_below(&broker.join(folder))? {
            let path = path.strip_prefix(&broker)?.to_owned();
            if !expected.contains_key(&path) {
                wrong.push(path);
            }
        }
    }
    Ok(wrong)
}

/// What the schema says, as rustfmt with the checkout's settings formats it.
fn formatted(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let files = rust::generate(&read_schema(root)?)?;
    let scratch = root.join("target/codegen").join(std::process::id().to_string());
    let result = format_in(&scratch, root, files);
    fs::remove_dir_all(&scratch)?;
    result
}

fn format_in(scratch: &Path, root: &Path, files: BTreeMap<PathBuf, String>) -> Result<BTreeMap<PathBuf, String>> {
    for (path, text) in &files {
        let path = scratch.join(path);
        fs::create_dir_all(path.parent().context("a generated file is in a folder")?)?;
        fs::write(path, text)?;
    }
    let roots = GENERATED.map(|folder| scratch.join(folder).join("mod.rs"));
    let output = Command::new("rustfmt")
        .args(["--edition", "2024", "--config-path"])
        .arg(root)
        .args(&roots)
        .output()
        .context("running rustfmt")?;
    ensure!(output.status.success(), "rustfmt failed: {}", String::from_utf8_lossy(&output.stderr));
    files.into_keys().map(|path| Ok((path.clone(), fs::read_to_string(scratch.join(path))?))).collect()
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return Ok(files) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
