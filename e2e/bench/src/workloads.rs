//! What is measured. Each workload makes the topics that it needs and returns one figure; smaller is better.

#![allow(clippy::cast_precision_loss, reason = "figures of a bench have a handful of digits")]

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    brokers::Broker,
    load::{Connection, produce_frame},
};

/// One figure.
pub struct Workload {
    /// What the command line and the tables call it.
    pub name: &'static str,
    /// What a reader should know of it.
    pub what: &'static str,
    /// The figure's unit.
    pub unit: &'static str,
    /// Measures it once on a running broker, and leaves it running.
    pub measure: fn(&mut Broker, &Scale) -> Result<f64>,
}

/// How much of everything.
pub struct Scale {
    idle: Duration,
    settle: Duration,
    small: Duration,
    bulk_bytes: u64,
    warm_up_bytes: u64,
    warm_up: Duration,
    starts: usize,
}

impl Scale {
    /// What the tables are made with.
    pub const FULL: Self = Self {
        idle: Duration::from_secs(10),
        settle: Duration::from_secs(5),
        small: Duration::from_secs(10),
        bulk_bytes: 1 << 30,
        warm_up_bytes: 1 << 30,
        warm_up: Duration::from_secs(10),
        starts: 3,
    };
    /// Enough to see that it works.
    pub const QUICK: Self = Self {
        idle: Duration::from_secs(2),
        settle: Duration::from_secs(1),
        small: Duration::from_secs(2),
        bulk_bytes: 128 << 20,
        warm_up_bytes: 64 << 20,
        warm_up: Duration::from_secs(1),
        starts: 1,
    };
}

const CONNECTIONS: usize = 16;
const IN_FLIGHT: usize = 5;
const LED_DEADLINE: Duration = Duration::from_secs(30);

/// All workloads, in the order in which a round runs them: an idle broker first, as load leaves memory behind.
pub const ALL: &[Workload] = &[
    Workload {
        name: "start",
        what: "process start to first acknowledged record, existing topic",
        unit: "ms",
        measure: start,
    },
    Workload { name: "idle-memory", what: "resident memory, idle after a start", unit: "MiB", measure: idle_memory },
    Workload { name: "idle-cpu", what: "CPU while idle", unit: "% of a core", measure: idle_cpu },
    Workload {
        name: "small-produce",
        what: "CPU per Produce of one 100 B record, 16 connections, one request in flight each",
        unit: "us",
        measure: small_produce,
    },
    Workload {
        name: "bulk-produce",
        what: "CPU per GiB produced, 1 KiB records in 16 KiB batches, acks=all",
        unit: "CPU-s/GiB",
        measure: bulk_produce,
    },
    Workload {
        name: "bulk-consume",
        what: "CPU per GiB consumed, just written",
        unit: "CPU-s/GiB",
        measure: bulk_consume,
    },
    Workload { name: "memory-after-load", what: "resident memory after the load above", unit: "MiB", measure: memory },
];

/// The workloads of these names, or all.
pub fn choose(names: &[String]) -> Result<Vec<&'static Workload>> {
    for name in names {
        if ALL.iter().all(|workload| workload.name != name) {
            bail!("there is no workload {name}; --list shows them");
        }
    }
    Ok(ALL.iter().filter(|workload| names.is_empty() || names.iter().any(|name| name == workload.name)).collect())
}

/// Creates a topic unless it is there, and waits until each partition takes a record.
fn topic(broker: &Broker, name: &str, partitions: i32) -> Result<()> {
    let mut connection = Connection::open(broker.address())?;
    if let Err(error) = connection.create_topic(name, partitions) {
        ensure!(error.to_string().contains("TOPIC_ALREADY_EXISTS"), "{error:#}");
    }
    for partition in 0..partitions {
        let frame = produce_frame(name, partition, 1, 100)?;
        first_stored(broker.address(), &frame)?;
    }
    Ok(())
}

/// Sends one Produce again and again, with new connections where need be, until it is acknowledged.
fn first_stored(address: &str, frame: &[u8]) -> Result<()> {
    let deadline = Instant::now() + LED_DEADLINE;
    while Instant::now() < deadline {
        let attempt = Connection::open(address).and_then(|mut connection| {
            connection.send(frame)?;
            Connection::is_stored(connection.receive()?)
        });
        if attempt.unwrap_or(false) {
            return Ok(());
        }
        thread::park_timeout(Duration::from_millis(1));
    }
    bail!("no record was acknowledged within {LED_DEADLINE:?}")
}

fn start(broker: &mut Broker, scale: &Scale) -> Result<f64> {
    topic(broker, "start", 1)?;
    let frame = produce_frame("start", 0, 1, 100)?;
    let mut times = Vec::new();
    for _ in 0..scale.starts {
        broker.stop()?;
        let begun = Instant::now();
        broker.start()?;
        first_stored(broker.address(), &frame)?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn idle_memory(broker: &mut Broker, scale: &Scale) -> Result<f64> {
    thread::park_timeout(scale.settle);
    memory(broker, scale)
}

fn memory(broker: &mut Broker, _scale: &Scale) -> Result<f64> {
    broker.account()?.resident_mib()
}

fn idle_cpu(broker: &mut Broker, scale: &Scale) -> Result<f64> {
    thread::park_timeout(scale.settle);
    let (before, begun) = (broker.account()?.cpu()?, Instant::now());
    while begun.elapsed() < scale.idle {
        thread::park_timeout(scale.idle.saturating_sub(begun.elapsed()));
    }
    let used = broker.account()?.cpu()?.saturating_sub(before);
    Ok(100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64())
}

fn small_produce(broker: &mut Broker, scale: &Scale) -> Result<f64> {
    topic(broker, "small", i32::try_from(CONNECTIONS)?)?;
    small_requests(broker, scale.warm_up)?;
    let before = broker.account()?.cpu()?;
    let requests = small_requests(broker, scale.small)?;
    let used = broker.account()?.cpu()?.saturating_sub(before);
    Ok(used.as_secs_f64() * 1e6 / requests as f64)
}

fn small_requests(broker: &Broker, time: Duration) -> Result<u64> {
    let address = broker.address();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|partition| {
                scope.spawn(move || -> Result<u64> {
                    let frame = produce_frame("small", i32::try_from(partition)?, 1, 100)?;
                    let mut connection = Connection::open(address)?;
                    let begun = Instant::now();
                    let mut requests = 0;
                    while begun.elapsed() < time {
                        connection.send(&frame)?;
                        let answer = connection.receive()?;
                        // Decoding each answer would cost more than asking; each hundredth is looked at.
                        if requests % 100 == 0 {
                            ensure!(Connection::is_stored(answer)?, "a record was refused");
                        }
                        requests += 1;
                    }
                    Ok(requests)
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().ok().context("a client thread ended early")?).sum()
    })
}

fn bulk_produce(broker: &mut Broker, scale: &Scale) -> Result<f64> {
    topic(broker, "bulk", 1)?;
    bulk(broker, scale.warm_up_bytes)?;
    let before = broker.account()?.cpu()?;
    let bytes = bulk(broker, scale.bulk_bytes)?;
    let used = broker.account()?.cpu()?.saturating_sub(before);
    Ok(used.as_secs_f64() / bytes * f64::from(1 << 30))
}

/// Produces at least this many bytes with a few requests in flight; returns how many.
fn bulk(broker: &Broker, bytes: u64) -> Result<f64> {
    let frame = produce_frame("bulk", 0, 15, 1024)?;
    let requests = bytes.div_ceil(frame.len() as u64);
    let mut connection = Connection::open(broker.address())?;
    let mut in_flight = 0;
    for request in 0..requests {
        connection.send(&frame)?;
        in_flight += 1;
        if in_flight == IN_FLIGHT {
            let answer = connection.receive()?;
            in_flight -= 1;
            if request % 1000 == 0 {
                ensure!(Connection::is_stored(answer)?, "a batch was refused");
            }
        }
    }
    for _ in 0..in_flight {
        ensure!(Connection::is_stored(connection.receive()?)?, "a batch was refused");
    }
    Ok((requests * frame.len() as u64) as f64)
}

fn bulk_consume(broker: &mut Broker, scale: &Scale) -> Result<f64> {
    topic(broker, "bulk", 1)?;
    if consume(broker)? < scale.bulk_bytes as f64 {
        bulk(broker, scale.bulk_bytes)?;
    }
    let before = broker.account()?.cpu()?;
    let bytes = consume(broker)?;
    let used = broker.account()?.cpu()?.saturating_sub(before);
    Ok(used.as_secs_f64() / bytes * f64::from(1 << 30))
}

/// Reads the bulk topic from its beginning to its end; returns the bytes.
fn consume(broker: &Broker) -> Result<f64> {
    let mut connection = Connection::open(broker.address())?;
    let (mut offset, mut total) = (0, 0);
    loop {
        let (bytes, next) = connection.fetch("bulk", 0, offset)?;
        if next == offset {
            return Ok(total as f64);
        }
        total += bytes;
        offset = next;
    }
}
