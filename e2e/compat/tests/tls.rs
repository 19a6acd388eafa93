//! Clients and tools over TLS, each with a certificate of its own: Apache's, librdkafka's, franz-go's and ours.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use gregor_apache::{Release, jars, java_tool};
use gregor_compat::{Gregor, Journey, TlsStores, program};

const DEADLINE: Duration = Duration::from_secs(150);
const STEPS: [&str; 5] = ["create", "produce", "consume", "commit", "resume"];

fn travels(journey: Journey) -> Result<()> {
    let stores = TlsStores::new()?;
    let broker = stores.start_broker()?;
    let journey = journey.with(&[&broker.listener("SSL")?]).over_tls(&stores);
    let steps = journey.steps(DEADLINE).map_err(|error| error.context(broker.story("served the client")))?;
    for step in STEPS {
        assert!(steps.iter().any(|seen| seen == step), "no step {step} among {steps:?}");
    }
    broker.stop()
}

#[test]
fn apaches_java_client_travels_over_tls() -> Result<()> {
    travels(Journey::java(&Release::broker(Release::NEWEST))?)
}

#[test]
fn librdkafka_travels_over_tls() -> Result<()> {
    travels(Journey::librdkafka()?)
}

#[test]
fn franz_go_travels_over_tls() -> Result<()> {
    travels(Journey::franz_go()?)
}

/// Runs a shell line and returns what it prints; it has to succeed.
fn shell(line: &str) -> Result<String> {
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    Journey::program("sh", command).output(DEADLINE)
}

#[test]
fn apaches_console_tools_and_ours_share_one_file_of_client_properties() -> Result<()> {
    let stores = TlsStores::new()?;
    let broker = stores.start_broker()?;
    let address = broker.listener("SSL")?;
    let config = stores.client_properties();
    let config = config.to_str().context("a path that is text")?;
    let jars = jars(&Release::complete(Release::COMPLETE))?;
    let apache = |class: &str, arguments: &[&str]| {
        let arguments = [&["--bootstrap-server", &address, "--command-config", config], arguments].concat();
        let tool = java_tool(&jars, &format!("org.apache.kafka.tools.{class}"), &arguments)?;
        Journey::program("a tool of Apache's", tool).output(DEADLINE)
    };
    let ours = |arguments: &str| {
        let (command, rest) = arguments.split_once(" -- ").unwrap_or((arguments, ""));
        let program = program()?.display();
        shell(&format!("{rest} {program} {command} -b {address} --command-config {config}"))
    };
    apache("TopicCommand", &["--create", "--topic", "letters", "--partitions", "1"])?;
    assert!(ours("topic list")?.contains("letters"));
    ours("produce letters -- printf 'alpha\\nbeta\\n' |")?;
    let group = ["--group", "readers", "--topic", "letters", "--from-beginning", "--max-messages", "2"];
    let read = apache("consumer.ConsoleConsumer", &group)?;
    assert_eq!(read, "alpha\nbeta\n");
    assert_eq!(ours("consume letters --from-beginning --to-end")?, "alpha\nbeta\n");
    assert!(ours("group describe readers")?.contains("letters"));
    broker.stop()
}

#[test]
fn apaches_tools_reach_the_quorum_over_a_controller_listener_with_tls() -> Result<()> {
    let stores = TlsStores::new()?;
    let broker = stores.start_with_controller("SSL")?;
    let address = broker.listener("CONTROLLER")?;
    let jars = jars(&Release::complete(Release::COMPLETE))?;
    let config = stores.client_properties();
    let config = config.to_str().context("a path that is text")?;
    let arguments = ["--bootstrap-controller", &address, "--command-config", config, "describe", "--status"];
    let tool = java_tool(&jars, "org.apache.kafka.tools.MetadataQuorumCommand", &arguments)?;
    let said = Journey::program("kafka-metadata-quorum", tool).output(DEADLINE)?;
    assert!(said.contains("LeaderId:"), "{said}");
    broker.stop()
}

#[test]
fn kcat_reads_over_tls_what_it_wrote() -> Result<()> {
    let stores = TlsStores::new()?;
    let broker = stores.start_broker()?;
    let kcat = format!(
        "kcat -b {} -X security.protocol=ssl -X ssl.ca.location={} -X ssl.certificate.location={identity} -X ssl.key.location={identity}",
        broker.listener("SSL")?,
        stores.trusted().display(),
        identity = stores.identity().display()
    );
    shell(&format!("seq 1000 | {kcat} -P -t lines"))?;
    assert_eq!(shell(&format!("{kcat} -C -t lines -o beginning -e -q"))?, shell("seq 1000")?);
    broker.stop()
}

#[test]
fn without_a_trust_store_the_authorities_of_the_system_are_trusted() -> Result<()> {
    let stores = TlsStores::new()?;
    let broker = stores.start_broker()?;
    let properties = tempfile::NamedTempFile::new()?;
    let identity = stores.identity();
    let text = format!("security.protocol=SSL\nssl.keystore.type=PEM\nssl.keystore.location={}\n", identity.display());
    std::fs::write(properties.path(), text)?;
    let list = format!(
        "{} topic list --timeout 3 -b {} --command-config {}",
        program()?.display(),
        broker.listener("SSL")?,
        properties.path().display()
    );
    // The variable names the system's bundle, for rustls as for OpenSSL.
    shell(&format!("SSL_CERT_FILE={} {list}", stores.trusted().display()))?;
    let untrusted = shell(&list).err().context("the authority of this test is not the system's")?.to_string();
    assert!(untrusted.contains("ssl.truststore.location"), "{untrusted}");
    broker.stop()
}

/// What the command line says on its way to failing.
fn complaint(broker: &Gregor, listener: &str, config: Option<&Path>) -> Result<String> {
    let mut command = Command::new(program()?);
    command.args(["topic", "list", "--timeout", "3", "-b", &broker.listener(listener)?]).stdin(Stdio::null());
    if let Some(config) = config {
        command.arg("--command-config").arg(config);
    }
    let output = command.output()?;
    assert!(!output.status.success(), "it should have failed: {}", String::from_utf8_lossy(&output.stdout));
    Ok(String::from_utf8(output.stderr)?)
}

#[test]
fn whoever_comes_to_the_wrong_door_is_told_what_to_do() -> Result<()> {
    let stores = TlsStores::new()?;
    let broker = stores.start_broker()?;
    let without_certificate = complaint(&broker, "SSL", Some(&stores.stranger_properties()))?;
    assert!(without_certificate.contains("ssl.keystore.location"), "{without_certificate}");
    let of_another_cluster = complaint(&broker, "SSL", Some(&TlsStores::new()?.client_properties()))?;
    assert!(of_another_cluster.contains("ssl.truststore.location"), "{of_another_cluster}");
    let plain_to_tls = complaint(&broker, "SSL", None)?;
    assert!(plain_to_tls.contains("security.protocol=SSL"), "{plain_to_tls}");
    let tls_to_plain = complaint(&broker, "PLAINTEXT", Some(&stores.client_properties()))?;
    assert!(tls_to_plain.contains("security.protocol=PLAINTEXT"), "{tls_to_plain}");
    broker.stop()
}
