//! A node lets go of the pages of the program that only its start needed, and serves on.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const GREGOR: &str = env!("CARGO_BIN_EXE_gregor");
const DEADLINE: Duration = Duration::from_secs(30);

/// Ended when the test ends, however it does.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

/// The resident bytes of what a process has mapped of files.
fn of_files(process: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn the_pages_of_the_start_are_let_go_of_and_the_node_serves_on() {
    let folder = tempfile::tempdir().unwrap();
    let child = Command::new(GREGOR)
        .args(["dev", "--listen", "127.0.0.1:0", "--log-format", "json", "--log", "info,gregor=debug", "--data-dir"])
        .arg(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut node = Node(child);
    let mut log = BufReader::new(node.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut line_with = |words: &[&str]| {
        let line = log.find(|line| words.iter().all(|word| line.contains(word))).expect("the log has such a line");
        serde_json::from_str::<serde_json::Value>(&line).unwrap()
    };
    let address = line_with(&["listening", "PLAINTEXT"])["address"].as_str().unwrap().to_owned();
    let client = |arguments: &[&str]| {
        let done = Command::new(GREGOR).args(arguments).args(["-b", &address]).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {done:?}");
    };
    let started = of_files(node.0.id());
    let released = line_with(&["let go of what the start had mapped"])["bytes"].as_u64().unwrap();
    // What is needed again comes back with its neighbours; the kernel takes a page now and then by itself, but not so many.
    let at_most = started - usize::try_from(released).unwrap() / 4;
    assert!(released > 1 << 20, "{released} bytes");
    let deadline = Instant::now() + DEADLINE;
    while of_files(node.0.id()) > at_most {
        let now = of_files(node.0.id());
        assert!(
            Instant::now() < deadline,
            "{now} bytes of {started} are resident still, of which {released} were let go of"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    // The log is read to its end, or a full pipe would stop the node.
    let rest = std::thread::spawn(move || log.collect::<Vec<_>>().join("\n"));
    client(&["topic", "create", "t"]);
    client(&["topic", "list"]);
    let asked = Command::new("kill").args(["-TERM", &node.0.id().to_string()]).status();
    assert!(asked.is_ok() && node.0.wait().unwrap().success(), "it stops cleanly");
    let rest = rest.join().unwrap();
    assert!(!rest.contains("panicked"), "{rest}");
}
