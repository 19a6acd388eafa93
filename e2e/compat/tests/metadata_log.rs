//! The metadata quorum's files, both ways: Apache's tools read what we write, an Apache node runs on our directory and gives it back,
//! and we start on what Apache formatted, or say by name why not.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use gregor_apache::{Broker, BrokerConfig, Jars, Release, jars, java_tool};
use gregor_compat::{FEATURES_BEYOND_US, Gregor, program};

const CLUSTER_ID: &str = "4L6g3nShT-eMCtK--X86sw";

/// How long a broker may take to start, to be let in, or to do what it does now and then.
const JOIN_DEADLINE: Duration = Duration::from_mins(2);

/// A node's folder and its `server.properties`.
struct Home {
    folder: tempfile::TempDir,
    controller_port: u16,
}

/// A process that does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Home {
    fn new(quorum: impl Fn(u16) -> String, more: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = || TcpListener::bind("127.0.0.1:0")?.local_addr().map(|address| address.port());
        let (client, controller) = (port()?, port()?);
        let data = folder.path().join("data");
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\n{}\n\
             listeners=PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}\n\
             controller.listener.names=CONTROLLER\nlog.dirs={}\n{more}",
            quorum(controller),
            data.display()
        );
        std::fs::write(folder.path().join("server.properties"), properties)?;
        Ok(Self { folder, controller_port: controller })
    }

    fn dynamic(more: &str) -> Result<Self> {
        Self::new(|port| format!("controller.quorum.bootstrap.servers=127.0.0.1:{port}"), more)
    }

    fn fixed(more: &str) -> Result<Self> {
        Self::new(|port| format!("controller.quorum.voters=1@127.0.0.1:{port}"), more)
    }

    fn properties(&self) -> PathBuf {
        self.folder.path().join("server.properties")
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn metadata(&self) -> PathBuf {
        self.data().join("__cluster_metadata-0")
    }

    fn format(&self, more: &[&str]) -> Result<()> {
        let mut command = Command::new(program()?);
        command.args(["storage", "format", "--cluster-id", CLUSTER_ID, "--config"]).arg(self.properties()).args(more);
        succeeded(&command.output()?, "gregor storage format").map(drop)
    }

    fn format_with_apache(&self, jars: &Jars, more: &[&str]) -> Result<()> {
        let properties = self.properties();
        let properties = properties.to_str().context("a path that is text")?;
        let arguments = [&["format", "-t", CLUSTER_ID, "-c", properties], more].concat();
        succeeded(&java_tool(jars, "kafka.tools.StorageTool", &arguments)?.output()?, "StorageTool").map(drop)
    }

    fn start(&self) -> Result<Gregor> {
        Gregor::start_with(&self.properties(), self.folder.path())
    }

    fn newest_snapshot(&self) -> Result<PathBuf> {
        let mut snapshots: Vec<PathBuf> = std::fs::read_dir(self.metadata())?
            .map(|entry| Ok(entry?.path()))
            .filter(|path| {
                path.as_ref().is_ok_and(|path| path.extension().is_some_and(|extension| extension == "checkpoint"))
            })
            .collect::<Result<_>>()?;
        snapshots.sort();
        snapshots.pop().context("there is no snapshot")
    }

    /// Waits until there is a snapshot of everything before an offset.
    fn wait_for_snapshot_to(&self, offset: i64) -> Result<()> {
        let deadline = Instant::now() + JOIN_DEADLINE;
        loop {
            let newest = self.newest_snapshot().ok();
            let name = newest.as_ref().and_then(|path| path.file_stem()?.to_str()).unwrap_or_default();
            if name.split('-').next().is_some_and(|end| end.parse::<i64>().is_ok_and(|end| end >= offset)) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the newest snapshot is {name:?}, and {offset} is committed");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn succeeded(output: &Output, what: &str) -> Result<String> {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{what} failed:\n{text}");
    Ok(text)
}

fn tool(jars: &Jars, main_class: &str, arguments: &[&str]) -> Result<String> {
    succeeded(&java_tool(jars, main_class, arguments)?.output()?, main_class)
}

fn topics(jars: &Jars, bootstrap: &str, arguments: &[&str]) -> Result<String> {
    tool(jars, "org.apache.kafka.tools.TopicCommand", &[&["--bootstrap-server", bootstrap], arguments].concat())
}

fn dump(jars: &Jars, file: &Path) -> Result<String> {
    let file = file.to_str().context("a path that is text")?;
    let arguments = ["--cluster-metadata-decoder", "--deep-iteration", "--files", file];
    let dumped = tool(jars, "org.apache.kafka.tools.DumpLogSegments", &arguments)?;
    for line in dumped.lines().filter(|line| line.starts_with("baseOffset")) {
        ensure!(line.ends_with("isvalid: true"), "a batch that Apache finds invalid: {line}");
    }
    ensure!(!dumped.contains("Could not") && !dumped.contains("Exception"), "Apache cannot read all of it:\n{dumped}");
    Ok(dumped)
}

/// See where it is used.
const SHELL_TRIES: usize = 5;

#[test]
fn apaches_tools_read_our_metadata_log_and_its_snapshots() -> Result<()> {
    let jars = jars(&Release::complete(Release::COMPLETE))?;
    let home = Home::dynamic("metadata.log.max.record.bytes.between.snapshots=1\n")?;
    home.format(&["--standalone"])?;
    let gregor = home.start()?;
    let create = ["--create", "--topic", "orders", "--partitions", "3", "--config", "retention.ms=123456"];
    topics(&jars, gregor.bootstrap(), &create)?;
    let status = tool(
        &jars,
        "org.apache.kafka.tools.MetadataQuorumCommand",
        &["--bootstrap-server", gregor.bootstrap(), "describe", "--status"],
    )?;
    let words: Vec<&str> = status.split_whitespace().collect();
    for expected in [["LeaderId:", "1"], ["LeaderEpoch:", "1"], ["ClusterId:", CLUSTER_ID], ["CurrentObservers:", "[]"]]
    {
        assert!(words.windows(2).any(|pair| pair == expected), "no {expected:?} in\n{status}");
    }
    let committed = words.windows(2).find(|pair| pair[0] == "HighWatermark:").context("a high watermark")?[1];
    home.wait_for_snapshot_to(committed.parse()?)?;
    // The last one of a running broker: whether there is one of its stop is chance.
    let snapshot = home.newest_snapshot()?;
    gregor.stop()?;

    let log = dump(&jars, &home.metadata().join("00000000000000000000.log"))?;
    for expected in [
        r#"LeaderChange: {"version":0,"leaderId":1,"voters":[{"voterId":1}],"grantingVoters":[{"voterId":1}]}"#,
        r#"KRaftVersion {"version":0,"kRaftVersion":1}"#,
        "KRaftVoters",
        r#""type":"FEATURE_LEVEL_RECORD","version":0,"data":{"name":"metadata.version","featureLevel":30}"#,
        r#""type":"FEATURE_LEVEL_RECORD","version":0,"data":{"name":"eligible.leader.replicas.version","featureLevel":1}"#,
        r#""type":"CONFIG_RECORD","version":0,"data":{"resourceType":4,"resourceName":"","name":"min.insync.replicas","value":"1"}"#,
        r#""type":"REGISTER_BROKER_RECORD","version":4"#,
        r#""type":"REGISTER_CONTROLLER_RECORD","version":0"#,
        r#""type":"TOPIC_RECORD","version":0,"data":{"name":"orders""#,
        r#""type":"PARTITION_RECORD","version":2"#,
        r#""type":"CONFIG_RECORD","version":0,"data":{"resourceType":2,"resourceName":"orders","name":"retention.ms","value":"123456"}"#,
    ] {
        assert!(log.contains(expected), "no {expected} in\n{log}");
    }

    let dumped = dump(&jars, &snapshot)?;
    assert!(dumped.contains("SnapshotHeader") && dumped.contains("SnapshotFooter"), "{dumped}");
    let snapshot = snapshot.to_str().context("a path that is text")?;
    let shell = "org.apache.kafka.shell.MetadataShell";
    let sees = |command: [&str; 2], expected: &[&str]| -> Result<()> {
        let mut seen = String::new();
        // The shell does not wait for its own thread to have taken in what was read: on a busy machine it may answer before.
        for _ in 0..SHELL_TRIES {
            seen = tool(&jars, shell, &[&["--snapshot", snapshot], &command[..]].concat())?;
            if expected.iter().all(|expected| seen.contains(expected)) {
                return Ok(());
            }
        }
        anyhow::bail!("no {expected:?} in\n{seen}")
    };
    sees(["cat", "/image/topics/byName/orders/2"], &["replicas=[1]", "isr=[1]"])?;
    sees(["ls", "/image/topics/byName"], &["orders"])?;
    Ok(())
}

/// What is decided about partitions of a metadata log after they were created, but for the topics' ids.
fn partition_changes(jars: &Jars, metadata: &Path) -> Result<Vec<serde_json::Value>> {
    let log = dump(jars, &metadata.join("00000000000000000000.log"))?;
    let payloads = log.lines().filter_map(|line| line.split_once("payload: ")).map(|(_, payload)| payload);
    let mut changes = Vec::new();
    for payload in payloads.filter(|payload| payload.contains("\"PARTITION_CHANGE_RECORD\"")) {
        let mut change: serde_json::Value = serde_json::from_str(payload)?;
        change["data"].as_object_mut().context("a record with fields")?.remove("topicId");
        changes.push(change);
    }
    // A stop goes through partitions in no order that anybody promises.
    changes.sort_by_key(|change| change["data"]["partitionId"].as_i64());
    Ok(changes)
}

/// KIP-966: nobody is in sync any more, nobody leads, and who left may lead next.
#[test]
fn the_last_replica_that_stops_stays_eligible_as_in_apaches_own_log() -> Result<()> {
    let jars = jars(&Release::complete(Release::COMPLETE))?;
    let create = ["--create", "--topic", "orders", "--partitions", "3"];
    let home = Home::fixed("")?;
    home.format(&[])?;
    let gregor = home.start()?;
    topics(&jars, gregor.bootstrap(), &create)?;
    gregor.stop()?;
    let ours = partition_changes(&jars, &home.metadata())?;

    let folder = tempfile::tempdir()?;
    let config = BrokerConfig::new(folder.path());
    let apache = Broker::start(&jars, &config)?;
    topics(&jars, &apache.bootstrap, &create)?;
    apache.stop()?;
    let theirs = partition_changes(&jars, &config.data().join("__cluster_metadata-0"))?;

    assert_eq!(theirs.len(), 3, "{theirs:?}");
    let left = &theirs[0]["data"];
    assert_eq!((&left["isr"], &left["eligibleLeaderReplicas"]), (&serde_json::json!([]), &serde_json::json!([1])));
    assert_eq!(ours, theirs);
    Ok(())
}

#[test]
fn a_real_apache_node_runs_on_our_directory_and_gives_it_back() -> Result<()> {
    let jars = jars(&Release::complete(Release::COMPLETE))?;
    let home = Home::fixed("")?;
    home.format(&[])?;
    let gregor = home.start()?;
    topics(&jars, gregor.bootstrap(), &["--create", "--topic", "ours", "--partitions", "2"])?;
    gregor.stop()?;

    let apache = Broker::start(
        &jars,
        &BrokerConfig {
            keep_data: true,
            properties: vec![("log.dirs".to_owned(), home.data().display().to_string())],
            ..BrokerConfig::new(home.folder.path().join("apache"))
        },
    )?;
    let seen = topics(&jars, &apache.bootstrap, &["--describe", "--topic", "ours"])?;
    assert!(seen.contains("PartitionCount: 2") && seen.contains("Isr: 1"), "{seen}");
    topics(&jars, &apache.bootstrap, &["--create", "--topic", "theirs", "--partitions", "1"])?;
    apache.stop()?;

    let gregor = home.start()?;
    let seen = topics(&jars, gregor.bootstrap(), &["--list"])?;
    assert!(seen.contains("ours") && seen.contains("theirs"), "{seen}");
    gregor.stop()?;
    dump(&jars, &home.metadata().join("00000000000000000000.log")).map(drop)
}

#[test]
fn we_start_on_what_apache_formatted_in_the_old_way_and_in_the_new() -> Result<()> {
    let features: Vec<String> = FEATURES_BEYOND_US.iter().map(|feature| format!("{feature}=0")).collect();
    let features: Vec<&str> = features.iter().flat_map(|feature| ["--feature", feature.as_str()]).collect();
    for jars in [jars(&Release::complete(Release::COMPLETE))?, jars(&Release::broker(Release::NEWEST))?] {
        let home = Home::dynamic("")?;
        let arguments = [&["--standalone", "--release-version", "4.3-IV0"], features.as_slice()].concat();
        home.format_with_apache(&jars, &arguments)?;
        let gregor = home.start()?;
        let create = ["topic", "create", "first", "--bootstrap-server", gregor.bootstrap()];
        succeeded(&Command::new(program()?).args(create).output()?, "gregor topic create")?;
        gregor.stop()?;
    }
    Ok(())
}

#[test]
fn a_cluster_that_runs_more_than_we_serve_is_refused_by_name_and_left_as_it_is() -> Result<()> {
    let jars = jars(&Release::complete(Release::COMPLETE))?;
    let home = Home::fixed("")?;
    home.format_with_apache(&jars, &[])?;
    let output = Command::new(program()?).args(["broker", "--config"]).arg(home.properties()).output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{said}");
    assert!(FEATURES_BEYOND_US.iter().any(|feature| said.contains(feature)), "{said}");
    assert!(!home.metadata().join("quorum-state").exists(), "no vote was given");
    Ok(())
}

#[test]
fn an_apache_broker_follows_our_quorum_registers_and_is_let_in() -> Result<()> {
    let jars = jars(&Release::complete(Release::COMPLETE))?;
    // With a snapshot at hand an empty follower has to take it, in pieces, before it fetches records.
    let home = Home::dynamic("metadata.log.max.record.bytes.between.snapshots=1\n")?;
    home.format(&["--standalone"])?;
    let gregor = home.start()?;

    let folder = home.folder.path().join("apache");
    std::fs::create_dir_all(&folder)?;
    let (properties, data) = (folder.join("server.properties"), folder.join("data"));
    let client = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    std::fs::write(
        &properties,
        format!(
            "process.roles=broker\nnode.id=2\ncontroller.quorum.bootstrap.servers=127.0.0.1:{}\n\
             listeners=PLAINTEXT://127.0.0.1:{client}\ncontroller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\nlog.dirs={}\n",
            home.controller_port,
            data.display()
        ),
    )?;
    let properties = properties.to_str().context("a path that is text")?;
    let arguments = ["format", "-t", CLUSTER_ID, "-c", properties, "--no-initial-controllers"];
    tool(&jars, "kafka.tools.StorageTool", &arguments)?;
    let output = std::fs::File::create(folder.join("output.log"))?;
    let mut apache = java_tool(&jars, "kafka.Kafka", &[properties])?;
    let apache = Killed(apache.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?);

    // Two replicas can be placed once a second broker is registered, has caught up and is unfenced.
    let deadline = Instant::now() + JOIN_DEADLINE;
    let create = ["topic", "create", "shared", "-p", "1", "-r", "2", "--bootstrap-server", gregor.bootstrap()];
    loop {
        let output = Command::new(program()?).args(create).output()?;
        if output.status.success() {
            break;
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let log = std::fs::read_to_string(folder.join("output.log")).unwrap_or_default();
        ensure!(Instant::now() < deadline, "the Apache broker was not let in: {said}\nits log:\n{log}");
        thread::sleep(Duration::from_millis(200));
    }
    // And it reads what our controller decides.
    let metadata = data.join("__cluster_metadata-0");
    let snapshots = std::fs::read_dir(metadata)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let taken = |name: String| name.ends_with(".checkpoint") && !name.starts_with("00000000000000000000-");
    assert!(snapshots.into_iter().any(taken), "it has taken our snapshot");
    while !data.join("shared-0").exists() {
        ensure!(Instant::now() < deadline, "the Apache broker did not create its replica");
        thread::sleep(Duration::from_millis(50));
    }
    drop(apache);
    gregor.stop()
}

#[test]
fn formatting_writes_what_apaches_tool_writes_but_for_the_times() -> Result<()> {
    let jars = jars(&Release::complete(Release::COMPLETE))?;
    // 4.0 serves eligible leader replicas, and from 4.1 on clusters begin with them.
    let (kept, not_kept) = ("eligible.leader.replicas.version=1", "eligible.leader.replicas.version=0");
    for asked in [
        &[][..],
        &["--release-version", "4.0"],
        &["--release-version", "4.0", "--feature", kept],
        &["--release-version", "4.1"],
        &["--release-version", "4.1", "--feature", not_kept],
    ] {
        formatting_writes_the_same(&jars, asked).with_context(|| format!("asked for {asked:?}"))?;
    }
    Ok(())
}

fn formatting_writes_the_same(jars: &Jars, asked: &[&str]) -> Result<()> {
    let (ours, theirs) = (Home::dynamic("")?, Home::dynamic("")?);
    let voters = ["--initial-controllers", "1@controller.example:9093:aJ1wnXWNSda2GQ5ekap1FA"];
    ours.format(&[&voters[..], asked].concat())?;
    let features: Vec<String> = FEATURES_BEYOND_US.iter().map(|feature| format!("{feature}=0")).collect();
    let features: Vec<&str> = features.iter().flat_map(|feature| ["--feature", feature.as_str()]).collect();
    theirs.format_with_apache(jars, &[&voters[..], features.as_slice(), asked].concat())?;
    for file in ["bootstrap.checkpoint", "__cluster_metadata-0/00000000000000000000-0000000000.checkpoint"] {
        let records = |home: &Home| -> Result<Vec<String>> {
            let dumped = dump(jars, &home.data().join(file))?;
            let timeless = |line: &str| -> String {
                let words = line.split_whitespace().filter(|word| word.parse::<u64>().is_err());
                let words: Vec<&str> = words.map(|word| word.split("LogTimestamp").next().unwrap_or(word)).collect();
                words.join(" ")
            };
            Ok(dumped.lines().filter(|line| !line.starts_with("Dumping")).map(timeless).collect())
        };
        let (ours_says, theirs_says) = (records(&ours)?, records(&theirs)?);
        ensure!(ours_says == theirs_says, "{file}: ours\n{ours_says:#?}\nApache's\n{theirs_says:#?}");
        let size = |home: &Home| std::fs::metadata(home.data().join(file)).map(|file| file.len());
        let (ours_has, theirs_has) = (size(&ours)?, size(&theirs)?);
        ensure!(ours_has == theirs_has, "{file}: {ours_has} bytes of ours, {theirs_has} of Apache's");
    }
    Ok(())
}
