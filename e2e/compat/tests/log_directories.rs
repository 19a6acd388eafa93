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

/// Two log directories and the `server.properties` of a node on them.
struct TwoDirectories {
    folder: tempfile::TempDir,
}

impl TwoDirectories {
    fn format() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (client, controller) = (port(), port());
        let [first, second] = directories(folder.path());
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}\n\
             controller.listener.names=CONTROLLER\nlog.dirs={},{}\n",
            first.display(),
            second.display()
        );
        let path = folder.path().join("server.properties");
        fs::write(&path, properties).unwrap();
        let mut format = Command::new(program().unwrap());
        format.args(["storage", "format", "--cluster-id", "4L6g3nShT-eMCtK--X86sw", "--config"]);
        let output = format.arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { folder }
    }

    fn start(&self) -> Gregor {
        Gregor::start_with(&self.folder.path().join("server.properties"), &self.folder.path().join("node")).unwrap()
    }

    /// The same directories under an Apache broker.
    fn start_apache(&self, jars: &Jars) -> Broker {
        let [first, second] = directories(self.folder.path());
        let log_dirs = format!("{},{}", first.display(), second.display());
        let config = BrokerConfig {
            keep_data: true,
            properties: vec![("log.dirs".to_owned(), log_dirs)],
            ..BrokerConfig::new(self.folder.path().join("apache"))
        };
        Broker::start(jars, &config).unwrap()
    }

    /// The folders of a topic in each directory.
    fn folders(&self, topic: &str) -> [Vec<String>; 2] {
        directories(self.folder.path()).map(|directory| {
            let entries =
                fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            entries.filter(|name| name.starts_with(topic)).collect()
        })
    }

    /// Begins to move the partitions of a topic into a directory by Apache's tool, at so many bytes a second.
    fn begin_move(&self, jars: &Jars, bootstrap: &str, partitions: i32, target: &Path, rate: &str) {
        let partition = |index: i32| {
            let target = target.display();
            format!(r#"{{"topic":"t","partition":{index},"replicas":[1],"log_dirs":["{target}"]}}"#)
        };
        let partitions: Vec<_> = (0..partitions).map(partition).collect();
        fs::write(self.plan(), format!(r#"{{"version":1,"partitions":[{}]}}"#, partitions.join(","))).unwrap();
        let started = self.reassign(jars, bootstrap, &["--execute", "--replica-alter-log-dirs-throttle", rate]);
        assert!(started.contains("Successfully started"), "{started}");
    }

    fn reassign(&self, jars: &Jars, bootstrap: &str, more: &[&str]) -> String {
        let plan = self.plan();
        let plan = plan.to_string_lossy();
        let mut arguments = vec!["--bootstrap-server", bootstrap, "--reassignment-json-file", &plan];
        arguments.extend(more);
        tool(jars, "org.apache.kafka.tools.reassign.ReassignPartitionsCommand", &arguments)
    }

    fn plan(&self) -> PathBuf {
        self.folder.path().join("reassignment.json")
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

    let ours = TwoDirectories::format();
    let gregor = ours.start();
    let our_answers = answers(&jars, &classes, gregor.bootstrap(), ours.folder.path());
    gregor.stop().unwrap();

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

fn create_and_fill(jars: &Jars, bootstrap: &str, partitions: &str, records: &str) {
    tool(
        jars,
        "org.apache.kafka.tools.TopicCommand",
        &["--bootstrap-server", bootstrap, "--create", "--topic", "t", "--partitions", partitions],
    );
    fill(jars, bootstrap, records);
}

fn fill(jars: &Jars, bootstrap: &str, records: &str) {
    let size = ["--record-size", "1000", "--throughput", "-1"];
    let arguments = [&["--topic", "t", "--num-records", records, "--bootstrap-server", bootstrap][..], &size].concat();
    tool(jars, "org.apache.kafka.tools.ProducerPerformance", &arguments);
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn apaches_tools_show_and_move_replicas() {
    let jars = jars(&Release::complete(Release::COMPLETE)).unwrap();
    let node = TwoDirectories::format();
    let gregor = node.start();
    let bootstrap = gregor.bootstrap();
    create_and_fill(&jars, bootstrap, "2", "5000");
    // Both replicas into the directory that the first is not in.
    let [first, second] = directories(node.folder.path());
    let target = if first.join("t-0").exists() { second } else { first };
    node.begin_move(&jars, bootstrap, 2, &target, "50000000");
    wait_until("the tool says that it is done", || {
        node.reassign(&jars, bootstrap, &["--verify"]).matches("completed successfully").count() >= 2
    });
    let shown = tool(
        &jars,
        "org.apache.kafka.tools.LogDirsCommand",
        &["--bootstrap-server", bootstrap, "--describe", "--topic-list", "t"],
    );
    let shown = shown.lines().find(|line| line.starts_with('{')).unwrap();
    let shown: serde_json::Value = serde_json::from_str(shown).unwrap();
    let described = shown["brokers"][0]["logDirs"].as_array().unwrap();
    assert_eq!(described.len(), 2);
    for directory in described {
        let replicas = directory["partitions"].as_array().unwrap();
        let is_target = directory["logDir"] == target.to_string_lossy().as_ref();
        assert_eq!(replicas.len(), if is_target { 2 } else { 0 }, "{shown}");
        assert!(replicas.iter().all(|replica| replica["isFuture"] == false), "{shown}");
    }
    gregor.stop().unwrap();
}

#[test]
fn a_move_that_one_broker_began_the_other_brings_to_its_end() {
    let jars = jars(&Release::complete(Release::COMPLETE)).unwrap();
    let node = TwoDirectories::format();
    let unthrottle = |bootstrap: &str| {
        let broker = ["--bootstrap-server", bootstrap, "--entity-type", "brokers", "--entity-name", "1"];
        let delete = ["--alter", "--delete-config", "replica.alter.log.dirs.io.max.bytes.per.second"];
        tool(&jars, "kafka.admin.ConfigCommand", &[&broker[..], &delete].concat());
    };
    let is_under_way = |[first, second]: [Vec<String>; 2]| {
        first.iter().chain(&second).any(|name| name.starts_with("t-0.") && name.ends_with("-future"))
    };
    let is_only_in = |side: usize| {
        let folders = node.folders("t-");
        folders[side] == ["t-0"] && !folders[1 - side].iter().any(|name| name == "t-0") && !is_under_way(folders)
    };

    let gregor = node.start();
    create_and_fill(&jars, gregor.bootstrap(), "1", "6000");
    let from = usize::from(!directories(node.folder.path())[0].join("t-0").exists());
    let targets = directories(node.folder.path());
    node.begin_move(&jars, gregor.bootstrap(), 1, &targets[1 - from], "1");
    wait_until("our move begins", || is_under_way(node.folders("t-")));
    gregor.stop().unwrap();

    let apache = node.start_apache(&jars);
    assert!(is_under_way(node.folders("t-")));
    unthrottle(&apache.bootstrap);
    wait_until("Apache ends our move", || is_only_in(1 - from));
    fill(&jars, &apache.bootstrap, "6000");
    node.begin_move(&jars, &apache.bootstrap, 1, &targets[from], "1");
    wait_until("Apache's move begins", || is_under_way(node.folders("t-")));
    apache.stop().unwrap();

    let gregor = node.start();
    assert!(is_under_way(node.folders("t-")));
    unthrottle(gregor.bootstrap());
    wait_until("we end Apache's move", || is_only_in(from));
    let mut consume = Command::new(program().unwrap());
    consume.args(["consume", "t", "--from-beginning", "--to-end", "--bootstrap-server", gregor.bootstrap()]);
    let output = consume.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 12_000);
    gregor.stop().unwrap();
}
