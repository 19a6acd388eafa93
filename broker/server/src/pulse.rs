//! Tells the thread that watches appends that there are some, so that it sleeps while there are none.
//!
//! `append_mode.rs` beats at each append, `append_watch.rs` waits. It knows neither appends nor directories.

use std::{sync::PoisonError, time::Duration};

use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering, fence};

/// Between who appends and who watches.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// Whether an append began since the last look.
    beat: AtomicBool,
    is_awake: AtomicBool,
    is_stopped: Mutex<bool>,
    changed: Condvar,
}

impl Pulse {
    /// An append begins. Costs two looks into memory, but for the first after a while.
    pub(crate) fn beat(&self) {
        self.beat.store(true, Ordering::Release);
        // Pairs with the one in `doze`: one of the two sees what the other wrote.
        fence(Ordering::SeqCst);
        if !self.is_awake.load(Ordering::Acquire) && !self.is_awake.swap(true, Ordering::AcqRel) {
            // Under the lock, or the thread could go to sleep in between.
            drop(self.lock());
            self.changed.notify_all();
        }
    }

    /// Whether an append began since the last time that it was asked.
    pub(crate) fn take_beat(&self) -> bool {
        self.beat.swap(false, Ordering::AcqRel)
    }

    /// The next [`wait`](Self::wait) is until an append begins, unless one has begun.
    pub(crate) fn doze(&self) {
        self.is_awake.store(false, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.beat.load(Ordering::Acquire) {
            self.is_awake.store(true, Ordering::Release);
        }
    }

    /// Until it is time for the next look, or, after [`doze`](Self::doze), until an append begins. False once it is stopped.
    pub(crate) fn wait(&self, look: Duration) -> bool {
        let is_stopped = self.lock();
        let is_stopped = if self.is_awake.load(Ordering::Acquire) {
            if *is_stopped {
                return false;
            }
            self.changed.wait_timeout(is_stopped, look).unwrap_or_else(PoisonError::into_inner).0
        } else {
            let mut is_stopped = is_stopped;
            while !*is_stopped && !self.is_awake.load(Ordering::Acquire) {
                is_stopped = self.changed.wait(is_stopped).unwrap_or_else(PoisonError::into_inner);
            }
            is_stopped
        };
        !*is_stopped
    }

    /// Ends whoever waits.
    pub(crate) fn stop(&self) {
        *self.lock() = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
