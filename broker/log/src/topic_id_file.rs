//! A log's `partition.metadata`: the topic's id, on the disk before the log's first record.
//!
//! A folder without it has no record that anybody was promised, so a start may set it aside, as Kafka does. The first append
//! writes it, unless that was done before: the server does it for many new logs at once, in the steps below, with one sync for
//! all where the append needs two for each. Either may come in between the other's steps.

use std::{io::IoSlice, path::PathBuf};

use gregor_types::TopicId;

use crate::{
    LogError, PartitionLog,
    disk::{SyncToken, replace_file},
    file_names::{PARTITION_METADATA, TEMPORARY, with_suffix},
};

/// How far the file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TopicIdFile {
    /// It is to be written from the beginning.
    Missing,
    /// It is written under another name, perhaps not to the disk.
    Beside,
    /// It has its name, perhaps not on the disk.
    Named,
    /// It is on the disk, or there is no id to write.
    Durable,
}

impl PartitionLog {
    /// The topic's id, as `partition.metadata` has it.
    pub const fn topic_id(&self) -> Option<TopicId> {
        self.topic_id
    }

    /// Gives the log a topic id that it lacks; written before the next append.
    pub const fn set_topic_id(&mut self, topic_id: TopicId) {
        self.topic_id = Some(topic_id);
        self.topic_id_file = TopicIdFile::Missing;
    }

    /// The first step: writes `partition.metadata` under another name. To be on the disk before the next step; `None` if this one
    /// is done.
    pub fn prepare_topic_id(&mut self) -> Result<Option<SyncToken>, LogError> {
        let (TopicIdFile::Missing, Some(topic_id)) = (self.topic_id_file, self.topic_id) else { return Ok(None) };
        let path = self.temporary_topic_id_file();
        let file = self.disk.create(&path).map_err(LogError::io(&path))?;
        file.write_all_at(&mut [IoSlice::new(content(topic_id).as_bytes())], 0).map_err(LogError::io(&path))?;
        self.topic_id_file = TopicIdFile::Beside;
        Ok(Some(file.sync()))
    }

    /// The second step: gives the file its name. To be on the disk before the next step; `None` if there is nothing to wait for.
    pub fn name_topic_id(&mut self) -> Result<Option<SyncToken>, LogError> {
        if self.topic_id_file == TopicIdFile::Beside {
            let path = self.temporary_topic_id_file();
            let named = self.disk.rename(&path, &self.directory.join(PARTITION_METADATA));
            // Where that failed, nothing is known of the other name.
            self.topic_id_file = if named.is_ok() { TopicIdFile::Named } else { TopicIdFile::Missing };
            named.map_err(LogError::io(&path))?;
        }
        Ok((self.topic_id_file == TopicIdFile::Named).then(|| self.disk.sync_directory(&self.directory)))
    }

    /// The last step: takes note that the second is on the disk, or, where either sync has failed, that all is to be done anew.
    pub fn topic_id_synced(&mut self, is_durable: bool) {
        self.topic_id_file = match self.topic_id_file {
            TopicIdFile::Durable => TopicIdFile::Durable,
            TopicIdFile::Named if is_durable => TopicIdFile::Durable,
            _ => TopicIdFile::Missing,
        };
    }

    /// Does whatever is still to be done. Blocks.
    pub(crate) fn write_topic_id(&mut self) -> Result<(), LogError> {
        if self.topic_id_file == TopicIdFile::Durable {
            return Ok(());
        }
        // What somebody else has written under the other name may not be on the disk: all of it anew.
        self.topic_id_file = TopicIdFile::Missing;
        if let Some(topic_id) = self.topic_id {
            let path = self.directory.join(PARTITION_METADATA);
            replace_file(&*self.disk, &path, content(topic_id).as_bytes()).map_err(LogError::io(&path))?;
        }
        self.topic_id_file = TopicIdFile::Durable;
        Ok(())
    }

    fn temporary_topic_id_file(&self) -> PathBuf {
        with_suffix(&self.directory.join(PARTITION_METADATA), TEMPORARY)
    }
}

fn content(topic_id: TopicId) -> String {
    format!("version: 0\ntopic_id: {topic_id}")
}
