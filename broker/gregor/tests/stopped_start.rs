//! A node that is told to stop while it waits for a quorum stops, and leaves its directories as it found them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs::{self, File},
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const GREGOR: &str = env!("CARGO_BIN_EXE_gregor");
const DEADLINE: Duration = Duration::from_secs(30);

/// Ended when the test ends, however it does.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until<T>(what: &str, story: impl Fn() -> String, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}; {}", story());
        thread::park_timeout(Duration::from_millis(20));
    }
}

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

    let log = folder.path().join("log");
    let child = Command::new(GREGOR)
        .args(["broker", "--config"])
        .arg(&properties)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut node = Node(child);
    let story = || fs::read_to_string(&log).unwrap();
    silent.set_nonblocking(true).unwrap();
    let _asked = until("it asks for the quorum", story, || silent.accept().ok());
    assert!(!marker.exists(), "a node that runs is not marked as stopped cleanly");
    let told = Command::new("kill").args(["-TERM", &node.0.id().to_string()]).status().unwrap();
    assert!(told.success());
    let ended = until("it stops", story, || node.0.try_wait().unwrap());
    assert!(ended.success(), "{ended}: {}", story());
    let left = fs::read_to_string(&marker).unwrap();
    assert!(left.contains("\"brokerEpoch\":7"), "the next registration says which epoch ended cleanly: {left}");
}
