//! Latency under a load that comes as it comes, at half of what Apache can just keep up with.

use std::time::Duration;

use anyhow::Result;

use super::{CONNECTIONS, Scale, first_stored, small};
use crate::{
    brokers::Broker,
    closed_loop,
    load::Shape,
    open_loop::{Schedule, percentile_ms},
};

/// A warm broker.
pub fn steady(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    let frames = small::frames(broker, Shape::plain(1, 100))?;
    let time = scale.warm_up + 2 * scale.load;
    let schedule = Schedule { rate: scale.rate, connections: CONNECTIONS, time, warm_up: scale.warm_up };
    let histogram = schedule.run(broker.address(), &frames)?;
    Ok([50.0, 99.0, 99.9].map(|percentile| percentile_ms(&histogram, percentile)).to_vec())
}

/// A broker that has just been started: nothing of the first minute is left out.
pub fn first_minute(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    let frames = small::frames(broker, Shape::plain(1, 100))?;
    broker.stop()?;
    broker.start()?;
    frames.iter().try_for_each(|frame| first_stored(broker.address(), frame))?;
    let (time, warm_up) = (scale.first_minute, Duration::ZERO);
    let schedule = Schedule { rate: scale.rate, connections: CONNECTIONS, time, warm_up };
    let histogram = schedule.run(broker.address(), &frames)?;
    Ok([99.0, 99.9].map(|percentile| percentile_ms(&histogram, percentile)).to_vec())
}

/// Requests per second that a broker answers when 16 connections ask as fast as they can, once it is warm.
pub fn knee(broker: &Broker, scale: &Scale) -> Result<f64> {
    let frames = small::frames(broker, Shape::plain(1, 100))?;
    closed_loop::run(broker.address(), CONNECTIONS, &frames, 2 * scale.warm_up)?;
    let outcome = closed_loop::run(broker.address(), CONNECTIONS, &frames, scale.warm_up)?;
    Ok(outcome.requests as f64 / scale.warm_up.as_secs_f64())
}
