//! The settings of a topic that its logs act on.

/// What a log needs of its topic's configuration; the names are the configuration keys'. Replaced as a whole when the
/// configuration changes.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// `file.delete.delay.ms`: how long a deleted segment's file stays under `.deleted`.
    pub file_delete_delay_ms: i64,
    /// `producer.id.expiration.ms` (of the broker): how long a silent producer's state is kept.
    pub producer_id_expiration_ms: i64,
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
            file_delete_delay_ms: 60_000,
            producer_id_expiration_ms: 86_400_000,
        }
    }
}
