//! Many bytes: what a GiB costs on its way in and out.

use std::thread;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use gregor_wire::compression::CompressionType;

use super::{Scale, topic};
use crate::{
    brokers::Broker,
    load::{Address, Connection, Shape, produce_frame},
};

const IN_FLIGHT: usize = 5;
const GIB: f64 = (1_u64 << 30) as f64;

/// Produce, consume, and what is left in memory.
pub fn bulk(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    let shape = Shape::plain(15, 1024);
    let produced = produce(broker, broker.address(), "bulk", shape, scale.bulk_bytes)?;
    let consumed = consume(broker, broker.address(), "bulk", scale.bulk_bytes)?;
    Ok(vec![produced, consumed, broker.account()?.resident_mib()?])
}

/// A consumer that reads what is being written.
pub fn tail(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    Ok(vec![produce_and_consume(broker, broker.address(), "tail", scale.bulk_bytes)?])
}

/// Requests of one record of 16 KiB.
pub fn medium_records(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    Ok(vec![produce(broker, broker.address(), "medium", Shape::plain(1, 16 << 10), scale.bulk_bytes / 2)?])
}

/// Requests of one record, as large as the default `message.max.bytes` lets it be.
pub fn large_records(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    Ok(vec![produce(broker, broker.address(), "large", Shape::plain(1, 1_040_000), scale.bulk_bytes)?])
}

/// Batches that the client has compressed; the broker looks into them all the same.
pub fn codecs(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    [CompressionType::Gzip, CompressionType::Snappy, CompressionType::Lz4, CompressionType::Zstd]
        .into_iter()
        .map(|codec| {
            let shape = Shape { records: 64, size: 1024, codec };
            produce(broker, broker.address(), "codecs", shape, scale.bulk_bytes)
        })
        .collect()
}

/// CPU seconds per GiB of values, after a warm-up of half as much.
pub fn produce(broker: &Broker, address: &Address, name: &str, shape: Shape, bytes: u64) -> Result<f64> {
    topic(broker, name, 1, &[])?;
    let (batch, value_bytes) = shape.batch()?;
    let frame = produce_frame(name, 0..1, &batch)?;
    let requests = bytes.div_ceil(value_bytes as u64);
    write(address, &frame, requests * frame.len() as u64 / 2)?;
    let before = broker.account()?.cpu()?;
    write(address, &frame, requests * frame.len() as u64)?;
    let used = broker.account()?.cpu()?.saturating_sub(before);
    Ok(used.as_secs_f64() / (requests * value_bytes as u64) as f64 * GIB)
}

/// CPU seconds per GiB of a topic that is read from its beginning; it holds at least so many bytes.
pub fn consume(broker: &Broker, address: &Address, name: &str, at_least: u64) -> Result<f64> {
    let before = broker.account()?.cpu()?;
    let bytes = read(address, name, 0, None)?;
    let used = broker.account()?.cpu()?.saturating_sub(before);
    ensure!(bytes >= at_least, "only {bytes} bytes were read back");
    Ok(used.as_secs_f64() / bytes as f64 * GIB)
}

/// CPU seconds per GiB that is written and read at once.
pub fn produce_and_consume(broker: &Broker, address: &Address, name: &str, bytes: u64) -> Result<f64> {
    topic(broker, name, 1, &[])?;
    let (batch, _) = Shape::plain(15, 1024).batch()?;
    let frame = produce_frame(name, 0..1, &batch)?;
    write(address, &frame, bytes / 4)?;
    let end = read_end(address, name)?;
    let before = broker.account()?.cpu()?;
    let batches = bytes.div_ceil(batch.len() as u64);
    thread::scope(|scope| -> Result<()> {
        let reader = scope.spawn(|| read(address, name, end, Some(bytes)));
        write(address, &frame, batches * frame.len() as u64)?;
        reader.join().ok().context("the consumer ended early")?.map(drop)
    })?;
    let used = broker.account()?.cpu()?.saturating_sub(before);
    Ok(used.as_secs_f64() / bytes as f64 * GIB)
}

/// Sends a frame until at least so many bytes are sent, with a few requests in flight.
pub fn write(address: &Address, frame: &Bytes, bytes: u64) -> Result<()> {
    let mut connection = Connection::open(address)?;
    let mut in_flight = 0;
    for request in 0..bytes.div_ceil(frame.len() as u64) {
        connection.send(frame)?;
        in_flight += 1;
        if in_flight == IN_FLIGHT {
            let answer = connection.receive()?;
            in_flight -= 1;
            if request.is_multiple_of(1000) {
                ensure!(Connection::is_stored(answer)?, "a batch was refused");
            }
        }
    }
    for _ in 0..in_flight {
        ensure!(Connection::is_stored(connection.receive()?)?, "a batch was refused");
    }
    Ok(())
}

/// Reads from an offset to the end, or so many bytes; returns how many.
pub fn read(address: &Address, name: &str, from: i64, until: Option<u64>) -> Result<u64> {
    let mut connection = Connection::open(address)?;
    let (mut offset, mut total) = (from, 0);
    loop {
        let (bytes, next) = connection.fetch(name, 0, offset)?;
        total += bytes as u64;
        let is_over = until.map_or(next == offset, |until| total >= until);
        if is_over {
            return Ok(total);
        }
        offset = next;
    }
}

fn read_end(address: &Address, name: &str) -> Result<i64> {
    let mut connection = Connection::open(address)?;
    let mut offset = 0;
    loop {
        let (_, next) = connection.fetch(name, 0, offset)?;
        if next == offset {
            return Ok(offset);
        }
        offset = next;
    }
}
