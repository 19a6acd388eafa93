//! `gregor dev` serves until it is told to stop, whatever becomes of its output.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

const GREGOR: &str = env!("CARGO_BIN_EXE_gregor");

/// Ended when the test ends, however it does.
struct Node(Child);

impl Node {
    /// Asks it to stop; whether it did so cleanly.
    fn stop(&mut self) -> bool {
        let asked = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        asked.is_ok() && self.0.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            self.stop();
        }
    }
}

#[test]
fn it_serves_on_when_nobody_reads_its_output() {
    let folder = tempfile::tempdir().unwrap();
    let child = Command::new(GREGOR)
        .args(["dev", "--listen", "127.0.0.1:0", "--log-format", "json", "--log", "info", "--data-dir"])
        .arg(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut node = Node(child);
    // Closed before the first line comes.
    drop(node.0.stdout.take());
    let mut log = BufReader::new(node.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let listening = |line: &String| line.contains("listening") && line.contains("PLAINTEXT");
    let line = log.find(listening).expect("the node starts; its log says where it listens");
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = line["address"].as_str().unwrap();
    // The log is read to its end, or a full pipe would stop the node.
    let rest = std::thread::spawn(move || log.collect::<Vec<_>>().join("\n"));
    let created = Command::new(GREGOR).args(["topic", "create", "t", "-b", address]).output().unwrap();
    assert!(created.status.success(), "{created:?}");
    let is_clean = node.stop();
    let rest = rest.join().unwrap();
    assert!(is_clean && !rest.contains("panicked"), "{rest}");
}
