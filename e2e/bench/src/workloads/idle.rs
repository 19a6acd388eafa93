//! A broker without load: how fast it starts, and what it costs just to be there.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Scale, first_stored, topic};
use crate::{
    brokers::Broker,
    load::{Shape, produce_frame},
};

/// Milliseconds from the process's creation to the first acknowledged record of an existing topic.
pub fn start(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    topic(broker, "start", 1, &[])?;
    let frame = produce_frame("start", 0..1, &Shape::plain(1, 100).batch()?.0)?;
    let mut times = Vec::new();
    for _ in 0..scale.starts {
        broker.stop()?;
        let begun = Instant::now();
        broker.start()?;
        first_stored(broker.address(), &frame)?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(vec![times[times.len() / 2]])
}

/// Resident memory and CPU.
pub fn idle(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    thread::park_timeout(scale.settle);
    let memory = broker.account()?.resident_mib()?;
    let (before, begun) = (broker.account()?.cpu()?, Instant::now());
    while begun.elapsed() < scale.idle {
        thread::park_timeout(scale.idle.saturating_sub(begun.elapsed()).max(Duration::from_millis(1)));
    }
    let used = broker.account()?.cpu()?.saturating_sub(before);
    Ok(vec![memory, 100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64()])
}
