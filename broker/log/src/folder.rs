//! What a partition's folder holds, after what a crash left in it was tidied up (`LogLoader`'s passes over the files).

use std::{collections::BTreeMap, io, path::Path};

use gregor_types::{Offset, TopicId};

use crate::{
    Disk, LogError,
    disk::{DirectoryEntry, read_file},
    file_names::{
        CLEANED, DELETED, LEADER_EPOCH_CHECKPOINT, LOG, OFFSET_INDEX, PARTITION_METADATA, PRODUCER_SNAPSHOT, SWAP,
        TEMPORARY, TIME_INDEX, TRANSACTION_INDEX, offset_file, offset_of, with_suffix,
    },
    scanner::{BatchScanner, SWEEP_BUFFER_BYTES, Scan},
    segment::SegmentFiles,
};

pub(crate) const EMPTY_SEGMENT: SegmentFiles =
    SegmentFiles { log: 0, offset_index: Some(0), time_index: Some(0), transaction_index: None };
const SEGMENT_SUFFIXES: [&str; 4] = [LOG, OFFSET_INDEX, TIME_INDEX, TRANSACTION_INDEX];
const METADATA_BYTES_MAX: usize = 4096;

#[derive(Debug, Clone)]
pub(crate) struct Folder {
    /// Ascending by base offset.
    pub(crate) segments: Vec<(Offset, SegmentFiles)>,
    /// Producer snapshots with their lengths, ascending by offset.
    pub(crate) snapshots: Vec<(Offset, u64)>,
    /// Whether there is a `leader-epoch-checkpoint`.
    pub(crate) has_epochs: bool,
    pub(crate) topic_id: Option<TopicId>,
}

/// Removes what was to be removed, completes a cleaner's swap, and tells what is left.
pub(crate) fn tidy(disk: &dyn Disk, directory: &Path) -> Result<Folder, LogError> {
    let list = || disk.list(directory).map_err(LogError::io(directory));
    let mut entries = list()?;
    let marked =
        |entry: &DirectoryEntry| [DELETED, CLEANED, SWAP, TEMPORARY].iter().any(|suffix| entry.name.ends_with(suffix));
    if entries.iter().any(marked) {
        remove_leftovers(disk, directory, &entries)?;
        complete_swaps(disk, directory, &list()?)?;
        entries = list()?;
    }
    let mut segments: BTreeMap<Offset, SegmentFiles> = BTreeMap::new();
    let mut snapshots = Vec::new();
    let (mut has_epochs, mut has_topic_id) = (false, false);
    for entry in &entries {
        if let Some(base) = offset_of(&entry.name, LOG) {
            segments.entry(base).or_default().log = entry.len;
        } else if let Some(offset) = offset_of(&entry.name, PRODUCER_SNAPSHOT) {
            snapshots.push((offset, entry.len));
        }
        has_epochs |= entry.name == LEADER_EPOCH_CHECKPOINT;
        has_topic_id |= entry.name == PARTITION_METADATA;
    }
    snapshots.sort_unstable();
    for entry in &entries {
        for suffix in [OFFSET_INDEX, TIME_INDEX, TRANSACTION_INDEX] {
            let Some(base) = offset_of(&entry.name, suffix) else { continue };
            match segments.get_mut(&base) {
                Some(files) if suffix == OFFSET_INDEX => files.offset_index = Some(entry.len),
                Some(files) if suffix == TIME_INDEX => files.time_index = Some(entry.len),
                Some(files) => files.transaction_index = Some(entry.len),
                None => remove(disk, &directory.join(&entry.name))?,
            }
        }
    }
    let topic_id = if has_topic_id { read_topic_id(disk, &directory.join(PARTITION_METADATA))? } else { None };
    Ok(Folder { segments: segments.into_iter().collect(), snapshots, has_epochs, topic_id })
}

/// The topic id in a `partition.metadata`; none if the file is missing.
pub(crate) fn read_topic_id(disk: &dyn Disk, path: &Path) -> Result<Option<TopicId>, LogError> {
    let content = match read_file(disk, path, METADATA_BYTES_MAX) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LogError::io(path)(error)),
    };
    let text = String::from_utf8_lossy(&content);
    let value = |key: &str| {
        text.lines().find_map(|line| line.split_once(": ").filter(|(name, _)| *name == key)).map(|(_, value)| value)
    };
    let (Some("0"), Some(Ok(topic_id))) = (value("version"), value("topic_id").map(str::parse)) else {
        return Err(LogError::malformed(path, "it does not name a topic_id in version 0"));
    };
    Ok(Some(topic_id))
}

fn remove(disk: &dyn Disk, path: &Path) -> Result<(), LogError> {
    match disk.remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LogError::io(path)(error)),
        _ => Ok(()),
    }
}

fn remove_leftovers(disk: &dyn Disk, directory: &Path, entries: &[DirectoryEntry]) -> Result<(), LogError> {
    // A cleaner that did not come to rename all its files to `.swap` has done nothing yet.
    let unfinished = entries.iter().filter_map(|entry| marked_base(&entry.name, CLEANED)).min();
    for entry in entries {
        let name = &entry.name;
        let obsolete_swap = match (marked_base(name, SWAP), unfinished) {
            (Some(swap), Some(unfinished)) => swap >= unfinished,
            _ => false,
        };
        if name.ends_with(DELETED) || name.ends_with(CLEANED) || name.ends_with(TEMPORARY) || obsolete_swap {
            remove(disk, &directory.join(name))?;
        }
    }
    Ok(())
}

/// A complete `.swap` segment takes the place of the segments whose offsets it covers.
fn complete_swaps(disk: &dyn Disk, directory: &Path, entries: &[DirectoryEntry]) -> Result<(), LogError> {
    let log_swap = with_suffix(Path::new(LOG), SWAP);
    let log_swap = log_swap.to_string_lossy();
    let swaps: Vec<_> =
        entries.iter().filter_map(|entry| offset_of(&entry.name, &log_swap).map(|base| (base, entry.len))).collect();
    let Some(first) = swaps.iter().map(|(base, _)| *base).min() else {
        for entry in entries.iter().filter(|entry| entry.name.ends_with(SWAP)) {
            let name = entry.name.trim_end_matches(SWAP);
            let (from, to) = (directory.join(&entry.name), directory.join(name));
            disk.rename(&from, &to).map_err(LogError::io(&from))?;
        }
        return Ok(());
    };
    let mut end = first;
    for (base, len) in &swaps {
        let path = with_suffix(&offset_file(directory, *base, LOG), SWAP);
        let file = disk.open(&path).map_err(LogError::io(&path))?;
        let mut scanner = BatchScanner::new(file, 0, *len, SWEEP_BUFFER_BYTES);
        while let Scan::Batch { header, .. } = scanner.next().map_err(LogError::io(&path))? {
            end = end.max(header.next_offset());
        }
    }
    for entry in entries {
        let base = SEGMENT_SUFFIXES.iter().find_map(|suffix| offset_of(&entry.name, suffix));
        if base.is_some_and(|base| first <= base && base < end) {
            remove(disk, &directory.join(&entry.name))?;
        }
    }
    for entry in entries.iter().filter(|entry| entry.name.ends_with(SWAP)) {
        let (from, to) = (directory.join(&entry.name), directory.join(entry.name.trim_end_matches(SWAP)));
        disk.rename(&from, &to).map_err(LogError::io(&from))?;
    }
    Ok(())
}

fn marked_base(name: &str, mark: &str) -> Option<Offset> {
    let stem = name.strip_suffix(mark)?;
    SEGMENT_SUFFIXES.iter().find_map(|suffix| offset_of(stem, suffix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FaultyDisk;

    #[test]
    fn leftovers_of_a_crash_are_tidied_up_as_kafka_does() {
        let disk = FaultyDisk::new();
        let directory = Path::new("/d/t-0");
        disk.create_directory(directory).unwrap();
        for name in [
            "00000000000000000000.log",
            "00000000000000000000.index",
            "00000000000000000000.timeindex",
            "00000000000000000007.index",
            "00000000000000000003.log.deleted",
            "00000000000000000009.log.cleaned",
            "00000000000000000009.log.swap",
            "leader-epoch-checkpoint.tmp",
            "00000000000000000005.snapshot",
            "something-of-a-user",
        ] {
            disk.create(&directory.join(name)).unwrap();
        }
        let folder = tidy(&disk, directory).unwrap();
        assert_eq!(folder.segments.len(), 1);
        assert_eq!(folder.segments[0].1.offset_index, Some(0));
        assert_eq!(folder.snapshots.len(), 1);
        let mut names: Vec<_> = disk.list(directory).unwrap().into_iter().map(|entry| entry.name).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "00000000000000000000.index",
                "00000000000000000000.log",
                "00000000000000000000.timeindex",
                "00000000000000000005.snapshot",
                "something-of-a-user",
            ]
        );
    }

    #[test]
    fn a_complete_swap_takes_the_place_of_the_segments_it_covers() {
        let disk = FaultyDisk::new();
        let directory = Path::new("/d/t-0");
        disk.create_directory(directory).unwrap();
        for name in ["00000000000000000000.log", "00000000000000000000.index.swap", "00000000000000000000.log.swap"] {
            disk.create(&directory.join(name)).unwrap();
        }
        let batch = gregor_wire::batch::RecordBatchBuilder::control_batch(
            Offset(4),
            gregor_types::LeaderEpoch(0),
            gregor_types::Timestamp(1),
            [(gregor_wire::batch::ControlRecordType::LeaderChange, &b"x"[..])],
        );
        let swap = disk.open(&directory.join("00000000000000000000.log.swap")).unwrap();
        swap.write_all_at(&mut [io::IoSlice::new(&batch)], 0).unwrap();
        disk.create(&directory.join("00000000000000000003.log")).unwrap();
        disk.create(&directory.join("00000000000000000005.log")).unwrap();
        let folder = tidy(&disk, directory).unwrap();
        let bases: Vec<_> = folder.segments.iter().map(|(base, files)| (base.0, files.log)).collect();
        assert_eq!(bases, [(0, batch.len() as u64), (5, 0)]);
    }
}
