//! The wall clock, which the shell reads and hands to whatever decides by time.

use gregor_types::Timestamp;

/// The wall clock, in Kafka's milliseconds.
pub(crate) fn now() -> Timestamp {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX))
}
