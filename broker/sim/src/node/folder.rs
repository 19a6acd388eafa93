//! The folder of a simulated node's logs: what lay in it at the start, what is opened, deleted and set aside, and what is written down
//! of those that are held.
//!
//! `broker.rs` and the replicas of a cluster's nodes hold the logs that come out of it, and say when; it decides nothing.

use std::{collections::BTreeMap, sync::Arc};

use gregor_log::{
    CheckpointKind, DeletedPartition, DirectoryError, Disk, LogConfig, LogDirectory, LogError, PartitionDirectoryKind,
    PartitionLog, RestingLog, disk::FaultyDisk,
};
use gregor_metadata::Image;
use gregor_node::is_stray;
use gregor_types::{BrokerEpoch, BrokerId, Offset, Timestamp, TopicPartition, Uuid};

use super::process::Death;
use crate::Random;

/// How long what is deleted stays under another name.
const DELETE_DELAY_MS: i64 = 10_000;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct LogFolder {
    directory: LogDirectory,
    found: BTreeMap<TopicPartition, RestingLog>,
    deleted: Vec<(Timestamp, DeletedPartition)>,
    /// Whether a checkpoint may name logs that are gone.
    is_outdated: bool,
}

/// A log that is held, and its high watermark.
pub(crate) type HeldLog<'a> = (&'a PartitionLog, Offset);

impl From<LogError> for Death {
    fn from(error: LogError) -> Self {
        Self(error.to_string())
    }
}

impl From<DirectoryError> for Death {
    fn from(error: DirectoryError) -> Self {
        Self(error.to_string())
    }
}

impl LogFolder {
    /// Looks at what lies in the directory. A log is opened, and checked if it was not closed, once it is asked for.
    pub(crate) fn open(disk: &FaultyDisk, directory: LogDirectory) -> Result<Self, Death> {
        let mut found = BTreeMap::new();
        for entry in directory.find_partitions()? {
            if entry.path.ends_with("__cluster_metadata-0") {
                continue;
            }
            match entry.kind {
                PartitionDirectoryKind::Partition => {}
                PartitionDirectoryKind::Deleted => {
                    disk.remove_directory(&entry.path).map_err(|error| Death(error.to_string()))?;
                    continue;
                }
                PartitionDirectoryKind::Stray | PartitionDirectoryKind::Future => continue,
            }
            let name = entry.topic_partition.clone();
            found.insert(name, directory.survey(entry)?);
        }
        Ok(Self { directory, found, deleted: Vec::new(), is_outdated: true })
    }

    /// Sets aside what the first image gives to nobody here.
    pub(crate) fn set_strays(&mut self, me: BrokerId, image: &Image, random: &mut Random) -> Result<(), Death> {
        let stray: Vec<_> = self
            .found
            .extract_if(.., |name, log| is_stray(me, image, log.topic_id(), &name.topic, name.partition))
            .collect();
        for (_, log) in stray {
            self.directory.set_stray(log, uuid(random))?;
        }
        Ok(())
    }

    /// The log of that name, and up to where it was known to be committed; `None` where the disk has no room to make it. `held` are those that
    /// were opened before.
    pub(crate) fn open_log<'a>(
        &mut self,
        name: &TopicPartition,
        topic_id: Uuid,
        config: &Arc<LogConfig>,
        held: &(impl Iterator<Item = HeldLog<'a>> + Clone),
        now: Timestamp,
    ) -> Result<Option<(PartitionLog, Offset)>, Death> {
        let config = Arc::clone(config);
        let log = if let Some(mut found) = self.found.remove(name) {
            let mut opening = found.opening(config, now)?;
            while !opening.step(1_000)?.done {}
            opening.finish()?
        } else {
            if !self.forget_gone(held)? {
                return Ok(None);
            }
            match self.directory.create_partition(name.clone(), Some(topic_id), config, now) {
                Ok(log) => log,
                Err(error) if error.is_disk_full() => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        let checkpoint = self.directory.checkpoint(CheckpointKind::HighWatermark, name);
        let high_watermark = checkpoint.unwrap_or_else(|| log.start_offset());
        Ok(Some((log, high_watermark)))
    }

    /// Deletes a log; its files go later.
    pub(crate) fn delete(&mut self, log: PartitionLog, now: Timestamp, random: &mut Random) -> Result<(), Death> {
        let deleted = self.directory.delete_partition(log, uuid(random))?;
        self.deleted.push((now.plus_ms(DELETE_DELAY_MS), deleted));
        self.is_outdated = true;
        Ok(())
    }

    /// Has the checkpoints say nothing more of logs that are gone, as the server does before a new one may have the same name: it would begin
    /// where the old one did. Whether they do.
    pub(crate) fn forget_gone<'a>(
        &mut self,
        held: &(impl Iterator<Item = HeldLog<'a>> + Clone),
    ) -> Result<bool, Death> {
        if self.is_outdated {
            let mut is_written = true;
            for kind in CheckpointKind::ALL {
                is_written &= self.checkpoint(kind, held.clone())?;
            }
            self.is_outdated = !is_written;
        }
        Ok(!self.is_outdated)
    }

    /// Removes the files that are due.
    pub(crate) fn remove_deleted(&mut self, now: Timestamp) -> Result<(), Death> {
        let due = self.deleted.extract_if(.., |(due, _)| *due <= now).collect::<Vec<_>>();
        Ok(due.into_iter().try_for_each(|(_, deleted)| deleted.remove())?)
    }

    /// A log was cut off.
    pub(crate) fn lower_recovery_point(&self, log: &PartitionLog) -> Result<(), Death> {
        match self.directory.lower_recovery_point(log.topic_partition(), log.recovery_checkpoint()) {
            Err(error) if !error.is_disk_full() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Writes a checkpoint of the logs that are held, each with its high watermark, and of those that nobody has asked for yet what the one
    /// before says, as the server does. On a full disk the one before stays: whether it is written.
    pub(crate) fn checkpoint<'a>(
        &self,
        kind: CheckpointKind,
        held: impl Iterator<Item = HeldLog<'a>>,
    ) -> Result<bool, Death> {
        let entry = |(log, high_watermark): HeldLog<'a>| {
            let offset = match kind {
                CheckpointKind::Cleaner => log.cleaned_to().unwrap_or(Offset::ZERO),
                CheckpointKind::RecoveryPoint => log.recovery_checkpoint(),
                CheckpointKind::LogStart => log.start_offset(),
                CheckpointKind::HighWatermark => high_watermark,
            };
            (offset > Offset::ZERO).then(|| (log.topic_partition().clone(), offset))
        };
        let resting = self.found.keys().filter_map(|name| Some((name.clone(), self.directory.checkpoint(kind, name)?)));
        match self.directory.write_checkpoint(kind, held.filter_map(entry).chain(resting)) {
            Err(error) if !error.is_disk_full() => Err(error.into()),
            written => Ok(written.is_ok()),
        }
    }

    /// Closes every log that is held, each with its high watermark, and the directory: a clean stop. Where logs lie in it that the last stop left
    /// torn, and that were not opened since, it is none, as in the server.
    pub(crate) fn close(self, epoch: BrokerEpoch, mut held: Vec<(&mut PartitionLog, Offset)>) -> Result<(), Death> {
        for kind in [CheckpointKind::LogStart, CheckpointKind::HighWatermark] {
            self.checkpoint(kind, held.iter().map(|(log, high_watermark)| (&**log, *high_watermark)))?;
        }
        for (log, _) in &mut held {
            let flushed = log.close()?.complete()?;
            log.flushed(flushed);
        }
        self.checkpoint(
            CheckpointKind::RecoveryPoint,
            held.iter().map(|(log, high_watermark)| (&**log, *high_watermark)),
        )?;
        if self.found.is_empty() || self.directory.was_clean() {
            self.directory.finish_clean_shutdown(epoch)?;
        }
        Ok(())
    }
}

fn uuid(random: &mut Random) -> Uuid {
    let mut random = random.fork();
    Uuid::from_random(|| u128::from(random.bits()) << 64 | u128::from(random.bits()))
}
