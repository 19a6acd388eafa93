//! One node: a disk that outlives its processes, and a process made of the production's code.
//!
//! The log, the quorum, the controller, the image, the leader's state, the coordinators and the broker's decisions are what a
//! real node runs; so is the driver of its control thread. What is the simulation's own is the thin shell around partitions and
//! groups, in `partition.rs`, `broker.rs`, `folder.rs`, `cleaner.rs` and `groups.rs`: it does in steps what the server does on its threads.

mod broker;
mod cleaner;
mod folder;
mod groups;
mod partition;
mod process;

use std::{path::Path, sync::Arc};

use gregor_config::{BrokerConfig, Properties};
use gregor_log::{
    Disk,
    disk::{Crash, FaultyDisk, read_file},
};
use gregor_raft::{Endpoint, ReplicaKey, Voter};
use gregor_server::control::{FormatOptions, InitialVoters, format_storage};
use gregor_types::{BrokerId, Uuid};
use gregor_wire::batch::split_batches;

pub(crate) use folder::{HeldLog, LogFolder};
pub(crate) use process::{OFFSETS_TOPIC, Updates};

pub use broker::Broker;
pub use partition::Partition;
pub use process::{Death, Process};

use crate::{Random, clock::Clock, network::Place};

/// Where a node keeps everything.
pub const DIRECTORY: &str = "/data";
/// The cluster.
pub(crate) const CLUSTER: &str = "simulated";
/// Where in a batch begins what its checksum covers, the checksum itself included.
const CHECKED_FROM: u64 = 17;
const DIRECTORY_ID: Uuid = Uuid(0x1111_2222_3333_4444_8555_6666_7777_8888);

/// See the module's documentation.
#[derive(Debug)]
pub struct Node {
    /// Its disk.
    pub disk: FaultyDisk,
    /// Its clock.
    pub clock: Clock,
    /// What runs on it, if anything does.
    pub process: Option<Process>,
    config: Arc<BrokerConfig>,
    random: Random,
    starts: u128,
}

impl Node {
    /// A formatted node on which nothing runs.
    pub fn new(clock: Clock, random: Random) -> Self {
        let disk = FaultyDisk::new();
        let endpoint = controller_endpoint();
        let voter = Voter {
            key: ReplicaKey::new(BrokerId(1), DIRECTORY_ID),
            endpoints: vec![endpoint],
            kraft_versions: (0, 1),
        };
        let options = FormatOptions {
            cluster_id: CLUSTER.into(),
            node_id: BrokerId(1),
            directories: vec![(DIRECTORY.into(), DIRECTORY_ID)],
            metadata_directory: DIRECTORY.into(),
            voters: InitialVoters::Dynamic(vec![voter]),
            metadata_version: 30,
            features: Vec::new(),
            ignore_formatted: false,
            now: clock.wall(),
        };
        format_storage(&disk, &options).expect("a new disk takes a format");
        let whole = disk.sync_file_system(Path::new("/")).complete();
        whole.expect("a new disk syncs");
        Self { disk, clock, process: None, config: Arc::new(config()), random, starts: 0 }
    }

    /// Starts a process. A disk that stops or fails meanwhile ends it at once.
    pub fn start(&mut self) -> Result<(), Death> {
        self.starts += 1;
        let process = Process::start(
            &self.disk,
            &self.clock,
            self.random.fork(),
            &self.config,
            (DIRECTORY_ID, Uuid(self.starts)),
        )?;
        self.process = Some(process);
        Ok(())
    }

    /// Flips a bit of a batch of a partition, of what its checksum covers. The file, and where the log ends without it.
    pub(crate) fn rot(&self, place: &Place, random: &mut Random) -> Option<(String, i64)> {
        let folder = Path::new(DIRECTORY).join(place.to_string());
        let files = self.disk.list(&folder).ok()?;
        let is_log = |name: &str| Path::new(name).extension().is_some_and(|extension| extension == "log");
        let logs: Vec<_> = files.iter().filter(|file| is_log(&file.name) && file.len > 0).collect();
        if logs.is_empty() {
            return None;
        }
        let log = random.pick(&logs);
        let path = folder.join(&log.name);
        let content = read_file(&self.disk, &path, 1 << 20).ok()?;
        let batches: Vec<_> = split_batches(&content).map_while(Result::ok).collect();
        if batches.is_empty() {
            return None;
        }
        let index = random.below(batches.len() as u64) as usize;
        let batch = &batches[index];
        // What the cleaner has taken from before it goes with it: a log that is cut there ends where the batch before it does.
        let base = || log.name.trim_end_matches(".log").parse().unwrap_or(0);
        let from = index.checked_sub(1).map_or_else(base, |before| batches[before].next_offset().value());
        let position = batch.bytes().as_ptr() as usize - content.as_ptr() as usize;
        let byte = random.between(CHECKED_FROM, batch.bytes().len() as u64);
        self.disk.corrupt(&path, position as u64 + byte, 1 << random.below(8));
        Some((path.display().to_string(), from))
    }

    /// The process dies where it stands, or the machine with it.
    pub fn crash(&mut self, crash: Crash) {
        self.process = None;
        self.disk.crash(crash);
    }
}

pub(crate) fn controller_endpoint() -> Endpoint {
    Endpoint { name: "CONTROLLER".into(), host: "127.0.0.1".into(), port: 9093 }
}

/// `server.properties`: small files and short times, so that much happens in little time.
fn config() -> BrokerConfig {
    let mut properties = Properties::default();
    for (key, value) in [
        ("node.id", "1"),
        ("process.roles", "broker,controller"),
        ("listeners", "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"),
        ("controller.listener.names", "CONTROLLER"),
        ("controller.quorum.bootstrap.servers", "127.0.0.1:9093"),
        ("log.dirs", DIRECTORY),
        ("metadata.log.max.record.bytes.between.snapshots", "1500"),
        ("metadata.max.retention.bytes", "3000"),
        ("metadata.max.idle.interval.ms", "2000"),
    ] {
        properties.set(key, value);
    }
    BrokerConfig::from_properties(&properties).expect("these properties are valid").0
}
