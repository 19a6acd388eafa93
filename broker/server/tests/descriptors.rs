//! A process that runs out of file descriptors; alone in its file, as the limit is the whole process's.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::net::TcpStream;

use gregor_types::ErrorCode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Home, batch, error};

#[test]
fn a_full_table_of_descriptors_stops_accepting_only_while_it_is_full() {
    let home = Home::new();
    let node = home.start();
    let mut early = node.with_topic("victim", 2, &[]);
    assert_eq!(early.produce("victim", 0, batch(&["before"])).error_code, 0);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(open + 30), maximum }).unwrap();
    let mut crowd = Vec::new();
    while let Ok(stream) = TcpStream::connect(node.address) {
        crowd.push(stream);
        assert!(crowd.len() < 100, "the table never filled up");
    }
    // Whoever was there before is served all the while.
    assert_eq!(early.produce("victim", 0, batch(&["during"])).error_code, 0);
    // A log that has to open a file now cannot; that is no failure of its directory.
    let cold = error(early.produce("victim", 1, batch(&["cold"])).error_code);
    assert!(matches!(cold, ErrorCode::None | ErrorCode::KafkaStorageError), "{cold}");
    drop(crowd);
    let mut late = loop {
        if let Ok(stream) = TcpStream::connect(node.address) {
            drop(stream);
            break node.client();
        }
    };
    assert_eq!(late.produce("victim", 0, batch(&["after"])).base_offset, 2);
    assert_eq!(late.produce("victim", 1, batch(&["after"])).error_code, 0);
    node.stop();
}
