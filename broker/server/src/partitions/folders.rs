//! Which folder is a partition's replica, where a new one goes, and what becomes of what lies in a directory that failed.

use std::{collections::HashMap, sync::Arc};

use gregor_node::{FolderFate, FoundFolder, LocalDirectory, choose_directory, settle_folders};
use gregor_types::{DirectoryId, Offset, TopicPartition, Uuid};

use super::{PartitionMap, Partitions, Replica, Work, random_uuid};
use crate::{
    clock::now,
    held_log::HeldLog,
    partition::{Future, Partition},
    recovery::Job,
    storage::{Directory, FoundLog},
};

impl Partitions {
    /// Decides by the first image what each folder that was found is. Nothing is deleted: what is nobody's is set aside.
    pub(super) fn settle_found(&self, work: &mut Work) {
        let online: Vec<DirectoryId> = self.storage.online().map(|directory| directory.id).collect();
        for (name, folders) in std::mem::take(&mut work.surveyed) {
            let folder = |found: &FoundLog| FoundFolder {
                directory: found.directory.id,
                topic_id: found.log.topic_id(),
                is_future: found.is_future,
            };
            let described: Vec<_> = folders.iter().map(folder).collect();
            let named = (&*name.topic, name.partition);
            let fates = settle_folders(self.node_id, &work.image, named, &online, &described);
            for (mut found, fate) in folders.into_iter().zip(fates) {
                match fate {
                    FolderFate::Serve => {
                        work.found.insert(name.clone(), found);
                    }
                    FolderFate::Promote => match found.directory.promote_resting(&mut found.log) {
                        Ok(()) => {
                            tracing::info!(partition = %name, "a move between log directories that was cut off is done");
                            found.is_future = false;
                            work.found.insert(name.clone(), found);
                        }
                        Err(error) => found.directory.on_error(&name, &error),
                    },
                    FolderFate::Resume => resume_found(name.clone(), found, work),
                    FolderFate::Stray => set_stray(&name, found),
                    FolderFate::Leave => {
                        let path = found.log.directory().display();
                        tracing::warn!(partition = %name, %path, "a copy is left alone: its replica is in a directory that is offline");
                    }
                }
            }
        }
    }

    /// A copy that was checked goes on, at the latest when its partition is there.
    pub(super) fn take_in_future(&self, map: &PartitionMap, name: TopicPartition, future: Future, work: &mut Work) {
        let topic = map.names.get(&name.topic);
        let partition = topic.and_then(|topic| topic.partitions.get(&name.partition.value()).cloned());
        work.futures.insert(name, future);
        if let Some(partition) = partition {
            self.resume_move(&partition, work);
        }
    }

    /// Goes on with a move that an earlier run began.
    pub(super) fn resume_move(&self, partition: &Arc<Partition>, work: &mut Work) {
        let Some(future) = work.futures.remove(&partition.name()) else { return };
        // Of a topic of the same name that is gone since: the next start sets it aside.
        if future.topic_id() != Some(partition.topic_id) {
            return;
        }
        let to = future.directory.path.display().to_string();
        if partition.begin_move(future).is_ok() {
            tracing::info!(partition = %partition.name(), to, "a replica goes on moving to another log directory");
            self.moves.add(partition);
        }
    }

    /// The log of a partition that has none here, and where it is; none of its own where the metadata says that it lies in a
    /// directory that is offline: made anew elsewhere, it would be empty.
    pub(super) fn create(
        &self,
        map: &PartitionMap,
        name: &TopicPartition,
        replica: &Replica<'_>,
        work: &mut Work,
    ) -> Option<(Arc<Directory>, HeldLog)> {
        let assigned = replica.state.directory_of(self.node_id).unwrap_or(Uuid::DIRECTORY_UNASSIGNED);
        let is_online = self.storage.online().any(|directory| directory.id == assigned);
        if !is_online
            && assigned != Uuid::DIRECTORY_UNASSIGNED
            && let Some(offline) = self.storage.offline(assigned)
        {
            tracing::warn!(partition = %name, "a replica may lie in a log directory that is offline, and is not made anew");
            return Some((Arc::clone(offline), HeldLog::Gone));
        }
        let wish = self.moves.take_wish(name).filter(|wish| self.storage.online().any(|one| one.id == *wish));
        let directory = self.directory_for(map, wish.unwrap_or(assigned), work)?;
        let config = Arc::clone(&work.topic(replica, &self.metrics).settings.log);
        self.forget_gone(work);
        if work.outdated.iter().any(|outdated| Arc::ptr_eq(outdated, &directory)) {
            work.unmade.insert((replica.topic_id, replica.index));
            return None;
        }
        let created = directory.create(name.clone(), replica.topic_id, config, now());
        if let Some(counts) = &mut work.counts {
            *counts.entry(directory.id).or_default() += 1;
        }
        match created {
            Ok(log) => Some((directory, HeldLog::Open(Box::new(log)))),
            Err(error) => {
                directory.on_error(name, &error);
                if directory.is_failed() {
                    return Some((directory, HeldLog::Gone));
                }
                work.unmade.insert((replica.topic_id, replica.index));
                None
            }
        }
    }

    fn directory_for(&self, map: &PartitionMap, wanted: DirectoryId, work: &mut Work) -> Option<Arc<Directory>> {
        let counts = work.counts.get_or_insert_with(|| {
            let mut counts: HashMap<DirectoryId, usize> = HashMap::new();
            for partition in map.ids.values().flat_map(|topic| topic.iter()) {
                *counts.entry(partition.directory().id).or_default() += 1;
            }
            counts
        });
        let local = |directory: &Arc<Directory>| LocalDirectory {
            id: directory.id,
            partitions: counts.get(&directory.id).copied().unwrap_or(0),
            cordoned: directory.is_cordoned(),
        };
        let online: Vec<LocalDirectory> = self.storage.online().map(local).collect();
        let chosen = choose_directory(wanted, &online)?;
        self.storage.online().find(|directory| directory.id == chosen).cloned()
    }

    /// Takes what lies in failed directories out of service, for good.
    pub(super) fn go_offline(&self, work: &mut Work) {
        for partition in self.all().iter().filter(|partition| partition.is_offline()) {
            drop(partition.take_log_if_offline());
        }
        for directory in self.storage.directories().iter().filter(|directory| directory.is_failed()) {
            self.end_moves_of(directory);
        }
        work.futures.retain(|_, future| !future.directory.is_failed());
        let mut map = PartitionMap::clone(&self.map.load());
        let unchecked: Vec<_> = work.recovering.extract_if(|_, directory| directory.is_failed()).collect();
        let image = Arc::clone(&work.image);
        for (name, directory) in unchecked {
            let topic = image.topics().by_name(&name.topic);
            if let Some(replica) = topic.and_then(|topic| self.replica(topic, name.partition)) {
                map.insert(&self.partition(&replica, directory, HeldLog::Gone, Offset::ZERO, work));
            }
        }
        self.publish(map, work);
    }

    /// The directories that get no new replicas, as the configuration has it now (KIP-1066).
    pub(super) fn set_cordons(&self, work: &Work) {
        let mut cordoned = Vec::new();
        for directory in self.storage.directories() {
            let is_cordoned = work.config.cordoned_log_dirs.iter().any(|path| directory.is_at(path));
            directory.set_cordoned(is_cordoned);
            if is_cordoned && !directory.is_failed() {
                cordoned.push(directory.id);
            }
        }
        let is_known = work.image.features().metadata_version().has_cordoned_directories();
        self.cordoned.send_if_modified(|told| {
            let now = is_known.then_some(cordoned);
            let is_news = *told != now;
            *told = now;
            is_news
        });
    }
}

/// Keeps a copy on its way until its partition is there, and checks it first where it was not closed.
fn resume_found(name: TopicPartition, found: FoundLog, work: &mut Work) {
    if found.log.end_offset().is_some() {
        work.settled.push((Arc::clone(&found.directory), name.clone()));
        work.futures.insert(name, Future::found(found.directory, found.log));
    } else {
        // It has to be checked first; the topic's settings come with the partition.
        let config = Arc::new(gregor_log::LogConfig::default());
        work.unchecked.push(Job { found, config });
    }
}

/// Sets a log aside that the metadata says is not ours; nothing of it is deleted.
fn set_stray(name: &TopicPartition, found: FoundLog) {
    match found.directory.set_stray(found.log, random_uuid()) {
        Ok(path) => {
            found.directory.settle(name);
            tracing::warn!(partition = %name, path = %path.display(), "a partition that is not this broker's is set aside");
        }
        Err(error) => found.directory.on_error(name, &error),
    }
}
