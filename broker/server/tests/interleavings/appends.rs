//! The switch of a directory's appends to their own thread and back, and the watch over appends.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use gregor_types::Offset;
use loom::{
    future::block_on,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::{
    append_mode::{AppendMode, Job},
    check,
    pulse::Pulse,
    sync::{Mutex, Notify, advance},
    waiters::{Waiter, WaiterList},
};

pub(crate) const MODELS: &[(&str, fn())] = &[
    ("an_append_that_the_thread_took_is_made", taken),
    ("each_append_is_made_once_while_the_mode_switches_back", switching_back),
    ("a_connection_that_closes_while_its_append_is_made_elsewhere_leaves_no_waiter", closing),
    ("an_append_wakes_the_watch_that_goes_to_sleep", dozing),
];

/// Long enough for any append to count as slow, and for any directory to be calm again.
const LONG: Duration = Duration::from_secs(10);

/// A directory that has just become slow; its thread runs.
fn slow() -> Arc<AppendMode> {
    let mode = AppendMode::new(Arc::new(Pulse::default()));
    be_slow(&mode);
    mode
}

fn be_slow(mode: &Arc<AppendMode>) {
    let timed = mode.time();
    advance(LONG);
    drop(timed);
}

/// As `api/produce.rs` does: what the thread does not take is done here.
fn submit(mode: &AppendMode, job: Job) {
    if let Err(job) = mode.submit(job) {
        job();
    }
}

fn taken() {
    // No wait of the thread ends by itself: it must be notified.
    check(false, || {
        let mode = slow();
        let done = Arc::new(Notify::new());
        let job = Box::new({
            let done = Arc::clone(&done);
            move || {
                // Calm enough for the thread to end.
                advance(LONG);
                done.notify_one();
            }
        });
        assert!(mode.submit(job).is_ok(), "the thread runs");
        block_on(done.notified());
    });
}

fn switching_back() {
    check(true, || {
        let mode = slow();
        let made = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let append = |number: usize| {
            let (mode, made) = (Arc::clone(&mode), Arc::clone(&made));
            move || {
                let done = Arc::new(Notify::new());
                let told = Arc::clone(&done);
                let job = Box::new(move || {
                    made[number].fetch_add(1, Ordering::Relaxed);
                    told.notify_one();
                });
                submit(&mode, job);
                // A job that is left in the queue for ever is a deadlock here.
                block_on(done.notified());
            }
        };
        let other = thread::spawn(append(1));
        append(0)();
        other.join().unwrap();
        assert_eq!(made.each_ref().map(|made| made.load(Ordering::Relaxed)), [1, 1]);
    });
}

/// A produce that waits for its commit; takes itself off the list when it is dropped, as `api/produce.rs` has it.
struct Pending {
    waiter: Arc<Waiter>,
    list: Arc<Mutex<WaiterList>>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.waiter.is_done() {
            self.list.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.waiter);
        }
    }
}

/// What a connection awaits of its append: open, or closed with it.
enum Slot {
    Open(Option<Pending>),
    Closed,
}

impl Slot {
    /// Dropped outside the lock where the connection is gone.
    fn put(slot: &Mutex<Self>, pending: Pending) {
        if let Self::Open(place) = &mut *slot.lock().unwrap() {
            *place = Some(pending);
        }
    }
}

fn closing() {
    check(true, || {
        let mode = slow();
        let (list, slot) = (Arc::<Mutex<WaiterList>>::default(), Arc::new(Mutex::new(Slot::Open(None))));
        let done = Arc::new(Notify::new());
        let job = Box::new({
            let (list, slot, done) = (Arc::clone(&list), Arc::clone(&slot), Arc::clone(&done));
            move || {
                let waiter = Waiter::new(1);
                list.lock().unwrap().add_produce(Offset(1), &waiter);
                Slot::put(&slot, Pending { waiter, list });
                done.notify_one();
            }
        });
        let committing = thread::spawn({
            let list = Arc::clone(&list);
            move || list.lock().unwrap().on_high_watermark(Offset(1), 1)
        });
        submit(&mode, job);
        let open = std::mem::replace(&mut *slot.lock().unwrap(), Slot::Closed);
        drop(open);
        committing.join().unwrap();
        block_on(done.notified());
        assert_eq!(list.lock().unwrap().len(), 0);
    });
}

fn dozing() {
    check(true, || {
        let pulse = Arc::new(Pulse::default());
        pulse.beat();
        assert!(pulse.take_beat());
        let watch = thread::spawn({
            let pulse = Arc::clone(&pulse);
            move || {
                // As `append_watch.rs` does once it has seen no beat for long.
                pulse.doze();
                assert!(pulse.wait(LONG));
            }
        });
        pulse.beat();
        watch.join().unwrap();
    });
}
