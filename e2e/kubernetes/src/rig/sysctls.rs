//! The settings of the machine's kernel that kubelet and many inotify watches need, put back by the last rig that goes.
//!
//! Called by [`super::Rig`]. It changes nothing that is not in its table.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// What is set, and to what; `None` is set by kubelet itself.
const SETTINGS: &[(&str, Option<&str>)] = &[
    ("fs/inotify/max_user_instances", Some("8192")),
    ("vm/overcommit_memory", None),
    ("kernel/panic", None),
    ("kernel/panic_on_oops", None),
];

const FILE: &str = "sysctls";

/// Keeps the machine's values, unless another rig did, and sets ours. `rigs` is the folder with a folder per rig.
pub fn save_and_set(rigs: &Path) -> Result<()> {
    let file = rigs.join(FILE);
    if !file.exists() {
        let mut lines = String::new();
        for (name, _) in SETTINGS {
            let value =
                fs::read_to_string(Path::new("/proc/sys").join(name)).with_context(|| format!("no setting {name}"))?;
            lines = format!("{lines}{name} {}\n", value.trim());
        }
        fs::write(file, lines)?;
    }
    for (name, value) in SETTINGS {
        if let Some(value) = value {
            fs::write(Path::new("/proc/sys").join(name), value).with_context(|| format!("could not set {name}"))?;
        }
    }
    Ok(())
}

/// Puts the machine's values back when no rig is left.
pub fn restore_after_last(rigs: &Path) -> Result<()> {
    let file = rigs.join(FILE);
    let rig_left = fs::read_dir(rigs)?.any(|entry| entry.is_ok_and(|entry| entry.path().is_dir()));
    if rig_left || !file.exists() {
        return Ok(());
    }
    for line in fs::read_to_string(&file)?.lines() {
        if let Some((name, value)) = line.split_once(' ') {
            fs::write(Path::new("/proc/sys").join(name), value).with_context(|| format!("could not set {name}"))?;
        }
    }
    fs::remove_file(file)?;
    Ok(())
}
