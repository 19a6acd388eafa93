//! Kafka's text checkpoints: a version, a count, and one entry per line (`CheckpointFile`).

use std::{collections::BTreeMap, fmt::Write, io, path::Path};

use gregor_types::{LeaderEpoch, Offset, PartitionIndex, TopicPartition, check_topic_name};

use crate::{
    Disk, LogError,
    disk::{read_file, replace_file},
};

/// A bound far above any real file: a million partitions with long names.
const CHECKPOINT_BYTES_MAX: usize = 512 << 20;
const VERSION: &str = "0";

/// The four files in which a log directory keeps an offset for each of its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CheckpointKind {
    /// Everything before this offset is synced.
    RecoveryPoint,
    /// The first offset that readers may see.
    LogStart,
    /// The high watermark.
    HighWatermark,
    /// The first offset that the cleaner has not been over.
    Cleaner,
}

impl CheckpointKind {
    /// All four.
    pub const ALL: [Self; 4] = [Self::RecoveryPoint, Self::LogStart, Self::HighWatermark, Self::Cleaner];

    /// The file's name in the log directory.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::RecoveryPoint => "recovery-point-offset-checkpoint",
            Self::LogStart => "log-start-offset-checkpoint",
            Self::HighWatermark => "replication-offset-checkpoint",
            Self::Cleaner => "cleaner-offset-checkpoint",
        }
    }
}

/// The offsets in a checkpoint file; none if the file is missing.
pub(crate) fn read_offsets(disk: &dyn Disk, path: &Path) -> Result<BTreeMap<TopicPartition, Offset>, LogError> {
    let entries = read_entries(disk, path, |line| {
        let mut words = line.split(' ');
        let (topic, partition, offset) = (words.next()?, words.next()?, words.next()?);
        check_topic_name(topic).ok()?;
        let partition = PartitionIndex(partition.parse().ok()?);
        words.next().is_none().then_some(())?;
        Some((TopicPartition::new(topic, partition), Offset(offset.parse().ok()?)))
    })?;
    Ok(entries.into_iter().collect())
}

/// Replaces a checkpoint file. Blocks until it is synced.
pub(crate) fn write_offsets(
    disk: &dyn Disk,
    path: &Path,
    entries: impl IntoIterator<Item = (TopicPartition, Offset)>,
) -> Result<(), LogError> {
    let lines = entries.into_iter().map(|(tp, offset)| format!("{} {} {offset}", tp.topic, tp.partition));
    replace_file(disk, path, &encode(lines)).map_err(LogError::io(path))
}

/// The entries of a `leader-epoch-checkpoint`; none if the file is missing.
pub(crate) fn read_epochs(disk: &dyn Disk, path: &Path) -> Result<Vec<(LeaderEpoch, Offset)>, LogError> {
    read_entries(disk, path, |line| {
        let (epoch, offset) = line.split_once(' ')?;
        Some((LeaderEpoch(epoch.parse().ok()?), Offset(offset.parse().ok()?)))
    })
}

/// The content of a `leader-epoch-checkpoint`.
pub(crate) fn encode_epochs(entries: &[(LeaderEpoch, Offset)]) -> Vec<u8> {
    encode(entries.iter().map(|(epoch, offset)| format!("{epoch} {offset}")))
}

fn encode(lines: impl Iterator<Item = String>) -> Vec<u8> {
    let mut body = String::new();
    let mut count = 0;
    for line in lines {
        body.push_str(&line);
        body.push('\n');
        count += 1;
    }
    let mut text = String::with_capacity(body.len() + 16);
    writeln!(text, "{VERSION}\n{count}").expect("a string takes everything");
    text.push_str(&body);
    text.into_bytes()
}

fn read_entries<T>(disk: &dyn Disk, path: &Path, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, LogError> {
    let content = match read_file(disk, path, CHECKPOINT_BYTES_MAX) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(LogError::io(path)(error)),
    };
    let malformed = |reason: String| LogError::malformed(path, reason);
    let text = str::from_utf8(&content).map_err(|_| malformed("it is not text".to_owned()))?;
    let mut lines = text.lines();
    match lines.next() {
        Some(VERSION) => {}
        other => return Err(malformed(format!("its version is {other:?}, only 0 is known"))),
    }
    let count: usize = lines
        .next()
        .and_then(|count| count.parse().ok())
        .ok_or_else(|| malformed("its second line is not the number of entries".to_owned()))?;
    let mut entries = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        entries.push(parse(line).ok_or_else(|| malformed(format!("the line {line:?} is not an entry")))?);
    }
    if entries.len() != count {
        return Err(malformed(format!("it says {count} entries and has {}", entries.len())));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::disk::FaultyDisk;

    #[test]
    fn offsets_read_back_and_a_cut_off_file_is_refused() {
        let disk = FaultyDisk::new();
        disk.create_directory(Path::new("/d")).unwrap();
        let path = PathBuf::from("/d/recovery-point-offset-checkpoint");
        assert!(read_offsets(&disk, &path).unwrap().is_empty());
        let entries = [(TopicPartition::new("a", 0), Offset(7)), (TopicPartition::new("b.c", 12), Offset(0))];
        write_offsets(&disk, &path, entries.clone()).unwrap();
        assert_eq!(read_offsets(&disk, &path).unwrap(), entries.into_iter().collect());
        assert_eq!(read_file(&disk, &path, 100).unwrap(), b"0\n2\na 0 7\nb.c 12 0\n");
        replace_file(&disk, &path, b"0\n2\na 0 7\n").unwrap();
        assert!(read_offsets(&disk, &path).is_err());
    }
}
