//! The cgroups of a rig and of its nodes, for both versions of the kernel's interface.
//!
//! Called by [`super::Rig`]. A node has a cgroup of its own so that it can be frozen, and so that its kubelet's pods are
//! below it; nothing here sets a limit.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::process;

const ROOT: &str = "/sys/fs/cgroup";
const CONTROLLERS_V1: &[&str] =
    &["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "devices", "freezer", "systemd", "hugetlb", "perf_event"];
const CONTROLLERS_V2: &str = "+cpu +cpuset +memory +pids +io";

/// The cgroup of one rig or node.
pub struct Cgroups {
    path: String,
}

impl Cgroups {
    /// The cgroup that holds all nodes of a rig.
    pub fn of_rig(rig: &str) -> Self {
        Self { path: format!("gregor-rig-{rig}") }
    }

    /// The cgroup of one node.
    pub fn of_node(rig: &str, node: u32) -> Self {
        Self { path: format!("gregor-rig-{rig}/n{node}") }
    }

    /// Where kubelet puts its pods' cgroups.
    pub fn path_for_kubelet(&self) -> String {
        format!("/{}", self.path)
    }

    /// Makes it, and returns the files that take a process into it, separated by spaces.
    pub fn create(&self) -> Result<String> {
        let mut procs = Vec::new();
        if is_v2() {
            // Only leaves may hold processes: the node's own are beside kubelet's pods.
            let own = Path::new(ROOT).join(&self.path).join("node");
            fs::create_dir_all(&own).with_context(|| format!("could not make {}", own.display()))?;
            for above in own.ancestors().skip(1).filter(|above| above.starts_with(ROOT)) {
                let _ = fs::write(above.join("cgroup.subtree_control"), CONTROLLERS_V2);
            }
            procs.push(own.join("cgroup.procs"));
        } else {
            for hierarchy in hierarchies() {
                let folder = hierarchy.join(&self.path);
                fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    self.inherit(&hierarchy, file)?;
                }
                procs.push(folder.join("cgroup.procs"));
            }
        }
        Ok(procs.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" "))
    }

    /// In version 1 a new cpuset has no processor and no memory, and takes no process until it has.
    fn inherit(&self, hierarchy: &Path, file: &str) -> Result<()> {
        let Ok(value) = fs::read(hierarchy.join(file)) else { return Ok(()) };
        let mut folder = hierarchy.to_path_buf();
        for part in self.path.split('/') {
            folder.push(part);
            fs::write(folder.join(file), &value)
                .with_context(|| format!("could not write {file} in {}", folder.display()))?;
        }
        Ok(())
    }

    /// Stops every process in it in its tracks, or lets them go on.
    pub fn freeze(&self, freeze: bool) -> Result<()> {
        let (file, value) = match (is_v2(), freeze) {
            (true, true) => (Path::new(ROOT).join(&self.path).join("cgroup.freeze"), "1"),
            (true, false) => (Path::new(ROOT).join(&self.path).join("cgroup.freeze"), "0"),
            (false, true) => (Path::new(ROOT).join("freezer").join(&self.path).join("freezer.state"), "FROZEN"),
            (false, false) => (Path::new(ROOT).join("freezer").join(&self.path).join("freezer.state"), "THAWED"),
        };
        fs::write(&file, value).with_context(|| format!("could not write {}", file.display()))
    }

    /// Removes it with all below it, as soon as the last process in it is gone.
    pub fn remove(&self) -> Result<()> {
        // The container runtime may have used version 2 beside version 1.
        let unified = Path::new(ROOT).join("unified");
        let folders: Vec<PathBuf> =
            hierarchies().iter().chain([&unified]).map(|hierarchy| hierarchy.join(&self.path)).collect();
        process::wait_until("the cgroups are empty", Duration::from_secs(20), || {
            for folder in &folders {
                remove_tree(folder);
            }
            Ok(folders.iter().all(|folder| !folder.exists()))
        })
    }
}

fn is_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

fn hierarchies() -> Vec<PathBuf> {
    if is_v2() {
        return vec![PathBuf::from(ROOT)];
    }
    // `cpu` and `cpuacct` are often two names of one hierarchy.
    let mut found: Vec<PathBuf> =
        CONTROLLERS_V1.iter().filter_map(|name| fs::canonicalize(Path::new(ROOT).join(name)).ok()).collect();
    found.sort();
    found.dedup();
    found
}

/// Removes the folders of a cgroup, deepest first; the files in them are the kernel's. What is not empty stays.
fn remove_tree(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}
