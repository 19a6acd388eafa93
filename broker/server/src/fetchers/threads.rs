//! The threads that fetchers run on, apart from those that serve clients: neither waits for the other, and an answer of a leader
//! wakes one thread, which appends it and asks for more.
//!
//! They begin with the first partition that is followed: a broker that follows none has none of them.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    thread::available_parallelism,
};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::append_watch::WatchedRuntimes;

/// A thread for so many processors, so that what clients ask for has the others.
const PROCESSORS_PER_THREAD: usize = 4;
const THREADS_MAX: usize = 8;
/// One that makes an append which gets stuck leaves another to wait for the sockets.
const THREADS_MIN: usize = 2;
/// Calls that wait for the disk at a time.
const BLOCKING_THREADS_MAX: usize = 16;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Threads {
    /// `None` where there are none to be had.
    own: OnceLock<Option<Runtime>>,
    /// Where tasks run then.
    others: Handle,
    /// Where the watch over appends finds them.
    watched: OnceLock<Arc<WatchedRuntimes>>,
}

impl Threads {
    /// None yet. Where there are none to be had, tasks run among those of `others`.
    pub(super) fn new(others: Handle) -> Self {
        Self { own: OnceLock::new(), others, watched: OnceLock::new() }
    }

    /// Has the watch over appends know of them, once they begin.
    pub(super) fn set_watched(&self, runtimes: &Arc<WatchedRuntimes>) {
        // There is one for each broker; whoever comes second changes nothing.
        let _ = self.watched.set(Arc::clone(runtimes));
    }

    /// Runs a task on them.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let begin = || {
            let threads = start();
            if let (Some(threads), Some(watched)) = (&threads, self.watched.get()) {
                watched.add(threads.handle().clone());
            }
            threads
        };
        let own = self.own.get_or_init(begin).as_ref();
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
        .worker_threads((processors / PROCESSORS_PER_THREAD).clamp(THREADS_MIN, THREADS_MAX))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("gregor-fetch")
        .enable_all()
        .build();
    threads.inspect_err(|error| tracing::warn!(%error, "no threads for fetchers of their own")).ok()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        time::{Duration, Instant},
    };

    use super::*;

    #[tokio::test]
    async fn a_task_that_is_stuck_leaves_the_others_running_once_the_watch_has_seen_it() {
        let threads = Threads::new(Handle::current());
        let watched = Arc::<WatchedRuntimes>::default();
        threads.set_watched(&watched);
        let turns = Arc::new(AtomicUsize::new(0));
        let turning = Arc::clone(&turns);
        threads.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                turning.fetch_add(1, Ordering::Relaxed);
            }
        });
        let (begun, has_begun) = mpsc::channel();
        let (let_go, stuck) = mpsc::channel::<()>();
        threads.spawn(async move {
            begun.send(()).unwrap();
            // Until the other end is dropped.
            let _ = stuck.recv();
        });
        has_begun.recv().unwrap();
        let (before, deadline) = (turns.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(30));
        while turns.load(Ordering::Relaxed) < before + 10 {
            assert!(Instant::now() < deadline, "nobody looks at the clock");
            watched.wake();
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(let_go);
    }
}
