//! `cargo xtask tidy`: the rules of the house that no compiler knows.
//!
//! Files are short and say what they are for; pure crates stay pure; no file is left out of its crate; unsafe code lives
//! where it is listed; the arrows drawn in ARCHITECTURE.md are those that Cargo sees.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::paths;

const LINES_MAX: usize = 600;

/// Crates whose every decision is a function of its arguments.
const PURE: [&str; 6] =
    ["broker/raft", "broker/metadata", "broker/controller", "broker/replication", "broker/coordinators", "broker/node"];

/// What a pure crate must not know: runtimes, files, sockets, the wall clock, global randomness.
const IMPURE_WORDS: [&str; 9] = [
    "tokio::",
    "std::fs",
    "std::net",
    "std::thread",
    "Instant::now",
    "SystemTime",
    "rand::rng",
    "thread_rng",
    "std::env",
];

/// Folders whose Rust is written by `cargo xtask codegen`.
const GENERATED: [&str; 2] = ["broker/messages/src/generated/", "broker/state-records/src/generated/"];

/// Modules that may hold `unsafe`, each with its safety argument inside.
const UNSAFE_MODULES: [&str; 3] =
    ["broker/codegen/tests/hostile.rs", "broker/gregor/src/start_pages.rs", "broker/server/tests/allocations.rs"];

/// Checks every rule and fails with all that was found, one line each.
pub fn run() -> Result<()> {
    let root = paths::root();
    let mut findings = Vec::new();
    let files = rust_files(&root)?;
    for file in &files {
        let text = fs::read_to_string(root.join(file)).with_context(|| format!("reading {file}"))?;
        check_file(file, &text, &mut findings);
    }
    check_every_file_is_used(&root, &files, &mut findings)?;
    check_arrows(&root, &mut findings)?;
    check_reasons(&root, &mut findings)?;
    if findings.is_empty() {
        println!("tidy: {} files, nothing to say", files.len());
        return Ok(());
    }
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    bail!("{} rule(s) of CONTRIBUTING.md broken", findings.len())
}

/// Every Rust file that Git knows or would add, relative to the root.
fn rust_files(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root)
        .output()
        .context("running git ls-files")?;
    let listed = String::from_utf8(output.stdout)?;
    Ok(listed.lines().filter(|file| root.join(file).exists()).map(str::to_owned).collect())
}

fn check_file(file: &str, text: &str, findings: &mut Vec<String>) {
    let is_generated = GENERATED.iter().any(|folder| file.starts_with(folder));
    let lines = text.lines().count();
    if lines > LINES_MAX && !is_generated {
        findings.push(format!("{file} has {lines} lines; a file tells one thing in at most {LINES_MAX}"));
    }
    if !text.starts_with("//!") && !is_generated {
        findings.push(format!("{file} does not begin with //! and what it is for"));
    }
    if PURE.iter().any(|pure| file.starts_with(&format!("{pure}/src/"))) {
        for word in IMPURE_WORDS {
            if let Some(line) = text.lines().position(|line| line.contains(word)) {
                findings.push(format!("{file}:{} says {word} in a pure crate", line + 1));
            }
        }
    }
    // The words are put together here so that this file does not find itself.
    for mark in [["TO", "DO"], ["FIX", "ME"], ["todo", "!("], ["unimplemented", "!("]].map(|halves| halves.concat()) {
        if let Some(line) = text.lines().position(|line| line.contains(&mark)) {
            findings.push(format!("{file}:{} has {mark}: do it, or write down elsewhere why not", line + 1));
        }
    }
    let has_unsafe = text.lines().any(|line| line.contains("unsafe {") || line.contains("unsafe fn"));
    if has_unsafe && !UNSAFE_MODULES.contains(&file) && !file.ends_with("tidy.rs") {
        findings.push(format!("{file} has unsafe code and is not listed among UNSAFE_MODULES"));
    }
}

/// A Rust file that no `mod` names is dead, and nobody would notice.
fn check_every_file_is_used(root: &Path, files: &[String], findings: &mut Vec<String>) -> Result<()> {
    for file in files {
        let path = Path::new(file);
        let (Some(stem), Some(folder)) = (path.file_stem().and_then(|stem| stem.to_str()), path.parent()) else {
            continue;
        };
        let parent_name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if matches!(stem, "lib" | "main" | "build")
            || matches!(parent_name, "tests" | "bin" | "examples" | "benches" | "fuzz_targets")
        {
            continue;
        }
        let (name, parents) = if stem == "mod" {
            let above = folder.parent().unwrap_or(folder);
            (parent_name, module_parents(above))
        } else {
            (stem, module_parents(folder))
        };
        let mut declared = false;
        for parent in parents.iter().map(|parent| root.join(parent)).filter(|parent| parent.exists()) {
            let text = fs::read_to_string(parent)?;
            declared |= text.lines().any(|line| declares(line, name, file));
        }
        if !declared && !is_test_root(root, folder) {
            findings.push(format!("{file} is in no `mod` of its crate"));
        }
    }
    Ok(())
}

/// The files that can declare the modules of a folder.
fn module_parents(folder: &Path) -> Vec<PathBuf> {
    let mut parents: Vec<PathBuf> = ["lib.rs", "main.rs", "mod.rs"].iter().map(|name| folder.join(name)).collect();
    parents.push(folder.with_extension("rs"));
    parents
}

fn declares(line: &str, module: &str, file: &str) -> bool {
    let line = line.trim();
    let plain = format!("mod {module};");
    line == plain
        || line.ends_with(&format!(" {plain}"))
        || (line.starts_with("#[path") && file.ends_with(line.split('"').nth(1).unwrap_or("\0")))
}

/// Folders such as `tests/support` are declared by the test programs beside them.
fn is_test_root(root: &Path, folder: &Path) -> bool {
    folder.ancestors().any(|folder| {
        folder.file_name().is_some_and(|name| name == "tests")
            && root.join(folder).with_file_name("Cargo.toml").exists()
    })
}

/// Compares the table of arrows in ARCHITECTURE.md with the manifests, and holds both to the order of the table.
fn check_arrows(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let drawn = drawn_arrows(&fs::read_to_string(root.join("ARCHITECTURE.md")).context("reading ARCHITECTURE.md")?);
    let order: Vec<&String> = drawn.iter().map(|(name, _)| name).collect();
    let seen = seen_arrows(root)?;
    for (name, arrows) in &drawn {
        match seen.get(name) {
            None => findings.push(format!("ARCHITECTURE.md draws {name}, which is no crate of the workspace")),
            Some(real) if real != arrows => findings.push(format!(
                "ARCHITECTURE.md draws {name} -> {}; its manifest says {}",
                join(arrows),
                join(real)
            )),
            Some(_) => {}
        }
        let rank = |wanted: &String| order.iter().position(|name| *name == wanted);
        for arrow in arrows {
            if rank(arrow) >= rank(name) {
                findings.push(format!("{name} depends on {arrow}, which is not above it in ARCHITECTURE.md"));
            }
        }
    }
    for name in seen.keys().filter(|name| !order.contains(name)) {
        findings.push(format!("the crate {name} is missing in ARCHITECTURE.md"));
    }
    Ok(())
}

/// Every library that the workspace names stands in ARCHITECTURE.md, "Dependencies", with why it was chosen.
fn check_reasons(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let page = fs::read_to_string(root.join("ARCHITECTURE.md")).context("reading ARCHITECTURE.md")?;
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("reading Cargo.toml")?;
    findings.extend(libraries_without_a_reason(&page, &manifest));
    Ok(())
}

fn libraries_without_a_reason(page: &str, manifest: &str) -> Vec<String> {
    let section = page.split("\n## ").find(|section| section.contains("Dependencies\n")).unwrap_or_default();
    let named: BTreeSet<&str> = section
        .split(|c: char| !(c.is_alphanumeric() || c == '-' || c == '_'))
        .filter(|word| !word.is_empty())
        .collect();
    manifest
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.contains("path = "))
        .filter_map(|line| line.split_once(" = "))
        .filter(|(library, _)| !library.starts_with('#') && !named.contains(library))
        .map(|(library, _)| format!("{library} is not in ARCHITECTURE.md, \"Dependencies\", with why it was chosen"))
        .collect()
}

fn join(arrows: &BTreeSet<String>) -> String {
    if arrows.is_empty() { "nothing".to_owned() } else { arrows.iter().cloned().collect::<Vec<_>>().join(", ") }
}

/// Rows of the form "| `crate` | what it is | arrows, separated by commas |" with names without the prefix `gregor-`.
fn drawn_arrows(page: &str) -> Vec<(String, BTreeSet<String>)> {
    let rows = page.lines().skip_while(|line| !line.starts_with("| crate ")).skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .filter_map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [name, _, arrows] = cells[..] else { return None };
            let arrows = arrows.split(',').map(str::trim).filter(|arrow| !arrow.is_empty() && *arrow != "-");
            Some((name.trim_matches('`').to_owned(), arrows.map(str::to_owned).collect()))
        })
        .collect()
}

fn seen_arrows(root: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .context("running cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let short = |name: &str| name.strip_prefix("gregor-").unwrap_or(name).to_owned();
    let packages = metadata["packages"].as_array().context("cargo metadata lists packages")?;
    let ours: BTreeSet<String> = packages.iter().filter_map(|package| package["name"].as_str()).map(short).collect();
    let arrows = packages.iter().filter_map(|package| {
        let name = package["name"].as_str()?;
        let dependencies = package["dependencies"].as_array()?;
        let arrows = dependencies
            .iter()
            .filter(|dependency| dependency["kind"].is_null() && dependency["path"].is_string())
            .filter_map(|dependency| dependency["name"].as_str())
            .map(short)
            .filter(|name| ours.contains(name));
        Some((short(name), arrows.collect()))
    });
    Ok(arrows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(file: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check_file(file, text, &mut findings);
        findings
    }

    #[test]
    fn a_long_file_a_silent_file_and_an_impure_one_are_named() {
        assert_eq!(findings("a/src/a.rs", "//! What it is for.\n").len(), 0);
        assert_eq!(findings("a/src/a.rs", "fn main() {}\n").len(), 1);
        assert_eq!(findings("a/src/a.rs", &format!("//! Long.\n{}", "\n".repeat(600))).len(), 1);
        let impure = "//! Pure.\nuse std::time::SystemTime;\n";
        assert_eq!(findings("broker/raft/src/a.rs", impure).len(), 1);
        assert_eq!(findings("broker/server/src/a.rs", impure).len(), 0);
    }

    #[test]
    fn a_library_without_a_reason_is_named() {
        let manifest =
            "[workspace.dependencies]\n# Ours.\na = { path = \"a\" }\nbytes = \"1\"\nsnap = \"1\"\n\n[other]\nx = 1\n";
        let page = "# A\n## 1. Map\nsnap\n## 6. Dependencies\n| bytes | buffers | slices |\n";
        assert_eq!(libraries_without_a_reason(page, manifest).len(), 1);
    }

    #[test]
    fn the_table_of_arrows_is_read() {
        let page =
            "text\n| crate | what | uses |\n|---|---|---|\n| `types` | ids | - |\n| `wire` | bytes | types |\n\nmore";
        let drawn = drawn_arrows(page);
        assert_eq!(drawn.len(), 2);
        assert_eq!(drawn[1], ("wire".to_owned(), BTreeSet::from(["types".to_owned()])));
    }
}
