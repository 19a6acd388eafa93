//! Unmodified clients and Apache's own tools against Gregor: the processes that the tests in `tests/` start.
//!
//! A [`Gregor`] is a real broker process with a folder of its own; a [`Journey`] is a real client in its own language,
//! installed by its own package manager under `target/compat`; a [`Driver`] is Java's client doing what a test tells it, line by
//! line; a [`Connection`] is one request after another, each made by hand.

mod chance;
mod driver;
mod gregor;
mod journey;
mod raw;
mod tls_stores;

pub use chance::Chance;
pub use driver::Driver;
pub use gregor::{Gregor, program};
pub use journey::Journey;
pub use raw::Connection;
pub use tls_stores::TlsStores;

/// Features that Apache finalizes by itself and Gregor does not serve yet: where both are to be in one cluster, or on one directory,
/// it is formatted with them at level 0.
pub const FEATURES_BEYOND_US: [&str; 4] = ["group.version", "share.version", "streams.version", "transaction.version"];
