//! Fetch sessions against partitions that change: while the session is answered, while its request sleeps, while it ends.

use std::{sync::Arc, time::Duration};

use gregor_types::{BrokerId, Offset, Timestamp, TopicId};
use loom::{future::block_on, thread};

use crate::{
    check,
    session::{Session, SessionRequest, Shown, TopicRef, Waiters, WantedPartition},
    sync::{Instant, Mutex},
    waiters::{Waited, Waiter},
};

pub(crate) const MODELS: &[(&str, fn())] = &[
    ("a_change_while_a_session_is_answered_is_told_then_or_next_time", answering),
    ("a_session_that_sleeps_hears_of_a_partition_that_it_did_not_look_at", sleeping),
    ("a_session_that_sleeps_hears_of_either_of_two_partitions", sleeping_on_two),
    ("a_session_that_ends_meets_a_partition_that_changes", ending),
    ("a_later_request_of_a_session_wakes_the_former", taking_over),
    ("a_follower_whose_session_sleeps_hears_of_an_append_to_a_partition_that_it_did_not_look_at", appending),
];

/// As much of a partition as sessions see: its state behind a lock, and behind another one who is to be told.
#[derive(Default)]
struct Partition {
    high_watermark: Mutex<i64>,
    waiters: Waiters,
}

impl Partition {
    fn commit(&self) {
        let mut high_watermark = self.high_watermark.lock().unwrap();
        *high_watermark += 1;
        self.waiters.lock().unwrap().on_high_watermark(Offset(*high_watermark), 1);
    }

    /// An append of a leader, which followers may read at once.
    fn append(&self) {
        let mut end = self.high_watermark.lock().unwrap();
        self.waiters.lock().unwrap().tell_followers(|_, _| {});
        *end += 1;
    }

    fn committed(&self) -> i64 {
        *self.high_watermark.lock().unwrap()
    }
}

fn partitions<const N: usize>() -> [Arc<Partition>; N] {
    std::array::from_fn(|_| Arc::default())
}

fn request(follower: Option<BrokerId>) -> SessionRequest {
    SessionRequest { id: 7, epoch: 0, uses_topic_ids: true, follower, reads_committed: false }
}

/// A session of partitions by their numbers, all of which were at 0 when they were told last.
fn session(partitions: i32) -> Session {
    let mut session = Session::new(7, 1, request(None), Timestamp(0));
    for partition in 0..partitions {
        let wanted = WantedPartition {
            topic: TopicRef::Id(TopicId::ZERO),
            partition,
            fetch_offset: 0,
            current_leader_epoch: -1,
            last_fetched_epoch: -1,
            log_start_offset: -1,
            max_bytes: 1,
        };
        session.put(wanted, Some((0, 0)));
    }
    session
}

/// The partitions that a request looks at.
fn visit(session: &Mutex<Session>, epoch: i32, partitions: &[Arc<Partition>], found: &mut Vec<(u32, i32)>) -> bool {
    session.lock().unwrap().visit(epoch, |visited| {
        found.push((visited.slot, visited.wanted.partition));
        Some(Arc::clone(&partitions[visited.wanted.partition as usize].waiters))
    })
}

/// Begins a request, as `api/fetch.rs` does.
fn begin(session: &Mutex<Session>, epoch: i32, partitions: &[Arc<Partition>]) -> Vec<(u32, i32)> {
    session.lock().unwrap().begin(epoch, false);
    let mut found = Vec::new();
    assert!(visit(session, epoch, partitions, &mut found));
    found
}

/// Reads what is looked at, and tells the client; returns the sum of the high watermarks that it hears of.
fn end(session: &Mutex<Session>, epoch: i32, partitions: &[Arc<Partition>], found: &[(u32, i32)]) -> i64 {
    let read: Vec<_> = found.iter().map(|(slot, index)| (*slot, partitions[*index as usize].committed())).collect();
    let mut told = 0;
    let is_ours = session.lock().unwrap().settle(epoch, |settling| {
        for (slot, high_watermark) in read {
            let shown =
                Shown { high_watermark, log_start: 0, has_records: false, is_remarkable: false, is_exhausted: true };
            told += if settling.must_show(slot, shown) { high_watermark } else { 0 };
        }
    });
    assert!(is_ours);
    told
}

fn commit_elsewhere(partition: &Arc<Partition>) -> thread::JoinHandle<()> {
    let partition = Arc::clone(partition);
    thread::spawn(move || partition.commit())
}

fn answering() {
    check(false, || {
        let partitions = partitions::<1>();
        let session = Mutex::new(session(1));
        let committing = commit_elsewhere(&partitions[0]);
        let found = begin(&session, 2, &partitions);
        let first = end(&session, 2, &partitions, &found);
        committing.join().unwrap();
        let found = begin(&session, 3, &partitions);
        let second = end(&session, 3, &partitions, &found);
        assert_eq!(first + second, 1, "told once");
        let found = begin(&session, 4, &partitions);
        assert_eq!(end(&session, 4, &partitions, &found), 0);
        assert_eq!(begin(&session, 5, &partitions), [], "nothing changes any more");
    });
}

/// Sleeps until it has seen so much committed, as `api/fetch.rs` does: it looks at nothing that does not change.
fn sleep_until(session: &Mutex<Session>, epoch: i32, partitions: &[Arc<Partition>], wanted: i64) {
    let mut found = begin(session, epoch, partitions);
    let seen =
        |found: &[(u32, i32)]| -> i64 { found.iter().map(|(_, index)| partitions[*index as usize].committed()).sum() };
    let mut kept = None;
    while seen(&found) < wanted {
        let waiter = Waiter::again(&mut kept, u32::MAX);
        let changes = session.lock().unwrap().wake_on_change(epoch, &waiter);
        if let Some(changes) = changes {
            assert_eq!(block_on(waiter.wait_until(never())), Waited::Woken);
            changes.forget(&waiter);
        }
        assert!(visit(session, epoch, partitions, &mut found));
    }
    assert_eq!(end(session, epoch, partitions, &found), wanted);
}

fn never() -> Instant {
    Instant::now() + Duration::from_hours(1)
}

/// A session that looks at none of its partitions any more.
fn settled(partitions: &[Arc<Partition>]) -> Mutex<Session> {
    let session = Mutex::new(session(partitions.len() as i32));
    let found = begin(&session, 2, partitions);
    end(&session, 2, partitions, &found);
    session
}

fn sleeping() {
    check(false, || {
        let partitions = partitions::<1>();
        let session = settled(&partitions);
        let committing = commit_elsewhere(&partitions[0]);
        sleep_until(&session, 3, &partitions, 1);
        committing.join().unwrap();
    });
}

fn sleeping_on_two() {
    check(false, || {
        let partitions = partitions::<2>();
        let session = settled(&partitions);
        let committing: Vec<_> = partitions.iter().map(commit_elsewhere).collect();
        sleep_until(&session, 3, &partitions, 2);
        committing.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

fn ending() {
    check(false, || {
        let partitions = partitions::<1>();
        let session = settled(&partitions);
        let committing = commit_elsewhere(&partitions[0]);
        drop(session);
        committing.join().unwrap();
        assert_eq!(Arc::strong_count(&partitions[0].waiters), 1);
    });
}

fn taking_over() {
    check(false, || {
        let partitions = partitions::<1>();
        let session = Arc::new(settled(&partitions));
        assert_eq!(begin(&session, 3, &partitions), []);
        let later = thread::spawn({
            let (session, partitions) = (Arc::clone(&session), partitions.clone());
            move || begin(&session, 4, &partitions).len()
        });
        let waiter = Waiter::new(1);
        let changes = session.lock().unwrap().wake_on_change(3, &waiter);
        if changes.is_some() {
            assert_eq!(block_on(waiter.wait_until(never())), Waited::Woken);
        }
        assert!(!visit(&session, 3, &partitions, &mut Vec::new()));
        assert_eq!(later.join().unwrap(), 0);
    });
}

fn appending() {
    check(false, || {
        let partitions = partitions::<1>();
        let session = settled(&partitions);
        session.lock().unwrap().used(&request(Some(BrokerId(2))), Timestamp(0));
        let appending = thread::spawn({
            let partition = Arc::clone(&partitions[0]);
            move || partition.append()
        });
        sleep_until(&session, 3, &partitions, 1);
        appending.join().unwrap();
    });
}
