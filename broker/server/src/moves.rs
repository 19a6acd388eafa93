//! Replicas on their way from one log directory of this broker to another (KIP-113, KIP-858).
//!
//! `api/alter_replica_log_dirs.rs` asks for moves, `num.replica.alter.log.dirs.threads` threads drive them: each copies one replica
//! at a time, in bounded steps and together no faster than allowed, has the controller told where the replica will be
//! (`directory_reports.rs`), and swaps once the controller knows. A move survives a restart, as its `-future` folder does. What is
//! swapped and how is `partition/future.rs`.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use gregor_config::BrokerConfig;
use gregor_log::{CheckpointKind, can_have_future};
use gregor_metadata::{ConfigResource, Image, ResourceType};
use gregor_node::MoveQuota;
use gregor_types::{DirectoryId, ErrorCode, TopicPartition};
use tokio::sync::Notify;

use crate::{
    clock::now,
    control::ControlHandle,
    partition::{CopyStep, Future, MoveError, Partition, Swap},
    partitions::{Partitions, random_uuid},
    storage::Directory,
};

/// Copied in one step.
const STEP_BYTES: u32 = 1 << 20;
/// How often it is looked whether the controller knows where a replica will be.
const POLL: Duration = Duration::from_millis(100);
/// How often a move is looked at that has nothing to do, or cannot go on.
const IDLE: Duration = Duration::from_secs(10);
/// Wishes for partitions that do not exist here yet; more are not remembered.
const WISHES_MAX: usize = 100_000;
const RATE: &str = "replica.alter.log.dirs.io.max.bytes.per.second";

/// What is on its way, and what is to come.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    /// By name: of those of one thread, the first is moved first, as Kafka does.
    moving: Mutex<BTreeMap<TopicPartition, Arc<Partition>>>,
    /// Where partitions are to be created that do not exist here yet.
    wishes: Mutex<HashMap<TopicPartition, DirectoryId>>,
    /// Held while a move begins or ends by request.
    changing: Mutex<()>,
    signal: Mutex<Signal>,
    signalled: Condvar,
    /// Rings when the controller is to be told of directories.
    pub(crate) announced: Notify,
}

#[derive(Debug, Default)]
struct Signal {
    /// Counts the wake-ups: each thread has to see each.
    wakes: u64,
    stopped: bool,
}

/// The threads, and the way to end them.
#[derive(Debug)]
pub(crate) struct Mover {
    partitions: Arc<Partitions>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// What a thread works on.
struct Work {
    partitions: Arc<Partitions>,
    control: ControlHandle,
    /// Which of so many threads it is.
    place: (usize, usize),
    /// What all of them together may move.
    quota: Arc<Mutex<MoveQuota>>,
    started: Instant,
    /// The wake-ups that it has seen.
    wakes_seen: u64,
    /// Swaps that found more to copy, by partition.
    tries: HashMap<TopicPartition, u32>,
    /// Moves that cannot go on before this time.
    paused: HashMap<TopicPartition, Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Moves {
    /// The wish for a partition that is created now.
    pub(crate) fn take_wish(&self, name: &TopicPartition) -> Option<DirectoryId> {
        lock(&self.wishes).remove(name)
    }

    /// A move has begun, or goes on after a restart.
    pub(crate) fn add(&self, partition: &Arc<Partition>) {
        lock(&self.moving).insert(partition.name(), Arc::clone(partition));
        self.wake();
    }

    /// A move has come to its end. Whoever sees that may have begun the next one of the same replica: that one stays.
    fn remove(&self, partition: &Partition) {
        let mut moving = lock(&self.moving);
        if !partition.is_moving() {
            moving.remove(&partition.name());
        }
    }

    /// Has the threads look again.
    pub(crate) fn wake(&self) {
        lock(&self.signal).wakes += 1;
        self.signalled.notify_all();
    }

    /// Waits for a wake-up that was not seen yet, at most so long; false once the threads are to end.
    fn wait(&self, time: Duration, seen: &mut u64) -> bool {
        let signal = lock(&self.signal);
        let quiet = |signal: &mut Signal| signal.wakes == *seen && !signal.stopped;
        let (signal, _) =
            self.signalled.wait_timeout_while(signal, time, quiet).unwrap_or_else(PoisonError::into_inner);
        *seen = signal.wakes;
        !signal.stopped
    }
}

impl Partitions {
    /// Moves a replica to another directory, or has it created there (`ReplicaManager.alterReplicaLogDirs`).
    pub(crate) fn move_replica(&self, name: &TopicPartition, path: &Path, image: &Image) -> Result<(), ErrorCode> {
        let moves = &self.moves;
        let _changing = lock(&moves.changing);
        if !can_have_future(name) {
            return Err(ErrorCode::InvalidTopicException);
        }
        let directory = self.storage().by_path(path).ok_or(ErrorCode::LogDirNotFound)?;
        if directory.is_failed() {
            return Err(ErrorCode::KafkaStorageError);
        }
        if directory.is_cordoned() {
            return Err(ErrorCode::InvalidReplicaAssignment);
        }
        let partition = self.find(&name.topic, name.partition.value(), image).map_err(|error| {
            let mut wishes = lock(&moves.wishes);
            if wishes.len() < WISHES_MAX {
                wishes.insert(name.clone(), directory.id);
            }
            // Older clients know no other word for a replica of another broker.
            if error == ErrorCode::NotLeaderOrFollower { ErrorCode::ReplicaNotAvailable } else { error }
        })?;
        if partition.is_offline() {
            return Err(ErrorCode::KafkaStorageError);
        }
        let target = partition.with_future(|future| Arc::clone(&future.directory));
        if target.as_ref().is_some_and(|target| Arc::ptr_eq(target, directory)) {
            return Ok(());
        }
        if target.is_some() {
            self.cancel_move(&partition);
        }
        if Arc::ptr_eq(&partition.directory(), directory) {
            return Ok(());
        }
        // A copy of it may lie in a directory that is not there.
        if self.storage().directories().iter().any(|one| one.is_failed()) {
            return Err(ErrorCode::KafkaStorageError);
        }
        let config = Arc::clone(&partition.lock().settings.log);
        let log = directory.create_future(name.clone(), partition.topic_id, config, random_uuid(), now());
        let log = log.map_err(|error| {
            directory.on_error(name, &error);
            ErrorCode::KafkaStorageError
        })?;
        if let Err(unwanted) = partition.begin_move(Future::new(Arc::clone(directory), log)) {
            self.give_up(&partition, unwanted);
            return Err(ErrorCode::ReplicaNotAvailable);
        }
        tracing::info!(partition = %name, to = %directory.path.display(), "a replica begins to move to another log directory");
        moves.add(&partition);
        Ok(())
    }

    /// Ends a move before its end: its copy is deleted, and the controller told again where the replica is.
    pub(crate) fn cancel_move(&self, partition: &Partition) {
        if let Some(future) = partition.take_future() {
            self.moves.remove(partition);
            self.give_up(partition, future);
            self.moves.announced.notify_one();
        }
    }

    fn give_up(&self, partition: &Partition, future: Future) {
        let directory = Arc::clone(&future.directory);
        if !directory.is_failed() {
            let delay_ms = partition.lock().settings.log.file_delete_delay_ms;
            self.delete_log(&directory, future.into_log(), delay_ms);
        }
    }

    /// Ends the moves that a failed directory cuts off; what is copied stays where it is.
    pub(crate) fn end_moves_of(&self, failed: &Arc<Directory>) {
        let moving: Vec<_> = lock(&self.moves.moving).values().cloned().collect();
        for partition in moving {
            let goes_there = partition.with_future(|future| Arc::ptr_eq(&future.directory, failed)).unwrap_or(true);
            if goes_there || partition.is_offline() {
                drop(partition.take_future());
                self.moves.remove(&partition);
                self.moves.announced.notify_one();
            }
        }
    }
}

impl Mover {
    /// Starts the threads.
    pub(crate) fn start(
        partitions: &Arc<Partitions>,
        control: &ControlHandle,
        config: &BrokerConfig,
    ) -> std::io::Result<Self> {
        let quota = Arc::new(Mutex::new(MoveQuota::new(
            config.alter_log_dirs_replication_quota_window_num,
            config.alter_log_dirs_replication_quota_window_size_seconds,
        )));
        let (count, started) = (config.num_replica_alter_log_dirs_threads, Instant::now());
        let thread = |number| {
            let mut work = Work {
                partitions: Arc::clone(partitions),
                control: control.clone(),
                place: (number, count),
                quota: Arc::clone(&quota),
                started,
                wakes_seen: 0,
                tries: HashMap::new(),
                paused: HashMap::new(),
            };
            thread::Builder::new().name("gregor-mover".to_owned()).spawn(move || work.run())
        };
        let threads = (0..count).map(thread).collect::<Result<_, _>>()?;
        Ok(Self { partitions: Arc::clone(partitions), threads })
    }

    /// Ends each thread after its step; moves go on with the next start.
    pub(crate) fn stop(self) {
        lock(&self.partitions.moves.signal).stopped = true;
        self.partitions.moves.signalled.notify_all();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread that moves replicas had panicked");
            }
        }
    }
}

/// Which of so many threads moves a replica: the replicas of a topic are spread over all of them.
fn thread_of(name: &TopicPartition, threads: usize) -> usize {
    let topic = name.topic.bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte)));
    let index = usize::try_from(name.partition.value()).unwrap_or(0);
    topic.wrapping_add(index) % threads.max(1)
}

impl Work {
    fn run(&mut self) {
        let mut sleep = Duration::ZERO;
        let partitions = Arc::clone(&self.partitions);
        while partitions.moves.wait(sleep, &mut self.wakes_seen) {
            sleep = self.round();
        }
    }

    /// Does what there is to do; says how long there is nothing more.
    fn round(&mut self) -> Duration {
        let (number, threads) = self.place;
        let mut moving: Vec<_> = lock(&self.partitions.moves.moving).values().cloned().collect();
        moving.retain(|partition| thread_of(&partition.name(), threads) == number);
        self.tries.retain(|name, _| moving.iter().any(|partition| partition.name() == *name));
        self.paused.retain(|_, until| *until > Instant::now());
        let mut sleep = IDLE;
        for partition in &moving {
            let name = partition.name();
            if let Some(until) = self.paused.get(&name) {
                sleep = sleep.min(until.saturating_duration_since(Instant::now()));
                continue;
            }
            match self.advance(partition, &name) {
                // The first goes on until it waits for somebody else: it is there sooner than if all went at once.
                Ok(Duration::ZERO) => return Duration::ZERO,
                Ok(pause) => sleep = sleep.min(pause),
                Err(error) => self.failed(partition, name, &error),
            }
        }
        sleep
    }

    /// Takes a move one step further; says how long it waits then.
    fn advance(&mut self, partition: &Arc<Partition>, name: &TopicPartition) -> Result<Duration, MoveError> {
        let now_nanos = |started: Instant| u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let rate = self.rate();
        let pause = lock(&self.quota).pause(rate, now_nanos(self.started));
        if pause > 0 {
            return Ok(Duration::from_nanos(pause));
        }
        match partition.copy_step(STEP_BYTES, now())? {
            CopyStep::Copied(bytes) => {
                lock(&self.quota).moved(bytes, now_nanos(self.started));
                return Ok(Duration::ZERO);
            }
            CopyStep::CaughtUp => {}
            CopyStep::Gone => {
                self.partitions.moves.remove(partition);
                return Ok(IDLE);
            }
        }
        if partition.announce_future() {
            self.partitions.moves.announced.notify_one();
        }
        if !self.is_known(partition) {
            return Ok(POLL);
        }
        // A swap that is cut off leaves one folder whole, if that folder is on the disk.
        partition.flush_future()?;
        let tries = self.tries.get(name).copied().unwrap_or(0);
        if tries == 0 {
            self.checkpoint();
        }
        self.tries.insert(name.clone(), tries + 1);
        match partition.swap(tries, random_uuid(), now())? {
            Swap::NotYet => return Ok(Duration::ZERO),
            Swap::Gone => {}
            Swap::Done(retired) => {
                let to = partition.directory();
                tracing::info!(partition = %name, to = %to.path.display(), "a replica is in another log directory now");
                let delay_ms = partition.lock().settings.log.file_delete_delay_ms;
                self.partitions.add_deleted(retired, delay_ms);
                self.checkpoint();
                to.request_flush(partition);
            }
        }
        self.tries.remove(name);
        self.partitions.moves.remove(partition);
        Ok(IDLE)
    }

    fn failed(&mut self, partition: &Arc<Partition>, name: TopicPartition, error: &MoveError) {
        tracing::error!(partition = %name, %error, "a move to another log directory does not go on");
        if let (MoveError::Target(error), Some(target)) =
            (error, partition.with_future(|future| Arc::clone(&future.directory)))
        {
            target.on_error(&name, error);
        }
        self.paused.insert(name, Instant::now() + IDLE);
    }

    /// Whether the controller knows where the replica will be, where the finalized level can say so.
    fn is_known(&self, partition: &Partition) -> bool {
        let image = self.control.image();
        if !image.features().metadata_version().has_directory_assignment() {
            return true;
        }
        let known = image.topics().partition(partition.topic_id, partition.index);
        let known = known.and_then(|known| known.directory_of(self.partitions.node_id()));
        known == partition.with_future(|future| future.directory.id)
    }

    /// How many bytes may be moved in a second: what is set for this broker, else for all.
    fn rate(&self) -> u64 {
        let image = self.control.image();
        let own = ConfigResource::new(ResourceType::Broker, self.partitions.node_id().to_string());
        let set = image.configs().get(&own, RATE).or_else(|| image.configs().get(&ConfigResource::all_brokers(), RATE));
        set.and_then(|value| value.trim().parse().ok()).unwrap_or(u64::MAX)
    }

    /// The checkpoints go with the replicas: what a directory says of a partition belongs to the folder that is there.
    fn checkpoint(&self) {
        for kind in CheckpointKind::ALL {
            self.partitions.checkpoint(kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gregor_types::PartitionIndex;

    use super::*;

    #[test]
    fn the_replicas_of_a_topic_are_spread_over_all_threads_and_each_has_one() {
        for topic in ["t", "orders", "a-very-long-name-of-a-topic-that-would-overflow-a-sum"] {
            let name = |index| TopicPartition { topic: topic.into(), partition: PartitionIndex(index) };
            let threads: BTreeSet<_> = (0..3).map(|index| thread_of(&name(index), 3)).collect();
            assert_eq!(threads, BTreeSet::from([0, 1, 2]));
            assert_eq!(thread_of(&name(7), 1), 0);
        }
    }
}
