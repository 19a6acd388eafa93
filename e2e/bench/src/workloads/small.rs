//! Small requests: what each costs the broker.

use anyhow::Result;
use bytes::Bytes;

use super::{CONNECTIONS, Scale, topic};
use crate::{
    brokers::Broker,
    closed_loop::{self, Outcome},
    load::{Shape, produce_frame},
    open_loop::percentile_ms,
};

/// One request in flight on each of 16 connections, each with a partition of its own.
pub fn sixteen(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    let (cpu, outcome) = produce(broker, scale, CONNECTIONS, Shape::plain(1, 100))?;
    Ok(vec![cpu, percentile_ms(&outcome.latencies, 50.0), percentile_ms(&outcome.latencies, 99.0)])
}

/// The same on one connection: nothing comes in batches there.
pub fn one(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    Ok(vec![produce(broker, scale, 1, Shape::plain(1, 100))?.0])
}

/// The same on five hundred.
pub fn five_hundred(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    Ok(vec![produce(broker, scale, 500, Shape::plain(1, 100))?.0])
}

/// Batches as a client with a little linger makes them.
pub fn batched(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    let shape = Shape::plain(150, 100);
    let (cpu, _) = produce(broker, scale, CONNECTIONS, shape)?;
    Ok(vec![cpu / shape.records as f64])
}

/// Requests of one small record, each to a partition of the topic `small`.
pub fn frames(broker: &Broker, shape: Shape) -> Result<Vec<Bytes>> {
    let partitions = i32::try_from(CONNECTIONS)?;
    topic(broker, "small", partitions, &[])?;
    let (batch, _) = shape.batch()?;
    (0..partitions).map(|partition| produce_frame("small", [partition], &batch)).collect()
}

/// Microseconds of CPU per request, after a warm-up.
fn produce(broker: &Broker, scale: &Scale, connections: usize, shape: Shape) -> Result<(f64, Outcome)> {
    let frames = frames(broker, shape)?;
    closed_loop::run(broker.address(), connections, &frames, scale.warm_up)?;
    let before = broker.account()?.cpu()?;
    let outcome = closed_loop::run(broker.address(), connections, &frames, scale.load)?;
    let used = broker.account()?.cpu()?.saturating_sub(before);
    Ok((used.as_secs_f64() * 1e6 / outcome.requests as f64, outcome))
}
