//! One fetch session: what its client wants, in which order it is answered, and which of it may have something to tell.
//!
//! `api/fetch.rs` visits the partitions that may, and settles what it found of each. A partition that has nothing more to give
//! is not looked at again before it changes: its list of waiters tells the session, once, and forgets it then. So a session
//! of thousands of partitions costs what its active ones cost. Nothing is read here, and no partition's state is locked.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use gregor_types::{BrokerId, KString, Timestamp, TopicId};

use crate::{
    sync::Mutex,
    waiters::{Changes, Waiter, WaiterList},
};

/// The epoch of no incremental request.
const NEVER: i32 = 0;

/// A topic as the request names it: by name before version 13, by id since.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum TopicRef {
    /// By name.
    Name(KString),
    /// By id.
    Id(TopicId),
}

/// What a client wants of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WantedPartition {
    /// Its topic.
    pub(crate) topic: TopicRef,
    /// Its number.
    pub(crate) partition: i32,
    /// The first offset wanted.
    pub(crate) fetch_offset: i64,
    /// The leader epoch that the client knows, or -1.
    pub(crate) current_leader_epoch: i32,
    /// The epoch of the last record that it has, or -1.
    pub(crate) last_fetched_epoch: i32,
    /// Where the log of a follower starts, or -1.
    pub(crate) log_start_offset: i64,
    /// Bytes at most.
    pub(crate) max_bytes: i32,
}

/// What a response says of a partition, as far as sessions compare it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    /// The high watermark in it.
    pub(crate) high_watermark: i64,
    /// The log start offset in it.
    pub(crate) log_start: i64,
    /// Whether it carries records.
    pub(crate) has_records: bool,
    /// Whether it carries an error or a diverging epoch.
    pub(crate) is_remarkable: bool,
    /// Whether nothing but a change of the partition can give the client more.
    pub(crate) is_exhausted: bool,
}

/// A request's part that concerns sessions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionRequest {
    /// The session's id, 0 for none.
    pub(crate) id: i32,
    /// The session's epoch: 0 opens, -1 closes.
    pub(crate) epoch: i32,
    /// Whether topics are named by id.
    pub(crate) uses_topic_ids: bool,
    /// The broker that asks as a follower.
    pub(crate) follower: Option<BrokerId>,
    /// Whether it reads only what no open transaction can undo.
    pub(crate) reads_committed: bool,
}

/// A partition that is visited.
#[derive(Debug)]
pub(crate) struct Visited<'a> {
    /// By what the session finds it again while the request is answered.
    pub(crate) slot: u32,
    /// Its turn among the others: those of a lower number first.
    pub(crate) order: u64,
    /// What the client wants of it.
    pub(crate) wanted: &'a WantedPartition,
}

/// Who waits for one partition; the partition's own, shared with the sessions that are to be told by it.
pub(crate) type Waiters = Arc<Mutex<WaiterList>>;

/// One client's session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) id: i32,
    pub(super) epoch: i32,
    pub(super) uses_topic_ids: bool,
    pub(super) privileged: bool,
    pub(super) created_at: Timestamp,
    pub(super) last_used_at: Timestamp,
    reads_committed: bool,
    /// Who got records goes behind all others, so that all get their turn.
    next_order: u64,
    members: Vec<Option<Member>>,
    free: Vec<u32>,
    slots: HashMap<TopicRef, HashMap<i32, u32>>,
    len: usize,
    /// The members that are to be visited, each once.
    dirty: Vec<u32>,
    /// What partitions tell meanwhile.
    changes: Arc<Changes>,
}

#[derive(Debug)]
struct Member {
    wanted: WantedPartition,
    /// What the client was told last; `None` before the first time, and after an error.
    shown: Option<(i64, i64)>,
    order: u64,
    /// Where it is registered, unless it was told since.
    watched_at: Option<Waiters>,
    /// The epoch of the request that visited it last.
    visited_in: i32,
    is_dirty: bool,
}

impl Session {
    /// A session without partitions, for its first incremental request.
    pub(crate) fn new(id: i32, epoch: i32, request: SessionRequest, now: Timestamp) -> Self {
        Self {
            id,
            epoch,
            uses_topic_ids: request.uses_topic_ids,
            privileged: request.follower.is_some(),
            created_at: now,
            last_used_at: now,
            reads_committed: request.reads_committed,
            next_order: 0,
            members: Vec::new(),
            free: Vec::new(),
            slots: HashMap::new(),
            len: 0,
            dirty: Vec::new(),
            changes: Arc::default(),
        }
    }

    /// Its id.
    pub(crate) const fn id(&self) -> i32 {
        self.id
    }

    /// How many partitions there are in it.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// A request of the session was received.
    pub(crate) fn used(&mut self, request: &SessionRequest, now: Timestamp) {
        self.last_used_at = now;
        if let Some(follower) = request.follower {
            self.changes.fetched(follower, now);
        }
    }

    /// Whether a request sleeps on what its partitions tell.
    pub(crate) fn has_sleeper(&self) -> bool {
        self.changes.has_sleeper()
    }

    /// Takes what a request changes.
    pub(crate) fn update(
        &mut self,
        changed: impl Iterator<Item = WantedPartition>,
        forgotten: impl Iterator<Item = (TopicRef, i32)>,
    ) {
        for wanted in changed {
            match self.slot_of(&wanted.topic, wanted.partition) {
                Some(slot) => {
                    if let Some(member) = member_at(&mut self.members, slot) {
                        let topic = member.wanted.topic.clone();
                        member.wanted = WantedPartition { topic, ..wanted };
                        mark(&mut self.dirty, member, slot);
                    }
                }
                None => self.put(wanted, None),
            }
        }
        let before = self.len;
        for (topic, partition) in forgotten {
            self.forget(&topic, partition);
        }
        if self.len < before {
            let members = &self.members;
            self.dirty.retain(|slot| members[*slot as usize].is_some());
        }
    }

    /// Begins to answer the request that brought the session to this epoch.
    pub(crate) fn begin(&mut self, epoch: i32, reads_committed: bool) {
        self.epoch = epoch;
        self.changes.begin(epoch);
        self.take_told();
        if self.reads_committed != reads_committed {
            // What there is for one of them says nothing of the other.
            self.reads_committed = reads_committed;
            for (slot, member) in self.members.iter_mut().enumerate() {
                if let Some(member) = member {
                    mark(&mut self.dirty, member, slot as u32);
                }
            }
        }
    }

    /// Visits what may have something to tell and was not visited for this request yet. The visitor returns the waiters of
    /// the partition that it will read: what comes after the visit is told to the session, so a read after it misses nothing.
    /// False, and nothing is visited, where a later request has taken the session over.
    pub(crate) fn visit(&mut self, epoch: i32, mut visitor: impl FnMut(Visited<'_>) -> Option<Waiters>) -> bool {
        if self.epoch != epoch {
            return false;
        }
        self.take_told();
        let mut next = 0;
        while let Some(slot) = self.dirty.get(next).copied() {
            next += 1;
            let Some(member) = member_at(&mut self.members, slot) else { continue };
            if member.visited_in == epoch {
                continue;
            }
            member.visited_in = epoch;
            let waiters = visitor(Visited { slot, order: member.order, wanted: &member.wanted });
            self.watch(slot, waiters);
        }
        true
    }

    /// Has a request's waiter woken by any partition that it has not visited. Nothing where one has changed already, or where
    /// a later request has taken the session over.
    pub(crate) fn wake_on_change(&self, epoch: i32, waiter: &Arc<Waiter>) -> Option<Arc<Changes>> {
        (self.epoch == epoch && self.changes.wake_on_change(waiter)).then(|| Arc::clone(&self.changes))
    }

    /// Ends the answer to a request. `settle` is called for each visited partition in the order of the answer and says with
    /// [`Settling::must_show`] what was found of it. False, and nothing is settled, where a later request has taken over.
    pub(crate) fn settle(&mut self, epoch: i32, settle: impl FnOnce(&mut Settling<'_>)) -> bool {
        if self.epoch != epoch {
            return false;
        }
        self.take_told();
        settle(&mut Settling(self));
        let Self { members, dirty, .. } = self;
        dirty.retain(|slot| members[*slot as usize].as_ref().is_some_and(|member| member.is_dirty));
        true
    }

    /// Adds a partition, which is visited next time.
    pub(crate) fn put(&mut self, mut wanted: WantedPartition, shown: Option<(i64, i64)>) {
        let order = self.next_order;
        self.next_order += 1;
        if let Some(slot) = self.slot_of(&wanted.topic, wanted.partition) {
            // Named twice: the last one stands.
            if let Some(member) = member_at(&mut self.members, slot) {
                wanted.topic = member.wanted.topic.clone();
                (member.wanted, member.shown, member.order) = (wanted, shown, order);
            }
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.members.push(None);
            self.members.len() as u32 - 1
        });
        wanted.topic = match self.slots.get_key_value(&wanted.topic) {
            Some((topic, _)) => topic.clone(),
            // The name would keep the whole request's memory alive for as long as the session lives.
            None => match wanted.topic {
                TopicRef::Name(name) => TopicRef::Name(name.compact()),
                TopicRef::Id(id) => TopicRef::Id(id),
            },
        };
        self.slots.entry(wanted.topic.clone()).or_default().insert(wanted.partition, slot);
        self.len += 1;
        self.members[slot as usize] =
            Some(Member { wanted, shown, order, watched_at: None, visited_in: NEVER, is_dirty: true });
        self.dirty.push(slot);
    }

    fn slot_of(&self, topic: &TopicRef, partition: i32) -> Option<u32> {
        self.slots.get(topic)?.get(&partition).copied()
    }

    fn forget(&mut self, topic: &TopicRef, partition: i32) {
        let Some(slots) = self.slots.get_mut(topic) else { return };
        let Some(slot) = slots.remove(&partition) else { return };
        if slots.is_empty() {
            self.slots.remove(topic);
        }
        self.unwatch(slot);
        self.members[slot as usize] = None;
        self.free.push(slot);
        self.len -= 1;
    }

    fn watch(&mut self, slot: u32, waiters: Option<Waiters>) {
        let Some(member) = member_at(&mut self.members, slot) else { return };
        if let (Some(at), Some(waiters)) = (&member.watched_at, &waiters)
            && Arc::ptr_eq(at, waiters)
        {
            return;
        }
        self.unwatch(slot);
        let Some(waiters) = waiters else { return };
        waiters.lock().unwrap_or_else(PoisonError::into_inner).add_session(&self.changes, slot, self.epoch);
        if let Some(member) = member_at(&mut self.members, slot) {
            member.watched_at = Some(waiters);
        }
    }

    /// From here on nothing is told under this slot.
    fn unwatch(&mut self, slot: u32) {
        let Some(at) = member_at(&mut self.members, slot).and_then(|member| member.watched_at.take()) else { return };
        at.lock().unwrap_or_else(PoisonError::into_inner).remove_session(&self.changes, slot);
        // It may have been told before it was taken off.
        self.take_told();
    }

    fn take_told(&mut self) {
        let Self { members, dirty, changes, .. } = self;
        changes.take(|slot| {
            if let Some(member) = member_at(members, slot) {
                member.watched_at = None;
                mark(dirty, member, slot);
            }
        });
    }
}

impl Drop for Session {
    /// No partition keeps anything of a session that is over.
    fn drop(&mut self) {
        for (slot, member) in self.members.iter().enumerate() {
            if let Some(at) = member.as_ref().and_then(|member| member.watched_at.as_ref()) {
                at.lock().unwrap_or_else(PoisonError::into_inner).remove_session(&self.changes, slot as u32);
            }
        }
    }
}

/// A session whose visited partitions are being settled.
#[derive(Debug)]
pub(crate) struct Settling<'a>(&'a mut Session);

impl Settling<'_> {
    /// Whether a partition's state must be told: it has records, an error, or marks that the client has not seen.
    /// Remembers what is told.
    pub(crate) fn must_show(&mut self, slot: u32, shown: Shown) -> bool {
        let session = &mut *self.0;
        let Some(member) = member_at(&mut session.members, slot) else { return true };
        let marks = remembered(shown);
        let changed = member.shown != marks || marks.is_none() || shown.has_records;
        member.shown = marks;
        if shown.has_records {
            member.order = session.next_order;
            session.next_order += 1;
        }
        // One that was told while it was read may have more than the read saw.
        if shown.is_exhausted && member.watched_at.is_some() {
            member.is_dirty = false;
        }
        changed
    }
}

/// What is remembered of what a client was told.
pub(super) fn remembered(shown: Shown) -> Option<(i64, i64)> {
    (!shown.is_remarkable).then_some((shown.high_watermark, shown.log_start))
}

fn member_at(members: &mut [Option<Member>], slot: u32) -> Option<&mut Member> {
    members.get_mut(slot as usize).and_then(Option::as_mut)
}

fn mark(dirty: &mut Vec<u32>, member: &mut Member, slot: u32) {
    if !member.is_dirty {
        member.is_dirty = true;
        dirty.push(slot);
    }
}
