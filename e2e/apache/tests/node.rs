//! The real broker starts, answers its own tool, and stops cleanly.

use gregor_apache::{Broker, BrokerConfig, Release, jars, java_tool};

#[test]
fn a_real_node_starts_serves_a_tool_and_shuts_down_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let config = BrokerConfig::new(folder.path());
    let broker = Broker::start(&jars(&Release::broker(Release::NEWEST)).unwrap(), &config).unwrap();

    let tools = jars(&Release::complete(Release::COMPLETE)).unwrap();
    let arguments = ["--bootstrap-server", &broker.bootstrap, "--create", "--topic", "letters", "--partitions", "2"];
    let output = java_tool(&tools, "org.apache.kafka.tools.TopicCommand", &arguments).unwrap().output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "Created topic letters.");

    broker.stop().unwrap();
    assert!(config.data().join(".kafka_cleanshutdown").exists(), "the marker of a clean shutdown");
    assert!(config.data().join("letters-1").is_dir());
}
