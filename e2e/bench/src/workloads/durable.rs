//! The price of a sync before each acknowledgement (`flush.messages=1`).

use anyhow::Result;

use super::{CONNECTIONS, Scale, topic};
use crate::{
    brokers::Broker,
    closed_loop,
    load::{Shape, produce_frame},
};

/// All connections write to one partition.
pub fn one(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    produce(broker, scale, "flush-one", 1)
}

/// They write to two hundred in turn.
pub fn two_hundred(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    produce(broker, scale, "flush-200", 200)
}

/// Microseconds of time per acknowledged request.
fn produce(broker: &Broker, scale: &Scale, name: &str, partitions: i32) -> Result<Vec<f64>> {
    topic(broker, name, partitions, &[("flush.messages", "1")])?;
    let (batch, _) = Shape::plain(1, 100).batch()?;
    let frames: Vec<_> =
        (0..partitions).map(|partition| produce_frame(name, [partition], &batch)).collect::<Result<_>>()?;
    closed_loop::run(broker.address(), CONNECTIONS, &frames, scale.warm_up)?;
    let outcome = closed_loop::run(broker.address(), CONNECTIONS, &frames, scale.load)?;
    Ok(vec![scale.load.as_secs_f64() * 1e6 / outcome.requests as f64])
}
