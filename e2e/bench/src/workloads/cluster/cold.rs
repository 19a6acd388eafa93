//! A follower that was away while much was written comes back cold, and catches up beside a steady producer.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{Scale, replicas::PARTITIONS};
use crate::{
    cluster::{Cluster, NODES},
    load::{Shape, produce_frame},
    open_loop::{Schedule, percentile_ms},
    workloads::bulk,
};

/// What the follower missed.
const MISSED: &str = "missed";

/// The steady producer's p99 in milliseconds while all nodes run, the same from the follower's start on, and the seconds from its
/// start until it has all that it missed.
pub fn follower(cluster: &mut Cluster, scale: &Scale) -> Result<Vec<f64>> {
    let missed = cluster.topic(MISSED, 1)?;
    let leader = *missed.keys().next().context("a leader")?;
    let controller = cluster.controller()?;
    let away = (1..=NODES).find(|id| ![leader, controller].contains(id)).context("a follower")?;
    // The producer's partitions are led by the one that the follower catches up from, as far as it leads any.
    let led = cluster.topic("steady", PARTITIONS)?;
    let partitions = led.get(&leader).context("nobody leads as many as it should")?;
    let (record, _) = Shape::plain(1, 1024).batch()?;
    let frames: Vec<_> =
        partitions.iter().map(|one| produce_frame("steady", [*one], &record)).collect::<Result<_>>()?;
    let address = cluster.node(leader)?.address().clone();
    let p99 = |warm_up: Duration| {
        let schedule =
            Schedule { rate: scale.cluster_rate, connections: frames.len(), time: warm_up + scale.load, warm_up };
        schedule.run(&address, &frames).map(|latencies| percentile_ms(&latencies, 99.0))
    };

    let quiet = p99(scale.warm_up)?;
    cluster.kill(away)?;
    let (batch, _) = Shape::plain(15, 1024).batch()?;
    bulk::write(&address, &produce_frame(MISSED, [0], &batch)?, scale.bulk_bytes)?;
    cluster.node(leader)?.settle_disk()?;
    thread::scope(|scope| {
        let producer = scope.spawn(|| p99(Duration::ZERO));
        let begun = Instant::now();
        cluster.revive(away)?;
        cluster.wait_until_in_sync(MISSED, 1)?;
        let took = begun.elapsed().as_secs_f64();
        let beside = producer.join().ok().context("the producer ended early")??;
        Ok(vec![quiet, beside, took])
    })
}
