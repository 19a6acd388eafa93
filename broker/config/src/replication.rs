//! How replicas are chosen for consumers, and over which time throttles of replication are measured.

use crate::{BrokerConfig, tables::broker_key};

/// Which replica a leader sends consumers to (KIP-392).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaSelector {
    /// The leader itself.
    Leader,
    /// One in the consumer's rack, if one there is in sync.
    RackAware,
}

/// The keys of replication that only a restart changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicationConfig {
    /// `replica.selector.class`.
    pub selector: ReplicaSelector,
    /// `replication.quota.window.num`: so many samples of what was replicated are remembered.
    pub quota_samples: usize,
    /// `replication.quota.window.size.seconds`: how long each of them is.
    pub quota_sample_seconds: u32,
}

impl ReplicationConfig {
    /// The values in effect.
    pub fn of(broker: &BrokerConfig) -> Self {
        let text = |key: &str| {
            let default = || broker_key(key).and_then(|row| row.default);
            broker.set_value(key).or_else(default).unwrap_or_default().trim().to_owned()
        };
        let is_rack_aware = text("replica.selector.class").ends_with(".RackAwareReplicaSelector");
        Self {
            selector: if is_rack_aware { ReplicaSelector::RackAware } else { ReplicaSelector::Leader },
            quota_samples: text("replication.quota.window.num").parse().unwrap_or_default(),
            quota_sample_seconds: text("replication.quota.window.size.seconds").parse().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Properties;

    fn parse(extra: &str) -> Result<ReplicationConfig, String> {
        let base = "node.id=1\nprocess.roles=broker,controller\ncontroller.listener.names=C\nlisteners=PLAINTEXT://:0,C://:0\n\
                    listener.security.protocol.map=C:PLAINTEXT,PLAINTEXT:PLAINTEXT\n\
                    controller.quorum.bootstrap.servers=h:1\n";
        let properties = Properties::parse(&format!("{base}{extra}")).unwrap();
        let config = BrokerConfig::from_properties(&properties).map_err(|error| error.to_string())?.0;
        Ok(ReplicationConfig::of(&config))
    }

    #[test]
    fn consumers_go_to_leaders_unless_the_selector_of_racks_is_named() {
        let unset = parse("").unwrap();
        assert_eq!((unset.selector, unset.quota_samples, unset.quota_sample_seconds), (ReplicaSelector::Leader, 11, 1));
        let class = "replica.selector.class=org.apache.kafka.common.replica.";
        assert_eq!(parse(&format!("{class}LeaderSelector\n")).unwrap().selector, ReplicaSelector::Leader);
        assert_eq!(parse(&format!("{class}RackAwareReplicaSelector\n")).unwrap().selector, ReplicaSelector::RackAware);
        let refused = parse("replica.selector.class=com.example.Selector\n").unwrap_err();
        assert!(
            refused.contains("replica.selector.class") && refused.contains("RackAwareReplicaSelector"),
            "{refused}"
        );
    }
}
