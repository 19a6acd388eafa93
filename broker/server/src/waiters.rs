//! Requests that wait for a partition to move.
//!
//! A delayed Produce or Fetch is the connection's own task, asleep on a [`Waiter`]. It registers with the partitions that
//! concern it, under their locks; who moves a high watermark walks the partition's list once and wakes each task at most
//! once. Nothing ticks while nothing waits, and a waiter that gives up takes itself off the lists.
//!
//! A fetch session of many partitions does not wait at each of them anew: those that were idle have told it once where to
//! say that they changed ([`Changes`]), and its requests sleep on that.

use std::sync::{Arc, PoisonError};

use gregor_types::{BrokerId, Offset, Timestamp};

use crate::sync::{AtomicU32, Instant, Mutex, MutexGuard, Notify, Ordering, timeout_at};

/// One waiting request.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// Partitions (Produce) or bytes (Fetch) that are still missing.
    remaining: AtomicU32,
    notify: Notify,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// What was missing came, or a partition says that it never will.
    Woken,
    /// The deadline passed.
    TimedOut,
}

/// The waiters of one partition; lives under the partition's lock.
#[derive(Debug, Default)]
pub(crate) struct WaiterList {
    fetches: Vec<Arc<Waiter>>,
    /// Followers, which wait for appends and not for commits.
    followers: Vec<Arc<Waiter>>,
    produces: Vec<(Offset, Arc<Waiter>)>,
    syncs: Vec<(Offset, Arc<Waiter>)>,
    deletions: Vec<Arc<Waiter>>,
    sessions: Vec<Watching>,
}

/// A session that is to be told when the partition changes.
#[derive(Debug)]
struct Watching {
    changes: Arc<Changes>,
    /// What the session calls the partition.
    slot: u32,
    /// The session's epoch when it was registered.
    epoch: i32,
}

/// What partitions tell a fetch session.
#[derive(Debug, Default)]
pub(crate) struct Changes(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    /// Who has changed and forgotten the session since: each partition once, as each is registered once.
    slots: Vec<u32>,
    /// The epoch of the request that is answered now, or was last.
    epoch: i32,
    /// Whether one of them is none that this request has visited.
    has_unvisited: bool,
    sleeper: Option<Arc<Waiter>>,
    /// The broker that fetches as a follower, and when its last request began.
    follower: Option<(BrokerId, Timestamp)>,
}

impl Waiter {
    /// A waiter for that many partitions or bytes.
    pub(crate) fn new(remaining: u32) -> Arc<Self> {
        Arc::new(Self { remaining: AtomicU32::new(remaining), notify: Notify::new() })
    }

    /// The same waiter for another wait, where nobody else holds it any more; else a new one.
    pub(crate) fn again(kept: &mut Option<Arc<Self>>, remaining: u32) -> Arc<Self> {
        match kept.as_mut().and_then(Arc::get_mut) {
            // A wake-up that came too late for the last wait must not end this one.
            Some(free) => *free = Self { remaining: AtomicU32::new(remaining), notify: Notify::new() },
            None => *kept = Some(Self::new(remaining)),
        }
        Arc::clone(kept.as_ref().expect("it was just put there"))
    }

    /// So much less is missing; wakes the task when nothing is.
    pub(crate) fn count_down(&self, amount: u32) {
        let before = self
            .remaining
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| Some(left.saturating_sub(amount)))
            .unwrap_or_else(|left| left);
        if before > 0 && before <= amount {
            self.notify.notify_one();
        }
    }

    /// Wakes the task whatever is missing: it looks itself.
    pub(crate) fn wake(&self) {
        self.count_down(u32::MAX);
    }

    /// Whether nothing is missing any more.
    pub(crate) fn is_done(&self) -> bool {
        self.remaining.load(Ordering::Acquire) == 0
    }

    /// Sleeps until nothing is missing, however long that takes.
    pub(crate) async fn wait(&self) {
        if !self.is_done() {
            self.notify.notified().await;
        }
    }

    /// Sleeps until nothing is missing or the deadline. May be dropped and called again.
    pub(crate) async fn wait_until(&self, deadline: Instant) -> Waited {
        if self.is_done() {
            return Waited::Woken;
        }
        match timeout_at(deadline, self.notify.notified()).await {
            Ok(()) => Waited::Woken,
            Err(_) if self.is_done() => Waited::Woken,
            Err(_) => Waited::TimedOut,
        }
    }
}

impl Changes {
    /// Another request of the session begins. One that still sleeps has lost the session to it.
    pub(crate) fn begin(&self, epoch: i32) {
        let mut told = self.lock();
        told.epoch = epoch;
        if let Some(former) = told.sleeper.take() {
            former.wake();
        }
    }

    /// A follower's request begins: of what it does not look at it has all that there is now.
    pub(crate) fn fetched(&self, follower: BrokerId, at: Timestamp) {
        self.lock().follower = Some((follower, at));
    }

    /// Takes what was told.
    pub(crate) fn take(&self, each: impl FnMut(u32)) {
        let mut told = self.lock();
        told.has_unvisited = false;
        told.slots.drain(..).for_each(each);
    }

    /// Has the waiter woken by any change of a partition that the request has not visited; false where there was one already.
    pub(crate) fn wake_on_change(&self, waiter: &Arc<Waiter>) -> bool {
        let mut told = self.lock();
        if !told.has_unvisited {
            told.sleeper = Some(Arc::clone(waiter));
        }
        !told.has_unvisited
    }

    /// The waiter sleeps no longer.
    pub(crate) fn forget(&self, waiter: &Arc<Waiter>) {
        let mut told = self.lock();
        if told.sleeper.as_ref().is_some_and(|sleeper| Arc::ptr_eq(sleeper, waiter)) {
            told.sleeper = None;
        }
    }

    /// Whether a request sleeps.
    pub(crate) fn has_sleeper(&self) -> bool {
        self.lock().sleeper.is_some()
    }

    fn tell(&self, slot: u32, registered_in: i32) {
        self.lock().tell(slot, registered_in);
    }

    /// Tells a follower's session, and who that is; no other.
    fn tell_follower(&self, slot: u32, registered_in: i32) -> Option<(BrokerId, Timestamp)> {
        let mut told = self.lock();
        let follower = told.follower?;
        told.tell(slot, registered_in);
        Some(follower)
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn tell(&mut self, slot: u32, registered_in: i32) {
        self.slots.push(slot);
        // One that was registered for this very request is visited by it: the waiter is on its list, and counts its bytes.
        if registered_in != self.epoch {
            self.has_unvisited = true;
            if let Some(sleeper) = &self.sleeper {
                sleeper.wake();
            }
        }
    }
}

impl WaiterList {
    /// A fetch waits for bytes.
    pub(crate) fn add_fetch(&mut self, waiter: &Arc<Waiter>) {
        self.fetches.push(Arc::clone(waiter));
    }

    /// A follower's fetch waits for bytes.
    pub(crate) fn add_follower(&mut self, waiter: &Arc<Waiter>) {
        self.followers.push(Arc::clone(waiter));
    }

    /// A deletion of records waits for all replicas to have done it.
    pub(crate) fn add_deletion(&mut self, waiter: &Arc<Waiter>) {
        self.deletions.push(Arc::clone(waiter));
    }

    /// A replica's log begins later than it did.
    pub(crate) fn on_low_watermark(&mut self) {
        self.deletions.drain(..).for_each(|waiter| waiter.wake());
    }

    /// The leader's log has that many bytes more.
    pub(crate) fn on_append(&mut self, bytes: u32) {
        self.followers.retain(|waiter| {
            waiter.count_down(bytes.max(1));
            !waiter.is_done()
        });
    }

    /// The leader's log is about to have more: sessions of followers hear of it, once. Says of each when its last request began,
    /// at which the follower had everything.
    pub(crate) fn tell_followers(&mut self, mut had_all: impl FnMut(BrokerId, Timestamp)) {
        self.sessions.retain(|watching| match watching.changes.tell_follower(watching.slot, watching.epoch) {
            Some((follower, at)) => {
                had_all(follower, at);
                false
            }
            None => true,
        });
    }

    /// A produce waits for everything before `offset` to be committed.
    pub(crate) fn add_produce(&mut self, offset: Offset, waiter: &Arc<Waiter>) {
        self.produces.push((offset, Arc::clone(waiter)));
    }

    /// A produce waits for everything before `offset` to be on the disk.
    pub(crate) fn add_sync(&mut self, offset: Offset, waiter: &Arc<Waiter>) {
        self.syncs.push((offset, Arc::clone(waiter)));
    }

    /// A session is to be told of the next change, under this name for the partition.
    pub(crate) fn add_session(&mut self, changes: &Arc<Changes>, slot: u32, epoch: i32) {
        // Most partitions are in few sessions, and most of those are idle.
        if self.sessions.len() == self.sessions.capacity() {
            self.sessions.reserve_exact(1 + self.sessions.len() / 2);
        }
        self.sessions.push(Watching { changes: Arc::clone(changes), slot, epoch });
    }

    /// A session wants to hear no more.
    pub(crate) fn remove_session(&mut self, changes: &Arc<Changes>, slot: u32) {
        let is_it = |watching: &Watching| watching.slot == slot && Arc::ptr_eq(&watching.changes, changes);
        if let Some(at) = self.sessions.iter().position(is_it) {
            self.sessions.swap_remove(at);
        }
    }

    /// What a session was shown of the partition, or could be, is not what it was; each hears of it once.
    pub(crate) fn tell_sessions(&mut self) {
        self.sessions.drain(..).for_each(|watching| watching.changes.tell(watching.slot, watching.epoch));
    }

    /// The waiter has what it needs, or gave up.
    pub(crate) fn remove(&mut self, waiter: &Arc<Waiter>) {
        self.fetches.retain(|other| !Arc::ptr_eq(other, waiter));
        self.followers.retain(|other| !Arc::ptr_eq(other, waiter));
        self.deletions.retain(|other| !Arc::ptr_eq(other, waiter));
        self.produces.retain(|(_, other)| !Arc::ptr_eq(other, waiter));
        self.syncs.retain(|(_, other)| !Arc::ptr_eq(other, waiter));
    }

    /// The high watermark moved by that many bytes.
    pub(crate) fn on_high_watermark(&mut self, high_watermark: Offset, bytes: u32) {
        self.fetches.retain(|waiter| {
            waiter.count_down(bytes.max(1));
            !waiter.is_done()
        });
        count_down_reached(&mut self.produces, high_watermark);
        self.tell_sessions();
    }

    /// Everything before that offset is on the disk.
    pub(crate) fn on_durable(&mut self, durable_end: Offset) {
        count_down_reached(&mut self.syncs, durable_end);
    }

    /// The partition changed in a way that no waiter waits for: leadership, deletion, a failed directory.
    pub(crate) fn wake_all(&mut self) {
        let looking = self.fetches.drain(..).chain(self.followers.drain(..)).chain(self.deletions.drain(..));
        looking.for_each(|waiter| waiter.wake());
        let awaiting = self.produces.drain(..).chain(self.syncs.drain(..));
        awaiting.for_each(|(_, waiter)| waiter.count_down(1));
        self.tell_sessions();
    }

    /// How many requests wait here. A session that is to be told is none.
    pub(crate) fn len(&self) -> usize {
        self.fetches.len() + self.followers.len() + self.deletions.len() + self.produces.len() + self.syncs.len()
    }

    /// How many sessions are to be told.
    #[cfg(test)]
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.len()
    }
}

fn count_down_reached(waiting: &mut Vec<(Offset, Arc<Waiter>)>, reached: Offset) {
    waiting.retain(|(offset, waiter)| {
        let done = *offset <= reached;
        if done {
            waiter.count_down(1);
        }
        !done
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn a_produce_wakes_when_its_last_partition_is_committed() {
        let waiter = Waiter::new(2);
        let (mut one, mut two) = (WaiterList::default(), WaiterList::default());
        one.add_produce(Offset(10), &waiter);
        two.add_produce(Offset(5), &waiter);
        one.on_high_watermark(Offset(10), 100);
        two.on_high_watermark(Offset(4), 100);
        assert!(!waiter.is_done());
        two.on_high_watermark(Offset(6), 100);
        assert_eq!(waiter.wait_until(soon()).await, Waited::Woken);
        assert_eq!(one.len() + two.len(), 0);
    }

    #[tokio::test]
    async fn a_fetch_wakes_when_enough_bytes_came() {
        let waiter = Waiter::new(150);
        let mut list = WaiterList::default();
        list.add_fetch(&waiter);
        list.on_high_watermark(Offset(1), 100);
        assert!(!waiter.is_done());
        list.on_high_watermark(Offset(2), 100);
        assert_eq!(waiter.wait_until(soon()).await, Waited::Woken);
    }

    #[tokio::test]
    async fn a_waiter_that_is_used_again_knows_nothing_of_its_last_wait() {
        let mut kept = None;
        let first = Waiter::again(&mut kept, 1);
        first.wake();
        let held = Arc::as_ptr(&first);
        let second = Waiter::again(&mut kept, 1);
        assert_ne!(Arc::as_ptr(&second), held, "somebody may still wake the first");
        drop((first, second));
        let third = Waiter::again(&mut kept, 1);
        assert_eq!(third.wait_until(Instant::now()).await, Waited::TimedOut);
    }

    #[tokio::test]
    async fn a_deadline_ends_the_wait() {
        let waiter = Waiter::new(1);
        assert_eq!(waiter.wait_until(Instant::now()).await, Waited::TimedOut);
    }

    #[tokio::test]
    async fn a_lost_leadership_wakes_everybody() {
        let (produce, fetch) = (Waiter::new(1), Waiter::new(1_000_000));
        let mut list = WaiterList::default();
        list.add_produce(Offset(10), &produce);
        list.add_fetch(&fetch);
        list.wake_all();
        assert!(produce.is_done() && fetch.is_done());
    }
}
