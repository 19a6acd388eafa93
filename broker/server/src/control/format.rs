//! Formats storage as `kafka-storage format` does: identity in every directory, feature levels for the first activation of the
//! controller, and the first voters of a dynamic quorum.
//!
//! `gregor storage format` calls it, and `gregor dev` on an empty folder. It never touches a directory that has an identity already.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use gregor_log::{Disk, LogDirectory, LogError, MetaProperties, disk::replace_file};
use gregor_metadata::{
    ELIGIBLE_LEADER_REPLICAS_FEATURE, KRAFT_VERSION_FEATURE, METADATA_VERSION_FEATURE, MetadataVersion, ServedFeature,
    VersionedRecord,
};
use gregor_raft::{ReplicaKey, SnapshotId, Voter, VoterSet, snapshot};
use gregor_state_records::metadata::{FeatureLevelRecord, MetadataRecord};
use gregor_types::{BrokerId, ClusterId, DirectoryId, LeaderEpoch, Timestamp};
use gregor_wire::EncodeError;

/// The folder of the metadata log.
pub(super) const METADATA_PARTITION: &str = "__cluster_metadata-0";
/// The first metadata records of a cluster, where a level of Kafka up to 4.3 is formatted.
pub(super) const BOOTSTRAP_FILE: &str = "bootstrap.checkpoint";
/// From this `metadata.version` on, the first records stand in the first checkpoint of the metadata log itself (KIP-1170).
const LEVEL_OF_KIP_1170: i16 = 31;
/// The lowest `metadata.version` that can run a dynamic quorum.
const LEVEL_OF_KRAFT_1: i16 = 21;
/// The lowest `metadata.version` that can hold eligible leader replicas.
const LEVEL_OF_KIP_966: i16 = 23;

/// What to format.
#[derive(Debug, Clone)]
pub struct FormatOptions {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// This node.
    pub node_id: BrokerId,
    /// Every entry of `log.dirs` (and `metadata.log.dir`), each with the id that it gets.
    pub directories: Vec<(PathBuf, DirectoryId)>,
    /// Which of them holds the metadata log.
    pub metadata_directory: PathBuf,
    /// Who votes at first.
    pub voters: InitialVoters,
    /// `--release-version`, as a level; 30 (4.3-IV0) unless told otherwise.
    pub metadata_version: i16,
    /// `--feature`: levels of other features. One that is not named gets the level that Kafka's tool gives it.
    pub features: Vec<(String, i16)>,
    /// Leave directories that are formatted already as they are, instead of failing (`--ignore-formatted`).
    pub ignore_formatted: bool,
    /// The time, for the checkpoints' records.
    pub now: Timestamp,
}

/// The first voters of a quorum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitialVoters {
    /// A dynamic quorum of these (`--standalone`: this node alone; `--initial-controllers`).
    Dynamic(Vec<Voter>),
    /// `controller.quorum.voters`, or none here: the node joins a quorum that exists, or is no controller (`--no-initial-controllers`).
    None,
}

/// What was done to a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Formatted {
    /// It is new.
    New(PathBuf),
    /// It had an identity and was left alone.
    Already(PathBuf),
}

/// Why nothing was formatted, or not everything.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A feature that we do not serve at that level.
    #[error("{name} cannot be formatted at level {level}: this version of Gregor serves {min} to {max}")]
    UnservedFeature {
        /// The feature.
        name: String,
        /// The level that was asked for.
        level: i16,
        /// The lowest level that we serve.
        min: i16,
        /// The highest.
        max: i16,
    },
    /// `kraft.version` against the voters.
    #[error("kraft.version {level} does not fit: {why}")]
    KRaftVersion {
        /// The level that was asked for.
        level: i16,
        /// What to do.
        why: &'static str,
    },
    /// A feature that is not there yet at the `metadata.version`.
    #[error(
        "{feature} could not be set to {0} because it depends on metadata.version level {needed}",
        feature = ELIGIBLE_LEADER_REPLICAS_FEATURE,
        needed = LEVEL_OF_KIP_966
    )]
    EligibleLeaderReplicas(i16),
    /// The directory is taken.
    #[error("{} is formatted already; pass --ignore-formatted to leave it as it is", .0.display())]
    AlreadyFormatted(PathBuf),
    /// This node is not among the voters of the format.
    #[error("node {local} with directory id {directory} is not among the initial controllers")]
    NotAVoter {
        /// This node.
        local: BrokerId,
        /// Its metadata directory.
        directory: DirectoryId,
    },
    /// The metadata directory has to be formatted as well.
    #[error("the metadata directory {} is not among the directories to format", .0.display())]
    NoMetadataDirectory(PathBuf),
    /// A file.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A directory.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A record.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// Formats. The identity is written last in each directory, so that one which was formatted halfway is formatted again.
pub fn format_storage(disk: &dyn Disk, options: &FormatOptions) -> Result<Vec<Formatted>, FormatError> {
    let kraft_version = check(options)?;
    let metadata_directory = options.directories.iter().find(|(path, _)| *path == options.metadata_directory);
    let Some((_, metadata_directory_id)) = metadata_directory else {
        return Err(FormatError::NoMetadataDirectory(options.metadata_directory.clone()));
    };
    if let InitialVoters::Dynamic(voters) = &options.voters {
        let local = ReplicaKey::new(options.node_id, *metadata_directory_id);
        if !VoterSet::new(voters.iter().cloned()).contains(local) {
            return Err(FormatError::NotAVoter { local: options.node_id, directory: *metadata_directory_id });
        }
    }
    let formatted: Vec<bool> =
        options.directories.iter().map(|(path, _)| is_formatted(disk, path)).collect::<Result<_, _>>()?;
    if let Some(index) = formatted.iter().position(|formatted| *formatted).filter(|_| !options.ignore_formatted) {
        return Err(FormatError::AlreadyFormatted(options.directories[index].0.clone()));
    }
    let mut done = Vec::new();
    for ((path, id), formatted) in options.directories.iter().zip(formatted) {
        if formatted {
            done.push(Formatted::Already(path.clone()));
            continue;
        }
        format_directory(disk, options, kraft_version, path, *id)?;
        done.push(Formatted::New(path.clone()));
    }
    Ok(done)
}

/// Checks the levels and returns that of `kraft.version`.
fn check(options: &FormatOptions) -> Result<i16, FormatError> {
    let asked = |name: &str| options.features.iter().find(|(feature, _)| feature == name).map(|(_, level)| *level);
    let levels = options.features.iter().map(|(name, level)| (name.as_str(), *level));
    for (name, level) in levels.chain([(METADATA_VERSION_FEATURE, options.metadata_version)]) {
        let ServedFeature { min, max, .. } = ServedFeature::of(name);
        if !(min..=max).contains(&level) {
            return Err(FormatError::UnservedFeature { name: name.to_owned(), level, min, max });
        }
    }
    if let Some(level) = asked(ELIGIBLE_LEADER_REPLICAS_FEATURE)
        && level > 0
        && options.metadata_version < LEVEL_OF_KIP_966
    {
        return Err(FormatError::EligibleLeaderReplicas(level));
    }
    let dynamic = matches!(options.voters, InitialVoters::Dynamic(_));
    let level = asked(KRAFT_VERSION_FEATURE).unwrap_or(i16::from(dynamic));
    let why = match (level, dynamic) {
        (0, true) => "a quorum with initial controllers is dynamic and needs 1",
        (1, true) if options.metadata_version < LEVEL_OF_KRAFT_1 => "it needs metadata.version 21 (3.9-IV0) or later",
        _ => return Ok(level),
    };
    Err(FormatError::KRaftVersion { level, why })
}

fn is_formatted(disk: &dyn Disk, directory: &Path) -> Result<bool, FormatError> {
    let path = directory.join("meta.properties");
    match disk.open(&path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FormatError::File { path, error }),
    }
}

fn format_directory(
    disk: &dyn Disk,
    options: &FormatOptions,
    kraft_version: i16,
    directory: &Path,
    id: DirectoryId,
) -> Result<(), FormatError> {
    let create =
        |path: &Path| disk.create_directory(path).map_err(|error| FormatError::File { path: path.to_owned(), error });
    create(directory)?;
    let is_metadata = directory == options.metadata_directory;
    let in_log = options.metadata_version >= LEVEL_OF_KIP_1170;
    let records = first_records(options)?;
    if !in_log {
        // It stands for no log, so it dates no record of one.
        let writer = snapshot::SnapshotWriter::new(LeaderEpoch(0), Timestamp(0), options.now, None);
        write_checkpoint(disk, &directory.join(BOOTSTRAP_FILE), writer, &records)?;
    }
    let voters = match &options.voters {
        InitialVoters::Dynamic(voters) => Some(VoterSet::new(voters.iter().cloned())),
        InitialVoters::None => None,
    };
    if is_metadata && (in_log || voters.is_some()) {
        let partition = directory.join(METADATA_PARTITION);
        create(&partition)?;
        let quorum = voters.as_ref().map(|voters| (kraft_version, voters));
        let writer = snapshot::SnapshotWriter::new(LeaderEpoch(0), options.now, options.now, quorum);
        let path = partition.join(snapshot::file_name(SnapshotId::BOOTSTRAP));
        write_checkpoint(disk, &path, writer, if in_log { &records } else { &[] })?;
    }
    let properties = MetaProperties {
        version: 1,
        cluster_id: options.cluster_id.clone(),
        node_id: options.node_id,
        directory_id: Some(id),
    };
    LogDirectory::format(disk, directory, &properties)?;
    Ok(())
}

/// The levels as the controller will write them at its first activation: `metadata.version` first, then by name. `kraft.version` is
/// a control record and never among them.
fn first_records(options: &FormatOptions) -> Result<Vec<bytes::Bytes>, FormatError> {
    let level = MetadataVersion::from_level(options.metadata_version).unwrap_or(MetadataVersion::MINIMUM);
    let eligible = i16::from(level.starts_with_eligible_leader_replicas());
    let mut features = BTreeMap::from([(ELIGIBLE_LEADER_REPLICAS_FEATURE, eligible)]);
    features.extend(options.features.iter().map(|(name, level)| (name.as_str(), *level)));
    let first = (METADATA_VERSION_FEATURE, options.metadata_version);
    let others = features
        .into_iter()
        .filter(|(name, level)| *level > 0 && ![METADATA_VERSION_FEATURE, KRAFT_VERSION_FEATURE].contains(name));
    let mut records = Vec::new();
    for (name, feature_level) in std::iter::once(first).chain(others) {
        let record = FeatureLevelRecord { name: name.into(), feature_level, ..Default::default() };
        if let Some(record) = VersionedRecord::at(level, MetadataRecord::FeatureLevel(record)) {
            records.push(record.record.encode_framed(record.version)?);
        }
    }
    Ok(records)
}

fn write_checkpoint(
    disk: &dyn Disk,
    path: &Path,
    mut writer: snapshot::SnapshotWriter,
    records: &[bytes::Bytes],
) -> Result<(), FormatError> {
    for record in records {
        writer.append(record);
    }
    let content = writer.finish().concat();
    replace_file(disk, path, &content).map_err(|error| FormatError::File { path: path.to_owned(), error })
}
