//! How the node takes its log directories at the start: which it locks, which it refuses, which it goes on without.
//!
//! A directory that cannot be read is out of service from the start, as one is that fails later; only the metadata log's must
//! work, be it one of `log.dirs` or one of its own. One that is empty gets an identity, as Apache Kafka gives it: a disk was added or replaced.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use gregor_config::BrokerConfig;
use gregor_log::{DirectoryError, Disk, LogDirectory, MetaProperties};
use gregor_types::{BrokerEpoch, BrokerId, ClusterId, DirectoryId, Uuid};

/// Why the node cannot use its directories.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A directory cannot be opened.
    #[error("the log directory {path} cannot be used: {source}", path = .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: DirectoryError,
    },
    /// A directory is not formatted.
    #[error("the log directory {path} is not formatted: run `gregor storage format` first", path = .0.display())]
    NotFormatted(PathBuf),
    /// A directory of another node or cluster.
    #[error(
        "the log directory {path} belongs to node {found_node} of cluster {found_cluster}, and this is node {node} of cluster \
         {cluster}: check log.dirs and node.id",
        path = .path.display()
    )]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        found_node: BrokerId,
        /// Of which cluster.
        found_cluster: ClusterId,
        /// This node.
        node: BrokerId,
        /// The cluster of the metadata directory.
        cluster: ClusterId,
    },
    /// Two directories say that they are the same one.
    #[error(
        "the log directories {first} and {second} have the same directory.id={id}: one is a copy of the other; take the copy \
         out of log.dirs",
        first = .first.display(),
        second = .second.display()
    )]
    SameId {
        /// One.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// What both say.
        id: DirectoryId,
    },
    /// A thread could not be started.
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
}

/// What was opened.
#[derive(Debug)]
pub(super) struct Opened {
    /// In the order of `log.dirs`.
    pub(super) directories: Vec<OpenedDirectory>,
    pub(super) cluster_id: ClusterId,
    pub(super) metadata_directory_id: DirectoryId,
    /// `metadata.log.dir`, where it is none of `log.dirs`.
    pub(super) metadata_directory: Option<LogDirectory>,
    /// The broker's epoch when it last stopped cleanly; -1 if it did not.
    pub(super) previous_broker_epoch: BrokerEpoch,
}

/// One directory.
#[derive(Debug)]
pub(super) struct OpenedDirectory {
    /// Its absolute path, as clients are told.
    pub(super) path: PathBuf,
    /// Its id; "lost" where that cannot be read.
    pub(super) id: DirectoryId,
    /// Why it is out of service, if it is.
    pub(super) directory: Result<LogDirectory, DirectoryError>,
}

/// Opens and locks every directory, that of the metadata log first: it says whose the others must be.
pub(super) fn open_all(disk: &Arc<dyn Disk>, config: &BrokerConfig) -> Result<Opened, StorageError> {
    let metadata_path = absolute(&config.metadata_log_dir);
    let unusable = |path: &Path, source| StorageError::Directory { path: path.to_owned(), source };
    let mut metadata_directory = LogDirectory::open(Arc::clone(disk), config.metadata_log_dir.clone())
        .map_err(|source| unusable(&config.metadata_log_dir, source))?;
    let properties = metadata_directory.meta_properties();
    let properties = properties.ok_or_else(|| StorageError::NotFormatted(config.metadata_log_dir.clone()))?;
    let cluster_id = properties.cluster_id.clone();
    identify(&mut metadata_directory, config.node_id, &cluster_id)?
        .map_err(|source| unusable(&config.metadata_log_dir, source))?;
    let id = metadata_directory.meta_properties().and_then(|properties| properties.directory_id);
    let metadata_directory_id = id.unwrap_or(Uuid::DIRECTORY_LOST);
    let mut metadata_directory = Some(metadata_directory);
    let mut directories = Vec::with_capacity(config.log_dirs.len());
    for path in &config.log_dirs {
        let is_metadata = absolute(path) == metadata_path;
        let opened = match metadata_directory.take_if(|_| is_metadata) {
            Some(directory) => Ok(directory),
            None => LogDirectory::open(Arc::clone(disk), path.clone()),
        };
        let directory = match opened {
            Err(source @ DirectoryError::Locked(_)) => return Err(unusable(path, source)),
            Err(source) => Err(source),
            Ok(mut directory) => identify(&mut directory, config.node_id, &cluster_id)?.map(|()| directory),
        };
        let id = match &directory {
            Ok(opened) => opened.meta_properties().and_then(|properties| properties.directory_id),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a log directory cannot be read and is out of service");
                id_of(&**disk, path)
            }
        };
        directories.push(OpenedDirectory { path: absolute(path), id: id.unwrap_or(Uuid::DIRECTORY_LOST), directory });
    }
    if directories.iter().all(|one| one.directory.is_err())
        && let Some(OpenedDirectory { path, directory: Err(source), .. }) = directories.pop()
    {
        return Err(StorageError::Directory { path, source });
    }
    let apart = metadata_directory.as_ref().map(|_| (&*metadata_path, metadata_directory_id));
    check_unique(directories.iter().map(|one| (&*one.path, one.id)).chain(apart))?;
    // KIP-966: the stop was clean only where every directory remembers the same epoch.
    let online = directories.iter().filter_map(|directory| directory.directory.as_ref().ok());
    let mut epochs: Vec<_> = online.map(LogDirectory::previous_broker_epoch).collect();
    epochs.dedup();
    let previous_broker_epoch = match epochs[..] {
        [Some(epoch)] => epoch,
        _ => BrokerEpoch::NONE,
    };
    Ok(Opened { directories, cluster_id, metadata_directory_id, metadata_directory, previous_broker_epoch })
}

/// Makes sure that a directory is this node's and has an id. The inner error is the disk's.
fn identify(
    directory: &mut LogDirectory,
    node: BrokerId,
    cluster: &ClusterId,
) -> Result<Result<(), DirectoryError>, StorageError> {
    if let Some(properties) = directory.meta_properties() {
        if properties.node_id != node || properties.cluster_id != *cluster {
            return Err(StorageError::Foreign {
                path: directory.path().to_owned(),
                found_node: properties.node_id,
                found_cluster: properties.cluster_id.clone(),
                node,
                cluster: cluster.clone(),
            });
        }
        if properties.directory_id.is_some() {
            return Ok(Ok(()));
        }
    }
    let id = Uuid::from_random(crate::random::u128);
    tracing::warn!(path = %directory.path().display(), %id, "a log directory without an id gets one");
    let properties = MetaProperties { version: 1, cluster_id: cluster.clone(), node_id: node, directory_id: Some(id) };
    Ok(directory.identify(properties).map_err(DirectoryError::from))
}

/// The id of a directory that could not be opened, if that much of it can be read.
fn id_of(disk: &dyn Disk, path: &Path) -> Option<DirectoryId> {
    MetaProperties::read(disk, path).ok()??.directory_id
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn check_unique<'p>(directories: impl Iterator<Item = (&'p Path, DirectoryId)>) -> Result<(), StorageError> {
    let mut known: BTreeMap<DirectoryId, &Path> = BTreeMap::new();
    for (path, id) in directories.filter(|(_, id)| *id != Uuid::DIRECTORY_LOST) {
        if let Some(first) = known.insert(id, path) {
            return Err(StorageError::SameId { first: first.to_owned(), second: path.to_owned(), id });
        }
    }
    Ok(())
}
