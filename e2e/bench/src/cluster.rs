//! Three nodes of a kind that are one cluster, each a controller and a broker, and what a client asks of them as a whole.
//!
//! Each node has a loopback address, a folder and an account of its own. Workloads that begin with `cluster-` run on it; each has a
//! fresh one.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use gregor_apache::Loopback;
use gregor_messages::{
    AlterPartitionReassignmentsRequest, DescribeQuorumRequest, ElectLeadersRequest, MetadataRequest,
    alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic},
    describe_quorum_request,
    elect_leaders_request::TopicPartitions,
    metadata_request::MetadataRequestTopic,
};
use gregor_types::ErrorCode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    attic::Attic,
    brokers::{Broker, Kind},
    load::{Address, Connection, Shape, produce_frame},
    workloads::first_stored,
};

/// Nodes of a cluster; every partition has a replica on each.
pub const NODES: i32 = 3;
const CLIENT_PORT: u16 = 9_092;
const CONTROLLER_PORT: u16 = 9_093;
/// Versions that both kinds speak.
const METADATA_VERSION: i16 = 12;
const DESCRIBE_QUORUM_VERSION: i16 = 1;
const ELECT_LEADERS_VERSION: i16 = 2;
const REASSIGN_VERSION: i16 = 1;
const PREFERRED: i8 = 0;
/// How long a node may take to start, and all partitions until they are led and their replicas in sync.
const START_DEADLINE: Duration = Duration::from_mins(5);
const LED_DEADLINE: Duration = Duration::from_mins(10);
/// Leaders only change when a workload has them change.
const COMMON: &str = "process.roles=broker,controller\ncontroller.listener.names=CONTROLLER\n\
     auto.create.topics.enable=false\ndefault.replication.factor=3\nmin.insync.replicas=2\n\
     offsets.topic.replication.factor=3\nauto.leader.rebalance.enable=false\n";
/// Files that a node may have open, where this program may say so.
const DESCRIPTORS: u64 = 1 << 20;
/// Of them, those that are no partition's.
const OTHER_DESCRIPTORS: u64 = 2_000;

/// How soon a broker that is gone is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Session {
    /// As soon as Kafka's defaults say.
    AsUsual,
    /// So soon that many failovers can be made; they are timed from then on.
    Short,
}

/// The running cluster.
pub struct Cluster {
    nodes: Vec<Broker>,
}

/// A partition as its cluster describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub index: i32,
    /// Who leads it; -1 is nobody.
    pub leader: i32,
    /// Who has it, the preferred leader first.
    pub replicas: Vec<i32>,
    /// Who of them is in sync.
    pub in_sync: Vec<i32>,
}

impl Kind {
    /// A formatted cluster that serves.
    pub fn prepare_cluster(self, gregor: &Path, processor: Option<usize>, session: Session) -> Result<Cluster> {
        raise_descriptor_limit();
        let network = Loopback::new();
        let host = |id: i32| network.host(id as u8);
        let voters = (1..=NODES).map(|id| format!("{id}@{}:{CONTROLLER_PORT}", host(id)));
        let voters = voters.collect::<Vec<_>>().join(",");
        let mut nodes = Vec::new();
        for id in 1..=NODES {
            let (client, controller) =
                (format!("{}:{CLIENT_PORT}", host(id)), format!("{}:{CONTROLLER_PORT}", host(id)));
            let session = match session {
                Session::AsUsual => "",
                Session::Short => "broker.session.timeout.ms=2000\nbroker.heartbeat.interval.ms=200\n",
            };
            let mut properties = format!("{COMMON}{session}");
            let _ = write!(
                properties,
                "node.id={id}\nlisteners=PLAINTEXT://{client},CONTROLLER://{controller}\n\
                 controller.quorum.voters={voters}\n"
            );
            nodes.push(self.format(gregor, processor, &properties, Address::plain(client))?);
        }
        let mut cluster = Cluster { nodes };
        for node in &mut cluster.nodes {
            node.start()?;
        }
        for node in &mut cluster.nodes {
            node.wait_until_it_answers(START_DEADLINE)?;
        }
        cluster.wait_for_brokers()?;
        Ok(cluster)
    }
}

impl Cluster {
    /// A node.
    pub fn node(&self, id: i32) -> Result<&Broker> {
        usize::try_from(id - 1).ok().and_then(|at| self.nodes.get(at)).with_context(|| format!("there is no node {id}"))
    }

    fn node_mut(&mut self, id: i32) -> Result<&mut Broker> {
        let at = usize::try_from(id - 1).ok();
        at.and_then(|at| self.nodes.get_mut(at)).with_context(|| format!("there is no node {id}"))
    }

    /// A node that runs.
    pub fn any(&self) -> Result<&Broker> {
        self.nodes.iter().find(|node| node.is_running()).context("no node runs")
    }

    /// The nodes that run.
    pub fn running(&self) -> impl Iterator<Item = (i32, &Broker)> {
        (1..).zip(&self.nodes).filter(|(_, node)| node.is_running())
    }

    /// A connection to a node that runs.
    pub fn connect(&self) -> Result<Connection> {
        Connection::open(self.any()?.address())
    }

    /// CPU time of all nodes.
    pub fn cpu(&self) -> Result<Duration> {
        self.nodes.iter().map(|node| node.account()?.cpu()).sum()
    }

    /// Ends a node as a crash does.
    pub fn kill(&mut self, id: i32) -> Result<()> {
        self.node_mut(id)?.kill()
    }

    /// Starts it again, and waits until all brokers are there.
    pub fn revive(&mut self, id: i32) -> Result<()> {
        let node = self.node_mut(id)?;
        node.start()?;
        node.wait_until_it_answers(START_DEADLINE)?;
        self.wait_for_brokers()
    }

    /// Ends all of it; nothing of it is needed any more, and what it wrote goes to the attic.
    pub fn end(mut self, attic: &Attic) -> Result<()> {
        self.nodes.iter_mut().try_for_each(|node| node.kill().and_then(|()| node.put_away(attic)))
    }

    /// Creates a topic with a replica on each node.
    pub fn create(&self, name: &str, partitions: i32) -> Result<()> {
        self.connect()?.create_replicated_topic(name, partitions, NODES as i16, &[])
    }

    /// Waits until every partition of the topic has a leader and all replicas in sync, as every node sees it.
    pub fn wait_until_in_sync(&self, name: &str, count: i32) -> Result<Vec<Partition>> {
        let deadline = Instant::now() + LED_DEADLINE;
        let is_whole = |one: &Partition| one.leader > 0 && one.in_sync.len() == NODES as usize;
        loop {
            let mut seen = Vec::new();
            for (_, node) in self.running() {
                seen = partitions(node.address(), name)?;
                if seen.len() != count as usize || !seen.iter().all(is_whole) {
                    seen.clear();
                    break;
                }
            }
            if !seen.is_empty() {
                return Ok(seen);
            }
            ensure!(Instant::now() < deadline, "the replicas of {name} are not in sync within {LED_DEADLINE:?}");
            thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Creates a topic and waits until all of it takes records; returns for each leader its partitions.
    pub fn topic(&self, name: &str, partitions: i32) -> Result<BTreeMap<i32, Vec<i32>>> {
        self.create(name, partitions)?;
        self.wait_until_it_serves(name, partitions)
    }

    /// Waits until every partition of a new topic takes a record that all its replicas have.
    pub fn wait_until_it_serves(&self, name: &str, partitions: i32) -> Result<BTreeMap<i32, Vec<i32>>> {
        let mut led: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for partition in self.wait_until_in_sync(name, partitions)? {
            led.entry(partition.leader).or_default().push(partition.index);
        }
        let (batch, _) = Shape::plain(1, 100).batch()?;
        for (leader, partitions) in &led {
            let frame = produce_frame(name, partitions.iter().copied(), &batch)?;
            first_stored(self.node(*leader)?.address(), &frame)?;
        }
        Ok(led)
    }

    /// Who leads the metadata quorum.
    pub fn controller(&self) -> Result<i32> {
        let topic = describe_quorum_request::TopicData {
            topic_name: "__cluster_metadata".into(),
            partitions: vec![describe_quorum_request::PartitionData::default()],
            ..Default::default()
        };
        let request = DescribeQuorumRequest { topics: vec![topic], ..Default::default() };
        let answer = self.connect()?.ask(&request, DESCRIBE_QUORUM_VERSION)?;
        let partition = answer.topics.first().and_then(|topic| topic.partitions.first());
        let leader = partition.map_or(-1, |partition| partition.leader_id);
        ensure!(leader > 0, "nobody leads the quorum: {}", ErrorCode::from(answer.error_code));
        Ok(leader)
    }

    /// Changes the order of a partition's replicas, the first of which is its preferred leader, and waits until all know it. Who leads
    /// stays who leads.
    pub fn prefer(&self, name: &str, partition_index: i32, replicas: &[i32]) -> Result<()> {
        let partition =
            ReassignablePartition { partition_index, replicas: Some(replicas.to_vec()), ..Default::default() };
        let topic = ReassignableTopic { name: name.into(), partitions: vec![partition], ..Default::default() };
        let request =
            AlterPartitionReassignmentsRequest { timeout_ms: 30_000, topics: vec![topic], ..Default::default() };
        let answer = self.connect()?.ask(&request, REASSIGN_VERSION)?;
        let mut codes = answer.responses.iter().flat_map(|topic| &topic.partitions).map(|one| one.error_code);
        let code = codes.find(|code| *code != 0).unwrap_or(answer.error_code);
        ensure!(code == 0, "reassigning {name}-{partition_index}: {}", ErrorCode::from(code));
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let knows = |node: &Broker| -> Result<bool> {
                let seen = partitions(node.address(), name)?;
                let known = seen.iter().find(|one| one.index == partition_index);
                Ok(known.is_some_and(|one| one.replicas == replicas && one.in_sync.len() == replicas.len()))
            };
            let known = self.running().map(|(_, node)| knows(node)).collect::<Result<Vec<_>>>()?;
            if known.into_iter().all(|known| known) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{name}-{partition_index} is not reassigned within {START_DEADLINE:?}");
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Has the preferred replica of a partition lead it.
    pub fn elect(connection: &mut Connection, name: &str, partition: i32) -> Result<()> {
        let wanted = TopicPartitions { topic: name.into(), partitions: vec![partition], ..Default::default() };
        let request = ElectLeadersRequest {
            election_type: PREFERRED,
            topic_partitions: Some(vec![wanted]),
            timeout_ms: 30_000,
            ..Default::default()
        };
        let answer = connection.ask(&request, ELECT_LEADERS_VERSION)?;
        let mut codes = answer.replica_election_results.iter().flat_map(|topic| &topic.partition_result);
        let code = codes.find_map(|one| (one.error_code != 0).then_some(one.error_code)).unwrap_or(answer.error_code);
        ensure!(code == 0, "electing a leader of {name}-{partition}: {}", ErrorCode::from(code));
        Ok(())
    }

    fn wait_for_brokers(&self) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let knows = |node: &Broker| {
                let request = MetadataRequest::default();
                let answer = Connection::open(node.address())?.ask(&request, METADATA_VERSION)?;
                Ok(answer.brokers.len() == NODES as usize)
            };
            let known: Result<Vec<bool>> = self.running().map(|(_, node)| knows(node)).collect();
            if known.is_ok_and(|known| known.into_iter().all(|known| known)) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the brokers do not know each other within {START_DEADLINE:?}");
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// Tens of thousands of partitions need more open files than a shell's limit.
fn raise_descriptor_limit() {
    let limit = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    if setrlimit(Resource::Nofile, limit).is_err() {
        // What an administrator has set cannot be passed: nodes and their partitions have what there is.
        let maximum = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// Partitions that a node can have here, each of which has a file open.
pub fn partitions_max() -> i32 {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS);
    i32::try_from(descriptors.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(i32::MAX)
}

/// A topic's partitions as a node knows them; those that it does not know yet are missing.
fn partitions(address: &Address, name: &str) -> Result<Vec<Partition>> {
    let topic = MetadataRequestTopic { name: Some(name.into()), ..Default::default() };
    let request = MetadataRequest { topics: Some(vec![topic]), ..Default::default() };
    let answer = Connection::open(address)?.ask(&request, METADATA_VERSION)?;
    let mut partitions: Vec<_> = answer
        .topics
        .into_iter()
        .flat_map(|topic| topic.partitions)
        .map(|one| Partition {
            index: one.partition_index,
            leader: one.leader_id,
            replicas: one.replica_nodes,
            in_sync: one.isr_nodes,
        })
        .collect();
    partitions.sort_unstable_by_key(|one| one.index);
    Ok(partitions)
}
