//! `gregor storage ensure`, as the init container of a node's pod runs it: what it formats, what it refuses, when it has the node
//! wait, each told by the exit code.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, path::PathBuf, process::Command};

const CLUSTER: &str = "4L6g3nShT-eMCtK--X86sw";
const DIRECTORY: &str = "JEXY6aqzQY-32P5TStzaFg";
const ANOTHER: &str = "MvDxzVmcRsaTz33bUuRU6A";

/// A node with an empty disk.
struct Disk {
    folder: tempfile::TempDir,
    config: PathBuf,
}

impl Disk {
    fn new(roles: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("server.properties");
        let mut listeners = Vec::new();
        if roles.contains("broker") {
            listeners.push("PLAINTEXT://127.0.0.1:19092");
        }
        if roles.contains("controller") {
            listeners.push("CONTROLLER://127.0.0.1:19090");
        }
        let text = format!(
            "process.roles={roles}\nnode.id=5\ncontroller.listener.names=CONTROLLER\n\
             controller.quorum.bootstrap.servers=127.0.0.1:19090\nlisteners={}\nlog.dirs={}\n",
            listeners.join(","),
            folder.path().join("logs").display()
        );
        fs::write(&config, text).unwrap();
        Self { folder, config }
    }

    /// The exit code, and the last line of the termination log.
    fn ensure(&self, grant: &str, more: &[&str]) -> (i32, String) {
        self.ensure_directory(DIRECTORY, grant, more)
    }

    fn ensure_directory(&self, directory: &str, grant: &str, more: &[&str]) -> (i32, String) {
        let log = self.folder.path().join("termination.log");
        let _ = fs::remove_file(&log);
        let output = Command::new(env!("CARGO_BIN_EXE_gregor"))
            .args(["storage", "ensure", "--cluster-id", CLUSTER, "--directory-id", directory, "--grant", grant])
            .args(more)
            .arg("--config")
            .arg(&self.config)
            .arg("--termination-log")
            .arg(&log)
            .output()
            .unwrap();
        (output.status.code().unwrap(), fs::read_to_string(&log).unwrap_or_default())
    }

    /// Whether the first voters stand on the disk: those of a node that starts a quorum.
    fn starts_a_quorum(&self) -> bool {
        let log = self.folder.path().join("logs/__cluster_metadata-0");
        let mut names = fs::read_dir(log).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().ends_with(".checkpoint"))
    }

    fn is_formatted(&self) -> bool {
        self.folder.path().join("logs/meta.properties").is_file()
    }
}

#[test]
fn an_empty_disk_is_formatted_only_as_it_is_granted() {
    for roles in ["broker", "controller", "broker,controller"] {
        let disk = Disk::new(roles);
        let (code, said) = disk.ensure("none", &[]);
        assert_eq!(code, 3);
        assert!(said.contains("DiskLost") && !disk.is_formatted(), "{said}");
        assert_eq!(disk.ensure("join", &[]), (0, String::new()), "{roles} joins");
        assert!(disk.is_formatted() && !disk.starts_a_quorum(), "who joins starts no quorum");
        assert_eq!(disk.ensure("none", &[]), (0, String::new()), "a formatted disk is left as it is");
    }
    let disk = Disk::new("controller");
    assert_eq!(disk.ensure("standalone", &[]), (0, String::new()));
    assert!(disk.starts_a_quorum());
}

#[test]
fn a_node_waits_until_its_disk_is_recorded() {
    let disk = Disk::new("broker,controller");
    for _ in 0..2 {
        let (code, said) = disk.ensure("join", &["--until-recorded"]);
        assert_eq!(code, 4, "{said}");
        assert!(said.contains("NotRecorded") && disk.is_formatted(), "{said}");
    }
    assert_eq!(disk.ensure("none", &["--until-recorded"]), (0, String::new()));
    fs::remove_dir_all(disk.folder.path().join("logs")).unwrap();
    let (code, said) = disk.ensure("none", &["--until-recorded"]);
    assert_eq!(code, 3);
    assert!(said.contains("DiskLost"), "{said}");
}

#[test]
fn a_node_waits_for_its_rack() {
    let disk = Disk::new("broker");
    let (code, said) = disk.ensure("join", &["--rack="]);
    assert_eq!(code, 4);
    assert!(said.contains("NoRack"), "{said}");
    assert_eq!(disk.ensure("none", &["--rack=zone-a"]), (0, String::new()));
}

#[test]
fn a_disk_with_another_id_is_refused_whatever_is_granted() {
    let disk = Disk::new("controller");
    assert_eq!(disk.ensure("join", &[]).0, 0);
    for grant in ["standalone", "join", "none"] {
        let (code, said) = disk.ensure_directory(ANOTHER, grant, &["--until-recorded"]);
        assert_eq!(code, 3);
        assert!(said.contains("ForeignDisk") && said.contains(DIRECTORY), "{said}");
    }
}
