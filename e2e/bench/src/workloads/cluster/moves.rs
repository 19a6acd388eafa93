//! Leadership moves because somebody asks for it, as an operator does before a restart: nobody is gone, and a producer should
//! hardly notice.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;

use super::{DEADLINE, PAUSE, Scale, worst};
use crate::{
    cluster::Cluster,
    load::{Address, Connection, Shape, produce_frame},
};

/// Acknowledgements of the old leader that are waited for before it has to go.
const BEFORE: usize = 20;

/// Who acknowledged, and when.
type Acknowledgements = Mutex<Vec<(i32, Instant)>>;

/// The longest time from the request to an acknowledgement by the new leader, and the longest pause, in milliseconds.
pub fn planned(cluster: &mut Cluster, scale: &Scale) -> Result<Vec<f64>> {
    cluster.topic("moved", 1)?;
    let (record, _) = Shape::plain(1, 100).batch()?;
    let frame = produce_frame("moved", 0..1, &record)?;
    let (mut times, mut pauses) = (Vec::new(), Vec::new());
    for _ in 0..scale.changes {
        let before = cluster.wait_until_in_sync("moved", 1)?.swap_remove(0);
        let heir = before.replicas.iter().copied().find(|id| *id != before.leader).context("a follower")?;
        let others = before.replicas.iter().copied().filter(|id| *id != heir);
        cluster.prefer("moved", 0, &[heir].into_iter().chain(others).collect::<Vec<_>>())?;
        let (time, pause) = move_to(cluster, heir, &frame)?;
        times.push(time.as_secs_f64() * 1e3);
        pauses.push(pause.as_secs_f64() * 1e3);
    }
    Ok(vec![worst(&times), worst(&pauses)])
}

/// Has all nodes asked without a pause, and the heir elected meanwhile.
fn move_to(cluster: &Cluster, heir: i32, frame: &Bytes) -> Result<(Duration, Duration)> {
    let nodes: Vec<_> = cluster.running().map(|(id, node)| (id, node.address().clone())).collect();
    let acknowledgements = Acknowledgements::default();
    let done = AtomicBool::new(false);
    let mut connection = cluster.connect()?;
    let asked = thread::scope(|scope| {
        for (id, address) in &nodes {
            let (acknowledgements, done) = (&acknowledgements, &done);
            scope.spawn(move || produce(*id, address, frame, acknowledgements, done));
        }
        let outcome = elect(&mut connection, heir, &acknowledgements);
        done.store(true, Ordering::Relaxed);
        outcome
    })?;
    let mut seen = acknowledgements.into_inner().unwrap_or_else(PoisonError::into_inner);
    seen.sort_unstable_by_key(|(_, at)| *at);
    let by_heir = seen.iter().position(|(id, at)| *id == heir && *at > asked);
    let by_heir = by_heir.context("the new leader acknowledged, and it is not known")?;
    let pauses = seen[..=by_heir].windows(2).filter(|pair| pair[1].1 > asked).map(|pair| pair[1].1 - pair[0].1);
    Ok((seen[by_heir].1 - asked, pauses.max().unwrap_or_default()))
}

/// Returns when the election was asked for, once the heir leads.
fn elect(connection: &mut Connection, heir: i32, acknowledgements: &Acknowledgements) -> Result<Instant> {
    let count = |is_of: &dyn Fn(i32) -> bool| {
        let seen = acknowledgements.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|(id, _)| is_of(*id)).count()
    };
    wait_until("the leader acknowledges", || count(&|id| id != heir) >= BEFORE)?;
    let asked = Instant::now();
    Cluster::elect(connection, "moved", 0)?;
    wait_until("the new leader acknowledges", || count(&|id| id == heir) > 0)?;
    Ok(asked)
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        ensure!(Instant::now() < deadline, "it did not come to this: {what}");
        thread::park_timeout(PAUSE);
    }
    Ok(())
}

/// Produces to a node, whether it leads or not, and notes what is acknowledged.
fn produce(id: i32, address: &Address, frame: &Bytes, acknowledgements: &Acknowledgements, done: &AtomicBool) {
    let mut connection = None;
    while !done.load(Ordering::Relaxed) {
        let stored = ask(&mut connection, address, frame);
        match stored {
            Ok(true) => {
                let now = Instant::now();
                acknowledgements.lock().unwrap_or_else(PoisonError::into_inner).push((id, now));
            }
            Ok(false) => thread::park_timeout(PAUSE),
            Err(_) => {
                connection = None;
                thread::park_timeout(PAUSE);
            }
        }
    }
}

fn ask(connection: &mut Option<Connection>, address: &Address, frame: &Bytes) -> Result<bool> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(Connection::open(address)?),
    };
    connection.send(frame)?;
    Connection::is_stored(connection.receive()?)
}
