//! One partition of this node: its log, its role and who waits for it, behind one lock.
//!
//! The data-path APIs and the group coordinator call it; `partitions.rs` gives it its role as the metadata says. The lock is
//! held for one append or one look-up, never over a network wait or a sync. An I/O error takes the whole log directory out
//! of service, as nothing in it can be trusted any more.

mod following;
mod future;
mod leading;
mod reading;
mod standing;
mod syncing;
mod topic_id;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, TryLockError,
    atomic::{AtomicBool, AtomicI64, Ordering},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use gregor_log::{AppendError, AppendInfo, Appended, CheckpointKind, LogError, PartitionLog, ReadError};
use gregor_replication::{
    FollowerState, LeaderState, LeadersLog, PartitionAssignment, Registration, ReplicationLimits, check_leader_epoch,
};
use gregor_types::{
    BrokerId, ErrorCode, KString, LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId, TopicPartition,
};
use gregor_wire::batch::ValidatedBatch;
use tokio::sync::watch;

use crate::{
    fetch_sessions::Waiters,
    held_log::HeldLog,
    isr_changes::IsrChanges,
    metrics::TopicMetrics,
    storage::Directory,
    topic_settings::TopicSettings,
    waiters::{Waiter, WaiterList},
};

pub(crate) use following::{Assignment, NotFollowed, QUICK_BYTES_MAX, leader_marks};
pub(crate) use future::{CopyStep, Future, MoveError, Swap};
pub(crate) use leading::{FollowerReader, Registrations};
pub(crate) use reading::{Isolation, Query, Read, Supply, Traffic};
pub(crate) use standing::Standing;
pub(crate) use topic_id::TopicIdStep;

/// A partition with a replica on this node.
#[derive(Debug)]
pub(crate) struct Partition {
    /// Its topic.
    pub(crate) topic: KString,
    /// Its topic's id.
    pub(crate) topic_id: TopicId,
    /// Its number.
    pub(crate) index: PartitionIndex,
    /// Where its log lies.
    home: ArcSwap<Directory>,
    /// Its topic's counters.
    pub(crate) metrics: TopicMetrics,
    /// Where its leader asks for other in-sync replicas.
    isr_changes: Arc<IsrChanges>,
    /// Whether the flusher has it in its queue.
    flush_queued: AtomicBool,
    /// Whether its first append should wait for its topic's id.
    topic_id_awaited: AtomicBool,
    /// Records that it is behind its leader, as a follower.
    lag: AtomicI64,
    /// Whether a reassignment brings it here.
    is_reassigned: AtomicBool,
    state: Mutex<State>,
    /// Who waits; locked after the state where both are, and held for no call on the disk: an append that is stuck keeps
    /// nobody from registering. Fetch sessions that are to be told of changes share it.
    waiters: Waiters,
    /// Its copy on the way to another directory; locked before the state where both are.
    future: Mutex<Option<Future>>,
    /// Where that copy begins.
    start_of_copy: ArcSwapOption<watch::Receiver<Offset>>,
}

/// What the lock guards.
#[derive(Debug)]
pub(crate) struct State {
    log: HeldLog,
    /// Counts the logs that it had: what was begun with one means nothing for the next.
    generation: u64,
    role: Role,
    pub(crate) settings: Arc<TopicSettings>,
    /// What a leadership begins with: the limits of the newest metadata, which come before the settings that they are from.
    limits: ReplicationLimits,
    /// Bytes appended since the high watermark moved last.
    uncommitted_bytes: u32,
    /// Records appended since the last sync began, and when the first of them was.
    unflushed: Option<(i64, Timestamp)>,
    /// The assignment by which a fetcher changes the log.
    followed_by: Assignment,
}

/// What this node is to the partition.
#[derive(Debug)]
enum Role {
    /// It leads.
    Leader(LeaderState),
    /// Another node leads, or none.
    Follower(FollowerState),
}

/// What a produced batch came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Produced {
    /// Where it lies.
    pub(crate) info: AppendInfo,
    /// What its acknowledgement waits for; `None` where it may leave at once.
    pub(crate) awaits: Option<Awaits>,
}

/// What an acknowledgement waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaits {
    /// The high watermark, under this leadership (`acks=all`).
    Commit(Offset, LeaderEpoch),
    /// The disk, under this leadership (`flush.messages=1`, `acks=1`).
    Sync(Offset, LeaderEpoch),
}

impl Partition {
    /// A partition whose role is not known yet.
    pub(crate) fn new(
        (topic, topic_id, index): (KString, TopicId, PartitionIndex),
        directory: Arc<Directory>,
        log: HeldLog,
        high_watermark: Offset,
        settings: Arc<TopicSettings>,
        (metrics, isr_changes): (TopicMetrics, Arc<IsrChanges>),
    ) -> Self {
        let high_watermark = high_watermark.clamp(log.start_offset(), log.end_offset());
        let role = Role::Follower(FollowerState::new(None, LeaderEpoch::NONE, high_watermark));
        let followed_by = Assignment::default();
        let state = State {
            log,
            generation: 0,
            role,
            limits: settings.limits,
            settings,
            uncommitted_bytes: 0,
            unflushed: None,
            followed_by,
        };
        Self {
            topic,
            topic_id,
            index,
            home: ArcSwap::from(directory),
            metrics,
            isr_changes,
            flush_queued: AtomicBool::new(false),
            topic_id_awaited: AtomicBool::new(false),
            lag: AtomicI64::new(0),
            is_reassigned: AtomicBool::new(false),
            state: Mutex::new(state),
            waiters: Waiters::default(),
            future: Mutex::default(),
            start_of_copy: ArcSwapOption::empty(),
        }
    }

    /// Where its log lies.
    pub(crate) fn directory(&self) -> Arc<Directory> {
        self.home.load_full()
    }

    /// Whether it is in a log directory that failed.
    pub(crate) fn is_offline(&self) -> bool {
        self.home.load().is_failed()
    }

    /// What to answer whoever asks for a partition that is offline, whoever leads it.
    fn check_online(&self) -> Result<(), ErrorCode> {
        if self.is_offline() { Err(ErrorCode::KafkaStorageError) } else { Ok(()) }
    }

    /// The lock. A panic of another holder left the state as it was between two calls.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, unless somebody holds it: for a thread that may not wait for the disk.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Who waits. Whoever looks whether it must wait registers first or looks under the state's lock, so that nothing moves in
    /// between.
    pub(crate) fn lock_waiters(&self) -> MutexGuard<'_, WaiterList> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, to be kept by who is to be told of changes.
    pub(crate) const fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Tells who was shown the log's marks, if an act has moved them. To be called before the state's lock is let go.
    fn on_marks<const N: usize>(&self, before: [Offset; N], after: [Offset; N]) {
        if before != after {
            self.lock_waiters().tell_sessions();
        }
    }

    /// Takes the role that the metadata gives. `registered` tells how it knows the other brokers.
    pub(crate) fn set_role(
        self: &Arc<Self>,
        me: BrokerId,
        leader: Option<BrokerId>,
        assignment: &PartitionAssignment,
        registered: impl Fn(BrokerId) -> Option<Registration>,
        now: Timestamp,
    ) {
        let mut state = self.lock();
        self.is_reassigned.store(assignment.adding.contains(&me), Ordering::Relaxed);
        if leader.is_none_or(|leader| leader == me) {
            self.lag.store(0, Ordering::Relaxed);
        }
        if let (Role::Leader(leading), true) = (&mut state.role, leader == Some(me))
            && leading.leader_epoch() == assignment.leader_epoch
        {
            let before = leading.isr().to_vec();
            let moved = self.waking_deletions(leading, |leading| {
                let moved = leading.on_assignment(assignment, now);
                introduce(leading, assignment, registered, now).or(moved)
            });
            self.count_isr_change(&before, leading);
            // A follower that may be in sync or not is to be looked at with its next fetch.
            self.lock_waiters().tell_sessions();
            state.on_high_watermark(moved, &self.waiters);
            return;
        }
        let high_watermark = state.high_watermark();
        if leader == Some(me) {
            let State { log, settings, limits, .. } = &mut *state;
            if !log.begin_epoch(assignment.leader_epoch) {
                return;
            }
            let durable_end = settings.syncs_before_acknowledging().then(|| log.recovery_point());
            let (start, end) = (log.start_offset(), log.end_offset());
            let log = LeadersLog { start, end, durable_end, high_watermark };
            let mut leading = LeaderState::new(me, assignment, *limits, log, now);
            if durable_end.is_some() {
                // What the last run left unsynced would be invisible until somebody appends.
                self.home.load().request_flush(self);
            }
            introduce(&mut leading, assignment, registered, now);
            state.role = Role::Leader(leading);
            // Who waits under the former leadership is told that it is over.
            self.lock_waiters().wake_all();
            let committed = state.high_watermark();
            state.on_high_watermark(Some(committed), &self.waiters);
        } else {
            state.role = Role::Follower(FollowerState::new(leader, assignment.leader_epoch, high_watermark));
            self.lock_waiters().wake_all();
        }
    }

    /// How many have to be in sync by metadata whose roles are still to be taken over, and then its settings.
    pub(crate) fn expect_limits(&self, limits: ReplicationLimits) {
        let mut state = self.lock();
        state.limits = limits;
        if let Role::Leader(leader) = &mut state.role {
            leader.raise_min_isr(limits.min_isr);
        }
    }

    /// Takes over a changed configuration.
    pub(crate) fn set_settings(self: &Arc<Self>, settings: &Arc<TopicSettings>, now: Timestamp) {
        let mut state = self.lock();
        if let Some(log) = state.log.opened_mut() {
            log.set_config(Arc::clone(&settings.log));
        }
        (state.settings, state.limits) = (Arc::clone(settings), settings.limits);
        let end = (!state.log.is_gone()).then(|| state.log.recovery_point());
        if let Role::Leader(leader) = &mut state.role {
            let moved = leader.on_limits(settings.limits, now);
            let durable_end = end.filter(|_| settings.syncs_before_acknowledging());
            let moved = leader.on_durability(durable_end, now).or(moved);
            state.on_high_watermark(moved, &self.waiters);
        }
        drop(state);
        if settings.syncs_before_acknowledging() {
            self.home.load().request_flush(self);
        }
    }

    /// Appends a batch as the leader. `acks_all` asks for min.insync.replicas and awaits the commit.
    pub(crate) fn append(
        self: &Arc<Self>,
        batch: &ValidatedBatch<'_>,
        acks_all: bool,
        now: Timestamp,
    ) -> Result<Produced, ErrorCode> {
        self.append_as(batch, acks_all, None, now)
    }

    /// Appends a coordinator's batch with acks=all. Its state belongs to one epoch, so no other epoch's leader takes it.
    pub(crate) fn append_in_epoch(
        self: &Arc<Self>,
        batch: &ValidatedBatch<'_>,
        epoch: LeaderEpoch,
        now: Timestamp,
    ) -> Result<Produced, ErrorCode> {
        self.append_as(batch, true, Some(epoch), now)
    }

    fn append_as(
        self: &Arc<Self>,
        batch: &ValidatedBatch<'_>,
        acks_all: bool,
        only_in: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<Produced, ErrorCode> {
        self.check_online()?;
        let mut state = self.lock();
        let State { log, role, settings, .. } = &mut *state;
        let Role::Leader(leader) = role else { return Err(ErrorCode::NotLeaderOrFollower) };
        let log = self.usable(log, settings)?;
        let epoch = leader.leader_epoch();
        if only_in.is_some_and(|only| only != epoch) {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        if acks_all {
            leader.check_min_isr()?;
        }
        let home = self.home.load();
        let timed = home.appends.time();
        let appended = log.append_as_leader(batch, epoch, now);
        drop(timed);
        let appended = appended.map_err(|error| self.on_append_error(&error))?;
        let info = *appended.info();
        let syncs = settings.syncs_before_acknowledging();
        let required = info.last_offset.plus(1);
        let is_new = matches!(appended, Appended::New(_));
        let mut wants_flush = false;
        if is_new {
            // A sealed segment is synced in the background, or a recovery would have to read all of it again.
            let sealed = log.has_unsynced_sealed_segments();
            let mut followed = (!leader.is_alone()).then(|| self.lock_waiters());
            if let Some(waiters) = &mut followed {
                waiters.tell_followers(|follower, at| leader.on_quiet_fetch(follower, at));
            }
            let moved = leader.on_append(required, now);
            if let Some(mut waiters) = followed {
                waiters.on_append(u32::try_from(batch.size()).unwrap_or(u32::MAX));
            }
            let flush_after = settings.flush_messages;
            state.uncommitted_bytes = state.uncommitted_bytes.saturating_add(batch.size() as u32);
            state.on_high_watermark(moved, &self.waiters);
            let (records, since) = state.unflushed.unwrap_or((0, now));
            state.unflushed = Some((records + batch.offsets_count(), since));
            wants_flush = sealed || records + batch.offsets_count() >= flush_after;
            self.metrics.messages_in.inc_by(batch.offsets_count() as u64);
            self.metrics.bytes_in.inc_by(batch.size() as u64);
        }
        // Under the lock that the batch was appended under: later the marks may be another leadership's, which has cut it.
        let awaits = if acks_all {
            (state.high_watermark() < required).then_some(Awaits::Commit(required, epoch))
        } else {
            let synced = state.log.recovery_point();
            (syncs && synced < required).then_some(Awaits::Sync(required, epoch))
        };
        drop(state);
        // The sync that a duplicate waited for at first may have found the disk full.
        if wants_flush || (!is_new && syncs && awaits.is_some()) {
            self.home.load().request_flush(self);
        }
        Ok(Produced { info, awaits })
    }

    /// Whether what an acknowledgement waits for has come: yes, not yet, or never.
    pub(crate) fn check(&self, awaits: Awaits) -> Result<bool, ErrorCode> {
        self.check_online()?;
        self.lock().check(awaits)
    }

    /// Registers a waiter unless what it waits for has come already; then counts it down at once.
    pub(crate) fn wait_for(&self, awaits: Awaits, waiter: &Arc<Waiter>) {
        let state = self.lock();
        // Looked at under the lock: whoever fails the directory wakes all waiters under it afterwards.
        let checked = if self.is_offline() { Ok(true) } else { state.check(awaits) };
        match (checked, awaits) {
            (Ok(false), Awaits::Commit(offset, _)) => self.lock_waiters().add_produce(offset, waiter),
            (Ok(false), Awaits::Sync(offset, _)) => self.lock_waiters().add_sync(offset, waiter),
            (Ok(true) | Err(_), _) => waiter.count_down(1),
        }
    }

    /// Runs something on the leader's log.
    pub(crate) fn with_leader<T>(
        &self,
        current_leader_epoch: LeaderEpoch,
        act: impl FnOnce(&mut PartitionLog, &mut LeaderState) -> Result<T, LogError>,
    ) -> Result<T, ErrorCode> {
        self.check_online()?;
        let mut state = self.lock();
        state.leader(current_leader_epoch)?;
        let State { log, role, settings, .. } = &mut *state;
        let log = self.usable(log, settings)?;
        let Role::Leader(leader) = role else { return Err(ErrorCode::NotLeaderOrFollower) };
        let before = [log.start_offset(), leader.high_watermark()];
        let acted = act(log, leader);
        self.on_marks(before, [log.start_offset(), leader.high_watermark()]);
        acted.map_err(|error| self.on_log_error(&error))
    }

    /// Runs something on the log, whoever leads; `None` where it is gone.
    pub(crate) fn with_log<T>(&self, act: impl FnOnce(&mut PartitionLog, Offset) -> T) -> Option<T> {
        let mut state = self.lock();
        let high_watermark = state.high_watermark();
        let State { log, settings, .. } = &mut *state;
        match log.open(&settings.log) {
            Ok(log) => log.map(|log| {
                let before = [log.start_offset()];
                let acted = act(log, high_watermark);
                self.on_marks(before, [log.start_offset()]);
                acted
            }),
            Err(error) => {
                self.on_log_error(&error);
                None
            }
        }
    }

    /// The log, opened if it was at rest.
    fn usable<'l>(&self, log: &'l mut HeldLog, settings: &TopicSettings) -> Result<&'l mut PartitionLog, ErrorCode> {
        self.check_online()?;
        let opened = log.open(&settings.log).map_err(|error| self.on_log_error(&error))?;
        // It was deleted, or went to other brokers, while whoever asks had it.
        opened.ok_or(ErrorCode::NotLeaderOrFollower)
    }

    /// Who leads as far as this node knows, and under which epoch.
    pub(crate) fn leadership(&self, me: BrokerId) -> (Option<BrokerId>, LeaderEpoch) {
        match &self.lock().role {
            Role::Leader(leader) => (Some(me), leader.leader_epoch()),
            Role::Follower(follower) => (follower.leader(), follower.leader_epoch()),
        }
    }

    /// Whether this broker does not lead it yet in this epoch or a later one. Not of one whose lock is held: whoever asks may not wait for the disk.
    pub(crate) fn is_led_before(&self, epoch: LeaderEpoch) -> bool {
        self.try_lock().is_some_and(|state| match &state.role {
            Role::Leader(leader) => leader.leader_epoch() < epoch,
            Role::Follower(_) => true,
        })
    }

    /// Everything before it is committed, as far as this node knows.
    pub(crate) fn high_watermark(&self) -> Offset {
        self.lock().high_watermark()
    }

    /// Whether there is anything that compaction could take: the active segment is never cleaned.
    pub(crate) fn may_be_compacted(&self) -> bool {
        let state = self.lock();
        state.settings.log.compact && state.log.segments_count() > 1 && !self.directory().is_failed()
    }

    /// Takes the log out of service: the partition is deleted, or the node stops, or its directory failed.
    pub(crate) fn take_log(&self) -> HeldLog {
        self.take_log_if(|| true).unwrap_or(HeldLog::Gone)
    }

    /// The same if its directory has failed. A move may bring it to another one until nobody can append.
    pub(crate) fn take_log_if_offline(&self) -> Option<HeldLog> {
        self.take_log_if(|| self.is_offline())
    }

    /// The same if it is to go, which is asked under the lock.
    pub(crate) fn take_log_if(&self, is_to_go: impl FnOnce() -> bool) -> Option<HeldLog> {
        let mut state = self.lock();
        if !is_to_go() {
            return None;
        }
        self.lock_waiters().wake_all();
        state.generation += 1;
        Some(state.log.take())
    }

    /// Its name.
    pub(crate) fn name(&self) -> TopicPartition {
        TopicPartition { topic: self.topic.clone(), partition: self.index }
    }

    /// What a checkpoint file says of it; nothing where the log is gone.
    pub(crate) fn checkpoint_entry(&self, kind: CheckpointKind) -> Option<Offset> {
        let state = self.lock();
        if state.log.is_gone() {
            return None;
        }
        let start = state.log.start_offset();
        match kind {
            CheckpointKind::RecoveryPoint => Some(state.log.recovery_checkpoint()),
            // Kafka lists a start only where records were deleted by request; a start at the first segment says itself.
            CheckpointKind::LogStart => (start > Offset::ZERO).then_some(start),
            CheckpointKind::HighWatermark => Some(state.high_watermark()),
            CheckpointKind::Cleaner => state.log.cleaned_to(),
        }
    }

    fn on_append_error(&self, error: &AppendError) -> ErrorCode {
        if let AppendError::Log(error) = error {
            return self.on_log_error(error);
        }
        error.error_code()
    }

    fn on_read_error(&self, error: &ReadError) -> ErrorCode {
        match error {
            // As in Kafka, one bad batch says nothing about the rest of the directory.
            ReadError::Damaged { .. } | ReadError::Log(LogError::Malformed { .. }) => {
                tracing::error!(partition = %self.name(), %error, "the disk has not kept a batch: it is not served");
            }
            ReadError::Log(error) => return self.on_log_error(error),
            ReadError::OffsetOutOfRange { .. } => {}
        }
        error.error_code()
    }

    fn on_log_error(&self, error: &LogError) -> ErrorCode {
        self.home.load().on_error(&self.name(), error);
        ErrorCode::KafkaStorageError
    }
}

/// Tells a leader how the metadata knows each replica; the high watermark, where that moved it.
fn introduce(
    leader: &mut LeaderState,
    assignment: &PartitionAssignment,
    registered: impl Fn(BrokerId) -> Option<Registration>,
    now: Timestamp,
) -> Option<Offset> {
    assignment.replicas.iter().fold(None, |moved, id| leader.on_registration(*id, registered(*id), now).or(moved))
}

impl State {
    fn leader(&self, current_leader_epoch: LeaderEpoch) -> Result<&LeaderState, ErrorCode> {
        match &self.role {
            Role::Leader(leader) => {
                leader.check_epoch(current_leader_epoch)?;
                Ok(leader)
            }
            Role::Follower(follower) => {
                check_leader_epoch(current_leader_epoch, follower.leader_epoch())?;
                Err(ErrorCode::NotLeaderOrFollower)
            }
        }
    }

    fn high_watermark(&self) -> Offset {
        match &self.role {
            Role::Leader(leader) => leader.high_watermark(),
            Role::Follower(follower) => follower.high_watermark(),
        }
    }

    fn check(&self, awaits: Awaits) -> Result<bool, ErrorCode> {
        let (Awaits::Commit(_, epoch) | Awaits::Sync(_, epoch)) = awaits;
        let Role::Leader(leader) = &self.role else { return Err(ErrorCode::NotLeaderOrFollower) };
        if leader.leader_epoch() != epoch {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        if self.log.is_gone() {
            // Its directory is well, or this would not be asked: the replica went to other brokers, or was deleted.
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        match awaits {
            Awaits::Commit(offset, _) if leader.high_watermark() >= offset => {
                leader.check_min_isr().map_err(|_| ErrorCode::NotEnoughReplicasAfterAppend)?;
                Ok(true)
            }
            Awaits::Commit(..) => Ok(false),
            Awaits::Sync(offset, _) => Ok(self.log.recovery_point() >= offset),
        }
    }

    fn on_high_watermark(&mut self, moved: Option<Offset>, waiters: &Mutex<WaiterList>) {
        if let Some(high_watermark) = moved {
            let bytes = std::mem::take(&mut self.uncommitted_bytes);
            waiters.lock().unwrap_or_else(PoisonError::into_inner).on_high_watermark(high_watermark, bytes);
        }
    }
}
