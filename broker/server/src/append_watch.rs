//! Watches appends that are under way, so that one that is stuck in the kernel is noticed by somebody.
//!
//! The thread that makes an append inline may be the only one that waits for sockets: while it is stuck, tokio wakes no other.
//! This thread looks every few milliseconds while there are appends, and sleeps while there are none. It hands a stuck
//! directory's appends to their own thread, and wakes another worker of the runtime. It makes no append itself.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::runtime::Handle;

use crate::append_mode::AppendMode;

/// How often it looks, which is what a stuck append may hold up others.
const LOOK: Duration = Duration::from_millis(5);
/// After so many looks without an append it sleeps.
const QUIET_LOOKS: u32 = 40;

/// Tells the thread that appends are made.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// Whether an append began since the last look.
    beat: AtomicBool,
    is_awake: AtomicBool,
    is_stopped: Mutex<bool>,
    changed: Condvar,
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct AppendWatch {
    pulse: Arc<Pulse>,
    thread: thread::JoinHandle<()>,
}

impl Pulse {
    /// An append begins. Costs two looks into memory, but for the first after a while.
    pub(crate) fn beat(&self) {
        self.beat.store(true, Ordering::Release);
        if !self.is_awake.load(Ordering::Acquire) && !self.is_awake.swap(true, Ordering::AcqRel) {
            // Under the lock, or the thread could go to sleep in between.
            drop(self.lock());
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AppendWatch {
    /// Starts the thread for these directories; `runtime` serves the connections.
    pub(crate) fn start(pulse: Arc<Pulse>, modes: Vec<Arc<AppendMode>>, runtime: Handle) -> std::io::Result<Self> {
        let watched = Arc::clone(&pulse);
        let thread =
            thread::Builder::new().name("gregor-watch".to_owned()).spawn(move || run(&watched, &modes, &runtime))?;
        Ok(Self { pulse, thread })
    }

    /// Ends the thread.
    pub(crate) fn stop(self) {
        *self.pulse.lock() = true;
        self.pulse.changed.notify_all();
        if self.thread.join().is_err() {
            tracing::error!("the watch over appends had panicked");
        }
    }
}

fn run(pulse: &Pulse, modes: &[Arc<AppendMode>], runtime: &Handle) {
    let mut quiet = 0;
    loop {
        let is_stopped = pulse.lock();
        let is_stopped = if pulse.is_awake.load(Ordering::Acquire) {
            pulse.changed.wait_timeout(is_stopped, LOOK).unwrap_or_else(PoisonError::into_inner).0
        } else {
            let asleep = |is_stopped: &mut bool| !*is_stopped && !pulse.is_awake.load(Ordering::Acquire);
            pulse.changed.wait_while(is_stopped, asleep).unwrap_or_else(PoisonError::into_inner)
        };
        if *is_stopped {
            return;
        }
        drop(is_stopped);
        if modes.iter().any(AppendMode::is_slow) {
            // Any task will do: the worker that it wakes waits for the sockets afterwards.
            runtime.spawn(async {});
        }
        let is_busy = pulse.beat.swap(false, Ordering::AcqRel) || modes.iter().any(|mode| mode.is_under_way());
        quiet = if is_busy { 0 } else { quiet + 1 };
        if quiet == QUIET_LOOKS {
            quiet = 0;
            pulse.is_awake.store(false, Ordering::Release);
            // An append that began just now may have found it awake.
            if pulse.beat.load(Ordering::Acquire) {
                pulse.is_awake.store(true, Ordering::Release);
            }
        }
    }
}
