//! One shard behind its lock, with the requests that wait for its answers.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gregor_coordinators::{
    Answer, Environment, Moment, Shard, Token,
    group::{GroupConfig, GroupCoordinator, GroupCounts, GroupRequest, GroupResponse},
};
use gregor_types::{ErrorCode, LeaderEpoch};
use tokio::{runtime::Handle, sync::oneshot, time::Instant};

use super::{journal::PartitionJournal, loader};
use crate::{
    clock::now,
    partition::{Awaits, Partition},
    random,
    waiters::Waiter,
};

/// How often a shard whose answers wait for followers looks whether it still leads.
const COMMIT_CHECK: Duration = Duration::from_secs(1);

/// No time at all.
const NEVER: u64 = u64::MAX;

/// A partition of `__consumer_offsets` as one epoch's leader keeps it.
#[derive(Debug)]
pub(super) struct GroupShard {
    partition: Arc<Partition>,
    epoch: LeaderEpoch,
    inner: Mutex<Inner>,
    /// When it wants to be called next, known without the lock, which an append may hold.
    next_time: AtomicU64,
    /// What it held when that was asked last.
    counted: Mutex<GroupCounts>,
}

#[derive(Debug)]
struct Inner {
    shard: Shard<GroupCoordinator>,
    waiting: HashMap<Token, oneshot::Sender<GroupResponse>>,
    next_token: u64,
    condition: Condition,
    /// Whether a task waits for the followers.
    committing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Loading,
    Active,
    /// Led elsewhere, or not to be loaded.
    Gone,
}

impl GroupShard {
    pub(super) fn new(partition: Arc<Partition>, epoch: LeaderEpoch, config: GroupConfig) -> Arc<Self> {
        let inner = Inner {
            shard: Shard::new(GroupCoordinator::new(config)),
            waiting: HashMap::new(),
            next_token: 0,
            condition: Condition::Loading,
            committing: false,
        };
        let (next_time, counted) = (AtomicU64::new(NEVER), Mutex::default());
        Arc::new(Self { partition, epoch, inner: Mutex::new(inner), next_time, counted })
    }

    /// Whether it is the shard of this partition in this epoch.
    pub(super) fn is_of(&self, partition: &Arc<Partition>, epoch: LeaderEpoch) -> bool {
        Arc::ptr_eq(&self.partition, partition) && self.epoch == epoch
    }

    /// Whether its first append should wait for its topic's id.
    pub(super) fn is_topic_id_awaited(&self) -> bool {
        self.partition.is_topic_id_awaited()
    }

    /// Reads the partition, then takes requests. Blocks on the disk.
    pub(super) fn load(self: &Arc<Self>, now: Moment) {
        let started = std::time::Instant::now();
        // Nobody but this thread wants the lock while it loads, except to hear that it is loading: so it loads outside.
        let fresh = Shard::new(GroupCoordinator::new(*self.lock().shard.machine().config()));
        let (shard, loaded) = loader::load(&self.partition, fresh);
        let index = self.partition.index.value();
        let end = match loaded {
            Ok(end) => end,
            Err(error) => {
                tracing::error!(partition = index, %error, "groups cannot be loaded; their clients are sent away");
                self.lock().condition = Condition::Gone;
                return;
            }
        };
        let mut inner = self.lock();
        if inner.condition == Condition::Gone {
            return;
        }
        inner.shard = shard;
        inner.condition = Condition::Active;
        let committed = self.partition.high_watermark();
        self.step(&mut inner, now, |shard, environment| shard.activate(end, committed, environment));
        let groups = inner.shard.machine().counts();
        tracing::debug!(partition = index, groups = groups.groups, offsets = groups.offsets, elapsed = ?started.elapsed(), "groups are loaded");
    }

    /// Whoever waits is sent away.
    pub(super) fn unload(&self) {
        let mut inner = self.lock();
        inner.condition = Condition::Gone;
        self.next_time.store(NEVER, Ordering::Release);
        // Dropping a sender tells its receiver.
        inner.waiting.clear();
    }

    /// Gives the shard a request. The answer comes by the channel; it is dropped if the shard is unloaded first.
    pub(super) fn ask(
        self: &Arc<Self>,
        request: GroupRequest,
        now: Moment,
    ) -> Result<oneshot::Receiver<GroupResponse>, ErrorCode> {
        let mut inner = self.lock();
        match inner.condition {
            Condition::Loading => return Err(ErrorCode::CoordinatorLoadInProgress),
            Condition::Gone => return Err(ErrorCode::NotCoordinator),
            Condition::Active => {}
        }
        inner.next_token += 1;
        let token = Token(inner.next_token);
        let (answer, receiver) = oneshot::channel();
        inner.waiting.insert(token, answer);
        self.step(&mut inner, now, |shard, environment| shard.handle(request, token, environment).unwrap_or_default());
        Ok(receiver)
    }

    pub(super) fn on_time(self: &Arc<Self>, now: Moment) {
        let mut inner = self.lock();
        if inner.condition == Condition::Active {
            self.step(&mut inner, now, Shard::on_time);
        }
    }

    /// Runs something that may append, or wait for an append: on the directory's own thread where its appends are slow. Nothing
    /// where it panicked there.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&Arc<Self>) -> T + Send + 'static,
    ) -> Option<T> {
        let appends = Arc::clone(&self.partition.directory().appends);
        if !appends.is_slow() {
            return Some(act(self));
        }
        let (shard, runtime) = (Arc::clone(self), Handle::current());
        let (sender, done) = oneshot::channel();
        let job = Box::new(move || {
            let _context = runtime.enter();
            // Whoever asked may be gone.
            let _ = sender.send(act(&shard));
        });
        if let Err(job) = appends.submit(job) {
            job();
        }
        done.await.ok()
    }

    /// What it holds; what it held where an append has the lock.
    pub(super) fn counts(&self) -> GroupCounts {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(inner) = self.inner.try_lock() {
            *counted = inner.shard.machine().counts();
        }
        *counted
    }

    pub(super) fn next_time(&self) -> Option<Moment> {
        let next_time = self.next_time.load(Ordering::Acquire);
        (next_time != NEVER).then_some(Moment(next_time))
    }

    fn step(
        self: &Arc<Self>,
        inner: &mut Inner,
        now_moment: Moment,
        step: impl FnOnce(&mut Shard<GroupCoordinator>, Environment<'_>) -> Vec<Answer<GroupResponse>>,
    ) {
        let mut journal = PartitionJournal::new(&self.partition, self.epoch);
        let environment =
            Environment { now: now_moment, wall_clock: now(), random: &mut random::u128, journal: &mut journal };
        let answers = step(&mut inner.shard, environment);
        inner.deliver(answers);
        let committed = inner.shard.committed(self.partition.high_watermark());
        inner.deliver(committed);
        self.next_time.store(inner.shard.next_time().map_or(NEVER, |next| next.0), Ordering::Release);
        if inner.shard.waits_for().is_some() && !inner.committing {
            inner.committing = true;
            // Loading steps run outside the runtime's workers, but within its context.
            tokio::spawn(Arc::clone(self).wait_for_commits());
        }
    }

    /// Lets answers go as the high watermark passes what they stand on.
    async fn wait_for_commits(self: Arc<Self>) {
        loop {
            let Some(Some(awaits)) = self.run(Self::deliver_committed).await else { return };
            let waiter = Waiter::new(1);
            let registered = Arc::clone(&waiter);
            self.run(move |shard| shard.partition.wait_for(awaits, &registered)).await;
            waiter.wait_until(Instant::now() + COMMIT_CHECK).await;
            self.partition.lock_waiters().remove(&waiter);
            if self.run(move |shard| shard.partition.check(awaits)).await.is_none_or(|check| check.is_err()) {
                // Leadership is lost, and the shard with it in a moment; or too few replicas are in sync, and more may come.
                tokio::time::sleep(COMMIT_CHECK).await;
            }
        }
    }

    /// Lets go what is committed; returns what the rest waits for.
    fn deliver_committed(self: &Arc<Self>) -> Option<Awaits> {
        let mut inner = self.lock();
        let committed = inner.shard.committed(self.partition.high_watermark());
        inner.deliver(committed);
        match inner.shard.waits_for() {
            Some(offset) if inner.condition == Condition::Active => Some(Awaits::Commit(offset, self.epoch)),
            _ => {
                inner.committing = false;
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn deliver(&mut self, answers: Vec<Answer<GroupResponse>>) {
        for Answer { token, response } in answers {
            if let Some(waiting) = self.waiting.remove(&token) {
                // A client that has gone needs no answer.
                let _ = waiting.send(response);
            }
        }
    }
}
