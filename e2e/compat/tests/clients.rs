//! One journey with each client that users have: create (also with the broker's default replication factor, and by first use),
//! produce, consume, commit, resume.

use std::{process::Command, time::Duration};

use anyhow::Result;
use gregor_apache::Release;
use gregor_compat::{Gregor, Journey};

const DEADLINE: Duration = Duration::from_secs(150);

/// What every client's journey has; each may have more.
const STEPS: [&str; 7] =
    ["create", "create-default-replication", "produce", "first-use", "consume", "commit", "resume"];

fn travels(journey: Journey, more: &[&str]) -> Result<()> {
    let broker = Gregor::start()?;
    let journey = journey.with(&[broker.bootstrap()]);
    let steps = journey.steps(DEADLINE).map_err(|error| error.context(broker.story("served the client")))?;
    for step in STEPS.iter().chain(more) {
        assert!(steps.iter().any(|seen| seen == step), "no step {step} among {steps:?}");
    }
    broker.stop()
}

#[test]
fn apaches_java_client_travels_and_is_told_at_once_that_there_are_no_transactions() -> Result<()> {
    let broker = Gregor::start()?;
    let journey = Journey::java(&Release::broker(Release::NEWEST))?.with(&[broker.bootstrap(), "refuses-transactions"]);
    let steps = journey.steps(DEADLINE).map_err(|error| error.context(broker.story("served the client")))?;
    let more = ["configure", "grow", "delete-records", "describe", "transactions-refused", "delete"];
    for step in STEPS.iter().chain(&more) {
        assert!(steps.iter().any(|seen| seen == step), "no step {step} among {steps:?}");
    }
    broker.stop()
}

#[test]
fn librdkafka_travels() -> Result<()> {
    travels(Journey::librdkafka()?, &["produce-idempotent", "consume-compressed", "describe-group", "delete"])
}

#[test]
fn franz_go_travels() -> Result<()> {
    travels(Journey::franz_go()?, &["produce-idempotent", "produce-compressed", "describe-group", "delete"])
}

#[test]
fn kafkajs_travels() -> Result<()> {
    travels(Journey::kafkajs()?, &["produce-idempotent", "produce-compressed", "delete"])
}

#[test]
fn kafka_python_travels() -> Result<()> {
    travels(Journey::kafka_python()?, &["produce-compressed", "delete"])
}

#[test]
fn kcat_writes_a_file_and_reads_it_back_byte_for_byte() -> Result<()> {
    let broker = Gregor::start()?;
    let file = tempfile::NamedTempFile::new()?;
    let lines = (0..2000).map(|n| format!("line {n} of a file")).collect::<Vec<_>>().join("\n") + "\n";
    std::fs::write(file.path(), &lines)?;
    let kcat = |arguments: &[&str]| {
        let mut command = Command::new("kcat");
        command.args(["-b", broker.bootstrap(), "-t", "lines"]).args(arguments);
        Journey::program("kcat", command).output(DEADLINE)
    };
    let path = file.path().display().to_string();
    kcat(&["-P", "-l", &path])?;
    assert_eq!(kcat(&["-C", "-o", "beginning", "-e", "-q"])?, lines);
    let by_group = ["-b", broker.bootstrap(), "-G", "kcat-group", "-o", "beginning", "-e", "-q", "lines"];
    let mut command = Command::new("kcat");
    command.args(["-X", "auto.offset.reset=earliest"]).args(by_group);
    assert_eq!(Journey::program("kcat", command).output(DEADLINE)?, lines);
    broker.stop()
}

#[test]
fn records_and_committed_offsets_outlive_a_kill() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    let kcat = |broker: &Gregor, arguments: &[&str]| {
        let mut command = Command::new("sh");
        let line = format!("kcat -b {} {}", broker.bootstrap(), arguments.join(" "));
        command.args(["-c", &line]);
        Journey::program("kcat", command).output(DEADLINE)
    };
    let consume = ["-X auto.offset.reset=earliest -G survivors -c 3 -q lines"];
    let broker = Gregor::start_in(&data)?;
    kcat(&broker, &["-P -t lines <<'E'\none\ntwo\nthree\nE"])?;
    assert_eq!(kcat(&broker, &consume)?, "one\ntwo\nthree\n");
    broker.kill()?;
    let broker = Gregor::start_in(&data)?;
    assert_eq!(kcat(&broker, &["-C -t lines -o beginning -e -q"])?, "one\ntwo\nthree\n");
    kcat(&broker, &["-P -t lines <<'E'\nfour\nfive\nsix\nE"])?;
    assert_eq!(kcat(&broker, &consume)?, "four\nfive\nsix\n", "the group went on where it had stopped");
    broker.stop()
}
