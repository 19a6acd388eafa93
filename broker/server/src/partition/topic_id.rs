//! The steps of writing a new log's `partition.metadata` before its first append.

use std::{io, sync::atomic::Ordering};

use gregor_log::{LogError, PartitionLog, disk::SyncToken};

use super::Partition;

/// A step; the next one waits until it is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TopicIdStep {
    /// The file is written under another name.
    Prepare,
    /// It gets its name.
    Name,
}

impl Partition {
    /// Whether somebody else is about to take the steps: an append that waits for that spares two syncs.
    pub(crate) fn is_topic_id_awaited(&self) -> bool {
        self.topic_id_awaited.load(Ordering::Acquire)
    }

    /// Says so.
    pub(crate) fn set_topic_id_awaited(&self, is_awaited: bool) {
        self.topic_id_awaited.store(is_awaited, Ordering::Release);
    }

    /// Takes a step, unless it is done: what is to be completed then, without the lock, and which log it is of.
    pub(crate) fn begin_topic_id_step(&self, step: TopicIdStep) -> Option<(SyncToken, u64)> {
        let mut state = self.lock();
        let generation = state.generation;
        let log = state.log.opened_mut()?;
        let act = match step {
            TopicIdStep::Prepare => PartitionLog::prepare_topic_id,
            TopicIdStep::Name => PartitionLog::name_topic_id,
        };
        let begun = act(log);
        drop(state);
        match begun {
            Ok(sync) => Some((sync?, generation)),
            Err(error) => {
                self.on_log_error(&error);
                None
            }
        }
    }

    /// Takes note of what its completion came to. Of a log that is another one now, or deleted, it says nothing.
    pub(crate) fn end_topic_id_step(&self, step: TopicIdStep, generation: u64, synced: io::Result<()>) {
        let mut state = self.lock();
        let is_same = state.generation == generation;
        let Some(log) = state.log.opened_mut().filter(|_| is_same) else { return };
        if step == TopicIdStep::Name || synced.is_err() {
            log.topic_id_synced(synced.is_ok());
        }
        let path = log.directory().to_owned();
        drop(state);
        if let Err(source) = synced {
            self.on_log_error(&LogError::Io { path, source });
        }
    }
}
