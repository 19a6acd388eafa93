//! The shell around the group coordinator: which shards are here, their requests, their timers, their records.
//!
//! A shard is a partition of `__consumer_offsets` that this broker leads. It lives behind a lock; a step appends to the partition
//! in the task that asks, and what it answers waits here until it is committed. One task follows the metadata and loads and unloads
//! shards; one task sleeps until the next timer of any shard.

mod journal;
mod loader;
mod shard;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant as StdInstant},
};

use gregor_config::BrokerConfig;
use gregor_coordinators::{
    Moment,
    group::{GroupConfig, GroupCounts, GroupRequest, GroupResponse},
    partition_for,
};
use gregor_types::{BrokerId, ErrorCode, KString, PartitionIndex};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use crate::{control::ControlHandle, partitions::Partitions};
use shard::GroupShard;

/// Where groups and offsets are kept.
pub(crate) const OFFSETS_TOPIC: KString = KString::from_static("__consumer_offsets");

/// The group coordinator of this broker.
#[derive(Debug)]
pub(crate) struct Groups {
    node_id: BrokerId,
    config: GroupConfig,
    partitions: Arc<Partitions>,
    control: ControlHandle,
    draining: watch::Receiver<bool>,
    shards: RwLock<BTreeMap<PartitionIndex, Arc<GroupShard>>>,
    clock: Clock,
    /// When the timer task will look next, in milliseconds of the clock.
    wakes_at: AtomicU64,
    timer_moved: Notify,
}

/// Milliseconds since the node started.
#[derive(Debug, Clone, Copy)]
struct Clock(StdInstant);

impl Clock {
    fn now(self) -> Moment {
        Moment(u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn instant(self, moment: Moment) -> Instant {
        // A moment out of reach is as good as a day: the task then looks again.
        let day = self.now().plus_ms(86_400_000);
        Instant::from_std(self.0 + Duration::from_millis(moment.min(day).0))
    }
}

impl Groups {
    /// A coordinator without shards, and the two tasks that keep it going until the node drains.
    pub(crate) fn start(
        node_id: BrokerId,
        config: &BrokerConfig,
        partitions: Arc<Partitions>,
        control: ControlHandle,
        draining: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let groups = Arc::new(Self {
            node_id,
            config: settings(config),
            partitions,
            control,
            draining,
            shards: RwLock::default(),
            clock: Clock(StdInstant::now()),
            wakes_at: AtomicU64::new(u64::MAX),
            timer_moved: Notify::new(),
        });
        tokio::spawn(Arc::clone(&groups).follow_metadata());
        tokio::spawn(Arc::clone(&groups).run_timers());
        groups
    }

    /// Asks the shard that a group belongs to. An error says that this broker does not coordinate it, or not yet.
    pub(crate) async fn ask<T: TryFrom<GroupResponse>>(
        &self,
        group: &str,
        request: GroupRequest,
    ) -> Result<T, ErrorCode> {
        let shard = self.shard_of(group)?;
        let response = self.ask_shard(&shard, request).await?;
        // Each request is answered with the response of its own name; anything else is a bug of the coordinator.
        T::try_from(response).map_err(|_| ErrorCode::UnknownServerError)
    }

    /// Asks every shard that is loaded; a shard that goes meanwhile has nothing to say.
    pub(crate) async fn ask_all<T: TryFrom<GroupResponse>>(
        &self,
        request: impl Fn() -> GroupRequest,
    ) -> Result<Vec<T>, ErrorCode> {
        let mut answers = Vec::new();
        for shard in self.all() {
            match self.ask_shard(&shard, request()).await {
                Ok(response) => answers.extend(T::try_from(response)),
                Err(ErrorCode::NotCoordinator) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answers)
    }

    /// The broker that coordinates a group, once its topic exists.
    pub(crate) fn coordinator_of(&self, group: &str) -> Result<BrokerId, ErrorCode> {
        let image = self.control.image();
        let topic = image.topics().by_name(&OFFSETS_TOPIC).ok_or(ErrorCode::CoordinatorNotAvailable)?;
        let index = partition_for(group, topic.partition_count() as i32);
        let leader = topic.partition(PartitionIndex(index)).and_then(|partition| partition.leader);
        leader.ok_or(ErrorCode::CoordinatorNotAvailable)
    }

    /// What all shards here hold.
    pub(crate) fn count(&self) -> GroupCounts {
        self.all().iter().fold(GroupCounts::default(), |sum, shard| sum + shard.counts())
    }

    async fn ask_shard(&self, shard: &Arc<GroupShard>, request: GroupRequest) -> Result<GroupResponse, ErrorCode> {
        self.topic_id_written(shard).await;
        let now = self.clock.now();
        let asked = shard.run(move |shard| shard.ask(request, now)).await;
        let answer = asked.ok_or(ErrorCode::UnknownServerError)??;
        self.look_at_timer(shard);
        let mut draining = self.draining.clone();
        tokio::select! {
            answer = answer => answer.map_err(|_| ErrorCode::NotCoordinator),
            // A node that stops keeps no client waiting for a rebalance.
            _ = draining.wait_for(|draining| *draining) => Err(ErrorCode::CoordinatorNotAvailable),
        }
    }

    /// Waits until the topic's id is written of a new partition, which the shard's first append would do at a higher price.
    async fn topic_id_written(&self, shard: &GroupShard) {
        if self.partitions.are_topic_ids_awaited() {
            self.partitions.wait_for_topic_ids_while(|| shard.is_topic_id_awaited()).await;
        }
    }

    fn shard_of(&self, group: &str) -> Result<Arc<GroupShard>, ErrorCode> {
        let leader = self.coordinator_of(group);
        if leader != Ok(self.node_id) {
            return Err(ErrorCode::NotCoordinator);
        }
        let image = self.control.image();
        let count = image.topics().by_name(&OFFSETS_TOPIC).map_or(1, |topic| topic.partition_count());
        let index = PartitionIndex(partition_for(group, count as i32));
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        // The metadata says that it is ours; the shard comes as soon as the partition is taken over.
        shards.get(&index).cloned().ok_or(ErrorCode::CoordinatorLoadInProgress)
    }

    fn all(&self) -> Vec<Arc<GroupShard>> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn look_at_timer(&self, shard: &GroupShard) {
        if shard.next_time().is_some_and(|next| next.0 < self.wakes_at.load(Ordering::Acquire)) {
            self.timer_moved.notify_one();
        }
    }

    async fn run_timers(self: Arc<Self>) {
        let mut draining = self.draining.clone();
        loop {
            let next = self.all().iter().filter_map(|shard| shard.next_time()).min().unwrap_or(Moment(u64::MAX));
            self.wakes_at.store(next.0, Ordering::Release);
            tokio::select! {
                _ = draining.wait_for(|draining| *draining) => return,
                () = self.timer_moved.notified() => {}
                () = sleep_until(self.clock.instant(next)) => {}
            }
            let now = self.clock.now();
            for shard in self.all() {
                if shard.next_time().is_some_and(|next| next <= now) {
                    self.topic_id_written(&shard).await;
                    shard.run(move |shard| shard.on_time(now)).await;
                }
            }
        }
    }

    /// Loads what this broker has come to lead, unloads what it leads no more, and forgets offsets of deleted topics.
    async fn follow_metadata(self: Arc<Self>) {
        let mut applied = self.partitions.applied();
        let mut draining = self.draining.clone();
        loop {
            self.take_over();
            tokio::select! {
                _ = draining.wait_for(|draining| *draining) => return,
                changed = applied.changed() => if changed.is_err() { return },
            }
            applied.borrow_and_update();
            let gone = self.partitions.take_deleted_topics();
            if !gone.is_empty() {
                for shard in self.all() {
                    // A shard that is loading takes in what is left of such offsets; they expire.
                    let (now, request) = (self.clock.now(), GroupRequest::ForgetTopics(gone.clone()));
                    drop(shard.run(move |shard| shard.ask(request, now)).await);
                }
            }
        }
    }

    fn take_over(self: &Arc<Self>) {
        let topic = self.partitions.topic(&OFFSETS_TOPIC);
        let led: BTreeMap<_, _> = topic
            .iter()
            .flat_map(|topic| topic.iter())
            .filter_map(|partition| match partition.leadership(self.node_id) {
                (Some(leader), epoch) if leader == self.node_id => Some((partition.index, (partition, epoch))),
                _ => None,
            })
            .collect();
        let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
        let stays = |index: &PartitionIndex, shard: &Arc<GroupShard>| {
            led.get(index).is_some_and(|(partition, epoch)| shard.is_of(partition, *epoch))
        };
        for (index, shard) in shards.extract_if(.., |index, shard| !stays(index, shard)) {
            tracing::debug!(partition = index.value(), "groups are coordinated elsewhere now");
            shard.unload();
        }
        for (index, (partition, epoch)) in led {
            shards.entry(index).or_insert_with(|| {
                let shard = GroupShard::new(Arc::clone(partition), epoch, self.config);
                let (groups, loading) = (Arc::clone(self), Arc::clone(&shard));
                tokio::task::spawn_blocking(move || {
                    loading.load(groups.clock.now());
                    groups.look_at_timer(&loading);
                });
                shard
            });
        }
    }
}

fn settings(config: &BrokerConfig) -> GroupConfig {
    let positive = |milliseconds: i64| u64::try_from(milliseconds).unwrap_or(0);
    let bounded = |milliseconds: i64| i32::try_from(milliseconds).unwrap_or(i32::MAX);
    GroupConfig {
        initial_rebalance_delay_ms: positive(config.group_initial_rebalance_delay_ms),
        session_timeout_min_ms: bounded(config.group_min_session_timeout_ms),
        session_timeout_max_ms: bounded(config.group_max_session_timeout_ms),
        group_size_max: config.group_max_size,
        offset_metadata_bytes_max: config.offset_metadata_max_bytes,
        offsets_retention_ms: config.offsets_retention_minutes.saturating_mul(60_000),
        offsets_retention_check_interval_ms: positive(config.offsets_retention_check_interval_ms),
        ..GroupConfig::default()
    }
}
