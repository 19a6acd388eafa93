//! A leader is killed. What counts begins when the controller sees that its session is over, which it writes into the metadata log,
//! so that neither how long a session is nor how often it is looked at is measured; it ends with the first acknowledgement.

use std::{
    fs,
    path::Path,
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use gregor_state_records::metadata::MetadataRecord;
use gregor_wire::batch::split_batches;

use super::{DEADLINE, PAUSE, Scale, first_of, median, worst};
use crate::{
    cluster::Cluster,
    load::{Connection, Shape, produce_frame},
};

/// What a change of a registration says of a broker whose session is over.
const FENCED: i8 = 1;
const BATCH_BYTES_MAX: usize = 1 << 24;

/// The worst and the median, in milliseconds.
pub fn failover(cluster: &mut Cluster, scale: &Scale) -> Result<Vec<f64>> {
    cluster.topic("failover", 1)?;
    let (record, _) = Shape::plain(1, 100).batch()?;
    let frame = produce_frame("failover", 0..1, &record)?;
    let mut times = Vec::new();
    for _ in 0..scale.changes {
        let leader = cluster.wait_until_in_sync("failover", 1)?[0].leader;
        let killed = now_ms();
        cluster.kill(leader)?;
        let addresses: Vec<_> = cluster.running().map(|(_, node)| node.address().clone()).collect();
        let acknowledged = first_of(&addresses, |address| {
            let mut connection = Connection::open(address).ok()?;
            connection.send(&frame).ok()?;
            Connection::is_stored(connection.receive().ok()?).ok()?.then(now_ms)
        })?;
        let seen = session_end(&cluster.any()?.data().join("__cluster_metadata-0"), leader, killed)?;
        times.push(acknowledged - seen);
        cluster.revive(leader)?;
    }
    Ok(vec![worst(&times), median(&times)?])
}

/// Milliseconds since 1970, as records have them, but finer.
fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3
}

/// When the controller wrote that a broker's session is over, no earlier than the kill.
fn session_end(metadata: &Path, broker: i32, killed: f64) -> Result<f64> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        for entry in fs::read_dir(metadata)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log")
                && let Some(found) = in_log(&fs::read(path)?, broker, killed.floor() as i64)?
            {
                return Ok(found as f64);
            }
        }
        ensure!(Instant::now() < deadline, "the metadata log does not say that the session of broker {broker} is over");
        thread::park_timeout(PAUSE);
    }
}

fn in_log(bytes: &[u8], broker: i32, since: i64) -> Result<Option<i64>> {
    for batch in split_batches(bytes) {
        let batch = batch?;
        if batch.is_control() || batch.max_timestamp.value() < since {
            continue;
        }
        for record in &batch.records(BATCH_BYTES_MAX)? {
            let record = record?;
            let decoded = MetadataRecord::decode_framed(Bytes::copy_from_slice(record.value.unwrap_or_default()));
            // What this program does not know is not what it looks for.
            if let Ok(MetadataRecord::BrokerRegistrationChange(change)) = decoded
                && change.broker_id == broker
                && change.fenced == FENCED
            {
                return Ok(Some(record.timestamp.value()));
            }
        }
    }
    Ok(None)
}
