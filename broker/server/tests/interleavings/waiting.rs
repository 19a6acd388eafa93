//! Waiters against high watermarks that move, and against connections that close.

use std::{sync::Arc, time::Duration};

use gregor_types::Offset;
use loom::{future::block_on, thread};

use crate::{
    check,
    sync::{Instant, Mutex},
    waiters::{Waited, Waiter, WaiterList},
};

pub(crate) const MODELS: &[(&str, fn())] = &[
    ("a_fetch_misses_nothing_that_comes_while_it_registers", fetch),
    ("a_fetch_of_two_partitions_is_woken_by_either", fetch_of_two),
    ("a_produce_wakes_once_both_partitions_are_committed", produce),
    ("a_produce_hears_of_a_lost_leadership_whenever_it_registers", lost_leadership),
    ("a_wake_up_of_the_last_wait_does_not_end_the_next", again),
    ("a_connection_that_closes_leaves_no_waiter_and_wakes_no_less_the_others", closing),
];

/// As much of a partition as waiters see.
#[derive(Default)]
struct Partition(Mutex<State>);

#[derive(Default)]
struct State {
    high_watermark: i64,
    is_led_elsewhere: bool,
    waiters: WaiterList,
}

impl Partition {
    fn new() -> Arc<Self> {
        Arc::default()
    }

    fn high_watermark(&self) -> i64 {
        self.0.lock().unwrap().high_watermark
    }

    fn commit(&self) {
        let mut state = self.0.lock().unwrap();
        state.high_watermark += 1;
        let high_watermark = Offset(state.high_watermark);
        state.waiters.on_high_watermark(high_watermark, 1);
    }

    fn lose_leadership(&self) {
        let mut state = self.0.lock().unwrap();
        state.is_led_elsewhere = true;
        state.waiters.wake_all();
    }

    /// As `partition.rs` does.
    fn wait_for(&self, offset: i64, waiter: &Arc<Waiter>) {
        let mut state = self.0.lock().unwrap();
        if state.is_led_elsewhere || state.high_watermark >= offset {
            waiter.count_down(1);
        } else {
            state.waiters.add_produce(Offset(offset), waiter);
        }
    }

    fn add_fetch(&self, waiter: &Arc<Waiter>) {
        self.0.lock().unwrap().waiters.add_fetch(waiter);
    }

    fn remove(&self, waiter: &Arc<Waiter>) {
        self.0.lock().unwrap().waiters.remove(waiter);
    }

    fn waiting(&self) -> usize {
        self.0.lock().unwrap().waiters.len()
    }
}

fn never() -> Instant {
    Instant::now() + Duration::from_hours(1)
}

fn committed(partitions: &[Arc<Partition>]) -> i64 {
    partitions.iter().map(|partition| partition.high_watermark()).sum()
}

/// As `api/fetch.rs` does: reads, registers, reads again, sleeps, takes itself off and reads again.
fn fetch_until(partitions: &[Arc<Partition>], wanted: i64) {
    let mut kept = None;
    let mut found = committed(partitions);
    while found < wanted {
        let waiter = Waiter::again(&mut kept, (wanted - found) as u32);
        partitions.iter().for_each(|partition| partition.add_fetch(&waiter));
        let before = std::mem::replace(&mut found, committed(partitions));
        waiter.count_down((found - before) as u32);
        if found < wanted {
            assert_eq!(block_on(waiter.wait_until(never())), Waited::Woken);
        }
        partitions.iter().for_each(|partition| partition.remove(&waiter));
        found = committed(partitions);
    }
}

fn fetch() {
    check(false, || {
        let partition = Partition::new();
        let committing = thread::spawn({
            let partition = Arc::clone(&partition);
            move || {
                partition.commit();
                partition.commit();
            }
        });
        fetch_until(&[Arc::clone(&partition)], 2);
        committing.join().unwrap();
        assert_eq!(partition.waiting(), 0);
    });
}

fn fetch_of_two() {
    check(false, || {
        let partitions = [Partition::new(), Partition::new()];
        let committing: Vec<_> = partitions
            .iter()
            .map(|partition| {
                let partition = Arc::clone(partition);
                thread::spawn(move || partition.commit())
            })
            .collect();
        fetch_until(&partitions, 1);
        committing.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(partitions.iter().map(|partition| partition.waiting()).sum::<usize>(), 0);
    });
}

fn produce() {
    check(false, || {
        let partitions = [Partition::new(), Partition::new()];
        let committing: Vec<_> = partitions
            .iter()
            .map(|partition| {
                let partition = Arc::clone(partition);
                thread::spawn(move || partition.commit())
            })
            .collect();
        let waiter = Waiter::new(2);
        partitions.iter().for_each(|partition| partition.wait_for(1, &waiter));
        assert_eq!(block_on(waiter.wait_until(never())), Waited::Woken);
        assert_eq!(committed(&partitions), 2, "not before both");
        committing.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

fn lost_leadership() {
    check(false, || {
        let partition = Partition::new();
        let losing = thread::spawn({
            let partition = Arc::clone(&partition);
            move || partition.lose_leadership()
        });
        let waiter = Waiter::new(1);
        partition.wait_for(1, &waiter);
        assert_eq!(block_on(waiter.wait_until(never())), Waited::Woken);
        losing.join().unwrap();
        assert_eq!(partition.waiting(), 0);
    });
}

fn again() {
    check(false, || {
        let partitions = [Partition::new(), Partition::new()];
        let committing = thread::spawn({
            let partitions = partitions.clone();
            move || {
                partitions[0].commit();
                partitions[1].commit();
            }
        });
        let mut kept = None;
        let first = Waiter::again(&mut kept, 1);
        partitions[0].add_fetch(&first);
        block_on(first.wait_until(Instant::now()));
        partitions[0].remove(&first);
        drop(first);
        let second = Waiter::again(&mut kept, 1);
        partitions[1].wait_for(1, &second);
        assert_eq!(block_on(second.wait_until(never())), Waited::Woken);
        assert_eq!(partitions[1].high_watermark(), 1, "it was the second partition that woke it");
        committing.join().unwrap();
    });
}

fn closing() {
    check(false, || {
        let partition = Partition::new();
        let (closing, other) = (Waiter::new(1), Waiter::new(1));
        partition.wait_for(1, &closing);
        partition.wait_for(1, &other);
        let committing = thread::spawn({
            let partition = Arc::clone(&partition);
            move || partition.commit()
        });
        let connection = thread::spawn({
            let partition = Arc::clone(&partition);
            move || {
                // Its wait is dropped after a turn, as the task of a connection is that closes.
                block_on(closing.wait_until(Instant::now()));
                if !closing.is_done() {
                    partition.remove(&closing);
                }
            }
        });
        assert_eq!(block_on(other.wait_until(never())), Waited::Woken);
        committing.join().unwrap();
        connection.join().unwrap();
        assert_eq!(partition.waiting(), 0);
    });
}
