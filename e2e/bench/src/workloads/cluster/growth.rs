//! A cluster that gets more and more partitions: what they cost while nobody uses them, and what they cost those who use others.

use std::{thread, time::Instant};

use anyhow::Result;

use super::{Scale, controllers::fill, replicas};
use crate::{
    cluster::{self, Cluster},
    open_loop::percentile_ms,
};

/// For each step: the idle nodes' CPU, and CPU and p99 of a steady load on few partitions that are there from the beginning.
pub fn growth(cluster: &mut Cluster, scale: &Scale) -> Result<Vec<f64>> {
    let led = replicas::leaders(cluster, "steady")?;
    let mut there = replicas::PARTITIONS;
    let mut figures = Vec::new();
    let most = cluster::partitions_max();
    for (step, partitions) in scale.growth.into_iter().map(|partitions| partitions.min(most)).enumerate() {
        fill(cluster, &format!("growth-{step}"), partitions - there)?;
        there = there.max(partitions);
        thread::park_timeout(scale.settle);
        let (before, begun) = (cluster.cpu()?, Instant::now());
        while let Some(left) = scale.idle.checked_sub(begun.elapsed()) {
            thread::park_timeout(left);
        }
        let used = cluster.cpu()?.saturating_sub(before);
        figures.push(100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64());
        // The warm-up is the same load: its CPU counts, and only its latencies do not.
        let before = cluster.cpu()?;
        let latencies = replicas::run_open(&led, scale, scale.warm_up)?;
        let used = cluster.cpu()?.saturating_sub(before);
        let requests = scale.cluster_rate * (scale.warm_up + scale.load).as_secs_f64();
        figures.push(used.as_secs_f64() * 1e6 / requests);
        figures.push(percentile_ms(&latencies, 99.0));
    }
    Ok(figures)
}
