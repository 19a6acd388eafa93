//! The primitives under `waiters.rs`, `fetch_sessions/session.rs`, `append_mode.rs` and `pulse.rs`: where threads meet without
//! a lock of a partition's state.
//!
//! Those name nothing of the standard library's or tokio's by itself. `tests/interleavings.rs` compiles the same files
//! with primitives whose every interleaving a model checker tries, so nothing may be added here without its twin there.

use std::sync::atomic::AtomicUsize;
pub(crate) use std::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
    },
    thread::Builder,
};

pub(crate) use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// A number for this thread, counted from 0 in the order in which threads ask.
pub(crate) fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}
