//! What it costs that every record is on three nodes.

use std::{thread, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use hdrhistogram::Histogram;

use super::Scale;
use crate::{
    closed_loop,
    cluster::{Cluster, NODES},
    load::{Address, Shape, produce_frame},
    open_loop::{Schedule, empty, percentile_ms},
    workloads::bulk,
};

/// Partitions that small records go to, five for each leader, and a connection for each.
pub const PARTITIONS: i32 = 15;
const GIB: f64 = (1_u64 << 30) as f64;

/// A leader, and a request for each of its partitions.
pub struct Led {
    address: Address,
    frames: Vec<Bytes>,
}

/// CPU seconds per GiB of each follower and of the leader, after a warm-up of half as much.
pub fn bytes(cluster: &mut Cluster, scale: &Scale) -> Result<Vec<f64>> {
    let led = cluster.topic("bytes", 1)?;
    let leader = *led.keys().next().context("a leader")?;
    let (batch, value_bytes) = Shape::plain(15, 1024).batch()?;
    let frame = produce_frame("bytes", 0..1, &batch)?;
    let requests = scale.bulk_bytes.div_ceil(value_bytes as u64);
    let address = cluster.node(leader)?.address();
    bulk::write(address, &frame, requests * frame.len() as u64 / 2)?;
    let cpu = |id: i32| cluster.node(id).and_then(|node| node.account()?.cpu());
    let before = (1..=NODES).map(cpu).collect::<Result<Vec<_>>>()?;
    bulk::write(address, &frame, requests * frame.len() as u64)?;
    let gib = (requests * value_bytes as u64) as f64 / GIB;
    let (mut followers, mut of_leader) = (0.0, 0.0);
    for (id, before) in (1..=NODES).zip(before) {
        let used = cpu(id)?.saturating_sub(before).as_secs_f64() / gib;
        if id == leader {
            of_leader = used;
        } else {
            followers += used;
        }
    }
    Ok(vec![followers / f64::from(NODES - 1), of_leader])
}

/// Microseconds of CPU per request, as fast as they are answered; latency at a rate that both kinds keep up with.
pub fn small(cluster: &mut Cluster, scale: &Scale) -> Result<Vec<f64>> {
    let led = leaders(cluster, "small")?;
    run_closed(&led, scale.warm_up)?;
    let before = cluster.cpu()?;
    let requests = run_closed(&led, scale.load)?;
    let used = cluster.cpu()?.saturating_sub(before);
    let latencies = run_open(&led, scale, scale.warm_up)?;
    let cpu = used.as_secs_f64() * 1e6 / requests as f64;
    Ok(vec![cpu, percentile_ms(&latencies, 50.0), percentile_ms(&latencies, 99.0)])
}

/// A new topic of few partitions, and a request of one small record for each.
pub fn leaders(cluster: &Cluster, name: &str) -> Result<Vec<Led>> {
    let (batch, _) = Shape::plain(1, 100).batch()?;
    let of = |(leader, partitions): (i32, Vec<i32>)| {
        let frames = partitions.into_iter().map(|partition| produce_frame(name, [partition], &batch));
        Ok(Led { address: cluster.node(leader)?.address().clone(), frames: frames.collect::<Result<_>>()? })
    };
    cluster.topic(name, PARTITIONS)?.into_iter().map(of).collect()
}

/// One request in flight for each partition; returns how many were answered.
fn run_closed(led: &[Led], time: Duration) -> Result<u64> {
    let outcomes = of_each(led, |one| closed_loop::run(&one.address, one.frames.len(), &one.frames, time))?;
    Ok(outcomes.iter().map(|outcome| outcome.requests).sum())
}

/// Requests at the scale's rate, spread over the partitions; what is due in the warm-up is not counted.
pub fn run_open(led: &[Led], scale: &Scale, warm_up: Duration) -> Result<Histogram<u64>> {
    let time = warm_up + scale.load;
    let histograms = of_each(led, |one| {
        let connections = one.frames.len();
        let rate = scale.cluster_rate * connections as f64 / f64::from(PARTITIONS);
        Schedule { rate, connections, time, warm_up }.run(&one.address, &one.frames)
    })?;
    let mut all = empty()?;
    for histogram in histograms {
        all.add(histogram)?;
    }
    Ok(all)
}

/// The same for each leader at the same time.
fn of_each<R: Send>(led: &[Led], run: impl Fn(&Led) -> Result<R> + Sync) -> Result<Vec<R>> {
    thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = led.iter().map(|one| scope.spawn(move || run(one))).collect();
        threads.into_iter().map(|thread| thread.join().ok().context("a client thread ended early")?).collect()
    })
}
