//! The clocks that the shell reads and hands to whatever decides by time.

use std::{sync::OnceLock, time::Instant};

use gregor_types::Timestamp;

/// The wall clock, in Kafka's milliseconds.
pub(crate) fn now() -> Timestamp {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX))
}

/// Milliseconds on a clock that nobody sets, counted on from the wall clock's time of the first call: for pauses, which must not grow
/// by what somebody sets the wall clock back.
pub(crate) fn steady() -> Timestamp {
    static BEGUN: OnceLock<(Instant, Timestamp)> = OnceLock::new();
    let (begun, wall) = BEGUN.get_or_init(|| (Instant::now(), now()));
    wall.plus_ms(i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX))
}
