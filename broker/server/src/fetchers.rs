//! The partitions that this broker follows, and the tasks that fetch them: `num.replica.fetchers` for each leader.
//!
//! The partitions' thread says whom to follow, as the metadata has it; a task for each fetcher (`fetchers/worker.rs`) asks the
//! leader and does what `gregor_replication`'s `Fetcher` decides. Nothing here knows how a log is cut or appended to.

mod inbox;
mod link;
mod requests;
#[cfg(test)]
mod tests;
mod threads;
mod worker;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use gregor_config::BrokerConfig;
use gregor_metadata::Image;
use gregor_replication::{FetcherConfig, FetcherId, FollowedPartition, fetcher_index};
use gregor_types::{BrokerEpoch, BrokerId, LeaderEpoch, PartitionIndex, TopicId};
use tokio::{runtime::Handle, sync::watch};

use crate::{
    append_watch::WatchedRuntimes,
    partition::{Assignment, Partition},
    partitions::TopicIds,
    throttles::Throttles,
};

use inbox::{Command, Follow, Inbox};
pub(crate) use link::{Leader, Network};
use threads::Threads;
use worker::{Lane, Worker};

/// How a fetcher reaches a leader at `host:port`.
pub(crate) type Connect = Box<dyn Fn(&str) -> Arc<dyn Leader> + Send + Sync>;

/// All fetchers of this broker.
#[derive(Debug)]
pub(crate) struct Fetchers {
    shared: Arc<Shared>,
    state: Mutex<State>,
    threads: Threads,
}

/// What every fetcher knows.
struct Shared {
    me: BrokerId,
    /// This broker's epoch as the metadata has it.
    epoch: AtomicI64,
    config: Arc<BrokerConfig>,
    throttles: Arc<Throttles>,
    /// Who writes the topics' ids of new partitions.
    topic_ids: OnceLock<Arc<TopicIds>>,
    connect: Connect,
    stopped: watch::Receiver<bool>,
}

#[derive(Debug)]
struct State {
    per_leader: u32,
    inboxes: HashMap<FetcherId, Arc<Inbox>>,
    followed: HashMap<FollowedPartition, Followed>,
    addresses: HashMap<BrokerId, String>,
    /// Partitions that were given to a fetcher so far.
    assignments: u64,
}

#[derive(Debug)]
struct Followed {
    by: FetcherId,
    partition: Arc<Partition>,
    leader_epoch: LeaderEpoch,
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Fetchers {
    /// Follows nothing yet. Its tasks run until `stopped` says true, on `runtime` where there are no threads of their own to be had.
    pub(crate) fn new(
        config: &Arc<BrokerConfig>,
        connect: Connect,
        stopped: watch::Receiver<bool>,
        runtime: Handle,
    ) -> Self {
        let shared = Shared {
            me: config.node_id,
            epoch: AtomicI64::new(BrokerEpoch::NONE.value()),
            config: Arc::clone(config),
            throttles: Arc::new(Throttles::new(config)),
            topic_ids: OnceLock::new(),
            connect,
            stopped,
        };
        let state = State {
            per_leader: config.num_replica_fetchers,
            inboxes: HashMap::new(),
            followed: HashMap::new(),
            addresses: HashMap::new(),
            assignments: 0,
        };
        Self { shared: Arc::new(shared), state: Mutex::new(state), threads: Threads::new(runtime) }
    }

    /// How fast replicas out of sync are replicated.
    pub(crate) fn throttles(&self) -> &Arc<Throttles> {
        &self.shared.throttles
    }

    /// Has first appends to new partitions wait until their topics' ids are written.
    pub(crate) fn set_topic_ids(&self, topic_ids: &Arc<TopicIds>) {
        // There is one for each broker; whoever comes second changes nothing.
        let _ = self.shared.topic_ids.set(Arc::clone(topic_ids));
    }

    /// Has the watch over appends wake its threads too.
    pub(crate) fn set_watched(&self, runtimes: &Arc<WatchedRuntimes>) {
        self.threads.set_watched(runtimes);
    }

    /// Whether the partition is among `follower.replication.throttled.replicas` was changed.
    pub(crate) fn set_throttled(&self, partition: &Partition, is_throttled: bool) {
        let state = self.lock();
        if let Some(followed) = state.followed.get(&name(partition)) {
            state.inboxes[&followed.by].send(Command::Throttle(name(partition), is_throttled));
        }
    }

    /// What the metadata says of brokers: where they are, and this one's epoch.
    pub(crate) fn set_brokers(&self, image: &Image) {
        let cluster = image.cluster();
        if let Some(own) = cluster.broker(self.shared.me) {
            self.shared.epoch.store(own.epoch.value(), Ordering::Relaxed);
        }
        let listener = self.shared.config.inter_broker_listener_name.as_str();
        let mut state = self.lock();
        state.addresses.clear();
        for broker in cluster.brokers() {
            if let Some(endpoint) = broker.endpoint(listener) {
                state.addresses.insert(broker.id, gregor_channel::authority(&endpoint.host, endpoint.port));
            }
        }
        for (id, inbox) in &state.inboxes {
            inbox.set_address(state.addresses.get(&id.leader));
        }
    }

    /// `num.replica.fetchers` was changed: partitions move to other fetchers of their leaders.
    pub(crate) fn set_fetchers(&self, per_leader: u32) {
        let mut state = self.lock();
        if state.per_leader == per_leader {
            return;
        }
        state.per_leader = per_leader;
        for (_, followed) in state.followed.drain().collect::<Vec<_>>() {
            state.inboxes[&followed.by].send(Command::Unfollow(name(&followed.partition)));
            self.assign(&mut state, &followed.partition, followed.by.leader, followed.leader_epoch);
        }
    }

    /// The partition, which knows of it already, is `leader`'s in this epoch.
    pub(crate) fn follow(&self, partition: &Arc<Partition>, leader: BrokerId, leader_epoch: LeaderEpoch) {
        let mut state = self.lock();
        let by = state.fetcher_of(partition, leader);
        if let Some(followed) = state.followed.remove(&name(partition)) {
            if followed.by == by && followed.leader_epoch == leader_epoch {
                state.followed.insert(name(partition), followed);
                return;
            }
            if followed.by != by {
                state.inboxes[&followed.by].send(Command::Unfollow(name(partition)));
            }
        }
        self.assign(&mut state, partition, leader, leader_epoch);
    }

    /// The partition is led here, or by nobody, or is gone.
    pub(crate) fn unfollow(&self, topic: TopicId, index: PartitionIndex) {
        let mut state = self.lock();
        let partition = FollowedPartition { topic_id: topic, partition: index };
        if let Some(followed) = state.followed.remove(&partition) {
            state.inboxes[&followed.by].send(Command::Unfollow(partition));
        }
    }

    fn assign(&self, state: &mut State, partition: &Arc<Partition>, leader: BrokerId, leader_epoch: LeaderEpoch) {
        let by = state.fetcher_of(partition, leader);
        state.assignments += 1;
        let State { inboxes, addresses, followed, assignments, .. } = state;
        let inbox = inboxes.entry(by).or_insert_with(|| {
            let inbox = Arc::<Inbox>::default();
            inbox.set_address(addresses.get(&leader));
            self.start(Lane::Main, inbox)
        });
        let number = Assignment { number: *assignments, turn: 0 };
        let follow = Follow { partition: Arc::clone(partition), leader_epoch, by: number };
        inbox.follow(follow, || self.start(Lane::Newcomers, inbox.beside()));
        followed.insert(name(partition), Followed { by, partition: Arc::clone(partition), leader_epoch });
    }

    fn start(&self, lane: Lane, inbox: Arc<Inbox>) -> Arc<Inbox> {
        self.threads.spawn(Worker::new(Arc::clone(&self.shared), Arc::clone(&inbox), lane).run());
        inbox
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fetcher_of(&self, partition: &Partition, leader: BrokerId) -> FetcherId {
        FetcherId { leader, index: fetcher_index(&partition.topic, partition.index, self.per_leader) }
    }
}

impl Shared {
    fn fetcher_config(&self) -> FetcherConfig {
        /// A leader that is new answers with errors for a moment only.
        const FIRST_BACKOFF_MS: i64 = 10;
        FetcherConfig { backoff_ms: self.config.replica_fetch_backoff_ms, first_backoff_ms: FIRST_BACKOFF_MS }
    }

    fn epoch(&self) -> BrokerEpoch {
        BrokerEpoch(self.epoch.load(Ordering::Relaxed))
    }
}

fn name(partition: &Partition) -> FollowedPartition {
    FollowedPartition { topic_id: partition.topic_id, partition: partition.index }
}
