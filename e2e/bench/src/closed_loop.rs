//! Clients that ask as soon as they are answered: what the broker can do, and what a request costs it.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;

use crate::{
    load::{Address, Connection},
    open_loop::empty,
};

/// How a loop went.
pub struct Outcome {
    /// Requests that were answered.
    pub requests: u64,
    /// Their latencies, in nanoseconds.
    pub latencies: Histogram<u64>,
}

/// Runs so many connections, each with one request in flight, for a time. Connection n sends the n-th frame first.
pub fn run(address: &Address, connections: usize, frames: &[Bytes], time: Duration) -> Result<Outcome> {
    let outcomes: Result<Vec<Outcome>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..connections)
            .map(|connection| {
                // Five hundred of them need no stack to speak of.
                let client = thread::Builder::new().stack_size(256 << 10);
                client.spawn_scoped(scope, move || run_one(address, connection, frames, time))
            })
            .collect::<std::io::Result<_>>()?;
        clients.into_iter().map(|client| client.join().ok().context("a client thread ended early")?).collect()
    });
    let mut all = Outcome { requests: 0, latencies: empty()? };
    for outcome in outcomes? {
        all.requests += outcome.requests;
        all.latencies.add(outcome.latencies)?;
    }
    Ok(all)
}

fn run_one(address: &Address, connection: usize, frames: &[Bytes], time: Duration) -> Result<Outcome> {
    let mut stream = Connection::open(address)?;
    let mut outcome = Outcome { requests: 0, latencies: empty()? };
    let begun = Instant::now();
    loop {
        let sent = begun.elapsed();
        if sent >= time {
            return Ok(outcome);
        }
        stream.send(&frames[(connection + outcome.requests as usize) % frames.len()])?;
        let answer = stream.receive()?;
        // Decoding each answer would cost more than asking; each hundredth is looked at.
        if outcome.requests.is_multiple_of(100) {
            ensure!(Connection::is_stored(answer)?, "a record was refused");
        }
        outcome.latencies.saturating_record(begun.elapsed().saturating_sub(sent).as_nanos() as u64);
        outcome.requests += 1;
    }
}
