//! A fetcher's tasks, each of which asks its leader, and has what follows done to the logs: at once where that is a write of a few
//! microseconds, else on a thread that may wait for the disk.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use gregor_messages::{FetchResponse, ListOffsetsResponse, fetch_response::PartitionData};
use gregor_replication::{Fetcher, FollowedPartition, FollowerStep, NextRequest, OffsetLookUp};
use gregor_types::{ErrorCode, PartitionIndex, Timestamp};

use super::{
    Leader, Shared,
    inbox::{Command, Follow, Inbox},
    requests,
};
use crate::{
    clock::{now, steady},
    partition::{NotFollowed, Partition, QUICK_BYTES_MAX},
};

/// Slept at most before the clock is looked at again.
const SLEEP_MAX: Duration = Duration::from_mins(1);

/// How long a leader may wait for records of those that the main task does not follow: newcomers move on when the fetch that they
/// came too late for is answered, and who is behind gets records at once.
const OTHERS_WAIT_MS: i32 = 20;
/// Which of a fetcher's tasks.
#[derive(Debug, Clone)]
pub(super) enum Lane {
    /// It fetches all partitions of the fetcher but those that it lends, and takes them from the others.
    Main,
    /// It fetches those that came while the main one waits for the leader, until that looks.
    Newcomers,
    /// It fetches those that are far behind, for the main one, which has this inbox: who is in sync does not wait for their records.
    Behind(Arc<Inbox>),
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    lane: Lane,
    /// The leader, and where it was when the connection was made.
    leader: Option<(String, Arc<dyn Leader>)>,
}

/// What goes to the thread that may wait, and comes back.
struct Work {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    lane: Lane,
    fetcher: Fetcher,
    partitions: HashMap<FollowedPartition, Follow>,
    /// Partitions whose logs could not be used, and when that is tried again.
    waiting: HashMap<FollowedPartition, (Timestamp, Follow)>,
    /// Partitions that another task follows until they have caught up, and the number that they were lent under.
    lent: HashMap<FollowedPartition, u64>,
    /// Partitions that have caught up and are followed on until the main task takes them.
    offered: HashSet<FollowedPartition>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, inbox: Arc<Inbox>, lane: Lane) -> Self {
        Self { shared, inbox, lane, leader: None }
    }

    /// Runs until the node stops.
    pub(super) async fn run(mut self) {
        let mut stopped = self.shared.stopped.clone();
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => {}
            () = self.work() => tracing::error!("a fetcher ended: a step to a log had panicked"),
        }
    }

    async fn work(&mut self) {
        let mut work = Work {
            shared: Arc::clone(&self.shared),
            inbox: Arc::clone(&self.inbox),
            lane: self.lane.clone(),
            fetcher: Fetcher::new(self.shared.fetcher_config()),
            partitions: HashMap::new(),
            waiting: HashMap::new(),
            lent: HashMap::new(),
            offered: HashSet::new(),
        };
        loop {
            let commands = self.inbox.take();
            if !commands.is_empty() || work.waits_until().is_some_and(|until| until <= steady()) {
                let taken = aside(work, |work| {
                    for command in commands {
                        work.take(command);
                    }
                    work.follow_waiting();
                });
                let Some(back) = taken.await else { return };
                work = back;
            }
            let throttled_until = self.shared.throttles.follower.exceeded_until(steady());
            let back = match work.fetcher.next(throttled_until, steady()) {
                NextRequest::Wait(until) => {
                    self.sleep(until.into_iter().chain(work.waits_until()).min()).await;
                    Some(work)
                }
                NextRequest::LookUp(asked) => self.look_up(work, asked).await,
                NextRequest::Fetch(plan) => {
                    let request = requests::fetch(&self.shared, &plan, self.max_wait_ms());
                    let response = match self.leader() {
                        Some(leader) => leader.fetch(request).await,
                        None => None,
                    };
                    if let Some(response) = response {
                        self.topic_ids_written(&work, &response).await;
                        if work.is_quickly_taken(&response) {
                            work.take_answer(plan.number, &response);
                            Some(work)
                        } else {
                            aside(work, move |work| work.take_answer(plan.number, &response)).await
                        }
                    } else {
                        work.fetcher.on_request_failed(plan.number, steady());
                        Some(work)
                    }
                }
            };
            let Some(back) = back else { return };
            work = back;
        }
    }

    /// Waits until the topics' ids are written of the new partitions that an answer has records for: many at once are faster than
    /// each by its first append.
    async fn topic_ids_written(&self, work: &Work, response: &FetchResponse) {
        let Some(topic_ids) = self.shared.topic_ids.get().filter(|topic_ids| topic_ids.are_awaited()) else { return };
        let is_awaited = |topic_id, answered: &PartitionData| {
            let id = FollowedPartition { topic_id, partition: PartitionIndex(answered.partition_index) };
            let has_records = answered.records.as_ref().is_some_and(|records| !records.is_empty());
            has_records && work.partitions.get(&id).is_some_and(|followed| followed.partition.is_topic_id_awaited())
        };
        let is_any_awaited = || {
            let mut topics = response.responses.iter();
            topics.any(|topic| topic.partitions.iter().any(|answered| is_awaited(topic.topic_id, answered)))
        };
        topic_ids.wait_while(is_any_awaited).await;
    }

    async fn look_up(&mut self, work: Work, asked: Vec<OffsetLookUp>) -> Option<Work> {
        let topic_of = |partition| work.partitions.get(&partition).map(|followed| followed.partition.topic.clone());
        let request = requests::look_up(&self.shared, &asked, topic_of);
        let response = match self.leader() {
            Some(leader) => leader.list_offsets(request).await,
            None => None,
        };
        aside(work, move |work| work.take_looked_up(&asked, response.as_ref())).await
    }

    async fn sleep(&self, until: Option<Timestamp>) {
        let pause = until.map_or(SLEEP_MAX, |until| {
            Duration::from_millis(u64::try_from(until.since(steady())).unwrap_or(0)).min(SLEEP_MAX)
        });
        let _ = tokio::time::timeout(pause, self.inbox.arrival()).await;
    }

    fn max_wait_ms(&self) -> i32 {
        let all = self.shared.config.replica_fetch_wait_max_ms;
        if matches!(self.lane, Lane::Main) { all } else { all.min(OTHERS_WAIT_MS) }
    }

    /// The leader where the metadata says that it is now.
    fn leader(&mut self) -> Option<Arc<dyn Leader>> {
        let address = self.inbox.address()?;
        match &self.leader {
            Some((known, leader)) if *known == address => Some(Arc::clone(leader)),
            _ => {
                let leader = (self.shared.connect)(&address);
                self.leader = Some((address, Arc::clone(&leader)));
                Some(leader)
            }
        }
    }
}

/// Begins the task for the partitions of a fetcher that are far behind.
fn start_for_those_behind(shared: &Arc<Shared>, main: &Arc<Inbox>) -> Arc<Inbox> {
    let inbox = main.beside();
    tokio::spawn(Worker::new(Arc::clone(shared), Arc::clone(&inbox), Lane::Behind(Arc::clone(main))).run());
    inbox
}

/// Runs something where the disk may be waited for; nothing comes back of what panicked.
async fn aside(mut work: Work, act: impl FnOnce(&mut Work) + Send + 'static) -> Option<Work> {
    let done = tokio::task::spawn_blocking(move || {
        act(&mut work);
        work
    });
    done.await.ok()
}

impl Work {
    fn take(&mut self, command: Command) {
        match command {
            Command::Follow(follow) => {
                self.inbox.tell_newcomers(Command::Unfollow(follow.id()));
                self.take_back(follow.id());
                self.follow(follow);
            }
            Command::Return(follow) => {
                // Meanwhile it may be another's, or follow another leadership.
                if self.lent.get(&follow.id()) == Some(&follow.by.number) {
                    self.take_back(follow.id());
                    self.follow(follow);
                }
            }
            Command::Throttle(id, is_throttled) => {
                if self.partitions.contains_key(&id) {
                    self.fetcher.set_throttled(id, is_throttled);
                } else if self.lent.contains_key(&id) {
                    self.inbox.tell_behind(Command::Throttle(id, is_throttled));
                }
            }
            Command::Unfollow(id) => {
                self.take_back(id);
                self.unfollow(id);
            }
        }
    }

    fn follow(&mut self, follow: Follow) {
        let (id, leader_epoch) = (follow.id(), follow.leader_epoch);
        self.waiting.remove(&id);
        self.offered.remove(&id);
        let (log, high_watermark) = match follow.partition.followed_from(follow.by, now()) {
            Ok(followed) => followed,
            // A log that is gone has nothing to follow with; who has it anew is told anew.
            Err(NotFollowed::Over) => return,
            Err(NotFollowed::Yet) => {
                self.unfollow(id);
                let pause = self.shared.config.replica_fetch_backoff_ms;
                self.waiting.insert(id, (steady().plus_ms(pause), follow));
                return;
            }
        };
        let is_throttled = follow.partition.follows_throttled();
        self.partitions.insert(id, follow);
        let step = self.fetcher.follow(id, leader_epoch, log, high_watermark);
        self.fetcher.set_throttled(id, is_throttled);
        self.act(id, step, &[]);
    }

    fn unfollow(&mut self, id: FollowedPartition) {
        self.fetcher.unfollow(id);
        self.partitions.remove(&id);
        self.waiting.remove(&id);
        self.offered.remove(&id);
    }

    /// When a log that could not be used is tried again.
    fn waits_until(&self) -> Option<Timestamp> {
        self.waiting.values().map(|(until, _)| *until).min()
    }

    fn follow_waiting(&mut self) {
        let at = steady();
        let due: Vec<_> =
            self.waiting.extract_if(|_, (until, _)| *until <= at).map(|(_, (_, follow))| follow).collect();
        for follow in due {
            self.follow(follow);
        }
    }

    /// A partition that was lent is not the other task's any more.
    fn take_back(&mut self, id: FollowedPartition) {
        if self.lent.remove(&id).is_some() {
            self.inbox.tell_behind(Command::Unfollow(id));
        }
    }

    /// Whether the partition, of which an answer had so many bytes, is another task's to follow from now on.
    fn is_anothers(&self, id: FollowedPartition, bytes: usize) -> bool {
        let lag = self.fetcher.lag(id);
        match self.lane {
            // Behind what is committed: it is not in sync.
            Lane::Main => bytes > QUICK_BYTES_MAX && lag.is_some_and(|lag| lag > 0) && self.partitions.len() > 1,
            Lane::Behind(_) => lag == Some(0),
            Lane::Newcomers => false,
        }
    }

    fn hand_over(&mut self, id: FollowedPartition) {
        let Some(follow) = self.partitions.get(&id).map(Follow::by_another) else { return };
        match &self.lane {
            Lane::Main => {
                self.lent.insert(id, follow.by.number);
                self.unfollow(id);
                self.inbox.lend(follow, || start_for_those_behind(&self.shared, &self.inbox));
            }
            // The main task takes it when its request, which may wait at the leader for long, is answered. Until then it counts on this one.
            Lane::Behind(main) => {
                if self.offered.insert(id) {
                    main.send(Command::Return(follow));
                }
            }
            Lane::Newcomers => {}
        }
    }

    /// Whether all that an answer asks for is to append a little, where appends are fast. Two threads more would have to wake up
    /// otherwise, which costs more than the append.
    fn is_quickly_taken(&self, response: &FetchResponse) -> bool {
        let mut bytes = 0;
        response.responses.iter().all(|topic| {
            topic.partitions.iter().all(|answered| {
                let answer = requests::answer(answered);
                let id =
                    FollowedPartition { topic_id: topic.topic_id, partition: PartitionIndex(answered.partition_index) };
                bytes += answered.records.as_ref().map_or(0, Bytes::len);
                answer.error == ErrorCode::None
                    && answer.diverging.is_none()
                    && bytes <= QUICK_BYTES_MAX
                    && self.partitions.get(&id).is_none_or(|followed| followed.partition.appends_quickly())
            })
        })
    }

    fn take_answer(&mut self, number: u64, response: &FetchResponse) {
        let partitions = || {
            response.responses.iter().flat_map(|topic| {
                let id = |index| FollowedPartition { topic_id: topic.topic_id, partition: PartitionIndex(index) };
                topic.partitions.iter().map(move |partition| (id(partition.partition_index), partition))
            })
        };
        let error = ErrorCode::from(response.error_code);
        let ids = partitions().map(|(id, _)| id);
        if !self.fetcher.on_fetched(number, error, response.session_id, ids, steady()) {
            return;
        }
        for (id, answered) in partitions() {
            let Some(partition) = self.partition(id) else { continue };
            let answer = requests::answer(answered);
            let step = self.fetcher.on_answer(id, &answer, &*partition, steady());
            let records = answered.records.as_deref().unwrap_or_default();
            if self.fetcher.is_throttled(id) {
                self.shared.throttles.follower.record(records.len() as u64, steady());
            }
            self.act(id, step, records);
            if self.is_anothers(id, records.len()) {
                self.hand_over(id);
            }
        }
    }

    fn take_looked_up(&mut self, asked: &[OffsetLookUp], response: Option<&ListOffsetsResponse>) {
        for asked in asked {
            let Some(partition) = self.partition(asked.partition) else { continue };
            let answer = requests::looked_up(response, Some(&partition.topic), asked);
            let step = self.fetcher.on_looked_up(asked, answer, &*partition, steady());
            self.act(asked.partition, step, &[]);
        }
    }

    fn partition(&self, id: FollowedPartition) -> Option<Arc<Partition>> {
        self.partitions.get(&id).map(|followed| Arc::clone(&followed.partition))
    }

    fn act(&mut self, id: FollowedPartition, step: FollowerStep, records: &[u8]) {
        let Some(Follow { partition, by, .. }) = self.partitions.get(&id) else { return };
        if step == FollowerStep::Nothing {
            return;
        }
        match partition.follow_step(step, *by, records, now()) {
            Ok(log) => {
                self.fetcher.on_log_changed(id, log, steady());
                partition.set_lag(self.fetcher.lag(id));
            }
            Err(failure) => self.fetcher.on_step_failed(id, failure, steady()),
        }
    }
}
