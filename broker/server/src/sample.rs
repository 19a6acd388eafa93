//! Asks the node for the figures that nobody counts as they change, when somebody reads the metrics page.

use crate::{api::Broker, partition::Standing, storage::Directory};

impl Broker {
    /// Sets every gauge that is asked for, not counted.
    pub(crate) fn sample(&self) {
        let sampled = &self.metrics.sampled;
        self.metrics.cleaner.sample();
        let image = self.image();
        let mut total = Totals::default();
        sampled.clear_logs();
        for partition in self.partitions.all() {
            let Some(standing) = partition.standing_unless_stuck() else { continue };
            let bytes = i64::try_from(standing.size).unwrap_or(i64::MAX);
            let (start, end) = (standing.start.value(), standing.end.value());
            sampled.set_log(&partition.topic, partition.index.value(), bytes, start, end);
            total.add(&standing);
        }
        for directory in self.partitions.storage().directories() {
            let path = directory.path.to_string_lossy();
            sampled.set_recovery(&path, &directory.recovery);
            sampled.set_directory(&path, directory.is_failed(), directory.is_cordoned());
        }
        let directories = self.partitions.storage().directories();
        let count = |test: fn(&Directory) -> bool| directories.iter().filter(|one| test(one)).count() as i64;
        sampled.offline_directories.set(count(Directory::is_failed));
        sampled.cordoned_directories.set(count(Directory::is_cordoned));
        sampled.partitions.set(total.partitions);
        sampled.leaders.set(total.leaders);
        sampled.under_replicated.set(total.under_replicated);
        sampled.under_min_isr.set(total.under_min_isr);
        sampled.at_min_isr.set(total.at_min_isr);
        sampled.offline_replicas.set(total.offline);
        self.metrics.replication.set_max_lag(total.max_lag);
        sampled.waiting.set(total.waiting + self.fetch_sessions.sleepers() as i64);
        sampled.topics.set(image.topics().len() as i64);
        let cluster_partitions = image.topics().iter().map(|topic| topic.partition_count() as i64).sum();
        sampled.cluster_partitions.set(cluster_partitions);
        sampled.metadata_offset.set(image.position.last_offset.value());
        sampled.fetch_sessions.set(self.fetch_sessions.len() as i64);
        let groups = self.groups.count();
        sampled.groups.set(groups.groups as i64);
        sampled.groups_empty.set(groups.empty as i64);
        sampled.groups_stable.set(groups.stable as i64);
        sampled.committed_offsets.set(groups.offsets as i64);
        sampled.active_controller.set(i64::from(self.control.is_active_controller()));
        sampled.broker_state.set(i64::from(self.control.broker_state().borrow().value()));
        sampled.request_memory.set(self.request_memory.used() as i64);
    }
}

/// Sums over partitions.
#[derive(Debug, Default)]
struct Totals {
    partitions: i64,
    leaders: i64,
    under_replicated: i64,
    under_min_isr: i64,
    at_min_isr: i64,
    offline: i64,
    waiting: i64,
    max_lag: i64,
}

impl Totals {
    fn add(&mut self, standing: &Standing) {
        self.partitions += 1;
        self.leaders += i64::from(standing.leads);
        self.under_replicated += i64::from(standing.under_replicated);
        self.under_min_isr += i64::from(standing.under_min_isr);
        self.at_min_isr += i64::from(standing.at_min_isr);
        self.offline += i64::from(standing.offline);
        self.waiting += standing.waiting as i64;
        self.max_lag = self.max_lag.max(standing.lag);
    }
}
