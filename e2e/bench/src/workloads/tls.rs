//! The same over TLS: bytes in and out, and what a handshake costs. The broker has a TLS listener for as long as this takes.

use anyhow::Result;

use super::{Scale, bulk, disturbed::idle_connections};
use crate::{
    brokers::Broker,
    certificate::Certificate,
    load::{Address, Connection, Shape, metadata_frame},
};

/// Connections that are made one after the other, for each second of load.
const CONNECTIONS_PER_SECOND: u64 = 100;

/// The five figures, in the table's order.
pub fn tls(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    let address = broker.restart_with_tls(&Certificate::new()?)?;
    let produced = bulk::produce(broker, &address, "tls", Shape::plain(15, 1024), scale.bulk_bytes)?;
    // The broker is fresh: its first reading over TLS would measure how it warms up.
    bulk::consume(broker, &address, "tls", scale.bulk_bytes)?;
    let consumed = bulk::consume(broker, &address, "tls", scale.bulk_bytes)?;
    let tail = bulk::produce_and_consume(broker, &address, "tls-tail", scale.bulk_bytes)?;
    let count = CONNECTIONS_PER_SECOND * scale.load.as_secs();
    connect(&address, count / 2)?;
    let before = broker.account()?.cpu()?;
    connect(&address, count)?;
    let used = broker.account()?.cpu()?.saturating_sub(before);
    let (connections, memory) = idle_connections(broker, &address, "tls", scale.idle_connections)?;
    drop(connections);
    broker.restart_without_tls()?;
    Ok(vec![produced, consumed, tail, used.as_secs_f64() * 1e6 / count as f64, memory])
}

/// Connects so many times, and asks one question each time.
fn connect(address: &Address, count: u64) -> Result<()> {
    let ask = metadata_frame("tls")?;
    for _ in 0..count {
        let mut connection = Connection::open(address)?;
        connection.send(&ask)?;
        connection.receive()?;
    }
    Ok(())
}
