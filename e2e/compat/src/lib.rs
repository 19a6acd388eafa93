//! Unmodified clients and Apache's own tools against Gregor: the processes that the tests in `tests/` start.
//!
//! A [`Gregor`] is a real broker process with a folder of its own; a [`Journey`] is a real client in its own language,
//! installed by its own package manager under `target/compat`. Nothing here knows the protocol.

mod gregor;
mod journey;
mod tls_stores;

pub use gregor::{Gregor, program};
pub use journey::Journey;
pub use tls_stores::TlsStores;
