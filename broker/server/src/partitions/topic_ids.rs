//! Writes the topics' ids into the folders of new partitions, right after these can be found and many at once.
//!
//! The partitions' thread hands over what it has made and goes on. A log's first append writes what is not written by then, so
//! nothing but time depends on this: where a step fails for want of room, it is left to the append.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use gregor_log::disk::SyncToken;

use crate::{
    partition::{Partition, TopicIdStep},
    storage::Directory,
};

/// From so many files on, one sync of the whole file system costs less than one for each.
const SYNC_ALL_FROM: usize = 16;

/// The partitions whose folders lack it, and the thread that is there for as long as there are any.
#[derive(Debug, Default)]
pub(super) struct TopicIds(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Arc<Partition>>,
    thread: Option<thread::JoinHandle<()>>,
    /// Whether the thread will look at what waits once more.
    is_running: bool,
    is_stopped: bool,
}

impl TopicIds {
    /// Has the ids of new partitions written soon.
    pub(super) fn add(self: &Arc<Self>, made: Vec<Arc<Partition>>) {
        let mut queue = self.lock();
        if made.is_empty() || queue.is_stopped {
            return;
        }
        queue.waiting.extend(made);
        if !queue.is_running {
            let this = Arc::clone(self);
            let thread = thread::Builder::new().name("gregor-topic-ids".to_owned()).spawn(move || this.run());
            // Where no thread can be had, the next that are made try again.
            queue.is_running = thread.is_ok();
            queue.thread = thread.ok();
        }
    }

    /// Ends the thread after what it is doing.
    pub(super) fn stop(&self) {
        let thread = {
            let mut queue = self.lock();
            queue.is_stopped = true;
            queue.waiting.clear();
            queue.thread.take()
        };
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes topic ids had panicked");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
                let here = waiting.extract_if(.., |one| Arc::ptr_eq(&one.directory(), &directory)).collect();
                write(&directory, here);
            }
        }
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
