//! Where a log directory's appends are made: in the task of the connection that asks, or, while they are slow, on a writer thread.
//!
//! A buffered write takes microseconds, until the kernel's journal or its limit of dirty pages makes it wait; inline it would
//! then hold up a thread that serves thousands of connections. `partition.rs` times every append here, `connection.rs` hands
//! requests for a slow directory to its thread and awaits them, so that a connection's appends stay in their order. The thread
//! begins with the first slow append and ends once it was calm for a while: a healthy directory costs nothing.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock, PoisonError},
    time::Duration,
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use crate::{
    histogram::DurationHistogram,
    pulse::Pulse,
    sync::{AtomicBool, AtomicU64, Builder, Condvar, Instant, Mutex, MutexGuard, Ordering, thread_number},
};

/// One append that takes longer makes its directory slow at once.
const SLOW_ONCE: Duration = Duration::from_millis(20);
/// Appends that take longer on average make it slow, and keep it so.
const SLOW: Duration = Duration::from_millis(2);
/// An append that has been under way for longer keeps others from beginning inline, and the directory slow. A thread that the
/// scheduler sets aside in the middle of an append for one of its slices takes less.
const STUCK: Duration = Duration::from_millis(10);
/// So long no append may be slow before they are made inline again, at first: the writer thread costs an append two wake-ups,
/// more than the append itself, which a stall now and then is not worth.
const CALM_MIN: Duration = Duration::from_millis(100);
/// It doubles with each time that the directory is slow again soon, up to this.
const CALM_MAX: Duration = Duration::from_secs(4);
/// Soon is before appends were inline for so many times the calm.
const SOON: u32 = 16;
/// The average is over about so many appends.
const AVERAGE_OVER: u64 = 16;
/// Appends under way that are watched: as many as threads that append inline, give or take a few.
const WATCHED: usize = 8;

/// What the writer thread is given.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// One directory's way of appending.
#[derive(Debug)]
pub(crate) struct AppendMode {
    /// Times below are nanoseconds since then; 0 is none.
    base: Instant,
    is_offloaded: AtomicBool,
    average: AtomicU64,
    last_slow: AtomicU64,
    /// When each append that is under way began, one place a thread.
    under_way: [AtomicU64; WATCHED],
    queue: Mutex<Queue>,
    arrived: Condvar,
    metrics: OnceLock<AppendMetrics>,
    /// Who notices an append that is stuck.
    pulse: Arc<Pulse>,
}

/// What is counted of a directory's appends.
#[derive(Debug, Clone)]
pub(crate) struct AppendMetrics {
    /// How long appends took.
    pub(crate) durations: DurationHistogram,
    /// 1 while appends are made on the writer thread.
    pub(crate) offloaded: Gauge,
    /// How often that began.
    pub(crate) offloads: Counter,
}

/// Jobs wait here: at most one for each connection, as each awaits its own.
struct Queue {
    jobs: Vec<Job>,
    has_thread: bool,
    /// How long it must be calm this time.
    calm: Duration,
    /// Since when appends are inline again.
    inline_since: Option<Instant>,
}

/// An append under way; dropped when it is over.
#[derive(Debug)]
pub(crate) struct Timed<'a> {
    mode: &'a Arc<AppendMode>,
    began: Instant,
}

impl AppendMode {
    /// Inline, until an append is slow.
    pub(crate) fn new(pulse: Arc<Pulse>) -> Arc<Self> {
        Arc::new(Self {
            pulse,
            base: Instant::now(),
            is_offloaded: AtomicBool::new(false),
            average: AtomicU64::new(0),
            last_slow: AtomicU64::new(0),
            under_way: Default::default(),
            queue: Mutex::new(Queue { jobs: Vec::new(), has_thread: false, calm: CALM_MIN, inline_since: None }),
            arrived: Condvar::new(),
            metrics: OnceLock::new(),
        })
    }

    /// Counts appends here from now on.
    pub(crate) fn count_in(&self, metrics: AppendMetrics) {
        let _first_wins = self.metrics.set(metrics);
    }

    /// Times an append: from now until the result is dropped.
    pub(crate) fn time(self: &Arc<Self>) -> Timed<'_> {
        let began = Instant::now();
        self.pulse.beat();
        self.under_way[place()].store(self.nanoseconds(began), Ordering::Relaxed);
        Timed { mode: self, began }
    }

    /// Whether a thread that serves connections should not append, or wait for a lock that an append holds.
    pub(crate) fn is_slow(self: &Arc<Self>) -> bool {
        if self.is_offloaded.load(Ordering::Acquire) {
            return true;
        }
        if !self.is_under_way() {
            return false;
        }
        let is_stuck = self.is_stuck();
        if is_stuck {
            self.offload();
        }
        is_stuck
    }

    /// Whether any append is being made inline.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.iter().any(|began| began.load(Ordering::Relaxed) != 0)
    }

    fn is_stuck(&self) -> bool {
        let stuck_since = self.nanoseconds(Instant::now()).saturating_sub(STUCK.as_nanos() as u64);
        self.under_way.iter().any(|began| (1..stuck_since).contains(&began.load(Ordering::Relaxed)))
    }

    /// Has the writer thread do it, in the order in which jobs come; gives it back where appends are made inline again.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Job> {
        let mut queue = self.lock();
        if !queue.has_thread || !self.is_offloaded.load(Ordering::Acquire) {
            return Err(job);
        }
        queue.jobs.push(job);
        self.arrived.notify_one();
        Ok(())
    }

    fn ended(self: &Arc<Self>, took: Duration) {
        self.under_way[place()].store(0, Ordering::Relaxed);
        if let Some(metrics) = self.metrics.get() {
            metrics.durations.observe(took);
        }
        let took_nanoseconds = took.as_nanos() as u64;
        let average = self.average.load(Ordering::Relaxed);
        // Two threads at once may lose one of their figures, which an average can bear.
        let average = average - average / AVERAGE_OVER + took_nanoseconds / AVERAGE_OVER;
        self.average.store(average, Ordering::Relaxed);
        let is_slow_on_average = average >= SLOW.as_nanos() as u64;
        if took >= STUCK || is_slow_on_average {
            self.last_slow.store(self.nanoseconds(Instant::now()), Ordering::Relaxed);
            if took >= SLOW_ONCE || is_slow_on_average {
                self.offload();
            }
        }
    }

    /// Starts the writer thread, unless it runs.
    fn offload(self: &Arc<Self>) {
        let mut queue = self.lock();
        if self.is_offloaded.load(Ordering::Acquire) || queue.has_thread {
            return;
        }
        self.last_slow.store(self.nanoseconds(Instant::now()), Ordering::Relaxed);
        let mode = Arc::clone(self);
        let thread = Builder::new().name("gregor-append".to_owned()).spawn(move || mode.run());
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread for the appends of a slow log directory; they stay where they are");
            return;
        }
        queue.has_thread = true;
        queue.calm = match queue.inline_since.map(|since| since.elapsed()) {
            Some(inline) if inline < queue.calm * SOON => (queue.calm * 2).min(CALM_MAX),
            _ => CALM_MIN,
        };
        self.is_offloaded.store(true, Ordering::Release);
        if let Some(metrics) = self.metrics.get() {
            metrics.offloads.inc();
            metrics.offloaded.set(1);
        }
        tracing::info!("appends to a log directory are slow: they are made on a thread of their own for a while");
    }

    fn run(self: Arc<Self>) {
        loop {
            let mut queue = self.lock();
            let left = self.until_calm(queue.calm);
            if left.is_zero() && self.is_offloaded.swap(false, Ordering::AcqRel) {
                // New appends are made inline from here on; what waits is still done below.
                self.average.store(0, Ordering::Relaxed);
                queue.inline_since = Some(Instant::now());
                if let Some(metrics) = self.metrics.get() {
                    metrics.offloaded.set(0);
                }
                tracing::info!("appends to a log directory are fast again");
            }
            if queue.jobs.is_empty() {
                if !self.is_offloaded.load(Ordering::Acquire) {
                    queue.has_thread = false;
                    return;
                }
                drop(self.arrived.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            let batch = std::mem::take(&mut queue.jobs);
            drop(queue);
            for job in batch {
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!("an append panicked on its directory's thread");
                }
            }
        }
    }

    /// How long it must stay calm before appends are made inline again.
    fn until_calm(&self, calm: Duration) -> Duration {
        if self.is_stuck() {
            return calm;
        }
        let last_slow = Duration::from_nanos(self.last_slow.load(Ordering::Relaxed));
        calm.saturating_sub(self.base.elapsed().saturating_sub(last_slow))
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        (at.saturating_duration_since(self.base).as_nanos() as u64).max(1)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.mode.ended(self.began.elapsed());
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} jobs", self.jobs.len())
    }
}

/// This thread's place among those that are watched. Two may share one: then one of two stuck appends is not seen.
fn place() -> usize {
    thread_number() % WATCHED
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_slow_append_moves_the_next_ones_to_a_thread_that_keeps_their_order() {
        let mode = AppendMode::new(Arc::default());
        assert!(!mode.is_slow());
        assert!(mode.submit(Box::new(|| {})).is_err(), "inline as long as appends are fast");
        mode.ended(Duration::from_micros(50));
        assert!(!mode.is_slow());
        mode.ended(SLOW_ONCE);
        assert!(mode.is_slow());
        let (sender, done) = mpsc::channel();
        for number in 0..100 {
            let sender = sender.clone();
            assert!(mode.submit(Box::new(move || sender.send(number).unwrap())).is_ok());
        }
        let order: Vec<i32> = done.iter().take(100).collect();
        assert!(order.is_sorted());
    }

    #[test]
    fn many_that_are_a_little_slow_count_as_one_that_is_very_slow() {
        let mode = AppendMode::new(Arc::default());
        (0..5).for_each(|_| mode.ended(SLOW));
        assert!(!mode.is_slow());
        (0..200).for_each(|_| mode.ended(SLOW * 2));
        assert!(mode.is_slow());
    }

    #[test]
    fn a_directory_that_is_slow_again_soon_has_to_be_calm_for_longer() {
        let mode = AppendMode::new(Arc::default());
        let mut calms = Vec::new();
        for _ in 0..3 {
            mode.ended(SLOW_ONCE);
            assert!(mode.is_slow());
            calms.push(mode.lock().calm);
            let deadline = std::time::Instant::now() + Duration::from_secs(30);
            while mode.lock().has_thread {
                assert!(std::time::Instant::now() < deadline, "it does not become calm");
                std::thread::yield_now();
            }
            assert!(!mode.is_slow());
        }
        assert_eq!(calms, [CALM_MIN, CALM_MIN * 2, CALM_MIN * 4]);
    }

    #[test]
    fn one_that_a_scheduler_could_have_set_aside_does_not_keep_it_slow() {
        let mode = AppendMode::new(Arc::default());
        mode.ended(SLOW_ONCE);
        let slow_since = mode.last_slow.load(Ordering::Relaxed);
        mode.average.store(0, Ordering::Relaxed);
        mode.ended(SLOW * 2);
        assert_eq!(mode.last_slow.load(Ordering::Relaxed), slow_since);
        mode.ended(STUCK);
        assert!(mode.last_slow.load(Ordering::Relaxed) > slow_since);
    }

    #[test]
    fn an_append_that_is_stuck_keeps_others_from_beginning() {
        let mode = AppendMode::new(Arc::default());
        let began = mode.nanoseconds(Instant::now());
        mode.under_way[0].store(began, Ordering::Relaxed);
        while mode.base.elapsed() <= STUCK * 2 {
            std::thread::yield_now();
        }
        assert!(mode.is_slow());
    }

    #[test]
    fn a_job_that_panics_takes_nobody_with_it() {
        let mode = AppendMode::new(Arc::default());
        mode.ended(SLOW_ONCE);
        assert!(mode.submit(Box::new(|| panic!("as a test"))).is_ok());
        let (sender, done) = mpsc::channel();
        assert!(mode.submit(Box::new(move || sender.send(()).unwrap())).is_ok());
        done.recv_timeout(Duration::from_secs(30)).unwrap();
    }
}
