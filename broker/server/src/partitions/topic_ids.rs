//! Writes the topics' ids into the folders of new partitions, right after these can be found and many at once.
//!
//! The partitions' thread hands over what it is about to publish and goes on. A client, a group or a fetcher that writes to such a
//! partition at once waits for this, as a task and not on a thread: its append would pay two syncs of its own. A log's first append writes what is
//! not written by then, so nothing but time depends on this: where a step fails for want of room, it is left to the append.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use gregor_log::disk::SyncToken;
use tokio::sync::watch;

use super::Partitions;
use crate::{
    partition::{Partition, TopicIdStep},
    storage::Directory,
};

/// From so many files on, one sync of the whole file system costs less than one for each.
const SYNC_ALL_FROM: usize = 16;

/// The partitions whose folders lack it, and the thread that is there for as long as there are any.
#[derive(Debug, Default)]
pub(crate) struct TopicIds {
    queue: Mutex<Queue>,
    /// How many partitions an append should wait for.
    awaited: AtomicUsize,
    /// Told when there are fewer.
    settled: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Arc<Partition>>,
    thread: Option<thread::JoinHandle<()>>,
    /// Whether the thread will look at what waits once more.
    is_running: bool,
    is_stopped: bool,
}

impl TopicIds {
    /// Has the ids of new partitions written soon. To be called before anybody can find them.
    pub(super) fn add(self: &Arc<Self>, made: Vec<Arc<Partition>>) {
        let mut queue = self.lock();
        if made.is_empty() || queue.is_stopped {
            return;
        }
        self.awaited.fetch_add(made.len(), Ordering::AcqRel);
        for partition in &made {
            partition.set_topic_id_awaited(true);
        }
        queue.waiting.extend(made);
        if !queue.is_running {
            let this = Arc::clone(self);
            let thread = thread::Builder::new().name("gregor-topic-ids".to_owned()).spawn(move || this.run());
            queue.is_running = thread.is_ok();
            queue.thread = thread.ok();
            if !queue.is_running {
                // Where no thread can be had, the first appends do it.
                self.settle(&std::mem::take(&mut queue.waiting));
            }
        }
    }

    /// Whether an append should wait for any partition.
    pub(crate) fn are_awaited(&self) -> bool {
        self.awaited.load(Ordering::Acquire) > 0
    }

    /// Waits for as long as what it asks is so, which has to do with partitions that are awaited.
    pub(crate) async fn wait_while(&self, is_awaited: impl Fn() -> bool) {
        // Before it is looked at, so that nothing is missed in between.
        let mut settled = self.settled.subscribe();
        while is_awaited() && settled.changed().await.is_ok() {}
    }

    /// Lets appends to these partitions go on: their ids are on the disk, or are theirs to write.
    fn settle(&self, partitions: &[Arc<Partition>]) {
        for partition in partitions {
            partition.set_topic_id_awaited(false);
        }
        self.awaited.fetch_sub(partitions.len(), Ordering::AcqRel);
        self.settled.send_replace(());
    }

    /// Ends the thread after what it is doing.
    pub(super) fn stop(&self) {
        let thread = {
            let mut queue = self.lock();
            queue.is_stopped = true;
            self.settle(&std::mem::take(&mut queue.waiting));
            queue.thread.take()
        };
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes topic ids had panicked");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            let mut waiting = {
                let mut queue = self.lock();
                if queue.waiting.is_empty() {
                    queue.is_running = false;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            while let Some(directory) = waiting.first().map(|partition| partition.directory()) {
                let here: Vec<_> = waiting.extract_if(.., |one| Arc::ptr_eq(&one.directory(), &directory)).collect();
                // Whatever happens, nobody waits for ever.
                if catch_unwind(AssertUnwindSafe(|| write(&directory, here.clone()))).is_err() {
                    tracing::error!("writing the topic ids of new partitions panicked; their first appends do it");
                }
                self.settle(&here);
            }
        }
    }
}

impl Partitions {
    /// Whether new partitions are about to have their topics' ids written.
    pub(crate) fn are_topic_ids_awaited(&self) -> bool {
        self.topic_ids.are_awaited()
    }

    /// Waits for as long as what it asks is so, which has to do with such partitions.
    pub(crate) async fn wait_for_topic_ids_while(&self, is_awaited: impl Fn() -> bool) {
        self.topic_ids.wait_while(is_awaited).await;
    }
}

/// Writes the ids of partitions of one directory.
fn write(directory: &Directory, mut partitions: Vec<Arc<Partition>>) {
    for step in [TopicIdStep::Prepare, TopicIdStep::Name] {
        let (mut begun, mut syncs) = (Vec::new(), Vec::new());
        for partition in partitions {
            if let Some((sync, generation)) = partition.begin_topic_id_step(step) {
                syncs.push(sync);
                begun.push((partition, generation));
            }
        }
        partitions = Vec::new();
        for ((partition, generation), synced) in begun.into_iter().zip(complete(directory, syncs)) {
            let goes_on = synced.is_ok();
            partition.end_topic_id_step(step, generation, synced);
            if goes_on {
                partitions.push(partition);
            }
        }
    }
}

/// Completes syncs of one directory; the outcome of each.
fn complete(directory: &Directory, syncs: Vec<SyncToken>) -> Vec<io::Result<()>> {
    // An error there may be of any file on it: then each sync says how it is with its own.
    if syncs.len() >= SYNC_ALL_FROM && directory.sync().is_ok() {
        return syncs.iter().map(|_| Ok(())).collect();
    }
    syncs.into_iter().map(SyncToken::complete).collect()
}
