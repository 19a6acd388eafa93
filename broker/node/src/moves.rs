//! What a start makes of the folders that it finds of one partition, and how fast replicas move between log directories
//! (KIP-113, KIP-858).

use std::collections::VecDeque;

use gregor_metadata::Image;
use gregor_types::{BrokerId, DirectoryId, PartitionIndex, TopicId, Uuid};

use crate::{Nanos, is_stray};

const SECOND: Nanos = 1_000_000_000;

/// A folder of a partition, as a start finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundFolder {
    /// The log directory that it is in.
    pub directory: DirectoryId,
    /// The topic's id in it; none in a folder that never had a record, or from before topics had ids.
    pub topic_id: Option<TopicId>,
    /// Whether it is a `-future` folder: a replica that was on its way there.
    pub is_future: bool,
}

/// What is to become of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderFate {
    /// It is the replica.
    Serve,
    /// It is a copy of the replica, which goes on.
    Resume,
    /// It is a copy that had all, and the replica's own folder is out of the way: it becomes the replica.
    Promote,
    /// It is set aside: the metadata gives it to nobody here, or another folder is the replica.
    Stray,
    /// It stays as it is: the replica is in a directory that is not online.
    Leave,
}

/// What becomes of the folders of one partition, in their order. `online` are the ids of the directories that are.
pub fn settle_folders(
    broker: BrokerId,
    image: &Image,
    (topic, index): (&str, PartitionIndex),
    online: &[DirectoryId],
    folders: &[FoundFolder],
) -> Vec<FolderFate> {
    let is_ours = |folder: &FoundFolder| {
        let unnamed_copy = folder.is_future && folder.topic_id.is_none();
        !unnamed_copy && !is_stray(broker, image, folder.topic_id, topic, index)
    };
    let assigned = image.topics().by_name(topic).and_then(|topic| topic.partition(index)?.directory_of(broker));
    let assigned = assigned.unwrap_or(Uuid::DIRECTORY_UNASSIGNED);
    // Of two that claim to be the same, the metadata says which.
    let choose = |is_future: bool| {
        let ours = || folders.iter().enumerate().filter(|(_, one)| one.is_future == is_future && is_ours(one));
        ours().find(|(_, one)| one.directory == assigned).or_else(|| ours().next()).map(|(place, _)| place)
    };
    let (replica, copy) = (choose(false), choose(true));
    let known = assigned != Uuid::DIRECTORY_UNASSIGNED && assigned != Uuid::DIRECTORY_MIGRATING;
    let fate = |place: usize| match (replica, copy) {
        (Some(replica), _) if replica == place => FolderFate::Serve,
        (Some(replica), Some(copy)) if copy == place && folders[replica].directory != folders[copy].directory => {
            FolderFate::Resume
        }
        (None, Some(copy)) if copy == place && known && !online.contains(&assigned) => FolderFate::Leave,
        (None, Some(copy)) if copy == place => FolderFate::Promote,
        _ => FolderFate::Stray,
    };
    (0..folders.len()).map(fate).collect()
}

/// How fast replicas may move between log directories, measured over some samples (`ReplicationQuotaManager`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveQuota {
    /// When each sample began, and what was moved in it; oldest first.
    samples: VecDeque<(Nanos, u64)>,
    samples_max: usize,
    sample_time: Nanos,
}

impl MoveQuota {
    /// Nothing moved yet. `alter.log.dirs.replication.quota.window.num` samples of `….window.size.seconds` each.
    pub fn new(samples_max: usize, sample_seconds: u32) -> Self {
        let sample_time = u64::from(sample_seconds.max(1)) * SECOND;
        Self { samples: VecDeque::new(), samples_max: samples_max.max(1), sample_time }
    }

    /// So many bytes were moved.
    pub fn moved(&mut self, bytes: u64, now: Nanos) {
        self.forget(now);
        match self.samples.back_mut() {
            Some((began, total)) if now < *began + self.sample_time => *total += bytes,
            _ => self.samples.push_back((now, bytes)),
        }
    }

    /// How long to wait before more is moved, at `replica.alter.log.dirs.io.max.bytes.per.second`; 0 for not at all. To be
    /// asked again then.
    pub fn pause(&mut self, bytes_per_second: u64, now: Nanos) -> Nanos {
        self.forget(now);
        let Some((oldest, _)) = self.samples.front().copied() else { return 0 };
        let total: u64 = self.samples.iter().map(|(_, bytes)| bytes).sum();
        if bytes_per_second == 0 {
            return self.sample_time;
        }
        let needed = u128::from(total) * u128::from(SECOND) / u128::from(bytes_per_second);
        let elapsed = u128::from((now - oldest).max(self.sample_time));
        let pause = Nanos::try_from(needed.saturating_sub(elapsed)).unwrap_or(Nanos::MAX);
        pause.min(self.sample_time)
    }

    fn forget(&mut self, now: Nanos) {
        let span = self.sample_time.saturating_mul(self.samples_max as u64);
        while self.samples.front().is_some_and(|(began, _)| now.saturating_sub(*began) >= span) {
            self.samples.pop_front();
        }
    }
}
