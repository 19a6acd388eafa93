//! Watches appends that are under way, so that one that is stuck in the kernel is noticed by somebody.
//!
//! The thread that makes an append inline may be the only one that waits for sockets: while it is stuck, tokio wakes no other.
//! This thread looks every few milliseconds while there are appends, and sleeps while there are none. It hands a stuck
//! directory's appends to their own thread, and wakes another worker of the runtime. It makes no append itself.

use std::{sync::Arc, thread, time::Duration};

use tokio::runtime::Handle;

use crate::{append_mode::AppendMode, pulse::Pulse};

/// How often it looks, which is what a stuck append may hold up others.
const LOOK: Duration = Duration::from_millis(5);
/// After so many looks without an append it sleeps.
const QUIET_LOOKS: u32 = 40;

/// The running thread.
#[derive(Debug)]
pub(crate) struct AppendWatch {
    pulse: Arc<Pulse>,
    thread: thread::JoinHandle<()>,
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
        self.pulse.stop();
        if self.thread.join().is_err() {
            tracing::error!("the watch over appends had panicked");
        }
    }
}

fn run(pulse: &Pulse, modes: &[Arc<AppendMode>], runtime: &Handle) {
    let mut quiet = 0;
    while pulse.wait(LOOK) {
        if modes.iter().any(AppendMode::is_slow) {
            // Any task will do: the worker that it wakes waits for the sockets afterwards.
            runtime.spawn(async {});
        }
        let is_busy = pulse.take_beat() || modes.iter().any(|mode| mode.is_under_way());
        quiet = if is_busy { 0 } else { quiet + 1 };
        if quiet == QUIET_LOOKS {
            quiet = 0;
            pulse.doze();
        }
    }
}
