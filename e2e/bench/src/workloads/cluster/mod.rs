//! Workloads of three nodes: what a cluster does that a node alone cannot. They are measured when they are named, or with
//! `--cluster`; each on new nodes.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{Measure, Scale, Workload, row};
use crate::cluster::Session;

mod cold;
mod controllers;
mod failover;
mod growth;
mod moves;
mod replicas;

/// How long it may take until somebody acknowledges, after whatever happened.
const DEADLINE: Duration = Duration::from_mins(2);
/// How often is asked whether something is so.
const PAUSE: Duration = Duration::from_millis(1);

/// All of them; the one that fills the nodes with partitions last.
pub const ALL: &[Workload] = &[
    Workload {
        name: "cluster-failover",
        figures: &[
            row(
                "failover-worst",
                "a leader is killed: from its session's end, as the controller wrote it, to the first acknowledgement; worst of 50 (at most 300 ms is wanted)",
                "ms",
                Some(4.0),
            ),
            row("failover-median", "the same, median", "ms", None),
        ],
        seconds: 700,
        measure: Measure::Cluster(Session::Short, failover::failover),
    },
    Workload {
        name: "cluster-move",
        figures: &[
            row(
                "move-worst",
                "a partition moves to its preferred leader: from the request to the first acknowledgement by that one; worst of 50 (at most 50 ms is wanted)",
                "ms",
                None,
            ),
            row("move-pause", "the longest time without an acknowledgement meanwhile; worst of 50", "ms", None),
        ],
        seconds: 60,
        measure: Measure::Cluster(Session::AsUsual, moves::planned),
    },
    Workload {
        name: "cluster-create",
        figures: &[row(
            "create-replicated",
            "5 topics of 1,000 partitions with 3 replicas: create to all serving",
            "s",
            Some(5.0),
        )],
        seconds: 120,
        measure: Measure::Cluster(Session::AsUsual, controllers::creation),
    },
    Workload {
        name: "cluster-controller",
        figures: &[row(
            "controller-failover",
            "the active controller of 10,000 partitions is killed: to the next change that is made; median of 3",
            "ms",
            None,
        )],
        seconds: 400,
        measure: Measure::Cluster(Session::AsUsual, controllers::failover),
    },
    Workload {
        name: "cluster-bytes",
        figures: &[
            row("follower-cpu", "CPU of each follower per GiB, 1 KiB records in 16 KiB batches, acks=all", "s", None),
            row("leader-cpu", "CPU of the leader per GiB of the same", "s", None),
        ],
        seconds: 60,
        measure: Measure::Cluster(Session::AsUsual, replicas::bytes),
    },
    Workload {
        name: "cluster-small",
        figures: &[
            row("replicated-cpu", "CPU of all nodes per Produce of one 100 B record, 3 replicas, acks=all", "us", None),
            row("replicated-p50", "its latency at 600 a second over all nodes (open loop), median", "ms", None),
            row("replicated-p99", "the same, p99", "ms", None),
        ],
        seconds: 50,
        measure: Measure::Cluster(Session::AsUsual, replicas::small),
    },
    Workload {
        name: "cluster-cold",
        figures: &[
            row(
                "cold-quiet-p99",
                "600 Produces a second to one leader of three nodes, acks=all: p99, quiet",
                "ms",
                None,
            ),
            row(
                "cold-follower-p99",
                "the same while a follower comes back that missed 1 GiB of this leader's",
                "ms",
                None,
            ),
            row("cold-catch-up", "from that follower's start until it has all of it", "s", None),
        ],
        seconds: 120,
        measure: Measure::Cluster(Session::AsUsual, cold::follower),
    },
    Workload {
        name: "cluster-growth",
        figures: &[
            row("growth-100-idle", "100 partitions with 3 replicas: CPU of all nodes while idle", "% of a core", None),
            row("growth-100-cpu", "100 partitions: CPU of all nodes per Produce at 600 a second", "us", None),
            row("growth-100-p99", "100 partitions: p99 of that", "ms", None),
            row("growth-1000-idle", "the same with 1,000", "% of a core", None),
            row("growth-1000-cpu", "the same with 1,000", "us", None),
            row("growth-1000-p99", "the same with 1,000", "ms", None),
            row("growth-5000-idle", "the same with 5,000", "% of a core", None),
            row("growth-5000-cpu", "the same with 5,000", "us", None),
            row("growth-5000-p99", "the same with 5,000", "ms", None),
            row(
                "growth-most-idle",
                "the same with 20,000, or 2,000 fewer than a process may have files open",
                "% of a core",
                None,
            ),
            row("growth-most-cpu", "the same with as many", "us", None),
            row("growth-most-p99", "the same with as many", "ms", None),
        ],
        seconds: 700,
        measure: Measure::Cluster(Session::AsUsual, growth::growth),
    },
];

fn worst(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

fn median(values: &[f64]) -> Result<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().context("nothing was measured")
}

/// Has one thread for each of some items ask until one of them has an answer, and returns it.
fn first_of<T: Sync, R: Send>(items: &[T], ask: impl Fn(&T) -> Option<R> + Sync) -> Result<R> {
    let deadline = Instant::now() + DEADLINE;
    let (send, answers) = channel();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for item in items {
            let (send, done, ask) = (send.clone(), &done, &ask);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) && Instant::now() < deadline {
                    if let Some(answer) = ask(item) {
                        let _ = send.send(answer);
                        return;
                    }
                    thread::park_timeout(PAUSE);
                }
            });
        }
        let answer = answers.recv_timeout(DEADLINE).context("nobody answered in time");
        done.store(true, Ordering::Relaxed);
        answer
    })
}
