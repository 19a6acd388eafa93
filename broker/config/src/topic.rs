//! The configuration of one topic, resolved from its own keys and the broker's defaults.

use crate::{
    BrokerConfig,
    key::{Kind, Support},
    tables::topic_key,
    value::{ConfigError, split_list},
};

/// What happens to old segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CleanupPolicy {
    /// Delete segments by age and size.
    pub delete: bool,
    /// Keep the last record of each key.
    pub compact: bool,
}

/// How batches are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "Kafka's names")]
pub enum CompressionType {
    /// As the producer sent them.
    Producer,
    Uncompressed,
    Gzip {
        level: i32,
    },
    Snappy,
    Lz4 {
        level: i32,
    },
    Zstd {
        level: i32,
    },
}

/// Whose clock a record's timestamp is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The broker's, at the append.
    LogAppendTime,
}

/// The effective configuration of a topic's partitions. Times in milliseconds, sizes in bytes; names are Kafka's keys.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "documented in the table, under the key of the same name")]
pub struct TopicConfig {
    pub cleanup_policy: CleanupPolicy,
    pub compression_type: CompressionType,
    pub delete_retention_ms: i64,
    pub file_delete_delay_ms: i64,
    pub flush_messages: i64,
    pub flush_ms: i64,
    pub index_interval_bytes: i32,
    pub max_compaction_lag_ms: i64,
    pub max_decompressed_message_bytes: i32,
    pub max_message_bytes: i32,
    pub message_timestamp_after_max_ms: i64,
    pub message_timestamp_before_max_ms: i64,
    pub message_timestamp_type: TimestampType,
    pub min_cleanable_dirty_ratio: f64,
    pub min_compaction_lag_ms: i64,
    pub min_insync_replicas: i32,
    pub preallocate: bool,
    pub retention_bytes: i64,
    pub retention_ms: i64,
    pub segment_bytes: i32,
    pub segment_index_bytes: i32,
    pub segment_jitter_ms: i64,
    pub segment_ms: i64,
    pub unclean_leader_election_enable: bool,
}

/// The broker keys that a topic key falls back to, in the order in which they count, each with the factor that turns
/// its value into the topic key's unit (`ServerTopicConfigSynonyms`).
pub fn synonyms(topic_key: &str) -> &'static [(&'static str, i64)] {
    const HOUR: i64 = 3_600_000;
    match topic_key {
        "segment.bytes" => &[("log.segment.bytes", 1)],
        "segment.ms" => &[("log.roll.ms", 1), ("log.roll.hours", HOUR)],
        "segment.jitter.ms" => &[("log.roll.jitter.ms", 1), ("log.roll.jitter.hours", HOUR)],
        "segment.index.bytes" => &[("log.index.size.max.bytes", 1)],
        "flush.messages" => &[("log.flush.interval.messages", 1)],
        "flush.ms" => &[("log.flush.interval.ms", 1), ("log.flush.scheduler.interval.ms", 1)],
        "retention.bytes" => &[("log.retention.bytes", 1)],
        "retention.ms" => &[("log.retention.ms", 1), ("log.retention.minutes", 60_000), ("log.retention.hours", HOUR)],
        "max.message.bytes" => &[("message.max.bytes", 1)],
        "max.decompressed.message.bytes" => &[("max.decompressed.message.bytes", 1)],
        "index.interval.bytes" => &[("log.index.interval.bytes", 1)],
        "delete.retention.ms" => &[("log.cleaner.delete.retention.ms", 1)],
        "min.compaction.lag.ms" => &[("log.cleaner.min.compaction.lag.ms", 1)],
        "max.compaction.lag.ms" => &[("log.cleaner.max.compaction.lag.ms", 1)],
        "file.delete.delay.ms" => &[("log.segment.delete.delay.ms", 1)],
        "min.cleanable.dirty.ratio" => &[("log.cleaner.min.cleanable.ratio", 1)],
        "cleanup.policy" => &[("log.cleanup.policy", 1)],
        "unclean.leader.election.enable" => &[("unclean.leader.election.enable", 1)],
        "min.insync.replicas" => &[("min.insync.replicas", 1)],
        "compression.type" => &[("compression.type", 1)],
        "compression.gzip.level" => &[("compression.gzip.level", 1)],
        "compression.lz4.level" => &[("compression.lz4.level", 1)],
        "compression.zstd.level" => &[("compression.zstd.level", 1)],
        "preallocate" => &[("log.preallocate", 1)],
        "message.timestamp.type" => &[("log.message.timestamp.type", 1)],
        "message.timestamp.before.max.ms" => &[("log.message.timestamp.before.max.ms", 1)],
        "message.timestamp.after.max.ms" => &[("log.message.timestamp.after.max.ms", 1)],
        "local.retention.ms" => &[("log.local.retention.ms", 1)],
        "local.retention.bytes" => &[("log.local.retention.bytes", 1)],
        "remote.copy.lag.ms" => &[("log.remote.copy.lag.ms", 1)],
        "remote.copy.lag.bytes" => &[("log.remote.copy.lag.bytes", 1)],
        _ => &[],
    }
}

/// Whether a topic may be given this value, as CreateTopics and IncrementalAlterConfigs ask.
pub fn validate_topic_config(key: &str, value: &str) -> Result<(), ConfigError> {
    let row = topic_key(key).ok_or_else(|| ConfigError::UnknownTopicKey(key.to_owned()))?;
    row.check(value)?;
    match row.support {
        Support::Refused if row.default != Some(value.trim()) => Err(ConfigError::NotServed {
            key: key.to_owned(),
            value: row.shown(value),
            why: row.documentation,
            default: row.default.unwrap_or("unset"),
        }),
        _ => Ok(()),
    }
}

impl TopicConfig {
    /// The effective configuration: `overrides` looks a topic key up, else the broker's synonyms count, else the default.
    /// A stored value that does not parse (a newer Kafka may have allowed it) counts as absent.
    pub fn resolve<'a>(broker: &'a BrokerConfig, overrides: impl Fn(&str) -> Option<&'a str>) -> Self {
        let text = |key: &str| -> String { Self::effective(broker, key, &overrides).unwrap_or_default() };
        let long = |key: &str| -> i64 { text(key).trim().parse().unwrap_or_default() };
        let int = |key: &str| -> i32 { text(key).trim().parse().unwrap_or_default() };
        let boolean = |key: &str| text(key).trim().eq_ignore_ascii_case("true");
        let policy = text("cleanup.policy");
        Self {
            cleanup_policy: CleanupPolicy {
                delete: split_list(&policy).any(|word| word == "delete"),
                compact: split_list(&policy).any(|word| word == "compact"),
            },
            compression_type: match text("compression.type").trim() {
                "uncompressed" => CompressionType::Uncompressed,
                "gzip" => CompressionType::Gzip { level: int("compression.gzip.level") },
                "snappy" => CompressionType::Snappy,
                "lz4" => CompressionType::Lz4 { level: int("compression.lz4.level") },
                "zstd" => CompressionType::Zstd { level: int("compression.zstd.level") },
                _ => CompressionType::Producer,
            },
            delete_retention_ms: long("delete.retention.ms"),
            file_delete_delay_ms: long("file.delete.delay.ms"),
            flush_messages: long("flush.messages"),
            flush_ms: long("flush.ms"),
            index_interval_bytes: int("index.interval.bytes"),
            max_compaction_lag_ms: long("max.compaction.lag.ms"),
            max_decompressed_message_bytes: int("max.decompressed.message.bytes"),
            max_message_bytes: int("max.message.bytes"),
            message_timestamp_after_max_ms: long("message.timestamp.after.max.ms"),
            message_timestamp_before_max_ms: long("message.timestamp.before.max.ms"),
            message_timestamp_type: match text("message.timestamp.type").trim() {
                "LogAppendTime" => TimestampType::LogAppendTime,
                _ => TimestampType::CreateTime,
            },
            min_cleanable_dirty_ratio: text("min.cleanable.dirty.ratio").trim().parse().unwrap_or_default(),
            min_compaction_lag_ms: long("min.compaction.lag.ms"),
            min_insync_replicas: int("min.insync.replicas"),
            preallocate: boolean("preallocate"),
            retention_bytes: long("retention.bytes"),
            retention_ms: long("retention.ms"),
            segment_bytes: int("segment.bytes"),
            segment_index_bytes: int("segment.index.bytes"),
            segment_jitter_ms: long("segment.jitter.ms"),
            segment_ms: long("segment.ms"),
            unclean_leader_election_enable: boolean("unclean.leader.election.enable"),
        }
    }

    /// The text of one key in effect for a topic, in the topic key's unit.
    pub fn effective<'a>(
        broker: &BrokerConfig,
        key: &str,
        overrides: &impl Fn(&str) -> Option<&'a str>,
    ) -> Option<String> {
        let row = topic_key(key)?;
        if let Some(value) = overrides(key).filter(|value| row.check(value).is_ok()) {
            return Some(value.to_owned());
        }
        Self::broker_default(broker, key).or_else(|| row.default.map(str::to_owned))
    }

    /// What the broker's configuration says for a topic key, if one of its synonyms is set.
    pub fn broker_default(broker: &BrokerConfig, key: &str) -> Option<String> {
        let row = topic_key(key)?;
        synonyms(key).iter().find_map(|&(synonym, factor)| {
            let value = broker.set_value(synonym)?;
            match (row.kind, factor) {
                (Kind::Long | Kind::Int, 2..) => {
                    let number: i64 = value.trim().parse().ok()?;
                    Some(if number < 0 { number } else { number.saturating_mul(factor) }.to_string())
                }
                _ => Some(value.to_owned()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Properties;

    fn broker(text: &str) -> BrokerConfig {
        let base = "node.id=1\nprocess.roles=broker,controller\ncontroller.listener.names=C\nlisteners=PLAINTEXT://:0,C://:0\n\
                    listener.security.protocol.map=C:PLAINTEXT,PLAINTEXT:PLAINTEXT\ncontroller.quorum.bootstrap.servers=h:1\n";
        BrokerConfig::from_properties(&Properties::parse(&format!("{base}{text}")).unwrap()).unwrap().0
    }

    #[test]
    fn a_topics_own_value_comes_before_the_brokers_and_that_before_the_default() {
        let broker = broker("log.retention.hours=2\nlog.segment.bytes=2097152\n");
        let config = TopicConfig::resolve(&broker, |key| (key == "segment.bytes").then_some("1048576"));
        assert_eq!(config.segment_bytes, 1_048_576);
        assert_eq!(config.retention_ms, 7_200_000);
        assert_eq!(config.max_message_bytes, 1_048_588);
        assert_eq!(config.cleanup_policy, CleanupPolicy { delete: true, compact: false });
    }

    #[test]
    fn milliseconds_count_before_minutes_and_hours() {
        let broker = broker("log.retention.hours=2\nlog.retention.minutes=3\nlog.retention.ms=-1\n");
        assert_eq!(TopicConfig::resolve(&broker, |_| None).retention_ms, -1);
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        let error = validate_topic_config("remote.storage.enable", "true").unwrap_err().to_string();
        assert!(error.contains("remote.storage.enable=true"), "{error}");
        assert_eq!(validate_topic_config("remote.storage.enable", "false"), Ok(()));
        assert!(validate_topic_config("gregor.secret.sauce", "1").is_err());
    }
}
