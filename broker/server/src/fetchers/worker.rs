//! A fetcher's tasks, each of which asks its leader, and has what follows done to the logs: at once where that is a write of a few
//! microseconds, else on a thread that may wait for the disk.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use gregor_messages::{FetchResponse, ListOffsetsResponse, fetch_response::PartitionData};
use gregor_replication::{Fetcher, FollowedPartition, FollowerStep, NextRequest, OffsetLookUp};
use gregor_types::{ErrorCode, LeaderEpoch, PartitionIndex, Timestamp};
use tokio::sync::Notify;

use super::{Leader, Shared, name, requests};
use crate::{
    clock::{now, steady},
    partition::{Assignment, Partition, QUICK_BYTES_MAX},
};

/// Slept at most before the clock is looked at again.
const SLEEP_MAX: Duration = Duration::from_mins(1);

/// How long a leader may wait for records of newcomers: they move on when the fetch that they came too late for is answered.
const NEWCOMERS_WAIT_MS: i32 = 20;
/// More newcomers than these are no small thing to fetch apart.
const NEWCOMERS_MAX: usize = 500;

/// What a fetcher is told.
#[derive(Debug, Clone)]
pub(super) enum Command {
    Follow(Follow),
    Unfollow(FollowedPartition),
    Throttle(FollowedPartition, bool),
}

/// A partition to follow.
#[derive(Debug, Clone)]
pub(super) struct Follow {
    pub(super) partition: Arc<Partition>,
    pub(super) leader_epoch: LeaderEpoch,
    /// Counts what all fetchers of the broker are given to follow.
    pub(super) number: u64,
}

/// Which of a fetcher's two tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// It fetches all partitions of the fetcher, and takes them from the other.
    Main,
    /// It fetches those that came while the main one waits for the leader, until that looks.
    Newcomers,
}

/// What the fetcher's task has not read yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    post: Mutex<Post>,
    address: Mutex<Option<String>>,
    arrived: Notify,
    /// That of the newcomers' task, once there was one.
    newcomers: OnceLock<Arc<Inbox>>,
}

#[derive(Debug, Default)]
struct Post {
    commands: Vec<Command>,
    /// Whether the task may look again only when a leader has answered.
    is_away: bool,
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
    lane: Lane,
    fetcher: Fetcher,
    partitions: HashMap<FollowedPartition, (Arc<Partition>, Assignment)>,
}

impl Inbox {
    /// Has the partition followed. One that would wait for the fetch under way is fetched apart until that is answered: `start`
    /// begins the task that does so.
    pub(super) fn follow(&self, follow: Follow, start: impl FnOnce(Option<&String>) -> Arc<Self>) {
        let mut post = self.lock();
        if post.is_away && post.commands.len() < NEWCOMERS_MAX {
            // Before the main task can know of it, which has it dropped there again.
            let address = self.address.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let newcomers = self.newcomers.get_or_init(|| start(address.as_ref()));
            newcomers.send(Command::Follow(follow.clone()));
        }
        post.commands.push(Command::Follow(follow));
        drop(post);
        self.arrived.notify_one();
    }

    /// Tells the task, and that of the newcomers.
    pub(super) fn send(&self, command: Command) {
        if let Some(newcomers) = self.newcomers.get() {
            newcomers.send(command.clone());
        }
        self.lock().commands.push(command);
        self.arrived.notify_one();
    }

    pub(super) fn set_address(&self, address: Option<&String>) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address.cloned();
        if let Some(newcomers) = self.newcomers.get() {
            newcomers.set_address(address);
        }
    }

    fn take(&self) -> Vec<Command> {
        let mut post = self.lock();
        post.is_away = true;
        std::mem::take(&mut post.commands)
    }

    fn lock(&self) -> MutexGuard<'_, Post> {
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
            lane: self.lane,
            fetcher: Fetcher::new(self.shared.fetcher_config()),
            partitions: HashMap::new(),
        };
        loop {
            let commands = self.inbox.take();
            if !commands.is_empty() {
                let newcomers = self.inbox.newcomers.get().cloned();
                let take = move |work: &mut Work| {
                    for command in commands {
                        if let (Some(newcomers), Command::Follow(follow)) = (&newcomers, &command) {
                            newcomers.send(Command::Unfollow(name(&follow.partition)));
                        }
                        work.take(command);
                    }
                };
                let taken = aside(work, take);
                let Some(back) = taken.await else { return };
                work = back;
            }
            let throttled_until = self.shared.throttles.follower.exceeded_until(steady());
            let back = match work.fetcher.next(throttled_until, steady()) {
                NextRequest::Wait(until) => {
                    self.sleep(until).await;
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
            has_records && work.partitions.get(&id).is_some_and(|(partition, _)| partition.is_topic_id_awaited())
        };
        let is_any_awaited = || {
            let mut topics = response.responses.iter();
            topics.any(|topic| topic.partitions.iter().any(|answered| is_awaited(topic.topic_id, answered)))
        };
        topic_ids.wait_while(is_any_awaited).await;
    }

    async fn look_up(&mut self, work: Work, asked: Vec<OffsetLookUp>) -> Option<Work> {
        let topic_of = |partition| work.partitions.get(&partition).map(|(partition, _)| partition.topic.clone());
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
        self.inbox.lock().is_away = false;
        // Who comes too late is told at the next turn: the notification is kept.
        let _ = tokio::time::timeout(pause, self.inbox.arrived.notified()).await;
    }

    fn max_wait_ms(&self) -> i32 {
        let all = self.shared.config.replica_fetch_wait_max_ms;
        if self.lane == Lane::Main { all } else { all.min(NEWCOMERS_WAIT_MS) }
    }

    /// The leader where the metadata says that it is now.
    fn leader(&mut self) -> Option<Arc<dyn Leader>> {
        let address = self.inbox.address.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
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
            Command::Follow(Follow { partition, leader_epoch, number }) => {
                let id = name(&partition);
                // The main task's counts for more.
                let by = Assignment(2 * number + u64::from(self.lane == Lane::Main));
                // A log that is gone has nothing to follow with; who has it anew is told anew.
                let Some((log, high_watermark)) = partition.followed_from(by, now()) else { return };
                let is_throttled = partition.follows_throttled();
                self.partitions.insert(id, (partition, by));
                let step = self.fetcher.follow(id, leader_epoch, log, high_watermark);
                self.fetcher.set_throttled(id, is_throttled);
                self.act(id, step, &[]);
            }
            Command::Throttle(id, is_throttled) => {
                if self.partitions.contains_key(&id) {
                    self.fetcher.set_throttled(id, is_throttled);
                }
            }
            Command::Unfollow(id) => {
                self.fetcher.unfollow(id);
                self.partitions.remove(&id);
            }
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
                bytes += answered.records.as_ref().map_or(0, |records| records.len());
                answer.error == ErrorCode::None
                    && answer.diverging.is_none()
                    && bytes <= QUICK_BYTES_MAX
                    && self.partitions.get(&id).is_none_or(|(partition, _)| partition.appends_quickly())
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
            let Some((partition, _)) = self.partitions.get(&id).cloned() else { continue };
            let answer = requests::answer(answered);
            let step = self.fetcher.on_answer(id, &answer, &*partition, steady());
            let records = answered.records.as_deref().unwrap_or_default();
            if self.fetcher.is_throttled(id) {
                self.shared.throttles.follower.record(records.len() as u64, steady());
            }
            self.act(id, step, records);
        }
    }

    fn take_looked_up(&mut self, asked: &[OffsetLookUp], response: Option<&ListOffsetsResponse>) {
        for asked in asked {
            let Some((partition, _)) = self.partitions.get(&asked.partition).cloned() else { continue };
            let answer = requests::looked_up(response, Some(&partition.topic), asked);
            let step = self.fetcher.on_looked_up(asked, answer, &*partition, steady());
            self.act(asked.partition, step, &[]);
        }
    }

    fn act(&mut self, id: FollowedPartition, step: FollowerStep, records: &[u8]) {
        let Some((partition, by)) = self.partitions.get(&id) else { return };
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
