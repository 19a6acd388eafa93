//! The threads that fetchers run on, apart from those that serve clients: neither waits for the other, and an answer of a leader
//! wakes one thread, which appends it and asks for more.
//!
//! They begin with the first partition that is followed: a broker that follows none has none of them.

use std::{future::Future, sync::OnceLock, thread::available_parallelism};

use tokio::runtime::{Builder, Handle, Runtime};

/// A thread for so many processors, so that what clients ask for has the others.
const PROCESSORS_PER_THREAD: usize = 4;
const THREADS_MAX: usize = 8;
/// Calls that wait for the disk at a time.
const BLOCKING_THREADS_MAX: usize = 16;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Threads {
    /// `None` where there are none to be had.
    own: OnceLock<Option<Runtime>>,
    /// Where tasks run then.
    others: Handle,
}

impl Threads {
    /// None yet. Where there are none to be had, tasks run among those of `others`.
    pub(super) fn new(others: Handle) -> Self {
        Self { own: OnceLock::new(), others }
    }

    /// Runs a task on them.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let own = self.own.get_or_init(start).as_ref();
        own.map_or(&self.others, Runtime::handle).spawn(task);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Nobody waits for a thread in a task's destructor.
        if let Some(runtime) = self.own.take().flatten() {
            runtime.shutdown_background();
        }
    }
}

fn start() -> Option<Runtime> {
    let processors = available_parallelism().map_or(1, usize::from);
    let threads = Builder::new_multi_thread()
        .worker_threads((processors / PROCESSORS_PER_THREAD).clamp(1, THREADS_MAX))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("gregor-fetch")
        .enable_all()
        .build();
    threads.inspect_err(|error| tracing::warn!(%error, "no threads for fetchers of their own")).ok()
}
