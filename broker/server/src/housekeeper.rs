//! What a node does now and then: checkpoints, retention, syncs that are due, the removal of deleted folders, another try at
//! replicas that a full disk had no room for.
//!
//! One thread for all of it, which sleeps until the next job is due. It takes a partition's lock for one step at a time, so a
//! partition with much to delete delays no append for long.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use gregor_config::BrokerConfig;
use gregor_log::CheckpointKind;
use gregor_types::Offset;

use crate::{clock::now, partition::Partition, partitions::Partitions};

/// Segments that retention deletes under one hold of the partition's lock.
const SEGMENTS_PER_STEP: usize = 4;
/// How often it is looked for partitions whose `flush.ms` has passed, while any has one.
const FLUSH_CHECK: Duration = Duration::from_secs(1);
/// How often it is looked for topics that have a `flush.ms`.
const LOOK_AROUND: Duration = Duration::from_secs(10);

/// How often it is looked for folders to remove.
const REMOVAL_CHECK: Duration = Duration::from_secs(1);
/// How often replicas are tried again that could not be made.
const RETRY: Duration = Duration::from_secs(5);
/// Between two steps of a removal.
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);

/// The thread, and the way to end it.
#[derive(Debug)]
pub(crate) struct Housekeeper {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: thread::JoinHandle<()>,
}

#[derive(Debug, Clone, Copy)]
enum Job {
    Checkpoint(CheckpointKind),
    Retention,
    Flush,
    RemoveDeleted,
    RetryUnmade,
    DropLaggards,
}

impl Housekeeper {
    /// Starts the thread.
    pub(crate) fn start(partitions: Arc<Partitions>, config: &BrokerConfig) -> std::io::Result<Self> {
        let every = |milliseconds: i64| Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0).max(100));
        let jobs = vec![
            (
                Job::Checkpoint(CheckpointKind::HighWatermark),
                every(config.replica_high_watermark_checkpoint_interval_ms),
            ),
            (Job::Checkpoint(CheckpointKind::RecoveryPoint), every(config.log_flush_offset_checkpoint_interval_ms)),
            (Job::Checkpoint(CheckpointKind::LogStart), every(config.log_flush_start_offset_checkpoint_interval_ms)),
            (Job::Retention, every(config.log_retention_check_interval_ms)),
            (Job::Flush, LOOK_AROUND),
            (Job::RemoveDeleted, REMOVAL_CHECK),
            (Job::RetryUnmade, RETRY),
            // As Kafka does, so that a follower is out at the latest after one and a half times its limit.
            (Job::DropLaggards, every(config.replica_lag_time_max_ms / 2)),
        ];
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("gregor-housekeeper".to_owned())
            .spawn(move || run(&partitions, &jobs, &stopped))?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread after the job that it is at.
    pub(crate) fn stop(self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if self.thread.join().is_err() {
            tracing::error!("the housekeeper had panicked");
        }
    }
}

fn run(partitions: &Partitions, jobs: &[(Job, Duration)], stop: &(Mutex<bool>, Condvar)) {
    let mut due: Vec<(Instant, Job, Duration)> =
        jobs.iter().map(|(job, every)| (Instant::now() + *every, *job, *every)).collect();
    loop {
        let Some(next) = due.iter().map(|(at, ..)| *at).min() else { return };
        let stopped = stop.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sleep = next.saturating_duration_since(Instant::now());
        let (stopped, _) =
            stop.1.wait_timeout_while(stopped, sleep, |stopped| !*stopped).unwrap_or_else(PoisonError::into_inner);
        if *stopped {
            return;
        }
        drop(stopped);
        for (at, job, every) in &mut due {
            if *at <= Instant::now() {
                let sooner = run_job(partitions, *job);
                *at = Instant::now() + sooner.unwrap_or(*every);
            }
        }
    }
}

/// Does a job; says when it wants to be done again, if that is sooner than usual.
fn run_job(partitions: &Partitions, job: Job) -> Option<Duration> {
    match job {
        Job::Checkpoint(kind) => partitions.checkpoint(kind),
        Job::Retention => {
            partitions.all().iter().for_each(|partition| retain(partition));
            partitions.checkpoint(CheckpointKind::LogStart);
        }
        Job::Flush => {
            let timed: Vec<_> = partitions.all().into_iter().filter(|one| one.has_timed_flush()).collect();
            for partition in timed.iter().filter(|one| one.is_flush_due(now())) {
                partition.directory().request_flush(partition);
            }
            return (!timed.is_empty()).then_some(FLUSH_CHECK);
        }
        Job::DropLaggards => partitions.all().iter().for_each(|partition| partition.drop_laggards(now())),
        Job::RetryUnmade => partitions.retry_unmade(),
        Job::RemoveDeleted => {
            // A few files at a time: removing large ones keeps a disk busy.
            return partitions.remove_deleted_step(now()).then_some(REMOVAL_PAUSE);
        }
    }
    None
}

/// Deletes what is too old or too much, a few segments at a time.
fn retain(partition: &Partition) {
    loop {
        let step = partition.with_log(|log, high_watermark| {
            let progress = log.retain(high_watermark, now(), SEGMENTS_PER_STEP)?;
            log.release_files();
            Ok::<_, gregor_log::LogError>((progress, log.start_offset()))
        });
        match step {
            Some(Ok((progress, start))) => {
                if progress.deleted_segments > 0 {
                    tracing::info!(
                        partition = %partition.name(),
                        segments = progress.deleted_segments,
                        log_start_offset = start.value(),
                        "deleted segments"
                    );
                    follow_start(partition, start);
                }
                if !progress.more {
                    return;
                }
            }
            Some(Err(error)) => {
                partition.directory().on_error(&partition.name(), &error);
                return;
            }
            None => return,
        }
    }
}

fn follow_start(partition: &Partition, start: Offset) {
    // Whether this node leads does not matter: a follower has no leader state to tell.
    let _ = partition.with_leader(gregor_types::LeaderEpoch::NONE, |_, leader| {
        leader.on_log_start(start);
        Ok(())
    });
}
