//! What the cleaner of compacted logs may use.

use crate::{BrokerConfig, tables::broker_key};

/// The `log.cleaner.*` keys that are the broker's own; those that topics fall back to are in their configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CleanerConfig {
    /// `log.cleaner.threads`.
    pub threads: usize,
    /// `log.cleaner.backoff.ms`: how long a thread sleeps when no log is due.
    pub backoff_ms: u64,
    /// `log.cleaner.dedupe.buffer.size`: bytes that the maps of keys of all threads may take.
    pub dedupe_buffer_bytes: usize,
    /// `log.cleaner.io.buffer.load.factor`: how full a map may get, 0 to 1.
    pub load_factor: f64,
    /// `log.cleaner.io.max.bytes.per.second`: read and written, by all threads.
    pub io_max_bytes_per_second: f64,
}

impl CleanerConfig {
    /// The values in effect.
    pub fn of(broker: &BrokerConfig) -> Self {
        let text = |key: &str| {
            let default = || broker_key(key).and_then(|row| row.default);
            broker.set_value(key).or_else(default).unwrap_or_default().trim().to_owned()
        };
        let number = |key: &str| text(key).parse::<u64>().unwrap_or_default();
        let size = |key: &str| usize::try_from(number(key)).unwrap_or(usize::MAX);
        let float = |key: &str| text(key).parse::<f64>().unwrap_or_default();
        Self {
            threads: size("log.cleaner.threads"),
            backoff_ms: number("log.cleaner.backoff.ms"),
            dedupe_buffer_bytes: size("log.cleaner.dedupe.buffer.size"),
            load_factor: float("log.cleaner.io.buffer.load.factor"),
            io_max_bytes_per_second: float("log.cleaner.io.max.bytes.per.second"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Properties;

    #[test]
    fn what_is_not_set_is_kafkas_default() {
        let text = "node.id=1\nprocess.roles=broker,controller\ncontroller.listener.names=C\nlisteners=PLAINTEXT://:0,C://:0\n\
                    listener.security.protocol.map=C:PLAINTEXT,PLAINTEXT:PLAINTEXT\n\
                    controller.quorum.bootstrap.servers=h:1\nlog.cleaner.backoff.ms=7\n";
        let broker = BrokerConfig::from_properties(&Properties::parse(text).unwrap()).unwrap().0;
        let config = CleanerConfig::of(&broker);
        assert_eq!((config.threads, config.backoff_ms, config.dedupe_buffer_bytes), (1, 7, 128 << 20));
        assert!(config.load_factor > 0.89 && config.io_max_bytes_per_second > 1e300);
    }
}
