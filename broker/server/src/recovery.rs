//! Opens the logs that have to be checked first, on threads of its own, and hands over each as soon as it is whole.
//!
//! `partitions.rs` starts it once it knows from the first image which logs are this broker's, and serves what comes back. Each
//! directory has `num.recovery.threads.per.data.dir` threads, which end with their work. Coordinators' logs come first, as
//! clients of groups and transactions wait for all of them; then those with the least to check, so that most partitions serve
//! soon and one large log holds up nobody.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use gregor_log::{LogConfig, LogError, PartitionLog};
use gregor_types::{TopicPartition, is_internal_topic};

use crate::{
    clock::now,
    storage::{Directory, FoundLog},
};

/// Bytes that are checked between two looks at whether the node stops.
const STEP_BYTES: u64 = 8 << 20;
/// How often the log says how far a recovery is.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// How far the recovery of a directory is, for the metrics.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    logs: AtomicI64,
    bytes: AtomicI64,
    begun: AtomicBool,
    /// For each thread the segments that are left of the log that it is at.
    segments: Mutex<Vec<i64>>,
    reported: Mutex<Option<Instant>>,
}

/// A log to be checked.
#[derive(Debug)]
pub(crate) struct Job {
    /// The log.
    pub(crate) found: FoundLog,
    /// Its topic's settings.
    pub(crate) config: Arc<LogConfig>,
}

/// A log that is whole.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// Where it lies.
    pub(crate) directory: Arc<Directory>,
    /// The log.
    pub(crate) log: PartitionLog,
    /// What its checkpoint remembers of the high watermark.
    pub(crate) high_watermark: gregor_types::Offset,
    /// Whether it is a copy on its way there from another directory.
    pub(crate) is_future: bool,
}

/// The threads.
#[derive(Debug)]
pub(crate) struct Recovery {
    threads: Vec<thread::JoinHandle<()>>,
}

/// Takes what is whole, and says whether the node stops.
pub(crate) trait Customer: fmt::Debug + Send + Sync {
    /// A log is whole.
    fn recovered(&self, recovered: Recovered);
    /// Whether there is nobody to serve any more.
    fn is_stopping(&self) -> bool;
}

#[derive(Debug)]
struct Queue {
    directory: Arc<Directory>,
    jobs: Mutex<VecDeque<Job>>,
}

impl Recovery {
    /// Starts the threads; each directory's end when its jobs are done.
    pub(crate) fn start(
        jobs: Vec<Job>,
        threads_per_directory: usize,
        customer: &Arc<impl Customer + 'static>,
    ) -> std::io::Result<Self> {
        let mut threads = Vec::new();
        for queue in queues(jobs) {
            let queue = Arc::new(queue);
            let count = threads_per_directory.clamp(1, queue.lock().len().max(1));
            queue.directory.recovery.start(&queue.lock(), count);
            for index in 0..count {
                let (queue, customer) = (Arc::clone(&queue), Arc::clone(customer));
                let run = move || {
                    if let Err(error) = queue.run(index, &*customer) {
                        queue.directory.fail(&error.to_string());
                        queue.lock().clear();
                    }
                };
                threads.push(thread::Builder::new().name("gregor-recovery".to_owned()).spawn(run)?);
            }
        }
        Ok(Self { threads })
    }

    /// Waits for the threads, which look now and then whether their customer is stopping.
    pub(crate) fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a recovery had panicked");
            }
        }
    }
}

/// The jobs of each directory, in their order.
fn queues(jobs: Vec<Job>) -> Vec<Queue> {
    let mut by_directory: HashMap<_, (Arc<Directory>, Vec<Job>)> = HashMap::new();
    for job in jobs {
        let directory = Arc::clone(&job.found.directory);
        by_directory.entry(directory.id).or_insert_with(|| (directory, Vec::new())).1.push(job);
    }
    let queue = |(directory, mut jobs): (_, Vec<Job>)| {
        jobs.sort_by_cached_key(|job| {
            let name = job.found.log.topic_partition();
            (!is_internal_topic(&name.topic), job.found.log.unchecked().bytes, name.clone())
        });
        Queue { directory, jobs: Mutex::new(jobs.into()) }
    };
    by_directory.into_values().map(queue).collect()
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, thread: usize, customer: &impl Customer) -> Result<(), LogError> {
        loop {
            let Some(job) = self.lock().pop_front() else { return Ok(()) };
            if customer.is_stopping() || self.directory.is_failed() {
                return Ok(());
            }
            let name = job.found.log.topic_partition().clone();
            let Some(recovered) = self.recover(job, thread, customer)? else { return Ok(()) };
            self.directory.recovery.finish_log(&self.directory, &name);
            customer.recovered(recovered);
        }
    }

    /// Checks a log to its end; `None` if the node stops before.
    fn recover(&self, job: Job, thread: usize, customer: &impl Customer) -> Result<Option<Recovered>, LogError> {
        let Job { found: FoundLog { directory, mut log, high_watermark, is_future }, config } = job;
        let progress = &self.directory.recovery;
        let unchecked = log.unchecked();
        progress.set_segments(thread, unchecked.segments);
        let mut opening = log.opening(config, now())?;
        let mut left = unchecked.bytes;
        loop {
            let step = opening.step(STEP_BYTES)?;
            let now_left = if step.done { 0 } else { step.remaining_bytes.min(left) };
            progress.take_bytes(left - now_left);
            left = now_left;
            progress.set_segments(thread, step.remaining_segments);
            if step.done {
                return Ok(Some(Recovered { directory, log: opening.finish()?, high_watermark, is_future }));
            }
            progress.report(&self.directory);
            if customer.is_stopping() {
                return Ok(None);
            }
        }
    }
}

impl Progress {
    fn start(&self, jobs: &VecDeque<Job>, threads: usize) {
        let bytes: u64 = jobs.iter().map(|job| job.found.log.unchecked().bytes).sum();
        self.logs.store(jobs.len() as i64, Ordering::Relaxed);
        self.bytes.store(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
        self.begun.store(true, Ordering::Release);
        *self.segments.lock().unwrap_or_else(PoisonError::into_inner) = vec![0; threads];
        *self.reported.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether no log was touched.
    pub(crate) fn has_not_begun(&self) -> bool {
        !self.begun.load(Ordering::Acquire)
    }

    /// Logs that are not whole yet.
    pub(crate) fn remaining_logs(&self) -> i64 {
        self.logs.load(Ordering::Relaxed)
    }

    /// Bytes that are still to be checked, at most.
    pub(crate) fn remaining_bytes(&self) -> i64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// For each thread the segments that are left of its log.
    pub(crate) fn remaining_segments(&self) -> Vec<i64> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_segments(&self, thread: usize, segments: usize) {
        if let Some(of) = self.segments.lock().unwrap_or_else(PoisonError::into_inner).get_mut(thread) {
            *of = segments as i64;
        }
    }

    fn take_bytes(&self, bytes: u64) {
        self.bytes.fetch_sub(i64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }

    fn finish_log(&self, directory: &Directory, name: &TopicPartition) {
        let left = self.logs.fetch_sub(1, Ordering::Relaxed) - 1;
        tracing::debug!(partition = %name, "a log is whole");
        if left == 0 {
            tracing::info!(path = %directory.path.display(), "every log of the directory is whole");
        } else {
            self.report(directory);
        }
    }

    fn report(&self, directory: &Directory) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.is_some_and(|at| at.elapsed() >= REPORT_EVERY) {
            *reported = Some(Instant::now());
            tracing::info!(
                path = %directory.path.display(),
                remaining_logs = self.remaining_logs(),
                remaining_bytes = self.remaining_bytes(),
                "checking logs that were not closed"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn the_page_tells_what_is_left_by_directory_and_by_thread_in_kafkas_names() {
        let metrics = Metrics::new();
        let progress = Progress::default();
        progress.start(&VecDeque::new(), 2);
        progress.logs.store(3, Ordering::Relaxed);
        progress.bytes.store(1_000, Ordering::Relaxed);
        progress.take_bytes(400);
        progress.set_segments(1, 7);
        metrics.sampled.set_recovery("/data", &progress);
        let page = metrics.page();
        for line in [
            "kafka_log_logmanager_remaininglogstorecover{dir=\"/data\"} 3",
            "kafka_log_logmanager_remainingsegmentstorecover{dir=\"/data\",threadnum=\"0\"} 0",
            "kafka_log_logmanager_remainingsegmentstorecover{dir=\"/data\",threadnum=\"1\"} 7",
            "gregor_recovery_remaining_bytes{dir=\"/data\"} 600",
        ] {
            assert!(page.contains(line), "no {line:?} in:\n{page}");
        }
    }
}
