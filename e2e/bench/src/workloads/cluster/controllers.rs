//! What the controller has to do when there are many partitions: make them, and be followed by another one when it is gone.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{Scale, first_of, median};
use crate::{cluster::Cluster, load::Connection};

/// Partitions of a topic at most: a request that creates more would be as large as a controller takes.
const TOPIC_PARTITIONS_MAX: i32 = 1_000;
/// How often is asked who leads the quorum, and how long after each other.
const TRIES: usize = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Seconds from the first request to the last partition serving.
pub fn creation(cluster: &mut Cluster, scale: &Scale) -> Result<Vec<f64>> {
    let (topics, partitions) = scale.many;
    let names: Vec<_> = (0..topics).map(|number| format!("many-{number}")).collect();
    let begun = Instant::now();
    for name in &names {
        cluster.create(name, partitions)?;
    }
    for name in &names {
        cluster.wait_until_it_serves(name, partitions)?;
    }
    Ok(vec![begun.elapsed().as_secs_f64()])
}

/// Milliseconds from the kill of the active controller to the next change that another one has made: the time after which it is
/// missed is in it, and is the same for both kinds. A third of the partitions lose their leader with it.
pub fn failover(cluster: &mut Cluster, scale: &Scale) -> Result<Vec<f64>> {
    let (partitions, times) = scale.controllers;
    let topics = fill(cluster, "filled", partitions)?;
    let mut taken = Vec::new();
    for time in 0..times {
        let active = active_controller(cluster)?;
        let begun = Instant::now();
        cluster.kill(active)?;
        let survivors: Vec<_> = cluster.running().map(|(id, node)| (id, node.address().clone())).collect();
        let took = first_of(&survivors, |(id, address)| {
            let mut connection = Connection::open(address).ok()?;
            let created = connection.create_topic(&format!("change-{time}-by-{id}"), 1, &[]);
            // Made before, and the answer lost.
            let is_there = |error: &anyhow::Error| error.to_string().contains("TOPIC_ALREADY_EXISTS");
            (created.is_ok() || created.is_err_and(|error| is_there(&error))).then(|| begun.elapsed())
        })?;
        taken.push(took.as_secs_f64() * 1e3);
        cluster.revive(active)?;
        for (name, partitions) in &topics {
            cluster.wait_until_in_sync(name, *partitions)?;
        }
    }
    Ok(vec![median(&taken)?])
}

/// Makes so many partitions in topics with names that begin alike, and waits until all serve; returns topics and their partitions.
pub fn fill(cluster: &Cluster, prefix: &str, partitions: i32) -> Result<Vec<(String, i32)>> {
    let mut topics = Vec::new();
    let mut left = partitions;
    while left > 0 {
        let count = left.min(TOPIC_PARTITIONS_MAX);
        topics.push((format!("{prefix}-{}", topics.len()), count));
        left -= count;
    }
    for (name, count) in &topics {
        cluster.create(name, *count)?;
    }
    for (name, count) in &topics {
        cluster.wait_until_it_serves(name, *count)?;
    }
    Ok(topics)
}

/// Nobody may lead for a moment.
fn active_controller(cluster: &Cluster) -> Result<i32> {
    for _ in 0..TRIES {
        if let Ok(active) = cluster.controller() {
            return Ok(active);
        }
        thread::park_timeout(LOOK_AGAIN);
    }
    cluster.controller().context("looking for who leads the quorum, again and again")
}
