//! Throttles of replication: which replicas, and how fast (`ReplicationQuotaManager`, KIP-73).
//!
//! A leader asks before it gives a follower records, a fetcher before it asks for them; both count what went through. Only
//! replicas that are out of sync are held back, so a throttle never makes a replica fall out of sync.

use std::collections::VecDeque;

use gregor_types::{BrokerId, PartitionIndex, Timestamp};

/// The value of `leader.replication.throttled.replicas` or `follower.replication.throttled.replicas` of a topic, as it
/// concerns one broker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ThrottledReplicas {
    /// No replica.
    #[default]
    None,
    /// The broker's replicas of these partitions, in order.
    Of(Vec<PartitionIndex>),
    /// All of the topic's.
    All,
}

impl ThrottledReplicas {
    /// Reads `*`, or `partition:broker` separated by commas. What the validator of the key would not let pass is left out.
    pub fn parse(value: &str, broker: BrokerId) -> Self {
        if value.trim() == "*" {
            return Self::All;
        }
        let of_broker = |entry: &str| {
            let (partition, holder) = entry.trim().split_once(':')?;
            let holder = holder.trim().parse::<i32>().ok()?;
            let partition = partition.trim().parse::<i32>().ok()?;
            (holder == broker.value()).then_some(PartitionIndex(partition))
        };
        let mut partitions: Vec<_> = value.split(',').filter_map(of_broker).collect();
        partitions.sort_unstable();
        if partitions.is_empty() { Self::None } else { Self::Of(partitions) }
    }

    /// Whether this partition's replica is throttled.
    pub fn contains(&self, partition: PartitionIndex) -> bool {
        match self {
            Self::None => false,
            Self::Of(partitions) => partitions.binary_search(&partition).is_ok(),
            Self::All => true,
        }
    }
}

/// How much went through within the last samples: `replication.quota.window.num` of `replication.quota.window.size.seconds`
/// each. One for what a broker gives as a leader, one for what it takes as a follower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicationQuota {
    /// When each sample began, and the bytes in it; oldest first, at most `samples_max`.
    samples: VecDeque<(Timestamp, u64)>,
    samples_max: usize,
    sample_ms: i64,
    /// `leader.replication.throttled.rate` or `follower.replication.throttled.rate`; `None` where none is set.
    bytes_per_second: Option<u64>,
}

impl ReplicationQuota {
    /// Nothing went through yet, and nothing is limited.
    pub fn new(samples_max: usize, sample_seconds: u32) -> Self {
        Self {
            samples: VecDeque::new(),
            samples_max: samples_max.max(1),
            sample_ms: i64::from(sample_seconds.max(1)) * 1_000,
            bytes_per_second: None,
        }
    }

    /// The rate was set, changed or removed.
    pub fn set_rate(&mut self, bytes_per_second: Option<u64>) {
        self.bytes_per_second = bytes_per_second;
    }

    /// So many bytes of throttled replicas went through.
    pub fn record(&mut self, bytes: u64, now: Timestamp) {
        self.forget(now);
        match self.samples.back_mut() {
            Some((began, total)) if now.since(*began) < self.sample_ms => *total += bytes,
            _ => {
                if self.samples.len() == self.samples_max {
                    self.samples.pop_front();
                }
                self.samples.push_back((now, bytes));
            }
        }
    }

    /// Until when nothing more may go through; `None` for now. The rate is taken over at least one sample's time.
    pub fn exceeded_until(&mut self, now: Timestamp) -> Option<Timestamp> {
        let rate = self.bytes_per_second?;
        self.forget(now);
        let (oldest, _) = *self.samples.front()?;
        let total: u64 = self.samples.iter().map(|(_, bytes)| bytes).sum();
        let elapsed = now.since(oldest).max(self.sample_ms);
        let allowed = u128::from(rate) * u128::from(elapsed.unsigned_abs());
        if u128::from(total) * 1_000 <= allowed {
            return None;
        }
        // Asked again then, at the latest when the next sample begins: old ones are forgotten meanwhile.
        let needed = if rate == 0 { i64::MAX } else { total.saturating_mul(1_000).div_ceil(rate) as i64 };
        Some(now.plus_ms(needed.saturating_sub(elapsed).clamp(1, self.sample_ms)))
    }

    fn forget(&mut self, now: Timestamp) {
        let span = self.sample_ms * self.samples_max as i64;
        // A clock that went back must not stop replication: what was counted in its future is forgotten too.
        while self.samples.front().is_some_and(|(began, _)| !(0..span).contains(&now.since(*began))) {
            self.samples.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_names_its_throttled_replicas_by_partition_and_broker() {
        let throttled = ThrottledReplicas::parse("2:101,1:102, 0:101", BrokerId(101));
        assert_eq!(throttled, ThrottledReplicas::Of(vec![PartitionIndex(0), PartitionIndex(2)]));
        assert!(throttled.contains(PartitionIndex(2)) && !throttled.contains(PartitionIndex(1)));
        assert!(ThrottledReplicas::parse("*", BrokerId(1)).contains(PartitionIndex(7)));
        assert_eq!(ThrottledReplicas::parse("", BrokerId(1)), ThrottledReplicas::None);
        assert_eq!(ThrottledReplicas::parse("0:2", BrokerId(1)), ThrottledReplicas::None);
    }

    #[test]
    fn a_quota_holds_back_until_its_rate_is_kept_again() {
        let mut quota = ReplicationQuota::new(11, 1);
        let at = |ms: i64| Timestamp(1_000_000 + ms);
        quota.record(5_000, at(0));
        assert_eq!(quota.exceeded_until(at(0)), None, "no rate is set");
        quota.set_rate(Some(1_000));
        assert_eq!(quota.exceeded_until(at(0)), Some(at(1_000)));
        assert_eq!(quota.exceeded_until(at(4_500)), Some(at(5_000)));
        assert_eq!(quota.exceeded_until(at(5_000)), None);
        quota.record(7_000, at(6_000));
        assert!(quota.exceeded_until(at(10_900)).is_some());
        assert!(quota.exceeded_until(at(11_100)).is_some(), "the first sample is forgotten, the second is young");
        assert_eq!(quota.exceeded_until(at(13_000)), None);
    }

    #[test]
    fn a_clock_that_goes_back_stops_nothing() {
        let mut quota = ReplicationQuota::new(11, 1);
        quota.set_rate(Some(1));
        quota.record(1 << 40, Timestamp(1_000_000));
        assert_eq!(quota.exceeded_until(Timestamp(500_000)), None);
    }

    #[test]
    fn a_rate_of_nothing_lets_nothing_more_through() {
        let mut quota = ReplicationQuota::new(2, 1);
        quota.set_rate(Some(0));
        quota.record(1, Timestamp(0));
        assert_eq!(quota.exceeded_until(Timestamp(10)), Some(Timestamp(1_010)));
    }
}
