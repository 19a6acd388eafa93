//! The fetchers of a simulated broker: what the server's `fetchers/` does in tasks, in steps.
//!
//! Whom to ask for what, and what to do with the answer, is decided in `gregor_replication::Fetcher`. Its pauses are on the node's clock
//! that nobody sets.

use std::collections::BTreeMap;

use gregor_log::LogError;
use gregor_raft::Nanos;
use gregor_replication::{
    Fetcher, FetcherConfig, FetcherId, FollowedPartition, FollowerLog as _, FollowerStep, NextRequest, OffsetLookUp,
    fetcher_index,
};
use gregor_types::{BrokerEpoch, BrokerId, ErrorCode, LeaderEpoch, Offset, Timestamp};

use super::{
    held::Held,
    letters::{FollowerQuestion, Parts, Purpose, Question},
    replica::Replica,
    replicas::Sent,
};
use crate::clock::{MILLISECOND, SECOND};

/// Slept at most before the clock is looked at again.
const SLEEP_MAX: Nanos = 60 * SECOND;
/// How long a follower waits for an answer before it asks anew.
const PATIENCE: Nanos = 3 * SECOND;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Fetchers {
    me: BrokerId,
    /// How many there are from each leader.
    count: u32,
    config: FetcherConfig,
    tasks: BTreeMap<FetcherId, Task>,
}

#[derive(Debug)]
struct Task {
    fetcher: Fetcher,
    wakes_at: Nanos,
    is_asking: bool,
}

/// The time of pauses, in the shape that a fetcher takes it in.
const fn steady(now: Nanos) -> Timestamp {
    Timestamp((now / MILLISECOND) as i64)
}

impl Fetchers {
    pub(super) fn new(me: BrokerId, count: u32, backoff_ms: i64) -> Self {
        let config = FetcherConfig { backoff_ms, first_backoff_ms: 20 };
        Self { me, count, config, tasks: BTreeMap::new() }
    }

    /// A replica follows a leader in an epoch from now on.
    pub(super) fn follow(
        &mut self,
        replica: &mut Replica,
        leader: BrokerId,
        epoch: LeaderEpoch,
        (now, wall): (Nanos, Timestamp),
    ) -> Result<(), LogError> {
        let index = fetcher_index(&replica.topic, replica.id.partition, self.count);
        let id = FetcherId { leader, index };
        for (other, task) in &mut self.tasks {
            if *other != id {
                task.fetcher.unfollow(replica.id);
            }
        }
        let config = self.config;
        let task = self.tasks.entry(id).or_insert_with(|| Task {
            fetcher: Fetcher::new(config),
            wakes_at: now,
            is_asking: false,
        });
        task.wakes_at = now;
        replica.sync_before_following()?;
        let (position, high_watermark) = (replica.position(), replica.high_watermark());
        let step = task.fetcher.follow(replica.id, epoch, position, high_watermark);
        task.act(replica, step, &[], (now, wall))
    }

    /// Nobody follows this partition here any more.
    pub(super) fn unfollow(&mut self, partition: FollowedPartition) {
        for task in self.tasks.values_mut() {
            task.fetcher.unfollow(partition);
        }
    }

    /// What is to be sent now.
    pub(super) fn ask(&mut self, broker_epoch: BrokerEpoch, now: Nanos, sent: &mut Vec<Sent>) {
        let replica = self.me;
        for (id, task) in &mut self.tasks {
            if task.is_asking || task.wakes_at > now {
                continue;
            }
            let (question, purpose) = match task.fetcher.next(None, steady(now)) {
                NextRequest::Wait(until) => {
                    let pause = until.map_or(SLEEP_MAX, |until| {
                        u64::try_from(until.since(steady(now))).unwrap_or(0).saturating_mul(MILLISECOND)
                    });
                    task.wakes_at = now + pause.clamp(MILLISECOND, SLEEP_MAX);
                    continue;
                }
                NextRequest::LookUp(asked) => (Question::LookUp(asked.clone()), Purpose::LookUp(*id, asked)),
                NextRequest::Fetch(plan) => {
                    let purpose = Purpose::Fetch(*id, plan.number);
                    (Question::Fetch(FollowerQuestion { replica, broker_epoch, plan }), purpose)
                }
            };
            task.is_asking = true;
            sent.push(Sent { to: id.leader, question, purpose, patience: PATIENCE });
        }
    }

    /// When something is to be sent.
    pub(super) fn next_time(&self) -> Nanos {
        let idle = self.tasks.values().filter(|task| !task.is_asking);
        idle.map(|task| task.wakes_at).min().unwrap_or(Nanos::MAX)
    }

    /// The answer to a fetch; `None` where none came.
    pub(super) fn fetched(
        &mut self,
        id: FetcherId,
        number: u64,
        answer: Option<Result<(i32, Parts), ErrorCode>>,
        held: &mut Held,
        (now, wall): (Nanos, Timestamp),
    ) -> Result<(), LogError> {
        let Some(task) = self.tasks.get_mut(&id) else { return Ok(()) };
        task.is_asking = false;
        task.wakes_at = now;
        let Some(answer) = answer else {
            task.fetcher.on_request_failed(number, steady(now));
            return Ok(());
        };
        let (error, (session, answers)) = match answer {
            Ok(answered) => (ErrorCode::None, answered),
            Err(error) => (error, (0, Vec::new())),
        };
        let names = answers.iter().map(|(partition, ..)| *partition);
        if !task.fetcher.on_fetched(number, error, session, names, steady(now)) {
            return Ok(());
        }
        for (partition, answer, records) in answers {
            let Some(replica) = held.get_mut(partition) else { continue };
            let step = task.fetcher.on_answer(partition, &answer, &*replica, steady(now));
            task.act(replica, step, &records, (now, wall))?;
        }
        Ok(())
    }

    /// The answer to a look-up; `None` where none came.
    pub(super) fn looked_up(
        &mut self,
        id: FetcherId,
        asked: &[OffsetLookUp],
        answer: Option<Vec<Result<Offset, ErrorCode>>>,
        held: &mut Held,
        (now, wall): (Nanos, Timestamp),
    ) -> Result<(), LogError> {
        let Some(task) = self.tasks.get_mut(&id) else { return Ok(()) };
        task.is_asking = false;
        task.wakes_at = now;
        let mut found = answer.into_iter().flatten();
        for asked in asked {
            let found = found.next().unwrap_or(Err(ErrorCode::NetworkException));
            let Some(replica) = held.get_mut(asked.partition) else { continue };
            let step = task.fetcher.on_looked_up(asked, found, &*replica, steady(now));
            task.act(replica, step, &[], (now, wall))?;
        }
        Ok(())
    }
}

impl Task {
    fn act(
        &mut self,
        replica: &mut Replica,
        step: FollowerStep,
        records: &[u8],
        (now, wall): (Nanos, Timestamp),
    ) -> Result<(), LogError> {
        if step == FollowerStep::Nothing {
            return Ok(());
        }
        match replica.follow_step(step, records, wall)? {
            Ok(position) => self.fetcher.on_log_changed(replica.id, position, steady(now)),
            Err(failure) => self.fetcher.on_step_failed(replica.id, failure, steady(now)),
        }
        Ok(())
    }
}
