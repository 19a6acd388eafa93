//! Incremental fetch sessions (KIP-227): a client names its partitions once, then only what changes.
//!
//! `api/fetch.rs` opens a session for each request and closes it over the response. The node keeps at most
//! `max.incremental.fetch.session.cache.slots` of them; a client without one simply names everything each time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gregor_types::{ErrorCode, KString, Timestamp, TopicId};

/// The epoch of a request that opens a session, and of one that will have none.
const INITIAL_EPOCH: i32 = 0;
const FINAL_EPOCH: i32 = -1;
/// A session that was used within this time is not evicted, `fetch.session` in Kafka's `KafkaBroker`.
const MIN_EVICTION_MS: i64 = 120_000;
/// No session.
const NO_SESSION: i32 = 0;

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
}

/// How a request stands to sessions.
#[derive(Debug)]
pub(crate) enum Opened {
    /// Everything named is answered; no session.
    Sessionless,
    /// Everything named is answered, and a session may begin.
    Full,
    /// Only what changed is answered.
    Incremental(Arc<Mutex<Session>>),
}

/// All sessions of a node.
#[derive(Debug)]
pub(crate) struct FetchSessions {
    slots: usize,
    sessions: Mutex<HashMap<i32, Arc<Mutex<Session>>>>,
}

/// One client's session.
#[derive(Debug)]
pub(crate) struct Session {
    id: i32,
    epoch: i32,
    uses_topic_ids: bool,
    privileged: bool,
    created_at: Timestamp,
    last_used_at: Timestamp,
    next_order: u64,
    /// In the order in which they are answered; who got records goes to the end, so that all get their turn.
    partitions: BTreeMap<u64, SessionPartition>,
    order_of: HashMap<(TopicRef, i32), u64>,
}

#[derive(Debug)]
struct SessionPartition {
    wanted: WantedPartition,
    /// What the client was told last; `None` before the first time, and after an error.
    shown: Option<(i64, i64)>,
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
    /// Whether a broker asks.
    pub(crate) privileged: bool,
}

impl SessionRequest {
    /// Whether the request belongs to a session that runs.
    pub(crate) fn is_incremental(&self) -> bool {
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

    /// What a request means that is not of a running session: it may begin one, and it ends the one that it names.
    pub(crate) fn open_full(&self, request: SessionRequest) -> Opened {
        if request.id != NO_SESSION {
            self.lock().remove(&request.id);
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
        guard.epoch = next_epoch(guard.epoch);
        guard.last_used_at = now;
        if guard.partitions.is_empty() {
            self.lock().remove(&request.id);
            return Ok(Opened::Sessionless);
        }
        drop(guard);
        Ok(Opened::Incremental(session))
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
        let mut sessions = self.lock();
        if sessions.len() >= self.slots {
            let Some(victim) = victim(&sessions, request.privileged, answered.len(), now) else { return NO_SESSION };
            sessions.remove(&victim);
        }
        let id = loop {
            let id = (random() & 0x7fff_ffff) as i32;
            if id != NO_SESSION && !sessions.contains_key(&id) {
                break id;
            }
        };
        let mut session = Session {
            id,
            epoch: next_epoch(INITIAL_EPOCH),
            uses_topic_ids: request.uses_topic_ids,
            privileged: request.privileged,
            created_at: now,
            last_used_at: now,
            next_order: 0,
            partitions: BTreeMap::new(),
            order_of: HashMap::new(),
        };
        for (wanted, shown) in answered {
            session.put(wanted, remembered(shown));
        }
        sessions.insert(id, Arc::new(Mutex::new(session)));
        id
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Arc<Mutex<Session>>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Its id.
    pub(crate) fn id(&self) -> i32 {
        self.id
    }

    /// What the client wants, in the order in which it is answered.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = &WantedPartition> {
        self.partitions.values().map(|partition| &partition.wanted)
    }

    /// Whether a partition's state must be told: it has records, an error, or marks that the client has not seen.
    /// Remembers what is told.
    pub(crate) fn must_show(&mut self, topic: &TopicRef, partition: i32, shown: Shown) -> bool {
        let Some(order) = self.order_of.get(&(topic.clone(), partition)).copied() else { return true };
        let Some(entry) = self.partitions.get_mut(&order) else { return true };
        let marks = remembered(shown);
        let changed = entry.shown != marks || marks.is_none() || shown.has_records;
        entry.shown = marks;
        if shown.has_records
            && let Some(entry) = self.partitions.remove(&order)
        {
            self.order_of.insert((topic.clone(), partition), self.next_order);
            self.partitions.insert(self.next_order, entry);
            self.next_order += 1;
        }
        changed
    }

    fn update(
        &mut self,
        changed: impl Iterator<Item = WantedPartition>,
        forgotten: impl Iterator<Item = (TopicRef, i32)>,
    ) {
        for wanted in changed {
            match self.order_of.get(&(wanted.topic.clone(), wanted.partition)) {
                Some(order) => {
                    if let Some(entry) = self.partitions.get_mut(order) {
                        entry.wanted = WantedPartition { topic: entry.wanted.topic.clone(), ..wanted };
                    }
                }
                None => self.put(wanted, None),
            }
        }
        for key in forgotten {
            if let Some(order) = self.order_of.remove(&key) {
                self.partitions.remove(&order);
            }
        }
    }

    fn put(&mut self, mut wanted: WantedPartition, shown: Option<(i64, i64)>) {
        // The name would keep the whole request's memory alive for as long as the session lives.
        if let TopicRef::Name(name) = &wanted.topic {
            wanted.topic = TopicRef::Name(name.compact());
        }
        let order = self.next_order;
        self.next_order += 1;
        if let Some(old) = self.order_of.insert((wanted.topic.clone(), wanted.partition), order) {
            self.partitions.remove(&old);
        }
        self.partitions.insert(order, SessionPartition { wanted, shown });
    }
}

fn remembered(shown: Shown) -> Option<(i64, i64)> {
    (!shown.is_remarkable).then_some((shown.high_watermark, shown.log_start))
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
            let candidate = (session.privileged, session.partitions.len(), *id);
            smallest = Some(smallest.map_or(candidate, |best| best.min(candidate)));
        }
    }
    let (victim_privileged, victim_size, id) = smallest?;
    ((!victim_privileged && privileged) || (victim_privileged == privileged && victim_size < size)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn wanted(partition: i32, offset: i64) -> WantedPartition {
        WantedPartition {
            topic: TopicRef::Name("events".into()),
            partition,
            fetch_offset: offset,
            current_leader_epoch: -1,
            last_fetched_epoch: -1,
            max_bytes: 1 << 20,
        }
    }

    fn shown(high_watermark: i64, has_records: bool) -> Shown {
        Shown { high_watermark, log_start: 0, has_records, is_remarkable: false }
    }

    fn request(id: i32, epoch: i32) -> SessionRequest {
        SessionRequest { id, epoch, uses_topic_ids: false, privileged: false }
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

    fn session(opened: Opened) -> Arc<Mutex<Session>> {
        match opened {
            Opened::Incremental(session) => session,
            other => panic!("expected a session, got {other:?}"),
        }
    }

    #[test]
    fn only_what_changed_is_shown() {
        let sessions = FetchSessions::new(10);
        let id = begin(&sessions, 3, NOW);
        let session = session(open(&sessions, request(id, 1), &[wanted(1, 5)], &[]).unwrap());
        let mut session = session.lock().unwrap();
        assert_eq!(session.wanted().nth(1).unwrap().fetch_offset, 5);
        let topic = TopicRef::Name("events".into());
        assert!(!session.must_show(&topic, 0, shown(10, false)));
        assert!(session.must_show(&topic, 1, shown(11, false)), "the high watermark moved");
        assert!(session.must_show(&topic, 2, shown(10, true)), "there are records");
        let error = Shown { is_remarkable: true, ..shown(-1, false) };
        assert!(session.must_show(&topic, 0, error) && session.must_show(&topic, 0, error), "errors always");
        assert!(session.must_show(&topic, 0, shown(10, false)), "and the recovery from one");
    }

    #[test]
    fn a_partition_with_records_goes_to_the_end() {
        let sessions = FetchSessions::new(10);
        let id = begin(&sessions, 3, NOW);
        let session = session(open(&sessions, request(id, 1), &[], &[]).unwrap());
        let mut session = session.lock().unwrap();
        session.must_show(&TopicRef::Name("events".into()), 0, shown(12, true));
        let order: Vec<_> = session.wanted().map(|wanted| wanted.partition).collect();
        assert_eq!(order, [1, 2, 0]);
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
