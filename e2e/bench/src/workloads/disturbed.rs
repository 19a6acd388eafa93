//! What others do to a steady producer's p99: the quiet one first, then each disturbance beside it, each once the disk has what the
//! one before wrote. One of them goes past the broker: what it does to the producer is the machine's share of what its like does.

use std::{
    io::{Read, Seek, Write},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;

use super::{Scale, bulk, topic};
use crate::{
    brokers::Broker,
    load::{Address, Connection, Shape, fetch_frame, metadata_frame, produce_frame},
    open_loop::{Schedule, percentile_ms},
};

const RATE: f64 = 1_000.0;
const PRODUCERS: usize = 4;
const ASKERS: usize = 2;
const HUGE_PARTITIONS: i32 = 1_000;
/// What a plain sender sends with one call, as the broker does, of a file of so many of them.
const STEP: usize = 256 << 10;
const STEPS: usize = 256;

/// The seven figures, in the table's order.
pub fn all(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    let partitions = i32::try_from(PRODUCERS)?;
    topic(broker, "steady", partitions, &[])?;
    topic(broker, "backlog", 1, &[])?;
    topic(broker, "huge", HUGE_PARTITIONS.min(scale.many.0 * scale.many.1), &[])?;
    let (batch, _) = Shape::plain(15, 1024).batch()?;
    bulk::write(broker.address(), &produce_frame("backlog", 0..1, &batch)?, scale.bulk_bytes)?;
    let (record, _) = Shape::plain(1, 1024).batch()?;
    let frames: Vec<_> = (0..partitions).map(|one| produce_frame("steady", [one], &record)).collect::<Result<_>>()?;

    let broker = &*broker;
    let address = broker.address();
    let backlog = fetch_frame("backlog", 0, 0)?;
    let beside = |disturb: &(dyn Fn(&AtomicBool) -> Result<()> + Sync)| {
        broker.settle_disk()?;
        beside(address, scale, &frames, disturb)
    };
    let quiet = beside(&|_| Ok(()))?;
    let slow = beside(&|done| slow_consumer(address, &backlog, done))?;
    let catch_up = beside(&|done| {
        while !done.load(Ordering::Relaxed) {
            bulk::read(address, "backlog", 0, None)?;
        }
        Ok(())
    })?;
    let machine = beside(&past_the_broker)?;
    let (connections, memory) = idle_connections(broker, address, "steady", scale.idle_connections)?;
    let idle = beside(&|_| Ok(()))?;
    drop(connections);
    let ask = metadata_frame("huge")?;
    let huge = beside(&|done| ask_again_and_again(address, &ask, done))?;
    Ok(vec![quiet, slow, catch_up, machine, idle, memory, huge])
}

/// Connections that have asked one question each, as a client does, and the KiB that the broker is larger for each of them.
pub(super) fn idle_connections(
    broker: &Broker,
    address: &Address,
    name: &str,
    count: usize,
) -> Result<(Vec<Connection>, f64)> {
    let ask = metadata_frame(name)?;
    let open = || -> Result<Connection> {
        let mut connection = Connection::open(address)?;
        connection.send(&ask)?;
        connection.receive()?;
        Ok(connection)
    };
    // What the first ones need that the others share is not theirs.
    let mut connections = (0..count.div_ceil(10)).map(|_| open()).collect::<Result<Vec<_>>>()?;
    let before = broker.account()?.resident_mib()?;
    let counted = count - connections.len();
    for _ in 0..counted {
        connections.push(open()?);
    }
    let grown = (broker.account()?.resident_mib()? - before).max(0.0);
    Ok((connections, grown * 1024.0 / counted.max(1) as f64))
}

/// The p99 in milliseconds while something else goes on.
fn beside(
    address: &Address,
    scale: &Scale,
    frames: &[Bytes],
    disturb: &(dyn Fn(&AtomicBool) -> Result<()> + Sync),
) -> Result<f64> {
    let done = AtomicBool::new(false);
    let schedule = Schedule {
        rate: RATE,
        connections: PRODUCERS,
        time: scale.warm_up / 2 + scale.load,
        warm_up: scale.warm_up / 2,
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| disturb(&done));
        let histogram = schedule.run(address, frames);
        done.store(true, Ordering::Relaxed);
        other.join().ok().context("the disturbance ended early")??;
        Ok(percentile_ms(&histogram?, 99.0))
    })
}

/// Asks for a MiB and takes a few KiB of it a second, so that the broker's side is always full.
fn slow_consumer(address: &Address, fetch: &Bytes, done: &AtomicBool) -> Result<()> {
    let mut connection = Connection::open(address)?;
    for _ in 0..8 {
        connection.send(fetch)?;
    }
    let mut bytes = [0; 512];
    while !done.load(Ordering::Relaxed) {
        connection.trickle(&mut bytes)?;
        thread::park_timeout(Duration::from_millis(100));
    }
    Ok(())
}

/// As much as can be read of a file that another thread of ours sends over loopback: a catch-up without a broker.
fn past_the_broker(done: &AtomicBool) -> Result<()> {
    let mut file = tempfile::tempfile()?;
    let mut bytes = vec![0x5a; STEP];
    for _ in 0..STEPS {
        file.write_all(&bytes)?;
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut reader = TcpStream::connect(listener.local_addr()?)?;
    let (socket, _) = listener.accept()?;
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<()> {
            loop {
                file.rewind()?;
                for _ in 0..STEPS {
                    match rustix::fs::sendfile(&socket, &file, None, STEP) {
                        // The reader has gone.
                        Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => return Ok(()),
                        sent => sent?,
                    };
                }
            }
        });
        while !done.load(Ordering::Relaxed) {
            reader.read_exact(&mut bytes)?;
        }
        drop(reader);
        sender.join().ok().context("the sender ended early")?
    })
}

fn ask_again_and_again(address: &Address, ask: &Bytes, done: &AtomicBool) -> Result<()> {
    thread::scope(|scope| {
        let askers: Vec<_> = (0..ASKERS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let mut connection = Connection::open(address)?;
                    while !done.load(Ordering::Relaxed) {
                        connection.send(ask)?;
                        connection.receive()?;
                        thread::park_timeout(Duration::from_millis(5));
                    }
                    Ok(())
                })
            })
            .collect();
        askers.into_iter().try_for_each(|asker| asker.join().ok().context("a client ended early")?)
    })
}
