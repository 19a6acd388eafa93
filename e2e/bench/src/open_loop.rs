//! Latency under a load that does not wait for the broker: every request has its time in a schedule, and its latency counts from
//! then, also where the client itself was held up by the answer before. What a slow answer keeps others from asking is so seen
//! as what it is (no coordinated omission).

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;

use crate::load::{Address, Connection};

/// A minute in nanoseconds; a request that takes longer counts as so long.
const LATENCY_MAX: u64 = 60_000_000_000;

/// When requests are due.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Requests per second, of all connections together.
    pub rate: f64,
    /// Connections; each has every n-th request.
    pub connections: usize,
    /// How long requests are sent.
    pub time: Duration,
    /// Latencies of requests due before this are not counted.
    pub warm_up: Duration,
}

impl Schedule {
    /// When a connection's n-th request is due, after the beginning.
    pub fn due(&self, connection: usize, request: u64) -> Duration {
        let place = request as f64 * self.connections as f64 + connection as f64;
        Duration::from_secs_f64(place / self.rate)
    }

    /// Runs the schedule. `frames` are sent in turn; connection n begins with the n-th.
    pub fn run(&self, address: &Address, frames: &[Bytes]) -> Result<Histogram<u64>> {
        let begin = Instant::now() + Duration::from_millis(20);
        let histograms: Result<Vec<Histogram<u64>>> = thread::scope(|scope| {
            let clients: Vec<_> = (0..self.connections)
                .map(|connection| scope.spawn(move || self.run_connection(address, connection, frames, begin)))
                .collect();
            clients.into_iter().map(|client| client.join().ok().context("a client thread ended early")?).collect()
        });
        let mut all = empty()?;
        for histogram in histograms? {
            all.add(histogram)?;
        }
        ensure!(!all.is_empty(), "no request was counted");
        Ok(all)
    }

    fn run_connection(
        &self,
        address: &Address,
        connection: usize,
        frames: &[Bytes],
        begin: Instant,
    ) -> Result<Histogram<u64>> {
        let mut histogram = empty()?;
        let mut stream = Connection::open(address)?;
        for request in 0.. {
            let due = self.due(connection, request);
            if due >= self.time {
                break;
            }
            let at = begin + due;
            // A sleep may end a little late: that is the client's share of the latency, the same for both brokers.
            while let Some(early) = at.checked_duration_since(Instant::now()).filter(|early| !early.is_zero()) {
                thread::sleep(early);
            }
            let frame = &frames[(connection + request as usize) % frames.len()];
            stream.send(frame)?;
            let answer = stream.receive()?;
            if request.is_multiple_of(100) {
                ensure!(Connection::is_stored(answer)?, "a record was refused");
            }
            record(&mut histogram, self.warm_up, due, begin.elapsed());
        }
        Ok(histogram)
    }
}

/// A histogram of latencies in nanoseconds.
pub fn empty() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1_000, LATENCY_MAX, 3)?)
}

fn record(histogram: &mut Histogram<u64>, warm_up: Duration, due: Duration, answered: Duration) {
    if due >= warm_up {
        let latency = answered.saturating_sub(due).as_nanos() as u64;
        histogram.saturating_record(latency.clamp(1_000, LATENCY_MAX));
    }
}

/// A percentile in milliseconds.
pub fn percentile_ms(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    histogram.value_at_percentile(percentile) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_evenly_over_the_connections() {
        let schedule =
            Schedule { rate: 1_000.0, connections: 4, time: Duration::from_secs(1), warm_up: Duration::ZERO };
        let mut due: Vec<_> =
            (0..4).flat_map(|connection| (0..250).map(move |request| schedule.due(connection, request))).collect();
        due.sort();
        assert_eq!(due.len(), 1_000);
        assert_eq!((due[0], due[999]), (Duration::ZERO, Duration::from_millis(999)));
        assert!(due.windows(2).all(|pair| pair[1].saturating_sub(pair[0]) <= Duration::from_micros(1_001)));
    }

    #[test]
    fn a_stall_counts_for_every_request_that_was_due_in_it() {
        let mut histogram = empty().unwrap();
        // Ten requests are due, one a millisecond; the first answer takes ten milliseconds, the others none.
        for request in 0..10 {
            let due = Duration::from_millis(request);
            record(&mut histogram, Duration::ZERO, due, due.max(Duration::from_millis(10)));
        }
        assert!(percentile_ms(&histogram, 50.0) > 4.0, "the median shows the stall, not one slow request");
        assert_eq!(histogram.len(), 10);
        record(&mut histogram, Duration::from_secs(1), Duration::ZERO, Duration::from_secs(9));
        assert_eq!(histogram.len(), 10, "the warm-up does not count");
    }
}
