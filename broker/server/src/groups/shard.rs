//! One shard behind its lock, with the requests that wait for its answers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gregor_coordinators::{
    Answer, Environment, Moment, Shard, Token,
    group::{GroupConfig, GroupCoordinator, GroupCounts, GroupRequest, GroupResponse},
};
use gregor_types::{ErrorCode, LeaderEpoch};
use tokio::{sync::oneshot, time::Instant};

use super::{journal::PartitionJournal, loader};
use crate::{
    clock::now,
    partition::{Awaits, Partition},
    random,
    waiters::Waiter,
};

/// How often a shard whose answers wait for followers looks whether it still leads.
const COMMIT_CHECK: Duration = Duration::from_secs(1);

/// A partition of `__consumer_offsets` as one epoch's leader keeps it.
#[derive(Debug)]
pub(super) struct GroupShard {
    partition: Arc<Partition>,
    epoch: LeaderEpoch,
    inner: Mutex<Inner>,
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
        Arc::new(Self { partition, epoch, inner: Mutex::new(inner) })
    }

    /// Whether it is the shard of this partition in this epoch.
    pub(super) fn is_of(&self, partition: &Arc<Partition>, epoch: LeaderEpoch) -> bool {
        Arc::ptr_eq(&self.partition, partition) && self.epoch == epoch
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

    pub(super) fn counts(&self) -> GroupCounts {
        self.lock().shard.machine().counts()
    }

    pub(super) fn next_time(&self) -> Option<Moment> {
        let inner = self.lock();
        (inner.condition == Condition::Active).then(|| inner.shard.next_time())?
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
        if inner.shard.waits_for().is_some() && !inner.committing {
            inner.committing = true;
            // Loading steps run outside the runtime's workers, but within its context.
            tokio::spawn(Arc::clone(self).wait_for_commits());
        }
    }

    /// Lets answers go as the high watermark passes what they stand on.
    async fn wait_for_commits(self: Arc<Self>) {
        loop {
            let awaits = {
                let mut inner = self.lock();
                let committed = inner.shard.committed(self.partition.high_watermark());
                inner.deliver(committed);
                match inner.shard.waits_for() {
                    Some(offset) if inner.condition == Condition::Active => Awaits::Commit(offset, self.epoch),
                    _ => {
                        inner.committing = false;
                        return;
                    }
                }
            };
            let waiter = Waiter::new(1);
            self.partition.wait_for(awaits, &waiter);
            waiter.wait_until(Instant::now() + COMMIT_CHECK).await;
            self.partition.lock_waiters().remove(&waiter);
            if self.partition.check(awaits).is_err() {
                // Leadership is lost, and the shard with it in a moment; or too few replicas are in sync, and more may come.
                tokio::time::sleep(COMMIT_CHECK).await;
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
