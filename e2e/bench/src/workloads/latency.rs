//! Latency under a load that comes as it comes, at half of what Apache can just keep up with.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;

use super::{CONNECTIONS, Scale, first_stored, small};
use crate::{
    brokers::Broker,
    closed_loop,
    load::{Address, Connection, Shape},
    open_loop::{Schedule, percentile_ms},
};

/// A warm broker.
pub fn steady(broker: &mut Broker, scale: &Scale) -> Result<Vec<f64>> {
    let frames = small::frames(broker, Shape::plain(1, 100))?;
    let time = scale.warm_up + 2 * scale.load;
    let schedule = Schedule { rate: scale.rate, connections: CONNECTIONS, time, warm_up: scale.warm_up };
    let histogram = schedule.run(broker.address(), &frames)?;
    let bare = bare(broker.address(), schedule, &frames)?;
    let mut figures = [50.0, 99.0, 99.9].map(|percentile| percentile_ms(&histogram, percentile)).to_vec();
    figures.push(percentile_ms(&bare, 99.9));
    Ok(figures)
}

/// The same schedule against one thread for each connection that reads a request, writes it to a file and sends what the broker once
/// answered: what no broker on this machine can be better than by much.
fn bare(address: &Address, schedule: Schedule, frames: &[Bytes]) -> Result<Histogram<u64>> {
    let mut connection = Connection::open(address)?;
    connection.send(&frames[0])?;
    let answer = connection.receive()?;
    let answer = [&u32::try_from(answer.len())?.to_be_bytes()[..], answer].concat();
    let (listener, schedule) =
        (TcpListener::bind("127.0.0.1:0")?, Schedule { time: schedule.time.mul_f64(0.5), ..schedule });
    let bare = Address::plain(listener.local_addr()?.to_string());
    let size = frames.iter().map(Bytes::len).max().unwrap_or_default();
    ensure!(frames.iter().all(|frame| frame.len() == size), "all requests have one size");
    thread::scope(|scope| {
        let client = scope.spawn(|| schedule.run(&bare, frames));
        for _ in 0..schedule.connections {
            let (stream, _) = listener.accept()?;
            let answer = &answer;
            scope.spawn(move || answer_all(stream, size, answer));
        }
        client.join().ok().context("the client ended early")?
    })
}

/// Until the client has gone.
fn answer_all(mut stream: TcpStream, size: usize, answer: &[u8]) -> Result<()> {
    stream.set_nodelay(true)?;
    let file = tempfile::tempfile()?;
    let mut bytes = vec![0; size];
    let mut position = 0;
    while stream.read_exact(&mut bytes).is_ok() {
        file.write_all_at(&bytes, position)?;
        position += bytes.len() as u64;
        stream.write_all(answer)?;
    }
    Ok(())
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
