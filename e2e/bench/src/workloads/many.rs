//! Thousands of partitions: made, held in memory, closed, opened, and recovered.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{Scale, first_stored};
use crate::{
    brokers::Broker,
    load::{Connection, Shape, produce_frame},
};

/// Record batches of this size fill the partitions.
const BATCH_BYTES: usize = 20_000;
/// Partitions that one request names; more would be larger than a request may be.
const PARTITIONS_PER_REQUEST: usize = 250;

/// The five figures, in the table's order.
pub fn all(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    let (topics, partitions) = scale.many;
    let names: Vec<_> = (0..topics).map(|number| format!("many-{number}")).collect();
    let (record, _) = Shape::plain(1, 100).batch()?;
    let all_serve = |broker: &Broker| -> Result<()> {
        names.iter().try_for_each(|name| first_stored(broker.address(), &produce_frame(name, 0..partitions, &record)?))
    };

    let begun = Instant::now();
    let mut connection = Connection::open(broker.address())?;
    for name in &names {
        connection.create_topic(name, partitions, &[])?;
    }
    all_serve(broker)?;
    let created = begun.elapsed().as_secs_f64();
    fill(broker, &names, scale)?;
    let memory = broker.account()?.resident_mib()?;

    let begun = Instant::now();
    broker.stop()?;
    let stopped = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    broker.start()?;
    all_serve(broker)?;
    let restarted = begun.elapsed().as_secs_f64();

    fill(broker, &names, scale)?;
    broker.kill()?;
    let begun = Instant::now();
    broker.start()?;
    all_serve(broker)?;
    Ok(vec![created, memory, stopped, restarted, begun.elapsed().as_secs_f64()])
}

/// Writes to every partition.
fn fill(broker: &Broker, names: &[String], scale: &Scale) -> Result<()> {
    let (batch, bytes) = Shape::plain(1, BATCH_BYTES).batch()?;
    let mut connection = Connection::open(broker.address())?;
    for name in names {
        for from in (0..scale.many.1).step_by(PARTITIONS_PER_REQUEST) {
            let until = (from + i32::try_from(PARTITIONS_PER_REQUEST)?).min(scale.many.1);
            let frame = produce_frame(name, from..until, &batch)?;
            for _ in 0..scale.many_bytes.div_ceil(bytes) {
                connection.send(&frame)?;
                ensure!(Connection::is_stored(connection.receive()?)?, "a batch was refused");
            }
        }
    }
    Ok(())
}
