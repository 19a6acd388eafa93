//! The names of Kafka's files and folders (`LogFileUtils`, `UnifiedLog.parseTopicPartitionName`).

use std::path::{Path, PathBuf};

use gregor_types::{Offset, PartitionIndex, TopicPartition, check_topic_name};

pub(crate) const LOG: &str = ".log";
pub(crate) const OFFSET_INDEX: &str = ".index";
pub(crate) const TIME_INDEX: &str = ".timeindex";
pub(crate) const TRANSACTION_INDEX: &str = ".txnindex";
pub(crate) const PRODUCER_SNAPSHOT: &str = ".snapshot";

/// A file that waits to be removed.
pub(crate) const DELETED: &str = ".deleted";
/// A file that is to be renamed when it is complete.
pub(crate) const TEMPORARY: &str = ".tmp";
/// A cleaner's output that is not complete.
pub(crate) const CLEANED: &str = ".cleaned";
/// A cleaner's output that is complete and takes the place of other segments.
pub(crate) const SWAP: &str = ".swap";

pub(crate) const LEADER_EPOCH_CHECKPOINT: &str = "leader-epoch-checkpoint";
pub(crate) const PARTITION_METADATA: &str = "partition.metadata";

const DELETE_DIRECTORY: &str = "-delete";
const FUTURE_DIRECTORY: &str = "-future";
const STRAY_DIRECTORY: &str = "-stray";
const FILE_NAME_LENGTH_MAX: usize = 255;

/// What a partition's folder is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionDirectoryKind {
    /// A replica that serves.
    Partition,
    /// A replica that was deleted; its files wait to be removed.
    Deleted,
    /// A replica that the metadata does not give to this broker; never removed by itself.
    Stray,
    /// A replica on its way here from another directory of this broker.
    Future,
}

impl PartitionDirectoryKind {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Partition => "",
            Self::Deleted => DELETE_DIRECTORY,
            Self::Stray => STRAY_DIRECTORY,
            Self::Future => FUTURE_DIRECTORY,
        }
    }
}

/// The file of a kind whose name is an offset: `00000000000000000042.log`.
pub(crate) fn offset_file(directory: &Path, offset: Offset, suffix: &str) -> PathBuf {
    directory.join(format!("{offset:020}{suffix}"))
}

/// The offset in such a name.
pub(crate) fn offset_of(name: &str, suffix: &str) -> Option<Offset> {
    let digits = name.strip_suffix(suffix)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().map(Offset)
}

/// A name with a suffix behind it.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The partition and the kind that a folder's name tells; `None` for a name that no folder in a log directory may have.
pub(crate) fn parse_partition_directory(name: &str) -> Option<(TopicPartition, PartitionDirectoryKind)> {
    let kind = [PartitionDirectoryKind::Deleted, PartitionDirectoryKind::Stray, PartitionDirectoryKind::Future]
        .into_iter()
        .find(|kind| name.ends_with(kind.suffix()))
        .unwrap_or(PartitionDirectoryKind::Partition);
    let stem = if kind == PartitionDirectoryKind::Partition { name } else { name.rsplit_once('.')?.0 };
    let (topic, partition) = stem.rsplit_once('-')?;
    let partition: i32 = partition.parse().ok()?;
    if partition < 0 || check_topic_name(topic).is_err() {
        return None;
    }
    Some((TopicPartition::new(topic, PartitionIndex(partition)), kind))
}

/// The folder name of a partition that is deleted, stray or moving: topic cut so that the name fits a file system.
pub(crate) fn marked_directory_name(
    topic_partition: &TopicPartition,
    unique: u128,
    kind: PartitionDirectoryKind,
) -> String {
    let end = format!("-{}.{unique:032x}{}", topic_partition.partition, kind.suffix());
    let topic: &str = &topic_partition.topic;
    let topic = &topic[..topic.len().min(FILE_NAME_LENGTH_MAX - end.len())];
    format!("{topic}{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_names_tell_partition_and_kind() {
        let parsed = |name| parse_partition_directory(name).map(|(tp, kind)| (tp.to_string(), kind));
        assert_eq!(parsed("a-b.c-12"), Some(("a-b.c-12".into(), PartitionDirectoryKind::Partition)));
        assert_eq!(
            parsed("t-0.0123456789abcdef0123456789abcdef-delete"),
            Some(("t-0".into(), PartitionDirectoryKind::Deleted))
        );
        assert_eq!(parsed("t-3.aa-stray"), Some(("t-3".into(), PartitionDirectoryKind::Stray)));
        for foreign in ["lost+found", "t", "t-", "-1", "t-x", "t-0-delete", "t--1x"] {
            assert_eq!(parsed(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_marked_name_fits_a_file_system_and_parses_back() {
        let long = TopicPartition::new("x".repeat(249), 7);
        let name = marked_directory_name(&long, 1 << 100, PartitionDirectoryKind::Deleted);
        assert!(name.len() <= 255);
        assert_eq!(parse_partition_directory(&name).unwrap().1, PartitionDirectoryKind::Deleted);
    }
}
