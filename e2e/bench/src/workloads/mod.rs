//! What is measured: the table, in the order in which a round runs it. Each workload makes the topics that it needs and
//! returns its figures, smaller being better. A broker lives through a whole round; what needs a fresh start starts it anew.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use crate::{
    brokers::Broker,
    cluster::{Cluster, Session},
    load::{Address, Connection, Shape, produce_frame},
};

mod bulk;
mod cluster;
mod disturbed;
mod durable;
mod idle;
mod java;
mod latency;
mod many;
mod small;
mod tls;

pub use latency::knee;

/// One job on a broker, and the figures that it gives.
pub struct Workload {
    /// What the command line calls it.
    pub name: &'static str,
    /// Its figures, in the order in which `measure` returns them.
    pub figures: &'static [Row],
    /// Seconds that it takes on one broker, roughly.
    pub seconds: u64,
    /// How it is measured.
    pub measure: Measure,
}

/// Measures a workload once.
#[derive(Clone, Copy)]
pub enum Measure {
    /// On a running broker, which it leaves running.
    Node(fn(&mut Broker, &Scale) -> Result<Vec<f64>>),
    /// On three nodes that run and are new, whose sessions are so long: a broker is missed after that.
    Cluster(Session, fn(&mut Cluster, &Scale) -> Result<Vec<f64>>),
}

/// One row of the table.
pub struct Row {
    /// What results and plots call it.
    pub name: &'static str,
    /// What a reader should know of it.
    pub what: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// How many times less than Apache's it is to be.
    pub target: Option<f64>,
}

/// What has no goal is there to be watched, in each so many rounds.
const WATCHED_EVERY: usize = 4;

impl Workload {
    /// Whether it takes three nodes; it is then no part of a run of all.
    pub fn is_of_clusters(&self) -> bool {
        matches!(self.measure, Measure::Cluster(..))
    }

    /// Whether a run of all measures it in this round, counted from 1.
    pub fn is_due_in(&self, round: usize) -> bool {
        self.figures.iter().any(|row| row.target.is_some()) || round % WATCHED_EVERY == 1
    }
}

const fn row(name: &'static str, what: &'static str, unit: &'static str, target: Option<f64>) -> Row {
    Row { name, what, unit, target }
}

/// How much of everything.
pub struct Scale {
    /// An idle broker is watched for so long, after so long.
    pub idle: Duration,
    /// See `idle`.
    pub settle: Duration,
    /// How long closed and open loops run, and how long they warm up.
    pub load: Duration,
    /// See `load`.
    pub warm_up: Duration,
    /// How long the time right after a start is watched.
    pub first_minute: Duration,
    /// Bytes that are produced in bulk.
    pub bulk_bytes: u64,
    /// Starts, of which the median counts.
    pub starts: usize,
    /// Topics of many partitions, and the partitions of each.
    pub many: (i32, i32),
    /// Bytes in each of those partitions.
    pub many_bytes: usize,
    /// Idle connections that stand beside a producer.
    pub idle_connections: usize,
    /// Requests per second of open loops; found out before the first round.
    pub rate: f64,
    /// Failovers and planned moves, of which the worst counts.
    pub changes: usize,
    /// Partitions of a cluster whose controller goes, and how often it does.
    pub controllers: (i32, usize),
    /// Partitions that a cluster grows to, step by step.
    pub growth: [i32; 4],
    /// Requests per second of open loops over a cluster.
    pub cluster_rate: f64,
}

impl Scale {
    /// What the tables are made with.
    pub const FULL: Self = Self {
        idle: Duration::from_secs(10),
        settle: Duration::from_secs(5),
        load: Duration::from_secs(10),
        warm_up: Duration::from_secs(5),
        first_minute: Duration::from_mins(1),
        bulk_bytes: 1 << 30,
        starts: 3,
        many: (5, 1_000),
        many_bytes: 200 << 10,
        idle_connections: 5_000,
        rate: 10_000.0,
        changes: 50,
        controllers: (10_000, 3),
        growth: [100, 1_000, 5_000, 20_000],
        cluster_rate: 600.0,
    };
    /// Enough to see that it works.
    pub const QUICK: Self = Self {
        idle: Duration::from_secs(1),
        settle: Duration::from_secs(1),
        load: Duration::from_secs(1),
        warm_up: Duration::from_secs(1),
        first_minute: Duration::from_secs(2),
        bulk_bytes: 64 << 20,
        starts: 1,
        many: (2, 50),
        many_bytes: 20 << 10,
        idle_connections: 100,
        rate: 1_000.0,
        changes: 2,
        controllers: (30, 1),
        growth: [6, 12, 18, 24],
        cluster_rate: 300.0,
    };
}

/// Connections of the closed loops, where a row does not say another number.
pub const CONNECTIONS: usize = 16;
/// How long a partition may take until it takes a record.
const LED_DEADLINE: Duration = Duration::from_mins(2);

/// All workloads of one node: an idle broker first, as load leaves memory behind, and what starts it anew last.
pub const ALL: &[Workload] = &[
    Workload {
        name: "start",
        figures: &[row("start", "process start to first acknowledged record, existing topic", "ms", Some(75.0))],
        seconds: 10,
        measure: Measure::Node(idle::start),
    },
    Workload {
        name: "idle",
        figures: &[
            row("idle-memory", "resident memory, idle after a start", "MiB", Some(38.0)),
            row("idle-cpu", "CPU while idle", "% of a core", Some(30.0)),
        ],
        seconds: 16,
        measure: Measure::Node(idle::idle),
    },
    Workload {
        name: "small",
        figures: &[
            row("small-cpu", "CPU per Produce of one 100 B record, 16 connections, one in flight", "us", Some(3.0)),
            row("small-p50", "its latency, median (closed loop)", "ms", None),
            row("small-p99", "its latency, p99 (closed loop)", "ms", None),
        ],
        seconds: 16,
        measure: Measure::Node(small::sixteen),
    },
    Workload {
        name: "one-connection",
        figures: &[row("one-connection-cpu", "CPU per Produce of one 100 B record, 1 connection", "us", None)],
        seconds: 16,
        measure: Measure::Node(small::one),
    },
    Workload {
        name: "many-connections",
        figures: &[row("many-connections-cpu", "CPU per Produce of one 100 B record, 500 connections", "us", None)],
        seconds: 16,
        measure: Measure::Node(small::five_hundred),
    },
    Workload {
        name: "batched",
        figures: &[row("batched-cpu", "CPU per 100 B record, 150 in a batch, 16 connections", "us", Some(3.0))],
        seconds: 16,
        measure: Measure::Node(small::batched),
    },
    Workload {
        name: "latency",
        figures: &[
            row("latency-p50", "open loop at half of Apache's knee, 100 B: median", "ms", None),
            row("latency-p99", "open loop at half of Apache's knee, 100 B: p99", "ms", Some(2.0)),
            row("latency-p999", "open loop at half of Apache's knee, 100 B: p99.9", "ms", Some(4.0)),
            row(
                "bare-p999",
                "the same asked of bare loops of recv, pwrite and send, without a broker: p99.9",
                "ms",
                None,
            ),
        ],
        seconds: 50,
        measure: Measure::Node(latency::steady),
    },
    Workload {
        name: "bulk",
        figures: &[
            row("bulk-produce", "CPU per GiB produced, 1 KiB records in 16 KiB batches, acks=all", "s", Some(4.0)),
            row("bulk-consume", "CPU per GiB consumed, just written", "s", Some(4.0)),
            row("bulk-memory", "resident memory after that", "MiB", Some(30.0)),
        ],
        seconds: 40,
        measure: Measure::Node(bulk::bulk),
    },
    Workload {
        name: "tail",
        figures: &[row("tail-consume", "CPU per GiB produced and consumed at once at the tail", "s", None)],
        seconds: 20,
        measure: Measure::Node(bulk::tail),
    },
    Workload {
        name: "records-16k",
        figures: &[row("records-16k", "CPU per GiB produced, one 16 KiB record in a request", "s", None)],
        seconds: 20,
        measure: Measure::Node(bulk::medium_records),
    },
    Workload {
        name: "records-1m",
        figures: &[row("records-1m", "CPU per GiB produced, one record of nearly 1 MiB in a request", "s", None)],
        seconds: 20,
        measure: Measure::Node(bulk::large_records),
    },
    Workload {
        name: "codecs",
        figures: &[
            row("gzip", "CPU per GiB of text produced, gzip by the client, 64 KiB batches", "s", None),
            row("snappy", "the same, snappy", "s", None),
            row("lz4", "the same, lz4", "s", None),
            row("zstd", "the same, zstd", "s", None),
        ],
        seconds: 60,
        measure: Measure::Node(bulk::codecs),
    },
    Workload {
        name: "flush-one",
        figures: &[row("flush-one", "time per Produce, flush.messages=1, 16 connections, 1 partition", "us", None)],
        seconds: 16,
        measure: Measure::Node(durable::one),
    },
    Workload {
        name: "flush-200",
        figures: &[row("flush-200", "time per Produce, flush.messages=1, 16 connections, 200 partitions", "us", None)],
        seconds: 16,
        measure: Measure::Node(durable::two_hundred),
    },
    Workload {
        name: "disturbed",
        figures: &[
            row("quiet-p99", "p99 of 1,000 Produces a second, quiet", "ms", None),
            row("slow-consumer-p99", "the same beside a consumer that hardly reads", "ms", None),
            row("catch-up-p99", "the same beside a read of 1 GiB from its beginning", "ms", None),
            row("bare-read-p99", "the same beside as large a read of a file that no broker sends", "ms", None),
            row("idle-connections-p99", "the same beside 5,000 idle connections", "ms", None),
            row("idle-connection-memory", "resident memory for each of 5,000 idle connections", "KiB", None),
            row("huge-topic-p99", "the same beside clients that ask for a topic of 1,000 partitions", "ms", None),
        ],
        seconds: 90,
        measure: Measure::Node(disturbed::all),
    },
    Workload {
        name: "tls",
        figures: &[
            row("tls-produce", "CPU per GiB produced over TLS, as in bulk", "s", None),
            row("tls-consume", "CPU per GiB consumed over TLS, just written", "s", Some(2.85)),
            row("tls-tail", "CPU per GiB produced and consumed at once at the tail, both over TLS", "s", None),
            row("tls-connect", "CPU per TLS connection with a full handshake and one Metadata request", "us", None),
            row("tls-idle-memory", "resident memory for each of 5,000 idle TLS connections", "KiB", None),
        ],
        seconds: 70,
        measure: Measure::Node(tls::tls),
    },
    Workload {
        name: "java",
        figures: &[
            row("java-produce", "CPU per GiB from Kafka's own producer-perf, 1 KiB records", "s", None),
            row("java-consume", "CPU per GiB to Kafka's own consumer-perf", "s", None),
        ],
        seconds: 30,
        measure: Measure::Node(java::both),
    },
    Workload {
        name: "first-minute",
        figures: &[
            row("first-minute-p99", "open loop in the minute after a start: p99", "ms", Some(10.0)),
            row("first-minute-p999", "open loop in the minute after a start: p99.9", "ms", None),
        ],
        seconds: 70,
        measure: Measure::Node(latency::first_minute),
    },
    Workload {
        name: "partitions",
        figures: &[
            row("partitions-create", "5 topics of 1,000 partitions: create to all serving", "s", Some(5.0)),
            row("partitions-memory", "resident memory with them, 1 GiB of data in them", "MiB", Some(20.0)),
            row("partitions-stop", "clean stop with them", "s", None),
            row("partitions-restart", "clean restart to the last one serving", "s", Some(30.0)),
            row(
                "partitions-recovery",
                "restart after a kill with 1 GiB unflushed, to the last one serving",
                "s",
                Some(8.0),
            ),
        ],
        seconds: 90,
        measure: Measure::Node(many::all),
    },
];

/// The workloads of these names; without names all of one node. With `clusters` those of clusters too, or alone.
pub fn choose(names: &[String], clusters: bool) -> Result<Vec<&'static Workload>> {
    let is_named = |workload: &Workload| names.iter().any(|name| name == workload.name);
    for name in names {
        if every().all(|workload| workload.name != name) {
            bail!("there is no workload {name}; --list shows them");
        }
    }
    let asked_for = |workload: &Workload| {
        if workload.is_of_clusters() { clusters } else { names.is_empty() && !clusters }
    };
    Ok(every().filter(|workload| is_named(workload) || asked_for(workload)).collect())
}

/// Those of one node, then those of clusters.
pub fn every() -> impl Iterator<Item = &'static Workload> {
    ALL.iter().chain(cluster::ALL)
}

/// Creates a topic unless it is there, and waits until all its partitions take a record.
fn topic(broker: &Broker, name: &str, partitions: i32, configs: &[(&str, &str)]) -> Result<()> {
    let mut connection = Connection::open(broker.address())?;
    if let Err(error) = connection.create_topic(name, partitions, configs) {
        ensure!(error.to_string().contains("TOPIC_ALREADY_EXISTS"), "{error:#}");
    }
    let (batch, _) = Shape::plain(1, 100).batch()?;
    first_stored(broker.address(), &produce_frame(name, 0..partitions, &batch)?)
}

/// Sends one Produce again and again, with new connections where need be, until all of it is acknowledged.
pub fn first_stored(address: &Address, frame: &[u8]) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_a_run_of_seven_rounds_takes_three_hours_at_most() {
        let names: BTreeSet<_> = every().map(|workload| workload.name).collect();
        let rows: BTreeSet<_> = every().flat_map(|workload| workload.figures).map(|row| row.name).collect();
        assert_eq!(names.len(), every().count());
        assert_eq!(rows.len(), every().map(|workload| workload.figures.len()).sum::<usize>());
        let seconds: u64 = ALL.iter().map(|workload| workload.seconds).sum();
        assert!(seconds * 2 * 7 < 3 * 3600, "{} s", seconds * 2 * 7);
        assert!(choose(&["no such".to_owned()], false).is_err());
        assert_eq!(choose(&["bulk".to_owned()], false).unwrap()[0].figures.len(), 3);
    }

    #[test]
    fn clusters_are_measured_when_they_are_named_or_asked_for() {
        assert!(choose(&[], false).unwrap().iter().all(|workload| !workload.is_of_clusters()));
        let asked = choose(&[], true).unwrap();
        assert!(!asked.is_empty() && asked.iter().all(|workload| workload.is_of_clusters()));
        let named = choose(&["cluster-move".to_owned(), "bulk".to_owned()], false).unwrap();
        assert_eq!(named.iter().map(|workload| workload.name).collect::<Vec<_>>(), ["bulk", "cluster-move"]);
    }
}
