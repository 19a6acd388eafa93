//! A topic's configuration in the shapes that its partitions act on: the log's, the validation's, the leader's.
//!
//! Made by `partitions.rs` whenever the image says that a configuration changed; a partition swaps it as a whole.

use std::sync::Arc;

use gregor_config::{
    BrokerConfig, CompressionType as ConfigCompression, TimestampType as ConfigTimestamps, TopicConfig,
};
use gregor_log::LogConfig;
use gregor_metadata::{ConfigResource, Image};
use gregor_replication::{ReplicationLimits, ThrottledReplicas};
use gregor_types::KString;
use gregor_wire::{
    batch::{ProduceRules, TimestampType, TopicCompression},
    compression::{Compression, CompressionType},
};

/// What a topic's partitions act on.
#[derive(Debug)]
pub struct TopicSettings {
    /// The log's part.
    pub log: Arc<LogConfig>,
    /// What produced batches must be like.
    pub rules: ProduceRules,
    /// The leader's part.
    pub limits: ReplicationLimits,
    /// The replicas here that give throttled as leaders, and those that follow throttled.
    pub throttled: Throttled,
    /// `flush.messages`: so many records are appended before a sync; at 1 nothing unsynced is acknowledged.
    pub flush_messages: i64,
    /// `flush.ms`: no record waits longer for a sync.
    pub flush_ms: i64,
    /// `cleanup.policy` allows `DeleteRecords`.
    pub deletes_records: bool,
}

/// Which replicas of a topic on this broker are throttled while they are out of sync, or while their followers are (KIP-73).
#[derive(Debug, Default)]
pub struct Throttled {
    /// `leader.replication.throttled.replicas`.
    pub leaders: ThrottledReplicas,
    /// `follower.replication.throttled.replicas`.
    pub followers: ThrottledReplicas,
}

impl TopicSettings {
    /// The settings of a topic at an image.
    pub fn of(topic: &str, broker: &BrokerConfig, image: &Image) -> Arc<Self> {
        let resource = ConfigResource::topic(topic);
        let configs = image.configs();
        let config = TopicConfig::resolve(broker, |key| configs.get(&resource, key).map(KString::as_str));
        let throttled = |key: &str| {
            let value = configs.get(&resource, key).map(KString::as_str);
            value.map_or(ThrottledReplicas::None, |value| ThrottledReplicas::parse(value, broker.node_id))
        };
        let throttled = Throttled {
            leaders: throttled("leader.replication.throttled.replicas"),
            followers: throttled("follower.replication.throttled.replicas"),
        };
        Arc::new(Self { throttled, ..Self::from_config(&config, broker) })
    }

    /// Whether an acknowledgement waits for the disk.
    pub fn syncs_before_acknowledging(&self) -> bool {
        self.flush_messages == 1
    }

    fn from_config(config: &TopicConfig, broker: &BrokerConfig) -> Self {
        let unsigned = |number: i32| u32::try_from(number).unwrap_or(0);
        let size = |number: i32| usize::try_from(number).unwrap_or(0);
        let log = LogConfig {
            segment_bytes: unsigned(config.segment_bytes),
            segment_ms: config.segment_ms,
            segment_jitter_ms: config.segment_jitter_ms,
            segment_index_bytes: unsigned(config.segment_index_bytes),
            index_interval_bytes: unsigned(config.index_interval_bytes),
            retention_ms: config.retention_ms,
            retention_bytes: config.retention_bytes,
            delete: config.cleanup_policy.delete,
            compact: config.cleanup_policy.compact,
            min_cleanable_dirty_ratio: config.min_cleanable_dirty_ratio,
            min_compaction_lag_ms: config.min_compaction_lag_ms,
            max_compaction_lag_ms: config.max_compaction_lag_ms,
            delete_retention_ms: config.delete_retention_ms,
            file_delete_delay_ms: config.file_delete_delay_ms,
            producer_id_expiration_ms: broker.producer_id_expiration_ms,
        };
        let log_append_time = config.message_timestamp_type == ConfigTimestamps::LogAppendTime;
        let rules = ProduceRules {
            max_message_bytes: size(config.max_message_bytes),
            timestamp_type: if log_append_time { TimestampType::LogAppendTime } else { TimestampType::CreateTime },
            timestamp_before_max_ms: config.message_timestamp_before_max_ms,
            timestamp_after_max_ms: config.message_timestamp_after_max_ms,
            compacted: config.cleanup_policy.compact,
            compression: compression(config.compression_type),
            zstd_allowed: true,
            decompressed_bytes_max: size(config.max_decompressed_message_bytes),
        };
        Self {
            log: Arc::new(log),
            rules,
            limits: ReplicationLimits {
                min_isr: size(config.min_insync_replicas),
                max_lag_ms: broker.replica_lag_time_max_ms,
            },
            throttled: Throttled::default(),
            flush_messages: config.flush_messages,
            flush_ms: config.flush_ms,
            deletes_records: config.cleanup_policy.delete || !config.cleanup_policy.compact,
        }
    }
}

fn compression(configured: ConfigCompression) -> TopicCompression {
    let fixed = |kind, level| TopicCompression::Fixed(Compression { kind, level });
    match configured {
        ConfigCompression::Producer => TopicCompression::Producer,
        ConfigCompression::Uncompressed => fixed(CompressionType::None, None),
        ConfigCompression::Gzip { level } => fixed(CompressionType::Gzip, Some(level)),
        ConfigCompression::Snappy => fixed(CompressionType::Snappy, None),
        ConfigCompression::Lz4 { level } => fixed(CompressionType::Lz4, Some(level)),
        ConfigCompression::Zstd { level } => fixed(CompressionType::Zstd, Some(level)),
    }
}
