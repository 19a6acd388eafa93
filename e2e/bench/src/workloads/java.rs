//! Kafka's own performance tools as a second witness: the same client for both brokers, and none of ours.

use anyhow::{Result, ensure};
use gregor_apache::{Jars, Release, jars, java_tool};

use super::{Scale, topic};
use crate::brokers::Broker;

const RECORD_BYTES: u64 = 1024;
const GIB: f64 = (1_u64 << 30) as f64;

/// CPU of the broker per GiB, produced and consumed.
pub fn both(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    let jars = jars(&Release::complete(Release::COMPLETE))?;
    topic(broker, "java", 1, &[])?;
    let (address, records) = (broker.address().to_string(), scale.bulk_bytes / RECORD_BYTES);
    let (count, size) = (records.to_string(), RECORD_BYTES.to_string());
    let bootstrap = format!("bootstrap.servers={address}");
    let produce = ["--topic", "java", "--num-records", &count, "--record-size", &size, "--throughput", "-1"];
    let settings = ["--producer-props", &bootstrap, "acks=all"];
    let consume = ["--bootstrap-server", &address, "--topic", "java", "--messages", &count, "--timeout", "60000"];
    let produced = cpu_of(broker, &jars, "ProducerPerformance", &[&produce[..], &settings[..]].concat())?;
    let consumed = cpu_of(broker, &jars, "ConsumerPerformance", &consume)?;
    let gib = (records * RECORD_BYTES) as f64 / GIB;
    Ok(vec![produced / gib, consumed / gib])
}

/// Seconds of the broker's CPU while a tool runs.
fn cpu_of(broker: &Broker, jars: &Jars, tool: &str, arguments: &[&str]) -> Result<f64> {
    let before = broker.account()?.cpu()?;
    let output = java_tool(jars, &format!("org.apache.kafka.tools.{tool}"), arguments)?.output()?;
    ensure!(output.status.success(), "{tool} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(broker.account()?.cpu()?.saturating_sub(before).as_secs_f64())
}
