//! What a small Produce asks of the kernel: one read, one `pwritev`, one write. The reactor's own calls are counted apart.
//!
//! The program runs under `strace`, which `cargo xtask test` installs where it lacks; a process may always be traced by its
//! parent. Marks in the client ids of two requests tell where in the trace the counting begins and ends.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::{BufRead, BufReader, Lines, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use gregor_messages::{
    ApiVersionsRequest, ProduceRequest, Request,
    produce_request::{PartitionProduceData, TopicProduceData},
};
use gregor_types::{KString, Timestamp};
use gregor_wire::{
    RequestHeader, Struct, Writer,
    batch::{BatchOptions, RecordBatchBuilder},
};

const GREGOR: &str = env!("CARGO_BIN_EXE_gregor");
const RUNS_MAX: usize = 5;
const REQUESTS: usize = 1_000;
const WARM_UP: usize = 50;
const DEADLINE: Duration = Duration::from_mins(1);
/// Threads that serve connections, as tokio names them.
const WORKER: &str = "tokio-rt-worker";
/// How the reactor waits, and how workers wake each other.
const REACTOR: [&str; 5] = ["epoll_wait", "epoll_pwait", "futex", "restart_syscall", WAKE];
/// What a `write` to the reactor's eventfd is counted as.
const WAKE: &str = "wake";
/// Its arguments, but for the descriptor.
const WAKE_ARGUMENTS: &str = r#", "\1\0\0\0\0\0\0\0", 8)"#;

/// The traced node, ended when the test ends, however it does.
struct Traced {
    strace: Child,
    /// Kept open: the node writes more than the line that is waited for.
    _output: Lines<BufReader<ChildStdout>>,
    address: String,
    process: u32,
}

impl Traced {
    fn start(folder: &Path) -> Self {
        let mut strace = Command::new("strace")
            .args(["-f", "-qq", "-o"])
            .arg(folder.join("trace"))
            .args([GREGOR, "dev", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(folder.join("data"))
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("this test needs strace: apt-get install strace, or cargo xtask test, which does so");
        let mut output = BufReader::new(strace.stdout.take().unwrap()).lines();
        let listening = output.by_ref().map_while(Result::ok).find(|line| line.starts_with("Listening on "));
        let listening = listening.expect("the node starts under strace; its output says why it does not");
        let address = listening.split_whitespace().nth(2).unwrap().to_owned();
        let trace = fs::read_to_string(folder.join("trace")).unwrap();
        let process = trace.split_whitespace().next().unwrap().parse().unwrap();
        Self { strace, _output: output, address, process }
    }

    fn workers(&self) -> HashSet<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process)).unwrap();
        let is_worker = |task: &Path| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == WORKER);
        let tasks = tasks.map(|task| task.unwrap().path()).filter(|task| is_worker(task));
        tasks.map(|task| task.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    fn stop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.process.to_string()]).status();
        self.strace.wait().unwrap();
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if self.strace.try_wait().is_ok_and(|status| status.is_none()) {
            self.stop();
        }
    }
}

fn frame<R: Request>(client_id: &str, request: &R, version: i16) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.i32(0);
    let header = RequestHeader {
        request_api_key: R::KEY.code(),
        request_api_version: version,
        correlation_id: 7,
        client_id: Some(client_id.into()),
        ..RequestHeader::default()
    };
    header.write(&mut writer, R::KEY.request_header_version(version)).unwrap();
    request.encode(&mut writer, version).unwrap();
    let mut bytes = writer.into_inner().to_vec();
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

fn produce(value: &[u8]) -> Vec<u8> {
    let mut batch = RecordBatchBuilder::new(BatchOptions::default());
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
    batch.append(Timestamp(now), None, Some(value), &[]);
    let partition = PartitionProduceData { index: 0, records: Some(batch.build()), ..Default::default() };
    let topic = TopicProduceData { name: "events".into(), partition_data: vec![partition], ..Default::default() };
    let request = ProduceRequest { acks: -1, timeout_ms: 10_000, topic_data: vec![topic], ..Default::default() };
    frame("test", &request, 9)
}

fn ask(stream: &mut TcpStream, frame: &[u8]) -> Vec<u8> {
    stream.write_all(frame).unwrap();
    receive(stream)
}

fn ask_for(stream: &mut TcpStream, frames: &[u8], answers: usize) {
    stream.write_all(frames).unwrap();
    for _ in 0..answers {
        receive(stream);
    }
}

fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    answer
}

/// Sends until the topic, just created, takes records: its error code is 0 then.
fn wait_until_led(stream: &mut TcpStream, frame: &[u8]) {
    let deadline = Instant::now() + DEADLINE;
    // Correlation id, tags, one topic, its name, one partition, its number; then the error code.
    let error_code_at = 4 + 1 + 1 + (1 + "events".len()) + 1 + 4;
    while ask(stream, frame)[error_code_at..][..2] != [0, 0] {
        assert!(Instant::now() < deadline, "the topic never had a leader");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A moment after its start the program lets go of what only that needed, on a thread of the same name as those that serve.
fn wait_until_started(trace: &Path) {
    let deadline = Instant::now() + DEADLINE;
    let lets_go =
        |trace: &str| trace.split_once("/proc/self/smaps").is_some_and(|(_, after)| after.contains("madvise("));
    while !lets_go(&fs::read_to_string(trace).unwrap()) {
        assert!(Instant::now() < deadline, "the pages of the start are kept");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The calls of those threads between the marks, by name.
fn calls(trace: &str, threads: &HashSet<String>) -> BTreeMap<String, usize> {
    let after_begin = trace.lines().skip_while(|line| !line.contains("begin-mark"));
    // The first mark's own response does not count.
    let counted = after_begin.skip_while(|line| !line.contains("sendto(")).skip(1);
    let mut calls = BTreeMap::new();
    for line in counted.take_while(|line| !line.contains("end-mark")) {
        let Some((thread, call)) = line.split_once(char::is_whitespace) else { continue };
        // What was interrupted by another thread's line is told once more when it ends.
        if let (true, Some((name, _))) = (threads.contains(thread), call.trim_start().split_once('('))
            && !name.starts_with('<')
        {
            let name = if name == "write" && call.contains(WAKE_ARGUMENTS) { WAKE } else { name };
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}

#[test]
fn a_small_produce_is_one_read_one_pwritev_and_one_write() {
    assert_calls(&produce(&[b'x'; 100]));
}

#[test]
fn a_batch_of_usual_size_is_read_at_once_too() {
    assert_calls(&produce(&b"x".repeat(20_000)));
}

#[test]
fn requests_that_come_together_are_read_and_answered_together() {
    const TOGETHER: usize = 4;
    assert_calls_of(&produce(&[b'x'; 100]), TOGETHER);
}

fn assert_calls(frame: &[u8]) {
    assert_calls_of(frame, 1);
}

/// Each time so many requests come together, all of them are one read and one write, and each is a `pwritev`.
fn assert_calls_of(frame: &[u8], together: usize) {
    let expected = [("pwritev", REQUESTS * together), ("recvfrom", REQUESTS), ("sendto", REQUESTS)];
    let expected = BTreeMap::from(expected.map(|(name, count)| (name.to_owned(), count)));
    // Traced on a busy machine an append may look slow, and others are made elsewhere for a while; a call that belongs to every
    // request is in every run.
    let mut run = calls_of_a_run(frame, together);
    for _ in 1..RUNS_MAX {
        if run.0 == expected {
            break;
        }
        run = calls_of_a_run(frame, together);
    }
    let (calls, reactor) = run;
    assert_eq!(calls, expected, "calls of {REQUESTS} times {together} requests, besides {reactor} of the reactor");
    assert!(reactor <= 3 * REQUESTS, "{reactor} calls of the reactor for {REQUESTS} requests");
}

/// The calls of a run by name, and those of the reactor.
fn calls_of_a_run(request: &[u8], together: usize) -> (BTreeMap<String, usize>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Traced::start(folder.path());
    let created = Command::new(GREGOR)
        .args(["topic", "create", "events", "-b", &node.address, "--partitions", "1"])
        // An index entry for every so many bytes would be a call now and then.
        .args(["--config", "index.interval.bytes=2147483647"])
        .output()
        .unwrap();
    assert!(created.status.success(), "{created:?}");
    let mut stream = TcpStream::connect(&node.address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mark = |name: &str| {
        frame(name, &ApiVersionsRequest { client_software_name: KString::from("x"), ..Default::default() }, 0)
    };
    wait_until_led(&mut stream, request);
    wait_until_started(&folder.path().join("trace"));
    let requests = request.repeat(together);
    for _ in 0..WARM_UP {
        ask_for(&mut stream, &requests, together);
    }
    ask(&mut stream, &mark("begin-mark"));
    for _ in 0..REQUESTS {
        ask_for(&mut stream, &requests, together);
    }
    ask(&mut stream, &mark("end-mark"));
    let workers = node.workers();
    node.stop();

    let trace = fs::read_to_string(folder.path().join("trace")).unwrap();
    let mut calls = calls(&trace, &workers);
    let reactor: usize = REACTOR.iter().filter_map(|name| calls.remove(*name)).sum();
    (calls, reactor)
}
