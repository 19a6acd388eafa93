//! What the control thread is made from: opens the metadata log, replays it, and checks that this node may run what it finds.
//!
//! `start.rs` calls it on the thread itself; nothing is written before all checks passed.

use std::{io, path::Path, sync::Arc};

use gregor_config::BrokerConfig;
use gregor_controller::{Controller, ControllerConfig};
use gregor_log::Disk;
use gregor_metadata::{KRAFT_VERSION_FEATURE, ServedFeature, UnservedFeature};
use gregor_node::{LifecycleConfig, LifecycleError};
use gregor_raft::{
    Config, Endpoint, LogView, Quorum, ReplicaKey, SnapshotId, StartError, Voter, VoterHistory, VoterSet, check_log,
    check_voters, control::Content,
};
use gregor_state_records::{RecordError, metadata::MetadataRecord};
use gregor_types::{ClusterId, DirectoryId, Offset, Timestamp};

use super::{
    MetadataListener,
    format::METADATA_PARTITION,
    metadata_log::{MetadataLog, MetadataLogError, read_bootstrap},
    quorum_state::{self, QuorumStateError},
    replay::{Replay, ReplayError},
};

/// What the control thread is started with.
pub struct ControlOptions {
    /// `server.properties`.
    pub config: Arc<BrokerConfig>,
    /// The files.
    pub disk: Arc<dyn Disk>,
    /// The cluster, as the directories' `meta.properties` say.
    pub cluster_id: ClusterId,
    /// The id of the metadata directory.
    pub metadata_directory_id: DirectoryId,
    /// Where other controllers reach this one: its controller listeners with the addresses that they advertise.
    pub controller_endpoints: Vec<Endpoint>,
    /// This node as a broker. Its incarnation is the controller's too.
    pub broker: LifecycleConfig,
    /// Who hears of committed metadata.
    pub listener: Box<dyn MetadataListener>,
}

/// Why the control thread cannot start, or had to end. The node stops with it.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The log.
    #[error(transparent)]
    Log(#[from] MetadataLogError),
    /// The records in it.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The election state.
    #[error(transparent)]
    QuorumState(#[from] QuorumStateError),
    /// The quorum.
    #[error(transparent)]
    Quorum(#[from] StartError),
    /// The cluster runs a feature that we do not serve.
    #[error(transparent)]
    Feature(#[from] UnservedFeature),
    /// What formatting chose cannot be read.
    #[error("{BOOTSTRAP} cannot be read: {0}", BOOTSTRAP = super::format::BOOTSTRAP_FILE)]
    Bootstrap(#[from] RecordError),
    /// The broker cannot go on.
    #[error(transparent)]
    Broker(#[from] LifecycleError),
    /// A record that the controller decided cannot be written.
    #[error("a metadata record cannot be encoded: {0}")]
    Encode(#[from] gregor_wire::EncodeError),
    /// No thread, or no runtime on it.
    #[error("the control thread cannot run: {0}")]
    Thread(#[from] io::Error),
    /// The thread is gone without a word.
    #[error("the control thread panicked")]
    Panicked,
}

/// What the driver is made of.
pub(super) struct Parts {
    pub(super) options: ControlOptions,
    pub(super) log: MetadataLog,
    pub(super) replay: Replay,
    pub(super) quorum: Quorum,
    pub(super) controller: Controller,
}

/// Opens the metadata log, replays it and checks that this node may run what it finds.
pub(super) fn open(options: ControlOptions, now: Timestamp) -> Result<Parts, ControlError> {
    let config = Arc::clone(&options.config);
    let partition = config.metadata_log_dir.join(METADATA_PARTITION);
    let mut log = MetadataLog::open(Arc::clone(&options.disk), partition, &config, now)?;
    check_log(&log)?;
    let mut history = VoterHistory::new(configured_voters(&config));
    let replay = Replay::load(&mut log, &mut history)?;
    replay.image().features().check_served()?;
    let election = quorum_state::read(&*options.disk, log.partition())?;
    let millisecond = |milliseconds: i64| milliseconds.max(1).unsigned_abs().saturating_mul(1_000_000);
    let served = ServedFeature::of(KRAFT_VERSION_FEATURE);
    let local = Voter {
        key: ReplicaKey::new(config.node_id, options.metadata_directory_id),
        endpoints: options.controller_endpoints.clone(),
        kraft_versions: (served.min, served.max),
    };
    let quorum_config = Config {
        cluster_id: options.cluster_id.clone(),
        local,
        election_timeout: millisecond(config.controller_quorum_election_timeout_ms),
        fetch_timeout: millisecond(config.controller_quorum_fetch_timeout_ms),
        election_backoff_max: millisecond(config.controller_quorum_election_backoff_max_ms),
        retry_backoff: millisecond(config.controller_quorum_retry_backoff_ms),
        fetch_bytes: config.controller_quorum_fetch_max_bytes,
        snapshot_piece_bytes: config.controller_quorum_fetch_snapshot_max_bytes,
        request_timeout: millisecond(config.controller_quorum_request_timeout_ms),
        bootstrap_servers: u16::try_from(config.controller_quorum_bootstrap_servers.len()).unwrap_or(u16::MAX),
        auto_join: config.process_roles.controller && config.controller_quorum_auto_join_enable,
    };
    check_voters(history.voters(), quorum_config.local.key, finds_others(&options))?;
    let quorum = Quorum::new(quorum_config, election, history, &log)?;
    let bootstrap = bootstrap_records(&options, &log)?;
    if replay.image().features().finalized_metadata_version().is_none() {
        check_bootstrap(&bootstrap)?;
    }
    let controller = Controller::new(ControllerConfig::new(options.cluster_id.clone(), &config, bootstrap));
    if log.end().offset == Offset::ZERO {
        tracing::info!(directory = %log.partition().display(), "the metadata log is empty: this is a new cluster");
    }
    Ok(Parts { options, log, replay, quorum, controller })
}

/// Whether the bootstrap servers can lead to another node.
fn finds_others(options: &ControlOptions) -> bool {
    let is_own = |(host, port): &(String, u16)| {
        options.controller_endpoints.iter().any(|own| own.host == host.as_str() && own.port == *port)
    };
    !options.config.controller_quorum_bootstrap_servers.iter().all(is_own)
}

/// The voters of `controller.quorum.voters`; their directories are not known.
fn configured_voters(config: &BrokerConfig) -> VoterSet {
    let name = config.controller_listener_names.first().map_or("", String::as_str);
    VoterSet::new(config.controller_quorum_voters.iter().map(|voter| Voter {
        key: ReplicaKey { id: voter.id, directory: None },
        endpoints: vec![Endpoint { name: name.into(), host: voter.host.as_str().into(), port: voter.port }],
        kraft_versions: (0, 0),
    }))
}

/// What the first controller of the cluster has to write first: from `bootstrap.checkpoint`, or from the metadata log's first
/// checkpoint where formatting put it there (KIP-1170).
fn bootstrap_records(options: &ControlOptions, log: &MetadataLog) -> Result<Vec<MetadataRecord>, ControlError> {
    let mut records = Vec::new();
    let mut take = |content| {
        if let Content::Data(bytes) = content {
            records.push(MetadataRecord::decode_framed(bytes)?);
        }
        Ok::<_, ControlError>(())
    };
    let directory: &Path = &options.config.metadata_log_dir;
    let found = read_bootstrap::<ControlError>(&*options.disk, directory, &mut take)?;
    if !found && log.snapshot_size(SnapshotId::BOOTSTRAP).is_some() {
        log.read_snapshot::<ControlError>(SnapshotId::BOOTSTRAP, &mut take)?;
    }
    Ok(records)
}

/// A directory that was formatted by a later Kafka is refused before anything is written into it.
fn check_bootstrap(records: &[MetadataRecord]) -> Result<(), ControlError> {
    for record in records {
        if let MetadataRecord::FeatureLevel(record) = record {
            let ServedFeature { min, max, .. } = ServedFeature::of(&record.name);
            if !(min..=max).contains(&record.feature_level) {
                return Err(UnservedFeature { name: record.name.clone(), level: record.feature_level, min, max }.into());
            }
        }
    }
    Ok(())
}
