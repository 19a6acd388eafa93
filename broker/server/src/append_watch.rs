//! Watches appends that are under way, so that one that is stuck in the kernel is noticed by somebody.
//!
//! The thread that makes an append inline may be the only one that waits for sockets: while it is stuck, tokio wakes no other.
//! This thread looks every few milliseconds while there are appends, and sleeps while there are none. It hands a stuck
//! directory's appends to their own thread, and wakes another worker of each runtime that makes appends. It makes no append itself.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::runtime::Handle;

use crate::{append_mode::AppendMode, pulse::Pulse};

/// How often it looks, which is what a stuck append may hold up others.
const LOOK: Duration = Duration::from_millis(5);
/// After so many looks without an append it sleeps.
const QUIET_LOOKS: u32 = 40;

/// The runtimes whose tasks make appends.
#[derive(Debug, Default)]
pub(crate) struct WatchedRuntimes(Mutex<Vec<Handle>>);

impl WatchedRuntimes {
    /// One more.
    pub(crate) fn add(&self, runtime: Handle) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(runtime);
    }

    /// Wakes another worker of each.
    pub(crate) fn wake(&self) {
        for runtime in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // Any task will do: the worker that it wakes waits for the sockets afterwards.
            runtime.spawn(async {});
        }
    }
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct AppendWatch {
    pulse: Arc<Pulse>,
    thread: thread::JoinHandle<()>,
}

impl AppendWatch {
    /// Starts the thread for these directories.
    pub(crate) fn start(
        pulse: Arc<Pulse>,
        modes: Vec<Arc<AppendMode>>,
        runtimes: Arc<WatchedRuntimes>,
    ) -> std::io::Result<Self> {
        let watched = Arc::clone(&pulse);
        let thread =
            thread::Builder::new().name("gregor-watch".to_owned()).spawn(move || run(&watched, &modes, &runtimes))?;
        Ok(Self { pulse, thread })
    }

    /// Ends the thread.
    pub(crate) fn stop(self) {
        self.pulse.stop();
        if self.thread.join().is_err() {
            tracing::error!("the watch over appends had panicked");
        }
    }
}

fn run(pulse: &Pulse, modes: &[Arc<AppendMode>], runtimes: &WatchedRuntimes) {
    let mut quiet = 0;
    while pulse.wait(LOOK) {
        if modes.iter().any(AppendMode::is_slow) {
            runtimes.wake();
        }
        let is_busy = pulse.take_beat() || modes.iter().any(|mode| mode.is_under_way());
        quiet = if is_busy { 0 } else { quiet + 1 };
        if quiet == QUIET_LOOKS {
            quiet = 0;
            pulse.doze();
        }
    }
}
