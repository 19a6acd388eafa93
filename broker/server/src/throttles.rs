//! How fast out-of-sync replicas are replicated (KIP-73): what this broker gives as a leader, and what it takes as a follower.
//!
//! `partitions/applying.rs` sets the rates as the metadata has them. Reads for followers and fetchers ask before they give or take
//! records of a throttled replica, and count what they gave or took. The rules are in `gregor_replication`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use gregor_config::{BrokerConfig, ReplicationConfig};
use gregor_metadata::{ConfigResource, Image, ResourceType};
use gregor_replication::ReplicationQuota;
use gregor_types::{BrokerId, Timestamp};

const LEADER_RATE: &str = "leader.replication.throttled.rate";
const FOLLOWER_RATE: &str = "follower.replication.throttled.rate";

/// Both quotas of a broker.
#[derive(Debug)]
pub(crate) struct Throttles {
    /// What it gives as a leader.
    pub(crate) leader: Throttle,
    /// What it takes as a follower.
    pub(crate) follower: Throttle,
}

/// One quota.
#[derive(Debug)]
pub(crate) struct Throttle(Mutex<ReplicationQuota>);

impl Throttles {
    /// Nothing is limited yet.
    pub(crate) fn new(config: &BrokerConfig) -> Self {
        let config = ReplicationConfig::of(config);
        let throttle =
            || Throttle(Mutex::new(ReplicationQuota::new(config.quota_samples, config.quota_sample_seconds)));
        Self { leader: throttle(), follower: throttle() }
    }

    /// Takes the rates that are set for this broker, else for all; these keys are in no `server.properties`.
    pub(crate) fn set_rates(&self, image: &Image, me: BrokerId) {
        let own = ConfigResource::new(ResourceType::Broker, me.to_string());
        let all = ConfigResource::all_brokers();
        let rate = |key: &str| {
            let set = image.configs().get(&own, key).or_else(|| image.configs().get(&all, key));
            set.and_then(|value| value.trim().parse().ok())
        };
        self.leader.lock().set_rate(rate(LEADER_RATE));
        self.follower.lock().set_rate(rate(FOLLOWER_RATE));
    }
}

impl Throttle {
    /// So many bytes of throttled replicas went through.
    pub(crate) fn record(&self, bytes: u64, now: Timestamp) {
        if bytes > 0 {
            self.lock().record(bytes, now);
        }
    }

    /// Until when nothing more of them may; `None` for now.
    pub(crate) fn exceeded_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.lock().exceeded_until(now)
    }

    fn lock(&self) -> MutexGuard<'_, ReplicationQuota> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
