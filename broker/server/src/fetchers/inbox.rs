//! What a fetcher's tasks are told: by the partitions' thread, and by each other.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use gregor_replication::FollowedPartition;
use gregor_types::LeaderEpoch;
use tokio::sync::Notify;

use super::name;
use crate::partition::{Assignment, Partition};

/// More newcomers than these are no small thing to fetch apart.
const NEWCOMERS_MAX: usize = 500;

/// What a fetcher's task is told.
#[derive(Debug, Clone)]
pub(super) enum Command {
    /// To follow a partition from now on.
    Follow(Follow),
    /// The partition that was lent has caught up.
    Return(Follow),
    /// To follow it no more.
    Unfollow(FollowedPartition),
    /// Whether it is throttled now.
    Throttle(FollowedPartition, bool),
}

/// A partition to follow.
#[derive(Debug, Clone)]
pub(super) struct Follow {
    pub(super) partition: Arc<Partition>,
    pub(super) leader_epoch: LeaderEpoch,
    pub(super) by: Assignment,
}

/// What a task has not read yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    post: Mutex<Post>,
    /// All tasks of a fetcher share it.
    address: Arc<Mutex<Option<String>>>,
    arrived: Notify,
    /// That of the newcomers' task, once there was one.
    newcomers: OnceLock<Arc<Inbox>>,
    /// That of the task for those that are behind, once there was one.
    behind: OnceLock<Arc<Inbox>>,
}

#[derive(Debug, Default)]
struct Post {
    commands: Vec<Command>,
    /// Whether the task may look again only when a leader has answered.
    is_away: bool,
}

impl Follow {
    /// Which partition it is.
    pub(super) fn id(&self) -> FollowedPartition {
        name(&self.partition)
    }

    /// The same, as another task of the fetcher goes on with it.
    pub(super) fn by_another(&self) -> Self {
        let by = Assignment { turn: self.by.turn + 1, ..self.by };
        Self { by, ..self.clone() }
    }
}

impl Inbox {
    /// That of another task of the same fetcher.
    pub(super) fn beside(&self) -> Arc<Self> {
        Arc::new(Self { address: Arc::clone(&self.address), ..Self::default() })
    }

    /// Has the partition followed. One that would wait for the fetch under way is fetched apart until that is answered: `start`
    /// begins the task that does so.
    pub(super) fn follow(&self, follow: Follow, start: impl FnOnce() -> Arc<Self>) {
        let mut post = self.lock();
        let main = follow.by_another();
        if post.is_away && post.commands.len() < NEWCOMERS_MAX {
            // Before the main task can know of it, which has it dropped there again.
            let newcomers = self.newcomers.get_or_init(start);
            newcomers.send(Command::Follow(follow));
        }
        post.commands.push(Command::Follow(main));
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

    /// Has those that are behind followed by the task for them, which `start` begins.
    pub(super) fn lend(&self, follow: Follow, start: impl FnOnce() -> Arc<Self>) {
        self.behind.get_or_init(start).send(Command::Follow(follow));
    }

    /// Tells the newcomers' task alone.
    pub(super) fn tell_newcomers(&self, command: Command) {
        if let Some(newcomers) = self.newcomers.get() {
            newcomers.send(command);
        }
    }

    /// Tells the task for those that are behind alone.
    pub(super) fn tell_behind(&self, command: Command) {
        if let Some(behind) = self.behind.get() {
            behind.send(command);
        }
    }

    /// Where the leader is.
    pub(super) fn address(&self) -> Option<String> {
        self.address.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_address(&self, address: Option<&String>) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address.cloned();
    }

    /// What it is told; from here on it may be away.
    pub(super) fn take(&self) -> Vec<Command> {
        let mut post = self.lock();
        post.is_away = true;
        std::mem::take(&mut post.commands)
    }

    /// Waits until it is told something. Who comes too late is told at the next turn: the notification is kept.
    pub(super) async fn arrival(&self) {
        self.lock().is_away = false;
        self.arrived.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Post> {
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_begins_while_the_leader_gets_another_address_is_told_of_it() {
        let main = Inbox::default();
        main.set_address(Some(&"before:9092".to_owned()));
        let other = main.beside();
        // It is known to the main task's inbox only afterwards.
        main.set_address(Some(&"after:9092".to_owned()));
        assert_eq!(other.address().as_deref(), Some("after:9092"));
    }
}
