//! DescribeLogDirs: how large each partition is, in which directory, and how much room is left there.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use gregor_messages::{
    DescribeLogDirsRequest, DescribeLogDirsResponse,
    describe_log_dirs_response::{DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic},
};
use gregor_types::{ErrorCode, KString};

use crate::{
    api::Context,
    partition::{Future, Partition},
    storage::Directory,
};

/// Where the operating system does not say.
const UNKNOWN_BYTES: i64 = -1;

/// Answers a request.
pub(crate) async fn handle(
    context: &Context,
    request: DescribeLogDirsRequest,
    _version: i16,
) -> DescribeLogDirsResponse {
    let asked: Option<HashSet<(&str, i32)>> = request.topics.as_ref().map(|topics| {
        let pairs = topics.iter().flat_map(|topic| topic.partitions.iter().map(|index| (&*topic.topic, *index)));
        pairs.collect()
    });
    let is_asked = |partition: &Partition| {
        asked.as_ref().is_none_or(|asked| asked.contains(&(&*partition.topic, partition.index.value())))
    };
    let mut partitions = context.broker.partitions.all();
    partitions.retain(|partition| is_asked(partition));
    let directories = context.broker.partitions.storage().directories();
    let knows_cordons = context.broker.image().features().metadata_version().has_cordoned_directories();
    let results = directories.iter().map(|directory| describe(directory, &partitions, knows_cordons)).collect();
    DescribeLogDirsResponse { results, ..Default::default() }
}

fn describe(directory: &Arc<Directory>, partitions: &[Arc<Partition>], knows_cordons: bool) -> DescribeLogDirsResult {
    let log_dir = KString::from(directory.path.to_string_lossy().into_owned());
    if directory.is_failed() {
        let error_code = ErrorCode::KafkaStorageError.code();
        return DescribeLogDirsResult { error_code, log_dir, ..Default::default() };
    }
    let mut topics: BTreeMap<KString, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
    for partition in partitions {
        let described = of_log(partition, directory).into_iter().chain(of_copy(partition, directory));
        let mut described = described.peekable();
        if described.peek().is_some() {
            topics.entry(partition.topic.clone()).or_default().extend(described);
        }
    }
    let topics = topics.into_iter().map(|(name, mut partitions)| {
        partitions.sort_by_key(|partition| partition.partition_index);
        DescribeLogDirsTopic { name, partitions, ..Default::default() }
    });
    let (total_bytes, usable_bytes) = space(directory).unwrap_or((UNKNOWN_BYTES, UNKNOWN_BYTES));
    DescribeLogDirsResult {
        log_dir,
        topics: topics.collect(),
        total_bytes,
        usable_bytes,
        is_cordoned: knows_cordons && directory.is_cordoned(),
        ..Default::default()
    }
}

fn of_log(partition: &Partition, directory: &Arc<Directory>) -> Option<DescribeLogDirsPartition> {
    if !Arc::ptr_eq(&partition.directory(), directory) {
        return None;
    }
    let standing = partition.standing();
    (!standing.offline).then(|| DescribeLogDirsPartition {
        partition_index: partition.index.value(),
        partition_size: i64::try_from(standing.size).unwrap_or(i64::MAX),
        offset_lag: (standing.high_watermark.value() - standing.end.value()).max(0),
        is_future_key: false,
        ..Default::default()
    })
}

/// A copy on its way to the directory: it lags by what the log has and it has not.
fn of_copy(partition: &Partition, directory: &Arc<Directory>) -> Option<DescribeLogDirsPartition> {
    let extent = |future: &Future| Arc::ptr_eq(&future.directory, directory).then(|| future.extent());
    let (size, end) = partition.with_future(extent).flatten()?;
    Some(DescribeLogDirsPartition {
        partition_index: partition.index.value(),
        partition_size: i64::try_from(size).unwrap_or(i64::MAX),
        offset_lag: partition.standing().end.value() - end.value(),
        is_future_key: true,
        ..Default::default()
    })
}

fn space(directory: &Directory) -> Option<(i64, i64)> {
    let space = rustix::fs::statvfs(&directory.path).ok()?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(space.f_frsize)).unwrap_or(i64::MAX);
    Some((bytes(space.f_blocks), bytes(space.f_bavail)))
}
