//! The settings of a topic that its logs act on.

/// What a log needs of its topic's configuration; the names are the configuration keys'. Replaced as a whole when the
/// configuration changes.
#[derive(Debug, Clone, PartialEq)]
pub struct LogConfig {
    /// `segment.bytes`: a segment is rolled before it would pass this.
    pub segment_bytes: u32,
    /// `segment.ms`: a segment is rolled when its first record is older.
    pub segment_ms: i64,
    /// `segment.jitter.ms`: at most so much is taken off `segment.ms`, by a share that each log has for itself.
    pub segment_jitter_ms: i64,
    /// `segment.index.bytes`: an index file's largest size.
    pub segment_index_bytes: u32,
    /// `index.interval.bytes`: so many bytes of log for each index entry.
    pub index_interval_bytes: u32,
    /// `retention.ms`; -1 for ever.
    pub retention_ms: i64,
    /// `retention.bytes`; -1 without bound.
    pub retention_bytes: i64,
    /// Whether `cleanup.policy` holds `delete`.
    pub delete: bool,
    /// Whether `cleanup.policy` holds `compact`.
    pub compact: bool,
    /// `min.cleanable.dirty.ratio`: the share of a log that was never cleaned above which it is; 0 to 1.
    pub min_cleanable_dirty_ratio: f64,
    /// `min.compaction.lag.ms`: records younger than this are not cleaned.
    pub min_compaction_lag_ms: i64,
    /// `max.compaction.lag.ms`: a record that waits longer is cleaned whatever the ratio is.
    pub max_compaction_lag_ms: i64,
    /// `delete.retention.ms`: how long tombstones and markers stay after their first cleaning.
    pub delete_retention_ms: i64,
    /// `file.delete.delay.ms`: how long a deleted segment's file stays under `.deleted`.
    pub file_delete_delay_ms: i64,
    /// `producer.id.expiration.ms` (of the broker): how long a silent producer's state is kept.
    pub producer_id_expiration_ms: i64,
}

impl LogConfig {
    /// When a segment is rolled for its age: a compacted log rolls in time for the cleaner to keep `max.compaction.lag.ms`.
    pub const fn roll_ms(&self) -> i64 {
        if self.compact && self.max_compaction_lag_ms > 0 && self.max_compaction_lag_ms < self.segment_ms {
            self.max_compaction_lag_ms
        } else {
            self.segment_ms
        }
    }
}

impl Default for LogConfig {
    /// Kafka's defaults.
    fn default() -> Self {
        Self {
            segment_bytes: 1 << 30,
            segment_ms: 604_800_000,
            segment_jitter_ms: 0,
            segment_index_bytes: 10 << 20,
            index_interval_bytes: 4096,
            retention_ms: 604_800_000,
            retention_bytes: -1,
            delete: true,
            compact: false,
            min_cleanable_dirty_ratio: 0.5,
            min_compaction_lag_ms: 0,
            max_compaction_lag_ms: i64::MAX,
            delete_retention_ms: 86_400_000,
            file_delete_delay_ms: 60_000,
            producer_id_expiration_ms: 86_400_000,
        }
    }
}
