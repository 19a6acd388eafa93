//! Moves between the log directories of a broker, cordons and reassignments are answered by Gregor as by Apache Kafka, and
//! Apache's tools do their work on ours.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use gregor_apache::{Broker, BrokerConfig, Jars, Release, compile, jars, java_program, java_tool};
use gregor_compat::{Gregor, program};

const DEADLINE: Duration = Duration::from_mins(1);

/// A node of ours with two log directories.
struct TwoDirectories {
    folder: tempfile::TempDir,
    gregor: Gregor,
}

impl TwoDirectories {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (client, controller) = (port(), port());
        let [first, second] = directories(folder.path());
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}\n\
             controller.listener.names=CONTROLLER\nlog.dirs={},{}\n",
            first.display(),
            second.display()
        );
        let path = folder.path().join("server.properties");
        fs::write(&path, properties).unwrap();
        let mut format = Command::new(program().unwrap());
        format.args(["storage", "format", "--standalone", "--cluster-id", "4L6g3nShT-eMCtK--X86sw", "--config"]);
        let output = format.arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let gregor = Gregor::start_with(&path, &folder.path().join("node")).unwrap();
        Self { folder, gregor }
    }
}

fn directories(folder: &Path) -> [PathBuf; 2] {
    ["first", "second"].map(|name| folder.join(name))
}

/// What the program writes of a broker.
fn answers(jars: &Jars, classes: &Path, bootstrap: &str, folder: &Path) -> Vec<String> {
    let [first, second] = directories(folder).map(|path| path.to_string_lossy().into_owned());
    let arguments = [bootstrap, &first, &second];
    let output = java_program(jars, classes, "LogDirectories", &arguments).unwrap().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // A log line of a client is no answer.
    text.lines().filter(|line| !line.contains("-adminclient") && !line.contains("[Admin")).map(str::to_owned).collect()
}

fn tool(jars: &Jars, class: &str, arguments: &[&str]) -> String {
    let output = java_tool(jars, class, arguments).unwrap().output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{class} {arguments:?}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn replicas_move_between_log_directories_as_with_apache_kafka() {
    let jars = jars(&Release::broker(Release::NEWEST)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let classes = folder.path().join("classes");
    compile(&jars, &Path::new(env!("CARGO_MANIFEST_DIR")).join("admin/LogDirectories.java"), &classes).unwrap();

    let ours = TwoDirectories::start();
    let our_answers = answers(&jars, &classes, ours.gregor.bootstrap(), ours.folder.path());
    ours.gregor.stop().unwrap();

    let home = folder.path().join("apache");
    let [first, second] = directories(&home);
    let log_dirs = format!("{},{}", first.display(), second.display());
    let config = BrokerConfig {
        release_version: Some("4.3".to_owned()),
        properties: vec![("log.dirs".to_owned(), log_dirs)],
        ..BrokerConfig::new(&home)
    };
    let apache = Broker::start(&jars, &config).unwrap();
    let their_answers = answers(&jars, &classes, &apache.bootstrap, &home);
    apache.stop().unwrap();

    assert!(their_answers.len() > 40, "the program says more than {their_answers:?}");
    let differing: Vec<_> = their_answers.iter().zip(&our_answers).filter(|(theirs, ours)| theirs != ours).collect();
    assert!(differing.is_empty() && their_answers.len() == our_answers.len(), "Apache's and ours:\n{differing:#?}");
}

#[test]
fn apaches_tools_show_and_move_replicas() {
    let jars = jars(&Release::complete(Release::COMPLETE)).unwrap();
    let node = TwoDirectories::start();
    let bootstrap = node.gregor.bootstrap();
    tool(
        &jars,
        "org.apache.kafka.tools.TopicCommand",
        &["--bootstrap-server", bootstrap, "--create", "--topic", "t", "--partitions", "2"],
    );
    tool(
        &jars,
        "org.apache.kafka.tools.ProducerPerformance",
        &[
            "--topic",
            "t",
            "--num-records",
            "5000",
            "--record-size",
            "500",
            "--throughput",
            "-1",
            "--bootstrap-server",
            bootstrap,
        ],
    );
    let [first, second] = directories(node.folder.path()).map(|path| path.to_string_lossy().into_owned());
    // Both replicas into the directory that the first is not in.
    let is_in_first = Path::new(&first).join("t-0").exists();
    let target = if is_in_first { &second } else { &first };
    let plan = node.folder.path().join("reassignment.json");
    let partition =
        |index: i32| format!(r#"{{"topic":"t","partition":{index},"replicas":[1],"log_dirs":["{target}"]}}"#);
    fs::write(&plan, format!(r#"{{"version":1,"partitions":[{},{}]}}"#, partition(0), partition(1))).unwrap();
    let reassign = |more: &[&str]| {
        let plan = plan.to_string_lossy();
        let mut arguments = vec!["--bootstrap-server", bootstrap, "--reassignment-json-file", &plan];
        arguments.extend(more);
        tool(&jars, "org.apache.kafka.tools.reassign.ReassignPartitionsCommand", &arguments)
    };
    let started = reassign(&["--execute", "--replica-alter-log-dirs-throttle", "50000000"]);
    assert!(started.contains("Successfully started"), "{started}");
    let deadline = Instant::now() + DEADLINE;
    loop {
        let verified = reassign(&["--verify"]);
        if verified.matches("completed successfully").count() >= 2 || verified.matches("is completed").count() >= 4 {
            break;
        }
        assert!(Instant::now() < deadline, "{verified}");
    }
    let shown = tool(
        &jars,
        "org.apache.kafka.tools.LogDirsCommand",
        &["--bootstrap-server", bootstrap, "--describe", "--topic-list", "t"],
    );
    let shown: serde_json::Value =
        serde_json::from_str(shown.lines().find(|line| line.starts_with('{')).unwrap()).unwrap();
    let directories = shown["brokers"][0]["logDirs"].as_array().unwrap();
    assert_eq!(directories.len(), 2);
    for directory in directories {
        let replicas = directory["partitions"].as_array().unwrap();
        let is_target = directory["logDir"] == target.as_str();
        assert_eq!(replicas.len(), if is_target { 2 } else { 0 }, "{shown}");
        assert!(replicas.iter().all(|replica| replica["isFuture"] == false), "{shown}");
    }
    node.gregor.stop().unwrap();
}
