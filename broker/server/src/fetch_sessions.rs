//! Incremental fetch sessions (KIP-227): a client names its partitions once, then only what changes.
//!
//! `api/fetch.rs` opens a session for each request and closes it over the response. The node keeps at most
//! `max.incremental.fetch.session.cache.slots` of them; a client without one simply names everything each time.

mod session;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gregor_types::{ErrorCode, Timestamp};

use session::remembered;
pub(crate) use session::{Session, SessionRequest, Shown, TopicRef, Waiters, WantedPartition};

/// The epoch of a request that opens a session, and of one that will have none.
const INITIAL_EPOCH: i32 = 0;
const FINAL_EPOCH: i32 = -1;
/// A session that was used within this time is not evicted, `fetch.session` in Kafka's `KafkaBroker`.
const MIN_EVICTION_MS: i64 = 120_000;
/// No session.
const NO_SESSION: i32 = 0;

/// How a request stands to sessions.
#[derive(Debug)]
pub(crate) enum Opened {
    /// Everything named is answered; no session.
    Sessionless,
    /// Everything named is answered, and a session may begin.
    Full,
    /// Only what changed is answered. The session's epoch from this request on, until the next one.
    Incremental(Arc<Mutex<Session>>, i32),
}

impl Opened {
    /// Whether it is a request of a session that runs: it waits for partitions that it does not look at.
    pub(crate) const fn is_incremental(&self) -> bool {
        matches!(self, Self::Incremental(..))
    }
}

/// All sessions of a node.
#[derive(Debug)]
pub(crate) struct FetchSessions {
    slots: usize,
    sessions: Mutex<HashMap<i32, Arc<Mutex<Session>>>>,
}

impl SessionRequest {
    /// Whether the request belongs to a session that runs.
    pub(crate) const fn is_incremental(&self) -> bool {
        self.epoch != INITIAL_EPOCH && self.epoch != FINAL_EPOCH
    }
}

impl FetchSessions {
    /// Room for that many sessions.
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots, sessions: Mutex::default() }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// How many requests sleep on what the partitions of their sessions tell.
    pub(crate) fn sleepers(&self) -> usize {
        let sessions = self.lock();
        // A session that is locked is being answered: nobody sleeps.
        sessions.values().filter(|one| one.try_lock().is_ok_and(|session| session.has_sleeper())).count()
    }

    /// What a request means that is not of a running session: it may begin one, and it ends the one that it names.
    pub(crate) fn open_full(&self, request: SessionRequest) -> Opened {
        if request.id != NO_SESSION {
            let ended = self.lock().remove(&request.id);
            // It takes itself off the lists of its partitions, which others need not wait for.
            drop(ended);
        }
        if request.epoch == FINAL_EPOCH { Opened::Sessionless } else { Opened::Full }
    }

    /// Finds the session of a request, and takes its changes into it.
    pub(crate) fn open(
        &self,
        request: SessionRequest,
        changed: impl Iterator<Item = WantedPartition>,
        forgotten: impl Iterator<Item = (TopicRef, i32)>,
        now: Timestamp,
    ) -> Result<Opened, ErrorCode> {
        let session = self.lock().get(&request.id).cloned().ok_or(ErrorCode::FetchSessionIdNotFound)?;
        let mut guard = session.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.epoch != request.epoch {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        if guard.uses_topic_ids != request.uses_topic_ids {
            return Err(ErrorCode::FetchSessionTopicIdError);
        }
        guard.update(changed, forgotten);
        if guard.len() == 0 {
            self.lock().remove(&request.id);
            return Ok(Opened::Sessionless);
        }
        // Before it is looked what partitions have told: what changes from now on is told.
        guard.used(&request, now);
        let epoch = next_epoch(guard.epoch);
        guard.begin(epoch, request.reads_committed);
        drop(guard);
        Ok(Opened::Incremental(session, epoch))
    }

    /// Begins a session after a full response; 0 where there is no room.
    pub(crate) fn begin(
        &self,
        request: SessionRequest,
        answered: impl ExactSizeIterator<Item = (WantedPartition, Shown)>,
        now: Timestamp,
        mut random: impl FnMut() -> u32,
    ) -> i32 {
        if self.slots == 0 || answered.len() == 0 {
            return NO_SESSION;
        }
        let mut evicted = None;
        let mut sessions = self.lock();
        if sessions.len() >= self.slots {
            let Some(victim) = victim(&sessions, request.follower.is_some(), answered.len(), now) else {
                return NO_SESSION;
            };
            evicted = sessions.remove(&victim);
        }
        let id = loop {
            let id = (random() & 0x7fff_ffff) as i32;
            if id != NO_SESSION && !sessions.contains_key(&id) {
                break id;
            }
        };
        let mut session = Session::new(id, next_epoch(INITIAL_EPOCH), request, now);
        for (wanted, shown) in answered {
            session.put(wanted, remembered(shown));
        }
        sessions.insert(id, Arc::new(Mutex::new(session)));
        drop(sessions);
        drop(evicted);
        id
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Arc<Mutex<Session>>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn next_epoch(epoch: i32) -> i32 {
    if epoch == i32::MAX { 1 } else { epoch + 1 }
}

/// Whom a new session may push out: one that is idle for long, or an older and smaller one of a lesser client.
fn victim(sessions: &HashMap<i32, Arc<Mutex<Session>>>, privileged: bool, size: usize, now: Timestamp) -> Option<i32> {
    let mut smallest: Option<(bool, usize, i32)> = None;
    for (id, session) in sessions {
        // A session that is being answered now is in use.
        let Ok(session) = session.try_lock() else { continue };
        if now.since(session.last_used_at) > MIN_EVICTION_MS {
            return Some(*id);
        }
        if now.since(session.created_at) > MIN_EVICTION_MS || (privileged && !session.privileged) {
            let candidate = (session.privileged, session.len(), *id);
            smallest = Some(smallest.map_or(candidate, |best| best.min(candidate)));
        }
    }
    let (victim_privileged, victim_size, id) = smallest?;
    ((!victim_privileged && privileged) || (victim_privileged == privileged && victim_size < size)).then_some(id)
}

#[cfg(test)]
mod tests {
    use gregor_types::{BrokerId, Offset};

    use super::*;
    use crate::waiters::Waiter;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn wanted(partition: i32, offset: i64) -> WantedPartition {
        WantedPartition {
            topic: TopicRef::Name("events".into()),
            partition,
            fetch_offset: offset,
            current_leader_epoch: -1,
            last_fetched_epoch: -1,
            log_start_offset: -1,
            max_bytes: 1 << 20,
        }
    }

    fn shown(high_watermark: i64, has_records: bool) -> Shown {
        Shown { high_watermark, log_start: 0, has_records, is_remarkable: false, is_exhausted: !has_records }
    }

    fn request(id: i32, epoch: i32) -> SessionRequest {
        SessionRequest { id, epoch, uses_topic_ids: false, follower: None, reads_committed: false }
    }

    fn begin(sessions: &FetchSessions, partitions: i32, now: Timestamp) -> i32 {
        let answered: Vec<_> = (0..partitions).map(|index| (wanted(index, 0), shown(10, false))).collect();
        let mut seed = sessions.len() as u32;
        sessions.begin(request(0, 0), answered.into_iter(), now, || {
            seed += 1;
            seed
        })
    }

    fn open(
        sessions: &FetchSessions,
        request: SessionRequest,
        changed: &[WantedPartition],
        forgotten: &[(TopicRef, i32)],
    ) -> Result<Opened, ErrorCode> {
        sessions.open(request, changed.iter().cloned(), forgotten.iter().cloned(), NOW)
    }

    /// A broker of partitions by their numbers, and a client with a session of all of them.
    struct World {
        sessions: FetchSessions,
        id: i32,
        epoch: i32,
        partitions: Vec<Waiters>,
    }

    /// A request that is being answered: the partitions that are looked at, in the order of the answer.
    struct Answer {
        session: Arc<Mutex<Session>>,
        epoch: i32,
        visited: Vec<(u64, u32, WantedPartition)>,
    }

    impl World {
        fn new(partitions: i32) -> Self {
            let sessions = FetchSessions::new(10);
            let id = begin(&sessions, partitions, NOW);
            Self { sessions, id, epoch: 1, partitions: (0..partitions).map(|_| Waiters::default()).collect() }
        }

        /// One whose session has been answered once, with nothing.
        fn settled(partitions: i32) -> Self {
            let mut world = Self::new(partitions);
            assert_eq!(world.ask(&[], &[]).finish(|_| shown(10, false)), [0; 0]);
            world
        }

        fn ask(&mut self, changed: &[WantedPartition], forgotten: &[i32]) -> Answer {
            self.ask_with(request(self.id, self.epoch), changed, forgotten)
        }

        fn ask_with(&mut self, request: SessionRequest, changed: &[WantedPartition], forgotten: &[i32]) -> Answer {
            let topic = || TopicRef::Name("events".into());
            let forgotten: Vec<_> = forgotten.iter().map(|index| (topic(), *index)).collect();
            let Opened::Incremental(session, epoch) = open(&self.sessions, request, changed, &forgotten).unwrap()
            else {
                panic!("expected a session")
            };
            self.epoch = epoch;
            let mut answer = Answer { session, epoch, visited: Vec::new() };
            assert!(answer.visit(&self.partitions));
            answer
        }

        fn change(&self, partition: usize) {
            self.partitions[partition].lock().unwrap().on_high_watermark(Offset(11), 1);
        }

        /// Registrations of sessions with any partition.
        fn registered(&self) -> usize {
            self.partitions.iter().map(|waiters| waiters.lock().unwrap().sessions()).sum()
        }
    }

    impl Answer {
        fn visit(&mut self, partitions: &[Waiters]) -> bool {
            let visited = &mut self.visited;
            let is_ours = self.session.lock().unwrap().visit(self.epoch, |one| {
                visited.push((one.order, one.slot, one.wanted.clone()));
                partitions.get(one.wanted.partition as usize).cloned()
            });
            self.visited.sort_by_key(|(order, ..)| *order);
            is_ours
        }

        fn partitions(&self) -> Vec<i32> {
            self.visited.iter().map(|(.., wanted)| wanted.partition).collect()
        }

        /// The partitions that the client is told of.
        fn finish(self, found: impl Fn(i32) -> Shown) -> Vec<i32> {
            let mut told = Vec::new();
            let is_ours = self.session.lock().unwrap().settle(self.epoch, |settling| {
                for (_, slot, wanted) in &self.visited {
                    if settling.must_show(*slot, found(wanted.partition)) {
                        told.push(wanted.partition);
                    }
                }
            });
            assert!(is_ours);
            told
        }
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut world = World::new(3);
        let answer = world.ask(&[wanted(1, 5)], &[]);
        assert_eq!(answer.visited[1].2.fetch_offset, 5);
        let found = [shown(10, false), shown(11, false), shown(10, true)];
        assert_eq!(answer.finish(|index| found[index as usize]), [1, 2], "a high watermark that moved, and records");
        let error = |_| Shown { is_remarkable: true, is_exhausted: false, ..shown(-1, false) };
        world.change(0);
        for _ in 0..2 {
            assert_eq!(world.ask(&[], &[2]).finish(error), [0], "errors always");
        }
        assert_eq!(world.ask(&[], &[]).finish(|_| shown(10, false)), [0], "and the recovery from one");
        assert_eq!(world.ask(&[], &[]).partitions(), [0; 0]);
    }

    #[test]
    fn what_does_not_change_is_not_looked_at_again() {
        let mut world = World::settled(5_000);
        assert_eq!(world.ask(&[], &[]).partitions(), [0; 0]);
        world.change(4_711);
        world.change(4_711);
        world.change(17);
        let answer = world.ask(&[], &[]);
        assert_eq!(answer.partitions(), [17, 4_711], "in the session's order");
        assert_eq!(answer.finish(|index| shown(11, index == 17)), [17, 4_711]);
        let answer = world.ask(&[wanted(3, 7)], &[]);
        assert_eq!(answer.partitions(), [3, 17], "one that is named, and one that may have more records");
        assert_eq!(answer.finish(|_| shown(11, false)), [3]);
    }

    #[test]
    fn a_change_while_the_request_is_answered_is_for_the_next() {
        let mut world = World::settled(3);
        world.change(1);
        let answer = world.ask(&[], &[]);
        world.change(0);
        world.change(1);
        assert_eq!(answer.finish(|_| shown(10, false)), [0; 0]);
        assert_eq!(world.ask(&[], &[]).partitions(), [0, 1]);
    }

    #[test]
    fn an_answer_that_is_never_finished_leaves_all_to_the_next() {
        let mut world = World::settled(3);
        world.change(1);
        drop(world.ask(&[], &[]));
        world.change(2);
        assert_eq!(world.ask(&[], &[]).partitions(), [1, 2]);
    }

    #[test]
    fn a_request_that_sleeps_is_woken_by_what_it_has_not_looked_at() {
        let mut world = World::settled(3);
        world.change(1);
        let mut answer = world.ask(&[], &[]);
        let waiter = Waiter::new(100);
        let sleep = |answer: &Answer| answer.session.lock().unwrap().wake_on_change(answer.epoch, &waiter);
        let changes = sleep(&answer).unwrap();
        assert_eq!(world.sessions.sleepers(), 1);
        world.change(1);
        assert!(!waiter.is_done(), "it is on the list of this one itself, which counts bytes");
        world.change(2);
        assert!(waiter.is_done());
        changes.forget(&waiter);
        assert!(sleep(&answer).is_none(), "there is something new to look at");
        assert!(answer.visit(&world.partitions));
        assert_eq!(answer.partitions(), [1, 2]);
        assert!(sleep(&answer).is_some());
    }

    #[test]
    fn a_later_request_takes_the_session_over() {
        let mut world = World::settled(2);
        world.change(0);
        let mut former = world.ask(&[], &[]);
        let waiter = Waiter::new(1);
        former.session.lock().unwrap().wake_on_change(former.epoch, &waiter).unwrap();
        let later = world.ask(&[], &[]);
        assert!(waiter.is_done(), "the former has nothing to sleep for");
        assert!(!former.visit(&world.partitions));
        assert!(former.session.lock().unwrap().wake_on_change(former.epoch, &waiter).is_none());
        assert!(!former.session.lock().unwrap().settle(former.epoch, |_| panic!("nothing of it is remembered")));
        assert_eq!(later.partitions(), [0], "what the former was to tell is told by the later one");
    }

    #[test]
    fn a_followers_session_hears_of_appends_and_tells_since_when_it_lacks_them() {
        let mut world = World::settled(2);
        let appended = |world: &World, partition: usize| {
            let mut had_all = Vec::new();
            let mut waiters = world.partitions[partition].lock().unwrap();
            waiters.tell_followers(|follower, at| had_all.push((follower, at)));
            had_all
        };
        assert!(appended(&world, 0).is_empty(), "a consumer waits for commits");
        let follower = SessionRequest { follower: Some(BrokerId(2)), ..request(world.id, world.epoch) };
        let answer = world.ask_with(follower, &[], &[]);
        assert_eq!(answer.partitions(), [0; 0]);
        let waiter = Waiter::new(1);
        answer.session.lock().unwrap().wake_on_change(answer.epoch, &waiter).unwrap();
        assert_eq!(appended(&world, 0), [(BrokerId(2), NOW)]);
        assert!(waiter.is_done(), "its request sleeps no longer");
        assert!(appended(&world, 0).is_empty(), "it was told");
        answer.finish(|_| shown(10, false));
        assert_eq!(world.ask(&[], &[]).partitions(), [0]);
    }

    #[test]
    fn another_isolation_looks_at_all() {
        let mut world = World::settled(3);
        let committed = SessionRequest { reads_committed: true, ..request(world.id, world.epoch) };
        assert_eq!(world.ask_with(committed, &[], &[]).partitions(), [0, 1, 2]);
    }

    #[test]
    fn a_partition_with_records_goes_to_the_end() {
        let mut world = World::settled(3);
        let all = |world: &World| (0..3).for_each(|index| world.change(index));
        all(&world);
        world.ask(&[], &[]).finish(|index| shown(12, index == 0));
        all(&world);
        assert_eq!(world.ask(&[], &[]).partitions(), [1, 2, 0]);
    }

    #[test]
    fn a_session_that_ends_and_a_partition_that_is_forgotten_leave_no_registration() {
        let mut world = World::settled(3);
        assert_eq!(world.registered(), 3);
        world.change(2);
        assert_eq!(world.registered(), 2, "who is told is registered no more");
        drop(world.ask(&[], &[0, 2]));
        assert_eq!(world.registered(), 1);
        world.sessions.open_full(request(world.id, FINAL_EPOCH));
        assert_eq!((world.registered(), world.sessions.len()), (0, 0));
    }

    #[test]
    fn a_topic_that_was_made_anew_is_watched_in_place_of_the_old() {
        let mut world = World::settled(1);
        let old = std::mem::take(&mut world.partitions[0]);
        old.lock().unwrap().wake_all();
        assert_eq!(world.ask(&[], &[]).finish(|_| shown(0, false)), [0]);
        assert_eq!((Arc::strong_count(&old), world.registered()), (1, 1));
        // Named while the old one is still there, and known: the session takes itself off it.
        let newest = std::mem::take(&mut world.partitions[0]);
        world.ask(&[wanted(0, 0)], &[]).finish(|_| shown(0, false));
        assert_eq!((newest.lock().unwrap().sessions(), world.registered()), (0, 1));
    }

    #[test]
    fn a_slot_that_is_used_again_knows_nothing_of_its_last_partition() {
        let mut world = World::settled(2);
        world.change(0);
        let _ = world.ask(&[], &[0]);
        let answer = world.ask(&[wanted(0, 3)], &[]);
        assert_eq!(answer.partitions(), [0]);
        assert_eq!(answer.finish(|_| shown(11, false)), [0]);
        assert_eq!(world.registered(), 2);
        assert_eq!(world.ask(&[], &[]).partitions(), [0; 0]);
    }

    #[test]
    fn a_wrong_id_or_epoch_is_told_apart() {
        let sessions = FetchSessions::new(10);
        let id = begin(&sessions, 1, NOW);
        let error = |request| open(&sessions, request, &[], &[]).unwrap_err();
        assert_eq!(error(request(id + 1, 1)), ErrorCode::FetchSessionIdNotFound);
        assert_eq!(error(request(id, 2)), ErrorCode::InvalidFetchSessionEpoch);
        let by_id = SessionRequest { uses_topic_ids: true, ..request(id, 1) };
        assert_eq!(error(by_id), ErrorCode::FetchSessionTopicIdError);
    }

    #[test]
    fn a_session_without_partitions_ends() {
        let sessions = FetchSessions::new(10);
        let id = begin(&sessions, 1, NOW);
        let forgotten = [(TopicRef::Name("events".into()), 0)];
        assert!(matches!(open(&sessions, request(id, 1), &[], &forgotten), Ok(Opened::Sessionless)));
        assert_eq!(sessions.len(), 0);
    }

    #[test]
    fn a_full_cache_keeps_who_is_active_and_drops_who_is_idle() {
        let sessions = FetchSessions::new(2);
        let (first, second) = (begin(&sessions, 1, NOW), begin(&sessions, 1, NOW.plus_ms(60_000)));
        assert_eq!(begin(&sessions, 1, NOW.plus_ms(60_001)), NO_SESSION);
        let third = begin(&sessions, 1, NOW.plus_ms(MIN_EVICTION_MS + 1));
        assert_ne!(third, NO_SESSION);
        assert!(open(&sessions, request(first, 1), &[], &[]).is_err());
        assert!(open(&sessions, request(second, 1), &[], &[]).is_ok());
    }
}
