//! A node that is told to stop while it waits for a quorum stops, and leaves its directories as it found them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs,
    net::TcpListener,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const GREGOR: &str = env!("CARGO_BIN_EXE_gregor");
const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn a_broker_without_a_quorum_stops_when_it_is_told_to_and_its_logs_stay_clean() {
    let folder = tempfile::tempdir().unwrap();
    let (data, properties) = (folder.path().join("data"), folder.path().join("properties"));
    // Takes the broker's connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!(
        "node.id=2\nprocess.roles=broker\ncontroller.listener.names=CONTROLLER\nlisteners=PLAINTEXT://127.0.0.1:0\n\
         controller.quorum.bootstrap.servers={}\nlog.dirs={}\n",
        silent.local_addr().unwrap(),
        data.display()
    );
    fs::write(&properties, text).unwrap();
    let format = ["storage", "format", "-t", "4L6g3nShT-eMCtK--X86sw", "--no-initial-controllers", "-c"];
    let done = Command::new(GREGOR).args(format).arg(&properties).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    // As a clean stop of the broker's seventh epoch would have left it.
    let marker = data.join(".kafka_cleanshutdown");
    fs::write(&marker, r#"{"version":0,"brokerEpoch":7}"#).unwrap();

    let child = Command::new(GREGOR)
        .args(["broker", "--config"])
        .arg(&properties)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _asked = silent.accept().unwrap();
    assert!(!marker.exists(), "a node that runs is not marked as stopped cleanly");
    let told = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(told.success());

    let id = child.id();
    let waits = thread::spawn(move || child.wait_with_output().unwrap());
    let deadline = Instant::now() + DEADLINE;
    while !waits.is_finished() {
        if Instant::now() > deadline {
            let _ = Command::new("kill").args(["-KILL", &id.to_string()]).status();
            let ended = waits.join().unwrap();
            panic!("it did not stop within {DEADLINE:?}: {}", String::from_utf8_lossy(&ended.stderr));
        }
        thread::park_timeout(Duration::from_millis(20));
    }
    let ended = waits.join().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    let left = fs::read_to_string(&marker).unwrap();
    assert!(left.contains("\"brokerEpoch\":7"), "the next registration says which epoch ended cleanly: {left}");
}
