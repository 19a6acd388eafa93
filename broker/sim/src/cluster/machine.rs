//! One machine of a cluster: a disk that outlives its processes, a clock that drifts, and what the node on it is.

use std::{path::Path, sync::Arc};

use gregor_config::{BrokerConfig, Properties};
use gregor_log::{
    Disk,
    disk::{Crash, FaultyDisk},
};
use gregor_metadata::{ELIGIBLE_LEADER_REPLICAS_FEATURE, Image};
use gregor_raft::{Endpoint, Nanos, ReplicaKey, Voter};
use gregor_server::control::{FormatOptions, InitialVoters, format_storage};
use gregor_types::{BrokerId, DirectoryId, Uuid};

use super::process::Process;
use crate::{
    Random,
    clock::Clock,
    node::{DIRECTORY, Death},
};

/// The cluster.
pub(super) const CLUSTER: &str = "simulated";
/// The level of `metadata.version` that clusters are brought to (4.3-IV0).
pub(super) const METADATA_VERSION: i16 = 30;
const CONTROLLER_PORT: u16 = 9093;
const HOST: &str = "10.0.0.";
const MILLION: i64 = 1_000_000;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Roles {
    Combined,
    Controller,
    Broker,
}

/// The nodes that a cluster begins with.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) roles: Vec<Roles>,
    /// How many of the first ones vote at first. All of them are controllers.
    pub(super) voters: usize,
    /// Whether the voters stand in every node's configuration, and do not change before somebody makes the quorum dynamic (`kraft.version` 0).
    pub(super) is_static: bool,
    /// Whether partitions keep eligible leader replicas (KIP-966).
    pub(super) keeps_eligible: bool,
    /// The level of `metadata.version` that it is formatted with.
    metadata_version: i16,
    /// How far behind a follower in sync may be, in milliseconds: soon, and who is in sync changes often.
    lag_max_ms: u64,
    /// How soon a node that was not answered asks again, in milliseconds: by Kafka's default of 20 most of what happens where nobody leads is just that.
    retry_backoff_ms: u64,
}

/// A node, by what is written down of it.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) id: BrokerId,
    pub(super) roles: Roles,
    /// The id of its directory.
    pub(super) directory: DirectoryId,
    pub(super) config: Arc<BrokerConfig>,
    keeps_eligible: bool,
    metadata_version: i16,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) identity: Identity,
    pub(super) disk: FaultyDisk,
    pub(super) clock: Clock,
    /// What runs on it, if anything does.
    pub(super) process: Option<Process>,
    /// Counts its processes.
    pub(super) boot: u64,
    /// Before this no process starts, by the world's time.
    pub(super) down_until: Nanos,
    /// When its process is to be stepped, by the world's time.
    pub(super) step_at: Nanos,
    /// When it is woken next, by the world's time: at the latest when it is to be stepped.
    pub(super) woken_at: Nanos,
    /// How much faster its clock runs than the world's, in millionths.
    drift: i64,
    /// How far its clock was set forward altogether, as by a pause of the machine.
    ahead: Nanos,
    /// In which of its lives it lost power last, and with it perhaps what its logs had not on the disk, or the disk.
    lost_power_in: Option<u64>,
    /// Whether its disk has little room now.
    pub(super) is_full: bool,
    /// Whether calls of its disk fail now, or will.
    pub(super) is_failing: bool,
    /// Whether its disk has let its process down: whatever that comes to, also later, is no fault of the process.
    pub(super) is_let_down: bool,
    /// What it is to stop at, if it is, as [`FAULTS`](super::FAULTS) has it.
    pub(super) stops_at: Option<&'static str>,
    random: Random,
}

impl Shape {
    /// One of those that people run; of so many nodes, if it is to have so many.
    pub(super) fn of(nodes: Option<u64>, random: &mut Random) -> Self {
        use Roles::{Broker, Combined, Controller};
        let drawn = match random.below(5) {
            0 | 1 => vec![Combined; 3],
            2 => vec![Controller, Controller, Controller, Broker, Broker],
            3 => vec![Combined; 5],
            _ => vec![Combined, Combined, Combined, Controller, Broker],
        };
        let roles = nodes.map_or(drawn, |nodes| vec![Combined; nodes as usize]);
        let is_static = random.chance(25);
        let controllers = roles.iter().filter(|roles| roles.is_controller()).count();
        // A controller of a static quorum votes.
        let voters = if is_static { controllers } else { 3 };
        let keeps_eligible = random.chance(50);
        // Who votes is in the log since 21, eligible leader replicas are in it since 23.
        let metadata_version = match random.below(10) {
            0..6 => METADATA_VERSION,
            _ if keeps_eligible => *random.pick(&[23, 25, 29]),
            _ if is_static => *random.pick(&[7, 8, 11, 14, 17, 22, 29]),
            _ => *random.pick(&[21, 22, 25, 29]),
        };
        let lag_max_ms = *random.pick(&[1_500, 4_000]);
        let retry_backoff_ms = *random.pick(&[20, 100, 100, 100]);
        Self { roles, voters, is_static, keeps_eligible, metadata_version, lag_max_ms, retry_backoff_ms }
    }

    /// The nodes' numbers.
    pub(super) fn ids(&self) -> impl Iterator<Item = BrokerId> + use<> {
        (1..=self.roles.len() as i32).map(BrokerId)
    }
}

impl Roles {
    pub(super) const fn is_broker(self) -> bool {
        !matches!(self, Self::Controller)
    }

    pub(super) const fn is_controller(self) -> bool {
        !matches!(self, Self::Broker)
    }
}

/// The node that listens there.
pub(super) fn node_at(address: &Endpoint) -> Option<BrokerId> {
    address.host.as_str().strip_prefix(HOST)?.parse().ok().map(BrokerId)
}

fn host_of(id: BrokerId) -> String {
    format!("{HOST}{id}")
}

fn endpoint_of(id: BrokerId) -> Endpoint {
    Endpoint { name: "CONTROLLER".into(), host: host_of(id).as_str().into(), port: CONTROLLER_PORT }
}

/// A directory's id: of a node's first disk, or of a later one.
fn directory_id(id: BrokerId, disk: u64) -> DirectoryId {
    let (id, disk) = (u128::from(id.value().unsigned_abs()), u128::from(disk));
    Uuid(0x1111_2222_3333_4444_8555_6666_0000_0000 | id << 16 | disk)
}

impl Identity {
    pub(super) fn new(id: BrokerId, shape: &Shape) -> Self {
        let roles = shape.roles[id.value() as usize - 1];
        let Shape { keeps_eligible, metadata_version, .. } = *shape;
        let (directory, config) = (directory_id(id, 0), Arc::new(config(id, shape)));
        Self { id, roles, directory, config, keeps_eligible, metadata_version }
    }

    pub(super) fn host(&self) -> String {
        host_of(self.id)
    }

    /// Where it listens for controllers, if it does.
    pub(super) fn controller_endpoints(&self) -> Vec<Endpoint> {
        if self.roles.is_controller() { vec![endpoint_of(self.id)] } else { Vec::new() }
    }

    /// As a voter.
    pub(super) fn voter(&self) -> Voter {
        Voter {
            key: ReplicaKey::new(self.id, self.directory),
            endpoints: self.controller_endpoints(),
            kraft_versions: (0, 1),
        }
    }
}

impl Machine {
    /// A machine with a formatted disk on which nothing runs.
    pub(super) fn new(identity: Identity, voters: InitialVoters, mut random: Random) -> Self {
        let clock = Clock::default();
        let disk = formatted(&identity, voters, &clock);
        let drift = random.below(20_001) as i64 - 10_000;
        clock.jump_wall(random.below(4_001) as i64 - 2_000);
        Self {
            identity,
            disk,
            clock,
            process: None,
            boot: 0,
            down_until: 0,
            step_at: Nanos::MAX,
            woken_at: Nanos::MAX,
            drift,
            ahead: 0,
            lost_power_in: None,
            is_full: false,
            is_failing: false,
            is_let_down: false,
            stops_at: None,
            random,
        }
    }

    /// Time passes here as it does in the world.
    pub(super) fn follow_time(&self, world: Nanos) {
        self.clock.set(self.local(world));
    }

    fn local(&self, world: Nanos) -> Nanos {
        let world = world as i64;
        (world + world * self.drift / MILLION) as u64 + self.ahead
    }

    /// When in the world's time it will be that late here.
    pub(super) fn world_time(&self, local: Nanos, world: Nanos) -> Nanos {
        let left = local.saturating_sub(self.local(world)).min(1 << 42) as i64;
        world + (left * MILLION / (MILLION + self.drift)) as u64 + 1
    }

    /// How far its clock was set forward altogether.
    pub(super) const fn ahead(&self) -> Nanos {
        self.ahead
    }

    /// Its clock is suddenly later: the machine was stopped for a while, or somebody set it forward.
    pub(super) fn jump(&mut self, by: Nanos) {
        self.ahead += by;
    }

    /// Starts a process. A disk that stops or fails meanwhile ends it at once.
    pub(super) fn start(&mut self) -> Result<(), Death> {
        self.boot += 1;
        self.is_let_down = self.is_full || self.is_failing;
        let incarnation = self.incarnation(self.boot);
        let random = self.random.fork();
        let mut process = Process::start(&self.disk, &self.clock, random, &self.identity, incarnation)?;
        if let Some(replicas) = &mut process.replicas {
            replicas.has_lost_power = self.lost_power_in.is_some();
        }
        self.process = Some(process);
        Ok(())
    }

    /// Whether its process runs, and this metadata knows it.
    pub(super) fn counts_in(&self, image: &Image) -> bool {
        let registered = image.cluster().broker(self.identity.id).map(|broker| broker.incarnation);
        self.process.is_some() && registered == Some(self.incarnation(self.boot))
    }

    fn incarnation(&self, boot: u64) -> Uuid {
        Uuid(u128::from(self.identity.id.value().unsigned_abs()) << 64 | u128::from(boot))
    }

    /// Whether partitions may count on something of this broker that its disk does not have, as far as this metadata goes: it has lost power, and not
    /// registered since.
    pub(super) fn may_lack(&self, image: &Image) -> bool {
        let registered = image.cluster().broker(self.identity.id).map(|broker| broker.incarnation);
        self.identity.roles.is_broker()
            && self.lost_power_in.is_some_and(|lost_in| registered.is_none_or(|life| life <= self.incarnation(lost_in)))
    }

    /// The process dies where it stands, or the machine with it.
    pub(super) fn crash(&mut self, crash: Crash) {
        self.process = None;
        if crash != Crash::KeepAll {
            self.lost_power_in = Some(self.boot);
        }
        self.step_at = Nanos::MAX;
        self.disk.crash(crash);
        (self.is_failing, self.stops_at) = (false, None);
    }

    /// Nothing stops it.
    pub(super) fn go_on(&mut self) {
        self.disk.go_on();
        self.stops_at = None;
    }

    /// The disk is well again.
    pub(super) fn heal_disk(&mut self) {
        self.disk.clear_fault();
        self.disk.set_capacity(None);
        (self.is_full, self.is_failing) = (false, false);
    }

    /// The disk is lost, and another one is put in and formatted: it has another id, and knows of no voters.
    pub(super) fn replace_disk(&mut self) {
        self.lost_power_in = Some(self.boot);
        let disk = (self.identity.directory.0 & 0xffff) as u64 + 1;
        self.identity.directory = directory_id(self.identity.id, disk);
        self.disk = formatted(&self.identity, InitialVoters::None, &self.clock);
        (self.is_full, self.is_failing, self.stops_at) = (false, false, None);
    }
}

fn formatted(identity: &Identity, voters: InitialVoters, clock: &Clock) -> FaultyDisk {
    let disk = FaultyDisk::new();
    let options = FormatOptions {
        cluster_id: CLUSTER.into(),
        node_id: identity.id,
        directories: vec![(DIRECTORY.into(), identity.directory)],
        metadata_directory: DIRECTORY.into(),
        voters,
        metadata_version: identity.metadata_version,
        features: vec![(ELIGIBLE_LEADER_REPLICAS_FEATURE.to_owned(), i16::from(identity.keeps_eligible))],
        ignore_formatted: false,
        now: clock.wall(),
    };
    format_storage(&disk, &options).expect("a new disk takes a format");
    disk.sync_file_system(Path::new("/")).complete().expect("a new disk syncs");
    disk
}

/// `server.properties`: small files and short times, so that much happens in little time.
fn config(id: BrokerId, shape: &Shape) -> BrokerConfig {
    let roles = shape.roles[id.value() as usize - 1];
    let host = host_of(id);
    let (client, controller) = (format!("PLAINTEXT://{host}:9092"), format!("CONTROLLER://{host}:{CONTROLLER_PORT}"));
    let (process_roles, listeners) = match roles {
        Roles::Combined => ("broker,controller", format!("{client},{controller}")),
        Roles::Controller => ("controller", controller),
        Roles::Broker => ("broker", client),
    };
    let controllers = shape.ids().filter(|other| shape.roles[other.value() as usize - 1].is_controller());
    let address = |other: BrokerId| format!("{}:{CONTROLLER_PORT}", host_of(other));
    let (quorum_key, quorum): (_, Vec<String>) = if shape.is_static {
        ("controller.quorum.voters", controllers.map(|other| format!("{other}@{}", address(other))).collect())
    } else {
        ("controller.quorum.bootstrap.servers", controllers.map(address).collect())
    };
    let mut properties = Properties::default();
    for (key, value) in [
        ("node.id", id.to_string().as_str()),
        ("process.roles", process_roles),
        ("listeners", listeners.as_str()),
        ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"),
        ("controller.listener.names", "CONTROLLER"),
        (quorum_key, quorum.join(",").as_str()),
        ("log.dirs", DIRECTORY),
        ("metadata.log.max.record.bytes.between.snapshots", "4000"),
        ("metadata.max.retention.bytes", "6000"),
        ("metadata.max.idle.interval.ms", "2000"),
        ("controller.quorum.fetch.snapshot.max.bytes", "700"),
        ("broker.session.timeout.ms", "5000"),
        ("broker.heartbeat.interval.ms", "1000"),
        ("replica.lag.time.max.ms", shape.lag_max_ms.to_string().as_str()),
        ("controller.quorum.retry.backoff.ms", shape.retry_backoff_ms.to_string().as_str()),
        ("leader.imbalance.check.interval.seconds", "10"),
        ("num.replica.fetchers", "2"),
    ] {
        properties.set(key, value);
    }
    BrokerConfig::from_properties(&properties).expect("these properties are valid").0
}
