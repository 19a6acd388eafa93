//! Controllers in folders and on addresses of their own, and what a test asks of them.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use gregor_channel::{Channel, ChannelOptions};
use gregor_config::{BrokerConfig, Properties};
use gregor_log::disk::RealDisk;
use gregor_messages::{
    DescribeQuorumRequest, IncrementalAlterConfigsRequest, describe_quorum_request, describe_quorum_response,
    incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
};
use gregor_metadata::{ConfigResource, ResourceType};
use gregor_node::LifecycleConfig;
use gregor_raft::{Endpoint, ReplicaKey, Voter};
use gregor_server::{
    Node, NodeOptions,
    control::{
        ControlHandle, ControlOptions, FormatOptions, ImageUpdate, InitialVoters, MetadataListener, format_storage,
    },
};
use gregor_types::{BrokerEpoch, BrokerId, DirectoryId, ErrorCode, LeaderEpoch, Timestamp, Uuid};

use super::network::Network;

pub const DEADLINE: Duration = Duration::from_mins(1);
pub const PORT: u16 = 19_093;
pub const BROKER_PORT: u16 = 19_092;
pub const CLUSTER: &str = "cluster";
/// A key of the cluster's default for brokers.
pub const KEY: &str = "log.retention.ms";
pub const OTHER_KEY: &str = "log.retention.bytes";

/// Controllers in folders of their own, each on an address of its own.
pub struct Cluster {
    pub folder: tempfile::TempDir,
    net: u8,
    is_static: bool,
    /// Whether others reach a controller by a relay, which is the test's to make.
    relayed: bool,
    /// Whether each node is a broker, too.
    pub combined: bool,
    pub properties: Vec<(&'static str, &'static str)>,
    /// What single nodes have beyond these.
    own: Vec<(i32, &'static str, String)>,
    nodes: Vec<Option<Node>>,
}

impl Cluster {
    /// A formatted cluster whose first `voters` nodes vote; none of the nodes runs.
    pub fn new(voters: i32, others: i32, is_static: bool) -> Self {
        Self::formatted(30, voters, others, is_static, false)
    }

    /// The same at another `metadata.version`.
    pub fn at_level(metadata_version: i16, voters: i32, others: i32, is_static: bool) -> Self {
        Self::formatted(metadata_version, voters, others, is_static, false)
    }

    /// Voters that reach each other over a network that can be cut.
    pub async fn relayed(voters: i32, is_static: bool) -> (Self, Network) {
        let cluster = Self::formatted(30, voters, 0, is_static, true);
        let nodes = (1..=voters)
            .map(|id| (id, format!("{}:{PORT}", cluster.reached_at(id)), format!("{}:{PORT}", cluster.host(id))));
        let network = Network::new(nodes).await;
        (cluster, network)
    }

    fn formatted(metadata_version: i16, voters: i32, others: i32, is_static: bool, relayed: bool) -> Self {
        static NETS: AtomicU8 = AtomicU8::new(1);
        let cluster = Self {
            folder: tempfile::tempdir().unwrap(),
            net: NETS.fetch_add(1, Ordering::Relaxed),
            is_static,
            relayed,
            combined: false,
            properties: vec![
                ("controller.quorum.election.timeout.ms", "300"),
                ("controller.quorum.fetch.timeout.ms", "600"),
                ("controller.quorum.election.backoff.max.ms", "100"),
                ("metadata.max.idle.interval.ms", "100"),
            ],
            own: Vec::new(),
            nodes: (0..voters + others).map(|_| None).collect(),
        };
        let all: Vec<Voter> = (1..=voters).map(|id| cluster.voter(id)).collect();
        for id in 1..=voters + others {
            let initial =
                if is_static || id > voters { InitialVoters::None } else { InitialVoters::Dynamic(all.clone()) };
            cluster.format(id, CLUSTER, directory_id(id), metadata_version, initial);
        }
        cluster
    }

    fn format(&self, id: i32, cluster_id: &str, directory: DirectoryId, metadata_version: i16, voters: InitialVoters) {
        let options = FormatOptions {
            cluster_id: cluster_id.into(),
            node_id: BrokerId(id),
            directories: vec![(self.directory(id), directory)],
            metadata_directory: self.directory(id),
            voters,
            metadata_version,
            features: Vec::new(),
            ignore_formatted: false,
            now: Timestamp(1_700_000_000_000),
        };
        format_storage(&RealDisk, &options).unwrap();
    }

    /// The disk of a node that does not run is replaced by an empty one, which is formatted for a cluster with an id of its own.
    pub fn replace_disk(&self, id: i32, cluster_id: &str, directory: DirectoryId) {
        std::fs::remove_dir_all(self.directory(id)).unwrap();
        self.format(id, cluster_id, directory, 30, InitialVoters::None);
    }

    pub fn with(mut self, key: &'static str, value: &'static str) -> Self {
        self.properties.push((key, value));
        self
    }

    /// The same for one node.
    pub fn with_own(mut self, id: i32, key: &'static str, value: impl Into<String>) -> Self {
        self.own.push((id, key, value.into()));
        self
    }

    pub fn directory(&self, id: i32) -> PathBuf {
        self.folder.path().join(format!("node-{id}"))
    }

    /// Loopback has many addresses: nobody else uses these while this process runs.
    pub fn host(&self, id: i32) -> String {
        let process = std::process::id();
        format!("127.{}.{}.{}", 1 + process % 250, 1 + self.net, 10 * (process / 250 % 20) as i32 + id)
    }

    /// Where others reach a node.
    pub fn reached_at(&self, id: i32) -> String {
        let host = self.host(id);
        if !self.relayed {
            return host;
        }
        let mut parts: Vec<_> = host.split('.').map(str::to_owned).collect();
        parts[2] = (128 + 1 + self.net).to_string();
        parts.join(".")
    }

    pub fn voter(&self, id: i32) -> Voter {
        let endpoint = Endpoint { name: "CONTROLLER".into(), host: self.reached_at(id).as_str().into(), port: PORT };
        Voter {
            key: ReplicaKey::new(BrokerId(id), directory_id(id)),
            endpoints: vec![endpoint],
            kraft_versions: (0, 1),
        }
    }

    pub fn config(&self, id: i32) -> BrokerConfig {
        let mut properties = Properties::default();
        properties.set("node.id", id.to_string());
        properties.set("process.roles", "controller");
        properties.set("listeners", format!("CONTROLLER://{}:{PORT}", self.host(id)));
        properties.set("controller.listener.names", "CONTROLLER");
        properties.set("log.dirs", self.directory(id).to_str().unwrap());
        if self.combined {
            properties.set("process.roles", "broker,controller");
            let host = self.host(id);
            properties.set("listeners", format!("PLAINTEXT://{host}:{BROKER_PORT},CONTROLLER://{host}:{PORT}"));
        }
        if self.relayed {
            properties.set("advertised.listeners", format!("CONTROLLER://{}:{PORT}", self.reached_at(id)));
        }
        let voters = (1..=3).map(|id| (id, self.reached_at(id)));
        if self.is_static {
            let voters: Vec<_> = voters.map(|(id, host)| format!("{id}@{host}:{PORT}")).collect();
            properties.set("controller.quorum.voters", voters.join(","));
        } else {
            let servers: Vec<_> = voters.map(|(_, host)| format!("{host}:{PORT}")).collect();
            properties.set("controller.quorum.bootstrap.servers", servers.join(","));
        }
        for (key, value) in &self.properties {
            properties.set(*key, *value);
        }
        for (_, key, value) in self.own.iter().filter(|(node, ..)| *node == id) {
            properties.set(*key, value);
        }
        BrokerConfig::from_properties(&properties).unwrap().0
    }

    /// A broker shows its metrics.
    fn options(&self, id: i32) -> NodeOptions {
        NodeOptions { health_listen: self.combined.then(|| format!("{}:0", self.host(id))) }
    }

    pub async fn start(&mut self, id: i32) {
        let node = Node::start(self.config(id), self.options(id)).await.unwrap();
        self.nodes[id as usize - 1] = Some(node);
    }

    /// Starts all nodes at the same time: a broker waits for a controller that leads.
    pub async fn start_together(&mut self) {
        let starts = (1..=self.nodes.len() as i32).map(|id| Node::start(self.config(id), self.options(id)));
        let started = futures::future::join_all(starts).await;
        self.nodes = started.into_iter().map(|node| Some(node.unwrap())).collect();
    }

    pub async fn start_all(&mut self) {
        for id in 1..=self.nodes.len() as i32 {
            self.start(id).await;
        }
    }

    pub async fn stop(&mut self, id: i32) {
        self.nodes[id as usize - 1].take().unwrap().shutdown().await.unwrap();
    }

    pub async fn stop_all(&mut self) {
        for id in 1..=self.nodes.len() as i32 {
            if self.nodes[id as usize - 1].is_some() {
                self.stop(id).await;
            }
        }
    }

    /// Ends the test without a clean stop of what still runs.
    pub fn abandon(self) {
        drop(self.nodes);
    }

    pub fn node(&self, id: i32) -> &Node {
        self.nodes[id as usize - 1].as_ref().unwrap()
    }

    pub fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    /// The leader that every running node knows.
    pub async fn leader(&self) -> (i32, LeaderEpoch) {
        let mut found = None;
        until("one leader that all know", || {
            let mut known: Vec<_> =
                self.running().map(|node| node.control().quorum_leader().borrow().clone()).collect();
            known.dedup();
            found = match known.as_slice() {
                [leader] => leader.leader.zip(leader.endpoint.clone()).map(|(id, _)| (id.value(), leader.epoch)),
                _ => None,
            };
            found.is_some_and(|(id, _)| {
                self.nodes[id as usize - 1].as_ref().is_some_and(|node| node.control().is_active_controller())
            })
        })
        .await;
        found.unwrap()
    }

    /// Has the active controller, whoever that is, commit a value.
    pub async fn commit(&self, value: i32) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (leader, _) = self.leader().await;
            let answer = self.node(leader).control().ask(1, alteration(KEY, value)).await.unwrap();
            match ErrorCode::from(answer.responses[0].error_code) {
                ErrorCode::None => return,
                error => assert_eq!(error, ErrorCode::NotController, "{:?}", answer.responses[0].error_message),
            }
            assert!(Instant::now() < deadline, "nobody decides in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a node shows a value as committed.
    pub async fn sees(&self, id: i32, value: i32) {
        let wanted = value.to_string();
        until(&format!("node {id} to see {value}"), || {
            shown(self.node(id).control()).as_deref() == Some(wanted.as_str())
        })
        .await;
    }

    pub async fn all_see(&self, value: i32) {
        for id in 1..=self.nodes.len() as i32 {
            if self.nodes[id as usize - 1].is_some() {
                self.sees(id, value).await;
            }
        }
    }

    /// What the control thread of a broker is started with.
    pub fn observer(&self, id: i32) -> ControlOptions {
        ControlOptions {
            config: Arc::new(self.config(id)),
            disk: Arc::new(RealDisk),
            cluster_id: CLUSTER.into(),
            metadata_directory_id: directory_id(id),
            controller_endpoints: Vec::new(),
            broker: LifecycleConfig {
                id: BrokerId(id),
                cluster_id: CLUSTER.into(),
                incarnation: Uuid(id as u128),
                listeners: vec![("PLAINTEXT".into(), "127.0.0.1".into(), 9_092, 0)],
                rack: None,
                directories: vec![directory_id(id)],
                directory_failure_timeout: 30_000_000_000,
                previous_epoch: BrokerEpoch::NONE,
                heartbeat_interval: 2_000_000_000,
                registration_timeout: 60_000_000_000,
                session_timeout: 9_000_000_000,
            },
            listener: Box::new(Deaf),
        }
    }

    /// To a node's listener for clients.
    pub fn client(&self, id: i32) -> Channel {
        Channel::new(format!("{}:{BROKER_PORT}", self.host(id)), ChannelOptions::default())
    }

    pub fn channel(&self, id: i32) -> Channel {
        Channel::new(format!("{}:{PORT}", self.host(id)), ChannelOptions::default())
    }

    pub async fn describe(&self, id: i32) -> describe_quorum_response::PartitionData {
        let topic = describe_quorum_request::TopicData {
            topic_name: "__cluster_metadata".into(),
            partitions: vec![describe_quorum_request::PartitionData::default()],
            ..Default::default()
        };
        let request = DescribeQuorumRequest { topics: vec![topic], ..Default::default() };
        self.channel(id).call(&request).await.unwrap().topics[0].partitions[0].clone()
    }

    pub fn log(&self, id: i32) -> Vec<u8> {
        let partition = self.directory(id).join("__cluster_metadata-0");
        std::fs::read(partition.join("00000000000000000000.log")).unwrap()
    }
}

/// Nobody acts on these images.
pub struct Deaf;

impl MetadataListener for Deaf {
    fn publish(&mut self, _: ImageUpdate) {}
}

pub fn directory_id(id: i32) -> DirectoryId {
    Uuid(0x1111_2222_3333_4444_8555_6666_7777_0000 + id as u128)
}

pub fn alteration(key: &str, value: i32) -> IncrementalAlterConfigsRequest {
    let value = value.to_string();
    let config = AlterableConfig { name: key.into(), value: Some(value.as_str().into()), ..Default::default() };
    let resource = AlterConfigsResource { resource_type: 4, configs: vec![config], ..Default::default() };
    IncrementalAlterConfigsRequest { resources: vec![resource], ..Default::default() }
}

pub fn holds(log: &[u8], value: &str) -> bool {
    log.windows(value.len()).any(|bytes| bytes == value.as_bytes())
}

pub fn shown(control: &ControlHandle) -> Option<String> {
    let image = control.image();
    image.configs().get(&ConfigResource::new(ResourceType::Broker, ""), KEY).map(|value| value.as_str().to_owned())
}

pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            copy_folder(&entry.path(), &target);
        } else {
            match std::fs::copy(entry.path(), target) {
                // What is being written anew has a name of its own until it is whole.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            }
        }
    }
}
